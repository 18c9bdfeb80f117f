//! Requests, the service that answers them with and without the layer, and how one call is made.

use std::{
    convert::Infallible,
    future::Future,
    hint::black_box,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures::FutureExt;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, service_fn};
use tower_idempotency::{IdempotencyLayer, MemoryStore, Outcome, RequestBody, Scope, Store};

pub(crate) const KIB: usize = 1024;
const PATH: &str = "/payments";
pub(crate) const CALLER: &str = "merchant-7";
pub(crate) const ANSWER: &str = r#"{"id":"payment-1","status":"done"}"#;

/// The body of a request, in memory, as frames of one size. Frames share the buffer.
#[derive(Clone)]
pub(crate) struct Upload {
    left: Bytes,
    frame: usize,
}

impl Upload {
    /// In one frame.
    pub(crate) fn whole(len: usize) -> Self {
        Self::framed(len, usize::MAX)
    }

    pub(crate) fn framed(len: usize, frame: usize) -> Self {
        let left = (0..len).map(|i| i as u8).collect();
        Self { left, frame }
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.left
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let len = self.frame.min(self.left.len());
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

/// The bodies that are measured.
pub(crate) fn uploads() -> [(&'static str, Upload); 6] {
    [
        ("0", Upload::whole(0)),
        ("1 KiB", Upload::whole(KIB)),
        ("64 KiB", Upload::whole(64 * KIB)),
        (
            "64 KiB in 16 KiB frames",
            Upload::framed(64 * KIB, 16 * KIB),
        ),
        ("1 MiB", Upload::whole(KIB * KIB)),
        (
            "1 MiB in 16 KiB frames",
            Upload::framed(KIB * KIB, 16 * KIB),
        ),
    ]
}

/// The text of a key: as long as a UUID.
pub(crate) fn key(number: u64) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

/// A POST, with the key of this number if there is one.
pub(crate) fn request(number: Option<u64>, upload: &Upload) -> Request<Upload> {
    let request = Request::post(PATH)
        .header(CONTENT_TYPE, "application/json")
        .header("x-api-key", CALLER);
    let request = match number {
        Some(number) => request.header("idempotency-key", key(number)),
        None => request,
    };
    request.body(upload.clone()).expect("a request")
}

/// The bare service: it reads its body to the end and answers 201.
pub(crate) async fn handler<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible>
where
    B: Body<Data = Bytes>,
{
    let mut body = pin!(request.into_body());
    while let Some(Ok(frame)) = body.frame().await {
        black_box(frame);
    }
    let answer = Response::builder()
        .status(StatusCode::CREATED)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from_static(ANSWER.as_bytes())));
    Ok(answer.expect("an answer"))
}

/// A store without limits.
pub(crate) fn store() -> MemoryStore {
    MemoryStore::builder()
        .max_entries(usize::MAX)
        .max_bytes(usize::MAX)
        .build()
}

/// The layer with its defaults.
pub(crate) fn layer<S: Store>(store: S) -> IdempotencyLayer<S> {
    IdempotencyLayer::new(store, Scope::header("x-api-key"))
}

/// The layer over the bare service.
pub(crate) fn layered<S: Store>(
    store: S,
) -> impl Service<
    Request<Upload>,
    Response = Response<impl Body<Data = Bytes, Error = Infallible> + Send + use<S>>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ 'static {
    layer(store).layer(service_fn(handler::<RequestBody<Upload>>))
}

/// Calls the service, reads its answer to the end, and drops it.
///
/// Everything is ready at the first poll and is polled where it lies, so nothing but the service is
/// measured: no executor, no waking, no moving of futures.
pub(crate) fn call<S, B>(service: &mut S, request: Request<Upload>, expected: StatusCode)
where
    S: Service<Request<Upload>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes, Error = Infallible>,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    let Poll::Ready(Ok(answer)) = pin!(service.call(request)).poll(&mut cx) else {
        panic!("not ready at once");
    };
    assert_eq!(answer.status(), expected);
    let mut body = pin!(answer.into_body());
    while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
        black_box(&frame);
    }
}

/// What the layer says that it did with the request.
pub(crate) fn outcome<S, B>(service: &mut S, request: Request<Upload>) -> Option<Outcome>
where
    S: Service<Request<Upload>, Response = Response<B>, Error = Infallible>,
{
    let Ok(answer) = now(service.call(request));
    answer.extensions().get().copied()
}

/// The output of a future that is ready at once.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("ready at once")
}
