//! P5, S08: what the next attempt knows after a failure and after a crash, and what it may do.
//!
//! A crash is an execution that is cut off where it stands: its future is dropped, and the layer
//! may detach nothing.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::poll;
use http::{Response, StatusCode};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_idempotency::{
    CheckpointError, Entry, Execution, IdempotencyLayer, Outcome, Probed, Reason, Store,
    StoreError, Takeover,
};

use crate::support::{Effects, Handled, Op, Scripted, answer, layer, post, read};

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
                store.next(Op::Renew, crate::support::Fault::Lost);
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
