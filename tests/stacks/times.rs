//! Time limits: of the answer, of its body, of the request's body.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, future, stream};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tower::{BoxError, Layer, ServiceExt, service_fn, timeout::error::Elapsed};
use tower_http::timeout::{
    RequestBodyTimeoutLayer, ResponseBodyTimeoutLayer, TimeoutLayer as TimeoutAnswerLayer,
};
use tower_idempotency::{Outcome, RequestBody};

use crate::support::{
    Effects, Handled, Op, Payments, SLOW, Scripted, ask, assert_paid, layer, post, post_to, read,
};

const SOON: Duration = Duration::from_secs(10);

/// tower-http's timeout outside: the caller is told, the work goes on, and the retry replays.
#[tokio::test(start_paused = true)]
async fn p4_s09_timeout_layer_outside() {
    for status in [StatusCode::GATEWAY_TIMEOUT, StatusCode::REQUEST_TIMEOUT] {
        let (payments, layer) = (Payments::new(), layer(Scripted::new()));
        let timeout = TimeoutAnswerLayer::with_status_code(status, SOON);
        let service = (timeout, layer.clone()).layer(payments.clone());
        let late = ask(&service, post_to("/slow", "k", "b")).await;
        assert_eq!((late.status, payments.effects()), (status, 0));
        let meanwhile = ask(&service, post_to("/slow", "k", "b")).await;
        assert_eq!(meanwhile.problem(), "in-progress");
        layer.drain().await;
        assert_paid(&ask(&service, post_to("/slow", "k", "b")).await, true);
        assert_eq!(payments.effects(), 1);
    }
}

/// Inside it cuts the work off. With a 5xx that counts as failed: the retry runs again, and another
/// payload is refused.
#[tokio::test(start_paused = true)]
async fn timeout_layer_inside_with_a_5xx_is_a_failure() {
    let (payments, store) = (Payments::new(), Scripted::new());
    let timeout = TimeoutAnswerLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, SOON);
    let service = (layer(store.clone()), timeout).layer(payments.clone());
    for calls in 1..=2 {
        let late = ask(&service, post_to("/slow", "k", "b")).await;
        assert_eq!((late.status.as_u16(), late.is_replay()), (504, false));
        assert_eq!((payments.calls(), store.count(Op::Fail)), (calls, calls));
    }
    tokio::time::sleep(2 * SLOW).await;
    assert_eq!(payments.effects(), 0, "it was cut off");
    let other = ask(&service, post_to("/slow", "k", "other")).await;
    assert_eq!(other.problem(), "mismatch");
}

/// With 408 too: the layer has read the request to its end, so what was too slow was the handler,
/// and what it did is not known. The key is not free for another payload.
#[tokio::test(start_paused = true)]
async fn u03_timeout_layer_inside_with_408_is_a_failure() {
    let (payments, store) = (Payments::new(), Scripted::new());
    let timeout = TimeoutAnswerLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, SOON);
    let service = (layer(store.clone()), timeout).layer(payments.clone());
    for calls in [1, 2] {
        let late = ask(&service, post_to("/slow", "k", "b")).await;
        assert_eq!((late.status.as_u16(), payments.calls()), (408, calls));
    }
    assert_eq!((store.count(Op::Fail), store.store().len()), (2, 1));
    let other = ask(&service, post_to("/slow", "k", "other")).await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
}

/// tower's timeout is an error and not an answer. Outside it is the caller's alone.
#[tokio::test(start_paused = true)]
async fn p4_s09_tower_timeout_outside() {
    let (payments, layer) = (Payments::new(), layer(Scripted::new()));
    let timeout = tower::timeout::TimeoutLayer::new(SOON);
    let service = (timeout, layer.clone()).layer(payments.clone());
    let late = service.clone().oneshot(post_to("/slow", "k", "b")).await;
    assert!(late.unwrap_err().is::<Elapsed>());
    layer.drain().await;
    assert_paid(&ask(&service, post_to("/slow", "k", "b")).await, true);
    assert_eq!(payments.effects(), 1);
}

/// Inside it passes through, counts as failed, and the retry runs again.
#[tokio::test(start_paused = true)]
async fn u03_tower_timeout_inside() {
    let (payments, store) = (Payments::new(), Scripted::new());
    let timeout = tower::timeout::TimeoutLayer::new(SOON);
    let service = (layer(store.clone()), timeout).layer(payments.clone());
    for calls in 1..=2 {
        let late = service.clone().oneshot(post_to("/slow", "k", "b")).await;
        let error: BoxError = late.unwrap_err();
        assert!(error.is::<Elapsed>());
        assert_eq!((payments.calls(), store.count(Op::Fail)), (calls, calls));
    }
    assert_eq!(payments.effects(), 0);
}

type Sent = StreamBody<stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// A body that stops after its first frame.
fn stalled() -> Sent {
    let first = stream::iter([Ok(Frame::data(Bytes::from("first")))]);
    StreamBody::new(first.chain(stream::pending()).boxed())
}

/// A body whose frames come a while after each other.
fn trickling() -> Sent {
    let frames = stream::iter(["b", ""]).then(|frame| async move {
        tokio::time::sleep(SOON - Duration::from_secs(1)).await;
        Ok(Frame::data(Bytes::from(frame)))
    });
    StreamBody::new(frames.boxed())
}

