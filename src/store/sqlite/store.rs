//! The store itself.

#[cfg(feature = "testing")]
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::{
    any::Any,
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Row as _, SqliteConnection, SqlitePool,
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    task::{JoinError, JoinHandle},
    time::{Instant, sleep, timeout},
};

use super::{
    error::{NAME, is_busy, not_completed, store_error},
    row::{Found, Statement, with_key, with_read, with_record},
    schema::Schema,
};
use crate::{
    fingerprint::Fingerprint,
    key::StoreKey,
    machine::{self, Change, Step},
    record::{
        Claim, ClaimRequest, Entry, FencingToken, Lease, OwnerId, Payload, Record, Snapshot, State,
        Timestamp,
    },
    store::{
        contract::{Store, StoreError, jittered},
        sql::{DEFAULT_TABLE, InvalidName, Name},
        transaction::NotCompleted,
        wakes::{WakeId, Wakes},
    },
};

/// Records in an SQLite file, for one server, or for several processes on one machine. A clone is
/// another handle to the same file.
///
/// What was answered is on the disk, survives the end of the process at any moment, and is read
/// by any tool that reads SQLite.
///
/// A handler can commit its own rows together with the record
/// ([`Execution::transaction`](crate::Execution::transaction)), on the [`pool`](Self::pool) or on any
/// other of this file. Pools are those of `sqlx` 0.9: depend on that release.
///
/// ```no_run
/// use tower_idempotency::{IdempotencyLayer, Scope, SqliteStore};
///
/// # async fn run() -> Result<(), tower_idempotency::StoreError> {
/// let store = SqliteStore::open("payments.db").await?;
/// store.migrate().await?;
/// let layer = IdempotencyLayer::new(store, Scope::header("x-api-key"));
/// # Ok(())
/// # }
/// ```
///
/// # The file
///
/// It has to be on a disk of this machine. SQLite's locks do not hold on a network file system,
/// and neither does P1 there. Do not copy it while it is in use, but by `VACUUM INTO` or `.backup`,
/// and do not replace or remove it. What was copied before is put back at the price of all records
/// made since: their keys run again.
///
/// [`open`](Self::open) turns the write-ahead log on (`journal_mode = WAL`), by which readers and
/// the writer do not wait for each other, and sets `synchronous = FULL`: an answer is recorded once
/// the disk says so. With `NORMAL` writes are faster, and a power cut, not the end of the process,
/// may take the last of them back: an operation whose answer was sent runs again then (P2). A pool
/// of your own, given to [`new`](Self::new), should have the same settings.
///
/// A pool for an in-memory database, in a test, has one connection, which never ends: set
/// `max_connections(1)`, `idle_timeout(None)` and `max_lifetime(None)`, or each connection has
/// records of its own, and drops them when it ends.
///
/// # How it works
///
/// Each operation reads the record, asks [`machine`] what is to become of it, and, if anything is,
/// writes that in one statement on condition that the record is still what was read; if not, it
/// begins again. So a replay, a conflict and a mismatch only read: they wait for no lock, and no
/// disk. A call that nobody polls holds neither a lock nor a connection. Calls need a tokio
/// runtime.
///
/// SQLite has one writer at a time. Writes of one store take turns, in order; a write of another
/// process, or of a transaction of yours, is waited for as long as the pool's `busy_timeout` says
/// (5 s by default, also in [`open`](Self::open)), and then the store is
/// [unavailable](StoreError::Unavailable). Whatever holds the write lock holds up claims and
/// renewals: keep transactions of yours short. So does a process that is frozen in the middle of a
/// write. A call that is dropped while it waits for its turn does nothing; one that is dropped
/// later may take effect once the lock is free.
///
/// # Time
///
/// The clock is this machine's, which all processes share; microseconds. Whatever sets it should
/// slew it: when it jumps ahead, leases end early. Tokens grow also when it is set back. An
/// operation that waited for a lock counts from when it began to wait.
///
/// # Expiry
///
/// Each new record removes up to 8 that have expired. The file keeps its size and fills the gaps;
/// `VACUUM` shrinks it.
///
/// # Waiting
///
/// A wait is woken by what this store, or a clone, does in this process. What other stores and
/// processes do is seen by polling, after 25 ms at first and 1 s at most.
///
/// # Errors
///
/// A full disk and a size beyond SQLite's limits are [`StoreError::Full`]; a file that is damaged
/// or no database is [`StoreError::Corrupt`], and so is a row that this version does not know. All
/// else is [`StoreError::Unavailable`]: a lock held for too long, a disk that fails, a file
/// without rights, a table that [`migrate`](Self::migrate) has not made.
///
/// # Reading the table
///
/// [`schema`](Self::schema) shows all columns. Times are microseconds since 1970:
///
/// ```sql
/// SELECT scope, idempotency_key, status, attempt, response_code,
///        datetime(created_at / 1000000, 'unixepoch') AS created
/// FROM idempotency_records ORDER BY created_at DESC LIMIT 10;
/// ```
///
/// A part of a key that is longer than 512 bytes, holds a NUL or begins with `#` stands as `#` and
/// its SHA-256.
#[derive(Clone)]
pub struct SqliteStore(Arc<Shared>);

