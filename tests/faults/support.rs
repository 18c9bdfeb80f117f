//! What these tests share: servers of each kind, instances of a service over them, and a handler
//! that is held until it is let go.

use std::{
    any::Any,
    convert::Infallible,
    fmt,
    future::Future,
    net::SocketAddr,
    ops::Deref,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use redis::{
    Client,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tempfile::TempDir;
use tokio::{sync::Semaphore, task::JoinHandle, time::timeout};
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::{
    Claim, ClaimRequest, Entry, Execution, FencingToken, IdempotencyLayer, Lease, OnConflict,
    Outcome, Payload, PostgresStore, Reason, RedisStore, RequestBody, Scope, Snapshot, SqliteStore,
    Store, StoreError, StoreKey,
};

use crate::servers::{
    postgres::{PostgresServer, options_for},
    proxy::Proxy,
    redis::RedisServer,
};

/// Longer than anything takes, also on a busy machine. What takes longer fails its test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The deadline of a store call here, and the budget for recording.
pub const STORE_TIMEOUT: Duration = Duration::from_secs(1);
pub const RECORD_TIMEOUT: Duration = Duration::from_millis(1500);

/// A lease whose end is waited for: it has room for some deadlines of a store call.
pub const SHORT_LEASE: Duration = Duration::from_secs(3);

pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited in vain until {what}"),
    }
}

pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Where several instances have their records.
pub trait Place: Sized + Send + Sync + 'static {
    /// Which kind it is, and where, for another process.
    const KIND: &str;
    fn place(&self) -> String;

    /// One for all tests that do it no harm, where starting one takes long.
    fn shared() -> impl Deref<Target = Self>;

    /// A store with connections of its own, to a place that leads here. It opens them itself again.
    async fn store_at(place: &str) -> Arc<dyn Store>;

    /// An instance of the service, with connections of its own.
    async fn instance(&self, work: &Work) -> Instance {
        Instance::new(Self::store_at(&self.place()).await, work)
    }
}

/// A server that can fail.
pub trait Server: Place {
    /// One of its own for a test. Its data outlives its process.
    fn start() -> Self;

    fn address(&self) -> SocketAddr;
    fn freeze(&mut self);
    fn thaw(&mut self);
    fn kill(&mut self);
    fn restart(&mut self);

    /// An instance whose connections lead through a proxy.
    async fn instance_behind(proxy: &Proxy, work: &Work) -> Instance {
        Instance::new(Self::store_at(&proxy.address().to_string()).await, work)
    }
}

impl Place for RedisServer {
    const KIND: &str = "redis";

    fn place(&self) -> String {
        self.address().to_string()
    }

    fn shared() -> impl Deref<Target = Self> {
        static SERVER: OnceLock<RedisServer> = OnceLock::new();
        SERVER.get_or_init(|| Self::for_all(&[]))
    }

    async fn store_at(place: &str) -> Arc<dyn Store> {
        let client = Client::open(format!("redis://{place}")).unwrap();
        Arc::new(RedisStore::new(managed(&client).await).with_client(client))
    }
}

impl Server for RedisServer {
    fn start() -> Self {
        Self::start(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    fn address(&self) -> SocketAddr {
        self.address()
    }

    fn freeze(&mut self) {
        self.process().freeze();
    }

    fn thaw(&mut self) {
        self.process().thaw();
    }

    fn kill(&mut self) {
        self.process().kill();
    }

    fn restart(&mut self) {
        self.restart();
    }
}

/// A connection that opens itself again, with more patience than the layer has.
pub async fn managed(client: &Client) -> ConnectionManager {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE))
        .set_max_delay(Duration::from_millis(200));
    let connection = ConnectionManager::new_with_config(client.clone(), config);
    soon("Redis is connected", connection).await.unwrap()
}

impl Place for PostgresServer {
    const KIND: &str = "postgres";

    fn place(&self) -> String {
        self.address().to_string()
    }

    fn shared() -> impl Deref<Target = Self> {
        static SERVER: OnceLock<PostgresServer> = OnceLock::new();
        SERVER.get_or_init(Self::start)
    }

