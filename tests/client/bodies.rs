//! Bodies that are sent again (P9, S26).

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, poll};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_idempotency::client::{RepeatBody, RetryLayer, RetryPolicy, TryError};

use crate::support::{SECOND, Script, Step, post};

/// Gives its frames one by one, each after a pause, and states no length.
struct Pieces(VecDeque<Result<Frame<Bytes>, &'static str>>, bool);

impl Pieces {
    fn new(frames: impl IntoIterator<Item = Result<Frame<Bytes>, &'static str>>) -> Self {
        Self(frames.into_iter().collect(), false)
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        self.1 = !self.1;
        if self.1 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.0.pop_front())
    }
}

fn data(bytes: impl Into<Bytes>) -> Result<Frame<Bytes>, &'static str> {
    Ok(Frame::data(bytes.into()))
}

fn with<B>(body: B) -> Request<B> {
    post().map(|_| body)
}

/// A body that is a stream, not `Clone`, without a length: each try gets all of it.
#[tokio::test(start_paused = true)]
async fn s26_a_stream_is_sent_again() {
    let script = Script::new([Step::Lost, Step::Lost]);
    let service = RetryLayer::default().layer(script.clone());
    let body = Pieces::new([data("100"), data(""), data(" EUR")]);
    assert_eq!(service.oneshot(with(body)).await.unwrap().status(), 200);
    let bodies: Vec<_> = script.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies, ["100 EUR"; 3]);
}

/// U16: a body of exactly the limit is sent again, one byte more is sent once, with a known length
/// and without; and many tiny pieces cost more than their bytes.
#[tokio::test(start_paused = true)]
async fn p9_u16_a_body_over_the_limit_is_sent_once() {
    for (len, tries) in [(0, 2), (1000, 2), (1001, 1)] {
        let layer = RetryLayer::default().request_limit(1000);
        let script = Script::new([Step::Answer(503, &[])]);
        let service = layer.layer(script.clone());
        let body = Full::from(vec![7; len]);
        let status = service.oneshot(with(body)).await.unwrap().status();
        assert_eq!(script.tries(), tries);
        assert_eq!(
            status == 200,
            tries == 2,
            "the answer to the only try is given"
        );
        assert!(script.seen().iter().all(|seen| seen.body.len() == len));

        let script = Script::new([Step::Answer(503, &[])]);
        let service = layer.layer(script.clone());
        let body = Pieces::new([data(vec![7; len / 2]), data(vec![7; len - len / 2])]);
        service.oneshot(with(body)).await.unwrap();
        assert_eq!(script.tries(), tries);
        assert!(script.seen().iter().all(|seen| seen.body.len() == len));
    }
    for (pieces, tries) in [(4, 2), (5, 1)] {
        let script = Script::new([Step::Lost]);
        let service = RetryLayer::default()
            .request_limit(1000)
            .layer(script.clone());
        let body = Pieces::new((0..pieces).map(|_| data("x")));
        let _ = service.oneshot(with(body)).await;
        assert_eq!(
            (script.tries(), script.seen()[0].body.len()),
            (tries, pieces)
        );
    }
}

/// A length stays stated, and an empty body stays empty: servers tell them from others.
#[tokio::test(start_paused = true)]
async fn lengths_stay_stated_at_each_try() {
    let lengths = |request: &Request<RepeatBody<Full<Bytes>>>| {
        let body = request.body();
        (body.size_hint().exact(), body.is_end_stream())
    };
    let service = service_fn(
        move |request: Request<RepeatBody<Full<Bytes>>>| async move {
            assert_eq!(lengths(&request), (Some(7), false));
            let mut body = request.into_body();
            let frame = body.frame().await.unwrap()?;
            assert_eq!(frame.data_ref().unwrap(), "100 EUR");
            assert_eq!(
                (body.size_hint().exact(), body.is_end_stream()),
                (Some(0), true)
            );
            assert!(body.frame().await.is_none());
            Err::<Response<Empty<Bytes>>, BoxError>("lost".into())
        },
    );
    let service = RetryLayer::default().layer(service);
    assert_eq!(
        service.oneshot(post()).await.unwrap_err().to_string(),
        "lost"
    );

    let service = service_fn(|request: Request<RepeatBody<Empty<Bytes>>>| async move {
        assert_eq!(request.body().size_hint().exact(), Some(0));
        assert!(request.body().is_end_stream());
        Err::<Response<Empty<Bytes>>, BoxError>("lost".into())
    });
    let service = RetryLayer::default().layer(service);
    let error = service.oneshot(with(Empty::new())).await.unwrap_err();
    assert_eq!(error.to_string(), "lost");

    // Of a stream the length is known once its end was sent.
    let hints = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&hints);
    let service = service_fn(move |request: Request<RepeatBody<Pieces>>| {
        let hint = request.body().size_hint();
        seen.lock().unwrap().push((hint.lower(), hint.exact()));
        async move {
            request.into_body().collect().await?;
            Err::<Response<Empty<Bytes>>, BoxError>("lost".into())
        }
    });
    let service = RetryLayer::default().layer(service);
    let body = Pieces::new([data("100"), data(" EUR")]);
    service.oneshot(with(body)).await.unwrap_err();
    let hints = hints.lock().unwrap();
    assert_eq!(hints[..2], [(0, None), (7, Some(7))]);
}

