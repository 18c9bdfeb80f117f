//! One idempotency layer for each route, around one upstream.
//!
//! A request goes to the first route that is for its method and path. What no route is for streams
//! through untouched. Where there is one, the offer of an upgrade is not: it would lead past the
//! layer.
//!
//! No spelling of a path leads past a route: where the path as it was sent and its
//! [plain spelling](plain) belong to different routes, the request is refused with 400. An upstream
//! that takes `/v1//payments` for `/v1/payments` would otherwise carry it out without a key; so it
//! would where it takes `post` for `POST`.
//! What else an upstream makes of paths (`/v1/payments.json`, say) it alone knows; a route for `/*`
//! at the end covers that, too.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    TryFutureExt as _,
    future::{Either, MapOk, join_all},
};
use http::{HeaderMap, Method, Request, Response, StatusCode, header, response};
use http_body::Body;
use http_body_util::{Either as EitherBody, Full};
use tower::{Layer as _, Service};
use tower_idempotency::{
    IdempotencyLayer, KeySource, OnConflict, RequestBody, ResponseBody, ResponseFuture, Scope,
    Store, Takeover, verdict::Verdict,
};

#[cfg(feature = "grpc")]
use tower_idempotency::verdict::by_grpc_status as by_upstream;
#[cfg(not(feature = "grpc"))]
use tower_idempotency::verdict::by_status as by_upstream;

use crate::{
    config::{self, Config, Conflict, Key, PathPattern, Refusals, Route, ScopeBy, Unknown, plain},
    outcome::{NotSent, OutcomeUnknown},
    problem::{as_stripe_does, problem},
};

/// How long the store has for each of its calls, where the lease is long enough.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the end of an answer may take that is to be recorded whole.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

type Layer = IdempotencyLayer<Arc<dyn Store>>;

/// The routes of a configuration, over one store and within the same limits. Clones share both.
#[derive(Clone, Debug)]
pub(crate) struct Routes(Arc<Table>);

#[derive(Debug)]
struct Table {
    rules: Vec<Rule>,
    /// Covers nothing.
    open: Layer,
}

#[derive(Debug)]
struct Rule {
    path: PathPattern,
    methods: Vec<Method>,
    unknown: Unknown,
    refusals: Refusals,
    layer: Layer,
}

impl Routes {
    pub(crate) fn new(config: &Config, store: Arc<dyn Store>) -> Self {
        // Clones of one layer share its limits; each route sets what is its own.
        let shared = IdempotencyLayer::new(store, Scope::single_tenant())
            .prefix(&*config.prefix)
            .buffer_limit(config.buffer_limit)
            .covers(|_| false);
        let rule = |route: &Route| Rule {
            path: route.path.clone(),
            methods: route.methods.clone(),
            unknown: route.unknown,
            refusals: route.refusals,
            layer: layer(shared.clone(), route),
        };
        Self(Arc::new(Table {
            rules: config.routes.iter().map(rule).collect(),
            open: shared,
        }))
    }

    /// Puts the routes before `upstream`, which gets what they let through.
    pub(crate) fn service<U>(&self, upstream: U) -> Routed<U> {
        Routed {
            routes: self.clone(),
            upstream,
        }
    }

    /// Waits until nothing runs any more whose record is not stored, on whatever route. It has no
    /// end while the store cannot be asked: put a limit around it.
    pub(crate) async fn drain(&self) {
        let layers = self.0.rules.iter().map(|rule| &rule.layer);
        join_all(layers.map(Layer::drain)).await;
    }
}

fn layer(shared: Layer, route: &Route) -> Layer {
    let unknown = route.unknown;
    let layer = match route.refusals {
        Refusals::Problem => shared,
        Refusals::Stripe => shared.on_refusal(as_stripe_does),
    };
    layer
        // Only its own requests come to it.
        .covers(|_| true)
        .scope(match &route.scope {
            ScopeBy::Header(name) => Scope::header(name),
            ScopeBy::SingleTenant => Scope::single_tenant(),
        })
        .key(match &route.key {
            Key::Header(name) => KeySource::header(name),
            Key::Json(pointer) => KeySource::json_pointer(pointer),
        })
        .require_key(route.required)
        .ttl(route.ttl)
        .lease(route.lease)
        // A call that takes longer would cost the lease that it is to renew.
        .store_timeout(STORE_TIMEOUT.min(route.lease / 3))
        .on_conflict(match route.on_conflict {
            Conflict::Reject => OnConflict::Reject,
            Conflict::Wait(limit) => OnConflict::Wait(limit),
        })
        .body_limit(route.body_limit)
        .response_timeout(ANSWER_TIMEOUT)
        .takeover(match route.takeover {
            config::Takeover::Retry => Takeover::run(),
            config::Takeover::Refuse => Takeover::refuse(),
        })
        .judge(move |answer, trailers| judge(unknown, answer, trailers))
}

