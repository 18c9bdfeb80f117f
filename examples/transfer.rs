//! Money that is moved once, whatever crashes: the rows of a transfer and its recorded answer are
//! committed in one transaction.
//!
//! `cargo run --features axum,sqlite --example transfer` starts it; `README.md` beside this file
//! has requests to try. It needs no server: the database is a file.
//!
//! On PostgreSQL it would read the same, with `PgPool`, `PostgresStore` and `pool.begin()`.

use std::{error::Error, future::Future, io, net::SocketAddr, path::PathBuf};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clap::Parser;
use serde::Deserialize;
use sqlx::SqlitePool;
use tokio::{net::TcpListener, sync::oneshot};
use tower_idempotency::{Committed, Execution, IdempotencyLayer, Scope, SqliteStore};

/// Transfers between accounts.
#[derive(Parser)]
struct Flags {
    /// Where to listen; with port 0 on a free port, which is printed.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:3000")]
    addr: SocketAddr,

    /// The database; one that is removed in the end, unless given.
    #[arg(long, value_name = "FILE")]
    database: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Transfer {
    to: String,
    amount: u32,
}

/// Takes the money from the caller's account and gives it to another one.
///
/// It answers with [`Committed`], so it cannot answer that all is well without having committed.
/// Should it be run again, after a crash or by a server that was too slow, the first one's rows are
/// there together with its answer, or neither is.
async fn transfer(
    State(pool): State<SqlitePool>,
    execution: Execution,
    headers: HeaderMap,
    body: String,
) -> Result<Committed, Failure> {
    let from = account(&headers).unwrap_or_default();
    let Transfer { to, amount } =
        serde_json::from_str(&body).map_err(|_| Failure::Refused(422, "to whom, how much?"))?;

    // What takes time comes before this. The write lock from the start: a transaction that began
    // as a reader cannot get it after another one has written.
    let transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    let mut transaction = execution.transaction(transaction)?;

    let paid =
        sqlx::query("UPDATE accounts SET balance = balance - $1 WHERE name = $2 AND balance >= $1")
            .bind(i64::from(amount))
            .bind(from)
            .execute(&mut *transaction)
            .await?;
    if paid.rows_affected() == 0 {
        // The transaction is dropped, and so rolled back. A 4xx says that nothing was done: the
        // key is free, also for a smaller amount.
        return Err(Failure::Refused(402, "there is not enough money"));
    }
    let received = sqlx::query("UPDATE accounts SET balance = balance + $1 WHERE name = $2")
        .bind(i64::from(amount))
        .bind(&to)
        .execute(&mut *transaction)
        .await?;
    if received.rows_affected() == 0 {
        // What was paid is rolled back as well.
        return Err(Failure::Refused(404, "there is no such account"));
    }

    let balance: i64 = sqlx::query_scalar("SELECT balance FROM accounts WHERE name = $1")
        .bind(from)
        .fetch_one(&mut *transaction)
        .await?;
    let answer = format!("{amount} to {to}, {balance} left\n");
    let answer = (StatusCode::CREATED, answer).into_response();
    Ok(transaction.commit(answer).await?)
}

async fn show_accounts(State(pool): State<SqlitePool>) -> Result<String, Failure> {
    let accounts: Vec<(String, i64)> =
        sqlx::query_as("SELECT name, balance FROM accounts ORDER BY name")
            .fetch_all(&pool)
            .await?;
    let line = |(name, balance)| format!("{name}: {balance}\n");
    Ok(accounts.into_iter().map(line).collect())
}

/// The caller, as authentication would have found out.
fn account(headers: &HeaderMap) -> Option<&str> {
    headers.get("x-account")?.to_str().ok()
}

enum Failure {
    /// Nothing was done.
    Refused(u16, &'static str),
    /// Nothing was done, or nobody knows: the layer finds out which, and a retry gets the answer
    /// of what was done, or runs.
    Unavailable(Box<dyn Error + Send + Sync>),
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Unavailable(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Refused(status, why) => {
                let status = StatusCode::from_u16(status).expect("a status");
                (status, format!("{why}\n")).into_response()
            }
            Self::Unavailable(error) => {
                eprintln!("error: {error}");
                (StatusCode::SERVICE_UNAVAILABLE, "try again\n").into_response()
            }
        }
    }
}

/// Alice begins with 100, Bob with nothing.
async fn create_accounts(pool: &SqlitePool) -> Result<(), sqlx::Error> {
    sqlx::query(
        "CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, balance BIGINT NOT NULL)",
    )
    .execute(pool)
    .await?;
    sqlx::query("INSERT INTO accounts VALUES ('alice', 100), ('bob', 0) ON CONFLICT DO NOTHING")
        .execute(pool)
        .await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let flags = Flags::parse();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("transfers.db");

    // One file for both: the transfers, and the records of those who asked for them.
    let store = SqliteStore::open(flags.database.unwrap_or(file)).await?;
    store.migrate().await?;
    let pool = store.pool().clone();
    create_accounts(&pool).await?;

    let idempotency = IdempotencyLayer::new(store, Scope::header("x-account")).require_key(true);
    let app = Router::new()
        .route("/transfers", post(transfer))
        .route_layer(idempotency.clone())
        .route("/accounts", get(show_accounts))
        .with_state(pool.clone());

    let listener = TcpListener::bind(flags.addr).await?;
    // Before anybody is told the address, so that no signal is missed from then on.
    let signal = stop_signal()?;
    println!("listening on http://{}", listener.local_addr()?);

    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let server = tokio::spawn(server.into_future());
    signal.await;
    drop(stop);
    server.await??;
    // What goes on although its client left.
    idempotency.drain().await;
    pool.close().await;
    Ok(())
}

/// Ctrl-C, or what a supervisor sends.
#[cfg(unix)]
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    Ok(async { drop(tokio::signal::ctrl_c().await) })
}
