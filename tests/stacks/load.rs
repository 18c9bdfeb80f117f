//! Layers that ration, queue, shed and repeat calls.

use std::{convert::Infallible, future, time::Duration};

use bytes::Bytes;
use futures::{future::join_all, poll};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::task::JoinHandle;
use tower::{
    BoxError, Layer, ServiceExt,
    buffer::{Buffer, BufferLayer},
    limit::{ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer, RateLimitLayer},
    load_shed::{LoadShedLayer, error::Overloaded},
    retry::{Policy, RetryLayer},
    service_fn,
    spawn_ready::SpawnReadyLayer,
    util::MapErrLayer,
};
use tower_idempotency::{IdempotencyLayer, MemoryStore, OnConflict, ResponseBody};

use crate::support::{
    Answer, Effects, Handled, Op, Payments, SLOW, Scripted, ask, ask_it, assert_once, assert_paid,
    layer, plain, post, post_to,
};

/// Waits for a duplicate for as long as any test takes.
fn waiting<S: tower_idempotency::Store>(store: S) -> IdempotencyLayer<S> {
    layer(store).on_conflict(OnConflict::Wait(Duration::from_secs(3_600)))
}

/// Runs `service` in a task, until it can go no further without time or others.
async fn start<F>(call: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    let task = tokio::spawn(call);
    tokio::time::sleep(Duration::from_millis(1)).await;
    task
}

/// An execution of `/gate` with the key `k`, on another server that shares only the store.
async fn elsewhere(store: &Scripted) -> (Payments, JoinHandle<Answer>) {
    let payments = Payments::new();
    let service = layer(store.clone()).layer(payments.clone());
    let running = start(ask(&service, post_to("/gate", "k", "b"))).await;
    assert_eq!(payments.calls(), 1);
    (payments, running)
}

/// U20: a limit of one inside. Fifty duplicates that wait for an execution on another server hold
/// no place: another key gets its turn, and so does each of them when the execution is recorded.
#[tokio::test(start_paused = true)]
async fn u20_u30_concurrency_limit_inside_is_not_starved_by_waiting_duplicates() {
    let store = Scripted::new();
    let (there, running) = elsewhere(&store).await;
    let here = Payments::new();
    let stack = (waiting(store.clone()), ConcurrencyLimitLayer::new(1));
    let service = stack.layer(here.clone());
    let mut duplicates = Vec::new();
    for _ in 0..50 {
        duplicates.push(start(ask(&service, post_to("/gate", "k", "b"))).await);
    }
    assert_paid(&ask(&service, post("other", "b")).await, false);
    assert!(duplicates.iter().all(|duplicate| !duplicate.is_finished()));
    there.open(1);
    for duplicate in duplicates {
        assert_paid(&duplicate.await.unwrap(), true);
    }
    assert_paid(&running.await.unwrap(), false);
    assert_eq!((here.effects(), there.effects()), (1, 1));
}

/// The same where the execution fails: one waiter after the other takes its turn in the limit.
#[tokio::test(start_paused = true)]
async fn u20_s30_concurrency_limit_inside_lets_waiters_run_in_turn() {
    let (here, store) = (Payments::new(), Scripted::new());
    let there = layer(store.clone()).layer(service_fn(|_: Handled| async {
        tokio::time::sleep(SLOW).await;
        Ok::<_, Infallible>(plain(503, "no"))
    }));
    let running = start(ask(&there, post("k", "b"))).await;
    let stack = (waiting(store.clone()), ConcurrencyLimitLayer::new(1));
    let service = stack.layer(here.clone());
    let duplicates = (0..50).map(|_| tokio::spawn(ask(&service, post("k", "b"))));
    let duplicates: Vec<_> = duplicates.collect();
    assert_eq!(running.await.unwrap().status.as_u16(), 503);
    let answers = join_all(duplicates).await;
    let replays = answers
        .iter()
        .filter(|answer| answer.as_ref().unwrap().is_replay());
    assert_eq!((replays.count(), here.effects()), (49, 1));
}

/// While the only place is taken by an execution, the layer is not ready: replays wait as well.
#[tokio::test(start_paused = true)]
async fn concurrency_limit_inside_makes_replays_wait_while_it_is_full() {
    let payments = Payments::new();
    let stack = (layer(Scripted::new()), ConcurrencyLimitLayer::new(1));
    let service = stack.layer(payments.clone());
    assert_paid(&ask(&service, post("done", "b")).await, false);
    let running = start(ask(&service, post_to("/gate", "k", "b"))).await;
    let replay = start(ask(&service, post("done", "b"))).await;
    assert!(!replay.is_finished());
    payments.open(1);
    assert_paid(&replay.await.unwrap(), true);
    assert!(!running.await.unwrap().is_replay());
}

