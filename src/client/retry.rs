//! The [`RetryPolicy`]: what is tried again, when, and how often.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{
    HeaderMap, HeaderName, Method, Request, Response, StatusCode,
    header::{DATE, RETRY_AFTER},
};
use tokio::time::{Instant, Sleep, sleep};
use tower::{
    BoxError,
    retry::{
        Policy,
        budget::{Budget, TpsBudget},
    },
};

use super::grpc;
use crate::{key::IdempotencyKey, store::jittered};

/// What is tried again, when, and how often: a [policy](Policy) for [`tower::retry`].
///
/// [`RetryLayer`](super::RetryLayer) has it inside, and needs no other layer. By itself it goes into
/// [`tower::retry::RetryLayer`], for requests whose bodies are `Clone`.
///
/// # Which requests
///
/// Those that may happen twice without harm: with a key, or of a method that is idempotent (GET,
/// HEAD, OPTIONS, TRACE, PUT, DELETE: [RFC 9110, 9.2.2][idempotent]). A POST without a key, or with
/// what is none, is sent once, whatever becomes of it. The layer that makes keys stands outside, so
/// that all tries have one key (S26). Whether the server knows keys cannot be seen from here: to one
/// that does not, a POST with a key is sent twice all the same.
///
/// # After what
///
/// | the try ended with | and then |
/// |---|---|
/// | 409 with `Retry-After`; gRPC ABORTED with `retry-after` | another try of the operation runs: wait for it |
/// | 429, 502, 503, 504; gRPC UNAVAILABLE; RESOURCE_EXHAUSTED with `retry-after` | it failed: try again |
/// | an error of the service: no connection, a broken one, a time-out | it failed: try again, unless [`retry_errors`](Self::retry_errors) says otherwise |
/// | another 5xx; gRPC UNKNOWN, INTERNAL | the answer stands, unless [`server_errors`](Self::server_errors) is on |
/// | everything else, such as 400, 422, and 409 without `Retry-After` | the answer stands |
///
/// A gRPC status is known here when it stands in the answer's head, as that of a refusal does;
/// `RetryLayer` finds it in the trailers too.
///
/// # When
///
/// The first wait is 100 ms, the next ones are twice as long each, up to
/// [10 seconds](Self::delays), and each is up to a half longer by chance. `Retry-After`, in seconds or
/// as a date (compared with the answer's own `Date`, if there is one), is the least wait; one that
/// asks for more than the longest wait is not waited for, and the answer goes to the caller.
///
/// # How often
///
/// Up to [4 tries](Self::tries) that fail, and no try begins later than
/// [60 seconds](Self::time) after the first: time enough for the default lease, for which the key
/// of a server that died is held. Waiting for another try of the same operation counts as no failure.
/// Of all operations together only so many are tried again as the [budget](Self::budget) allows: in
/// an outage most callers get the failure at once, and the servers no storm. When a limit is reached
/// the caller gets the last answer or error.
///
/// # Cancellation
///
/// A caller who leaves ends its operation: what was sent may take effect (P4), nothing more is sent.
///
/// # Clones
///
/// Clones share the budget, and nothing else: tower makes one for each request, which counts its
/// tries.
///
/// [idempotent]: https://www.rfc-editor.org/rfc/rfc9110#section-9.2.2
#[must_use]
pub struct RetryPolicy<E = BoxError> {
    key_header: HeaderName,
    tries: u32,
    time: Duration,
    first_delay: Duration,
    longest_delay: Duration,
    server_errors: bool,
    retry_errors: Option<ErrorFilter<E>>,
    budget: Arc<dyn Budget + Send + Sync>,
    operation: Operation,
}

type ErrorFilter<E> = Arc<dyn Fn(&E) -> bool + Send + Sync>;

/// How far the operation is that a clone of the policy is for.
#[derive(Clone, Copy, Debug)]
struct Operation {
    began: Option<Instant>,
    failed: u32,
    waits: u32,
}

