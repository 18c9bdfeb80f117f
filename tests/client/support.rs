//! A service that answers as it is told, and remembers what it was asked.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tower::{BoxError, Service};

/// What becomes of one try.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Answer(u16, &'static [(&'static str, &'static str)]),
    Lost,
}

/// One request as it came.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) method: Method,
    pub(crate) uri: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Plays its steps; after the last one all is well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    steps: Arc<Mutex<VecDeque<Step>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Script {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        let script = Self::default();
        script.steps.lock().unwrap().extend(steps);
        script
    }

    /// The same step for ever.
    pub(crate) fn always(step: Step) -> Self {
        Self::new(vec![step; 1000])
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn tries(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// How long it took from each request to the next.
    pub(crate) fn pauses(&self) -> Vec<Duration> {
        let seen = self.seen();
        seen.windows(2).map(|two| two[1].at - two[0].at).collect()
    }
}

impl<B> Service<Request<B>> for Script
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let script = self.clone();
        Box::pin(async move {
            let at = Instant::now();
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map_err(Into::into)?.to_bytes();
            script.seen.lock().unwrap().push(Seen {
                at,
                method: parts.method,
                uri: parts.uri.to_string(),
                headers: parts.headers,
                body,
            });
            let step = script.steps.lock().unwrap().pop_front();
            let (status, headers) = match step {
                Some(Step::Lost) => return Err("the connection was lost".into()),
                Some(Step::Answer(status, headers)) => (status, headers),
                None => (200, &[][..]),
            };
            let mut response = Response::new(Full::from(format!("answer {status}")));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            for (name, value) in headers {
                response.headers_mut().append(*name, value.parse().unwrap());
            }
            Ok(response)
        })
    }
}

/// A request with a key, where `key` is one.
pub(crate) fn request(method: Method, key: Option<&str>) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri("https://bank.example/payments?fast=1")
        .header("x-trace", "a")
        .header("x-trace", "b");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    request.body(Full::from("100 EUR")).unwrap()
}

pub(crate) fn post() -> Request<Full<Bytes>> {
    request(Method::POST, Some("order-1"))
}

pub(crate) async fn text<B>(response: Response<B>) -> String
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let body = response.into_body().collect().await.map_err(Into::into);
    String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap()
}

pub(crate) const SECOND: Duration = Duration::from_secs(1);
