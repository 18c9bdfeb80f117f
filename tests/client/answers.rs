//! Answers count when they are whole (S09): those that break off, are late, or are streams.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, Sleep, sleep};
use tower::{BoxError, Layer, ServiceExt, service_fn, util::BoxCloneService};
use tower_idempotency::client::{RepeatBody, RetryLayer, RetryPolicy, TryError};

use crate::support::{SECOND, post, request};

#[derive(Clone)]
enum Step {
    Data(&'static str),
    Zeros(usize),
    Trailers(&'static [(&'static str, &'static str)]),
    /// For an hour.
    Stall,
    Break,
}

use Step::{Break, Data, Stall, Trailers, Zeros};

/// Plays its steps, and states `stated`.
struct Play {
    steps: std::vec::IntoIter<Step>,
    stated: Option<u64>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Body for Play {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.poll_unpin(cx));
            self.pause = None;
        }
        let frame = match self.steps.next() {
            None => return Poll::Ready(None),
            Some(Data(text)) => Frame::data(Bytes::from_static(text.as_bytes())),
            Some(Zeros(length)) => Frame::data(vec![0; length].into()),
            Some(Trailers(lines)) => Frame::trailers(map(lines)),
            Some(Break) => return Poll::Ready(Some(Err("reset"))),
            Some(Stall) => {
                self.pause = Some(Box::pin(sleep(3600 * SECOND)));
                return self.poll_frame(cx);
            }
        };
        if let (Some(stated), Some(data)) = (&mut self.stated, frame.data_ref()) {
            *stated -= data.len() as u64;
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.stated == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.stated.map(SizeHint::with_exact).unwrap_or_default()
    }
}

fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let line = |&(name, value): &(&'static str, &'static str)| {
        let name = HeaderName::from_static(name);
        (name, HeaderValue::from_static(value))
    };
    lines.iter().map(line).collect()
}

/// One answer, or none for an hour.
#[derive(Clone)]
struct Answer {
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    stated: Option<u64>,
    steps: Vec<Step>,
    late: bool,
}

fn answer(steps: impl Into<Vec<Step>>) -> Answer {
    Answer {
        status: 200,
        headers: &[],
        stated: None,
        steps: steps.into(),
        late: false,
    }
}

impl Answer {
    fn stating(mut self, length: u64) -> Self {
        self.stated = Some(length);
        self
    }

    fn with(mut self, headers: &'static [(&'static str, &'static str)]) -> Self {
        self.headers = headers;
        self
    }
}

type Outgoing = Request<RepeatBody<Full<Bytes>>>;
type Server = BoxCloneService<Outgoing, Response<Play>, BoxError>;

/// Gives the answers, the last one again and again, and counts.
fn server(answers: Vec<Answer>) -> (Arc<AtomicU32>, Server) {
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    let service = service_fn(move |_: Outgoing| {
        let n = counted.fetch_add(1, SeqCst) as usize;
        let answer = answers[n.min(answers.len() - 1)].clone();
        async move {
            if answer.late {
                sleep(3600 * SECOND).await;
            }
            let mut response = Response::new(Play {
                steps: answer.steps.into_iter(),
                stated: answer.stated,
                pause: None,
            });
            *response.status_mut() = answer.status.try_into()?;
            *response.headers_mut() = map(answer.headers);
            Ok(response)
        }
    });
    (tries, BoxCloneService::new(service))
}

