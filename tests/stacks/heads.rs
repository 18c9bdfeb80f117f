//! Layers that read and write heads: CORS, traces, request ids, paths, secrets.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use http_body_util::Full;
use tower::Layer;
use tower_http::{
    cors::CorsLayer,
    normalize_path::NormalizePathLayer,
    request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer},
    sensitive_headers::{SetSensitiveRequestHeadersLayer, SetSensitiveResponseHeadersLayer},
    trace::TraceLayer,
};
use tower_idempotency::{Outcome, Reason};

use crate::support::{Payments, Scripted, ask, assert_paid, layer, post, post_to, with};

const ORIGINS: [&str; 2] = ["https://one.example", "https://two.example"];

fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(ORIGINS.map(HeaderValue::from_static))
        .allow_methods([Method::POST])
        .allow_headers([HeaderName::from_static("idempotency-key")])
        .expose_headers([HeaderName::from_static("idempotent-replayed")])
}

fn from<B>(origin: &str, request: Request<B>) -> Request<B> {
    with(request, "origin", origin)
}

fn allowed(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(header::ACCESS_CONTROL_ALLOW_ORIGIN).iter();
    values.map(|value| value.to_str().unwrap()).collect()
}

/// Outside: refusals and replays have the headers that let a browser read them, each for its own
/// origin, and preflights do not reach the layer.
#[tokio::test]
async fn p10_cors_outside() {
    let (payments, store) = (Payments::new(), Scripted::new());
    let service = (cors(), layer(store.clone()).require_key(true)).layer(payments.clone());
    let preflight = Request::options("/pay")
        .header("origin", ORIGINS[0])
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "idempotency-key")
        .body(Full::<Bytes>::default())
        .unwrap();
    let preflight = ask(&service, preflight).await;
    assert_eq!(preflight.status.as_u16(), 200);
    assert_eq!(
        preflight.headers["access-control-allow-headers"],
        "idempotency-key"
    );
    assert_eq!((payments.calls(), store.calls()), (0, vec![]));

    for (origin, replay) in [(ORIGINS[0], false), (ORIGINS[1], true)] {
        let answer = ask(&service, from(origin, post("k", "b"))).await;
        assert_paid(&answer, replay);
        assert_eq!(allowed(&answer.headers), [origin]);
    }
    for (request, problem) in [
        (post("k", "other"), "mismatch"),
        (post("", "b"), "key-invalid"),
    ] {
        let refused = ask(&service, from(ORIGINS[0], request)).await;
        assert_eq!(
            (&*refused.problem(), &*allowed(&refused.headers)),
            (problem, &ORIGINS[..1])
        );
    }
}

/// Inside: a browser cannot read refusals, and a replay allows the first one's origin.
#[tokio::test]
async fn cors_inside_records_the_first_origin() {
    let service = (layer(Scripted::new()), cors()).layer(Payments::new());
    for (origin, replay) in [(ORIGINS[0], false), (ORIGINS[1], true)] {
        let answer = ask(&service, from(origin, post("k", "b"))).await;
        assert_paid(&answer, replay);
        assert_eq!(allowed(&answer.headers), [ORIGINS[0]]);
    }
    let refused = ask(&service, from(ORIGINS[0], post("k", "other"))).await;
    assert_eq!(
        (&*refused.problem(), allowed(&refused.headers).len()),
        ("mismatch", 0)
    );
}

/// A trace that notes the outcome of each answer, or none.
type Seen = Arc<Mutex<Vec<Option<Outcome>>>>;

macro_rules! traced {
    ($seen:expr) => {{
        let seen: Seen = Arc::clone(&$seen);
        TraceLayer::new_for_http().on_response(
            move |response: &Response<_>, _: std::time::Duration, _: &tracing::Span| {
                let outcome = response.extensions().get().copied();
                seen.lock().unwrap().push(outcome);
            },
        )
    }};
}

