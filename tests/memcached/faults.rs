//! Servers that are away, frozen, or started anew.

use std::time::Duration;

use tokio::time::timeout;
use tower_idempotency::{
    Claim, FencingToken, Lease, Operation, Payload, RunError, Store, StoreError,
};

use crate::support::{
    LEASE, MemcachedServer, TTL, answer, claim, completed, granted, key, request, soon, store,
    unavailable,
};

/// P8, P2, U19: a server that was killed is unavailable to every operation; once it is back, its
/// records are gone, and an owner that still runs makes its own anew.
#[tokio::test]
async fn p8_p2_u19_a_server_that_was_killed_comes_back_without_records() {
    let mut server = MemcachedServer::start(&[]);
    let store = store(&server);
    completed(&store, &key("done")).await;
    let held = claim(&store, &key("held")).await;
    let first = held.token;
    server.process().kill();

    let secret = key("secret-key");
    let lease = Lease {
        owner: request().owner,
        token: FencingToken::from_u64(1),
        attempt: 1,
        fingerprint: request().fingerprint,
    };
    let checkpoint = Some("secret-checkpoint".into());
    let payload = Payload::new(200, "secret-answer".into());
    let told = soon(async {
        [
            unavailable(store.claim(&secret, &request()).await),
            unavailable(store.renew(&secret, &lease, LEASE, TTL, checkpoint).await),
            unavailable(store.complete(&secret, &lease, &payload, TTL).await),
            unavailable(store.fail(&secret, &lease, TTL).await),
            unavailable(store.release(&secret, &lease, TTL).await),
            unavailable(store.give_back(&secret, &lease, TTL).await),
            unavailable(store.get(&secret).await),
            unavailable(store.forget(&secret).await),
            unavailable(store.wait(&secret, lease.token).await),
        ]
    })
    .await;
    for text in told {
        assert!(!text.contains("secret"), "{text}");
    }

    server.restart();
    assert_eq!(store.get(&key("done")).await.unwrap(), None);
    let done = store.complete(&key("held"), &held, &answer(), TTL).await;
    done.unwrap();
    let replayed = store.claim(&key("held"), &request()).await.unwrap();
    assert_eq!(replayed, Claim::Completed(answer()));
    // It counts versions from one again: the number of an old item means nothing.
    assert!(store.forget(&key("held")).await.unwrap());
    let next = granted(store.claim(&key("held"), &request()).await).lease;
    assert!(next.token > first);
}

/// P8: while a server is frozen nothing runs, within the deadline of a call; once it goes on, so does
/// the store, and no answer comes to the wrong call.
#[tokio::test]
async fn p8_a_frozen_server_is_given_up() {
    let mut server = MemcachedServer::start(&[]);
    let store = store(&server);
    completed(&store, &key("done")).await;
    let pay = Operation::new("pay", store.clone()).store_timeout(Duration::from_millis(100));
    server.process().freeze();
    for _ in 0..5 {
        let call = pay.call("order").run(async |_| -> Result<u32, String> {
            panic!("it must not run");
        });
        match soon(call).await {
            Err(RunError::Store(StoreError::Unavailable { .. })) => {}
            other => panic!("the store should be unavailable: {other:?}"),
        }
    }
    let gave_up = timeout(Duration::from_millis(50), store.get(&key("done"))).await;
    assert!(gave_up.is_err());

    server.process().thaw();
    let found = soon(store.claim(&key("done"), &request())).await.unwrap();
    assert_eq!(found, Claim::Completed(answer()));
    let patient = Operation::new("pay", store.clone());
    let done = patient
        .call("order 2")
        .run(async |_| Ok::<_, String>("paid".to_owned()));
    assert_eq!(soon(done).await.unwrap().value(), "paid");
}

/// P9: more calls at once than connections wait for one, and each is answered.
#[tokio::test]
async fn p9_connections_are_bounded() {
    let server = MemcachedServer::start(&[]);
    let store = store(&server);
    let calls = (0..500).map(|n| {
        let store = store.clone();
        async move { completed(&store, &key(&n.to_string())).await }
    });
    soon(futures::future::join_all(calls)).await;
    // One is the test's own.
    let most = server.stat("total_connections");
    assert!(most <= 32 + 10, "{most}");
}
