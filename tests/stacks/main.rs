//! The layer among others: wherever it can be put, and outside and inside of the layers that stand
//! beside it in practice. The page "stacks" of the documentation says what each order breaks; here
//! is the proof of each of its rows.

#![allow(clippy::unwrap_used)]

#[allow(
    dead_code,
    reason = "what this target does not use, the target `http` does"
)]
#[path = "../http/support.rs"]
mod base;

mod bodies;
mod heads;
mod load;
#[cfg(feature = "axum")]
mod middleware;
mod panics;
mod places;
#[cfg(feature = "axum")]
mod routers;
mod servers;
#[cfg(feature = "tracing")]
mod spans;
mod support;
mod times;
