//! `MemoryStore`: the conformance suite, and what is its own.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use tower_idempotency::{
    Claim, ClaimRequest, Fingerprint, Lease, MemoryStore, OwnerId, Payload, State, Store,
    StoreError, StoreKey,
    store::WhenFull,
    testing::{differential, store::Fixture},
};

fn fixture<S: Store>(wrap: impl Fn(MemoryStore) -> S) -> Fixture<S> {
    let store = MemoryStore::new();
    let clock = store.clone();
    Fixture::new(wrap(store), move |by| {
        clock.advance_clock(by);
        ready(())
    })
    .incorruptible()
}

mod bare {
    tower_idempotency::store_conformance!(super::fixture(|store| store); start_paused = true);
}

mod boxed {
    use tower_idempotency::Store;
    tower_idempotency::store_conformance!(
        super::fixture(|store| Box::new(store) as Box<dyn Store>);
        start_paused = true
    );
}

mod shared {
    use {std::sync::Arc, tower_idempotency::Store};
    tower_idempotency::store_conformance!(
        super::fixture(|store| Arc::new(store) as Arc<dyn Store>);
        start_paused = true
    );
}

mod on_many_threads {
    tower_idempotency::store_conformance!(
        super::fixture(|store| store);
        flavor = "multi_thread", worker_threads = 4
    );
}

/// The store's time is tokio's, so a test needs no other clock than the paused one.
mod on_paused_time {
    use tower_idempotency::{MemoryStore, testing::store::Fixture};
    tower_idempotency::store_conformance!(
        Fixture::new(MemoryStore::new(), tokio::time::advance).incorruptible();
        start_paused = true
    );
}

#[tokio::test(start_paused = true)]
async fn it_agrees_with_the_machine() {
    differential::run(|| ready(fixture(|store| store))).await;
    differential::run(|| ready(Fixture::new(MemoryStore::new(), tokio::time::advance))).await;
}

const LEASE: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(3600);

fn key(n: usize) -> StoreKey {
    StoreKey::new("idem", "caller", "endpoint", &format!("{n:08}"))
}

fn request() -> ClaimRequest {
    ClaimRequest {
        fingerprint: Fingerprint::hasher("t").finish(),
        owner: OwnerId::random(),
        lease: LEASE,
        ttl: TTL,
        take_over: true,
    }
}

async fn claim(store: &MemoryStore, key: &StoreKey) -> Result<Lease, StoreError> {
    match store.claim(key, &request()).await? {
        Claim::Claimed(claimed) => Ok(claimed.lease),
        other => panic!("not granted: {other:?}"),
    }
}

async fn complete(store: &MemoryStore, n: usize, len: usize, ttl: Duration) {
    let lease = claim(store, &key(n)).await.unwrap();
    let payload = Payload::new(200, vec![0; len].into());
    store
        .complete(&key(n), &lease, &payload, ttl)
        .await
        .unwrap();
}

fn is_full<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(
        matches!(result, Err(StoreError::Full { .. })),
        "should be full: {result:?}"
    );
}

/// What a record of `key(n)` with so many bytes counts.
fn cost(bytes: usize) -> usize {
    MemoryStore::RECORD_OVERHEAD + key(0).as_str().len() + bytes
}

// Limits

