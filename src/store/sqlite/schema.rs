//! The table of an SQLite store, and the statements on it.

use std::sync::Arc;

use crate::store::sql::Name;

/// How many expired records an insert removes: more than the one that it adds, so that removal
/// keeps up, and few enough that nobody waits for it.
const FEW: usize = 8;

/// The statements on one table. Their parameters are numbered as `row` binds them.
pub(super) struct Schema {
    pub(super) table: Name,
    /// Makes whatever is missing.
    pub(super) create: Arc<str>,
    /// Whether all is there.
    pub(super) is_there: Arc<str>,
    /// Takes the write lock of the transaction that it runs in, and changes nothing.
    pub(super) lock: Arc<str>,
    /// One row, whether there is a record or not.
    pub(super) read: Arc<str>,
    pub(super) insert: Arc<str>,
    pub(super) update: Arc<str>,
    pub(super) remove: Arc<str>,
    /// Removes the record, readable or not.
    pub(super) forget: Arc<str>,
}

impl Schema {
    pub(super) fn new(table: Name) -> Self {
        let name = table.as_str();
        let key = "prefix = ?1 AND scope = ?2 AND endpoint = ?3 AND idempotency_key = ?4";
        // Whatever changes a record changes one of these.
        let as_read = "status = ?5 AND owner = ?6 AND fencing_token = ?7 AND entry = ?8 \
             AND checkpoint IS ?9 AND lease_until = ?10 AND expires_at = ?11";
        let greatest = format!("coalesce((SELECT greatest FROM \"{name}_tokens\"), 0)");
        let read = format!(
            "SELECT removed.greatest, record.status, record.request_hash, record.hash_algorithm, \
             record.owner, record.fencing_token, record.attempt, record.entry, record.checkpoint, \
             record.response_code, record.response_body, record.created_at, record.lease_until, \
             record.expires_at, record.version \
             FROM (SELECT {greatest} AS greatest) AS removed \
             LEFT JOIN \"{name}\" AS record ON {key}"
        );
        // A claim whose token is not the greatest comes too late: another record came and went
        // since the clock was read.
        let insert = format!(
            "INSERT INTO \"{name}\" (prefix, scope, endpoint, idempotency_key, status, \
             request_hash, hash_algorithm, owner, fencing_token, attempt, entry, checkpoint, \
             response_code, response_body, created_at, lease_until, expires_at, version) \
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, \
             ?18 WHERE ?5 <> 'in_progress' OR ?9 > {greatest} ON CONFLICT DO NOTHING"
        );
        let update = format!(
            "UPDATE \"{name}\" SET status = ?12, request_hash = ?13, hash_algorithm = ?14, \
             owner = ?15, fencing_token = ?16, attempt = ?17, entry = ?18, checkpoint = ?19, \
             response_code = ?20, response_body = ?21, created_at = ?22, lease_until = ?23, \
             expires_at = ?24, version = ?25 WHERE {key} AND {as_read}"
        );
        let is_there = format!(
            "SELECT count(*) = 5 FROM sqlite_schema WHERE name IN ('{name}', '{name}_tokens', \
             '{name}_expires_at', '{name}_inserted', '{name}_removed')"
        );
        Self {
            create: create(name).into(),
            is_there: is_there.into(),
            lock: format!("DELETE FROM \"{name}\" WHERE 0").into(),
            read: read.into(),
            insert: insert.into(),
            update: update.into(),
            remove: format!("DELETE FROM \"{name}\" WHERE {key} AND {as_read}").into(),
            forget: format!("DELETE FROM \"{name}\" WHERE {key} RETURNING expires_at").into(),
            table,
        }
    }
}

fn create(name: &str) -> String {
    format!(
        r#"CREATE TABLE IF NOT EXISTS "{name}" (
    prefix          TEXT NOT NULL,
    scope           TEXT NOT NULL,
    endpoint        TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    status          TEXT NOT NULL, -- in_progress, completed, failed
    request_hash    BLOB NOT NULL,
    hash_algorithm  TEXT NOT NULL,
    owner           BLOB NOT NULL,
    fencing_token   INTEGER NOT NULL,
    attempt         INTEGER NOT NULL,
    entry           TEXT NOT NULL, -- first, retry, takeover
    checkpoint      BLOB,
    response_code   INTEGER,
    response_body   BLOB, -- NULL where the answer cannot be given again
    created_at      INTEGER NOT NULL, -- these three: microseconds since 1970
    lease_until     INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL,
    version         INTEGER NOT NULL,
    PRIMARY KEY (prefix, scope, endpoint, idempotency_key)
) STRICT;

CREATE INDEX IF NOT EXISTS "{name}_expires_at" ON "{name}" (expires_at);

-- The greatest token of all records that were removed, so that tokens only grow.
CREATE TABLE IF NOT EXISTS "{name}_tokens" (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    greatest INTEGER NOT NULL
) STRICT;

CREATE TRIGGER IF NOT EXISTS "{name}_removed" AFTER DELETE ON "{name}"
WHEN old.fencing_token > coalesce((SELECT greatest FROM "{name}_tokens"), 0)
BEGIN
    INSERT OR REPLACE INTO "{name}_tokens" (id, greatest) VALUES (1, old.fencing_token);
END;

-- Each new record takes a few with it that have expired.
CREATE TRIGGER IF NOT EXISTS "{name}_inserted" AFTER INSERT ON "{name}"
BEGIN
    DELETE FROM "{name}" WHERE rowid IN (
        SELECT rowid FROM "{name}"
        WHERE expires_at <= new.created_at
        ORDER BY expires_at LIMIT {FEW}
    );
END;
"#
    )
}
