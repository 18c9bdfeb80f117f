//! How requests find their route, and what the route makes of them.

use std::{
    convert::Infallible,
    future::ready,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt as _, poll};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use tokio::sync::Semaphore;
use tower::{Service, ServiceExt as _, service_fn};
use tower_idempotency::{MemoryStore, RequestBody};

use crate::{
    config::{Config, Conflict, Key, PathPattern, Refusals, Route, ScopeBy, Takeover, Unknown},
    outcome::{NotSent, OutcomeUnknown},
    routes::Routes,
};

fn config(routes: Vec<Route>) -> Config {
    Config {
        demo: false,
        listen: "127.0.0.1:0".parse().unwrap(),
        upstream: "http://127.0.0.1:1".parse().unwrap(),
        store: "memory".to_owned(),
        prefix: "idem".to_owned(),
        upstream_http2: false,
        connect_timeout: Duration::from_secs(1),
        upstream_timeout: Duration::from_secs(1),
        idle_timeout: Duration::from_secs(1),
        drain_timeout: Duration::from_secs(1),
        max_connections: 1,
        header_read_timeout: Duration::from_secs(1),
        via: "test".to_owned(),
        trust_forwarded: false,
        buffer_limit: 1024 * 1024,
        routes,
    }
}

fn route(path: &str) -> Route {
    Route {
        path: PathPattern::parse(path).unwrap(),
        methods: vec![Method::POST, Method::PATCH],
        key: Key::Header(HeaderName::from_static("idempotency-key")),
        required: true,
        scope: ScopeBy::SingleTenant,
        ttl: Duration::from_secs(60),
        on_conflict: Conflict::Reject,
        body_limit: 1024,
        takeover: Takeover::Retry,
        unknown: Unknown::Retry,
        refusals: Refusals::Problem,
        lease: Duration::from_secs(30),
    }
}

/// What the upstream does with each request.
#[derive(Clone, Copy)]
enum Does {
    Answer(u16),
    /// With a status of gRPC in the head.
    Grpc(&'static str),
    /// The gateway's own answers.
    NotSent,
    OutcomeUnknown,
}

/// An upstream that counts what reaches it, behind routes.
struct Gateway {
    routes: Routes,
    calls: Arc<AtomicUsize>,
    does: Does,
}

impl Gateway {
    fn new(routes: Vec<Route>) -> Self {
        Self::with(&config(routes), MemoryStore::new())
    }

    fn with(config: &Config, store: MemoryStore) -> Self {
        Self {
            routes: Routes::new(config, Arc::new(store)),
            calls: Arc::default(),
            does: Does::Answer(201),
        }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> (u16, bool, String) {
        let (calls, does) = (Arc::clone(&self.calls), self.does);
        let upstream = service_fn(move |request: Request<RequestBody<Full<Bytes>>>| {
            let calls = Arc::clone(&calls);
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let number = calls.fetch_add(1, Ordering::SeqCst) + 1;
                let mut text = format!("{number}: ").into_bytes();
                text.extend_from_slice(&body);
                let mut response = Response::new(Full::from(text));
                let (status, extensions) = (502, response.extensions_mut());
                let status = match does {
                    Does::Answer(status) => status,
                    Does::Grpc(code) => {
                        let headers = response.headers_mut();
                        let content_type = HeaderValue::from_static("application/grpc");
                        headers.insert("content-type", content_type);
                        headers.insert("grpc-status", HeaderValue::from_static(code));
                        200
                    }
                    Does::NotSent => extensions.insert(NotSent).map_or(status, |_| status),
                    Does::OutcomeUnknown => {
                        extensions.insert(OutcomeUnknown).map_or(status, |_| status)
                    }
                };
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                Ok::<_, Infallible>(response)
            }
        });
        let response = self
            .routes
            .service(upstream)
            .oneshot(request)
            .await
            .unwrap();
        let replayed = response.headers().contains_key("idempotent-replayed");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, replayed, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn status(&self, request: Request<Full<Bytes>>) -> u16 {
        self.send(request).await.0
    }
}

fn request(method: &str, uri: &str, headers: &[(&str, &str)], body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::from(body.to_owned())).unwrap()
}

fn post(uri: &str) -> Request<Full<Bytes>> {
    request("POST", uri, &[("idempotency-key", "k")], "b")
}

fn keyless(method: &str, uri: &str) -> Request<Full<Bytes>> {
    request(method, uri, &[], "b")
}

/// P2, P10: what a route is for happens once, what none is for each time.
#[tokio::test]
async fn p2_p10_only_what_a_route_is_for_is_covered() {
    let gateway = Gateway::new(vec![route("/pay")]);
    assert_eq!(
        gateway.send(post("/pay")).await,
        (201, false, "1: b".into())
    );
    assert_eq!(gateway.send(post("/pay")).await, (201, true, "1: b".into()));
    assert_eq!(gateway.status(keyless("POST", "/pay")).await, 400);
    assert_eq!(gateway.calls(), 1);
    for (method, uri) in [
        ("POST", "/quote"),
        ("PUT", "/pay"),
        ("GET", "/pay"),
        ("GET", "//pay"),
    ] {
        for _ in 0..2 {
            let before = gateway.calls();
            let with_key = request(method, uri, &[("idempotency-key", "k")], "b");
            assert_eq!(gateway.status(with_key).await, 201, "{method} {uri}");
            assert_eq!(gateway.calls(), before + 1, "{method} {uri}");
        }
    }
}

/// P10: to find out that no route is for a request costs no allocation.
#[test]
fn p10_what_no_route_is_for_costs_no_allocation() {
    let routes = vec![route("/v1/pay"), route("/v1/quotes/*")];
    let routes = Routes::new(&config(routes), Arc::new(MemoryStore::new()));
    let upstream = service_fn(|request: Request<RequestBody<Full<Bytes>>>| {
        drop(request);
        ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))
    });
    for (method, uri) in [
        ("GET", "//V1/%70ay"),
        ("POST", "/v2"),
        ("POST", "/v1/payments/"),
    ] {
        let mut service = Some(routes.service(upstream));
        let mut request = Some(post(uri));
        if let Some(request) = &mut request {
            *request.method_mut() = method.parse().unwrap();
        }
        let cost = allocation_counter::measure(|| {
            let (mut service, request) = (service.take().unwrap(), request.take().unwrap());
            let answer = service.call(request).now_or_never().unwrap().unwrap();
            assert_eq!(answer.status(), 200);
        });
        assert_eq!(cost.count_total, 0, "{method} {uri}");
    }
}

