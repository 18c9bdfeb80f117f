//! What a handler's answer says about its operation: the [`Verdict`], and the presets that judge.

use http::{HeaderMap, StatusCode, response::Parts};

/// What a handler's answer says about its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It is done: the answer is recorded, and every retry gets it (P2).
    Completed,
    /// Nothing was done: the key is freed at once and may come back with another payload.
    ///
    /// On a later attempt, or after a checkpoint was saved, it counts as failed, since something
    /// may have been done before.
    Rejected,
    /// The effect is unknown: a retry with the same payload may run at once, another payload is a
    /// mismatch.
    Failed,
}

/// Below 400 completed, 4xx but 408 rejected, all else failed (S22, U04). The default.
///
/// 408 is failed: the layer has read the request to its end, so it was the handler that took too
/// long (a timeout layer inside answers so), and how far it came is not known.
///
/// ```
/// use tower_idempotency::verdict::{self, Verdict};
///
/// let judge = |status: u16| {
///     let (parts, ()) = http::Response::builder()
///         .status(status)
///         .body(())
///         .unwrap()
///         .into_parts();
///     verdict::by_status(&parts, None)
/// };
/// assert_eq!(judge(201), Verdict::Completed);
/// assert_eq!(judge(422), Verdict::Rejected);
/// assert_eq!(judge(408), Verdict::Failed);
/// assert_eq!(judge(503), Verdict::Failed);
/// ```
#[must_use]
pub fn by_status(parts: &Parts, _trailers: Option<&HeaderMap>) -> Verdict {
    match parts.status {
        status if status < StatusCode::BAD_REQUEST => Verdict::Completed,
        StatusCode::REQUEST_TIMEOUT => Verdict::Failed,
        status if status.is_client_error() => Verdict::Rejected,
        _ => Verdict::Failed,
    }
}

/// Every answer counts as completed, errors too: a retry gets the recorded error again (S04, I06).
///
/// Choose it where running again after an error is worse than repeating the error for as long as
/// the record lives. Inner errors and panics are no answers: they still count as failed.
#[must_use]
pub fn record_errors(_parts: &Parts, _trailers: Option<&HeaderMap>) -> Verdict {
    Verdict::Completed
}
