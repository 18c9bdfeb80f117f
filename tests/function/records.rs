//! U06, U18: what is recorded, and what is not one of ours.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::{
    Claim, ClaimRequest, Fingerprint, Fingerprinter, IdempotencyLayer, MemoryStore, Outcome,
    OwnerId, Payload, Reason, RequestBody, RunError, Scope, Store, StoreKey,
};

use crate::support::{Bench, Failure};

fn fingerprint() -> Fingerprint {
    Fingerprint::hasher("mine/1").finish()
}

/// Records a payload by hand.
async fn record(store: &impl Store, key: &StoreKey, payload: Payload) {
    let ttl = Duration::from_secs(60);
    let request = ClaimRequest {
        fingerprint: fingerprint(),
        owner: OwnerId::random(),
        lease: ttl,
        ttl,
        take_over: true,
    };
    store.forget(key).await.unwrap();
    let claim = store.claim(key, &request).await.unwrap();
    let Claim::Claimed(claimed) = claim else {
        panic!("{claim:?}")
    };
    let recorded = store.complete(key, &claimed.lease, &payload, ttl).await;
    recorded.unwrap();
}

/// What a call meets that finds this payload.
async fn found(bench: &Bench, payload: Payload) -> RunError<Failure> {
    let call = || bench.call("k", "").fingerprint(fingerprint());
    let key = call().store_key().unwrap();
    record(&bench.store, &key, payload).await;
    let before = bench.effects.count();
    let error = bench.send_over(call()).await.unwrap_err();
    assert_eq!(bench.effects.count(), before);
    error
}

/// U18: a record that is no result of a function, or of another version, is reported; nothing runs.
#[tokio::test]
async fn s28_u18_what_is_not_a_result_is_not_read() {
    let bench = Bench::new();
    let call = || bench.call("k", "").fingerprint(fingerprint());
    let key = call().store_key().unwrap();
    bench.send_over(call()).await.unwrap();
    let ours = bench.store.get(&key).await.unwrap().unwrap();
    let ours = ours.record.payload.unwrap();
    assert_eq!(&ours.bytes[1..], b"effect 1");

    let with = |code, bytes: &[u8]| Payload::new(code, Bytes::copy_from_slice(bytes));
    let mut next_version = ours.bytes.to_vec();
    next_version[0] += 1;
    for payload in [
        with(200, &ours.bytes),
        with(0, &next_version),
        with(0, b"effect 1"),
        with(0, b"\0"),
        http_answer().await,
        // The codec says no, or panics.
        with(0, &[&ours.bytes[..1], b"not to be read"].concat()),
        with(0, &[&ours.bytes[..1], b"panic when read"].concat()),
        with(0, &[&ours.bytes[..1], b"\xff"].concat()),
    ] {
        let error = found(&bench, payload.clone()).await;
        assert!(
            matches!(error, RunError::Unreadable(_)),
            "{payload:?} {error:?}"
        );
        assert!(!error.is_retryable() && !error.work_ran());
    }
    let error = found(&bench, Payload::not_replayable(0)).await;
    assert!(matches!(error, RunError::NotReplayable), "{error:?}");

    // A result may be empty, and is no empty payload.
    record(&bench.store, &key, with(0, &ours.bytes[..1])).await;
    assert_eq!(bench.send_over(call()).await.unwrap().value(), "");
}

/// An empty value is a value.
#[tokio::test]
async fn s28_p2_an_empty_value_is_replayed() {
    let bench = Bench::new();
    for replayed in [false, true] {
        let done = bench.give("k", Ok("")).await.unwrap();
        assert_eq!((done.value().as_str(), done.is_replayed()), ("", replayed));
    }
}

/// U18: the type has changed since.
#[tokio::test]
async fn s28_u18_a_value_of_another_type_is_not_read() {
    let bench = Bench::new();
    bench.send("k", "b").await.unwrap();
    let changed = bench
        .call("k", "b")
        .run(|_| async { Ok::<u64, Failure>(1) });
    let error = changed.await.unwrap_err();
    let RunError::Unreadable(source) = error else {
        panic!("{error:?}")
    };
    assert!(source.is::<std::num::ParseIntError>());
    // The record is as it was.
    assert_eq!(bench.send("k", "b").await.unwrap().value(), "effect 1");
}

/// U06: a value that the codec does not take, or at which it panics, reaches its caller, and
/// nothing runs again.
#[tokio::test]
async fn s28_u06_a_value_that_cannot_be_written_is_given_once() {
    for value in ["not to be written", "panic when written"] {
        let bench = Bench::new();
        let done = bench.give("k", Ok(value)).await.unwrap();
        assert_eq!(done.outcome(), Outcome::NotReplayable);
        assert_eq!(done.value(), value);
        let again = bench.give("k", Ok(value)).await;
        assert!(matches!(again, Err(RunError::NotReplayable)), "{again:?}");
        assert_eq!(bench.effects.count(), 1);
    }
}

/// An answer as a layer records it.
async fn http_answer() -> Payload {
    let store = std::sync::Arc::new(MemoryStore::new());
    let (outcome, _) = ask(&store).await;
    assert_eq!(outcome, Outcome::Completed);
    let key = StoreKey::new("idem", "", "", "k");
    let found = store.get(&key).await.unwrap().unwrap();
    found.record.payload.unwrap()
}

/// Sends a request through a layer that compares nothing and keeps keys over all endpoints.
async fn ask<S: Store + Clone>(store: &S) -> (Outcome, u16) {
    let layer = IdempotencyLayer::new(store.clone(), Scope::single_tenant())
        .scope_by_endpoint(false)
        .fingerprint(Fingerprinter::from_fn("mine/1", |_, _, _| {}));
    let handler = |_: Request<RequestBody<Full<Bytes>>>| async {
        Ok::<_, Infallible>(Response::new(Full::from("paid")))
    };
    let request = Request::post("/").header("idempotency-key", "k");
    let request = request.body(Full::default()).unwrap();
    let response = layer.layer(service_fn(handler)).oneshot(request).await;
    let response = response.unwrap();
    let outcome = *response.extensions().get::<Outcome>().unwrap();
    (outcome, response.status().as_u16())
}

/// U18: and a layer does not take a function's record for an answer.
#[tokio::test]
async fn s28_u18_a_layer_does_not_read_a_result() {
    let bench = Bench::new();
    bench.send("k", "b").await.unwrap();
    let key = bench.call("k", "b").store_key().unwrap();
    let ours = bench.store.get(&key).await.unwrap().unwrap();
    let shared = StoreKey::new("idem", "", "", "k");
    record(&bench.store, &shared, ours.record.payload.unwrap()).await;
    let refused = Outcome::Refused(Reason::StoreUnavailable);
    assert_eq!(ask(&bench.store).await, (refused, 503));
}
