//! [`Execution::current`]: where code finds the execution that it works for, and where it does not.

use std::{
    convert::Infallible,
    future::ready,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{FutureExt, future::join3, poll};
use http::Response;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::{Execution, MemoryStore, Operation, Probed, Takeover};

use crate::{
    base::{Handled, Scripted, answer, layer, post, yield_once},
    calls::operation,
};

/// The key of the current execution.
fn current() -> Option<String> {
    Some(Execution::current()?.key().to_owned())
}

fn is(key: &str) -> bool {
    current().as_deref() == Some(key)
}

/// S25: in the handler's call, in what it awaits, however deep, and in the body of its answer.
#[tokio::test]
async fn s25_it_is_found_wherever_the_handler_is_polled() {
    let frames = Arc::new(Mutex::new(Vec::new()));
    let log = frames.clone();
    let service = layer(Scripted::yielding()).layer(service_fn(move |_: Handled| {
        assert!(is("k"), "in `Service::call`");
        let body = Watched(log.clone(), 3);
        async move {
            assert!(is("k"));
            yield_once().await;
            let nested = async {
                yield_once().await;
                is("k")
            };
            let boxed = nested.boxed();
            let all = join3(boxed, async { is("k") }, async {
                yield_once().await;
                tokio::task::unconstrained(async { is("k") }).await
            });
            assert_eq!(all.await, (true, true, true));
            Ok::<_, Infallible>(Response::new(body))
        }
    }));
    assert_eq!(current(), None);
    let call = service.oneshot(post("k", "b"));
    let mut call = std::pin::pin!(call);
    let answer = loop {
        // Between two polls it is nobody's.
        assert_eq!(current(), None);
        match poll!(call.as_mut()) {
            Poll::Ready(answer) => break answer.unwrap(),
            Poll::Pending => tokio::task::yield_now().await,
        }
    };
    assert_eq!(current(), None);
    answer.into_body().collect().await.unwrap();
    let frames = frames.lock().unwrap();
    assert_eq!(*frames, vec![Some("k".to_owned()); 4]);
}

/// A body that notes the current execution at each of its frames, and at its end.
struct Watched(Arc<Mutex<Vec<Option<String>>>>, usize);

impl Body for Watched {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.lock().unwrap().push(current());
        if self.1 == 0 {
            return Poll::Ready(None);
        }
        self.1 -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
    }
}

/// Not in a stream that the layer sends on as it comes: nobody waits for its record.
#[tokio::test]
async fn u06_s25_a_stream_that_is_sent_on_has_none() {
    let frames = Arc::new(Mutex::new(Vec::new()));
    let log = frames.clone();
    let service = layer(MemoryStore::new()).layer(service_fn(move |_: Handled| {
        let response = Response::builder().header("content-type", "text/event-stream");
        ready(response.body(Watched(log.clone(), 3)))
    }));
    let answer = service.oneshot(post("k", "b")).await.unwrap();
    answer.into_body().collect().await.unwrap();
    assert_eq!(*frames.lock().unwrap(), vec![None; 4]);
}

/// P4: after the caller left, too, when the runtime polls the work.
#[tokio::test]
async fn p4_s25_it_is_found_after_the_caller_left() {
    let layer = layer(MemoryStore::new());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let mut left = Box::pin(operation(&layer, "k", async move |_| {
        log.lock().unwrap().push(current());
        yield_once().await;
        log.lock().unwrap().push(current());
        201
    }));
    assert!(poll!(&mut left).is_pending());
    drop(left);
    assert_eq!(seen.lock().unwrap().len(), 1);
    layer.drain().await;
    assert_eq!(*seen.lock().unwrap(), vec![Some("k".to_owned()); 2]);
}

/// Not in a task that the handler spawned, nor on a thread of its own, nor outside of any handler.
#[tokio::test]
async fn s25_it_is_not_found_elsewhere() {
    let status = operation(&layer(MemoryStore::new()), "k", async |_| {
        let spawned = tokio::spawn(async { current() });
        let blocking = tokio::task::spawn_blocking(current);
        assert_eq!(spawned.await.unwrap(), None);
        assert_eq!(blocking.await.unwrap(), None);
        assert!(is("k"));
        201
    });
    assert_eq!(status.await, 201);
    assert_eq!(current(), None);
    // Without a key there is no execution.
    let service = layer(MemoryStore::new()).layer(service_fn(async |_: Handled| {
        assert_eq!(current(), None);
        answer(200, "done")
    }));
    let mut keyless = post("k", "b");
    keyless.headers_mut().clear();
    assert_eq!(service.oneshot(keyless).await.unwrap().status(), 200);
}

/// U03: a panic leaves nothing behind on its thread.
#[tokio::test]
async fn u03_a_panic_leaves_none_behind() {
    let layer = layer(MemoryStore::new());
    let panics = operation(&layer, "k", async |_| panic!("as the test wants it"));
    assert!(AssertUnwindSafe(panics).catch_unwind().await.is_err());
    assert_eq!(current(), None);
}

/// S28: the work of an operation has it, and one inside another one has its own.
#[tokio::test]
async fn s25_s28_an_operation_has_its_own() {
    let outer = Operation::new("outer", MemoryStore::new());
    let run = outer.call("outer").run(async |execution| {
        assert!(is("outer"));
        let inner = Operation::new("inner", MemoryStore::new());
        let run = inner.call("inner").run(async |_| {
            assert!(is("inner"));
            yield_once().await;
            Ok::<_, Infallible>(is("inner"))
        });
        assert!(run.await.unwrap().into_value());
        assert_eq!(
            Execution::current().unwrap().store_key(),
            execution.store_key()
        );
        let service = layer(MemoryStore::new());
        let status = operation(&service, "http", async |_| {
            yield_once().await;
            assert!(is("http"));
            201
        });
        assert_eq!(status.await, 201);
        Ok::<_, Infallible>(is("outer"))
    });
    assert!(run.await.unwrap().into_value());
    assert_eq!(current(), None);
}

/// P5: the probe that is asked after a crash works for the execution, too.
#[tokio::test(start_paused = true)]
async fn p5_s25_a_probe_has_it() {
    let layer = layer(MemoryStore::new());
    let crashing = layer.clone().max_detached(0);
    let mut crash = Box::pin(operation(&crashing, "k", async |_| {
        std::future::pending().await
    }));
    assert!(poll!(&mut crash).is_pending());
    drop(crash);
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;

    let probing = layer.takeover(Takeover::probe(|execution, _| async move {
        yield_once().await;
        assert_eq!((current(), execution.attempt()), (Some("k".to_owned()), 2));
        Probed::NotDone
    }));
    assert_eq!(operation(&probing, "k", async |_| 201).await, 201);
}
