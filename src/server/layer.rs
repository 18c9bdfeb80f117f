//! The [`IdempotencyLayer`]: the store, the caller's identity, and every option.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, request, response};
use tower_layer::Layer;

use super::{
    body::ReadLimits,
    config::Config,
    extract::{Fingerprinter, KeySource, Scope},
    problem::Refusal,
    service::Idempotency,
    takeover::Takeover,
    verdict::{self, Verdict},
};
use crate::{
    engine::{Engine, OnConflict},
    key::{IdempotencyKey, InvalidKey},
    store::Store,
};

/// Gives idempotency to a service: see the [crate's documentation](crate) for what that means.
///
/// ```
/// use std::{convert::Infallible, time::Duration};
///
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use tower::{Layer, Service, ServiceExt, service_fn};
/// use tower_idempotency::{IdempotencyLayer, MemoryStore, RequestBody, Scope};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::header("x-api-key"))
///     .require_key(true)
///     .ttl(Duration::from_secs(60 * 60));
///
/// let handler = |request: Request<RequestBody<Full<Bytes>>>| async move {
///     let body = request.into_body().collect().await.unwrap().to_bytes();
///     Ok::<_, Infallible>(Response::new(Full::from(body)))
/// };
/// let mut service = layer.layer(service_fn(handler));
///
/// let request = || {
///     Request::post("/payments")
///         .header("x-api-key", "merchant-7")
///         .header("idempotency-key", "\"order-1\"")
///         .body(Full::from("100 EUR"))
///         .unwrap()
/// };
/// let first = service.ready().await.unwrap().call(request()).await.unwrap();
/// let again = service.ready().await.unwrap().call(request()).await.unwrap();
///
/// assert!(!first.headers().contains_key("idempotent-replayed"));
/// assert_eq!(again.headers()["idempotent-replayed"], "true");
/// assert_eq!(again.into_body().collect().await.unwrap().to_bytes(), "100 EUR");
///
/// // Before the process ends:
/// layer.drain().await;
/// # }
/// ```
///
/// # What a handler sees
///
/// A handler that runs under a key has an [`Execution`](crate::Execution) among its request's
/// extensions; with the feature `axum` it is an extractor. The body it gets is the client's, from
/// memory, with its trailers; a request that is not covered keeps its own.
///
/// # Cancellation
///
/// A caller who leaves before its key is claimed just cancels. After that the execution goes on
/// without it, as a task of the runtime in which the service was called, and is recorded (P4): a
/// disconnect, a timeout further out and a shutdown that awaits [`drain`](Self::drain) cost no
/// work. The `tracing` span goes with it, `tokio::task_local!` values do not.
///
/// # Other layers
///
/// [`stacks`](crate::stacks) says which of them belong outside and which inside, and has a whole
/// stack for axum.
///
/// # Readiness
///
/// The service that was asked for its readiness is the one that is called. A request that waits
/// for another execution lets it go, and asks anew when it is its turn.
///
/// # Streams
///
/// The request is read to its end before the handler runs, so a call whose client sends while it
/// receives does not work under a key: it is refused when its time is up. An answer that is too
/// large, too slow, or `text/event-stream` goes out as it comes, and its key counts as completed.
///
/// # gRPC
///
/// With the feature `grpc`, a request whose `Content-Type` is `application/grpc` is refused by a gRPC
/// status, and a gRPC answer is judged by its own. There is nothing to set; but every gRPC call is a
/// POST, so say by [`covers`](Self::covers) which methods are meant. [`stacks`](crate::stacks) has a
/// tonic server. Turn the feature on in every one: without it a refusal is a problem document, which
/// clients of gRPC cannot read, and each error of a handler counts as failed.
///
/// # Connections
///
/// The body of a refused request is read on, for up to a second and up to 256 KiB beyond the
/// [limit](Self::body_limit), so that its connection can go on. If more of it is to come, or the
/// client waits for `100 Continue`, the refusal says `Connection: close` over HTTP/1.
///
/// # Sharing
///
/// Clones of a layer, and the services it makes, share the store and the limits. An option that is
/// set on a clone is the clone's own (U25).
#[must_use]
pub struct IdempotencyLayer<S: ?Sized> {
    store: Arc<S>,
    config: Arc<Config>,
}

