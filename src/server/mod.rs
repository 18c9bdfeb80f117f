//! The HTTP side: a tower layer around any service.
//!
//! `layer` has the options, `service` the way of one request through key, body, claim, handler and
//! record. What they use: `extract` (key, caller, fingerprint), `body` (buffers and limits),
//! `codec` (the recorded form of an answer), `problem` (refusals), `verdict` (what an answer
//! means), `takeover` (what to do after a crash).

mod body;
mod codec;
mod extract;
mod layer;
mod problem;
mod service;
mod takeover;
pub mod verdict;

pub use body::{RequestBody, ResponseBody};
pub use extract::{Fingerprinter, KeySource, Scope};
pub use layer::IdempotencyLayer;
pub use problem::Refusal;
pub use service::{Idempotency, ResponseFuture};
pub use takeover::{Probed, Takeover};