    async fn store_at(place: &str) -> Arc<dyn Store> {
        let options = options_for(place.parse().unwrap());
        Arc::new(postgres(pool(options, 5).await).await)
    }
}

impl Server for PostgresServer {
    fn start() -> Self {
        Self::start()
    }

    fn address(&self) -> SocketAddr {
        self.address()
    }

    fn freeze(&mut self) {
        (*self).freeze();
    }

    fn thaw(&mut self) {
        (*self).thaw();
    }

    fn kill(&mut self) {
        self.kill();
    }

    fn restart(&mut self) {
        self.restart();
    }
}

/// An SQLite file. Nothing is shared, since a new one is at hand.
pub struct SqliteFile(TempDir);

impl SqliteFile {
    pub fn new() -> Self {
        Self(TempDir::with_prefix("sqlite-").unwrap())
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().join("records.db")
    }
}

impl Place for SqliteFile {
    const KIND: &str = "sqlite";

    fn place(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    fn shared() -> impl Deref<Target = Self> {
        Box::new(Self::new())
    }

    async fn store_at(place: &str) -> Arc<dyn Store> {
        let store = SqliteStore::open(place).await.unwrap();
        store.migrate().await.unwrap();
        Arc::new(store)
    }
}

pub async fn pool(options: PgConnectOptions, connections: u32) -> PgPool {
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .connect_with(options);
    soon("PostgreSQL is connected", pool).await.unwrap()
}

pub async fn postgres(pool: PgPool) -> PostgresStore {
    let store = PostgresStore::new(pool);
    store.migrate().await.unwrap();
    store
}

/// Makes tests of cases, which are generic over the server: one for each server and case.
macro_rules! over_each_server {
    ($($case:ident)*) => {
        $crate::support::tests_of!(over_redis: crate::servers::redis::RedisServer, $($case)*);
        $crate::support::tests_of!(
            over_postgres: crate::servers::postgres::PostgresServer, $($case)*
        );
    };
}
pub(crate) use over_each_server;

/// The same over files, too.
macro_rules! over_each_place {
    ($($case:ident)*) => {
        $crate::support::over_each_server!($($case)*);
        $crate::support::tests_of!(over_sqlite: crate::support::SqliteFile, $($case)*);
    };
}
pub(crate) use over_each_place;

macro_rules! tests_of {
    ($name:ident: $place:ty, $($case:ident)*) => {
        mod $name {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$case::<$place>().await;
                }
            )*
        }
    };
}
pub(crate) use tests_of;

/// What the handlers of all instances do, and have done.
#[derive(Clone)]
pub struct Work(Arc<Shared>);

struct Shared {
    runs: Mutex<Vec<Run>>,
    holds: AtomicBool,
    entered: Semaphore,
    gate: Semaphore,
    status: AtomicUsize,
    millis: AtomicU64,
}

/// One run of the handler, and what it is told.
#[derive(Clone)]
pub struct Run {
    pub attempt: u32,
    pub entry: Entry,
    pub execution: Execution,
}