/// The first route that is for method and path counts.
#[tokio::test]
async fn the_first_route_counts() {
    let mut free = route("/v1/quotes");
    free.required = false;
    let mut patch = route("/v1/*");
    patch.methods = vec![Method::PATCH];
    patch.required = false;
    let gateway = Gateway::new(vec![free, patch, route("/v1/*")]);
    assert_eq!(gateway.status(keyless("POST", "/v1/quotes")).await, 201);
    assert_eq!(gateway.status(keyless("PATCH", "/v1/pay")).await, 201);
    assert_eq!(gateway.status(keyless("POST", "/v1/pay")).await, 400);
    assert_eq!(gateway.status(keyless("POST", "/v1")).await, 400);
    assert_eq!(gateway.status(keyless("POST", "/v2")).await, 201);
}

/// No spelling leads past a route: the upstream could take it for the path that is covered.
#[tokio::test]
async fn no_spelling_leads_past_a_route() {
    let mut free = route("/v1/quotes/*");
    free.required = false;
    let gateway = Gateway::new(vec![free, route("/v1/pay")]);
    for uri in [
        "/v1/pay/",
        "/v1//pay",
        "/V1/pay",
        "/v1/p%61y",
        "/v1%2Fpay",
        "/v1/%2e%2e/v1/pay",
        "/v1/quotes/../pay",
        "/v1/quotes%2F..%2Fpay",
        "/v1/quotes/..;/pay",
        "/v1/pay;a",
        "http://host/v1/pay/?a",
        // Nor into one.
        "/v1/Quotes/1",
        "/v2/%2e./v1/quotes",
    ] {
        for sent in [keyless("POST", uri), post(uri)] {
            let (status, _, body) = gateway.send(sent).await;
            assert_eq!(status, 400, "{uri}");
            assert!(body.contains("path-ambiguous"), "{uri} {body}");
        }
        // What no route is for, since it changes nothing, may be spelt as it likes.
        assert_eq!(gateway.status(keyless("GET", uri)).await, 201, "{uri}");
    }
    let before = gateway.calls();
    assert_eq!(gateway.status(keyless("POST", "/v1/pay")).await, 400);
    assert_eq!(gateway.calls(), before);
    // Here both readings have the same route, or none.
    for uri in [
        "/v1/quotes/a%2Fb",
        "/v1/quotes//1",
        "/v1/quotes/",
        "/v2//pay",
        "/v2/Pay",
    ] {
        assert_eq!(gateway.status(keyless("POST", uri)).await, 201, "{uri}");
    }
}

/// Nor does a spelling of the method, which some servers read in capitals.
#[tokio::test]
async fn no_spelling_of_a_method_leads_past_a_route() {
    let gateway = Gateway::new(vec![route("/pay")]);
    for method in ["post", "Patch"] {
        let (status, _, body) = gateway.send(keyless(method, "/pay")).await;
        assert_eq!(status, 400, "{method}");
        assert!(body.contains("method-ambiguous"), "{body}");
        assert_eq!(gateway.status(keyless(method, "/else")).await, 201);
    }
    assert_eq!(gateway.calls(), 2);
}

