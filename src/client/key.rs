//! [`SetIdempotencyKeyLayer`]: one key for each operation that goes out.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderName, HeaderValue, Method, Request, Response, request::Parts};
use pin_project_lite::pin_project;
use tower::{BoxError, Service};
use tower_layer::Layer;
use uuid::Uuid;

use super::{error::SetKeyError, purpose::Purpose};
use crate::{
    engine::{Execution, PurposeRefused, PurposeUse},
    key::{IdempotencyKey, InvalidKey},
};

/// Gives each request that goes out the key of its operation: see the
/// [module's documentation](super).
///
/// The key is, in this order:
///
/// 1. what the request has in its header, which is kept;
/// 2. an [`IdempotencyKey`] among the request's extensions;
/// 3. derived from the [`Execution`] that the request is part of: among its extensions, or else the
///    [current](Execution::current) one;
/// 4. a new one: a random UUID (version 4), unless told otherwise.
///
/// Header values are marked as sensitive, so that they stay out of debug output and of HTTP/2's
/// compression tables (U19). Requests that are not [covered](Self::covers) pass untouched (P10).
///
/// # Errors
///
/// A key that no server would take is not sent: [`SetKeyError`] has all the cases. Errors of the
/// inner service pass.
///
/// # Cancellation
///
/// A call that is dropped gives the [`Purpose`] back that it was given. Whether the server has got it
/// is not known, as with any client; the same operation tried again has the same key.
#[derive(Clone)]
#[must_use]
pub struct SetIdempotencyKeyLayer(Arc<Options>);

#[derive(Clone)]
struct Options {
    header: HeaderName,
    quoted: bool,
    covers: Option<Arc<Covers>>,
    fresh: Fresh,
    execution_required: bool,
}

type Covers = dyn Fn(&Parts) -> bool + Send + Sync;
type MakeKey = dyn Fn(&Parts) -> Result<IdempotencyKey, InvalidKey> + Send + Sync;

/// Where a key comes from that nothing else gives.
#[derive(Clone)]
enum Fresh {
    Random,
    Ordered,
    Made(Arc<MakeKey>),
}

impl Default for SetIdempotencyKeyLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl SetIdempotencyKeyLayer {
    /// A layer for POST and PATCH, whose new keys are random, in the header `Idempotency-Key`.
    pub fn new() -> Self {
        Self(Arc::new(Options {
            header: HeaderName::from_static("idempotency-key"),
            quoted: false,
            covers: None,
            fresh: Fresh::Random,
            execution_required: false,
        }))
    }

    fn set(mut self, set: impl FnOnce(&mut Options)) -> Self {
        set(Arc::make_mut(&mut self.0));
        self
    }

    /// Which requests get a key: POST and PATCH by default, the methods that are not idempotent by
    /// themselves. All others pass untouched, also with what they have in the header.
    ///
    /// Narrow it to leave out what changes nothing, a query over POST say, or calls of gRPC that
    /// stream; widen it for a service that takes keys for PUT or DELETE. It may be called for every
    /// request, so it should be cheap.
    pub fn covers(self, covers: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.set(|options| options.covers = Some(Arc::new(covers)))
    }

    /// The header, or the metadata of gRPC, that has the key: `Idempotency-Key` by default. Name it to
    /// the [`RetryPolicy`](super::RetryPolicy::key_header) too, which does not try again what seems to
    /// have no key.
    ///
    /// # Panics
    ///
    /// If `name` cannot be the name of a header.
    pub fn header(self, name: impl AsRef<str>) -> Self {
        let name = HeaderName::from_bytes(name.as_ref().as_bytes()).expect("a header's name");
        self.set(|options| options.header = name)
    }

