//! The store of the example `memcached_store`, over servers that the tests start (S16).
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../../examples/memcached_store/memcached/mod.rs"]
mod memcached;
#[path = "../servers/mod.rs"]
mod servers;

mod conformance;
mod faults;
mod layout;
mod limits;
mod races;
mod skew;
mod support;
mod wire;
