//! A network between a library and a server, which understands requests well enough to lose one, or
//! its answer, or to send it twice.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header, request::Parts};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::timeout,
};

use crate::upstream::{HOLD, Hold, Upstream};

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
    /// It arrives a second time while it is executed, and the client gets the second answer.
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
    /// Another body than that of the first try, under the same key.
    pub(crate) bodies: Vec<Bytes>,
    held: Option<Arc<Hold>>,
}

/// What was seen of all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// That the client sent.
    pub(crate) requests: u64,
    pub(crate) requests_lost: u64,
    pub(crate) answers_lost: u64,
    pub(crate) duplicates: u64,
    /// Answers of 409, and those that say that they are replays: of the server, lost or not.
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

/// Forwards requests to a server, until it is dropped.
pub(crate) struct Network {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    server: SocketAddr,
    upstream: Arc<Upstream>,
    plan: Plan,
    seen: Mutex<HashMap<String, Seen>>,
    counts: Mutex<Counts>,
}

impl Network {
    /// `upstream` is what stands behind the server, and holds what it is told to.
    pub(crate) async fn before(server: SocketAddr, upstream: Arc<Upstream>, plan: Plan) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            server,
            upstream,
            plan,
            seen: Mutex::default(),
            counts: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Self {
            address,
            shared,
            accepting,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn counts(&self) -> Counts {
        *self.shared.counts.lock().expect("no panic")
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
            let service = service_fn(|request| handle(Arc::clone(&shared), request));
            let connection = server::conn::http1::Builder::new();
            // It ends with an error where it is cut.
            let _ = connection
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// The connection to the client is cut.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut")
    }
}

impl std::error::Error for Cut {}

type Body = BoxBody<Bytes, Cut>;

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Cut> {
    let (parts, body) = request.into_parts();
    // A client that is killed in mid-request ends its connection only.
    let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
    let try_ = Try {
        key: key(&parts, &body),
        parts,
        body,
        shared,
    };
    try_.run().await
}

/// From where the libraries put it.
fn key(parts: &Parts, body: &[u8]) -> String {
    let header = parts.headers.get("idempotency-key");
    let header = header.map(|key| key.to_str().expect("a key is text").to_owned());
    let member = || {
        let body: serde_json::Value = serde_json::from_slice(body).ok()?;
        Some(body["idempotency_key"].as_str()?.to_owned())
    };
    header.or_else(member).expect("the library sends a key")
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
    fn held(&self) -> Option<Arc<Hold>> {
        let mut seen = self.shared.seen.lock().expect("no panic");
        seen.get_mut(&self.key).and_then(|seen| seen.held.take())
    }

    async fn run(self) -> Result<Response<Body>, Cut> {
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
            Some(Fault::LoseRequest) => return Err(Cut),
            Some(Fault::Answer(status)) => return Ok(made_up(status)),
            _ => {}
        }
        let held = self.held();
        let answer = match fault {
            Some(Fault::Leave) => self.leave().await,
            Some(Fault::Duplicate) => Ok(self.twice().await),
            _ => Ok(self.forward(None).await),
        };
        if let Some(held) = held {
            held.let_go();
        }
        let (parts, body) = answer?.into_parts();
        match fault {
            Some(Fault::LoseAnswer) => Err(Cut),
            Some(Fault::CutAnswer) => {
                let length = body.len();
                let frames = [Ok(Frame::data(body.slice(..length / 2))), Err(Cut)];
                let body = StreamBody::new(futures::stream::iter(frames)).boxed();
                let mut response = Response::from_parts(parts, body);
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_LENGTH, length.into());
                Ok(response)
            }
            // Dropped with the connection, which the client ends.
            Some(Fault::HoldAnswer) => std::future::pending().await,
            Some(Fault::Gateway(status)) => Ok(made_up(status)),
            _ => Ok(Response::from_parts(parts, whole(body))),
        }
    }

    async fn leave(&self) -> Result<Response<Bytes>, Cut> {
        let (hold, name) = self.shared.upstream.hold();
        tokio::select! {
            // Dropped, and with it the connection.
            () = hold.begun() => {
                let mut seen = self.shared.seen.lock().expect("no panic");
                seen.get_mut(&self.key).expect("it was seen").held = Some(hold);
            }
            // The server did not execute it.
            _ = self.forward(Some(&name)) => {}
        }
        Err(Cut)
    }

    /// The second answer.
    async fn twice(&self) -> Response<Bytes> {
        let (hold, name) = self.shared.upstream.hold();
        let mut first = std::pin::pin!(self.forward(Some(&name)));
        tokio::select! {
            () = hold.begun() => {
                let second = self.forward(None);
                let second = async {
                    let second = second.await;
                    hold.let_go();
                    second
                };
                futures::future::join(first, second).await.1
            }
            _ = &mut first => self.forward(None).await,
        }
    }

    /// Over a connection of its own.
    async fn forward(&self, hold: Option<&str>) -> Response<Bytes> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.parts.uri.clone();
        *request.headers_mut() = self.parts.headers.clone();
        if let Some(hold) = hold {
            let hold = hold.parse().expect("a name");
            request.headers_mut().insert(HOLD, hold);
        }
        let response = timeout(PATIENCE, send(self.shared.server, request)).await;
        let response = response
            .expect("the server answers")
            .expect("a whole answer");
        self.count(|counts| {
            let replay = response.headers().contains_key("idempotent-replayed");
            counts.replays += u64::from(replay);
            counts.conflicts += u64::from(response.status() == StatusCode::CONFLICT);
        });
        response
    }
}

async fn send(
    server: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(server).await?;
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Response::from_parts(parts, body))
    };
    // In one future: whoever drops it ends the connection.
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    }
}

fn whole(body: Bytes) -> Body {
    Full::new(body)
        .map_err(|never: Infallible| match never {})
        .boxed()
}

/// As a load balancer puts it.
fn made_up(status: u16) -> Response<Body> {
    let mut response = Response::new(whole(Bytes::from_static(b"{}")));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}
