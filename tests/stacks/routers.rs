//! Everywhere in an axum router.

use axum::{
    Extension, Router,
    body::Body,
    extract::{OriginalUri, State},
    handler::Handler,
    routing::{MethodRouter, any_service, get, post, post_service},
};
use http::{Method, Request};
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_http::trace::TraceLayer;
use tower_idempotency::{Execution, IdempotencyLayer};

use crate::support::{Answer, Effects, Payments, Scripted, layer, post_to, read};

async fn send(app: &Router, method: Method, path: &str) -> Answer {
    let (mut parts, body) = post_to(path, "k", "b").into_parts();
    parts.method = method;
    let request = Request::from_parts(parts, Body::new(body));
    read(app.clone().oneshot(request).await.unwrap()).await
}

/// A handler that says where it ran, the how many-eth time, and whether under a key.
async fn pay(
    State(effects): State<Effects>,
    uri: OriginalUri,
    run: Option<Extension<Execution>>,
    body: String,
) -> String {
    let covered = if run.is_some() { "covered" } else { "bare" };
    format!("{} {}: {covered} {body}", uri.path(), effects.add())
}

fn paying() -> MethodRouter<Effects> {
    post(pay).get(pay)
}

type Place = (
    &'static str,
    fn(&IdempotencyLayer<Scripted>) -> Router<Effects>,
);

const PLACES: &[Place] = &[
    ("Router::layer", |layer| {
        Router::new().route("/pay", paying()).layer(layer.clone())
    }),
    ("Router::route_layer", |layer| {
        let router = Router::new().route("/pay", paying());
        router.route_layer(layer.clone())
    }),
    ("MethodRouter::layer", |layer| {
        Router::new().route("/pay", paying().layer(layer.clone()))
    }),
    ("MethodRouter::route_layer", |layer| {
        Router::new().route("/pay", paying().route_layer(layer.clone()))
    }),
    ("MethodRouter::layer, of some methods", |layer| {
        let covered = post(pay).layer(layer.clone());
        Router::new().route("/pay", get(pay).merge(covered))
    }),
    ("Handler::layer", |layer| {
        let covered = pay.layer(layer.clone());
        Router::new().route("/pay", post(covered).get(pay))
    }),
    ("ServiceBuilder", |layer| {
        let stack = ServiceBuilder::new()
            .layer(TraceLayer::new_for_http())
            .layer(layer.clone());
        Router::new().route("/pay", paying()).layer(stack)
    }),
    ("a tuple", |layer| {
        let stack = (TraceLayer::new_for_http(), layer.clone());
        Router::new().route("/pay", paying()).route_layer(stack)
    }),
    ("merged", |layer| {
        let covered = Router::new().route("/pay", post(pay)).layer(layer.clone());
        Router::new().route("/pay", get(pay)).merge(covered)
    }),
    ("fallback", |layer| {
        Router::new().fallback(pay).layer(layer.clone())
    }),
    ("Handler::layer of a fallback", |layer| {
        Router::new().fallback(pay.layer(layer.clone()))
    }),
];

/// The layer works everywhere, and leaves GET alone.
#[tokio::test]
async fn p2_p10_everywhere_in_a_router() {
    for (place, app) in PLACES {
        let store = Scripted::new();
        let app = app(&layer(store.clone())).with_state(Effects::default());
        for replay in [false, true] {
            let answer = send(&app, Method::POST, "/pay").await;
            assert_eq!(answer.text(), "/pay 1: covered b", "{place}");
            assert_eq!(answer.is_replay(), replay, "{place}");
        }
        let calls = store.calls();
        for number in [2, 3] {
            let answer = send(&app, Method::GET, "/pay").await;
            assert_eq!(answer.text(), format!("/pay {number}: bare b"), "{place}");
        }
        assert_eq!(store.calls(), calls, "{place}");
    }
}

/// Where no route is, or none for the method, the 404 and 405 are not recorded. A `route_layer` is
/// not even asked about paths that are not there, nor that of a `MethodRouter` about methods.
#[tokio::test]
async fn p10_where_no_route_is() {
    for (place, app) in PLACES {
        if place.contains("fallback") {
            continue;
        }
        let store = Scripted::new();
        let app = app(&layer(store.clone())).with_state(Effects::default());
        let of_routes = place.contains("route_layer") || *place == "a tuple";
        let nowhere = send(&app, Method::POST, "/nowhere").await;
        assert_eq!(nowhere.status.as_u16(), 404, "{place}");
        if of_routes {
            assert_eq!(store.calls(), [], "{place}");
        }
        let no_method = send(&app, Method::PATCH, "/pay").await;
        assert_eq!(no_method.status.as_u16(), 405, "{place}");
        if *place == "MethodRouter::route_layer" {
            assert_eq!(store.calls(), [], "{place}");
        }
        assert_eq!(store.store().len(), 0, "{place}");
    }
}