impl<S: ?Sized> Clone for IdempotencyLayer<S> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            config: Arc::clone(&self.config),
        }
    }
}

impl<S: ?Sized> fmt::Debug for IdempotencyLayer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayer")
            .field("engine", self.config.engine.options())
            .field("scope", &self.config.scope)
            .field("key", &self.config.key)
            .finish_non_exhaustive()
    }
}

impl<S: ?Sized, Svc> Layer<Svc> for IdempotencyLayer<S> {
    type Service = Idempotency<Svc>;

    fn layer(&self, inner: Svc) -> Self::Service {
        Idempotency::new(inner, Arc::clone(&self.config))
    }
}

impl<S: Store> IdempotencyLayer<S> {
    /// A layer that keeps its records in `store`, apart for each caller that `scope` tells.
    ///
    /// The scope is asked for because nothing safe can be assumed: without it, one user who
    /// guesses another's key would get the other's answer (I12, U33).
    pub fn new(store: S, scope: Scope) -> Self {
        let store = Arc::new(store);
        let engine = Engine::new(Arc::clone(&store) as Arc<dyn Store>);
        Self {
            store,
            config: Arc::new(Config {
                engine,
                scope,
                key: KeySource::default(),
                key_required: false,
                validate_key: None,
                covers: None,
                prefix: "idem".to_owned(),
                scope_by_endpoint: true,
                fingerprinter: Fingerprinter::default(),
                #[cfg(feature = "grpc")]
                judge: Arc::new(verdict::by_grpc_status),
                #[cfg(not(feature = "grpc"))]
                judge: Arc::new(verdict::by_status),
                takeover: Takeover::default(),
                replay_status: None,
                replay_set_cookie: false,
                retry_after: Duration::from_secs(1),
                read_limits: ReadLimits {
                    max: MIB,
                    timeout: Duration::from_secs(30),
                    total: 256 * MIB,
                },
                response_limit: MIB,
                response_timeout: Duration::from_secs(10),
                docs_url: None,
                on_refusal: None,
            }),
        }
    }
}

/// Hides which store it is, where several of them are to choose from. Options are kept.
impl<S: Store> From<IdempotencyLayer<S>> for IdempotencyLayer<dyn Store> {
    fn from(layer: IdempotencyLayer<S>) -> Self {
        Self {
            store: layer.store,
            config: layer.config,
        }
    }
}

const MIB: usize = 1024 * 1024;

/// What is covered, and where the key comes from.
impl<S: ?Sized> IdempotencyLayer<S> {
    /// Which requests the layer covers: POST and PATCH by default (S11).
    ///
    /// All others pass to the inner service untouched, and so do upgrades (CONNECT, and
    /// `Connection: upgrade` to anything but `h2c`), whatever this says and also where a key is
    /// required.
    /// Narrow it to leave out streaming calls; widen it for a PUT or DELETE whose effects are not
    /// idempotent by themselves. It may be called for every request, so it should be cheap.
    pub fn covers(self, covers: impl Fn(&request::Parts) -> bool + Send + Sync + 'static) -> Self {
        self.set(|config| config.covers = Some(Arc::new(covers)))
    }

    /// Whose a key is, instead of what [`new`](IdempotencyLayer::new) was told.
    ///
    /// Set it on a clone, for routes whose callers are told apart otherwise: both share the limits.
    pub fn scope(self, scope: Scope) -> Self {
        self.set(|config| config.scope = scope)
    }

    /// Whether a covered request without a key is refused with 400 (S12). The default is `false`:
    /// it passes to the inner service untouched.
    ///
    /// Set it where a repeated effect costs money.
    pub fn require_key(self, required: bool) -> Self {
        self.set(|config| config.key_required = required)
    }

