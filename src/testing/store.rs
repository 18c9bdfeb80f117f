//! The conformance suite of [`Store`]: what every store does, in small named cases.
//!
//! A case takes a [`Fixture`]: a store without records, a way to move its clock, and whatever has
//! to live as long as the store. [`store_conformance!`](crate::store_conformance) makes a test of
//! each case; [`run_all`] runs them one after another. The crate that is tested needs `tokio` and
//! this crate's feature `testing`, both as dev-dependencies.
//!
//! ```
//! use tower_idempotency::{MemoryStore, testing::store::Fixture};
//!
//! async fn fixture() -> Fixture<MemoryStore> {
//!     let store = MemoryStore::new();
//!     let clock = store.clone();
//!     Fixture::new(store, move |by| {
//!         clock.advance_clock(by);
//!         std::future::ready(())
//!     })
//!     .incorruptible()
//! }
//!
//! mod memory {
//!     // One `#[tokio::test]` for each case.
//!     tower_idempotency::store_conformance!(super::fixture().await);
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! tower_idempotency::testing::store::run_all(fixture).await;
//! # }
//! ```
//!
//! # What the cases take for granted
//!
//! The store's clock moves by itself too, and each call takes a while: edges are looked at from a
//! few seconds before and after. The exact edges are [`machine`]'s. Cases wait in
//! tokio's time, so they run under a paused clock where the store does.
//!
//! No case can tell whether a store reads its client's clock, since nobody moves that of one process
//! in part. Run a client in a process of its own whose clock is off, with `libfaketime` say.
//!
//! # Records that cannot be read
//!
//! A store that keeps bytes outside of its process can find a record there that it does not
//! understand. Its fixture says how such a record comes about ([`Fixture::with_corruption`]); the
//! fixture of a store that keeps values says that it cannot ([`Fixture::incorruptible`]). One that
//! says neither fails the cases.

use std::{any::Any, fmt, future::Future, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use tokio::{sync::Barrier, task::yield_now, time::timeout};

use crate::{
    fingerprint::Fingerprint,
    key::StoreKey,
    machine,
    record::{
        Claim, ClaimRequest, Claimed, Entry, FencingToken, Lease, OwnerId, Payload, Record,
        Snapshot, State, Timestamp,
    },
    store::{Store, StoreError},
};

/// A store for one case, without records.
pub struct Fixture<S> {
    store: Arc<S>,
    advance: Box<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync>,
    corrupt: Corrupt,
    guard: Option<Box<dyn Any + Send>>,
}

enum Corrupt {
    Unsaid,
    Never,
    By(Box<dyn Fn(StoreKey, Corruption) -> BoxFuture<'static, ()> + Send + Sync>),
}

/// What is wrong with a record that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Corruption {
    /// It ends too early: some of its bytes, or one of the fields that every record has, are
    /// missing.
    CutShort,
    /// Its layout is of a version that this build does not know: that of a later release. A layout
    /// without a version has its state replaced by one that does not exist.
    UnknownVersion,
    /// All is there, and something in it makes no sense: a fingerprint of the wrong length, say, or
    /// a number that is none.
    Garbled,
}

impl Corruption {
    const ALL: [Self; 3] = [Self::CutShort, Self::UnknownVersion, Self::Garbled];
}

impl<S: Store> Fixture<S> {
    /// A store, and how to move its clock forward.
    ///
    /// Nobody waits for a record while the clock is moved.
    pub fn new<F>(store: S, advance: impl Fn(Duration) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self {
            store: Arc::new(store),
            advance: Box::new(move |by| advance(by).boxed()),
            corrupt: Corrupt::Unsaid,
            guard: None,
        }
    }

    /// How the record of a key, which is there, is made unreadable behind the store's back.
    ///
    /// A store of two layers has it damaged, or removed, in both.
    #[must_use]
    pub fn with_corruption<F>(
        mut self,
        corrupt: impl Fn(StoreKey, Corruption) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.corrupt = Corrupt::By(Box::new(move |key, how| corrupt(key, how).boxed()));
        self
    }

    /// Says that no record can be unreadable: the store keeps values of this process, and no
    /// bytes that it would have to understand.
    #[must_use]
    pub fn incorruptible(mut self) -> Self {
        self.corrupt = Corrupt::Never;
        self
    }

    /// Keeps `guard` until the case is over: a server, or a directory.
    #[must_use]
    pub fn with_guard(mut self, guard: impl Any + Send) -> Self {
        self.guard = Some(Box::new(guard));
        self
    }
}

impl<S> fmt::Debug for Fixture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fixture")
            .field("guarded", &self.guard.is_some())
            .finish_non_exhaustive()
    }
}

/// Makes a `#[tokio::test]` of each case of the [store suite](crate::testing::store).
///
/// The expression makes a [`Fixture`](crate::testing::store::Fixture), once for each test, and may
/// await. What follows a semicolon is given to `tokio::test`.
///
/// ```
/// # use tower_idempotency::{MemoryStore, testing::store::Fixture};
/// # fn fixture() -> Fixture<MemoryStore> {
/// #     let store = MemoryStore::new();
/// #     let clock = store.clone();
/// #     Fixture::new(store, move |by| {
/// #         clock.advance_clock(by);
/// #         std::future::ready(())
/// #     })
/// #     .incorruptible()
/// # }
/// mod one_thread {
///     tower_idempotency::store_conformance!(super::fixture(); start_paused = true);
/// }
/// mod many_threads {
///     tower_idempotency::store_conformance!(super::fixture(); flavor = "multi_thread");
/// }
/// ```
#[macro_export]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
macro_rules! store_conformance {
    ($fixture:expr $(; $($how:tt)*)?) => {
        $crate::store_conformance!(@each @tests [$fixture] ($($($how)*)?));
    };
    (@tests [$fixture:expr] $how:tt $($case:ident)*) => {$(
        #[tokio::test $how]
        async fn $case() {
            $crate::testing::store::$case($fixture).await;
        }
    )*};
    // The one list of cases, handed to the rule or macro that is named.
    (@each @ $then:ident $($given:tt)*) => {
        $crate::store_conformance! { @each [$crate::store_conformance] [@ $then $($given)*] }
    };
    (@each [$($callee:tt)*] [$($given:tt)*]) => {
        $($callee)* ! { $($given)*
            a_first_claim_is_granted
            a_claim_sent_again_is_granted_again
            a_running_claim_keeps_others_out
            fifty_claimers_have_one_winner
            fifty_claimers_of_a_failed_key_have_one_winner
            fifty_claimers_of_an_abandoned_key_have_one_winner
            fifty_claimers_of_an_expired_key_have_one_winner
            claimers_of_many_keys_have_one_winner_each
            attempts_in_turn_are_all_counted
            a_claim_beside_a_completion_is_never_granted
            a_claim_beside_a_late_completion_has_one_winner
            keys_do_not_meddle
            keys_are_opaque
            another_payload_is_a_mismatch_in_every_state
            another_algorithm_is_told_so_in_every_state
            an_expired_record_takes_any_payload
            an_expired_record_is_as_good_as_absent
            the_lease_ends_when_it_says
            the_record_ends_when_it_says
            a_claimed_record_outlives_its_lease
            an_abandoned_key_is_refused_without_takeover
            a_renewal_moves_the_lease_and_the_record
            a_renewal_is_good_after_the_lease
            a_renewal_revives_nothing
            a_zero_lease_has_ended
            a_tiny_lease_ends
            a_zero_time_to_live_has_ended
            the_longest_times_saturate
            the_last_time_to_live_counts
            the_clock_is_the_stores
            a_checkpoint_stays_until_replaced
            a_checkpoint_outlives_failure_and_takeover
            an_empty_checkpoint_is_a_checkpoint
            a_completed_answer_stays_the_same
            a_completion_sent_again_changes_nothing
            a_completion_is_good_after_the_lease
            a_completion_is_good_where_the_record_is_lost
            a_completion_is_good_after_a_failure
            an_answer_comes_back_byte_for_byte
            an_answer_of_eight_mebibytes_comes_back
            an_answer_that_cannot_be_replayed_is_kept_as_such
            a_failed_key_is_claimed_at_once
            a_failure_sent_again_changes_nothing
            a_failure_does_not_undo_a_completion
            a_released_key_is_free
            a_release_after_progress_is_a_failure
            a_release_does_not_undo_a_completion
            a_first_claim_given_back_frees_its_key
            a_retry_given_back_is_failed_again
            a_takeover_given_back_is_abandoned_again
            a_claim_is_given_back_late
            giving_back_again_changes_nothing
            giving_back_does_not_undo_an_end
            a_stranger_gives_nothing_back
            what_was_given_back_is_not_revived
            a_stale_owner_changes_nothing_while_another_runs
            a_stale_owner_changes_nothing_once_another_completed
            a_stale_owner_changes_nothing_once_another_failed
            a_stale_owner_changes_nothing_after_expiry
            tokens_grow_whatever_happens
            the_first_claim_is_remembered
            getting_changes_nothing
            forgetting_removes_in_every_state
            short_times_to_live_pass_beside_long_ones
            heaps_of_expired_records_do_no_harm
            a_wait_returns_at_once_if_it_is_over
            a_wait_ends_with_each_kind_of_end
            a_wait_ends_with_the_lease
            a_wait_goes_on_over_a_renewal
            a_wait_misses_no_end
            a_dropped_wait_changes_nothing
            a_hundred_waits_end_together
            waits_end_each_with_its_own_key
            a_record_cut_short_is_an_error
            a_record_of_an_unknown_version_is_an_error
            a_garbled_record_is_an_error
            an_unreadable_record_is_forgotten
            an_unreadable_record_does_others_no_harm
        }
    };
}

/// Runs every case, each on a fixture of its own.
///
/// # Panics
///
/// With what the store did wrong, at the first case that it fails.
pub async fn run_all<S: Store, F: Future<Output = Fixture<S>>>(fixture: impl Fn() -> F) {
    macro_rules! run {
        ([$fixture:ident] $($case:ident)*) => {
            $(Box::pin($case($fixture().await)).await;)*
        };
    }
    crate::store_conformance!(@each [run] [[fixture]]);
}

const LEASE: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(3600);
/// How far from an edge a case looks: longer than all calls of a case take together.
const MARGIN: Duration = Duration::from_secs(20);
/// After this a wait counts as one that never ends.
const PATIENCE: Duration = Duration::from_secs(10);

fn key_of(client_key: &str) -> StoreKey {
    StoreKey::new("idem", "caller", "endpoint", client_key)
}

fn fingerprint_of(body: &str) -> Fingerprint {
    let mut hasher = Fingerprint::hasher("suite/1");
    hasher.field(body);
    hasher.finish()
}

fn request() -> ClaimRequest {
    ClaimRequest {
        fingerprint: fingerprint_of("body"),
        owner: OwnerId::random(),
        lease: LEASE,
        ttl: TTL,
        take_over: true,
    }
}

fn answer(text: &'static str) -> Payload {
    Payload::new(201, Bytes::from_static(text.as_bytes()))
}

/// A key of one fixture.
struct Key<'a, S> {
    fixture: &'a Fixture<S>,
    key: StoreKey,
}

