//! The [`Idempotency`] service: what happens to one request, from its key to its answer.

use std::{
    fmt,
    future::{Future, poll_fn},
    panic::resume_unwind,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_TYPE, EXPECT},
    request::Parts,
    response,
};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::{Service, ServiceExt};

use super::{
    body::{self, BufferedBody, Collected, ReadError, ReadLimits, RequestBody, ResponseBody},
    codec,
    extract::{self, Fingerprinter, KeySource, Scope},
    problem::Refusal,
    takeover::{Probed, Takeover},
    verdict::Verdict,
};
use crate::{
    engine::{Attached, Begin, Ended, Ending, Engine, Execution, Running, Stage},
    key::{IdempotencyKey, InvalidKey, StoreKey},
    record::{Entry, Payload},
    telemetry::{self, Outcome, Reason},
};

/// What says whether an answer is a replay. Not in any standard; several public APIs use it.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// How long a refusal waits for the rest of a body that nobody will read.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// How many bytes beyond the limit of bodies it reads of that: a body that is a little too large
/// does not cost its connection.
const DISCARD_BEYOND: usize = 256 * 1024;

pub(super) type Covers = Arc<dyn Fn(&Parts) -> bool + Send + Sync>;
pub(super) type ValidateKey = Arc<dyn Fn(&IdempotencyKey) -> Result<(), InvalidKey> + Send + Sync>;
pub(super) type Judge = Arc<dyn Fn(&response::Parts, Option<&HeaderMap>) -> Verdict + Send + Sync>;
pub(super) type ReplayStatus = Arc<dyn Fn(StatusCode) -> StatusCode + Send + Sync>;
pub(super) type OnRefusal = Arc<dyn Fn(&Refusal, Response<Bytes>) -> Response<Bytes> + Send + Sync>;

/// The options of a layer, and what its services share.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) engine: Engine,
    pub(super) scope: Scope,
    pub(super) key: KeySource,
    pub(super) key_required: bool,
    pub(super) validate_key: Option<ValidateKey>,
    pub(super) covers: Option<Covers>,
    pub(super) prefix: String,
    pub(super) scope_by_endpoint: bool,
    pub(super) fingerprinter: Fingerprinter,
    pub(super) judge: Judge,
    pub(super) takeover: Takeover,
    pub(super) replay_status: Option<ReplayStatus>,
    pub(super) replay_set_cookie: bool,
    pub(super) retry_after: Duration,
    pub(super) body_limit: usize,
    pub(super) body_timeout: Duration,
    pub(super) response_limit: usize,
    pub(super) response_timeout: Duration,
    pub(super) buffer_limit: usize,
    pub(super) docs_url: Option<String>,
    pub(super) on_refusal: Option<OnRefusal>,
}

/// Runs an operation named by a key once, and gives everyone who asks again the same answer.
///
/// Made by [`IdempotencyLayer`](crate::IdempotencyLayer), whose docs say what it does. Clones
/// share the store and the limits.
#[derive(Clone)]
#[must_use]
pub struct Idempotency<Svc> {
    inner: Svc,
    config: Arc<Config>,
}

impl<Svc> Idempotency<Svc> {
    pub(super) fn new(inner: Svc, config: Arc<Config>) -> Self {
        Self { inner, config }
    }

    /// The wrapped service.
    pub fn get_ref(&self) -> &Svc {
        &self.inner
    }

    /// The wrapped service.
    pub fn get_mut(&mut self) -> &mut Svc {
        &mut self.inner
    }

    /// The wrapped service.
    pub fn into_inner(self) -> Svc {
        self.inner
    }
}

