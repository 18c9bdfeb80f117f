//! A network between a library and a server, which understands requests well enough to lose one, or
//! its answer, or to send it twice.

use std::{
    collections::HashMap,
    error::Error,
    fmt,
    future::{Future, pending},
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{
    StreamExt as _,
    future::{self, Either},
    stream,
};
use http::{HeaderMap, Request, Response, StatusCode, Version, request::Parts};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, client, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::AbortHandle,
    time::timeout,
};

use crate::upstream::{HOLD, Held, Upstream};

/// A server that leaves a request without an answer for so long is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// What happens to one try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The server never gets it, and the connection ends.
    LoseRequest,
    /// The server has answered it, and the connection ends.
    LoseAnswer,
    /// The connection ends after the head of the answer and half of its body.
    CutAnswer,
    /// The server has answered it, and the answer never comes.
    HoldAnswer,
    /// The server has answered it, and something on the way answers otherwise.
    Gateway(u16),
    /// The connection to the server is lost while it executes the request. The execution ends after
    /// the next try was answered.
    Leave,
    /// It arrives a second time while it is executed, and the client gets the answer that comes
    /// first.
    Duplicate,
    /// The server never gets it, and something on the way answers.
    Answer(u16),
}

/// What happens to the tries under a key, one after another; those beyond get through.
pub(crate) type Plan = Arc<dyn Fn(&Key) -> Vec<Fault> + Send + Sync>;

/// What a plan goes by.
#[derive(Debug)]
pub(crate) struct Key {
    /// As the library sends it.
    pub(crate) text: String,
    /// How many other keys were seen before it.
    pub(crate) order: usize,
}

/// What was seen of one key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    faults: Vec<Fault>,
    pub(crate) tries: usize,
    /// More than one where the client sent something else under the same key.
    pub(crate) bodies: Vec<Bytes>,
}

/// What was seen of all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// That the client sent.
    pub(crate) requests: u64,
    pub(crate) requests_lost: u64,
    pub(crate) answers_lost: u64,
    pub(crate) duplicates: u64,
    /// Answers that another request with the key is being executed, and those that say that they
    /// are replays: of the server, lost or not.
    pub(crate) conflicts: u64,
    pub(crate) replays: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            requests,
            requests_lost,
            answers_lost,
            duplicates,
            conflicts,
            replays,
        } = self;
        write!(
            f,
            "requests {requests} ({requests_lost} lost, {duplicates} doubled), \
             answers lost {answers_lost}, conflicts {conflicts}, replays {replays}"
        )
    }
}

/// Forwards requests, until it is dropped.
pub(crate) struct Network {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    servers: Vec<SocketAddr>,
    next: AtomicUsize,
    upstream: Option<Arc<Upstream>>,
    plan: Plan,
    seen: Mutex<HashMap<String, Seen>>,
    /// What a try left in execution, by key.
    held: Mutex<HashMap<String, Held>>,
    counts: Mutex<Counts>,
    errors: Mutex<Vec<String>>,
}

impl Network {
    /// Each request goes to the next one of the servers. `upstream` is what stands behind them, if
    /// it can hold what it is told to.
    pub(crate) async fn before(
        servers: &[SocketAddr],
        upstream: Option<Arc<Upstream>>,
        plan: Plan,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            servers: servers.to_vec(),
            next: AtomicUsize::new(0),
            upstream,
            plan,
            seen: Mutex::default(),
            held: Mutex::default(),
            counts: Mutex::default(),
            errors: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Self {
            address,
            shared,
            accepting,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn counts(&self) -> Counts {
        *self.shared.counts.lock().expect("no panic")
    }

    /// Requests to which the server gave no whole answer.
    pub(crate) fn errors(&self) -> Vec<String> {
        self.shared.errors.lock().expect("no panic").clone()
    }

    /// By key.
    pub(crate) fn seen(&self) -> HashMap<String, Seen> {
        self.shared.seen.lock().expect("no panic").clone()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let cut = Arc::new(Notify::new());
            let service =
                service_fn(|request| handle(Arc::clone(&shared), Arc::clone(&cut), request));
            let server = auto::Builder::new(TokioExecutor::new());
            let connection = server.serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = connection => {}
                () = cut.notified() => {}
            }
        });
    }
}

