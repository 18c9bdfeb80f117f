//! [`MemoryStore`]: records in this process, for one server, for tests, and as the near half of a
//! pair of stores.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use hashbrown::HashTable;
use tokio::{sync::watch, time::Instant};

use crate::{
    fingerprint::Fingerprint,
    key::{self, StoreKey},
    machine::{self, Change, Step},
    record::{
        Claim, ClaimRequest, Entry, FencingToken, Lease, OwnerId, Payload, Record, Snapshot, State,
        Timestamp,
    },
    store::contract::{Store, StoreError},
};

/// Records in the memory of this process. A clone is another handle to the same records.
///
/// They are gone when the process is: a key whose answer was recorded before a restart runs again
/// after it. Where that must not happen, or where several servers answer for one another, use a
/// store that outlives the process.
///
/// # Limits
///
/// The store holds at most 1 000 000 records and 1 GiB, unless told otherwise: that is about
/// 700 000 answers of 1 KiB. A record counts with its key, its recorded answer, its checkpoint and
/// [`RECORD_OVERHEAD`](Self::RECORD_OVERHEAD). At a limit, what has expired goes first; then a new
/// record is refused with [`StoreError::Full`], or the oldest completed ones are dropped
/// ([`WhenFull`]). A record in progress or failed is never dropped, and ending an attempt never
/// fails for want of room, unless there are more bytes to record than fit.
///
/// # Expiry
///
/// Each operation looks at up to 2 records that may have expired, and every fourth at up to 16 more
/// in another part of the store, whosever they are, and removes those that have; there is no
/// background task. Tables shrink as records go.
///
/// # Time
///
/// The store reads the system's clock once, when it is made, and tokio's from then on. A change of
/// the system's clock changes no record, and a test that pauses tokio's clock pauses the store's.
///
/// # Bytes
///
/// Answers and checkpoints are kept as they are given, without a copy. One that is a slice of a
/// larger buffer keeps all of the buffer, which [`bytes`](Self::bytes) cannot see.
///
/// ```
/// use tower_idempotency::store::{MemoryStore, WhenFull};
///
/// let store = MemoryStore::builder()
///     .max_entries(10_000)
///     .max_bytes(64 << 20)
///     .when_full(WhenFull::DropOldestCompleted)
///     .build();
/// let same = store.clone();
/// assert_eq!((same.len(), same.bytes(), same.evicted()), (0, 0, 0));
/// ```
#[derive(Clone)]
pub struct MemoryStore(Arc<Shared>);

impl MemoryStore {
    /// What a record counts beyond its key, answer and checkpoint, in bytes. It takes no more.
    pub const RECORD_OVERHEAD: usize = 400;

    /// An empty store with the default limits.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Sets limits.
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder {
            max_entries: 1_000_000,
            max_bytes: 1 << 30,
            when_full: WhenFull::Refuse,
        }
    }

    /// How many records there are, those included that have expired and were not removed yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.usage.entries.load(Relaxed)
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the records count against the limit of bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.usage.bytes.load(Relaxed)
    }

    /// How many completed records were dropped before their time, to make room.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.0.evicted.load(Relaxed)
    }

    /// Moves the store's clock forward, for tests of what happens later.
    #[cfg(feature = "testing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn advance_clock(&self, by: Duration) {
        self.0.clock.advance(by);
        // Whoever waits for the end of a lease had better look again.
        for shard in &self.0.shards {
            let woken = std::mem::take(&mut lock(shard).waiters);
            drop(woken);
        }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("len", &self.len())
            .field("bytes", &self.bytes())
            .field("evicted", &self.evicted())
            .finish_non_exhaustive()
    }
}

/// Makes a [`MemoryStore`] with limits of your own.
#[derive(Clone, Debug)]
#[must_use]
pub struct MemoryStoreBuilder {
    max_entries: usize,
    max_bytes: usize,
    when_full: WhenFull,
}

impl MemoryStoreBuilder {
    /// The greatest number of records; 1 000 000 by default.
    pub fn max_entries(mut self, max: usize) -> Self {
        self.max_entries = max;
        self
    }

    /// The most that all records may count together; 1 GiB by default.
    pub fn max_bytes(mut self, max: usize) -> Self {
        self.max_bytes = max;
        self
    }

