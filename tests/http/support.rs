//! What the tests of the layer share: a store whose calls can be failed, held and counted, a
//! request body and a handler that yield, and short ways to make requests and read answers.

use std::{
    any::Any,
    collections::VecDeque,
    convert::Infallible,
    error::Error,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tokio::sync::Notify;
use tower_idempotency::{
    Claim, ClaimRequest, FencingToken, IdempotencyLayer, Lease, MemoryStore, Payload, RequestBody,
    Scope, Snapshot, Store, StoreError, StoreKey, Timestamp,
    store::{DatabaseTransaction, NotCommitted, NotCompleted},
};

/// One operation of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Claim,
    Renew,
    Complete,
    Fail,
    Release,
    GiveBack,
    Get,
    Forget,
    Wait,
    /// Completes the record in a transaction.
    CompleteIn,
    Commit,
    Rollback,
}

/// What happens to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails as unavailable, and does nothing.
    Lost,
    /// It takes effect, and its answer is lost: it fails as unavailable.
    AnswerLost,
    /// It does nothing, and never returns.
    Hangs,
    /// It takes effect, and never returns.
    AnswerHangs,
    /// It fails as corrupt.
    Corrupt,
    /// It fails as full.
    Full,
    /// It does nothing, and panics.
    Panics,
    /// It takes effect, and then waits for [`Scripted::open`].
    AnswerHeld,
}

/// A memory store that does as it is told. Clones share everything.
#[derive(Clone, Default)]
pub(crate) struct Scripted(Arc<Script>);

#[derive(Default)]
struct Script {
    store: MemoryStore,
    faults: Mutex<VecDeque<(Op, Fault)>>,
    always: Mutex<Vec<(Op, Fault)>>,
    calls: Mutex<Vec<Op>>,
    /// Each call yields before it takes effect, and after.
    yields: bool,
    gate: Notify,
    rows: Mutex<Vec<String>>,
}

impl Scripted {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A store whose every call is pending once before it takes effect, and once after.
    pub(crate) fn yielding() -> Self {
        Self(Arc::new(Script {
            yields: true,
            ..Script::default()
        }))
    }

    /// The next call of `op` that no earlier fault is meant for goes wrong like this.
    pub(crate) fn next(&self, op: Op, fault: Fault) -> &Self {
        self.0.faults.lock().unwrap().push_back((op, fault));
        self
    }

    /// Every call of `op` goes wrong like this, until [`mend`](Self::mend).
    pub(crate) fn always(&self, op: Op, fault: Fault) -> &Self {
        self.0.always.lock().unwrap().push((op, fault));
        self
    }

    pub(crate) fn mend(&self) {
        self.0.always.lock().unwrap().clear();
        self.0.faults.lock().unwrap().clear();
    }

    /// Lets one held call go on.
    pub(crate) fn open(&self) {
        self.0.gate.notify_one();
    }

    pub(crate) fn store(&self) -> &MemoryStore {
        &self.0.store
    }

    /// How often `op` was called.
    pub(crate) fn count(&self, op: Op) -> usize {
        let calls = self.0.calls.lock().unwrap();
        calls.iter().filter(|&&called| called == op).count()
    }

    pub(crate) fn calls(&self) -> Vec<Op> {
        self.0.calls.lock().unwrap().clone()
    }

    /// What was committed by a handler.
    pub(crate) fn rows(&self) -> Vec<String> {
        self.0.rows.lock().unwrap().clone()
    }

    /// Begins a transaction.
    pub(crate) fn begin(&self) -> ScriptedTransaction {
        ScriptedTransaction {
            store: self.clone(),
            rows: Vec::new(),
            record: None,
        }
    }

    fn fault(&self, op: Op) -> Option<Fault> {
        self.0.calls.lock().unwrap().push(op);
        let mut faults = self.0.faults.lock().unwrap();
        if let Some(at) = faults.iter().position(|(of, _)| *of == op) {
            return faults.remove(at).map(|(_, fault)| fault);
        }
        let always = self.0.always.lock().unwrap();
        always.iter().find(|(of, _)| *of == op).map(|(_, f)| *f)
    }

