//! U06, U22, P9: answers that are large, slow, endless, or have no body.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use tokio::{sync::mpsc, time::Instant};
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::{Outcome, Reason};

use crate::support::{Effects, Handled, Scripted, YieldingBody, answer, layer, post, read};

/// U06, U16: an answer of exactly the limit is recorded; one byte more reaches its caller whole,
/// and is never executed again.
#[tokio::test]
async fn u06_u16_the_limit_of_recorded_answers() {
    for (size, recorded) in [(0, true), (100, true), (101, false), (5_000, false)] {
        let effects = Effects::default();
        let handler = {
            let effects = effects.clone();
            move |_: Handled| {
                effects.add();
                async move { answer(201, "x".repeat(size)) }
            }
        };
        let service = layer(Scripted::new())
            .response_limit(100)
            .layer(service_fn(handler));
        let first = service.clone().oneshot(post("k", "b")).await.unwrap();
        let outcome = *first.extensions().get::<Outcome>().unwrap();
        assert_eq!(read(first).await.body.len(), size);
        let retry = read(service.clone().oneshot(post("k", "b")).await.unwrap()).await;
        if recorded {
            assert_eq!(outcome, Outcome::Completed);
            assert_eq!((retry.is_replay(), retry.body.len()), (true, size));
        } else {
            assert_eq!(outcome, Outcome::NotReplayable);
            assert_eq!(retry.status, StatusCode::CONFLICT);
            assert_eq!(retry.problem(), "not-replayable");
            assert!(!retry.headers.contains_key("retry-after"));
            let other = service.oneshot(post("k", "other")).await.unwrap();
            let outcome = other.extensions().get();
            assert_eq!(outcome, Some(&Outcome::Refused(Reason::Mismatch)));
        }
        assert_eq!(effects.count(), 1, "{size}");
    }
}

/// U06: the same in pieces, whose length is not known beforehand.
#[tokio::test]
async fn u06_the_limit_in_pieces() {
    for (last, recorded) in [("5678", true), ("56789", false)] {
        let handler = move |_: Handled| async move {
            let body = YieldingBody::new(["12", "34", last]);
            Ok::<_, Infallible>(Response::new(body))
        };
        let service = layer(Scripted::new())
            .response_limit(8)
            .layer(service_fn(handler));
        let first = read(service.clone().oneshot(post("k", "b")).await.unwrap()).await;
        assert_eq!(first.text(), format!("1234{last}"));
        let retry = read(service.oneshot(post("k", "b")).await.unwrap()).await;
        assert_eq!(retry.is_replay(), recorded);
    }
}

type Sent = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// A body that gives what is sent.
fn channel() -> (
    Sent,
    impl http_body::Body<Data = Bytes, Error = Infallible> + Send,
) {
    let (sender, mut receiver) = mpsc::channel(8);
    let frames = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    (sender, StreamBody::new(frames))
}

async fn send(sender: &Sent, data: &'static str) {
    sender.send(Ok(Frame::data(data.into()))).await.unwrap();
}

/// U06: server-sent events are sent on from the first one; the key counts as completed at once.
#[tokio::test(start_paused = true)]
async fn u06_server_sent_events_are_not_held_back() {
    for content_type in ["text/event-stream", "Text/Event-Stream; charset=utf-8"] {
        let (sender, body) = channel();
        let body = std::sync::Mutex::new(Some(body));
        let handler = move |_: Handled| {
            let body = body.lock().unwrap().take().expect("runs once");
            let response = Response::builder().header("content-type", content_type);
            std::future::ready(Ok::<_, Infallible>(response.body(body).unwrap()))
        };
        let handler = std::sync::Arc::new(handler);
        let service = layer(Scripted::new()).layer(service_fn(move |request| handler(request)));
        let start = Instant::now();
        let first = service.clone().oneshot(post("k", "b")).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(first.extensions().get(), Some(&Outcome::NotReplayable));

        let retry = read(service.oneshot(post("k", "b")).await.unwrap()).await;
        assert_eq!(retry.problem(), "not-replayable");
        let mut body = first.into_body();
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            send(&sender, event).await;
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), event);
        }
        drop(sender);
        assert!(body.frame().await.is_none());
    }
}

