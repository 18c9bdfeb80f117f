//! A request's body that can be sent more than once.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tower::BoxError;

/// For so many bytes of the limit one frame is kept, so that a body of tiny ones is bounded too (P9).
pub(crate) const BYTES_PER_FRAME: usize = 256;

/// The body of the requests that [`Retry`](super::Retry) sends: the body that the request came with.
///
/// It is sent as it comes, and no try waits for its end. What is sent is kept, up to
/// [`request_limit`](super::RetryLayer::request_limit): the next try sends that again, and then what
/// comes after it. Nothing is kept of a request that is sent only once.
///
/// Its error is the original body's, or says that the next try has taken over, where an answer came
/// before all of the body was sent.
pub struct RepeatBody<B> {
    source: Arc<Mutex<Source<B>>>,
    limit: usize,
    /// Which of the tries sends it, from 0.
    number: u64,
    /// How many of the kept frames it has given out.
    given: usize,
}

struct Source<B> {
    /// What is to come. `None` after its end.
    body: Option<Pin<Box<B>>>,
    /// What came, for those who send it again.
    kept: Vec<Kept>,
    bytes: usize,
    /// Whether all that came is kept, and none of it was an error.
    whole: bool,
    /// The try that may read. Earlier ones have to stop: two that read on would each get a part.
    number: u64,
    waker: Option<Waker>,
}

enum Kept {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl<B> RepeatBody<B> {
    pub(crate) fn new(body: B, limit: usize) -> Self
    where
        B: Body,
    {
        let source = Source {
            whole: body.size_hint().lower() <= limit as u64,
            body: Some(Box::pin(body)),
            kept: Vec::new(),
            bytes: 0,
            number: 0,
            waker: None,
        };
        Self {
            source: Arc::new(Mutex::new(source)),
            limit,
            number: 0,
            given: 0,
        }
    }

    /// The same body, from its beginning, for the try after this one.
    pub(crate) fn again(&self) -> Self {
        Self {
            source: Arc::clone(&self.source),
            limit: self.limit,
            number: self.number + 1,
            given: 0,
        }
    }

    /// Whether it can still be sent from its beginning.
    pub(crate) fn is_whole(&self) -> bool {
        self.lock().whole
    }

    /// Whether somebody may send it again.
    fn is_kept(&self) -> bool {
        Arc::strong_count(&self.source) > 1
    }

    /// What tells later whether it can still be sent again, where somebody may do so.
    pub(crate) fn kept(&self) -> Option<KeptBody<B>> {
        self.is_kept()
            .then(|| KeptBody(Arc::downgrade(&self.source)))
    }

    /// Becomes the one that is sent, if it still can be from its beginning. Whoever sends it for an
    /// earlier try is woken, and stops; one that begins later gets nothing.
    pub(crate) fn take_over(&self) -> bool {
        let mut source = self.lock();
        if !source.whole {
            return false;
        }
        source.number = self.number;
        let earlier = source.waker.take();
        drop(source);
        if let Some(earlier) = earlier {
            earlier.wake();
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Source<B>> {
        // A body that panicked is its caller's to judge.
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Body for RepeatBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let wanted = self.is_kept();
        let this = &mut *self;
        let mut source = this.source.lock().unwrap_or_else(PoisonError::into_inner);
        if this.number != source.number {
            return Poll::Ready(Some(Err("the next try sends the body anew".into())));
        }
        if let Some(frame) = source.kept.get(this.given) {
            this.given += 1;
            return Poll::Ready(Some(Ok(frame.frame())));
        }
        let Some(body) = &mut source.body else {
            return Poll::Ready(None);
        };
        let Poll::Ready(next) = body.as_mut().poll_frame(cx) else {
            source.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        Poll::Ready(match next {
            Some(Ok(frame)) => {
                if source.keep(&frame, wanted, this.limit) {
                    this.given += 1;
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                source.body = None;
                source.lose();
                Some(Err(error.into()))
            }
            None => {
                source.body = None;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        let source = self.lock();
        // To one that has to stop, what it sent is not the whole.
        self.number == source.number
            && self.given >= source.kept.len()
            && (source.body.as_ref()).is_none_or(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let source = self.lock();
        let again = source.kept.iter().skip(self.given).map(Kept::len).sum();
        let rest = match &source.body {
            Some(body) => body.size_hint(),
            None => SizeHint::with_exact(0),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(again));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(again)) {
            hint.set_upper(upper);
        }
        hint
    }
}

/// A body that is being sent, as whoever waits for the answer sees it.
pub(crate) struct KeptBody<B>(Weak<Mutex<Source<B>>>);

impl<B> KeptBody<B> {
    /// Whether it can still be sent from its beginning.
    pub(crate) fn is_whole(&self) -> bool {
        let source = self.0.upgrade();
        source.is_some_and(|source| source.lock().unwrap_or_else(PoisonError::into_inner).whole)
    }
}

impl<B> Source<B> {
    /// Keeps a copy of `frame` if somebody wants it and it is within the limit.
    fn keep(&mut self, frame: &Frame<Bytes>, wanted: bool, limit: usize) -> bool {
        let copy = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Kept::Data(data.clone()),
            (None, Some(trailers)) => Kept::Trailers(trailers.clone()),
            (None, None) => return false,
        };
        self.bytes = self.bytes.saturating_add(copy.len() as usize);
        let fits = self.bytes <= limit && self.kept.len() <= limit / BYTES_PER_FRAME;
        let kept = wanted && self.whole && fits;
        match kept {
            true => self.kept.push(copy),
            false => self.lose(),
        }
        kept
    }

    fn lose(&mut self) {
        self.whole = false;
        self.kept = Vec::new();
    }
}

impl Kept {
    fn frame(&self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data.clone()),
            Self::Trailers(trailers) => Frame::trailers(trailers.clone()),
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Trailers(_) => 0,
        }
    }
}

/// Without the contents (U19).
impl<B> fmt::Debug for RepeatBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RepeatBody").finish_non_exhaustive()
    }
}