struct Shared {
    pool: SqlitePool,
    schema: Schema,
    /// Whose turn it is to write to the file. SQLite's own way to wait is to try now and then, in
    /// no order.
    turn: Arc<Mutex<()>>,
    wakes: Wakes,
    /// How far the clock was moved, in microseconds.
    #[cfg(feature = "testing")]
    ahead: AtomicU64,
}

/// Held by a write until it has ended, whether somebody still waits for it or not: so what waits
/// for another process takes one connection of the pool, and leaves the others to readers.
type Turn = OwnedMutexGuard<()>;

/// How often an operation begins again because somebody else changed the record meanwhile.
const TRIES: usize = 100;

/// How long [`SqliteStore::open`] tries to turn the log on, which has no busy timeout.
const OPENING: Duration = Duration::from_secs(5);

impl SqliteStore {
    /// A store on a pool, in the table `idempotency_records`. Makes no table, and opens no
    /// connection.
    ///
    /// See above for the settings that the pool should have.
    #[must_use]
    pub fn new(pool: SqlitePool) -> Self {
        Self::on(pool, Name::known(DEFAULT_TABLE), Arc::default())
    }

    /// A store on a file, which is made if it is missing, with the write-ahead log on, every commit
    /// on the disk, and a pool of at most 10 connections.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] where the file cannot be opened, and [`StoreError::Corrupt`]
    /// where it is something else than a database.
    ///
    /// # Cancellation
    ///
    /// Dropped, it may leave the file, empty.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5));
        // Stays with the file: later connections need not ask for it.
        let with_log = options.clone().journal_mode(SqliteJournalMode::Wal);
        let start = Instant::now();
        loop {
            match with_log.connect().await {
                Ok(_) => break,
                Err(error) if is_busy(&error) && start.elapsed() < OPENING => {
                    sleep(jittered(Duration::from_millis(20))).await;
                }
                Err(error) => return Err(store_error(error)),
            }
        }
        let pool = SqlitePoolOptions::new()
            // A connection is a thread of this process: it does not break off.
            .test_before_acquire(false)
            .connect_lazy_with(options);
        Ok(Self::new(pool))
    }

    /// In another table.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] for anything but 1 to 50 ASCII letters, digits and `_`, or with a digit
    /// first. (SQLite keeps names that begin with `sqlite_` for itself, and says so in
    /// [`migrate`](Self::migrate).)
    pub fn with_table(self, name: &str) -> Result<Self, InvalidName> {
        let turn = Arc::clone(&self.0.turn);
        Ok(Self::on(self.0.pool.clone(), Name::new(name)?, turn))
    }

    fn on(pool: SqlitePool, table: Name, turn: Arc<Mutex<()>>) -> Self {
        Self(Arc::new(Shared {
            pool,
            schema: Schema::new(table),
            turn,
            wakes: Wakes::default(),
            #[cfg(feature = "testing")]
            ahead: AtomicU64::new(0),
        }))
    }

    /// The pool that it works on.
    #[must_use]
    pub fn pool(&self) -> &SqlitePool {
        &self.0.pool
    }

    /// The SQL that makes the table, its index, and what else belongs to it, for those who run
    /// their own migrations. Running it again changes nothing.
    #[must_use]
    pub fn schema(&self) -> &str {
        &self.0.schema.create
    }

    /// Makes whatever is missing of [`schema`](Self::schema), in one transaction. Any number of
    /// processes may do this at once; where all is there it only reads.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] as for any operation, and where the table is there with other
    /// columns.
    ///
    /// # Cancellation
    ///
    /// Dropped, it has made everything or nothing.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let schema = &self.0.schema;
        if !self.is_migrated().await.map_err(store_error)? {
            let create = async {
                let mut transaction = self.0.pool.begin_with("BEGIN IMMEDIATE").await?;
                sqlx::raw_sql(AssertSqlSafe(Arc::clone(&schema.create)))
                    .execute(&mut *transaction)
                    .await?;
                transaction.commit().await
            };
            create.await.map_err(store_error)?;
        }
        // Names every column.
        let nobody = StoreKey::new("", "", "", "");
        let read = with_key(&schema.read, &nobody).fetch_all(&self.0.pool);
        read.await.map(drop).map_err(store_error)
    }

    async fn is_migrated(&self) -> Result<bool, sqlx::Error> {
        let sql = Arc::clone(&self.0.schema.is_there);
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&self.0.pool);
        row.await?.try_get(0)
    }

    /// Moves the store's clock forward, for tests of what happens later.
    #[cfg(feature = "testing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn advance_clock(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        let ahead = &self.0.ahead;
        let _ = ahead.fetch_update(Relaxed, Relaxed, |ahead| Some(ahead.saturating_add(micros)));
        self.0.wakes.wake_all();
    }

    /// Records the answer within a transaction of the caller's, so that it is recorded if and only
    /// if the transaction commits (P7).
    ///
    /// Stricter than [`Store::complete`]: the record has to be there, in progress, and of this
    /// owner; its lease may have ended. Otherwise nothing is changed.
    ///
    /// The transaction holds SQLite's write lock from here on, at the latest, so no renewal comes
    /// through until it ends, and the lease may end meanwhile. That is safe: whoever would take
    /// over needs the same lock. Once it is free the record is completed; or the transaction was
    /// rolled back and nothing of it happened, and then a takeover is right.
    ///
    /// Begin the transaction with `BEGIN IMMEDIATE`. One that begins otherwise and reads before it
    /// writes fails with [`NotCompleted::Conflict`] where somebody wrote in between. Outside of a
    /// transaction the answer is recorded at once.
    ///
    /// # Errors
    ///
    /// [`NotCompleted`], and nothing was changed. Roll back.
    ///
    /// # Cancellation
    ///
    /// Dropped, it may have taken effect within the transaction: roll back.
    pub(super) async fn complete_in(
        &self,
        connection: &mut SqliteConnection,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), NotCompleted> {
        let schema = &self.0.schema;
        // Before the look at the record and the clock, as any other change of it needs the lock.
        let lock = sqlx::query(AssertSqlSafe(Arc::clone(&schema.lock)));
        lock.execute(&mut *connection)
            .await
            .map_err(not_completed)?;
        let now = self.now();
        let rows = with_key(&schema.read, key).fetch_all(&mut *connection);
        let rows = rows.await.map_err(not_completed)?;
        let found = parse(&rows).map_err(NotCompleted::Store)?.record;
        if let Some(reason) = NotCompleted::reason(found.as_ref(), now, lease) {
            return Err(reason);
        }
        let step = machine::complete(found.as_ref(), now, lease, payload, ttl);
        let (Some(found), Change::Put(completed)) = (found, step.change) else {
            return Err(NotCompleted::Gone);
        };
        let update = self.replacing(key, &found, &completed);
        update.execute(connection).await.map_err(not_completed)?;
        Ok(())
    }

    /// Wakes who waits for the record in this process.
    pub(super) fn wake(&self, key: &StoreKey) {
        // Looked at first, since an id is a SHA-256.
        if !self.0.wakes.is_empty() {
            self.0.wakes.wake(WakeId::of(key));
        }
    }

    fn now(&self) -> Timestamp {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let now = Timestamp::default() + now;
        #[cfg(feature = "testing")]
        let now = now + Duration::from_micros(self.0.ahead.load(Relaxed));
        now
    }

    /// What there is, and the time at which it was so, or a little before.
    async fn read(&self, key: &StoreKey) -> Result<(Found, Timestamp), StoreError> {
        let read = async {
            let mut connection = self.0.pool.acquire().await?;
            // Not after the read: the lease of a record could end, and be renewed, in between.
            let now = self.now();
            let rows = with_key(&self.0.schema.read, key).fetch_all(&mut *connection);
            Ok((rows.await?, now))
        };
        let (rows, now) = read.await.map_err(store_error)?;
        Ok((parse(&rows)?, now))
    }

    /// Runs one function of the machine as one atomic step.
    async fn step<T: Send + 'static>(
        &self,
        key: &StoreKey,
        function: impl Fn(Option<&Record>, Timestamp) -> Step<T> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let (store, key) = (self.clone(), key.clone());
        apart(async move { store.try_step(&key, function, None).await }).await
    }

    async fn try_step<T>(
        &self,
        key: &StoreKey,
        function: impl Fn(Option<&Record>, Timestamp) -> Step<T>,
        mut turn: Option<Turn>,
    ) -> Result<T, StoreError> {
        for _ in 0..TRIES {
            let (found, now) = self.read(key).await?;
            let absent;
            let record = match &found.record {
                Some(record) => record,
                None => {
                    absent = expired_since_ever(found.greatest);
                    &absent
                }
            };
            let Step { change, reply } = function(Some(record), now);
            let write = match (&change, &found.record) {
                (Change::Keep, _) | (Change::Remove, None) => return Ok(reply),
                (Change::Put(new), None) => with_record(with_key(&self.0.schema.insert, key), new),
                (Change::Put(new), Some(read)) => self.replacing(key, read, new),
                (Change::Remove, Some(read)) => {
                    with_read(with_key(&self.0.schema.remove, key), read)
                }
            };
            let held = match turn.take() {
                Some(held) => held,
                None => match Arc::clone(&self.0.turn).try_lock_owned() {
                    Ok(held) => held,
                    Err(_) => {
                        turn = Some(Arc::clone(&self.0.turn).lock_owned().await);
                        // What was read is old by now.
                        continue;
                    }
                },
            };
            let (held, written) = self.write(held, write).await?;
            if written {
                self.wake(key);
                return Ok(reply);
            }
            turn = Some(held);
        }
        Err(StoreError::unavailable(
            NAME,
            "the record changes too often",
        ))
    }

    fn replacing(&self, key: &StoreKey, read: &Record, new: &Record) -> Statement {
        with_record(with_read(with_key(&self.0.schema.update, key), read), new)
    }

    /// Runs one statement to its end, whoever leaves, and says whether it changed anything.
    async fn write(&self, turn: Turn, statement: Statement) -> Result<(Turn, bool), StoreError> {
        let pool = self.0.pool.clone();
        let write = tokio::spawn(async move {
            let done = statement.execute(&pool).await.map_err(store_error)?;
            Ok((turn, done.rows_affected() > 0))
        });
        write.await.unwrap_or_else(cut_off)
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("table", &self.0.schema.table.as_str())
            .finish_non_exhaustive()
    }
}

