//! The [`ResponseFuture`]: the inner service's own, or one that outlives its caller.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use pin_project_lite::pin_project;

use super::body::ResponseBody;
use crate::engine::Attached;

pin_project! {
    /// The answer to come, of [`Idempotency`](crate::Idempotency).
    ///
    /// Dropped once its key is claimed, it moves to the runtime that it was made in, and is
    /// recorded there (P4).
    pub struct ResponseFuture<F, B, E> {
        #[pin]
        state: State<F, B, E>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, B, E> {
        Untouched { #[pin] call: F },
        Covered { work: Attached<Result<Response<ResponseBody<B>>, E>> },
    }
}

impl<F, B, E> ResponseFuture<F, B, E> {
    pub(super) fn untouched(call: F) -> Self {
        Self {
            state: State::Untouched { call },
        }
    }

    pub(super) fn covered(work: Attached<Result<Response<ResponseBody<B>>, E>>) -> Self {
        Self {
            state: State::Covered { work },
        }
    }
}

impl<F, B, E> Future for ResponseFuture<F, B, E>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Untouched { call } => {
                let response = ready!(call.poll(cx))?;
                Poll::Ready(Ok(response.map(ResponseBody::untouched)))
            }
            StateProjection::Covered { work } => Pin::new(work).poll(cx),
        }
    }
}

impl<F, B, E> fmt::Debug for ResponseFuture<F, B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
