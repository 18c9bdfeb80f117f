//! Servers that are away, frozen, restarted, replaced, or that refuse.

use std::{pin::pin, time::Duration};

use redis::{Client, aio::ConnectionManager};
use tower_idempotency::{Claim, RedisStore, State, Store};

use crate::{
    servers::{
        proxy::Proxy,
        redis::{RedisCluster, RedisPair, RedisServer, connection},
    },
    support::{
        LEASE, TTL, again, answer, claim, completed, corrupt, granted, key, managed, request, soon,
        unavailable,
    },
};

/// Tries each operation, and says what its error tells.
async fn each(store: &impl Store) -> Vec<String> {
    let key = key("secret-key");
    let lease = tower_idempotency::Lease {
        owner: request().owner,
        token: tower_idempotency::FencingToken::from_u64(1),
        attempt: 1,
        fingerprint: request().fingerprint,
    };
    let secret = Some("secret-checkpoint".into());
    let payload = tower_idempotency::Payload::new(200, "secret-answer".into());
    let told = vec![
        unavailable(store.claim(&key, &request()).await),
        unavailable(store.renew(&key, &lease, LEASE, TTL, secret).await),
        unavailable(store.complete(&key, &lease, &payload, TTL).await),
        unavailable(store.fail(&key, &lease, TTL).await),
        unavailable(store.release(&key, &lease, TTL).await),
        unavailable(store.give_back(&key, &lease, TTL).await),
        unavailable(store.get(&key).await),
        unavailable(store.forget(&key).await),
        unavailable(store.wait(&key, lease.token).await),
    ];
    for text in &told {
        assert!(!text.contains("secret"), "{text}");
    }
    told
}

/// P8, U19: a server that is away is unavailable, to every operation.
#[tokio::test]
async fn p8_u19_a_server_that_is_away_is_unavailable() {
    let mut server = RedisServer::start(&[]);
    let store = RedisStore::new(server.connection().await).with_client(server.client());
    let lease = claim(&store, &key("k")).await;
    let wait = soon(async { store.wait(&key("k"), lease.token).await });
    let end = async { server.process().kill() };
    let (waited, ()) = tokio::join!(wait, end);
    unavailable(waited);
    soon(each(&store)).await;
}

/// P8: a connection that opens itself again carries on once the server is back, with the records
/// that its append-only file kept; also over `kill -9`.
#[tokio::test]
async fn p8_p2_a_restart_with_its_data_keeps_the_records() {
    let mut server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let store = RedisStore::new(managed(&server.client()).await);
    completed(&store, &key("done")).await;
    let lease = claim(&store, &key("held")).await;
    for stop in [RedisServer::stop, |server: &mut RedisServer| {
        server.process().kill();
    }] {
        stop(&mut server);
        unavailable(soon(store.claim(&key("other"), &request())).await);
        server.restart();
        let replayed = soon(again(async || store.claim(&key("done"), &request()).await)).await;
        assert_eq!(replayed, Claim::Completed(answer()));
        let held = store.claim(&key("held"), &request()).await.unwrap();
        assert_eq!(held, Claim::InProgress { token: lease.token });
    }
    store
        .complete(&key("held"), &lease, &answer(), TTL)
        .await
        .unwrap();
}

/// A server without persistence loses everything, as documented; an owner that still runs makes its
/// record anew when it completes.
#[tokio::test]
async fn p2_a_restart_without_data_loses_the_records() {
    let mut server = RedisServer::start(&[]);
    let store = RedisStore::new(managed(&server.client()).await);
    completed(&store, &key("done")).await;
    let lease = claim(&store, &key("held")).await;
    server.restart();
    let found = soon(again(async || store.get(&key("done")).await)).await;
    assert_eq!(found, None);
    store
        .complete(&key("held"), &lease, &answer(), TTL)
        .await
        .unwrap();
    let replayed = store.claim(&key("held"), &request()).await.unwrap();
    assert_eq!(replayed, Claim::Completed(answer()));
}

/// A connection that was cut loses no request, where it opens itself again.
#[tokio::test]
async fn p8_a_cut_connection_loses_no_request() {
    let server = RedisServer::start(&[]);
    let proxy = Proxy::before(server.address()).await;
    let client = Client::open(format!("redis://{}", proxy.address())).unwrap();
    let store: RedisStore<ConnectionManager> = RedisStore::new(managed(&client).await);
    for round in 0..10 {
        let name = key(&round.to_string());
        proxy.cut();
        let lease = granted(soon(store.claim(&name, &request())).await).lease;
        proxy.cut();
        soon(store.renew(&name, &lease, LEASE, TTL, None))
            .await
            .unwrap();
        proxy.cut();
        soon(store.complete(&name, &lease, &answer(), TTL))
            .await
            .unwrap();
    }
    assert!(proxy.connections() > 10);

    // Any other stays broken, and says so.
    let store = RedisStore::new(connection(&client).await);
    claim(&store, &key("k")).await;
    proxy.cut();
    for _ in 0..3 {
        unavailable(soon(store.get(&key("k"))).await);
    }
}

