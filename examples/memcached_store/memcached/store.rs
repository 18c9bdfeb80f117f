//! [`MemcachedStore`]: the records of many servers, in one memcached.
//!
//! # How it keeps the contract
//!
//! memcached knows nothing of leases, and runs no code of ours. It can do one thing that is enough:
//! write an item only if it is still the version that was read. So each operation reads the record,
//! asks [`machine`] what becomes of it, and writes that in the place of what it read; where somebody
//! else was faster, it begins anew. Nobody sees or changes the record between the reading that
//! counts and the change: the step is as atomic as under a lock (P1, P6), and since the machine says
//! what happens, there is no rule here to get wrong.
//!
//! - **Time** is memcached's, as its `stats` give it, read together with the record. It has whole
//!   seconds: a lease can end up to one second early, so make none shorter than ten. A server that
//!   stood still itself gives the time at which it stopped until its next second; a lease that it
//!   grants meanwhile is as much shorter.
//! - **Tokens** grow although that clock stands still for a second: a record that is removed leaves
//!   its token behind, in a small record that has expired, until the clock has passed it.
//! - **Expired records** go by themselves, by the item's expiry. That is an upper bound, rounded up:
//!   what counts is the time within the record.
//! - **Round trips**: two for a change, one for a look. So four where the operation runs, one for a
//!   replay, a conflict and a mismatch. `stats` is 2 KB of each.
//! - **Waiting** polls, as the trait does by itself, since memcached has no messages.
//! - **Unsure means no** (P8): a server that is away, slow or strange is `Unavailable`, an item that
//!   cannot be read is `Corrupt`, and a write without room is `Full`. None of them counts as absent.
//!
//! # What memcached costs
//!
//! It is a cache, and may drop any item at any time. Where it drops a record, that key is new:
//!
//! - a record **in progress**: a second execution starts beside the first (P1 ends). The first one
//!   still records its answer, if the second one has not claimed the key by then; else it learns that
//!   it was superseded.
//! - a **completed** record: a retry runs again (P2 ends).
//! - a **failed** or abandoned one: the next attempt takes itself for the first, and its checkpoint
//!   is lost (P5 ends).
//! - any of these: the next claim within the same second can have the same fencing token.
//!
//! It drops records
//!
//! - when its memory (`-m`, 64 MB by default) is full, those first that nobody asked for lately, of
//!   whatever state. **Start it with `-M`**: it then refuses to store more, and that is
//!   [`Full`](StoreError::Full): a claim is refused and nothing runs, an answer is retried without
//!   its bytes, a release still frees its key. Who had claimed the last of the room goes on trying to
//!   renew its lease and to record its answer; where the lease ends before there is room, a takeover
//!   may find it first, beside an execution that still runs. Room comes back about once a minute,
//!   when memcached looks for what has expired, and is divided by the size of items: it can be full
//!   for small ones alone. [`MemcachedStore::evictions`] counts what was dropped: anything but zero is
//!   a reason to raise an alarm. Share the server with no cache;
//! - when it starts anew, all of them. So does `flush_all`, which any client can send;
//! - when one of several servers, among which clients choose by a hash of the key, comes or goes: a
//!   part of the keys is then looked for where they are not. This store has one server; it does not
//!   do that.
//!
//! An item is limited to 1 MiB, unless `-I` says otherwise. A larger answer is `Full` too, and its
//! key then counts as completed without an answer to replay. memcached has no replicas. This
//! client speaks neither TLS nor passwords: keep the server where nobody else reaches it, since whoever
//! does can write records.
//!
//! Take it where a second execution is a nuisance and not a loss. Redis, PostgreSQL and SQLite cost
//! one round trip for a change, and keep what they were given.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tower_idempotency::{
    Claim, ClaimRequest, Entry, FencingToken, Fingerprint, Lease, OwnerId, Payload, Record,
    Snapshot, State, Store, StoreError, StoreKey, Timestamp,
    machine::{self, Change, Refused, Step},
};

use super::{
    client::{Client, Failure, Found, Item, Lent},
    layout,
};

const NAME: &str = "memcached";

/// How often an operation begins anew because others were faster. One of them gets on each time, so
/// this many clients would have to change one record within one call.
const MOST_TRIES: usize = 200;

/// memcached takes a greater number of seconds for a point in time.
const LONGEST_RELATIVE: u64 = 30 * 24 * 3600;

const SECOND: u64 = 1_000_000;

