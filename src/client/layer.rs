//! The [`RetryLayer`]: bodies that can be sent again, the policy, and whole answers, in the order in
//! which they work.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::Body;
use tokio::time::{Sleep, sleep};
use tower::{BoxError, Service, retry::Policy};
use tower_layer::Layer;

use super::{
    collect::{CollectedBody, Try, TryLimits},
    repeat::RepeatBody,
    retry::RetryPolicy,
};

/// Tries requests again until their answer is there, as a [`RetryPolicy`] says. See the
/// [module's documentation](super) for an example.
///
/// Around [`tower::retry`] it does what a policy cannot:
///
/// - **Any body can be sent again**, not only one that is `Clone`: what was sent of it is kept, up to
///   [`request_limit`](Self::request_limit), while it is sent. A larger one is sent once, and its
///   answer or error is the last.
/// - **An answer counts when it is whole.** One that breaks off in its body, or does not come within
///   [`try_timeout`](Self::try_timeout), is a [failed try](super::TryError), and is tried again as one
///   that never began.
///
/// So answers are read to their end before they are given on, those to requests that may be sent
/// again: up to [`response_limit`](Self::response_limit), of safe methods (GET, HEAD, …) only where
/// they state their length, since downloads and feeds are GETs, and no `text/event-stream`. What is
/// larger, or states no length and has not ended in time, is given on as it comes. Requests that
/// are sent once, such as a POST without a key or with a larger body, pass through, in both
/// directions, and no time is set for them.
///
/// The service inside is asked with [`RepeatBody`] and has to be `Clone`, as connection pools are; the
/// answer has a [`CollectedBody`]. Errors are boxed: the service's own, or a
/// [`TryError`](super::TryError).
///
/// # Cancellation
///
/// A caller who leaves ends the try that runs, or the wait for the next one. What was sent may
/// take effect.
#[derive(Clone, Debug)]
#[must_use]
pub struct RetryLayer {
    policy: RetryPolicy,
    request_limit: usize,
    tries: TryLimits,
}

impl RetryLayer {
    /// Tries again as `policy` says.
    pub fn new(policy: RetryPolicy) -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            policy,
            request_limit: MIB,
            tries: TryLimits {
                timeout: Duration::from_secs(30),
                response: MIB,
            },
        }
    }

    /// How many bytes of a request's body are kept to be sent again: 1 MiB by default, for each
    /// request under way. A frame of a body is kept for each 256 of them.
    pub fn request_limit(mut self, bytes: usize) -> Self {
        self.request_limit = bytes;
        self
    }

    /// How many bytes of an answer are read before it is given on: 1 MiB by default, and a frame
    /// for each 256 of them. A longer answer that breaks off later is its caller's to notice.
    pub fn response_limit(mut self, bytes: usize) -> Self {
        self.tries.response = bytes;
        self
    }

    /// How long to wait for the head of an answer, and then again for its end: 30 seconds by
    /// default. It should be longer than the work takes: a try that comes while an earlier one runs
    /// is told to wait, and an operation that is nothing but waiting ends with its
    /// [`time`](RetryPolicy::time).
    pub fn try_timeout(mut self, timeout: Duration) -> Self {
        self.tries.timeout = timeout;
        self
    }
}

impl Default for RetryLayer {
    fn default() -> Self {
        Self::new(RetryPolicy::new())
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        let policy = Repeated(self.policy.clone());
        Retry {
            inner: tower::retry::Retry::new(policy, Try::new(inner, self.tries)),
            request_limit: self.request_limit,
        }
    }
}

/// What [`RetryLayer`] makes of a service.
#[derive(Clone, Debug)]
pub struct Retry<S> {
    inner: tower::retry::Retry<Repeated, Try<S>>,
    request_limit: usize,
}

impl<S, B, R> Service<Request<B>> for Retry<S>
where
    S: Service<Request<RepeatBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<CollectedBody<R>>;
    type Error = BoxError;
    type Future = RetryFuture<R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Service::<Request<RepeatBody<B>>>::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, request: Request<B>) -> RetryFuture<R> {
        let request = request.map(|body| RepeatBody::new(body, self.request_limit));
        RetryFuture(Box::pin(self.inner.call(request)))
    }
}

/// The policy, over bodies that can be sent again as long as all of them is kept.
#[derive(Clone, Debug)]
struct Repeated(RetryPolicy);

impl<B, R> Policy<Request<RepeatBody<B>>, Response<R>, BoxError> for Repeated {
    type Future = Sleep;

    fn retry(
        &mut self,
        request: &mut Request<RepeatBody<B>>,
        result: &mut Result<Response<R>, BoxError>,
    ) -> Option<Sleep> {
        if !request.body().is_whole() {
            return None;
        }
        let delay = self.0.next(result)?;
        // At once: what still sends the body could outgrow the limit during the wait.
        request.body().take_over().then(|| sleep(delay))
    }

    fn clone_request(
        &mut self,
        request: &Request<RepeatBody<B>>,
    ) -> Option<Request<RepeatBody<B>>> {
        let may = self.0.begin(request.method(), request.headers()) && request.body().is_whole();
        let mut again = may.then(|| Request::new(request.body().again()))?;
        *again.method_mut() = request.method().clone();
        *again.uri_mut() = request.uri().clone();
        *again.version_mut() = request.version();
        *again.headers_mut() = request.headers().clone();
        *again.extensions_mut() = request.extensions().clone();
        Some(again)
    }
}

/// The answer to come: see [`RetryLayer`].
#[must_use = "futures do nothing unless polled"]
pub struct RetryFuture<R>(BoxFuture<'static, Result<Response<CollectedBody<R>>, BoxError>>);

impl<R> Future for RetryFuture<R> {
    type Output = Result<Response<CollectedBody<R>>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<R> fmt::Debug for RetryFuture<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryFuture").finish_non_exhaustive()
    }
}
