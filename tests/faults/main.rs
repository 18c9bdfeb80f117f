//! The layer over real stores whose servers, connections and processes fail.
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(async_fn_in_trait, unreachable_pub, reason = "nobody else uses it")]

#[path = "../servers/mod.rs"]
mod servers;

mod connections;
mod down;
mod failover;
mod frozen;
mod gone;
mod locked;
mod many;
mod processes;
mod support;
mod tiered;
mod waiting;