/// A route for everything leaves no spelling open, and refuses none.
#[tokio::test]
async fn a_route_for_everything_takes_every_spelling() {
    let gateway = Gateway::new(vec![route("/*")]);
    for uri in ["/", "/a", "//a", "/A/", "/%2e%2e/a", "/a;b"] {
        assert_eq!(gateway.status(keyless("POST", uri)).await, 400, "{uri}");
        assert_eq!(gateway.status(post(uri)).await, 201, "{uri}");
    }
    assert_eq!(gateway.calls(), 6);
}

/// The offer of an upgrade, which the layer lets pass, does not lead past a route.
#[tokio::test]
async fn no_upgrade_leads_past_a_route() {
    let gateway = Gateway::new(vec![route("/pay")]);
    let offer = [("connection", "upgrade"), ("upgrade", "websocket")];
    assert_eq!(
        gateway.status(request("POST", "/pay", &offer, "b")).await,
        400
    );
    assert_eq!(gateway.calls(), 0);
    assert_eq!(
        gateway.status(request("GET", "/pay", &offer, "b")).await,
        201
    );
}

/// I12, U33, S01: each route has its own scope and source of keys.
#[tokio::test]
async fn i12_u33_s01_scope_and_key_are_the_routes_own() {
    let mut by_user = route("/pay");
    by_user.scope = ScopeBy::Header(HeaderName::from_static("x-user"));
    let mut in_body = route("/process-request");
    in_body.key = Key::Json("/idempotency_key".to_owned());
    let gateway = Gateway::new(vec![by_user, in_body]);
    let from = |user| {
        let headers = [("idempotency-key", "k"), ("x-user", user)];
        request("POST", "/pay", &headers, "b")
    };
    assert_eq!(gateway.status(post("/pay")).await, 403);
    assert!(!gateway.send(from("ann")).await.1);
    assert!(!gateway.send(from("bob")).await.1);
    assert!(gateway.send(from("ann")).await.1);
    let json = || {
        request(
            "POST",
            "/process-request",
            &[],
            r#"{"idempotency_key": "k"}"#,
        )
    };
    assert!(!gateway.send(json()).await.1);
    assert!(gateway.send(json()).await.1);
    assert_eq!(gateway.calls(), 3);
}

/// What an answer does to its key: as its status says; by the gateway's own failures; by the route.
#[tokio::test]
async fn s22_u04_the_outcome_decides_about_the_key() {
    const RUNS: bool = true;
    for (unknown, does, retry_runs, other_payload) in [
        // Freed: also for another payload.
        (Unknown::Retry, Does::NotSent, RUNS, 502),
        (Unknown::Keep, Does::NotSent, RUNS, 502),
        (Unknown::Retry, Does::Answer(422), RUNS, 422),
        (Unknown::Keep, Does::Answer(422), RUNS, 422),
        // Failed: a retry runs, another payload does not.
        (Unknown::Retry, Does::OutcomeUnknown, RUNS, 422),
        (Unknown::Retry, Does::Answer(502), RUNS, 422),
        (Unknown::Retry, Does::Answer(408), RUNS, 422),
        (Unknown::Retry, Does::Grpc("14"), RUNS, 422),
        // Recorded.
        (Unknown::Keep, Does::OutcomeUnknown, !RUNS, 422),
        (Unknown::Keep, Does::Answer(502), !RUNS, 422),
        (Unknown::Keep, Does::Answer(408), !RUNS, 422),
        (Unknown::Keep, Does::Grpc("14"), !RUNS, 422),
        (Unknown::Retry, Does::Grpc("0"), !RUNS, 422),
        (Unknown::Retry, Does::Answer(201), !RUNS, 422),
    ] {
        let mut kept = route("/*");
        kept.unknown = unknown;
        let mut gateway = Gateway::new(vec![kept]);
        gateway.does = does;
        let first = gateway.send(post("/")).await;
        assert!(!first.1);
        let other = request("POST", "/", &[("idempotency-key", "k")], "other");
        assert_eq!(gateway.status(other).await, other_payload);
        let before = gateway.calls();
        let again = gateway.send(post("/")).await;
        assert_eq!(again.0, first.0);
        assert_eq!(again.1, !retry_runs, "{unknown:?} {first:?}");
        assert_eq!(
            gateway.calls() > before,
            retry_runs,
            "{unknown:?} {first:?}"
        );
    }
}