/// P8: a frozen server is waited for, by whoever has the patience. A call that is dropped took
/// effect or not, and never half.
#[tokio::test]
async fn p8_a_frozen_server_is_waited_for() {
    let mut server = RedisServer::start(&[]);
    let store = RedisStore::new(server.connection().await);
    completed(&store, &key("warm")).await;
    let asked = request();
    server.process().freeze();
    {
        let name = key("k");
        let mut claiming = pin!(store.claim(&name, &asked));
        let patience = Duration::from_millis(300);
        let early = tokio::time::timeout(patience, claiming.as_mut()).await;
        assert!(early.is_err(), "{early:?}");
    }
    server.process().thaw();
    // The same owner is granted it in any case, and nobody else was.
    let lease = granted(soon(store.claim(&key("k"), &asked)).await).lease;
    assert_eq!(lease.attempt, 1);
    let held = store.claim(&key("k"), &request()).await.unwrap();
    assert_eq!(held, Claim::InProgress { token: lease.token });

    // A connection without patience gives up by itself.
    let hasty =
        redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_millis(100)));
    let client = server.client();
    let hasty = client.get_multiplexed_async_connection_with_config(&hasty);
    let hasty = RedisStore::new(hasty.await.unwrap());
    server.process().freeze();
    unavailable(soon(hasty.get(&key("k"))).await);
    server.process().thaw();
    let found = soon(again(async || hasty.get(&key("k")).await)).await;
    assert_eq!(found.unwrap().record.state, State::InProgress);
}

/// P1, P2: what reached the replica outlives the primary; what did not runs again, as documented.
#[tokio::test]
async fn p1_p2_a_failover_keeps_what_the_replica_has() {
    let mut pair = RedisPair::start();
    let before = RedisStore::new(pair.primary.connection().await);
    completed(&before, &key("done")).await;
    let held = claim(&before, &key("held")).await;
    pair.in_step();
    // Cut off, the primary still takes a write.
    pair.promote();
    let lost = completed(&before, &key("late")).await;
    pair.primary.process().kill();

    let after = RedisStore::new(pair.replica.connection().await);
    let replayed = after.claim(&key("done"), &request()).await.unwrap();
    assert_eq!(replayed, Claim::Completed(answer()));
    let running = after.claim(&key("held"), &request()).await.unwrap();
    assert_eq!(running, Claim::InProgress { token: held.token });
    after
        .renew(&key("held"), &held, LEASE, TTL, None)
        .await
        .unwrap();
    after
        .complete(&key("held"), &held, &answer(), TTL)
        .await
        .unwrap();
    let twice = granted(after.claim(&key("late"), &request()).await).lease;
    assert!(twice.token > lost.token);
}

/// P8: a replica answers what is recorded and claims nothing.
#[tokio::test]
async fn p8_a_replica_claims_nothing() {
    let pair = RedisPair::start();
    let primary = RedisStore::new(pair.primary.connection().await);
    completed(&primary, &key("done")).await;
    let lease = claim(&primary, &key("held")).await;
    pair.in_step();
    let store = RedisStore::new(pair.replica.connection().await);
    let told = unavailable(store.claim(&key("new"), &request()).await);
    assert!(told.contains("READONLY"), "{told}");
    unavailable(store.complete(&key("held"), &lease, &answer(), TTL).await);
    unavailable(store.release(&key("held"), &lease, TTL).await);
    unavailable(store.forget(&key("held")).await);
    let replayed = store.claim(&key("done"), &request()).await.unwrap();
    assert_eq!(replayed, Claim::Completed(answer()));
}

/// P8: a server that may not write says why.
#[tokio::test]
async fn p8_a_primary_without_its_replicas_claims_nothing() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::new(server.connection().await);
    let lease = claim(&store, &key("held")).await;
    server.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let told = unavailable(store.claim(&key("new"), &request()).await);
    assert!(told.contains("NOREPLICAS"), "{told}");
    unavailable(store.complete(&key("held"), &lease, &answer(), TTL).await);
    server.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    store
        .complete(&key("held"), &lease, &answer(), TTL)
        .await
        .unwrap();
    assert_eq!(store.get(&key("new")).await.unwrap(), None);
}