impl<S: Store> Fixture<S> {
    fn key(&self, client_key: &str) -> Key<'_, S> {
        self.at(key_of(client_key))
    }

    fn at(&self, key: StoreKey) -> Key<'_, S> {
        Key { fixture: self, key }
    }

    pub(super) fn store(&self) -> &S {
        &self.store
    }

    pub(super) async fn advance(&self, by: Duration) {
        (self.advance)(by).await;
    }

    /// In which ways a record can be unreadable.
    fn corruptions(&self) -> &'static [Corruption] {
        match self.corrupt {
            Corrupt::Unsaid => panic!(
                "the fixture should say how a record is made unreadable (`with_corruption`), \
                 or that none can be (`incorruptible`)"
            ),
            Corrupt::Never => &[],
            Corrupt::By(_) => &Corruption::ALL,
        }
    }
}

impl<S: Store> Key<'_, S> {
    fn store(&self) -> &S {
        &self.fixture.store
    }

    async fn claim(&self, request: &ClaimRequest) -> Claim {
        let claim = self.store().claim(&self.key, request).await;
        claim.expect("a claim is answered")
    }

    async fn claimed(&self, request: &ClaimRequest) -> Claimed {
        match self.claim(request).await {
            Claim::Claimed(claimed) => claimed,
            other => panic!("the claim should be granted: {other:?}"),
        }
    }

    async fn renew(
        &self,
        lease: &Lease,
        lease_for: Duration,
        checkpoint: Option<&'static [u8]>,
    ) -> Result<(), StoreError> {
        let checkpoint = checkpoint.map(Bytes::from_static);
        self.store()
            .renew(&self.key, lease, lease_for, TTL, checkpoint)
            .await
    }

    async fn complete(&self, lease: &Lease, payload: &Payload) -> Result<(), StoreError> {
        self.store().complete(&self.key, lease, payload, TTL).await
    }

    async fn fail(&self, lease: &Lease) -> Result<(), StoreError> {
        self.store().fail(&self.key, lease, TTL).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.store().release(&self.key, lease, TTL).await
    }

    async fn give_back(&self, lease: &Lease) -> Result<(), StoreError> {
        self.store().give_back(&self.key, lease, TTL).await
    }

    async fn forget(&self) -> bool {
        let forgotten = self.store().forget(&self.key).await;
        forgotten.expect("a key can be forgotten")
    }

    async fn get(&self) -> Option<Snapshot> {
        let found = self.store().get(&self.key).await;
        found.expect("a key can be read")
    }

    async fn record(&self) -> Record {
        self.get().await.expect("the record is there").record
    }

    /// Waits as a caller does: again if the store returned early.
    async fn wait(&self, token: FencingToken) -> Option<Snapshot> {
        for _ in 0..10_000 {
            let found = self.store().wait(&self.key, token).await;
            let found = found.expect("a key can be waited for");
            if is_over(found.as_ref(), token) {
                return found;
            }
            yield_now().await;
        }
        panic!("the wait returns early time and again");
    }

    /// Brings the key into a state; the proof is of the last claim.
    async fn bring(&self, state: Reached) -> Lease {
        let mut asked = request();
        if let Reached::Abandoned | Reached::GivenBack = state {
            asked.lease = Duration::ZERO;
        }
        let mut lease = self.claimed(&asked).await.lease;
        match state {
            Reached::InProgress | Reached::Abandoned => {}
            Reached::Completed => ok(self.complete(&lease, &answer("answer")).await),
            Reached::Failed => ok(self.fail(&lease).await),
            Reached::GivenBack => {
                lease = self.claimed(&request()).await.lease;
                ok(self.give_back(&lease).await);
            }
        }
        lease
    }

    /// Tries all that an owner can do, as an owner that was superseded.
    async fn changes_nothing(&self, stale: &Lease) {
        let before = self.record().await;
        superseded(self.renew(stale, LEASE, Some(b"stale")).await);
        superseded(self.renew(stale, Duration::ZERO, None).await);
        superseded(self.complete(stale, &answer("stale")).await);
        superseded(self.fail(stale).await);
        superseded(self.release(stale).await);
        superseded(self.give_back(stale).await);
        assert_eq!(self.record().await, before, "a stale owner changed it");
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Reached {
    InProgress,
    Abandoned,
    Completed,
    Failed,
    /// Abandoned without an owner: a takeover was given back.
    GivenBack,
}

impl Reached {
    const ALL: [Self; 5] = [
        Self::InProgress,
        Self::Abandoned,
        Self::Completed,
        Self::Failed,
        Self::GivenBack,
    ];

    fn name(self) -> String {
        format!("{self:?}")
    }
}

fn ok(result: Result<(), StoreError>) {
    result.expect("the owner may do this");
}

fn superseded(result: Result<(), StoreError>) {
    assert!(
        matches!(result, Err(StoreError::Superseded)),
        "should be superseded: {result:?}"
    );
}

fn gone(result: Result<(), StoreError>) {
    assert!(
        matches!(result, Err(StoreError::Gone)),
        "should be gone: {result:?}"
    );
}

fn is_over(found: Option<&Snapshot>, token: FencingToken) -> bool {
    let now = found.map_or(Timestamp::default(), |found| found.now);
    machine::is_over(found.map(|found| &found.record), now, token)
}

/// Lets a future come as far as it does without anything else happening.
async fn settle<F: Future>(mut future: std::pin::Pin<&mut F>) {
    for _ in 0..20 {
        let polled = futures::poll!(future.as_mut());
        assert!(polled.is_pending(), "nothing happened to wait for");
        yield_now().await;
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future)
        .await
        .expect("the wait should have ended")
}

// Claims

/// S02: a first claim starts a record in progress, with the times that were asked for.
pub async fn a_first_claim_is_granted<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    assert_eq!(key.get().await, None);
    let asked = request();
    let claimed = key.claimed(&asked).await;
    assert_eq!(claimed.entry, Entry::First);
    assert_eq!(claimed.checkpoint, None);
    assert_eq!(claimed.lease.owner, asked.owner);
    assert_eq!(claimed.lease.fingerprint, asked.fingerprint);
    assert_eq!(claimed.lease.attempt, 1);

    let Snapshot { record, now } = key.get().await.expect("the record is there");
    assert_eq!(record.state, State::InProgress);
    assert_eq!(record.owner, asked.owner);
    assert_eq!(record.fingerprint, asked.fingerprint);
    assert_eq!(record.token, claimed.lease.token);
    assert_eq!((record.attempt, record.entry), (1, Entry::First));
    assert_eq!((record.checkpoint, record.payload), (None, None));
    assert!(record.created_at <= now && now.since(record.created_at) < MARGIN);
    assert_eq!(record.lease_until, record.created_at + LEASE);
    assert_eq!(record.expires_at, record.lease_until + TTL);
}

/// P5: a claim whose answer was lost and that is sent again gives the same proof, entry and
/// checkpoint, also late, and also without takeover.
pub async fn a_claim_sent_again_is_granted_again<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let first = ClaimRequest {
        take_over: false,
        ..request()
    };
    let claimed = key.claimed(&first).await;
    assert_eq!(key.claimed(&first).await, claimed);
    fixture.advance(LEASE + MARGIN).await;
    assert_eq!(key.claimed(&first).await, claimed);
    let held = key.claim(&request()).await;
    assert!(matches!(held, Claim::InProgress { .. }), "{held:?}");

    ok(key.renew(&claimed.lease, LEASE, Some(b"half")).await);
    ok(key.fail(&claimed.lease).await);
    let second = request();
    let retried = key.claimed(&second).await;
    assert_eq!(retried.entry, Entry::Retry);
    assert_eq!(key.claimed(&second).await, retried);
    ok(key.renew(&retried.lease, Duration::ZERO, None).await);
    assert_eq!(key.claimed(&second).await, retried);
    assert_eq!(key.record().await.entry, Entry::Retry);

    ok(key.renew(&retried.lease, Duration::ZERO, None).await);
    let third = request();
    let taken = key.claimed(&third).await;
    assert_eq!(taken.entry, Entry::Takeover);
    assert_eq!(key.claimed(&third).await, taken);
    assert_eq!(key.record().await.entry, Entry::Takeover);
}

/// P1, S03: nobody else gets a key that is held, and they are told by which claim.
pub async fn a_running_claim_keeps_others_out<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let claimed = key.claimed(&request()).await;
    let before = key.record().await;
    for take_over in [true, false] {
        let asked = ClaimRequest {
            take_over,
            ..request()
        };
        let token = claimed.lease.token;
        assert_eq!(key.claim(&asked).await, Claim::InProgress { token });
    }
    assert_eq!(key.record().await, before);
}

async fn fifty_claim<S: Store>(key: &Key<'_, S>) -> Claimed {
    let barrier = Arc::new(Barrier::new(50));
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let (store, barrier) = (key.fixture.store.clone(), barrier.clone());
            let key = key.key.clone();
            tokio::spawn(async move {
                barrier.wait().await;
                store.claim(&key, &request()).await
            })
        })
        .collect();
    let (mut granted, mut refused) = (Vec::new(), Vec::new());
    for task in tasks {
        let claim = task.await.expect("a claim does not panic");
        match claim.expect("a claim is answered") {
            Claim::Claimed(claimed) => granted.push(claimed),
            Claim::InProgress { token } => refused.push(token),
            other => panic!("neither granted nor held: {other:?}"),
        }
    }
    assert_eq!(granted.len(), 1, "claims that were granted");
    let winner = granted.remove(0);
    assert!(refused.iter().all(|token| *token == winner.lease.token));
    winner
}

/// S10, S14, S15, U01: of fifty who claim a key at once, one gets it.
pub async fn fifty_claimers_have_one_winner<S: Store>(fixture: Fixture<S>) {
    for round in 0..4 {
        let winner = fifty_claim(&fixture.key(&round.to_string())).await;
        assert_eq!((winner.entry, winner.lease.attempt), (Entry::First, 1));
    }
}

/// S10, S30: of fifty who retry a failed key at once, one gets it.
pub async fn fifty_claimers_of_a_failed_key_have_one_winner<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    key.bring(Reached::Failed).await;
    let winner = fifty_claim(&key).await;
    assert_eq!((winner.entry, winner.lease.attempt), (Entry::Retry, 2));
}

/// S10, P5: of fifty who take an abandoned key over at once, one gets it.
pub async fn fifty_claimers_of_an_abandoned_key_have_one_winner<S: Store>(fixture: Fixture<S>) {
    for (state, attempt) in [(Reached::Abandoned, 2), (Reached::GivenBack, 3)] {
        let key = fixture.key(&state.name());
        key.bring(state).await;
        let winner = fifty_claim(&key).await;
        assert_eq!(winner.entry, Entry::Takeover);
        assert_eq!(winner.lease.attempt, attempt);
    }
}

/// S05, S10: of fifty who claim at once the key of an expired record, one gets it, as if it were new.
pub async fn fifty_claimers_of_an_expired_key_have_one_winner<S: Store>(fixture: Fixture<S>) {
    for state in Reached::ALL {
        fixture.key(&state.name()).bring(state).await;
    }
    fixture.advance(LEASE + TTL + MARGIN).await;
    for state in Reached::ALL {
        let winner = fifty_claim(&fixture.key(&state.name())).await;
        assert_eq!((winner.entry, winner.lease.attempt), (Entry::First, 1));
    }
}

