//! S26: one key for each operation, whatever becomes of its tries.

use std::{
    collections::BTreeSet,
    future::{Future, Ready, ready},
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use allocation_counter::measure;
use bytes::Bytes;
use futures::FutureExt;
use http::{Method, Request, Response};
use http_body_util::Full;
use proptest::prelude::*;
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt,
    retry::{Policy, RetryLayer},
    service_fn,
};
use tower_idempotency::{
    Execution, IdempotencyKey, InvalidKey, MemoryStore,
    client::{Purpose, SetIdempotencyKeyLayer, SetKeyError},
};

use crate::{
    base::{Handled, answer, layer},
    calls::{Lost, Network, Reply, charge, charge_for, refused, send, to},
};

/// Tries until something comes back that is no 503.
#[derive(Clone)]
struct UntilDone;

impl<E> Policy<Request<Full<Bytes>>, Response<Full<Bytes>>, E> for UntilDone {
    type Future = Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<Full<Bytes>>,
        result: &mut Result<Response<Full<Bytes>>, E>,
    ) -> Option<Ready<()>> {
        let done = result.as_ref().is_ok_and(|answer| answer.status() != 503);
        (!done).then(|| ready(()))
    }

    fn clone_request(&mut self, request: &Request<Full<Bytes>>) -> Option<Request<Full<Bytes>>> {
        Some(request.clone())
    }
}

/// S26: the key stays the same over all tries, and the next operation has another one.
#[tokio::test]
async fn s26_all_tries_of_an_operation_have_one_key() {
    for (layer, version) in [
        (SetIdempotencyKeyLayer::new(), '4'),
        (SetIdempotencyKeyLayer::default(), '4'),
        (SetIdempotencyKeyLayer::new().uuid_v7(), '7'),
    ] {
        let network = Network::default();
        network.next([Reply::Status(503), Reply::Lost, Reply::Status(201)]);
        network.next([Reply::Lost, Reply::Lost, Reply::Status(409)]);
        let client = ServiceBuilder::new()
            .layer(layer)
            .layer(RetryLayer::new(UntilDone))
            .service(network.clone());
        assert_eq!(send(&client, charge()).await.unwrap(), 201);
        assert_eq!(send(&client, charge()).await.unwrap(), 409);

        let keys = network.keys();
        assert_eq!(keys.len(), 6);
        assert!(keys[..3].iter().all(|key| *key == keys[0]), "{keys:?}");
        assert!(keys[3..].iter().all(|key| *key == keys[3]), "{keys:?}");
        assert_ne!(keys[0], keys[3]);
        for key in &keys {
            assert_eq!((key.len(), key.chars().nth(14)), (36, Some(version)));
        }
        let known: Vec<_> = keys.into_iter().map(Some).collect();
        assert_eq!(network.keys_in_extensions(), known);
    }
}

/// Keys of version 7 are in the order in which they were made.
#[tokio::test]
async fn uuids_of_version_7_are_ordered() {
    let network = Network::default();
    let client = SetIdempotencyKeyLayer::new().uuid_v7();
    let client = client.layer(network.clone());
    for _ in 0..100 {
        send(&client, charge()).await.unwrap();
    }
    let keys = network.keys();
    assert!(keys.is_sorted());
    assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), 100);
}

/// The user's key is sent as it is: from the header in any spelling, or from the extensions.
#[tokio::test]
async fn s26_the_users_key_is_kept() {
    let network = Network::default();
    let client = SetIdempotencyKeyLayer::new()
        .quoted()
        .layer(network.clone());
    for spelt in ["order-1", "\"order-1\"", "\"order-1\";v=1"] {
        let mut request = charge();
        let key = spelt.parse().unwrap();
        request.headers_mut().insert("idempotency-key", key);
        let other = IdempotencyKey::new("another").unwrap();
        request.extensions_mut().insert(other);
        send(&client, request).await.unwrap();
        assert_eq!(network.keys().last().unwrap(), spelt);
    }
    let mut request = charge();
    let key = IdempotencyKey::new("order-2").unwrap();
    request.extensions_mut().insert(key);
    send(&client, request).await.unwrap();
    assert_eq!(network.keys().last().unwrap(), "\"order-2\"");
    let known = network.keys_in_extensions();
    let known: Vec<_> = known.iter().map(|key| key.as_deref()).collect();
    assert_eq!(known[..3], [Some("order-1"); 3]);
    assert_eq!(known[3], Some("order-2"));
}

