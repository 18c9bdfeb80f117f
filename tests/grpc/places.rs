//! Where the layer can be put in a tonic server, and what stands beside it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use prost::Message as _;
use tonic::{
    Code, Request, Response, Status,
    server::NamedService,
    service::{InterceptorLayer, Routes, interceptor::InterceptedService},
};
use tower::{Layer as _, ServiceBuilder, layer::util::Identity, limit::ConcurrencyLimitLayer};
use tower_http::limit::RequestBodyLimitLayer;
use tower_idempotency::{
    Execution, Idempotency, IdempotencyLayer, KeySource, MemoryStore, Outcome, Scope,
};

use crate::{
    payments::{ListRequest, Payment, payments_server::PaymentsServer},
    support::{PAY, Server, Till, euros, in_time, is_replay, keyed, layer},
};

fn counting() -> (Till, Arc<AtomicU32>) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    let till = Till::new().on_pay(move |request| {
        counted.fetch_add(1, Ordering::SeqCst);
        let key = request
            .extensions()
            .get()
            .map_or("", Execution::key)
            .to_owned();
        async move {
            Ok(Response::new(Payment {
                key,
                ..Payment::default()
            }))
        }
    });
    (till, count)
}

/// A single service under the layer has its own name, and the others know nothing of keys.
#[tokio::test]
async fn p10_a_single_service_goes_under_the_layer() {
    assert_eq!(
        <Idempotency<PaymentsServer<Till>> as NamedService>::NAME,
        "payments.v1.Payments"
    );
    let (till, count) = counting();
    let layer = layer()
        .require_key(true)
        .covers(|parts| parts.uri.path() == PAY);
    let routes = Routes::new(layer.layer(till.server()));
    let server = Server::start(Identity::new(), routes).await;
    let mut client = server.client().await;
    for replayed in [false, true] {
        let answer = client.pay(keyed("a", euros(7))).await.unwrap();
        assert_eq!(is_replay(&answer), replayed);
        assert_eq!(answer.get_ref().key, "a");
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
    // The other methods need no key.
    client.list(ListRequest {}).await.unwrap();
    let status = client.pay(euros(7)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

/// U16: a body that is over the limit of a layer further out is too large, wherever this layer
/// stands, and not one that broke off.
#[tokio::test]
async fn u16_a_limit_outside_is_told_from_a_body_that_breaks_off() {
    let exactly = 5 + euros(7).encoded_len();
    for (limit, passes) in [(exactly, true), (exactly - 1, false)] {
        let limited = RequestBodyLimitLayer::new(limit);
        let (till, count) = counting();
        let within = Routes::new(layer().layer(till.clone().server()));
        let single = Server::start(limited, within).await;
        let stack = ServiceBuilder::new().layer(limited).layer(layer());
        let around = Server::start(stack, Routes::new(till.server())).await;
        for server in [single, around] {
            let answer = server.client().await.pay(keyed("a", euros(7))).await;
            match passes {
                true => assert!(answer.is_ok()),
                false => {
                    let status = answer.unwrap_err();
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                }
            }
        }
        assert_eq!(count.load(Ordering::SeqCst), 2 * u32::from(passes));
    }
}

/// A method that is not there frees its key.
#[tokio::test]
async fn s22_what_is_not_there_is_not_recorded() {
    let server = Server::start(layer(), Routes::default()).await;
    for _ in 0..2 {
        let headers = [("idempotency-key", "a")];
        let answer = server.raw(PAY, &headers, b"").await;
        assert_eq!(answer.headers["grpc-status"], "12");
        assert!(!answer.headers.contains_key("idempotent-replayed"));
    }
}

/// One layer over gRPC and HTTP on one port: each is refused, and judged, in its own way.
#[tokio::test]
async fn i10_grpc_and_http_share_a_port_and_a_layer() {
    let (till, _) = counting();
    let mut routes = Routes::new(till.server()).into_axum_router();
    let missing = || async { (axum::http::StatusCode::CONFLICT, "not now") };
    routes = routes
        .route("/notes", axum::routing::post(|| async { "noted" }))
        .route("/conflicts", axum::routing::post(missing));
    let server = Server::start(layer(), Routes::from(routes)).await;
    let key = [("idempotency-key", "a"), ("content-type", "text/plain")];
    for (path, status, replayed) in [
        ("/notes", 200, false),
        ("/notes", 200, true),
        ("/conflicts", 409, false),
        ("/conflicts", 409, false),
    ] {
        let (answer, was_replayed) = server.raw(path, &key, b"x").await.stripped();
        assert_eq!((answer.status, was_replayed), (status, replayed), "{path}");
    }
    let (answer, _) = server.raw("/notes", &key, b"y").await.stripped();
    assert_eq!(answer.status, 422);
    assert_eq!(answer.headers["content-type"], "application/problem+json");

    let mut client = server.client().await;
    for replayed in [false, true] {
        let answer = client.pay(keyed("a", euros(7))).await.unwrap();
        assert_eq!(is_replay(&answer), replayed);
    }
    let status = client.pay(keyed("a", euros(8))).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[derive(Clone)]
struct Account(String);

/// An interceptor further out says who the caller is: the account, whatever its token (U15, U33).
#[tokio::test]
async fn u15_u33_an_interceptor_outside_tells_the_caller() {
    let authenticate = |mut request: Request<()>| {
        let token = request.metadata().get("authorization");
        let account = match token.map(|token| token.as_bytes()) {
            Some(b"old" | b"refreshed") => Account("alice".to_owned()),
            Some(b"other") => Account("bob".to_owned()),
            _ => return Err(Status::unauthenticated("who are you?")),
        };
        request.extensions_mut().insert(account);
        Ok(request)
    };
    let scope = Scope::extension(|account: &Account| account.0.clone());
    let stack = ServiceBuilder::new()
        .layer(InterceptorLayer::new(authenticate))
        .layer(IdempotencyLayer::new(MemoryStore::new(), scope));
    let (till, count) = counting();
    let server = Server::start(stack, Routes::new(till.server())).await;
    let mut client = server.client().await;
    for (token, replayed) in [("old", false), ("refreshed", true), ("other", false)] {
        let mut request = keyed("a", euros(7));
        let token = token.parse().unwrap();
        request.metadata_mut().insert("authorization", token);
        assert_eq!(is_replay(&client.pay(request).await.unwrap()), replayed);
    }
    let status = client.pay(keyed("a", euros(7))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

/// An interceptor inside sees the key and the execution, runs for executions only, and what it
/// refuses is judged as the handler's own answer.
#[tokio::test]
async fn s22_an_interceptor_inside_runs_for_executions_only() {
    let seen = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&seen);
    let check = move |request: Request<()>| {
        let n = counted.fetch_add(1, Ordering::SeqCst);
        assert!(request.metadata().contains_key("idempotency-key"));
        assert_eq!(request.extensions().get().map(Execution::key), Some("a"));
        match n {
            0 => Err(Status::permission_denied("not yet")),
            _ => Ok(request),
        }
    };
    let (till, count) = counting();
    let service = InterceptedService::new(till.server(), check);
    let server = Server::start(layer(), Routes::new(service)).await;
    let mut client = server.client().await;
    let status = client.pay(keyed("a", euros(7))).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    // Rejected: another payload may have the key.
    for replayed in [false, true] {
        let answer = client.pay(keyed("a", euros(8))).await.unwrap();
        assert_eq!(is_replay(&answer), replayed);
    }
    assert_eq!(
        (seen.load(Ordering::SeqCst), count.load(Ordering::SeqCst)),
        (2, 1)
    );
}

/// Layers of tower's, which know nothing of gRPC: what they fail with is an error, which tonic turns
/// into a status, and the execution has failed.
#[tokio::test]
async fn u03_an_error_of_a_layer_inside_is_a_failure() {
    let till = Till::new().on_pay(|request| async move {
        let attempt = request.extensions().get().map_or(0, Execution::attempt);
        if attempt == 1 {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(Payment {
            attempt,
            ..Payment::default()
        }))
    });
    let outcomes = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = Arc::clone(&outcomes);
    let stack = ServiceBuilder::new()
        .map_response(move |response: http::Response<_>| {
            let outcome = response.extensions().get::<Outcome>().copied();
            noted.lock().unwrap().push(outcome);
            response
        })
        .layer(layer())
        .layer(ConcurrencyLimitLayer::new(1))
        .layer(tower::timeout::TimeoutLayer::new(Duration::from_secs(1)));
    let server = Server::start(stack, Routes::new(till.server())).await;
    let mut client = server.client().await;
    let status = in_time(client.pay(keyed("a", euros(7)))).await.unwrap_err();
    assert_ne!(status.code(), Code::Ok);
    for replayed in [false, true] {
        let answer = in_time(client.pay(keyed("a", euros(7)))).await.unwrap();
        assert_eq!(
            (is_replay(&answer), answer.get_ref().attempt),
            (replayed, 2)
        );
    }
    let outcomes = outcomes.lock().unwrap();
    assert_eq!(*outcomes, [Outcome::Completed, Outcome::Replayed].map(Some));
}

/// The key may come as other metadata, or be made of the message (S20).
#[tokio::test]
async fn s20_the_key_can_come_from_elsewhere() {
    let (till, count) = counting();
    let layer = layer().key(KeySource::header("x-request-id"));
    let server = Server::of(&layer, till.clone()).await;
    let mut client = server.client().await;
    for replayed in [false, true] {
        let mut request = Request::new(euros(7));
        request
            .metadata_mut()
            .insert("x-request-id", "a".parse().unwrap());
        assert_eq!(is_replay(&client.pay(request).await.unwrap()), replayed);
    }
    let derived = crate::support::layer().key(KeySource::derived());
    let server = Server::of(&derived, till).await;
    let mut client = server.client().await;
    for (amount, replayed) in [(7, false), (7, true), (8, false)] {
        let answer = client.pay(euros(amount)).await.unwrap();
        assert_eq!(is_replay(&answer), replayed);
    }
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

/// To gRPC every status is 200, so a layer that maps statuses of replays leaves these alone.
#[tokio::test]
async fn s13_the_status_of_a_grpc_replay_is_not_mapped() {
    let (till, _) = counting();
    let layer = layer().replay_status(|_| http::StatusCode::ALREADY_REPORTED);
    let server = Server::of(&layer, till).await;
    let message = euros(7).encode_to_vec();
    for replayed in [false, true] {
        let headers = [("idempotency-key", "a")];
        let answer = server.raw(PAY, &headers, &message).await;
        let (answer, was_replayed) = answer.stripped();
        assert_eq!((answer.status, was_replayed), (200, replayed));
    }
}

/// gRPC-Web is made gRPC by a layer further out: browsers get the same answers, and refusals they can
/// read, and share their records with the others.
#[tokio::test]
async fn p2_grpc_web_outside_gets_replays_and_refusals() {
    let (till, count) = counting();
    let stack = ServiceBuilder::new()
        .layer(tonic_web::GrpcWebLayer::new())
        .layer(layer());
    let server = Server::start(stack, Routes::new(till.server())).await;
    let web = [
        ("idempotency-key", "a"),
        ("content-type", "application/grpc-web+proto"),
    ];
    let message = euros(7).encode_to_vec();
    let (first, _) = server.raw(PAY, &web, &message).await.stripped();
    let (again, replayed) = server.raw(PAY, &web, &message).await.stripped();
    assert!(replayed && first == again);
    // The status is in the body, after the message.
    let body = String::from_utf8_lossy(&again.body);
    assert!(body.contains("grpc-status:0"), "{body}");
    assert!(again.trailers.is_none());

    let other = euros(8).encode_to_vec();
    let refused = server.raw(PAY, &web, &other).await;
    assert_eq!(
        (refused.status, &refused.headers["grpc-status"]),
        (200, &"9".parse().unwrap())
    );

    let mut client = server.client().await;
    assert!(is_replay(&client.pay(keyed("a", euros(7))).await.unwrap()));
    assert_eq!(count.load(Ordering::SeqCst), 1);
}
