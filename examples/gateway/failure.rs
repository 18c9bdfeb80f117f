//! What the gateway says where it has no answer of the upstream.

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header::ALLOW};
use http_body_util::Full;

use crate::{
    config::Refusals,
    forward::Unfit,
    outcome::{NotSent, OutcomeUnknown},
    problem::problem,
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
    pub(crate) fn answer(
        self,
        method: &Method,
        grpc: bool,
        refusals: Refusals,
    ) -> Response<Full<Bytes>> {
        let mut answer = match grpc {
            true => self.grpc(),
            false => self.document(method, refusals),
        };
        match self {
            Self::Unreachable | Self::Unfit(_) => drop(answer.extensions_mut().insert(NotSent)),
            Self::Broken | Self::Slow => drop(answer.extensions_mut().insert(OutcomeUnknown)),
            Self::SlowClient | Self::BrokenClient => {}
        }
        answer
    }

    /// A gRPC client reads no documents: its status is in the head of an answer that has no body.
    fn grpc(self) -> Response<Full<Bytes>> {
        const UNAVAILABLE: &str = "14";
        const DEADLINE_EXCEEDED: &str = "4";
        const INVALID_ARGUMENT: &str = "3";
        const UNIMPLEMENTED: &str = "12";
        let (status, message) = match self {
            Self::Unreachable => (
                UNAVAILABLE,
                "no service behind this gateway; nothing was done",
            ),
            Self::Broken => (
                UNAVAILABLE,
                "the service broke off; what it did is not known",
            ),
            Self::Slow => (
                DEADLINE_EXCEEDED,
                "no answer in time; what was done is not known",
            ),
            Self::SlowClient => (DEADLINE_EXCEEDED, "the request did not arrive in time"),
            Self::BrokenClient => (INVALID_ARGUMENT, "the request is incomplete"),
            Self::Unfit(Unfit::Host) => (INVALID_ARGUMENT, "the request does not name one host"),
            Self::Unfit(Unfit::Target) => (INVALID_ARGUMENT, "the request does not name a path"),
            Self::Unfit(Unfit::Connect | Unfit::Upgrade | Unfit::LastHop | Unfit::Coding) => {
                (UNIMPLEMENTED, "not by this gateway")
            }
        };
        let mut answer = Response::new(Full::default());
        for (name, value) in [
            ("content-type", "application/grpc"),
            ("grpc-status", status),
            ("grpc-message", message),
        ] {
            let value = HeaderValue::from_static(value);
            answer.headers_mut().insert(name, value);
        }
        answer
    }

    fn document(self, method: &Method, refusals: Refusals) -> Response<Full<Bytes>> {
        let problem = |status, name, title, detail| problem(refusals, status, name, title, detail);
        match self {
            Self::Unreachable => problem(
                StatusCode::BAD_GATEWAY,
                "upstream-unreachable",
                "The service behind this gateway cannot be reached",
                "It did not get the request, so nothing was done.",
            ),
            Self::Broken => problem(
                StatusCode::BAD_GATEWAY,
                "upstream-broken",
                "The service behind this gateway broke off",
                "It got the request and gave no answer: what it did is not known.",
            ),
            Self::Slow => problem(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream-slow",
                "The service behind this gateway did not answer in time",
                "It got the request and gave no answer: what it did is not known.",
            ),
            Self::SlowClient => problem(
                StatusCode::REQUEST_TIMEOUT,
                "request-slow",
                "The request body did not arrive in time",
                "A part of it may have reached the service behind this gateway.",
            ),
            Self::BrokenClient => problem(
                StatusCode::BAD_REQUEST,
                "request-broken",
                "The request body is incomplete",
                "A part of it may have reached the service behind this gateway.",
            ),
            Self::Unfit(Unfit::Host) => problem(
                StatusCode::BAD_REQUEST,
                "host-invalid",
                "The request does not name one host",
                "It has one line `Host`, with a host and perhaps a port.",
            ),
            Self::Unfit(Unfit::Target) => problem(
                StatusCode::BAD_REQUEST,
                "target-invalid",
                "The request does not name a path",
                "What it asks for begins with `/`, or with `http://` and a host.",
            ),
            Self::Unfit(Unfit::Coding) => problem(
                StatusCode::NOT_IMPLEMENTED,
                "coding-unknown",
                "This gateway does not know how the request body is coded",
                "`Transfer-Encoding` is `chunked` alone; a body that is compressed says so in \
                 `Content-Encoding`.",
            ),
            Self::Unfit(Unfit::Connect) => problem(
                StatusCode::NOT_IMPLEMENTED,
                "no-tunnels",
                "This gateway makes no tunnels",
                "It leads to one service, to which requests can be sent.",
            ),
            Self::Unfit(Unfit::Upgrade) => problem(
                StatusCode::NOT_IMPLEMENTED,
                "no-upgrades",
                "This gateway has no upgrades",
                "It reaches the service behind it over HTTP/2, which knows none.",
            ),
            Self::Unfit(Unfit::LastHop) if method == Method::OPTIONS => {
                let mut answer = Response::new(Full::default());
                *answer.status_mut() = StatusCode::NO_CONTENT;
                answer
            }
            Self::Unfit(Unfit::LastHop) => {
                let mut answer = problem(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "no-trace",
                    "This gateway does not answer TRACE",
                    "`Max-Forwards` lets the request go no further than here.",
                );
                // Required with this status: what is answered here.
                let allowed = HeaderValue::from_static("OPTIONS");
                answer.headers_mut().insert(ALLOW, allowed);
                answer
            }
        }
    }
}
