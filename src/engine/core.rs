//! The [`Engine`] itself: the store, the options and what all its executions share.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::time::Instant;

use crate::{
    engine::{waiting::Waits, within::within, work::Work},
    store::{Store, StoreError},
};

/// What a request, or a call of a function, does that meets a running execution of its own key and
/// payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// It is refused at once: a request with 409 and `Retry-After` (I07), a call with
    /// [`RunError::InProgress`](crate::RunError::InProgress). The default.
    #[default]
    Reject,
    /// It waits up to this long for the answer, and is refused after that.
    ///
    /// Choose it where clients do not retry by themselves. Waiting requests hold their
    /// connection and their buffered body, but not the inner service. Where the execution that
    /// they wait for fails, they try for themselves, one after the other.
    Wait(Duration),
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) ttl: Duration,
    pub(crate) lease: Duration,
    pub(crate) on_conflict: OnConflict,
    pub(crate) take_over: bool,
    pub(crate) fail_open: bool,
    pub(crate) store_timeout: Duration,
    pub(crate) record_timeout: Duration,
    pub(crate) checkpoint_limit: usize,
    pub(crate) max_waiting: usize,
    pub(crate) max_detached: usize,
}

impl Options {
    /// # Panics
    ///
    /// If it is less than a millisecond.
    pub(crate) fn set_ttl(&mut self, ttl: Duration) {
        assert!(
            ttl >= SHORTEST,
            "the time to live is less than a millisecond"
        );
        self.ttl = ttl;
    }

    /// # Panics
    ///
    /// If it is less than ten milliseconds.
    pub(crate) fn set_lease(&mut self, lease: Duration) {
        let shortest = 10 * SHORTEST;
        assert!(lease >= shortest, "the lease is less than ten milliseconds");
        self.lease = lease;
    }
}

/// Stores count in microseconds and answer in more than that.
const SHORTEST: Duration = Duration::from_millis(1);

impl Default for Options {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(24 * 60 * 60),
            lease: Duration::from_secs(30),
            on_conflict: OnConflict::Reject,
            take_over: true,
            fail_open: false,
            store_timeout: Duration::from_secs(2),
            record_timeout: Duration::from_secs(5),
            checkpoint_limit: 64 * 1024,
            max_waiting: 10_000,
            max_detached: 10_000,
        }
    }
}

#[derive(Clone)]
pub(crate) struct Engine(Arc<Inner>);

// Cloned only when an option is set after the engine was shared: see `options_mut`.
#[derive(Clone)]
struct Inner {
    store: Arc<dyn Store>,
    options: Options,
    work: Arc<Work>,
    waits: Arc<Waits>,
}

impl Engine {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self(Arc::new(Inner {
            store,
            options: Options::default(),
            work: Arc::default(),
            waits: Arc::default(),
        }))
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    /// For a builder. Clones that exist already keep their options and go on sharing the limits.
    pub(crate) fn options_mut(&mut self) -> &mut Options {
        &mut Arc::make_mut(&mut self.0).options
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.0.store
    }

    pub(crate) fn work(&self) -> &Arc<Work> {
        &self.0.work
    }

    pub(super) fn waits(&self) -> &Arc<Waits> {
        &self.0.waits
    }

    /// Waits until nothing runs between claim and record any more.
    pub(crate) async fn drain(&self) {
        self.0.work.idle().await;
    }

    /// Asks the store, with its deadline.
    pub(super) fn ask<T, F>(
        &self,
        call: F,
    ) -> impl Future<Output = Result<T, StoreError>> + use<T, F>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        self.ask_within(self.options().store_timeout, call)
    }

    /// Asks the store. Past the limit, or where the store panics, whether the call took effect is
    /// not known.
    pub(super) fn ask_within<T, F>(
        &self,
        limit: Duration,
        call: F,
    ) -> impl Future<Output = Result<T, StoreError>> + use<T, F>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        // What the store did to itself is its own matter: nothing of ours is shared with it.
        within(limit, AssertUnwindSafe(call).catch_unwind()).map(|answer| match answer {
            Some(Ok(answer)) => answer,
            Some(Err(_panic)) => Err(unavailable("the store panicked")),
            None => Err(unavailable("the store did not answer in time")),
        })
    }
}

fn unavailable(source: &'static str) -> StoreError {
    StoreError::unavailable("idempotency", source)
}

/// The moment when a limit that starts now is over.
pub(super) fn deadline(limit: Duration) -> Instant {
    // A limit that is meant as none must not overflow the clock.
    const FAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    Instant::now() + limit.min(FAR)
}
