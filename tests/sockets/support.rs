//! What these tests share: a small payment service behind three kinds of servers, a client that
//! sends bytes as they are told, and a short way to use hyper's client over HTTP/2.

use std::{
    convert::Infallible,
    fmt::Write as _,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::upgrade::OnUpgrade;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tower::{Layer, service_fn};
use tower_idempotency::{Execution, IdempotencyLayer, MemoryStore, Scope, Store};

/// Far longer than anything here takes, also on a busy machine: past it a test fails and does not
/// hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Fails the test if `future` takes too long.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// Which server stands before the layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stack {
    /// `axum::serve`, which speaks HTTP/1.1 here.
    Axum,
    /// hyper's HTTP/1.1.
    Http1,
    /// The same, told to go on answering a client that sends no more.
    HalfOpen,
    /// hyper's HTTP/2.
    Http2,
}

/// Those that take raw bytes.
pub(crate) const RAW: [Stack; 2] = [Stack::Axum, Stack::Http1];

/// The service behind the layer, and what it has done.
#[derive(Clone)]
pub(crate) struct Service(Arc<Inner>);

struct Inner {
    effects: AtomicUsize,
    started: AtomicUsize,
    present: AtomicUsize,
    gate: Semaphore,
    bodies: Mutex<Vec<Bytes>>,
    heads: Mutex<Vec<HeaderMap>>,
    trailers: Mutex<Vec<Option<HeaderMap>>>,
}

