//! The service behind the gateway: one request there, and its answer back.

use std::{
    convert::Infallible,
    error::Error,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING},
    request,
};
use http_body_util::{Either, Full};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    upgrade::OnUpgrade,
};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{HttpConnector, capture_connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep_until},
};
use tower::Service;
use tower_idempotency::{Execution, RequestBody};

use crate::{
    HEAD_LIMIT,
    config::{Config, Unknown},
    failure::Failure,
    forward::Rules,
    routes::ANSWER_TIMEOUT,
};

/// What a request comes over, in its extensions.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) client: SocketAddr,
    /// Its place among the connections that there may be at once. A tunnel keeps it.
    pub(crate) place: Arc<OwnedSemaphorePermit>,
}

/// The body of an answer: the upstream's, as it comes, or the gateway's own.
pub(crate) type AnswerBody = Either<Arriving, Full<Bytes>>;

/// Sends requests to the upstream. Clones share its connections.
///
/// It never fails: where there is no answer it makes one, and says in its extensions what became of
/// the request ([`outcome`](crate::outcome)). A request that may have been sent is never sent again.
#[derive(Clone)]
pub(crate) struct Upstream {
    client: Client<HttpConnector, Sending>,
    rules: Arc<Rules>,
    uri: Uri,
    timeout: Duration,
}

impl Upstream {
    pub(crate) fn new(config: &Config) -> Result<Self, String> {
        let authority = config
            .upstream
            .authority()
            .ok_or("the upstream has no host")?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(config.connect_timeout));
        connector.set_nodelay(true);
        connector.set_keepalive(Some(KEEP_ALIVE));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(config.idle_timeout)
            .timer(TokioTimer::new())
            .http2_only(config.upstream_http2)
            .http2_adaptive_window(true)
            .http2_keep_alive_interval(config.upstream_http2.then_some(KEEP_ALIVE))
            .http2_max_header_list_size(HEAD_LIMIT)
            .set_host(false)
            // Only what was never taken from its queue, because a kept connection was gone.
            .retry_canceled_requests(true)
            .build(connector);
        Ok(Self {
            client,
            rules: Arc::new(Rules {
                via: config.via.clone(),
                trust_forwarded: config.trust_forwarded,
                upstream: authority.clone(),
                http2: config.upstream_http2,
            }),
            uri: config.upstream.clone(),
            timeout: config.upstream_timeout,
        })
    }

    async fn answer(self, request: Request<RequestBody<Incoming>>) -> Response<AnswerBody> {
        let (mut parts, body) = request.into_parts();
        let (method, grpc) = (parts.method.clone(), is_grpc(&parts.headers));
        let refusals = parts.extensions.get().copied().unwrap_or_default();
        match self.forward(&mut parts, body).await {
            Ok(answer) => answer.map(Either::Left),
            Err(failure) => failure.answer(&method, grpc, refusals).map(Either::Right),
        }
    }

    async fn forward(
        &self,
        parts: &mut request::Parts,
        body: RequestBody<Incoming>,
    ) -> Result<Response<Arriving>, Failure> {
        let connection = parts.extensions.remove::<Connection>();
        let Connection { client, place } = connection.expect("each request says what it came over");
        let switch = parts.extensions.remove::<OnUpgrade>();
        let attempt = parts.extensions.get().map(Execution::attempt);
        let keep = attempt.is_some() && parts.extensions.get() == Some(&Unknown::Keep);
        let rules = &self.rules;
        rules
            .request(parts, client.ip(), attempt)
            .map_err(Failure::Unfit)?;

        if !rules.http2 {
            frame(&parts.method, &mut parts.headers, &body);
        }
        let progress = Arc::new(Progress::new());
        // Of the extensions nothing is for the client that sends it.
        let mut request = Request::new(Sending {
            body,
            progress: Arc::clone(&progress),
        });
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = self.target(&parts.uri)?;
        *request.headers_mut() = std::mem::take(&mut parts.headers);
        if self.rules.http2 {
            *request.version_mut() = Version::HTTP_2;
        }

        // Only what was given a connection can have been sent.
        let given = capture_connection(&mut request);
        let failed = |failure| match given.connection_metadata().is_none() {
            true => Failure::Unreachable,
            false => failure,
        };
        let sending = self.client.request(request);
        let answered = tokio::select! {
            biased;
            answered = sending => answered,
            failure = progress.stops(self.timeout) => {
                let failure = failed(failure);
                if failure != Failure::SlowClient {
                    complain(&parts.method, &format!("nothing for {:?}", self.timeout));
                }
                return Err(failure);
            }
        };
        let answer = answered.map_err(|error| {
            let failure = failed(of_error(&error));
            if failure != Failure::BrokenClient {
                complain(&parts.method, &whole(&error));
            }
            failure
        })?;

        let (mut head, body) = answer.into_parts();
        rules.answer(&mut head);
        let mut answer = Response::from_parts(head, body);
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            // None where nobody asked for it.
            let switch = switch.ok_or(Failure::Broken)?;
            let upstream = hyper::upgrade::on(&mut answer);
            tokio::spawn(tunnel(switch, upstream, place));
        }
        Ok(answer.map(|body| Arriving::new(body, keep)))
    }

    /// Path and query as they came, at the upstream.
    fn target(&self, uri: &Uri) -> Result<Uri, Failure> {
        let mut parts = self.uri.clone().into_parts();
        parts.path_and_query = uri.path_and_query().cloned();
        Uri::from_parts(parts).map_err(|_| Failure::Unreachable)
    }
}

