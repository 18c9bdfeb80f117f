//! The HTTP side: a tower layer around any service.
//!
//! `layer` has the options, `config` is what the services see of them. `service` says which requests
//! are covered; `covered` is the way of one of them: through `admission` (key, caller and body), the
//! engine, the handler and `answer` (what is recorded, what is sent). `future` is what the caller
//! polls meanwhile. What they use: `extract` (key, caller, fingerprint), `body` (buffers and
//! limits), `codec` (the recorded form of an answer), `problem` (refusals), `verdict` (what an
//! answer means), `takeover` (what to do after a crash), `commit`
//! (an answer that is recorded in the handler's own transaction). `grpc` knows how gRPC says all
//! this, and `reply` what a tonic handler commits; `axum` is the extractor of [`Execution`].
//!
//! [`Execution`]: crate::Execution

mod admission;
mod answer;
#[cfg(feature = "axum")]
mod axum;
mod body;
mod codec;
mod commit;
mod config;
mod covered;
mod extract;
mod future;
#[cfg(feature = "grpc")]
mod grpc;
mod layer;
mod problem;
#[cfg(feature = "grpc")]
mod reply;
mod service;
mod takeover;
pub mod verdict;

#[cfg(feature = "axum")]
pub use self::axum::MissingExecution;
pub use body::{RequestBody, ResponseBody};
pub use commit::Committed;
pub use extract::{Fingerprinter, KeySource, Scope};
pub use future::ResponseFuture;
pub use layer::IdempotencyLayer;
pub use problem::Refusal;
pub use service::Idempotency;
pub use takeover::{Probed, Takeover};