    /// What happens at a limit; [`WhenFull::Refuse`] by default.
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.when_full = when_full;
        self
    }

    /// Makes the store.
    #[must_use]
    pub fn build(self) -> MemoryStore {
        let by_age = match self.when_full {
            WhenFull::Refuse => None,
            WhenFull::DropOldestCompleted => Some(BTreeSet::new()),
        };
        MemoryStore(Arc::new(Shared {
            clock: Clock::new(),
            shards: (0..SHARDS)
                .map(|_| Mutex::new(Shard::new(by_age.clone())))
                .collect(),
            turn: AtomicUsize::new(0),
            usage: Usage {
                max_entries: self.max_entries,
                max_bytes: self.max_bytes,
                entries: AtomicUsize::new(0),
                bytes: AtomicUsize::new(0),
            },
            evicted: AtomicU64::new(0),
        }))
    }
}

/// What a [`MemoryStore`] does at a limit, once all that has expired is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// New records are refused with [`StoreError::Full`], so new operations are, until others
    /// expire.
    #[default]
    Refuse,
    /// The completed records that were claimed first are dropped. A retry of one of those
    /// operations executes it again: choose this only if they are old enough by then. Each drop
    /// is counted ([`MemoryStore::evicted`]) and told as a `tracing` warning. The order takes some
    /// 50 bytes for each completed record.
    DropOldestCompleted,
}

const NAME: &str = "memory";

/// Enough that threads seldom meet and that the growth of one table is a short pause, few enough
/// that a look at each is cheap.
const SHARDS: usize = 128;

/// How many records that are due an operation looks at, at most, in the shard that it has locked:
/// more than the one that it can add, so that removal keeps up.
const FEW: usize = 2;

/// One operation in so many looks into another shard as well, so that records go whose keys, and
/// whose shard, nobody asks for. Not each one, since looking costs another lock.
const LOOK_EVERY: usize = 4;

/// How many it looks at, at most, in that other shard.
const MANY: usize = 16;

struct Shared {
    clock: Clock,
    shards: Box<[Mutex<Shard>]>,
    turn: AtomicUsize,
    usage: Usage,
    evicted: AtomicU64,
}

struct Shard {
    /// One word for each record: a table is half empty after it has grown.
    records: HashTable<Box<Kept>>,
    /// For each record that somebody waits for. Dropped with every change, which wakes them.
    waiters: HashMap<Arc<str>, watch::Sender<()>>,
    index: Index,
    /// Stands in for every record that is absent: expired since ever, with the greatest token of
    /// those that were removed. So tokens grow also where a key is released and claimed again
    /// within one microsecond.
    absent: Record,
}

/// A record, and the name that it is kept under. Its hash beside it, so that a table that grows need
/// not read the names.
struct Kept {
    name: Arc<str>,
    hash: u64,
    /// Where it stands in the index of expiry: when it expires, or before.
    due: Timestamp,
    record: Record,
}

impl Kept {
    fn is(&self, hash: u64, name: &str) -> bool {
        self.hash == hash && *self.name == *name
    }
}

/// What a change replaced or removed. Dropping it frees the record and wakes its waiters, so not
/// under the lock.
type Past = (Record, Option<watch::Sender<()>>);

/// A record is in each of them once, however often it is renewed.
struct Index {
    /// When to look at a record: when it expires, or before. A record in progress is looked at when
    /// it could expire if it ended at once, and one that turns out to live longer is put in again: so
    /// to end an attempt, or to renew it, changes nothing here.
    by_due: BTreeSet<(Timestamp, Arc<str>)>,
    /// Nothing is due before this. It is a word at hand, while the least of a large set is memory
    /// that no operation has touched for long.
    earliest: Timestamp,
    /// The completed records by their first claim, kept only if the oldest are to be dropped.
    by_age: Option<BTreeSet<(Timestamp, Arc<str>)>>,
}

struct Usage {
    max_entries: usize,
    max_bytes: usize,
    entries: AtomicUsize,
    bytes: AtomicUsize,
}

/// What a change needs and the limits do not leave.
#[derive(Clone, Copy)]
struct Short {
    entries: usize,
    bytes: usize,
}

