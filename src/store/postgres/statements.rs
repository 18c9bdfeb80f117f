//! The statements, for one table. Their rules are [`machine`](crate::machine)'s.
//!
//! Each reads the row as its snapshot has it (`seen`), changes the current one if that may be
//! changed (a condition on the row itself, which PostgreSQL looks at again once it has the row's
//! lock), and answers with what it saw where it changed nothing. The clock is read once, before any
//! lock is waited for: an older time only makes fewer rows claimable.
//!
//! `$1` to `$4` are the key, `$5` is added to the clock.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::{
    key::push_hex,
    record::OwnerId,
    store::sql::{LAYOUT, Name},
};

pub(super) struct Statements {
    pub(super) claim: Arc<str>,
    pub(super) renew: Arc<str>,
    pub(super) complete: Arc<str>,
    pub(super) complete_strictly: Arc<str>,
    pub(super) end: Arc<str>,
    pub(super) get: Arc<str>,
    pub(super) forget: Arc<str>,
}

/// How many expired records a granted claim removes, at most: more than the one that it adds.
const FEW: u8 = 16;

const KEY: &str = "r.prefix = $1 AND r.scope = $2 AND r.endpoint = $3 AND r.idempotency_key = $4";

/// What a reply tells of a record, without its answer.
const COLUMNS: &str = "r.version, r.status, r.hash_algorithm, r.request_hash, r.owner, \
    r.fencing_token, r.attempt, r.entry, r.checkpoint, r.response_code, r.created_at, \
    r.lease_until, r.expires_at";

/// As [`Row::record`](crate::store::sql::Row::record) has it: what that refuses is not changed.
fn readable() -> String {
    format!(
        "r.version = {LAYOUT} AND r.status IN ('in_progress', 'completed', 'failed') \
         AND r.entry IN ('first', 'retry', 'takeover') \
         AND r.hash_algorithm ~ '^[!-9;-~]{{1,16}}$' AND length(r.request_hash) = 32 \
         AND length(r.owner) = 16 AND r.fencing_token >= 0 AND r.attempt > 0 \
         AND (r.status <> 'completed' OR coalesce(r.response_code, -1) BETWEEN 0 AND 65535) \
         AND r.created_at IS NOT NULL AND r.lease_until IS NOT NULL AND r.expires_at IS NOT NULL"
    )
}

/// In progress under the owner `$6`, at the time `now`.
fn held(now: &str) -> String {
    let readable = readable();
    format!("{readable} AND r.owner = $6 AND r.status = 'in_progress' AND r.expires_at > {now}")
}

/// The clock, and the row of the snapshot.
fn beginning(table: &Table) -> String {
    format!(
        "WITH clock AS MATERIALIZED (SELECT clock_timestamp() + $5 AS now), \
         seen AS MATERIALIZED (SELECT true AS found, {COLUMNS}, r.response_body \
         FROM {table} r WHERE {KEY})"
    )
}

/// The reply: whether something was changed (`changed` has a row then), and else what was seen.
fn reply(told: &str) -> String {
    format!(
        "SELECT d.done, c.now, r.found, {COLUMNS}, NULL::bytea AS response_body, {told} \
         FROM clock c CROSS JOIN (SELECT EXISTS (SELECT FROM changed) AS done) d \
         LEFT JOIN seen r ON NOT d.done"
    )
}

/// Tells who waits, if anybody does: waiters hold a lock of the key's bucket (`bucket`), shared.
fn tell(table: &Table, done: &str, bucket: &str, id: &str) -> String {
    if !table.notifies {
        // The arguments stay, so that all is bound alike.
        return format!("({bucket}, {id}) IS NULL AS told");
    }
    let (class, channel) = (table.class(), table.channel());
    format!(
        "CASE WHEN {done} AND NOT pg_try_advisory_xact_lock({class}, {bucket}) \
         THEN pg_notify('{channel}', {id})::text IS NULL END AS told"
    )
}