/// Reads, and writes that answer with rows, are run to their end: a commit comes last, and may
/// fail.
fn parse(rows: &[SqliteRow]) -> Result<Found, StoreError> {
    match rows {
        [row] => Found::parse(row),
        _ => Err(StoreError::corrupt(NAME, "the key is not unique")),
    }
}

/// Stands in for a record that is absent, with the greatest token of those that were removed.
fn expired_since_ever(token: FencingToken) -> Record {
    Record {
        state: State::Failed,
        fingerprint: Fingerprint::hasher("absent").finish(),
        owner: OwnerId::NOBODY,
        token,
        attempt: 0,
        entry: Entry::First,
        checkpoint: None,
        payload: None,
        created_at: Timestamp::default(),
        lease_until: Timestamp::default(),
        expires_at: Timestamp::default(),
    }
}

/// Runs what takes connections and turns in a task of its own, which ends when this is dropped:
/// they are not held while somebody who does not poll has them.
async fn apart<T: Send + 'static>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    let mut task = Task(tokio::spawn(work));
    (&mut task.0).await.unwrap_or_else(cut_off)
}

struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The runtime ends.
fn cut_off<T>(error: JoinError) -> Result<T, StoreError> {
    Err(StoreError::unavailable(NAME, error))
}

#[async_trait]
impl Store for SqliteStore {
    async fn claim(&self, key: &StoreKey, request: &ClaimRequest) -> Result<Claim, StoreError> {
        let request = *request;
        let claim = move |record: Option<&Record>, now| machine::claim(record, now, &request);
        self.step(key, claim).await
    }