impl Shared {
    /// Runs one function of the machine as one atomic step.
    fn step<T>(
        &self,
        key: &StoreKey,
        function: impl Fn(Option<&Record>, Timestamp) -> Step<T>,
    ) -> Result<T, StoreError> {
        loop {
            let mut shard = lock(self.shard_of(key));
            // Read under the lock, so that it does not run backwards for this key.
            let now = self.clock.now();
            let done = shard.step(&self.usage, key, now, &function);
            let _expired = shard.remove_expired(&self.usage, now, FEW);
            drop(shard);
            match done {
                Ok((reply, _past)) => {
                    self.tidy(now);
                    return Ok(reply);
                }
                Err(short) if self.make_room(now, short) => {}
                Err(_) => return Err(StoreError::Full { store: NAME }),
            }
        }
    }

    fn shard_of(&self, key: &StoreKey) -> &Mutex<Shard> {
        // Other bits of the hash than those that a table uses.
        &self.shards[(key.hash() >> 32) as usize % SHARDS]
    }

    /// Removes a few expired records of the shard whose turn it is, if it is time to.
    fn tidy(&self, now: Timestamp) {
        let turn = self.turn.fetch_add(1, Relaxed);
        if !turn.is_multiple_of(LOOK_EVERY) {
            return;
        }
        let mut shard = match self.shards[turn / LOOK_EVERY % SHARDS].try_lock() {
            Ok(shard) => shard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Busy; others will come by.
            Err(TryLockError::WouldBlock) => return,
        };
        let removed = shard.remove_expired(&self.usage, now, MANY);
        drop(shard);
        drop(removed);
    }

    /// Removes what has expired, then what may be dropped, until there is room or nothing is left
    /// to remove.
    fn make_room(&self, now: Timestamp, short: Short) -> bool {
        // Nothing is worth dropping for what can never fit.
        if short.bytes > self.usage.max_bytes || short.entries > self.usage.max_entries {
            return false;
        }
        loop {
            let mut oldest = None;
            let mut progress = false;
            for shard in &self.shards {
                let mut held = lock(shard);
                let looked = held.remove_expired(&self.usage, now, MANY);
                progress |= looked.records > 0;
                let first = held.index.oldest();
                drop(held);
                if self.usage.fits(short) {
                    return true;
                }
                if let Some(age) = first
                    && oldest.as_ref().is_none_or(|(least, _)| age < *least)
                {
                    oldest = Some((age, shard));
                }
            }
            match oldest {
                // More may have expired behind what was looked at.
                _ if progress => {}
                Some((_, shard)) => self.evict(shard),
                None => return false,
            }
            if self.usage.fits(short) {
                return true;
            }
        }
    }

    fn evict(&self, shard: &Mutex<Shard>) {
        let mut held = lock(shard);
        let Some((_, text)) = held.index.oldest() else {
            return;
        };
        let dropped = held.remove(&self.usage, key::hash(&text), &text);
        drop(held);
        drop(dropped);
        self.evicted.fetch_add(1, Relaxed);
        #[cfg(feature = "tracing")]
        tracing::warn!(
            target: "tower_idempotency",
            record = key::short_hash(&text),
            "the memory store is full and dropped a completed record before its time"
        );
    }

    /// The record if it no longer runs under this token; otherwise a way to wait for a change.
    fn look<'a>(
        &'a self,
        key: &'a StoreKey,
        token: FencingToken,
    ) -> Result<Option<Snapshot>, Waiting<'a>> {
        let mut shard = lock(self.shard_of(key));
        let now = self.clock.now();
        let record = shard.find(key.hash(), key.shared());
        let ends = match record {
            Some(record) if !machine::is_over(Some(record), now, token) => {
                record.lease_until.min(record.expires_at)
            }
            record => return Ok(machine::get(record, now)),
        };
        let sender = shard.waiters.entry(Arc::clone(key.shared())).or_default();
        Err(Waiting {
            shared: self,
            key,
            // Under the lock, so no change falls between the look and the wait.
            changed: Some(sender.subscribe()),
            left: ends.since(now),
        })
    }
}

impl Shard {
    fn new(by_age: Option<BTreeSet<(Timestamp, Arc<str>)>>) -> Self {
        let long_ago = Timestamp::default();
        Self {
            records: HashTable::new(),
            waiters: HashMap::new(),
            index: Index {
                by_due: BTreeSet::new(),
                earliest: Timestamp::default(),
                by_age,
            },
            absent: Record {
                state: State::Failed,
                fingerprint: Fingerprint::hasher("absent").finish(),
                owner: OwnerId::NOBODY,
                token: FencingToken::from_u64(0),
                attempt: 0,
                entry: Entry::First,
                checkpoint: None,
                payload: None,
                created_at: long_ago,
                lease_until: long_ago,
                expires_at: long_ago,
            },
        }
    }

