//! The [`Store`] trait: what a store must do, and how it fails.

use std::{any::Any, error::Error, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    key::StoreKey,
    machine::{self, Refused},
    record::{Claim, ClaimRequest, FencingToken, Lease, Payload, Snapshot},
};

/// Keeps the records of operations: a few atomic operations, each on one key.
///
/// # Contract
///
/// [`machine`] is the specification. A store MUST give the replies, and make
/// the changes, that the functions of the same names give for the record it holds and the time of
/// its own clock, and it MUST make each of them one atomic step: nobody sees or changes the record
/// between the reading and the change. [`Refused`] replies are [`Error::Superseded`][sup] and
/// [`Error::Gone`][gone].
///
/// A store
///
/// - MUST treat an expired record as absent, and remove expired records in the course of other
///   operations, a bounded number each time: there is no background task;
/// - MUST NOT read the client's clock: two servers whose clocks differ by an hour share one store;
/// - MUST keep a payload and a checkpoint byte for byte, and understand neither;
/// - MUST take any string as a key;
/// - MUST let the tokens of a key grow also where its record was removed: the clock does that,
///   unless it can stand still between the removal and the next claim;
/// - MUST NOT name keys or payloads in the source of an error, which is logged (U19);
/// - MUST answer [`Error::Corrupt`][corrupt] where it cannot read what it kept, and never treat
///   that as absent;
/// - SHOULD need one round trip for an operation;
/// - MAY refuse new records with [`Error::Full`][full] when a limit is reached, and MUST NOT drop
///   a record in progress or failed to make room.
///
/// Every operation may be sent again by the same owner after an answer was lost: the machine makes
/// them idempotent. (Only the reply differs where a takeover is given back twice: the second time
/// the record has no owner any more.)
///
/// # Cancellation
///
/// The caller puts a deadline on every call and drops the future when it passes. A dropped call
/// MAY have taken effect or not, but never half of it.
///
/// # Proving a store
///
/// The feature `testing` has a suite of cases that every store of this crate passes,
/// `tower_idempotency::testing::store`, and a test that compares a store with the machine over random
/// operations, `tower_idempotency::testing::differential`.
///
/// # Wrapping
///
/// `Arc<T>`, `Box<T>`, `Arc<dyn Store>` and `Box<dyn Store>` are stores. A wrapper of your own
/// should forward [`wait`](Self::wait) too: its default body works for every store, but by polling;
/// and [`transactional`](Self::transactional), whose default body says no.
///
/// [sup]: StoreError::Superseded
/// [gone]: StoreError::Gone
/// [corrupt]: StoreError::Corrupt
/// [full]: StoreError::Full
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Claims the key, or says why it cannot be claimed: [`machine::claim`].
    async fn claim(&self, key: &StoreKey, request: &ClaimRequest) -> Result<Claim, StoreError>;

    /// Sets the lease to end after `lease_for`, and saves a checkpoint where one is given:
    /// [`machine::renew`].
    async fn renew(
        &self,
        key: &StoreKey,
        lease: &Lease,
        lease_for: Duration,
        ttl: Duration,
        checkpoint: Option<Bytes>,
    ) -> Result<(), StoreError>;

    /// Records the answer: [`machine::complete`].
    async fn complete(
        &self,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), StoreError>;

    /// Ends the attempt with its effect unknown: [`machine::fail`].
    async fn fail(&self, key: &StoreKey, lease: &Lease, ttl: Duration) -> Result<(), StoreError>;

    /// Ends the attempt with nothing done: [`machine::release`].
    async fn release(&self, key: &StoreKey, lease: &Lease, ttl: Duration)
    -> Result<(), StoreError>;

    /// Undoes a claim under which nothing ran: [`machine::give_back`].
    async fn give_back(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError>;

    /// Reads the live record, if there is one: [`machine::get`].
    async fn get(&self, key: &StoreKey) -> Result<Option<Snapshot>, StoreError>;

    /// Removes the record, whoever holds it, and says whether there was one: [`machine::forget`].
    ///
    /// For operators. Forgetting a record in progress lets a second execution start beside the
    /// first.
    async fn forget(&self, key: &StoreKey) -> Result<bool, StoreError>;

    /// Returns once the claim with this token no longer runs ([`machine::is_over`]), with the
    /// record as it then is.
    ///
    /// At once, if it does not run now. It MUST NOT miss an end that falls between the caller's
    /// claim and this call. It MAY return early; the caller then asks again. It changes nothing,
    /// also when it is dropped. It has no deadline of its own.
    ///
    /// The default body polls [`get`](Self::get), after 25 ms at first and 1 s at most, each time
    /// between half of that and all of it.
    async fn wait(
        &self,
        key: &StoreKey,
        token: FencingToken,
    ) -> Result<Option<Snapshot>, StoreError> {
        let mut pause = Duration::from_millis(25);
        loop {
            let found = self.get(key).await?;
            let (record, now) = match &found {
                Some(snapshot) => (Some(&snapshot.record), snapshot.now),
                None => return Ok(None),
            };
            if machine::is_over(record, now, token) {
                return Ok(found);
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// The store that keeps the records, where a transaction of its database can reach them:
    /// what [`DatabaseTransaction::Store`](super::DatabaseTransaction::Store) is asked for (P7).
    ///
    /// `None` by default. A SQL store answers `Some(self)`; a wrapper asks the store inside.
    fn transactional(&self) -> Option<&(dyn Any + Send + Sync)> {
        None
    }
}

/// Between half of `pause` and all of it, so that many pollers do not fall into step.
pub(crate) fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    // The standard library seeds this hasher anew each time: random enough to spread polls.
    let random = RandomState::new().hash_one(0_u8) as u32;
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Why a store could not do what it was asked.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// The store could not be asked, or did not answer: a connection, a time-out, a pool without a
    /// free connection. The operation may have taken effect.
    Unavailable {
        /// The store's name.
        store: &'static str,
        /// What it said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// There is a record, and it cannot be read: cut short, or of a version that this build does
    /// not know.
    Corrupt {
        /// The store's name.
        store: &'static str,
        /// What is wrong with it.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Another owner holds or has finished the record.
    Superseded,
    /// There is nothing to renew: the record expired, was forgotten, was lost by the store, or its
    /// owner finished it.
    Gone,
    /// The store is at a limit and takes no new record, or none of this size.
    Full {
        /// The store's name.
        store: &'static str,
    },
}

impl StoreError {
    /// The store could not be asked.
    pub fn unavailable(
        store: &'static str,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Unavailable {
            store,
            source: source.into(),
        }
    }

    /// What the store holds cannot be read.
    pub fn corrupt(store: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Corrupt {
            store,
            source: source.into(),
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable { store, .. } => write!(f, "the {store} store cannot be asked"),
            Self::Corrupt { store, .. } => {
                write!(f, "a record of the {store} store cannot be read")
            }
            Self::Superseded => f.write_str("another owner holds or has finished the record"),
            Self::Gone => f.write_str("the record is not there any more"),
            Self::Full { store } => write!(f, "the {store} store is full"),
        }
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unavailable { source, .. } | Self::Corrupt { source, .. } => Some(&**source),
            Self::Superseded | Self::Gone | Self::Full { .. } => None,
        }
    }
}

impl From<Refused> for StoreError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Superseded => Self::Superseded,
            Refused::Gone => Self::Gone,
        }
    }
}

