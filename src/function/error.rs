//! Why a call gave no value: [`RunError`].

use std::{convert::Infallible, error::Error, fmt};

use crate::{key::InvalidKey, store::StoreError};

/// Why a call gave no value. `E` is the work's own error.
///
/// Messages and debug output hold no key, input or result (U19), but for what your own error, or
/// that of a codec or a `Serialize` of yours, shows of itself.
///
/// This is an [`Error`] where `E` is one. A boxed error is none, nor is that of `anyhow`: see
/// [`flatten`](Self::flatten).
#[derive(Debug)]
#[non_exhaustive]
pub enum RunError<E> {
    /// The work ran in this call, and this is its error. It is not recorded: the key is free for
    /// another attempt with the same input; with any input, where the error was judged as one that
    /// [did nothing](Effect::None).
    Work(E),
    /// Another call with this key runs, in this process or in another one, or did when the time to
    /// wait for it was over. So says also work that calls its own key.
    InProgress,
    /// The key was used for another input. Nothing ran.
    Mismatch,
    /// The key was used by a version of the program that compares inputs in another way, so that
    /// nobody can tell whether the input is the same (U37). Nothing ran.
    OtherAlgorithm,
    /// The work was done by an earlier call, and its value was too large to be recorded, or could
    /// not be encoded. Nothing ran.
    NotReplayable,
    /// The work was done by an earlier call, and what is recorded cannot be read: the type has
    /// changed, or the record is not that of a function. Nothing ran.
    Unreadable(Box<dyn Error + Send + Sync>),
    /// An earlier execution went silent, nobody knows how far it came, and
    /// [`take_over`](super::Operation::take_over) is off. Nothing ran.
    Abandoned,
    /// The work ran in this call and succeeded, but for too long without a word to the store:
    /// another execution took its key over, and there is no value of that one to give, or not yet.
    /// This one's is not given, since everyone is to get the same. Call again.
    Superseded,
    /// The work ran in this call and succeeded, but had not committed the
    /// [transaction](crate::Transaction) that it had begun: nothing of that was written, and its
    /// value is not given. The key counts as failed. Where it passed over a commit whose
    /// [outcome is unknown](crate::CommitError::Unknown), and the store could not be asked either,
    /// it may have been written: the next call finds out.
    NotCommitted,
    /// The store could not be asked, cannot read its record, or is full. Nothing ran.
    Store(StoreError),
    /// The key is not one. The store was not asked.
    InvalidKey(InvalidKey),
    /// The input cannot be compared. The store was not asked.
    InvalidInput(InvalidInput),
}

