//! The HTTP side: what is read from a request, what is recorded of an answer, and how a request is
//! refused.
//!
//! - [`extract`]: what is asked of a request: who calls, under which key, with which payload.
//! - [`body`]: requests read into memory within limits, answers kept or passed on.
//! - [`codec`]: an answer as the bytes of a record, and back.
//! - [`problem`]: refusals as problem documents.

#[cfg_attr(not(test), expect(dead_code, reason = "the service will use it"))]
mod body;
#[cfg_attr(not(test), expect(dead_code, reason = "the service will use it"))]
mod problem;

pub use body::{RequestBody, ResponseBody};
pub use problem::Refusal;