/// S10, U28: of those who claim many keys at once, each key has one that gets it.
pub async fn claimers_of_many_keys_have_one_winner_each<S: Store>(fixture: Fixture<S>) {
    let (keys, each) = (20, 5);
    let barrier = Arc::new(Barrier::new(keys * each));
    let tasks: Vec<_> = (0..keys * each)
        .map(|n| {
            let (store, barrier) = (fixture.store.clone(), barrier.clone());
            let key = key_of(&(n % keys).to_string());
            tokio::spawn(async move {
                barrier.wait().await;
                (n % keys, store.claim(&key, &request()).await)
            })
        })
        .collect();
    let mut granted = vec![0; keys];
    for task in tasks {
        let (key, claim) = task.await.expect("a claim does not panic");
        match claim.expect("a claim is answered") {
            Claim::Claimed(_) => granted[key] += 1,
            Claim::InProgress { .. } => {}
            other => panic!("neither granted nor held: {other:?}"),
        }
    }
    assert_eq!(granted, vec![1; keys], "claims that were granted, by key");
}

/// P1, S30: ten who want a key again and again get it one after the other: every attempt is counted
/// once, with a greater token than the one before.
pub async fn attempts_in_turn_are_all_counted<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let (store, key) = (fixture.store.clone(), key.key.clone());
            tokio::spawn(async move {
                let mut granted = Vec::new();
                while granted.len() < 5 {
                    let claim = store.claim(&key, &request()).await;
                    match claim.expect("a claim is answered") {
                        Claim::Claimed(claimed) => {
                            ok(store.fail(&key, &claimed.lease, TTL).await);
                            granted.push((claimed.lease.attempt, claimed.lease.token));
                        }
                        Claim::InProgress { token } => {
                            let waited = soon(store.wait(&key, token)).await;
                            waited.expect("a key can be waited for");
                        }
                        other => panic!("neither granted nor held: {other:?}"),
                    }
                }
                granted
            })
        })
        .collect();
    let mut granted = Vec::new();
    for task in tasks {
        granted.extend(task.await.expect("nobody panics"));
    }
    granted.sort_unstable();
    let attempts: Vec<_> = granted.iter().map(|(attempt, _)| *attempt).collect();
    assert_eq!(attempts, (1..=50).collect::<Vec<_>>());
    assert!(granted.is_sorted_by(|(_, one), (_, next)| one < next));
    let record = key.record().await;
    assert_eq!((record.state, record.attempt), (State::Failed, 50));
}

/// U14: while an answer is recorded, a claim finds the key held or completed, never free.
pub async fn a_claim_beside_a_completion_is_never_granted<S: Store>(fixture: Fixture<S>) {
    for round in 0..10 {
        let key = fixture.key(&round.to_string());
        let lease = key.claimed(&request()).await.lease;
        let tasks: Vec<_> = (0..10)
            .map(|_| {
                let (store, key) = (fixture.store.clone(), key.key.clone());
                tokio::spawn(async move { store.claim(&key, &request()).await })
            })
            .collect();
        ok(key.complete(&lease, &answer("once")).await);
        for task in tasks {
            let claim = task.await.expect("a claim does not panic");
            match claim.expect("a claim is answered") {
                Claim::InProgress { .. } => {}
                Claim::Completed(payload) => assert_eq!(payload, answer("once")),
                other => panic!("neither held nor completed: {other:?}"),
            }
        }
    }
}

/// P1, P6: where an owner completes late and another claims at the same moment, one of them comes
/// first, and the other one is told so.
pub async fn a_claim_beside_a_late_completion_has_one_winner<S: Store>(fixture: Fixture<S>) {
    for round in 0..20 {
        let state = [Reached::Abandoned, Reached::Failed][round % 2];
        let key = fixture.key(&round.to_string());
        let late = key.bring(state).await;
        let barrier = Arc::new(Barrier::new(2));
        let complete = || {
            let (store, key) = (fixture.store.clone(), key.key.clone());
            let barrier = barrier.clone();
            tokio::spawn(async move {
                barrier.wait().await;
                store.complete(&key, &late, &answer("late"), TTL).await
            })
        };
        let claim = || {
            let (store, key) = (fixture.store.clone(), key.key.clone());
            let barrier = barrier.clone();
            tokio::spawn(async move {
                barrier.wait().await;
                store.claim(&key, &request()).await
            })
        };
        // Whoever comes last to the barrier leaves it first.
        let (completing, claiming) = if round < 10 {
            let completing = complete();
            (completing, claim())
        } else {
            let claiming = claim();
            (complete(), claiming)
        };
        let completed = completing.await.expect("a completion does not panic");
        let claim = claiming.await.expect("a claim does not panic");
        match (completed, claim.expect("a claim is answered")) {
            (Ok(()), Claim::Completed(payload)) => assert_eq!(payload, answer("late")),
            (Err(StoreError::Superseded), Claim::Claimed(claimed)) => {
                ok(key.complete(&claimed.lease, &answer("newer")).await);
                key.changes_nothing(&late).await;
            }
            (completed, claim) => panic!("{state:?}: both or neither: {completed:?}, {claim:?}"),
        }
    }
}

// Keys

/// U28: what happens to one key does not happen to another.
pub async fn keys_do_not_meddle<S: Store>(fixture: Fixture<S>) {
    let bystander = fixture.key("bystander");
    let asked = request();
    let lease = bystander.claimed(&asked).await.lease;
    let before = bystander.record().await;
    for state in Reached::ALL {
        let key = fixture.key(&state.name());
        // Under the very same owner and payload.
        let other = key.claimed(&asked).await.lease;
        match state {
            Reached::InProgress => ok(key.renew(&other, LEASE, Some(b"x")).await),
            Reached::Abandoned => ok(key.renew(&other, Duration::ZERO, None).await),
            Reached::Completed => ok(key.complete(&other, &answer("other")).await),
            Reached::Failed => ok(key.fail(&other).await),
            Reached::GivenBack => {
                ok(key.renew(&other, Duration::ZERO, None).await);
                let taken = key.claimed(&request()).await.lease;
                ok(key.give_back(&taken).await);
            }
        }
        assert_eq!(bystander.record().await, before);
        assert!(key.forget().await);
        assert_eq!(bystander.record().await, before);
    }
    ok(bystander.complete(&lease, &answer("own")).await);
}

/// U02, I11: a key is any string, and each string is its own key.
pub async fn keys_are_opaque<S: Store>(fixture: Fixture<S>) {
    let long = "x".repeat(255);
    let almost = format!("{}y", &long[1..]);
    let mut keys: Vec<StoreKey> = [
        "a", "A", "a ", " a", "a:b", "a/b", "a%3Ab", "a%b", "a_b", "a\\b", "a'b", "a\"b", "a;--",
        "{a}", "a*", "a?", "[a]", "$1", ":", "/", "%", " ", "~", "0", "00", "null", &long, &almost,
    ]
    .into_iter()
    .map(key_of)
    .collect();
    keys.extend([
        StoreKey::new("idem", "", "", "a"),
        StoreKey::new("idem", "a", "", "a"),
        StoreKey::new("idem", "", "a", "a"),
        StoreKey::new("other", "", "", "a"),
        StoreKey::new("idem", "käufer:7/ß %", "endpoint", "a"),
        StoreKey::new("idem", "ka\u{308}ufer:7/ß %", "endpoint", "a"),
        StoreKey::new("idem", "商店🏪", "endpoint", "a"),
        // Not what a client can send, but a user's own code may choose it.
        StoreKey::new("idem", "caller", "endpoint", "ключ é 🔑"),
        StoreKey::new("idem", "caller", "endpoint", "ключ e\u{301} 🔑"),
        StoreKey::new("idem", "caller", "endpoint", "line\nbreak\ttab"),
    ]);
    // What ends a string, a statement or a script somewhere, and what a store may write itself.
    let awkward = [
        "\0", "a\0", "a\0b", "\u{1}", "\u{7f}", "a\r\n", "'", "''", "\"", "`", "\\'", "/*", "--",
        "?", "?1", ":a", "@a", "$$", "]]", "]=]", "#", "#a", "##a", "#0", "%23a", "%%", "%00",
        "%3A", "%s", "::", "a:", ":a:", "{a}b", "{}", "}{", "${a}",
    ];
    keys.extend(awkward.map(key_of));
    let longer = [
        "'; DROP TABLE idempotency; --",
        "a' OR '1'='1",
        "*1\r\n$1\r\na",
        "\u{feff}a",
        "a\u{202e}",
        "\u{10ffff}",
    ];
    keys.extend(longer.map(key_of));
    // Longer than any index entry, and the same but for one character: at the end, at the start.
    let huge = "k".repeat(100_000);
    keys.extend([
        key_of(&huge),
        key_of(&format!("{huge}k")),
        key_of(&format!("{}l", &huge[1..])),
        key_of(&format!("l{}", &huge[1..])),
        StoreKey::new("idem", &huge, &huge, "a"),
    ]);
    let mut leases = Vec::new();
    for key in &keys {
        let claimed = fixture.at(key.clone()).claimed(&request()).await;
        assert_eq!(claimed.entry, Entry::First, "{:?}", start_of(key));
        leases.push(claimed.lease);
    }
    let answer_to = |key: &StoreKey| Payload::new(200, Bytes::from(key.as_str().to_owned()));
    for (key, lease) in keys.iter().zip(&leases) {
        ok(fixture
            .at(key.clone())
            .complete(lease, &answer_to(key))
            .await);
    }
    for key in &keys {
        let found = fixture.at(key.clone()).claim(&request()).await;
        // Not with `assert_eq`: an answer is as long as its key.
        assert!(
            found == Claim::Completed(answer_to(key)),
            "{:?}",
            start_of(key)
        );
    }
    for key in keys {
        let key = fixture.at(key);
        assert!(key.forget().await, "{:?}", start_of(&key.key));
        assert_eq!(key.get().await, None, "{:?}", start_of(&key.key));
    }
}

fn start_of(key: &StoreKey) -> String {
    key.as_str().chars().take(60).collect()
}

// Payloads of requests

async fn refused_in_every_state<S: Store>(
    fixture: &Fixture<S>,
    fingerprint: Fingerprint,
    expected: Claim,
) {
    for state in Reached::ALL {
        let key = fixture.key(&state.name());
        key.bring(state).await;
        let before = key.record().await;
        for take_over in [true, false] {
            let asked = ClaimRequest {
                fingerprint,
                take_over,
                ..request()
            };
            assert_eq!(key.claim(&asked).await, expected, "{state:?}");
            // Not even for the one who holds it.
            let asked = ClaimRequest {
                owner: before.owner,
                ..asked
            };
            assert_eq!(key.claim(&asked).await, expected, "{state:?}, its owner");
        }
        assert_eq!(key.record().await, before, "{state:?}");
    }
}

