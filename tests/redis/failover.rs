//! A primary that dies: Sentinel or the cluster puts its replica in its place, and the store goes on.

use std::time::Duration;

use futures::StreamExt;
use redis::{AsyncCommands, cmd};
use tower_idempotency::{Claim, RedisStore, State, Store};

use crate::{
    servers::{
        process::wait_until,
        redis::{RedisCluster, RedisPair, RedisSentinel, RedisServer, in_step},
    },
    support::{
        LEASE, TTL, again, answer, claim, completed, following, granted, key, request, soon,
        unavailable,
    },
};

/// A dead primary is given up after this.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether it is one, in step. Sentinel cuts all connections when it makes one of it.
fn is_replica(server: &RedisServer) -> bool {
    let info = server.try_command(&["INFO", "replication"]);
    let info = info.and_then(|info| Ok(redis::from_redis_value::<String>(info)?));
    info.is_ok_and(|info| info.contains("role:slave") && info.contains("master_link_status:up"))
}

/// S16, P1, P2, P8: over `kill -9` of the primary one store goes on, with what the replica has;
/// until that is promoted the store is unavailable.
#[tokio::test]
async fn s16_p1_p2_p8_the_store_follows_a_failover() {
    let mut pair = RedisPair::start();
    let sentinel = RedisSentinel::before(&pair, PATIENCE);
    let store = RedisStore::new(following(&sentinel)).with_client(pair.primary.client());
    let done = completed(&store, &key("done")).await;
    let held = claim(&store, &key("held")).await;
    let failed = claim(&store, &key("failed")).await;
    let checkpoint = Some("half".into());
    store
        .renew(&key("failed"), &failed, LEASE, TTL, checkpoint.clone())
        .await
        .unwrap();
    store.fail(&key("failed"), &failed, TTL).await.unwrap();
    let reached = pair.primary.command(&["WAIT", "1", "30000"]);
    assert_eq!(reached, redis::Value::Int(1));
    pair.in_step();
    // Nothing can be promoted yet.
    pair.replica.process().freeze();
    pair.primary.process().kill();
    for _ in 0..3 {
        unavailable(soon(store.claim(&key("new"), &request())).await);
    }
    pair.replica.process().thaw();

    let new = soon(again(async || store.claim(&key("new"), &request()).await)).await;
    let new = granted(Ok(new)).lease;
    let promoted = RedisStore::new(pair.replica.connection().await);
    let there = promoted.get(&key("new")).await.unwrap().unwrap();
    assert_eq!(there.record.owner, new.owner);
    let replayed = store.claim(&key("done"), &request()).await.unwrap();
    assert_eq!(replayed, Claim::Completed(answer()));
    let kept = store.get(&key("done")).await.unwrap().unwrap().record;
    assert_eq!(kept.token, done.token);
    let running = store.claim(&key("held"), &request()).await.unwrap();
    assert_eq!(running, Claim::InProgress { token: held.token });
    let retried = granted(store.claim(&key("failed"), &request()).await);
    assert_eq!(retried.checkpoint, checkpoint);
    assert!(retried.lease.token > failed.token);

    // Its subscription is to a server that is gone: who waits polls.
    let (name, ttl) = (key("held"), TTL);
    let wait = soon(store.wait(&name, held.token));
    let end = async {
        store.renew(&name, &held, LEASE, ttl, None).await.unwrap();
        store.complete(&name, &held, &answer(), ttl).await.unwrap();
    };
    let (found, ()) = tokio::join!(wait, end);
    assert_eq!(found.unwrap().unwrap().record.state, State::Completed);

    // Back again, Sentinel makes a replica of it, and the store stays where it is.
    pair.primary.restart();
    wait_until("the old primary is a replica", || is_replica(&pair.primary));
    completed(&store, &key("later")).await;
    in_step(&pair.replica, &pair.primary);
    // What is told there it tells on, to whoever subscribed to it.
    let mut told = pair.primary.client().get_async_pubsub().await.unwrap();
    told.subscribe("tower-idempotency").await.unwrap();
    completed(&store, &key("last")).await;
    assert!(soon(told.on_message().next()).await.is_some());
}