impl Work {
    /// Answers at once.
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            runs: Mutex::default(),
            holds: AtomicBool::new(false),
            entered: Semaphore::new(0),
            gate: Semaphore::new(0),
            status: AtomicUsize::new(201),
            millis: AtomicU64::new(0),
        }))
    }

    /// Answers when it is let go.
    pub fn held() -> Self {
        let work = Self::new();
        work.hold();
        work
    }

    /// From now on handlers are held.
    pub fn hold(&self) {
        self.0.holds.store(true, SeqCst);
    }

    /// Those that come from now on are not.
    pub fn hold_no_more(&self) {
        self.0.holds.store(false, SeqCst);
    }

    /// Its handlers take so long.
    pub fn takes(self, time: Duration) -> Self {
        let millis = u64::try_from(time.as_millis()).unwrap();
        self.0.millis.store(millis, SeqCst);
        self
    }

    pub fn answers_with(&self, status: u16) {
        self.0.status.store(status.into(), SeqCst);
    }

    /// Waits until one more handler runs, or has run.
    pub async fn entered(&self) {
        let entered = soon("the handler runs", self.0.entered.acquire()).await;
        entered.unwrap().forget();
    }

    /// Lets one handler end: one that runs, or the next one.
    pub fn let_go(&self) {
        self.0.gate.add_permits(1);
    }

    /// All runs so far, over all instances.
    pub fn runs(&self) -> Vec<Run> {
        self.0.runs.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.0.runs.lock().unwrap().len()
    }

    async fn run(&self, execution: Execution) -> Response<Full<Bytes>> {
        let number = {
            let mut runs = self.0.runs.lock().unwrap();
            runs.push(Run {
                attempt: execution.attempt(),
                entry: execution.entry(),
                execution,
            });
            runs.len()
        };
        self.0.entered.add_permits(1);
        let millis = self.0.millis.load(SeqCst);
        if millis > 0 {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        if self.0.holds.load(SeqCst) {
            self.0.gate.acquire().await.unwrap().forget();
        }
        Response::builder()
            .status(u16::try_from(self.0.status.load(SeqCst)).unwrap())
            .body(Full::from(format!("run {number}")))
            .unwrap()
    }
}

/// One instance of a service: a layer over a store of its own.
#[derive(Clone)]
pub struct Instance {
    pub layer: IdempotencyLayer<Watched>,
    pub calls: Calls,
    work: Work,
}

impl Instance {
    pub fn new(store: Arc<dyn Store>, work: &Work) -> Self {
        let calls = Calls::default();
        let store = Watched {
            store,
            calls: calls.clone(),
        };
        Self {
            layer: IdempotencyLayer::new(store, Scope::single_tenant())
                .store_timeout(STORE_TIMEOUT)
                .record_timeout(RECORD_TIMEOUT),
            calls,
            work: work.clone(),
        }
    }

    pub fn with(
        self,
        set: impl FnOnce(IdempotencyLayer<Watched>) -> IdempotencyLayer<Watched>,
    ) -> Self {
        Self {
            layer: set(self.layer),
            ..self
        }
    }

    pub fn waiting(self, limit: Duration) -> Self {
        self.with(|layer| layer.on_conflict(OnConflict::Wait(limit)))
    }

    pub async fn send(&self, key: &str) -> Answer {
        self.send_body(key, "100 EUR").await
    }

    pub async fn send_body(&self, key: &str, body: &'static str) -> Answer {
        let work = self.work.clone();
        let handler = move |request: Request<RequestBody<Full<Bytes>>>| {
            let work = work.clone();
            async move {
                let execution = request.extensions().get::<Execution>().unwrap().clone();
                Ok::<_, Infallible>(work.run(execution).await)
            }
        };
        let request = Request::post("/payments")
            .header("idempotency-key", key)
            .body(Full::from(body))
            .unwrap();
        let start = Instant::now();
        let answer = self.layer.layer(service_fn(handler)).oneshot(request);
        let answer = soon("the request is answered", answer).await.unwrap();
        let (parts, body) = answer.into_parts();
        let retry_after = parts.headers.get("retry-after");
        Answer {
            outcome: *parts.extensions.get().unwrap(),
            status: parts.status.as_u16(),
            retry_after: retry_after.map(|value| value.to_str().unwrap().to_owned()),
            body: body.collect().await.unwrap().to_bytes(),
            took: start.elapsed(),
        }
    }

    /// Sends it in a task of its own.
    pub fn start(&self, key: &str) -> JoinHandle<Answer> {
        let (this, key) = (self.clone(), key.to_owned());
        tokio::spawn(async move { this.send(&key).await })
    }

