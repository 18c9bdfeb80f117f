//! What a handler's answer says about its operation: the [`Verdict`], and the presets that judge.

use http::{HeaderMap, StatusCode, header, response::Parts};

#[cfg(feature = "grpc")]
use super::grpc;

/// What a handler's answer says about its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It is done: the answer is recorded, and every retry gets it (P2).
    Completed,
    /// Nothing was done: the key is freed at once and may come back with another payload.
    ///
    /// On a later attempt, or after a checkpoint was saved, it counts as failed, since something
    /// may have been done before. So it does in gRPC where messages were sent before the status.
    Rejected,
    /// The effect is unknown: a retry with the same payload may run at once, another payload is a
    /// mismatch.
    Failed,
}

/// Below 400 completed, 4xx but 408 rejected, all else failed (S22, U04). The default; with the
/// feature `grpc` that is [`by_grpc_status`], which asks this for all that is not gRPC.
///
/// 408 is failed: the layer has read the request to its end, so it was the handler that took too
/// long (a timeout layer inside answers so), and how far it came is not known.
///
/// So is an answer of gRPC whose `grpc-status` tells of an error, though its status is 200. Which errors
/// say that nothing was done is known to the feature `grpc` alone.
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
pub fn by_status(parts: &Parts, trailers: Option<&HeaderMap>) -> Verdict {
    match parts.status {
        // Recorded, it would be the answer to every retry (U04).
        status if status.is_success() && is_grpc_error(parts, trailers) => Verdict::Failed,
        status if status < StatusCode::BAD_REQUEST => Verdict::Completed,
        StatusCode::REQUEST_TIMEOUT => Verdict::Failed,
        status if status.is_client_error() => Verdict::Rejected,
        _ => Verdict::Failed,
    }
}

/// Of gRPC-Web too, where the status is in a head or in trailers.
fn is_grpc_error(parts: &Parts, trailers: Option<&HeaderMap>) -> bool {
    let kind = parts.headers.get(header::CONTENT_TYPE);
    if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return false;
    }
    let said = |headers: &HeaderMap| headers.get("grpc-status").map(|code| code != "0");
    let said = trailers.and_then(said).or_else(|| said(&parts.headers));
    said.unwrap_or(false)
}

/// gRPC by its status, and all else [`by_status`]. The default with the feature `grpc`.
///
/// | `grpc-status` | verdict |
/// |---|---|
/// | `OK` | completed |
/// | `INVALID_ARGUMENT`, `NOT_FOUND`, `ALREADY_EXISTS`, `PERMISSION_DENIED`, `UNAUTHENTICATED`, `FAILED_PRECONDITION`, `UNIMPLEMENTED` | rejected: the fault is the client's |
/// | all others, and none | failed |
///
/// `OUT_OF_RANGE` and `RESOURCE_EXHAUSTED` are among the others. Servers answer so by themselves
/// where a message is too large: a request, or as well the answer, and then the work is done.
/// `CANCELLED`, `DEADLINE_EXCEEDED` and `ABORTED` do not say how far the work came.
///
/// The status is read in the trailers, or in the head of an answer that has no other part. An
/// answer is gRPC by its `Content-Type`; gRPC-Web, whose status is in the body, is not.
///
/// ```
/// use http::{HeaderMap, HeaderValue, Response};
/// use tower_idempotency::verdict::{self, Verdict};
///
/// let (parts, ()) = Response::builder()
///     .header("content-type", "application/grpc")
///     .body(())
///     .unwrap()
///     .into_parts();
/// let judge = |code: u16| {
///     let mut trailers = HeaderMap::new();
///     trailers.insert("grpc-status", HeaderValue::from(code));
///     verdict::by_grpc_status(&parts, Some(&trailers))
/// };
/// assert_eq!(judge(0), Verdict::Completed);
/// assert_eq!(judge(3), Verdict::Rejected);
/// assert_eq!(judge(13), Verdict::Failed);
/// ```
#[cfg(feature = "grpc")]
#[cfg_attr(docsrs, doc(cfg(feature = "grpc")))]
#[must_use]
pub fn by_grpc_status(parts: &Parts, trailers: Option<&HeaderMap>) -> Verdict {
    use tonic::Code;
    if !grpc::is_grpc(&parts.headers) {
        return by_status(parts, trailers);
    }
    match grpc::code(&parts.headers, trailers) {
        Some(Code::Ok) => Verdict::Completed,
        Some(
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::Unimplemented,
        ) => Verdict::Rejected,
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
