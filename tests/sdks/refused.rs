//! What a library makes of a refusal.

use std::{net::SocketAddr, sync::Arc};

use axum::Router;
use bytes::Bytes;
use http::{Response, StatusCode, header};
use tower_idempotency::{Reason, Refusal};

use crate::{
    gateway::for_both,
    layer::{by_header, by_member, idempotency},
    library::{Answer, Job, Library},
    network::Network,
    run::served,
    upstream::Upstream,
};

async fn mismatch(library: Library, wrap: impl FnOnce(Router) -> Router) -> Answer {
    let (upstream, server) = served(wrap).await;
    mismatch_at(library, &upstream, server.address()).await
}

/// What comes of a payment, and of another one under the same key, which is not tried again (U32).
async fn mismatch_at(library: Library, upstream: &Arc<Upstream>, to: SocketAddr) -> Answer {
    let network =
        Network::before(&[to], Some(Arc::clone(upstream)), Arc::new(|_| Vec::new())).await;
    let job = |operation: &str, amount| Job {
        operation: operation.to_owned(),
        amount,
        key: Some("order-1".to_owned()),
        retries: 3,
        again: false,
    };
    let jobs = [job("payment", 100), job("other", 999)];
    let mut answers = library.run(&network.url(), 1, 30.0, &jobs).await;
    let refused = answers.pop().expect("two answers");
    assert!(answers.pop().is_some_and(|first| first.id.is_some()));
    assert_eq!(network.seen()["order-1"].tries, 2, "{refused:?}");
    assert_eq!(upstream.effects().len(), 1);
    let Answer { error, status, .. } = &refused;
    println!(
        "{}, another payment under the key: {error:?} {status:?}",
        library.name()
    );
    refused
}

/// S07, I09, U32.
#[tokio::test]
async fn s07_square_raises_an_error_with_the_status() {
    let refused = mismatch(Library::Square, by_member).await;
    assert_eq!(refused.error.as_deref(), Some("ApiError"));
    assert_eq!(refused.status, Some(422));
}

/// S07, I09, U32. The library reads `error` as an object, and raises what Python raises where it is a
/// string. Nothing is done twice for it; whoever serves it answers as it expects: see below.
#[tokio::test]
async fn s07_stripe_raises_an_error() {
    let refused = mismatch(Library::Stripe, by_header).await;
    assert_eq!(refused.error.as_deref(), Some("AttributeError"));
}

/// S07, I09, U32: through the gateway, too, where it is told how Stripe's reads them.
#[tokio::test]
async fn s07_the_libraries_raise_their_errors_through_the_gateway() {
    for (library, v1, error, status) in [
        (
            Library::Stripe,
            "refusals = \"stripe\"",
            "IdempotencyError",
            Some(400),
        ),
        (Library::Stripe, "", "AttributeError", None),
        (Library::Square, "", "ApiError", Some(422)),
    ] {
        let (upstream, server) = served(|app| app).await;
        let gateway = for_both(server.address(), v1);
        let refused = mismatch_at(library, &upstream, gateway.address()).await;
        assert_eq!(refused.error.as_deref(), Some(error));
        assert_eq!(refused.status, status);
    }
}

/// The refusals as Stripe has them: a mismatch is a 400 there.
fn as_stripe_does(refusal: &Refusal, mut response: Response<Bytes>) -> Response<Bytes> {
    let kind = match refusal.reason() {
        Reason::Mismatch => {
            *response.status_mut() = StatusCode::BAD_REQUEST;
            "idempotency_error"
        }
        _ => "api_error",
    };
    let error = serde_json::json!({"error": {"type": kind, "message": refusal.detail()}});
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response.map(|_| error.to_string().into())
}

/// S07, I09, U32.
#[tokio::test]
async fn s07_stripe_raises_its_own_error() {
    let own = |app: Router| app.layer(idempotency().on_refusal(as_stripe_does));
    let refused = mismatch(Library::Stripe, own).await;
    assert_eq!(refused.error.as_deref(), Some("IdempotencyError"));
    assert_eq!(refused.status, Some(400));
}
