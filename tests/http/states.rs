//! S02, S04, S22, S30: what an answer, an error and a panic make of their record, and what the
//! next request with the key gets.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_idempotency::{Entry, Execution, Outcome, Reason, State, Store, verdict};

use crate::support::{Broken, Effects, Handled, Scripted, YieldingBody, answer, layer, post, read};

/// Statuses in turn; the last one stays.
fn statuses(
    given: &'static [u16],
) -> (
    Effects,
    impl Fn(Handled) -> BoxFuture<'static, crate::support::Given> + Clone,
) {
    let effects = Effects::default();
    let counted = effects.clone();
    let handler = move |_: Handled| {
        let number = counted.add();
        let status = given[(number - 1).min(given.len() - 1)];
        async move { answer(status, format!("call {number}")) }.boxed()
    };
    (effects, handler)
}

#[tokio::test]
async fn s05_i05_i06_u27_completed_is_replayed_with_its_status_and_headers() {
    let handler = |_: Handled| async {
        Ok::<_, Infallible>(
            Response::builder()
                .status(201)
                .header("location", "/payments/1")
                .header("cache-control", "no-store")
                .header("x-two", "a")
                .header("x-two", "b")
                .header("x-bytes", HeaderValue::from_bytes(b"\xff\xfe").unwrap())
                .header("set-cookie", "session=1")
                .header("date", "Tue, 15 Nov 1994 08:12:31 GMT")
                .header("connection", "x-hop")
                .header("x-hop", "1")
                .body(Full::from("made"))
                .unwrap(),
        )
    };
    let service = layer(Scripted::new()).layer(service_fn(handler));
    let first = read(service.clone().oneshot(post("k", "b")).await.unwrap()).await;
    let replay = read(service.clone().oneshot(post("k", "b")).await.unwrap()).await;
    assert!(!first.is_replay() && first.headers.contains_key("set-cookie"));
    assert_eq!(
        (replay.status, replay.text()),
        (StatusCode::CREATED, "made")
    );
    assert_eq!(replay.headers["idempotent-replayed"], "true");
    assert_eq!(replay.headers["location"], "/payments/1");
    // U05: `Cache-Control` has no say.
    assert_eq!(replay.headers["cache-control"], "no-store");
    // U22: duplicates in order, and bytes that are no text.
    let two: Vec<_> = replay.headers.get_all("x-two").iter().collect();
    assert_eq!(two, ["a", "b"]);
    assert_eq!(replay.headers["x-bytes"].as_bytes(), b"\xff\xfe");
    for gone in ["set-cookie", "date", "connection", "x-hop"] {
        assert!(!replay.headers.contains_key(gone), "{gone}");
    }
}

#[tokio::test]
async fn s13_a_replay_can_have_another_status_and_cookies() {
    let handler = |_: Handled| async {
        let cookie = ("set-cookie", "theme=dark");
        Ok::<_, Infallible>(
            Response::builder()
                .status(201)
                .header(cookie.0, cookie.1)
                .body(Full::<Bytes>::default())
                .unwrap(),
        )
    };
    let layer = layer(Scripted::new())
        .replay_set_cookie(true)
        .replay_status(|status| match status {
            StatusCode::CREATED => StatusCode::OK,
            other => other,
        });
    let service = layer.layer(service_fn(handler));
    let first = read(service.clone().oneshot(post("k", "b")).await.unwrap()).await;
    let replay = read(service.oneshot(post("k", "b")).await.unwrap()).await;
    assert_eq!((first.status.as_u16(), replay.status.as_u16()), (201, 200));
    assert_eq!(replay.headers["set-cookie"], "theme=dark");
}