impl<E> RetryPolicy<E> {
    /// The defaults above, with a budget of its own.
    pub fn new() -> Self {
        Self {
            key_header: HeaderName::from_static("idempotency-key"),
            tries: 4,
            time: Duration::from_secs(60),
            first_delay: Duration::from_millis(100),
            longest_delay: Duration::from_secs(10),
            server_errors: false,
            retry_errors: None,
            budget: Arc::new(TpsBudget::default()),
            operation: Operation {
                began: None,
                failed: 0,
                waits: 0,
            },
        }
    }

    /// The header that has the key of a request: `Idempotency-Key` by default. Where the layer that
    /// makes keys has [another one](super::SetIdempotencyKeyLayer::header), so must this.
    pub fn key_header(mut self, name: HeaderName) -> Self {
        self.key_header = name;
        self
    }

    /// How many tries of one operation may fail, the first one included: 4 by default. With 1, only
    /// tries that [found the operation running](Self#after-what) are followed by others; 0 counts
    /// as 1.
    pub fn tries(mut self, tries: u32) -> Self {
        self.tries = tries;
        self
    }

    /// How long after the first try the last one may begin: 60 seconds by default.
    pub fn time(mut self, time: Duration) -> Self {
        self.time = time;
        self
    }

    /// The first wait between two tries, 100 ms by default, and the longest one, 10 seconds by
    /// default and a year at most; both before chance adds to them. The longest one counts where
    /// it is the shorter of the two.
    pub fn delays(mut self, first: Duration, longest: Duration) -> Self {
        // More is no wait, and does not fit into a clock.
        const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
        self.first_delay = first;
        self.longest_delay = longest.min(YEAR);
        self
    }

    /// Whether every 5xx is tried again, but 501 and 505, and gRPC's UNKNOWN and INTERNAL: no by
    /// default.
    ///
    /// The effect of such a try is unknown. A server that frees the key then, as
    /// [`IdempotencyLayer`](crate::IdempotencyLayer) does, runs its handler again: good for handlers
    /// that [save their progress](crate::Execution), or whose failures undo what they did.
    pub fn server_errors(mut self, again: bool) -> Self {
        self.server_errors = again;
        self
    }

    /// Which errors of the service are tried again: all by default.
    ///
    /// In [`RetryLayer`](super::RetryLayer) an error is boxed: the service's own, or a
    /// [`TryError`](super::TryError).
    pub fn retry_errors(mut self, filter: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        self.retry_errors = Some(Arc::new(filter));
        self
    }

    /// What limits the tries of all operations together: by default a [`TpsBudget`] that allows 10
    /// further tries a second, and one more for each 5 answers that stand, counted over 10 seconds.
    ///
    /// Give one budget to several policies whose servers share a fate.
    pub fn budget(mut self, budget: Arc<impl Budget + Send + Sync + 'static>) -> Self {
        self.budget = budget;
        self
    }

    /// Whether a request may be sent again at all. Begins its operation.
    pub(crate) fn begin(&mut self, method: &Method, headers: &HeaderMap) -> bool {
        if self.operation.waits == 0 {
            self.operation.began = Some(Instant::now());
        }
        method.is_idempotent() || self.has_key(headers)
    }