/// Outside, a waiting duplicate holds a place for as long as it waits: one key starves the others.
#[tokio::test(start_paused = true)]
async fn concurrency_limit_outside_is_starved_by_waiting_duplicates() {
    let store = Scripted::new();
    let (there, running) = elsewhere(&store).await;
    let stack = (ConcurrencyLimitLayer::new(1), waiting(store.clone()));
    let service = stack.layer(Payments::new());
    let duplicate = start(ask(&service, post_to("/gate", "k", "b"))).await;
    let other = start(ask(&service, post("other", "b"))).await;
    tokio::time::sleep(SLOW).await;
    assert!(!duplicate.is_finished() && !other.is_finished());
    there.open(1);
    assert_paid(&duplicate.await.unwrap(), true);
    assert_paid(&other.await.unwrap(), false);
    assert!(!running.await.unwrap().is_replay());
}

/// One limit for the services of several routes, inside: the same as one for each.
#[tokio::test(start_paused = true)]
async fn u20_global_concurrency_limit_inside() {
    let store = Scripted::new();
    let (there, running) = elsewhere(&store).await;
    let (payments, limit) = (Payments::new(), GlobalConcurrencyLimitLayer::new(1));
    let [one, two] = [(); 2].map(|()| {
        let stack = (waiting(store.clone()), limit.clone());
        stack.layer(payments.clone())
    });
    let duplicate = start(ask(&one, post_to("/gate", "k", "b"))).await;
    assert_paid(&ask(&two, post("other", "b")).await, false);
    // The limit holds for both: while one runs, the other one waits.
    let gated = start(ask(&one, post_to("/gate", "gated", "b"))).await;
    let second = start(ask(&two, post("second", "b"))).await;
    assert_eq!((payments.calls(), second.is_finished()), (2, false));
    payments.open(1);
    assert_eq!(gated.await.unwrap().status.as_u16(), 201);
    assert_eq!(second.await.unwrap().status.as_u16(), 201);
    there.open(1);
    assert_paid(&duplicate.await.unwrap(), true);
    assert!(!running.await.unwrap().is_replay());
}

/// A buffer inside: its places, and the places of the limit behind it, are not held by waiters.
#[tokio::test(start_paused = true)]
async fn u20_buffer_inside() {
    let store = Scripted::new();
    let (there, running) = elsewhere(&store).await;
    let payments = Payments::new();
    let inner = ConcurrencyLimitLayer::new(1).layer(payments.clone());
    let service = waiting(store.clone()).layer(Buffer::<Handled, _>::new(inner, 1));
    let mut duplicates = Vec::new();
    for _ in 0..50 {
        duplicates.push(start(ask(&service, post_to("/gate", "k", "b"))).await);
    }
    assert_paid(&ask(&service, post("other", "b")).await, false);
    // The only place of the limit is taken. Two more wait for it, one at the head of the queue and
    // one in it, and a replay for its place in the queue.
    let mut gated = Vec::new();
    for key in ["1", "2", "3"] {
        gated.push(start(ask(&service, post_to("/gate", key, "b"))).await);
    }
    let replay = start(ask(&service, post("other", "b"))).await;
    assert_eq!((payments.calls(), replay.is_finished()), (2, false));
    payments.open(3);
    assert_paid(&replay.await.unwrap(), true);
    for gated in gated {
        assert_eq!(gated.await.unwrap().status.as_u16(), 201);
    }
    there.open(1);
    for duplicate in duplicates {
        assert_paid(&duplicate.await.unwrap(), true);
    }
    assert!(!running.await.unwrap().is_replay());
    assert_eq!(payments.effects(), 4);
}

