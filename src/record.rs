//! What a store keeps for an operation, and what it answers: the [`Record`], the [`Claim`] and
//! the [`Lease`].
//!
//! Nothing here changes by itself; [`machine`](crate::machine) says how a record may change.

use std::{
    cell::Cell,
    fmt,
    time::{Duration, SystemTime},
};

use bytes::Bytes;

use crate::fingerprint::Fingerprint;

/// A reading of a store's clock: microseconds since the Unix epoch.
///
/// A store reads its own clock, never its client's. Arithmetic saturates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Later than any reading.
    pub(crate) const MAX: Self = Self(u64::MAX);

    /// From microseconds since the Unix epoch.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// How long it is from `earlier` until this, or zero if this is not later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }
}

/// Who claimed a record: 128 bits, new for each request that claims.
///
/// A store changes a claimed record only for its owner. Claiming again under the same owner gives
/// the same claim, so a store call whose answer was lost may be sent again.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OwnerId([u64; 2]);

impl OwnerId {
    /// The owner of a record that was given back: no claimant has this id.
    pub const NOBODY: Self = Self([0; 2]);

    /// A new one: 64 bits that count up from a random number of this thread, and 64 random bits of
    /// this thread, combined with the time.
    ///
    /// The operating system is asked for random numbers once a second at most, since that takes
    /// longer than a replay. It is asked again and the time is in it because a virtual machine that
    /// is restored twice from one snapshot has the same numbers twice.
    ///
    /// # Panics
    ///
    /// If the operating system has no random numbers.
    #[must_use]
    pub fn random() -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let drawn = DRAWN.try_with(|drawn| {
            let numbers = match drawn.get() {
                Some(numbers) if numbers.second == now.as_secs() => numbers,
                Some(_) | None => Numbers::draw(now),
            };
            let count = numbers.count.wrapping_add(1);
            drawn.set(Some(Numbers { count, ..numbers }));
            numbers
        });
        // The thread is about to end, and its numbers with it.
        let Numbers { count, fixed, .. } = drawn.unwrap_or_else(|_| Numbers::draw(now));
        Self([count, fixed ^ now.as_nanos() as u64])
    }

    /// From what a store kept, or, in a test, from a number of your choice.
    #[must_use]
    pub const fn from_u128(id: u128) -> Self {
        Self([(id >> 64) as u64, id as u64])
    }

    /// For a store to keep.
    #[must_use]
    pub const fn as_u128(self) -> u128 {
        let [high, low] = self.0;
        (high as u128) << 64 | low as u128
    }
}

thread_local! {
    static DRAWN: Cell<Option<Numbers>> = const { Cell::new(None) };
}

/// What owners are made of, good for one second.
#[derive(Clone, Copy)]
struct Numbers {
    second: u64,
    count: u64,
    fixed: u64,
}

impl Numbers {
    fn draw(now: Duration) -> Self {
        let random = || getrandom::u64().expect("the operating system gives random numbers");
        Self {
            second: now.as_secs(),
            count: random(),
            fixed: random(),
        }
    }
}

/// 32 lower-case hex digits.
impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.as_u128())
    }
}

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnerId({self})")
    }
}

/// A number that grows with every claim of a key.
///
/// Send it along with calls to systems that can remember the greatest token they saw and refuse a
/// smaller one: they are then safe from a process that was frozen beyond its lease and woke up
/// (P6 protects the record, and only the record). It is `max(previous + 1, store time in µs)`, so
/// it also grows over the end of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(u64);

impl FencingToken {
    /// From what a store kept.
    #[must_use]
    pub const fn from_u64(token: u64) -> Self {
        Self(token)
    }

    /// The number.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A recorded answer: a code that a person can read, and bytes that only the caller of the store
/// understands.
///
/// Empty bytes mean that the operation counts as completed and its answer cannot be given again:
/// it was too large, or a stream. An encoded answer is never empty.
///
/// A store keeps `bytes` as they are given, so they must not be a slice of a larger buffer: it
/// would be kept alive with them (U10).
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    /// The HTTP status, or what stands for it elsewhere.
    pub code: u16,
    /// The encoded answer.
    pub bytes: Bytes,
}

impl Payload {
    /// An answer that can be given again. `bytes` must not be empty.
    #[must_use]
    pub fn new(code: u16, bytes: Bytes) -> Self {
        debug_assert!(!bytes.is_empty(), "an encoded answer is never empty");
        Self { code, bytes }
    }

    /// An answer that cannot be given again.
    #[must_use]
    pub const fn not_replayable(code: u16) -> Self {
        Self {
            code,
            bytes: Bytes::new(),
        }
    }

    /// Whether the answer can be given again.
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        !self.bytes.is_empty()
    }
}

/// The code and the length: an answer may hold anything (U19).
impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload")
            .field("code", &self.code)
            .field("len", &self.bytes.len())
            .finish()
    }
}

/// Where a record stands. A record that is absent or expired has no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Claimed. Once its lease has ended it is *abandoned*: still there, and claimable.
    InProgress,
    /// Done, for good.
    Completed,
    /// The attempt ended and its effect is unknown; claimable at once.
    Failed,
}