    /// Where the key comes from: by default the header `Idempotency-Key`, as a structured-field
    /// string or bare (I01).
    ///
    /// Set it where your clients send it elsewhere, or cannot send one at all
    /// ([`KeySource::derived`]).
    pub fn key(self, source: KeySource) -> Self {
        self.set(|config| config.key = source)
    }

    /// A further check of keys, before any lookup (I03, I11): by default any key of 1 to 255
    /// visible ASCII characters or spaces is taken. A refusal is 400, with the error as detail.
    ///
    /// Set it where you publish a format. Do not ask for UUID version 4 lightly: several official
    /// SDKs send other keys (U32).
    pub fn validate_key(
        self,
        validate: impl Fn(&IdempotencyKey) -> Result<(), InvalidKey> + Send + Sync + 'static,
    ) -> Self {
        self.set(|config| config.validate_key = Some(Arc::new(validate)))
    }

    /// What every store key begins with: `idem` by default.
    ///
    /// Set it where several applications share a store, or call the same service under
    /// [derived keys](crate::Execution::derive), which are made of it, too: two applications may be
    /// sent the same key.
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        self.set(|config| config.prefix = prefix.into())
    }

    /// Whether method and path belong to the scope of a key. The default is `true`: one key at
    /// two endpoints is two operations.
    ///
    /// Turned off, a key is the caller's over all endpoints, and using it at a second one is a
    /// mismatch (with the default fingerprint, which covers method and path).
    pub fn scope_by_endpoint(self, by_endpoint: bool) -> Self {
        self.set(|config| config.scope_by_endpoint = by_endpoint)
    }

    /// What tells payloads apart: by default SHA-256 over method, path, query and body (I04).
    ///
    /// Set it where honest retries are not equal byte for byte, [`Fingerprinter::json`] say, or
    /// where a plain checksum of the body tells too much, [`Fingerprinter::keyed`].
    pub fn fingerprint(self, fingerprinter: Fingerprinter) -> Self {
        self.set(|config| config.fingerprinter = fingerprinter)
    }
}

/// What an answer means, and how it is given again.
impl<S: ?Sized> IdempotencyLayer<S> {
    /// What an answer says about its operation: by default [`verdict::by_status`], and with the
    /// feature `grpc` [`verdict::by_grpc_status`]. Another preset is [`verdict::record_errors`].
    ///
    /// Set it where your statuses mean something else: a 402 that must not be tried again under the
    /// same key, say, or a 503 that is certain to come before any effect.
    ///
    /// It gets the head of the answer and its trailers, where there are any. A judge that panics
    /// counts as a handler that did. With the feature `grpc` it is not asked about a gRPC answer
    /// that is sent on before its status is known, being too large or too slow: that is completed.
    pub fn judge(
        self,
        judge: impl Fn(&response::Parts, Option<&HeaderMap>) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        self.set(|config| config.judge = Arc::new(judge))
    }

    /// Gives a replay another status than the recorded one, 200 for 201, say (S13). By default it
    /// keeps the recorded one (U27).
    ///
    /// Set it where clients are to tell a replay by its status; they can tell by its header. It is not
    /// asked for gRPC calls (feature `grpc`), whose status is always 200.
    pub fn replay_status(
        self,
        map: impl Fn(StatusCode) -> StatusCode + Send + Sync + 'static,
    ) -> Self {
        self.set(|config| config.replay_status = Some(Arc::new(map)))
    }

    /// Whether a replay repeats `Set-Cookie`. The default is `false`: a session that was started
    /// once is not handed out for as long as the record lives.
    pub fn replay_set_cookie(self, replay: bool) -> Self {
        self.set(|config| config.replay_set_cookie = replay)
    }

    /// Where clients can read about keys: the base of the problem types, and the target of
    /// `Link: rel="describedby"` (I03, I08). None by default.
    ///
    /// # Panics
    ///
    /// If the URL cannot stand in a header.
    pub fn docs_url(self, url: impl Into<String>) -> Self {
        let url = url.into();
        assert!(
            url.bytes()
                .all(|b| matches!(b, b'!'..=b'~') && b != b'<' && b != b'>'),
            "a docs URL is visible ASCII without angle brackets"
        );
        self.set(|config| config.docs_url = Some(url))
    }

