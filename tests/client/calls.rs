//! A network that does as it is told, and what was sent over it.

use std::{
    collections::VecDeque,
    error::Error,
    fmt,
    future::Future,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_idempotency::{
    Execution, IdempotencyKey, IdempotencyLayer,
    client::{Purpose, SetIdempotencyKey, SetIdempotencyKeyLayer, SetKeyError},
};

use crate::base::{Handled, answer, post, yield_once};

/// What becomes of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reply {
    Status(u16),
    /// 200, and a status of gRPC in its head.
    Grpc(&'static str),
    /// The connection breaks.
    Lost,
    /// Nothing comes back.
    Never,
}

/// The connection broke.
#[derive(Debug, PartialEq)]
pub(crate) struct Lost;

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection was lost")
    }
}

impl Error for Lost {}

/// Whatever is sent arrives, and is answered after a while: with 201 unless told otherwise. Clones
/// share everything.
#[derive(Clone, Default)]
pub(crate) struct Network {
    sent: Arc<Mutex<Vec<Request<()>>>>,
    replies: Arc<Mutex<VecDeque<Reply>>>,
}

impl Network {
    /// The next requests are answered so, in turn.
    pub(crate) fn next(&self, replies: impl IntoIterator<Item = Reply>) -> &Self {
        self.replies.lock().unwrap().extend(replies);
        self
    }

    /// The client of a handler.
    pub(crate) fn client(&self) -> SetIdempotencyKey<Self> {
        let layer = SetIdempotencyKeyLayer::new().require_execution(true);
        layer.layer(self.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.sent.lock().unwrap().len()
    }

    /// What all requests were for.
    pub(crate) fn purposes(&self) -> Vec<String> {
        let sent = self.sent.lock().unwrap();
        let purposes = sent.iter().map(|request| {
            let purpose = request.extensions().get::<Purpose>().unwrap();
            purpose.to_string()
        });
        purposes.collect()
    }

    /// The headers with a name, one for each request.
    pub(crate) fn values(&self, name: &str) -> Vec<HeaderValue> {
        let sent = self.sent.lock().unwrap();
        sent.iter()
            .map(|request| request.headers()[name].clone())
            .collect()
    }

    /// The keys of all requests.
    pub(crate) fn keys(&self) -> Vec<String> {
        let keys = self.values("idempotency-key");
        let keys = keys.iter().map(|value| value.to_str().unwrap().to_owned());
        keys.collect()
    }

    /// The keys among the extensions of all requests.
    pub(crate) fn keys_in_extensions(&self) -> Vec<Option<String>> {
        let sent = self.sent.lock().unwrap();
        let keys = sent.iter().map(|request| {
            let key = request.extensions().get::<IdempotencyKey>();
            key.map(|key| key.as_str().to_owned())
        });
        keys.collect()
    }
}

impl Service<Request<Full<Bytes>>> for Network {
    type Response = Response<Full<Bytes>>;
    type Error = Lost;
    type Future = BoxFuture<'static, Result<Response<Full<Bytes>>, Lost>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        self.sent.lock().unwrap().push(request.map(drop));
        let reply = self.replies.lock().unwrap().pop_front();
        async move {
            yield_once().await;
            let mut response = Response::new(Full::default());
            match reply.unwrap_or(Reply::Status(201)) {
                Reply::Status(status) => {
                    *response.status_mut() = StatusCode::from_u16(status).unwrap();
                }
                Reply::Grpc(status) => {
                    let status = HeaderValue::from_static(status);
                    response.headers_mut().insert("grpc-status", status);
                }
                Reply::Lost => return Err(Lost),
                Reply::Never => std::future::pending().await,
            }
            Ok(response)
        }
        .boxed()
    }
}

/// `POST http://bank.example/charges`.
pub(crate) fn charge() -> Request<Full<Bytes>> {
    to("http://bank.example/charges")
}

pub(crate) fn to(uri: &str) -> Request<Full<Bytes>> {
    Request::post(uri).body(Full::from("5 EUR")).unwrap()
}

/// The same for a purpose.
pub(crate) fn charge_for(purpose: &str) -> Request<Full<Bytes>> {
    let mut request = charge();
    request.extensions_mut().insert(Purpose::new(purpose));
    request
}

/// Sends a request, and says what came back.
pub(crate) async fn send<S, B>(client: &S, request: Request<Full<Bytes>>) -> Result<u16, BoxError>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = BoxError> + Clone,
{
    let response = client.clone().oneshot(request).await?;
    Ok(response.status().as_u16())
}

/// Why a request was not sent.
pub(crate) fn refused(sent: Result<u16, BoxError>) -> SetKeyError {
    let error = sent.unwrap_err();
    error.downcast_ref::<SetKeyError>().unwrap().clone()
}

/// What the automatic purpose of [`charge`] is.
pub(crate) const CHARGE: &str = "POST http://bank.example/charges";

/// Sends `POST /pay` with a key to a server whose handler is `work`, which says with what status to
/// answer.
pub(crate) fn operation<S, F, Fut>(
    layer: &IdempotencyLayer<S>,
    key: &str,
    work: F,
) -> impl Future<Output = u16> + use<S, F, Fut>
where
    F: FnOnce(Execution) -> Fut + Send + 'static,
    Fut: Future<Output = u16> + Send + 'static,
{
    let work = Arc::new(Mutex::new(Some(work)));
    let handler = move |request: Handled| {
        let execution = request.extensions().get::<Execution>().unwrap();
        let work = work.lock().unwrap().take().unwrap();
        let status = work(execution.clone());
        async move { answer(status.await, "answered") }
    };
    let answer = layer.layer(service_fn(handler)).oneshot(post(key, "b"));
    async move { answer.await.unwrap().status().as_u16() }
}