    async fn run<T>(
        &self,
        op: Op,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let lost = || StoreError::unavailable("scripted", "as the test wants it");
        let fault = self.fault(op);
        match fault {
            Some(Fault::Lost) => return Err(lost()),
            Some(Fault::Hangs) => std::future::pending().await,
            Some(Fault::Corrupt) => {
                return Err(StoreError::corrupt("scripted", "as the test wants it"));
            }
            Some(Fault::Full) => return Err(StoreError::Full { store: "scripted" }),
            Some(Fault::Panics) => panic!("the store panics, as the test wants it"),
            _ => {}
        }
        if self.0.yields {
            yield_once().await;
        }
        let answer = call.await;
        if self.0.yields {
            yield_once().await;
        }
        match fault {
            Some(Fault::AnswerLost) => Err(lost()),
            Some(Fault::AnswerHangs) => std::future::pending().await,
            Some(Fault::AnswerHeld) => {
                self.0.gate.notified().await;
                answer
            }
            _ => answer,
        }
    }
}

#[async_trait]
impl Store for Scripted {
    async fn claim(&self, key: &StoreKey, request: &ClaimRequest) -> Result<Claim, StoreError> {
        self.run(Op::Claim, self.0.store.claim(key, request)).await
    }

    async fn renew(
        &self,
        key: &StoreKey,
        lease: &Lease,
        lease_for: Duration,
        ttl: Duration,
        checkpoint: Option<Bytes>,
    ) -> Result<(), StoreError> {
        let call = self.0.store.renew(key, lease, lease_for, ttl, checkpoint);
        self.run(Op::Renew, call).await
    }

    async fn complete(
        &self,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let call = self.0.store.complete(key, lease, payload, ttl);
        self.run(Op::Complete, call).await
    }

    async fn fail(&self, key: &StoreKey, lease: &Lease, ttl: Duration) -> Result<(), StoreError> {
        self.run(Op::Fail, self.0.store.fail(key, lease, ttl)).await
    }

    async fn release(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.run(Op::Release, self.0.store.release(key, lease, ttl))
            .await
    }

    async fn give_back(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.run(Op::GiveBack, self.0.store.give_back(key, lease, ttl))
            .await
    }

    async fn get(&self, key: &StoreKey) -> Result<Option<Snapshot>, StoreError> {
        self.run(Op::Get, self.0.store.get(key)).await
    }

    async fn forget(&self, key: &StoreKey) -> Result<bool, StoreError> {
        self.run(Op::Forget, self.0.store.forget(key)).await
    }

    async fn wait(
        &self,
        key: &StoreKey,
        token: FencingToken,
    ) -> Result<Option<Snapshot>, StoreError> {
        self.run(Op::Wait, self.0.store.wait(key, token)).await
    }

    fn transactional(&self) -> Option<&(dyn Any + Send + Sync)> {
        Some(self)
    }
}

/// A transaction of a scripted store: the rows of the handler, and the record. A fault of
/// [`Op::Commit`] that is `Full` is one where the database says no.
pub(crate) struct ScriptedTransaction {
    store: Scripted,
    rows: Vec<String>,
    record: Option<(StoreKey, Lease, Payload, Duration)>,
}

impl DatabaseTransaction for ScriptedTransaction {
    type Store = Scripted;
    type Connection = Vec<String>;

    fn connection(&mut self) -> &mut Vec<String> {
        &mut self.rows
    }

    fn connection_ref(&self) -> &Vec<String> {
        &self.rows
    }

    async fn complete(
        &mut self,
        store: &Scripted,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), NotCompleted> {
        let found = store.run(Op::CompleteIn, store.0.store.get(key));
        let found = found.await.map_err(NotCompleted::Store)?;
        let (record, now) = match &found {
            Some(found) => (Some(&found.record), found.now),
            None => (None, Timestamp::default()),
        };
        if let Some(reason) = NotCompleted::reason(record, now, lease) {
            return Err(reason);
        }
        self.record = Some((key.clone(), *lease, payload.clone(), ttl));
        Ok(())
    }

