//! What these tests share: the gateway as a process, services behind it, and clients before it.

use std::{
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::AbortHandle,
    time::timeout,
};
use tower::BoxError;

use crate::servers::example::{Example, example};

/// Far longer than anything here takes, also on a busy machine: past it a test fails and does not
/// hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

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
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub(crate) type Payload = BoxBody<Bytes, BoxError>;

pub(crate) fn full(text: impl Into<Bytes>) -> Payload {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed()
}

pub(crate) fn empty() -> Payload {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// A body that goes on as long as the sender lives. An error breaks it off.
pub(crate) fn channel() -> (mpsc::Sender<Result<Frame<Bytes>, BoxError>>, Payload) {
    let (sender, receiver) = mpsc::channel(1);
    let stream = futures::stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    });
    (sender, BodyExt::boxed(StreamBody::new(stream)))
}

/// The gateway, killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) example: Example,
    pub(crate) addr: SocketAddr,
}

impl Gateway {
    /// Before `upstream`, for one caller, with these flags besides.
    pub(crate) fn start(upstream: SocketAddr, flags: &[&str]) -> Self {
        let mut command = example("gateway");
        command
            .args(["--listen", "127.0.0.1:0", "--single-tenant"])
            .args(["--upstream", &format!("http://{upstream}")])
            .args(flags);
        let example = Example::start(&mut command);
        Self {
            addr: example.address(),
            example,
        }
    }

    /// Waits until it has ended by itself, and says how.
    pub(crate) async fn ended(mut self) -> (Option<i32>, String) {
        self.example.ended().await
    }

    /// The most memory that it has held so far, in bytes.
    pub(crate) fn peak_memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.example.process.id()));
        let status = status.expect("the status of a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.trim().parse::<usize>().ok())
            .expect("a number")
            * 1024
    }
}

/// A service of ours behind the gateway, over HTTP/1.1 and HTTP/2 with prior knowledge.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) addr: SocketAddr,
    accepting: AbortHandle,
}