/// The end of a body is known as soon as the body knows it, also where it became too long to be kept.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_long_body_is_known() {
    struct Countdown(u8);
    impl Body for Countdown {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            self.0 -= 1;
            Poll::Ready(Some(Ok(Frame::data(vec![7; 600].into()))))
        }
        fn is_end_stream(&self) -> bool {
            self.0 == 0
        }
    }
    let service = service_fn(|request: Request<RepeatBody<Countdown>>| async move {
        let mut body = request.into_body();
        for _ in 0..3 {
            assert!(!body.is_end_stream());
            body.frame().await.unwrap()?;
        }
        assert!(body.is_end_stream());
        Ok::<_, BoxError>(Response::new(Empty::<Bytes>::new()))
    });
    let service = RetryLayer::default().request_limit(1000).layer(service);
    service.oneshot(with(Countdown(3))).await.unwrap();
}

/// U07: trailers are sent again too.
#[tokio::test(start_paused = true)]
async fn u07_trailers_are_sent_again() {
    let trailers = HeaderMap::from_iter([(
        http::HeaderName::from_static("x-sum"),
        http::HeaderValue::from_static("7"),
    )]);
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&seen);
    let sum = trailers.clone();
    let service = service_fn(move |request: Request<RepeatBody<Pieces>>| {
        let (counted, sum) = (Arc::clone(&counted), sum.clone());
        async move {
            let body = request.into_body().collect().await?;
            assert_eq!(body.trailers(), Some(&sum));
            assert_eq!(body.to_bytes(), "x");
            counted.fetch_add(1, SeqCst);
            Err::<Response<Empty<Bytes>>, BoxError>("lost".into())
        }
    });
    let body = Pieces::new([data("x"), Ok(Frame::trailers(trailers))]);
    let service = RetryLayer::default().layer(service);
    service.oneshot(with(body)).await.unwrap_err();
    assert_eq!(seen.load(SeqCst), 4);
}

/// A try that ended before all of the body was sent: the next one sends that again, and the rest.
#[tokio::test(start_paused = true)]
async fn the_next_try_goes_on_where_the_body_was_left() {
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    let service = service_fn(move |request: Request<RepeatBody<Pieces>>| {
        let frames = counted.fetch_add(1, SeqCst);
        async move {
            let mut body = request.into_body();
            if frames == 3 {
                let whole = body.collect().await?.to_bytes();
                return Ok::<_, BoxError>(Response::new(Full::new(whole)));
            }
            for _ in 0..frames {
                body.frame().await.unwrap()?;
            }
            Err("lost".into())
        }
    });
    let service = RetryLayer::default().layer(service);
    let body = Pieces::new([data("a"), data("b"), data("c"), data("d")]);
    let response = service.oneshot(with(body)).await.unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "abcd"
    );
    assert_eq!(tries.load(SeqCst), 4);
}

