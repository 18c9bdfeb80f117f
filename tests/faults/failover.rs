//! Redis: a replica that takes over, and a cluster that loses or moves a part of itself.

use std::sync::Arc;

use redis::cluster::ClusterClientBuilder;
use tower_idempotency::{Entry, Outcome, RedisStore};

use crate::{
    servers::{
        proxy::Proxy,
        redis::{RedisCluster, RedisPair, RedisServer},
    },
    support::{Instance, PATIENCE, Server, Work, soon},
};

/// A pair behind an address that leads to the primary, and an instance that knows this address
/// only.
async fn behind_an_address(work: &Work) -> (RedisPair, Proxy, Instance) {
    let pair = RedisPair::start();
    let proxy = Proxy::before(pair.primary.address()).await;
    let instance = RedisServer::instance_behind(&proxy, work).await;
    (pair, proxy, instance)
}

/// P1, P2: what had reached the replica outlives the primary: what is recorded, and the claim of an
/// execution that runs on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_p2_p8_a_replica_takes_over() {
    let work = Work::new();
    let (mut pair, proxy, instance) = behind_an_address(&work).await;
    instance.send("done").await.is_run(Outcome::Completed, 1);
    work.entered().await;
    work.hold();
    let first = instance.start("held");
    work.entered().await;
    pair.in_step();
    pair.primary.process().kill();
    instance.send("done").await.is_unavailable();

    pair.promote();
    proxy.lead_to(pair.replica.address());
    instance.retry("done").await.is_replay_of(1);
    instance.send("held").await.is_in_progress();
    work.let_go();
    first.await.unwrap().is_run(Outcome::Completed, 2);
    instance.send("held").await.is_replay_of(2);
    assert_eq!(work.count(), 2);
}

/// What is documented as lost: a write that the primary took and the replica did not get.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_what_the_replica_did_not_get_runs_again() {
    let work = Work::new();
    let (mut pair, proxy, instance) = behind_an_address(&work).await;
    instance.send("done").await.is_run(Outcome::Completed, 1);
    pair.in_step();
    // Cut off from its replica, the primary takes writes still.
    pair.promote();
    instance.send("late").await.is_run(Outcome::Completed, 2);
    proxy.lead_to(pair.replica.address());
    pair.primary.process().kill();
    instance.retry("late").await.is_run(Outcome::Completed, 3);
    let run = &work.runs()[2];
    assert_eq!((run.attempt, run.entry), (1, Entry::First));
    instance.send("late").await.is_replay_of(3);
    instance.send("done").await.is_replay_of(1);
}

/// P8: a primary that has become a replica claims nothing, whoever still talks to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_p3_a_primary_becomes_a_replica() {
    let work = Work::held();
    let (pair, proxy, instance) = behind_an_address(&work).await;
    let first = instance.start("held");
    work.entered().await;
    pair.in_step();
    pair.promote();
    let port = pair.replica.address().port().to_string();
    pair.primary.command(&["REPLICAOF", "127.0.0.1", &port]);
    instance.send("k").await.is_unavailable();
    work.let_go();
    first.await.unwrap().is_run(Outcome::Unrecorded, 1);
    assert_eq!(work.count(), 1);

    proxy.lead_to(pair.replica.address());
    proxy.cut();
    instance.drain().await;
    instance.send("held").await.is_replay_of(1);
    work.let_go();
    instance.retry("k").await.is_run(Outcome::Completed, 2);
}

