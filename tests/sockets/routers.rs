//! axum's routers: nested, layered outside and inside.

use std::sync::Arc;

use axum::{
    Router,
    extract::{FromRequestParts, OriginalUri, Path},
    http::StatusCode,
    response::IntoResponse as _,
    routing::{any, post},
};
use tokio::net::TcpListener;
use tower_idempotency::{Execution, IdempotencyLayer, MemoryStore, MissingExecution};

use crate::{
    down::Down,
    support::{Raw, layer, post_to},
};

/// Says which router, and which part of the path, it ran in.
fn sub(name: &'static str) -> Router {
    let handler = move |path: Option<Path<String>>, uri: OriginalUri, run: Execution| {
        let rest = path.map_or_else(String::new, |Path(rest)| rest);
        async move { format!("{name} {rest} {} {}", uri.path(), run.key()) }
    };
    Router::new()
        .route("/", post(handler))
        .route("/pay", post(handler))
        .route("/of/{id}", post(handler))
}

async fn serve(app: Router) -> Raw {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Raw::connect(addr).await
}

type Layered = Box<dyn Fn(&IdempotencyLayer<MemoryStore>) -> Router>;

/// U09: one key at each of these paths is an operation of its own, wherever the layer stands.
#[tokio::test]
async fn u09_nested_routers_do_not_share_records() {
    let cases: Vec<(&str, Layered)> = vec![
        (
            "a layer inside each",
            Box::new(|layer| {
                Router::new()
                    .nest("/v1", sub("one").layer(layer.clone()))
                    .nest("/v2", sub("two").layer(layer.clone()))
                    .nest("/v1/v2", sub("three").layer(layer.clone()))
            }),
        ),
        (
            "a route layer inside each",
            Box::new(|layer| {
                Router::new()
                    .nest("/v1", sub("one").route_layer(layer.clone()))
                    .nest("/v2", sub("two").route_layer(layer.clone()))
                    .nest("/v1/v2", sub("three").route_layer(layer.clone()))
            }),
        ),
        (
            "one layer outside",
            Box::new(|layer| {
                Router::new()
                    .nest("/v1", sub("one"))
                    .nest("/v2", sub("two"))
                    .nest("/v1/v2", sub("three"))
                    .layer(layer.clone())
            }),
        ),
        (
            "one route layer outside",
            Box::new(|layer| {
                Router::new()
                    .nest("/v1", sub("one"))
                    .nest("/v2", sub("two"))
                    .nest("/v1/v2", sub("three"))
                    .route_layer(layer.clone())
            }),
        ),
        (
            "two levels down",
            Box::new(|layer| {
                let inner = sub("three").layer(layer.clone());
                Router::new()
                    .nest("/v1", sub("one").layer(layer.clone()).nest("/v2", inner))
                    .nest("/v2", sub("two").layer(layer.clone()))
            }),
        ),
    ];
    for (case, app) in cases {
        let store = MemoryStore::new();
        let mut connection = serve(app(&layer(store.clone()))).await;
        for replay in [false, true] {
            for (path, expected) in [
                ("/v1/pay", "one  /v1/pay k"),
                ("/v2/pay", "two  /v2/pay k"),
                ("/v1/v2/pay", "three  /v1/v2/pay k"),
                ("/v1/of/1", "one 1 /v1/of/1 k"),
                ("/v1/of/2", "one 2 /v1/of/2 k"),
                ("/v2/of/1", "two 1 /v2/of/1 k"),
                ("/v1", "one  /v1 k"),
                ("/v2", "two  /v2 k"),
            ] {
                connection
                    .send(post_to(path, "idempotency-key: k", b"x"))
                    .await;
                let answer = connection.answer().await;
                assert_eq!(answer.text(), expected, "{case}");
                assert_eq!(answer.is_replay(), replay, "{case}: {path}");
            }
        }
        assert_eq!(store.len(), 8, "{case}");
    }
}

/// Where no route is, a layer around everything answers 404 once for all (it is not recorded), and
/// a route layer is not asked.
#[tokio::test]
async fn no_route_no_record() {
    for outside in [true, false] {
        let store = MemoryStore::new();
        let layer = layer(store.clone());
        let app = match outside {
            true => sub("one").layer(layer),
            false => sub("one").route_layer(layer),
        };
        let mut connection = serve(app).await;
        for (lines, expected) in [
            ("idempotency-key: k", 404),
            ("x: y", if outside { 400 } else { 404 }),
        ] {
            connection.send(post_to("/nowhere", lines, b"x")).await;
            assert_eq!(connection.answer().await.status, expected);
        }
        assert_eq!(store.len(), 0);
        connection
            .send(post_to("/pay", "idempotency-key: k", b"x"))
            .await;
        assert_eq!(connection.answer().await.status, 200);
    }
}

