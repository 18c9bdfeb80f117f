//! U10: what is kept holds nothing alive but itself.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_idempotency::{Execution, MemoryStore, RequestBody};

use crate::support::layer;

/// A large buffer that says when it is freed.
struct Buffer {
    bytes: Vec<u8>,
    freed: Arc<AtomicBool>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.freed.store(true, Ordering::SeqCst);
    }
}

fn buffer(bytes: &[u8]) -> (Bytes, Arc<AtomicBool>) {
    let freed = Arc::new(AtomicBool::new(false));
    let mut bytes = bytes.to_vec();
    bytes.resize(1 << 20, b'.');
    let buffer = Buffer {
        bytes,
        freed: Arc::clone(&freed),
    };
    (Bytes::from_owner(buffer), freed)
}

type Body = Full<Bytes>;

fn request(body: Bytes) -> Request<Body> {
    Request::post("/")
        .header("idempotency-key", "k")
        .body(Full::new(body))
        .unwrap()
}

/// The record of an answer does not hold the buffer that body, header values and trailers are
/// slices of.
#[tokio::test]
async fn u10_a_record_does_not_hold_the_buffers_of_its_answer() {
    let store = MemoryStore::new();
    let (large, freed) = buffer(b"body,header,trailer");
    let large = std::sync::Mutex::new(Some(large));
    let handler = move |_: Request<RequestBody<Body>>| {
        let large = large.lock().unwrap().take().expect("runs once");
        let value = |at| HeaderValue::from_maybe_shared(large.slice(at)).unwrap();
        let trailers =
            HeaderMap::from_iter([(http::HeaderName::from_static("x-trailer"), value(12..19))]);
        let frames = [Frame::data(large.slice(..4)), Frame::trailers(trailers)];
        let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, Infallible>)));
        let response: Response<BoxBody<Bytes, Infallible>> = Response::builder()
            .header("x-header", value(5..11))
            .body(BodyExt::boxed(body))
            .unwrap();
        std::future::ready(Ok::<_, Infallible>(response))
    };
    let handler = Arc::new(handler);
    let service = layer(store.clone()).layer(service_fn(move |request| handler(request)));

    let first = service
        .clone()
        .oneshot(request(Bytes::new()))
        .await
        .unwrap();
    assert!(!freed.load(Ordering::SeqCst), "the answer is a slice of it");
    drop(first);
    assert!(freed.load(Ordering::SeqCst), "the record holds it");

    let replay = service.oneshot(request(Bytes::new())).await.unwrap();
    assert_eq!(replay.headers()["idempotent-replayed"], "true");
    assert_eq!(replay.headers()["x-header"], "header");
    let body = replay.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-trailer"], "trailer");
    assert_eq!(body.to_bytes(), "body");
    assert!(store.bytes() < 1_000, "{} bytes", store.bytes());
}

/// Nor does it hold those of the request: not for the key, the caller's name, the checkpoint that
/// is a slice of the body, or an answer that repeats it; nor does a refusal, or a failure.
#[tokio::test]
async fn u10_a_record_does_not_hold_the_buffers_of_its_request() {
    for status in [201, 422, 500] {
        let store = MemoryStore::new();
        let handler = move |request: Request<RequestBody<Body>>| async move {
            let execution = request.extensions().get::<Execution>().unwrap().clone();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            execution.save_checkpoint(body.slice(..4)).await.unwrap();
            let echo = Full::new(body.slice(..4));
            Ok::<_, Infallible>(Response::builder().status(status).body(echo).unwrap())
        };
        let mut service = layer(store.clone()).layer(service_fn(handler));
        let (large, freed) = buffer(b"echo");
        let (name, name_freed) = buffer(b"key");
        let mut sent = request(large.slice(..1000));
        let value = HeaderValue::from_maybe_shared(name.slice(..3)).unwrap();
        sent.headers_mut().insert("idempotency-key", value);
        drop((large, name));

        let first = service.ready().await.unwrap().call(sent).await.unwrap();
        assert_eq!(first.status(), status);
        drop(first);
        assert!(freed.load(Ordering::SeqCst), "{status}: the body");
        assert!(name_freed.load(Ordering::SeqCst), "{status}: the key");
        assert_eq!(store.len(), 1, "{status}");
        assert!(store.bytes() < 1_000, "{} bytes", store.bytes());
    }
}