/// What a store keeps under one [`StoreKey`](crate::StoreKey).
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it stands.
    pub state: State,
    /// Of the request that claimed it first.
    pub fingerprint: Fingerprint,
    /// Who claimed it last; [`OwnerId::NOBODY`] once a takeover was given back.
    pub owner: OwnerId,
    /// Of the last claim.
    pub token: FencingToken,
    /// How many claims there were, from 1.
    pub attempt: u32,
    /// How the last claim came about, so that it can be given back. Means nothing once the record
    /// is completed or failed.
    pub entry: Entry,
    /// What the handler last saved of its progress.
    pub checkpoint: Option<Bytes>,
    /// The recorded answer; present exactly when the state is [`State::Completed`].
    pub payload: Option<Payload>,
    /// When it was claimed first.
    pub created_at: Timestamp,
    /// Until when the owner need not fear a takeover. Means nothing once the record is completed
    /// or failed.
    pub lease_until: Timestamp,
    /// From when on the record counts as absent. While in progress this is the end of the lease
    /// and the time to live after it, so a record never expires under a living owner.
    pub expires_at: Timestamp,
}

impl Record {
    /// Whether it is still there at `now`: until just before `expires_at`.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        now < self.expires_at
    }

    /// Whether its owner let the lease end without a word: from `lease_until` on.
    #[must_use]
    pub fn is_abandoned(&self, now: Timestamp) -> bool {
        self.state == State::InProgress && now >= self.lease_until
    }
}

/// Without the contents of checkpoint and answer (U19).
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("state", &self.state)
            .field("fingerprint", &self.fingerprint)
            .field("owner", &self.owner)
            .field("token", &self.token)
            .field("attempt", &self.attempt)
            .field("entry", &self.entry)
            .field("checkpoint_len", &self.checkpoint.as_ref().map(Bytes::len))
            .field("payload", &self.payload)
            .field("created_at", &self.created_at)
            .field("lease_until", &self.lease_until)
            .field("expires_at", &self.expires_at)
            .finish()
    }
}

/// A live record, and the store's time when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The record.
    pub record: Record,
    /// The store's time.
    pub now: Timestamp,
}

impl Snapshot {
    /// Whether the record is in progress and its lease has ended.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.record.is_abandoned(self.now)
    }

    /// The recorded answer, where there is one for this payload.
    pub(crate) fn answer_for(self, fingerprint: &Fingerprint) -> Option<Payload> {
        let record = self.record;
        let given = record.state == State::Completed && record.fingerprint == *fingerprint;
        record.payload.filter(|_| given)
    }
}

/// What a caller asks of a store when it wants to run an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimRequest {
    /// Of the payload at hand.
    pub fingerprint: Fingerprint,
    /// The claimant.
    pub owner: OwnerId,
    /// How long the claim holds unless it is renewed. Zero is a lease that has ended already, not
    /// one without an end.
    pub lease: Duration,
    /// How long the record stays after the lease.
    pub ttl: Duration,
    /// Whether to claim an abandoned record; otherwise it is answered as [`Claim::Abandoned`].
    pub take_over: bool,
}

/// A store's answer to a [`ClaimRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Claim {
    /// The operation is the claimant's to run.
    Claimed(Claimed),
    /// It is done; this is the recorded answer.
    Completed(Payload),
    /// Somebody else runs it.
    InProgress {
        /// Of the claim that holds the key.
        token: FencingToken,
    },
    /// Somebody else ran it and let the lease end, and the claimant does not take over.
    Abandoned,
    /// The key is in use for another payload.
    Mismatch,
    /// The key is in use, by a record whose fingerprint was made by another algorithm, so that
    /// nobody can tell whether the payload is the same.
    OtherAlgorithm,
}

/// A granted claim.
#[derive(Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The proof to show with every later change.
    pub lease: Lease,
    /// What came before.
    pub entry: Entry,
    /// What an earlier attempt saved of its progress.
    pub checkpoint: Option<Bytes>,
}

/// Without the contents of the checkpoint (U19).
impl fmt::Debug for Claimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claimed")
            .field("lease", &self.lease)
            .field("entry", &self.entry)
            .field("checkpoint_len", &self.checkpoint.as_ref().map(Bytes::len))
            .finish()
    }
}

/// How an execution came to its claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// Nothing is known of the key: this is the first attempt.
    First,
    /// An earlier attempt said that it failed. It may have acted before it did.
    Retry,
    /// An earlier attempt went silent: its process died, or was frozen or cut off beyond its
    /// lease. It may have acted, and where it was only frozen it may still act.
    Takeover,
}

/// The proof of a claim: shown with every renewal and at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The claimant.
    pub owner: OwnerId,
    /// The claim's number.
    pub token: FencingToken,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Of the claimed payload; kept here so that a completion can make the record anew where the
    /// store lost it.
    pub fingerprint: Fingerprint,
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, thread};

    use super::*;

    /// P1, P6: no two claims have one owner, on whatever threads they are made, and however many
    /// threads came and went before.
    #[test]
    fn p1_p6_owners_are_never_the_same() {
        let mut seen = HashSet::from([OwnerId::NOBODY]);
        for _ in 0..4 {
            let draw = || (0..1_000).map(|_| OwnerId::random()).collect::<Vec<_>>();
            let threads: Vec<_> = (0..8).map(|_| thread::spawn(draw)).collect();
            for thread in threads {
                let drawn = thread.join().unwrap();
                assert!(drawn.into_iter().all(|owner| seen.insert(owner)));
            }
        }
    }

    /// P6: what a store keeps of an owner is that owner again, and reads the same everywhere.
    #[test]
    fn p6_an_owner_survives_its_number() {
        let owner = OwnerId::random();
        assert_eq!(OwnerId::from_u128(owner.as_u128()), owner);
        let id = 0x0123_4567_89ab_cdef_0011_2233_4455_6677;
        let shown = OwnerId::from_u128(id).to_string();
        assert_eq!(shown, "0123456789abcdef0011223344556677");
    }
}