/// S07, U26: another payload is a mismatch, whatever the state; also while in progress.
pub async fn another_payload_is_a_mismatch_in_every_state<S: Store>(fixture: Fixture<S>) {
    refused_in_every_state(&fixture, fingerprint_of("other"), Claim::Mismatch).await;
}

/// U37: a fingerprint of another algorithm is not called a mismatch, whatever the state.
pub async fn another_algorithm_is_told_so_in_every_state<S: Store>(fixture: Fixture<S>) {
    let digest = *fingerprint_of("body").digest();
    let other = Fingerprint::from_parts("suite/2", digest).expect("a valid name");
    refused_in_every_state(&fixture, other, Claim::OtherAlgorithm).await;
}

/// S05: once a record has expired, its key is as good as new, for any payload.
pub async fn an_expired_record_takes_any_payload<S: Store>(fixture: Fixture<S>) {
    for state in Reached::ALL {
        fixture.key(&state.name()).bring(state).await;
    }
    fixture.advance(LEASE + TTL + MARGIN).await;
    for state in Reached::ALL {
        let key = fixture.key(&state.name());
        assert_eq!(key.get().await, None, "{state:?}");
        let asked = ClaimRequest {
            fingerprint: fingerprint_of("other"),
            take_over: false,
            ..request()
        };
        let claimed = key.claimed(&asked).await;
        assert_eq!(claimed.entry, Entry::First, "{state:?}");
        assert_eq!(claimed.lease.attempt, 1, "{state:?}");
        assert_eq!(claimed.lease.fingerprint, asked.fingerprint);
        let record = key.record().await;
        assert_eq!(record.fingerprint, asked.fingerprint);
        assert_eq!((record.payload, record.checkpoint), (None, None));
    }
}

/// S05: nobody can tell an expired record from none: neither its owner, who can only record late,
/// nor a stranger.
pub async fn an_expired_record_is_as_good_as_absent<S: Store>(fixture: Fixture<S>) {
    let mut left = Vec::new();
    for state in Reached::ALL {
        for who in ["owner", "stranger"] {
            let key = fixture.key(&format!("{state:?} {who}"));
            let mut lease = key.bring(state).await;
            if who == "stranger" {
                lease.owner = OwnerId::random();
            }
            left.push((key, lease));
        }
    }
    fixture.advance(LEASE + TTL + MARGIN).await;
    for (key, lease) in &left {
        let name = &key.key;
        assert_eq!(key.get().await, None, "{name:?}");
        assert_eq!(soon(key.wait(lease.token)).await, None, "{name:?}");
        gone(key.renew(lease, LEASE, Some(b"late")).await);
        ok(key.fail(lease).await);
        ok(key.release(lease).await);
        ok(key.give_back(lease).await);
        assert!(!key.forget().await, "{name:?}");
        assert_eq!(key.get().await, None, "{name:?}");
        ok(key.complete(lease, &answer("late")).await);
        let Snapshot { record, now } = key.get().await.expect("it is recorded");
        assert_eq!(record.payload, Some(answer("late")));
        assert_eq!((record.owner, record.token), (lease.owner, lease.token));
        assert_eq!(record.checkpoint, None);
        assert!(now.since(record.created_at) < MARGIN, "{name:?}");
    }
}

// Time

/// P5: a lease holds until its end and not beyond.
pub async fn the_lease_ends_when_it_says<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let first = key.claimed(&request()).await;
    fixture.advance(LEASE - MARGIN).await;
    let token = first.lease.token;
    assert_eq!(key.claim(&request()).await, Claim::InProgress { token });
    let held = key.get().await.expect("it is there");
    assert!(!held.is_abandoned());
    assert!(held.record.lease_until.since(held.now) <= MARGIN);
    fixture.advance(MARGIN).await;
    assert!(key.get().await.expect("it is still there").is_abandoned());
    let taken = key.claimed(&request()).await;
    assert_eq!((taken.entry, taken.lease.attempt), (Entry::Takeover, 2));
    assert!(taken.lease.token > first.lease.token);
}

/// S05: a completed or failed record stays for its time to live and not beyond.
pub async fn the_record_ends_when_it_says<S: Store>(fixture: Fixture<S>) {
    let (completed, failed) = (fixture.key("completed"), fixture.key("failed"));
    completed.bring(Reached::Completed).await;
    failed.bring(Reached::Failed).await;
    fixture.advance(TTL - MARGIN).await;
    assert_eq!(
        completed.claim(&request()).await,
        Claim::Completed(answer("answer"))
    );
    assert!(failed.get().await.is_some());
    fixture.advance(MARGIN).await;
    assert_eq!(failed.get().await, None);
    assert_eq!(completed.get().await, None);
    assert_eq!(completed.claimed(&request()).await.entry, Entry::First);
}

/// P5: a record in progress stays for its time to live after the lease, so that the next attempt
/// learns of the one that went silent.
pub async fn a_claimed_record_outlives_its_lease<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    key.claimed(&request()).await;
    fixture.advance(LEASE + TTL - MARGIN).await;
    let asked = ClaimRequest {
        take_over: false,
        ..request()
    };
    assert_eq!(key.claim(&asked).await, Claim::Abandoned);
    fixture.advance(MARGIN).await;
    assert_eq!(key.get().await, None);
    assert_eq!(key.claimed(&asked).await.entry, Entry::First);
}

/// P5: an abandoned key stays closed to those who do not take over, and nothing changes.
pub async fn an_abandoned_key_is_refused_without_takeover<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    key.bring(Reached::Abandoned).await;
    key.claimed(&ClaimRequest {
        lease: Duration::ZERO,
        ..request()
    })
    .await;
    let before = key.record().await;
    assert_eq!(before.attempt, 2);
    let asked = ClaimRequest {
        take_over: false,
        ..request()
    };
    for _ in 0..2 {
        assert_eq!(key.claim(&asked).await, Claim::Abandoned);
    }
    assert_eq!(key.record().await, before);
}

/// P1: a renewal holds the key longer, and the record with it; its length counts from now.
pub async fn a_renewal_moves_the_lease_and_the_record<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.claimed(&request()).await.lease;
    for _ in 0..3 {
        fixture.advance(LEASE - MARGIN).await;
        ok(key.renew(&lease, LEASE, None).await);
        let held = key.claim(&request()).await;
        assert!(matches!(held, Claim::InProgress { .. }), "{held:?}");
        let Snapshot { record, now } = key.get().await.expect("it is there");
        let left = record.lease_until.since(now);
        assert!(left <= LEASE && left > LEASE - MARGIN, "{left:?}");
        assert_eq!(record.expires_at, record.lease_until + TTL);
        assert_eq!((record.token, record.attempt), (lease.token, 1));
    }
    // Shorter is possible too.
    ok(key.renew(&lease, MARGIN, None).await);
    fixture.advance(MARGIN).await;
    assert!(key.get().await.expect("it is there").is_abandoned());
}

/// An owner that is late but was not superseded may go on.
pub async fn a_renewal_is_good_after_the_lease<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.claimed(&request()).await.lease;
    fixture.advance(LEASE + MARGIN).await;
    ok(key.renew(&lease, LEASE, None).await);
    let held = key.claim(&request()).await;
    assert!(matches!(held, Claim::InProgress { .. }), "{held:?}");
}

/// U12: a renewal in flight brings back nothing that was released, finished, forgotten or expired.
pub async fn a_renewal_revives_nothing<S: Store>(fixture: Fixture<S>) {
    let [released, failed, completed, forgotten, expired] =
        ["released", "failed", "completed", "forgotten", "expired"].map(|name| fixture.key(name));
    let lease = expired.bring(Reached::InProgress).await;
    fixture.advance(LEASE + TTL + MARGIN).await;
    gone(expired.renew(&lease, LEASE, Some(b"x")).await);
    assert_eq!(expired.get().await, None);

    let lease = released.bring(Reached::InProgress).await;
    ok(released.release(&lease).await);
    gone(released.renew(&lease, LEASE, Some(b"x")).await);
    assert_eq!(released.get().await, None);

    let lease = forgotten.bring(Reached::InProgress).await;
    assert!(forgotten.forget().await);
    gone(forgotten.renew(&lease, LEASE, None).await);
    assert_eq!(forgotten.get().await, None);

    for (key, state) in [(failed, Reached::Failed), (completed, Reached::Completed)] {
        let lease = key.bring(state).await;
        let before = key.record().await;
        gone(key.renew(&lease, LEASE, Some(b"x")).await);
        assert_eq!(key.record().await, before);
    }
}

/// U23: a lease of zero has ended; it is not one without an end, and the record is still there.
pub async fn a_zero_lease_has_ended<S: Store>(fixture: Fixture<S>) {
    let asked = ClaimRequest {
        take_over: false,
        ..request()
    };
    let claimed = fixture.key("claimed");
    let lease = claimed.bring(Reached::Abandoned).await;
    assert_eq!(claimed.claim(&asked).await, Claim::Abandoned);
    ok(claimed.complete(&lease, &answer("late")).await);

    let renewed = fixture.key("renewed");
    let lease = renewed.bring(Reached::InProgress).await;
    ok(renewed.renew(&lease, Duration::ZERO, None).await);
    assert_eq!(renewed.claim(&asked).await, Claim::Abandoned);
    let taken = renewed.claimed(&request()).await;
    assert_eq!(taken.entry, Entry::Takeover);
    superseded(renewed.renew(&lease, LEASE, None).await);
}

/// U23: the shortest lease ends like any other: it is neither refused nor without an end.
pub async fn a_tiny_lease_ends<S: Store>(fixture: Fixture<S>) {
    for (name, lease) in [
        ("ns", Duration::from_nanos(1)),
        ("us", Duration::from_micros(1)),
        ("ms", Duration::from_millis(1)),
    ] {
        let key = fixture.key(name);
        let first = key.claimed(&ClaimRequest { lease, ..request() }).await;
        fixture.advance(Duration::from_secs(1)).await;
        assert!(key.get().await.expect("it is there").is_abandoned());
        ok(key.renew(&first.lease, lease, None).await);
        fixture.advance(Duration::from_secs(1)).await;
        let taken = key.claimed(&request()).await;
        assert_eq!(taken.entry, Entry::Takeover, "{lease:?}");
    }
}

/// A time to live of zero has ended; it is neither an error nor one without an end.
pub async fn a_zero_time_to_live_has_ended<S: Store>(fixture: Fixture<S>) {
    let zero = Duration::ZERO;
    let store = &fixture.store;
    let key = fixture.key("completed");
    let lease = key.bring(Reached::InProgress).await;
    ok(store.complete(&key.key, &lease, &answer("x"), zero).await);
    assert_eq!(key.get().await, None);

    let key = fixture.key("failed");
    let lease = key.bring(Reached::InProgress).await;
    ok(store.fail(&key.key, &lease, zero).await);
    assert_eq!(key.get().await, None);

    let key = fixture.key("given back");
    key.bring(Reached::Abandoned).await;
    let lease = key.claimed(&request()).await.lease;
    ok(store.give_back(&key.key, &lease, zero).await);
    assert_eq!(key.get().await, None);

    let key = fixture.key("claimed");
    let asked = ClaimRequest {
        lease: zero,
        ttl: zero,
        ..request()
    };
    let lease = key.claimed(&asked).await.lease;
    assert_eq!(key.get().await, None);
    ok(key.complete(&lease, &answer("late")).await);
    assert_eq!(
        key.claim(&request()).await,
        Claim::Completed(answer("late"))
    );
}

