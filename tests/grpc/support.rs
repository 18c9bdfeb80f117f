//! A payment service whose methods are closures, its server, and short ways to call it.

use std::{
    future::{Future, pending},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, Request as HttpRequest, Response as HttpResponse};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::timeout};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    metadata::MetadataValue,
    service::Routes,
    transport::{Channel, server::TcpIncoming},
};
use tower::{BoxError, Layer, Service};
use tower_idempotency::{IdempotencyLayer, MemoryStore, Scope};

use crate::payments::{
    Batch, ListReply, ListRequest, PartsRequest, PayRequest, Payment,
    payments_client::PaymentsClient,
    payments_server::{Payments, PaymentsServer},
};

pub(crate) const PAY: &str = "/payments.v1.Payments/Pay";

/// Real time: only how long a broken build takes to fail.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) type Answers = Pin<Box<dyn Stream<Item = Result<Payment, Status>> + Send>>;

type Method<Req, Res> =
    Arc<dyn Fn(Request<Req>) -> BoxFuture<'static, Result<Response<Res>, Status>> + Send + Sync>;

/// The service. A method that was not given is not implemented.
#[derive(Clone)]
pub(crate) struct Till {
    pay: Method<PayRequest, Payment>,
    batch: Method<Streaming<PayRequest>, Batch>,
    parts: Method<PartsRequest, Answers>,
    exchange: Method<Streaming<PayRequest>, Answers>,
}

fn method<Req, Res, Fut>(
    work: impl Fn(Request<Req>) -> Fut + Send + Sync + 'static,
) -> Method<Req, Res>
where
    Fut: Future<Output = Result<Response<Res>, Status>> + Send + 'static,
{
    Arc::new(move |request| Box::pin(work(request)))
}

fn not_given<Req, Res: 'static>() -> Method<Req, Res> {
    method(|_| async { Err(Status::unimplemented("not given")) })
}

impl Till {
    pub(crate) fn new() -> Self {
        Self {
            pay: not_given(),
            batch: not_given(),
            parts: not_given(),
            exchange: not_given(),
        }
    }

    pub(crate) fn on_pay<Fut>(
        mut self,
        work: impl Fn(Request<PayRequest>) -> Fut + Send + Sync + 'static,
    ) -> Self
    where
        Fut: Future<Output = Result<Response<Payment>, Status>> + Send + 'static,
    {
        self.pay = method(work);
        self
    }

    pub(crate) fn on_batch<Fut>(
        mut self,
        work: impl Fn(Request<Streaming<PayRequest>>) -> Fut + Send + Sync + 'static,
    ) -> Self
    where
        Fut: Future<Output = Result<Response<Batch>, Status>> + Send + 'static,
    {
        self.batch = method(work);
        self
    }

    pub(crate) fn on_parts<Fut>(
        mut self,
        work: impl Fn(Request<PartsRequest>) -> Fut + Send + Sync + 'static,
    ) -> Self
    where
        Fut: Future<Output = Result<Response<Answers>, Status>> + Send + 'static,
    {
        self.parts = method(work);
        self
    }

    pub(crate) fn on_exchange<Fut>(
        mut self,
        work: impl Fn(Request<Streaming<PayRequest>>) -> Fut + Send + Sync + 'static,
    ) -> Self
    where
        Fut: Future<Output = Result<Response<Answers>, Status>> + Send + 'static,
    {
        self.exchange = method(work);
        self
    }

    pub(crate) fn server(self) -> PaymentsServer<Self> {
        PaymentsServer::new(self)
    }
}

#[tonic::async_trait]
impl Payments for Till {
    async fn pay(&self, request: Request<PayRequest>) -> Result<Response<Payment>, Status> {
        (self.pay)(request).await
    }

    async fn pay_batch(
        &self,
        request: Request<Streaming<PayRequest>>,
    ) -> Result<Response<Batch>, Status> {
        (self.batch)(request).await
    }

    type PayInPartsStream = Answers;

    async fn pay_in_parts(
        &self,
        request: Request<PartsRequest>,
    ) -> Result<Response<Answers>, Status> {
        (self.parts)(request).await
    }

    type ExchangeStream = Answers;

    async fn exchange(
        &self,
        request: Request<Streaming<PayRequest>>,
    ) -> Result<Response<Answers>, Status> {
        (self.exchange)(request).await
    }

    async fn list(&self, _request: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        Ok(Response::new(ListReply::default()))
    }
}

pub(crate) fn layer() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new(), Scope::single_tenant())
}

