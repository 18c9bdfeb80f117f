//! The [`Operation`]: a name, a store, a codec, and every option.

use std::{fmt, sync::Arc, time::Duration};

use super::{call::Call, codec::Json};
use crate::{
    engine::{Engine, OnConflict},
    key::{IdempotencyKey, StoreKey},
    store::Store,
};

/// A kind of work that is done once for each key: see the [module's documentation](super).
///
/// Clones share the store and the limits; they are cheap. An option that is set on a clone is the
/// clone's own (U25). Several operations can share one store: give each an `Arc` of it, or an
/// `Arc<dyn Store>`. A key belongs to its operation's name, so that one key in two operations is
/// two things.
#[must_use]
pub struct Operation<C = Json> {
    config: Arc<Config>,
    codec: Arc<C>,
}

#[derive(Clone)]
struct Config {
    name: String,
    prefix: String,
    engine: Engine,
    result_limit: usize,
}

#[cfg(feature = "json")]
impl Operation {
    /// An operation that records its results as [`Json`]: any type that `serde` writes and reads.
    ///
    /// # Panics
    ///
    /// If the name is empty.
    pub fn new(name: impl Into<String>, store: impl Store) -> Self {
        Self::with_codec(name, store, Json)
    }
}

impl<C> Operation<C> {
    /// An operation that records its results with a codec of yours: see
    /// [`Codec`](super::Codec).
    ///
    /// The name is part of the store's keys: two operations of one name, prefix and store are one,
    /// on all servers and over all releases.
    ///
    /// # Panics
    ///
    /// If the name is empty.
    pub fn with_codec(name: impl Into<String>, store: impl Store, codec: C) -> Self {
        let name = name.into();
        assert!(!name.is_empty(), "the name of the operation is empty");
        Self {
            config: Arc::new(Config {
                name,
                prefix: "idem".to_owned(),
                engine: Engine::new(Arc::new(store)),
                result_limit: 1024 * 1024,
            }),
            codec: Arc::new(codec),
        }
    }

    /// A call under a key: 1 to 255 characters, each visible ASCII or a space, as an
    /// [`IdempotencyKey`]. Any other key is refused by the call.
    ///
    /// Take what names the intent and stays the same over all tries of it: an order's number, a
    /// message's id, a day.
    pub fn call(&self, key: impl AsRef<str>) -> Call<C> {
        Call::new(self.clone(), IdempotencyKey::new(key))
    }

    /// Waits until nothing runs between claim and record any more: calls that are awaited, work
    /// whose callers left, and records that the store has yet to take (P4, U21).
    ///
    /// Await it before the process ends. It does not keep new work from starting. While the store
    /// cannot be asked it does not return, so put a time limit of yours around it; dropping it
    /// changes nothing.
    pub async fn drain(&self) {
        self.config.engine.drain().await;
    }

    /// The store, for an operator's `get` and `forget` with [`Call::store_key`].
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        &**self.config.engine.store()
    }
}