/// Outside, a trace sees every request and what became of it; inside, executions alone, and not yet
/// how they are recorded.
#[tokio::test]
async fn trace_outside_and_inside() {
    let (outside, inside) = (Seen::default(), Seen::default());
    let stack = (traced!(outside), layer(Scripted::new()), traced!(inside));
    let service = stack.layer(Payments::new());
    for body in ["b", "b", "other"] {
        ask(&service, post("k", body)).await;
    }
    let outcomes = [
        Some(Outcome::Completed),
        Some(Outcome::Replayed),
        Some(Outcome::Refused(Reason::Mismatch)),
    ];
    assert_eq!(*outside.lock().unwrap(), outcomes);
    assert_eq!(*inside.lock().unwrap(), [None]);
}

/// Numbers.
#[derive(Clone, Default)]
struct Counting(Arc<AtomicU64>);

impl MakeRequestId for Counting {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        let number = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        Some(RequestId::new(number.into()))
    }
}

fn request_ids() -> (SetRequestIdLayer<Counting>, PropagateRequestIdLayer) {
    (
        SetRequestIdLayer::x_request_id(Counting::default()),
        PropagateRequestIdLayer::x_request_id(),
    )
}

/// Outside, each request has an id of its own, replays and refusals too. Inside, a replay has the id
/// of the execution, which belongs to another request, and a refusal has none.
#[tokio::test]
async fn request_ids_outside_and_inside() {
    let outside = (request_ids(), layer(Scripted::new())).layer(Payments::new());
    let inside = (layer(Scripted::new()), request_ids()).layer(Payments::new());
    for (body, replay, id) in [("b", false, "1"), ("b", true, "2")] {
        let answer = ask(&outside, post("k", body)).await;
        assert_paid(&answer, replay);
        assert_eq!(answer.headers["x-request-id"], id);
        let answer = ask(&inside, post("k", body)).await;
        assert_paid(&answer, replay);
        assert_eq!(answer.headers["x-request-id"], "1");
    }
    let refused = ask(&outside, post("k", "other")).await;
    assert_eq!(refused.headers["x-request-id"], "3");
    let refused = ask(&inside, post("k", "other")).await;
    assert!(!refused.headers.contains_key("x-request-id"));
}

/// Outside, `/pay` and `/pay/` are one endpoint. Inside they are one for the handler and two for the
/// layer: one key takes effect at each.
#[tokio::test]
async fn normalize_path_outside_and_inside() {
    let normalize = NormalizePathLayer::trim_trailing_slash;
    let outside = (normalize(), layer(Scripted::new())).layer(Payments::new());
    let inside = (layer(Scripted::new()), normalize()).layer(Payments::new());
    assert_paid(&ask(&outside, post_to("/pay", "k", "b")).await, false);
    assert_paid(&ask(&outside, post_to("/pay/", "k", "b")).await, true);
    assert_paid(&ask(&inside, post_to("/pay", "k", "b")).await, false);
    assert_eq!(
        ask(&inside, post_to("/pay/", "k", "b")).await.text(),
        "effect 2: b"
    );
}

/// A key that a layer outside marked as secret works as any other. What is marked in an answer, by a
/// layer outside or inside, is marked in a replay too.
#[tokio::test]
async fn u19_sensitive_headers_outside_and_inside() {
    let key = HeaderName::from_static("idempotency-key");
    let request = || SetSensitiveRequestHeadersLayer::new([key.clone()]);
    let response = || SetSensitiveResponseHeadersLayer::new([header::LOCATION]);
    let outside = (request(), response(), layer(Scripted::new())).layer(Payments::new());
    let inside = (layer(Scripted::new()), response()).layer(Payments::new());
    for replay in [false, true] {
        let answer = ask(&outside, post("k", "b")).await;
        assert_paid(&answer, replay);
        assert!(answer.headers["location"].is_sensitive());
        let answer = ask(&inside, post("k", "b")).await;
        assert_paid(&answer, replay);
        assert!(answer.headers["location"].is_sensitive());
    }
}
