//! One call of an operation: its key, its scope, its input, and then its work.

use std::{fmt, sync::Arc};

use super::{
    codec::Codec,
    done::Done,
    error::{Effect, InvalidInput, RunError},
    operation::Operation,
    run::Run,
};
use crate::{
    engine::{Attached, Execution, Stage},
    fingerprint::Fingerprint,
    key::{IdempotencyKey, InvalidKey, StoreKey},
    telemetry::{self, Outcome, Reason},
};

/// One call of an [`Operation`]. Nothing happens before [`run`](Self::run) is awaited.
///
/// What is said of the input says whether a later call with the same key asks for the same thing
/// (S07): the last of [`input`](Self::input), [`input_bytes`](Self::input_bytes) and
/// [`fingerprint`](Self::fingerprint) counts. Where none is said, any input is the same. A record
/// that was made with another one of them is
/// [`RunError::OtherAlgorithm`], not a mismatch (U37).
#[must_use = "nothing happens before it is run"]
pub struct Call<C> {
    operation: Operation<C>,
    key: Result<IdempotencyKey, InvalidKey>,
    scope: String,
    fingerprint: Result<Fingerprint, InvalidInput>,
}

impl<C> Call<C> {
    pub(super) fn new(operation: Operation<C>, key: Result<IdempotencyKey, InvalidKey>) -> Self {
        Self {
            operation,
            key,
            scope: String::new(),
            fingerprint: Ok(Fingerprint::hasher("fn-none/1").finish()),
        }
    }

    /// Whose key it is: a merchant, a tenant. One key in two scopes is two things. Empty by default.
    ///
    /// Set it where keys come from outside: whoever guesses another's key must not get the other's
    /// result (I12, U33).
    pub fn scope(self, scope: impl Into<String>) -> Self {
        Self {
            scope: scope.into(),
            ..self
        }
    }

    /// The input, by what `serde` makes of it as JSON: the order of a `HashMap` and the spelling of
    /// numbers do not matter, as with [`Fingerprinter::json`](crate::Fingerprinter::json). A tuple
    /// for several.
    ///
    /// The order of a `HashSet` does matter; `NaN` counts as `null`. An input that `serde` cannot
    /// write, or that has no single meaning as JSON, gives [`RunError::InvalidInput`].
    #[cfg(feature = "json")]
    pub fn input(self, input: &(impl serde::Serialize + ?Sized)) -> Self {
        Self {
            fingerprint: of_json(input),
            ..self
        }
    }

    /// The input as bytes, each of which matters.
    pub fn input_bytes(self, input: impl AsRef<[u8]>) -> Self {
        let mut hasher = Fingerprint::hasher("fn-bytes/1");
        hasher.raw(input);
        self.fingerprint(hasher.finish())
    }

    /// What tells inputs apart, made by yourself: selected fields, or an HMAC where the input is
    /// easily guessed and others can read the store
    /// ([`FingerprintHasher::keyed`](crate::FingerprintHasher::keyed)).
    pub fn fingerprint(self, fingerprint: Fingerprint) -> Self {
        Self {
            fingerprint: Ok(fingerprint),
            ..self
        }
    }

    pub(super) fn compared_by(self, fingerprint: Result<Fingerprint, InvalidInput>) -> Self {
        Self {
            fingerprint,
            ..self
        }
    }