impl Service {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            effects: AtomicUsize::new(0),
            started: AtomicUsize::new(0),
            present: AtomicUsize::new(0),
            gate: Semaphore::new(0),
            bodies: Mutex::default(),
            heads: Mutex::default(),
            trailers: Mutex::default(),
        }))
    }

    /// How often it took effect.
    pub(crate) fn effects(&self) -> usize {
        self.0.effects.load(Ordering::SeqCst)
    }

    /// How often it was called.
    pub(crate) fn started(&self) -> usize {
        self.0.started.load(Ordering::SeqCst)
    }

    /// The lengths of the bodies that it got.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.0
            .bodies
            .lock()
            .unwrap()
            .iter()
            .map(Bytes::len)
            .collect()
    }

    /// The last body that it got.
    pub(crate) fn last_body(&self) -> Bytes {
        self.0.bodies.lock().unwrap().last().unwrap().clone()
    }

    /// The last header lines that it got.
    pub(crate) fn last_head(&self) -> HeaderMap {
        self.0.heads.lock().unwrap().last().unwrap().clone()
    }

    /// The last trailers that it got, if there were any.
    pub(crate) fn last_trailers(&self) -> Option<HeaderMap> {
        self.0.trailers.lock().unwrap().last().unwrap().clone()
    }

    /// How many requests are in the layer or behind it, as far as their server knows.
    pub(crate) fn present(&self) -> usize {
        self.0.present.load(Ordering::SeqCst)
    }

    /// Lets so many requests to `/slow` go on.
    pub(crate) fn open(&self, requests: usize) {
        self.0.gate.add_permits(requests);
    }

    fn enter(&self) -> Present {
        self.0.present.fetch_add(1, Ordering::SeqCst);
        Present(self.clone())
    }

    async fn handle<B>(self, mut request: Request<B>) -> Response<BoxBody<Bytes, Infallible>>
    where
        B: Body<Data = Bytes>,
        B::Error: std::fmt::Debug,
    {
        self.0.started.fetch_add(1, Ordering::SeqCst);
        let upgrade = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned();
        let body = body.to_bytes();
        self.0.bodies.lock().unwrap().push(body.clone());
        self.0.heads.lock().unwrap().push(parts.headers.clone());
        self.0.trailers.lock().unwrap().push(trailers);
        if parts.method == Method::CONNECT || parts.uri.path() == "/upgrade" {
            return shouted_back(&parts.method, upgrade);
        }
        if parts.uri.path().starts_with("/slow") {
            self.0.gate.acquire().await.unwrap().forget();
        }
        if parts.uri.path() == "/panics" && self.started() == 1 {
            panic!("as the test wants it");
        }
        let effect = self.0.effects.fetch_add(1, Ordering::SeqCst) + 1;
        let key = parts.extensions.get::<Execution>();
        let key = key.map_or("none", |execution| execution.key());
        let full = |text: String| Full::from(text).boxed();
        let mut response = Response::builder();
        match parts.uri.path() {
            "/empty" => response.status(204).body(full(String::new())),
            "/unmodified" => response
                .status(304)
                .header("etag", "\"v1\"")
                .body(full(String::new())),
            "/unmodified-stated" => response
                .status(304)
                .header("content-length", "5")
                .body(full(String::new())),
            "/hints" => response.status(103).body(full(String::new())),
            "/framed-empty" => response
                .header("transfer-encoding", "chunked")
                .body(StreamBody::new(futures::stream::empty()).boxed()),
            "/unknown-length" | "/own-lines" => {
                let frames = ["in ", "pieces"].map(|data| Ok(Frame::data(data.into())));
                if parts.uri.path() == "/own-lines" {
                    response = response
                        .header("transfer-encoding", "chunked")
                        .header("connection", "close, x-hop")
                        .header("x-hop", "1")
                        .header("date", "Thu, 01 Jan 1970 00:00:00 GMT");
                }
                response.body(StreamBody::new(futures::stream::iter(frames)).boxed())
            }
            "/stated" => response
                .header("content-length", "5")
                .body(full(String::new())),
            "/streamed" => response.body(StreamBody::new(futures::stream::empty()).boxed()),
            "/headers" => response
                .status(201)
                .header("location", "/payments/1")
                .header("x-a", "2")
                .header("x-raw", HeaderValue::from_bytes(b"caf\xe9 \xff").unwrap())
                .header("x-a", "1")
                .header("x-a", "2")
                .header("x-empty", "")
                .body(full(format!("effect {effect}"))),
            "/large" => {
                let data = Bytes::from(vec![b'y'; LARGE / 32]);
                let frames = std::iter::repeat_n(data, 32).map(|data| Ok(Frame::data(data)));
                response.body(StreamBody::new(futures::stream::iter(frames)).boxed())
            }
            "/trailers" | "/slow-trailers" | "/trailers-only" => {
                let mut trailers = HeaderMap::new();
                trailers.append("x-sum", HeaderValue::from_static("1"));
                trailers.append("x-sum", HeaderValue::from_static("2"));
                let mut frames = vec![
                    Frame::data(Bytes::from_static(b"in ")),
                    Frame::data(Bytes::from_static(b"pieces")),
                    Frame::trailers(trailers),
                ];
                if parts.uri.path() == "/trailers-only" {
                    frames.drain(..2);
                }
                let frames = frames.into_iter().map(Ok::<_, Infallible>);
                response
                    .header("trailer", "x-sum")
                    .body(StreamBody::new(futures::stream::iter(frames)).boxed())
            }
            _ => response.status(201).body(full(format!(
                "effect {effect} of {key}, {} bytes",
                body.len()
            ))),
        }
        .unwrap()
    }
}

/// Leaves HTTP, and gives back whatever comes in capitals.
fn shouted_back(method: &Method, upgrade: OnUpgrade) -> Response<BoxBody<Bytes, Infallible>> {
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let (mut upgraded, mut read) = (TokioIo::new(upgraded), [0; 1024]);
        while let Ok(len @ 1..) = upgraded.read(&mut read).await {
            let shouted = read[..len].to_ascii_uppercase();
            upgraded.write_all(&shouted).await.unwrap();
        }
    });
    let mut response = Response::new(Full::default().boxed());
    if method != Method::CONNECT {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert("connection", HeaderValue::from_static("upgrade"));
        headers.insert("upgrade", HeaderValue::from_static("shout"));
    }
    response
}

/// The length of the answer at `/large`.
pub(crate) const LARGE: usize = 4 * 1024 * 1024;

/// Counts a request until the server lets go of it.
struct Present(Service);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.0.present.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Stands outside the layer, and sees which requests are there.
#[derive(Clone)]
pub(crate) struct Door<S> {
    inner: S,
    service: Service,
}

impl<S> Door<S> {
    pub(crate) fn new(inner: S, service: &Service) -> Self {
        Self {
            inner,
            service: service.clone(),
        }
    }
}