    async fn renew(
        &self,
        key: &StoreKey,
        lease: &Lease,
        lease_for: Duration,
        ttl: Duration,
        checkpoint: Option<Bytes>,
    ) -> Result<(), StoreError> {
        let lease = *lease;
        let renew = move |record: Option<&Record>, now| {
            machine::renew(record, now, &lease, lease_for, ttl, checkpoint.clone())
        };
        Ok(self.step(key, renew).await??)
    }

    async fn complete(
        &self,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let (lease, payload) = (*lease, payload.clone());
        let complete = move |record: Option<&Record>, now| {
            machine::complete(record, now, &lease, &payload, ttl)
        };
        Ok(self.step(key, complete).await??)
    }

    async fn fail(&self, key: &StoreKey, lease: &Lease, ttl: Duration) -> Result<(), StoreError> {
        let lease = *lease;
        let fail = move |record: Option<&Record>, now| machine::fail(record, now, &lease, ttl);
        Ok(self.step(key, fail).await??)
    }

    async fn release(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let lease = *lease;
        let release =
            move |record: Option<&Record>, now| machine::release(record, now, &lease, ttl);
        Ok(self.step(key, release).await??)
    }

    async fn give_back(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let (store, key, lease) = (self.clone(), key.clone(), *lease);
        let given_back = apart(async move {
            // The claim may be on its way still, though nobody waits for it: it has its turn then,
            // and would take effect after a look that did not wait for it.
            let turn = Arc::clone(&store.0.turn).lock_owned().await;
            let give_back =
                |record: Option<&Record>, now| machine::give_back(record, now, &lease, ttl);
            store.try_step(&key, give_back, Some(turn)).await
        });
        Ok(given_back.await??)
    }

