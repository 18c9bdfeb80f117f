//! The bodies on both sides of the handler: [`RequestBody`], which it reads, and
//! [`ResponseBody`], which the caller of the layer gets.
//!
//! A request that the layer does not cover keeps its own body inside [`RequestBody`], and its
//! answer keeps its own inside [`ResponseBody`]: both forward every call and add nothing. A covered
//! request is read to its end first, within the limits of size and time, and handed on from memory
//! with its trailers; so is an answer, unless it is too large or too slow, and then what came so
//! far goes out and the rest follows as it comes.
//!
//! Frames are kept as they arrive and never joined, except short ones, which are copied together so
//! that a body costs about its bytes, in whatever pieces it comes (P9). The bytes of all bodies in
//! memory are counted together (U36).

use std::{
    any::Any,
    error::Error,
    fmt,
    future::Future,
    iter::successors,
    ops::Deref,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, LengthLimitError};
use pin_project_lite::pin_project;
use tower::BoxError;

use crate::engine::{Gauge, Permit, within};

/// A frame shorter than this is copied to join others.
///
/// A frame keeps all of the buffer that the server read it in, and hyper reads at least 8 KiB at a
/// time: kept as they are, the packets of a slow client would take several times what is counted.
/// From here on a frame fills at least half of its buffer.
const SHORT: usize = 8 * 1024;

/// So many bytes of short frames are joined before the next buffer is begun.
const JOINED: usize = 2 * SHORT;

/// The data frames of a body, none of them empty. A slice of [`Bytes`].
///
/// Most bodies are one frame, and then there is no list to allocate.
#[derive(Clone, Default)]
pub(crate) enum Frames {
    #[default]
    None,
    One(Bytes),
    /// From `next` on; those before it have left.
    Many {
        list: Vec<Bytes>,
        next: usize,
    },
}

impl Frames {
    fn push(&mut self, frame: Bytes) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(frame),
            Self::One(first) => Self::Many {
                list: vec![first, frame],
                next: 0,
            },
            Self::Many { mut list, next } => {
                list.push(frame);
                Self::Many { list, next }
            }
        };
    }

    fn pop_last(&mut self) -> Option<Bytes> {
        match self {
            Self::None => None,
            Self::One(frame) => {
                let frame = std::mem::take(frame);
                *self = Self::None;
                Some(frame)
            }
            Self::Many { list, .. } => list.pop(),
        }
    }

    fn pop_first(&mut self) -> Option<Bytes> {
        match self {
            Self::None => None,
            Self::One(frame) => {
                let frame = std::mem::take(frame);
                *self = Self::None;
                Some(frame)
            }
            Self::Many { list, next } => {
                let frame = std::mem::take(list.get_mut(*next)?);
                *next += 1;
                Some(frame)
            }
        }
    }

    fn bytes(&self) -> usize {
        self.iter().map(Bytes::len).sum()
    }
}

impl Deref for Frames {
    type Target = [Bytes];

    fn deref(&self) -> &[Bytes] {
        match self {
            Self::None => &[],
            Self::One(frame) => std::slice::from_ref(frame),
            Self::Many { list, next } => &list[*next..],
        }
    }
}

impl From<Bytes> for Frames {
    fn from(frame: Bytes) -> Self {
        match frame.is_empty() {
            true => Self::None,
            false => Self::One(frame),
        }
    }
}

/// Collects frames, and joins short ones.
#[derive(Default)]
struct Gather {
    frames: Frames,
    tail: Vec<u8>,
    len: usize,
}

impl Gather {
    fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.len += data.len();
        if data.len() >= SHORT {
            self.end_tail();
            return self.frames.push(data);
        }
        if self.tail.is_empty() {
            match self.frames.last() {
                // Most bodies are one frame.
                None => return self.frames.push(data),
                Some(first) if first.len() < SHORT => {
                    let first = self.frames.pop_last().unwrap_or_default();
                    self.tail.reserve(first.len() + data.len());
                    self.tail.extend_from_slice(&first);
                }
                Some(_) => {}
            }
        }
        if self.tail.len() + data.len() > JOINED {
            self.end_tail();
        }
        self.tail.extend_from_slice(&data);
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            // Without spare capacity, so that what is counted is what is held.
            let joined = std::mem::take(&mut self.tail).into_boxed_slice();
            self.frames.push(joined.into());
        }
    }

    fn finish(mut self) -> Frames {
        self.end_tail();
        self.frames
    }
}

/// Frames on their way out, and the share of the gauge that shrinks as they leave.
#[derive(Default)]
struct Outgoing {
    frames: Frames,
    len: usize,
    permit: Option<Permit>,
}