impl Statements {
    pub(super) fn new(table: &Table) -> Self {
        Self {
            claim: claim(table).into(),
            renew: renew(table).into(),
            complete: complete(table).into(),
            complete_strictly: complete_strictly(table).into(),
            end: end(table).into(),
            get: get(table).into(),
            forget: forget(table).into(),
        }
    }
}

/// `$6` owner, `$7` algorithm, `$8` hash, `$9` lease, `$10` time to live, `$11` whether to take over.
///
/// Where the row seen cannot be claimed nothing is inserted and so nothing is locked: a replay or a
/// conflict is a pure read. Expired rows of other keys go once the claim is granted, never before:
/// who waits for a row's lock holds no other, so that claims cannot wait for each other in a ring.
fn claim(table: &Table) -> String {
    let beginning = beginning(table);
    let readable = readable();
    let claimable = |now: &str| {
        format!(
            "{readable} AND (r.expires_at <= {now} OR (r.hash_algorithm = $7 \
             AND r.request_hash = $8 AND (r.status = 'failed' OR (r.status = 'in_progress' \
             AND (r.owner = $6 OR ($11 AND r.lease_until <= {now}))))))"
        )
    };
    let (seen_is_claimable, is_claimable) = (claimable("c.now"), claimable("excluded.created_at"));
    let expired = "r.expires_at <= excluded.created_at";
    // Only a row in progress is claimed again by its owner.
    let again = "r.status = 'in_progress' AND r.owner = excluded.owner";
    format!(
        "{beginning}, claimed AS ( \
         INSERT INTO {table} AS r (prefix, scope, endpoint, idempotency_key, version, status, \
           hash_algorithm, request_hash, owner, fencing_token, attempt, entry, created_at, \
           lease_until, expires_at) \
         SELECT $1, $2, $3, $4, {LAYOUT}, 'in_progress', $7, $8, $6, \
           (extract(epoch FROM c.now) * 1000000)::bigint, 1, 'first', c.now, c.now + $9, \
           c.now + $9 + $10 \
         FROM clock c WHERE NOT EXISTS (SELECT FROM seen r WHERE ({seen_is_claimable}) IS NOT TRUE) \
         ON CONFLICT (prefix, scope, endpoint, idempotency_key) DO UPDATE SET \
           status = excluded.status, hash_algorithm = excluded.hash_algorithm, \
           request_hash = excluded.request_hash, owner = excluded.owner, \
           fencing_token = CASE WHEN NOT ({expired}) AND {again} THEN r.fencing_token \
             ELSE greatest(least(r.fencing_token, 9223372036854775806) + 1, \
               excluded.fencing_token) END, \
           attempt = CASE WHEN {expired} THEN 1 WHEN {again} THEN r.attempt \
             ELSE least(r.attempt, 2147483646) + 1 END, \
           entry = CASE WHEN {expired} THEN 'first' WHEN {again} THEN r.entry \
             WHEN r.status = 'failed' THEN 'retry' ELSE 'takeover' END, \
           checkpoint = CASE WHEN {expired} THEN NULL ELSE r.checkpoint END, \
           response_code = NULL, response_body = NULL, \
           created_at = CASE WHEN {expired} THEN excluded.created_at ELSE r.created_at END, \
           lease_until = excluded.lease_until, expires_at = excluded.expires_at \
         WHERE {is_claimable} \
         RETURNING {COLUMNS}), \
         swept AS (DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT r.ctid FROM {table} r \
           WHERE EXISTS (SELECT FROM claimed) AND r.expires_at <= (SELECT now FROM clock) \
           AND NOT ({KEY}) ORDER BY r.expires_at LIMIT {FEW} FOR UPDATE SKIP LOCKED))) \
         SELECT true AS done, c.now, true AS found, {COLUMNS}, NULL::bytea AS response_body \
         FROM claimed r, clock c \
         UNION ALL \
         SELECT false, c.now, r.found, {COLUMNS}, r.response_body \
         FROM clock c LEFT JOIN seen r ON true WHERE NOT EXISTS (SELECT FROM claimed)"
    )
}

