//! A function that runs once for each key of its arguments: [`Function`].

use std::{fmt, sync::Arc};

use futures::future::BoxFuture;

use super::{
    call::Call,
    codec::{Codec, Json},
    done::Done,
    error::{Effect, InvalidInput, RunError},
    operation::Operation,
};
use crate::{
    engine::Execution,
    fingerprint::Fingerprint,
    key::{IdempotencyKey, InvalidKey},
};

/// A function that runs once for each key of its arguments (S28). Made by [`Operation::wrap`];
/// clones are cheap.
///
/// `A` is the function's argument, a tuple for several; `T` its value and `E` its error.
#[must_use]
pub struct Function<A, T, E, C = Json> {
    operation: Operation<C>,
    key: Arc<KeyOf<A>>,
    scope: Option<Arc<ScopeOf<A>>>,
    fingerprint: Arc<FingerprintOf<A>>,
    judge: Arc<Judge<E>>,
    function: Arc<Body<A, T, E>>,
}

type KeyOf<A> = dyn Fn(&A) -> Result<IdempotencyKey, InvalidKey> + Send + Sync;
type ScopeOf<A> = dyn Fn(&A) -> String + Send + Sync;
type FingerprintOf<A> = dyn Fn(&A) -> Result<Fingerprint, InvalidInput> + Send + Sync;
type Judge<E> = dyn Fn(&E) -> Effect + Send + Sync;
type Body<A, T, E> = dyn Fn(A, Execution) -> BoxFuture<'static, Result<T, E>> + Send + Sync;

impl<C> Operation<C> {
    /// A function that runs once for each key, which `key` makes of the arguments. Two calls with
    /// one key and other arguments are a mismatch: all of them are the input, as with
    /// [`Call::input`](super::Call::input). A key that is one of the arguments is cloned.
    ///
    /// ```
    /// # #[cfg(feature = "json")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tower_idempotency::{MemoryStore, Operation};
    /// # #[derive(serde::Serialize)]
    /// # struct Order { user: u64, action: String }
    /// # #[derive(Clone)]
    /// # struct Bank;
    /// # async fn charge(_: Bank, order: Order) -> Result<String, std::fmt::Error> {
    /// #     Ok(format!("charged {}", order.user))
    /// # }
    /// # let bank = Bank;
    /// let charge = Operation::new("charge", MemoryStore::new()).wrap(
    ///     |order: &Order| format!("user:{}:{}", order.user, order.action),
    ///     // A call may outlive its caller, so each owns what it uses.
    ///     move |order, _execution| charge(bank.clone(), order),
    /// );
    /// # let order = || Order { user: 7, action: "buy".into() };
    /// # let order = order();
    /// let receipt = charge.call(order).await?.into_value();
    /// # assert_eq!(receipt, "charged 7");
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "json"))]
    /// # fn main() {}
    /// ```
    #[cfg(feature = "json")]
    pub fn wrap<A, K, T, E, Fut>(
        self,
        key: impl Fn(&A) -> K + Send + Sync + 'static,
        function: impl Fn(A, Execution) -> Fut + Send + Sync + 'static,
    ) -> Function<A, T, E, C>
    where
        A: serde::Serialize + 'static,
        K: AsRef<str>,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.wrapped(key, super::call::of_json, function)
    }

    /// Like [`wrap`](Self::wrap), with a fingerprint of yours in place of the arguments' JSON: for
    /// arguments of which not all tell two calls apart, or that `serde` cannot write.
    ///
    /// ```
    /// # #[cfg(feature = "json")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_idempotency::{Fingerprint, MemoryStore, Operation};
    ///
    /// struct Pool;
    /// # async fn insert(_: Pool, _: u64, cents: u64) -> Result<u64, std::fmt::Error> { Ok(cents) }
    ///
    /// let book = Operation::new("book", MemoryStore::new()).wrap_with(
    ///     |(_pool, order, _cents): &(Pool, u64, u64)| format!("order:{order}"),
    ///     |(_pool, _order, cents)| {
    ///         let mut amount = Fingerprint::hasher("amount/1");
    ///         amount.field(cents.to_be_bytes());
    ///         amount.finish()
    ///     },
    ///     |(pool, order, cents), _execution| insert(pool, order, cents),
    /// );
    /// assert_eq!(book.call((Pool, 1, 500)).await?.into_value(), 500);
    /// assert!(book.call((Pool, 1, 500)).await?.is_replayed());
    /// assert!(book.call((Pool, 1, 501)).await.is_err());
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "json"))]
    /// # fn main() {}
    /// ```
    pub fn wrap_with<A, K, T, E, Fut>(
        self,
        key: impl Fn(&A) -> K + Send + Sync + 'static,
        fingerprint: impl Fn(&A) -> Fingerprint + Send + Sync + 'static,
        function: impl Fn(A, Execution) -> Fut + Send + Sync + 'static,
    ) -> Function<A, T, E, C>
    where
        K: AsRef<str>,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.wrapped(key, move |args| Ok(fingerprint(args)), function)
    }

    fn wrapped<A, K, T, E, Fut>(
        self,
        key: impl Fn(&A) -> K + Send + Sync + 'static,
        fingerprint: impl Fn(&A) -> Result<Fingerprint, InvalidInput> + Send + Sync + 'static,
        function: impl Fn(A, Execution) -> Fut + Send + Sync + 'static,
    ) -> Function<A, T, E, C>
    where
        K: AsRef<str>,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        Function {
            operation: self,
            key: Arc::new(move |args| IdempotencyKey::new(key(args))),
            scope: None,
            fingerprint: Arc::new(fingerprint),
            judge: Arc::new(|_| Effect::Unknown),
            function: Arc::new(move |args, execution| Box::pin(function(args, execution))),
        }
    }
}