/// What an answer says about its operation. One from the gateway itself says whether the upstream
/// got the request; one from the upstream is judged by its status, of gRPC where it is gRPC's.
fn judge(unknown: Unknown, answer: &response::Parts, trailers: Option<&HeaderMap>) -> Verdict {
    let verdict = if answer.extensions.get::<NotSent>().is_some() {
        Verdict::Rejected
    } else if answer.extensions.get::<OutcomeUnknown>().is_some() {
        Verdict::Failed
    } else {
        by_upstream(answer, trailers)
    };
    match (verdict, unknown) {
        (Verdict::Failed, Unknown::Keep) => Verdict::Completed,
        (verdict, _) => verdict,
    }
}

impl Table {
    /// The rule for a request; none where it streams through.
    fn find(&self, method: &Method, path: &str) -> Result<Option<&Rule>, OtherSpelling> {
        let of_method = || {
            let rules = self.rules.iter();
            rules.filter(|rule| rule.methods.iter().any(|of| is_spelt_as(of, method)))
        };
        if of_method().next().is_none() {
            return Ok(None);
        }
        let spelt = of_method().find(|rule| rule.path.matches(path));
        let plain = plain(path);
        let meant = of_method().find(|rule| rule.path.matches_plain(&plain));
        match (spelt, meant) {
            (None, None) => Ok(None),
            (Some(spelt), Some(meant)) if std::ptr::eq(spelt, meant) => {
                match spelt.methods.contains(method) {
                    true => Ok(Some(spelt)),
                    false => Err(OtherSpelling::Method),
                }
            }
            _ => Err(OtherSpelling::Path),
        }
    }
}

/// Whether both are the same method to a server that reads its letters as capitals.
fn is_spelt_as(one: &Method, other: &Method) -> bool {
    one.as_str().eq_ignore_ascii_case(other.as_str())
}

/// What could be taken for something that is covered otherwise.
enum OtherSpelling {
    Path,
    Method,
}

impl OtherSpelling {
    fn response(&self) -> Response<Full<Bytes>> {
        match self {
            Self::Path => problem(
                Refusals::Problem,
                StatusCode::BAD_REQUEST,
                "path-ambiguous",
                "The path can be read in two ways",
                "Spelt otherwise, this path would be subject to other rules. Nothing was done. \
                 Send it in its plain spelling: as documented, in the same letters, and without \
                 `//`, `..`, needless escapes or a slash too many at its end.",
            ),
            Self::Method => problem(
                Refusals::Problem,
                StatusCode::BAD_REQUEST,
                "method-ambiguous",
                "The method can be read in two ways",
                "In capitals, this method would be subject to other rules. Nothing was done. Send \
                 it in capitals.",
            ),
        }
    }
}

/// The upstream behind its routes. Made by [`Routes::service`].
#[derive(Clone, Debug)]
pub(crate) struct Routed<U> {
    routes: Routes,
    upstream: U,
}

/// An answer through a layer, or a refusal from before all of them.
type Answered<B> = EitherBody<ResponseBody<B>, Full<Bytes>>;

type Answer<F, B, E> = Either<
    MapOk<ResponseFuture<F, B, E>, fn(Response<ResponseBody<B>>) -> Response<Answered<B>>>,
    Ready<Result<Response<Answered<B>>, E>>,
>;

impl<U, ReqBody, ResBody> Service<Request<ReqBody>> for Routed<U>
where
    U: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>
        + Clone
        + Send
        + 'static,
    U::Future: Send,
    U::Error: Send + 'static,
    ReqBody: Body<Data = Bytes> + Send + 'static,
    ReqBody::Error: Send + 'static,
    ResBody: Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Send + 'static,
{
    type Response = Response<Answered<ResBody>>;
    type Error = U::Error;
    type Future = Answer<U::Future, ResBody, U::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.upstream.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let table = &self.routes.0;
        let layer = match table.find(request.method(), request.uri().path()) {
            Ok(Some(rule)) => {
                // An upgrade would pass the layer. Who does not know a protocol ignores the offer
                // (RFC 9110, 7.8), and so the request is covered.
                request.headers_mut().remove(header::UPGRADE);
                // For the failures that only `upstream` knows.
                request.extensions_mut().insert(rule.unknown);
                request.extensions_mut().insert(rule.refusals);
                &rule.layer
            }
            Ok(None) => &table.open,
            Err(refused) => {
                let response = refused.response().map(EitherBody::Right);
                return Either::Right(ready(Ok(response)));
            }
        };
        // The upstream that was asked for its readiness is the one to be called.
        let next = self.upstream.clone();
        let upstream = std::mem::replace(&mut self.upstream, next);
        let answer: fn(_) -> _ = |response: Response<_>| response.map(EitherBody::Left);
        Either::Left(layer.layer(upstream).call(request).map_ok(answer))
    }
}