/// `$6` owner, `$7` checkpoint or nothing, `$8` lease, `$9` time to live.
fn renew(table: &Table) -> String {
    let (beginning, held, reply) = (beginning(table), held("c.now"), reply("NULL AS told"));
    format!(
        "{beginning}, changed AS (UPDATE {table} r SET checkpoint = coalesce($7, r.checkpoint), \
         lease_until = c.now + $8, expires_at = c.now + $8 + $9 \
         FROM clock c WHERE {KEY} AND {held} RETURNING true) {reply}"
    )
}

/// `$6` owner, `$7` algorithm, `$8` hash, `$9` token, `$10` attempt, `$11` code, `$12` body or
/// nothing, `$13` time to live, `$14` bucket, `$15` id.
fn complete(table: &Table) -> String {
    let (beginning, readable) = (beginning(table), readable());
    let completable = |now: &str| {
        format!(
            "{readable} AND (r.expires_at <= {now} \
             OR (r.owner = $6 AND r.status <> 'completed'))"
        )
    };
    let (seen_is_completable, is_completable) =
        (completable("c.now"), completable("excluded.lease_until"));
    let expired = "r.expires_at <= excluded.lease_until";
    let reply = reply(&tell(table, "d.done", "$14", "$15"));
    format!(
        "{beginning}, changed AS ( \
         INSERT INTO {table} AS r (prefix, scope, endpoint, idempotency_key, version, status, \
           hash_algorithm, request_hash, owner, fencing_token, attempt, entry, response_code, \
           response_body, created_at, lease_until, expires_at) \
         SELECT $1, $2, $3, $4, {LAYOUT}, 'completed', $7, $8, $6, $9, $10, 'first', $11, $12, \
           c.now, c.now, c.now + $13 \
         FROM clock c \
         WHERE NOT EXISTS (SELECT FROM seen r WHERE ({seen_is_completable}) IS NOT TRUE) \
         ON CONFLICT (prefix, scope, endpoint, idempotency_key) DO UPDATE SET \
           status = excluded.status, hash_algorithm = excluded.hash_algorithm, \
           request_hash = excluded.request_hash, owner = excluded.owner, \
           fencing_token = excluded.fencing_token, attempt = excluded.attempt, \
           entry = CASE WHEN {expired} THEN excluded.entry ELSE r.entry END, \
           checkpoint = NULL, response_code = excluded.response_code, \
           response_body = excluded.response_body, \
           created_at = CASE WHEN {expired} THEN excluded.created_at ELSE r.created_at END, \
           lease_until = excluded.lease_until, expires_at = excluded.expires_at \
         WHERE {is_completable} RETURNING true) {reply}"
    )
}

/// The same arguments. Only a record in progress under this owner is completed.
fn complete_strictly(table: &Table) -> String {
    let (beginning, held) = (beginning(table), held("c.now"));
    let reply = reply(&tell(table, "d.done", "$14", "$15"));
    format!(
        "{beginning}, changed AS (UPDATE {table} r SET status = 'completed', \
         hash_algorithm = $7, request_hash = $8, fencing_token = $9, attempt = $10, \
         checkpoint = NULL, response_code = $11, response_body = $12, lease_until = c.now, \
         expires_at = c.now + $13 \
         FROM clock c WHERE {KEY} AND {held} RETURNING true) {reply}"
    )
}

