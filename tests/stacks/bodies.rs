//! Layers that change bodies or limit them: what is recorded, what is compared, and who answers.

use std::{
    convert::Infallible,
    io::{Read, Write},
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use tower::Layer;
use tower_http::{
    compression::CompressionLayer,
    decompression::{DecompressionLayer, RequestDecompressionLayer},
    limit::RequestBodyLimitLayer,
    map_request_body::MapRequestBodyLayer,
    map_response_body::MapResponseBodyLayer,
};
use tower_idempotency::RequestBody;

use crate::support::{
    Answer, Effects, Op, Payments, Scripted, ask, assert_once, chunked, layer, post, with,
};

type Boxed = BoxBody<Bytes, Infallible>;

/// Long enough to be compressed.
const LONG: &str = "one long answer, one long answer, one long answer, one long answer";

fn is_gzip(answer: &Answer) -> bool {
    let stated = answer.headers.get("content-encoding");
    assert_eq!(stated.is_some(), answer.body.starts_with(&[0x1f, 0x8b]));
    stated.is_some_and(|encoding| encoding == "gzip")
}

fn gunzip(bytes: &[u8]) -> String {
    let mut plain = String::new();
    let mut decoder = flate2::read::GzDecoder::new(bytes);
    decoder.read_to_string(&mut plain).unwrap();
    plain
}

fn gzip(text: &str, level: u32) -> Bytes {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap().into()
}

fn from_gzip_client() -> Request<Full<Bytes>> {
    with(post("k", LONG), "accept-encoding", "gzip")
}

fn from_plain_client() -> Request<Full<Bytes>> {
    post("k", LONG)
}

/// The answer of [`Payments`] to [`LONG`].
fn paid() -> String {
    format!("effect 1: {LONG}")
}

/// Compression outside: one plain record, given to each client as it likes it.
#[tokio::test]
async fn p2_compression_outside() {
    let (payments, store) = (Payments::new(), Scripted::new());
    let service = (CompressionLayer::new(), layer(store.clone())).layer(payments.clone());
    for replay in [false, true] {
        let gzipped = ask(&service, from_gzip_client()).await;
        assert!(is_gzip(&gzipped));
        assert_eq!(gunzip(&gzipped.body), paid());
        let plain = ask(&service, from_plain_client()).await;
        assert!(!is_gzip(&plain));
        assert_eq!(plain.text(), paid());
        assert_eq!((gzipped.is_replay(), plain.is_replay()), (replay, true));
    }
    assert_eq!((payments.effects(), store.store().len()), (1, 1));
    // Refusals too.
    let mismatch = with(post("k", "other"), "accept-encoding", "gzip");
    let mismatch = ask(&service, mismatch).await;
    assert_eq!((mismatch.status.as_u16(), is_gzip(&mismatch)), (422, true));
}

/// Inside, the record is as the first client liked it, and every other client gets that.
#[tokio::test]
async fn compression_inside_records_what_the_first_client_accepts() {
    for gzip_first in [true, false] {
        let payments = Payments::new();
        let service = (layer(Scripted::new()), CompressionLayer::new()).layer(payments.clone());
        let mut clients = [from_gzip_client(), from_plain_client()];
        if !gzip_first {
            clients.reverse();
        }
        let [first, second] = clients;
        let first = ask(&service, first).await;
        let second = ask(&service, second).await;
        assert_eq!(
            (is_gzip(&first), is_gzip(&second)),
            (gzip_first, gzip_first)
        );
        assert_eq!((&first.body, second.is_replay()), (&second.body, true));
        assert_eq!(payments.effects(), 1);
    }
}

/// Decompression of answers, around a service that compresses (another server, say). Outside, the
/// record is compressed and each answer is unpacked; inside, the record is plain.
#[tokio::test]
async fn decompression_outside_and_inside() {
    let payments = Payments::new();
    let stack = (
        DecompressionLayer::new(),
        layer(Scripted::new()),
        CompressionLayer::new(),
    );
    let outside = stack.layer(payments.clone());
    for replay in [false, true] {
        let answer = ask(&outside, from_plain_client()).await;
        assert_eq!((answer.text(), answer.is_replay()), (&*paid(), replay));
        assert!(!is_gzip(&answer));
    }
    // What is recorded is the compressed answer.
    let layered = outside.get_ref();
    assert!(is_gzip(&ask(layered, from_plain_client()).await));

    let payments = Payments::new();
    let stack = (
        layer(Scripted::new()),
        DecompressionLayer::new(),
        CompressionLayer::new(),
    );
    let inside = stack.layer(payments.clone());
    for replay in [false, true] {
        let answer = ask(&inside, from_plain_client()).await;
        assert_eq!((answer.text(), answer.is_replay()), (&*paid(), replay));
        assert!(!is_gzip(&answer));
    }
    assert_eq!(payments.effects(), 1);
}

fn compressed(level: u32) -> Request<Full<Bytes>> {
    let request = post("k", "").map(|_| Full::new(gzip(LONG, level)));
    with(request, "content-encoding", "gzip")
}

/// Decompression of requests outside: the plain body is compared, however it was packed.
#[tokio::test]
async fn s24_request_decompression_outside() {
    let payments = Payments::new();
    let stack = (RequestDecompressionLayer::new(), layer(Scripted::new()));
    let service = stack.layer(payments.clone());
    for (request, replay) in [
        (compressed(9), false),
        (compressed(1), true),
        (from_plain_client(), true),
    ] {
        let answer = ask(&service, request).await;
        assert_eq!((answer.text(), answer.is_replay()), (&*paid(), replay));
    }
    // The limit of bodies counts plain bytes: a small upload that unpacks to a large body is 413.
    let stack = (
        RequestDecompressionLayer::new(),
        layer(Scripted::new()).body_limit(1024),
    );
    let bomb = post("k", "").map(|_| Full::new(gzip(&"0".repeat(1_000_000), 9)));
    let refused = ask(
        &stack.layer(payments),
        with(bomb, "content-encoding", "gzip"),
    )
    .await;
    assert_eq!(refused.problem(), "body-too-large");
}

/// Inside, the packed bytes are compared: a retry that is packed otherwise is another payload.
#[tokio::test]
async fn request_decompression_inside_compares_what_was_sent() {
    let payments = Payments::new();
    let stack = (layer(Scripted::new()), RequestDecompressionLayer::new());
    let service = stack.layer(payments.clone());
    for (request, replay) in [(compressed(9), false), (compressed(9), true)] {
        let answer = ask(&service, request).await;
        assert_eq!((answer.text(), answer.is_replay()), (&*paid(), replay));
    }
    for request in [compressed(1), from_plain_client()] {
        assert_eq!(ask(&service, request).await.problem(), "mismatch");
    }
}

/// A limit of request bodies outside: its own 413 where the length is stated, and the layer's where
/// it is not. Nothing runs, and the store is not asked.
#[tokio::test]
async fn u16_request_body_limit_outside() {
    let (payments, store) = (Payments::new(), Scripted::new());
    let limit = RequestBodyLimitLayer::new(4);
    let service = (limit, layer(store.clone())).layer(payments.clone());
    let stated = with(post("k", "12345"), "content-length", "5");
    let refused = ask(&service, stated).await;
    assert_eq!(
        (refused.status.as_u16(), refused.text()),
        (413, "length limit exceeded")
    );
    let refused = ask(&service, chunked(post("k", "12345"))).await;
    assert_eq!(
        (refused.status.as_u16(), &*refused.problem()),
        (413, "body-too-large")
    );
    assert_eq!((payments.calls(), store.calls()), (0, vec![]));
    let passed = ask(&service, chunked(post("k", "1234"))).await;
    assert_eq!(passed.text(), "effect 1: 1234");
}

/// Inside, the body was read already: the 413 is the handler's rejection, and frees the key.
#[tokio::test]
async fn request_body_limit_inside() {
    let (payments, store) = (Payments::new(), Scripted::new());
    let service = (layer(store.clone()), RequestBodyLimitLayer::new(4)).layer(payments.clone());
    let stated = with(post("k", "12345"), "content-length", "5");
    assert_eq!(ask(&service, stated).await.status.as_u16(), 413);
    assert_eq!(payments.calls(), 0);
    let unreadable = ask(&service, chunked(post("k", "12345"))).await;
    assert_eq!(unreadable.text(), "unreadable");
    assert_eq!(
        store.calls(),
        [Op::Claim, Op::Release, Op::Claim, Op::Release]
    );
    assert_eq!(
        ask(&service, post("k", "1234")).await.text(),
        "effect 1: 1234"
    );
}

/// Bodies of other types, outside and inside.
#[tokio::test]
async fn map_body_layers() {
    let payments = Payments::new();
    let service = (
        MapRequestBodyLayer::new(|body: Full<Bytes>| body.boxed()),
        MapResponseBodyLayer::new(BodyExt::boxed_unsync),
        layer(Scripted::new()),
        MapResponseBodyLayer::new(|body: Full<Bytes>| body.boxed()),
        MapRequestBodyLayer::new(|body: RequestBody<Boxed>| body.boxed_unsync()),
    )
        .layer(payments.clone());
    assert_once(&service, &payments).await;
}

/// What a body layer inside adds to the answer is recorded; what one outside adds is added each
/// time anew.
#[tokio::test]
async fn map_response_body_is_recorded_inside_only() {
    fn numbered<B>() -> MapResponseBodyLayer<impl Fn(B) -> Full<Bytes> + Clone> {
        let effects = Effects::default();
        MapResponseBodyLayer::new(move |_| Full::from(format!("mapped {}", effects.add())))
    }
    let payments = Payments::new();
    let outside = (numbered(), layer(Scripted::new())).layer(payments.clone());
    let inside = (layer(Scripted::new()), numbered()).layer(payments);
    for (number, replay) in [(1, false), (2, true)] {
        let answer = ask(&outside, post("k", "b")).await;
        assert_eq!(
            (answer.text(), answer.is_replay()),
            (&*format!("mapped {number}"), replay)
        );
        let answer = ask(&inside, post("k", "b")).await;
        assert_eq!((answer.text(), answer.is_replay()), ("mapped 1", replay));
    }
}