    fn step<T>(
        &mut self,
        usage: &Usage,
        key: &StoreKey,
        now: Timestamp,
        function: impl Fn(Option<&Record>, Timestamp) -> Step<T>,
    ) -> Result<(T, Option<Past>), Short> {
        let (hash, name) = (key.hash(), key.shared());
        let Ok(mut place) = self.records.find_entry(hash, |kept| kept.is(hash, name)) else {
            let Step { change, reply } = function(Some(&self.absent), now);
            if let Change::Put(record) = change {
                usage.reserve(Short {
                    entries: 1,
                    bytes: cost(name, &record),
                })?;
                let due = due(&record, now);
                self.index.insert(due, name);
                self.index.set_age(name, None, Some(&record));
                let kept = Box::new(Kept {
                    name: Arc::clone(name),
                    hash,
                    due,
                    record,
                });
                self.records.insert_unique(hash, kept, |kept| kept.hash);
            }
            return Ok((reply, None));
        };
        let kept = place.get_mut();
        let Step { change, reply } = function(Some(&kept.record), now);
        let past = match change {
            Change::Keep => None,
            Change::Put(record) => {
                // The same text as in the table, though perhaps not the same as in `key`.
                let name = Arc::clone(&kept.name);
                usage.resize(cost(&name, &kept.record), cost(&name, &record))?;
                self.index.set_age(&name, Some(&kept.record), Some(&record));
                if record.expires_at < kept.due {
                    self.index.remove(kept.due, &name);
                    self.index.insert(record.expires_at, &name);
                    kept.due = record.expires_at;
                }
                let old = std::mem::replace(&mut kept.record, record);
                Some((old, self.take_waiters(&name)))
            }
            Change::Remove => self.remove(usage, hash, name),
        };
        Ok((reply, past))
    }

    fn find(&self, hash: u64, name: &str) -> Option<&Record> {
        let kept = self.records.find(hash, |kept| kept.is(hash, name));
        kept.map(|kept| &kept.record)
    }

    fn remove(&mut self, usage: &Usage, hash: u64, name: &str) -> Option<Past> {
        let place = self.records.find_entry(hash, |kept| kept.is(hash, name));
        let (kept, _) = place.ok()?.remove();
        let Kept {
            name, due, record, ..
        } = *kept;
        self.index.remove(due, &name);
        self.index.set_age(&name, Some(&record), None);
        usage.release(1, cost(&name, &record));
        self.absent.token = self.absent.token.max(record.token);
        // A quarter full or less: half of the table goes back, and as much is left to grow into.
        if self.records.len() < self.records.capacity() / 4 {
            let left = self.records.len() * 2;
            self.records.shrink_to(left, |kept| kept.hash);
        }
        Some((record, self.take_waiters(&name)))
    }

    fn take_waiters(&mut self, name: &str) -> Option<watch::Sender<()>> {
        // The usual case, and cheaper than hashing the name.
        if self.waiters.is_empty() {
            return None;
        }
        let taken = self.waiters.remove(name);
        if self.waiters.is_empty() {
            self.waiters = HashMap::new();
        }
        taken
    }

    /// Looks at up to `most` records that are due, and removes those that have expired.
    fn remove_expired(&mut self, usage: &Usage, now: Timestamp, most: usize) -> Looked {
        let mut removed = Vec::new();
        let mut records = 0;
        while records < most
            && let Some(name) = self.index.pop_due(now)
        {
            records += 1;
            let hash = key::hash(&name);
            match self.records.find_mut(hash, |kept| kept.is(hash, &name)) {
                Some(kept) if kept.record.expires_at > now => {
                    kept.due = kept.record.expires_at;
                    self.index.insert(kept.due, &name);
                }
                _ => removed.extend(self.remove(usage, hash, &name)),
            }
        }
        Looked {
            records,
            _removed: removed,
        }
    }
}

/// How many records were looked at, and what was removed: to be dropped without the lock.
struct Looked {
    records: usize,
    _removed: Vec<Past>,
}

/// When a record that is new at `now` expires at the earliest.
fn due(record: &Record, now: Timestamp) -> Timestamp {
    match record.state {
        // It lives as long after its end as it would after its lease.
        State::InProgress => now + record.expires_at.since(record.lease_until),
        State::Completed | State::Failed => record.expires_at,
    }
}

