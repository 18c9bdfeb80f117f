//! What happened to a request: the [`Outcome`], and the events that tell of it.
//!
//! The outcome is in the extensions of every response that the layer answered or watched over, so
//! that an outer layer can count or log it, and in the [`Done`](crate::Done) of a function's call.
//! Where the feature `tracing` is on (the default), the same is told as events with the target
//! `tower_idempotency`; keys appear in them only as the hash
//! [`StoreKey::log_id`](crate::StoreKey::log_id) (U19).
//!
//! ```
//! use tower_idempotency::{Outcome, Reason};
//!
//! assert_eq!(Outcome::Replayed.as_str(), "replayed");
//! assert_eq!(Outcome::Refused(Reason::InProgress).as_str(), "in-progress");
//! ```

use std::fmt;

/// What happened to a covered request, or to a call of a function: there, the handler is the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The handler ran and its answer is recorded.
    Completed,
    /// The handler ran and its answer cannot be recorded (too large, or a stream): the key counts
    /// as completed.
    NotReplayable,
    /// The handler ran and said that it did nothing, and nothing was done before: the key is free
    /// again.
    Rejected,
    /// The handler ran and its effect is unknown: the key can be retried.
    Failed,
    /// The handler ran and the store could not be told within the budget. Recording goes on in the
    /// background, unless the store cannot read the record that it has.
    Unrecorded,
    /// The handler did not run: this is the recorded answer.
    Replayed,
    /// The handler ran without protection, since the store could not be asked and the layer was
    /// told to fail open.
    Unprotected,
    /// The handler did not run, and the request was refused.
    Refused(Reason),
    /// The handler ran, but another execution took its key over meanwhile and has not ended yet. An
    /// answer that would be recorded is not sent: the request is refused, so that its retry gets
    /// the one recorded answer. Another answer of the handler is sent as it is.
    Superseded,
}

impl Outcome {
    /// A short name in lower case; that of the reason for a refusal. Stable: made for metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::NotReplayable => "completed-not-replayable",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Unrecorded => "unrecorded",
            Self::Replayed => "replayed",
            Self::Unprotected => "unprotected",
            Self::Refused(reason) => reason.as_str(),
            Self::Superseded => "superseded",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// A key is required and there is none.
    KeyMissing,
    /// The key is malformed, repeated, or not one that this resource takes.
    KeyInvalid,
    /// The scope asks who the caller is, and the request does not say.
    CallerUnknown,
    /// The body is over the limit.
    BodyTooLarge,
    /// The body did not end in time.
    BodyTooSlow,
    /// The body broke off.
    BodyBroken,
    /// Another request with this key is being processed.
    InProgress,
    /// The key was used for another payload.
    Mismatch,
    /// The key was used by a version of the service that computes fingerprints otherwise.
    OtherAlgorithm,
    /// The operation is completed and its answer cannot be given again.
    NotReplayable,
    /// An earlier attempt went silent, and its key is not taken over.
    Abandoned,
    /// The store cannot be asked, or cannot read its record.
    StoreUnavailable,
    /// A limit of this service is reached: of buffers or of records.
    Overloaded,
    /// The handler ran and answered as if all were well, but had not committed the
    /// [transaction](crate::Transaction) that it had begun: nothing of that was written. Or it
    /// passed over a commit whose [outcome is unknown](crate::CommitError::Unknown), and the store
    /// could not be asked: a retry finds out.
    NotCommitted,
}

impl Reason {
    /// A short name in lower case. Stable: it ends the problem type's URI.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeyMissing => "key-missing",
            Self::KeyInvalid => "key-invalid",
            Self::CallerUnknown => "caller-unknown",
            Self::BodyTooLarge => "body-too-large",
            Self::BodyTooSlow => "body-too-slow",
            Self::BodyBroken => "body-broken",
            Self::InProgress => "in-progress",
            Self::Mismatch => "mismatch",
            Self::OtherAlgorithm => "other-algorithm",
            Self::NotReplayable => "not-replayable",
            Self::Abandoned => "abandoned",
            Self::StoreUnavailable => "store-unavailable",
            Self::Overloaded => "overloaded",
            Self::NotCommitted => "not-committed",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(feature = "redis")]
pub(crate) use events::evicting;
pub(crate) use events::{
    Span, claimed, detached_limit, near_answers, near_fails, not_committed, not_encoded,
    not_given_back, outcome, store_error, superseded, unreadable,
};

/// Whether anybody can hear of what is told here.
#[cfg(feature = "redis")]
pub(crate) const EVENTS: bool = cfg!(feature = "tracing");

#[cfg(feature = "tracing")]
mod events {
    use std::error::Error;

    pub(crate) use span::Span;
    use tracing::{Level, event};

    use super::Outcome;
    use crate::{
        key::StoreKey,
        record::{Claimed, Entry},
        store::StoreError,
    };

    const TARGET: &str = "tower_idempotency";

    pub(crate) fn outcome(key: Option<&StoreKey>, outcome: Outcome) {
        event!(
            target: TARGET,
            Level::DEBUG,
            key = key.map(StoreKey::log_id),
            outcome = outcome.as_str(),
            "answered"
        );
    }