/// S16, P2: a failover that is asked for, while the primary lives, loses no request: the connection
/// is cut, and the new primary is found.
#[tokio::test]
async fn s16_p2_a_planned_failover_goes_on() {
    let pair = RedisPair::start();
    let sentinel = RedisSentinel::before(&pair, Duration::from_secs(60));
    let store = RedisStore::new(following(&sentinel));
    let lease = claim(&store, &key("held")).await;
    pair.in_step();
    wait_until("Sentinel finds the replica fit", || {
        let asked = sentinel.command(&["SENTINEL", "FAILOVER", "main"]);
        asked.is_ok()
    });
    wait_until("the old primary is a replica", || is_replica(&pair.primary));
    let name = key("held");
    let renew = async || store.renew(&name, &lease, LEASE, TTL, None).await;
    soon(again(renew)).await;
    store.complete(&name, &lease, &answer(), TTL).await.unwrap();
    let promoted = RedisStore::new(pair.replica.connection().await);
    let kept = promoted.get(&name).await.unwrap().unwrap().record;
    assert_eq!(kept.state, State::Completed);
}

/// S16, P8: a server that was made a replica without a word claims nothing; asked again, Sentinel
/// knows the primary.
#[tokio::test]
async fn s16_p8_a_replica_is_left_for_the_primary() {
    let pair = RedisPair::start();
    let sentinel = RedisSentinel::before(&pair, Duration::from_secs(60));
    let store = RedisStore::new(following(&sentinel));
    completed(&store, &key("k")).await;
    pair.in_step();
    let mut eyes = pair.primary.connection().await;
    // Sentinel will undo it.
    let port = pair.replica.address().port().to_string();
    pair.primary.command(&["REPLICAOF", "127.0.0.1", &port]);
    let told = unavailable(store.claim(&key("new"), &request()).await);
    assert!(told.contains("READONLY"), "{told}");
    let role: Vec<redis::Value> = cmd("ROLE").query_async(&mut eyes).await.unwrap();
    assert_eq!(role[0], redis::Value::BulkString(b"slave".into()));
    pair.primary.command(&["REPLICAOF", "NO", "ONE"]);
    completed_again(&store).await;
    let there: bool = eyes.exists(key("new").as_str()).await.unwrap();
    assert!(there);
}

async fn completed_again(store: &impl Store) {
    let new = soon(again(async || store.claim(&key("new"), &request()).await)).await;
    let lease = granted(Ok(new)).lease;
    store
        .complete(&key("new"), &lease, &answer(), TTL)
        .await
        .unwrap();
}

/// S16, P1, P2: a node of a cluster dies, its replica takes its slots, and the store goes on with
/// what that has.
#[tokio::test]
async fn s16_p1_p2_the_store_follows_a_failover_of_a_cluster() {
    let mut cluster = RedisCluster::start();
    cluster.add_replica();
    let client = redis::cluster::ClusterClientBuilder::new(cluster.urls())
        .retries(1)
        .build()
        .unwrap();
    let store = RedisStore::new(client.get_async_connection().await.unwrap());
    let mut leases = Vec::new();
    for n in 0..12 {
        let name = key(&n.to_string());
        leases.push((claim(&store, &name).await, name));
    }
    let nodes = cluster.nodes();
    in_step(&nodes[0], &nodes[3]);
    cluster.nodes()[0].process().kill();
    let mut away = 0;
    for (lease, name) in &leases {
        if store.get(name).await.is_err() {
            away += 1;
        }
        let end = async || store.complete(name, lease, &answer(), TTL).await;
        soon(again(end)).await;
    }
    assert!(away > 0, "the node had none of them");
    for (lease, name) in &leases {
        let kept = store.get(name).await.unwrap().unwrap().record;
        assert_eq!((kept.state, kept.token), (State::Completed, lease.token));
        // One that was lost would have been made anew, by its completion.
        assert!(kept.created_at < kept.lease_until);
    }
    let moved = cluster.nodes()[3].text(&["INFO", "replication"]);
    assert!(moved.contains("role:master"), "{moved}");
}
