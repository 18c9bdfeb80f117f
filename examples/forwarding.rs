//! A shop that calls a bank, and fails halfway: each call of an order has the same key in each of
//! its attempts, so the bank is charged once.
//!
//! `cargo run --features axum,client,sqlite --example forwarding` plays it: the bank and the customer
//! are in this process, the shop is one of its own, which dies on the way. It ends with 0 only if each
//! order was paid once.

use std::{
    error::Error,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{StatusCode, Uri},
    routing::post,
};
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
    time::Instant,
};
use tower::{
    BoxError, ServiceBuilder, ServiceExt, timeout::Timeout, timeout::TimeoutLayer,
    util::MapRequestLayer,
};
use tower_idempotency::{
    Execution, IdempotencyKey, IdempotencyLayer, MemoryStore, Scope, SqliteStore,
    client::{Purpose, SetIdempotencyKey, SetIdempotencyKeyLayer},
};

#[derive(Parser)]
struct Flags {
    /// Be the shop, whose records are in this folder. Without it: play the whole scene.
    #[arg(long, requires = "bank")]
    shop: Option<PathBuf>,

    /// Where the shop's bank is.
    #[arg(long, value_name = "URL")]
    bank: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Order {
    item: String,
    cents: u32,
    /// What goes wrong in the first attempt.
    fault: Option<Fault>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Fault {
    /// The answer is 500 after the first charge.
    Fails,
    /// The handler panics after the second charge.
    Panics,
    /// The process dies after the first charge.
    Dies,
}

/// What the shop answers.
#[derive(Serialize, Deserialize)]
struct Confirmation {
    charges: [String; 2],
    attempt: u32,
    entry: String,
}

// The shop.

/// The layer for keys stands outside; what is inside of it is of one try.
type BankClient = SetIdempotencyKey<Timeout<Client<HttpConnector, Full<Bytes>>>>;

/// The shop's way to the bank. It knows nothing of orders, and of their keys.
#[derive(Clone)]
struct Bank {
    client: BankClient,
    url: String,
}

impl Bank {
    fn new(url: String) -> Self {
        let client = ServiceBuilder::new()
            // A call that was made outside of an order, and so had a new key each time, would be
            // a mistake.
            .layer(SetIdempotencyKeyLayer::new().require_execution(true))
            .layer(TimeoutLayer::new(Duration::from_secs(10)))
            .service(Client::builder(TokioExecutor::new()).build_http());
        Self { client, url }
    }

    /// Two calls to one endpoint need names. They are part of the key, so the same in each attempt.
    async fn charge(&self, purpose: &'static str, cents: u32) -> Result<String, BoxError> {
        let request = Request::post(format!("{}/charges", self.url))
            .extension(Purpose::new(purpose))
            .body(Full::from(format!("{cents} cents")))?;
        self.send(request).await
    }

    /// The only call to its endpoint is known by it.
    async fn send_receipt(&self) -> Result<String, BoxError> {
        let request = Request::post(format!("{}/receipts", self.url));
        self.send(request.body(Full::default())?).await
    }

    async fn send(&self, request: http::Request<Full<Bytes>>) -> Result<String, BoxError> {
        let answer = self.client.clone().oneshot(request).await?;
        if !answer.status().is_success() {
            return Err(format!("the bank says {}", answer.status()).into());
        }
        let text = answer.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8(text.into())?)
    }
}

async fn take_order(
    State(bank): State<Bank>,
    execution: Execution,
    Json(order): Json<Order>,
) -> Result<(StatusCode, Json<Confirmation>), (StatusCode, String)> {
    let (attempt, entry) = (execution.attempt(), execution.entry());
    let fault = order.fault.filter(|_| attempt == 1);
    let failed = |error: BoxError| (StatusCode::BAD_GATEWAY, error.to_string());

    let item = bank.charge("item", order.cents).await.map_err(failed)?;
    match fault {
        Some(Fault::Fails) => {
            let error = "the shop fails".to_owned();
            return Err((StatusCode::INTERNAL_SERVER_ERROR, error));
        }
        Some(Fault::Dies) => std::process::abort(),
        Some(Fault::Panics) | None => {}
    }
    let shipping = bank.charge("shipping", 400).await.map_err(failed)?;
    if let Some(Fault::Panics) = fault {
        panic!("the shop panics");
    }
    bank.send_receipt().await.map_err(failed)?;
    let confirmation = Confirmation {
        charges: [item, shipping],
        attempt,
        entry: format!("{entry:?}"),
    };
    Ok((StatusCode::CREATED, Json(confirmation)))
}

/// The process of the shop: it ends with the one that started it.
async fn run_shop(folder: &Path, bank: String) -> Result<(), Box<dyn Error>> {
    let store = SqliteStore::open(folder.join("records.db")).await?;
    store.migrate().await?;
    let idempotency = IdempotencyLayer::new(store, Scope::header("x-customer"))
        .require_key(true)
        // How long an order waits for a process that died.
        .lease(Duration::from_secs(1));
    let shop = Router::new()
        .route("/orders", post(take_order))
        .route_layer(idempotency.clone())
        .with_state(Bank::new(bank));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let parent_ended = async {
        let mut nothing = Vec::new();
        drop(tokio::io::stdin().read_to_end(&mut nothing).await);
    };
    let server = axum::serve(listener, shop).with_graceful_shutdown(parent_ended);
    server.await?;
    idempotency.drain().await;
    Ok(())
}

/// The process of the shop, as its operator sees it.
struct Shop {
    folder: PathBuf,
    bank: String,
    process: Child,
    addr: SocketAddr,
    deaths: u32,
}

impl Shop {
    async fn start(folder: PathBuf, bank: String) -> Result<Self, Box<dyn Error>> {
        let (process, addr) = Self::spawn(&folder, &bank).await?;
        Ok(Self {
            folder,
            bank,
            process,
            addr,
            deaths: 0,
        })
    }

