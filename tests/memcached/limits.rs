//! What becomes of records when memory runs out: what eviction costs, and what `-M` costs instead.

use std::time::Duration;

use futures::future::join_all;
use tower_idempotency::{
    Claim, Entry, Operation, Outcome, Payload, RunError, State, Store, StoreError,
};

use crate::support::{
    LEASE, MemcachedServer, MemcachedStore, TTL, answer, claim, completed, full, granted, key,
    request, soon, store,
};

/// Room for a few hundred records, whatever their size up to 2 KB.
const SMALL: [&str; 6] = ["-m", "1", "-I", "512k", "-n", "2000"];

fn refusing() -> MemcachedServer {
    MemcachedServer::start(&[&SMALL[..], &["-M"]].concat())
}

/// Completes new records until `enough`, which looks at no record.
async fn fill(store: &MemcachedStore, enough: impl Fn(&MemcachedStore) -> bool) {
    for batch in 0..500 {
        if enough(store) {
            return;
        }
        let others = (0..20).map(|n| async move {
            let other = key(&format!("other {batch} {n}"));
            completed(store, &other).await
        });
        join_all(others).await;
    }
    panic!("there is no end of memory");
}

/// P1, P2, P5, P9, S16: a server that drops what is old drops records in every state, and each of
/// their keys is new then; this is counted.
#[tokio::test]
async fn p1_p2_p5_p9_a_record_that_was_dropped_is_a_new_key() {
    let server = MemcachedServer::start(&SMALL);
    let store = store(&server);
    completed(&store, &key("completed")).await;
    let running = claim(&store, &key("running")).await;
    let late = claim(&store, &key("late")).await;
    let failed = claim(&store, &key("failed")).await;
    let checkpoint = Some("progress".into());
    store
        .renew(&key("failed"), &failed, LEASE, TTL, checkpoint)
        .await
        .unwrap();
    store.fail(&key("failed"), &failed, TTL).await.unwrap();
    assert_eq!(store.evictions(), 0);

    fill(&store, |store| store.evictions() > 300).await;
    store.get(&key("nobody's")).await.unwrap();
    assert_eq!(store.evictions(), server.stat("evictions"));
    let again = granted(store.claim(&key("completed"), &request()).await);
    assert_eq!(again.entry, Entry::First);
    let beside = granted(store.claim(&key("running"), &request()).await);
    assert_eq!((beside.entry, beside.lease.attempt), (Entry::First, 1));
    let forgetful = granted(store.claim(&key("failed"), &request()).await);
    assert_eq!(
        (forgetful.entry, forgetful.checkpoint),
        (Entry::First, None)
    );

    // The first execution cannot harm the second; where there is none, it is recorded late.
    let ended = store
        .complete(&key("running"), &running, &answer(), TTL)
        .await;
    assert!(matches!(ended, Err(StoreError::Superseded)));
    let gone = store.renew(&key("late"), &late, LEASE, TTL, None).await;
    assert!(matches!(gone, Err(StoreError::Gone)), "{gone:?}");
    store
        .complete(&key("late"), &late, &answer(), TTL)
        .await
        .unwrap();
    let replayed = store.claim(&key("late"), &request()).await.unwrap();
    assert_eq!(replayed, Claim::Completed(answer()));
}

