//! The service: where the idempotency layer stands, and handlers that rely on it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;
use tower_idempotency::{
    Execution, Fingerprinter, IdempotencyLayer, KeySource, Scope, Store, StoreKey,
};

use crate::{
    ledger::Ledger,
    store::Database,
    transfers::{BoxError, Transfer},
};

/// The longest time that a handler may be told to work.
pub(crate) const MAX_DELAY_MS: u64 = 60_000;

/// Puts the layer in.
///
/// `idempotency` holds what both kinds of request have in common: the store, the scope, the times.
///
/// With a database that holds the records there are transfers, whose rows are in the same database.
pub(crate) fn router(
    idempotency: IdempotencyLayer<Arc<dyn Store>>,
    database: Option<Database>,
    ledger: Ledger,
    delay: Duration,
) -> Router {
    // A retry may spell the same JSON in another way: order of the members, blanks, `1.0` for `1`.
    let idempotency = idempotency
        .fingerprint(Fingerprinter::json())
        .require_key(true);
    let key_in_header = idempotency.clone();
    let key_in_body = idempotency.key(KeySource::json_pointer("/idempotency_key"));

    let payments = Router::new()
        .route("/payments", post(create_payment))
        .route("/payments/{id}", get(show_payment))
        .route("/ledger", get(show_ledger))
        .route("/healthz", get(async || "ok\n"));
    let payments = match database {
        Some(_) => payments.route("/transfers", post(create_transfer).get(show_transfers)),
        None => payments,
    };
    let payments = payments
        // GET passes untouched, so the layer can stand around all routes. `route_layer`, not
        // `layer`: a POST to a path that does not exist is a 404, and not a missing key.
        .route_layer(key_in_header);
    let requests = Router::new()
        .route("/process-request", post(process_request))
        .route_layer(key_in_body);

    let unprotected = match database {
        Some(_) => Router::new(),
        None => Router::new().route("/transfers", any(async || no_database())),
    };

    payments
        .merge(requests)
        .merge(unprotected)
        .with_state(App {
            database,
            ledger: Arc::new(ledger),
            delay,
            failures: Arc::default(),
        })
        // Outside the idempotency layer, which counts a panic as a failed attempt and lets it pass;
        // here it becomes a 500. Authentication belongs outside too (a replay must not ask less
        // than the first request did), and so do compression (records are kept plain) and timeouts
        // (one inside would cut the handler off; outside, the work goes on and is recorded).
        .layer(CatchPanicLayer::new())
}

/// Who is asking: nobody gets an answer that was given to another caller.
///
/// A real service has looked the API key up and names the merchant, not the secret.
pub(crate) fn scope() -> Scope {
    Scope::from_fn(|request| caller(&request.headers))
}

/// `None`, which the layer refuses, where the header cannot be understood: taking it for
/// "anonymous" would let callers share their answers.
fn caller(headers: &HeaderMap) -> Option<String> {
    let mut keys = headers.get_all("x-api-key").iter();
    match (keys.next(), keys.next()) {
        (None, _) => Some("anonymous".to_owned()),
        (Some(key), None) => key.to_str().ok().map(str::to_owned),
        (Some(_), Some(_)) => None,
    }
}

#[derive(Clone)]
struct App {
    database: Option<Database>,
    ledger: Arc<Ledger>,
    delay: Duration,
    failures: Arc<Mutex<HashMap<StoreKey, u32>>>,
}

/// The body of a payment, and of a transfer.
#[derive(Deserialize)]
struct Payment {
    amount: i64,
    currency: String,
    reference: Option<String>,
    #[serde(default)]
    simulate: Simulate,
}

impl Payment {
    /// A 4xx says that nothing was done: the layer frees the key, and the client may use it again
    /// for the corrected payment.
    fn parse(body: &[u8]) -> Result<Self, Problem> {
        let payment: Self = parse(body)?;
        if payment.amount <= 0 {
            return Err(invalid("amount is a positive number of cents"));
        }
        if payment.currency.len() != 3 || !payment.currency.bytes().all(|b| b.is_ascii_uppercase())
        {
            return Err(invalid("currency is a code of three letters, as EUR"));
        }
        Ok(payment)
    }
}

