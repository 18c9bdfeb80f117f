//! Round trips, counted on the wire.

use std::time::Duration;

use redis::{AsyncCommands, Client};
use tower_idempotency::{Claim, ClaimRequest, Payload, RedisStore, Store};

use crate::{
    servers::{
        proxy::Proxy,
        redis::{RedisServer, connection},
    },
    support::{LEASE, TTL, answer, claim, granted, key, request},
};

struct Wire {
    server: RedisServer,
    proxy: Proxy,
    store: RedisStore<redis::aio::MultiplexedConnection>,
}

/// A store that has sent each of its scripts, and asked what it asks once.
async fn wire() -> Wire {
    let server = RedisServer::start(&[]);
    let proxy = Proxy::before(server.address()).await;
    let client = Client::open(format!("redis://{}", proxy.address())).unwrap();
    let store = RedisStore::new(connection(&client).await);
    each(&store, "warm", &mut async || {}).await;
    // The background's only question has been answered.
    tokio::time::sleep(Duration::from_millis(200)).await;
    Wire {
        server,
        proxy,
        store,
    }
}

/// Each operation once, and `then` after each.
async fn each(store: &impl Store, name: &str, then: &mut impl AsyncFnMut()) {
    let (one, two, three) = (
        key(&format!("{name} 1")),
        key(&format!("{name} 2")),
        key(&format!("{name} 3")),
    );
    let asked = request();
    let lease = granted(store.claim(&one, &asked).await).lease;
    then().await;
    let held = store.claim(&one, &request()).await.unwrap();
    assert!(matches!(held, Claim::InProgress { .. }));
    then().await;
    let checkpoint = Some(vec![7; 100_000].into());
    store
        .renew(&one, &lease, LEASE, TTL, checkpoint)
        .await
        .unwrap();
    then().await;
    let payload = Payload::new(200, vec![8; 100_000].into());
    store.complete(&one, &lease, &payload, TTL).await.unwrap();
    then().await;
    let replayed = store.claim(&one, &request()).await.unwrap();
    assert_eq!(replayed, Claim::Completed(payload));
    then().await;
    store.wait(&one, lease.token).await.unwrap();
    then().await;
    assert!(store.get(&one).await.unwrap().is_some());
    then().await;
    assert!(store.forget(&one).await.unwrap());
    then().await;

    let lease = claim(store, &two).await;
    then().await;
    store.fail(&two, &lease, TTL).await.unwrap();
    then().await;
    let lease = granted(store.claim(&two, &request()).await).lease;
    then().await;
    store.release(&two, &lease, TTL).await.unwrap();
    then().await;
    let lease = claim(store, &three).await;
    then().await;
    store.give_back(&three, &lease, TTL).await.unwrap();
    then().await;
}

/// S16: each operation takes one round trip, whatever the answer: a fresh request two, a replay, a
/// conflict or a mismatch one.
#[tokio::test]
async fn s16_each_operation_is_one_round_trip() {
    let Wire {
        server: _server,
        proxy,
        store,
    } = wire().await;
    let mut before = proxy.round_trips();
    each(&store, "counted", &mut async || {
        let now = proxy.round_trips();
        assert_eq!(now - before, 1);
        before = now;
    })
    .await;
    assert_eq!(proxy.connections(), 1);
}

/// S16: a mismatch does not bring the recorded answer along.
#[tokio::test]
async fn s16_a_mismatch_brings_no_bytes() {
    let Wire {
        server: _server,
        proxy,
        store,
    } = wire().await;
    let lease = claim(&store, &key("k")).await;
    let large = Payload::new(200, vec![8; 1_000_000].into());
    store
        .complete(&key("k"), &lease, &large, TTL)
        .await
        .unwrap();
    let (_, before) = proxy.bytes();
    let other = ClaimRequest {
        fingerprint: tower_idempotency::Fingerprint::hasher("test/1")
            .keyed(b"x")
            .finish(),
        ..request()
    };
    let told = store.claim(&key("k"), &other).await.unwrap();
    assert_eq!(told, Claim::OtherAlgorithm);
    store
        .complete(&key("k"), &lease, &answer(), TTL)
        .await
        .unwrap();
    let (_, after) = proxy.bytes();
    assert!(after - before < 2_000, "{} bytes", after - before);
}

/// S16: a server that forgot the scripts is sent them again, once each, and nobody notices.
#[tokio::test]
async fn s16_forgotten_scripts_are_sent_again() {
    let Wire {
        server,
        proxy,
        store,
    } = wire().await;
    server.command(&["SCRIPT", "FLUSH"]);
    let before = proxy.round_trips();
    each(&store, "again", &mut async || {}).await;
    assert_eq!(proxy.round_trips() - before, 14 + 6);
    let before = proxy.round_trips();
    each(&store, "known", &mut async || {}).await;
    assert_eq!(proxy.round_trips() - before, 14);
}

/// Reading is no write: it is neither replicated nor kept in the append-only file.
#[tokio::test]
async fn reading_writes_nothing() {
    let server = RedisServer::start(&[]);
    let mut eyes = server.connection().await;
    let store = RedisStore::new(eyes.clone());
    let lease = claim(&store, &key("k")).await;
    store
        .complete(&key("k"), &lease, &answer(), TTL)
        .await
        .unwrap();
    let held = claim(&store, &key("held")).await;
    let mut dirty = async || {
        let info: String = redis::cmd("INFO")
            .arg("persistence")
            .query_async(&mut eyes)
            .await
            .unwrap();
        let changes = info
            .lines()
            .find_map(|line| line.strip_prefix("rdb_changes_since_last_save:"));
        changes.unwrap().parse::<u64>().unwrap()
    };
    let before = dirty().await;
    for _ in 0..3 {
        store.get(&key("k")).await.unwrap();
        store.get(&key("absent")).await.unwrap();
        store.wait(&key("k"), lease.token).await.unwrap();
        assert!(matches!(
            store.claim(&key("k"), &request()).await,
            Ok(Claim::Completed(_))
        ));
        assert!(matches!(
            store.claim(&key("held"), &request()).await,
            Ok(Claim::InProgress { .. })
        ));
        store
            .complete(&key("k"), &lease, &answer(), TTL)
            .await
            .unwrap();
    }
    assert_eq!(dirty().await, before);
    store.fail(&key("held"), &held, TTL).await.unwrap();
    assert!(dirty().await > before, "the measure measures");
    let there: bool = eyes.exists(key("held").as_str()).await.unwrap();
    assert!(there);
}
