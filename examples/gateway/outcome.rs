//! What became of a request that the upstream did not answer.
//!
//! The forwarder puts one of these into the extensions of the answer that it gives instead (502 or
//! 504), and the judge of a route reads it there: the same status from the upstream itself means
//! something else.

/// No byte of the request was sent: nothing was done, and the key is free at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotSent;

/// The request was sent, and no answer came: nobody knows whether it was carried out. What becomes
/// of its key is for the route to say ([`Unknown`](crate::config::Unknown)).
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutcomeUnknown;
