//! A problem document (RFC 9457) of the gateway's own.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::json;

/// In the form of the layer's, under types of its own.
pub(crate) fn problem(
    status: StatusCode,
    name: &str,
    title: &str,
    detail: &str,
) -> Response<Full<Bytes>> {
    let document = json!({
        "type": format!("urn:tower-idempotency:gateway:{name}"),
        "title": title,
        "status": status.as_u16(),
        "detail": detail,
        "error": name.replace('-', "_"),
    });
    let mut response = Response::new(Full::from(document.to_string()));
    *response.status_mut() = status;
    for (name, value) in [
        (header::CONTENT_TYPE, "application/problem+json"),
        (header::CONTENT_LANGUAGE, "en"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}