/// Data, trailers, and the error that ended them.
type Read = (Vec<u8>, Option<HeaderMap>, Option<&'static str>);

/// What came of an operation: how many tries, and what the caller read of which answer.
struct Outcome {
    tries: u32,
    result: Result<Read, BoxError>,
    seconds: u64,
}

async fn run(request: Request<Full<Bytes>>, answers: Vec<Answer>) -> Outcome {
    run_with(RetryLayer::default(), request, answers).await
}

async fn run_with(
    layer: RetryLayer,
    request: Request<Full<Bytes>>,
    answers: Vec<Answer>,
) -> Outcome {
    let (tries, service) = server(answers);
    let start = Instant::now();
    let head = request.method() == Method::HEAD;
    let result = layer.layer(service).oneshot(request).await;
    let seconds = start.elapsed().as_secs();
    let result = match result {
        Err(error) => Err(error),
        Ok(response) => {
            let mut body = response.into_body();
            let (mut read, mut trailers, mut broken) = (Vec::new(), None, None);
            // Hints hold at every step.
            let mut hints = Vec::new();
            loop {
                let hint = body.size_hint();
                hints.push((read.len() as u64, hint.lower(), hint.upper()));
                let ended = body.is_end_stream();
                match body.frame().await {
                    None => break,
                    Some(Err(error)) => broken = Some(error),
                    Some(Ok(frame)) => {
                        assert!(!ended);
                        match frame.into_data() {
                            Ok(data) => read.extend(data),
                            Err(frame) => trailers = frame.into_trailers().ok(),
                        }
                    }
                }
            }
            // The length that a HEAD tells is not its own.
            if broken.is_none() && !head {
                for (at, lower, upper) in hints {
                    let left = read.len() as u64 - at;
                    assert!(lower <= left && upper.is_none_or(|upper| upper >= left));
                }
            }
            Ok((read, trailers, broken))
        }
    };
    Outcome {
        tries: tries.load(SeqCst),
        result,
        seconds,
    }
}

fn good() -> Answer {
    answer([Data("pay"), Data("ment 1")])
}

/// The first answer breaks off after some of it, in different ways; the next one is given whole, and
/// nothing of the first.
#[tokio::test(start_paused = true)]
async fn s09_an_answer_that_breaks_off_is_a_failed_try() {
    const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc")];
    for broken in [
        answer([Break]),
        answer([Data("pay"), Break]),
        answer([Data("pay"), Break]).stating(9),
        // Reset "without error": it looks like an end.
        answer([Data("pay")]).stating(9),
        answer([Data("pay"), Stall]).stating(9),
        Answer {
            late: true,
            ..good()
        },
        // A gRPC answer ends with its status.
        answer([Data("pay")]).with(GRPC),
        answer([]).with(GRPC),
        answer([Data("pay"), Trailers(&[("x", "y")])]).with(GRPC),
    ] {
        let Outcome { tries, result, .. } = run(post(), vec![broken, good()]).await;
        let (read, trailers, error) = result.unwrap();
        assert_eq!((tries, &read[..]), (2, &b"payment 1"[..]));
        assert_eq!((trailers, error), (None, None));
    }
}

/// When no try succeeds, the caller is told how the last one ended.
#[tokio::test(start_paused = true)]
async fn the_error_tells_how_the_last_try_ended() {
    let Outcome { tries, result, .. } = run(post(), vec![answer([Data("pay"), Break])]).await;
    let error = result.unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(TryError::BrokenOff(Some(cause)))
        if cause.to_string() == "reset")
    );
    assert_eq!(error.source().unwrap().to_string(), "reset");
    assert_eq!((tries, &*error.to_string()), (4, "the answer broke off"));

    let short = answer([Data("pay")]).stating(9);
    let error = run(post(), vec![short]).await.result.unwrap_err();
    assert!(matches!(
        error.downcast_ref(),
        Some(TryError::BrokenOff(None))
    ));
    assert!(error.source().is_none());

    let late = Answer {
        late: true,
        ..good()
    };
    let layer = RetryLayer::new(RetryPolicy::new().tries(2)).try_timeout(7 * SECOND);
    let Outcome {
        result, seconds, ..
    } = run_with(layer, post(), vec![late]).await;
    let error = result.unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(TryError::TimedOut)));
    assert_eq!(
        (seconds, &*error.to_string()),
        (14, "no whole answer in time")
    );
    // The policy can tell them apart.
    let policy = RetryPolicy::new().retry_errors(|error: &BoxError| !error.is::<TryError>());
    let late = answer([Break]);
    let Outcome { tries, .. } = run_with(RetryLayer::new(policy), post(), vec![late]).await;
    assert_eq!(tries, 1);
}

