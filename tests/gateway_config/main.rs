//! The configuration of the example `gateway`: how it is read, what is said of its mistakes, and
//! how its routes cover requests. `tests/gateway` starts the program itself.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../../examples/gateway/config/mod.rs"]
#[allow(dead_code, reason = "the program uses the rest")]
mod config;
#[path = "../../examples/gateway/outcome.rs"]
mod outcome;
#[path = "../../examples/gateway/problem.rs"]
mod problem;
#[path = "../../examples/gateway/routes.rs"]
mod routes;

mod mistakes;
mod paths;
mod reading;
mod routing;