    /// Replaces the answers of refusals: gets what is refused, and the problem document that would
    /// be sent (I10). By default that is sent.
    ///
    /// Set it where your API has an error format of its own. Keep the status: clients know by it
    /// whether to retry.
    ///
    /// With the feature `grpc`, a gRPC call gets no problem document but an answer of trailers only;
    /// its `Content-Type` is `application/grpc`. Return that as it is, or another one.
    pub fn on_refusal(
        self,
        respond: impl Fn(&Refusal, Response<Bytes>) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.set(|config| config.on_refusal = Some(Arc::new(respond)))
    }
}

/// Time and concurrency.
impl<S: ?Sized> IdempotencyLayer<S> {
    /// How long a record lives after its operation ended, or after its lease where nobody said
    /// how it ended: 24 hours by default (S05).
    ///
    /// It should be longer than any client goes on retrying.
    ///
    /// # Panics
    ///
    /// If it is less than a millisecond.
    pub fn ttl(self, ttl: Duration) -> Self {
        self.set(|config| config.engine.options_mut().set_ttl(ttl))
    }

    /// How long a claim holds when its process dies: 30 seconds by default. While the handler runs
    /// it is renewed every third of it.
    ///
    /// Shorter, and a crash is noticed sooner; but a process that is paused, or cut off from the
    /// store, for longer than this is taken over while it still runs. So is a handler that blocks
    /// its thread for longer before it first awaits, or on a runtime with one thread: such work
    /// belongs into `tokio::task::spawn_blocking`.
    ///
    /// # Panics
    ///
    /// If it is less than ten milliseconds: timers count in whole ones, and could not keep it.
    pub fn lease(self, lease: Duration) -> Self {
        self.set(|config| config.engine.options_mut().set_lease(lease))
    }

    /// What a request does that meets a running execution of its own key and payload: by default
    /// it is refused with 409 (S03).
    ///
    /// Set it where clients do not retry by themselves.
    pub fn on_conflict(self, on_conflict: OnConflict) -> Self {
        self.set(|config| config.engine.options_mut().on_conflict = on_conflict)
    }

    /// What a request does that meets an execution that went silent: by default it runs the
    /// handler again (P5).
    ///
    /// Set it where running twice is worse than not running, or where you can find out.
    pub fn takeover(self, takeover: Takeover) -> Self {
        self.set(|config| {
            config.engine.options_mut().take_over = takeover.runs();
            config.takeover = takeover;
        })
    }

    /// Whether the handler runs without protection while the store cannot be asked. The default is
    /// `false`: the request is refused with 503 (P8, U13).
    ///
    /// Set it only where a missed request is worse than a repeated one. What runs without protection
    /// is not recorded, and is cancelled when its caller leaves.
    pub fn fail_open(self, fail_open: bool) -> Self {
        self.set(|config| config.engine.options_mut().fail_open = fail_open)
    }

    /// What `Retry-After` says in refusals that a retry can mend: 1 second by default, in whole
    /// seconds and at least one.
    ///
    /// Set it to about what your handlers take.
    pub fn retry_after(self, retry_after: Duration) -> Self {
        self.set(|config| config.retry_after = retry_after)
    }

    /// The deadline of each call of the store: 2 seconds by default. Past it, the store counts as
    /// one that cannot be asked.
    ///
    /// Set it well above what the store usually takes, and under half of the lease.
    pub fn store_timeout(self, timeout: Duration) -> Self {
        self.set(|config| config.engine.options_mut().store_timeout = timeout)
    }

    /// How long an answer waits for its record when the store went away after the claim: 5 seconds
    /// by default. After that it is sent, and recording goes on in the background (P3).
    ///
    /// Longer, and fewer clients hold an answer that is not recorded; shorter, and an outage of the
    /// store holds up fewer of them.
    pub fn record_timeout(self, timeout: Duration) -> Self {
        self.set(|config| config.engine.options_mut().record_timeout = timeout)
    }
}