/// Faults to try a client with.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Simulate {
    /// Works for this long, instead of `--delay-ms`.
    delay_ms: Option<u64>,
    /// How many attempts of the key fail; one where only the kind of failure is given.
    fail_times: Option<u32>,
    /// What a failing attempt answers: 503 unless set.
    status: Option<u16>,
    /// A failing attempt panics instead.
    panic: bool,
    /// The first attempt ends the whole process here, as `kill -9` would.
    crash: Option<Crash>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Crash {
    /// Where nothing is done yet. A transfer's row is inserted, and not committed.
    BeforeEffect,
    /// Where all is done, and nobody was told. The record of a payment is not written yet; that of
    /// a transfer is committed with its row.
    AfterEffect,
}

impl Simulate {
    /// Ends the process if it is to end here.
    pub(crate) fn pass(&self, point: Crash, execution: &Execution) {
        if self.crash == Some(point) && execution.attempt() == 1 {
            eprintln!("simulated crash");
            std::process::abort();
        }
    }
}

/// The handler of `POST /payments`. For one key it runs once, unless it fails.
async fn create_payment(
    State(app): State<App>,
    Extension(execution): Extension<Execution>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let payment = Payment::parse(&body)?;
    app.work(&execution, &payment.simulate).await?;

    // Random, not derived from the key: should an attempt die after its effect, the ledger shows
    // two payments as what they are. A call to another service, though, carries the derived key:
    // the same in every attempt, so that the bank sees the repetition too.
    let payment_id = random_id("pay");
    let entry = json!({
        "operation": "payment",
        "payment_id": payment_id,
        "amount": payment.amount,
        "currency": payment.currency,
        "reference": payment.reference,
        "attempt": execution.attempt(),
        "bank_key": execution.derive("bank"),
    });
    payment.simulate.pass(Crash::BeforeEffect, &execution);
    app.execute(&execution, &headers, entry).await?;
    payment.simulate.pass(Crash::AfterEffect, &execution);

    let location = [(header::LOCATION, format!("/payments/{payment_id}"))];
    let answer = json!({
        "payment_id": payment_id,
        "amount": payment.amount,
        "currency": payment.currency,
        "status": "succeeded",
    });
    Ok((StatusCode::CREATED, location, Json(answer)).into_response())
}

/// The handler of `POST /transfers`: its effect is a row, committed together with the record, so
/// that no crash comes between them.
async fn create_transfer(
    State(app): State<App>,
    Extension(execution): Extension<Execution>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let payment = Payment::parse(&body)?;
    // Before the transaction is begun: one that is open holds a connection and locks.
    app.work(&execution, &payment.simulate).await?;

    let transfer = Transfer {
        id: random_id("tr"),
        key: execution.key().to_owned(),
        scope: caller(&headers).unwrap_or_default(),
        amount: payment.amount,
    };
    let answer = json!({
        "transfer_id": transfer.id,
        "amount": payment.amount,
        "currency": payment.currency,
        "status": "succeeded",
    });
    let answer = (StatusCode::CREATED, Json(answer)).into_response();
    let database = app.database()?;
    let committed = database.transfer(&execution, &payment.simulate, transfer, answer);
    Ok(committed
        .await
        .map_err(uncommitted)?
        .into_inner()
        .map(Body::from))
}

async fn show_transfers(State(app): State<App>) -> Result<Json<Vec<Transfer>>, Problem> {
    let transfers = app.database()?.transfers().await;
    transfers.map(Json).map_err(uncommitted)
}

#[derive(Deserialize)]
struct Request {
    payload: serde_json::Map<String, Value>,
}

/// The handler of `POST /process-request`; the layer has read the key from the body.
async fn process_request(
    State(app): State<App>,
    Extension(execution): Extension<Execution>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let Request { payload } = parse(&body)?;
    app.work(&execution, &Simulate::default()).await?;
    let request_id = random_id("req");
    let entry = json!({
        "operation": "process-request",
        "request_id": request_id,
        "payload": payload,
        "attempt": execution.attempt(),
    });
    app.execute(&execution, &headers, entry).await?;
    Ok(Json(
        json!({ "status": "success", "request_id": request_id, "processed": payload }),
    ))
}