impl Outgoing {
    fn new(frames: Frames, permit: Option<Permit>) -> Self {
        Self {
            len: frames.bytes(),
            frames,
            permit,
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        let frame = self.frames.pop_first();
        match &frame {
            Some(frame) => {
                self.len -= frame.len();
                if let Some(permit) = &mut self.permit {
                    permit.sub(frame.len());
                }
            }
            None => self.permit = None,
        }
        frame
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A request's body in memory.
#[derive(Default)]
pub(crate) struct BufferedBody {
    data: Outgoing,
    trailers: Trailers,
}

/// Boxed, since they are rare and large, and bodies are moved about.
pub(crate) type Trailers = Option<Box<HeaderMap>>;

impl BufferedBody {
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.data.len
    }

    /// All data in one buffer.
    ///
    /// Several frames are joined, and the joined buffer takes their place, so that the memory is
    /// not held twice.
    pub(crate) fn contiguous(&mut self) -> Bytes {
        if self.data.frames.len() > 1 {
            let mut joined = Vec::with_capacity(self.data.len);
            while let Some(frame) = self.data.frames.pop_first() {
                joined.extend_from_slice(&frame);
            }
            self.data.frames = Frames::One(joined.into());
        }
        self.data.frames.first().cloned().unwrap_or_default()
    }

    fn next_frame(&mut self) -> Option<Frame<Bytes>> {
        match self.data.pop() {
            Some(data) => Some(Frame::data(data)),
            None => self.trailers.take().map(|map| Frame::trailers(*map)),
        }
    }

    fn size_hint(&self) -> SizeHint {
        size_hint(self.data.len, self.trailers.is_none())
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none()
    }
}

fn size_hint(left: usize, exact: bool) -> SizeHint {
    let mut hint = SizeHint::new();
    hint.set_lower(left as u64);
    if exact {
        hint.set_exact(left as u64);
    }
    hint
}

/// How much of a request's body is read, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadLimits {
    /// Bytes of this body. So many still pass.
    pub(crate) max: usize,
    /// From the first wait for a part of it to its end.
    pub(crate) timeout: Duration,
    /// Bytes of all bodies in memory.
    pub(crate) total: usize,
}

/// Why a request's body could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadError {
    /// It is over [`ReadLimits::max`], or over the limit of a layer further out.
    TooLarge,
    /// It did not end in time.
    TooSlow,
    /// It broke off, or ended before its stated length.
    Broken,
    /// With it, all bodies would be over [`ReadLimits::total`].
    Overloaded,
}

impl ReadError {
    /// A limit further out ends a body that passes it with an error, and leaves it to whoever reads
    /// the body to tell that from one that broke off.
    fn from_body<E: 'static>(error: E) -> Self {
        let error: &dyn Any = &error;
        let known: Option<&(dyn Error + 'static)> =
            error.downcast_ref::<BoxError>().map(|error| &**error as _);
        #[cfg(feature = "axum")]
        let known = known.or_else(|| Some(error.downcast_ref::<axum::Error>()? as _));
        // Of a service that a tonic server routes to.
        #[cfg(feature = "grpc")]
        let known = known.or_else(|| Some(error.downcast_ref::<tonic::Status>()? as _));
        let mut causes = successors(known, |error| (**error).source());
        match causes.any(|error| error.is::<LengthLimitError>()) {
            true => Self::TooLarge,
            false => Self::Broken,
        }
    }
}

/// Reads `body` to its end, and shows every piece to `on_data` on the way.
///
/// A body that states a greater length than `limits.max` is refused before it is polled at all, so
/// that a client that asked with `Expect: 100-continue` is not told to send it. The body is
/// borrowed, so that after an error the caller can [`discard`] what is left of it.
///
/// Bytes are counted as they arrive and not by the stated length: a client that states a length
/// and sends nothing takes no room from others.
#[expect(clippy::manual_async_fn, reason = "smaller: see `Covered`")]
pub(crate) fn read<B>(
    mut body: Pin<&mut B>,
    limits: &ReadLimits,
    gauge: &Arc<Gauge>,
    mut on_data: impl FnMut(&[u8]),
) -> impl Future<Output = Result<BufferedBody, ReadError>>
where
    B: Body<Data = Bytes>,
    B::Error: 'static,
{
    async move {
        let stated = body.size_hint();
        if stated.lower() > limits.max as u64 {
            return Err(ReadError::TooLarge);
        }
        let mut gather = Gather::default();
        let mut permit = Permit::new(gauge);
        let mut trailers = None;
        within(limits.timeout, async {
            while trailers.is_none() && !body.is_end_stream() {
                let Some(frame) = body.frame().await else {
                    break;
                };
                match frame.map_err(ReadError::from_body)?.into_data() {
                    Ok(data) => {
                        if data.len() > limits.max - gather.len {
                            return Err(ReadError::TooLarge);
                        }
                        if !permit.try_add(data.len(), limits.total) {
                            return Err(ReadError::Overloaded);
                        }
                        on_data(&data);
                        gather.push(data);
                    }
                    Err(frame) => trailers = frame.into_trailers().ok().map(Box::new),
                }
            }
            // HTTP/2 lets a client reset a stream "without error", and hyper then reports an end,
            // as if the body were whole (U17). A stated length shows it. Without one, the server
            // knows of the reset, and drops this future when it is pending: so it is, once, unless
            // the end is sure.
            if (gather.len as u64) < stated.lower() {
                return Err(ReadError::Broken);
            }
            if stated.exact().is_none() && trailers.is_none() && !body.is_end_stream() {
                tokio::task::yield_now().await;
            }
            Ok(())
        })
        .await
        .unwrap_or(Err(ReadError::TooSlow))?;
        Ok(BufferedBody {
            data: Outgoing::new(gather.finish(), Some(permit)),
            trailers,
        })
    }
}

/// Reads what is left of `body` and drops it, up to `max` more bytes and for at most `timeout`.
/// Says whether it came to the end.
///
/// A server that answers before the body has ended must otherwise close the connection, and a
/// client that is still sending may then see a reset instead of the answer. Nothing is read if the
/// rest is known to be longer than `max`. Not for a client that waits for `100 Continue`: reading
/// would tell it to send.
pub(crate) async fn discard<B>(mut body: Pin<&mut B>, max: usize, timeout: Duration) -> bool
where
    B: Body<Data = Bytes>,
{
    let mut left = max as u64;
    let ended = within(timeout, async {
        while !body.is_end_stream() {
            if body.size_hint().lower() > left {
                return false;
            }
            let frame = match body.frame().await {
                None => break,
                Some(Err(_)) => return false,
                Some(Ok(frame)) => frame,
            };
            let len = frame.data_ref().map_or(0, Bytes::len) as u64;
            match left.checked_sub(len) {
                Some(rest) => left = rest,
                None => return false,
            }
        }
        true
    });
    ended.await.unwrap_or(false)
}

