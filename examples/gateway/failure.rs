//! What the gateway says where it has no answer of the upstream: problem documents (RFC 9457).

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;

use crate::{
    forward::Unfit,
    outcome::{NotSent, OutcomeUnknown},
};

/// Why there is no answer of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nothing was sent.
    Unreachable,
    /// Something was sent, and then the connection broke.
    Broken,
    /// It took too long.
    Slow,
    /// The client sends its body too slowly. Only where no key is: under a key the body has been
    /// read before.
    SlowClient,
    /// The client's body broke off.
    BrokenClient,
    Unfit(Unfit),
}

impl Failure {
    /// The answer, with what the judge of a route wants to know among its extensions.
    pub(crate) fn answer(self, method: &Method) -> Response<Full<Bytes>> {
        let (status, name, title) = match self {
            Self::Unreachable => (
                StatusCode::BAD_GATEWAY,
                "upstream-unreachable",
                "The request did not reach the service behind this gateway; nothing was done",
            ),
            Self::Broken => (
                StatusCode::BAD_GATEWAY,
                "upstream-broken",
                "The service behind this gateway broke off; whether it did anything is not known",
            ),
            Self::Slow => (
                StatusCode::GATEWAY_TIMEOUT,
                "upstream-slow",
                "The service behind this gateway did not answer in time; whether it did anything is not known",
            ),
            Self::SlowClient => (
                StatusCode::REQUEST_TIMEOUT,
                "request-slow",
                "The request body did not arrive in time",
            ),
            Self::BrokenClient => (
                StatusCode::BAD_REQUEST,
                "request-broken",
                "The request body is incomplete",
            ),
            Self::Unfit(Unfit::Host) => (
                StatusCode::BAD_REQUEST,
                "host-invalid",
                "The request does not name one host",
            ),
            Self::Unfit(Unfit::Connect) => (
                StatusCode::NOT_IMPLEMENTED,
                "no-tunnels",
                "This gateway leads to one service only",
            ),
            Self::Unfit(Unfit::Upgrade) => (
                StatusCode::NOT_IMPLEMENTED,
                "no-upgrades",
                "The service behind this gateway is reached over HTTP/2, which has no upgrades",
            ),
            Self::Unfit(Unfit::LastHop) if method == Method::OPTIONS => {
                let mut answer = Response::new(Full::default());
                *answer.status_mut() = StatusCode::NO_CONTENT;
                return answer;
            }
            Self::Unfit(Unfit::LastHop) => (
                StatusCode::METHOD_NOT_ALLOWED,
                "no-trace",
                "This gateway does not answer TRACE",
            ),
        };
        let document = serde_json::json!({
            "type": format!("urn:tower-idempotency:gateway:{name}"),
            "title": title,
            "status": status.as_u16(),
            "error": name.replace('-', "_"),
        });
        let mut answer = Response::new(Full::from(document.to_string()));
        *answer.status_mut() = status;
        for (name, value) in [
            (header::CONTENT_TYPE, "application/problem+json"),
            (header::CONTENT_LANGUAGE, "en"),
            (header::CACHE_CONTROL, "no-store"),
        ] {
            let value = HeaderValue::from_static(value);
            answer.headers_mut().insert(name, value);
        }
        if let Self::Unfit(Unfit::LastHop) = self {
            // Required with this status; nothing is allowed this far.
            answer
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("OPTIONS"));
        }
        match self {
            Self::Unreachable => drop(answer.extensions_mut().insert(NotSent)),
            Self::Broken | Self::Slow => drop(answer.extensions_mut().insert(OutcomeUnknown)),
            Self::SlowClient | Self::BrokenClient | Self::Unfit(_) => {}
        }
        answer
    }
}
