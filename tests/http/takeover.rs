//! P5, S08: what the next attempt knows after a failure and after a crash, and what it may do.
//!
//! A crash is an execution that is cut off where it stands: its future is dropped, and the layer
//! may detach nothing.

use std::{
    future::Pending,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::poll;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_idempotency::{
    CheckpointError, Entry, Execution, IdempotencyLayer, Outcome, Probed, Reason, RequestBody,
    Store, StoreError, Takeover,
};

use crate::support::{
    Effects, Fault, Handled, Op, Scripted, YieldingBody, answer, layer, post, read,
};

fn execution(request: &Handled) -> Execution {
    request.extensions().get::<Execution>().unwrap().clone()
}

/// Makes an execution of the key that saves a checkpoint and then crashes.
async fn crash(layer: &IdempotencyLayer<Scripted>, key: &str) {
    let handler = |request: Handled| async move {
        let execution = execution(&request);
        execution.save_checkpoint("step 1").await.unwrap();
        std::future::pending::<()>().await;
        answer(201, "never")
    };
    let mut service = layer.clone().max_detached(0).layer(service_fn(handler));
    let mut call = Box::pin(service.ready().await.unwrap().call(post(key, "b")));
    assert!(poll!(call.as_mut()).is_pending());
}

async fn past_the_lease() {
    tokio::time::sleep(Duration::from_secs(30)).await;
}

/// What an attempt saw.
type Seen = (u32, Entry, Option<String>);

async fn send(layer: &IdempotencyLayer<Scripted>, key: &str) -> (Response<()>, String, Vec<Seen>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let seen = seen.clone();
        move |request: Handled| {
            let execution = execution(&request);
            let checkpoint = execution
                .checkpoint()
                .map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
            let saw = (execution.attempt(), execution.entry(), checkpoint);
            seen.lock().unwrap().push(saw);
            async { answer(201, "ran") }
        }
    };
    let service = layer.layer(service_fn(handler));
    let response = service.oneshot(post(key, "b")).await.unwrap();
    let outcome = *response.extensions().get::<Outcome>().unwrap();
    let answer = read(response).await;
    let mut head = Response::new(());
    *head.status_mut() = answer.status;
    *head.headers_mut() = answer.headers.clone();
    head.extensions_mut().insert(outcome);
    let seen = seen.lock().unwrap().clone();
    (head, answer.text().to_owned(), seen)
}

fn outcome(response: &Response<()>) -> Outcome {
    *response.extensions().get().unwrap()
}

#[tokio::test(start_paused = true)]
async fn p5_s08_by_default_the_next_attempt_runs_and_knows() {
    let layer = layer(Scripted::new());
    crash(&layer, "k").await;

    let (held, ..) = send(&layer, "k").await;
    assert_eq!(outcome(&held), Outcome::Refused(Reason::InProgress));
    past_the_lease().await;
    let (_, text, seen) = send(&layer, "k").await;
    assert_eq!(text, "ran");
    assert_eq!(seen, [(2, Entry::Takeover, Some("step 1".into()))]);
    let (replay, _, seen) = send(&layer, "k").await;
    assert_eq!((outcome(&replay), seen.len()), (Outcome::Replayed, 0));
}

#[tokio::test(start_paused = true)]
async fn p5_takeover_can_be_refused_until_somebody_resolves_it() {
    let store = Scripted::new();
    let layer = layer(store.clone()).takeover(Takeover::refuse());
    crash(&layer, "k").await;
    past_the_lease().await;
    for _ in 0..2 {
        let (refused, text, seen) = send(&layer, "k").await;
        assert_eq!(outcome(&refused), Outcome::Refused(Reason::Abandoned));
        assert_eq!(refused.status(), StatusCode::CONFLICT);
        assert!(!refused.headers().contains_key("retry-after"));
        assert!(text.contains("abandoned") && seen.is_empty(), "{text}");
    }
    // The operator finds it, and resolves it.
    let key = tower_idempotency::StoreKey::new("idem", "", &endpoint(&layer).await, "k");
    let found = layer.store().get(&key).await.unwrap().expect("the record");
    assert!(found.is_abandoned());
    assert_eq!(found.record.checkpoint.as_deref(), Some(&b"step 1"[..]));
    assert!(layer.store().forget(&key).await.unwrap());
    let (_, _, seen) = send(&layer, "k").await;
    assert_eq!(seen, [(1, Entry::First, None)]);
}

