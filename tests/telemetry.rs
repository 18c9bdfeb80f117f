//! U19: what is told of a request, and what is not.

#![allow(clippy::unwrap_used)]

#[path = "http/support.rs"]
#[allow(dead_code)]
mod support;

use std::{
    cell::RefCell,
    io::Write,
    sync::{Mutex, Once},
    time::Duration,
};

use futures::poll;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_idempotency::{
    Execution, OnConflict, Operation, Outcome, Reason, Store,
    function::{Codec, Effect},
};
use tracing::Instrument;

use support::{Fault, Handled, Op, Scripted, answer, layer, post};

/// Each test has a thread of its own, and so a log of its own. The subscriber is one for all: the
/// `tracing` crate remembers for the whole process which events nobody wants.
struct Log;

thread_local! {
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.with_borrow_mut(|log| log.write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Collects all events of this thread.
    fn collect() -> Self {
        static SUBSCRIBER: Once = Once::new();
        SUBSCRIBER.call_once(|| {
            tracing_subscriber::fmt()
                .with_max_level(tracing::Level::TRACE)
                .with_ansi(false)
                .with_writer(|| Self)
                .init();
        });
        Self
    }

    fn text(&self) -> String {
        LOG.with_borrow(|log| String::from_utf8(log.clone()).unwrap())
    }

    fn lines_with(&self, part: &str) -> usize {
        self.text()
            .lines()
            .filter(|line| line.contains(part))
            .count()
    }
}

const SECRETS: [&str; 4] = [
    "secret-key",
    "secret-body",
    "secret-answer",
    "secret-checkpoint",
];

/// Every kind of event is told, and none holds a key in clear, a body, an answer or a checkpoint.
#[tokio::test(start_paused = true)]
async fn u19_events_tell_the_outcome_and_no_secret() {
    let log = Log::collect();
    let store = Scripted::new();
    let layer = layer(store.clone()).max_detached(1);
    let handler = |request: Handled| async move {
        let execution = request.extensions().get::<Execution>().unwrap().clone();
        execution.save_checkpoint("secret-checkpoint").await.ok();
        let silent = ["secret-key-silent", "secret-key-cut"].contains(&execution.key());
        if silent && execution.attempt() == 1 {
            tokio::time::sleep(Duration::from_secs(3_600)).await;
        }
        match execution.key() {
            "secret-key-fails" => answer(500, "secret-answer"),
            _ => answer(201, "secret-answer"),
        }
    };
    let mut service = layer.layer(service_fn(handler));
    let ask = |key: &'static str, body: &'static str| {
        let call = service.clone().oneshot(post(key, body));
        async move { *call.await.unwrap().extensions().get::<Outcome>().unwrap() }
    };
    let outcomes = [
        ask("secret-key", "secret-body").await,
        ask("secret-key", "secret-body").await,
        ask("secret-key", "secret-body 2").await,
        ask("secret-key-fails", "secret-body").await,
        ask("", "secret-body").await,
    ];
    assert_eq!(
        outcomes,
        [
            Outcome::Completed,
            Outcome::Replayed,
            Outcome::Refused(Reason::Mismatch),
            Outcome::Failed,
            Outcome::Refused(Reason::KeyInvalid),
        ]
    );
    for outcome in outcomes {
        let field = format!("outcome=\"{outcome}\"");
        assert_eq!(log.lines_with(&field), 1, "{field} in\n{}", log.text());
    }

    // Errors of the store, work that was cut off, and its takeover.
    store.next(Op::Claim, Fault::Lost);
    ask("secret-key", "secret-body").await;
    layer.drain().await;
    assert_eq!(log.lines_with("operation=\"claim\""), 1, "{}", log.text());
    for key in ["secret-key-silent", "secret-key-cut"] {
        let mut call = Box::pin(
            service
                .ready()
                .await
                .unwrap()
                .call(post(key, "secret-body")),
        );
        assert!(poll!(call.as_mut()).is_pending());
    }
    assert_eq!(log.lines_with("ERROR"), 1, "{}", log.text());
    tokio::time::sleep(Duration::from_secs(31)).await;
    let taken = service.oneshot(post("secret-key-cut", "secret-body")).await;
    assert_eq!(taken.unwrap().status().as_u16(), 201);
    assert_eq!(log.lines_with("taking over"), 1, "{}", log.text());
    for secret in SECRETS {
        assert!(!log.text().contains(secret), "{secret} in\n{}", log.text());
    }
}

/// P5: a takeover is a warning; so is a supersession.
#[tokio::test(start_paused = true)]
async fn p5_p6_takeover_and_supersession_are_warnings() {
    let log = Log::collect();
    let store = Scripted::new();
    let layer = layer(store.clone());
    let handler = |request: Handled| async move {
        let execution = request.extensions().get::<Execution>().unwrap().clone();
        if execution.attempt() == 1 {
            execution.superseded().await;
        }
        answer(201, "done")
    };
    let mut service = layer.layer(service_fn(handler));
    store.always(Op::Renew, Fault::Lost);
    let stale = tokio::spawn(service.ready().await.unwrap().call(post("k", "b")));
    tokio::time::sleep(Duration::from_secs(31)).await;
    service
        .ready()
        .await
        .unwrap()
        .call(post("k", "b"))
        .await
        .unwrap();
    assert_eq!(log.lines_with("taking over"), 1, "{}", log.text());
    store.mend();
    stale.await.unwrap().unwrap();
    assert_eq!(
        log.lines_with("has taken this one's key over"),
        1,
        "{}",
        log.text()
    );
}

/// U18: a record that cannot be read is told as an error.
#[tokio::test]
async fn u18_an_unreadable_record_is_reported() {
    let log = Log::collect();
    let store = Scripted::new();
    let handler = {
        let store = store.clone();
        move |request: Handled| {
            let store = store.clone();
            async move {
                let execution = request.extensions().get::<Execution>().unwrap().clone();
                // What a later version of this crate might leave.
                store.forget(execution.store_key()).await.unwrap();
                let claim = tower_idempotency::ClaimRequest {
                    fingerprint: FINGERPRINT.lock().unwrap().unwrap(),
                    owner: tower_idempotency::OwnerId::from_u128(7),
                    lease: Duration::from_secs(30),
                    ttl: Duration::from_secs(60),
                    take_over: true,
                };
                let claim = store.claim(execution.store_key(), &claim).await.unwrap();
                let tower_idempotency::Claim::Claimed(claimed) = claim else {
                    panic!("{claim:?}")
                };
                let payload = tower_idempotency::Payload::new(201, b"\xff\xff\xff"[..].into());
                store
                    .complete(
                        execution.store_key(),
                        &claimed.lease,
                        &payload,
                        Duration::from_secs(60),
                    )
                    .await
                    .unwrap();
                answer(201, "done")
            }
        }
    };
    static FINGERPRINT: Mutex<Option<tower_idempotency::Fingerprint>> = Mutex::new(None);
    // The fingerprint of the request, as the layer makes it.
    let peek = {
        let store = store.clone();
        move |request: Handled| {
            let store = store.clone();
            async move {
                let execution = request.extensions().get::<Execution>().unwrap().clone();
                let found = store.get(execution.store_key()).await.unwrap().unwrap();
                *FINGERPRINT.lock().unwrap() = Some(found.record.fingerprint);
                answer(422, "")
            }
        }
    };
    let peeking = layer(store.clone()).layer(service_fn(peek));
    peeking.oneshot(post("k", "b")).await.unwrap();

    let service = layer(store.clone()).layer(service_fn(handler));
    for _ in 0..2 {
        // The first is superseded by the record, the second finds it.
        let refused = service.clone().oneshot(post("k", "b")).await.unwrap();
        let outcome = refused.extensions().get();
        assert_eq!(outcome, Some(&Outcome::Refused(Reason::StoreUnavailable)));
    }
    assert_eq!(log.lines_with("cannot be read"), 2, "{}", log.text());
}

/// S28, U19: a function tells the same events, and a result that cannot be written or read as an
/// error; none of them holds a key, an input or a result.
#[tokio::test(start_paused = true)]
async fn s28_u19_functions_tell_the_outcome_and_no_secret() {
    /// Takes no text with `unwritable` in it, and reads none with `unreadable`.
    #[derive(Clone)]
    struct Picky;
    impl Codec<String> for Picky {
        type Error = std::fmt::Error;
        fn encode(&self, value: &String) -> Result<Vec<u8>, std::fmt::Error> {
            match value.contains("unwritable") {
                true => Err(std::fmt::Error),
                false => Ok(value.clone().into_bytes()),
            }
        }
        fn decode(&self, bytes: &[u8]) -> Result<String, std::fmt::Error> {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            match text.contains("unreadable") {
                true => Err(std::fmt::Error),
                false => Ok(text),
            }
        }
    }
    let log = Log::collect();
    let store = Scripted::new();
    let operation = Operation::with_codec("pay", store.clone(), Picky);
    let call = async |key: &str, input: &str, value: &'static str| {
        let work = move |_| async move {
            match value {
                "" => Err(std::fmt::Error),
                value => Ok(format!("secret-answer {value}")),
            }
        };
        let call = operation.call(key).scope("secret-scope").input_bytes(input);
        let _ = call.run(work).await;
    };
    call("secret-key", "secret-body", "done").await;
    call("secret-key", "secret-body", "done").await;
    call("secret-key", "another secret-body", "done").await;
    call("secret-key-fails", "secret-body", "").await;
    call("secret-key-1", "secret-body", "unwritable").await;
    call("secret-key-2", "secret-body", "unreadable").await;
    call("secret-key-2", "secret-body", "unreadable").await;
    call("secret-\n", "secret-body", "done").await;
    store.next(Op::Claim, Fault::Full);
    call("secret-key-3", "secret-body", "done").await;
    // What did nothing after something had been done counts as failed.
    for key in ["secret-key-4", "secret-key-fails"] {
        let call = operation.call(key).scope("secret-scope");
        let work = async |_| Err::<String, _>(std::fmt::Error);
        let call = call.input_bytes("secret-body");
        let _ = call.run_judged(work, |_| Effect::None).await;
    }
    for (part, lines) in [
        ("outcome=\"completed\"", 2),
        ("outcome=\"replayed\"", 1),
        ("outcome=\"mismatch\"", 1),
        ("outcome=\"failed\"", 2),
        ("outcome=\"rejected\"", 1),
        ("outcome=\"completed-not-replayable\"", 1),
        ("outcome=\"store-unavailable\"", 1),
        ("outcome=\"key-invalid\"", 1),
        ("outcome=\"overloaded\"", 1),
        ("a result cannot be encoded", 1),
        ("a recorded answer cannot be read", 1),
        ("operation=\"claim\"", 1),
        ("ERROR", 2),
        ("secret", 0),
    ] {
        assert_eq!(log.lines_with(part), lines, "{part} in\n{}", log.text());
    }
}

