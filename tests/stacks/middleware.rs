//! axum's own middleware around the layer and inside of it, and the whole stack of an application.

use axum::{
    BoxError, Router,
    body::{Body, Bytes},
    error_handling::HandleErrorLayer,
    extract::{DefaultBodyLimit, Request},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::post,
};
use http::StatusCode;
use tower::{
    ServiceBuilder, ServiceExt,
    limit::{ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer},
    load_shed::LoadShedLayer,
    timeout::TimeoutLayer,
};
use tower_http::{limit::RequestBodyLimitLayer, map_request_body::MapRequestBodyLayer};
use tower_idempotency::{IdempotencyLayer, RequestBody, Scope};

use crate::support::{
    Answer, Effects, Op, Payments, SLOW, Scripted, chunked, layer, post as keyed, post_to, read,
    with,
};

async fn ask<B>(app: &Router, request: http::Request<B>) -> Answer
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    read(app.clone().oneshot(request.map(Body::new)).await.unwrap()).await
}

fn payments() -> (Payments, Router) {
    let payments = Payments::new();
    let router = Router::new().fallback_service(payments.clone());
    (payments, router)
}

/// Who calls, as the authentication found it.
#[derive(Clone)]
struct Account(&'static str);

/// Two tokens of one account, and one of another.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let account = match request
        .headers()
        .get("authorization")
        .map(|token| token.as_bytes())
    {
        Some(b"old" | b"new") => Account("merchant"),
        Some(b"other") => Account("other"),
        _ => return StatusCode::UNAUTHORIZED.into_response(),
    };
    request.extensions_mut().insert(account);
    next.run(request).await
}

fn scoped(store: Scripted) -> IdempotencyLayer<Scripted> {
    let scope = Scope::extension(|account: &Account| account.0.to_owned());
    IdempotencyLayer::new(store, scope)
}

/// Authentication outside: the scope is the account, whatever token it comes with, and who has none
/// costs no store call.
#[tokio::test]
async fn u15_u33_from_fn_outside() {
    let (payments, router) = payments();
    let store = Scripted::new();
    let app = router
        .layer(scoped(store.clone()))
        .layer(from_fn(authenticate));
    assert_eq!(ask(&app, keyed("k", "b")).await.status.as_u16(), 401);
    assert_eq!(store.calls(), []);
    for (token, body, replay) in [
        ("old", "effect 1: b", false),
        ("new", "effect 1: b", true),
        ("other", "effect 2: b", false),
    ] {
        let answer = ask(&app, with(keyed("k", "b"), "authorization", token)).await;
        assert_eq!((answer.text(), answer.is_replay()), (body, replay));
    }
    assert_eq!(payments.effects(), 2);
}

/// Inside, it comes too late: the layer does not know the caller, and refuses.
#[tokio::test]
async fn i12_authentication_inside_is_too_late() {
    let (payments, router) = payments();
    let app = router
        .layer(from_fn(authenticate))
        .layer(scoped(Scripted::new()));
    let answer = ask(&app, with(keyed("k", "b"), "authorization", "old")).await;
    assert_eq!(answer.problem(), "caller-unknown");
    assert_eq!(payments.calls(), 0);
}

/// Counts its runs in a header.
fn counted(
    runs: &Effects,
) -> impl Fn(Request, Next) -> futures::future::BoxFuture<'static, Response> + Clone + use<> {
    let runs = runs.clone();
    move |request, next| {
        let runs = runs.add();
        Box::pin(async move {
            let mut response = next.run(request).await;
            response.headers_mut().insert("x-runs", runs.into());
            response
        })
    }
}