/// The endpoint's part of the store keys of `POST /pay`.
async fn endpoint(layer: &IdempotencyLayer<Scripted>) -> String {
    let part = Arc::new(Mutex::new(String::new()));
    let handler = {
        let part = part.clone();
        move |request: Handled| {
            let key = execution(&request).store_key().clone();
            *part.lock().unwrap() = key.parts().endpoint.to_owned();
            async { answer(201, "") }
        }
    };
    let service = layer.layer(service_fn(handler));
    service.oneshot(post("another", "b")).await.unwrap();
    let part = part.lock().unwrap();
    part.clone()
}

#[tokio::test(start_paused = true)]
async fn p5_a_probe_decides() {
    let asked = Effects::default();
    let layer = layer(Scripted::new());
    let probing = {
        let asked = asked.clone();
        layer
            .clone()
            .takeover(Takeover::probe(move |execution, parts| {
                assert_eq!(execution.entry(), Entry::Takeover);
                assert_eq!(parts.uri.path(), "/pay");
                let (asked, key) = (asked.clone(), execution.key().to_owned());
                async move {
                    let times = asked.add();
                    match key.as_str() {
                        "done" => Probed::Completed(
                            Response::builder()
                                .status(201)
                                .header("location", "/payments/7")
                                .body("found".into())
                                .unwrap(),
                        ),
                        "not done" => Probed::NotDone,
                        "unknown" if times % 2 == 1 => Probed::Unknown,
                        "unknown" => Probed::NotDone,
                        _ => panic!("the probe panics"),
                    }
                }
            }))
    };
    for key in ["done", "not done", "unknown", "panics"] {
        crash(&layer, key).await;
    }
    // A first attempt and a plain retry ask no probe.
    assert_eq!(send(&probing, "new").await.1, "ran");
    assert_eq!(asked.count(), 0);
    past_the_lease().await;

    let (found, text, seen) = send(&probing, "done").await;
    assert_eq!(
        (outcome(&found), text.as_str()),
        (Outcome::Completed, "found")
    );
    assert!(seen.is_empty());
    let (again, text, _) = send(&probing, "done").await;
    assert_eq!(
        (outcome(&again), text.as_str()),
        (Outcome::Replayed, "found")
    );
    assert_eq!(again.headers()["location"], "/payments/7");
    assert_eq!(asked.count(), 1);

    let (_, text, seen) = send(&probing, "not done").await;
    assert_eq!((text.as_str(), seen.len(), asked.count()), ("ran", 1, 2));

    // Unknown: refused, and the next request asks anew, at once.
    let (refused, _, seen) = send(&probing, "unknown").await;
    assert_eq!(outcome(&refused), Outcome::Refused(Reason::Abandoned));
    assert_eq!((seen.len(), asked.count()), (0, 3));
    let (_, text, seen) = send(&probing, "unknown").await;
    assert_eq!((text.as_str(), asked.count()), ("ran", 4));
    assert_eq!(seen, [(3, Entry::Takeover, Some("step 1".into()))]);

    // A panic tells nothing either; it goes on unwinding.
    for _ in 0..2 {
        let layer = probing.clone();
        let panicked = tokio::spawn(async move { send(&layer, "panics").await.1 }).await;
        assert!(panicked.unwrap_err().is_panic());
    }
    assert_eq!(asked.count(), 6);
    let (_, _, seen) = send(&layer, "panics").await;
    assert_eq!(seen, [(4, Entry::Takeover, Some("step 1".into()))]);
}