async fn show_payment(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let entries = app.ledger.entries().await.map_err(unwritten)?;
    match entries.iter().find(|entry| entry["payment_id"] == *id) {
        Some(entry) => Ok(Json(json!({
            "payment_id": id,
            "amount": entry["amount"],
            "currency": entry["currency"],
            "status": "succeeded",
        }))),
        None => Err(Problem(
            StatusCode::NOT_FOUND,
            "there is no such payment".to_owned(),
        )),
    }
}

async fn show_ledger(State(app): State<App>) -> Result<Json<Vec<Value>>, Problem> {
    app.ledger.entries().await.map(Json).map_err(unwritten)
}

impl App {
    fn database(&self) -> Result<&Database, Problem> {
        self.database.as_ref().ok_or_else(no_database)
    }

    /// The handler's work before its effect.
    async fn work(&self, execution: &Execution, simulate: &Simulate) -> Result<(), Problem> {
        if simulate.delay_ms.is_some_and(|ms| ms > MAX_DELAY_MS) {
            return Err(invalid("simulate.delay_ms is at most 60000"));
        }
        let status = match simulate.status {
            None => StatusCode::SERVICE_UNAVAILABLE,
            Some(code @ 400..=599) => StatusCode::from_u16(code).map_err(invalid)?,
            Some(_) => return Err(invalid("simulate.status is a failure: 400 to 599")),
        };
        let named = simulate.panic || simulate.status.is_some();
        let fail_times = simulate.fail_times.unwrap_or(u32::from(named));

        tokio::time::sleep(simulate.delay_ms.map_or(self.delay, Duration::from_millis)).await;

        if self.earlier_failures(execution, fail_times) >= fail_times {
            return Ok(());
        }
        if simulate.panic {
            panic!("simulated, attempt {}", execution.attempt());
        }
        Err(Problem(status, "simulated failure".to_owned()))
    }

    /// How many attempts of this key have failed. The layer counts them, over all servers, but
    /// begins anew where a 4xx freed the key; so they are counted here as well.
    fn earlier_failures(&self, execution: &Execution, fail_times: u32) -> u32 {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let key = execution.store_key();
        let counted = failures.get(key).copied().unwrap_or(0);
        let earlier = counted.max(execution.attempt() - 1);
        if earlier >= fail_times {
            failures.remove(key);
        } else {
            // Keys that nobody tries again would stay for good.
            if failures.len() >= 10_000 {
                failures.clear();
            }
            failures.insert(key.clone(), earlier + 1);
        }
        earlier
    }

    /// The effect. Once it has begun a failure is a 5xx, since it may have happened.
    async fn execute(
        &self,
        execution: &Execution,
        headers: &HeaderMap,
        mut entry: Value,
    ) -> Result<(), Problem> {
        entry["key"] = execution.key().into();
        entry["scope"] = caller(headers).into();
        self.ledger.append(entry).await.map_err(unwritten)
    }
}

/// What a handler answers where it cannot do what it was asked (RFC 9457).
struct Problem(StatusCode, String);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self(status, detail) = self;
        let body = json!({
            "type": "about:blank",
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "detail": detail,
        });
        let content_type = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, content_type, body.to_string()).into_response()
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(invalid)
}

fn invalid(error: impl ToString) -> Problem {
    Problem(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
}

fn unwritten(error: std::io::Error) -> Problem {
    Problem(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!("the ledger failed: {error}"),
    )
}

fn no_database() -> Problem {
    Problem(
        StatusCode::NOT_IMPLEMENTED,
        "transfers need a database: --store postgres://… or sqlite:FILE".to_owned(),
    )
}

/// Nothing was written, or nobody knows: the layer finds out which before it answers. Either way the
/// client may try again.
fn uncommitted(error: BoxError) -> Problem {
    // For the operator; what a database says of itself is not for clients.
    eprintln!("a transfer was not committed: {error}");
    Problem(
        StatusCode::SERVICE_UNAVAILABLE,
        "the transfer was not committed; try again".to_owned(),
    )
}

fn random_id(kind: &str) -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system gives random numbers");
    format!("{kind}_{:032x}", u128::from_be_bytes(bytes))
}