/// What became of an attempt to read an answer's body to its end.
pub(crate) enum Collected<B: Body> {
    /// It ended.
    Whole {
        frames: Frames,
        trailers: Trailers,
        permit: Permit,
    },
    /// It is over the size, or did not end in time: `rest` has what comes after `frames`.
    Partial {
        frames: Frames,
        rest: Pin<Box<B>>,
        permit: Permit,
    },
    /// It broke off after `frames`.
    Broken {
        frames: Frames,
        error: B::Error,
        permit: Permit,
    },
}

/// Reads `body` to its end, unless it is longer than `max` or takes longer than `timeout`.
///
/// The gauge counts but never refuses here: answers in memory cause new requests to be refused,
/// and no answer is given up for them. A panic of the body passes through.
#[expect(clippy::manual_async_fn, reason = "smaller: see `Covered`")]
pub(crate) fn collect<B>(
    body: B,
    max: usize,
    timeout: Duration,
    gauge: &Arc<Gauge>,
) -> impl Future<Output = Collected<B>>
where
    B: Body<Data = Bytes>,
{
    async move {
        let mut permit = Permit::new(gauge);
        if body.is_end_stream() {
            return Collected::Whole {
                frames: Frames::None,
                trailers: None,
                permit,
            };
        }
        // It may have to be handed on half read, and a body cannot be moved once it was polled.
        let mut body = Box::pin(body);
        if body.size_hint().lower() > max as u64 {
            return Collected::Partial {
                frames: Frames::None,
                rest: body,
                permit,
            };
        }
        let mut gather = Gather::default();
        let mut trailers = None;
        let ended = within(timeout, async {
            while trailers.is_none() && !body.is_end_stream() {
                match body.frame().await {
                    None => break,
                    Some(Err(error)) => return Err(Some(error)),
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => {
                            permit.add(data.len());
                            gather.push(data);
                            if gather.len > max {
                                return Err(None);
                            }
                        }
                        Err(frame) => trailers = frame.into_trailers().ok().map(Box::new),
                    },
                }
            }
            Ok(())
        })
        .await;
        let frames = gather.finish();
        match ended {
            Some(Ok(())) => Collected::Whole {
                frames,
                trailers,
                permit,
            },
            Some(Err(Some(error))) => Collected::Broken {
                frames,
                error,
                permit,
            },
            Some(Err(None)) | None => Collected::Partial {
                frames,
                rest: body,
                permit,
            },
        }
    }
}

pin_project! {
    /// The body of the request that the inner service gets.
    ///
    /// It is the original body where the layer does not cover the request, and otherwise what was
    /// read of it, trailers included. Its error is the original body's; a body in memory gives
    /// none.
    pub struct RequestBody<B> {
        #[pin]
        kind: RequestKind<B>,
    }
}