/// Forwards every operation. The lint makes sure that none is missed, not even one with a default
/// body.
macro_rules! forward {
    ($($pointer:ty),*) => {$(
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<T: Store + ?Sized> Store for $pointer {
            async fn claim(
                &self,
                key: &StoreKey,
                request: &ClaimRequest,
            ) -> Result<Claim, StoreError> {
                (**self).claim(key, request).await
            }

            async fn renew(
                &self,
                key: &StoreKey,
                lease: &Lease,
                lease_for: Duration,
                ttl: Duration,
                checkpoint: Option<Bytes>,
            ) -> Result<(), StoreError> {
                (**self).renew(key, lease, lease_for, ttl, checkpoint).await
            }

            async fn complete(
                &self,
                key: &StoreKey,
                lease: &Lease,
                payload: &Payload,
                ttl: Duration,
            ) -> Result<(), StoreError> {
                (**self).complete(key, lease, payload, ttl).await
            }

            async fn fail(
                &self,
                key: &StoreKey,
                lease: &Lease,
                ttl: Duration,
            ) -> Result<(), StoreError> {
                (**self).fail(key, lease, ttl).await
            }

            async fn release(
                &self,
                key: &StoreKey,
                lease: &Lease,
                ttl: Duration,
            ) -> Result<(), StoreError> {
                (**self).release(key, lease, ttl).await
            }

            async fn give_back(
                &self,
                key: &StoreKey,
                lease: &Lease,
                ttl: Duration,
            ) -> Result<(), StoreError> {
                (**self).give_back(key, lease, ttl).await
            }

            async fn get(&self, key: &StoreKey) -> Result<Option<Snapshot>, StoreError> {
                (**self).get(key).await
            }

            async fn forget(&self, key: &StoreKey) -> Result<bool, StoreError> {
                (**self).forget(key).await
            }

            async fn wait(
                &self,
                key: &StoreKey,
                token: FencingToken,
            ) -> Result<Option<Snapshot>, StoreError> {
                (**self).wait(key, token).await
            }

            fn transactional(&self) -> Option<&(dyn Any + Send + Sync)> {
                (**self).transactional()
            }
        }
    )*};
}

forward!(Arc<T>, Box<T>);

const _: fn(&dyn Store) = |_| {};
