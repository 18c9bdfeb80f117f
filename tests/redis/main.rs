//! `RedisStore`, over servers that the tests start.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../servers/mod.rs"]
mod servers;

mod conformance;
mod faults;
mod guard;
mod layout;
mod limits;
mod skew;
mod support;
mod waiting;
mod wire;
