//! A store that is watched, and that fails in one way or another.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tower_idempotency::{
    Claim, ClaimRequest, FencingToken, Fingerprint, Lease, OwnerId, Payload, Snapshot, Store,
    StoreError, StoreKey,
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    Works,
    /// Every call is refused.
    Fails,
    /// No call is ever answered.
    Hangs,
    /// Nothing is kept, and every call succeeds.
    Forgets,
    /// Nothing new is taken.
    Full,
    /// What is there cannot be read.
    Corrupt,
    /// Every call takes effect, and its answer is lost.
    AnswersAreLost,
    /// Records cannot be read in any time.
    HangsOnGet,
    /// Every call takes a while.
    Slow,
}

impl Mode {
    /// Of near.
    pub(crate) const ALL: [Self; 9] = [
        Self::Works,
        Self::Fails,
        Self::Hangs,
        Self::Forgets,
        Self::Full,
        Self::Corrupt,
        Self::AnswersAreLost,
        Self::HangsOnGet,
        Self::Slow,
    ];
}

/// A clone is another handle to the same store, mode and log.
#[derive(Clone)]
pub(crate) struct Spied<S> {
    store: S,
    mode: Arc<Mutex<Mode>>,
    calls: Arc<Mutex<Vec<&'static str>>>,
}

impl<S: Store> Spied<S> {
    pub(crate) fn new(store: S) -> Self {
        Self {
            store,
            mode: Arc::new(Mutex::new(Mode::Works)),
            calls: Arc::default(),
        }
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// The calls since it was last asked.
    pub(crate) fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// What becomes of a call: `Ok(true)` is done, `Ok(false)` is not and succeeds all the same.
    async fn before(&self, operation: &'static str) -> Result<bool, StoreError> {
        self.calls.lock().unwrap().push(operation);
        let mode = *self.mode.lock().unwrap();
        match mode {
            Mode::Works | Mode::AnswersAreLost => Ok(true),
            Mode::Slow => {
                tokio::task::yield_now().await;
                Ok(true)
            }
            Mode::Fails => Err(lost()),
            Mode::Hangs => std::future::pending().await,
            Mode::Forgets => Ok(false),
            Mode::Full if operation == "complete" => Err(StoreError::Full { store: "spied" }),
            Mode::Corrupt if operation != "forget" => Err(StoreError::corrupt("spied", "garbled")),
            Mode::HangsOnGet if operation == "get" => std::future::pending().await,
            Mode::Full | Mode::Corrupt | Mode::HangsOnGet => Ok(true),
        }
    }

    fn after<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        match *self.mode.lock().unwrap() {
            Mode::AnswersAreLost => Err(lost()),
            _ => answer,
        }
    }
}

fn lost() -> StoreError {
    StoreError::unavailable("spied", "as the test wants it")
}

#[async_trait]
impl<S: Store> Store for Spied<S> {
    async fn claim(&self, key: &StoreKey, request: &ClaimRequest) -> Result<Claim, StoreError> {
        assert!(self.before("claim").await?, "near decides no claim");
        self.after(self.store.claim(key, request).await)
    }

    async fn renew(
        &self,
        key: &StoreKey,
        lease: &Lease,
        lease_for: Duration,
        ttl: Duration,
        checkpoint: Option<Bytes>,
    ) -> Result<(), StoreError> {
        assert!(self.before("renew").await?, "near has nothing to renew");
        let renewed = self.store.renew(key, lease, lease_for, ttl, checkpoint);
        self.after(renewed.await)
    }

    async fn complete(
        &self,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        if !self.before("complete").await? {
            return Ok(());
        }
        self.after(self.store.complete(key, lease, payload, ttl).await)
    }

    async fn fail(&self, key: &StoreKey, lease: &Lease, ttl: Duration) -> Result<(), StoreError> {
        assert!(self.before("fail").await?, "near has nothing to fail");
        self.after(self.store.fail(key, lease, ttl).await)
    }

    async fn release(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        assert!(self.before("release").await?, "near has nothing to release");
        self.after(self.store.release(key, lease, ttl).await)
    }

    async fn give_back(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        assert!(self.before("give_back").await?, "near has given nothing");
        self.after(self.store.give_back(key, lease, ttl).await)
    }

    async fn get(&self, key: &StoreKey) -> Result<Option<Snapshot>, StoreError> {
        if !self.before("get").await? {
            return Ok(None);
        }
        self.after(self.store.get(key).await)
    }

    async fn forget(&self, key: &StoreKey) -> Result<bool, StoreError> {
        if !self.before("forget").await? {
            return Ok(false);
        }
        self.after(self.store.forget(key).await)
    }

    async fn wait(
        &self,
        key: &StoreKey,
        token: FencingToken,
    ) -> Result<Option<Snapshot>, StoreError> {
        assert!(self.before("wait").await?, "near does not know who runs");
        self.after(self.store.wait(key, token).await)
    }
}

pub(crate) const TTL: Duration = Duration::from_secs(3600);
/// How long near may take where it is not to fail, however busy the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How long near keeps a copy, by default.
pub(crate) const NEAR_FOR: Duration = Duration::from_secs(300);

pub(crate) fn key(name: &str) -> StoreKey {
    StoreKey::new("idem", "caller", "endpoint", name)
}

pub(crate) fn request() -> ClaimRequest {
    ClaimRequest {
        fingerprint: Fingerprint::hasher("t").finish(),
        owner: OwnerId::random(),
        lease: Duration::from_secs(30),
        ttl: TTL,
        take_over: true,
    }
}

pub(crate) fn other_payload() -> ClaimRequest {
    let mut hasher = Fingerprint::hasher("t");
    hasher.field("other");
    ClaimRequest {
        fingerprint: hasher.finish(),
        ..request()
    }
}

pub(crate) fn answer(text: &'static str) -> Payload {
    Payload::new(201, Bytes::from_static(text.as_bytes()))
}

pub(crate) async fn claim(store: &impl Store, name: &str) -> Lease {
    match store.claim(&key(name), &request()).await.unwrap() {
        Claim::Claimed(claimed) => claimed.lease,
        other => panic!("{name} should be free: {other:?}"),
    }
}

pub(crate) async fn end(
    store: &impl Store,
    name: &str,
    lease: &Lease,
    text: &'static str,
) -> Result<(), StoreError> {
    store.complete(&key(name), lease, &answer(text), TTL).await
}

/// Claims the key and completes it.
pub(crate) async fn complete(store: &impl Store, name: &str, text: &'static str, ttl: Duration) {
    let lease = claim(store, name).await;
    let completed = store.complete(&key(name), &lease, &answer(text), ttl).await;
    completed.unwrap();
}

pub(crate) async fn replays(store: &impl Store, name: &str, text: &'static str) {
    let found = store.claim(&key(name), &request()).await.unwrap();
    assert_eq!(found, Claim::Completed(answer(text)));
}
