//! A payment service that any stack can be built around, and short ways to ask it.

use std::{convert::Infallible, fmt::Debug, future::Future, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tokio::sync::Semaphore;
use tower::{Service, ServiceExt};

pub(crate) use crate::base::{
    Answer, Effects, Handled, Op, Scripted, YieldingBody, layer, post, read,
};

/// How long the service takes at `/slow`.
pub(crate) const SLOW: Duration = Duration::from_secs(60);

/// Charges once for each call that it takes, over any body.
#[derive(Clone)]
pub(crate) struct Payments(Arc<Inner>);

struct Inner {
    calls: Effects,
    effects: Effects,
    gate: Semaphore,
}

impl Payments {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            calls: Effects::default(),
            effects: Effects::default(),
            gate: Semaphore::new(0),
        }))
    }

    /// How often it was called.
    pub(crate) fn calls(&self) -> usize {
        self.0.calls.count()
    }

    /// How often it took effect.
    pub(crate) fn effects(&self) -> usize {
        self.0.effects.count()
    }

    /// Lets so many requests to `/gate` go on.
    pub(crate) fn open(&self, requests: usize) {
        self.0.gate.add_permits(requests);
    }

    async fn charge<B>(self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Debug,
    {
        let calls = self.0.calls.add();
        let (parts, body) = request.into_parts();
        let Ok(body) = body.collect().await.map(|body| body.to_bytes()) else {
            return plain(413, "unreadable");
        };
        match parts.uri.path() {
            "/slow" => tokio::time::sleep(SLOW).await,
            "/gate" => self.0.gate.acquire().await.unwrap().forget(),
            "/fails-once" if calls == 1 => return plain(503, "no"),
            "/panics-once" if calls == 1 => panic!("as the test wants it"),
            _ => {}
        }
        let body = String::from_utf8_lossy(&body);
        let mut response = plain(201, format!("effect {}: {body}", self.0.effects.add()));
        let location = "/payments/1".parse().unwrap();
        response.headers_mut().insert("location", location);
        response
    }
}

pub(crate) fn plain(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .body(Full::new(body.into()))
        .unwrap()
}

impl<B> Service<Request<B>> for Payments
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Debug + Send,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let charged = self.clone().charge(request);
        Box::pin(async { Ok(charged.await) })
    }
}

/// `POST` to `path` with a key.
pub(crate) fn post_to(path: &str, key: &str, body: &str) -> Request<Full<Bytes>> {
    let mut request = post(key, body);
    *request.uri_mut() = path.parse().unwrap();
    request
}

/// With one header more.
pub(crate) fn with<B>(mut request: Request<B>, name: &'static str, value: &str) -> Request<B> {
    let value = value.parse().unwrap();
    request.headers_mut().insert(name, value);
    request
}

/// The same request, with a body whose length is not stated.
pub(crate) fn chunked(request: Request<Full<Bytes>>) -> Request<YieldingBody> {
    use futures::FutureExt;
    let (parts, body) = request.into_parts();
    let body = body.collect().now_or_never().unwrap().unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let (front, back) = body.split_at(body.len() / 2);
    Request::from_parts(parts, YieldingBody::new([front, back]))
}

/// Asks a clone of `service`, and reads the answer to its end.
pub(crate) fn ask<S, R, B>(service: &S, request: R) -> impl Future<Output = Answer> + use<S, R, B>
where
    S: Service<R, Response = Response<B>> + Clone,
    S::Error: Debug,
    B: Body<Data = Bytes>,
    B::Error: Debug,
{
    let call = service.clone().oneshot(request);
    async { read(call.await.unwrap()).await }
}

/// Asks a service that cannot be cloned.
pub(crate) async fn ask_it<S, R, B>(service: &mut S, request: R) -> Answer
where
    S: Service<R, Response = Response<B>>,
    S::Error: Debug,
    B: Body<Data = Bytes>,
    B::Error: Debug,
{
    let ready = service.ready().await.unwrap();
    read(ready.call(request).await.unwrap()).await
}

/// The first answer of the service, or its replay.
pub(crate) fn assert_paid(answer: &Answer, replay: bool) {
    assert_eq!(
        (answer.status.as_u16(), answer.text()),
        (201, "effect 1: b")
    );
    assert_eq!(answer.headers["location"], "/payments/1");
    assert_eq!(answer.is_replay(), replay);
}

/// Asks twice with one key: one effect, and the same answer.
pub(crate) async fn assert_once<S, B>(service: &S, payments: &Payments)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone,
    S::Error: Debug,
    B: Body<Data = Bytes>,
    B::Error: Debug,
{
    for replay in [false, true] {
        assert_paid(&ask(service, post("k", "b")).await, replay);
    }
    assert_eq!(payments.effects(), 1);
}