/// A middleware inside runs for executions only, and what it adds is recorded: with a `layer` call of
/// its own, and in one `ServiceBuilder` where a `MapRequestBodyLayer` stands between.
#[tokio::test]
async fn p2_from_fn_inside() {
    for one_builder in [false, true] {
        let (payments, router) = payments();
        let runs = Effects::default();
        let (idempotency, middleware) = (layer(Scripted::new()), from_fn(counted(&runs)));
        let app = match one_builder {
            false => router.layer(middleware).layer(idempotency),
            true => router.layer(
                ServiceBuilder::new()
                    .layer(idempotency)
                    .layer(MapRequestBodyLayer::new(Body::new::<RequestBody<Body>>))
                    .layer(middleware),
            ),
        };
        for replay in [false, true] {
            let answer = ask(&app, keyed("k", "b")).await;
            assert_eq!((answer.text(), answer.is_replay()), ("effect 1: b", replay));
            assert_eq!(answer.headers["x-runs"], "1");
        }
        assert_eq!((payments.effects(), runs.count()), (1, 1));
    }
}

/// Outside, it runs for replays too, in one `ServiceBuilder` with the layer and apart from it.
#[tokio::test]
async fn from_fn_outside_runs_for_replays() {
    for one_builder in [false, true] {
        let (payments, router) = payments();
        let runs = Effects::default();
        let (idempotency, middleware) = (layer(Scripted::new()), from_fn(counted(&runs)));
        let app = match one_builder {
            false => router.layer(idempotency).layer(middleware),
            true => router.layer(ServiceBuilder::new().layer(middleware).layer(idempotency)),
        };
        for (run, replay) in [("1", false), ("2", true)] {
            let answer = ask(&app, keyed("k", "b")).await;
            assert_eq!((answer.text(), answer.is_replay()), ("effect 1: b", replay));
            assert_eq!(answer.headers["x-runs"], run);
        }
        assert_eq!(payments.effects(), 1);
    }
}

async fn unavailable(_: BoxError) -> StatusCode {
    StatusCode::SERVICE_UNAVAILABLE
}

/// tower's layers whose errors axum wants handled: outside, the caller's loss only; inside, an answer
/// that is judged, a failure here.
#[tokio::test(start_paused = true)]
async fn p4_handled_errors_outside_and_inside() {
    let limits = || {
        ServiceBuilder::new()
            .layer(HandleErrorLayer::new(unavailable))
            .layer(LoadShedLayer::new())
            .layer(TimeoutLayer::new(SLOW / 2))
    };
    let (payments, router) = payments();
    let idempotency = layer(Scripted::new());
    let outside = router.clone().layer(idempotency.clone()).layer(limits());
    let late = ask(&outside, post_to("/slow", "outside", "b")).await;
    assert_eq!(late.status.as_u16(), 503);
    idempotency.drain().await;
    let again = ask(&outside, post_to("/slow", "outside", "b")).await;
    assert_eq!((again.text(), again.is_replay()), ("effect 1: b", true));

    let store = Scripted::new();
    let inside = router.layer(limits()).layer(layer(store.clone()));
    let late = ask(&inside, post_to("/slow", "inside", "b")).await;
    assert_eq!((late.status.as_u16(), store.count(Op::Fail)), (503, 1));
    tokio::time::sleep(2 * SLOW).await;
    assert_eq!(payments.effects(), 1);
}

/// tower-http's limit outside, told through axum's own errors: 413, however many of them there are.
#[tokio::test]
async fn u16_request_body_limit_outside_in_axum() {
    let (payments, router) = payments();
    let app = router.layer(layer(Scripted::new()));
    let once = app.clone().layer(RequestBodyLimitLayer::new(4));
    let twice = once.clone().layer(RequestBodyLimitLayer::new(1_000));
    let deep = Router::new().nest_service("/v1", once.clone());
    for (app, path) in [(once, "/pay"), (twice, "/pay"), (deep, "/v1/pay")] {
        let refused = ask(&app, chunked(post_to(path, "k", "12345"))).await;
        assert_eq!(
            (refused.status.as_u16(), &*refused.problem()),
            (413, "body-too-large")
        );
    }
    assert_eq!(payments.calls(), 0);
}

