//! `SqliteStore`: the conformance suite, and what is its own.
#![allow(clippy::unwrap_used, reason = "a test")]

mod conformance;
mod damage;
mod expiry;
mod layout;
mod locks;
mod processes;
mod support;
mod transactions;
