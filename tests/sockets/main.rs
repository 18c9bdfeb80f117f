//! The layer behind real servers, driven over TCP by clients that mean no good, or have bad luck.

#![allow(clippy::unwrap_used)]

mod bodies;
mod bodies_h2;
mod down;
mod expect;
mod floods;
mod half_close;
mod heads;
mod keep_alive;
mod leaving;
mod memory;
mod records;
#[cfg(feature = "axum")]
mod routers;
mod sharing;
mod support;
mod trailers;
mod upgrades;
mod versions;
mod wire;