/// Limits (P9).
impl<S: ?Sized> IdempotencyLayer<S> {
    /// The greatest request body, in bytes: 1 MiB by default. A larger one is refused with 413;
    /// one of exactly this size passes (U16).
    ///
    /// Raise it where your handlers take more: it must be at least their own limit.
    pub fn body_limit(self, bytes: usize) -> Self {
        self.set(|config| config.read_limits.max = bytes)
    }

    /// How long a request body may take to arrive: 30 seconds by default; then it is refused with
    /// 408.
    ///
    /// Raise it for large bodies over slow lines; lower it where only small ones come.
    pub fn body_timeout(self, timeout: Duration) -> Self {
        self.set(|config| config.read_limits.timeout = timeout)
    }

    /// The greatest answer that is recorded, in bytes of body: 1 MiB by default. A larger one is
    /// sent on whole, and its key counts as completed and not replayable (U06).
    ///
    /// Raise it where larger answers must be repeated, and the store can keep them.
    pub fn response_limit(self, bytes: usize) -> Self {
        self.set(|config| config.response_limit = bytes)
    }

    /// How long the body of an answer may take to arrive, after its head, to be recorded: 10
    /// seconds by default. A slower one is sent on as it comes, and its key counts as completed
    /// and not replayable.
    ///
    /// Lower it where answers that stream must not be held back for long.
    pub fn response_timeout(self, timeout: Duration) -> Self {
        self.set(|config| config.response_timeout = timeout)
    }

    /// The bytes of all bodies together that this layer and its clones hold: 256 MiB by default.
    /// At the limit a new request is refused with 503 (U36), so it should be several times the
    /// [`body_limit`](Self::body_limit).
    ///
    /// Answers count, but are never given up for the limit: it can be exceeded by one
    /// [`response_limit`](Self::response_limit) for each execution that runs.
    ///
    /// Counted are the bytes of the bodies. The memory behind them can be twice that, since a large
    /// frame stays in the buffer that the server read it in; what the server itself holds for each
    /// connection comes on top.
    pub fn buffer_limit(self, bytes: usize) -> Self {
        self.set(|config| config.read_limits.total = bytes)
    }

    /// The greatest checkpoint, in bytes: 64 KiB by default.
    ///
    /// A checkpoint is written to the store with each save: better a short note of what was done
    /// than the thing itself.
    pub fn checkpoint_limit(self, bytes: usize) -> Self {
        self.set(|config| config.engine.options_mut().checkpoint_limit = bytes)
    }

    /// How many requests may wait for another execution at once, in this layer and its clones:
    /// 10 000 by default. One more is refused with 409, as if it did not want to wait.
    ///
    /// Each holds its connection and its body: set it by the memory that they may take.
    pub fn max_waiting(self, requests: usize) -> Self {
        self.set(|config| config.engine.options_mut().max_waiting = requests)
    }

    /// How many executions may go on without their caller at once, in this layer and its clones:
    /// 10 000 by default. One more is cut off where it stands, as if its process had died, and
    /// an error is logged. Recordings that go on in the background count too; where there is no
    /// place for one, the answer waits for its record instead.
    ///
    /// Set it to the executions that may run at once on this server.
    pub fn max_detached(self, executions: usize) -> Self {
        self.set(|config| config.engine.options_mut().max_detached = executions)
    }
}

impl<S: ?Sized> IdempotencyLayer<S> {
    /// The store, for an operator's `get` and `forget`.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Waits until no execution is between its claim and its record any more: those whose callers
    /// wait, those whose callers left, and records that the store has yet to take (P4, U21).
    ///
    /// Await it after the server stopped taking requests, and before the process ends. It does not
    /// keep new executions from starting. While the store cannot be asked it does not return, so
    /// put a time limit of yours around it; dropping it changes nothing.
    pub async fn drain(&self) {
        self.config.engine.drain().await;
    }

    fn set(mut self, set: impl FnOnce(&mut Config)) -> Self {
        set(Arc::make_mut(&mut self.config));
        self
    }
}