/// S02: while the handler runs the record is in progress; then completed, or failed, or gone.
#[tokio::test]
async fn s02_s22_the_states_of_a_record() {
    for (status, expected) in [
        (200, Some(State::Completed)),
        (303, Some(State::Completed)),
        (400, None),
        (409, None),
        (500, Some(State::Failed)),
        (503, Some(State::Failed)),
    ] {
        let store = Scripted::new();
        let seen = Arc::new(Mutex::new(None));
        let handler = {
            let (store, seen) = (store.clone(), seen.clone());
            move |request: Handled| {
                let (store, seen) = (store.clone(), seen.clone());
                async move {
                    let execution: &Execution = request.extensions().get().unwrap();
                    let key = execution.store_key().clone();
                    let running = store.get(&key).await.unwrap().unwrap();
                    assert_eq!(running.record.state, State::InProgress);
                    *seen.lock().unwrap() = Some(key);
                    answer(status, "")
                }
            }
        };
        let service = layer(store.clone()).layer(service_fn(handler));
        let answered = service.oneshot(post("k", "b")).await.unwrap();
        let outcome = answered.extensions().get::<Outcome>().copied();
        let key = seen.lock().unwrap().clone().unwrap();
        let after = store
            .get(&key)
            .await
            .unwrap()
            .map(|found| found.record.state);
        assert_eq!(after, expected, "{status}");
        assert_eq!(
            outcome,
            Some(match expected {
                Some(State::Completed) => Outcome::Completed,
                Some(_) => Outcome::Failed,
                None => Outcome::Rejected,
            })
        );
    }
}

/// S22, S30: a rejection frees the key at once, also for another payload; a failure for the same
/// payload only (S04, U03, U04).
#[tokio::test]
async fn s04_s22_s30_u03_u04_errors_are_not_replayed() {
    let (effects, handler) = statuses(&[422, 201]);
    let service = layer(Scripted::new()).layer(service_fn(handler));
    let rejected = service.clone().oneshot(post("k", "bad")).await.unwrap();
    assert_eq!(rejected.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let mended = service.clone().oneshot(post("k", "good")).await.unwrap();
    assert_eq!((mended.status(), effects.count()), (StatusCode::CREATED, 2));

    let (effects, handler) = statuses(&[503, 201]);
    let service = layer(Scripted::new()).layer(service_fn(handler));
    let failed = service.clone().oneshot(post("k", "b")).await.unwrap();
    assert_eq!(failed.status(), StatusCode::SERVICE_UNAVAILABLE);
    let other = service.clone().oneshot(post("k", "other")).await.unwrap();
    assert_eq!(read(other).await.problem(), "mismatch");
    let retried = service.clone().oneshot(post("k", "b")).await.unwrap();
    assert_eq!(
        (retried.status(), effects.count()),
        (StatusCode::CREATED, 2)
    );
}

/// S04, I06: or errors are recorded and given again; the user chooses.
#[tokio::test]
async fn s04_i06_errors_can_be_recorded() {
    for status in [422, 503] {
        let effects = Effects::default();
        let handler = {
            let effects = effects.clone();
            move |_: Handled| {
                effects.add();
                async move { answer(status, "no") }
            }
        };
        let layer = layer(Scripted::new()).judge(verdict::record_errors);
        let service = layer.layer(service_fn(handler));
        for replay in [false, true] {
            let error = read(service.clone().oneshot(post("k", "b")).await.unwrap()).await;
            assert_eq!((error.status.as_u16(), error.is_replay()), (status, replay));
        }
        assert_eq!(effects.count(), 1);
    }
}

/// U04: an error of gRPC has the status 200, and is none the less no success: also where the layer was
/// built without the feature `grpc`, and where gRPC-Web has made something else of the answer.
#[tokio::test]
async fn u04_an_error_of_grpc_is_not_replayed() {
    for kind in ["application/grpc", "application/grpc-web"] {
        for in_head in [true, false] {
            let effects = Effects::default();
            let counted = effects.clone();
            let handler = move |_: Handled| {
                let code = if counted.add() == 1 { "14" } else { "0" };
                let status = HeaderMap::from_iter([(
                    HeaderName::from_static("grpc-status"),
                    HeaderValue::from_static(code),
                )]);
                let response = Response::builder().header("content-type", kind);
                async move {
                    let mut response = response.body(YieldingBody::new([])).unwrap();
                    match in_head {
                        true => response.headers_mut().extend(status),
                        false => *response.body_mut() = YieldingBody::new([]).trailers(status),
                    }
                    Ok::<_, Infallible>(response)
                }
            };
            let service = layer(Scripted::new()).layer(service_fn(handler));
            let mut told = Vec::new();
            for body in ["b", "other", "b", "b"] {
                let answer = service.clone().oneshot(post("k", body)).await.unwrap();
                let answer = read(answer).await;
                told.push((answer.status.as_u16(), answer.is_replay()));
            }
            let expected = [(200, false), (422, false), (200, false), (200, true)];
            assert_eq!((&told[..], effects.count()), (&expected[..], 2), "{kind}");
        }
    }
}

/// A judge of one's own sees head and trailers.
#[tokio::test]
async fn a_judge_sees_head_and_trailers() {
    let layer = layer(Scripted::new()).judge(|parts, trailers| {
        assert!(parts.headers.contains_key("x-head"));
        match trailers.and_then(|trailers| trailers.get("x-result")) {
            Some(result) if result == "bad" => verdict::Verdict::Rejected,
            _ => verdict::Verdict::Completed,
        }
    });
    let handler = |request: Handled| async move {
        let result = request.into_body().collect().await.unwrap().to_bytes();
        let mut trailers = HeaderMap::new();
        let result = HeaderValue::from_maybe_shared(result).unwrap();
        trailers.insert("x-result", result);
        let body = YieldingBody::new(["body"]).trailers(trailers);
        let response = Response::builder().header("x-head", "1").body(body);
        Ok::<_, Infallible>(response.unwrap())
    };
    let service = layer.layer(service_fn(handler));
    for (body, expected) in [("bad", Outcome::Rejected), ("good", Outcome::Completed)] {
        let answered = service.clone().oneshot(post("k", body)).await.unwrap();
        assert_eq!(answered.extensions().get(), Some(&expected));
        // U07
        assert_eq!(read(answered).await.trailers.unwrap()["x-result"], body);
    }
    // U07: trailers are replayed.
    let replay = read(service.oneshot(post("k", "good")).await.unwrap()).await;
    assert!(replay.is_replay());
    assert_eq!(replay.trailers.unwrap()["x-result"], "good");
}

/// Where the handler panics.
#[derive(Clone, Copy, Debug)]
enum Where {
    Call,
    Future,
    Body,
}

struct PanickingBody;

impl http_body::Body for PanickingBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        panic!("in the body")
    }
}