/// A key that no server takes is not sent (U38), and the error does not show it (U19).
#[tokio::test]
async fn u19_u38_a_malformed_key_is_not_sent() {
    let network = Network::default();
    let client = SetIdempotencyKeyLayer::new().layer(network.clone());
    let long = "a".repeat(256);
    for values in [
        &[""][..],
        &["secret, b"],
        &["\"secret"],
        &["secret\""],
        &["secr\u{e9}t"],
        &[long.as_str()],
        &["secret", "secret"],
    ] {
        let mut request = charge();
        for value in values {
            let value = http::HeaderValue::from_bytes(value.as_bytes()).unwrap();
            request.headers_mut().append("idempotency-key", value);
        }
        let error = refused(send(&client, request).await);
        assert!(matches!(error, SetKeyError::Invalid(_)), "{error:?}");
        let source = std::error::Error::source(&error).unwrap();
        assert!(!format!("{error:?} {error} {source}").contains("secr"));
    }
    assert_eq!(network.count(), 0);
}

/// S11, P10: methods that are idempotent by themselves pass untouched, without an allocation.
#[test]
fn s11_p10_other_methods_pass_untouched() {
    let seen = Arc::new(Mutex::new(Vec::with_capacity(64)));
    let log = seen.clone();
    let inner = service_fn(move |request: Request<()>| {
        let has_key = request.headers().contains_key("idempotency-key");
        let known = request.extensions().get::<IdempotencyKey>().is_some();
        log.lock()
            .unwrap()
            .push((request.method().clone(), has_key, known));
        ready(Ok::<_, Lost>(Response::new(())))
    });
    let usual = SetIdempotencyKeyLayer::new();
    let only_put = usual.clone().covers(|parts| parts.method == Method::PUT);
    let methods = [
        Method::GET,
        Method::HEAD,
        Method::PUT,
        Method::DELETE,
        Method::OPTIONS,
        Method::CONNECT,
        Method::POST,
        Method::PATCH,
    ];
    for (layer, covered) in [
        (usual, &[Method::POST, Method::PATCH][..]),
        (only_put, &[Method::PUT]),
    ] {
        let mut client = layer.layer(inner.clone());
        for method in &methods {
            let mut request = Some(Request::new(()));
            *request.as_mut().unwrap().method_mut() = method.clone();
            let taken = measure(|| {
                let call = client.call(request.take().unwrap());
                assert!(matches!(call.now_or_never(), Some(Ok(_))));
            });
            let is_covered = covered.contains(method);
            let seen = seen.lock().unwrap().pop().unwrap();
            assert_eq!(seen, (method.clone(), is_covered, is_covered));
            assert_eq!(taken.count_total > 0, is_covered, "{method}: {taken:?}");
        }
    }
    // Not even a wrong key is looked at.
    let network = Network::default();
    let client = SetIdempotencyKeyLayer::new().layer(network.clone());
    let request = Request::get("/").header("idempotency-key", "a, b");
    let sent = send(&client, request.body(Full::default()).unwrap());
    let sent = futures::executor::block_on(sent);
    assert_eq!((sent.unwrap(), network.count()), (201, 1));
}