    /// Sends it as a client does that retries: until it gets an answer that is neither 503 nor 409.
    pub async fn retry(&self, key: &str) -> Answer {
        let retry = async {
            loop {
                let answer = self.send(key).await;
                if !matches!(answer.status, 503 | 409) {
                    return answer;
                }
                assert!(answer.retry_after.is_some(), "{answer:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        soon("a retry is answered", retry).await
    }

    /// Waits until nothing runs on behind it.
    pub async fn drain(&self) {
        soon("nothing runs any more", self.layer.drain()).await;
    }
}

/// What a client got.
#[derive(Clone, Debug)]
pub struct Answer {
    pub outcome: Outcome,
    pub status: u16,
    pub retry_after: Option<String>,
    pub body: Bytes,
    pub took: Duration,
}

impl Answer {
    /// The handler's own answer, of this run.
    #[track_caller]
    pub fn is_run(&self, outcome: Outcome, number: usize) {
        assert_eq!(self.outcome, outcome, "{self:?}");
        assert_eq!(self.body, format!("run {number}"), "{self:?}");
    }

    /// The recorded answer of this run.
    #[track_caller]
    pub fn is_replay_of(&self, number: usize) {
        assert_eq!(self.status, 201, "{self:?}");
        self.is_run(Outcome::Replayed, number);
    }

    /// P8: a refusal that says when to come again.
    #[track_caller]
    pub fn is_unavailable(&self) {
        self.is_refused(503, Reason::StoreUnavailable);
    }

    #[track_caller]
    pub fn is_in_progress(&self) {
        self.is_refused(409, Reason::InProgress);
    }

    #[track_caller]
    fn is_refused(&self, status: u16, reason: Reason) {
        assert_eq!(self.outcome, Outcome::Refused(reason), "{self:?}");
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.retry_after.as_deref(), Some("1"), "{self:?}");
    }
}

/// Counts the calls that were begun, so that a test can wait for one.
#[derive(Clone, Default)]
pub struct Calls(Arc<Mutex<Vec<&'static str>>>);

impl Calls {
    pub fn count(&self, operation: &str) -> usize {
        let calls = self.0.lock().unwrap();
        calls.iter().filter(|&&call| call == operation).count()
    }

    /// Waits until so many more calls were begun: from now on, not from when this is awaited.
    pub fn more(&self, operation: &'static str, more: usize) -> impl Future<Output = ()> {
        let (calls, enough) = (self.clone(), self.count(operation) + more);
        async move { until(operation, || calls.count(operation) >= enough).await }
    }

    fn note(&self, operation: &'static str) {
        self.0.lock().unwrap().push(operation);
    }
}

/// A store whose calls are counted.
pub struct Watched {
    store: Arc<dyn Store>,
    calls: Calls,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

#[async_trait]
impl Store for Watched {
    async fn claim(&self, key: &StoreKey, request: &ClaimRequest) -> Result<Claim, StoreError> {
        self.calls.note("claim");
        self.store.claim(key, request).await
    }

    async fn renew(
        &self,
        key: &StoreKey,
        lease: &Lease,
        lease_for: Duration,
        ttl: Duration,
        checkpoint: Option<Bytes>,
    ) -> Result<(), StoreError> {
        self.calls.note("renew");
        self.store
            .renew(key, lease, lease_for, ttl, checkpoint)
            .await
    }

    async fn complete(
        &self,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.calls.note("complete");
        self.store.complete(key, lease, payload, ttl).await
    }

    async fn fail(&self, key: &StoreKey, lease: &Lease, ttl: Duration) -> Result<(), StoreError> {
        self.calls.note("fail");
        self.store.fail(key, lease, ttl).await
    }

    async fn release(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.calls.note("release");
        self.store.release(key, lease, ttl).await
    }

    async fn give_back(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.calls.note("give_back");
        self.store.give_back(key, lease, ttl).await
    }

    async fn get(&self, key: &StoreKey) -> Result<Option<Snapshot>, StoreError> {
        self.calls.note("get");
        self.store.get(key).await
    }

    async fn forget(&self, key: &StoreKey) -> Result<bool, StoreError> {
        self.calls.note("forget");
        self.store.forget(key).await
    }

    async fn wait(
        &self,
        key: &StoreKey,
        token: FencingToken,
    ) -> Result<Option<Snapshot>, StoreError> {
        self.calls.note("wait");
        self.store.wait(key, token).await
    }

    fn transactional(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.store.transactional()
    }
}