    /// The name of the call's record, for an operator: see [`Operation::store`].
    ///
    /// ```
    /// # #[cfg(feature = "json")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tower_idempotency::{MemoryStore, Operation};
    /// let close = Operation::new("close-books", MemoryStore::new()).take_over(false);
    /// # close.call("2026-03-31").run(async |_| Ok::<_, std::fmt::Error>(())).await?;
    /// let record = close.call("2026-03-31").store_key()?;
    /// if let Some(found) = close.store().get(&record).await? {
    ///     println!("{:?}, attempt {}", found.record.state, found.record.attempt);
    ///     // Once it is clear what happened:
    ///     assert!(close.store().forget(&record).await?);
    /// }
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "json"))]
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidKey`], as the call itself would say.
    pub fn store_key(&self) -> Result<StoreKey, InvalidKey> {
        let key = self.key.as_ref().map_err(Clone::clone)?;
        Ok(self.operation.store_key(&self.scope, key.as_str()))
    }

    /// Runs the work, unless it is done, and gives its value. The work may outlive its caller, so it
    /// owns what it uses: give it clones.
    ///
    /// An error of the work counts as one whose effect is unknown. To have an error recorded and
    /// given again, let the value be a `Result` (S04): see the
    /// [module's documentation](super#errors-of-the-work).
    ///
    /// # Errors
    ///
    /// [`RunError`] says whether the work ran, and whether to try again.
    ///
    /// # Cancellation
    ///
    /// Dropped before the key is claimed, this does nothing, and a claim on its way is given back.
    /// After that the work goes on without its caller, as a task of the runtime in which this was
    /// polled first, and is recorded (P4).
    ///
    /// # Panics
    ///
    /// If the work panics: its key is then free for another attempt with the same input, at once
    /// (U03). Outside a tokio runtime, or in one without timers.
    pub async fn run<T, E, Fut>(
        self,
        work: impl FnOnce(Execution) -> Fut + Send + 'static,
    ) -> Result<Done<T>, RunError<E>>
    where
        C: Codec<T>,
        T: Send + 'static,
        E: Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.run_judged(work, |_| Effect::Unknown).await
    }

    /// Like [`run`](Self::run), where `judge` says of the work's error whether it did nothing.
    ///
    /// ```
    /// # #[cfg(feature = "json")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use tower_idempotency::{MemoryStore, Operation, RunError, function::Effect};
    ///
    /// #[derive(Debug)]
    /// enum Failure {
    ///     OutOfStock,
    ///     ConnectionLost,
    /// }
    ///
    /// let ship = Operation::new("ship", MemoryStore::new());
    /// let work = async |_| Err::<(), _>(Failure::OutOfStock);
    /// let call = ship.call("order-1").input("2 pieces").run_judged(work, |failure| match failure {
    ///     Failure::OutOfStock => Effect::None,
    ///     Failure::ConnectionLost => Effect::Unknown,
    /// });
    /// assert!(matches!(call.await, Err(RunError::Work(Failure::OutOfStock))));
    ///
    /// // Nothing was done, so the key may come back with another input.
    /// let shipped = ship.call("order-1").input("1 piece").run(async |_| Ok::<_, Failure>(())).await;
    /// assert!(shipped.is_ok());
    /// # }
    /// # #[cfg(not(feature = "json"))]
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    ///
    /// # Cancellation
    ///
    /// As [`run`](Self::run).
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run); a judge that panics counts as work that did.
    pub async fn run_judged<T, E, Fut>(
        self,
        work: impl FnOnce(Execution) -> Fut + Send + 'static,
        judge: impl FnOnce(&E) -> Effect + Send + 'static,
    ) -> Result<Done<T>, RunError<E>>
    where
        C: Codec<T>,
        T: Send + 'static,
        E: Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let key = self.store_key().map_err(|error| {
            telemetry::outcome(None, Outcome::Refused(Reason::KeyInvalid));
            RunError::InvalidKey(error)
        })?;
        let fingerprint = self.fingerprint.map_err(RunError::InvalidInput)?;
        let stage = Arc::new(Stage::default());
        let engine = self.operation.engine().clone();
        let run = Run {
            operation: self.operation,
            key,
            fingerprint,
            stage: Arc::clone(&stage),
        };
        let run = Box::pin(run.run(work, judge));
        Attached::new(run, stage, engine.work(), engine.options().max_detached).await
    }
}

/// Without key and scope (U19).
impl<C> fmt::Debug for Call<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("operation", &self.operation)
            .finish_non_exhaustive()
    }
}

/// What tells inputs apart by their meaning as JSON.
#[cfg(feature = "json")]
pub(super) fn of_json(
    input: &(impl serde::Serialize + ?Sized),
) -> Result<Fingerprint, InvalidInput> {
    let json = serde_json::to_vec(input).map_err(InvalidInput::unserialisable)?;
    let canonical = crate::json::canonical(&json).ok_or_else(InvalidInput::ambiguous)?;
    let mut hasher = Fingerprint::hasher("fn-json/1");
    hasher.raw(canonical);
    Ok(hasher.finish())
}