/// The longest times that there are do not overflow into the past.
pub async fn the_longest_times_saturate<S: Store>(fixture: Fixture<S>) {
    let store = &fixture.store;
    let key = fixture.key("k");
    let asked = ClaimRequest {
        lease: Duration::MAX,
        ttl: Duration::MAX,
        ..request()
    };
    let lease = key.claimed(&asked).await.lease;
    let year = Duration::from_secs(365 * 24 * 3600);
    fixture.advance(year).await;
    let held = key.claim(&request()).await;
    assert!(matches!(held, Claim::InProgress { .. }), "{held:?}");
    let renewed = store.renew(&key.key, &lease, Duration::MAX, Duration::MAX, None);
    ok(renewed.await);
    let held = key.claim(&request()).await;
    assert!(matches!(held, Claim::InProgress { .. }), "{held:?}");
    let payload = answer("kept");
    let completed = store.complete(&key.key, &lease, &payload, Duration::MAX);
    ok(completed.await);
    fixture.advance(year).await;
    assert_eq!(key.claim(&request()).await, Claim::Completed(payload));
}

/// S05: each operation sets the time to live anew, longer or shorter than the one before asked for.
pub async fn the_last_time_to_live_counts<S: Store>(fixture: Fixture<S>) {
    let store = &fixture.store;
    let (short, long) = (TTL, 10 * TTL);
    let mut keys = Vec::new();
    for (ttl, first) in [(short, long), (long, short)] {
        for end in ["renew", "complete", "fail", "release", "give_back"] {
            let key = fixture.key(&format!("{end} {ttl:?}"));
            if end == "release" || end == "give_back" {
                key.bring(Reached::Failed).await;
            }
            let asked = ClaimRequest {
                lease: Duration::ZERO,
                ttl: first,
                ..request()
            };
            let lease = key.claimed(&asked).await.lease;
            let name = &key.key;
            ok(match end {
                "renew" => store.renew(name, &lease, Duration::ZERO, ttl, None).await,
                "complete" => store.complete(name, &lease, &answer("x"), ttl).await,
                "fail" => store.fail(name, &lease, ttl).await,
                "release" => store.release(name, &lease, ttl).await,
                _ => store.give_back(name, &lease, ttl).await,
            });
            keys.push((key, ttl));
        }
    }
    fixture.advance(short + MARGIN).await;
    for (key, ttl) in &keys {
        let name = &key.key;
        assert_eq!(key.get().await.is_some(), *ttl == long, "{name:?}");
    }
    fixture.advance(long - short).await;
    for (key, _) in &keys {
        assert_eq!(key.get().await, None, "{:?}", key.key);
    }
}

/// The store's readings of time follow its own clock.
pub async fn the_clock_is_the_stores<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    key.claimed(&ClaimRequest {
        ttl: 10 * TTL,
        ..request()
    })
    .await;
    let before = key.get().await.expect("it is there").now;
    fixture.advance(TTL).await;
    let passed = key.get().await.expect("it is there").now.since(before);
    assert!(passed >= TTL && passed < TTL + MARGIN, "{passed:?}");
    let other = fixture.key("other");
    let token = other.claimed(&request()).await.lease.token;
    assert!(token.as_u64() >= (before + TTL).as_micros());
    assert!(other.record().await.created_at >= before + TTL);
}

// Checkpoints

/// S08: a renewal saves a checkpoint; one without leaves the last.
pub async fn a_checkpoint_stays_until_replaced<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let asked = request();
    let lease = key.claimed(&asked).await.lease;
    ok(key.renew(&lease, LEASE, Some(b"one")).await);
    ok(key.renew(&lease, LEASE, None).await);
    let saved = Bytes::from_static(b"one");
    assert_eq!(key.record().await.checkpoint, Some(saved.clone()));
    assert_eq!(key.claimed(&asked).await.checkpoint, Some(saved));
    ok(key.renew(&lease, LEASE, Some(b"\0two\xff")).await);
    let saved = Bytes::from_static(b"\0two\xff");
    assert_eq!(key.record().await.checkpoint, Some(saved));
    // Done is done: there is no progress to remember.
    ok(key.complete(&lease, &answer("done")).await);
    assert_eq!(key.record().await.checkpoint, None);
}

/// S08, P5: the next attempt gets the checkpoint, however the last one ended.
pub async fn a_checkpoint_outlives_failure_and_takeover<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.claimed(&request()).await.lease;
    ok(key.renew(&lease, LEASE, Some(b"half")).await);
    ok(key.fail(&lease).await);
    let half = Some(Bytes::from_static(b"half"));
    assert_eq!(key.record().await.checkpoint, half);

    let retry = key.claimed(&request()).await;
    assert_eq!((retry.entry, &retry.checkpoint), (Entry::Retry, &half));
    fixture.advance(LEASE + MARGIN).await;
    let takeover = key.claimed(&request()).await;
    assert_eq!(
        (takeover.entry, &takeover.checkpoint),
        (Entry::Takeover, &half)
    );
    ok(key.release(&takeover.lease).await);
    assert_eq!(key.claimed(&request()).await.checkpoint, half);
}

/// A checkpoint without bytes is one, and counts as progress.
pub async fn an_empty_checkpoint_is_a_checkpoint<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.claimed(&request()).await.lease;
    assert_eq!(key.record().await.checkpoint, None);
    ok(key.renew(&lease, LEASE, Some(b"")).await);
    assert_eq!(key.record().await.checkpoint, Some(Bytes::new()));
    ok(key.release(&lease).await);
    let next = key.claimed(&request()).await;
    assert_eq!(
        (next.entry, next.checkpoint),
        (Entry::Retry, Some(Bytes::new()))
    );
}

// Completion

/// P2, S01, S09: everyone who asks gets the recorded answer.
pub async fn a_completed_answer_stays_the_same<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let asked = request();
    let lease = key.claimed(&asked).await.lease;
    ok(key.complete(&lease, &answer("the answer")).await);
    let before = key.record().await;
    assert_eq!(before.state, State::Completed);
    assert_eq!(before.payload, Some(answer("the answer")));
    assert_eq!((before.token, before.attempt), (lease.token, 1));
    for take_over in [true, false] {
        for owner in [OwnerId::random(), asked.owner] {
            let asked = ClaimRequest {
                owner,
                take_over,
                ..asked
            };
            let expected = Claim::Completed(answer("the answer"));
            assert_eq!(key.claim(&asked).await, expected);
        }
    }
    assert_eq!(key.record().await, before);
}

/// P2: the answer that was recorded first stays, and the owner need not know that it was.
pub async fn a_completion_sent_again_changes_nothing<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.claimed(&request()).await.lease;
    ok(key.complete(&lease, &answer("first")).await);
    let before = key.record().await;
    fixture.advance(MARGIN).await;
    ok(key.complete(&lease, &answer("first")).await);
    ok(key.complete(&lease, &answer("second")).await);
    assert_eq!(key.record().await, before);
}

/// Recording late beats executing twice: an owner that was not superseded can complete.
pub async fn a_completion_is_good_after_the_lease<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.claimed(&request()).await.lease;
    fixture.advance(LEASE + MARGIN).await;
    ok(key.complete(&lease, &answer("late")).await);
    assert_eq!(
        key.claim(&request()).await,
        Claim::Completed(answer("late"))
    );
}

/// Recording late beats executing twice: a lost record is made anew from the proof.
pub async fn a_completion_is_good_where_the_record_is_lost<S: Store>(fixture: Fixture<S>) {
    let (forgotten, expired) = (fixture.key("forgotten"), fixture.key("expired"));
    forgotten.bring(Reached::Failed).await;
    let forgotten_lease = forgotten.claimed(&request()).await.lease;
    let expired_lease = expired.claimed(&request()).await.lease;
    assert!(forgotten.forget().await);
    fixture.advance(LEASE + TTL + MARGIN).await;
    for (key, lease, attempt) in [(forgotten, forgotten_lease, 2), (expired, expired_lease, 1)] {
        ok(key.complete(&lease, &answer("late")).await);
        let Snapshot { record, now } = key.get().await.expect("it is recorded");
        assert_eq!(record.state, State::Completed);
        assert_eq!(record.payload, Some(answer("late")));
        assert_eq!(record.fingerprint, lease.fingerprint);
        assert_eq!((record.owner, record.token), (lease.owner, lease.token));
        assert_eq!(record.attempt, attempt);
        assert!(now.since(record.created_at) < MARGIN);
        let left = record.expires_at.since(now);
        assert!(left <= TTL && left > TTL - MARGIN, "{left:?}");
        ok(key.complete(&lease, &answer("late")).await);
    }
}

/// An owner whose failure was recorded and that has the answer after all can complete, as long as
/// nobody else claimed.
pub async fn a_completion_is_good_after_a_failure<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.bring(Reached::Failed).await;
    ok(key.complete(&lease, &answer("after all")).await);
    assert_eq!(key.record().await.state, State::Completed);
    superseded(key.fail(&lease).await);
}

/// S23: code and bytes come back as they were given, whatever and however many they are.
pub async fn an_answer_comes_back_byte_for_byte<S: Store>(fixture: Fixture<S>) {
    let every_byte: Vec<u8> = (0..=255).collect();
    let large: Vec<u8> = (0..1_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for (name, code, bytes) in [
        ("one", 100, vec![0]),
        ("every", 599, every_byte),
        ("large", u16::MAX, large.clone()),
    ] {
        let key = fixture.key(name);
        let lease = key.claimed(&request()).await.lease;
        let payload = Payload::new(code, bytes.into());
        ok(key.complete(&lease, &payload).await);
        // Not with `assert_eq`, which would print a megabyte.
        assert!(key.claim(&request()).await == Claim::Completed(payload.clone()));
        assert!(key.record().await.payload == Some(payload));
    }
    // As checkpoints do.
    let key = fixture.key("checkpoint");
    let lease = key.claimed(&request()).await.lease;
    let saved = Bytes::from(large);
    let renewed = fixture
        .store
        .renew(&key.key, &lease, LEASE, TTL, Some(saved.clone()));
    ok(renewed.await);
    ok(key.fail(&lease).await);
    assert!(key.claimed(&request()).await.checkpoint == Some(saved));
}

/// S23: a large answer of every byte there is comes back whole.
pub async fn an_answer_of_eight_mebibytes_comes_back<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.claimed(&request()).await.lease;
    let bytes: Vec<u8> = (0..8_u32 << 20).map(|n| (n ^ n >> 8) as u8).collect();
    let payload = Payload::new(200, bytes.into());
    ok(key.complete(&lease, &payload).await);
    // Not with `assert_eq`, which would print it.
    assert!(key.claim(&request()).await == Claim::Completed(payload.clone()));
    assert!(key.record().await.payload == Some(payload));
}