impl Index {
    fn insert(&mut self, due: Timestamp, name: &Arc<str>) {
        self.earliest = self.earliest.min(due);
        self.by_due.insert((due, Arc::clone(name)));
    }

    fn remove(&mut self, due: Timestamp, name: &Arc<str>) {
        self.by_due.remove(&(due, Arc::clone(name)));
    }

    /// The next record that is due, which is in the index no more.
    fn pop_due(&mut self, now: Timestamp) -> Option<Arc<str>> {
        if self.earliest > now {
            return None;
        }
        // With nothing in it, whatever comes in is the earliest.
        let first = self.by_due.first();
        self.earliest = first.map_or(Timestamp::MAX, |(due, _)| *due);
        if self.earliest > now {
            return None;
        }
        self.by_due.pop_first().map(|(_, name)| name)
    }

    /// Where the oldest may be dropped: the record was this and is now that.
    fn set_age(&mut self, name: &Arc<str>, was: Option<&Record>, is: Option<&Record>) {
        let Some(by_age) = &mut self.by_age else {
            return;
        };
        let completed = |record: &&Record| record.state == State::Completed;
        if let Some(was) = was.filter(completed) {
            by_age.remove(&(was.created_at, Arc::clone(name)));
        }
        if let Some(is) = is.filter(completed) {
            by_age.insert((is.created_at, Arc::clone(name)));
        }
    }

    fn oldest(&self) -> Option<(Timestamp, Arc<str>)> {
        self.by_age.as_ref()?.first().cloned()
    }
}

impl Usage {
    fn fits(&self, more: Short) -> bool {
        self.entries.load(Relaxed).saturating_add(more.entries) <= self.max_entries
            && self.bytes.load(Relaxed).saturating_add(more.bytes) <= self.max_bytes
    }

    fn reserve(&self, more: Short) -> Result<(), Short> {
        let add = |count: &AtomicUsize, more: usize, max: usize| {
            more == 0
                || count
                    .fetch_update(Relaxed, Relaxed, |used| {
                        used.checked_add(more).filter(|&sum| sum <= max)
                    })
                    .is_ok()
        };
        if !add(&self.entries, more.entries, self.max_entries) {
            return Err(more);
        }
        if !add(&self.bytes, more.bytes, self.max_bytes) {
            self.release(more.entries, 0);
            return Err(more);
        }
        Ok(())
    }

    /// A record that does not grow always fits.
    fn resize(&self, from: usize, to: usize) -> Result<(), Short> {
        match to.checked_sub(from) {
            Some(bytes) => self.reserve(Short { entries: 0, bytes }),
            None => {
                self.release(0, from - to);
                Ok(())
            }
        }
    }

    fn release(&self, entries: usize, bytes: usize) {
        self.entries.fetch_sub(entries, Relaxed);
        self.bytes.fetch_sub(bytes, Relaxed);
    }
}

fn cost(key: &Arc<str>, record: &Record) -> usize {
    MemoryStore::RECORD_OVERHEAD
        + key.len()
        + record
            .payload
            .as_ref()
            .map_or(0, |payload| payload.bytes.len())
        + record.checkpoint.as_ref().map_or(0, Bytes::len)
}

/// No code of others runs under the lock, and what we do there does not stop half-way.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Waiting<'a> {
    shared: &'a Shared,
    key: &'a StoreKey,
    changed: Option<watch::Receiver<()>>,
    left: Duration,
}

impl Waiting<'_> {
    /// Until the record changes, or its lease or it itself ends as things stand.
    async fn until_change_or_end(&mut self) {
        if let Some(changed) = &mut self.changed {
            // Either way it is time to look again.
            let _ = tokio::time::timeout(self.left, changed.changed()).await;
        }
    }
}

/// The last one to go leaves nothing behind, also where its future is dropped.
impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.changed = None;
        let mut shard = lock(self.shared.shard_of(self.key));
        let name = self.key.shared();
        let sender = shard.waiters.get(name);
        if sender.is_some_and(|sender| sender.receiver_count() == 0) {
            shard.take_waiters(name);
        }
    }
}

struct Clock {
    start: Instant,
    start_at: Timestamp,
    #[cfg(feature = "testing")]
    ahead: AtomicU64,
}

