//! The layer over a database, with handlers that commit in it.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tokio::sync::Semaphore;
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::{
    CommitError, Committed, Execution, IdempotencyLayer, Outcome, RequestBody, Scope, State, Store,
    StoreKey,
};

use crate::database::Database;

/// No renewal comes before it is awaited: the clock is moved where a lease is to end.
pub(crate) const LEASE: Duration = Duration::from_secs(600);
pub(crate) const TTL: Duration = Duration::from_secs(3600);

/// The answer of a handler here.
pub(crate) type Given = Response<Full<Bytes>>;

/// What a handler gets.
pub(crate) type Handled = Request<RequestBody<Full<Bytes>>>;

/// What a handler does with its database and its execution.
pub(crate) type Handler<D> = Arc<dyn Fn(D, Execution) -> BoxFuture<'static, Given> + Send + Sync>;

pub(crate) fn handler<D, F>(
    handler: impl Fn(D, Execution) -> F + Send + Sync + 'static,
) -> Handler<D>
where
    F: Future<Output = Given> + Send + 'static,
{
    Arc::new(move |database, execution| handler(database, execution).boxed())
}

pub(crate) fn answer(status: u16, text: impl Into<Bytes>) -> Given {
    let response = Response::builder().status(status);
    response.body(Full::new(text.into())).unwrap()
}

/// The row that an attempt writes, and the answer that it gives.
pub(crate) fn note(execution: &Execution) -> String {
    format!("attempt {}", execution.attempt())
}

/// Commits this transaction with the answer of this attempt.
pub(crate) async fn commit<T: tower_idempotency::store::DatabaseTransaction>(
    transaction: tower_idempotency::Transaction<T>,
    execution: &Execution,
) -> Result<Committed, CommitError> {
    let answer = answer(201, note(execution));
    let (mut parts, body) = answer.into_parts();
    parts
        .headers
        .append("location", "/transfers/1".parse().unwrap());
    transaction.commit(Response::from_parts(parts, body)).await
}

/// Writes a row and commits it with an answer. Panics where the database does not take the row.
pub(crate) async fn pay<D: Database>(
    database: &D,
    execution: &Execution,
) -> Result<Committed, CommitError> {
    let mut transaction = execution.transaction(database.begin().await.unwrap())?;
    let note = note(execution);
    let written = database.insert(&mut transaction, execution.key(), &note);
    written.await.unwrap();
    commit(transaction, execution).await
}

/// What was committed, or else a 500 that says why not.
pub(crate) fn told(committed: Result<Committed, CommitError>) -> Given {
    match committed {
        Ok(committed) => committed.into_inner().map(Full::new),
        Err(error) => answer(500, kind(&error)),
    }
}

pub(crate) fn kind(error: &CommitError) -> &'static str {
    match error {
        CommitError::OtherStore => "OtherStore",
        CommitError::Answer(_) => "Answer",
        CommitError::Superseded => "Superseded",
        CommitError::Gone => "Gone",
        CommitError::AlreadyCommitted => "AlreadyCommitted",
        CommitError::Store(_) => "Store",
        CommitError::Refused(_) => "Refused",
        CommitError::Unknown(_) => "Unknown",
        _ => "another",
    }
}

/// Pays, as a handler should.
pub(crate) fn good<D: Database>() -> Handler<D> {
    handler(|database, execution| async move { told(pay(&database, &execution).await) })
}

/// Pays after it has passed a gate.
pub(crate) fn good_after<D: Database>(gate: &Gate) -> Handler<D> {
    let gate = gate.clone();
    handler(move |database, execution| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            told(pay(&database, &execution).await)
        }
    })
}

/// Where a handler waits for its test.
#[derive(Clone)]
pub(crate) struct Gate(Arc<[Semaphore; 2]>);

impl Gate {
    pub(crate) fn new() -> Self {
        Self(Arc::new([Semaphore::new(0), Semaphore::new(0)]))
    }

    /// For the handler.
    pub(crate) async fn pass(&self) {
        let [reached, open] = &*self.0;
        reached.add_permits(1);
        open.acquire().await.unwrap().forget();
    }

    /// Returns once a handler is here.
    pub(crate) async fn reached(&self) {
        self.0[0].acquire().await.unwrap().forget();
    }

    /// Lets one on.
    pub(crate) fn open(&self) {
        self.0[1].add_permits(1);
    }
}

/// What a caller sees.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) outcome: Outcome,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Seen {
    pub(crate) fn is(&self, outcome: Outcome, status: u16, text: &str) {
        let seen = (self.outcome, self.status, self.text.as_str());
        assert_eq!(seen, (outcome, status, text));
        let replayed = self.headers.contains_key("idempotent-replayed");
        assert_eq!(replayed, outcome == Outcome::Replayed);
    }

    /// The last part of the type of a refusal.
    pub(crate) fn problem(&self) -> String {
        let problem: serde_json::Value = serde_json::from_str(&self.text).unwrap();
        let kind = problem["type"].as_str().unwrap();
        kind.rsplit([':', '#', '/']).next().unwrap().to_owned()
    }
}

