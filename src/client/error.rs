//! Why a request was not sent.

use std::{error::Error, fmt};

use super::purpose::Purpose;
use crate::key::InvalidKey;

/// Why [`SetIdempotencyKey`](super::SetIdempotencyKey) did not send a request.
///
/// Its services fail with [`tower::BoxError`]: `error.downcast_ref::<SetKeyError>()` finds this one,
/// any other is the inner service's. None of them shows a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetKeyError {
    /// The key that the request has, or that was made for it, is none.
    Invalid(InvalidKey),
    /// The request belongs to no execution, and the layer
    /// [requires](super::SetIdempotencyKeyLayer::require_execution) one.
    NoExecution,
    /// This attempt of the execution has made, or is making, another call for this purpose. See the
    /// [module's docs](super#purposes).
    PurposeTaken(Purpose),
    /// This attempt of the execution has made calls for 4096 purposes, which is the most (P9). A call
    /// whose key is given to it counts for none.
    TooManyPurposes,
}

impl fmt::Display for SetKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(_) => f.write_str("the request's idempotency key cannot be sent"),
            Self::NoExecution => f.write_str(
                "the request belongs to no execution: is it sent by a task that the handler \
                 spawned? Then give it a clone of the `Execution`, as an extension",
            ),
            Self::PurposeTaken(purpose) => write!(
                f,
                "another call of this execution is for {:?}, and so would have the same key: \
                 give each call a `Purpose`, as an extension",
                purpose.as_str()
            ),
            Self::TooManyPurposes => {
                f.write_str("this execution has made calls for too many purposes")
            }
        }
    }
}

impl Error for SetKeyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Invalid(error) => Some(error),
            Self::NoExecution | Self::PurposeTaken(_) | Self::TooManyPurposes => None,
        }
    }
}

impl From<InvalidKey> for SetKeyError {
    fn from(error: InvalidKey) -> Self {
        Self::Invalid(error)
    }
}