    async fn spawn(folder: &Path, bank: &str) -> Result<(Child, SocketAddr), Box<dyn Error>> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg("--shop")
            .arg(folder)
            .args(["--bank", bank])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = process.stdout.take().ok_or("stdout is no pipe")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).await?;
        let addr = line.trim_end();
        let addr = addr.parse().map_err(|_| "the shop does not start")?;
        Ok((process, addr))
    }

    /// Starts the process again if it died.
    async fn keep_running(&mut self) -> Result<(), Box<dyn Error>> {
        if self.process.try_wait()?.is_some() {
            println!("  … and the process dies; another one is started");
            self.deaths += 1;
            (self.process, self.addr) = Self::spawn(&self.folder, &self.bank).await?;
        }
        Ok(())
    }
}

// The bank.

#[derive(Clone, Default)]
struct Ledger {
    requests: Arc<AtomicU32>,
    charges: Arc<AtomicU32>,
    receipts: Arc<AtomicU32>,
}

/// Another company's server, which takes keys, too. Starts it.
async fn start_bank(ledger: Ledger) -> Result<String, Box<dyn Error>> {
    let Ledger {
        requests,
        charges,
        receipts,
    } = ledger;
    let count = |effects: Arc<AtomicU32>, what: &'static str| {
        async move || {
            let number = effects.fetch_add(1, Ordering::SeqCst) + 1;
            (StatusCode::CREATED, format!("{what} {number}"))
        }
    };
    let bank = Router::new()
        .route("/charges", post(count(charges, "charge")))
        .route("/receipts", post(count(receipts, "receipt")))
        .route_layer(
            IdempotencyLayer::new(MemoryStore::new(), Scope::single_tenant()).require_key(true),
        )
        .layer(MapRequestLayer::new(move |request: Request| {
            requests.fetch_add(1, Ordering::SeqCst);
            request
        }));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async { axum::serve(listener, bank).await });
    Ok(url)
}

// The customer.

/// Orders until it is confirmed, under one key.
async fn order(shop: &mut Shop, key: &str, order: &Order) -> Result<Confirmation, Box<dyn Error>> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let client = ServiceBuilder::new()
        .layer(SetIdempotencyKeyLayer::new())
        .service(client);
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        let uri: Uri = format!("http://{}/orders", shop.addr).parse()?;
        let request = Request::post(uri)
            .header("content-type", "application/json")
            .header("x-customer", "alice")
            .extension(IdempotencyKey::new(key)?)
            .body(Full::<Bytes>::from(serde_json::to_vec(order)?))?;
        match client.clone().oneshot(request).await {
            Ok(answer) if answer.status() == StatusCode::CREATED => {
                let replayed = answer.headers().contains_key("idempotent-replayed");
                let body = answer.into_body().collect().await?.to_bytes();
                let confirmation: Confirmation = serde_json::from_slice(&body)?;
                let how = if replayed { "replayed" } else { "confirmed" };
                let Confirmation { attempt, entry, .. } = &confirmation;
                let charges = confirmation.charges.join(" and ");
                println!("  {how}: attempt {attempt} ({entry}), {charges}");
                return Ok(confirmation);
            }
            // While a crashed attempt has its lease; the customer asks on.
            Ok(answer) if answer.status() == StatusCode::CONFLICT => {}
            Ok(answer) => println!("  answered: {}", answer.status()),
            Err(_) => println!("  the connection breaks"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        shop.keep_running().await?;
    }
    Err("the order is not confirmed in time".into())
}

/// The whole scene.
async fn play() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let ledger = Ledger::default();
    let bank = start_bank(ledger.clone()).await?;
    let mut shop = Shop::start(folder.path().to_owned(), bank).await?;

    let orders = [
        ("order-1", "An order that goes well:", None),
        (
            "order-2",
            "The shop fails between its calls:",
            Some(Fault::Fails),
        ),
        (
            "order-3",
            "It panics after two of them:",
            Some(Fault::Panics),
        ),
        (
            "order-4",
            "Its process dies between them:",
            Some(Fault::Dies),
        ),
    ];
    let book = |fault| Order {
        item: "a book".to_owned(),
        cents: 1900,
        fault,
    };
    let mut attempts = 0;
    for (key, what, fault) in orders {
        println!("{what}");
        attempts += order(&mut shop, key, &book(fault)).await?.attempt;
    }
    println!("The customer orders once more under a key that is done:");
    order(&mut shop, "order-2", &book(Some(Fault::Fails))).await?;

    let count = |counter: &AtomicU32| counter.load(Ordering::SeqCst);
    let (requests, charges) = (count(&ledger.requests), count(&ledger.charges));
    let (receipts, deaths) = (count(&ledger.receipts), shop.deaths);
    println!("The shop: 4 orders, {attempts} attempts, {deaths} death.");
    println!("The bank: {requests} requests, {charges} charges, {receipts} receipts.");
    if (attempts, deaths, charges, receipts) != (7, 1, 8, 4) {
        return Err("that is not two charges and one receipt for each order".into());
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let result = match (flags.shop, flags.bank) {
        (Some(folder), Some(bank)) => run_shop(&folder, bank).await,
        _ => play().await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