/// axum's default limit is one of extractors. The layer reads the body before them, within its own
/// limit; both must be raised for large bodies.
#[tokio::test]
async fn u16_default_body_limit() {
    const MIB: usize = 1024 * 1024;
    let store = Scripted::new();
    let app = |limit: usize| {
        let length = |body: Bytes| async move { body.len().to_string() };
        let idempotency = layer(store.clone()).body_limit(limit);
        Router::new().route("/pay", post(length)).layer(idempotency)
    };
    let large = "x".repeat(3 * MIB);
    let by_the_layer = app(MIB).layer(DefaultBodyLimit::max(4 * MIB));
    let refused = ask(&by_the_layer, keyed("k", &large)).await;
    assert_eq!(
        (refused.status.as_u16(), &*refused.problem()),
        (413, "body-too-large")
    );
    assert_eq!(store.calls(), []);
    let by_the_extractor = ask(&app(4 * MIB), keyed("k", &large)).await;
    assert_eq!(by_the_extractor.status.as_u16(), 413);
    assert_eq!(store.calls(), [Op::Claim, Op::Release]);
    let raised = app(4 * MIB).layer(DefaultBodyLimit::max(4 * MIB));
    assert_eq!(
        ask(&raised, keyed("k", &large)).await.text(),
        large.len().to_string()
    );
}

/// A limit inside, which one execution fills. In one builder with the layer it decides when the layer
/// is ready, and replays wait for a place; in a `layer` call of its own they do not, since axum asks
/// for the place only when the handler is called.
#[tokio::test(start_paused = true)]
async fn u20_concurrency_limit_inside_in_axum() {
    for one_builder in [true, false] {
        let (payments, router) = payments();
        let (idempotency, limit) = (layer(Scripted::new()), GlobalConcurrencyLimitLayer::new(1));
        let app = match one_builder {
            true => router.layer(ServiceBuilder::new().layer(idempotency).layer(limit)),
            false => router.layer(limit).layer(idempotency),
        };
        assert!(!ask(&app, keyed("done", "b")).await.is_replay());
        let ask = |path: &'static str, key: &'static str| {
            let app = app.clone();
            tokio::spawn(async move { ask(&app, post_to(path, key, "b")).await })
        };
        let running = ask("/gate", "running");
        tokio::time::sleep(SLOW).await;
        let (replay, next) = (ask("/pay", "done"), ask("/pay", "next"));
        tokio::time::sleep(SLOW).await;
        assert_eq!(
            (replay.is_finished(), next.is_finished()),
            (!one_builder, false)
        );
        assert_eq!(payments.calls(), 2);
        payments.open(1);
        assert!(replay.await.unwrap().is_replay());
        for call in [running, next] {
            assert_eq!(call.await.unwrap().status.as_u16(), 201);
        }
    }
}

/// axum makes a layer for each route, and so a limit for each, unless they share one.
#[tokio::test(start_paused = true)]
async fn a_concurrency_limit_of_routes_in_axum() {
    for shared in [false, true] {
        let payments = Payments::new();
        let routes = Router::new()
            .route_service("/gate", payments.clone())
            .route_service("/pay", payments.clone());
        let limited = match shared {
            false => routes.layer(ConcurrencyLimitLayer::new(1)),
            true => routes.layer(GlobalConcurrencyLimitLayer::new(1)),
        };
        let app = limited.layer(layer(Scripted::new()));
        let call = |path: &'static str| {
            let app = app.clone();
            tokio::spawn(async move { ask(&app, post_to(path, "k", "b")).await })
        };
        let (gated, other) = (call("/gate"), call("/pay"));
        tokio::time::sleep(SLOW).await;
        assert_eq!((gated.is_finished(), other.is_finished()), (false, !shared));
        payments.open(1);
        for call in [gated, other] {
            assert_eq!(call.await.unwrap().status.as_u16(), 201);
        }
    }
}
