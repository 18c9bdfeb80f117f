//! Clients: what they try again, and what comes of it over a network that loses things.

#![allow(clippy::unwrap_used)]

mod answers;
mod bodies;
mod network;
mod retry;
mod support;