/// A body that breaks off.
#[derive(Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken off")
    }
}

impl Error for Broken {}

type Body = BoxBody<Bytes, Broken>;

/// The body of an answer, to its end.
#[derive(Debug)]
struct Whole {
    data: Bytes,
    trailers: Option<HeaderMap>,
}

impl Whole {
    fn body(self) -> Body {
        let data = (!self.data.is_empty()).then(|| Frame::data(self.data));
        let trailers = self.trailers.map(Frame::trailers);
        body(data.into_iter().chain(trailers).map(Ok))
    }

    fn half(self) -> Body {
        let half = self.data.slice(..self.data.len() / 2);
        let half = stream::once(future::ready(Ok(Frame::data(half))));
        let end = stream::once(async {
            // It is polled again once the half is on its way.
            tokio::task::yield_now().await;
            Err(Broken)
        });
        BoxBody::new(StreamBody::new(half.chain(end)))
    }
}

fn body<I>(frames: I) -> Body
where
    I: IntoIterator<Item = Result<Frame<Bytes>, Broken>>,
    I::IntoIter: Send + Sync + 'static,
{
    let mut frames = frames.into_iter().peekable();
    match frames.peek() {
        Some(_) => BoxBody::new(StreamBody::new(stream::iter(frames))),
        // It ends with the head, which gRPC looks at.
        None => Full::default().map_err(|never| match never {}).boxed(),
    }
}

async fn handle(
    shared: Arc<Shared>,
    cut: Arc<Notify>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Broken> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
    let answer = match key(&parts, &body) {
        Some(key) => {
            let try_ = Try {
                key,
                parts,
                body,
                shared,
            };
            try_.run().await
        }
        None => Some(made_up(400)),
    };
    if answer.is_none() {
        cut.notify_one();
        // Dropped with the connection.
        pending().await
    }
    answer.ok_or(Broken)
}

/// From where the libraries put it.
fn key(parts: &Parts, body: &[u8]) -> Option<String> {
    let header = parts.headers.get("idempotency-key");
    let header = header.and_then(|key| Some(key.to_str().ok()?.to_owned()));
    header.or_else(|| {
        let body: serde_json::Value = serde_json::from_slice(body).ok()?;
        Some(body["idempotency_key"].as_str()?.to_owned())
    })
}

struct Try {
    key: String,
    parts: Parts,
    body: Bytes,
    shared: Arc<Shared>,
}

impl Try {
    /// Notes it, and says what happens to it.
    fn arrives(&self) -> Option<Fault> {
        let mut seen = self.shared.seen.lock().expect("no panic");
        let order = seen.len();
        let seen = seen.entry(self.key.clone()).or_insert_with(|| {
            let text = self.key.clone();
            Seen {
                faults: (self.shared.plan)(&Key { text, order }),
                ..Seen::default()
            }
        });
        let fault = seen.faults.get(seen.tries).copied();
        seen.tries += 1;
        if !seen.bodies.contains(&self.body) {
            seen.bodies.push(self.body.clone());
        }
        fault
    }

    fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.shared.counts.lock().expect("no panic"));
    }

    /// What the last try left in execution.
    fn held(&self) -> Option<Held> {
        self.shared.held.lock().expect("no panic").remove(&self.key)
    }

    /// `None` where the connection is to be cut.
    async fn run(self) -> Option<Response<Body>> {
        let fault = self.arrives();
        self.count(|counts| counts.requests += 1);
        match fault {
            Some(Fault::LoseRequest | Fault::Answer(_)) => {
                self.count(|counts| counts.requests_lost += 1);
            }
            Some(Fault::Duplicate) => self.count(|counts| counts.duplicates += 1),
            Some(_) => self.count(|counts| counts.answers_lost += 1),
            None => {}
        }
        match fault {
            Some(Fault::LoseRequest) => return None,
            Some(Fault::Answer(status)) => return Some(made_up(status)),
            _ => {}
        }
        let held = self.held();
        let answer = match fault {
            Some(Fault::Leave) => {
                self.leave().await;
                None
            }
            Some(Fault::Duplicate) => self.twice().await,
            _ => self.forward(None).await,
        };
        drop(held);
        let (parts, whole) = answer?.into_parts();
        match fault {
            Some(Fault::LoseAnswer) => None,
            Some(Fault::CutAnswer) => Some(Response::from_parts(parts, whole.half())),
            // Dropped with the connection, or with the stream, which the client ends.
            Some(Fault::HoldAnswer) => pending().await,
            Some(Fault::Gateway(status)) => Some(made_up(status)),
            _ => Some(Response::from_parts(parts, whole.body())),
        }
    }

    /// Loses the connection over which it is being executed.
    async fn leave(&self) {
        let Some(upstream) = &self.shared.upstream else {
            // Of two, one is executed, and the other is told so.
            let two = [(); 2].map(|()| Box::pin(self.forward(None)));
            drop(future::select_all(two).await);
            return;
        };
        let (held, name) = upstream.hold();
        tokio::select! {
            () = held.begun() => {
                let mut all = self.shared.held.lock().expect("no panic");
                all.insert(self.key.clone(), held);
            }
            // It was done before.
            _ = self.forward(Some(&name)) => {}
        }
    }

    /// The answer that comes first.
    async fn twice(&self) -> Option<Response<Whole>> {
        let Some(upstream) = &self.shared.upstream else {
            let two = [(); 2].map(|()| Box::pin(self.forward(None)));
            let (answer, _, others) = future::select_all(two).await;
            future::join_all(others).await;
            return answer;
        };
        let (held, name) = upstream.hold();
        let mut first = pin!(self.forward(Some(&name)));
        tokio::select! {
            () = held.begun() => {
                let second = async {
                    let second = self.forward(None).await;
                    drop(held);
                    second
                };
                future::join(first, second).await.1
            }
            answer = &mut first => {
                self.forward(None).await;
                answer
            }
        }
    }

    /// Over a connection of its own.
    async fn forward(&self, hold: Option<&str>) -> Option<Response<Whole>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.parts.uri.clone();
        *request.version_mut() = self.parts.version;
        *request.headers_mut() = self.parts.headers.clone();
        if let Some(hold) = hold {
            let hold = hold.parse().expect("a name");
            request.headers_mut().insert(HOLD, hold);
        }
        let servers = &self.shared.servers;
        let server = servers[self.shared.next.fetch_add(1, Relaxed) % servers.len()];
        let error = match timeout(PATIENCE, send(server, request)).await {
            Ok(Ok(response)) => return Some(self.counted(response)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("nothing in {PATIENCE:?}"),
        };
        let mut errors = self.shared.errors.lock().expect("no panic");
        errors.push(format!("{}: {error}", self.key));
        None
    }

    fn counted(&self, response: Response<Whole>) -> Response<Whole> {
        let headers = response.headers();
        // ABORTED.
        let aborted = headers
            .get("grpc-status")
            .is_some_and(|status| status == "10");
        let conflict = aborted || response.status() == StatusCode::CONFLICT;
        self.count(|counts| {
            counts.replays += u64::from(headers.contains_key("idempotent-replayed"));
            counts.conflicts += u64::from(conflict);
        });
        response
    }
}

async fn send(
    server: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Response<Whole>, Box<dyn Error + Send + Sync>> {
    let stream = TokioIo::new(TcpStream::connect(server).await?);
    if request.version() == Version::HTTP_2 {
        let executor = TokioExecutor::new();
        let (mut sender, connection) = client::conn::http2::handshake(executor, stream).await?;
        answer(sender.send_request(request), connection).await
    } else {
        let (mut sender, connection) = client::conn::http1::handshake(stream).await?;
        answer(sender.send_request(request), connection).await
    }
}

/// In one future: whoever drops it ends the connection.
async fn answer(
    response: impl Future<Output = hyper::Result<Response<Incoming>>>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> Result<Response<Whole>, Box<dyn Error + Send + Sync>> {
    let answer = async {
        let (parts, body) = response.await?.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        let data = body.to_bytes();
        Ok(Response::from_parts(parts, Whole { data, trailers }))
    };
    match future::select(pin!(answer), pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        Either::Right((_, answer)) => answer.await,
    }
}

/// As a load balancer puts it.
fn made_up(status: u16) -> Response<Body> {
    let mut response = Response::new(body([Ok(Frame::data(Bytes::from_static(b"{}")))]));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}
