//! S25: a purpose is for one call of an attempt. What else would have its key is refused, rather than
//! answered as if it were done; what tries again is not.

use std::sync::{Arc, Mutex};

use futures::{future::join, poll};
use tokio::sync::Barrier;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_idempotency::{
    IdempotencyKey, MemoryStore,
    client::{Purpose, SetIdempotencyKeyLayer, SetKeyError},
};

use crate::{
    base::layer,
    calls::{CHARGE, Lost, Network, Reply, charge, charge_for, operation, refused, send, to},
};

fn taken(purpose: &str) -> SetKeyError {
    SetKeyError::PurposeTaken(Purpose::new(purpose))
}

/// S25: a second call that would have the key of the first one is refused, while the first one is
/// under way and once it is done; with a name of its own it is sent.
#[tokio::test]
async fn s25_two_calls_of_an_attempt_do_not_share_a_key() {
    let network = Network::default();
    let client = network.client();
    let status = operation(&layer(MemoryStore::new()), "k", async move |execution| {
        let (first, second) = join(send(&client, charge()), send(&client, charge())).await;
        assert_eq!(first.unwrap(), 201);
        assert_eq!(refused(second), taken(CHARGE));
        let error = refused(send(&client, charge()).await);
        assert_eq!(error, taken(CHARGE));
        assert!(error.to_string().contains(CHARGE) && error.to_string().contains("Purpose"));
        // However it is spelt.
        let third = send(&client, to("HTTP://u:p@BANK.example/charges?x=1")).await;
        assert_eq!(refused(third), taken(CHARGE));
        let error = refused(send(&client, charge_for(CHARGE)).await);
        assert_eq!(error, taken(CHARGE));

        for purpose in ["item 1", "item 2"] {
            send(&client, charge_for(purpose)).await.unwrap();
        }
        let error = refused(send(&client, charge_for("item 1")).await);
        assert_eq!(error, taken("item 1"));
        send(&client, to("http://bank.example/refunds"))
            .await
            .unwrap();
        send(&client, to("http://mint.example/charges"))
            .await
            .unwrap();

        let sent = [
            CHARGE,
            "item 1",
            "item 2",
            "POST http://bank.example/refunds",
            "POST http://mint.example/charges",
        ];
        let keys = sent.map(|purpose| execution.derive(purpose));
        assert_eq!(client.get_ref().keys(), keys);
        201
    });
    assert_eq!(status.await, 201);
    assert_eq!(network.count(), 5);
}

/// S26: a handler's own loop of tries has one key: what failed gives its name back.
#[tokio::test]
async fn s25_s26_a_call_that_failed_can_be_tried_again() {
    for (reply, is_done) in [
        (Reply::Status(200), true),
        (Reply::Status(204), true),
        (Reply::Status(303), true),
        (Reply::Status(400), false),
        (Reply::Status(409), false),
        (Reply::Status(429), false),
        (Reply::Status(500), false),
        (Reply::Status(503), false),
        (Reply::Status(600), false),
        (Reply::Lost, false),
        (Reply::Grpc("0"), true),
        (Reply::Grpc("14"), false),
    ] {
        let network = Network::default();
        network.next([reply]);
        let client = network.client();
        let status = operation(&layer(MemoryStore::new()), "k", async move |_| {
            let _ = send(&client, charge_for("deposit")).await;
            match send(&client, charge_for("deposit")).await {
                Ok(status) => status,
                error => {
                    assert_eq!(refused(error), taken("deposit"), "{reply:?}");
                    202
                }
            }
        });
        let expected = if is_done { 202 } else { 201 };
        assert_eq!(status.await, expected, "{reply:?}");
        let keys = network.keys();
        assert_eq!(keys.len(), if is_done { 1 } else { 2 }, "{reply:?}");
        assert!(keys.iter().all(|key| *key == keys[0]));
    }
}

/// S25: one whose future was dropped, by a timeout, say, can be tried again, too.
#[tokio::test]
async fn s25_a_dropped_call_gives_its_purpose_back() {
    let network = Network::default();
    network.next([Reply::Never]);
    let client = network.client();
    let status = operation(&layer(MemoryStore::new()), "k", async move |_| {
        let mut hanging = Box::pin(send(&client, charge_for("deposit")));
        assert!(poll!(&mut hanging).is_pending());
        assert_eq!(
            refused(send(&client, charge_for("deposit")).await),
            taken("deposit")
        );
        drop(hanging);
        send(&client, charge_for("deposit")).await.unwrap()
    });
    assert_eq!(status.await, 201);
    let keys = network.keys();
    assert_eq!((keys.len(), &keys[0]), (2, &keys[1]));
}

/// S25: without a name nobody can tell a second try from another call, which the service would take
/// for the first one: it is refused, whatever became of the first.
#[tokio::test]
async fn s25_a_second_call_to_an_endpoint_needs_a_name_after_a_failure_too() {
    for reply in [
        Reply::Status(400),
        Reply::Status(503),
        Reply::Lost,
        Reply::Never,
    ] {
        let network = Network::default();
        network.next([reply]);
        let client = network.client();
        let status = operation(&layer(MemoryStore::new()), "k", async move |_| {
            let mut first = Box::pin(send(&client, charge()));
            let _ = poll!(&mut first);
            drop(first);
            assert_eq!(
                refused(send(&client, charge()).await),
                taken(CHARGE),
                "{reply:?}"
            );
            send(&client, charge_for("another")).await.unwrap()
        });
        assert_eq!(status.await, 201);
        assert_eq!(network.count(), 2);
    }
}