#[tokio::test(start_paused = true)]
async fn p9_new_records_are_refused_at_the_limit_of_entries() {
    let store = MemoryStore::builder().max_entries(2).build();
    let lease = claim(&store, &key(1)).await.unwrap();
    complete(&store, 2, 10, TTL).await;
    is_full(claim(&store, &key(3)).await);
    assert_eq!((store.len(), store.evicted()), (2, 0));

    // What is there can go on, and be claimed again.
    let payload = Payload::new(200, Bytes::from_static(b"x"));
    store
        .complete(&key(1), &lease, &payload, TTL)
        .await
        .unwrap();
    let found = store.claim(&key(1), &request()).await.unwrap();
    assert_eq!(found, Claim::Completed(payload.clone()));

    // A lost record is a new one.
    is_full(store.complete(&key(4), &lease, &payload, TTL).await);
    assert!(store.forget(&key(2)).await.unwrap());
    store
        .complete(&key(4), &lease, &payload, TTL)
        .await
        .unwrap();
    assert_eq!(store.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn p9_new_records_are_refused_at_the_limit_of_bytes() {
    let store = MemoryStore::builder()
        .max_bytes(cost(100) + cost(0))
        .build();
    complete(&store, 1, 100, TTL).await;
    let lease = claim(&store, &key(2)).await.unwrap();
    assert_eq!(store.bytes(), cost(100) + cost(0));
    is_full(claim(&store, &key(3)).await);
    // One byte more than fits changes nothing.
    let before = store.get(&key(2)).await.unwrap();
    let more = Payload::new(200, Bytes::from_static(b"x"));
    is_full(store.complete(&key(2), &lease, &more, TTL).await);
    let saved = Some(Bytes::from_static(b"x"));
    is_full(store.renew(&key(2), &lease, LEASE, TTL, saved).await);
    assert_eq!(store.get(&key(2)).await.unwrap(), before);
    assert_eq!(store.bytes(), cost(100) + cost(0));
}

/// At the limit, an attempt can still be ended in every way, and its lease be renewed.
#[tokio::test(start_paused = true)]
async fn p9_ends_that_need_no_room_are_never_refused() {
    let store = MemoryStore::builder()
        .max_entries(5)
        .max_bytes(5 * cost(0) + 1)
        .build();
    let mut leases = Vec::new();
    for n in 0..5 {
        leases.push(claim(&store, &key(n)).await.unwrap());
    }
    let saved = Bytes::from_static(b"x");
    let fifth = key(4);
    let renewed = store.renew(&fifth, &leases[4], LEASE, TTL, Some(saved));
    renewed.await.unwrap();
    assert_eq!(store.bytes(), 5 * cost(0) + 1);

    let nothing = Payload::not_replayable(200);
    for (n, lease) in leases.iter().enumerate() {
        let key = key(n);
        store.renew(&key, lease, LEASE, TTL, None).await.unwrap();
        match n {
            0 => store.complete(&key, lease, &nothing, TTL).await.unwrap(),
            1 => store.fail(&key, lease, TTL).await.unwrap(),
            2 => store.release(&key, lease, TTL).await.unwrap(),
            3 => store
                .renew(&key, lease, Duration::ZERO, TTL, None)
                .await
                .unwrap(),
            // Instead of the checkpoint.
            _ => store.complete(&key, lease, &nothing, TTL).await.unwrap(),
        }
    }
    assert_eq!((store.len(), store.bytes()), (4, 4 * cost(0)));
    // A retry and a takeover are no new records either.
    claim(&store, &key(2)).await.unwrap();
    claim(&store, &key(1)).await.unwrap();
    let taken = claim(&store, &key(3)).await.unwrap();
    store.give_back(&key(3), &taken, TTL).await.unwrap();
    assert_eq!(store.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn p9_at_the_limit_what_has_expired_goes_first() {
    for when_full in [WhenFull::Refuse, WhenFull::DropOldestCompleted] {
        let store = MemoryStore::builder()
            .max_entries(100)
            .when_full(when_full)
            .build();
        complete(&store, 0, 1, 10 * TTL).await;
        for n in 1..100 {
            complete(&store, n, 1, TTL).await;
        }
        tokio::time::advance(TTL).await;
        for n in 100..199 {
            complete(&store, n, 1, TTL).await;
        }
        let kept = store.claim(&key(0), &request()).await.unwrap();
        assert!(matches!(kept, Claim::Completed(_)), "{kept:?}");
        assert_eq!((store.len(), store.evicted()), (100, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn p9_the_oldest_completed_records_are_dropped_if_so_chosen() {
    let store = MemoryStore::builder()
        .max_entries(10)
        .when_full(WhenFull::DropOldestCompleted)
        .build();
    claim(&store, &key(0)).await.unwrap();
    let failed = claim(&store, &key(1)).await.unwrap();
    store.fail(&key(1), &failed, TTL).await.unwrap();
    // The age decides, not the end.
    for n in 2..10 {
        tokio::time::advance(Duration::from_millis(1)).await;
        complete(&store, n, 1, TTL * (12 - n as u32)).await;
    }
    for n in 10..14 {
        complete(&store, n, 1, TTL).await;
        assert_eq!((store.len(), store.evicted()), (10, n as u64 - 9));
        for old in 2..n - 7 {
            assert_eq!(store.get(&key(old)).await.unwrap(), None, "{old} at {n}");
        }
        assert!(store.get(&key(n - 7)).await.unwrap().is_some());
    }
    for (n, state) in [(0, State::InProgress), (1, State::Failed)] {
        assert_eq!(
            store.get(&key(n)).await.unwrap().unwrap().record.state,
            state
        );
    }
}

/// Where nothing is completed there is nothing to drop.
#[tokio::test(start_paused = true)]
async fn p9_a_running_or_failed_record_is_never_dropped() {
    let store = MemoryStore::builder()
        .max_entries(2)
        .when_full(WhenFull::DropOldestCompleted)
        .build();
    claim(&store, &key(0)).await.unwrap();
    let failed = claim(&store, &key(1)).await.unwrap();
    store.fail(&key(1), &failed, TTL).await.unwrap();
    is_full(claim(&store, &key(2)).await);
    assert_eq!((store.len(), store.evicted()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn p9_bytes_make_room_too_and_what_can_never_fit_drops_nothing() {
    let store = MemoryStore::builder()
        .max_bytes(4 * cost(100))
        .when_full(WhenFull::DropOldestCompleted)
        .build();
    for n in 0..3 {
        complete(&store, n, 100, TTL).await;
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    let lease = claim(&store, &key(3)).await.unwrap();
    let huge = Payload::new(200, vec![0; 4 * cost(100) + 1].into());
    is_full(store.complete(&key(3), &lease, &huge, TTL).await);
    assert_eq!((store.len(), store.evicted()), (4, 0));
    let fits = Payload::new(200, vec![0; 101 + cost(100)].into());
    store.complete(&key(3), &lease, &fits, TTL).await.unwrap();
    assert_eq!((store.len(), store.evicted()), (2, 2));
    assert_eq!(store.get(&key(1)).await.unwrap(), None);
    assert!(store.get(&key(2)).await.unwrap().is_some());
}

/// A limit holds also while many threads press against it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p9_limits_hold_under_pressure() {
    for when_full in [WhenFull::Refuse, WhenFull::DropOldestCompleted] {
        let store = MemoryStore::builder()
            .max_entries(50)
            .max_bytes(40 * cost(10))
            .when_full(when_full)
            .build();
        let tasks: Vec<_> = (0..8)
            .map(|thread| {
                let store = store.clone();
                tokio::spawn(async move {
                    for n in 0..500 {
                        let key = key(thread * 1000 + n);
                        let Ok(lease) = claim(&store, &key).await else {
                            continue;
                        };
                        assert!(store.len() <= 50 && store.bytes() <= 40 * cost(10));
                        let payload = Payload::new(200, vec![0; 10].into());
                        if store.complete(&key, &lease, &payload, TTL).await.is_err() {
                            store.fail(&key, &lease, Duration::ZERO).await.unwrap();
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(store.len() <= 50 && store.bytes() <= 40 * cost(10));
        assert_eq!(
            store.evicted() > 0,
            when_full == WhenFull::DropOldestCompleted
        );
    }
}

// Expiry

/// S06, U10: a million keys, none seen again: there are never many more than are alive.
#[tokio::test(start_paused = true)]
async fn s06_u10_a_million_keys_leave_nothing_behind() {
    let store = MemoryStore::new();
    let nothing = Payload::not_replayable(200);
    for n in 0..1_000_000 {
        if n % 100 == 0 {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let (key, asked) = (key(n), request());
        let Ok(Claim::Claimed(claimed)) = store.claim(&key, &asked).await else {
            panic!("not granted");
        };
        let ten = Duration::from_secs(10);
        store
            .complete(&key, &claimed.lease, &nothing, ten)
            .await
            .unwrap();
        // 1000 are alive, and some wait until it is the turn of their shard.
        assert!(store.len() <= 1500, "{} at {n}", store.len());
    }
    tokio::time::advance(TTL).await;
    for _ in 0..4000 {
        store.get(&key(0)).await.unwrap();
    }
    assert_eq!((store.len(), store.bytes()), (0, 0));
}

/// S06: a record that stays for long does not hold up those that do not, replays alone remove
/// what has expired, and what moved its end is removed at its new one.
#[tokio::test(start_paused = true)]
async fn s06_mixed_times_to_live() {
    let store = MemoryStore::new();
    for n in 0..1000 {
        let ttl = match n % 4 {
            0 => Duration::MAX,
            1 => 2 * TTL,
            2 => TTL,
            _ => Duration::from_secs(1),
        };
        complete(&store, n, 1, ttl).await;
    }
    let late = key(5000);
    let lease = claim(&store, &late).await.unwrap();
    let left = |after: Duration| {
        let store = store.clone();
        async move {
            tokio::time::advance(after).await;
            for _ in 0..2000 {
                store.claim(&key(0), &request()).await.unwrap();
            }
            store.len()
        }
    };
    assert_eq!(left(Duration::from_secs(2)).await, 751);
    let renewed = store.renew(&late, &lease, LEASE, 3 * TTL, None);
    renewed.await.unwrap();
    assert_eq!(left(TTL + LEASE).await, 501);
    assert_eq!(left(TTL).await, 251);
    assert_eq!(left(TTL).await, 250);
    assert_eq!(left(1000 * TTL).await, 250);
}

/// U10: key, answer and checkpoint of an expired record are given back. (That tables and index
/// shrink is tested beside them.)
#[tokio::test(start_paused = true)]
async fn u10_what_expires_is_given_back() {
    struct Counted(Arc<AtomicUsize>);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            b"counted"
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }
    let store = MemoryStore::new();
    let alive = Arc::new(AtomicUsize::new(0));
    let counted = || {
        alive.fetch_add(1, SeqCst);
        Bytes::from_owner(Counted(alive.clone()))
    };
    let keys: Vec<_> = (0..100).map(key).collect();
    for (n, key) in keys.iter().enumerate() {
        let lease = claim(&store, key).await.unwrap();
        let saved = store.renew(key, &lease, LEASE, TTL, Some(counted()));
        saved.await.unwrap();
        match n % 2 {
            0 => store.fail(key, &lease, TTL).await.unwrap(),
            _ => {
                let payload = Payload::new(200, counted());
                store.complete(key, &lease, &payload, TTL).await.unwrap();
            }
        }
    }
    assert_eq!(alive.load(SeqCst), 100);
    tokio::time::advance(TTL).await;
    for _ in 0..1000 {
        store.get(&key(1000)).await.unwrap();
    }
    assert_eq!((store.len(), store.bytes()), (0, 0));
    assert_eq!(alive.load(SeqCst), 0);
    for key in &keys {
        assert_eq!(Arc::strong_count(key.shared()), 1);
    }
}

/// U10: the same text is held once, whoever brought it.
#[tokio::test(start_paused = true)]
async fn u10_a_key_is_held_once() {
    let store = MemoryStore::new();
    let first = key(1);
    let lease = claim(&store, &first).await.unwrap();
    store.fail(&key(1), &lease, TTL).await.unwrap();
    let others: Vec<_> = (0..10).map(|_| key(1)).collect();
    for other in &others {
        let lease = claim(&store, other).await.unwrap();
        store.fail(other, &lease, TTL).await.unwrap();
        assert_eq!(Arc::strong_count(other.shared()), 1);
    }
    assert!(Arc::strong_count(first.shared()) > 1);
}

/// A record that is renewed for ever counts once.
#[tokio::test(start_paused = true)]
async fn p9_renewals_leave_nothing_behind() {
    let store = MemoryStore::new();
    let key = key(1);
    let lease = claim(&store, &key).await.unwrap();
    let held = Arc::strong_count(key.shared());
    for n in 0..100_000 {
        let lease_for = Duration::from_micros(1_000_000 + n);
        store
            .renew(&key, &lease, lease_for, TTL, None)
            .await
            .unwrap();
    }
    assert_eq!(Arc::strong_count(key.shared()), held);
    assert_eq!((store.len(), store.bytes()), (1, cost(0)));
}

/// Tokens grow over a release and an expiry also where no time passes at all.
#[tokio::test(start_paused = true)]
async fn p6_tokens_grow_within_a_microsecond() {
    let store = MemoryStore::new();
    let mut last = None;
    for _ in 0..1000 {
        let lease = claim(&store, &key(1)).await.unwrap();
        assert!(Some(lease.token) > last);
        last = Some(lease.token);
        store.release(&key(1), &lease, TTL).await.unwrap();
    }
}

// Waiting

/// U30: a thousand who wait for one key get its answer, and leave nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn u30_a_thousand_waiters() {
    let store = MemoryStore::new();
    let key = key(1);
    let lease = claim(&store, &key).await.unwrap();
    let waiters: Vec<_> = (0..1000)
        .map(|_| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move { store.wait(&key, lease.token).await })
        })
        .collect();
    tokio::task::yield_now().await;
    let payload = Payload::new(200, Bytes::from_static(b"answer"));
    store.complete(&key, &lease, &payload, TTL).await.unwrap();
    for waiter in waiters {
        let found = waiter.await.unwrap().unwrap().unwrap();
        assert_eq!(found.record.payload.as_ref(), Some(&payload));
    }
}

// Threads

/// P1, S10, S15: many threads at hot keys and keys of their own: a key has one owner at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn p1_s10_s15_one_owner_at_a_time_under_load() {
    let store = MemoryStore::new();
    let owners: Arc<[AtomicUsize]> = (0..4).map(|_| AtomicUsize::new(0)).collect();
    let runs = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let (store, owners, runs) = (store.clone(), owners.clone(), runs.clone());
            tokio::spawn(async move {
                for n in 0..2000 {
                    complete(&store, 1000 + task * 2000 + n, 10, TTL).await;
                    let hot = n % owners.len();
                    let key = key(hot);
                    let lease = match store.claim(&key, &request()).await.unwrap() {
                        Claim::Claimed(claimed) => claimed.lease,
                        Claim::InProgress { token } if n % 10 == 0 => {
                            store.wait(&key, token).await.unwrap();
                            continue;
                        }
                        Claim::InProgress { .. } => continue,
                        other => panic!("{other:?}"),
                    };
                    assert_eq!(owners[hot].fetch_add(1, SeqCst), 0, "two owners");
                    tokio::task::yield_now().await;
                    runs.fetch_add(1, SeqCst);
                    assert_eq!(owners[hot].fetch_sub(1, SeqCst), 1, "two owners");
                    match n % 5 {
                        0 | 1 => store.fail(&key, &lease, TTL).await.unwrap(),
                        2 => store.give_back(&key, &lease, TTL).await.unwrap(),
                        3 => store.release(&key, &lease, TTL).await.unwrap(),
                        _ => assert!(store.forget(&key).await.unwrap()),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(runs.load(SeqCst) > 0);
    let hot = (0..4).map(key);
    let mut left = 32_000;
    for key in hot {
        left += usize::from(store.get(&key).await.unwrap().is_some());
    }
    assert_eq!(store.len(), left);
}

/// The store can be made, and used but for waiting, where no runtime is.
#[test]
fn it_needs_no_runtime() {
    let store = MemoryStore::new();
    let claimed = claim(&store, &key(1)).now_or_never();
    assert_eq!(claimed.unwrap().unwrap().attempt, 1);

    // And follows the clock of the runtime that it comes to.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(async {
        tokio::time::advance(LEASE).await;
        let found = store.get(&key(1)).await.unwrap();
        assert!(found.unwrap().is_abandoned());
        tokio::time::advance(TTL).await;
        assert_eq!(store.get(&key(1)).await.unwrap(), None);
    });
}

/// U19: debug output tells how much there is, and nothing of what.
#[tokio::test(start_paused = true)]
async fn u19_debug_tells_figures_only() {
    let store = MemoryStore::new();
    complete(&store, 7, 10, TTL).await;
    let shown = format!("{store:?}");
    assert_eq!(
        shown,
        format!(
            "MemoryStore {{ len: 1, bytes: {}, evicted: 0, .. }}",
            cost(10)
        )
    );
}
