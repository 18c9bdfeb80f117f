//! One try: a request that goes out, and its answer, read to its end where that can be repeated.

use std::{
    collections::VecDeque,
    error::Error,
    fmt,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{TryFutureExt, future::BoxFuture};
use http::{HeaderMap, Method, Request, Response, StatusCode, header, response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use super::{
    grpc,
    repeat::{BYTES_PER_FRAME, KeptBody, RepeatBody},
};
use crate::engine::within;

/// Why a try failed although the service inside gave no error.
#[derive(Debug)]
#[non_exhaustive]
pub enum TryError {
    /// There was no answer within [`try_timeout`](super::RetryLayer::try_timeout), or not all of it.
    /// The request may have taken effect.
    TimedOut,
    /// The answer broke off: its connection was lost, it was shorter than it said, or it is a gRPC
    /// answer without a status. The request may have taken effect.
    BrokenOff(Option<BoxError>),
}

impl fmt::Display for TryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TimedOut => "no whole answer in time",
            Self::BrokenOff(_) => "the answer broke off",
        })
    }
}

impl Error for TryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::BrokenOff(Some(error)) => Some(&**error),
            Self::TimedOut | Self::BrokenOff(None) => None,
        }
    }
}

/// How long a try may take, and how much of an answer is read ahead.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TryLimits {
    pub(crate) timeout: Duration,
    pub(crate) response: usize,
}

/// Stands between the retries and the service: makes a failed try of an answer that does not come,
/// or not whole.
#[derive(Clone, Debug)]
pub(crate) struct Try<S> {
    inner: S,
    limits: TryLimits,
}

impl<S> Try<S> {
    pub(crate) fn new(inner: S, limits: TryLimits) -> Self {
        Self { inner, limits }
    }
}

impl<S, B, R> Service<Request<RepeatBody<B>>> for Try<S>
where
    S: Service<Request<RepeatBody<B>>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<CollectedBody<R>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<RepeatBody<B>>) -> Self::Future {
        let limits = self.limits;
        let kept = request.body().kept();
        let method = request.method().clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            // One that outgrows its limit on the way is sent once, and takes the time that it takes.
            let again = || kept.as_ref().is_some_and(KeptBody::is_whole);
            let mut answer = pin!(answer.err_into::<BoxError>());
            let limited = match again() {
                true => within(limits.timeout, answer.as_mut()).await,
                false => None,
            };
            let response = match limited {
                Some(response) => response?,
                None if again() => return Err(TryError::TimedOut.into()),
                None => answer.await?,
            };
            match again() {
                true => collect(response, &method, limits).await,
                false => Ok(response.map(CollectedBody::untouched)),
            }
        })
    }
}

/// Whether an answer is read to its end before it is given on.
fn is_collected<R: Body>(parts: &response::Parts, body: &R, method: &Method, limit: usize) -> bool {
    let stated = body.size_hint();
    let kind = parts.headers.get(header::CONTENT_TYPE);
    let is_feed = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    !parts.status.is_informational()
        // It has no body, and may state the length of one.
        && *method != Method::HEAD
        && !body.is_end_stream()
        && !is_feed
        && stated.lower() <= limit as u64
        // Downloads and feeds are GETs.
        && (!method.is_safe() || stated.exact().is_some())
}