/// `$6` owner, `$7` time to live, `$8` whether a first attempt without a checkpoint is removed, `$9`
/// whether a takeover is abandoned again, `$10` bucket, `$11` id. Neither is a failure.
///
/// With `$9` it fails where somebody has the row's lock: the claim that is given back may be waiting
/// for it still, though nobody waits for the claim, and would take effect after this.
fn end(table: &Table) -> String {
    let (beginning, held) = (beginning(table), held("c.now"));
    let returned = "($9 AND r.entry = 'takeover')";
    let removed = format!("($8 AND NOT {returned} AND r.attempt = 1 AND r.checkpoint IS NULL)");
    let mut nobody = String::new();
    push_hex(&mut nobody, &OwnerId::NOBODY.as_u128().to_be_bytes());
    let told = tell(table, "d.done", "$10", "$11");
    let reply = reply(&format!("{told}, (SELECT count(*) FROM free) AS free"));
    format!(
        "{beginning}, free AS MATERIALIZED (SELECT FROM {table} r WHERE {KEY} AND $9 \
           FOR UPDATE NOWAIT), \
         removed AS (DELETE FROM {table} r USING clock c \
           WHERE {KEY} AND {held} AND {removed} RETURNING true), \
         kept AS (UPDATE {table} r SET \
           status = CASE WHEN {returned} THEN r.status ELSE 'failed' END, \
           owner = CASE WHEN {returned} THEN decode('{nobody}', 'hex') ELSE r.owner END, \
           lease_until = c.now, expires_at = c.now + $7 \
           FROM clock c WHERE {KEY} AND {held} AND NOT {removed} RETURNING true), \
         changed AS (SELECT true FROM removed UNION ALL SELECT true FROM kept) {reply}"
    )
}

fn get(table: &Table) -> String {
    let beginning = beginning(table);
    format!(
        "{beginning} SELECT true AS done, c.now, r.found, {COLUMNS}, r.response_body \
         FROM clock c LEFT JOIN seen r ON true"
    )
}

/// `$6` bucket, `$7` id.
fn forget(table: &Table) -> String {
    let tell = tell(table, "true", "$6", "$7");
    format!(
        "WITH gone AS (DELETE FROM {table} r WHERE {KEY} \
         RETURNING coalesce(r.expires_at > clock_timestamp() + $5, true) AS live) SELECT live, {tell} FROM gone"
    )
}

/// The table, and how its waiters are told.
pub(super) struct Table {
    pub(super) schema: Name,
    pub(super) table: Name,
    pub(super) notifies: bool,
}

impl Table {
    /// The channel of its messages.
    pub(super) fn channel(&self) -> String {
        let mut channel = "idempotency_".to_owned();
        push_hex(&mut channel, &self.digest()[..8]);
        channel
    }

    /// The first number of its advisory locks.
    pub(super) fn class(&self) -> i32 {
        let digest = self.digest();
        i32::from_be_bytes([digest[8], digest[9], digest[10], digest[11]])
    }

    fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.to_string()).into()
    }

    /// The name of the index of expiry.
    pub(super) fn index(&self) -> String {
        format!("{}_expires_at", self.table.as_str())
    }

    /// What `PostgresStore::migrate` runs where nothing is there yet.
    pub(super) fn schema(&self) -> String {
        let index = self.index();
        format!(
            r#"CREATE TABLE IF NOT EXISTS {self} (
    prefix          text     COLLATE "C" NOT NULL,
    scope           text     COLLATE "C" NOT NULL,
    endpoint        text     COLLATE "C" NOT NULL,
    idempotency_key text     COLLATE "C" NOT NULL,
    version         smallint NOT NULL DEFAULT {LAYOUT},
    status          text     COLLATE "C" NOT NULL,
    hash_algorithm  text     COLLATE "C" NOT NULL,
    request_hash    bytea    NOT NULL,
    owner           bytea    NOT NULL,
    fencing_token   bigint   NOT NULL,
    attempt         integer  NOT NULL,
    entry           text     COLLATE "C" NOT NULL,
    checkpoint      bytea,
    response_code   integer,
    response_body   bytea,
    created_at      timestamptz NOT NULL,
    lease_until     timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL,
    PRIMARY KEY (prefix, scope, endpoint, idempotency_key)
);
CREATE INDEX IF NOT EXISTS "{index}" ON {self} (expires_at);
"#
        )
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}