/// A buffer outside: the layer is called by the buffer's worker, and its answers are awaited where
/// they are asked for. A caller who leaves the queue was never called; one who leaves later does not
/// undo the work.
#[tokio::test(start_paused = true)]
async fn p4_buffer_outside() {
    let (payments, store) = (Payments::new(), Scripted::new());
    let idempotency = layer(store.clone());
    let stack = (
        BufferLayer::<Request<Full<Bytes>>>::new(8),
        idempotency.clone(),
        ConcurrencyLimitLayer::new(1),
    );
    let service = stack.layer(payments.clone());
    let running = start(ask(&service, post_to("/gate", "k", "b"))).await;
    let queued = start(ask(&service, post("queued", "b"))).await;
    queued.abort();
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    assert!(queued.await.unwrap_err().is_cancelled());
    payments.open(1);
    idempotency.drain().await;
    assert_paid(&ask(&service, post_to("/gate", "k", "b")).await, true);
    assert_eq!((payments.calls(), payments.effects()), (1, 1));
}

/// Shedding inside: replays and conflicts are answered at any load; a call that is shed counts as a
/// failed attempt, which a retry may repeat at once.
#[tokio::test(start_paused = true)]
async fn u03_load_shed_inside() {
    let (payments, store) = (Payments::new(), Scripted::new());
    let stack = (
        layer(store.clone()),
        LoadShedLayer::new(),
        ConcurrencyLimitLayer::new(1),
    );
    let service = stack.layer(payments.clone());
    let running = start(ask(&service, post_to("/gate", "k", "b"))).await;
    let shed = service.clone().oneshot(post("shed", "b")).await;
    let error: BoxError = shed.unwrap_err();
    assert!(error.is::<Overloaded>());
    assert_eq!(store.count(Op::Fail), 1);
    let conflict = ask(&service, post_to("/gate", "k", "b")).await;
    assert_eq!(conflict.problem(), "in-progress");
    payments.open(1);
    assert_paid(&running.await.unwrap(), false);
    let next = start(ask(&service, post_to("/gate", "next", "b"))).await;
    assert_paid(&ask(&service, post_to("/gate", "k", "b")).await, true);
    payments.open(1);
    assert_eq!(next.await.unwrap().status.as_u16(), 201);
    assert_eq!(
        ask(&service, post("shed", "other")).await.problem(),
        "mismatch"
    );
    assert_eq!(ask(&service, post("shed", "b")).await.text(), "effect 3: b");
}

/// Shedding outside: whatever comes at full load is shed, replays too. Nothing is recorded of it.
#[tokio::test(start_paused = true)]
async fn load_shed_outside() {
    let (payments, store) = (Payments::new(), Scripted::new());
    let stack = (
        LoadShedLayer::new(),
        layer(store.clone()),
        ConcurrencyLimitLayer::new(1),
    );
    let service = stack.layer(payments.clone());
    assert_paid(&ask(&service, post("done", "b")).await, false);
    let running = start(ask(&service, post_to("/gate", "k", "b"))).await;
    let calls = store.calls();
    for key in ["done", "k", "new"] {
        let shed = service.clone().oneshot(post(key, "b")).await;
        assert!(shed.unwrap_err().is::<Overloaded>());
    }
    assert_eq!(store.calls(), calls);
    payments.open(1);
    assert_eq!(running.await.unwrap().status.as_u16(), 201);
    assert_paid(&ask(&service, post("done", "b")).await, true);
}

/// A rate outside counts every request; inside, where a buffer makes it a service to clone, only
/// those that run.
#[tokio::test(start_paused = true)]
async fn rate_limit_outside_counts_replays_and_inside_does_not() {
    let rate = RateLimitLayer::new(2, SLOW);
    let mut outside = (rate.clone(), layer(Scripted::new())).layer(Payments::new());
    for replay in [false, true] {
        assert_paid(&ask_it(&mut outside, post("k", "b")).await, replay);
    }
    assert!(poll!(Box::pin(ask_it(&mut outside, post("k", "b")))).is_pending());

    let payments = Payments::new();
    let limited = Buffer::<Handled, _>::new(rate.layer(payments.clone()), 8);
    let inside = layer(Scripted::new()).layer(limited);
    for replay in [false, true, true, true] {
        assert_paid(&ask(&inside, post("k", "b")).await, replay);
    }
    assert_eq!(
        ask(&inside, post("second", "b")).await.text(),
        "effect 2: b"
    );
    let start = tokio::time::Instant::now();
    assert_eq!(ask(&inside, post("third", "b")).await.text(), "effect 3: b");
    assert!(start.elapsed() >= SLOW / 2);
}

