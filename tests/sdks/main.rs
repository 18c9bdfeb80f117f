//! Clients that are not ours, and not in Rust: the libraries of Stripe and of Square as they are, and
//! grpcio. Each runs in a Python of its own, which the tests set up, and prints its counts
//! (`-- --nocapture` shows them).
//!
//! Between a library and its server stands a network that loses requests and answers, doubles
//! requests and ends connections. Whatever it does, each operation has one effect and one answer.

#[allow(dead_code, reason = "the example shows a count at its end")]
#[path = "../../examples/tonic/bank.rs"]
mod bank;
mod gateway;
mod grpc;
mod layer;
mod library;
mod network;
mod refused;
mod retried;
mod run;
#[path = "../servers/mod.rs"]
mod servers;
mod upstream;

#[allow(
    clippy::all,
    clippy::use_self,
    missing_docs,
    unreachable_pub,
    reason = "generated"
)]
mod payments {
    include!("../../examples/tonic/payments.v1.rs");
}
