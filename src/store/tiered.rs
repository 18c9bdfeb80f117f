//! [`Tiered`]: a fast store before a lasting one. Near answers replays; far decides.

use std::{
    any::Any,
    collections::HashSet,
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, timeout};

use crate::{
    key::StoreKey,
    record::{Claim, ClaimRequest, FencingToken, Lease, OwnerId, Payload, Snapshot, State},
    store::contract::{Store, StoreError},
    telemetry,
};

/// Two stores in a row: `near` answers replays, and `far` decides everything else.
///
/// Memory before Redis, Redis before PostgreSQL, memory before SQLite: retries of what is done, which
/// come in bursts, are answered without a call to far. All else goes to far, and costs what it costs
/// without near, plus one look at near for each claim. A clone is another handle to the same two.
///
/// ```
/// use std::time::Duration;
/// use tower_idempotency::{IdempotencyLayer, MemoryStore, Scope, Tiered};
///
/// # let far = MemoryStore::new();
/// let store = Tiered::new(MemoryStore::new(), far).near_for(Duration::from_secs(60));
/// let layer = IdempotencyLayer::new(store, Scope::header("x-api-key"));
/// ```
///
/// # What near is for
///
/// Near holds copies of completed records, and nothing else; it is never asked who may run, so it
/// may lose all that it has. Give it records of its own, by its prefix or table: what another
/// application completed there would be taken for a copy.
///
/// A copy is made when an operation completes, and when far answers a replay that near did not; for
/// that far is asked once more, for the record and how long it lives. Of many replays at once of one
/// key, one makes the copy.
///
/// # How old an answer can be
///
/// A copy lives for [`near_for`](Self::near_for) at most, 5 minutes by default, and never longer
/// than half of what far's record then has left. So it is gone before far's is (P2), and the other
/// half makes up for a clock of near that is slow, or a write that near carries out late. A key that
/// is free in far is not answered by near, with these exceptions, which last no longer than the copy:
///
/// - Far lost or forgot the record before its end. [`forget`](Store::forget) removes both, but only
///   the near of this process where each has its own; the others go on answering.
/// - For more than half of what the record had left, near's clock stood still or was set back (a
///   virtual machine that was suspended), or near kept a write waiting.
///
/// # When near fails
///
/// Near has [`near_timeout`](Self::near_timeout) for each call, 100 ms by default. A call that fails
/// or takes longer is as good as no copy; then near is left alone for a second, and asked again by
/// one request. An outage is told as one `tracing` warning, however many requests it meets, and its
/// end as another event. No request fails by near.
///
/// # When far fails
///
/// Replays that near has a copy for are answered. Everything else fails as far does.
pub struct Tiered<N, F> {
    near: Arc<N>,
    far: Arc<F>,
    near_for: Duration,
    near_timeout: Duration,
    shared: Arc<Shared>,
}

const NAME: &str = "near";

/// How long near is left alone after it failed.
const PAUSE: Duration = Duration::from_secs(1);

/// So many claims are remembered until they end. Those of executions that were cut off stay; once
/// there are so many, all are forgotten, and what runs then is copied at its first replay.
const MOST_CLAIMS: usize = 100_000;

#[derive(Default)]
struct Shared {
    /// While near fails.
    outage: Mutex<Option<Outage>>,
    /// Near takes no more, and that has been told.
    full: AtomicBool,
    /// Claims that were granted here and of which no end was sent. The first completion of such a
    /// claim is the one that far records; of a later one nobody knows here what was recorded, and
    /// when.
    claims: Mutex<HashSet<(StoreKey, OwnerId)>>,
    /// Keys that are being copied.
    copying: Mutex<HashSet<StoreKey>>,
    /// How many records were forgotten here.
    forgotten: AtomicU64,
}

/// When far was asked for what is to be copied.
struct Asked {
    at: Instant,
    /// How many records had been forgotten until then.
    forgotten: u64,
}

struct Outage {
    /// Near is left alone until then.
    until: Instant,
    /// A call was let through, whose answer ends the outage. Answers to calls from before do not: of
    /// a near that fails every other call, each failure would be another outage to tell of.
    is_tried: bool,
}

impl<N: Store, F: Store> Tiered<N, F> {
    /// `near` before `far`.
    #[must_use]
    pub fn new(near: N, far: F) -> Self {
        Self {
            near: Arc::new(near),
            far: Arc::new(far),
            near_for: Duration::from_secs(300),
            near_timeout: Duration::from_millis(100),
            shared: Arc::default(),
        }
    }

    /// How long near keeps a copy, at most; 5 minutes by default: most retries come within that, and
    /// it bounds for how long near answers for a record that was forgotten elsewhere. Zero: near
    /// gets no copies.
    #[must_use]
    pub fn near_for(mut self, at_most: Duration) -> Self {
        self.near_for = at_most;
        self
    }

