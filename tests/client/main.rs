//! Requests that go out: their keys, what is tried again, and what comes of it over a network that
//! loses things.

#![allow(clippy::unwrap_used)]

#[allow(
    dead_code,
    reason = "what this target does not use, the target `http` does"
)]
#[path = "../http/support.rs"]
mod base;

mod answers;
mod bodies;
mod calls;
mod current;
mod early;
mod forwarding;
mod grpc;
mod key;
mod network;
mod purposes;
mod refusals;
mod retry;
mod support;