/// S25: one who knows that it is the same call gives it the key, and is not asked.
#[tokio::test]
async fn s25_a_derived_key_can_be_sent_again() {
    let network = Network::default();
    let client = network.client();
    let status = operation(&layer(MemoryStore::new()), "k", async move |execution| {
        send(&client, charge_for("deposit")).await.unwrap();
        let key = execution.derive("deposit");
        let mut in_header = charge();
        let value = key.parse().unwrap();
        in_header.headers_mut().insert("idempotency-key", value);
        send(&client, in_header).await.unwrap();
        let mut in_extension = charge_for("deposit");
        let value = IdempotencyKey::new(&key).unwrap();
        in_extension.extensions_mut().insert(value);
        send(&client, in_extension).await.unwrap();
        assert_eq!(client.get_ref().keys(), vec![key; 3]);
        201
    });
    assert_eq!(status.await, 201);
}

/// S26: tries further in are one call.
#[tokio::test]
async fn s26_tries_inside_of_the_layer_are_one_call() {
    let network = Network::default();
    network.next([Reply::Lost, Reply::Status(503)]);
    let mut tries = network.clone();
    let client = ServiceBuilder::new()
        .layer(SetIdempotencyKeyLayer::new().require_execution(true))
        .service(service_fn(move |request: http::Request<_>| {
            let tries = tries.clone();
            async move {
                loop {
                    match tries.clone().oneshot(request.clone()).await {
                        Ok(answer) if answer.status() == 201 => {
                            break Ok::<_, Lost>(answer);
                        }
                        _ => {}
                    }
                }
            }
        }));
    let status = operation(&layer(MemoryStore::new()), "k", async move |_| {
        send(&client, charge()).await.unwrap()
    });
    assert_eq!(status.await, 201);
    tries = network;
    let keys = tries.keys();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0]));
}

/// P9: how many purposes an attempt can have is bounded. The next attempt begins anew.
#[tokio::test]
async fn p9_purposes_are_bounded() {
    let network = Network::default();
    let layer = layer(MemoryStore::new());
    let client = network.client();
    let status = operation(&layer, "k", async move |execution| {
        for n in 0..4096 {
            let request = charge_for(&format!("item {n}"));
            assert_eq!(send(&client, request).await.unwrap(), 201);
        }
        let error = refused(send(&client, charge()).await);
        assert_eq!(error, SetKeyError::TooManyPurposes);
        let error = refused(send(&client, charge_for("item 7")).await);
        assert_eq!(error, taken("item 7"));
        let mut named = charge();
        let key = IdempotencyKey::new(execution.derive("one more")).unwrap();
        named.extensions_mut().insert(key);
        assert_eq!(send(&client, named).await.unwrap(), 201);
        500
    });
    assert_eq!(status.await, 500);
    let client = network.client();
    let status = operation(&layer, "k", async move |_| {
        send(&client, charge_for("item 7")).await.unwrap()
    });
    assert_eq!(status.await, 201);
    let keys = network.keys();
    assert_eq!((keys.len(), &keys[4097]), (4098, &keys[7]));
}

/// S10, S25: of several threads that want one purpose at once, one has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s10_s25_one_of_many_threads_has_a_purpose() {
    const THREADS: usize = 8;
    let sent = Arc::new(Mutex::new(0));
    let counted = sent.clone();
    let status = operation(&layer(MemoryStore::new()), "k", async move |execution| {
        // Those that are refused let the one go that is not.
        let (start, end) = (
            Arc::new(Barrier::new(THREADS)),
            Arc::new(Barrier::new(THREADS)),
        );
        let calls = (0..THREADS).map(|_| {
            let (start, end, inside) = (start.clone(), end.clone(), end.clone());
            let counted = counted.clone();
            let client = SetIdempotencyKeyLayer::new().layer(service_fn(move |_| {
                *counted.lock().unwrap() += 1;
                let inside = inside.clone();
                async move {
                    inside.wait().await;
                    Ok::<_, Lost>(http::Response::new(()))
                }
            }));
            let mut request = charge();
            request.extensions_mut().insert(execution.clone());
            tokio::spawn(async move {
                start.wait().await;
                let answer = client.oneshot(request).await;
                if answer.is_err() {
                    end.wait().await;
                }
                answer.is_ok()
            })
        });
        let calls: Vec<_> = calls.collect();
        let calls = futures::future::join_all(calls).await;
        let sent = calls.into_iter().filter(|sent| *sent.as_ref().unwrap());
        assert_eq!(sent.count(), 1);
        201
    });
    let limit = std::time::Duration::from_secs(60);
    let status = tokio::time::timeout(limit, status).await;
    assert_eq!(status.expect("nobody waits for ever"), 201);
    assert_eq!(*sent.lock().unwrap(), 1);
}