/// An upstream that says when it has a request, and answers it when it is let go.
fn held(
    entered: &Arc<Semaphore>,
    go: &Arc<Semaphore>,
) -> impl Service<
    Request<RequestBody<Full<Bytes>>>,
    Response = Response<Full<Bytes>>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ 'static {
    let (entered, go) = (Arc::clone(entered), Arc::clone(go));
    service_fn(move |request| {
        let (entered, go) = (Arc::clone(&entered), Arc::clone(&go));
        async move {
            entered.add_permits(1);
            go.acquire().await.unwrap().forget();
            // Its bytes count for as long.
            drop(request);
            Ok(Response::new(Full::default()))
        }
    })
}

/// S03: a duplicate is refused or waits, as its route says.
#[tokio::test(start_paused = true)]
async fn s03_conflicts_are_met_as_the_route_says() {
    for (on_conflict, expected) in [
        (Conflict::Reject, 409),
        (Conflict::Wait(Duration::from_secs(5)), 200),
    ] {
        let mut route = route("/*");
        route.on_conflict = on_conflict;
        let routes = Routes::new(&config(vec![route]), Arc::new(MemoryStore::new()));
        let (entered, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let send = || routes.service(held(&entered, &go)).oneshot(post("/"));
        let first = tokio::spawn(send());
        entered.acquire().await.unwrap().forget();
        let mut second = pin!(send());
        let early = poll!(&mut second);
        assert_eq!(early.is_pending(), expected == 200);
        go.add_permits(1);
        assert_eq!(first.await.unwrap().unwrap().status(), 200);
        let second = match early {
            Poll::Ready(response) => response,
            Poll::Pending => second.await,
        };
        assert_eq!(second.unwrap().status(), expected);
        assert_eq!(entered.available_permits(), 0);
    }
}

/// U36, U21: the limit of bodies is one for all routes, and a drain waits for every one of them.
#[tokio::test(start_paused = true)]
async fn u36_u21_routes_share_a_limit_and_drain_together() {
    let mut config = config(vec![route("/one"), route("/two")]);
    config.buffer_limit = 1000;
    let routes = Routes::new(&config, Arc::new(MemoryStore::new()));
    let (entered, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let body = "b".repeat(600);
    let send = |uri: &str, key: &str| {
        let request = request("POST", uri, &[("idempotency-key", key)], &body);
        routes.service(held(&entered, &go)).oneshot(request)
    };
    for (uri, other) in [("/one", "/two"), ("/two", "/one")] {
        let first = tokio::spawn(send(uri, "k"));
        entered.acquire().await.unwrap().forget();
        assert_eq!(send(other, "l").await.unwrap().status(), 503);
        let mut drained = pin!(routes.drain());
        assert!(poll!(&mut drained).is_pending());
        go.add_permits(1);
        assert_eq!(first.await.unwrap().unwrap().status(), 200);
        drained.await;
    }
}

/// A route may refuse as Stripe does, and then says whether to try again.
#[tokio::test]
async fn refusals_have_the_form_of_their_route() {
    let mut as_stripe = route("/v1/*");
    as_stripe.refusals = Refusals::Stripe;
    let gateway = Gateway::new(vec![as_stripe, route("/v2/*")]);
    let refused = async |path: &str, key: &[(&str, &str)], payload: &str| {
        let request = request("POST", path, key, payload);
        let (status, _, body) = gateway.send(request).await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        (status, body["error"].clone())
    };
    let key = [("idempotency-key", "k")];
    for path in ["/v1/pay", "/v2/pay"] {
        let first = gateway.send(request("POST", path, &key, "a")).await;
        assert_eq!(first.0, 201);
    }
    let (status, error) = refused("/v1/pay", &key, "b").await;
    assert_eq!((status, &error["type"]), (400, &"idempotency_error".into()));
    assert_eq!(error["code"], "mismatch");
    let (status, error) = refused("/v1/pay", &[], "b").await;
    assert_eq!(
        (status, &error["type"]),
        (400, &"invalid_request_error".into())
    );
    assert_eq!(error["code"], "key_missing");
    let (status, error) = refused("/v2/pay", &key, "b").await;
    assert_eq!((status, error), (422, "mismatch".into()));
}

/// Gateways before different services may share a store: a prefix keeps their records apart.
#[tokio::test]
async fn a_prefix_keeps_services_apart() {
    let store = MemoryStore::new();
    let one = Gateway::with(&config(vec![route("/*")]), store.clone());
    let prefix = "other".to_owned();
    let other = Config {
        prefix,
        ..config(vec![route("/*")])
    };
    let other = Gateway::with(&other, store.clone());
    let third = Gateway::with(&config(vec![route("/*")]), store);
    for (gateway, replayed) in [(one, false), (other, false), (third, true)] {
        let answer = gateway.send(post("/pay")).await;
        assert_eq!((answer.0, answer.1), (201, replayed));
    }
}
