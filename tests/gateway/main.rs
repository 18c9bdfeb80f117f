//! The example `gateway` as a process between real clients and real services: what streams through it,
//! what it does to heads, and what becomes of a key when a service, a client or the gateway itself
//! is gone.
#![allow(clippy::unwrap_used, reason = "a test")]

mod ends;
mod failures;
#[path = "../../examples/gateway/forward.rs"]
#[allow(dead_code, reason = "a part of it is enough")]
mod forward;
mod grpc;
mod heads;
mod languages;
mod limits;
mod losses;
mod rules;
#[path = "../servers/mod.rs"]
mod servers;
mod starts;
mod streams;
mod support;
mod tunnels;
mod versions;