/// Panics once, and then answers.
#[derive(Clone)]
struct Panics(Where, Effects);

impl Service<Handled> for Panics {
    type Response = Response<http_body_util::Either<PanickingBody, Full<Bytes>>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Handled) -> Self::Future {
        let attempt = request.extensions().get::<Execution>().unwrap();
        let (attempt, entry) = (attempt.attempt(), attempt.entry());
        let kind = self.0;
        if attempt == 1 && matches!(kind, Where::Call) {
            panic!("in the call");
        }
        let effects = self.1.clone();
        Box::pin(async move {
            match (attempt, kind) {
                (1, Where::Future) => panic!("in the future"),
                (1, _) => Ok(Response::new(http_body_util::Either::Left(PanickingBody))),
                _ => {
                    assert_eq!(entry, Entry::Retry);
                    effects.add();
                    let body = Full::from("at last");
                    Ok(Response::new(http_body_util::Either::Right(body)))
                }
            }
        })
    }
}

/// U03, S22, S30: a panic frees the key for a retry at once, and goes on unwinding.
#[tokio::test]
async fn u03_s22_s30_panics_count_as_failed_and_resume() {
    for kind in [Where::Call, Where::Future, Where::Body] {
        let effects = Effects::default();
        let layer = layer(Scripted::new());
        let service = layer.layer(Panics(kind, effects.clone()));
        let call = service.clone().oneshot(post("k", "b"));
        let panic = AssertUnwindSafe(call).catch_unwind().await.unwrap_err();
        let message = panic.downcast_ref::<&str>().unwrap();
        assert!(message.starts_with("in the "), "{message}");
        layer.drain().await;

        let other = service.clone().oneshot(post("k", "other")).await.unwrap();
        let outcome = other.extensions().get();
        assert_eq!(
            outcome,
            Some(&Outcome::Refused(Reason::Mismatch)),
            "{kind:?}"
        );
        let retry = read(service.clone().oneshot(post("k", "b")).await.unwrap()).await;
        assert_eq!((retry.text(), effects.count()), ("at last", 1));
    }
}