/// U06: that an operation is completed is kept also where its answer is not.
pub async fn an_answer_that_cannot_be_replayed_is_kept_as_such<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.claimed(&request()).await.lease;
    ok(key.complete(&lease, &Payload::not_replayable(202)).await);
    let expected = Payload::not_replayable(202);
    assert_eq!(
        key.claim(&request()).await,
        Claim::Completed(expected.clone())
    );
    assert_eq!(key.record().await.payload, Some(expected.clone()));
    ok(key.complete(&lease, &answer("now it is there")).await);
    assert_eq!(key.record().await.payload, Some(expected));
}

// Failure and release

/// S04, S30, U03: a failed key can be claimed at once, and the next attempt knows of the last.
pub async fn a_failed_key_is_claimed_at_once<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let first = key.claimed(&request()).await;
    ok(key.fail(&first.lease).await);
    let Snapshot { record, now } = key.get().await.expect("it is there");
    assert_eq!(record.state, State::Failed);
    assert_eq!((record.owner, record.attempt), (first.lease.owner, 1));
    let left = record.expires_at.since(now);
    assert!(left <= TTL && left > TTL - MARGIN, "{left:?}");
    let asked = ClaimRequest {
        take_over: false,
        ..request()
    };
    let second = key.claimed(&asked).await;
    assert_eq!((second.entry, second.lease.attempt), (Entry::Retry, 2));
    ok(key.fail(&second.lease).await);
    // Nor is the last owner itself kept out.
    let third = key.claimed(&asked).await;
    assert_eq!((third.entry, third.lease.attempt), (Entry::Retry, 3));
}

/// A failure whose answer was lost can be sent again, also where the record is gone.
pub async fn a_failure_sent_again_changes_nothing<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.bring(Reached::Failed).await;
    let before = key.record().await;
    fixture.advance(MARGIN).await;
    ok(key.fail(&lease).await);
    ok(key.release(&lease).await);
    assert_eq!(key.record().await, before);
    fixture.advance(TTL).await;
    ok(key.fail(&lease).await);
    assert_eq!(key.get().await, None);
}

/// P2: a completed record is not failed any more, not by its owner either.
pub async fn a_failure_does_not_undo_a_completion<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.bring(Reached::Completed).await;
    let before = key.record().await;
    superseded(key.fail(&lease).await);
    assert_eq!(key.record().await, before);
}

/// S22: a released key is free at once, for any payload.
pub async fn a_released_key_is_free<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.bring(Reached::InProgress).await;
    ok(key.release(&lease).await);
    assert_eq!(key.get().await, None);
    ok(key.release(&lease).await);
    ok(key.fail(&lease).await);
    assert_eq!(key.get().await, None);
    let asked = ClaimRequest {
        fingerprint: fingerprint_of("corrected"),
        ..request()
    };
    let next = key.claimed(&asked).await;
    assert_eq!((next.entry, next.lease.attempt), (Entry::First, 1));

    // Late, too.
    fixture.advance(LEASE + MARGIN).await;
    ok(key.release(&next.lease).await);
    assert_eq!(key.get().await, None);
}

/// A later attempt, and one that saved its progress, cannot say that nothing was done.
pub async fn a_release_after_progress_is_a_failure<S: Store>(fixture: Fixture<S>) {
    let retried = fixture.key("retried");
    retried.bring(Reached::Failed).await;
    let taken = fixture.key("taken over");
    taken.bring(Reached::Abandoned).await;
    let saved = fixture.key("saved");
    for (key, attempt) in [(retried, 2), (taken, 2), (saved, 1)] {
        let lease = key.claimed(&request()).await.lease;
        if attempt == 1 {
            ok(key.renew(&lease, LEASE, Some(b"half")).await);
        }
        ok(key.release(&lease).await);
        let before = key.record().await;
        assert_eq!((before.state, before.attempt), (State::Failed, attempt));
        ok(key.release(&lease).await);
        assert_eq!(key.record().await, before);
        let other = ClaimRequest {
            fingerprint: fingerprint_of("other"),
            ..request()
        };
        assert_eq!(key.claim(&other).await, Claim::Mismatch);
        let next = key.claimed(&request()).await;
        assert_eq!(
            (next.entry, next.lease.attempt),
            (Entry::Retry, attempt + 1)
        );
    }
}

/// P2: a completed record is not released any more, not by its owner either.
pub async fn a_release_does_not_undo_a_completion<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.bring(Reached::Completed).await;
    let before = key.record().await;
    superseded(key.release(&lease).await);
    assert_eq!(key.record().await, before);
}

// Giving back

/// S22: a first claim that is given back was never there: its key is free, for any payload.
pub async fn a_first_claim_given_back_frees_its_key<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.bring(Reached::InProgress).await;
    ok(key.give_back(&lease).await);
    assert_eq!(key.get().await, None);
    let asked = ClaimRequest {
        fingerprint: fingerprint_of("corrected"),
        take_over: false,
        ..request()
    };
    let next = key.claimed(&asked).await;
    assert_eq!((next.entry, next.lease.attempt), (Entry::First, 1));

    // One that saved its progress was there.
    ok(key.renew(&next.lease, LEASE, Some(b"half")).await);
    ok(key.give_back(&next.lease).await);
    assert_eq!(key.record().await.state, State::Failed);
}

/// P5: a retry that is given back leaves the key failed, and the next attempt is a retry that
/// knows as much.
pub async fn a_retry_given_back_is_failed_again<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.bring(Reached::InProgress).await;
    ok(key.renew(&lease, LEASE, Some(b"half")).await);
    ok(key.fail(&lease).await);
    let half = Some(Bytes::from_static(b"half"));
    let asked = ClaimRequest {
        take_over: false,
        ..request()
    };
    for attempt in 2..4 {
        let before = key.record().await;
        fixture.advance(MARGIN).await;
        let retry = key.claimed(&request()).await;
        assert_eq!((retry.entry, retry.lease.attempt), (Entry::Retry, attempt));
        ok(key.give_back(&retry.lease).await);
        let Snapshot { record, now } = key.get().await.expect("it is there");
        assert_eq!((record.state, record.attempt), (State::Failed, attempt));
        assert_eq!(record.token, retry.lease.token);
        assert_eq!(record.checkpoint, half);
        assert_eq!(record.created_at, before.created_at);
        assert_eq!(record.fingerprint, before.fingerprint);
        let left = record.expires_at.since(now);
        assert!(left <= TTL && left > TTL - MARGIN, "{left:?}");
    }
    let other = ClaimRequest {
        fingerprint: fingerprint_of("other"),
        ..request()
    };
    assert_eq!(key.claim(&other).await, Claim::Mismatch);
    let next = key.claimed(&asked).await;
    assert_eq!((next.entry, next.lease.attempt), (Entry::Retry, 4));
    assert_eq!(next.checkpoint, half);
}

/// P5: a takeover that is given back leaves the key abandoned, by nobody any more: the next
/// attempt takes over at once and knows as much, or is refused.
pub async fn a_takeover_given_back_is_abandoned_again<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.bring(Reached::InProgress).await;
    ok(key.renew(&lease, Duration::ZERO, Some(b"half")).await);
    let half = Some(Bytes::from_static(b"half"));
    let meek = ClaimRequest {
        take_over: false,
        ..request()
    };
    for attempt in 2..4 {
        let before = key.record().await;
        fixture.advance(MARGIN).await;
        let taken = key.claimed(&request()).await;
        assert_eq!(
            (taken.entry, taken.lease.attempt),
            (Entry::Takeover, attempt)
        );
        ok(key.give_back(&taken.lease).await);
        let found = key.get().await.expect("it is there");
        assert!(found.is_abandoned());
        let Snapshot { record, now } = found;
        assert_eq!(record.owner, OwnerId::NOBODY);
        assert_eq!((record.attempt, record.entry), (attempt, Entry::Takeover));
        assert_eq!(record.token, taken.lease.token);
        assert_eq!((&record.checkpoint, &record.payload), (&half, &None));
        assert_eq!(record.created_at, before.created_at);
        assert_eq!(record.fingerprint, before.fingerprint);
        let left = record.expires_at.since(now);
        assert!(left <= TTL && left > TTL - MARGIN, "{left:?}");
        assert_eq!(key.claim(&meek).await, Claim::Abandoned);
        assert_eq!(key.record().await, record);
    }
    let next = key.claimed(&request()).await;
    assert_eq!((next.entry, next.lease.attempt), (Entry::Takeover, 4));
    assert_eq!(next.checkpoint, half);
    ok(key.complete(&next.lease, &answer("at last")).await);
}

/// Brings a key to a claim with this entry.
async fn entered<'a, S: Store>(fixture: &'a Fixture<S>, entry: Entry) -> (Key<'a, S>, Lease) {
    let key = fixture.key(&format!("{entry:?}"));
    match entry {
        Entry::First => {}
        Entry::Retry => {
            key.bring(Reached::Failed).await;
        }
        Entry::Takeover => {
            key.bring(Reached::Abandoned).await;
        }
    }
    let claimed = key.claimed(&request()).await;
    assert_eq!(claimed.entry, entry);
    (key, claimed.lease)
}

const ENTRIES: [Entry; 3] = [Entry::First, Entry::Retry, Entry::Takeover];

/// A claim can be given back after its lease ended, as long as nobody took over.
pub async fn a_claim_is_given_back_late<S: Store>(fixture: Fixture<S>) {
    for entry in ENTRIES {
        let (key, lease) = entered(&fixture, entry).await;
        ok(key.renew(&lease, Duration::ZERO, None).await);
        fixture.advance(MARGIN).await;
        ok(key.give_back(&lease).await);
        assert_eq!(key.claimed(&request()).await.entry, entry);
        // And too late once somebody else has it.
        key.changes_nothing(&lease).await;
    }
}

/// A claim whose giving back was not answered is given back again, and nothing changes.
pub async fn giving_back_again_changes_nothing<S: Store>(fixture: Fixture<S>) {
    for entry in ENTRIES {
        let (key, lease) = entered(&fixture, entry).await;
        ok(key.give_back(&lease).await);
        let before = key.get().await.map(|found| found.record);
        fixture.advance(MARGIN).await;
        for _ in 0..2 {
            let again = key.give_back(&lease).await;
            match entry {
                Entry::First | Entry::Retry => ok(again),
                // It is nobody's now.
                Entry::Takeover => superseded(again),
            }
            let now = key.get().await.map(|found| found.record);
            assert_eq!(now, before, "{entry:?}");
        }
    }
    // Also where the record is gone.
    fixture.advance(LEASE + TTL + MARGIN).await;
    for entry in ENTRIES {
        let (key, lease) = entered(&fixture, entry).await;
        assert!(key.forget().await);
        ok(key.give_back(&lease).await);
        assert_eq!(key.get().await, None);
    }
}

/// P2: what its owner completed or failed is not given back any more.
pub async fn giving_back_does_not_undo_an_end<S: Store>(fixture: Fixture<S>) {
    for entry in ENTRIES {
        let (key, lease) = entered(&fixture, entry).await;
        ok(key.fail(&lease).await);
        let before = key.record().await;
        fixture.advance(MARGIN).await;
        ok(key.give_back(&lease).await);
        assert_eq!(key.record().await, before, "{entry:?}");

        ok(key.complete(&lease, &answer("after all")).await);
        let before = key.record().await;
        superseded(key.give_back(&lease).await);
        assert_eq!(key.record().await, before, "{entry:?}");
    }
}