impl<Svc: fmt::Debug> fmt::Debug for Idempotency<Svc> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<Svc, ReqBody, ResBody> Service<Request<ReqBody>> for Idempotency<Svc>
where
    Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>
        + Clone
        + Send
        + 'static,
    Svc::Future: Send,
    Svc::Error: Send + 'static,
    ReqBody: Body<Data = Bytes> + Send + 'static,
    ReqBody::Error: Send + 'static,
    ResBody: Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Send + 'static,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = Svc::Error;
    type Future = ResponseFuture<Svc::Future, ResBody, Svc::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    /// # Panics
    ///
    /// Outside a tokio runtime, for a covered request.
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let config = &self.config;
        let (parts, body) = request.into_parts();
        let key = match config.covers(&parts) {
            true => config.key.key_from_parts(&parts),
            false => return self.untouched(parts, body),
        };
        if matches!(key, Ok(None)) && !config.key.needs_body() && !config.key_required {
            return self.untouched(parts, body);
        }
        let stage = Arc::new(Stage::default());
        // The service that was asked for its readiness is the one to be called.
        let spare = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, spare.clone());
        let (counts, limit) = (config.engine.work(), config.engine.options().max_detached);
        let covered = Covered {
            config: Arc::clone(config),
            stage: Arc::clone(&stage),
            ready: Some(ready),
            spare,
        };
        let work = Box::pin(covered.answer(parts, body, key));
        ResponseFuture {
            state: State::Covered {
                work: Attached::new(work, stage, counts, limit),
            },
        }
    }
}

impl<Svc> Idempotency<Svc> {
    fn untouched<ReqBody, ResBody>(
        &mut self,
        parts: Parts,
        body: ReqBody,
    ) -> ResponseFuture<Svc::Future, ResBody, Svc::Error>
    where
        Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
    {
        let request = Request::from_parts(parts, RequestBody::streaming(body));
        ResponseFuture {
            state: State::Untouched {
                call: self.inner.call(request),
            },
        }
    }
}

impl Config {
    /// Upgrades are not requests with an answer that could be given again.
    fn covers(&self, parts: &Parts) -> bool {
        let chosen = match &self.covers {
            None => parts.method == Method::POST || parts.method == Method::PATCH,
            Some(covers) => covers(parts),
        };
        chosen && !extract::is_upgrade(parts)
    }

    fn refusal(&self, reason: Reason, key: Option<&IdempotencyKey>) -> Refusal {
        Refusal::new(reason, key.cloned(), None, self.retry_after)
    }

    fn invalid(&self, error: &InvalidKey) -> Refusal {
        let detail = Some(error.to_string());
        Refusal::new(Reason::KeyInvalid, None, detail, self.retry_after)
    }

    fn validated(&self, key: IdempotencyKey) -> Result<IdempotencyKey, Refusal> {
        if let Some(validate) = &self.validate_key {
            validate(&key).map_err(|error| self.invalid(&error))?;
        }
        Ok(key)
    }

    fn refused<B>(&self, refusal: &Refusal) -> Response<ResponseBody<B>> {
        let response = refusal.response(self.docs_url.as_deref());
        match &self.on_refusal {
            None => response,
            Some(on_refusal) => on_refusal(refusal, response),
        }
        .map(ResponseBody::full)
    }

    fn replay<B>(&self, key: &StoreKey, payload: &Payload) -> Response<ResponseBody<B>> {
        if !payload.is_replayable() {
            let reason = Reason::NotReplayable;
            let response = self.refused(&self.refusal(reason, None));
            return told(response, Some(key), Outcome::Refused(reason));
        }
        let answer = match codec::decode(payload) {
            Ok(answer) => answer,
            Err(error) => {
                telemetry::unreadable(key, &error);
                let reason = Reason::StoreUnavailable;
                let response = self.refused(&self.refusal(reason, None));
                return told(response, Some(key), Outcome::Refused(reason));
            }
        };
        let body = ResponseBody::buffered(answer.body, answer.trailers, answer.exact, None);
        let mut response = Response::new(body);
        *response.status_mut() = match &self.replay_status {
            Some(map) => map(answer.status),
            None => answer.status,
        };
        *response.headers_mut() = answer.headers;
        response
            .headers_mut()
            .insert(REPLAYED, HeaderValue::from_static("true"));
        told(response, Some(key), Outcome::Replayed)
    }
}

