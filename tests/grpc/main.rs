//! The layer in gRPC servers: tonic's, over real sockets, with tonic's client.
//!
//! | what | where |
//! |---|---|
//! | answers, fresh and replayed: metadata, messages, trailers, compression | `answers` |
//! | each refusal, as a caller sees it | `refusals` |
//! | what each status makes of its operation | `verdicts` |
//! | calls that stream | `streams` |
//! | deadlines, disconnects, shutdown | `leaving` |
//! | the code that is generated for it | `generated` |
//! | where the layer can be put | `places` |
//! | after a crash | `takeover` |
//! | rows and replies, committed together | `transactions` |

#![allow(clippy::unwrap_used)]

#[allow(
    dead_code,
    reason = "what this target does not use, the target `http` does"
)]
#[path = "../http/support.rs"]
mod base;

#[allow(clippy::all, clippy::use_self, missing_docs, unreachable_pub)]
mod payments {
    include!("../../examples/tonic/payments.v1.rs");
}

mod answers;
mod generated;
mod leaving;
mod places;
mod refusals;
mod streams;
mod support;
mod takeover;
mod transactions;
mod verdicts;
