//! What a caller gets, fresh and replayed.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use http::{HeaderMap, HeaderValue, Request as HttpRequest, Response as HttpResponse};
use http_body_util::{BodyExt, Full};
use prost::Message;
use tonic::{
    Code, Response, Status, body::Body, codec::CompressionEncoding, metadata::MetadataValue,
    service::Routes,
};
use tonic_types::{ErrorDetails, StatusExt};
use tower_idempotency::{Execution, verdict};

use crate::{
    payments::{Payment, payments_client::PaymentsClient},
    support::{PAY, Server, Till, euros, framed, is_replay, keyed, layer},
};

/// Numbers its payments, and says which attempt each was.
fn numbered() -> (Till, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let till = Till::new().on_pay(move |request| {
        let id = counted.fetch_add(1, Ordering::SeqCst) + 1;
        let execution = request.extensions().get::<Execution>();
        let attempt = execution.map_or(0, Execution::attempt);
        let key = execution.map_or_else(String::new, |execution| execution.key().to_owned());
        async move {
            let payment = Payment {
                id,
                amount: request.get_ref().amount,
                currency: request.into_inner().currency,
                attempt,
                key,
            };
            let mut response = Response::new(payment);
            let metadata = response.metadata_mut();
            metadata.append("x-part", MetadataValue::from_static("1"));
            metadata.append("x-other", MetadataValue::from_static("0"));
            metadata.append("x-part", MetadataValue::from_static("2"));
            metadata.append_bin("x-part-bin", MetadataValue::from_bytes(b"\0\xff"));
            metadata.append_bin("x-part-bin", MetadataValue::from_bytes(b""));
            Ok(response)
        }
    });
    (till, count)
}

/// P2, U07, U22: initial metadata with its repetitions, message and trailers are the same again.
#[tokio::test]
async fn p2_u07_u22_a_unary_call_is_replayed_as_it_was() {
    let (till, count) = numbered();
    let server = Server::of(&layer(), till).await;
    let mut client = server.client().await;

    let first = client.pay(keyed("a", euros(7))).await.unwrap();
    // U02: quoted, it is the same key.
    let again = client.pay(keyed("\"a\"", euros(7))).await.unwrap();
    assert!(!is_replay(&first) && is_replay(&again));
    assert_eq!(first.get_ref(), again.get_ref());
    assert_eq!(
        (first.get_ref().attempt, &first.get_ref().key[..]),
        (1, "a")
    );
    let parts: Vec<_> = again.metadata().get_all("x-part").iter().collect();
    assert_eq!(parts, ["1", "2"]);
    let parts = again.metadata().get_all_bin("x-part-bin");
    let parts: Vec<_> = parts.iter().map(|part| part.to_bytes().unwrap()).collect();
    assert_eq!(parts, [&b"\0\xff"[..], b""]);

    let message = euros(7).encode_to_vec();
    let headers = [("idempotency-key", "b")];
    let (first, fresh) = server.raw(PAY, &headers, &message).await.stripped();
    let (again, replayed) = server.raw(PAY, &headers, &message).await.stripped();
    assert_eq!((fresh, replayed), (false, true));
    assert_eq!(first, again);
    assert_eq!(first.status, 200);
    assert_eq!(first.trailers.unwrap()["grpc-status"], "0");
    assert_eq!(count.load(Ordering::SeqCst), 2);

    // Without a key, each is a payment.
    for id in [3, 4] {
        let payment = client.pay(euros(7)).await.unwrap();
        assert!(!is_replay(&payment));
        assert_eq!((payment.get_ref().id, payment.get_ref().attempt), (id, 0));
    }
}

/// P2: a status without a message, in an answer of trailers only, with what it carries.
#[tokio::test]
async fn p2_an_error_that_is_recorded_is_replayed_as_it_was() {
    let till = Till::new().on_pay(|_| async {
        let details = ErrorDetails::with_error_info("NO_MONEY", "bank", []);
        let message = "nö money: 100 %";
        let mut status = Status::with_error_details(Code::FailedPrecondition, message, details);
        let metadata = status.metadata_mut();
        metadata.append("x-part", MetadataValue::from_static("1"));
        metadata.append("x-part", MetadataValue::from_static("2"));
        metadata.append_bin("x-part-bin", MetadataValue::from_bytes(b"\0\xff"));
        Err(status)
    });
    let layer = layer().judge(verdict::record_errors);
    let server = Server::of(&layer, till).await;
    let mut client = server.client().await;

    let first = client.pay(keyed("a", euros(7))).await.unwrap_err();
    let again = client.pay(keyed("a", euros(7))).await.unwrap_err();
    for status in [&first, &again] {
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.message(), "nö money: 100 %");
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "NO_MONEY");
        let parts: Vec<_> = status.metadata().get_all("x-part").iter().collect();
        assert_eq!(parts, ["1", "2"]);
        let part = status.metadata().get_bin("x-part-bin").unwrap();
        assert_eq!(part.to_bytes().unwrap(), &b"\0\xff"[..]);
    }
    assert!(!first.metadata().contains_key("idempotent-replayed"));
    assert!(again.metadata().contains_key("idempotent-replayed"));

    let message = euros(7).encode_to_vec();
    let headers = [("idempotency-key", "b")];
    let (first, fresh) = server.raw(PAY, &headers, &message).await.stripped();
    let (again, replayed) = server.raw(PAY, &headers, &message).await.stripped();
    assert_eq!((fresh, replayed), (false, true));
    assert_eq!(first, again);
    assert_eq!((first.body.len(), first.trailers), (0, None));
    assert!(!first.headers.contains_key("content-length"));
}