impl<E> RunError<E> {
    /// Whether the same call can succeed a little later, as far as the key is concerned. For an
    /// error of the work that is so; whether it makes sense, the error knows.
    ///
    /// Where this is `false`, the call will go on failing until the record expires, or somebody
    /// mends the key, the input, the program or the record. Where it is `true`, it may go on too:
    /// an error of the work can be there to stay, and after a deploy
    /// [`OtherAlgorithm`](Self::OtherAlgorithm) is, until the record expires. So bound your tries.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Work(_) | Self::InProgress | Self::OtherAlgorithm | Self::Superseded => true,
            Self::Store(error) => {
                matches!(
                    error,
                    StoreError::Unavailable { .. } | StoreError::Full { .. }
                )
            }
            Self::Mismatch
            | Self::NotReplayable
            | Self::Unreadable(_)
            | Self::Abandoned
            | Self::NotCommitted
            | Self::InvalidKey(_)
            | Self::InvalidInput(_) => false,
        }
    }

    /// Whether the work ran in this call. Where it did not, it may have run in another call with
    /// the same key.
    #[must_use]
    pub fn work_ran(&self) -> bool {
        matches!(self, Self::Work(_) | Self::Superseded | Self::NotCommitted)
    }

    /// The work's own error, or else this one as an error of the same type: for `?`, where `E` is a
    /// boxed error, that of `anyhow`, or an enum of yours with a variant for
    /// `RunError<Infallible>`.
    ///
    /// ```
    /// # #[cfg(feature = "json")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use tower_idempotency::{MemoryStore, Operation, RunError};
    ///
    /// type BoxError = Box<dyn std::error::Error + Send + Sync>;
    ///
    /// # async fn pay(cents: &str) -> Result<u64, BoxError> { Ok(cents.parse()?) }
    /// async fn consume(payment: &Operation, order: &str, cents: &'static str) -> Result<u64, BoxError> {
    ///     let call = payment.call(order).input(cents).run(move |_| pay(cents));
    ///     Ok(call.await.map_err(RunError::flatten)?.into_value())
    /// }
    /// # let payment = Operation::new("payment", MemoryStore::new());
    /// # assert_eq!(consume(&payment, "order-1", "100").await.unwrap(), 100);
    /// # assert!(consume(&payment, "order-1", "200").await.unwrap_err().is::<RunError<std::convert::Infallible>>());
    /// # assert!(consume(&payment, "order-2", "ten").await.unwrap_err().is::<std::num::ParseIntError>());
    /// # }
    /// # #[cfg(not(feature = "json"))]
    /// # fn main() {}
    /// ```
    #[must_use]
    pub fn flatten(self) -> E
    where
        E: From<RunError<Infallible>>,
    {
        E::from(match self {
            Self::Work(error) => return error,
            Self::InProgress => RunError::InProgress,
            Self::Mismatch => RunError::Mismatch,
            Self::OtherAlgorithm => RunError::OtherAlgorithm,
            Self::NotReplayable => RunError::NotReplayable,
            Self::Unreadable(error) => RunError::Unreadable(error),
            Self::Abandoned => RunError::Abandoned,
            Self::Superseded => RunError::Superseded,
            Self::NotCommitted => RunError::NotCommitted,
            Self::Store(error) => RunError::Store(error),
            Self::InvalidKey(error) => RunError::InvalidKey(error),
            Self::InvalidInput(error) => RunError::InvalidInput(error),
        })
    }
}

impl<E> fmt::Display for RunError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Work(_) => "the work failed",
            Self::InProgress => "another call with this key is running",
            Self::Mismatch => "the key was used for another input",
            Self::OtherAlgorithm => {
                "the key was used by a version that compares inputs in another way"
            }
            Self::NotReplayable => "the work is done, and its result cannot be given again",
            Self::Unreadable(_) => "the work is done, and its recorded result cannot be read",
            Self::Abandoned => "an earlier execution went silent, and its key is not taken over",
            Self::Superseded => "another execution took the key over while the work ran",
            Self::NotCommitted => "the work did not commit its transaction",
            Self::Store(_) => "the work did not run, since the store failed",
            Self::InvalidKey(_) => "the key is invalid",
            Self::InvalidInput(_) => "the input cannot be compared",
        })
    }
}

impl<E: Error + 'static> Error for RunError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Work(error) => Some(error),
            Self::Unreadable(error) => Some(&**error),
            Self::Store(error) => Some(error),
            Self::InvalidKey(error) => Some(error),
            Self::InvalidInput(error) => Some(error),
            Self::InProgress
            | Self::Mismatch
            | Self::OtherAlgorithm
            | Self::NotReplayable
            | Self::Abandoned
            | Self::Superseded
            | Self::NotCommitted => None,
        }
    }
}

/// What an error of the work says about its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Nothing was done: the key is freed at once, and may come back with another input.
    ///
    /// On a later attempt, or after a checkpoint was saved, it counts as unknown, since something
    /// may have been done before.
    None,
    /// What was done is unknown: the same input may be tried again at once, another input is a
    /// mismatch. What every error says unless it is judged.
    Unknown,
}

/// Why an input cannot be compared.
#[derive(Debug)]
pub struct InvalidInput {
    reason: &'static str,
    source: Option<Box<dyn Error + Send + Sync>>,
}

#[cfg(feature = "json")]
impl InvalidInput {
    pub(super) fn unserialisable(source: impl Error + Send + Sync + 'static) -> Self {
        Self {
            reason: "the input cannot be written as JSON",
            source: Some(source.into()),
        }
    }

    pub(super) fn ambiguous() -> Self {
        Self {
            reason: "the input is nested deeper than 127 levels, or has a name twice in one object",
            source: None,
        }
    }
}

impl fmt::Display for InvalidInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason)
    }
}

impl Error for InvalidInput {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