/// A server, which ends when this is dropped.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// tonic's own server, with `layer` around all that it serves.
    pub(crate) async fn start<L, B>(layer: L, routes: Routes) -> Self
    where
        L: Layer<Routes> + Clone + Send + 'static,
        L::Service: Service<HttpRequest<Body>, Response = HttpResponse<B>> + Clone + Send + 'static,
        <L::Service as Service<HttpRequest<Body>>>::Future: Send,
        <L::Service as Service<HttpRequest<Body>>>::Error: Into<BoxError> + Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self::start_with(tonic::transport::Server::builder(), layer, routes).await
    }

    pub(crate) async fn start_with<L, B>(
        builder: tonic::transport::Server,
        layer: L,
        routes: Routes,
    ) -> Self
    where
        L: Layer<Routes> + Clone + Send + 'static,
        L::Service: Service<HttpRequest<Body>, Response = HttpResponse<B>> + Clone + Send + 'static,
        <L::Service as Service<HttpRequest<Body>>>::Future: Send,
        <L::Service as Service<HttpRequest<Body>>>::Error: Into<BoxError> + Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            if stopped.await.is_err() {
                pending().await
            }
        };
        let mut builder = builder.layer(layer);
        let serving = async move {
            let router = builder.add_routes(routes);
            let incoming = TcpIncoming::from(listener);
            router.serve_with_incoming_shutdown(incoming, stopped).await
        };
        Self {
            addr,
            stop: Some(stop),
            task: tokio::spawn(serving),
        }
    }

    /// The payments alone.
    pub(crate) async fn of<S>(layer: &IdempotencyLayer<S>, till: Till) -> Self
    where
        S: Send + Sync + ?Sized + 'static,
    {
        Self::start(layer.clone(), Routes::new(till.server())).await
    }

    pub(crate) async fn client(&self) -> PaymentsClient<Channel> {
        let url = format!("http://{}", self.addr);
        PaymentsClient::connect(url).await.unwrap()
    }

    /// Tells the server to stop, and waits until it did.
    pub(crate) async fn stopped(mut self) {
        let _ = self.stop.take().unwrap().send(());
        in_time(&mut self.task).await.unwrap().unwrap();
    }

    /// Sends one framed message as any client could, and reads the answer as it is.
    pub(crate) async fn raw(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
        message: &[u8],
    ) -> Raw {
        let stream = TokioIo::new(tokio::net::TcpStream::connect(self.addr).await.unwrap());
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream);
        let (mut sender, connection) = handshake.await.unwrap();
        let connection = tokio::spawn(connection);
        let mut request = HttpRequest::post(format!("http://{}{path}", self.addr));
        let lines = request.headers_mut().unwrap();
        lines.insert("content-type", HeaderValue::from_static("application/grpc"));
        lines.insert("te", HeaderValue::from_static("trailers"));
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).unwrap();
            let name = HeaderName::from_static(name);
            match name == "content-type" {
                true => drop(lines.insert(name, value)),
                false => drop(lines.append(name, value)),
            }
        }
        let request = request
            .body(Full::new(Bytes::from(framed(message))))
            .unwrap();
        let answer = async {
            let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
            let body = body.collect().await.unwrap();
            Raw {
                status: parts.status.as_u16(),
                trailers: body.trailers().cloned(),
                headers: parts.headers,
                body: body.to_bytes(),
            }
        };
        let answer = in_time(answer).await;
        connection.abort();
        answer
    }
}

/// An answer as it came over the line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Raw {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Raw {
    /// Without what each answer has of its own. Says whether it was a replay.
    pub(crate) fn stripped(mut self) -> (Self, bool) {
        self.headers.remove("date");
        let replayed = self.headers.remove("idempotent-replayed");
        (self, replayed.is_some_and(|value| value == "true"))
    }
}

/// A message as it stands in a body, not compressed.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).unwrap();
    [&[0][..], &len.to_be_bytes(), message].concat()
}

pub(crate) async fn in_time<T>(work: impl Future<Output = T>) -> T {
    timeout(DEADLINE, work).await.expect("it ends in time")
}

pub(crate) fn euros(amount: u64) -> PayRequest {
    PayRequest {
        amount,
        currency: "EUR".to_owned(),
        simulate: None,
    }
}

/// A message under a key.
pub(crate) fn keyed<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let key = MetadataValue::try_from(key).unwrap();
    request.metadata_mut().insert("idempotency-key", key);
    request
}

pub(crate) fn is_replay<T>(response: &Response<T>) -> bool {
    let told = response.metadata().get("idempotent-replayed");
    told.is_some_and(|told| told == "true")
}
