//! Requests that go out: their keys, and what an execution's calls have in common.

#![allow(clippy::unwrap_used)]

#[allow(
    dead_code,
    reason = "what this target does not use, the target `http` does"
)]
#[path = "../http/support.rs"]
mod base;

mod calls;

mod current;
mod forwarding;
mod grpc;
mod key;
mod purposes;
