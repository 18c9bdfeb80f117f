//! Each refusal, as tonic's client sees it.

use std::{future::pending, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream;
use http::header;
use prost::Message;
use tokio::sync::{Semaphore, mpsc};
use tonic::{Code, Request, Response, Status, metadata::MetadataValue};
use tonic_types::StatusExt;
use tower_idempotency::{Fingerprinter, IdempotencyLayer, MemoryStore, Reason, Scope, Takeover};

use crate::{
    base::{Fault, Op, Scripted},
    payments::{PayRequest, Payment},
    support::{PAY, Server, Till, euros, in_time, is_replay, keyed, layer},
};

fn paying() -> Till {
    Till::new().on_pay(|_| async { Ok(Response::new(Payment::default())) })
}

fn with_header<T>(mut request: Request<T>, name: &'static str, value: &str) -> Request<T> {
    let value = MetadataValue::try_from(value).unwrap();
    request.metadata_mut().append(name, value);
    request
}

/// The code, and all that a program can read of why and of when to try again.
#[track_caller]
fn assert_refused(status: &Status, code: Code, reason: &str, retry: bool) {
    assert_eq!(status.code(), code, "{status:?}");
    let details = status.get_error_details();
    let info = details.error_info().expect("an ErrorInfo");
    assert_eq!(
        (&info.reason[..], &info.domain[..]),
        (reason, "tower-idempotency")
    );
    assert!(info.metadata.is_empty());
    let delay = details.retry_info().map(|retry| retry.retry_delay.unwrap());
    assert_eq!(delay, retry.then_some(Duration::from_secs(2)), "{reason}");
    let said = |name| {
        let value = status.metadata().get(name);
        value.map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(
        said("retry-after").as_deref(),
        retry.then_some("2"),
        "{reason}"
    );
    let pushback = said("grpc-retry-pushback-ms");
    assert_eq!(pushback.as_deref(), retry.then_some("2000"), "{reason}");
    assert!(!status.message().is_empty());
    assert!(details.help().is_none());
}

fn told<S>(layer: IdempotencyLayer<S>) -> IdempotencyLayer<S> {
    layer.retry_after(Duration::from_secs(2))
}

/// S12, I02, I08: without a key where one is required, and with one that is none.
#[tokio::test]
async fn s12_i02_i08_a_missing_or_malformed_key_is_an_invalid_argument() {
    let server = Server::of(&told(layer().require_key(true)), paying()).await;
    let mut client = server.client().await;
    let status = client.pay(euros(7)).await.unwrap_err();
    assert_refused(&status, Code::InvalidArgument, "KEY_MISSING", false);
    // U38: and two keys that a proxy has joined.
    for key in ["", "\"a", "a, b"] {
        let status = client.pay(keyed(key, euros(7))).await.unwrap_err();
        assert_refused(&status, Code::InvalidArgument, "KEY_INVALID", false);
    }
    let twice = with_header(keyed("a", euros(7)), "idempotency-key", "a");
    let status = client.pay(twice).await.unwrap_err();
    assert_refused(&status, Code::InvalidArgument, "KEY_INVALID", false);
}

/// I12, U33: a caller who cannot be told from others has no permission.
#[tokio::test]
async fn i12_u33_a_caller_who_is_unknown_has_no_permission() {
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::header("x-api-key"));
    let server = Server::of(&told(layer), paying()).await;
    let mut client = server.client().await;
    let status = client.pay(keyed("a", euros(7))).await.unwrap_err();
    assert_refused(&status, Code::PermissionDenied, "CALLER_UNKNOWN", false);
    for (caller, replayed) in [("alice", false), ("bob", false), ("alice", true)] {
        let request = with_header(keyed("a", euros(7)), "x-api-key", caller);
        assert_eq!(is_replay(&client.pay(request).await.unwrap()), replayed);
    }
}

/// I07, S13, S29, U26: in progress, with when to retry; another payload is told so first. And then
/// the answer.
#[tokio::test]
async fn i07_s29_u26_a_duplicate_is_aborted_and_another_payload_fails() {
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let till = Till::new().on_pay(move |_| {
        let (begun, gate) = (begun.clone(), Arc::clone(&gate));
        async move {
            begun.send(()).unwrap();
            gate.acquire().await.unwrap().forget();
            Ok(Response::new(Payment::default()))
        }
    });
    let server = Server::of(&told(layer()), till).await;
    let mut client = server.client().await;
    let mut first = client.clone();
    let first = tokio::spawn(async move { first.pay(keyed("a", euros(7))).await });
    in_time(has_begun.recv()).await.unwrap();

    let status = client.pay(keyed("a", euros(7))).await.unwrap_err();
    assert_refused(&status, Code::Aborted, "IN_PROGRESS", true);
    assert!(status.message().contains("\"a\""), "{status}");
    let mismatch = client.pay(keyed("a", euros(8))).await.unwrap_err();
    assert_refused(&mismatch, Code::FailedPrecondition, "MISMATCH", false);

    opened.add_permits(1);
    assert!(!is_replay(&in_time(first).await.unwrap().unwrap()));
    assert!(is_replay(&client.pay(keyed("a", euros(7))).await.unwrap()));
    let mismatch = client.pay(keyed("a", euros(8))).await.unwrap_err();
    assert_refused(&mismatch, Code::FailedPrecondition, "MISMATCH", false);
    assert!(has_begun.try_recv().is_err());
}

/// U06: an answer that is too large to keep.
#[tokio::test]
async fn u06_what_cannot_be_replayed_already_exists() {
    let till = Till::new().on_pay(|_| async {
        Ok(Response::new(Payment {
            currency: "x".repeat(1000),
            ..Payment::default()
        }))
    });
    let server = Server::of(&told(layer().response_limit(100)), till).await;
    let mut client = server.client().await;
    let whole = client.pay(keyed("a", euros(7))).await.unwrap();
    assert_eq!(whole.get_ref().currency.len(), 1000);
    let status = client.pay(keyed("a", euros(7))).await.unwrap_err();
    assert_refused(&status, Code::AlreadyExists, "NOT_REPLAYABLE", false);
}

/// P5: an execution that went silent, where nobody takes over.
#[tokio::test]
async fn p5_an_abandoned_key_that_is_not_taken_over_fails() {
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let till = Till::new().on_pay(move |_| {
        begun.send(()).unwrap();
        pending()
    });
    // An execution is cut off when its caller leaves, as if its process had died.
    let layer = layer().max_detached(0).lease(Duration::from_millis(20));
    let server = Server::of(&told(layer.takeover(Takeover::refuse())), till).await;
    let mut client = server.client().await;
    let mut first = client.clone();
    let first = tokio::spawn(async move { first.pay(keyed("a", euros(7))).await });
    in_time(has_begun.recv()).await.unwrap();
    first.abort();
    let abandoned = async {
        loop {
            let status = client.pay(keyed("a", euros(7))).await.unwrap_err();
            if status.code() != Code::Aborted {
                break status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let status = in_time(abandoned).await;
    assert_refused(&status, Code::FailedPrecondition, "ABANDONED", false);
}

/// U16, U36, U37, P8: limits, a store that is down, and a record of another version.
#[tokio::test]
async fn u16_u36_u37_p8_limits_and_a_store_that_is_down() {
    // What frames a message counts.
    let exactly = 5 + euros(7).encoded_len();
    for (limit, passes) in [(exactly, true), (exactly - 1, false)] {
        let server = Server::of(&told(layer().body_limit(limit)), paying()).await;
        let answer = server.client().await.pay(keyed("a", euros(7))).await;
        match passes {
            true => assert!(answer.is_ok()),
            false => {
                let status = answer.unwrap_err();
                assert_refused(&status, Code::ResourceExhausted, "BODY_TOO_LARGE", false);
            }
        }
    }

    let server = Server::of(&told(layer().buffer_limit(4)), paying()).await;
    let answer = server.client().await.pay(keyed("a", euros(7))).await;
    assert_refused(&answer.unwrap_err(), Code::Unavailable, "OVERLOADED", true);

    let store = Scripted::new();
    store.always(Op::Claim, Fault::Lost);
    let down = IdempotencyLayer::new(store.clone(), Scope::single_tenant());
    let server = Server::of(&told(down), paying()).await;
    let mut client = server.client().await;
    let status = client.pay(keyed("a", euros(7))).await.unwrap_err();
    assert_refused(&status, Code::Unavailable, "STORE_UNAVAILABLE", true);
    store.mend();
    assert!(!is_replay(&client.pay(keyed("a", euros(7))).await.unwrap()));

    let store = Arc::new(MemoryStore::new());
    let old = IdempotencyLayer::new(Arc::clone(&store), Scope::single_tenant());
    let new = old
        .clone()
        .fingerprint(Fingerprinter::from_fn("x", |_, _, _| {}));
    let server = Server::of(&told(old), paying()).await;
    server
        .client()
        .await
        .pay(keyed("a", euros(7)))
        .await
        .unwrap();
    let server = Server::of(&told(new), paying()).await;
    let answer = server.client().await.pay(keyed("a", euros(7))).await;
    assert_refused(&answer.unwrap_err(), Code::Aborted, "OTHER_ALGORITHM", true);
}

/// P9: a body that does not end in time.
#[tokio::test]
async fn p9_a_body_that_is_too_slow_exceeds_its_deadline() {
    let layer = told(layer().body_timeout(Duration::from_millis(50)));
    let server = Server::of(&layer, paying()).await;
    let mut client = server.client().await;
    let messages = stream::pending::<PayRequest>();
    let answer = in_time(client.pay_batch(keyed("a", messages))).await;
    assert_refused(
        &answer.unwrap_err(),
        Code::DeadlineExceeded,
        "BODY_TOO_SLOW",
        false,
    );
}

/// I03: the URL of the documentation is a help link. `on_refusal` gets what would be sent, and can
/// replace it.
#[tokio::test]
async fn i03_i10_a_refusal_links_its_documentation_and_can_be_replaced() {
    let url = "https://example.com/docs#keys";
    let linked = layer().require_key(true).docs_url(url);
    let server = Server::of(&linked, paying()).await;
    let status = server.client().await.pay(euros(7)).await.unwrap_err();
    let details = status.get_error_details();
    assert_eq!(details.help().unwrap().links[0].url, url);

    let replaced = linked.on_refusal(|refusal, response| {
        assert_eq!(refusal.reason(), Reason::KeyMissing);
        let given = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(given.code(), Code::InvalidArgument);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/grpc");
        Status::unauthenticated("no key, no payment").into_http::<Bytes>()
    });
    let server = Server::of(&replaced, paying()).await;
    let status = server.client().await.pay(euros(7)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unauthenticated, "no key, no payment")
    );
}

/// Which requests are gRPC is said by their content type alone; others get a problem document.
#[tokio::test]
async fn i10_only_grpc_is_refused_by_a_status() {
    let server = Server::of(&layer().require_key(true), paying()).await;
    for (content_type, is_grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("Application/gRPC+json", true),
        ("application/grpc; charset=utf-8", true),
        ("application/grpc ;x", true),
        ("application/grpc-web+proto", false),
        ("application/grpc-web", false),
        ("application/grpcx", false),
        ("application/grp", false),
        ("application/json", false),
    ] {
        let answer = server
            .raw(PAY, &[("content-type", content_type)], b"")
            .await;
        match is_grpc {
            true => {
                assert_eq!(answer.status, 200, "{content_type}");
                assert_eq!(answer.headers["grpc-status"], "3");
                assert_eq!(answer.headers["content-type"], "application/grpc");
                assert!(answer.body.is_empty() && answer.trailers.is_none());
                assert!(!answer.headers.contains_key("content-length"));
            }
            false => {
                assert_eq!(answer.status, 400, "{content_type}");
                assert_eq!(answer.headers["content-type"], "application/problem+json");
                assert!(!answer.headers.contains_key("grpc-status"));
            }
        }
    }
}
