//! An axum application: routes that need a key, one whose answers are kept for longer, one where a
//! key is welcome, and some that the layer does not touch.
//!
//! `cargo run --features axum --example axum` starts it; `README.md` beside this file has requests
//! to try.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clap::Parser;
use tokio::{net::TcpListener, sync::oneshot, time::timeout};
use tower_idempotency::{Execution, IdempotencyLayer, MemoryStore, Scope};

/// Payments, invoices and notes that are made once.
#[derive(Parser)]
struct Flags {
    /// Where to listen; with port 0 on a free port, which is printed.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:3000")]
    addr: SocketAddr,

    /// How long an answer can be replayed, in seconds. That of an invoice: seven times as long.
    #[arg(long, value_name = "N", default_value_t = 24 * 60 * 60, value_parser = clap::value_parser!(u32).range(1..))]
    ttl_secs: u32,
}

/// What has been done.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<Vec<String>>>);

impl Ledger {
    fn add(&self, effect: String) -> usize {
        let mut effects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        effects.push(effect);
        effects.len()
    }

    fn lines(&self) -> String {
        let effects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        effects.iter().map(|effect| format!("{effect}\n")).collect()
    }
}

/// Who asks, as authentication found out.
#[derive(Clone)]
struct Account(&'static str);

fn router(ledger: Ledger, idempotency: IdempotencyLayer<MemoryStore>, ttl: Duration) -> Router {
    let idempotency = idempotency.ttl(ttl);
    let required = idempotency.clone().require_key(true);

    // `route_layer`, not `layer`: at a path that does not exist nobody needs a key.
    let payments = Router::new()
        .route("/payments", post(pay))
        .route_layer(required.clone());
    let invoices = Router::new()
        .route("/invoices", post(write_invoice))
        .route_layer(required.ttl(7 * ttl));
    let notes = Router::new()
        .route("/notes", post(take_note))
        .route_layer(idempotency);
    let others = Router::new()
        .route("/quotes", post(quote))
        .route("/ledger", get(show_ledger));

    payments
        .merge(invoices)
        .merge(notes)
        .merge(others)
        .with_state(ledger)
        // Outside the idempotency layers: they go by the account, and a replay asks for the same
        // credentials as the first request did.
        .layer(middleware::from_fn(authenticate))
}

/// Two keys may belong to one account: a retry with the second key is a retry all the same.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let key = request.headers().get("x-api-key");
    let account = match key.map(|key| key.as_bytes()) {
        Some(b"alice-1" | b"alice-2") => "alice",
        Some(b"bob-1") => "bob",
        _ => return (StatusCode::UNAUTHORIZED, "who are you?\n").into_response(),
    };
    request.extensions_mut().insert(Account(account));
    next.run(request).await
}

/// Needs a key: the layer answers a request without one, so there always is an execution.
async fn pay(
    State(ledger): State<Ledger>,
    Extension(Account(account)): Extension<Account>,
    execution: Execution,
    amount: String,
) -> Result<impl IntoResponse, (StatusCode, &'static str)> {
    if !amount.starts_with(|c: char| c.is_ascii_digit()) {
        // A 4xx says that nothing was done, and frees the key for the corrected payment.
        return Err((StatusCode::UNPROCESSABLE_ENTITY, "how much?\n"));
    }
    // The bank is called under a key of its own, the same in every attempt at this payment.
    let bank_key = execution.derive("bank");
    let number = ledger.add(format!("{account} paid {amount}"));
    let location = [(header::LOCATION, format!("/payments/{number}"))];
    let answer = format!("payment {number}, bank key {bank_key}\n");
    Ok((StatusCode::CREATED, location, answer))
}

/// Takes its time: what comes meanwhile under the same key is refused, and a client that leaves
/// loses nothing, not even when the server is stopped.
async fn write_invoice(
    State(ledger): State<Ledger>,
    Extension(Account(account)): Extension<Account>,
    execution: Execution,
    order: String,
) -> (StatusCode, String) {
    tokio::time::sleep(Duration::from_secs(1)).await;
    let number = ledger.add(format!("{account} got an invoice for {order}"));
    let attempt = execution.attempt();
    let answer = format!("invoice {number}, attempt {attempt}\n");
    (StatusCode::CREATED, answer)
}

/// A key is welcome: with one the note is taken once, without one each time.
async fn take_note(
    State(ledger): State<Ledger>,
    Extension(Account(account)): Extension<Account>,
    execution: Option<Execution>,
    text: String,
) -> String {
    let number = ledger.add(format!("{account} noted {text}"));
    match execution {
        Some(execution) => format!("note {number} under {}\n", execution.key()),
        None => format!("note {number}\n"),
    }
}

/// Changes nothing, so no layer is around it.
async fn quote(order: String) -> String {
    format!("{order}: 100 EUR\n")
}

async fn show_ledger(State(ledger): State<Ledger>) -> String {
    ledger.lines()
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let ledger = Ledger::default();
    let scope = Scope::extension(|account: &Account| account.0.to_owned());
    let idempotency = IdempotencyLayer::new(MemoryStore::new(), scope);
    let ttl = Duration::from_secs(flags.ttl_secs.into());
    let app = router(ledger.clone(), idempotency.clone(), ttl);

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

    // First the connections; then the work that goes on although its client left, which `drain`
    // waits for. One call is enough: clones of a layer share it.
    let finished = async {
        server.await??;
        idempotency.drain().await;
        io::Result::Ok(())
    };
    match timeout(Duration::from_secs(30), finished).await {
        Ok(finished) => finished?,
        Err(_) => return Err(io::Error::other("some requests do not end")),
    }
    print!("stopped. What was done:\n{}", ledger.lines());
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