pin_project! {
    #[project = RequestKindProj]
    enum RequestKind<B> {
        Streaming { #[pin] body: B },
        Buffered { body: BufferedBody },
    }
}

impl<B> RequestBody<B> {
    pub(crate) fn streaming(body: B) -> Self {
        Self {
            kind: RequestKind::Streaming { body },
        }
    }

    pub(crate) fn buffered(body: BufferedBody) -> Self {
        Self {
            kind: RequestKind::Buffered { body },
        }
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().kind.project() {
            RequestKindProj::Streaming { body } => body.poll_frame(cx),
            RequestKindProj::Buffered { body } => Poll::Ready(body.next_frame().map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            RequestKind::Streaming { body } => body.is_end_stream(),
            RequestKind::Buffered { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            RequestKind::Streaming { body } => body.size_hint(),
            RequestKind::Buffered { body } => body.size_hint(),
        }
    }
}

/// Without the contents (U19).
impl<B> fmt::Debug for RequestBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody")
            .field(
                "buffered",
                &matches!(self.kind, RequestKind::Buffered { .. }),
            )
            .finish_non_exhaustive()
    }
}

pin_project! {
    /// The body of the response that the layer's caller gets.
    ///
    /// It is the inner service's own body, that body read ahead, a recorded one, or that of a
    /// refusal. Its error is the inner body's; the layer adds none. `Default` is an empty body.
    pub struct ResponseBody<B> {
        #[pin]
        kind: ResponseKind<B>,
    }
}

pin_project! {
    #[project = ResponseKindProj]
    enum ResponseKind<B> {
        Untouched { #[pin] body: B },
        Buffered { data: Outgoing, trailers: Trailers, exact: bool },
        PassedOn { data: Outgoing, rest: Pin<Box<B>> },
        // A struct that named `B::Error` would need the bound `B: Body`, and so would every struct
        // that holds one. `broken` puts a `B::Error` here, so nothing else comes out. The mutex is
        // never locked: with it, a body is `Sync` if `B` is, whatever its error.
        Broken { data: Outgoing, error: Option<Mutex<Box<dyn Any + Send>>> },
    }
}

impl<B> ResponseBody<B> {
    /// No data and no trailers.
    pub(crate) fn empty() -> Self {
        Self::full(Bytes::new())
    }

    /// One piece of data, whose length is stated.
    pub(crate) fn full(data: Bytes) -> Self {
        Self::buffered(data, None, true, None)
    }

    /// Frames and trailers from memory.
    ///
    /// The length is stated only if it is `exact` and there are no trailers. hyper turns a stated
    /// length into `Content-Length`, which an answer to HEAD, a 204 or a 304 must not gain where
    /// the original had none (U22); and HTTP/1.1 has no room for trailers after a body of stated
    /// length (U07).
    pub(crate) fn buffered(
        frames: impl Into<Frames>,
        trailers: Trailers,
        exact: bool,
        permit: Option<Permit>,
    ) -> Self {
        Self {
            kind: ResponseKind::Buffered {
                data: Outgoing::new(frames.into(), permit),
                exact: exact && trailers.is_none(),
                trailers,
            },
        }
    }

    /// What was read ahead, then the rest as it comes.
    pub(crate) fn passed_on(frames: Frames, rest: Pin<Box<B>>, permit: Permit) -> Self {
        Self {
            kind: ResponseKind::PassedOn {
                data: Outgoing::new(frames, Some(permit)),
                rest,
            },
        }
    }

    /// What was read ahead, then the error that ended it.
    pub(crate) fn broken(frames: Frames, error: B::Error, permit: Permit) -> Self
    where
        B: Body,
        B::Error: Send + 'static,
    {
        Self {
            kind: ResponseKind::Broken {
                data: Outgoing::new(frames, Some(permit)),
                error: Some(Mutex::new(Box::new(error))),
            },
        }
    }

    /// The inner service's body as it is.
    pub(crate) fn untouched(body: B) -> Self {
        Self {
            kind: ResponseKind::Untouched { body },
        }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: 'static,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let next = match self.project().kind.project() {
            ResponseKindProj::Untouched { body } => return body.poll_frame(cx),
            ResponseKindProj::Buffered {
                data,
                trailers,
                exact,
            } => {
                let next = match data.pop() {
                    Some(data) => Some(Ok(Frame::data(data))),
                    None => trailers
                        .take()
                        .map(|trailers| Ok(Frame::trailers(*trailers))),
                };
                // That nothing more comes may be said once it was asked for.
                *exact |= data.is_empty() && trailers.is_none();
                next
            }
            ResponseKindProj::PassedOn { data, rest } => match data.pop() {
                Some(data) => Some(Ok(Frame::data(data))),
                None => return rest.as_mut().poll_frame(cx),
            },
            ResponseKindProj::Broken { data, error } => match data.pop() {
                Some(data) => Some(Ok(Frame::data(data))),
                None => error
                    .take()
                    .and_then(|error| error.into_inner().ok()?.downcast().ok())
                    .map(|error| Err(*error)),
            },
        };
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            ResponseKind::Untouched { body } => body.is_end_stream(),
            // The end of a body whose length is not stated shows only when it is reached: hyper
            // takes an ended body for one of length zero.
            ResponseKind::Buffered { data, exact, .. } => data.is_empty() && *exact,
            ResponseKind::PassedOn { data, rest } => data.is_empty() && rest.is_end_stream(),
            ResponseKind::Broken { data, error } => data.is_empty() && error.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            ResponseKind::Untouched { body } => body.size_hint(),
            ResponseKind::Buffered { data, exact, .. } => size_hint(data.len, *exact),
            ResponseKind::PassedOn { data, rest } => {
                let (ahead, rest) = (data.len as u64, rest.size_hint());
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(ahead));
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper.saturating_add(ahead));
                }
                hint
            }
            ResponseKind::Broken { data, error } => size_hint(data.len, error.is_none()),
        }
    }
}

impl<B> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::empty()
    }
}