    /// How long a call of near may take; 100 ms by default. It counts towards the deadline that the
    /// caller puts on the whole call, so it should be far below that (2 s in the layer). A replay
    /// that near has no copy for waits as long, at most, for far's record: before a far that takes
    /// longer than this, choose more.
    #[must_use]
    pub fn near_timeout(mut self, at_most: Duration) -> Self {
        self.near_timeout = at_most;
        self
    }

    /// Calls near, which failed neither before nor now, or whose turn it is to be asked again.
    async fn near<T>(
        &self,
        key: &StoreKey,
        operation: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Option<T> {
        match self.shared.may_ask() {
            true => self.near_anyway(key, operation, call).await,
            false => None,
        }
    }

    async fn near_anyway<T>(
        &self,
        key: &StoreKey,
        operation: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Option<T> {
        let answered = timeout(self.near_timeout, call).await;
        let answered =
            answered.unwrap_or_else(|_| Err(StoreError::unavailable(NAME, "no answer in time")));
        if let Err(error @ StoreError::Unavailable { .. }) = &answered {
            if self.shared.failed() {
                telemetry::near_fails(key, operation, error);
            }
            return None;
        }
        if self.shared.answered() {
            telemetry::near_answers();
        }
        match answered {
            Ok(answer) => Some(answer),
            Err(StoreError::Corrupt { .. }) => {
                // It is no more than a copy.
                let removed = timeout(self.near_timeout, self.near.forget(key));
                let _ = removed.await;
                None
            }
            Err(error) => {
                let is_full = matches!(error, StoreError::Full { .. });
                if is_full && !self.shared.full.swap(true, Relaxed) {
                    telemetry::near_fails(key, operation, &error);
                }
                None
            }
        }
    }

    /// Removes a copy that far contradicts: its record was forgotten elsewhere, or lost.
    async fn drop_copy(&self, key: &StoreKey) {
        self.near(key, "forget", self.near.forget(key)).await;
    }

    /// Copies the record that far has just answered from.
    async fn copy(&self, key: &StoreKey) {
        if self.near_for.is_zero() || self.shared.in_outage() {
            return;
        }
        let Some(_turn) = self.shared.turn_to_copy(key) else {
            return;
        };
        let asked = self.shared.asks();
        // Far has answered already; the copy is not worth a longer wait.
        let found = timeout(self.near_timeout, self.far.get(key)).await;
        let Ok(Ok(Some(Snapshot { record, now }))) = found else {
            return;
        };
        let lease = Lease {
            owner: record.owner,
            token: record.token,
            attempt: record.attempt,
            fingerprint: record.fingerprint,
        };
        if let (State::Completed, Some(payload)) = (record.state, &record.payload) {
            let left = record.expires_at.since(now);
            self.put(key, &lease, payload, left, asked).await;
        }
    }

    /// Puts a completed record into near, of which `left` was left, or more, when far was `asked`.
    async fn put(
        &self,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        left: Duration,
        asked: Asked,
    ) {
        // Half of it, so that the copy is gone in time even where near writes it late or its clock
        // is slow.
        let ttl = self
            .near_for
            .min(left.saturating_sub(asked.at.elapsed()) / 2);
        if ttl.is_zero() {
            return;
        }
        // Near has no record of the key, so this makes one from the proof.
        let put = self.near.complete(key, lease, payload, ttl);
        if self.near(key, "complete", put).await.is_some() {
            self.shared.full.store(false, Relaxed);
        }
        // Perhaps this one, from near too, before the copy got there.
        if self.shared.forgotten.load(SeqCst) != asked.forgotten {
            self.drop_copy(key).await;
        }
    }
}

impl Shared {
    fn asks(&self) -> Asked {
        Asked {
            at: Instant::now(),
            forgotten: self.forgotten.load(SeqCst),
        }
    }

    /// Whether near is to be asked. During an outage one call in a while is let through.
    fn may_ask(&self) -> bool {
        match &mut *lock(&self.outage) {
            None => true,
            Some(outage) => {
                let now = Instant::now();
                let is_time = now >= outage.until;
                if is_time {
                    outage.until = now + PAUSE;
                    outage.is_tried = true;
                }
                is_time
            }
        }
    }

    fn in_outage(&self) -> bool {
        lock(&self.outage).is_some()
    }

    /// Near failed; says whether that is news.
    fn failed(&self) -> bool {
        let outage = Outage {
            until: Instant::now() + PAUSE,
            is_tried: false,
        };
        lock(&self.outage).replace(outage).is_none()
    }

    /// Near answered; says whether that is news.
    fn answered(&self) -> bool {
        let mut outage = lock(&self.outage);
        outage.take_if(|outage| outage.is_tried).is_some()
    }

    fn claimed(&self, key: &StoreKey, owner: OwnerId) {
        let mut claims = lock(&self.claims);
        if claims.len() >= MOST_CLAIMS {
            *claims = HashSet::new();
        }
        claims.insert((key.clone(), owner));
    }

    /// An end of the claim is about to be sent; says whether it is the first.
    fn ends(&self, key: &StoreKey, lease: &Lease) -> bool {
        lock(&self.claims).remove(&(key.clone(), lease.owner))
    }

    /// `None` while another call copies this key.
    fn turn_to_copy(&self, key: &StoreKey) -> Option<Copying<'_>> {
        let free = lock(&self.copying).insert(key.clone());
        free.then(|| Copying {
            shared: self,
            key: key.clone(),
        })
    }
}

struct Copying<'a> {
    shared: &'a Shared,
    key: StoreKey,
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        lock(&self.shared.copying).remove(&self.key);
    }
}