/// U07, U22: trailers of the handler's own, repeated ones and binary ones among them, which tonic's
/// server does not send, and another server may.
#[tokio::test]
async fn u07_u22_trailers_of_the_handlers_own_are_replayed() {
    let upstream = tower::service_fn(|_request: HttpRequest<_>| async {
        let _: HttpRequest<tower_idempotency::RequestBody<Body>> = _request;
        let mut trailers = HeaderMap::new();
        trailers.append("x-cost", HeaderValue::from_static("3"));
        trailers.append("grpc-status", HeaderValue::from_static("0"));
        trailers.append("x-cost", HeaderValue::from_static("4"));
        trailers.append("x-cost-bin", HeaderValue::from_static("AP8"));
        let body = Full::from(framed(&Payment::default().encode_to_vec()));
        let body = body.with_trailers(async move { Some(Ok(trailers)) });
        let response = HttpResponse::builder()
            .header("content-type", "application/grpc+proto")
            .header("x-first", "1");
        Ok::<_, std::convert::Infallible>(response.body(body).unwrap())
    });
    let layer = layer();
    let service = tower::Layer::layer(&layer, upstream);
    // tonic's client right on the service.
    let mut client = PaymentsClient::new(service);
    for replayed in [false, true] {
        let answer = client.pay_in_parts(keyed("a", crate::payments::PartsRequest::default()));
        let answer = answer.await.unwrap();
        assert_eq!(is_replay(&answer), replayed);
        assert_eq!(answer.metadata().get("x-first").unwrap(), "1");
        let mut messages = answer.into_inner();
        assert!(messages.message().await.unwrap().is_some());
        assert!(messages.message().await.unwrap().is_none());
        let trailers = messages.trailers().await.unwrap().unwrap();
        let cost: Vec<_> = trailers.get_all("x-cost").iter().collect();
        assert_eq!(cost, ["3", "4"]);
        let cost = trailers.get_bin("x-cost-bin").unwrap();
        assert_eq!(cost.to_bytes().unwrap(), &b"\0\xff"[..]);
    }
}

/// Compressed messages are recorded as they are sent, and so is what says how to read them: whoever
/// cannot read that is told so by its own client.
#[tokio::test]
async fn p2_compressed_messages_are_replayed() {
    let (till, count) = numbered();
    let gzip = CompressionEncoding::Gzip;
    let service = till.server().accept_compressed(gzip).send_compressed(gzip);
    let server = Server::start(layer(), Routes::new(service)).await;
    let client = server.client().await;
    let mut client = client.send_compressed(gzip).accept_compressed(gzip);
    let long = |amount| {
        let mut request = euros(amount);
        request.currency = "EUR".repeat(1000);
        request
    };
    for replayed in [false, true] {
        let answer = client.pay(keyed("a", long(7))).await.unwrap();
        assert_eq!(is_replay(&answer), replayed);
        assert_eq!(answer.metadata().get("grpc-encoding").unwrap(), "gzip");
        assert_eq!(answer.get_ref().currency.len(), 3000);
    }
    let mut plain = server.client().await.send_compressed(gzip);
    let unreadable = plain.pay(keyed("a", long(7))).await.unwrap_err();
    assert_eq!(unreadable.code(), Code::Unimplemented);
    let other = client.pay(keyed("a", long(8))).await.unwrap_err();
    assert_eq!(other.code(), Code::FailedPrecondition);
    assert_eq!(count.load(Ordering::SeqCst), 1);

    let message = long(7).encode_to_vec();
    let headers = [("idempotency-key", "b"), ("grpc-accept-encoding", "gzip")];
    let (first, _) = server.raw(PAY, &headers, &message).await.stripped();
    let (again, replayed) = server.raw(PAY, &headers, &message).await.stripped();
    assert!(replayed && first == again);
    assert!(
        first.body[0] == 1 && first.body.len() < 1000,
        "it is compressed"
    );
}