/// How long a peer that says nothing is thought to be there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

impl Service<Request<RequestBody<Incoming>>> for Upstream {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody<Incoming>>) -> Self::Future {
        let answer = self.clone().answer(request);
        Box::pin(async { Ok(answer.await) })
    }
}

/// Not gRPC-Web, whose clients are no gRPC clients.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Says how the body is framed over HTTP/1.1, where hyper would guess: a GET may have one of unknown
/// length, and an empty POST says so (RFC 9110, 8.6), since many servers insist.
fn frame(method: &Method, headers: &mut HeaderMap, body: &RequestBody<Incoming>) {
    if headers.contains_key(CONTENT_LENGTH) {
        return;
    }
    let meant_to_have_one = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
    if body.size_hint().exact().is_none() {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    } else if body.is_end_stream() && meant_to_have_one {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
    }
}

/// What an error says of a request that may have been sent.
fn of_error(error: &hyper_util::client::legacy::Error) -> Failure {
    if error.is_connect() {
        return Failure::Unreachable;
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            if error.is_canceled() {
                // The connection was gone before the request was taken from its queue.
                return Failure::Unreachable;
            }
            if error.is_user() {
                return Failure::BrokenClient;
            }
        }
        if let Some(error) = error.downcast_ref::<h2::Error>()
            && error.is_remote()
            && error.is_reset()
            && error.reason() == Some(h2::Reason::REFUSED_STREAM)
        {
            // The upstream's promise that it has done nothing (RFC 9113, 8.7).
            return Failure::Unreachable;
        }
        cause = error.source();
    }
    Failure::Broken
}

fn complain(method: &Method, why: &str) {
    eprintln!("the upstream did not answer a {method}: {why}");
}

fn whole(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Passes on what comes, both ways, until both sides have ended.
async fn tunnel(client: OnUpgrade, upstream: OnUpgrade, place: Arc<OwnedSemaphorePermit>) {
    if let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) {
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        // One that breaks ends both.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
    }
    drop(place);
}

/// When something of a request was last passed on.
///
/// The upstream's time does not run while its client has yet to send.
#[derive(Debug)]
struct Progress(Mutex<(Instant, Next)>);

/// Whose turn it is.
#[derive(Clone, Copy, Debug)]
enum Next {
    Upstream,
    Client,
}

impl Progress {
    fn new() -> Self {
        Self(Mutex::new((Instant::now(), Next::Upstream)))
    }

    fn note(&self, next: Next) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 = next;
        if let Next::Upstream = next {
            state.0 = Instant::now();
        }
    }

    /// Returns when nothing has moved for so long.
    async fn stops(&self, limit: Duration) -> Failure {
        loop {
            let (since, next) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let end = since + limit;
            if end <= Instant::now() {
                return match next {
                    Next::Upstream => Failure::Slow,
                    Next::Client => Failure::SlowClient,
                };
            }
            sleep_until(end).await;
        }
    }
}

/// A request's body on its way.
struct Sending {
    body: RequestBody<Incoming>,
    progress: Arc<Progress>,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_pending() {
            self.progress.note(Next::Client);
        }
        let frame = ready!(polled);
        self.progress.note(Next::Upstream);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The upstream's answer on its way.
///
/// To the layer an answer that breaks off has failed, and its key is free for a retry. Where that is
/// not to be ([`Unknown::Keep`]), the break is held back until the layer has waited long enough: then
/// the key is completed, and a retry is told that the answer cannot be given again.
pub(crate) struct Arriving {
    body: Incoming,
    /// Until when; none where it is not held back.
    hold: Option<Instant>,
    broken: Option<(hyper::Error, Pin<Box<Sleep>>)>,
}

impl Arriving {
    fn new(body: Incoming, keep: bool) -> Self {
        // The layer begins to wait a little later than now.
        const AFTER: Duration = Duration::from_secs(1);
        Self {
            body,
            hold: keep.then(|| Instant::now() + ANSWER_TIMEOUT + AFTER),
            broken: None,
        }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.broken.is_none() {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            match (frame, self.hold) {
                (Some(Err(error)), Some(until)) => {
                    self.broken = Some((error, Box::pin(sleep_until(until))));
                }
                (frame, _) => return Poll::Ready(frame),
            }
        }
        if let Some((_, held)) = &mut self.broken {
            ready!(held.as_mut().poll(cx));
        }
        self.hold = None;
        Poll::Ready(self.broken.take().map(|(error, _)| Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