/// U06: an answer that does not end in time is sent on, with what came so far.
#[tokio::test(start_paused = true)]
async fn u06_slow_answers_are_sent_on() {
    let (sender, body) = channel();
    let body = std::sync::Mutex::new(Some(body));
    let handler = std::sync::Arc::new(move |_: Handled| {
        let body = body.lock().unwrap().take().expect("runs once");
        std::future::ready(Ok::<_, Infallible>(Response::new(body)))
    });
    let service = layer(Scripted::new()).layer(service_fn(move |request| handler(request)));
    send(&sender, "early, ").await;
    let start = Instant::now();
    let first = service.clone().oneshot(post("k", "b")).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 10);
    assert_eq!(first.extensions().get(), Some(&Outcome::NotReplayable));
    let late = tokio::spawn(async move {
        send(&sender, "late").await;
    });
    assert_eq!(read(first).await.text(), "early, late");
    late.await.unwrap();
    let retry = read(service.oneshot(post("k", "b")).await.unwrap()).await;
    assert_eq!(retry.problem(), "not-replayable");
}

/// A rejection or a failure that is too large to hold is still one.
#[tokio::test]
async fn u06_large_errors_are_judged_all_the_same() {
    for (status, expected) in [(422, Outcome::Rejected), (500, Outcome::Failed)] {
        let handler = move |_: Handled| async move { answer(status, "x".repeat(200)) };
        let service = layer(Scripted::new())
            .response_limit(100)
            .layer(service_fn(handler));
        for _ in 0..2 {
            let error = service.clone().oneshot(post("k", "b")).await.unwrap();
            assert_eq!(error.extensions().get(), Some(&expected));
            assert_eq!(read(error).await.body.len(), 200);
        }
    }
}

/// U22: an answer without a body states a length on replay exactly if it did at first.
#[tokio::test]
async fn u22_bodiless_answers_gain_no_length() {
    for (method, status) in [("HEAD", 200), ("POST", 204), ("POST", 304)] {
        for known in [true, false] {
            let handler = move |_: Request<_>| async move {
                let body = match known {
                    true => Full::<Bytes>::default().boxed(),
                    false => StreamBody::new(futures::stream::empty()).boxed(),
                };
                let response = Response::builder().status(status).body(body);
                Ok::<_, Infallible>(response.unwrap())
            };
            let service = layer(Scripted::new())
                .covers(|_| true)
                .layer(service_fn(handler));
            for replay in [false, true] {
                let request = Request::builder()
                    .method(Method::from_bytes(method.as_bytes()).unwrap())
                    .header("idempotency-key", "k")
                    .body(Empty::<Bytes>::new())
                    .unwrap();
                let response = service.clone().oneshot(request).await.unwrap();
                assert!(!response.headers().contains_key("content-length"));
                let exact = response.body().size_hint().exact();
                assert_eq!(exact, known.then_some(0), "{method} {status} {replay}");
                assert_eq!(read(response).await.is_replay(), replay);
            }
        }
    }
}

/// A switch of protocols is sent on; its key counts as completed.
#[tokio::test]
async fn an_upgrade_that_a_covered_request_got_is_sent_on() {
    let handler = |_: Handled| async { answer(101, "") };
    let service = layer(Scripted::new()).layer(service_fn(handler));
    let first = service.clone().oneshot(post("k", "b")).await.unwrap();
    assert_eq!(first.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(first.extensions().get(), Some(&Outcome::NotReplayable));
    let retry = read(service.oneshot(post("k", "b")).await.unwrap()).await;
    assert_eq!(retry.problem(), "not-replayable");
}