/// U07: trailers come after the data. A length is not stated beside them.
#[tokio::test(start_paused = true)]
async fn u07_trailers_are_given_on() {
    let whole = answer([Data("payment 1"), Trailers(&[("x-sum", "7")])]);
    let (_, service) = server(vec![whole.clone()]);
    let service = RetryLayer::default().layer(service);
    let body = service.oneshot(post()).await.unwrap().into_body();
    assert_eq!(
        (body.size_hint().lower(), body.size_hint().exact()),
        (9, None)
    );
    let (read, trailers, _) = run(post(), vec![whole]).await.result.unwrap();
    assert_eq!(read, b"payment 1");
    assert_eq!(trailers, Some(map(&[("x-sum", "7")])));
}

/// gRPC: a status in the trailers is found there too.
#[tokio::test(start_paused = true)]
async fn a_grpc_status_in_the_trailers_counts() {
    const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc+proto")];
    for (trailers, expected) in [
        (Trailers(&[("grpc-status", "0")]), 1),
        (Trailers(&[("grpc-status", "14")]), 2),
        (Trailers(&[("grpc-status", "10"), ("retry-after", "1")]), 2),
        (Trailers(&[("grpc-status", "10")]), 1),
        (Trailers(&[("grpc-status", "3")]), 1),
    ] {
        let first = answer([Data("message"), trailers]).with(GRPC);
        let good = answer([Data("payment 1"), Trailers(&[("grpc-status", "0")])]).with(GRPC);
        let Outcome { tries, result, .. } = run(post(), vec![first, good]).await;
        assert_eq!(tries, expected);
        assert!(result.unwrap().1.unwrap().contains_key("grpc-status"));
    }
}

/// An answer that is none of gRPC's, though its type says so, has its status from HTTP: a refusal
/// stands.
#[tokio::test(start_paused = true)]
async fn a_refusal_of_http_needs_no_grpc_status() {
    const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc")];
    for (status, tries) in [(400, 1), (422, 1), (503, 2)] {
        let refusal = Answer {
            status,
            ..answer([Data("no")]).with(GRPC)
        };
        let good = answer([Data("yes"), Trailers(&[("grpc-status", "0")])]).with(GRPC);
        let outcome = run(post(), vec![refusal, good]).await;
        let expected: &[u8] = if tries == 1 { b"no" } else { b"yes" };
        assert_eq!(outcome.tries, tries, "{status}");
        assert_eq!(outcome.result.unwrap().0, expected);
    }
}

/// U06, U16: an answer over the limit is given on as it comes, whole; if it breaks off then, the
/// caller sees it. An answer of the limit is read first.
#[tokio::test(start_paused = true)]
async fn u06_u16_a_large_answer_is_given_on_as_it_comes() {
    let layer = || RetryLayer::default().response_limit(1000);
    for (pieces, tries) in [
        (vec![Zeros(500), Zeros(500)], 2),
        (vec![Zeros(500), Zeros(501)], 1),
        (vec![Zeros(1001)], 1),
        // Many tiny ones cost more than their bytes (P9).
        (vec![Zeros(4); 3], 2),
        (vec![Zeros(4); 6], 1),
    ] {
        let length = pieces.iter().map(|piece| match piece {
            Zeros(length) => *length,
            _ => 0,
        });
        let length: usize = length.sum();
        let whole = answer(pieces.clone());
        let outcome = run_with(layer(), post(), vec![whole]).await;
        assert_eq!(outcome.tries, 1);
        assert_eq!(outcome.result.unwrap().0.len(), length);

        let broken = answer([pieces, vec![Break]].concat());
        let outcome = run_with(layer(), post(), vec![broken, good()]).await;
        assert_eq!(outcome.tries, tries);
        let (read, _, error) = outcome.result.unwrap();
        assert_eq!(read.len(), if tries == 1 { length } else { 9 });
        assert_eq!(error.is_some(), tries == 1);
    }
    // With a stated length, nothing is read first.
    let stated = answer([Zeros(10), Stall, Zeros(992)]).stating(1002);
    let outcome = run_with(layer(), post(), vec![stated]).await;
    assert_eq!((outcome.tries, outcome.seconds), (1, 0));
    assert_eq!(outcome.result.unwrap().0.len(), 1002);
}