impl Upstream {
    /// An error of the handler closes its connection (HTTP/1.1) or its stream (HTTP/2).
    pub(crate) async fn start<F, Fut>(handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = io::Result<Response<Payload>>> + Send + 'static,
    {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::start_at(any, handler).await
    }

    pub(crate) async fn start_at<F, Fut>(addr: SocketAddr, handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = io::Result<Response<Payload>>> + Send + 'static,
    {
        let listener = TcpListener::bind(addr).await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let handler = handler.clone();
                connections.spawn(async move {
                    let service = service_fn(handler);
                    let stream = TokioIo::new(stream);
                    let server = auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection_with_upgrades(stream, service).await;
                });
            }
        });
        Self {
            addr,
            accepting: accepting.abort_handle(),
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// What a service has got.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<(AtomicUsize, Mutex<Vec<HeaderMap>>)>);

impl Seen {
    /// Notes a request, and says which one it is.
    pub(crate) fn note(&self, headers: &HeaderMap) -> usize {
        self.0.1.lock().unwrap().push(headers.clone());
        self.0.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn count(&self) -> usize {
        self.0.0.load(Ordering::SeqCst)
    }

    /// The lines of a header in the last request.
    pub(crate) fn lines(&self, name: &str) -> Vec<String> {
        let heads = self.0.1.lock().unwrap();
        let head = heads.last().expect("a request");
        let lines = head.get_all(name).iter();
        lines
            .map(|line| line.to_str().unwrap().to_owned())
            .collect()
    }

    pub(crate) fn line(&self, name: &str) -> Option<String> {
        let mut lines = self.lines(name);
        assert!(lines.len() < 2, "{name}: {lines:?}");
        lines.pop()
    }
}

/// A client over one connection.
#[derive(Debug)]
pub(crate) enum Client {
    One(http1::SendRequest<Payload>),
    Two(http2::SendRequest<Payload>),
}

impl Client {
    pub(crate) async fn connect(addr: SocketAddr, http2: bool) -> Self {
        let client = Self::try_connect(addr, http2).await;
        client.expect("a connection")
    }

    pub(crate) async fn try_connect(addr: SocketAddr, http2: bool) -> Option<Self> {
        let stream = TokioIo::new(TcpStream::connect(addr).await.ok()?);
        Some(if http2 {
            let handshake = http2::handshake(TokioExecutor::new(), stream).await;
            let (sender, driver) = handshake.ok()?;
            tokio::spawn(driver);
            Self::Two(sender)
        } else {
            let (sender, driver) = http1::handshake(stream).await.ok()?;
            tokio::spawn(driver.with_upgrades());
            Self::One(sender)
        })
    }

    pub(crate) fn send(
        &mut self,
        request: Request<Payload>,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + use<> {
        match self {
            Self::One(sender) => futures::future::Either::Left(sender.send_request(request)),
            Self::Two(sender) => futures::future::Either::Right(sender.send_request(request)),
        }
    }
}

/// A request for any of the connections.
pub(crate) fn request(
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Payload,
) -> Request<Payload> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://shop.example{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(body).expect("a request");
    let host = http::HeaderValue::from_static("shop.example");
    request.headers_mut().entry("host").or_insert(host);
    request
}

/// A POST under a key.
pub(crate) fn post(key: &str, body: &'static str) -> Request<Payload> {
    request(
        Method::POST,
        "/pay",
        &[("idempotency-key", key)],
        full(body),
    )
}

/// Sends a request on a connection of its own.
pub(crate) async fn send(
    addr: SocketAddr,
    http2: bool,
    mut request: Request<Payload>,
) -> Response<Bytes> {
    if http2 {
        request.headers_mut().remove("host");
    } else {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.expect("a path").into();
    }
    soon("an answer", async {
        let mut client = Client::connect(addr, http2).await;
        let answer = client.send(request).await.expect("an answer");
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.expect("a whole answer").to_bytes();
        Response::from_parts(parts, body)
    })
    .await
}

/// Its status, and whether it is a replay.
pub(crate) fn told<B>(response: &Response<B>) -> (u16, bool) {
    let replayed = response.headers().contains_key("idempotent-replayed");
    (response.status().as_u16(), replayed)
}

/// The `error` of a problem document.
pub(crate) fn problem(response: &Response<Bytes>) -> String {
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    let problem: serde_json::Value = serde_json::from_slice(response.body()).expect("JSON");
    assert_eq!(problem["status"], response.status().as_u16());
    problem["error"].as_str().expect("a name").to_owned()
}

/// A client that sends bytes as they are told.
#[derive(Debug)]
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        Self(TcpStream::connect(addr).await.expect("a connection"))
    }

    pub(crate) async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.0.write_all(text.as_ref()).await.expect("a way there");
    }

    /// All up to the end of a head.
    pub(crate) async fn head(&mut self) -> String {
        let mut head = Vec::new();
        soon("a head", async {
            while !head.ends_with(b"\r\n\r\n") {
                match self.0.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&head)),
                }
            }
        })
        .await;
        String::from_utf8(head).expect("text").to_ascii_lowercase()
    }

    pub(crate) async fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let read = soon("bytes", self.0.read_exact(&mut bytes)).await;
        read.expect("all of them");
        bytes
    }

    /// All that comes until the other side closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // It may close with a reset.
        let _ = soon("the end", self.0.read_to_end(&mut bytes)).await;
        bytes
    }
}

pub(crate) fn created(text: impl Into<Bytes>) -> Response<Payload> {
    let mut response = Response::new(full(text));
    *response.status_mut() = http::StatusCode::CREATED;
    response
}

/// Reads a body to its end.
pub(crate) async fn read(body: Incoming) -> io::Result<Bytes> {
    let body = body.collect().await.map_err(io::Error::other)?;
    Ok(body.to_bytes())
}
