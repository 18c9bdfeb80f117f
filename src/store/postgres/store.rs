//! The store: sends the statements, and reads the replies with the machine.

use std::{
    any::Any,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{
    AssertSqlSafe, Connection as _, Executor, PgConnection, PgPool, Postgres, Row as _,
    postgres::PgArguments, query::Query,
};
use tokio::time::{sleep, timeout};

use super::{
    listening::{Hold, Listening},
    reply::{NAME, Reply, interval, is_conflict, refused},
    statements::{Statements, Table},
};
use crate::{
    key::StoreKey,
    machine::{self, Change, Refused, Step},
    record::{
        Claim, ClaimRequest, Claimed, FencingToken, Lease, Payload, Record, Snapshot, Timestamp,
    },
    store::{
        contract::{Store, StoreError, jittered},
        sql::{
            DEFAULT_TABLE, InvalidName, KeyColumns, LAYOUT, Name, body_column, owner_bytes,
            token_column,
        },
        transaction::NotCompleted,
        wakes::{WakeId, Wakes},
    },
};

/// Records in a table of PostgreSQL, 12 or later. A clone is another handle to the same store.
///
/// For several servers that answer for one another, and for handlers that commit their own rows
/// together with the record ([`Execution::transaction`](crate::Execution::transaction)).
///
/// The pool is one of `sqlx` 0.9: depend on that release.
///
/// ```no_run
/// use sqlx::postgres::PgPoolOptions;
/// use tower_idempotency::{IdempotencyLayer, PostgresStore, Scope};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = PgPoolOptions::new()
///     .max_connections(20)
///     .connect("postgres://app@localhost/app")
///     .await?;
/// let store = PostgresStore::new(pool);
/// store.migrate().await?;
/// let layer = IdempotencyLayer::new(store, Scope::header("x-api-key"));
/// # drop(layer);
/// # Ok(())
/// # }
/// ```
///
/// # The table
///
/// `public.idempotency_records`, unless told otherwise. [`migrate`](Self::migrate) makes it;
/// [`schema`](Self::schema) is the text for those who run their own migrations. Its key is over
/// prefix, scope, endpoint and idempotency key, as they stand in the [`StoreKey`]; a part that is
/// longer than 512 bytes, holds NUL or begins with `#` stands as `#` and its SHA-256. A row with
/// another `version` than this build knows is [`StoreError::Corrupt`], and so is one that cannot be
/// read for any other reason; it is changed by nothing but [`forget`](Store::forget). Every layout
/// has `expires_at`: a row goes after it.
///
/// # What can be lost
///
/// Nothing that was acknowledged, under PostgreSQL's defaults. With `synchronous_commit = off` a
/// crash of the server can take the last moments' claims and answers, and so can a failover to an
/// asynchronous standby: a key of that time runs again. Do not set the one for this database, or
/// make the other synchronous, where that matters (P1).
///
/// # Statements
///
/// Each operation is one statement in a transaction of its own, at whatever isolation level the
/// session has. It is sent again, eight times at most, where another transaction came between. A
/// replay, a conflict and a mismatch only read: they take no lock of a row, write nothing, and do
/// not wait for a transaction that has the row. Everything else waits for it, but for
/// [`give_back`](Store::give_back), which is unavailable meanwhile. Times are those of the server's
/// clock when the statement starts; the session's time zone and search path do not matter.
///
/// A granted claim removes up to 16 expired rows of other keys, those that nobody has locked. Every
/// renewal moves the row's place in the index of expiry, so leave autovacuum on.
///
/// # Time
///
/// Where the server's clock is set back, or a standby whose clock is behind takes over, leases and
/// records last that much longer; where it is set forward, they end that much earlier. Synchronise the
/// clocks. The token of a key may be smaller than its last one only where that record was removed
/// (released, forgotten, expired), and since then the clock was set back, or the new claim had read
/// the clock before and the server kept it waiting all through the other one.
///
/// # Waiting
///
/// While somebody waits, the store has one more connection, made with the pool's options and not
/// counted by it, which listens; it is closed 10 s after the last wait. Where it cannot be had
/// within 1 s, waits poll, after 25 ms at first and 1 s at most. They also look each second while it
/// listens. An end is told (`NOTIFY`) only if somebody waits, since telling takes a lock of the whole server:
/// waiters hold one of 256 advisory locks for that.
///
/// # Errors
///
/// [`StoreError::Unavailable`] where no connection is free within the pool's `acquire_timeout`,
/// where a connection breaks or is ended by the server, and for each error of the server, with its
/// code and message: a time-out of a statement or a lock, a server that is read-only, a table that
/// is missing. [`StoreError::Full`] where the server's disk is full. An operation that met a broken
/// connection is not sent again; the pool looks after its connections before it gives them out,
/// unless told not to.
///
/// # Settings
///
/// - Give the pool a `max_connections` for the requests that you serve at once, and an
///   `acquire_timeout` below the deadline of a store call.
/// - Set `lock_timeout` and `statement_timeout` for the pool's connections, a little above that
///   deadline. The server goes on with a call that its caller gave up, and the connection is not free
///   before it has ended: one that waits for a row keeps it until the row's transaction ends.
/// - `test_before_acquire(false)` saves a round trip for each operation. An operation then fails
///   where its connection broke while it was idle.
/// - The database's encoding has to be UTF-8.
/// - PgBouncer in transaction mode: 1.21 or later, with `max_prepared_statements` set, and
///   [`without_notifications`](PostgresStoreBuilder::without_notifications).
/// - For TLS turn on a `tls-…` feature of `sqlx`.
#[derive(Clone)]
pub struct PostgresStore(Arc<Shared>);

struct Shared {
    pool: PgPool,
    table: Table,
    statements: Statements,
    /// Added to the server's clock by tests, in µs.
    ahead: AtomicU64,
    wakes: Wakes,
    listening: Option<Listening>,
}

/// How often a statement is sent where other transactions come between.
const TRIES: u32 = 8;

/// How often a waiter looks, though it would be told.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How soon it looks at first, where it would not.
const LOOK_FIRST: Duration = Duration::from_millis(25);

impl PostgresStore {
    /// Keeps records in `public.idempotency_records`.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self::builder(pool).build()
    }

    /// Sets another table or schema, or turns notifications off.
    pub fn builder(pool: PgPool) -> PostgresStoreBuilder {
        PostgresStoreBuilder {
            pool,
            schema: Name::known("public"),
            table: Name::known(DEFAULT_TABLE),
            notifies: true,
        }
    }

    /// Makes the table and its index, where they are not there yet. Safe to call at every start,
    /// from many processes at once. It does not make the schema that they stand in.
    ///
    /// Where both are there it needs no right to make anything.
    ///
    /// # Errors
    ///
    /// [`StoreError::Corrupt`] where there is a table of that name with another layout: the default
    /// of its column `version` says which. Otherwise as the other operations; also where the user may
    /// make no table in the schema, as in `public` since PostgreSQL 15, unless it owns the database.
    ///
    /// # Cancellation
    ///
    /// Dropped, it has made everything or nothing.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let Shared { pool, table, .. } = &*self.0;
        let mut connection = pool.acquire().await.map_err(refused)?;
        if is_there(&mut connection, table).await? {
            return Ok(());
        }
        let mut transaction = connection.begin().await.map_err(refused)?;
        // `IF NOT EXISTS` alone fails where two come at the same time.
        sqlx::query("SELECT pg_advisory_xact_lock($1, -1)")
            .bind(table.class())
            .execute(&mut *transaction)
            .await
            .map_err(refused)?;
        if is_there(&mut transaction, table).await? {
            return Ok(());
        }
        sqlx::raw_sql(AssertSqlSafe(table.schema()))
            .execute(&mut *transaction)
            .await
            .map_err(refused)?;
        transaction.commit().await.map_err(refused)
    }

    /// The statements that make the table and its index, for those who run their own migrations.
    /// They can be run again.
    ///
    /// ```
    /// # use sqlx::postgres::PgPoolOptions;
    /// # use tower_idempotency::PostgresStore;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = PgPoolOptions::new().connect_lazy("postgres://localhost/app")?;
    /// let store = PostgresStore::builder(pool).schema("app")?.build();
    /// assert!(store.schema().starts_with(
    ///     r#"CREATE TABLE IF NOT EXISTS "app"."idempotency_records" ("#
    /// ));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn schema(&self) -> String {
        self.0.table.schema()
    }

    /// Records the answer inside a transaction: it is recorded if the transaction is committed, and
    /// who waits is told then.
    ///
    /// Unlike [`complete`](Store::complete) this is strict: it works only while the record is there,
    /// in progress, under this owner, though its lease may have ended. From here to the end of the
    /// transaction the record's row is locked: a renewal waits, and so does a claim once the lease
    /// has ended. So commit next.
    ///
    /// # Isolation
    ///
    /// `READ COMMITTED`, PostgreSQL's default, is enough: the record is looked at and locked as it is
    /// at that moment. Under `REPEATABLE READ` and `SERIALIZABLE` this fails with
    /// [`NotCompleted::Conflict`] where the record was renewed since the transaction's first
    /// statement, so that a transaction longer than the time between two renewals cannot be
    /// committed.
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
        connection: &mut PgConnection,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), NotCompleted> {
        let (columns, id) = (KeyColumns::of(key), WakeId::of(key));
        let sql = &self.0.statements.complete_strictly;
        for _ in 0..TRIES {
            let query = self.completion(sql, &columns, id, lease, payload, ttl);
            let row = connection.fetch_one(query).await.map_err(|error| {
                let conflict = is_conflict(&error);
                match refused(error) {
                    StoreError::Unavailable { source, .. } if conflict => {
                        NotCompleted::Conflict(source)
                    }
                    error => NotCompleted::Store(error),
                }
            })?;
            let reply = Reply::read(&row).map_err(NotCompleted::Store)?;
            if reply.done {
                return Ok(());
            }
            let reason = NotCompleted::reason(reply.record.as_ref(), reply.now, lease);
            if let Some(reason) = reason {
                return Err(reason);
            }
        }
        Err(NotCompleted::Store(beaten()))
    }

    /// Moves the store's clock forward, for tests of what happens later.
    #[cfg(feature = "testing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn advance_clock(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        let _ = self
            .0
            .ahead
            .fetch_update(Relaxed, Relaxed, |ahead| Some(ahead.saturating_add(micros)));
        self.0.wakes.wake_all();
    }

    /// A statement with its first arguments.
    fn query(&self, sql: &Arc<str>, key: &KeyColumns<'_>) -> Query<'static, Postgres, PgArguments> {
        let ahead = Duration::from_micros(self.0.ahead.load(Relaxed));
        sqlx::query(AssertSqlSafe(Arc::clone(sql)))
            .bind(&*key.prefix)
            .bind(&*key.scope)
            .bind(&*key.endpoint)
            .bind(&*key.key)
            .bind(interval(ahead))
    }

    fn completion(
        &self,
        sql: &Arc<str>,
        key: &KeyColumns<'_>,
        id: WakeId,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Query<'static, Postgres, PgArguments> {
        self.query(sql, key)
            .bind(owner_bytes(lease.owner))
            .bind(lease.fingerprint.algorithm())
            .bind(lease.fingerprint.digest())
            .bind(token_column(lease.token))
            .bind(i32::try_from(lease.attempt).unwrap_or(i32::MAX))
            .bind(i32::from(payload.code))
            .bind(body_column(payload))
            .bind(interval(ttl))
            .bind(i32::from(id.bucket()))
            .bind(id.to_string())
    }

    /// Sends a statement until its reply says something.
    async fn ask<T>(
        &self,
        query: impl Fn() -> Query<'static, Postgres, PgArguments>,
        answer: impl Fn(Reply) -> Option<T>,
    ) -> Result<T, StoreError> {
        for tried in 0..TRIES {
            let row = match self.0.pool.fetch_one(query()).await {
                Ok(row) => row,
                Err(error) if is_conflict(&error) && tried + 1 < TRIES => {
                    // They come in crowds.
                    sleep(jittered(Duration::from_millis(2) * (1 << tried))).await;
                    continue;
                }
                Err(error) => return Err(refused(error)),
            };
            if let Some(answer) = answer(Reply::read(&row)?) {
                return Ok(answer);
            }
        }
        Err(beaten())
    }

    /// Sends a change of its owner's. Where nothing was changed, the rule says why, by the record
    /// that was seen; where it says that there was something to change, somebody else was faster.
    async fn change(
        &self,
        query: impl Fn() -> Query<'static, Postgres, PgArguments>,
        rule: impl Fn(Option<&Record>, Timestamp) -> Step<Result<(), Refused>>,
    ) -> Result<(), StoreError> {
        let changed = self.ask(query, |found| {
            if found.done {
                return Some(Ok(()));
            }
            let Step { change, reply } = rule(found.record.as_ref(), found.now);
            (change == Change::Keep).then_some(reply)
        });
        Ok(changed.await??)
    }

    /// Ends an attempt without an answer.
    async fn end(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
        (removes, returns): (bool, bool),
        rule: impl Fn(Option<&Record>, Timestamp) -> Step<Result<(), Refused>>,
    ) -> Result<(), StoreError> {
        let (columns, id) = (KeyColumns::of(key), WakeId::of(key));
        let query = || {
            self.query(&self.0.statements.end, &columns)
                .bind(owner_bytes(lease.owner))
                .bind(interval(ttl))
                .bind(removes)
                .bind(returns)
                .bind(i32::from(id.bucket()))
                .bind(id.to_string())
        };
        self.change(query, rule).await?;
        self.0.wakes.wake(id);
        Ok(())
    }
}