    /// Writes each key as the [IETF draft] has it, as a structured-field string: `"k"`.
    ///
    /// By default keys are bare, `k`. That is what the APIs in use ask for; some take a UUID and
    /// nothing else, and to others the quotes are part of the key. [`IdempotencyLayer`] takes both
    /// for one key. A key that has no bare form, with a comma or a quote in it or a space at its end,
    /// is quoted in any case; a header that the request has already stays as it is.
    ///
    /// [IETF draft]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07
    /// [`IdempotencyLayer`]: crate::IdempotencyLayer
    pub fn quoted(self) -> Self {
        self.set(|options| options.quoted = true)
    }

    /// Makes new keys as UUIDs of version 7, in place of version 4.
    ///
    /// They begin with the time, which is kind to the indexes of a database that keeps them, and
    /// tells the service when they were made. Derived keys stay what they are.
    pub fn uuid_v7(self) -> Self {
        self.set(|options| options.fresh = Fresh::Ordered)
    }

    /// Makes new keys by a function of the request without its body, in place of UUIDs: from an
    /// order's number in the path, say. Derived keys stay what they are.
    ///
    /// It is called once for each operation, outside of any retry. An error is
    /// [`SetKeyError::Invalid`], and the request is not sent.
    pub fn make_key(
        self,
        make: impl Fn(&Parts) -> Result<IdempotencyKey, InvalidKey> + Send + Sync + 'static,
    ) -> Self {
        self.set(|options| options.fresh = Fresh::Made(Arc::new(make)))
    }

    /// Whether a request that would get a new key, since it is part of no execution, is refused with
    /// [`SetKeyError::NoExecution`]. The default is `false`.
    ///
    /// Set it on a client that only handlers use: a new key in each attempt protects nothing. A
    /// request that has its key passes. Refused are also the calls of a handler that runs without a
    /// key, or without protection because its layer fails open.
    pub fn require_execution(self, required: bool) -> Self {
        self.set(|options| options.execution_required = required)
    }
}

impl fmt::Debug for SetIdempotencyKeyLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetIdempotencyKeyLayer")
            .field("header", &self.0.header)
            .field("quoted", &self.0.quoted)
            .field("execution_required", &self.0.execution_required)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for SetIdempotencyKeyLayer {
    type Service = SetIdempotencyKey<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SetIdempotencyKey {
            inner,
            options: Arc::clone(&self.0),
        }
    }
}

/// Gives each request that goes out the key of its operation.
///
/// Made by [`SetIdempotencyKeyLayer`], whose docs say what it does.
#[derive(Clone)]
#[must_use]
pub struct SetIdempotencyKey<S> {
    inner: S,
    options: Arc<Options>,
}

impl<S> SetIdempotencyKey<S> {
    /// The wrapped service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The wrapped service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The wrapped service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: fmt::Debug> fmt::Debug for SetIdempotencyKey<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetIdempotencyKey")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for SetIdempotencyKey<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    S::Error: Into<BoxError>,
{
    type Response = Response<ResBody>;
    type Error = BoxError;
    type Future = SetIdempotencyKeyFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let usual = matches!(*request.method(), Method::POST | Method::PATCH);
        if !usual && self.options.covers.is_none() {
            return SetIdempotencyKeyFuture::called(self.inner.call(request), None);
        }
        let (mut parts, body) = request.into_parts();
        let covers = self.options.covers.as_ref();
        let purpose = match covers.is_none_or(|covers| covers(&parts)) {
            true => self.options.set_key(&mut parts),
            false => Ok(None),
        };
        match purpose {
            Ok(purpose) => {
                let request = Request::from_parts(parts, body);
                SetIdempotencyKeyFuture::called(self.inner.call(request), purpose)
            }
            Err(error) => SetIdempotencyKeyFuture::refused(error),
        }
    }
}

impl Options {
    /// Sees that the request has a key, and says which purpose is in use for it.
    fn set_key(&self, parts: &mut Parts) -> Result<Option<PurposeUse>, SetKeyError> {
        if let Some(kept) = self.kept(parts)? {
            parts.extensions.insert(kept);
            return Ok(None);
        }
        let (key, purpose) = self.key(parts)?;
        let field = key.to_field(self.quoted);
        let mut value = HeaderValue::from_str(&field).expect("a key is visible ASCII or spaces");
        value.set_sensitive(true);
        parts.headers.insert(self.header.clone(), value);
        parts.extensions.insert(key);
        Ok(purpose)
    }