/// Options. The defaults are those of [`IdempotencyLayer`](crate::IdempotencyLayer).
impl<C> Operation<C> {
    /// What every store key begins with: `idem` by default.
    ///
    /// Set it where several applications share a store.
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        self.set(|config| config.prefix = prefix.into())
    }

    /// How long a record lives after its work ended, or after its lease where nobody said how it
    /// ended: 24 hours by default (S05).
    ///
    /// It should be longer than anyone goes on retrying: for a queue, longer than it keeps a
    /// message; for a job of the day, longer than a day.
    ///
    /// # Panics
    ///
    /// If it is less than a millisecond.
    pub fn ttl(self, ttl: Duration) -> Self {
        self.set(|config| config.engine.options_mut().set_ttl(ttl))
    }

    /// How long a claim holds when its process dies: 30 seconds by default. While the work runs it
    /// is renewed every third of it.
    ///
    /// Shorter, and a crash is noticed sooner; but a process that is paused, or cut off from the
    /// store, for longer than this is taken over while it still runs. So is work that blocks its
    /// thread, see the [module's documentation](super#work-that-blocks).
    ///
    /// # Panics
    ///
    /// If it is less than ten milliseconds: timers count in whole ones, and could not keep it.
    pub fn lease(self, lease: Duration) -> Self {
        self.set(|config| config.engine.options_mut().set_lease(lease))
    }

    /// What a call does that meets running work of its own key and input: by default it gives
    /// [`RunError::InProgress`](super::RunError::InProgress) (S03).
    ///
    /// Set it where the caller wants the value and not a reason to try again.
    pub fn on_conflict(self, on_conflict: OnConflict) -> Self {
        self.set(|config| config.engine.options_mut().on_conflict = on_conflict)
    }

    /// Whether a call that meets an execution that went silent runs the work again: `true` by
    /// default, at least once (P5).
    ///
    /// With `false` it gives [`RunError::Abandoned`](super::RunError::Abandoned) until somebody
    /// resolves it, at most once: choose that where a second effect is worse than none. Where
    /// another system knows what was done, leave it on, and let the work ask when
    /// [`Execution::entry`](crate::Execution::entry) says that it is a takeover.
    pub fn take_over(self, take_over: bool) -> Self {
        self.set(|config| config.engine.options_mut().take_over = take_over)
    }

    /// The deadline of each call of the store: 2 seconds by default. Past it, the store counts as
    /// one that cannot be asked.
    ///
    /// Set it well above what the store usually takes, and under half of the lease.
    pub fn store_timeout(self, timeout: Duration) -> Self {
        self.set(|config| config.engine.options_mut().store_timeout = timeout)
    }

    /// How long a value waits for its record when the store went away after the claim: 5 seconds by
    /// default. After that it is given, and recording goes on in the background (P3).
    pub fn record_timeout(self, timeout: Duration) -> Self {
        self.set(|config| config.engine.options_mut().record_timeout = timeout)
    }

    /// The greatest result that is recorded, in bytes as the codec writes it: 1 MiB by default. A
    /// larger one reaches its own caller only, and its key counts as done.
    pub fn result_limit(self, bytes: usize) -> Self {
        self.set(|config| config.result_limit = bytes)
    }

    /// The greatest checkpoint, in bytes: 64 KiB by default.
    pub fn checkpoint_limit(self, bytes: usize) -> Self {
        self.set(|config| config.engine.options_mut().checkpoint_limit = bytes)
    }

    /// How many calls may wait for another execution at once, in this operation and its clones:
    /// 10 000 by default. One more gets `InProgress`, as if it did not want to wait.
    pub fn max_waiting(self, calls: usize) -> Self {
        self.set(|config| config.engine.options_mut().max_waiting = calls)
    }

    /// How many executions may go on without their caller at once, in this operation and its
    /// clones: 10 000 by default. One more is cut off where it stands, as if its process had died,
    /// and an error is logged. Recordings that go on in the background count too; where there is no
    /// place for one, the value waits for its record instead.
    pub fn max_detached(self, executions: usize) -> Self {
        self.set(|config| config.engine.options_mut().max_detached = executions)
    }

    fn set(mut self, set: impl FnOnce(&mut Config)) -> Self {
        set(Arc::make_mut(&mut self.config));
        self
    }
}

impl<C> Operation<C> {
    pub(super) fn engine(&self) -> &Engine {
        &self.config.engine
    }

    pub(super) fn codec(&self) -> &C {
        &self.codec
    }

    pub(super) fn limit_of_results(&self) -> usize {
        self.config.result_limit
    }

    pub(super) fn store_key(&self, scope: &str, key: &str) -> StoreKey {
        StoreKey::new(&self.config.prefix, scope, &self.config.name, key)
    }
}

impl<C> Clone for Operation<C> {
    fn clone(&self) -> Self {
        Self {
            config: Arc::clone(&self.config),
            codec: Arc::clone(&self.codec),
        }
    }
}

impl<C> fmt::Debug for Operation<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation")
            .field("name", &self.config.name)
            .field("engine", self.config.engine.options())
            .finish_non_exhaustive()
    }
}