/// The inner error's type is untouched; an error counts as failed.
#[tokio::test]
async fn u03_inner_errors_pass_and_count_as_failed() {
    #[derive(Debug, PartialEq)]
    struct Inner(usize);
    let effects = Effects::default();
    let handler = {
        let effects = effects.clone();
        move |_: Handled| {
            let number = effects.add();
            async move {
                match number {
                    1 => Err(Inner(number)),
                    _ => Ok(Response::new(Full::<Bytes>::from("at last"))),
                }
            }
        }
    };
    let service = layer(Scripted::new()).layer(service_fn(handler));
    let failed = service.clone().oneshot(post("k", "b")).await;
    assert_eq!(failed.unwrap_err(), Inner(1));
    let other = service.clone().oneshot(post("k", "other")).await.unwrap();
    assert_eq!(other.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let retry = service.oneshot(post("k", "b")).await.unwrap();
    assert_eq!(read(retry).await.text(), "at last");
}

/// An answer that breaks off reaches its caller as it is, and counts as failed.
#[tokio::test]
async fn u03_an_answer_that_breaks_off_counts_as_failed() {
    let handler = |request: Handled| async move {
        let attempt = request.extensions().get::<Execution>().unwrap().attempt();
        let body = YieldingBody::new(["half"]);
        Ok::<_, Infallible>(Response::new(match attempt {
            1 => body.broken(),
            _ => body,
        }))
    };
    let service = layer(Scripted::new()).layer(service_fn(handler));
    let first = service.clone().oneshot(post("k", "b")).await.unwrap();
    assert_eq!(first.extensions().get(), Some(&Outcome::Failed));
    let mut body = first.into_body();
    let half = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(half, "half");
    assert!(matches!(body.frame().await, Some(Err(Broken))));
    let retry = read(service.oneshot(post("k", "b")).await.unwrap()).await;
    assert_eq!((retry.text(), retry.is_replay()), ("half", false));
}

/// U20: the service that is called is the one that was ready; one that fails to get ready was not
/// called, and frees the key.
#[tokio::test(start_paused = true)]
async fn u20_only_a_ready_service_is_called() {
    #[derive(Default)]
    struct OnceReady {
        ready: bool,
    }
    impl Clone for OnceReady {
        fn clone(&self) -> Self {
            Self::default()
        }
    }
    impl Service<Handled> for OnceReady {
        type Response = Response<Full<Bytes>>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            self.ready = true;
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Handled) -> Self::Future {
            assert!(
                std::mem::take(&mut self.ready),
                "called before it was ready"
            );
            std::future::ready(Ok(Response::new(Full::from("ready"))))
        }
    }
    let mut service = layer(Scripted::new()).layer(OnceReady::default());
    for (key, body) in [("a", "1"), ("a", "1"), ("b", "1"), ("a", "2")] {
        service
            .ready()
            .await
            .unwrap()
            .call(post(key, body))
            .await
            .unwrap();
    }
    let get = Request::get("/").body(Full::<Bytes>::default()).unwrap();
    service.ready().await.unwrap().call(get).await.unwrap();
}

/// U24: a handler that changes its input changes neither key nor fingerprint of its record.
#[tokio::test]
async fn u24_the_record_is_that_of_the_request_as_it_came() {
    let handler = |mut request: Handled| async move {
        request
            .headers_mut()
            .insert("idempotency-key", HeaderValue::from_static("other"));
        *request.uri_mut() = "/other".parse().unwrap();
        answer(201, "done")
    };
    let service = layer(Scripted::new()).layer(service_fn(handler));
    service.clone().oneshot(post("k", "b")).await.unwrap();
    let replay = read(service.clone().oneshot(post("k", "b")).await.unwrap()).await;
    assert!(replay.is_replay());
    let other = read(service.oneshot(post("other", "b")).await.unwrap()).await;
    assert!(!other.is_replay());
}