/// U06: a stream is not waited for: events at once, others when the time is up.
#[tokio::test(start_paused = true)]
async fn u06_streams_are_given_on() {
    let feed = answer([Data("event"), Stall, Data("event")]);
    let events = feed
        .clone()
        .with(&[("content-type", "text/event-stream; charset=utf-8")]);
    let outcome = run(post(), vec![events]).await;
    assert_eq!((outcome.tries, outcome.seconds), (1, 0));
    assert_eq!(outcome.result.unwrap().0, b"eventevent");

    let outcome = run(post(), vec![feed.clone()]).await;
    assert_eq!((outcome.tries, outcome.seconds), (1, 30));
    assert_eq!(outcome.result.unwrap().0, b"eventevent");

    // Downloads and feeds are GETs.
    let outcome = run(request(Method::GET, None), vec![feed]).await;
    assert_eq!((outcome.tries, outcome.seconds), (1, 0));
    let short = answer([Data("pay"), Break]).stating(9);
    let outcome = run(request(Method::GET, None), vec![short, good()]).await;
    assert_eq!((outcome.tries, outcome.result.unwrap().2), (2, None));
}

/// P10: what is sent once is neither read first, nor timed, nor judged.
#[tokio::test(start_paused = true)]
async fn p10_what_is_sent_once_passes_through() {
    let without = || request(Method::POST, None);
    let slow = answer([Data("pay"), Stall, Data("ment 1")]).stating(9);
    let outcome = run(without(), vec![slow]).await;
    assert_eq!((outcome.tries, outcome.seconds), (1, 0));
    assert_eq!(outcome.result.unwrap().0, b"payment 1");
    let late = Answer {
        late: true,
        ..answer([Data("pay"), Break])
    };
    let outcome = run(without(), vec![late]).await;
    assert_eq!((outcome.tries, outcome.seconds), (1, 3600));
    assert_eq!(outcome.result.unwrap().2, Some("reset"));
}

/// U22: an empty body stays as it was, for HEAD, 204 and 304.
#[tokio::test(start_paused = true)]
async fn u22_an_empty_answer_stays_empty() {
    let outcome = run(request(Method::HEAD, None), vec![answer([]).stating(0)]).await;
    assert_eq!(outcome.result.unwrap().0, b"");
    let outcome = run(post(), vec![answer([]).stating(0)]).await;
    assert_eq!(outcome.result.unwrap().0, b"");
    // Over HTTP/2 the end may come after the head, which states the length that a GET would have.
    let outcome = run(request(Method::HEAD, None), vec![answer([]).stating(9)]).await;
    assert_eq!((outcome.tries, outcome.result.unwrap().0), (1, vec![]));
}

/// Extensions, version and reason go through with the answer.
#[tokio::test(start_paused = true)]
async fn the_head_of_an_answer_is_kept() {
    #[derive(Clone, Debug, PartialEq)]
    struct Connection(u8);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let counted = Arc::clone(&seen);
    let service = service_fn(move |request: Request<RepeatBody<Full<Bytes>>>| {
        let id = request.extensions().get::<Connection>().cloned();
        counted.lock().unwrap().push((id, request.version()));
        let first = counted.lock().unwrap().len() == 1;
        async move {
            let response = Response::builder()
                .version(http::Version::HTTP_2)
                .status(if first { 502 } else { 201 })
                .extension(Connection(9));
            response.body(Full::<Bytes>::from("x"))
        }
    });
    let mut request = post();
    request.extensions_mut().insert(Connection(1));
    *request.version_mut() = http::Version::HTTP_2;
    let service = RetryLayer::default().layer(service);
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), response.version()),
        (201, http::Version::HTTP_2)
    );
    assert_eq!(response.extensions().get(), Some(&Connection(9)));
    let same = (Some(Connection(1)), http::Version::HTTP_2);
    assert_eq!(*seen.lock().unwrap(), [same.clone(), same]);
}
