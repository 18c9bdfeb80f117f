//! S25: the calls of a handler have the same keys in each of its attempts.

use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, future::join, poll};
use http::{Request, StatusCode};
use http_body_util::Full;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_idempotency::{
    Entry, Execution, IdempotencyKey, IdempotencyLayer, MemoryStore, Operation, Outcome, Scope,
    client::{SetIdempotencyKeyLayer, SetKeyError},
};

use crate::{
    base::{Effects, Fault, Given, Handled, Op, Scripted, answer, layer, post, read, yield_once},
    calls::{CHARGE, Network, Reply, charge, charge_for, operation, refused, send, to},
};

/// S25, P2: a second server of ours does each call once, however often the first one's handler runs.
#[tokio::test(start_paused = true)]
async fn s25_the_effect_of_a_call_is_had_once_over_all_attempts() {
    let (bank_effects, attempts) = (Effects::default(), Effects::default());
    let bank = {
        let effects = bank_effects.clone();
        layer(MemoryStore::new()).layer(service_fn(move |_: Handled| {
            let number = effects.add();
            async move { answer(201, format!("charge {number}")) }
        }))
    };
    let client = SetIdempotencyKeyLayer::new().require_execution(true);
    let client = client.layer(bank);
    let shop = layer(MemoryStore::new());
    let shop = shop.layer(service_fn({
        let attempts = attempts.clone();
        move |_: Handled| {
            let (client, attempt) = (client.clone(), attempts.add());
            async move {
                let mut text = String::new();
                for purpose in ["deposit", "shipping"] {
                    let charged = client.clone().oneshot(charge_for(purpose));
                    text.push_str(read(charged.await.unwrap()).await.text());
                    // It fails between its calls, then after them, and then it does not.
                    match attempt {
                        1 => return answer(500, text),
                        2 if purpose == "shipping" => panic!("as the test wants it"),
                        _ => {}
                    }
                }
                answer(201, text)
            }
        }
    }));
    let order = async || {
        let call = shop.clone().oneshot(post("order-1", "b"));
        let answer = std::panic::AssertUnwindSafe(call).catch_unwind().await;
        read(answer.map_err(drop)?.unwrap()).map(Ok::<_, ()>).await
    };
    assert_eq!(order().await.unwrap().status, 500);
    assert!(order().await.is_err(), "it panics");
    let third = order().await.unwrap();
    assert_eq!(
        (third.status.as_u16(), third.text()),
        (201, "charge 1charge 2")
    );
    assert!(order().await.unwrap().is_replay());
    assert_eq!((attempts.count(), bank_effects.count()), (3, 2));
}

/// S25, P5: the attempt after a crash has the keys of the one that crashed.
#[tokio::test(start_paused = true)]
async fn s25_p5_a_takeover_has_the_same_keys() {
    let network = Network::default();
    let layer = layer(Scripted::new());
    // Cut off where it stands, after the call arrived.
    let crashing = layer.clone().max_detached(0);
    let client = network.client();
    network.next([Reply::Never]);
    let mut crash = Box::pin(operation(&crashing, "k", async move |_| {
        send(&client, charge()).await.unwrap()
    }));
    for _ in 0..3 {
        assert!(poll!(&mut crash).is_pending());
    }
    drop(crash);
    assert_eq!(network.count(), 1);

    tokio::time::sleep(Duration::from_secs(30)).await;
    let client = network.client();
    let status = operation(&layer, "k", async move |execution| {
        assert_eq!(
            (execution.attempt(), execution.entry()),
            (2, Entry::Takeover)
        );
        send(&client, charge()).await.unwrap()
    });
    assert_eq!(status.await, 201);
    let keys = network.keys();
    assert_eq!((keys.len(), &keys[0]), (2, &keys[1]));
}

/// S25: keys tell operations, callers and endpoints apart, and are `derive` of the purpose.
#[tokio::test]
async fn s25_keys_are_derived_from_the_execution() {
    let network = Network::default();
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::header("x-caller"));
    let client = network.client();
    let shop = layer.layer(service_fn(move |request: Handled| {
        let client = client.clone();
        async move {
            let execution: &Execution = request.extensions().get().unwrap();
            let keys = [
                execution.derive(CHARGE),
                execution.derive("POST http://bank.example/refunds"),
                execution.derive("deposit"),
            ];
            for call in [
                charge(),
                to("http://bank.example/refunds?at=12"),
                charge_for("deposit"),
            ] {
                send(&client, call).await.unwrap();
            }
            answer(200, keys.join(" "))
        }
    }));
    let mut derived = Vec::new();
    for (path, caller, key) in [
        ("/a", "alice", "k"),
        ("/b", "alice", "k"),
        ("/a", "bob", "k"),
        ("/a", "alice", "l"),
    ] {
        let order = Request::post(path)
            .header("x-caller", caller)
            .header("idempotency-key", key)
            .body(Full::<Bytes>::from("b"))
            .unwrap();
        let answer = read(shop.clone().oneshot(order).await.unwrap()).await;
        derived.extend(answer.text().split(' ').map(str::to_owned));
    }
    assert_eq!(network.keys(), derived);
    derived.sort_unstable();
    derived.dedup();
    assert_eq!(derived.len(), 12);
}

/// S25, P4: a handler whose caller has left still calls under its own keys.
#[tokio::test(start_paused = true)]
async fn s25_p4_the_keys_stay_when_the_caller_leaves() {
    let network = Network::default();
    let layer = layer(Scripted::new());
    let client = network.client();
    let mut left = Box::pin(operation(&layer, "k", async move |execution| {
        for purpose in ["before", "after"] {
            let request = charge_for(purpose);
            assert_eq!(send(&client, request).await.unwrap(), 201);
            assert_eq!(network_key(&client), execution.derive(purpose));
        }
        201
    }));
    assert!(poll!(&mut left).is_pending());
    drop(left);
    layer.drain().await;
    assert_eq!(network.count(), 2);
    // It ended well, or else this would run.
    let again = operation(&layer, "k", async |_| unreachable!("it is recorded"));
    assert_eq!(again.await, 201);
}

