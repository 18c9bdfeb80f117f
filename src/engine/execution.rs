//! The handler's view of its own execution.

use std::{
    any::Any,
    error::Error,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

#[cfg(feature = "client")]
use crate::engine::purposes::Purposes;
use crate::{
    engine::{core::Engine, transaction::Fate},
    key::{StoreKey, push_hex},
    record::{Claimed, Entry, FencingToken, Lease},
    store::StoreError,
    telemetry,
};

/// What a handler can learn of, and do for, the execution that it is part of.
///
/// The server layer puts one into the extensions of every request that it runs under a key. A
/// request that runs without a key, or without protection because the layer fails open, has none.
/// With the feature `axum` it is an extractor. Clones are views of the same execution.
///
/// ```
/// use tower_idempotency::{Entry, Execution};
///
/// async fn pay(execution: &Execution) -> Result<(), Box<dyn std::error::Error>> {
///     // What an earlier attempt has done already need not be done again.
///     if execution.checkpoint().is_none() {
///         let charge_key = execution.derive("charge");
///         // … charge the card, with `charge_key` as the idempotency key of that call …
///         # let _ = charge_key;
///         execution.save_checkpoint("charged").await?;
///     }
///     if execution.entry() == Entry::Takeover {
///         // … the process that made the earlier attempt died …
///     }
///     Ok(())
/// }
/// ```
///
/// The work of an [`Operation`](crate::Operation) gets one as its argument.
#[derive(Clone)]
pub struct Execution(Arc<Inner>);

struct Inner {
    engine: Engine,
    key: StoreKey,
    lease: Lease,
    entry: Entry,
    checkpoint: Mutex<Option<Bytes>>,
    superseded: AtomicBool,
    supersession: Notify,
    /// What became of the transactions of this execution; boxed, since most have none.
    fate: Mutex<Option<Box<Fate>>>,
    /// How many transactions are open, and a mark once the handler has ended.
    open: AtomicUsize,
    /// What knows how an answer of this execution is recorded.
    front: OnceLock<Front>,
    /// What it calls other services for.
    #[cfg(feature = "client")]
    purposes: Purposes,
}

#[cfg(feature = "client")]
tokio::task_local! {
    /// Set while the work of an execution is polled.
    static CURRENT: Execution;
}

/// Of the server layer or of an operation, which alone look into it.
pub(crate) type Front = Arc<dyn Any + Send + Sync>;

impl Execution {
    pub(super) fn new(engine: Engine, key: StoreKey, claimed: Claimed) -> Self {
        Self(Arc::new(Inner {
            engine,
            key,
            lease: claimed.lease,
            entry: claimed.entry,
            checkpoint: Mutex::new(claimed.checkpoint),
            superseded: AtomicBool::new(false),
            supersession: Notify::new(),
            fate: Mutex::new(None),
            open: AtomicUsize::new(0),
            front: OnceLock::new(),
            #[cfg(feature = "client")]
            purposes: Purposes::default(),
        }))
    }

    /// The execution that this code is part of: inside a handler that runs under a key, inside the
    /// work of an [`Operation`](crate::Operation), and in whatever they await.
    ///
    /// `None` elsewhere, also in a task that the handler spawned: give it a clone. An answer's body
    /// that is sent on as it comes, since it is a stream or too large, has it only until then.
    ///
    /// ```
    /// use std::convert::Infallible;
    ///
    /// use tower_idempotency::{Execution, MemoryStore, Operation};
    ///
    /// /// Knows nothing of executions, and is called deep inside of one.
    /// async fn charge() -> Option<String> {
    ///     Some(Execution::current()?.derive("charge"))
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let payment = Operation::new("payment", MemoryStore::new());
    /// let paid = payment.call("order-1").run(|execution| async move {
    ///     assert_eq!(charge().await, Some(execution.derive("charge")));
    ///     Ok::<_, Infallible>("paid".to_owned())
    /// });
    /// paid.await.unwrap();
    /// assert!(charge().await.is_none());
    /// # }
    /// ```
    #[cfg(feature = "client")]
    #[cfg_attr(docsrs, doc(cfg(feature = "client")))]
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    /// Runs `poll` as a part of this execution.
    pub(super) fn within<T>(&self, poll: impl FnOnce() -> T) -> T {
        #[cfg(feature = "client")]
        return CURRENT.sync_scope(self.clone(), poll);
        #[cfg(not(feature = "client"))]
        poll()
    }

    /// Says who knows how an answer is recorded. Once: the first one counts.
    pub(crate) fn answered_by(&self, front: Front) {
        let _ = self.0.front.set(front);
    }

    pub(crate) fn front(&self) -> Option<&Front> {
        self.0.front.get()
    }

    pub(super) fn fate(&self) -> MutexGuard<'_, Option<Box<Fate>>> {
        let fate = self.0.fate.lock();
        fate.unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self) -> &AtomicUsize {
        &self.0.open
    }

    #[cfg(feature = "client")]
    pub(super) fn purposes(&self) -> &Purposes {
        &self.0.purposes
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub(super) fn lease(&self) -> &Lease {
        &self.0.lease
    }

    /// The idempotency key, as the client chose it.
    #[must_use]
    pub fn key(&self) -> &str {
        self.0.key.parts().key
    }

    /// The name of the record in the store.
    #[must_use]
    pub fn store_key(&self) -> &StoreKey {
        &self.0.key
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.lease.attempt
    }

    /// Whether this is the first attempt, a retry after a failure, or a takeover after an attempt
    /// went silent (P5).
    #[must_use]
    pub fn entry(&self) -> Entry {
        self.0.entry
    }

    /// A number that grows with every claim of this key: see [`FencingToken`].
    #[must_use]
    pub fn fencing_token(&self) -> FencingToken {
        self.0.lease.token
    }

    /// What was last saved of the progress, by this attempt or an earlier one (S08).
    #[must_use]
    pub fn checkpoint(&self) -> Option<Bytes> {
        let checkpoint = self.0.checkpoint.lock();
        checkpoint.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Saves progress on the record, in place of what was saved before, and renews the lease.
    ///
    /// The next attempt finds it if this one fails or its process dies. Save one after each step
    /// that must not be done twice. An attempt that saved a checkpoint has done something, so a
    /// rejection (a 4xx, or [`Effect::None`](crate::function::Effect::None)) counts as a failure
    /// from then on, and the key is not free for another payload.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::TooLarge`] over the limit (64 KiB unless set otherwise);
    /// [`CheckpointError::Store`] where the store did not take it: with
    /// [`StoreError::Superseded`] another execution has taken over, and this one should stop. After
    /// [`StoreError::Unavailable`] it may be saved or not.
    ///
    /// # Cancellation
    ///
    /// When this is dropped, the checkpoint may be saved or not, as a whole.
    pub async fn save_checkpoint(
        &self,
        checkpoint: impl AsRef<[u8]>,
    ) -> Result<(), CheckpointError> {
        let options = self.0.engine.options();
        let limit = options.checkpoint_limit;
        if checkpoint.as_ref().len() > limit {
            return Err(CheckpointError::TooLarge { limit });
        }
        // Copied, so that the record does not keep the caller's buffer alive (U10).
        let saved = Bytes::copy_from_slice(checkpoint.as_ref());
        let limit = options.store_timeout;
        self.renew(Some(saved.clone()), limit)
            .await
            .map_err(CheckpointError::Store)?;
        *self
            .0
            .checkpoint
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(saved);
        Ok(())
    }

    /// A key for a call to another service: stable over all attempts of this operation, and
    /// different for each purpose, key, endpoint (or operation), caller and
    /// [prefix](crate::IdempotencyLayer::prefix) (S25).
    ///
    /// 32 lower-case hex digits. It does not depend on the record, so it is the same also where
    /// the store lost the record and the operation runs again; it is therefore the same, too, for
    /// a new operation that uses the client's key again after the record expired.
    ///
    /// Feature `client`: a [`SetIdempotencyKeyLayer`](crate::client::SetIdempotencyKeyLayer) sends
    /// such keys by itself.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> String {
        let mut derived = String::with_capacity(32);
        push_hex(&mut derived, &self.derived(purpose));
        derived
    }

    /// The same, as bytes.
    pub(super) fn derived(&self, purpose: &str) -> [u8; 16] {
        let key = self.0.key.as_str();
        let digest = Sha256::new()
            .chain_update((key.len() as u64).to_be_bytes())
            .chain_update(key)
            .chain_update(purpose)
            .finalize();
        *digest.first_chunk().expect("a digest of 32 bytes")
    }

    /// Whether another execution is known to have taken the key over. This one can record nothing
    /// any more and should stop.
    #[must_use]
    pub fn is_superseded(&self) -> bool {
        self.0.superseded.load(Ordering::Acquire)
    }

    /// Returns once another execution is known to have taken the key over; never, otherwise.
    ///
    /// It is learnt from the store with the next renewal, so up to a third of the lease after it
    /// happened. Dropping this changes nothing.
    pub async fn superseded(&self) {
        let mut notified = std::pin::pin!(self.0.supersession.notified());
        // Registered before the look, so that a signal between the two is not missed.
        notified.as_mut().enable();
        if !self.is_superseded() {
            notified.await;
        }
    }

    /// Renews the lease, and notes if another execution has the key.
    pub(super) async fn renew(
        &self,
        checkpoint: Option<Bytes>,
        limit: Duration,
    ) -> Result<(), StoreError> {
        let Inner {
            engine, key, lease, ..
        } = &*self.0;
        let options = engine.options();
        let renewal = engine
            .store()
            .renew(key, lease, options.lease, options.ttl, checkpoint);
        let renewed = engine.ask_within(limit, renewal).await;
        if matches!(renewed, Err(StoreError::Superseded)) {
            self.supersede();
        }
        renewed
    }

    pub(super) fn supersede(&self) {
        if !self.0.superseded.swap(true, Ordering::AcqRel) {
            telemetry::superseded(&self.0.key);
            self.0.supersession.notify_waiters();
        }
    }
}

/// Without the key in clear and the contents of the checkpoint (U19).
impl fmt::Debug for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execution")
            .field("key", &self.0.key)
            .field("lease", &self.0.lease)
            .field("entry", &self.0.entry)
            .field("superseded", &self.is_superseded())
            .finish_non_exhaustive()
    }
}

/// Why a checkpoint was not saved.
#[derive(Debug)]
#[non_exhaustive]
pub enum CheckpointError {
    /// It is larger than the limit.
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The store did not take it.
    Store(StoreError),
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { limit } => write!(f, "the checkpoint is larger than {limit} bytes"),
            Self::Store(_) => f.write_str("the store did not take the checkpoint"),
        }
    }
}

impl Error for CheckpointError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::TooLarge { .. } => None,
            Self::Store(error) => Some(error),
        }
    }
}