/// Puts the outcome where outer layers and logs find it.
fn told<B>(mut response: Response<B>, key: Option<&StoreKey>, outcome: Outcome) -> Response<B> {
    telemetry::outcome(key, outcome);
    response.extensions_mut().insert(outcome);
    response
}

/// One covered request on its way.
struct Covered<Svc> {
    config: Arc<Config>,
    stage: Arc<Stage>,
    /// The service that was ready; let go while the request waits for another execution.
    ready: Option<Svc>,
    spare: Svc,
}

/// A request that was admitted to the store.
struct Admitted {
    body: BufferedBody,
    key: IdempotencyKey,
    store_key: StoreKey,
    fingerprint: crate::fingerprint::Fingerprint,
}

type Answer<Svc, ReqBody, ResBody> =
    Result<Response<ResponseBody<ResBody>>, <Svc as Service<Request<RequestBody<ReqBody>>>>::Error>;

impl<Svc> Covered<Svc> {
    async fn answer<ReqBody, ResBody>(
        mut self,
        parts: Parts,
        body: ReqBody,
        key: Result<Option<IdempotencyKey>, InvalidKey>,
    ) -> Answer<Svc, ReqBody, ResBody>
    where
        Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
        ReqBody: Body<Data = Bytes>,
        ResBody: Body<Data = Bytes>,
        ResBody::Error: Send + 'static,
    {
        let config = Arc::clone(&self.config);
        let admitted = {
            let mut admission = pin!(admit(&config, &parts, body, key));
            poll_fn(|cx| {
                let polled = admission.as_mut().poll(cx);
                if polled.is_pending() {
                    // A slow client does not hold a place in the inner service.
                    self.ready = None;
                }
                polled
            })
            .await
        };
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(Turned::Refused(refusal)) => {
                let outcome = Outcome::Refused(refusal.reason());
                return Ok(told(config.refused(&refusal), None, outcome));
            }
            Err(Turned::Keyless(body)) => return self.pass_on(parts, body).await,
        };
        let Admitted {
            body,
            key,
            store_key,
            fingerprint,
        } = admitted;
        let outer = parts.extensions.get::<Execution>();
        if outer.is_some_and(|outer| *outer.store_key() == store_key) {
            // A layer further out runs this very operation: this one would wait for itself.
            return self.pass_on(parts, body).await;
        }
        let begin = config
            .engine
            .begin(&store_key, fingerprint, &self.stage, || {
                self.ready = None;
            })
            .await;
        match begin {
            Begin::Run(running) => self.run(running, key, parts, body).await,
            Begin::Replay(payload) => Ok(config.replay(&store_key, &payload)),
            Begin::Refuse(reason) => {
                let response = config.refused(&config.refusal(reason, Some(&key)));
                Ok(told(response, Some(&store_key), Outcome::Refused(reason)))
            }
            Begin::Unprotected => {
                let response = self.pass_on(parts, body).await?;
                Ok(told(response, Some(&store_key), Outcome::Unprotected))
            }
            // Nobody is there to read this.
            Begin::CallerLeft => Ok(Response::new(ResponseBody::empty())),
        }
    }

    /// Runs the handler without a record.
    async fn pass_on<ReqBody, ResBody>(
        mut self,
        parts: Parts,
        body: BufferedBody,
    ) -> Answer<Svc, ReqBody, ResBody>
    where
        Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
        ResBody: Body<Data = Bytes>,
    {
        let request = Request::from_parts(parts, RequestBody::buffered(body));
        let response = match self.ready.take() {
            Some(mut ready) => ready.call(request).await?,
            None => self.spare.oneshot(request).await?,
        };
        Ok(response.map(ResponseBody::untouched))
    }

    /// Runs the handler under its claim, and records how it ended.
    async fn run<ReqBody, ResBody>(
        mut self,
        mut running: Running,
        key: IdempotencyKey,
        mut parts: Parts,
        body: BufferedBody,
    ) -> Answer<Svc, ReqBody, ResBody>
    where
        Svc: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
        ResBody: Body<Data = Bytes>,
        ResBody::Error: Send + 'static,
    {
        let config = &*self.config;
        let execution = running.execution().clone();
        let store_key = execution.store_key().clone();
        let head = parts.method == Method::HEAD;

        let prepare = async {
            if let Some(probe) = config.takeover.probing()
                && execution.entry() == Entry::Takeover
            {
                match probe(execution.clone(), &parts).await {
                    Probed::Completed(response) => return Err(probed(config, response)),
                    Probed::Unknown => {
                        let refusal = config.refusal(Reason::Abandoned, Some(&key));
                        return Err((Ending::NotRun, Ok(config.refused(&refusal))));
                    }
                    Probed::NotDone => {}
                }
            }
            match self.ready.take() {
                Some(ready) => Ok(ready),
                None => match self.spare.ready().await {
                    Ok(_) => Ok(self.spare),
                    Err(error) => Err((Ending::NotRun, Err(error))),
                },
            }
        };
        let ended = match running.watch(prepare).await {
            Ok(Ok(mut service)) => {
                parts.extensions.insert(execution);
                let request = Request::from_parts(parts, RequestBody::buffered(body));
                let work = async {
                    match service.call(request).await {
                        Ok(response) => answered(config, head, response).await,
                        Err(error) => (Ending::Failed, Err(error)),
                    }
                };
                let ended = running.watch(work).await;
                ended.map_err(|panic| (Ending::Failed, panic))
            }
            Ok(Err(instead)) => Ok(instead),
            Err(panic) => Err((Ending::NotRun, panic)),
        };
        let (ending, answer) = match ended {
            Ok(ended) => ended,
            Err((ending, panic)) => {
                running.end(ending).await;
                telemetry::outcome(Some(&store_key), Outcome::Failed);
                resume_unwind(panic);
            }
        };

        let ending = running.settled(ending);
        let completed = matches!(ending, Ending::Completed(_));
        let outcome = match ending {
            Ending::Completed(_) => Outcome::Completed,
            Ending::Rejected => Outcome::Rejected,
            Ending::Failed => Outcome::Failed,
            Ending::NotRun => Outcome::Refused(Reason::Abandoned),
        };
        let outcome = match running.end(ending).await {
            Ended::Recorded => outcome,
            Ended::NotReplayable => Outcome::NotReplayable,
            Ended::Unrecorded => Outcome::Unrecorded,
            Ended::Superseded(Some(payload)) => return Ok(config.replay(&store_key, &payload)),
            // Sent, this answer could differ from the one that will be recorded.
            Ended::Superseded(None) if completed => {
                let response = config.refused(&config.refusal(Reason::InProgress, Some(&key)));
                return Ok(told(response, Some(&store_key), Outcome::Superseded));
            }
            Ended::Superseded(None) => Outcome::Superseded,
        };
        // An error of the inner service has no extensions to tell the outcome in.
        answer.map(|response| told(response, Some(&store_key), outcome))
    }
}