/// P1, P2, P9: with `-M` nothing is dropped: what has no room is refused, what is there stays as it
/// is, and a key can be freed all the same.
#[tokio::test]
async fn p1_p2_p9_a_full_server_refuses_and_keeps() {
    let server = refusing();
    let store = store(&server);
    completed(&store, &key("completed")).await;
    let running = claim(&store, &key("running")).await;
    let rejected = claim(&store, &key("rejected")).await;
    let garbled = claim(&store, &key("garbled")).await;
    server.set(key("garbled").as_str(), b"nonsense");
    let before = store.get(&key("running")).await.unwrap().unwrap().record;

    let mut begun = Vec::new();
    loop {
        assert!(begun.len() < 10_000, "there is no end of memory");
        let name = key(&format!("other {}", begun.len()));
        match store.claim(&name, &request()).await {
            Ok(_) => begun.push(name),
            error => break full(error),
        }
    }
    full(store.claim(&key("another"), &request()).await);
    let checkpoint = Some("progress".into());
    full(
        store
            .renew(&key("running"), &running, LEASE, TTL, checkpoint)
            .await,
    );
    full(
        store
            .complete(&key("running"), &running, &answer(), TTL)
            .await,
    );
    full(store.fail(&key("running"), &running, TTL).await);
    let record = store.get(&key("running")).await.unwrap().unwrap().record;
    assert_eq!(record, before);
    let held = store.claim(&key("running"), &request()).await.unwrap();
    assert!(matches!(held, Claim::InProgress { .. }));
    let replayed = store.claim(&key("completed"), &request()).await.unwrap();
    assert_eq!(replayed, Claim::Completed(answer()));

    // One key is freed, which makes the room for what waited.
    store
        .release(&key("rejected"), &rejected, TTL)
        .await
        .unwrap();
    assert_eq!(store.get(&key("rejected")).await.unwrap(), None);
    store
        .complete(&key("running"), &running, &answer(), TTL)
        .await
        .unwrap();
    // Only the item that this replaced.
    granted(store.claim(&key("another"), &request()).await);
    full(store.claim(&key("one more"), &request()).await);
    assert!(store.forget(&key("garbled")).await.unwrap());
    assert_eq!(store.get(&key("garbled")).await.unwrap(), None);
    let lost = store
        .renew(&key("garbled"), &garbled, LEASE, TTL, None)
        .await;
    assert!(matches!(lost, Err(StoreError::Gone)));
    for name in &begun {
        let found = store.get(name).await.unwrap().unwrap().record;
        assert_eq!(found.state, State::InProgress);
    }
    assert_eq!((store.evictions(), server.stat("evictions")), (0, 0));
}

/// P1, U06: an item that is too large is refused, and the record is as it was. (A meta command would
/// have removed it.)
#[tokio::test]
async fn p1_u06_what_is_too_large_removes_nothing() {
    let server = MemcachedServer::start(&[]);
    let store = store(&server);
    let lease = claim(&store, &key("k")).await;
    let before = store.get(&key("k")).await.unwrap();
    let large = || vec![7; 2 << 20];
    let checkpoint = Some(large().into());
    full(store.renew(&key("k"), &lease, LEASE, TTL, checkpoint).await);
    let payload = Payload::new(200, large().into());
    full(store.complete(&key("k"), &lease, &payload, TTL).await);
    let record = |found: Option<tower_idempotency::Snapshot>| found.unwrap().record;
    assert_eq!(record(store.get(&key("k")).await.unwrap()), record(before));
    store
        .complete(&key("k"), &lease, &answer(), TTL)
        .await
        .unwrap();

    // What it does on the way of a whole operation.
    let store_ = store.clone();
    let operation = Operation::new("large", store_).result_limit(8 << 20);
    let call = || {
        operation
            .call("k")
            .run(async |_| Ok::<_, String>("x".repeat(2 << 20)))
    };
    let done = soon(call()).await.unwrap();
    assert_eq!(done.outcome(), Outcome::NotReplayable);
    assert_eq!(done.value().len(), 2 << 20);
    let again = soon(call()).await;
    assert!(matches!(again, Err(RunError::NotReplayable)), "{again:?}");
}

/// P3, P8, P9: an operation on a full server does not run; one that had begun is recorded once there
/// is room.
#[tokio::test]
async fn p3_p8_p9_who_began_is_recorded_once_there_is_room() {
    let server = refusing();
    let store = store(&server);
    let pay = Operation::new("pay", store.clone()).record_timeout(Duration::from_millis(100));
    let filled = store.clone();
    let begun = pay.call("begun").run(async move |_| {
        for n in 0.. {
            assert!(n < 10_000, "there is no end of memory");
            if filled
                .claim(&key(&n.to_string()), &request())
                .await
                .is_err()
            {
                break;
            }
        }
        Ok::<_, String>(1)
    });
    let done = soon(begun).await.unwrap();
    assert_eq!(done.outcome(), Outcome::Unrecorded);
    let refused = pay.call("next").run(async |_| -> Result<u32, String> {
        panic!("it must not run");
    });
    let refused = soon(refused).await;
    assert!(matches!(
        &refused,
        Err(RunError::Store(StoreError::Full { .. }))
    ));
    for n in 0..20 {
        assert!(store.forget(&key(&n.to_string())).await.unwrap());
    }
    soon(pay.drain()).await;
    let again = pay.call("begun").run(async |_| -> Result<u32, String> {
        panic!("it must not run again");
    });
    // Its bytes were given up when there was no room for them.
    let again = soon(again).await;
    assert!(matches!(again, Err(RunError::NotReplayable)), "{again:?}");
}