async fn collect<R>(
    response: Response<R>,
    method: &Method,
    limits: TryLimits,
) -> Result<Response<CollectedBody<R>>, BoxError>
where
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    let (mut parts, body) = response.into_parts();
    if !is_collected(&parts, &body, method, limits.response) {
        return Ok(Response::from_parts(parts, CollectedBody::untouched(body)));
    }
    let stated = body.size_hint();
    let mut body = Box::pin(body);
    let mut ahead = Ahead::default();
    let ended = within(limits.timeout, async {
        while !body.is_end_stream() {
            let Some(frame) = body.frame().await else {
                break;
            };
            let frame = frame.map_err(|error| TryError::BrokenOff(Some(error.into())))?;
            ahead.push(frame);
            if ahead.left > limits.response
                || ahead.frames.len() > limits.response / BYTES_PER_FRAME + 1
            {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await;
    let whole = match ended {
        Some(Ok(whole)) => whole,
        Some(Err(error)) => return Err(TryError::into(error)),
        // What says how long it is stopped on the way; what does not may be slow by nature.
        None if stated.exact().is_some() => return Err(TryError::TimedOut.into()),
        None => false,
    };
    if whole {
        // HTTP/2 lets a server, or a proxy, reset a stream "without error", which looks like an end.
        let grpc = grpc::is_grpc(&parts.headers);
        let no_status = grpc
            && parts.status == StatusCode::OK
            && !grpc::has_status(&parts.headers, ahead.trailers());
        if (ahead.left as u64) < stated.lower() || no_status {
            return Err(TryError::BrokenOff(None).into());
        }
        if let Some(trailers) = ahead.trailers().filter(|_| grpc) {
            // Where the policy can see it.
            let trailers = grpc::Trailers(trailers.clone());
            parts.extensions.insert(trailers);
        }
    }
    let body = CollectedBody::ahead(ahead, (!whole).then_some(body));
    Ok(Response::from_parts(parts, body))
}

/// Frames that were read before their time.
#[derive(Default)]
struct Ahead {
    frames: VecDeque<Frame<Bytes>>,
    /// Bytes of data in them.
    left: usize,
}

impl Ahead {
    fn push(&mut self, frame: Frame<Bytes>) {
        self.left += frame.data_ref().map_or(0, Bytes::len);
        self.frames.push_back(frame);
    }

    fn pop(&mut self) -> Option<Frame<Bytes>> {
        let frame = self.frames.pop_front()?;
        self.left -= frame.data_ref().map_or(0, Bytes::len);
        Some(frame)
    }

    fn trailers(&self) -> Option<&HeaderMap> {
        self.frames.back()?.trailers_ref()
    }
}

pin_project! {
    /// The body of the answers that [`Retry`](super::Retry) gives.
    ///
    /// It is in memory where the answer was read to its end first; the rest of one that was too
    /// long for that comes as the server sends it. Its error is that of the server's body.
    pub struct CollectedBody<R> {
        #[pin]
        kind: Kind<R>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<R> {
        Untouched { #[pin] body: R },
        // Without `rest`, it is whole.
        Ahead { ahead: Ahead, rest: Option<Pin<Box<R>>> },
    }
}

impl<R> CollectedBody<R> {
    fn untouched(body: R) -> Self {
        Self {
            kind: Kind::Untouched { body },
        }
    }

    fn ahead(ahead: Ahead, rest: Option<Pin<Box<R>>>) -> Self {
        Self {
            kind: Kind::Ahead { ahead, rest },
        }
    }
}

impl<R: Body<Data = Bytes>> Body for CollectedBody<R> {
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        match self.project().kind.project() {
            KindProj::Untouched { body } => body.poll_frame(cx),
            KindProj::Ahead { ahead, rest } => match (ahead.pop(), rest) {
                (Some(frame), _) => Poll::Ready(Some(Ok(frame))),
                (None, Some(rest)) => rest.as_mut().poll_frame(cx),
                (None, None) => Poll::Ready(None),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Untouched { body } => body.is_end_stream(),
            Kind::Ahead { ahead, rest } => {
                ahead.frames.is_empty() && rest.as_ref().is_none_or(|rest| rest.is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        let (ahead, rest) = match &self.kind {
            Kind::Untouched { body } => return body.size_hint(),
            Kind::Ahead { ahead, rest } => (ahead, rest),
        };
        let left = ahead.left as u64;
        let rest = match rest {
            Some(rest) => rest.size_hint(),
            // A length leaves no room for trailers over HTTP/1.1.
            None if ahead.trailers().is_some() => SizeHint::default(),
            None => SizeHint::with_exact(0),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(left));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(left)) {
            hint.set_upper(upper);
        }
        hint
    }
}

/// Without the contents (U19).
impl<R> fmt::Debug for CollectedBody<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CollectedBody").finish_non_exhaustive()
    }
}
