//! The [`Idempotency`] service: which requests it covers, and what it calls.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::Service;

use super::{
    body::{RequestBody, ResponseBody},
    config::{Config, Form},
    covered::{Covered, Inner},
    extract::InHead,
    future::ResponseFuture,
};
use crate::engine::{Attached, Stage};

/// Runs an operation named by a key once, and gives everyone who asks again the same answer.
///
/// Made by [`IdempotencyLayer`](crate::IdempotencyLayer), whose docs say what it does. Clones
/// share the store and the limits.
#[derive(Clone)]
#[must_use]
pub struct Idempotency<Svc> {
    inner: Svc,
    config: Arc<Config>,
}

impl<Svc> Idempotency<Svc> {
    pub(super) fn new(inner: Svc, config: Arc<Config>) -> Self {
        Self { inner, config }
    }

    /// The wrapped service.
    pub fn get_ref(&self) -> &Svc {
        &self.inner
    }

    /// The wrapped service.
    pub fn get_mut(&mut self) -> &mut Svc {
        &mut self.inner
    }

    /// The wrapped service.
    pub fn into_inner(self) -> Svc {
        self.inner
    }
}

impl<Svc: fmt::Debug> fmt::Debug for Idempotency<Svc> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<Svc, ReqBody, ResBody> Service<Request<ReqBody>> for Idempotency<Svc>
where
    Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>
        + Clone
        + Send
        + 'static,
    Svc::Future: Send,
    Svc::Error: Send + 'static,
    ReqBody: Body<Data = Bytes> + Send + 'static,
    ReqBody::Error: Send + 'static,
    ResBody: Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Send + 'static,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = Svc::Error;
    type Future = ResponseFuture<Svc::Future, ResBody, Svc::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    /// # Panics
    ///
    /// For a covered request, outside a tokio runtime or in one without timers.
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let config = &self.config;
        // Before the head is taken apart, which costs more than to look at it.
        if config.passes(&request) {
            return self.untouched(request);
        }
        let (parts, body) = request.into_parts();
        let key = match config.covers(&parts) {
            true => config.key.in_head(&parts),
            false => return self.untouched(Request::from_parts(parts, body)),
        };
        if matches!(key, InHead::Nothing) && !config.key.needs_body() && !config.key_required {
            return self.untouched(Request::from_parts(parts, body));
        }
        let stage = Arc::new(Stage::default());
        // The service that was asked for its readiness is the one to be called.
        let next = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, next);
        let (counts, limit) = (config.engine.work(), config.engine.options().max_detached);
        let covered = Covered {
            config: Arc::clone(config),
            stage: Arc::clone(&stage),
            inner: Inner::ready(ready),
            form: Form::of(&parts.headers),
            head: parts,
        };
        let work = Box::pin(covered.answer(body, key));
        ResponseFuture::covered(Attached::new(work, stage, counts, limit))
    }
}

impl<Svc> Idempotency<Svc> {
    fn untouched<ReqBody, ResBody>(
        &mut self,
        request: Request<ReqBody>,
    ) -> ResponseFuture<Svc::Future, ResBody, Svc::Error>
    where
        Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
    {
        ResponseFuture::untouched(self.inner.call(request.map(RequestBody::streaming)))
    }
}