fn upload(body: Sent) -> Request<Sent> {
    post("k", "").map(|_| body)
}

/// A limit on pauses in the request's body, outside: the upload breaks off, and nothing ran. Without
/// it the layer's own limit holds.
#[tokio::test(start_paused = true)]
async fn p9_u17_request_body_timeout_outside() {
    let (payments, store) = (Payments::new(), Scripted::new());
    let idempotency = layer(store.clone());
    let timeout = RequestBodyTimeoutLayer::new(SOON);
    let service = (timeout, idempotency.clone()).layer(payments.clone());
    let slow = ask(&service, upload(stalled())).await;
    assert_eq!(
        (slow.status.as_u16(), &*slow.problem()),
        (400, "body-broken")
    );
    let alone = idempotency.layer(payments.clone());
    let slow = ask(&alone, upload(stalled())).await;
    assert_eq!(
        (slow.status.as_u16(), &*slow.problem()),
        (408, "body-too-slow")
    );
    assert_eq!((payments.calls(), store.calls()), (0, vec![]));
    // Frames that each come in time, and together too.
    assert_paid(&ask(&service, upload(trickling())).await, false);
    assert_paid(&ask(&alone, upload(trickling())).await, true);
}

/// Inside, the body comes from memory: there is nothing to wait for.
#[tokio::test(start_paused = true)]
async fn request_body_timeout_inside_has_nothing_to_do() {
    let payments = Payments::new();
    let timeout = RequestBodyTimeoutLayer::new(Duration::from_millis(1));
    let service = (layer(Scripted::new()), timeout).layer(payments.clone());
    assert_paid(&ask(&service, upload(trickling())).await, false);
    assert_paid(&ask(&service, upload(trickling())).await, true);
}

/// Answers with a body that stops, and then with one that does not.
fn stalling(
    effects: &Effects,
) -> impl Fn(Handled) -> future::Ready<Result<Response<Sent>, Infallible>> + Clone + use<> {
    let effects = effects.clone();
    move |_| {
        let body = match effects.add() {
            1 => stalled(),
            _ => StreamBody::new(stream::iter([Ok(Frame::data(Bytes::from("b")))]).boxed()),
        };
        future::ready(Ok(Response::new(body)))
    }
}

/// A limit on pauses in the answer's body, inside: an answer that stops is a failure, and the retry
/// runs again.
#[tokio::test(start_paused = true)]
async fn u06_response_body_timeout_inside() {
    let (effects, store) = (Effects::default(), Scripted::new());
    let timeout = ResponseBodyTimeoutLayer::new(Duration::from_secs(1));
    let service = (layer(store.clone()), timeout).layer(service_fn(stalling(&effects)));
    let answer = service.clone().oneshot(post("k", "b")).await.unwrap();
    assert_eq!(answer.extensions().get(), Some(&Outcome::Failed));
    assert!(answer.into_body().collect().await.is_err());
    for replay in [false, true] {
        let again = ask(&service, post("k", "b")).await;
        assert_eq!((again.text(), again.is_replay()), ("b", replay));
    }
    assert_eq!(effects.count(), 2);
}

/// Outside it sees what the layer lets through: an answer that took too long to be recorded is cut
/// off for its caller, its key is done, and replays come from memory.
#[tokio::test(start_paused = true)]
async fn u06_response_body_timeout_outside() {
    let (effects, store) = (Effects::default(), Scripted::new());
    let timeout = ResponseBodyTimeoutLayer::new(Duration::from_secs(1));
    let service = (timeout, layer(store.clone())).layer(service_fn(stalling(&effects)));
    let answer = service.clone().oneshot(post("k", "b")).await.unwrap();
    assert_eq!(answer.extensions().get(), Some(&Outcome::NotReplayable));
    assert!(answer.into_body().collect().await.is_err());
    let again = ask(&service, post("k", "b")).await;
    assert_eq!(again.problem(), "not-replayable");
    for replay in [false, true] {
        let other = ask(&service, post("other", "b")).await;
        assert_eq!((other.text(), other.is_replay()), ("b", replay));
    }
    assert_eq!(effects.count(), 2);
}

/// An answer is whole before it is sent, so a timeout outside counts its body too. (The timeout
/// layer asks for bodies that have a default, and the handler's has none: the layer's own has.)
#[tokio::test(start_paused = true)]
async fn p3_a_timeout_outside_counts_the_answers_body() {
    let layer = layer(Scripted::new()).response_timeout(SLOW);
    let handler = service_fn(|_: Request<RequestBody<_>>| async {
        Ok::<_, Infallible>(Response::new(trickling()))
    });
    let timeout = TimeoutAnswerLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, SOON / 2);
    let service = (timeout, layer.clone()).layer(handler);
    let late = service.clone().oneshot(post("k", "b")).await.unwrap();
    assert_eq!(late.status().as_u16(), 504);
    layer.drain().await;
    let again = read(service.oneshot(post("k", "b")).await.unwrap()).await;
    assert_eq!((again.text(), again.is_replay()), ("b", true));
}
