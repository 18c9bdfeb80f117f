//! Without a framework: behind hyper's HTTP/1.1 and HTTP/2, and behind the server that finds out.

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn,
    server::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::io::DuplexStream;
use tower::{BoxError, Layer, buffer::Buffer, limit::ConcurrencyLimit};
use tower_http::{catch_panic::CatchPanicLayer, timeout::TimeoutLayer};
use tower_idempotency::{MemoryStore, RequestBody, Store};

use crate::support::{Answer, Payments, SLOW, assert_paid, layer, post, read};

#[derive(Clone, Copy, Debug)]
enum Server {
    Http1,
    Http2,
    Auto,
}

/// Serves one connection with `service`.
fn serve<S, B>(server: Server, service: S) -> DuplexStream
where
    S: tower::Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + Send + Sync + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (client, stream) = tokio::io::duplex(64 * 1024);
    let (stream, service) = (TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::spawn(async move {
        let executor = TokioExecutor::new();
        match server {
            Server::Http1 => http1::Builder::new()
                .serve_connection(stream, service)
                .await
                .unwrap(),
            Server::Http2 => http2::Builder::new(executor)
                .serve_connection(stream, service)
                .await
                .unwrap(),
            Server::Auto => auto::Builder::new(executor)
                .serve_connection_with_upgrades(stream, service)
                .await
                .unwrap(),
        }
    });
    client
}

enum Client {
    Http1(conn::http1::SendRequest<Full<Bytes>>),
    Http2(conn::http2::SendRequest<Full<Bytes>>),
}

impl Client {
    async fn connect(version: Version, stream: DuplexStream) -> Self {
        let stream = TokioIo::new(stream);
        if version == Version::HTTP_2 {
            let executor = TokioExecutor::new();
            let (client, connection) = conn::http2::handshake(executor, stream).await.unwrap();
            tokio::spawn(connection);
            return Self::Http2(client);
        }
        let (client, connection) = conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Self::Http1(client)
    }

    async fn ask(&mut self, mut request: Request<Full<Bytes>>) -> Answer {
        *request.uri_mut() = "http://host/pay".parse().unwrap();
        let (answer, version) = match self {
            Self::Http1(client) => (client.send_request(request).await, Version::HTTP_11),
            Self::Http2(client) => (client.send_request(request).await, Version::HTTP_2),
        };
        let answer = answer.unwrap();
        assert_eq!(answer.version(), version);
        read(answer).await
    }
}

const SERVERS: [(Server, Version); 4] = [
    (Server::Http1, Version::HTTP_11),
    (Server::Http2, Version::HTTP_2),
    (Server::Auto, Version::HTTP_11),
    (Server::Auto, Version::HTTP_2),
];

/// One layer for all connections, a service for each: a retry over another one is a replay.
#[tokio::test]
async fn s09_behind_hyper() {
    for (server, version) in SERVERS {
        let (payments, idempotency) = (Payments::new(), layer(MemoryStore::new()));
        for replay in [false, true] {
            let service = idempotency.layer(payments.clone());
            let mut client = Client::connect(version, serve(server, service)).await;
            assert_paid(&client.ask(post("k", "b")).await, replay);
            assert_paid(&client.ask(post("k", "b")).await, true);
            let mismatch = client.ask(post("k", "other")).await;
            assert_eq!(mismatch.status.as_u16(), 422, "{server:?} {version:?}");
        }
        assert_eq!(payments.effects(), 1);
    }
}

/// A stack of some height on both sides of the layer, over the body that hyper receives.
#[tokio::test]
async fn a_stack_behind_hyper() {
    for (server, version) in SERVERS {
        let payments = Payments::new();
        let idempotency = layer(Box::new(MemoryStore::new()) as Box<dyn Store>);
        let timeout = TimeoutLayer::with_status_code(http::StatusCode::GATEWAY_TIMEOUT, SLOW);
        let inner = ConcurrencyLimit::new(payments.clone(), 2);
        let inner = Buffer::<Request<RequestBody<_>>, _>::new(inner, 8);
        let service = (CatchPanicLayer::new(), timeout, idempotency).layer(inner);
        let mut client = Client::connect(version, serve(server, service)).await;
        for replay in [false, true] {
            assert_paid(&client.ask(post("k", "b")).await, replay);
        }
        assert_eq!(payments.effects(), 1);
    }
}
