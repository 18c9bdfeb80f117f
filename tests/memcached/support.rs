//! What the tests share.

use std::{future::ready, time::Duration};

use tower_idempotency::{
    Claim, ClaimRequest, Claimed, Entry, Fingerprint, Lease, OwnerId, Payload, Store, StoreError,
    StoreKey,
    testing::store::{Corruption, Fixture},
};

pub(crate) use crate::{memcached::MemcachedStore, servers::memcached::MemcachedServer};

pub(crate) const LEASE: Duration = Duration::from_secs(60);
pub(crate) const TTL: Duration = Duration::from_secs(3600);

/// The suite's largest answer has 8 MiB.
const LARGE_ITEMS: [&str; 4] = ["-m", "128", "-I", "16m"];

pub(crate) fn store(server: &MemcachedServer) -> MemcachedStore {
    MemcachedStore::new(server.address().to_string())
}

/// A store on a server that nobody else uses.
pub(crate) fn fixture<S: Store>(wrap: impl FnOnce(MemcachedStore) -> S) -> Fixture<S> {
    let server = std::sync::Arc::new(MemcachedServer::start(&LARGE_ITEMS));
    let store = store(&server);
    let clock = store.clone();
    let spoilt = std::sync::Arc::clone(&server);
    Fixture::new(wrap(store), move |by| {
        clock.advance_clock(by);
        ready(())
    })
    .with_corruption(move |key, how| {
        damage(&spoilt, &MemcachedStore::item_key(&key), how);
        ready(())
    })
    .with_guard(server)
}

/// Makes a record unreadable.
fn damage(server: &MemcachedServer, key: &str, how: Corruption) {
    let mut value = server.value(key).expect("it is there");
    match how {
        Corruption::CutShort => drop(value.pop()),
        Corruption::UnknownVersion => value[0] = 2,
        // The length of the algorithm's name.
        _ => value[3] = 0,
    }
    server.set(key, &value);
}

pub(crate) fn key(name: &str) -> StoreKey {
    StoreKey::new("idem", "caller", "endpoint", name)
}

pub(crate) fn request() -> ClaimRequest {
    ClaimRequest {
        fingerprint: Fingerprint::hasher("test/1").finish(),
        owner: OwnerId::random(),
        lease: LEASE,
        ttl: TTL,
        take_over: true,
    }
}

pub(crate) fn answer() -> Payload {
    Payload::new(201, "paid".into())
}

pub(crate) fn granted(claim: Result<Claim, StoreError>) -> Claimed {
    match claim {
        Ok(Claim::Claimed(claimed)) => claimed,
        other => panic!("the claim should be granted: {other:?}"),
    }
}

pub(crate) async fn claim(store: &impl Store, key: &StoreKey) -> Lease {
    let claimed = granted(store.claim(key, &request()).await);
    assert_eq!(claimed.entry, Entry::First);
    claimed.lease
}

pub(crate) async fn completed(store: &impl Store, key: &StoreKey) -> Lease {
    let lease = claim(store, key).await;
    store.complete(key, &lease, &answer(), TTL).await.unwrap();
    lease
}

pub(crate) fn unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unavailable { source, .. }) => source.to_string(),
        other => panic!("the store should be unavailable: {other:?}"),
    }
}

pub(crate) fn full<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(
        matches!(result, Err(StoreError::Full { .. })),
        "the store should be full: {result:?}"
    );
}

pub(crate) fn corrupt<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Corrupt { source, .. }) => source.to_string(),
        other => panic!("the record should be corrupt: {other:?}"),
    }
}

/// Long enough for a busy machine; a test that takes longer has failed.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("it takes too long")
}