impl<S, R> tower::Service<R> for Door<S>
where
    S: tower::Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let (present, call) = (self.service.enter(), self.inner.call(request));
        Box::pin(async move {
            let answer = call.await;
            drop(present);
            answer
        })
    }
}

/// A layer over a memory store, a single tenant, a required key.
pub(crate) fn layer<S: Store>(store: S) -> IdempotencyLayer<S> {
    IdempotencyLayer::new(store, Scope::single_tenant()).require_key(true)
}

/// A server that runs until the test ends.
pub(crate) struct Server {
    pub(crate) stack: Stack,
    pub(crate) addr: SocketAddr,
    pub(crate) service: Service,
    pub(crate) store: MemoryStore,
}

impl Server {
    /// With the layer as `options` make it.
    pub(crate) async fn start(
        stack: Stack,
        options: impl FnOnce(IdempotencyLayer<MemoryStore>) -> IdempotencyLayer<MemoryStore>,
    ) -> Self {
        let store = MemoryStore::new();
        let layer = options(layer(store.clone()));
        Self::with(stack, &layer, Service::new(), store).await
    }

    /// Over a service and a store that others may use, too.
    pub(crate) async fn with<S: Store>(
        stack: Stack,
        layer: &IdempotencyLayer<S>,
        service: Service,
        store: MemoryStore,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        match stack {
            Stack::Axum => {
                let door = service.clone();
                let app = app(service.clone())
                    .layer(layer.clone())
                    .layer(tower::layer::layer_fn(move |inner| Door::new(inner, &door)));
                tokio::spawn(async move { axum::serve(listener, app).await });
            }
            Stack::Http1 | Stack::HalfOpen | Stack::Http2 => {
                let handler = service.clone();
                let inner = layer.layer(service_fn(move |request| {
                    let handler = handler.clone();
                    async move { Ok::<_, Infallible>(handler.handle(request).await) }
                }));
                let service = Door::new(inner, &service);
                tokio::spawn(async move {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        let service = TowerToHyperService::new(service.clone());
                        let io = TokioIo::new(stream);
                        // Connections end as their clients want it; what came of it is asserted
                        // on the clients' side.
                        match stack {
                            Stack::Http2 => {
                                let connection =
                                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                                        .enable_connect_protocol()
                                        .serve_connection(io, service);
                                tokio::spawn(connection);
                            }
                            _ => {
                                let connection = hyper::server::conn::http1::Builder::new()
                                    .half_close(stack == Stack::HalfOpen)
                                    .serve_connection(io, service)
                                    .with_upgrades();
                                tokio::spawn(connection);
                            }
                        }
                    }
                });
            }
        }
        Self {
            stack,
            addr,
            service,
            store,
        }
    }

    /// A new connection for raw bytes.
    pub(crate) async fn connect(&self) -> Raw {
        Raw::connect(self.addr).await
    }

    /// Nothing ran, nothing is stored.
    #[track_caller]
    pub(crate) fn assert_untouched(&self, case: &str) {
        assert_eq!(
            self.service.started(),
            0,
            "{:?}: {case}: it ran",
            self.stack
        );
        assert_eq!(self.store.len(), 0, "{:?}: {case}: stored", self.stack);
    }
}

/// The service as an axum application.
pub(crate) fn app(service: Service) -> axum::Router {
    let handler = move |request: axum::extract::Request| service.clone().handle(request);
    axum::Router::new().fallback(handler)
}