/// Why nothing ran under a claim that was granted.
#[derive(Clone, Copy, Debug)]
enum NothingRan {
    AnswerLost,
    AnswerHangs,
    CallerLeft,
    NotReady,
    ReadinessPanics,
}

/// Ready when it is asked first, and then not any more.
#[derive(Clone)]
struct ReadyOnce {
    asked: Effects,
    panics: bool,
}

impl Service<Request<RequestBody<YieldingBody>>> for ReadyOnce {
    type Response = Response<Full<Bytes>>;
    type Error = &'static str;
    type Future = Pending<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match self.asked.add() {
            1 => Poll::Ready(Ok(())),
            _ if self.panics => panic!("when asked whether it is ready"),
            _ => Poll::Ready(Err("not ready")),
        }
    }

    fn call(&mut self, _: Request<RequestBody<YieldingBody>>) -> Self::Future {
        unreachable!("it was not ready")
    }
}

impl NothingRan {
    /// Has a claim granted under which nothing runs.
    async fn claim(self, layer: &IdempotencyLayer<Scripted>) {
        let store = layer.store();
        match self {
            Self::AnswerLost | Self::AnswerHangs => {
                let fault = match self {
                    Self::AnswerLost => Fault::AnswerLost,
                    _ => Fault::AnswerHangs,
                };
                store.next(Op::Claim, fault);
                let (refused, ..) = send(layer, "k").await;
                let reason = Reason::StoreUnavailable;
                assert_eq!(outcome(&refused), Outcome::Refused(reason));
            }
            Self::CallerLeft => {
                store.next(Op::Claim, Fault::AnswerHeld);
                let mut call = Box::pin(send(layer, "k"));
                assert!(poll!(call.as_mut()).is_pending());
                drop(call);
                store.open();
            }
            Self::NotReady | Self::ReadinessPanics => {
                // A body that comes in pieces lets the ready service go.
                let request = Request::post("/pay")
                    .header("idempotency-key", "k")
                    .body(YieldingBody::new(["b"]))
                    .unwrap();
                let service = layer.layer(ReadyOnce {
                    asked: Effects::default(),
                    panics: matches!(self, Self::ReadinessPanics),
                });
                match tokio::spawn(service.oneshot(request)).await {
                    Ok(ended) => assert_eq!(ended.unwrap_err(), "not ready"),
                    Err(panicked) => assert!(panicked.is_panic()),
                }
            }
        }
        layer.drain().await;
    }
}

/// P4, P8: a claim under which nothing ran leaves the key as it was: free, failed or abandoned. So
/// a takeover is one for the next claimant too, and the probe is asked. (A probe that cannot tell,
/// or panics: `p5_a_probe_decides`.)
#[tokio::test(start_paused = true)]
async fn p5_p4_p8_a_claim_under_which_nothing_ran_is_given_back() {
    for before in [Entry::First, Entry::Retry, Entry::Takeover] {
        for why in [
            NothingRan::AnswerLost,
            NothingRan::AnswerHangs,
            NothingRan::CallerLeft,
            NothingRan::NotReady,
            NothingRan::ReadinessPanics,
        ] {
            let (store, asked) = (Scripted::new(), Effects::default());
            let base = layer(store.clone());
            let layer = {
                let asked = asked.clone();
                base.clone().takeover(Takeover::probe(move |_, _| {
                    asked.add();
                    async { Probed::NotDone }
                }))
            };
            match before {
                Entry::First => {}
                Entry::Retry => {
                    let failing = service_fn(|_: Handled| async { answer(500, "no") });
                    let failed = base.layer(failing).oneshot(post("k", "b")).await;
                    assert_eq!(failed.unwrap().status().as_u16(), 500);
                }
                Entry::Takeover => {
                    crash(&base, "k").await;
                    past_the_lease().await;
                }
            }
            why.claim(&layer).await;

            let (stored, asked_before) = (store.store().len(), asked.count());
            let (_, text, seen) = send(&layer, "k").await;
            let times = asked.count() - asked_before;
            let expected = match before {
                Entry::First => (1, before, None),
                Entry::Retry => (3, before, None),
                Entry::Takeover => (3, before, Some("step 1".into())),
            };
            assert_eq!((text.as_str(), seen), ("ran", vec![expected]), "{why:?}");
            assert_eq!(stored, usize::from(before != Entry::First), "{why:?}");
            assert_eq!(times, usize::from(before == Entry::Takeover), "{why:?}");
        }
    }
}

