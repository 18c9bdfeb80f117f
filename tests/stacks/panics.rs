//! Panics, and the layer that makes answers of them.

use std::convert::Infallible;

use bytes::Bytes;
use futures::stream;
use http::Response;
use http_body::Frame;
use http_body_util::StreamBody;
use tower::{Layer, service_fn};
use tower_http::catch_panic::CatchPanicLayer;
use tower_idempotency::verdict;

use crate::support::{
    Effects, Handled, Op, Payments, Scripted, ask, assert_paid, layer, post, post_to,
};

/// Outside: the panic is recorded as a failure and goes on, to become a 500 there. The retry runs.
#[tokio::test]
async fn u03_catch_panic_outside() {
    let (payments, store) = (Payments::new(), Scripted::new());
    let service = (CatchPanicLayer::new(), layer(store.clone())).layer(payments.clone());
    let failed = ask(&service, post_to("/panics-once", "k", "b")).await;
    assert_eq!(failed.status.as_u16(), 500);
    assert_eq!(store.calls(), [Op::Claim, Op::Fail]);
    assert_paid(
        &ask(&service, post_to("/panics-once", "k", "b")).await,
        false,
    );
    assert_paid(
        &ask(&service, post_to("/panics-once", "k", "b")).await,
        true,
    );
    assert_eq!((payments.calls(), payments.effects()), (2, 1));
}

/// Inside: the layer sees a 500, which is a failure too.
#[tokio::test]
async fn u03_catch_panic_inside() {
    let (payments, store) = (Payments::new(), Scripted::new());
    let service = (layer(store.clone()), CatchPanicLayer::new()).layer(payments.clone());
    let failed = ask(&service, post_to("/panics-once", "k", "b")).await;
    assert_eq!(failed.status.as_u16(), 500);
    assert_eq!(store.calls(), [Op::Claim, Op::Fail]);
    assert_paid(
        &ask(&service, post_to("/panics-once", "k", "b")).await,
        false,
    );
    assert_eq!((payments.calls(), payments.effects()), (2, 1));
}

/// Under `record_errors` the 500 that was made of a panic inside is recorded for good; a panic that
/// passes through the layer never is.
#[tokio::test]
async fn s04_a_panic_that_became_an_answer_is_judged_as_one() {
    let (payments, catch) = (Payments::new(), CatchPanicLayer::new());
    let idempotency = layer(Scripted::new()).judge(verdict::record_errors);
    let inside = (idempotency, catch).layer(payments.clone());
    for replay in [false, true] {
        let failed = ask(&inside, post_to("/panics-once", "k", "b")).await;
        assert_eq!((failed.status.as_u16(), failed.is_replay()), (500, replay));
    }
    assert_eq!(payments.calls(), 1);

    let (payments, idempotency) = (Payments::new(), layer(Scripted::new()));
    let outside = (catch, idempotency.judge(verdict::record_errors)).layer(payments);
    let failed = ask(&outside, post_to("/panics-once", "k", "b")).await;
    assert_eq!(failed.status.as_u16(), 500);
    assert_paid(
        &ask(&outside, post_to("/panics-once", "k", "b")).await,
        false,
    );
}

/// The body of an answer panics: the layer reads it, so a catcher outside of it catches that, which
/// it does not by itself.
#[tokio::test]
async fn u03_a_body_that_panics() {
    let (effects, store) = (Effects::default(), Scripted::new());
    let handler = {
        let effects = effects.clone();
        move |_: Handled| {
            let number = effects.add();
            let frames = stream::once(async move {
                assert!(number > 1, "as the test wants it");
                Ok::<_, Infallible>(Frame::data(Bytes::from("b")))
            });
            async { Ok::<_, Infallible>(Response::new(StreamBody::new(frames))) }
        }
    };
    let service = (CatchPanicLayer::new(), layer(store.clone())).layer(service_fn(handler));
    assert_eq!(ask(&service, post("k", "b")).await.status.as_u16(), 500);
    assert_eq!(store.calls(), [Op::Claim, Op::Fail]);
    for replay in [false, true] {
        let answer = ask(&service, post("k", "b")).await;
        assert_eq!((answer.text(), answer.is_replay()), ("b", replay));
    }
    assert_eq!(effects.count(), 2);
}