    /// Whether there is a key, and one: a malformed one protects nothing where the server ignores it.
    fn has_key(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(&self.key_header).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => IdempotencyKey::in_field(value.as_bytes(), false).is_ok(),
            _ => false,
        }
    }

    /// How long to wait before the next try; `None` if there is none.
    pub(crate) fn next<R>(&mut self, result: &Result<Response<R>, E>) -> Option<Duration> {
        let (failed, least) = match self.judge(result) {
            Verdict::Stands => {
                if result.is_ok() {
                    self.budget.deposit();
                }
                return None;
            }
            Verdict::Running(least) => (false, least),
            Verdict::Failed(least) => (true, least.unwrap_or_default()),
        };
        let operation = &mut self.operation;
        if failed && operation.failed.saturating_add(1) >= self.tries {
            return None;
        }
        let longest = self.longest_delay;
        if least > longest {
            return None;
        }
        let growing = (self.first_delay).saturating_mul(2_u32.saturating_pow(operation.waits));
        let delay = growing.min(longest).max(least);
        // Up to a half more, also of the longest, so that many clients do not fall into step.
        let delay = (delay / 2 + jittered(delay)).max(delay);
        let spent = operation
            .began
            .map_or(Duration::ZERO, |began| began.elapsed());
        if spent.saturating_add(delay) > self.time || (failed && !self.budget.withdraw()) {
            return None;
        }
        operation.waits = operation.waits.saturating_add(1);
        operation.failed += u32::from(failed);
        Some(delay)
    }

    fn judge<R>(&self, result: &Result<Response<R>, E>) -> Verdict {
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                let again = self.retry_errors.as_ref().is_none_or(|again| again(error));
                return if again {
                    Verdict::Failed(None)
                } else {
                    Verdict::Stands
                };
            }
        };
        if let Some((status, map)) = grpc::status(response) {
            return match (status, retry_after(map)) {
                (b"10", Some(least)) => Verdict::Running(least),
                (b"14", least) => Verdict::Failed(least),
                (b"8", Some(least)) => Verdict::Failed(Some(least)),
                (b"2" | b"13", least) if self.server_errors => Verdict::Failed(least),
                _ => Verdict::Stands,
            };
        }
        match (response.status(), retry_after(response.headers())) {
            (StatusCode::CONFLICT, Some(least)) => Verdict::Running(least),
            (
                StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT,
                least,
            ) => Verdict::Failed(least),
            (StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED, _) => {
                Verdict::Stands
            }
            (status, least) if self.server_errors && status.is_server_error() => {
                Verdict::Failed(least)
            }
            _ => Verdict::Stands,
        }
    }
}

/// What a try's end means, with the least time to wait.
enum Verdict {
    Stands,
    /// The operation is being done, and the next try may get its answer.
    Running(Duration),
    Failed(Option<Duration>),
}

/// The wait that an answer asks for, in either form of [RFC 9110, 10.2.3][form]. What is neither says
/// nothing.
///
/// [form]: https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    if !value.is_empty() && value.bytes().all(|digit| digit.is_ascii_digit()) {
        // More than fits is more than anybody waits for.
        return Some(value.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    // By the clock that made the date, where that is told: the two clocks need not agree.
    let now = headers.get(DATE).and_then(|date| date.to_str().ok());
    let now = now.and_then(|date| httpdate::parse_http_date(date).ok());
    let wait = until.duration_since(now.unwrap_or_else(SystemTime::now));
    Some(wait.unwrap_or_default())
}

impl<B: Clone, R, E> Policy<Request<B>, Response<R>, E> for RetryPolicy<E> {
    type Future = Sleep;

    fn retry(&mut self, _: &mut Request<B>, result: &mut Result<Response<R>, E>) -> Option<Sleep> {
        self.next(result).map(sleep)
    }

    fn clone_request(&mut self, request: &Request<B>) -> Option<Request<B>> {
        self.begin(request.method(), request.headers())
            .then(|| request.clone())
    }
}

impl<E> Default for RetryPolicy<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E> Clone for RetryPolicy<E> {
    fn clone(&self) -> Self {
        Self {
            key_header: self.key_header.clone(),
            retry_errors: self.retry_errors.clone(),
            budget: Arc::clone(&self.budget),
            ..*self
        }
    }
}

impl<E> fmt::Debug for RetryPolicy<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryPolicy")
            .field("key_header", &self.key_header)
            .field("tries", &self.tries)
            .field("time", &self.time)
            .field("first_delay", &self.first_delay)
            .field("longest_delay", &self.longest_delay)
            .field("server_errors", &self.server_errors)
            .field("operation", &self.operation)
            .finish_non_exhaustive()
    }
}
