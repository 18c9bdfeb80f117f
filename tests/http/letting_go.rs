//! What a request holds, and when it lets go of it: its body, its head, and its place in the inner
//! service (U20).

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{future::BoxFuture, poll};
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::Full;
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimit, service_fn};
use tower_idempotency::{Execution, Probed, RequestBody, Takeover};

use crate::support::{Effects, Fault, Given, Handled, Op, Scripted, answer, layer, post};

/// What happened, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<&'static str>>>);

impl Log {
    fn add(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Tells when it goes.
#[derive(Clone)]
struct Tells(#[expect(dead_code, reason = "held, to be dropped")] Arc<Told>);

struct Told(&'static str, Log);

impl Tells {
    fn new(what: &'static str, log: &Log) -> Self {
        Self(Arc::new(Told(what, log.clone())))
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.1.add(self.0);
    }
}

struct Sent(
    Full<Bytes>,
    #[expect(dead_code, reason = "held, to be dropped")] Tells,
);

impl Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::pin::Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

/// Its place is taken when it is ready, and goes with the answer's future.
struct Inner {
    log: Log,
    place: Option<Tells>,
    panics: bool,
}

impl Clone for Inner {
    fn clone(&self) -> Self {
        Self {
            log: self.log.clone(),
            place: None,
            panics: self.panics,
        }
    }
}

impl Service<Request<RequestBody<Sent>>> for Inner {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Given>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.place = Some(Tells::new("place", &self.log));
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody<Sent>>) -> Self::Future {
        let place = self.place.take().expect("called when ready");
        let (log, panics) = (self.log.clone(), self.panics);
        Box::pin(async move {
            let _place = place;
            log.add("runs");
            assert!(!panics, "as the test wants it");
            drop(request);
            answer(201, "done")
        })
    }
}

fn sent(log: &Log) -> Request<Sent> {
    let (parts, body) = post("k", "b").into_parts();
    let mut request = Request::from_parts(parts, Sent(body, Tells::new("body", log)));
    request.extensions_mut().insert(Tells::new("head", log));
    request
}

/// The body that was read goes before the store is asked; head and place go before the record.
#[tokio::test(start_paused = true)]
async fn u20_nothing_of_the_request_is_held_while_it_is_recorded() {
    for panics in [false, true] {
        let (store, log) = (Scripted::new(), Log::default());
        let inner = Inner {
            log: log.clone(),
            place: None,
            panics,
        };
        let layer = layer(store.clone());
        let mut service = layer.layer(inner);
        store
            .next(Op::Claim, Fault::AnswerHeld)
            .next(Op::Complete, Fault::AnswerHeld)
            .next(Op::Fail, Fault::AnswerHeld);
        let mut call = Box::pin(service.ready().await.unwrap().call(sent(&log)));
        assert!(poll!(call.as_mut()).is_pending());
        assert_eq!(log.take(), ["body"], "the claim is on its way");
        store.open();
        assert!(poll!(call.as_mut()).is_pending());
        let mut gone = log.take();
        gone.sort_unstable();
        assert_eq!(gone, ["head", "place", "runs"], "the record is on its way");
        drop(call);
        store.open();
        layer.drain().await;
        assert!(log.take().is_empty());
    }
}

/// A handler with a limit of one place, and how often it ran.
fn limited() -> (
    ConcurrencyLimit<
        impl Service<Handled, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    >,
    Effects,
) {
    let effects = Effects::default();
    let ran = effects.clone();
    let handler = move |_: Handled| {
        ran.add();
        async { answer(201, "done") }
    };
    (ConcurrencyLimit::new(service_fn(handler), 1), effects)
}

/// U20: an answer that is recorded has left its place to others.
#[tokio::test(start_paused = true)]
async fn u20_recording_takes_no_place() {
    let (store, (inner, effects)) = (Scripted::new(), limited());
    let service = layer(store.clone()).layer(inner);
    store.next(Op::Complete, Fault::AnswerHeld);
    let mut first = Box::pin(service.clone().oneshot(post("a", "b")));
    assert!(poll!(first.as_mut()).is_pending());
    let other = tokio::time::timeout(Duration::from_secs(1), service.oneshot(post("c", "b")));
    assert_eq!(other.await.unwrap().unwrap().status(), StatusCode::CREATED);
    store.open();
    assert_eq!(first.await.unwrap().status(), StatusCode::CREATED);
    assert_eq!(effects.count(), 2);
}

/// U20: a key that is given back, or recorded, without its handler holds no place meanwhile.
#[tokio::test(start_paused = true)]
async fn u20_p5_what_does_not_run_takes_no_place() {
    for (key, op) in [
        ("done", Op::Complete),
        ("unknown", Op::GiveBack),
        ("panics", Op::GiveBack),
    ] {
        let store = Scripted::new();
        let crashing =
            layer(store.clone()).layer(service_fn(|_: Handled| std::future::pending::<Given>()));
        let lone = tokio::spawn(crashing.oneshot(post(key, "b")));
        tokio::task::yield_now().await;
        // Its process dies: nothing renews the lease.
        store.always(Op::Renew, Fault::Hangs);
        tokio::time::sleep(Duration::from_secs(31)).await;

        let probe = Takeover::probe(|execution: Execution, _| async move {
            match execution.key() {
                "done" => Probed::Completed(Response::new("found".into())),
                "unknown" => Probed::Unknown,
                _ => panic!("as the test wants it"),
            }
        });
        let (inner, effects) = limited();
        let service = layer(store.clone()).takeover(probe).layer(inner);
        store.next(op, Fault::AnswerHeld);
        let mut first = Box::pin(service.clone().oneshot(post(key, "b")));
        assert!(poll!(first.as_mut()).is_pending());
        let other = service.oneshot(post("other", "b"));
        let other = tokio::time::timeout(Duration::from_secs(1), other).await;
        assert_eq!(other.expect(key).unwrap().status(), StatusCode::CREATED);
        assert_eq!(effects.count(), 1);
        lone.abort();
    }
}

/// U20, P4: a claim that is given back since its caller left holds no place meanwhile.
#[tokio::test(start_paused = true)]
async fn u20_p4_a_claim_that_is_given_back_takes_no_place() {
    let (store, (inner, effects)) = (Scripted::new(), limited());
    let layer = layer(store.clone());
    let service = layer.layer(inner);
    store
        .next(Op::Claim, Fault::AnswerHeld)
        .always(Op::GiveBack, Fault::Hangs);
    let mut left = Box::pin(service.clone().oneshot(post("k", "b")));
    assert!(poll!(left.as_mut()).is_pending());
    drop(left);
    store.open();
    let other = service.oneshot(post("other", "b"));
    let other = tokio::time::timeout(Duration::from_millis(100), other).await;
    assert_eq!(other.unwrap().unwrap().status(), StatusCode::CREATED);
    store.mend();
    layer.drain().await;
    assert_eq!((effects.count(), store.store().len()), (1, 1));
}