/// U30: a wait that goes on failing is told once, not with each poll and each waiter.
#[tokio::test(start_paused = true)]
async fn u30_a_failing_wait_is_told_once() {
    let log = Log::collect();
    let store = Scripted::new();
    store.always(Op::Wait, Fault::Lost);
    store.always(Op::Get, Fault::Lost);
    let layer = layer(store.clone()).on_conflict(OnConflict::Wait(Duration::from_secs(30)));
    let handler = |_: Handled| async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        answer(201, "done")
    };
    let service = layer.layer(service_fn(handler));
    let _first = tokio::spawn(service.clone().oneshot(post("k", "b")));
    tokio::task::yield_now().await;
    let waiters = (0..10).map(|_| service.clone().oneshot(post("k", "b")));
    for waited in futures::future::join_all(waiters).await {
        assert_eq!(waited.unwrap().status().as_u16(), 409);
    }
    assert!(store.count(Op::Get) >= 10);
    let told = (
        log.lines_with("operation=\"wait\""),
        log.lines_with("operation=\"get\""),
    );
    assert_eq!(told, (1, 0), "{}", log.text());
}

/// The span of the request goes with the work when its caller leaves.
#[tokio::test(start_paused = true)]
async fn p4_the_span_goes_with_detached_work() {
    let log = Log::collect();
    let layer = layer(Scripted::new());
    let handler = |_: Handled| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        tracing::info!("the effect");
        answer(201, "done")
    };
    let mut service = layer.layer(service_fn(handler));
    let span = tracing::info_span!("request", id = 7);
    let call = span.in_scope(|| service.call(post("k", "b")));
    let mut call = Box::pin(call.instrument(span));
    assert!(poll!(call.as_mut()).is_pending());
    drop(call);
    layer.drain().await;
    assert_eq!(
        log.lines_with("request{id=7}: telemetry: the effect"),
        1,
        "{}",
        log.text()
    );
}