/// U12: a renewal that comes after its attempt was given back, or has ended, revives nothing.
#[tokio::test(start_paused = true)]
async fn u12_p6_a_late_renewal_revives_nothing() {
    let (late, asked) = (Arc::new(Mutex::new(None)), Effects::default());
    let base = layer(Scripted::new());
    let layer = {
        let (late, asked) = (late.clone(), asked.clone());
        base.clone().takeover(Takeover::probe(move |execution, _| {
            *late.lock().unwrap() = Some(execution);
            let times = asked.add();
            async move {
                match times {
                    1 => Probed::Unknown,
                    _ => Probed::Completed(Response::new("found".into())),
                }
            }
        }))
    };
    let take = || late.lock().unwrap().take().unwrap();
    crash(&base, "k").await;
    past_the_lease().await;
    let (refused, ..) = send(&layer, "k").await;
    assert_eq!(outcome(&refused), Outcome::Refused(Reason::Abandoned));
    let renewed = take().save_checkpoint("late").await;
    assert!(matches!(
        renewed,
        Err(CheckpointError::Store(StoreError::Superseded))
    ));
    let (_, text, _) = send(&layer, "k").await;
    assert_eq!((text.as_str(), asked.count()), ("found", 2));

    for (status, next) in [
        (500, Outcome::Completed),
        (422, Outcome::Completed),
        (201, Outcome::Replayed),
    ] {
        let key = format!("ends with {status}");
        let ending = late.clone();
        let handler = move |request: Handled| {
            *ending.lock().unwrap() = Some(execution(&request));
            async move { answer(status, "") }
        };
        let ended = layer.layer(service_fn(handler)).oneshot(post(&key, "b"));
        assert_eq!(ended.await.unwrap().status().as_u16(), status);
        let renewed = take().save_checkpoint("late").await;
        assert!(matches!(
            renewed,
            Err(CheckpointError::Store(StoreError::Gone))
        ));
        let (again, ..) = send(&layer, &key).await;
        assert_eq!(outcome(&again), next, "{status}");
    }
}

/// Attempt and checkpoint outlive a failure; S30: a retry may come at once.
#[tokio::test(start_paused = true)]
async fn p5_s08_s30_a_failure_keeps_the_checkpoint() {
    let layer = layer(Scripted::new());
    let handler = |request: Handled| async move {
        let execution = execution(&request);
        execution.save_checkpoint("step 1").await.unwrap();
        execution.save_checkpoint("step 2").await.unwrap();
        assert_eq!(execution.checkpoint().as_deref(), Some(&b"step 2"[..]));
        answer(503, "no")
    };
    let failing = layer.layer(service_fn(handler));
    let failed = failing.oneshot(post("k", "b")).await.unwrap();
    assert_eq!(failed.extensions().get(), Some(&Outcome::Failed));
    let (_, _, seen) = send(&layer, "k").await;
    assert_eq!(seen, [(2, Entry::Retry, Some("step 2".into()))]);
}