fn beaten() -> StoreError {
    StoreError::unavailable(NAME, "other transactions came between, time and again")
}

/// Whether the table is there, in the layout of this build, with its index.
async fn is_there(connection: &mut PgConnection, table: &Table) -> Result<bool, StoreError> {
    let found = sqlx::query(
        "SELECT pg_get_expr(d.adbin, d.adrelid) AS version, \
           EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid \
             WHERE i.indrelid = t.oid AND x.relname = $3) AS indexed \
         FROM pg_class t JOIN pg_namespace s ON s.oid = t.relnamespace \
         LEFT JOIN pg_attribute a \
           ON a.attrelid = t.oid AND a.attname = 'version' AND NOT a.attisdropped \
         LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = a.attnum \
         WHERE s.nspname = $1 AND t.relname = $2",
    )
    .bind(table.schema.as_str())
    .bind(table.table.as_str())
    .bind(table.index())
    .fetch_optional(connection)
    .await
    .map_err(refused)?;
    let Some(found) = found else {
        return Ok(false);
    };
    let version: Option<String> = found.try_get("version").map_err(refused)?;
    if version.as_deref() != Some(LAYOUT.to_string().as_str()) {
        let version = version.unwrap_or_else(|| "unknown".to_owned());
        let reason = format!(
            "the table {table} has the layout {version}, and this build knows only {LAYOUT}"
        );
        return Err(StoreError::corrupt(NAME, reason));
    }
    found.try_get("indexed").map_err(refused)
}

