//! The span of a trace outside, and work that goes on without it.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Request, StatusCode};
use tower::{Layer, service_fn};
use tower_http::{timeout::TimeoutLayer, trace::TraceLayer};

use crate::support::{Handled, SLOW, Scripted, ask, layer, plain, post};

/// A span that was opened outside goes with work whose caller left: what the handler tells after
/// that is told within it.
#[tokio::test(start_paused = true)]
async fn p4_trace_outside_follows_work_whose_caller_left() {
    let registry = tracing_subscriber::registry();
    let _guard = tracing::subscriber::set_default(registry);
    let names = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let names = names.clone();
        move |_: Handled| {
            let names = names.clone();
            async move {
                tokio::time::sleep(SLOW).await;
                let name = tracing::Span::current().metadata().map(|span| span.name());
                names.lock().unwrap().push(name);
                Ok::<_, Infallible>(plain(201, "b"))
            }
        }
    };
    let spans = TraceLayer::new_for_http()
        .make_span_with(|_: &Request<_>| tracing::error_span!("of_the_request"));
    let status = StatusCode::GATEWAY_TIMEOUT;
    let timeout = TimeoutLayer::with_status_code(status, SLOW / 2);
    let idempotency = layer(Scripted::new());
    let service = (spans, timeout, idempotency.clone()).layer(service_fn(handler));
    let late = ask(&service, post("k", "b")).await;
    assert_eq!(late.status, status);
    idempotency.drain().await;
    assert_eq!(*names.lock().unwrap(), [Some("of_the_request")]);
}