    pub(crate) fn claimed(key: &StoreKey, claimed: &Claimed) {
        let attempt = claimed.lease.attempt;
        match claimed.entry {
            Entry::First | Entry::Retry => event!(
                target: TARGET, Level::DEBUG, key = key.log_id(), attempt, "claimed"
            ),
            Entry::Takeover => event!(
                target: TARGET,
                Level::WARN,
                key = key.log_id(),
                attempt,
                "taking over from an execution that went silent"
            ),
        }
    }

    pub(crate) fn store_error(key: &StoreKey, operation: &'static str, error: &StoreError) {
        let error: &(dyn Error + 'static) = error;
        event!(
            target: TARGET, Level::WARN, key = key.log_id(), operation, error, "store error"
        );
    }

    pub(crate) fn unreadable(key: &StoreKey, error: &(dyn Error + 'static)) {
        event!(
            target: TARGET,
            Level::ERROR,
            key = key.log_id(),
            error,
            "a recorded answer cannot be read"
        );
    }

    pub(crate) fn not_encoded(key: &StoreKey, error: &(dyn Error + 'static)) {
        event!(
            target: TARGET,
            Level::ERROR,
            key = key.log_id(),
            error,
            "a result cannot be encoded: its key counts as done, and it cannot be given again"
        );
    }

    pub(crate) fn not_committed(key: &StoreKey) {
        event!(
            target: TARGET,
            Level::ERROR,
            key = key.log_id(),
            "the handler has not committed its transaction: its answer is not sent, and its key \
             counts as failed"
        );
    }

    pub(crate) fn superseded(key: &StoreKey) {
        event!(
            target: TARGET,
            Level::WARN,
            key = key.log_id(),
            "another execution has taken this one's key over"
        );
    }

    pub(crate) fn not_given_back(key: &StoreKey) {
        event!(
            target: TARGET,
            Level::WARN,
            key = key.log_id(),
            "too many claims without an answer: this one, if it was granted, is not given back"
        );
    }

    pub(crate) fn near_fails(key: &StoreKey, operation: &'static str, error: &StoreError) {
        let error: &(dyn Error + 'static) = error;
        event!(
            target: TARGET,
            Level::WARN,
            key = key.log_id(),
            operation,
            error,
            "the near store fails: the far one answers, and this is told once until it is over"
        );
    }

    pub(crate) fn near_answers() {
        event!(target: TARGET, Level::INFO, "the near store answers again");
    }

    pub(crate) fn detached_limit() {
        event!(
            target: TARGET,
            Level::ERROR,
            "the limit on detached work is reached: an execution is cut off, and its key is \
             abandoned until its lease ends"
        );
    }

    #[cfg(feature = "redis")]
    pub(crate) fn evicting(store: &'static str, policy: &str) {
        event!(
            target: TARGET,
            Level::WARN,
            store,
            policy,
            "the server may drop records before their time when its memory is full: set its \
             maxmemory-policy to noeviction"
        );
    }

    mod span {
        use std::future::Future;

        use tracing::Instrument;

        /// The span in which a request was received; it goes with the work when that is detached.
        #[derive(Clone, Debug)]
        pub(crate) struct Span(tracing::Span);

        impl Span {
            pub(crate) fn current() -> Self {
                Self(tracing::Span::current())
            }

            pub(crate) fn in_scope(&self, work: impl FnOnce()) {
                self.0.in_scope(work);
            }

            pub(crate) fn instrument<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
                work.instrument(self.0)
            }
        }
    }
}

#[cfg(not(feature = "tracing"))]
mod events {
    use std::future::Future;

    use super::Outcome;
    use crate::{key::StoreKey, record::Claimed, store::StoreError};

    pub(crate) fn outcome(_: Option<&StoreKey>, _: Outcome) {}
    pub(crate) fn claimed(_: &StoreKey, _: &Claimed) {}
    pub(crate) fn store_error(_: &StoreKey, _: &'static str, _: &StoreError) {}
    pub(crate) fn unreadable(_: &StoreKey, _: &(dyn std::error::Error + 'static)) {}
    pub(crate) fn not_encoded(_: &StoreKey, _: &(dyn std::error::Error + 'static)) {}
    pub(crate) fn not_committed(_: &StoreKey) {}
    pub(crate) fn superseded(_: &StoreKey) {}
    pub(crate) fn not_given_back(_: &StoreKey) {}
    pub(crate) fn near_fails(_: &StoreKey, _: &'static str, _: &StoreError) {}
    pub(crate) fn near_answers() {}
    pub(crate) fn detached_limit() {}
    #[cfg(feature = "redis")]
    pub(crate) fn evicting(_: &'static str, _: &str) {}

    #[derive(Clone, Debug)]
    pub(crate) struct Span;

    impl Span {
        pub(crate) fn current() -> Self {
            Self
        }

        pub(crate) fn in_scope(&self, work: impl FnOnce()) {
            work();
        }

        pub(crate) fn instrument<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
            work
        }
    }
}
