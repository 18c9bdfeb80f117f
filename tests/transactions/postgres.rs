//! A schema of its own on a server for all cases, or on one of the case's own.

use std::{net::SocketAddr, sync::OnceLock, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, PgPool, Row as _,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tower_idempotency::PostgresStore;

use crate::{
    database::Database,
    servers::postgres::{PostgresServer, options_for},
};

/// The server of all cases that do it no harm.
pub(crate) fn server() -> &'static PostgresServer {
    static SERVER: OnceLock<PostgresServer> = OnceLock::new();
    SERVER.get_or_init(PostgresServer::start)
}

#[derive(Clone)]
pub(crate) struct Postgres {
    pub(crate) pool: PgPool,
    pub(crate) schema: String,
    address: SocketAddr,
    database: String,
    store: PostgresStore,
}

impl Postgres {
    /// A schema of its own on this server, through this address, with so many connections for all.
    pub(crate) async fn on(server: &PostgresServer, address: SocketAddr, connections: u32) -> Self {
        let place = (address, "postgres", server.new_name());
        Self::made(place, connections).await
    }

    async fn made((address, database, schema): (SocketAddr, &str, String), most: u32) -> Self {
        let made = Self::connected(address, database, &schema, most).await;
        let tables = format!(
            "CREATE SCHEMA {schema}; \
             CREATE TABLE transfers (key text NOT NULL, note text NOT NULL); \
             CREATE TABLE accounts (id integer PRIMARY KEY); \
             CREATE TABLE entries (account integer \
               REFERENCES accounts DEFERRABLE INITIALLY DEFERRED)"
        );
        made.run(&tables).await;
        made.store.migrate().await.unwrap();
        made
    }

    async fn connected(address: SocketAddr, database: &str, schema: &str, most: u32) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(most)
            .connect_with(options(address, database, schema))
            .await
            .unwrap();
        let store = PostgresStore::builder(pool.clone()).schema(schema);
        Self {
            store: store.unwrap().build(),
            pool,
            schema: schema.to_owned(),
            address,
            database: database.to_owned(),
        }
    }

    /// A connection that belongs to nobody.
    pub(crate) async fn connection(&self) -> PgConnection {
        let options =
            options(self.address, &self.database, &self.schema).application_name("the test");
        PgConnection::connect_with(&options).await.unwrap()
    }

    pub(crate) async fn run(&self, sql: &str) {
        let ran = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        ran.execute(&mut self.connection().await).await.unwrap();
    }

    /// The same where the connection may be cut.
    pub(crate) async fn try_run(&self, sql: &'static str) {
        let options = options(self.address, &self.database, &self.schema);
        let options = options.application_name("the test");
        if let Ok(mut connection) = PgConnection::connect_with(&options).await {
            let _ = sqlx::query(sql).execute(&mut connection).await;
        }
    }

    /// From now on a commit of a row of the business waits in the server.
    pub(crate) async fn hold_commits(&self) -> Held {
        let mut connection = self.connection().await;
        let make = "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ \
             BEGIN PERFORM pg_advisory_xact_lock_shared(4711, hashtext(TG_TABLE_SCHEMA)); \
             RETURN NULL; END $$; \
             CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON transfers \
             DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold(); \
             SELECT pg_advisory_lock(4711, hashtext(current_schema()))";
        sqlx::raw_sql(make).execute(&mut connection).await.unwrap();
        Held(connection)
    }
}

impl Postgres {
    /// Returns once a statement of the store waits for another transaction to end.
    pub(crate) async fn waits_for_a_row(&self) {
        self.comes_to(
            "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid) \
             WHERE locktype = 'transactionid' AND NOT granted \
             AND application_name = current_schema())",
        )
        .await;
    }

    /// Returns once the store listens to what the server says of ends.
    pub(crate) async fn is_listened_to(&self) {
        self.comes_to(
            "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid) \
             WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted \
             AND classid <> 4711 AND application_name = current_schema())",
        )
        .await;
    }

    async fn comes_to(&self, question: &'static str) {
        let mut connection = self.connection().await;
        loop {
            let row = sqlx::query(question).fetch_one(&mut connection);
            if row.await.unwrap().get(0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Commits wait while this is there.
pub(crate) struct Held(PgConnection);

impl Held {
    /// Returns once a commit waits.
    pub(crate) async fn reached(&mut self) {
        let waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' \
             AND NOT granted AND classid = 4711 \
             AND objid::bigint = hashtext(current_schema())::bigint & 4294967295)";
        loop {
            let row = sqlx::query(waiting).fetch_one(&mut self.0).await.unwrap();
            if row.get(0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets all go on.
    pub(crate) async fn release(self) {
        self.0.close().await.unwrap();
    }
}

fn options(address: SocketAddr, database: &str, schema: &str) -> PgConnectOptions {
    options_for(address)
        .database(database)
        .application_name(schema)
        .options([("search_path", schema)])
}

impl Database for Postgres {
    type Store = PostgresStore;
    type Transaction = sqlx::Transaction<'static, sqlx::Postgres>;

    const KIND: &str = "postgres";

    async fn new() -> Self {
        Self::on(server(), server().address(), 8).await
    }

    async fn elsewhere(&self) -> Self {
        let database = format!("other_{}", self.schema);
        self.run(&format!("CREATE DATABASE {database}")).await;
        Self::made((self.address, &database, self.schema.clone()), 4).await
    }

    fn place(&self) -> String {
        format!("{} {} {}", self.address, self.database, self.schema)
    }

    async fn at(place: &str) -> Self {
        let [address, database, schema] = place.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{place}");
        };
        Self::connected(address.parse().unwrap(), database, schema, 4).await
    }

    fn store(&self) -> &PostgresStore {
        &self.store
    }

    fn advance_clock(&self, by: Duration) {
        self.store.advance_clock(by);
    }

    async fn begin(&self) -> Result<Self::Transaction, sqlx::Error> {
        self.pool.begin().await
    }

    async fn insert(
        &self,
        connection: &mut PgConnection,
        key: &str,
        note: &str,
    ) -> Result<(), sqlx::Error> {
        let insert = sqlx::query("INSERT INTO transfers VALUES ($1, $2)");
        let done = insert.bind(key).bind(note).execute(connection).await;
        done.map(drop)
    }

    async fn insert_what_is_refused(
        &self,
        connection: &mut PgConnection,
    ) -> Result<(), sqlx::Error> {
        let insert = sqlx::query("INSERT INTO entries VALUES (7)");
        insert.execute(connection).await.map(drop)
    }

    async fn insert_and_undo(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let mut savepoint = connection.begin().await?;
        self.insert(&mut savepoint, "undone", "undone").await
    }

    async fn rows(&self) -> Vec<(String, String)> {
        let rows = sqlx::query_as("SELECT key, note FROM transfers ORDER BY key, note");
        rows.fetch_all(&mut self.connection().await).await.unwrap()
    }
}