#[async_trait]
impl Store for PostgresStore {
    async fn claim(&self, key: &StoreKey, request: &ClaimRequest) -> Result<Claim, StoreError> {
        let columns = KeyColumns::of(key);
        let query = || {
            self.query(&self.0.statements.claim, &columns)
                .bind(owner_bytes(request.owner))
                .bind(request.fingerprint.algorithm())
                .bind(request.fingerprint.digest())
                .bind(interval(request.lease))
                .bind(interval(request.ttl))
                .bind(request.take_over)
        };
        self.ask(query, |found| match found.record {
            Some(record) if found.done => Some(Claim::Claimed(Claimed {
                lease: Lease {
                    owner: record.owner,
                    token: record.token,
                    attempt: record.attempt,
                    fingerprint: record.fingerprint,
                },
                entry: record.entry,
                checkpoint: record.checkpoint,
            })),
            record => {
                let Step { change, reply } = machine::claim(record.as_ref(), found.now, request);
                (change == Change::Keep).then_some(reply)
            }
        })
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
        let columns = KeyColumns::of(key);
        let query = || {
            self.query(&self.0.statements.renew, &columns)
                .bind(owner_bytes(lease.owner))
                .bind(checkpoint.as_deref())
                .bind(interval(lease_for))
                .bind(interval(ttl))
        };
        self.change(query, |record, now| {
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
        let (columns, id) = (KeyColumns::of(key), WakeId::of(key));
        let sql = &self.0.statements.complete;
        self.change(
            || self.completion(sql, &columns, id, lease, payload, ttl),
            |record, now| machine::complete(record, now, lease, payload, ttl),
        )
        .await?;
        self.0.wakes.wake(id);
        Ok(())
    }

    async fn fail(&self, key: &StoreKey, lease: &Lease, ttl: Duration) -> Result<(), StoreError> {
        self.end(key, lease, ttl, (false, false), |record, now| {
            machine::fail(record, now, lease, ttl)
        })
        .await
    }

    async fn release(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.end(key, lease, ttl, (true, false), |record, now| {
            machine::release(record, now, lease, ttl)
        })
        .await
    }

    async fn give_back(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.end(key, lease, ttl, (true, true), |record, now| {
            machine::give_back(record, now, lease, ttl)
        })
        .await
    }

    async fn get(&self, key: &StoreKey) -> Result<Option<Snapshot>, StoreError> {
        let columns = KeyColumns::of(key);
        let query = || self.query(&self.0.statements.get, &columns);
        self.ask(query, |found| {
            Some(machine::get(found.record.as_ref(), found.now))
        })
        .await
    }

    async fn forget(&self, key: &StoreKey) -> Result<bool, StoreError> {
        let (columns, id) = (KeyColumns::of(key), WakeId::of(key));
        let sql = &self.0.statements.forget;
        for tried in 1.. {
            let query = self.query(sql, &columns);
            let query = query.bind(i32::from(id.bucket())).bind(id.to_string());
            match self.0.pool.fetch_optional(query).await {
                Ok(gone) => {
                    self.0.wakes.wake(id);
                    let live = gone.map(|row| row.try_get("live"));
                    return live.unwrap_or(Ok(false)).map_err(refused);
                }
                Err(error) if is_conflict(&error) && tried < TRIES => {}
                Err(error) => return Err(refused(error)),
            }
        }
        Err(beaten())
    }

    /// Hears of the end from the server, and looks now and then all the same.
    async fn wait(
        &self,
        key: &StoreKey,
        token: FencingToken,
    ) -> Result<Option<Snapshot>, StoreError> {
        let id = WakeId::of(key);
        // Registered, then told of ends, then read: no end falls between.
        let mut told = self.0.wakes.listen(id);
        let mut hold: Option<Hold> = None;
        let mut pause = LOOK_FIRST;
        let mut patience = LOOK_EVERY;
        loop {
            if let Some(listening) = &self.0.listening
                && !hold.as_ref().is_some_and(Hold::is_good)
            {
                hold = listening.hold(id.bucket(), patience).await;
                // A server that let us wait in vain once does not hold up every look.
                patience = LOOK_FIRST;
            }
            let found = self.get(key).await?;
            let (record, now) = match &found {
                Some(snapshot) => (&snapshot.record, snapshot.now),
                None => return Ok(None),
            };
            if machine::is_over(Some(record), now, token) {
                return Ok(found);
            }
            let ends = record.lease_until.min(record.expires_at).since(now);
            let look = match hold {
                Some(_) => LOOK_EVERY,
                None => pause,
            };
            // Not a moment before the end, which would be in vain.
            let most = jittered(look).min(ends + Duration::from_millis(1));
            if timeout(most, told.woken()).await.is_err() {
                pause = LOOK_EVERY.min(pause * 2);
            }
        }
    }

    fn transactional(&self) -> Option<&(dyn Any + Send + Sync)> {
        Some(self)
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("table", &format_args!("{}", self.0.table))
            .field("connections", &self.0.pool.size())
            .finish_non_exhaustive()
    }
}

/// Makes a [`PostgresStore`] with another table or schema.
#[derive(Clone)]
#[must_use]
pub struct PostgresStoreBuilder {
    pool: PgPool,
    schema: Name,
    table: Name,
    notifies: bool,
}

impl PostgresStoreBuilder {
    /// The schema of the table; `public` by default. Upper and lower case count.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] where it is not 1 to 50 ASCII letters, digits and `_`, or begins with a
    /// digit.
    pub fn schema(mut self, name: &str) -> Result<Self, InvalidName> {
        self.schema = Name::new(name)?;
        Ok(self)
    }

    /// The table; `idempotency_records` by default. Upper and lower case count.
    ///
    /// # Errors
    ///
    /// As [`schema`](Self::schema).
    pub fn table(mut self, name: &str) -> Result<Self, InvalidName> {
        self.table = Name::new(name)?;
        Ok(self)
    }

    /// Neither listens nor tells: every wait polls, in all processes that share the table. For
    /// connections through a proxy that gives each transaction another session.
    pub fn without_notifications(mut self) -> Self {
        self.notifies = false;
        self
    }

    /// Makes the store. Nothing is sent yet.
    #[must_use]
    pub fn build(self) -> PostgresStore {
        let table = Table {
            schema: self.schema,
            table: self.table,
            notifies: self.notifies,
        };
        let wakes = Wakes::default();
        let listening = self.notifies.then(|| {
            let options = self.pool.connect_options();
            Listening::new(options, table.channel(), table.class(), wakes.clone())
        });
        PostgresStore(Arc::new(Shared {
            statements: Statements::new(&table),
            ahead: AtomicU64::new(0),
            pool: self.pool,
            table,
            wakes,
            listening,
        }))
    }
}

/// Without the pool, whose options hold a password.
impl fmt::Debug for PostgresStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStoreBuilder")
            .field("schema", &self.schema)
            .field("table", &self.table)
            .field("notifies", &self.notifies)
            .finish_non_exhaustive()
    }
}