/// Why a request does not reach the store.
enum Turned {
    Refused(Refusal),
    /// It has no key and needs none.
    Keyless(BufferedBody),
}

impl From<Refusal> for Turned {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Checks the key, the caller and the body, in this order, and names the record.
async fn admit<B: Body<Data = Bytes>>(
    config: &Config,
    parts: &Parts,
    body: B,
    key: Result<Option<IdempotencyKey>, InvalidKey>,
) -> Result<Admitted, Turned> {
    let mut body = pin!(body);
    let identified = identify(config, parts, key);
    // Reading tells a client that waits for `100 Continue` to send.
    let reads = identified.is_ok() && body.size_hint().lower() <= config.body_limit as u64;
    let read = match identified {
        Ok(known) => read(config, parts, body.as_mut())
            .await
            .map(|(body, fingerprint)| (known, body, fingerprint)),
        Err(refusal) => Err(refusal),
    };
    let ((key, scope), mut body, fingerprint) = match read {
        Ok(read) => read,
        Err(refusal) => {
            // What is left of the body is in the way of the connection's next request. A client
            // that was not told to send has sent none, and one that was too slow is not waited for
            // again.
            let late = refusal.reason() == Reason::BodyTooSlow;
            if !late && (reads || !parts.headers.contains_key(EXPECT)) {
                let max = config.body_limit.saturating_add(DISCARD_BEYOND);
                body::discard(body, max, DISCARD_TIMEOUT).await;
            }
            return Err(refusal.into());
        }
    };
    let key = match key {
        Some(key) => key,
        None => {
            let found = config
                .key
                .key_from_body(parts, &body.contiguous(), &fingerprint)
                .map_err(|error| config.invalid(&error))?;
            match found {
                Some(key) => config.validated(key)?,
                None if config.key_required => {
                    return Err(config.refusal(Reason::KeyMissing, None).into());
                }
                None => return Err(Turned::Keyless(body)),
            }
        }
    };
    let endpoint = match config.scope_by_endpoint {
        true => extract::endpoint(parts),
        false => String::new(),
    };
    Ok(Admitted {
        store_key: StoreKey::new(&config.prefix, &scope, &endpoint, key.as_str()),
        body,
        key,
        fingerprint,
    })
}

type Known = (Option<IdempotencyKey>, String);

/// The key, as far as the head of the request has it, and the caller.
fn identify(
    config: &Config,
    parts: &Parts,
    key: Result<Option<IdempotencyKey>, InvalidKey>,
) -> Result<Known, Refusal> {
    let key = match key.map_err(|error| config.invalid(&error))? {
        Some(key) => Some(config.validated(key)?),
        None if config.key.needs_body() => None,
        None => return Err(config.refusal(Reason::KeyMissing, None)),
    };
    let caller = config.scope.identify(parts);
    let caller = caller.map_err(|_| config.refusal(Reason::CallerUnknown, key.as_ref()))?;
    Ok((key, caller))
}

async fn read<B: Body<Data = Bytes>>(
    config: &Config,
    parts: &Parts,
    body: Pin<&mut B>,
) -> Result<(BufferedBody, crate::fingerprint::Fingerprint), Refusal> {
    let limits = ReadLimits {
        max: config.body_limit,
        timeout: config.body_timeout,
        total: config.buffer_limit,
    };
    let mut hasher = config.fingerprinter.start(parts);
    let streams = config.fingerprinter.streams();
    let read = body::read(body, limits, config.engine.work().bytes(), |data| {
        if streams {
            hasher.raw(data);
        }
    });
    let mut body = read.await.map_err(|error| {
        let reason = match error {
            ReadError::TooLarge => Reason::BodyTooLarge,
            ReadError::TooSlow => Reason::BodyTooSlow,
            ReadError::Broken => Reason::BodyBroken,
            ReadError::Overloaded => Reason::Overloaded,
        };
        config.refusal(reason, None)
    })?;
    let fingerprint = match streams {
        true => hasher.finish(),
        false => config
            .fingerprinter
            .finish_whole(hasher, parts, &body.contiguous()),
    };
    Ok((body, fingerprint))
}

/// Judges the handler's answer, and makes ready what is recorded and what is sent.
async fn answered<B, E>(
    config: &Config,
    head: bool,
    response: Response<B>,
) -> (Ending, Result<Response<ResponseBody<B>>, E>)
where
    B: Body<Data = Bytes>,
    B::Error: Send + 'static,
{
    let (parts, body) = response.into_parts();
    if is_stream(&parts) {
        let ending = not_replayable(config, &parts);
        return (
            ending,
            Ok(Response::from_parts(parts, ResponseBody::untouched(body))),
        );
    }
    // An answer that has no body by its nature may have a length all the same, or may not: a
    // replay is to have one only if the first answer had (U22).
    let bodiless = head
        || matches!(
            parts.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
    let exact = !bodiless || body.size_hint().exact().is_some();
    let (limit, timeout) = (config.response_limit, config.response_timeout);
    let (ending, body) = match body::collect(body, limit, timeout, config.engine.work().bytes())
        .await
    {
        Collected::Whole {
            frames,
            trailers,
            permit,
        } => {
            let ending = match (config.judge)(&parts, trailers.as_ref()) {
                Verdict::Completed => {
                    let cookies = config.replay_set_cookie;
                    let encoded = codec::encode(&parts, &frames, trailers.as_ref(), exact, cookies);
                    Ending::Completed(encoded.unwrap_or_else(|| bare(&parts)))
                }
                Verdict::Rejected => Ending::Rejected,
                Verdict::Failed => Ending::Failed,
            };
            let body = ResponseBody::buffered(frames, trailers, exact, Some(permit));
            (ending, body)
        }
        Collected::Partial {
            frames,
            rest,
            permit,
        } => (
            not_replayable(config, &parts),
            ResponseBody::passed_on(frames, rest, permit),
        ),
        Collected::Broken {
            frames,
            error,
            permit,
        } => (Ending::Failed, ResponseBody::broken(frames, error, permit)),
    };
    (ending, Ok(Response::from_parts(parts, body)))
}

/// The probe's answer, to be recorded and sent as if the handler had given it.
fn probed<B, E>(
    config: &Config,
    response: Response<Bytes>,
) -> (Ending, Result<Response<ResponseBody<B>>, E>) {
    let (parts, body) = response.into_parts();
    let frames = [body];
    let encoded = codec::encode(&parts, &frames, None, true, config.replay_set_cookie);
    let ending = Ending::Completed(encoded.unwrap_or_else(|| bare(&parts)));
    let [body] = frames;
    let response = Response::from_parts(parts, ResponseBody::full(body));
    (ending, Ok(response))
}

fn not_replayable(config: &Config, parts: &response::Parts) -> Ending {
    match (config.judge)(parts, None) {
        Verdict::Completed => Ending::Completed(bare(parts)),
        Verdict::Rejected => Ending::Rejected,
        Verdict::Failed => Ending::Failed,
    }
}

fn bare(parts: &response::Parts) -> Payload {
    Payload::not_replayable(parts.status.as_u16())
}

/// An answer that has no end to wait for: server-sent events, or an upgrade.
fn is_stream(parts: &response::Parts) -> bool {
    let events = |value: &HeaderValue| {
        let media_type = value.as_bytes().split(|&b| b == b';').next();
        media_type
            .unwrap_or_default()
            .trim_ascii()
            .eq_ignore_ascii_case(b"text/event-stream")
    };
    parts.status == StatusCode::SWITCHING_PROTOCOLS
        || parts.headers.get(CONTENT_TYPE).is_some_and(events)
}

pin_project! {
    /// The answer to come, of [`Idempotency`].
    ///
    /// Dropped once its key is claimed, it moves to the runtime that it was made in, and is
    /// recorded there (P4).
    pub struct ResponseFuture<F, B, E> {
        #[pin]
        state: State<F, B, E>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, B, E> {
        Untouched { #[pin] call: F },
        Covered { work: Attached<Result<Response<ResponseBody<B>>, E>> },
    }
}

impl<F, B, E> Future for ResponseFuture<F, B, E>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Untouched { call } => {
                let response = ready!(call.poll(cx))?;
                Poll::Ready(Ok(response.map(ResponseBody::untouched)))
            }
            StateProjection::Covered { work } => Pin::new(work).poll(cx),
        }
    }
}

impl<F, B, E> fmt::Debug for ResponseFuture<F, B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