/// P6: nobody gives back the claim of another, whatever its state.
pub async fn a_stranger_gives_nothing_back<S: Store>(fixture: Fixture<S>) {
    let (first, retry, takeover) = (
        entered(&fixture, Entry::First).await,
        entered(&fixture, Entry::Retry).await,
        entered(&fixture, Entry::Takeover).await,
    );
    for (key, lease) in [first, retry, takeover] {
        let stranger = Lease {
            owner: OwnerId::random(),
            ..lease
        };
        key.changes_nothing(&stranger).await;
        ok(key.renew(&lease, LEASE, None).await);
    }
    for state in Reached::ALL {
        let key = fixture.key(&state.name());
        let stranger = Lease {
            owner: OwnerId::random(),
            ..key.bring(state).await
        };
        key.changes_nothing(&stranger).await;
    }
}

/// P6, U12: of a claim that was given back, a renewal in flight revives nothing; and after a
/// takeover nothing at all is taken from the giver, nor from the one it took over from.
pub async fn what_was_given_back_is_not_revived<S: Store>(fixture: Fixture<S>) {
    for entry in [Entry::First, Entry::Retry] {
        let (key, lease) = entered(&fixture, entry).await;
        ok(key.give_back(&lease).await);
        let before = key.get().await.map(|found| found.record);
        for checkpoint in [None, Some(&b"late"[..])] {
            gone(key.renew(&lease, LEASE, checkpoint).await);
            let now = key.get().await.map(|found| found.record);
            assert_eq!(now, before, "{entry:?}");
        }
        assert_eq!(key.claimed(&request()).await.entry, entry);
    }

    let key = fixture.key("k");
    let silent = key.bring(Reached::Abandoned).await;
    let giver = key.claimed(&request()).await.lease;
    ok(key.give_back(&giver).await);
    for stale in [&giver, &silent] {
        key.changes_nothing(stale).await;
    }
    let lease = key.claimed(&request()).await.lease;
    for stale in [&giver, &silent] {
        key.changes_nothing(stale).await;
    }
    ok(key.complete(&lease, &answer("own")).await);
    key.changes_nothing(&giver).await;
}

// Stale owners

/// P6, U12: an owner that was taken over cannot touch the new one's record.
pub async fn a_stale_owner_changes_nothing_while_another_runs<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let stale = key.claimed(&request()).await.lease;
    fixture.advance(LEASE + MARGIN).await;
    let lease = key.claimed(&request()).await.lease;
    key.changes_nothing(&stale).await;
    // The same after a retry as after a takeover.
    ok(key.fail(&lease).await);
    let retry = key.claimed(&request()).await.lease;
    key.changes_nothing(&stale).await;
    key.changes_nothing(&lease).await;
    ok(key.complete(&retry, &answer("of the retry")).await);
}

/// P6, U12: an owner that was taken over cannot replace the recorded answer.
pub async fn a_stale_owner_changes_nothing_once_another_completed<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let stale = key.bring(Reached::Abandoned).await;
    let lease = key.claimed(&request()).await.lease;
    ok(key.complete(&lease, &answer("newer")).await);
    key.changes_nothing(&stale).await;
    assert_eq!(
        key.claim(&request()).await,
        Claim::Completed(answer("newer"))
    );
}

/// P6: an owner that was taken over cannot answer for the one that failed after it.
pub async fn a_stale_owner_changes_nothing_once_another_failed<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let stale = key.bring(Reached::Abandoned).await;
    let lease = key.claimed(&request()).await.lease;
    ok(key.fail(&lease).await);
    key.changes_nothing(&stale).await;
}

/// P6, U12: an owner whose record expired cannot touch the one that came after.
pub async fn a_stale_owner_changes_nothing_after_expiry<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let stale = key.claimed(&request()).await.lease;
    fixture.advance(LEASE + TTL + MARGIN).await;
    let lease = key.claimed(&request()).await.lease;
    assert_eq!(lease.attempt, 1);
    key.changes_nothing(&stale).await;
    ok(key.complete(&lease, &answer("own")).await);
    key.changes_nothing(&stale).await;
}

/// P6: every new claim has a greater token than any before it, also over the end of a record.
pub async fn tokens_grow_whatever_happens<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let mut last = FencingToken::from_u64(0);
    let mut grown = |lease: Lease, after: &str| {
        assert!(
            lease.token > last,
            "{} after {after}: {}",
            lease.token,
            last
        );
        last = lease.token;
        lease
    };
    for _ in 0..3 {
        let lease = grown(key.claimed(&request()).await.lease, "nothing");
        ok(key.fail(&lease).await);
        let lease = grown(key.claimed(&request()).await.lease, "failure");
        ok(key.renew(&lease, Duration::ZERO, None).await);
        let lease = grown(key.claimed(&request()).await.lease, "silence");
        ok(key.give_back(&lease).await);
        let lease = grown(
            key.claimed(&request()).await.lease,
            "giving a takeover back",
        );
        ok(key.complete(&lease, &answer("x")).await);
        assert!(key.forget().await);
        let lease = grown(key.claimed(&request()).await.lease, "forgetting");
        ok(key.give_back(&lease).await);
        let lease = grown(
            key.claimed(&request()).await.lease,
            "giving a first claim back",
        );
        ok(key.release(&lease).await);
        let lease = grown(key.claimed(&request()).await.lease, "release");
        ok(key.complete(&lease, &answer("x")).await);
        fixture.advance(TTL + MARGIN).await;
        let lease = grown(key.claimed(&request()).await.lease, "expiry");
        ok(key.release(&lease).await);
    }
}

/// S23: a record tells when its key was first claimed, over all attempts.
pub async fn the_first_claim_is_remembered<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.bring(Reached::Failed).await;
    let created_at = key.record().await.created_at;
    assert_eq!(lease.attempt, 1);
    fixture.advance(MARGIN).await;
    let lease = key.claimed(&request()).await.lease;
    assert_eq!(key.record().await.created_at, created_at);
    fixture.advance(LEASE + MARGIN).await;
    ok(key.renew(&lease, Duration::ZERO, None).await);
    let lease = key.claimed(&request()).await.lease;
    ok(key.complete(&lease, &answer("x")).await);
    let record = key.record().await;
    assert_eq!((record.created_at, record.attempt), (created_at, 3));
}

// For operators

/// Reading a record does not keep it.
pub async fn getting_changes_nothing<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    assert_eq!(key.get().await, None);
    key.bring(Reached::Completed).await;
    let first = key.get().await.expect("it is there");
    fixture.advance(TTL / 2).await;
    let second = key.get().await.expect("it is there");
    assert_eq!(second.record, first.record);
    assert!(second.now > first.now);
    fixture.advance(TTL / 2).await;
    assert_eq!(key.get().await, None);
}

/// Forgetting removes a record in any state, and tells whether there was one.
pub async fn forgetting_removes_in_every_state<S: Store>(fixture: Fixture<S>) {
    for state in Reached::ALL {
        let key = fixture.key(&state.name());
        assert!(!key.forget().await);
        key.bring(state).await;
        assert!(key.forget().await, "{state:?}");
        assert_eq!(key.get().await, None);
        assert!(!key.forget().await);
        let next = key.claimed(&request()).await;
        assert_eq!((next.entry, next.lease.attempt), (Entry::First, 1));
    }
    fixture.advance(LEASE + TTL + MARGIN).await;
    for state in Reached::ALL {
        assert!(!fixture.key(&state.name()).forget().await, "expired");
    }
}

/// S06: each record has its own time to live.
pub async fn short_times_to_live_pass_beside_long_ones<S: Store>(fixture: Fixture<S>) {
    let store = &fixture.store;
    let day = 24 * TTL;
    let keys = [day, TTL, 2 * day, MARGIN].map(|ttl| (fixture.key(&format!("{ttl:?}")), ttl));
    for (key, ttl) in &keys {
        let lease = key.claimed(&request()).await.lease;
        let payload = answer("kept");
        ok(store.complete(&key.key, &lease, &payload, *ttl).await);
    }
    let mut passed = Duration::ZERO;
    for until in [2 * MARGIN, 2 * TTL, day + TTL, 2 * day + TTL] {
        fixture.advance(until - passed).await;
        passed = until;
        for (key, ttl) in &keys {
            assert_eq!(key.get().await.is_some(), *ttl > passed, "{ttl:?}");
        }
    }
}

/// S06: records that expired, many of them, are absent to everyone, while the store removes them
/// in the course of other keys' operations.
pub async fn heaps_of_expired_records_do_no_harm<S: Store>(fixture: Fixture<S>) {
    let names: Vec<_> = (0..200).map(|n| n.to_string()).collect();
    for name in &names {
        fixture.key(name).bring(Reached::Completed).await;
    }
    fixture.advance(TTL - MARGIN).await;
    let alive = fixture.key("alive");
    alive.bring(Reached::Completed).await;
    fixture.advance(2 * MARGIN).await;
    for _ in 0..100 {
        let found = alive.claim(&request()).await;
        assert_eq!(found, Claim::Completed(answer("answer")));
    }
    for name in &names {
        let key = fixture.key(name);
        assert_eq!(key.get().await, None);
        assert_eq!(key.claimed(&request()).await.entry, Entry::First);
    }
    let found = alive.claim(&request()).await;
    assert_eq!(found, Claim::Completed(answer("answer")));
}

// Waiting

/// S03: there is nothing to wait for where the claim has ended, in whatever way.
pub async fn a_wait_returns_at_once_if_it_is_over<S: Store>(fixture: Fixture<S>) {
    let absent = fixture.key("absent");
    let none = soon(absent.wait(FencingToken::from_u64(7))).await;
    assert_eq!(none, None);
    for state in [
        Reached::Abandoned,
        Reached::Completed,
        Reached::Failed,
        Reached::GivenBack,
    ] {
        let key = fixture.key(&state.name());
        let lease = key.bring(state).await;
        let found = soon(key.wait(lease.token)).await.expect("it is there");
        assert_eq!(found.record, key.record().await, "{state:?}");
    }
    let taken = fixture.key("taken over");
    let stale = taken.bring(Reached::Abandoned).await;
    let lease = taken.claimed(&request()).await.lease;
    let found = soon(taken.wait(stale.token)).await.expect("it is there");
    assert_eq!(found.record.token, lease.token);
}

