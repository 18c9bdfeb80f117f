//! `RedisStore`, over servers that the tests start.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../servers/mod.rs"]
mod servers;

mod conformance;
mod failover;
mod faults;
mod guard;
mod layout;
mod limits;
mod reconnecting;
mod skew;
mod support;
mod waiting;
mod wire;
