//! What the gateway itself answers: a problem document (RFC 9457), or an error as Stripe has it.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::{Value, json};
use tower_idempotency::{Reason, Refusal};

use crate::config::Refusals;

/// Whether one of Stripe's libraries is to try again. Without it each goes by the status, and tries
/// every 409 again.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("stripe-should-retry");

const PROBLEM: &str = "application/problem+json";

/// In the form of the layer's, under types of its own.
pub(crate) fn problem(
    form: Refusals,
    status: StatusCode,
    name: &str,
    title: &str,
    detail: &str,
) -> Response<Full<Bytes>> {
    let error = name.replace('-', "_");
    let (content_type, document) = match form {
        Refusals::Problem => (
            PROBLEM,
            json!({
                "type": format!("urn:tower-idempotency:gateway:{name}"),
                "title": title,
                "status": status.as_u16(),
                "detail": detail,
                "error": error,
            }),
        ),
        Refusals::Stripe => (
            "application/json",
            stripe_error(kind(status), &error, detail),
        ),
    };
    let mut response = Response::new(Full::from(document.to_string()));
    *response.status_mut() = status;
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_LANGUAGE, "en"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

/// A refusal of the layer as Stripe has it: another payload under a key is a 400 there.
///
/// One to a gRPC client stays as it is.
pub(crate) fn as_stripe_does(refusal: &Refusal, mut response: Response<Bytes>) -> Response<Bytes> {
    let headers = response.headers_mut();
    let is_problem = |kind| kind == PROBLEM;
    if !headers.get(header::CONTENT_TYPE).is_some_and(is_problem) {
        return response;
    }
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    let retry = match refusal.retry_after() {
        Some(_) => HeaderValue::from_static("true"),
        None => HeaderValue::from_static("false"),
    };
    headers.insert(SHOULD_RETRY, retry);

    let name = refusal.reason().as_str().replace('-', "_");
    let (kind, code) = match refusal.reason() {
        Reason::Mismatch => {
            *response.status_mut() = StatusCode::BAD_REQUEST;
            ("idempotency_error", name.as_str())
        }
        Reason::InProgress => ("idempotency_error", "idempotency_key_in_use"),
        _ => (kind(refusal.status()), name.as_str()),
    };
    let error = stripe_error(kind, code, refusal.detail());
    response.map(|_| error.to_string().into())
}

/// The names of Stripe's kinds of errors.
fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::CONFLICT => "idempotency_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "api_error",
    }
}

fn stripe_error(kind: &str, code: &str, message: &str) -> Value {
    json!({ "error": { "type": kind, "code": code, "message": message } })
}