/// An attempt that saved a checkpoint did something: its rejection does not free the key for
/// another payload. Nor does one on a later attempt.
#[tokio::test(start_paused = true)]
async fn p5_a_rejection_that_may_have_acted_counts_as_failed() {
    for (first, saves) in [(422, true), (500, false)] {
        let layer = layer(Scripted::new());
        let handler = move |request: Handled| async move {
            let execution = execution(&request);
            if saves {
                execution.save_checkpoint("step 1").await.unwrap();
            }
            let status = if execution.attempt() == 1 { first } else { 422 };
            answer(status, "no")
        };
        let service = layer.layer(service_fn(handler));
        for _ in 0..2 {
            let no = service.clone().oneshot(post("k", "b")).await.unwrap();
            assert!(no.status() == first || no.status() == 422);
            // `Rejected` would say that the key is free.
            assert_eq!(no.extensions().get(), Some(&Outcome::Failed));
            let other = service.clone().oneshot(post("k", "other")).await.unwrap();
            let outcome = other.extensions().get();
            assert_eq!(outcome, Some(&Outcome::Refused(Reason::Mismatch)));
        }
        let (_, _, seen) = send(&layer, "k").await;
        assert_eq!((seen[0].0, seen[0].1), (3, Entry::Retry));
    }
}

#[tokio::test(start_paused = true)]
async fn p9_checkpoints_are_bounded_and_their_errors_are_told() {
    let store = Scripted::new();
    let layer = layer(store.clone()).checkpoint_limit(4);
    let handler = {
        let store = store.clone();
        move |request: Handled| {
            let store = store.clone();
            async move {
                let execution = execution(&request);
                execution.save_checkpoint("four").await.unwrap();
                let large = execution.save_checkpoint("five!").await;
                assert!(matches!(large, Err(CheckpointError::TooLarge { limit: 4 })));
                store.next(Op::Renew, Fault::Lost);
                let lost = execution.save_checkpoint("lost").await;
                assert!(matches!(
                    lost,
                    Err(CheckpointError::Store(StoreError::Unavailable { .. }))
                ));
                assert_eq!(execution.checkpoint().as_deref(), Some(&b"four"[..]));
                store.forget(execution.store_key()).await.unwrap();
                let gone = execution.save_checkpoint("gone").await;
                assert!(matches!(
                    gone,
                    Err(CheckpointError::Store(StoreError::Gone))
                ));
                assert!(!execution.is_superseded());
                answer(201, "done")
            }
        }
    };
    let done = layer
        .layer(service_fn(handler))
        .oneshot(post("k", "b"))
        .await;
    assert_eq!(done.unwrap().status(), StatusCode::CREATED);
}

/// S25, P6: derived keys are stable over attempts, and differ for each purpose and key; tokens
/// grow; U19: nothing of the key shows in debug output.
#[tokio::test(start_paused = true)]
async fn s25_p6_u19_derived_keys_and_tokens() {
    let layer = layer(Scripted::new());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let seen = seen.clone();
        move |request: Handled| {
            let execution = execution(&request);
            assert!(!format!("{execution:?}").contains("secret-"));
            seen.lock().unwrap().push((
                execution.key().to_owned(),
                execution.fencing_token(),
                execution.derive("charge"),
                execution.derive("mail"),
            ));
            async { answer(503, "again") }
        }
    };
    let service = layer.layer(service_fn(handler));
    for key in ["secret-a", "secret-a", "secret-b"] {
        service.clone().oneshot(post(key, "b")).await.unwrap();
    }
    let seen = seen.lock().unwrap();
    let [first, second, other] = &seen[..] else {
        panic!("three executions")
    };
    assert_eq!(first.0, "secret-a");
    assert!(first.1 < second.1);
    assert_eq!((&first.2, &first.3), (&second.2, &second.3));
    let all = [&first.2, &first.3, &other.2, &other.3];
    for (at, key) in all.iter().enumerate() {
        assert!(key.len() == 32 && key.bytes().all(|b| b.is_ascii_hexdigit()));
        assert!(!all[..at].contains(key));
    }
}
