//! What to do with a key whose execution went silent: the [`Takeover`] option (P5).

use std::{fmt, future::Future, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Response, request::Parts};

use crate::engine::Execution;

/// What a request does that meets an *abandoned* execution of its own key and payload: its process
/// died, or was frozen or cut off beyond its lease, and nobody knows how far it came.
///
/// ```
/// use bytes::Bytes;
/// use http::{Response, StatusCode};
/// use tower_idempotency::{Probed, Takeover};
///
/// # async fn find_payment(key: &str) -> Result<Option<String>, ()> { Ok(None) }
/// let takeover = Takeover::probe(|execution, _request| {
///     let key = execution.derive("payment");
///     async move {
///         match find_payment(&key).await {
///             Ok(Some(id)) => Probed::Completed(
///                 Response::builder()
///                     .status(StatusCode::CREATED)
///                     .body(Bytes::from(id))
///                     .unwrap(),
///             ),
///             Ok(None) => Probed::NotDone,
///             Err(_) => Probed::Unknown,
///         }
///     }
/// });
/// # let _ = takeover;
/// ```
#[derive(Clone, Default)]
pub struct Takeover(Choice);

#[derive(Clone, Default)]
pub(super) enum Choice {
    #[default]
    Run,
    Refuse,
    Probe(Probe),
}

pub(super) type Probe = Arc<dyn Fn(Execution, &Parts) -> BoxFuture<'static, Probed> + Send + Sync>;

/// What a probe found out about an abandoned execution.
#[derive(Debug)]
pub enum Probed {
    /// It did its work; this is the answer, to be recorded and sent. Its trailers, if it has any,
    /// are an [`http::HeaderMap`] among its extensions. With the feature `grpc`,
    /// [`reply`](Self::reply) makes one for gRPC.
    Completed(Response<Bytes>),
    /// It did nothing: the handler is to run.
    NotDone,
    /// That cannot be told now. The request is refused, and the key is abandoned again, so that
    /// the next request asks the probe anew.
    Unknown,
}

impl Takeover {
    /// Run the handler again: at least once. The default.
    ///
    /// The handler sees [`Entry::Takeover`](crate::Entry::Takeover) and the last checkpoint.
    #[must_use]
    pub fn run() -> Self {
        Self(Choice::Run)
    }

    /// Refuse with 409 until somebody resolves it: at most once.
    ///
    /// Choose it where a second effect is worse than none. An operator finds the record with
    /// [`Store::get`](crate::Store::get) and, once it is clear what happened, removes it with
    /// [`Store::forget`](crate::Store::forget); it also goes when its time to live ends. A claim
    /// whose answer was lost, and under which nothing ran, is given back as soon as the store can be
    /// asked again; if this process ends before that, it stays until somebody resolves it.
    #[must_use]
    pub fn refuse() -> Self {
        Self(Choice::Refuse)
    }

    /// Ask `probe`, which runs under the new claim.
    ///
    /// Choose it where another system knows what was done. A probe that panics counts as one that
    /// cannot tell.
    #[must_use]
    pub fn probe<F, Fut>(probe: F) -> Self
    where
        F: Fn(Execution, &Parts) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Probed> + Send + 'static,
    {
        Self(Choice::Probe(Arc::new(move |execution, parts| {
            Box::pin(probe(execution, parts))
        })))
    }

    pub(super) fn runs(&self) -> bool {
        !matches!(self.0, Choice::Refuse)
    }

    pub(super) fn probing(&self) -> Option<&Probe> {
        match &self.0 {
            Choice::Probe(probe) => Some(probe),
            Choice::Run | Choice::Refuse => None,
        }
    }
}

impl fmt::Debug for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Choice::Run => "Takeover::Run",
            Choice::Refuse => "Takeover::Refuse",
            Choice::Probe(_) => "Takeover::Probe(…)",
        })
    }
}
