//! `PostgresStore` on a real server: the conformance suite, and what is its own.
#![allow(clippy::unwrap_used, reason = "a test")]

mod clocks;
mod conformance;
mod corrupt;
mod expiry;
mod faults;
mod races;
mod reads;
mod schema;
#[path = "../servers/mod.rs"]
mod servers;
mod skew;
mod support;
mod transactions;
mod waits;
