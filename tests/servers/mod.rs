//! Real servers for tests and benchmarks: each test starts its own, on free ports and with data of
//! its own, and may stop it, freeze it, start it again, or cut its connections.
//!
//! No target by itself: a test takes it in with `#[path = "../servers/mod.rs"] mod servers;`.
//!
//! A server that is not installed fails the test, with what to install. Nothing is skipped.
//! An example of this crate is built before it is started.
#![allow(dead_code, unreachable_pub, reason = "each target uses a part")]

pub mod example;
pub mod memcached;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod python;
#[cfg(feature = "redis")]
pub mod redis;
pub mod skew;