/// An early answer: who still sends the body of that try is woken and stops when the next one begins,
/// so that no two of them share what is to come.
#[tokio::test(start_paused = true)]
async fn a_sender_that_was_overtaken_stops() {
    type Outgoing = RepeatBody<StreamBody<futures::stream::BoxStream<'static, Item>>>;
    type Item = Result<Frame<Bytes>, BoxError>;
    let (overtaken, mut senders) = mpsc::unbounded_channel();
    let service = service_fn(move |request: Request<Outgoing>| {
        let overtaken = overtaken.clone();
        async move {
            let (end, ended) = oneshot::channel();
            let first = overtaken.send(ended).is_ok();
            let mut body = request.into_body();
            let mut sending = Box::pin(async move {
                let mut sent = Vec::new();
                loop {
                    match body.frame().await {
                        Some(Ok(frame)) => sent.extend(frame.into_data().unwrap()),
                        Some(Err(error)) => break (sent, Some(error.to_string())),
                        None => break (sent, None),
                    }
                }
            });
            assert!(poll!(&mut sending).is_pending() && first);
            tokio::spawn(async move { end.send(sending.await) });
            let response = Response::builder().status(503);
            Ok::<_, BoxError>(response.body(Empty::<Bytes>::new()).unwrap())
        }
    });
    let (source, receiver) = mpsc::unbounded_channel::<Item>();
    let stream = futures::stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    });
    source.send(Ok(Frame::data("100".into()))).unwrap();
    let body = StreamBody::new(stream.boxed());
    let service = RetryLayer::default().layer(service);
    let response = service.oneshot(with(body)).await.unwrap();
    assert_eq!(response.status(), 503);
    let mut ends = Vec::new();
    for _ in 0..3 {
        let sender = senders.recv().await.unwrap();
        let ended = tokio::time::timeout(SECOND, sender).await;
        ends.push(ended.expect("it is woken").unwrap());
    }
    for (sent, error) in ends {
        assert_eq!((&sent[..], error.is_some()), (&b"100"[..], true));
    }
    source.send(Ok(Frame::data(" EUR".into()))).unwrap();
    drop(source);
    let last = senders.recv().await.unwrap().await.unwrap();
    assert_eq!(last, (b"100 EUR".to_vec(), None));
}

/// A body that breaks off cannot be sent again, and its error is told.
#[tokio::test(start_paused = true)]
async fn u17_a_body_that_breaks_off_is_not_sent_again() {
    let script = Script::default();
    let service = RetryLayer::default().layer(script.clone());
    let body = Pieces::new([data("100"), Err("the disk is gone")]);
    let error = service.oneshot(with(body)).await.unwrap_err();
    assert_eq!(error.to_string(), "the disk is gone");
    assert_eq!(script.tries(), 0, "no whole request arrived");
}

/// Bytes that tell when they are let go.
struct Watched(Arc<AtomicUsize>);

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &[7; 100]
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// P9: nothing is kept of what is sent once only, or is over the limit; and what is kept goes with
/// the operation.
#[tokio::test(start_paused = true)]
async fn p9_only_what_may_be_sent_again_is_kept() {
    for (key, limit, kept) in [(true, 1000, 3), (false, 1000, 0), (true, 150, 0)] {
        let gone = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&gone);
        let service = service_fn(move |request: Request<RepeatBody<Pieces>>| {
            let counted = Arc::clone(&counted);
            async move {
                let mut body = request.into_body();
                while let Some(frame) = body.frame().await {
                    drop(frame?);
                }
                assert_eq!(counted.load(SeqCst), 3 - kept);
                Ok::<_, BoxError>(Response::new(Empty::<Bytes>::new()))
            }
        });
        let frames = (0..3).map(|_| data(Bytes::from_owner(Watched(Arc::clone(&gone)))));
        let mut request = with(Pieces::new(frames));
        if !key {
            request.headers_mut().remove("idempotency-key");
        }
        let service = RetryLayer::default().request_limit(limit).layer(service);
        let response = service.oneshot(request).await.unwrap();
        assert_eq!(gone.load(SeqCst), 3, "they go with the answer");
        drop(response);
    }
}

/// P10, U06: an upload over the limit, be its length known or not, is sent once, and so takes the time
/// that it takes; its answer is nobody's to judge but the caller's.
#[tokio::test(start_paused = true)]
async fn p10_u06_an_upload_over_the_limit_is_not_timed() {
    async fn upload<B>(body: B) -> (u64, Result<bool, BoxError>)
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let service = service_fn(|request: Request<RepeatBody<B>>| async move {
            request.into_body().collect().await?;
            tokio::time::sleep(3600 * SECOND).await;
            let broken = Pieces::new([data("pay"), Err("reset")]);
            Ok::<_, BoxError>(Response::new(broken))
        });
        let start = Instant::now();
        let layer = RetryLayer::new(RetryPolicy::new().tries(1)).request_limit(1000);
        let broken = match layer.layer(service).oneshot(with(body)).await {
            Ok(response) => Ok(response.into_body().collect().await.is_err()),
            Err(error) => Err(error),
        };
        (start.elapsed().as_secs(), broken)
    }
    let pieces = |length: usize| Pieces::new([data(vec![7; 500]), data(vec![7; length - 500])]);
    for (seconds, broken) in [
        upload(Full::from(vec![7; 1001])).await,
        upload(pieces(1001)).await,
    ] {
        assert_eq!(seconds, 3600);
        assert!(broken.unwrap(), "the caller reads it");
    }
    for (seconds, broken) in [
        upload(Full::from(vec![7; 1000])).await,
        upload(pieces(1000)).await,
    ] {
        assert_eq!(seconds, 30);
        assert!(matches!(
            broken.unwrap_err().downcast_ref(),
            Some(TryError::TimedOut)
        ));
    }
}

