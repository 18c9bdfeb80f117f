//! `PostgresStore` on a real server: the conformance suite, and what is its own.
#![allow(clippy::unwrap_used, reason = "a test")]

mod conformance;
#[path = "../servers/mod.rs"]
mod servers;
mod support;