    async fn commit(self) -> Result<(), NotCommitted> {
        let Self {
            store,
            rows,
            record,
        } = self;
        let committed = async {
            if let Some((key, lease, payload, ttl)) = record {
                let records = &store.0.store;
                records.complete(&key, &lease, &payload, ttl).await?;
            }
            store.0.rows.lock().unwrap().extend(rows);
            Ok(())
        };
        let committed = store.run(Op::Commit, committed).await;
        committed.map_err(|error| NotCommitted {
            certain: matches!(error, StoreError::Full { .. }),
            source: error.into(),
        })
    }

    async fn rollback(self) -> Result<(), Box<dyn Error + Send + Sync>> {
        let rolled_back = self.store.run(Op::Rollback, async { Ok(()) });
        Ok(rolled_back.await?)
    }
}

/// Pending once.
pub(crate) fn yield_once() -> impl Future<Output = ()> + Send {
    let mut yielded = false;
    std::future::poll_fn(move |cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

/// A body that gives these frames, and is pending once before each and before its end.
pub(crate) struct YieldingBody {
    frames: VecDeque<Result<Frame<Bytes>, Broken>>,
    yielded: bool,
}

/// A body broke off.
#[derive(Debug)]
pub(crate) struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the body broke off")
    }
}

impl Error for Broken {}

impl YieldingBody {
    pub(crate) fn new<'a>(frames: impl IntoIterator<Item = &'a str>) -> Self {
        let data = |frame: &str| Ok(Frame::data(Bytes::copy_from_slice(frame.as_bytes())));
        Self {
            frames: frames.into_iter().map(data).collect(),
            yielded: false,
        }
    }

    pub(crate) fn trailers(mut self, trailers: HeaderMap) -> Self {
        self.frames.push_back(Ok(Frame::trailers(trailers)));
        self
    }

    pub(crate) fn broken(mut self) -> Self {
        self.frames.push_back(Err(Broken));
        self
    }
}

impl Body for YieldingBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if !std::mem::replace(&mut self.yielded, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.yielded = false;
        Poll::Ready(self.frames.pop_front())
    }
}

/// Counts effects.
#[derive(Clone, Default)]
pub(crate) struct Effects(Arc<AtomicUsize>);

impl Effects {
    /// One more; says how many there are now.
    pub(crate) fn add(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A layer over `store` for a single tenant.
pub(crate) fn layer<S: Store>(store: S) -> IdempotencyLayer<S> {
    IdempotencyLayer::new(store, Scope::single_tenant())
}

/// `POST /pay` with a key.
pub(crate) fn post(key: &str, body: &str) -> Request<Full<Bytes>> {
    Request::post("/pay")
        .header("idempotency-key", key)
        .body(Full::from(body.to_owned()))
        .unwrap()
}

/// The whole of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn is_replay(&self) -> bool {
        self.headers.contains_key("idempotent-replayed")
    }

    /// The last part of the problem type of a refusal.
    pub(crate) fn problem(&self) -> String {
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        let kind = problem["type"].as_str().unwrap();
        kind.rsplit([':', '#', '/']).next().unwrap().to_owned()
    }
}

/// Reads an answer to its end.
pub(crate) async fn read<B>(response: Response<B>) -> Answer
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap();
    Answer {
        status: parts.status,
        headers: parts.headers,
        trailers: body.trailers().cloned(),
        body: body.to_bytes(),
    }
}

/// What a handler here takes.
pub(crate) type Handled = Request<RequestBody<Full<Bytes>>>;

/// The answer of a handler here.
pub(crate) type Given = Result<Response<Full<Bytes>>, Infallible>;

/// An answer with a status and a body.
pub(crate) fn answer(status: u16, body: impl Into<Bytes>) -> Given {
    Ok(Response::builder()
        .status(status)
        .body(Full::new(body.into()))
        .unwrap())
}

/// A body that must not be read.
pub(crate) struct Unreadable;

impl Body for Unreadable {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("the body was read")
    }
}