/// A connection for raw bytes.
pub(crate) struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(addr))
            .await
            .unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            read: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        soon("room to send", self.stream.write_all(bytes.as_ref()))
            .await
            .unwrap();
        self
    }

    /// As [`send`](Self::send), where the server may have closed the connection already.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let _ = soon("room to send", self.stream.write_all(bytes.as_ref())).await;
        self
    }

    /// Sends no more, and goes on reading.
    pub(crate) async fn end(&mut self) -> &mut Self {
        self.stream.shutdown().await.unwrap();
        self
    }

    /// Drops the connection with a reset, as a client does that is killed.
    pub(crate) fn kill(self) {
        self.stream.set_zero_linger().unwrap();
    }

    async fn more(&mut self) -> usize {
        soon("an answer", self.stream.read_buf(&mut self.read))
            .await
            .unwrap_or(0)
    }

    async fn line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.read.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.read[..end].to_vec();
                self.read.drain(..end + 2);
                return Some(line);
            }
            if self.more().await == 0 {
                return None;
            }
        }
    }

    /// So many bytes, whatever they are.
    pub(crate) async fn take(&mut self, len: usize) -> Vec<u8> {
        while self.read.len() < len {
            assert_ne!(self.more().await, 0, "the connection closed in a body");
        }
        self.read.drain(..len).collect()
    }

    async fn headers(&mut self) -> Vec<(String, Vec<u8>)> {
        let mut headers = Vec::new();
        loop {
            let line = self.line().await.expect("the end of the headers");
            if line.is_empty() {
                return headers;
            }
            let colon = line.iter().position(|&b| b == b':').unwrap();
            let name = std::str::from_utf8(&line[..colon]).unwrap().to_lowercase();
            headers.push((name, line[colon + 1..].trim_ascii().to_vec()));
        }
    }

    /// The next answer, or `None` where the connection was closed before one.
    pub(crate) async fn try_answer(&mut self, to_head: bool) -> Option<Answer> {
        let line = String::from_utf8(self.line().await?).unwrap();
        let status = line.strip_prefix("HTTP/1.").expect("a status line")[2..5]
            .parse()
            .unwrap();
        let mut answer = Answer {
            status,
            headers: self.headers().await,
            body: Bytes::new(),
            trailers: Vec::new(),
        };
        if to_head || matches!(status, 100..200 | 204 | 304) {
            return Some(answer);
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            let mut body = Vec::new();
            loop {
                let size = String::from_utf8(self.line().await.unwrap()).unwrap();
                let size = usize::from_str_radix(&size, 16).unwrap();
                if size == 0 {
                    break;
                }
                body.extend(self.take(size).await);
                assert_eq!(self.line().await.unwrap(), b"");
            }
            answer.body = body.into();
            answer.trailers = self.headers().await;
        } else if let Some(len) = answer.header("content-length") {
            let len = len.parse().unwrap();
            answer.body = self.take(len).await.into();
        } else {
            // It ends with the connection.
            while self.more().await > 0 {}
            answer.body = std::mem::take(&mut self.read).into();
        }
        Some(answer)
    }

    /// The first bytes of an answer.
    pub(crate) async fn begin_answer(&mut self) {
        assert_ne!(self.more().await, 0, "an answer");
    }

    /// The next answer.
    pub(crate) async fn answer(&mut self) -> Answer {
        self.try_answer(false).await.expect("an answer")
    }

    /// The server closed the connection, and sent nothing more before.
    pub(crate) async fn assert_closed(&mut self, case: &str) {
        while self.more().await > 0 {}
        assert_eq!(String::from_utf8_lossy(&self.read), "", "{case}");
    }

    /// The connection is as good as new.
    pub(crate) async fn assert_usable(&mut self, case: &str) {
        let key = fresh_key();
        self.try_send(post(&format!("idempotency-key: {key}"), b"good"))
            .await;
        let answer = self.try_answer(false).await;
        let answer = answer.unwrap_or_else(|| panic!("{case}: the connection was closed"));
        assert_eq!(answer.status, 201, "{case}");
        assert!(
            answer.text().ends_with(&format!("of {key}, 4 bytes")),
            "{case}"
        );
    }
}