/// The layer over a database.
#[derive(Clone)]
pub(crate) struct Bench<D: Database> {
    pub(crate) database: D,
    pub(crate) layer: IdempotencyLayer<D::Store>,
    /// Of the executions that ran.
    keys: Arc<Mutex<HashMap<String, StoreKey>>>,
}

impl<D: Database> Bench<D> {
    pub(crate) async fn new() -> Self {
        Self::over(D::new().await)
    }

    /// With patience, since the machine may be busy.
    pub(crate) fn over(database: D) -> Self {
        let layer = IdempotencyLayer::new(database.store().clone(), Scope::single_tenant());
        Self {
            layer: layer
                .lease(LEASE)
                .ttl(TTL)
                .store_timeout(Duration::from_secs(20))
                .record_timeout(Duration::from_secs(30)),
            database,
            keys: Arc::default(),
        }
    }

    pub(crate) fn with(
        mut self,
        set: impl FnOnce(IdempotencyLayer<D::Store>) -> IdempotencyLayer<D::Store>,
    ) -> Self {
        self.layer = set(self.layer);
        self
    }

    /// The handler as a service of its own.
    pub(crate) fn service(
        &self,
        handler: &Handler<D>,
    ) -> impl tower::Service<
        Handled,
        Response = Given,
        Error = Infallible,
        Future = BoxFuture<'static, Result<Given, Infallible>>,
    > + Clone
    + Send
    + use<D> {
        let (bench, handler) = (self.clone(), Arc::clone(handler));
        service_fn(move |request: Handled| {
            let execution = request.extensions().get::<Execution>().unwrap().clone();
            let (key, store_key) = (execution.key().to_owned(), execution.store_key().clone());
            bench.keys.lock().unwrap().insert(key, store_key);
            handler(bench.database.clone(), execution).map(Ok).boxed()
        })
    }

    pub(crate) async fn send(&self, key: &str, handler: &Handler<D>) -> Seen {
        let service = self.layer.layer(self.service(handler));
        read(service.oneshot(request(key)).await.unwrap()).await
    }

    /// In a task of its own.
    pub(crate) fn start(&self, key: &str, handler: &Handler<D>) -> tokio::task::JoinHandle<Seen> {
        let (bench, key, handler) = (self.clone(), key.to_owned(), Arc::clone(handler));
        tokio::spawn(async move { bench.send(&key, &handler).await })
    }

    pub(crate) fn store_key(&self, key: &str) -> StoreKey {
        let keys = self.keys.lock().unwrap();
        keys.get(key).expect("a handler ran").clone()
    }

    /// State and attempt.
    pub(crate) async fn record(&self, key: &str) -> Option<(State, u32)> {
        let found = self.database.store().get(&self.store_key(key)).await;
        let record = found.unwrap().map(|found| found.record)?;
        Some((record.state, record.attempt))
    }

    pub(crate) async fn rows(&self, key: &str) -> Vec<String> {
        let rows = self.database.rows().await.into_iter();
        rows.filter(|(of, _)| of == key)
            .map(|(_, note)| note)
            .collect()
    }

    /// This is what the database holds.
    pub(crate) async fn holds(&self, key: &str, record: Option<(State, u32)>, rows: &[&str]) {
        assert_eq!(
            (self.record(key).await, self.rows(key).await),
            (record, to_strings(rows))
        );
    }

    /// The operation is over, by this attempt: record, rows and retries say so.
    pub(crate) async fn is_settled(&self, key: &str, attempt: u32) {
        let answer = format!("attempt {attempt}");
        let record = Some((State::Completed, attempt));
        self.holds(key, record, &[&answer]).await;
        let again = self.send(key, &unwanted()).await;
        again.is(Outcome::Replayed, 201, &answer);
        assert_eq!(again.headers["location"], "/transfers/1");
    }

    /// The operation is not over: nothing is written, and a retry does it, as this attempt.
    pub(crate) async fn can_be_done(&self, key: &str, attempt: u32) {
        assert!(self.rows(key).await.is_empty());
        let done = self.send(key, &good()).await;
        done.is(Outcome::Completed, 201, &format!("attempt {attempt}"));
        self.is_settled(key, attempt).await;
    }
}

fn to_strings(rows: &[&str]) -> Vec<String> {
    rows.iter().map(|row| (*row).to_owned()).collect()
}

/// One that must not run.
pub(crate) fn unwanted<D: Database>() -> Handler<D> {
    handler(|_, execution| async move { panic!("it ran again: {execution:?}") })
}

pub(crate) fn request(key: &str) -> Request<Full<Bytes>> {
    Request::post("/transfers")
        .header("idempotency-key", key)
        .body(Full::from("body"))
        .unwrap()
}

pub(crate) async fn read<B>(response: Response<B>) -> Seen
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Seen {
        outcome: *parts.extensions.get().unwrap(),
        status: parts.status.as_u16(),
        headers: parts.headers,
        text: String::from_utf8(body.to_vec()).unwrap(),
    }
}

/// Fails the test where something does not end.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    let limit = tokio::time::timeout(Duration::from_secs(120), future);
    limit.await.expect("it takes too long")
}