/// Services of one's own in a router, with the layer around them or around the route.
#[tokio::test]
async fn around_services_in_a_router() {
    type Routed = fn(&IdempotencyLayer<Scripted>, Payments) -> Router;
    let places: &[(&str, Routed)] = &[
        ("route_service", |layer, payments| {
            Router::new().route_service("/pay", layer.layer(payments))
        }),
        ("any_service", |layer, payments| {
            Router::new().route("/pay", any_service(layer.layer(payments)))
        }),
        ("post_service and layer", |layer, payments| {
            Router::new().route("/pay", post_service(payments).layer(layer.clone()))
        }),
        ("nest_service", |layer, payments| {
            Router::new().nest_service("/pay", layer.layer(payments))
        }),
        ("fallback_service", |layer, payments| {
            Router::new().fallback_service(layer.layer(payments))
        }),
        ("nest_service and layer", |layer, payments| {
            let router = Router::new().nest_service("/pay", payments);
            router.layer(layer.clone())
        }),
    ];
    for (place, app) in places {
        let payments = Payments::new();
        let app = app(&layer(Scripted::new()), payments.clone());
        for replay in [false, true] {
            let answer = send(&app, Method::POST, "/pay").await;
            assert_eq!(
                (answer.text(), answer.is_replay()),
                ("effect 1: b", replay),
                "{place}"
            );
        }
        assert_eq!(payments.effects(), 1, "{place}");
    }
}

/// The whole router as a service inside the layer.
#[tokio::test]
async fn around_a_router() {
    let payments = Payments::new();
    let router: Router = Router::new().route_service("/pay", payments.clone());
    let service = layer(Scripted::new()).layer(router);
    for replay in [false, true] {
        let request = post_to("/pay", "k", "b").map(Body::new);
        let answer = read(service.clone().oneshot(request).await.unwrap()).await;
        assert_eq!((answer.text(), answer.is_replay()), ("effect 1: b", replay));
    }
}

/// U09: siblings, routers in routers and nested services see the same rest of their paths, and do
/// not share records; wherever the layer stands, a path has one record.
#[tokio::test]
async fn u09_nested_routers_and_services_do_not_share_records() {
    let leaf = || Router::new().route("/pay", post(pay));
    type Nested = (
        &'static str,
        fn(&IdempotencyLayer<Scripted>, Router<Effects>) -> Router<Effects>,
        [&'static str; 2],
    );
    let nests: &[Nested] = &[
        (
            "siblings",
            |layer, leaf| {
                let leaf = leaf.layer(layer.clone());
                Router::new().nest("/v1", leaf.clone()).nest("/v2", leaf)
            },
            ["/v1/pay", "/v2/pay"],
        ),
        (
            "nested in nested",
            |layer, leaf| {
                let leaf = leaf.layer(layer.clone());
                let nested = Router::new().nest("/v2", leaf.clone()).merge(leaf);
                Router::new().nest("/v1", nested)
            },
            ["/v1/pay", "/v1/v2/pay"],
        ),
        (
            "by a parameter",
            |layer, leaf| Router::new().nest("/{shop}", leaf.route_layer(layer.clone())),
            ["/1/pay", "/2/pay"],
        ),
        (
            "around a nest",
            |layer, leaf| {
                let router = Router::new().nest("/v1", leaf.clone()).nest("/v2", leaf);
                router.layer(layer.clone())
            },
            ["/v1/pay", "/v2/pay"],
        ),
    ];
    for (place, nest, paths) in nests {
        let store = Scripted::new();
        let app = nest(&layer(store.clone()), leaf()).with_state(Effects::default());
        assert_apart(place, &app, &store, paths).await;

        // The same as services.
        let store = Scripted::new();
        let inner = nest(&layer(store.clone()), leaf()).with_state(Effects::default());
        let app = Router::new().nest_service("/of", inner);
        let paths = paths.map(|path| format!("/of{path}"));
        assert_apart(place, &app, &store, &paths).await;
    }
}

async fn assert_apart(place: &str, app: &Router, store: &Scripted, paths: &[impl AsRef<str>; 2]) {
    for replay in [false, true] {
        for (effect, path) in (1..).zip(paths) {
            let answer = send(app, Method::POST, path.as_ref()).await;
            let expected = format!("{} {effect}: covered b", path.as_ref());
            assert_eq!(answer.text(), expected, "{place}");
            assert_eq!(answer.is_replay(), replay, "{place}: {expected}");
        }
    }
    assert_eq!(store.store().len(), 2, "{place}");
}