/// A cluster that serves the slots that it has, and an instance over it.
async fn over_a_cluster(work: &Work) -> (RedisCluster, Instance) {
    let mut cluster = RedisCluster::start();
    for node in cluster.nodes() {
        node.command(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    let client = ClusterClientBuilder::new(cluster.urls())
        .connection_timeout(PATIENCE)
        .response_timeout(PATIENCE)
        .build()
        .unwrap();
    let connection = client.get_async_connection();
    let connection = soon("the cluster is connected", connection).await.unwrap();
    let instance = Instance::new(Arc::new(RedisStore::new(connection)), work);
    (cluster, instance)
}

/// Which node has the record of this key.
fn node_of(cluster: &mut RedisCluster, record: &str) -> (usize, String) {
    let slot = cluster.nodes()[0].command(&["CLUSTER", "KEYSLOT", record]);
    let slot: usize = redis::from_redis_value(slot).unwrap();
    let node = (0..3).find(|at| slot < 16_384 * (at + 1) / 3).unwrap();
    (node, slot.to_string())
}

/// P8: while a node is down the requests whose keys it has are refused, and all others go on. What
/// ran when it went is recorded when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_p3_a_node_of_a_cluster_is_down() {
    let work = Work::new();
    let (mut cluster, instance) = over_a_cluster(&work).await;
    let instance = instance.with(|layer| layer.lease(PATIENCE));
    let (mut there, mut gone) = (Vec::new(), Vec::new());
    for n in 1..=12 {
        let key = format!("key {n}");
        instance.send(&key).await.is_run(Outcome::Completed, n);
        work.entered().await;
        let record = work.runs()[n - 1].execution.store_key().as_str().to_owned();
        match node_of(&mut cluster, &record) {
            (0, _) => gone.push((key, n)),
            _ => there.push((key, n)),
        }
    }
    assert!(there.len() > 1 && gone.len() > 1, "{there:?} {gone:?}");
    // Its record is to be lost with the node's others; that is for the held one to mend.
    let held = gone.pop().unwrap();
    let record = work.runs()[held.1 - 1]
        .execution
        .store_key()
        .as_str()
        .to_owned();
    cluster.nodes()[0].command(&["DEL", &record]);
    work.hold();
    let first = instance.start(&held.0);
    work.entered().await;

    cluster.nodes()[0].process().kill();
    for (key, _) in &gone {
        instance.send(key).await.is_unavailable();
    }
    for (key, n) in &there {
        instance.send(key).await.is_replay_of(*n);
    }
    work.let_go();
    first.await.unwrap().is_run(Outcome::Unrecorded, 13);
    assert_eq!(work.count(), 13);

    cluster.nodes()[0].restart();
    instance.drain().await;
    instance.retry(&held.0).await.is_replay_of(13);
    for (key, n) in &there {
        instance.send(key).await.is_replay_of(*n);
    }
    // It had no persistence: as documented.
    work.hold_no_more();
    instance
        .retry(&gone[0].0)
        .await
        .is_run(Outcome::Completed, 14);
}

/// P1, S16: a slot moves to another node in mid-handler: the claim, its completion and its replay
/// follow it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_s16_a_slot_moves_in_mid_handler() {
    let work = Work::held();
    let (mut cluster, instance) = over_a_cluster(&work).await;
    let first = instance.start("k");
    work.entered().await;
    let record = work.runs()[0].execution.store_key().as_str().to_owned();
    let (from, slot) = node_of(&mut cluster, &record);
    let to = (from + 1) % 3;
    let ids: Vec<_> = cluster
        .nodes()
        .iter()
        .map(|node| node.text(&["CLUSTER", "MYID"]))
        .collect();
    let port = cluster.nodes()[to].address().port().to_string();
    let set = |node: &RedisServer, how: &[&str]| {
        node.command(&[&["CLUSTER", "SETSLOT", &slot], how].concat());
    };
    set(&cluster.nodes()[to], &["IMPORTING", &ids[from]]);
    set(&cluster.nodes()[from], &["MIGRATING", &ids[to]]);
    instance.send("k").await.is_in_progress();
    // The record is there, and the slot is not yet: asked for it, the old node says ASK.
    let migrate = ["MIGRATE", "127.0.0.1", &port, &record, "0", "60000"];
    cluster.nodes()[from].command(&migrate);
    instance.send("k").await.is_in_progress();
    work.let_go();
    first.await.unwrap().is_run(Outcome::Completed, 1);
    instance.send("k").await.is_replay_of(1);
    // From now on it says MOVED.
    for at in [to, from, (from + 2) % 3] {
        set(&cluster.nodes()[at], &["NODE", &ids[to]]);
    }
    instance.send("k").await.is_replay_of(1);
    assert_eq!(work.count(), 1);
}