/// Clones share the connections.
#[derive(Clone)]
pub(crate) struct MemcachedStore {
    client: Arc<Client>,
    evictions: Arc<AtomicU64>,
    /// What is added to the server's clock, in µs. Only tests add anything.
    ahead: Arc<AtomicU64>,
}

#[allow(
    dead_code,
    reason = "the example uses one part, and its tests the other"
)]
impl MemcachedStore {
    /// Records in the memcached at `host:port`. Nothing is opened yet.
    pub(crate) fn new(address: impl Into<String>) -> Self {
        Self {
            client: Arc::new(Client::new(address)),
            evictions: Arc::default(),
            ahead: Arc::default(),
        }
    }

    /// How many items the server had dropped before their time, since it started, when it was last
    /// asked for a record: a number for your metrics (P9).
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.load(Relaxed)
    }

    /// The key of a record's item, for a person who looks at it: `mg KEY t v` tells how long it has
    /// to live, and what it holds.
    pub(crate) fn item_key(key: &StoreKey) -> String {
        layout::item_key(key)
    }

    /// Moves the store's clock forward, for tests of what happens later. The server knows nothing of
    /// it, so it drops no record earlier.
    pub(crate) fn advance_clock(&self, by: Duration) {
        let by = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.ahead.fetch_add(by, Relaxed);
    }

    /// Reads the record with the time at which it stands, and the connection for the change.
    ///
    /// The change goes over the same connection, so it cannot reach a server that was started anew
    /// in between, whose versions count from one again.
    async fn read(&self, item_key: &str) -> Result<(Lent<'_>, Option<Item>, Moment), StoreError> {
        let (connection, found) = self.client.read(item_key).await.map_err(failed)?;
        let Found {
            seconds,
            evictions,
            item,
        } = found;
        self.evictions.store(evictions, Relaxed);
        let now = seconds.saturating_mul(SECOND);
        let now = Timestamp::from_micros(now.saturating_add(self.ahead.load(Relaxed)));
        Ok((connection, item, Moment { seconds, now }))
    }

    /// One atomic step of the machine.
    async fn step<T>(
        &self,
        key: &StoreKey,
        machine: impl Fn(Option<&Record>, Timestamp) -> Step<T> + Send,
    ) -> Result<T, StoreError> {
        let item_key = layout::item_key(key);
        for _ in 0..MOST_TRIES {
            let (mut connection, item, moment) = self.read(&item_key).await?;
            let version = item.as_ref().map(|item| item.version);
            let record = item.map(|item| layout::decode(item.value)).transpose();
            // What cannot be read is not absent (U18).
            let record = record.map_err(|error| StoreError::corrupt(NAME, error))?;
            let Step { change, reply } = machine(record.as_ref(), moment.now);
            let live = record.filter(|record| record.is_live(moment.now));
            let written = match (change, live, version) {
                (Change::Keep, ..) | (Change::Remove, None, _) => true,
                (Change::Put(record), ..) => {
                    put(&mut connection, &item_key, version, &record, moment).await?
                }
                (Change::Remove, Some(record), version) => {
                    let token = record.token;
                    remove(&mut connection, &item_key, version, token, moment).await?
                }
            };
            if written {
                return Ok(reply);
            }
        }
        Err(too_slow())
    }

    /// The same, where the machine may refuse.
    async fn change(
        &self,
        key: &StoreKey,
        machine: impl Fn(Option<&Record>, Timestamp) -> Step<Result<(), Refused>> + Send,
    ) -> Result<(), StoreError> {
        Ok(self.step(key, machine).await??)
    }
}

/// Each is the function of the machine that has its name.
///
/// An operation whose future is dropped in between has read, or has written too: a write is one
/// command, which memcached carries out whole or not at all. One whose answer was lost is
/// `Unavailable`, and may be sent again: the machine knows the owner.
#[async_trait]
impl Store for MemcachedStore {
    async fn claim(&self, key: &StoreKey, request: &ClaimRequest) -> Result<Claim, StoreError> {
        self.step(key, |record, now| machine::claim(record, now, request))
            .await
    }

    async fn renew(
        &self,
        key: &StoreKey,
        lease: &Lease,
        lease_for: Duration,
        ttl: Duration,
        checkpoint: Option<Bytes>,
    ) -> Result<(), StoreError> {
        self.change(key, |record, now| {
            machine::renew(record, now, lease, lease_for, ttl, checkpoint.clone())
        })
        .await
    }