    /// The key that the request has in its header.
    fn kept(&self, parts: &mut Parts) -> Result<Option<IdempotencyKey>, InvalidKey> {
        let mut values = parts.headers.get_all(&self.header).iter();
        if let (Some(_), Some(_)) = (values.next(), values.next()) {
            return Err(InvalidKey::new("the key header occurs twice"));
        }
        let Some(value) = parts.headers.get_mut(&self.header) else {
            return Ok(None);
        };
        value.set_sensitive(true);
        IdempotencyKey::in_field(value.as_bytes(), false)
            .and_then(IdempotencyKey::new)
            .map(Some)
    }

    fn key(&self, parts: &Parts) -> Result<(IdempotencyKey, Option<PurposeUse>), SetKeyError> {
        if let Some(given) = parts.extensions.get::<IdempotencyKey>() {
            return Ok((given.clone(), None));
        }
        let execution = parts.extensions.get::<Execution>().cloned();
        if let Some(execution) = execution.or_else(Execution::current) {
            let named = parts.extensions.get::<Purpose>().is_some();
            let purpose = Purpose::of(parts);
            let used = match execution.use_purpose(purpose.as_str()) {
                Ok(used) => used,
                Err(PurposeRefused::Taken) => return Err(SetKeyError::PurposeTaken(purpose)),
                Err(PurposeRefused::Full) => return Err(SetKeyError::TooManyPurposes),
            };
            let key = IdempotencyKey::new(used.key())?;
            if !named {
                // Another call to the endpoint need not be another try of this one.
                used.spend();
                return Ok((key, None));
            }
            return Ok((key, Some(used)));
        }
        if self.execution_required {
            return Err(SetKeyError::NoExecution);
        }
        let uuid = match &self.fresh {
            Fresh::Random => Uuid::new_v4(),
            Fresh::Ordered => Uuid::now_v7(),
            Fresh::Made(make) => return Ok((make(parts)?, None)),
        };
        let mut text = Uuid::encode_buffer();
        Ok((
            IdempotencyKey::new(uuid.hyphenated().encode_lower(&mut text))?,
            None,
        ))
    }
}

pin_project! {
    /// The answer to come, of [`SetIdempotencyKey`].
    pub struct SetIdempotencyKeyFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F> {
        Called { #[pin] call: F, purpose: Option<PurposeUse> },
        Refused { error: Option<SetKeyError> },
    }
}

impl<F> SetIdempotencyKeyFuture<F> {
    fn called(call: F, purpose: Option<PurposeUse>) -> Self {
        Self {
            state: State::Called { call, purpose },
        }
    }

    fn refused(error: SetKeyError) -> Self {
        Self {
            state: State::Refused { error: Some(error) },
        }
    }
}

impl<F, B, E> Future for SetIdempotencyKeyFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<B>, BoxError>;

    /// # Panics
    ///
    /// When polled again after it refused.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Called { call, purpose } => {
                let answer = ready!(call.poll(cx));
                let purpose = purpose.take();
                if let (Ok(response), Some(purpose)) = (&answer, purpose)
                    && is_done(response)
                {
                    purpose.spend();
                }
                Poll::Ready(answer.map_err(Into::into))
            }
            StateProjection::Refused { error } => {
                let error = error.take().expect("not polled after its end");
                Poll::Ready(Err(error.into()))
            }
        }
    }
}

/// Whether an answer says that the operation is done. gRPC tells of an error in the head where there
/// is no message, and 200 is its status always.
fn is_done<B>(response: &Response<B>) -> bool {
    let grpc = response.headers().get("grpc-status");
    response.status().as_u16() < 400 && grpc.is_none_or(|code| code == "0")
}

impl<F> fmt::Debug for SetIdempotencyKeyFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetIdempotencyKeyFuture")
            .finish_non_exhaustive()
    }
}