/// One layer, and one that is not for the whole application, over one store (U25): what the inner
/// one covers is recorded once and under its own options.
#[tokio::test]
async fn u25_a_layer_for_one_route() {
    let store = Arc::new(MemoryStore::new());
    let covered = layer(Arc::clone(&store));
    let app = Router::new()
        .route("/free", post(|| async { "free" }))
        .merge(sub("one").route_layer(covered));
    let mut connection = serve(app).await;
    for _ in 0..2 {
        connection
            .send(post_to("/free", "idempotency-key: k", b"x"))
            .await;
        assert!(!connection.answer().await.is_replay());
    }
    assert_eq!(store.len(), 0);
    for replay in [false, true] {
        connection
            .send(post_to("/pay", "idempotency-key: k", b"x"))
            .await;
        assert_eq!(connection.answer().await.is_replay(), replay);
    }
}

/// Handlers that insist on an execution, that take what there is, and that ask why there is none.
fn takers() -> Router {
    let named = |run: &Execution| format!("{} attempt {}", run.key(), run.attempt());
    let needs = move |run: Execution| async move { named(&run) };
    let takes = move |run: Option<Execution>| async move {
        run.map_or_else(|| "none".to_owned(), |run| named(&run))
    };
    let asks = move |run: Result<Execution, MissingExecution>| async move {
        run.map_or_else(|missing| missing.to_string(), |run| named(&run))
    };
    Router::new()
        .route("/needs", any(needs))
        .route("/takes", any(takes))
        .route("/asks", any(asks))
}

/// What the extractor says of a request outside any layer.
async fn missing() -> MissingExecution {
    let mut parts = axum::http::Request::new(()).into_parts().0;
    let extracted = <Execution as FromRequestParts<()>>::from_request_parts(&mut parts, &());
    extracted.await.unwrap_err()
}

/// A handler's arguments: under a key they are its execution. Without one a bare `Execution` is a
/// fault of the service, whichever it is; `Option` and `Result` leave it to the handler.
#[tokio::test]
async fn executions_are_extracted() {
    let missing = missing().await.to_string();
    let keyless = |store| layer(store).require_key(false);
    let store = MemoryStore::new;
    let key = "idempotency-key: k";
    for (case, app, line, there) in [
        ("a key", takers().layer(keyless(store())), key, true),
        (
            "a route layer",
            takers().route_layer(layer(store())),
            key,
            true,
        ),
        (
            "no key, none required",
            takers().layer(keyless(store())),
            "x: y",
            false,
        ),
        ("no layer", takers(), key, false),
        (
            "not covered",
            takers().layer(keyless(store()).covers(|_| false)),
            key,
            false,
        ),
        (
            "without protection",
            takers().layer(layer(Down).fail_open(true)),
            key,
            false,
        ),
    ] {
        let mut connection = serve(app).await;
        for (path, status, text) in match there {
            true => [
                ("/needs", 200, "k attempt 1"),
                ("/takes", 200, "k attempt 1"),
                ("/asks", 200, "k attempt 1"),
            ],
            false => [
                ("/needs", 500, missing.as_str()),
                ("/takes", 200, "none"),
                ("/asks", 200, missing.as_str()),
            ],
        } {
            let answer = connection
                .send(post_to(path, line, b"x"))
                .await
                .answer()
                .await;
            assert_eq!(
                (answer.status, answer.text()),
                (status, text),
                "{case} {path}"
            );
        }
    }
}

/// I08, S12: where a key is required, a client who sends none is told so by the layer.
#[tokio::test]
async fn i08_s12_a_required_key_is_asked_for_before_the_arguments() {
    let mut connection = serve(takers().layer(layer(MemoryStore::new()))).await;
    for path in ["/needs", "/takes", "/asks"] {
        let answer = connection
            .send(post_to(path, "x: y", b"x"))
            .await
            .answer()
            .await;
        answer.assert_refused(400, "key-missing", path);
    }
}

/// The rejection as a value.
#[tokio::test]
async fn a_missing_execution_is_a_500() {
    let missing = missing().await;
    assert_eq!(missing.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(missing.into_response().status(), missing.status());
    let error: Box<dyn std::error::Error + Send + Sync> = Box::new(missing);
    assert!(error.to_string().contains("IdempotencyLayer"));
}