    async fn complete(
        &self,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.change(key, |record, now| {
            machine::complete(record, now, lease, payload, ttl)
        })
        .await
    }

    async fn fail(&self, key: &StoreKey, lease: &Lease, ttl: Duration) -> Result<(), StoreError> {
        self.change(key, |record, now| machine::fail(record, now, lease, ttl))
            .await
    }

    async fn release(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.change(key, |record, now| machine::release(record, now, lease, ttl))
            .await
    }

    async fn give_back(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.change(key, |record, now| {
            machine::give_back(record, now, lease, ttl)
        })
        .await
    }

    async fn get(&self, key: &StoreKey) -> Result<Option<Snapshot>, StoreError> {
        self.step(key, |record, now| Step {
            change: Change::Keep,
            reply: machine::get(record, now),
        })
        .await
    }

    /// The one operation that also works on a record that cannot be read: an operator's way out.
    async fn forget(&self, key: &StoreKey) -> Result<bool, StoreError> {
        let item_key = layout::item_key(key);
        for _ in 0..MOST_TRIES {
            let (mut connection, item, moment) = self.read(&item_key).await?;
            let Some(item) = item else {
                return Ok(false);
            };
            let token = match layout::decode(item.value) {
                Ok(record) if record.is_live(moment.now) => record.token,
                Ok(_) => return Ok(false),
                // Whatever its token was, it was given by this clock.
                Err(_) => FencingToken::from_u64((moment.now + Duration::from_secs(1)).as_micros()),
            };
            let version = Some(item.version);
            if remove(&mut connection, &item_key, version, token, moment).await? {
                return Ok(true);
            }
        }
        Err(too_slow())
    }
}

/// When a record was read.
#[derive(Clone, Copy)]
struct Moment {
    /// By memcached's clock.
    seconds: u64,
    /// By the store's clock, which tests move.
    now: Timestamp,
}

impl Moment {
    /// The `exptime` of an item: a few seconds after its record has expired and the clock has passed
    /// its token, or 0, never, where memcached could not express it.
    fn expiry(self, record: &Record) -> u32 {
        let token = Timestamp::from_micros(record.token.as_u64());
        let left = record.expires_at.max(token).since(self.now).as_secs();
        // One for what `as_secs` cuts off, and two since memcached's second is under way.
        let left = left.saturating_add(3);
        let expiry = match left <= LONGEST_RELATIVE {
            true => left,
            false => self.seconds.saturating_add(left),
        };
        // It reads a signed number, of 32 bits.
        i32::try_from(expiry).map_or(0, i32::unsigned_abs)
    }
}

/// `false` where another version is there now.
async fn put(
    connection: &mut Lent<'_>,
    item_key: &str,
    version: Option<u64>,
    record: &Record,
    moment: Moment,
) -> Result<bool, StoreError> {
    let value = layout::encode(record).ok_or(StoreError::Full { store: NAME })?;
    let expiry = moment.expiry(record);
    let written = connection.swap(item_key, version, value, expiry).await;
    written.map_err(failed)
}

/// Leaves a record that has expired, and is there for its token only. Where there is no room for
/// that either, the item goes: to free a key must be possible when memory is full, or it stays full.
/// The next token is then greater only once the second is over.
async fn remove(
    connection: &mut Lent<'_>,
    item_key: &str,
    version: Option<u64>,
    token: FencingToken,
    moment: Moment,
) -> Result<bool, StoreError> {
    let now = moment.now;
    let removed = Record {
        state: State::Failed,
        fingerprint: Fingerprint::hasher("removed").finish(),
        owner: OwnerId::NOBODY,
        token,
        attempt: 1,
        entry: Entry::First,
        checkpoint: None,
        payload: None,
        created_at: now,
        lease_until: now,
        expires_at: now,
    };
    match put(connection, item_key, version, &removed, moment).await {
        Err(StoreError::Full { .. }) => match version {
            Some(version) => connection.delete(item_key, version).await.map_err(failed),
            None => Ok(true),
        },
        written => written,
    }
}

fn failed(failure: Failure) -> StoreError {
    match failure {
        Failure::Full => StoreError::Full { store: NAME },
        Failure::Broken(_) | Failure::Refused(_) => StoreError::unavailable(NAME, failure),
    }
}

fn too_slow() -> StoreError {
    StoreError::unavailable(
        NAME,
        "others changed the record each time before this could",
    )
}