/// A key that no test has used.
pub(crate) fn fresh_key() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("fresh-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The bytes of a head of `POST path`, with some lines of headers.
pub(crate) fn head(path: &str, lines: &str) -> String {
    let mut head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n");
    for line in lines.split('\n') {
        let _ = write!(head, "{line}\r\n");
    }
    head + "\r\n"
}

/// The bytes of a whole `POST /pay`.
pub(crate) fn post(lines: &str, body: &[u8]) -> Vec<u8> {
    post_to("/pay", lines, body)
}

/// The bytes of a whole POST.
pub(crate) fn post_to(path: &str, lines: &str, body: &[u8]) -> Vec<u8> {
    let length = format!("content-length: {}", body.len());
    let lines = if lines.is_empty() {
        length
    } else {
        format!("{lines}\n{length}")
    };
    [head(path, &lines).as_bytes(), body].concat()
}

/// One chunk of a body of unknown length.
pub(crate) fn chunk(data: &[u8]) -> Vec<u8> {
    let size = format!("{:x}\r\n", data.len());
    [size.as_bytes(), data, b"\r\n"].concat()
}

/// The end of a body of unknown length.
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What a client got.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Bytes,
    pub(crate) trailers: Vec<(String, Vec<u8>)>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The value of a header that is there once at most.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let values = self.all(name);
        assert!(values.len() < 2, "{name}: {values:?}");
        values
            .first()
            .map(|value| std::str::from_utf8(value).unwrap())
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&[u8]> {
        let of_name = self.headers.iter().filter(|(known, _)| known == name);
        of_name.map(|(_, value)| &value[..]).collect()
    }

    pub(crate) fn is_replay(&self) -> bool {
        self.header("idempotent-replayed").is_some()
    }

    /// It is a refusal: a problem document (I10) with this status and of this type.
    #[track_caller]
    pub(crate) fn assert_refused(&self, status: u16, kind: &str, case: &str) {
        assert_eq!(self.status, status, "{case}: {:?}", self.body);
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{case}"
        );
        assert_eq!(self.header("content-language"), Some("en"), "{case}");
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(
            problem["type"],
            format!("urn:tower-idempotency:{kind}"),
            "{case}"
        );
        assert_eq!(problem["status"], status, "{case}");
        assert!(problem["title"].is_string() && problem["detail"].is_string());
        let retry = problem["retry_after"]
            .as_u64()
            .map(|after| after.to_string());
        assert_eq!(self.header("retry-after"), retry.as_deref(), "{case}");
        assert!(!self.is_replay(), "{case}");
    }
}

pub(crate) type Payload = BoxBody<Bytes, std::io::Error>;

/// A body from memory.
pub(crate) fn whole(body: impl Into<Bytes>) -> Payload {
    Full::new(body.into())
        .map_err(|never| match never {})
        .boxed()
}

/// A body in pieces of unknown length.
pub(crate) fn pieces(pieces: impl IntoIterator<Item = Bytes>) -> Payload {
    let frames: Vec<_> = pieces
        .into_iter()
        .map(|data| Ok(Frame::data(data)))
        .collect();
    BodyExt::boxed(StreamBody::new(futures::stream::iter(frames)))
}

/// A connection of hyper's client over HTTP/2.
#[derive(Clone)]
pub(crate) struct Client(pub(crate) hyper::client::conn::http2::SendRequest<Payload>);

impl Client {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let stream = soon("a connection", TcpStream::connect(addr))
            .await
            .unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub(crate) async fn try_send(&mut self, request: Request<Payload>) -> hyper::Result<Answer> {
        let response = soon("an answer", self.0.send_request(request)).await?;
        let (parts, body) = response.into_parts();
        let body = soon("the end of an answer", body.collect()).await?;
        let lines = |headers: &HeaderMap| {
            let line = |(name, value): (&http::HeaderName, &HeaderValue)| {
                (name.to_string(), value.as_bytes().to_vec())
            };
            headers.iter().map(line).collect()
        };
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: lines(&parts.headers),
            trailers: body.trailers().map(lines).unwrap_or_default(),
            body: body.to_bytes(),
        })
    }

    pub(crate) async fn send(&mut self, request: Request<Payload>) -> Answer {
        self.try_send(request).await.unwrap()
    }

    /// The connection is as good as new.
    pub(crate) async fn assert_usable(&mut self, case: &str) {
        let key = fresh_key();
        let answer = self
            .send(request("/pay", &[key.as_bytes()], whole("good")))
            .await;
        assert_eq!(answer.status, StatusCode::CREATED, "{case}");
        assert!(
            answer.text().ends_with(&format!("of {key}, 4 bytes")),
            "{case}"
        );
    }
}

/// A POST with these lines of keys.
pub(crate) fn request(path: &str, keys: &[&[u8]], body: Payload) -> Request<Payload> {
    let mut request = Request::post(format!("http://localhost{path}"));
    for key in keys {
        request = request.header("idempotency-key", HeaderValue::from_bytes(key).unwrap());
    }
    request.body(body).unwrap()
}