/// Readiness that a task of its own drives: outside as it is, inside behind a buffer.
#[tokio::test(start_paused = true)]
async fn u20_spawn_ready_outside_and_inside() {
    let payments = Payments::new();
    let stack = (layer(MemoryStore::new()), ConcurrencyLimitLayer::new(1));
    let layered = stack.layer(payments.clone());
    let mut outside = SpawnReadyLayer::new().layer(layered.clone());
    // The only place is taken, so that it is not ready at once.
    let running = start(ask(&layered, post_to("/gate", "k", "b"))).await;
    let mut replay = Box::pin(ask_it(&mut outside, post_to("/gate", "k", "b")));
    assert!(poll!(replay.as_mut()).is_pending());
    payments.open(1);
    assert_paid(&replay.await, true);
    assert_paid(&running.await.unwrap(), false);

    let payments = Payments::new();
    let limited = ConcurrencyLimitLayer::new(1).layer(payments.clone());
    let inner = Buffer::<Handled, _>::new(SpawnReadyLayer::new().layer(limited), 8);
    assert_once(&layer(MemoryStore::new()).layer(inner), &payments).await;
}

/// Sends a request again after a 5xx, up to so many times.
#[derive(Clone)]
struct AfterFailure(usize);

impl<B: Clone, R> Policy<Request<B>, Response<R>, Infallible> for AfterFailure {
    type Future = future::Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<B>,
        result: &mut Result<Response<R>, Infallible>,
    ) -> Option<Self::Future> {
        let response = result.as_ref().ok()?;
        self.0 = self.0.checked_sub(1)?;
        let failed = response.status().is_server_error();
        failed.then(|| future::ready(()))
    }

    fn clone_request(&mut self, request: &Request<B>) -> Option<Request<B>> {
        Some(request.clone())
    }
}

/// Retries outside keep the key, so that a lost answer is replayed and a failure runs again.
#[tokio::test]
async fn s09_s26_s30_retry_outside() {
    // The answer of the first try is lost after it was recorded.
    let (payments, lost) = (Payments::new(), Effects::default());
    let lossy = tower::util::MapResponseLayer::new(move |response: Response<ResponseBody<_>>| {
        match lost.add() {
            1 => response.map(|_| ResponseBody::default()).map_status(502),
            _ => response,
        }
    });
    let stack = (
        RetryLayer::new(AfterFailure(3)),
        lossy,
        layer(MemoryStore::new()),
    );
    let service = stack.layer(payments.clone());
    assert_paid(&ask(&service, post("k", "b")).await, true);
    assert_eq!((payments.calls(), payments.effects()), (1, 1));

    let payments = Payments::new();
    let stack = (RetryLayer::new(AfterFailure(3)), layer(MemoryStore::new()));
    let service = stack.layer(payments.clone());
    assert_paid(
        &ask(&service, post_to("/fails-once", "k", "b")).await,
        false,
    );
    assert_eq!((payments.calls(), payments.effects()), (2, 1));
}

trait MapStatus {
    fn map_status(self, status: u16) -> Self;
}

impl<B> MapStatus for Response<B> {
    fn map_status(mut self, status: u16) -> Self {
        *self.status_mut() = status.try_into().unwrap();
        self
    }
}

/// Retries inside are one execution: what is recorded is how the last of them ended. A body from
/// memory is collected first, since it cannot be cloned.
#[tokio::test]
async fn retry_inside_is_one_execution() {
    let (payments, store) = (Payments::new(), Scripted::new());
    let retrying = RetryLayer::new(AfterFailure(3)).layer(payments.clone());
    let collecting = service_fn(move |request: Handled| {
        let retrying = retrying.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            retrying
                .oneshot(Request::from_parts(parts, Full::from(body)))
                .await
        }
    });
    let service = layer(store.clone()).layer(collecting);
    for replay in [false, true] {
        assert_paid(
            &ask(&service, post_to("/fails-once", "k", "b")).await,
            replay,
        );
    }
    assert_eq!(store.calls(), [Op::Claim, Op::Complete, Op::Claim]);
    assert_eq!((payments.calls(), payments.effects()), (2, 1));
}

/// Errors mapped on either side.
#[tokio::test]
async fn map_err_outside_and_inside() {
    let payments = Payments::new();
    let stack = (
        MapErrLayer::new(|error: BoxError| error.to_string()),
        layer(MemoryStore::new()),
        MapErrLayer::new(|error: Infallible| -> BoxError { match error {} }),
    );
    assert_once(&stack.layer(payments.clone()), &payments).await;
}
