//! A small payment service that cannot charge anybody twice.
//!
//! `cargo run --example payments` starts it and prints requests to try; `-- --demo` lets it play
//! through a duplicate and a race against itself. How the layer is put in is in `app.rs`, how a row
//! and its record are committed together in `transfers.rs`, and how each store is opened in
//! `store.rs`; this file holds what surrounds them: the flags, and a shutdown that loses nothing.

mod app;
mod client;
mod demo;
mod ledger;
mod signals;
mod store;
mod transfers;

use std::{
    fmt::Display,
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::timeout};
use tower_idempotency::{IdempotencyLayer, OnConflict, Store, Takeover};

use crate::{ledger::Ledger, signals::Signals, store::Opened};

const TEN_YEARS: u64 = 10 * 365 * 24 * 60 * 60;

/// A payment service in which a repeated request is answered and not executed again.
#[derive(Parser)]
struct Flags {
    /// Where to listen; with port 0 on a free port, which is printed.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:3000")]
    addr: String,

    /// Where the records are kept: `memory`, `redis://…`, `postgres://…` or `sqlite:FILE`; or
    /// `tiered:NEAR,FAR`, two of these, of which the near one answers for the far one where it can.
    /// Redis, PostgreSQL and SQLite are features of this program.
    #[arg(long, value_name = "URL", default_value = "memory")]
    store: String,

    /// Append one line of JSON for each executed effect to this file, on disk before the answer
    /// leaves. Without it the last 100 000 effects are kept in memory.
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,

    /// The time that the handler works before its effect, in milliseconds.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=app::MAX_DELAY_MS))]
    delay_ms: u64,

    /// How long an answer can be replayed, in seconds.
    #[arg(long, value_name = "N", default_value_t = 24 * 60 * 60, value_parser = clap::value_parser!(u64).range(1..=TEN_YEARS))]
    ttl_secs: u64,

    /// How long the key of a process that died stays taken, in seconds.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=TEN_YEARS))]
    lease_secs: u64,

    /// What a duplicate meets while the first request still runs: 409 at once, or the answer, for
    /// which it waits up to 30 seconds.
    #[arg(long, value_enum, default_value_t = Conflict::Reject)]
    on_conflict: Conflict,

    /// What a request meets whose key was left by a process that died: it runs, and may repeat an
    /// effect; or it is refused with 409, until somebody has looked.
    #[arg(long, value_enum, default_value_t = AfterCrash::Run)]
    takeover: AfterCrash,

    /// Start on a free port, play requests and duplicates against itself, print the transcript, and
    /// end with 0 only if every answer was the right one.
    #[arg(long, conflicts_with_all = ["addr", "delay_ms", "ttl_secs", "lease_secs", "on_conflict", "takeover"])]
    demo: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Conflict {
    Reject,
    Wait,
}

#[derive(Clone, Copy, ValueEnum)]
enum AfterCrash {
    Run,
    Refuse,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Flags::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> Result<(), String> {
    let ledger = Ledger::open(flags.ledger.as_deref())?;
    let Opened { store, database } = store::open(&flags.store).await?;
    if let Some(database) = &database {
        let created = database.create_table().await;
        created.map_err(|error| format!("the table of transfers cannot be made: {error}"))?;
    }
    let with_transfers = database.is_some();
    let idempotency = IdempotencyLayer::new(store, app::scope())
        .ttl(Duration::from_secs(flags.ttl_secs))
        .lease(Duration::from_secs(flags.lease_secs))
        .on_conflict(match flags.on_conflict {
            Conflict::Reject => OnConflict::Reject,
            Conflict::Wait => OnConflict::Wait(Duration::from_secs(30)),
        })
        .takeover(match flags.takeover {
            AfterCrash::Run => Takeover::run(),
            AfterCrash::Refuse => Takeover::refuse(),
        });
    let router = app::router(
        idempotency.clone(),
        database,
        ledger,
        Duration::from_millis(flags.delay_ms),
    );

    let addr = if flags.demo {
        "127.0.0.1:0"
    } else {
        &flags.addr
    };
    let listener = TcpListener::bind(addr)
        .await
        .map_err(|error| format!("cannot listen on {addr}: {error}"))?;
    let addr = listener
        .local_addr()
        .map_err(|error| format!("the listener has no address: {error}"))?;
    // Before anybody is told the address, so that a signal finds its listener from then on.
    let mut signals = Signals::listen().map_err(|error| format!("no signals: {error}"))?;

    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let server = tokio::spawn(server.into_future());

    let verdict = if flags.demo {
        tokio::select! {
            verdict = timeout(Duration::from_secs(60), demo::play(addr)) => {
                verdict.unwrap_or_else(|_| Err("the demo does not end".to_owned()))
            }
            () = signals.next() => Err("interrupted".to_owned()),
        }
    } else {
        print_requests_to_try(addr, with_transfers);
        signals.next().await;
        say("stopping: what runs is finished first; once more to stop at once");
        Ok(())
    };

    let _ = stop.send(());
    tokio::select! {
        () = drain(server, &idempotency) => verdict,
        () = signals.next() => Err("stopped before everything was finished".to_owned()),
    }
}

/// First the connections, then the work that goes on without one (its client left): when the server
/// has stopped, `drain` is what keeps the process from ending before the records are stored.
async fn drain(server: JoinHandle<io::Result<()>>, idempotency: &IdempotencyLayer<Arc<dyn Store>>) {
    // A client that never finishes its request must not hold the process for good. This is more
    // than the slowest handler together with the slowest body.
    let _ = timeout(Duration::from_secs(120), server).await;
    // One call is enough: both layers of the app are clones of this one, and clones share it.
    idempotency.drain().await;
}

/// Prints a line. Unlike `println!` it does not panic where nobody reads any more.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn print_requests_to_try(addr: SocketAddr, with_transfers: bool) {
    say(format_args!("listening on http://{addr}"));
    say(format_args!(
        r#"
Pay; then send the same again, and see `idempotent-replayed: true` and the same payment_id:
  curl -i http://{addr}/payments -H 'Idempotency-Key: "order-1"' -d '{{"amount": 100, "currency": "EUR", "reference": "order-1"}}'
The same key for another payment is refused (422):
  curl -i http://{addr}/payments -H 'Idempotency-Key: "order-1"' -d '{{"amount": 999, "currency": "EUR", "reference": "order-1"}}'
Two at once: one is executed, the other refused (409), or answered alike with `--on-conflict wait`:
  for i in 1 2; do curl -i http://{addr}/payments -H 'Idempotency-Key: order-2' -d '{{"amount": 5, "currency": "EUR", "simulate": {{"delay_ms": 1000}}}}' & done; wait
Fails twice, succeeds at the third try:
  for i in 1 2 3; do curl -i http://{addr}/payments -H 'Idempotency-Key: order-3' -d '{{"amount": 7, "currency": "EUR", "simulate": {{"fail_times": 2, "status": 503}}}}'; done
The key in the body:
  curl -i http://{addr}/process-request -d '{{"idempotency_key": "abc-123", "payload": {{"action": "apply_discount", "amount": 50}}}}'
What was executed:
  curl http://{addr}/ledger"#
    ));
    if with_transfers {
        say(format_args!(
            r#"Transfer; the row is committed together with the record, so that no crash makes two of it:
  curl -i http://{addr}/transfers -H 'Idempotency-Key: order-4' -d '{{"amount": 100, "currency": "EUR"}}'
  curl http://{addr}/transfers"#
        ));
    }
    say("\nCtrl-C finishes what runs, and stops.");
}
