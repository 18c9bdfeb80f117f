//! Clients that try again until they have an answer, as the official SDKs of payment services do.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::judge::Answer;

/// A server that leaves a request without an answer for so long is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// Numbers that look random, and are the same for the same seed.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`. (SplitMix64.)
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    async fn pause(&mut self, millis: std::ops::Range<u64>) {
        let millis = millis.start + self.below(millis.end - millis.start);
        sleep(Duration::from_millis(millis)).await;
    }
}

/// What all clients met.
#[derive(Debug, Default)]
pub(crate) struct Met {
    pub(crate) requests: AtomicU64,
    pub(crate) replays: AtomicU64,
    pub(crate) conflicts: AtomicU64,
    pub(crate) unavailable: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

/// One client: a connection to each server, kept as long as the server lives.
pub(crate) struct Client<'a> {
    servers: &'a [SocketAddr],
    met: &'a Met,
    random: Random,
    connections: Vec<Option<SendRequest<Full<Bytes>>>>,
}

impl<'a> Client<'a> {
    pub(crate) fn new(servers: &'a [SocketAddr], met: &'a Met, random: Random) -> Self {
        Self {
            servers,
            met,
            random,
            connections: servers.iter().map(|_| None).collect(),
        }
    }

    /// Sends a key once, and again to whichever server until the answer is the last one.
    pub(crate) async fn send(&mut self, path: &str, key: &str, body: &str) -> Answer {
        // Some of those who send the same key come together, and some later.
        if self.random.below(2) == 0 {
            self.random.pause(0..300).await;
        }
        loop {
            let to = self.random.below(self.servers.len() as u64) as usize;
            let answer = timeout(PATIENCE, self.try_once(to, path, key, body)).await;
            let Ok(response) = answer.expect("a server answers, or is gone") else {
                self.met.dropped.fetch_add(1, Relaxed);
                self.random.pause(20..100).await;
                continue;
            };
            if response.headers().contains_key("idempotent-replayed") {
                self.met.replays.fetch_add(1, Relaxed);
            }
            let may_retry = response.headers().contains_key(header::RETRY_AFTER);
            match response.status() {
                StatusCode::CONFLICT if may_retry => {
                    self.met.conflicts.fetch_add(1, Relaxed);
                }
                StatusCode::SERVICE_UNAVAILABLE => {
                    self.met.unavailable.fetch_add(1, Relaxed);
                }
                status => {
                    return Answer {
                        status: status.as_u16(),
                        body: String::from_utf8_lossy(response.body()).into_owned(),
                    };
                }
            }
            // Sooner than they are told, for more of it.
            self.random.pause(50..250).await;
        }
    }

    async fn try_once(
        &mut self,
        to: usize,
        path: &str,
        key: &str,
        body: &str,
    ) -> Result<Response<Bytes>, BoxError> {
        self.met.requests.fetch_add(1, Relaxed);
        // Put back only after a whole answer.
        let mut connection = match self.connections[to].take() {
            Some(connection) => connection,
            None => connect(self.servers[to]).await?,
        };
        connection.ready().await?;
        let request = Request::post(path)
            .header(header::HOST, "payments")
            .header("idempotency-key", key)
            .body(Full::from(body.to_owned()))?;
        let (parts, body) = connection.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        self.connections[to] = Some(connection);
        Ok(Response::from_parts(parts, body))
    }
}

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn connect(server: SocketAddr) -> Result<SendRequest<Full<Bytes>>, BoxError> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Ends with the sender, or with the server.
    tokio::spawn(connection);
    Ok(sender)
}

/// What a server shows.
pub(crate) async fn get(server: SocketAddr, path: &str) -> Result<serde_json::Value, BoxError> {
    let mut connection = connect(server).await?;
    let request = Request::get(path).header(header::HOST, "payments");
    let response = connection.send_request(request.body(Full::default())?);
    let (parts, body) = response.await?.into_parts();
    let body = body.collect().await?.to_bytes();
    assert_eq!(parts.status, StatusCode::OK, "{path}: {body:?}");
    Ok(serde_json::from_slice(&body)?)
}
