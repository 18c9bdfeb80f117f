//! What the gateway is told to do.

mod path;

use std::{net::SocketAddr, time::Duration};

use http::{HeaderName, Method, Uri};

pub(crate) use path::{PathPattern, plain};

/// What the gateway is told to do. Nothing in it has to be checked again.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    /// Scheme `http` and authority; no path.
    pub(crate) upstream: Uri,
    /// As `payments --store` takes it.
    pub(crate) store: String,
    /// HTTP/2 with prior knowledge, instead of HTTP/1.1.
    pub(crate) upstream_http2: bool,
    pub(crate) connect_timeout: Duration,
    /// Until the head of the upstream's answer is there.
    pub(crate) upstream_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) max_connections: usize,
    pub(crate) header_read_timeout: Duration,
    /// The name of this gateway in `Via`.
    pub(crate) via: String,
    /// Whether `Forwarded` and `X-Forwarded-*` are kept as they come: behind another proxy of ours.
    pub(crate) trust_forwarded: bool,
    /// The bodies of all routes together, in bytes.
    pub(crate) buffer_limit: usize,
    /// The first that matches counts.
    pub(crate) routes: Vec<Route>,
}

/// Which requests are covered, and how.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) path: PathPattern,
    pub(crate) methods: Vec<Method>,
    pub(crate) key: Key,
    pub(crate) required: bool,
    pub(crate) scope: ScopeBy,
    pub(crate) ttl: Duration,
    pub(crate) on_conflict: Conflict,
    pub(crate) body_limit: usize,
    pub(crate) takeover: Takeover,
    pub(crate) unknown: Unknown,
    pub(crate) lease: Duration,
}

/// Where the key stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Header(HeaderName),
    /// An RFC 6901 pointer into a JSON body.
    Json(String),
}

/// Whose keys are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ScopeBy {
    Header(HeaderName),
    SingleTenant,
}

/// What a duplicate meets while the first request still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conflict {
    Reject,
    Wait(Duration),
}

/// What a request meets whose key was left by a gateway that died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takeover {
    Retry,
    Refuse,
}

/// What becomes of a key whose request was sent, and may or may not have been carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// A retry is sent to the upstream: at least once.
    Retry,
    /// The failure is recorded, and replayed: at most once.
    Keep,
}
