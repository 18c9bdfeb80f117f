//! [`Execution`] as an axum extractor.

use std::{convert::Infallible, error::Error, fmt};

use axum::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};

use crate::engine::Execution;

/// The execution that this request runs under.
///
/// A route that takes an `Execution` needs a key, so let its layer
/// [require one](crate::IdempotencyLayer::require_key). Take `Option<Execution>` where a request may
/// come without a key, or run without protection because the layer fails open.
///
/// ```
/// use axum::{Router, routing::post};
/// use tower_idempotency::{Execution, IdempotencyLayer, MemoryStore, Scope};
///
/// async fn pay(execution: Execution) -> String {
///     format!("attempt {} of {}", execution.attempt(), execution.key())
/// }
///
/// async fn note(execution: Option<Execution>) -> String {
///     match execution {
///         Some(execution) => format!("noted once under {}", execution.key()),
///         None => "noted".to_owned(),
///     }
/// }
///
/// let idempotency = IdempotencyLayer::new(MemoryStore::new(), Scope::header("x-api-key"));
/// let key_needed = Router::new()
///     .route("/payments", post(pay))
///     .route_layer(idempotency.clone().require_key(true));
/// let key_welcome = Router::new()
///     .route("/notes", post(note))
///     .route_layer(idempotency);
/// let app: Router = key_needed.merge(key_welcome);
/// ```
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl<S: Sync> FromRequestParts<S> for Execution {
    type Rejection = MissingExecution;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingExecution> {
        let execution = parts.extensions.get().cloned();
        execution.ok_or(MissingExecution)
    }
}

/// `None` where the request has no key, or runs without protection. Never rejects.
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl<S: Sync> OptionalFromRequestParts<S> for Execution {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get().cloned())
    }
}

/// Why a handler that takes an [`Execution`] did not run: its request has none.
///
/// Either no layer covers the route or its method; or the layer lets requests without a key pass; or
/// it fails open, and the store could not be asked. The extractor cannot know which, and each of
/// them is for the service to mend and not for the client, so the answer is 500, as for any request
/// extension that axum does not find.
///
/// Under a layer that [requires a key](crate::IdempotencyLayer::require_key), a client who sends none
/// is answered by the layer, with 400 and what to do, and the handler's arguments are not asked for.
/// A handler that takes `Option<Execution>`, or `Result<Execution, MissingExecution>`, decides for
/// itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub struct MissingExecution;

impl MissingExecution {
    /// The status of the answer: 500.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}

impl fmt::Display for MissingExecution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the request does not run under an idempotency key: \
             does an `IdempotencyLayer` cover this route, and require a key?",
        )
    }
}

impl Error for MissingExecution {}

impl IntoResponse for MissingExecution {
    fn into_response(self) -> Response {
        (self.status(), self.to_string()).into_response()
    }
}