/// Nothing that can panic runs under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<N: Store, F: Store> Store for Tiered<N, F> {
    async fn claim(&self, key: &StoreKey, request: &ClaimRequest) -> Result<Claim, StoreError> {
        let copy = self.near(key, "get", self.near.get(key)).await.flatten();
        let copy = copy.filter(|found| found.record.state == State::Completed);
        let is_stale = copy.is_some();
        if let Some(payload) = copy.and_then(|copy| copy.answer_for(&request.fingerprint)) {
            return Ok(Claim::Completed(payload));
        }
        let claim = self.far.claim(key, request).await?;
        if let Claim::Claimed(claimed) = &claim {
            self.shared.claimed(key, claimed.lease.owner);
        }
        match &claim {
            // By the record that the copy is of, most likely.
            Claim::Mismatch | Claim::OtherAlgorithm => {}
            _ if is_stale => self.drop_copy(key).await,
            Claim::Completed(_) => self.copy(key).await,
            Claim::Claimed(_) | Claim::InProgress { .. } | Claim::Abandoned => {}
        }
        Ok(claim)
    }

    async fn renew(
        &self,
        key: &StoreKey,
        lease: &Lease,
        lease_for: Duration,
        ttl: Duration,
        checkpoint: Option<Bytes>,
    ) -> Result<(), StoreError> {
        self.far.renew(key, lease, lease_for, ttl, checkpoint).await
    }

    async fn complete(
        &self,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let asked = self.shared.asks();
        let is_first = self.shared.ends(key, lease);
        self.far.complete(key, lease, payload, ttl).await?;
        if is_first {
            self.put(key, lease, payload, ttl, asked).await;
        }
        Ok(())
    }

    async fn fail(&self, key: &StoreKey, lease: &Lease, ttl: Duration) -> Result<(), StoreError> {
        self.shared.ends(key, lease);
        self.far.fail(key, lease, ttl).await
    }

    async fn release(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.shared.ends(key, lease);
        self.far.release(key, lease, ttl).await
    }

    async fn give_back(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.shared.ends(key, lease);
        self.far.give_back(key, lease, ttl).await
    }

    /// From far: near has no more than copies.
    async fn get(&self, key: &StoreKey) -> Result<Option<Snapshot>, StoreError> {
        self.far.get(key).await
    }

    /// Removes the record from far, and then the copy from near, which may fail to.
    async fn forget(&self, key: &StoreKey) -> Result<bool, StoreError> {
        let forgotten = self.far.forget(key).await?;
        self.shared.forgotten.fetch_add(1, SeqCst);
        // Also during an outage: an operator's word is worth the wait.
        let copy = self.near.forget(key);
        self.near_anyway(key, "forget", copy).await;
        Ok(forgotten)
    }

    /// In far: near does not know who runs.
    async fn wait(
        &self,
        key: &StoreKey,
        token: FencingToken,
    ) -> Result<Option<Snapshot>, StoreError> {
        self.far.wait(key, token).await
    }

    fn transactional(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.far.transactional()
    }
}

impl<N, F> Clone for Tiered<N, F> {
    fn clone(&self) -> Self {
        Self {
            near: Arc::clone(&self.near),
            far: Arc::clone(&self.far),
            near_for: self.near_for,
            near_timeout: self.near_timeout,
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<N, F> fmt::Debug for Tiered<N, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tiered")
            .field("near_for", &self.near_for)
            .field("near_timeout", &self.near_timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P9: claims whose executions were cut off do not heap up.
    #[test]
    fn p9_claims_that_never_end_are_bounded() {
        let shared = Shared::default();
        let key = StoreKey::new("idem", "", "", "k");
        for owner in 0..2 * MOST_CLAIMS as u128 {
            shared.claimed(&key, OwnerId::from_u128(owner));
            assert!(lock(&shared.claims).len() <= MOST_CLAIMS);
        }
    }
}