impl Clock {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            // A clock that stands before 1970 is taken as standing there.
            start_at: Timestamp::default() + SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
            #[cfg(feature = "testing")]
            ahead: AtomicU64::new(0),
        }
    }

    fn now(&self) -> Timestamp {
        let now = self.start_at + self.start.elapsed();
        #[cfg(feature = "testing")]
        let now = now + Duration::from_micros(self.ahead.load(Relaxed));
        now
    }

    #[cfg(feature = "testing")]
    fn advance(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        let _ = self
            .ahead
            .fetch_update(Relaxed, Relaxed, |ahead| Some(ahead.saturating_add(micros)));
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn claim(&self, key: &StoreKey, request: &ClaimRequest) -> Result<Claim, StoreError> {
        self.0
            .step(key, |record, now| machine::claim(record, now, request))
    }

    async fn renew(
        &self,
        key: &StoreKey,
        lease: &Lease,
        lease_for: Duration,
        ttl: Duration,
        checkpoint: Option<Bytes>,
    ) -> Result<(), StoreError> {
        Ok(self.0.step(key, |record, now| {
            machine::renew(record, now, lease, lease_for, ttl, checkpoint.clone())
        })??)
    }

    async fn complete(
        &self,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        Ok(self.0.step(key, |record, now| {
            machine::complete(record, now, lease, payload, ttl)
        })??)
    }

    async fn fail(&self, key: &StoreKey, lease: &Lease, ttl: Duration) -> Result<(), StoreError> {
        Ok(self
            .0
            .step(key, |record, now| machine::fail(record, now, lease, ttl))??)
    }

    async fn release(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        Ok(self
            .0
            .step(key, |record, now| machine::release(record, now, lease, ttl))??)
    }

    async fn give_back(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        Ok(self.0.step(key, |record, now| {
            machine::give_back(record, now, lease, ttl)
        })??)
    }

    async fn get(&self, key: &StoreKey) -> Result<Option<Snapshot>, StoreError> {
        self.0.step(key, |record, now| Step {
            change: Change::Keep,
            reply: machine::get(record, now),
        })
    }

    async fn forget(&self, key: &StoreKey) -> Result<bool, StoreError> {
        self.0.step(key, machine::forget)
    }

    async fn wait(
        &self,
        key: &StoreKey,
        token: FencingToken,
    ) -> Result<Option<Snapshot>, StoreError> {
        loop {
            match self.0.look(key, token) {
                Ok(found) => return Ok(found),
                Err(mut waiting) => waiting.until_change_or_end().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn key(n: usize) -> StoreKey {
        StoreKey::new("idem", "caller", "endpoint", &n.to_string())
    }

    fn claim(store: &MemoryStore, key: &StoreKey) -> Lease {
        let request = ClaimRequest {
            fingerprint: Fingerprint::hasher("t").finish(),
            owner: OwnerId::random(),
            lease: Duration::from_secs(30),
            ttl: Duration::from_secs(3600),
            take_over: true,
        };
        match store.claim(key, &request).now_or_never() {
            Some(Ok(Claim::Claimed(claimed))) => claimed.lease,
            other => panic!("not granted: {other:?}"),
        }
    }

    fn is_waited_for(store: &MemoryStore, key: &StoreKey) -> bool {
        let shard = lock(store.0.shard_of(key));
        shard.waiters.contains_key(key.shared())
    }

    /// U10: tables and indices are given back, not only what they hold.
    #[tokio::test(start_paused = true)]
    async fn u10_tables_shrink() {
        let store = MemoryStore::builder()
            .when_full(WhenFull::DropOldestCompleted)
            .build();
        let room = || -> usize {
            let shards = store.0.shards.iter();
            shards.map(|shard| lock(shard).records.capacity()).sum()
        };
        let nothing = Payload::not_replayable(200);
        for n in 0..20_000 {
            let (key, ttl) = (key(n), Duration::from_secs(60));
            let lease = claim(&store, &key);
            store.complete(&key, &lease, &nothing, ttl).await.unwrap();
        }
        assert!(room() >= 20_000);
        tokio::time::advance(Duration::from_secs(60)).await;
        for _ in 0..10_000 {
            store.get(&key(0)).await.unwrap();
        }
        assert!(store.is_empty());
        assert!(room() <= SHARDS * 8, "{}", room());
        for shard in &store.0.shards {
            let shard = lock(shard);
            assert!(shard.index.by_due.is_empty());
            assert!(shard.index.by_age.as_ref().unwrap().is_empty());
        }
    }

    /// Each record is in each index once, where it belongs, and is due no later than it expires.
    fn check(store: &MemoryStore) {
        for shard in &store.0.shards {
            let shard = lock(shard);
            let by_age = shard.index.by_age.as_ref().unwrap();
            let mut completed = 0;
            for kept in &shard.records {
                let (record, name) = (&kept.record, &kept.name);
                assert!(kept.due <= record.expires_at);
                assert!(shard.index.earliest <= kept.due);
                assert!(shard.index.by_due.contains(&(kept.due, name.clone())));
                if record.state == State::Completed {
                    assert!(by_age.contains(&(record.created_at, name.clone())));
                    completed += 1;
                }
            }
            assert_eq!(shard.index.by_due.len(), shard.records.len());
            assert_eq!(by_age.len(), completed);
        }
    }

    /// S06, P9: a record that ends long after it was claimed is looked at before it expires, and
    /// stays until it does; and one that is completed for a shorter time goes with that.
    #[tokio::test(start_paused = true)]
    async fn s06_p9_a_record_goes_when_it_expires_and_not_before() {
        let store = MemoryStore::builder()
            .when_full(WhenFull::DropOldestCompleted)
            .build();
        let nothing = Payload::not_replayable(200);
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let advance = |n: u64| tokio::time::advance(minutes(n));
        // Looks into every shard.
        let tidy = async || {
            for n in 0..10 * SHARDS {
                store.get(&key(n)).await.unwrap();
            }
            check(&store);
        };
        let [long, short] = [key(1), key(2)];
        let leases = [claim(&store, &long), claim(&store, &short)];
        advance(20).await;
        store
            .renew(&long, &leases[0], minutes(1), minutes(60), None)
            .await
            .unwrap();
        store
            .complete(&long, &leases[0], &nothing, minutes(60))
            .await
            .unwrap();
        store
            .complete(&short, &leases[1], &nothing, minutes(10))
            .await
            .unwrap();
        check(&store);
        advance(10).await;
        tidy().await;
        assert_eq!(store.len(), 1, "the short one expired at 30 minutes");
        advance(31).await;
        tidy().await;
        assert_eq!(
            store.len(),
            1,
            "the long one was due at 60, and lives until 80"
        );
        assert!(store.get(&long).await.unwrap().is_some());
        advance(19).await;
        tidy().await;
        assert!(store.is_empty());
    }

    /// S06, P9: room is made by what has expired, also behind more than a few that are due and live.
    #[tokio::test(start_paused = true)]
    async fn s06_p9_what_lives_does_not_hide_what_has_expired() {
        // Of those that are due at one time the first by name, and the last.
        for expired in [0, 999] {
            let full = 40 * SHARDS;
            let store = MemoryStore::builder()
                .max_entries(full)
                .when_full(WhenFull::DropOldestCompleted)
                .build();
            let nothing = Payload::not_replayable(200);
            let leases: Vec<_> = (0..full).map(|n| claim(&store, &key(n))).collect();
            tokio::time::advance(Duration::from_secs(1800)).await;
            // All are due after an hour; these live for half an hour more.
            for (n, lease) in leases.iter().enumerate() {
                if n != expired {
                    let ttl = Duration::from_secs(3600);
                    store.complete(&key(n), lease, &nothing, ttl).await.unwrap();
                }
            }
            tokio::time::advance(Duration::from_secs(1831)).await;
            claim(&store, &key(full));
            check(&store);
            assert_eq!((store.len(), store.evicted()), (full, 0), "{expired}");
            let found = store.get(&key(expired)).await.unwrap();
            assert!(found.is_none(), "{expired} has expired");
        }
    }

    /// U10: whatever happens to records, and whenever, the indices hold each of them once.
    #[tokio::test(start_paused = true)]
    async fn u10_indices_hold_each_record_once() {
        let store = MemoryStore::builder()
            .max_entries(50)
            .when_full(WhenFull::DropOldestCompleted)
            .build();
        let nothing = Payload::not_replayable(200);
        let mut random = 7_u64;
        let mut leases: HashMap<usize, Lease> = HashMap::new();
        for _ in 0..20_000 {
            // Of Knuth's, good enough to mix steps.
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let mut draw = |of: u64| {
                random = random.rotate_left(23).wrapping_mul(5);
                (random >> 33) % of
            };
            let n = draw(80) as usize;
            let (key, ttl) = (key(n), Duration::from_secs(1 + draw(300)));
            let lease_for = Duration::from_secs(draw(60));
            tokio::time::advance(Duration::from_millis(draw(3_000))).await;
            let request = ClaimRequest {
                fingerprint: Fingerprint::hasher("t").finish(),
                owner: OwnerId::random(),
                lease: lease_for,
                ttl,
                take_over: true,
            };
            if let Ok(Claim::Claimed(claimed)) = store.claim(&key, &request).await {
                leases.insert(n, claimed.lease);
            }
            let Some(lease) = leases.get(&n) else {
                continue;
            };
            // Some of these are refused; that is as well.
            let _ = match draw(6) {
                0 => store.complete(&key, lease, &nothing, ttl).await,
                1 => store.fail(&key, lease, ttl).await,
                2 => store.release(&key, lease, ttl).await,
                3 => store.renew(&key, lease, lease_for, ttl, None).await,
                4 => store.give_back(&key, lease, ttl).await,
                _ => store.forget(&key).await.map(drop),
            };
            check(&store);
        }
        tokio::time::advance(Duration::from_secs(600)).await;
        for n in 0..10 * SHARDS {
            store.get(&self::key(n)).await.unwrap();
        }
        assert!(store.is_empty());
    }

    /// P9, U19: a record that is dropped early is told of, under its hash.
    #[cfg(feature = "tracing")]
    #[test]
    fn p9_u19_a_dropped_record_is_told_of() {
        use tracing::{
            Event, Level, Metadata, Subscriber,
            field::{Field, Visit},
            span,
        };

        #[derive(Clone, Default)]
        struct Told(Arc<Mutex<String>>);
        impl Visit for Told {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                let mut told = self.0.lock().unwrap();
                told.push_str(&format!("{field}={value:?}\n"));
            }
        }
        impl Subscriber for Told {
            fn enabled(&self, _: &Metadata<'_>) -> bool {
                true
            }
            fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
                span::Id::from_u64(1)
            }
            fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
            fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
            fn event(&self, event: &Event<'_>) {
                let metadata = event.metadata();
                assert_eq!(*metadata.level(), Level::WARN);
                assert_eq!(metadata.target(), "tower_idempotency");
                event.record(&mut self.clone());
            }
            fn enter(&self, _: &span::Id) {}
            fn exit(&self, _: &span::Id) {}
        }

        let told = Told::default();
        tracing::subscriber::with_default(told.clone(), || {
            let store = MemoryStore::builder()
                .max_entries(1)
                .when_full(WhenFull::DropOldestCompleted)
                .build();
            let old = StoreKey::new("idem", "caller", "endpoint", "secret");
            let lease = claim(&store, &old);
            let nothing = Payload::not_replayable(200);
            let completed = store.complete(&old, &lease, &nothing, Duration::from_secs(60));
            completed.now_or_never().unwrap().unwrap();
            claim(&store, &key(1));
            assert_eq!(store.evicted(), 1);
            let told = told.0.lock().unwrap();
            assert!(told.contains(&old.log_id()), "{told}");
            assert!(!told.contains("secret"), "{told}");
        });
    }

    /// U29: whoever waits leaves nothing behind, whether it gives up or gets its answer.
    #[tokio::test(start_paused = true)]
    async fn u29_waits_leave_nothing_behind() {
        let (store, key) = (MemoryStore::new(), key(1));
        let lease = claim(&store, &key);
        assert!(!is_waited_for(&store, &key));
        let mut first = Box::pin(store.wait(&key, lease.token));
        assert!(futures::poll!(first.as_mut()).is_pending());
        for _ in 0..10 {
            assert!(store.wait(&key, lease.token).now_or_never().is_none());
        }
        assert!(is_waited_for(&store, &key));
        drop(first);
        assert!(!is_waited_for(&store, &key));

        let mut second = Box::pin(store.wait(&key, lease.token));
        assert!(futures::poll!(second.as_mut()).is_pending());
        let ttl = Duration::from_secs(60);
        store.fail(&key, &lease, ttl).await.unwrap();
        assert!(!is_waited_for(&store, &key));
        second.await.unwrap();
        assert!(!is_waited_for(&store, &key));
    }
}