impl<A, T, E, C> Function<A, T, E, C> {
    /// Whose key it is, told by the arguments: see [`Call::scope`](super::Call::scope).
    pub fn scope<S: Into<String>>(self, scope: impl Fn(&A) -> S + Send + Sync + 'static) -> Self {
        Self {
            scope: Some(Arc::new(move |args| scope(args).into())),
            ..self
        }
    }

    /// What an error of the function says about its effect: by default that it is unknown. See
    /// [`Call::run_judged`](super::Call::run_judged).
    pub fn judge(self, judge: impl Fn(&E) -> Effect + Send + Sync + 'static) -> Self {
        Self {
            judge: Arc::new(judge),
            ..self
        }
    }

    /// The operation, for [`drain`](Operation::drain) and the store.
    pub fn operation(&self) -> &Operation<C> {
        &self.operation
    }

    /// Runs the function, unless it has run with this key, and gives its value.
    ///
    /// # Errors
    ///
    /// As [`Call::run`](super::Call::run).
    ///
    /// # Cancellation
    ///
    /// As [`Call::run`](super::Call::run).
    ///
    /// # Panics
    ///
    /// As [`Call::run`](super::Call::run). What tells key, scope and fingerprint should not panic:
    /// nothing is claimed then, and the panic is the caller's.
    pub fn call(
        &self,
        args: A,
    ) -> impl Future<Output = Result<Done<T>, RunError<E>>> + Send + use<A, T, E, C>
    where
        C: Codec<T>,
        A: Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let this = self.clone();
        async move {
            let scope = this.scope.as_ref().map(|scope| scope(&args));
            let fingerprint = (this.fingerprint)(&args);
            let call = Call::new(this.operation, (this.key)(&args));
            let call = call
                .scope(scope.unwrap_or_default())
                .compared_by(fingerprint);
            let (judge, function) = (this.judge, this.function);
            call.run_judged(
                move |execution| function(args, execution),
                move |error| judge(error),
            )
            .await
        }
    }
}

impl<A, T, E, C> Clone for Function<A, T, E, C> {
    fn clone(&self) -> Self {
        Self {
            operation: self.operation.clone(),
            key: Arc::clone(&self.key),
            scope: self.scope.clone(),
            fingerprint: Arc::clone(&self.fingerprint),
            judge: Arc::clone(&self.judge),
            function: Arc::clone(&self.function),
        }
    }
}

impl<A, T, E, C> fmt::Debug for Function<A, T, E, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("operation", &self.operation)
            .finish_non_exhaustive()
    }
}