    async fn get(&self, key: &StoreKey) -> Result<Option<Snapshot>, StoreError> {
        let get = |record: Option<&Record>, now| Step {
            change: Change::Keep,
            reply: machine::get(record, now),
        };
        self.step(key, get).await
    }

    /// Also where the record cannot be read.
    async fn forget(&self, key: &StoreKey) -> Result<bool, StoreError> {
        let (store, key) = (self.clone(), key.clone());
        apart(async move {
            let turn = Arc::clone(&store.0.turn).lock_owned().await;
            let now = store.now();
            let forget = with_key(&store.0.schema.forget, &key);
            let pool = store.0.pool.clone();
            let rows = tokio::spawn(async move {
                let _turn = turn;
                forget.fetch_all(&pool).await.map_err(store_error)
            });
            let rows = rows.await.unwrap_or_else(cut_off)?;
            store.wake(&key);
            let was_live = |row: &SqliteRow| {
                let expires_at = row.try_get::<i64, _>(0).map(u64::try_from);
                // What cannot be read was not known to have expired.
                !matches!(expires_at, Ok(Ok(at)) if Timestamp::from_micros(at) <= now)
            };
            Ok(rows.iter().any(was_live))
        })
        .await
    }

    async fn wait(
        &self,
        key: &StoreKey,
        token: FencingToken,
    ) -> Result<Option<Snapshot>, StoreError> {
        // Before the first read, so that no end falls in between.
        let mut listener = self.0.wakes.listen(WakeId::of(key));
        let mut pause = Duration::from_millis(25);
        loop {
            let found = self.get(key).await?;
            let Some(Snapshot { record, now }) = &found else {
                return Ok(None);
            };
            if machine::is_over(Some(record), *now, token) {
                return Ok(found);
            }
            // The lease may end without a word.
            let left = record.lease_until.since(*now);
            let _ = timeout(jittered(pause).min(left), listener.woken()).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    fn transactional(&self) -> Option<&(dyn Any + Send + Sync)> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use sqlx::sqlite::SqlitePoolOptions;

    use super::*;

    async fn store() -> SqliteStore {
        let pool = SqlitePoolOptions::new().max_connections(1);
        let pool = pool.connect_with(SqliteConnectOptions::new()).await;
        let store = SqliteStore::new(pool.unwrap());
        store.migrate().await.unwrap();
        store
    }

    async fn claim(store: &SqliteStore, key: &StoreKey) -> Lease {
        let request = ClaimRequest {
            fingerprint: Fingerprint::hasher("t").finish(),
            owner: OwnerId::random(),
            lease: Duration::from_secs(30),
            ttl: Duration::from_secs(3600),
            take_over: true,
        };
        match store.claim(key, &request).await {
            Ok(Claim::Claimed(claimed)) => claimed.lease,
            other => panic!("not granted: {other:?}"),
        }
    }

    /// S03: each end of a claim wakes who waits in this process, who would else learn of it at the
    /// next poll; and reading wakes nobody.
    #[tokio::test]
    async fn s03_each_end_wakes() {
        let store = store().await;
        let ttl = Duration::from_secs(3600);
        let nothing = Payload::not_replayable(200);
        for end in 0..6 {
            let key = StoreKey::new("idem", "caller", "endpoint", &end.to_string());
            let lease = claim(&store, &key).await;
            let mut listener = store.0.wakes.listen(WakeId::of(&key));
            store.get(&key).await.unwrap();
            assert_eq!(listener.woken().now_or_never(), None);
            match end {
                0 => store.complete(&key, &lease, &nothing, ttl).await.unwrap(),
                1 => store.fail(&key, &lease, ttl).await.unwrap(),
                2 => store.release(&key, &lease, ttl).await.unwrap(),
                3 => store.give_back(&key, &lease, ttl).await.unwrap(),
                4 => assert!(store.forget(&key).await.unwrap()),
                _ => {
                    let now = Duration::ZERO;
                    store.renew(&key, &lease, now, ttl, None).await.unwrap();
                }
            }
            assert_eq!(listener.woken().now_or_never(), Some(()), "{end}");
        }
    }

    /// U29: whoever waits leaves nothing behind, whether it gives up or gets its answer.
    #[tokio::test]
    async fn u29_waits_leave_nothing_behind() {
        let store = store().await;
        let key = StoreKey::new("idem", "caller", "endpoint", "k");
        let lease = claim(&store, &key).await;
        let mut first = Box::pin(store.wait(&key, lease.token));
        assert!(futures::poll!(first.as_mut()).is_pending());
        assert!(!store.0.wakes.is_empty());
        drop(first);
        assert!(store.0.wakes.is_empty());
        let mut second = Box::pin(store.wait(&key, lease.token));
        assert!(futures::poll!(second.as_mut()).is_pending());
        store
            .fail(&key, &lease, Duration::from_secs(60))
            .await
            .unwrap();
        second.await.unwrap();
        assert!(store.0.wakes.is_empty());
    }
}