/// S03, P1: a wait ends when the claim does: by completion, failure, release, giving back,
/// forgetting, a renewal to zero, and a takeover.
pub async fn a_wait_ends_with_each_kind_of_end<S: Store>(fixture: Fixture<S>) {
    for end in [
        "complete",
        "fail",
        "release",
        "forget",
        "renew",
        "take over",
    ] {
        let key = fixture.key(end);
        let lease = key.bring(Reached::InProgress).await;
        let mut waiting = pin!(key.wait(lease.token));
        settle(waiting.as_mut()).await;
        match end {
            "complete" => ok(key.complete(&lease, &answer("done")).await),
            "fail" => ok(key.fail(&lease).await),
            "release" => ok(key.release(&lease).await),
            "forget" => assert!(key.forget().await),
            _ => ok(key.renew(&lease, Duration::ZERO, None).await),
        }
        if end == "take over" {
            key.claimed(&request()).await;
        }
        let found = soon(waiting).await.map(|found| found.record);
        let now = key.get().await.map(|found| found.record);
        // It may have looked between the end of the lease and the takeover.
        let between = end == "take over"
            && found
                .as_ref()
                .is_some_and(|record| record.token == lease.token);
        assert!(between || found == now, "{end}: {found:?}, not {now:?}");
    }
    for entry in ENTRIES {
        let (key, lease) = entered(&fixture, entry).await;
        let mut waiting = pin!(key.wait(lease.token));
        settle(waiting.as_mut()).await;
        ok(key.give_back(&lease).await);
        let found = soon(waiting).await.map(|found| found.record);
        let now = key.get().await.map(|found| found.record);
        assert_eq!(found, now, "{entry:?}");
    }
}

/// P5: a wait ends with the lease, though nobody does anything.
pub async fn a_wait_ends_with_the_lease<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let asked = ClaimRequest {
        lease: Duration::from_millis(200),
        ..request()
    };
    let lease = key.claimed(&asked).await.lease;
    let found = soon(key.wait(lease.token)).await.expect("it is there");
    assert!(found.is_abandoned());

    // Also where the record ends with it.
    let asked = ClaimRequest {
        ttl: Duration::ZERO,
        ..asked
    };
    let key = fixture.key("no time to live");
    let lease = key.claimed(&asked).await.lease;
    assert_eq!(soon(key.wait(lease.token)).await, None);
}

/// P1: a wait does not end with a lease that was renewed, and ends with the one that was cut short.
pub async fn a_wait_goes_on_over_a_renewal<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("longer");
    let asked = ClaimRequest {
        lease: Duration::from_secs(2),
        ..request()
    };
    let lease = key.claimed(&asked).await.lease;
    let mut waiting = pin!(key.wait(lease.token));
    settle(waiting.as_mut()).await;
    ok(key.renew(&lease, LEASE, Some(b"half")).await);
    settle(waiting.as_mut()).await;
    ok(key.complete(&lease, &answer("done")).await);
    let found = soon(waiting).await.expect("it is there");
    assert_eq!(found.record.payload, Some(answer("done")));

    let key = fixture.key("shorter");
    let lease = key.bring(Reached::InProgress).await;
    let mut waiting = pin!(key.wait(lease.token));
    settle(waiting.as_mut()).await;
    ok(key.renew(&lease, Duration::from_millis(200), None).await);
    let found = soon(waiting).await.expect("it is there");
    assert!(found.is_abandoned());
}

/// S03: an end that falls anywhere beside the start of a wait is not missed.
pub async fn a_wait_misses_no_end<S: Store>(fixture: Fixture<S>) {
    for round in 0..20 {
        let key = fixture.key(&round.to_string());
        let lease = key.bring(Reached::InProgress).await;
        let end = async {
            for _ in 0..round {
                yield_now().await;
            }
            ok(key.complete(&lease, &answer("done")).await);
        };
        let (found, ()) = tokio::join!(soon(key.wait(lease.token)), end);
        let found = found.expect("it is there");
        assert_eq!(found.record.payload, Some(answer("done")), "{round}");
    }
}

/// U29: a waiter that gives up changes neither the record nor what other waiters see.
pub async fn a_dropped_wait_changes_nothing<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.bring(Reached::InProgress).await;
    let before = key.record().await;
    let mut stays = pin!(key.wait(lease.token));
    settle(stays.as_mut()).await;
    for _ in 0..10 {
        let mut leaves = Box::pin(key.wait(lease.token));
        settle(leaves.as_mut()).await;
    }
    assert_eq!(key.record().await, before);
    let held = key.claim(&request()).await;
    assert!(matches!(held, Claim::InProgress { .. }), "{held:?}");
    settle(stays.as_mut()).await;
    ok(key.complete(&lease, &answer("done")).await);
    let found = soon(stays).await.expect("it is there");
    assert_eq!(found.record.payload, Some(answer("done")));
}

/// U30: everyone who waits is woken.
pub async fn a_hundred_waits_end_together<S: Store>(fixture: Fixture<S>) {
    let key = fixture.key("k");
    let lease = key.bring(Reached::InProgress).await;
    let waits = futures::future::join_all((0..100).map(|_| key.wait(lease.token)));
    let mut waits = pin!(waits);
    settle(waits.as_mut()).await;
    // They go on meanwhile: one that is not polled may keep a place in a queue to the server.
    let end = async { ok(key.complete(&lease, &answer("done")).await) };
    let (all, ()) = tokio::join!(soon(waits), end);
    for found in all {
        let found = found.expect("it is there");
        assert_eq!(found.record.payload, Some(answer("done")));
    }
}

/// U30: those who wait for many keys are woken each by its own, and go on with the others.
pub async fn waits_end_each_with_its_own_key<S: Store>(fixture: Fixture<S>) {
    let mut claims = Vec::new();
    for n in 0..10 {
        let key = fixture.key(&n.to_string());
        let lease = key.bring(Reached::InProgress).await;
        claims.push((n, key, lease));
    }
    let (ended, mut endings) = tokio::sync::mpsc::unbounded_channel();
    // All are polled together: one that is not might keep a connection from the others.
    let waits = claims.iter().cycle().take(30).map(async |(n, key, lease)| {
        let found = key.wait(lease.token).await.expect("it is there");
        assert_eq!(found.record.payload, Some(answer("done")));
        ended.send(*n).expect("somebody listens");
    });
    let mut waits = pin!(futures::future::join_all(waits));
    settle(waits.as_mut()).await;
    // Not in the order in which they began.
    let ends = async {
        for (n, key, lease) in claims.iter().rev() {
            ok(key.complete(lease, &answer("done")).await);
            for _ in 0..3 {
                assert_eq!(soon(endings.recv()).await, Some(*n));
            }
        }
    };
    tokio::join!(waits, ends);
}

// Records that cannot be read

fn corrupt<T: fmt::Debug>(result: Result<T, StoreError>, what: &str) {
    let Err(error @ StoreError::Corrupt { .. }) = &result else {
        panic!("{what} should tell that the record cannot be read: {result:?}");
    };
    let mut told = format!("{error} {error:?}");
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        told.push_str(&format!(" {source} {source:?}"));
        next = source.source();
    }
    for secret in ["unreadable-", "the-answer", "the-progress"] {
        assert!(!told.contains(secret), "{what} tells a secret: {told}");
    }
}

impl<S: Store> Key<'_, S> {
    /// Brings the key into a state and makes its record unreadable.
    async fn bring_unreadable(&self, state: Reached, how: Corruption) -> Lease {
        let lease = self.bring(state).await;
        if state == Reached::InProgress {
            ok(self.renew(&lease, LEASE, Some(b"the-progress")).await);
        }
        self.corrupt(how).await;
        lease
    }

    async fn corrupt(&self, how: Corruption) {
        let Corrupt::By(corrupt) = &self.fixture.corrupt else {
            panic!("nothing can be unreadable");
        };
        corrupt(self.key.clone(), how).await;
    }
}

async fn unreadable<S: Store>(fixture: &Fixture<S>, how: Corruption) {
    if !fixture.corruptions().contains(&how) {
        return;
    }
    for state in Reached::ALL {
        let key = fixture.key(&format!("unreadable-{state:?}"));
        let lease = key.bring_unreadable(state, how).await;
        let (store, name) = (key.store(), &key.key);
        let stranger = Lease {
            owner: OwnerId::random(),
            ..lease
        };
        for proof in [&lease, &stranger] {
            for body in ["body", "other"] {
                let asked = ClaimRequest {
                    fingerprint: fingerprint_of(body),
                    owner: proof.owner,
                    ..request()
                };
                let meek = ClaimRequest {
                    take_over: false,
                    ..asked
                };
                corrupt(store.claim(name, &asked).await, "claim");
                corrupt(store.claim(name, &meek).await, "claim without takeover");
            }
            corrupt(key.renew(proof, LEASE, None).await, "renew");
            let saved = key.renew(proof, LEASE, Some(b"the-progress"));
            corrupt(saved.await, "renew with a checkpoint");
            corrupt(key.fail(proof).await, "fail");
            corrupt(key.release(proof).await, "release");
            corrupt(key.give_back(proof).await, "give_back");
            let secret = answer("the-answer");
            corrupt(key.complete(proof, &secret).await, "complete");
            corrupt(store.get(name).await, "get");
            corrupt(soon(store.wait(name, proof.token)).await, "wait");
        }
        // Nothing of all that has replaced or removed it.
        corrupt(store.get(name).await, "get");
    }
}

/// U18: a record that ends too early is an error of every operation, and stays as it is.
pub async fn a_record_cut_short_is_an_error<S: Store>(fixture: Fixture<S>) {
    unreadable(&fixture, Corruption::CutShort).await;
}

/// U18: so is a record of a version that this build does not know.
pub async fn a_record_of_an_unknown_version_is_an_error<S: Store>(fixture: Fixture<S>) {
    unreadable(&fixture, Corruption::UnknownVersion).await;
}

/// U18: and a record that makes no sense.
pub async fn a_garbled_record_is_an_error<S: Store>(fixture: Fixture<S>) {
    unreadable(&fixture, Corruption::Garbled).await;
}

/// U18: an operator can remove an unreadable record, whose key is then as good as new.
pub async fn an_unreadable_record_is_forgotten<S: Store>(fixture: Fixture<S>) {
    for &how in fixture.corruptions() {
        for state in Reached::ALL {
            let key = fixture.key(&format!("{how:?} {state:?}"));
            key.bring_unreadable(state, how).await;
            assert!(key.forget().await, "{:?}", key.key);
            assert_eq!(key.get().await, None);
            assert!(!key.forget().await);
            let next = key.claimed(&request()).await;
            assert_eq!((next.entry, next.lease.attempt), (Entry::First, 1));
            assert_eq!(next.checkpoint, None);
            ok(key.complete(&next.lease, &answer("as new")).await);
        }
    }
}

/// U18: the operations of other keys, which may come across an unreadable record in search of expired
/// ones, go on.
pub async fn an_unreadable_record_does_others_no_harm<S: Store>(fixture: Fixture<S>) {
    for &how in fixture.corruptions() {
        for state in Reached::ALL {
            let key = fixture.key(&format!("{how:?} {state:?}"));
            key.bring_unreadable(state, how).await;
        }
    }
    for round in 0..2 {
        for n in 0..50 {
            let key = fixture.key(&format!("other {round} {n}"));
            let lease = key.bring(Reached::Abandoned).await;
            let next = key.claimed(&request()).await.lease;
            superseded(key.complete(&lease, &answer("stale")).await);
            ok(key.complete(&next, &answer("own")).await);
            assert_eq!(key.claim(&request()).await, Claim::Completed(answer("own")));
        }
        // Then all of them have expired.
        fixture.advance(LEASE + TTL + MARGIN).await;
    }
}