/// The last key that was sent.
fn network_key(client: &tower_idempotency::client::SetIdempotencyKey<Network>) -> String {
    client.get_ref().keys().pop().unwrap()
}

/// S25: a task of the handler's own is outside, unless it is given the execution.
#[tokio::test]
async fn s25_a_spawned_task_must_be_given_the_execution() {
    let network = Network::default();
    let (strict, lenient) = (
        network.client(),
        SetIdempotencyKeyLayer::new().layer(network.clone()),
    );
    let status = operation(&layer(MemoryStore::new()), "k", async move |execution| {
        let spawned = tokio::spawn({
            let execution = execution.clone();
            async move {
                let error = refused(send(&strict, charge()).await);
                assert_eq!(error, SetKeyError::NoExecution);
                send(&lenient, charge()).await.unwrap();

                let mut request = charge();
                request.extensions_mut().insert(execution);
                send(&strict, request).await.unwrap()
            }
        });
        let status = spawned.await.unwrap();
        let keys = network.keys();
        assert_eq!((keys.len(), keys[0].len()), (2, 36), "the first is random");
        assert_eq!(keys[1], execution.derive(CHARGE));
        status
    });
    assert_eq!(status.await, 201);
}

/// S25: which execution a call belongs to: the one that it was given, before the current one; and a
/// key of its own before both.
#[tokio::test]
async fn s25_what_is_given_comes_before_what_is_current() {
    let network = Network::default();
    let layer = layer(MemoryStore::new());
    let client = network.client();
    let status = operation(&layer.clone(), "outer", async move |outer| {
        let operation = Operation::new("inner", MemoryStore::new());
        let call = operation.call("inner").run(async move |inner| {
            send(&client, charge()).await.unwrap();
            assert_eq!(network_key(&client), inner.derive(CHARGE));

            let mut request = charge();
            request.extensions_mut().insert(outer.clone());
            send(&client, request).await.unwrap();
            assert_eq!(network_key(&client), outer.derive(CHARGE));

            let mut request = charge();
            request.extensions_mut().insert(outer.clone());
            let own = IdempotencyKey::new("own").unwrap();
            request.extensions_mut().insert(own);
            send(&client, request).await.unwrap();
            assert_eq!(network_key(&client), "own");
            Ok::<_, std::convert::Infallible>(())
        });
        let done = call.await.unwrap();
        assert_eq!(done.outcome(), Outcome::Completed);
        201
    });
    assert_eq!(status.await, 201);
}

/// S25: two executions whose work is interleaved on one thread do not see each other's key.
#[tokio::test]
async fn s25_interleaved_executions_have_their_own_keys() {
    let network = Network::default();
    let layer = layer(Scripted::yielding());
    let work = |client: tower_idempotency::client::SetIdempotencyKey<Network>| {
        async move |execution: Execution| {
            for n in 0..5 {
                yield_once().await;
                let purpose = format!("{} {n}", execution.key());
                assert_eq!(send(&client, charge_for(&purpose)).await.unwrap(), 201);
            }
            let key = execution.key().to_owned();
            let keys = client.get_ref().keys();
            let own = |n| execution.derive(&format!("{key} {n}"));
            assert!((0..5).all(|n| keys.contains(&own(n))));
            201
        }
    };
    let both = join(
        operation(&layer, "a", work(network.client())),
        operation(&layer, "b", work(network.client())),
    );
    assert_eq!(both.await, (201, 201));
    // They did run side by side, or this proves nothing.
    let order = network.purposes();
    assert_eq!(order[..4], ["a 0", "b 0", "a 1", "b 1"]);
}

/// P8, S25: a handler that its layer lets run without protection has no execution, and a client that
/// requires one does not call.
#[tokio::test]
async fn p8_s25_without_protection_nothing_is_forwarded() {
    let network = Network::default();
    let store = Scripted::new();
    store.always(Op::Claim, Fault::Lost);
    let client = network.client();
    let shop = layer(store).fail_open(true);
    let shop = shop.layer(service_fn(move |_: Handled| {
        let client = client.clone();
        async move {
            let error = refused(send(&client, charge()).await);
            assert_eq!(error, SetKeyError::NoExecution);
            answer(503, "later")
        }
    }));
    let answer = shop.oneshot(post("k", "b")).await.unwrap();
    let outcome = answer.extensions().get::<Outcome>();
    assert_eq!(
        (answer.status().as_u16(), outcome),
        (503, Some(&Outcome::Unprotected))
    );
    assert_eq!(network.count(), 0);
}

/// A proxy: what it passes on has the key that it came with, and no other.
#[tokio::test]
async fn s25_a_request_that_is_passed_on_keeps_its_key() {
    let network = Network::default();
    let client = network.client();
    let proxy = layer(MemoryStore::new()).layer(service_fn(move |request: Handled| {
        let mut client = client.clone();
        async move {
            let (parts, _) = request.into_parts();
            let passed = client.call(Request::from_parts(parts, Full::from("b")));
            let status = passed.await.unwrap().status();
            assert_eq!(status, StatusCode::CREATED);
            answer(201, "passed on") as Given
        }
    }));
    proxy.oneshot(post("order-1", "b")).await.unwrap();
    assert_eq!(network.keys(), ["order-1"]);
}