/// An early answer, and a body that goes on: who sends it stops when another try is decided on, so
/// that it cannot outgrow the limit before that try begins, and its answer be lost.
#[tokio::test(start_paused = true)]
async fn a_sender_stops_while_the_next_try_waits() {
    type Outgoing = RepeatBody<StreamBody<futures::stream::BoxStream<'static, Item>>>;
    type Item = Result<Frame<Bytes>, &'static str>;
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    let service = service_fn(move |request: Request<Outgoing>| {
        let first = counted.fetch_add(1, SeqCst) == 0;
        async move {
            let body = request.into_body().collect();
            let length = if first {
                // It is sent on, behind its answer.
                tokio::spawn(body);
                0
            } else {
                body.await.unwrap().to_bytes().len()
            };
            let response = Response::builder().status(if first { 503 } else { 200 });
            Ok::<_, BoxError>(
                response
                    .body(Full::<Bytes>::from(length.to_string()))
                    .unwrap(),
            )
        }
    });
    let (source, receiver) = mpsc::unbounded_channel::<Item>();
    let stream = futures::stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    });
    let body = StreamBody::new(stream.boxed());
    let service = RetryLayer::default().request_limit(1000).layer(service);
    let mut operation = Box::pin(service.oneshot(with(body)));
    assert!(poll!(&mut operation).is_pending());
    for _ in 0..2 {
        // The sender has its turn.
        source.send(Ok(Frame::data(vec![7; 600].into()))).unwrap();
        tokio::task::yield_now().await;
    }
    drop(source);
    let response = operation.await.unwrap();
    assert_eq!((response.status().as_u16(), tries.load(SeqCst)), (200, 2));
    let length = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(length, "1200");
}

/// Who comes to send the body of a try only after the next one has begun gets none of it.
#[tokio::test(start_paused = true)]
async fn a_late_sender_does_not_overtake_a_later_try() {
    let late = Arc::new(std::sync::Mutex::new(None::<RepeatBody<Pieces>>));
    let service = service_fn(move |request: Request<RepeatBody<Pieces>>| {
        let late = Arc::clone(&late);
        async move {
            let mut body = request.into_body();
            let earlier = late.lock().unwrap().take();
            let Some(mut earlier) = earlier else {
                *late.lock().unwrap() = Some(body);
                return Err("refused before the body was sent".into());
            };
            body.frame().await.unwrap()?;
            assert!(!earlier.is_end_stream());
            assert!(earlier.frame().await.unwrap().is_err());
            let rest = body.collect().await?.to_bytes();
            Ok::<_, BoxError>(Response::new(Full::new(rest)))
        }
    });
    let body = Pieces::new([data("100"), data(" EUR")]);
    let service = RetryLayer::default().layer(service);
    let response = service.oneshot(with(body)).await.unwrap();
    let rest = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(rest, " EUR");
}

/// What is ready is done without a pause: no task, no timer.
#[test]
fn a_request_that_succeeds_needs_no_timer() {
    let service = RetryLayer::default().layer(Script::default());
    let body = StreamBody::new(futures::stream::iter([data("a"), data("b")]));
    let response = service.oneshot(with(body)).now_or_never().unwrap();
    assert_eq!(response.unwrap().status(), 200);
}

/// A hint that lies is no reason to panic.
#[tokio::test(start_paused = true)]
async fn a_length_beyond_all_bounds_is_sent_once() {
    struct Huge;
    impl Body for Huge {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            Poll::Ready(None)
        }
        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(u64::MAX)
        }
    }
    let script = Script::new([Step::Lost]);
    let service = RetryLayer::default().layer(script.clone());
    service.oneshot(with(Huge)).await.unwrap_err();
    assert_eq!(script.tries(), 1);
}