/// The header's name, and its form: bare where it can be.
#[tokio::test]
async fn i01_the_header_is_bare_unless_asked_or_impossible() {
    let spelt = async |layer: &SetIdempotencyKeyLayer, key: &str| {
        let network = Network::default();
        let mut request = charge();
        let key = IdempotencyKey::new(key).unwrap();
        request.extensions_mut().insert(key);
        let client = layer.layer(network.clone());
        send(&client, request).await.unwrap();
        network.values("x-key")[0].clone()
    };
    let bare = SetIdempotencyKeyLayer::new().header("X-Key");
    let quoted = bare.clone().quoted();
    for (key, in_bare, in_quotes) in [
        ("k", "k", r#""k""#),
        ("a b", "a b", r#""a b""#),
        (r"a\b", r"a\b", r#""a\\b""#),
        ("a,b", r#""a,b""#, r#""a,b""#),
        (r#"a"b"#, r#""a\"b""#, r#""a\"b""#),
        (r#""k""#, r#""\"k\"""#, r#""\"k\"""#),
        (" k", r#"" k""#, r#"" k""#),
        ("k ", r#""k ""#, r#""k ""#),
        (" ", r#"" ""#, r#"" ""#),
    ] {
        assert_eq!(spelt(&bare, key).await, in_bare);
        assert_eq!(spelt(&quoted, key).await, in_quotes);
    }
    // A header of the usual name is nothing to a layer with another one.
    let network = Network::default();
    let mut request = charge();
    let other = "other".parse().unwrap();
    request.headers_mut().insert("idempotency-key", other);
    send(&bare.layer(network.clone()), request).await.unwrap();
    assert_eq!(network.keys(), ["other"]);
    assert_eq!(network.values("x-key")[0].len(), 36);
}

#[test]
#[should_panic(expected = "a header's name")]
fn the_name_of_the_header_is_checked_at_once() {
    let _ = SetIdempotencyKeyLayer::new().header("no name");
}

/// U19: the key stays out of the debug output of what is sent.
#[tokio::test]
async fn u19_the_header_is_sensitive() {
    let network = Network::default();
    let client = SetIdempotencyKeyLayer::new().layer(network.clone());
    let mut kept = charge();
    let key = "secret-1".parse().unwrap();
    kept.headers_mut().insert("idempotency-key", key);
    let mut given = charge();
    let key = IdempotencyKey::new("secret-2").unwrap();
    given.extensions_mut().insert(key);
    for request in [kept, given] {
        send(&client, request).await.unwrap();
    }
    assert_eq!(network.keys(), ["secret-1", "secret-2"]);
    let shown = format!("{:?}", network.values("idempotency-key"));
    assert_eq!(shown, "[Sensitive, Sensitive]");
}

/// S20, S26: a key by the user's function, which is asked once for each operation.
#[tokio::test]
async fn s20_s26_keys_are_made_by_a_function() {
    let network = Network::default();
    let asked = Arc::new(Mutex::new(0));
    let counted = asked.clone();
    let layer = SetIdempotencyKeyLayer::new().make_key(move |parts| {
        *counted.lock().unwrap() += 1;
        match parts.uri.path().strip_prefix("/orders/") {
            Some(number) => IdempotencyKey::new(format!("order_{number}_payment")),
            None => Err(InvalidKey::new("there is no order")),
        }
    });
    let client = ServiceBuilder::new()
        .layer(layer)
        .layer(RetryLayer::new(UntilDone))
        .service(network.clone());
    network.next([Reply::Lost, Reply::Status(503)]);
    send(&client, to("http://bank.example/orders/7"))
        .await
        .unwrap();
    assert_eq!(network.keys(), ["order_7_payment"; 3]);
    assert_eq!(*asked.lock().unwrap(), 1);

    let error = refused(send(&client, charge()).await);
    assert_eq!(
        error,
        SetKeyError::Invalid(InvalidKey::new("there is no order"))
    );
    assert_eq!(network.count(), 3);
}

/// An error of the client's is the client's, from both of its ends.
#[tokio::test]
async fn errors_of_the_inner_service_pass() {
    let network = Network::default();
    network.next([Reply::Lost]);
    let client = SetIdempotencyKeyLayer::new().layer(network);
    let error = send(&client, charge()).await.unwrap_err();
    assert_eq!(error.downcast_ref::<Lost>(), Some(&Lost));

    struct NeverReady;
    impl Service<Request<()>> for NeverReady {
        type Response = Response<()>;
        type Error = Lost;
        type Future = Ready<Result<Response<()>, Lost>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Lost>> {
            Poll::Ready(Err(Lost))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            unreachable!("it is not ready")
        }
    }
    let mut client = SetIdempotencyKeyLayer::new().layer(NeverReady);
    let error = client.ready().await.err().unwrap();
    assert_eq!(error.downcast_ref::<Lost>(), Some(&Lost));
}

/// Where an execution is required, a request without one and without a key is not sent. A purpose
/// alone makes no execution.
#[tokio::test]
async fn s25_without_an_execution_a_new_key_can_be_refused() {
    let network = Network::default();
    let client = network.client();
    for request in [charge(), charge_for("deposit")] {
        let error = refused(send(&client, request).await);
        assert_eq!(error, SetKeyError::NoExecution);
    }
    assert_eq!(network.count(), 0);
    let mut named = charge();
    let key = IdempotencyKey::new("order-1").unwrap();
    named.extensions_mut().insert(key);
    send(&client, named).await.unwrap();
    assert_eq!(network.keys(), ["order-1"]);
}

/// U25: what is set on a clone is the clone's own.
#[tokio::test]
async fn u25_options_of_a_clone_are_its_own() {
    let network = Network::default();
    let layer = SetIdempotencyKeyLayer::new();
    let other = layer.clone().header("x-other").require_execution(true);
    send(&layer.layer(network.clone()), charge()).await.unwrap();
    assert_eq!(network.keys()[0].len(), 36);
    let shown = format!("{layer:?} {other:?}");
    assert!(
        shown.contains("idempotency-key") && shown.contains("x-other"),
        "{shown}"
    );
}

/// Public types stand in the services of others: they can be sent, shared and shown.
#[test]
fn types_fit_where_they_are_used() {
    fn fits<T: Send + Sync + Clone + std::fmt::Debug + 'static>(_: &T) {}
    fits(&SetIdempotencyKeyLayer::new());
    fits(&SetIdempotencyKeyLayer::new().layer(()));
    fits(&Purpose::new("deposit"));
    fits(&SetKeyError::NoExecution);
    // Also around services whose error is boxed already, as tower's own are.
    fn is_sent<F: Future + Send + 'static>(_: F) {}
    let stack = ServiceBuilder::new()
        .timeout(Duration::from_secs(1))
        .layer(SetIdempotencyKeyLayer::new())
        .layer(SetIdempotencyKeyLayer::new().header("x-second"))
        .timeout(Duration::from_secs(1))
        .service(Network::default());
    is_sent(async move { stack.oneshot(charge()).await });

    let mut service = SetIdempotencyKeyLayer::new().layer(7);
    *service.get_mut() += 1;
    assert_eq!((*service.get_ref(), service.into_inner()), (8, 8));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// I01, U02: whatever the key, in either form our server reads the one that was meant.
    #[test]
    fn i01_u02_the_server_reads_the_key_that_was_meant(
        text in "[ -~]{1,40}",
        quoted in any::<bool>(),
    ) {
        let read = Arc::new(Mutex::new(None));
        let log = read.clone();
        let server = layer(MemoryStore::new()).layer(service_fn(move |request: Handled| {
            let execution = request.extensions().get::<Execution>();
            *log.lock().unwrap() = execution.map(|execution| execution.key().to_owned());
            ready(answer(201, "done"))
        }));
        let client = SetIdempotencyKeyLayer::new();
        let client = if quoted { client.quoted() } else { client };
        let mut request = charge();
        request.extensions_mut().insert(IdempotencyKey::new(&text).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let sent = runtime.unwrap().block_on(send(&client.layer(server), request));
        prop_assert_eq!(sent.unwrap(), 201);
        let read = read.lock().unwrap().take();
        prop_assert_eq!(read, Some(text));
    }
}