/// U19: a server that refuses may quote what it was asked; the error does not.
#[tokio::test]
async fn p8_u19_a_refusal_quotes_nothing() {
    let server = RedisServer::start(&["--rename-command", "EVALSHA", ""]);
    let store = RedisStore::new(server.connection().await);
    for told in each(&store).await {
        assert!(told.contains("Redis 6.2"), "{told}");
    }
    let server = RedisServer::start(&[]);
    let users: [&[&str]; 2] = [&["~*", "+@all", "-@scripting"], &["~other", "+@all"]];
    for rights in users {
        server.command(&[&["ACL", "SETUSER", "app", "reset", "on", ">pw"], rights].concat());
        let client = Client::open(format!("redis://app:pw@{}", server.address())).unwrap();
        let store = RedisStore::new(connection(&client).await);
        for told in each(&store).await {
            assert!(told.contains("NOPERM"), "{told}");
        }
    }
}

/// P8: over a cluster, a node that is away makes its keys unavailable, and they come back with it.
#[tokio::test]
async fn p8_a_node_of_a_cluster_comes_back() {
    let mut cluster = RedisCluster::start();
    let client = redis::cluster::ClusterClientBuilder::new(cluster.urls())
        .retries(1)
        .build()
        .unwrap();
    let store = RedisStore::new(client.get_async_connection().await.unwrap());
    let names: Vec<_> = (0..12).map(|n| key(&n.to_string())).collect();
    for name in &names {
        completed(&store, name).await;
    }
    cluster.nodes()[0].process().kill();
    let mut away = 0;
    for name in &names {
        match soon(store.get(name)).await {
            Ok(found) => assert!(found.is_some()),
            error => {
                unavailable(error);
                away += 1;
            }
        }
    }
    assert!(away > 0, "the node had none of them");
    cluster.nodes()[0].restart();
    for name in &names {
        // It had no persistence; the others have theirs.
        soon(again(async || store.get(name).await)).await;
    }
    let kept = futures::future::join_all(names.iter().map(|name| store.get(name))).await;
    let kept = kept
        .iter()
        .filter(|found| matches!(found, Ok(Some(_))))
        .count();
    assert!(kept > 0 && kept < names.len(), "{kept}");
}

/// A connection to one node of a cluster says what is wrong with it.
#[tokio::test]
async fn a_cluster_needs_a_cluster_connection() {
    let mut cluster = RedisCluster::start();
    let store = RedisStore::new(cluster.nodes()[0].connection().await);
    let mut told = String::new();
    for n in 0..30 {
        if let Err(error) = store.get(&key(&n.to_string())).await {
            told = unavailable::<()>(Err(error));
        }
    }
    assert!(told.contains("needs a cluster connection"), "{told}");
}

/// Whatever answers without being Redis is not understood, and nothing is taken for a record.
#[tokio::test]
async fn u18_a_strange_reply_is_no_record() {
    use redis::{Cmd, Pipeline, RedisFuture, Value, aio::ConnectionLike};

    #[derive(Clone)]
    struct Strange(Value);
    impl ConnectionLike for Strange {
        fn req_packed_command<'a>(&'a mut self, _: &'a Cmd) -> RedisFuture<'a, Value> {
            let value = self.0.clone();
            Box::pin(async { Ok(value) })
        }
        fn req_packed_commands<'a>(
            &'a mut self,
            _: &'a Pipeline,
            _: usize,
            _: usize,
        ) -> RedisFuture<'a, Vec<Value>> {
            Box::pin(async { Ok(Vec::new()) })
        }
        fn get_db(&self) -> i64 {
            0
        }
    }
    let kept = |rest: Vec<Value>| Value::Array([vec![Value::Int(0)], rest].concat());
    let now = || Value::BulkString(b"1".to_vec());
    for strange in [
        Value::Nil,
        Value::Okay,
        Value::Int(1),
        Value::Array(vec![]),
        Value::Array(vec![Value::Int(2)]),
        kept(vec![]),
        kept(vec![now()]),
        kept(vec![Value::Int(1), Value::Nil]),
        kept(vec![now(), Value::Okay]),
        kept(vec![now(), Value::Array(vec![])]),
        kept(vec![now(), Value::Array(vec![Value::Nil; 14])]),
    ] {
        let store = RedisStore::new(Strange(strange));
        corrupt(store.claim(&key("k"), &request()).await);
        corrupt(store.get(&key("k")).await);
    }
    let store = RedisStore::new(Strange(Value::Array(vec![Value::Int(1)])));
    corrupt(store.claim(&key("k"), &request()).await);
    corrupt(store.get(&key("k")).await);
    // Absent, says the server, and would not claim: that cannot be.
    let store = RedisStore::new(Strange(kept(vec![now(), Value::Nil])));
    corrupt(store.claim(&key("k"), &request()).await);
}