/// Without the contents (U19).
impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            ResponseKind::Untouched { .. } => "untouched",
            ResponseKind::Buffered { .. } => "buffered",
            ResponseKind::PassedOn { .. } => "passed on",
            ResponseKind::Broken { .. } => "broken",
        };
        f.debug_struct("ResponseBody")
            .field("kind", &kind)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, convert::Infallible, marker::PhantomPinned};

    use http::HeaderValue;
    use proptest::prelude::*;

    use std::pin::pin;

    use super::*;

    enum Step {
        Data(Bytes),
        Trailers,
        Pause(Pin<Box<tokio::time::Sleep>>),
        Fail,
        Panic,
    }

    pin_project! {
        /// Plays its steps. `stated` is the length that it claims, if it claims one; it knows its
        /// end in advance only then. Not `Unpin`.
        struct Script {
            steps: VecDeque<Step>,
            stated: Option<u64>,
            polls: usize,
            #[pin]
            pinned: PhantomPinned,
        }
    }

    impl Script {
        fn new(steps: impl IntoIterator<Item = Step>) -> Self {
            Self {
                steps: steps.into_iter().collect(),
                stated: None,
                polls: 0,
                pinned: PhantomPinned,
            }
        }

        fn of(frames: &[&'static str]) -> Self {
            Self::new(frames.iter().map(|frame| data(frame)))
        }

        fn stating(mut self, length: u64) -> Self {
            self.stated = Some(length);
            self
        }
    }

    impl Body for Script {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            let this = self.project();
            *this.polls += 1;
            if let Some(Step::Pause(until)) = this.steps.front_mut() {
                std::task::ready!(until.as_mut().poll(cx));
                this.steps.pop_front();
            }
            Poll::Ready(match this.steps.pop_front() {
                None | Some(Step::Pause(_)) => None,
                Some(Step::Data(data)) => {
                    if let Some(stated) = this.stated {
                        *stated = stated.saturating_sub(data.len() as u64);
                    }
                    Some(Ok(Frame::data(data)))
                }
                Some(Step::Trailers) => Some(Ok(Frame::trailers(trailers()))),
                Some(Step::Fail) => Some(Err("it broke")),
                Some(Step::Panic) => panic!("the body panics"),
            })
        }

        fn is_end_stream(&self) -> bool {
            self.stated == Some(0)
        }

        fn size_hint(&self) -> SizeHint {
            self.stated.map(SizeHint::with_exact).unwrap_or_default()
        }
    }

    fn data(text: &'static str) -> Step {
        Step::Data(Bytes::from_static(text.as_bytes()))
    }

    /// Longer than any timeout here.
    fn pause() -> Step {
        Step::Pause(Box::pin(tokio::time::sleep(3 * SECOND)))
    }

    fn trailers() -> HeaderMap {
        HeaderMap::from_iter([(
            http::HeaderName::from_static("x-sum"),
            HeaderValue::from_static("7"),
        )])
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn limits(max: usize) -> ReadLimits {
        ReadLimits {
            max,
            timeout: SECOND,
            total: usize::MAX,
        }
    }

    async fn read_all(body: Script, max: usize) -> Result<BufferedBody, ReadError> {
        read(
            pin!(body),
            &limits(max),
            &Arc::new(Gauge::default()),
            |_: &[u8]| {},
        )
        .await
    }

    /// What a body yields, its hints checked at every step as hyper relies on them.
    async fn drain<B>(body: B) -> (Vec<Bytes>, Option<HeaderMap>, Option<B::Error>)
    where
        B: Body<Data = Bytes>,
    {
        let mut body = pin!(body);
        let mut frames: Vec<Bytes> = Vec::new();
        let mut trailers = None;
        let mut hints = Vec::new();
        let error = loop {
            hints.push((frames.iter().map(Bytes::len).sum::<usize>(), {
                let hint = body.size_hint();
                (hint.lower(), hint.upper())
            }));
            let ended = body.is_end_stream();
            match body.frame().await {
                None => break None,
                Some(Err(error)) => break Some(error),
                Some(Ok(_)) if ended => panic!("a frame after the end"),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => frames.push(data),
                    Err(frame) => trailers = frame.into_trailers().ok(),
                },
            }
        };
        let total = frames.iter().map(Bytes::len).sum::<usize>();
        for (at, (lower, upper)) in hints {
            let left = (total - at) as u64;
            assert!(lower <= left, "at least {lower}, but {left} came");
            assert!(upper.is_none_or(|upper| left <= upper));
        }
        (frames, trailers, error)
    }

    #[tokio::test]
    async fn a_body_is_kept_frame_by_frame_with_its_trailers() {
        let body = Script::new([data("ab"), data(""), Step::Trailers, Step::Panic]);
        let gauge = Arc::new(Gauge::default());
        let mut seen = Vec::new();
        let read = read(pin!(body), &limits(10), &gauge, |piece: &[u8]| {
            seen.extend_from_slice(piece);
        })
        .await
        .unwrap();
        assert_eq!(
            (seen.as_slice(), read.len(), gauge.used()),
            (&b"ab"[..], 2, 2)
        );

        let body = RequestBody::<Script>::buffered(read);
        assert_eq!(
            (body.size_hint().lower(), body.size_hint().upper()),
            (2, None)
        );
        assert!(!body.is_end_stream());
        let (frames, sent, error) = drain(body).await;
        assert_eq!((frames.concat(), error), (b"ab".to_vec(), None));
        assert_eq!(sent, Some(trailers()));
        assert_eq!(gauge.used(), 0);
    }

    #[tokio::test]
    async fn without_trailers_the_length_is_exact_and_the_end_known() {
        let body = read_all(Script::of(&["abc"]), 3).await.unwrap();
        let mut body = pin!(RequestBody::<Script>::buffered(body));
        assert_eq!(body.size_hint().exact(), Some(3));
        assert!(!body.is_end_stream());
        body.frame().await.unwrap().unwrap();
        assert!(body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(0));

        let empty = RequestBody::<Script>::buffered(read_all(Script::of(&[]), 3).await.unwrap());
        assert!(empty.is_end_stream());
        assert_eq!(empty.size_hint().exact(), Some(0));
    }

    /// P10: a streaming body forwards all that it is asked.
    #[tokio::test]
    async fn p10_streaming_and_untouched_forward_everything() {
        let script = || Script::new([data("a"), data("b")]).stating(2);
        let body = RequestBody::streaming(script());
        assert_eq!(body.size_hint().exact(), Some(2));
        assert_eq!(drain(body).await.0, ["a", "b"]);
        let body = ResponseBody::untouched(script());
        assert_eq!(body.size_hint().exact(), Some(2));
        assert_eq!(drain(body).await.0, ["a", "b"]);
        assert!(RequestBody::streaming(Script::of(&[]).stating(0)).is_end_stream());
        assert!(ResponseBody::untouched(Script::of(&[]).stating(0)).is_end_stream());
        assert_eq!(
            drain(ResponseBody::untouched(Script::new([Step::Fail])))
                .await
                .2,
            Some("it broke")
        );
    }

    /// U16: exactly the limit passes and one byte more is too large, whether or not the length is
    /// known in advance.
    #[tokio::test]
    async fn u16_exactly_the_limit_passes() {
        for stated in [false, true] {
            let body = |frames: &[&'static str]| {
                let body = Script::of(frames);
                let length = frames.concat().len() as u64;
                if stated { body.stating(length) } else { body }
            };
            assert!(read_all(body(&["abc", "d"]), 4).await.is_ok());
            assert!(read_all(body(&[]), 0).await.is_ok());
            for frames in [&["abc", "de"][..], &["abcde"], &["abcd", "e"]] {
                let error = read_all(body(frames), 4).await.err();
                assert_eq!(error, Some(ReadError::TooLarge), "{frames:?}");
            }
        }
    }

    /// U16: a stated length over the limit is refused without a poll (and so without a
    /// `100 Continue`).
    #[tokio::test]
    async fn u16_a_stated_length_over_the_limit_is_refused_unread() {
        let mut body = pin!(Script::of(&["abcde"]).stating(5));
        let gauge = Arc::new(Gauge::default());
        let error = read(body.as_mut(), &limits(4), &gauge, |_: &[u8]| {})
            .await
            .err();
        assert_eq!((error, body.polls), (Some(ReadError::TooLarge), 0));
    }

    /// U17: a body that breaks off is an error, also where it only ends before its stated length.
    #[tokio::test]
    async fn u17_a_body_that_breaks_off_is_an_error() {
        for body in [
            Script::new([data("a"), Step::Fail]),
            Script::of(&["a"]).stating(2),
            Script::of(&[]).stating(1),
        ] {
            assert_eq!(read_all(body, 10).await.err(), Some(ReadError::Broken));
        }
    }

    /// U17: an end that may be a reset gives the server one chance to say so; a sure one does not
    /// wait.
    #[tokio::test]
    async fn u17_an_end_that_is_not_sure_is_pending_once() {
        for (body, pending) in [
            (Script::of(&["a"]), true),
            (Script::of(&[]), true),
            (Script::of(&["a"]).stating(1), false),
            (Script::of(&[]).stating(0), false),
            (Script::new([data("a"), Step::Trailers]), false),
        ] {
            let mut read = pin!(read_all(body, 10));
            assert_eq!(futures::poll!(read.as_mut()).is_pending(), pending);
            if pending {
                assert!(read.await.is_ok());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_too_slow() {
        let start = tokio::time::Instant::now();
        let body = Script::new([data("a"), pause()]);
        assert_eq!(read_all(body, 10).await.err(), Some(ReadError::TooSlow));
        assert_eq!(start.elapsed(), SECOND);
    }

    /// U36: all bytes in memory are counted together, and given back when they leave, when the
    /// body is dropped, and when reading fails.
    #[tokio::test]
    async fn u36_all_bodies_together_are_bounded() {
        let gauge = Arc::new(Gauge::default());
        let limits = ReadLimits {
            total: 5,
            ..limits(4)
        };
        let read = async |frames: &[&'static str]| {
            read(pin!(Script::of(frames)), &limits, &gauge, |_: &[u8]| {}).await
        };
        let first = read(&["abcd"]).await.unwrap();
        assert_eq!(gauge.used(), 4);
        assert_eq!(read(&["a", "b"]).await.err(), Some(ReadError::Overloaded));
        assert_eq!(gauge.used(), 4);
        let second = read(&["e"]).await.unwrap();
        assert_eq!(gauge.used(), 5);

        let mut first = pin!(RequestBody::<Script>::buffered(first));
        first.frame().await.unwrap().unwrap();
        assert_eq!(gauge.used(), 1);
        drop(RequestBody::<Script>::buffered(second));
        assert_eq!(gauge.used(), 0);
    }

    #[test]
    fn u36_a_gauge_does_not_overflow() {
        let gauge = Gauge::default();
        assert!(gauge.try_add(1, 1));
        assert!(!gauge.try_add(usize::MAX, usize::MAX));
        assert_eq!(gauge.used(), 1);
    }

    /// P9: short frames cost about their bytes, and long ones are not copied.
    #[tokio::test]
    async fn p9_short_frames_are_joined() {
        let step = |len| Step::Data(Bytes::from(vec![b'x'; len]));
        let million = Script::new((0..1 << 20).map(|_| step(1)));
        let body = read_all(million, 1 << 20).await.unwrap();
        assert_eq!((body.len(), body.data.frames.bytes()), (1 << 20, 1 << 20));
        assert!(
            body.data.frames.len() <= 66,
            "{} frames",
            body.data.frames.len()
        );

        let long = Bytes::from(vec![b'y'; SHORT]);
        let mixed = Script::new([step(1), Step::Data(long.clone()), step(2), step(3), step(1)]);
        let body = read_all(mixed, 1 << 20).await.unwrap();
        let lengths: Vec<_> = body.data.frames.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [1, SHORT, 6]);
        assert_eq!(body.data.frames[1].as_ptr(), long.as_ptr());
    }

    #[tokio::test]
    async fn contiguous_joins_once_and_keeps_the_count() {
        let long = Bytes::from(vec![b'y'; SHORT]);
        let gauge = Arc::new(Gauge::default());
        let script = Script::new([Step::Data(long.clone()), data("a"), Step::Data(long)]);
        let mut body = read(pin!(script), &limits(3 * SHORT), &gauge, |_: &[u8]| {})
            .await
            .unwrap();
        let joined = body.contiguous();
        assert_eq!(joined.len(), 2 * SHORT + 1);
        assert_eq!(joined.as_ptr(), body.contiguous().as_ptr());
        assert_eq!((body.len(), gauge.used()), (joined.len(), joined.len()));
        assert_eq!(
            drain(RequestBody::<Script>::buffered(body)).await.0,
            [joined]
        );
        assert_eq!(gauge.used(), 0);

        let mut empty = read_all(Script::of(&[]), 0).await.unwrap();
        assert_eq!(empty.contiguous(), "");
    }

    #[tokio::test(start_paused = true)]
    async fn discard_reads_what_is_left_within_bounds() {
        // Whether it came to the end, and how many steps are left.
        let after = async |script: Script, max| {
            let mut script = pin!(script);
            let ended = discard(script.as_mut(), max, SECOND).await;
            (ended, script.steps.len())
        };
        assert_eq!(after(Script::of(&[]), 0).await, (true, 0));
        assert_eq!(after(Script::of(&["abc", "d"]), 4).await, (true, 0));
        assert_eq!(after(Script::of(&["abc", "de", "f"]), 4).await, (false, 1));
        assert_eq!(
            after(Script::of(&["abcde"]).stating(5), 4).await,
            (false, 1)
        );
        let fails = Script::new([Step::Fail, data("a")]);
        assert_eq!(after(fails, 4).await, (false, 1));
        let start = tokio::time::Instant::now();
        let stalls = Script::new([pause(), data("a")]);
        assert_eq!(after(stalls, 4).await, (false, 2));
        assert_eq!(start.elapsed(), SECOND);
    }

    async fn collect_all(body: Script, max: usize) -> (Collected<Script>, Arc<Gauge>) {
        let gauge = Arc::new(Gauge::default());
        (collect(body, max, SECOND, &gauge).await, gauge)
    }

    /// U07: an answer's trailers are kept, and a body with trailers never states its length.
    #[tokio::test]
    async fn u07_trailers_arrive() {
        for frames in [&["ab"][..], &[]] {
            let steps = frames
                .iter()
                .map(|frame| data(frame))
                .chain([Step::Trailers]);
            let (collected, gauge) = collect_all(Script::new(steps), 10).await;
            let Collected::Whole {
                frames: kept,
                trailers: Some(sent),
                permit,
            } = collected
            else {
                panic!("not whole");
            };
            assert_eq!(gauge.used(), kept.bytes());
            let body = ResponseBody::<Script>::buffered(kept, Some(sent), true, Some(permit));
            assert_eq!(body.size_hint().upper(), None);
            assert!(!body.is_end_stream());
            let (got, sent, _) = drain(body).await;
            assert_eq!(
                (got.concat(), sent),
                (frames.concat().into(), Some(trailers()))
            );
            assert_eq!(gauge.used(), 0);
        }
    }

    /// U22: a length is stated only where the original stated one, and an ended body would be
    /// taken for one of length zero.
    #[tokio::test]
    async fn u22_no_length_is_gained() {
        let body = ResponseBody::<Script>::buffered(Frames::None, None, false, None);
        assert_eq!(body.size_hint().exact(), None);
        assert!(!body.is_end_stream());
        let mut body = pin!(body);
        assert!(body.frame().await.is_none());
        assert!(body.is_end_stream());

        for body in [ResponseBody::<Script>::default(), ResponseBody::empty()] {
            assert!(body.is_end_stream());
            assert_eq!(body.size_hint().exact(), Some(0));
        }
        let body = ResponseBody::<Script>::full(Bytes::from_static(b"abc"));
        assert_eq!(body.size_hint().exact(), Some(3));
        assert_eq!(drain(body).await.0, ["abc"]);
    }

    /// What hyper sends over HTTP/1.1 for one answer, without its `Date`.
    async fn sent(
        method: &str,
        status: u16,
        answer: impl Fn() -> ResponseBody<Script> + Clone + Send + 'static,
    ) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let (mut client, server) = tokio::io::duplex(4096);
        let service = hyper::service::service_fn(move |_| {
            let response = http::Response::builder()
                .status(status)
                .header("trailer", "x-sum")
                .body(answer());
            std::future::ready(response)
        });
        let request =
            format!("{method} / HTTP/1.1\r\nhost: h\r\nte: trailers\r\nconnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.auto_date_header(false);
        let connection = builder.serve_connection(hyper_util::rt::TokioIo::new(server), service);
        let mut got = String::new();
        let (served, read) = futures::join!(connection, client.read_to_string(&mut got));
        served.unwrap();
        read.unwrap();
        got
    }

    /// U07, U22: hyper sends the trailers, and a length only where one was stated.
    #[tokio::test]
    async fn u07_u22_hyper_sends_what_is_meant() {
        let of = |frames: &'static str, trailing: bool, exact| {
            move || {
                let trailers = trailing.then(|| Box::new(trailers()));
                ResponseBody::buffered(Bytes::from_static(frames.as_bytes()), trailers, exact, None)
            }
        };
        for frames in ["abc", ""] {
            for exact in [true, false] {
                let got = sent("POST", 200, of(frames, true, exact)).await;
                assert!(got.ends_with("0\r\nx-sum: 7\r\n\r\n"), "{got}");
                assert!(got.contains("transfer-encoding: chunked"), "{got}");
            }
        }
        let got = sent("POST", 200, of("abc", false, true)).await;
        assert!(
            got.contains("content-length: 3\r\n") && got.ends_with("\r\n\r\nabc"),
            "{got}"
        );
        let got = sent("POST", 200, of("", false, true)).await;
        assert!(got.contains("content-length: 0\r\n"), "{got}");
        let got = sent("HEAD", 200, of("abc", false, true)).await;
        assert!(
            got.contains("content-length: 3\r\n") && got.ends_with("\r\n\r\n"),
            "{got}"
        );
        for (method, status, exact) in [
            ("HEAD", 200, false),
            ("HEAD", 200, true),
            ("POST", 204, false),
            ("POST", 204, true),
            ("POST", 304, false),
            ("POST", 304, true),
        ] {
            let got = sent(method, status, of("", false, exact)).await;
            assert!(
                !got.contains("content-length"),
                "{method} {status} {exact}: {got}"
            );
            assert!(
                !got.contains("transfer-encoding"),
                "{method} {status} {exact}: {got}"
            );
        }
    }

    /// U06: an answer over the size, or too slow, reaches its caller whole, trailers included.
    #[tokio::test(start_paused = true)]
    async fn u06_what_cannot_be_kept_is_passed_on_whole() {
        for (steps, ahead) in [
            (vec![data("abc"), data("de"), data("f"), Step::Trailers], 5),
            (vec![data("abc"), pause(), data("def"), Step::Trailers], 3),
            (vec![pause(), data("abcdef"), Step::Trailers], 0),
        ] {
            let (collected, gauge) = collect_all(Script::new(steps), 4).await;
            let (frames, rest, permit) = match collected {
                Collected::Partial {
                    frames,
                    rest,
                    permit,
                } => (frames, rest, permit),
                Collected::Whole { .. } | Collected::Broken { .. } => panic!("not partial"),
            };
            assert!(gauge.used() >= ahead, "{} read ahead", gauge.used());
            let body = ResponseBody::passed_on(frames, rest, permit);
            let (frames, sent, error) = drain(body).await;
            assert_eq!((frames.concat(), error), (b"abcdef".to_vec(), None));
            assert_eq!(sent, Some(trailers()));
            assert_eq!(gauge.used(), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn u06_a_stalling_answer_is_passed_on_after_the_timeout() {
        let start = tokio::time::Instant::now();
        let script = Script::new([data("abc"), pause()]);
        let (collected, _) = collect_all(script, 4).await;
        assert!(matches!(collected, Collected::Partial { frames, .. } if *frames == ["abc"]));
        assert_eq!(start.elapsed(), SECOND);
    }

    #[tokio::test]
    async fn u06_a_known_long_answer_is_passed_on_unread_with_its_length() {
        let (collected, gauge) = collect_all(Script::of(&["abcde"]).stating(5), 4).await;
        let Collected::Partial {
            frames,
            rest,
            permit,
        } = collected
        else {
            panic!("not partial");
        };
        assert_eq!((rest.polls, gauge.used()), (0, 0));
        let body = ResponseBody::passed_on(frames, rest, permit);
        assert_eq!(body.size_hint().exact(), Some(5));
        assert_eq!(drain(body).await.0, ["abcde"]);
    }

    #[tokio::test]
    async fn an_answer_of_exactly_the_limit_is_whole() {
        for body in [Script::of(&["abcd"]), Script::of(&["abcd"]).stating(4)] {
            let (collected, _) = collect_all(body, 4).await;
            assert!(matches!(collected, Collected::Whole { frames, .. } if *frames == ["abcd"]));
        }
        let (collected, _) = collect_all(Script::of(&[]).stating(0), 0).await;
        assert!(matches!(collected, Collected::Whole { frames, .. } if frames.is_empty()));
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_gives_its_data_and_its_own_error() {
        let (collected, gauge) = collect_all(Script::new([data("ab"), Step::Fail]), 4).await;
        let Collected::Broken {
            frames,
            error,
            permit,
        } = collected
        else {
            panic!("not broken");
        };
        let body = ResponseBody::<Script>::broken(frames, error, permit);
        assert_eq!(body.size_hint().upper(), None);
        assert!(!body.is_end_stream());
        let (frames, _, error) = drain(body).await;
        assert_eq!((frames.concat(), error), (b"ab".to_vec(), Some("it broke")));
        assert_eq!(gauge.used(), 0);
    }

    /// A panic of the body passes through, and what was counted is given back.
    #[test]
    fn a_panic_of_the_body_passes_through_collect() {
        let gauge = Arc::new(Gauge::default());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let script = Script::new([data("a"), Step::Panic]);
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let mut collecting = pin!(collect(script, 4, SECOND, &gauge));
            let _ = collecting.as_mut().poll(&mut cx);
        }));
        assert!(panicked.is_err());
        assert_eq!(gauge.used(), 0);
    }

    /// U19: debug output holds no contents.
    #[tokio::test]
    async fn u19_debug_holds_no_contents() {
        let request =
            RequestBody::<Script>::buffered(read_all(Script::of(&["secret"]), 10).await.unwrap());
        let response = ResponseBody::<Script>::full(Bytes::from_static(b"secret"));
        let shown = format!("{request:?} {response:?}");
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn bodies_are_send_where_the_inner_body_is() {
        fn send<T: Send>(_: T) {}
        type Inner = http_body_util::Full<Bytes>;
        send(RequestBody::<Inner>::streaming(Inner::default()));
        send(ResponseBody::<Inner>::default());
        let gauge = Arc::new(Gauge::default());
        send(collect(Inner::default(), 1, SECOND, &gauge));
        fn never_fails(_: &dyn Body<Data = Bytes, Error = Infallible>) {}
        never_fails(&ResponseBody::<Inner>::default());
    }

    proptest! {
        /// P9: whatever the lengths of the frames, the bytes stay the same and no two short frames
        /// stand side by side, but where one would overfill the joined buffer.
        #[test]
        fn p9_gathering_keeps_the_bytes(lengths in prop::collection::vec(0..2 * SHORT, 0..40)) {
            let mut gather = Gather::default();
            let mut expected = Vec::new();
            for (n, len) in lengths.into_iter().enumerate() {
                let frame = vec![n as u8; len];
                expected.extend_from_slice(&frame);
                gather.push(frame.into());
            }
            prop_assert_eq!(gather.len, expected.len());
            let frames = gather.finish();
            prop_assert_eq!(frames.concat(), expected);
            for pair in frames.windows(2) {
                prop_assert!(!pair[0].is_empty() && pair[0].len() + pair[1].len() >= SHORT);
            }
        }
    }
}
