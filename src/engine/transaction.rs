//! Completion inside the handler's own transaction (P7): [`Transaction`] and [`CommitError`].

use std::{
    any::Any,
    error::Error,
    fmt,
    ops::{Deref, DerefMut},
    sync::atomic::Ordering,
};

use crate::{
    engine::{
        execution::Execution,
        running::{Ending, Running},
    },
    record::Payload,
    store::{DatabaseTransaction, NotCommitted, NotCompleted, StoreError},
    telemetry,
};

/// A transaction that ends together with the record of its [`Execution`], by
/// [`commit`](Self::commit): the handler's rows, the record and the answer are written at once or
/// not at all (P7).
///
/// It stands for its connection: run statements on `&mut *transaction`. Made by
/// [`Execution::transaction`], which has an example.
///
/// One that is dropped is rolled back. Where the handler drops one, or leaves it to a task that has
/// not ended it, and answers as if all were well, it forgot to commit: its answer is not sent, the
/// caller gets a 500 ([`Reason::NotCommitted`](crate::Reason::NotCommitted)), and the key counts as
/// failed. So say [`rollback`](Self::rollback) where nothing is to be written on purpose. A handler
/// that answers with an error may just drop it. Once the handler has answered, nothing can be
/// committed any more but what is being committed then.
#[must_use = "a transaction that is dropped is rolled back"]
pub struct Transaction<T> {
    inner: T,
    open: Open,
}

/// Counts a transaction while it is open, and notes one that nobody ended.
struct Open {
    execution: Execution,
    ended: bool,
}

impl Open {
    fn new(execution: Execution) -> Self {
        execution.open().fetch_add(1, Ordering::AcqRel);
        Self {
            execution,
            ended: false,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.ended {
            let mut fate = self.execution.fate();
            fate.get_or_insert_with(|| Box::new(Fate::LeftOpen));
        }
        // After the note, so that the handler's end sees one or the other.
        self.execution.open().fetch_sub(1, Ordering::AcqRel);
    }
}

/// Beside the count of open transactions: the handler has ended. What is begun from then on is not
/// committed: the store takes a second answer of one owner as a repetition, so that the caller could
/// be told another one than was committed.
const OVER: usize = 1 << (usize::BITS - 1);

/// What became of an execution's transactions.
pub(crate) enum Fate {
    /// One was dropped and nothing else was said.
    LeftOpen,
    /// The record is being completed, or nobody knows whether this was committed.
    Unsure(Answer),
    /// This was committed: it is the answer.
    Committed(Answer),
}

/// An answer that is written in a transaction: as it is recorded, and as its front wants it back.
pub(crate) struct Answer {
    pub(crate) payload: Payload,
    pub(crate) kept: Box<dyn Any + Send>,
}

impl Execution {
    /// Takes a transaction of the handler's in, so that its rows are committed together with the
    /// record (P7).
    ///
    /// Begin it as late as you can and end it soon: a transaction holds a connection, and its rows.
    /// Until its end nothing is locked but what your statements lock; the record is written by
    /// [`Transaction::commit`].
    ///
    #[cfg_attr(
        all(feature = "postgres", feature = "axum"),
        doc = "```
use axum::{Extension, http::StatusCode, response::{IntoResponse, Response}};
use sqlx::PgPool;
use tower_idempotency::{Committed, Execution};

# struct Failure;
# impl From<sqlx::Error> for Failure { fn from(_: sqlx::Error) -> Self { Self } }
# impl From<tower_idempotency::CommitError> for Failure {
#     fn from(_: tower_idempotency::CommitError) -> Self { Self }
# }
async fn transfer(
    Extension(pool): Extension<PgPool>,
    execution: Execution,
) -> Result<Committed, Failure> {
    let mut transaction = execution.transaction(pool.begin().await?)?;
    sqlx::query(\"INSERT INTO transfers (amount) VALUES (7)\")
        .execute(&mut *transaction)
        .await?;
    let answer = (StatusCode::CREATED, \"7\").into_response();
    Ok(transaction.commit(answer).await?)
}
```"
    )]
    ///
    /// A handler that returns [`Committed`](crate::Committed) cannot forget to commit.
    ///
    /// It has to be a whole transaction, which only [`Transaction`] ends: no savepoint, whose commit
    /// is refused, and neither `COMMIT` nor `ROLLBACK` among the statements. Savepoints within it are
    /// the handler's own matter. In PostgreSQL a statement that failed has ended the transaction, also
    /// where the handler goes on: its commit is refused.
    ///
    /// # Isolation
    ///
    /// PostgreSQL's default, `READ COMMITTED`, is enough: the commit looks at the record as it is then.
    /// Under `REPEATABLE READ` and `SERIALIZABLE` it is [refused](CommitError::Refused) where the
    /// record was renewed, taken over or removed since the transaction's first statement. A
    /// transaction that lasts for a third of the lease meets a renewal; set a longer lease.
    ///
    /// In SQLite a transaction that reads before it writes should begin by `BEGIN IMMEDIATE`
    /// (`begin_with`). Otherwise it can neither write nor be committed once anybody has written since
    /// it read: another handler, or a renewal of its own record.
    ///
    /// After a refusal nothing is written, and the handler may begin another transaction.
    ///
    /// # Locks
    ///
    /// PostgreSQL locks the record's row for the commit; SQLite locks the whole file from the first
    /// write on. Meanwhile a duplicate is told of the conflict at once, as ever. Renewals wait in vain,
    /// which is logged unless the commit has begun, and the lease may end. Whoever would take over then
    /// waits, too, for the answer that is committed, or else to run; or it gets a 503. In SQLite
    /// all other claims wait as well, and so does
    /// [`save_checkpoint`](Self::save_checkpoint): save before the first write.
    ///
    /// A process that is frozen within its transaction goes on holding its locks. PostgreSQL ends one
    /// that is idle for too long where `idle_in_transaction_session_timeout` is set.
    ///
    /// # Pools
    ///
    /// A transaction has a connection of its own, while the store needs others, to claim and to renew.
    /// Where the two share a pool, give it more connections than handlers run at once, or let the
    /// store have its own. With too few, claims get a 503 and leases end; what has begun can be
    /// committed all the same.
    ///
    /// # Errors
    ///
    /// [`CommitError::OtherStore`] where the records are kept elsewhere: the transaction is of
    /// another kind of database, or the store has none. Whether it is the same database is seen by
    /// [`Transaction::commit`], which then finds no record there, and commits nothing.
    pub fn transaction<T: DatabaseTransaction>(
        &self,
        transaction: T,
    ) -> Result<Transaction<T>, CommitError> {
        store_of::<T>(self)?;
        Ok(Transaction {
            inner: transaction,
            open: Open::new(self.clone()),
        })
    }
}

fn store_of<T: DatabaseTransaction>(execution: &Execution) -> Result<&T::Store, CommitError> {
    let store = execution.engine().store().transactional();
    store
        .and_then(|store| store.downcast_ref())
        .ok_or(CommitError::OtherStore)
}

impl<T: DatabaseTransaction> Transaction<T> {
    /// Writes nothing, on purpose: the handler goes on and answers as it likes.
    ///
    /// # Errors
    ///
    /// The database's. Nothing is written all the same.
    ///
    /// # Cancellation
    ///
    /// Nor is anything where this is dropped.
    pub async fn rollback(self) -> Result<(), Box<dyn Error + Send + Sync>> {
        let Self { inner, mut open } = self;
        open.ended = true;
        inner.rollback().await
    }

    pub(crate) fn execution(&self) -> &Execution {
        &self.open.execution
    }

    /// Completes the record and commits, within the limits of the engine.
    pub(crate) async fn commit_answer(self, answer: Answer) -> Result<(), CommitError> {
        let Self { inner, mut open } = self;
        let result = commit(inner, &open.execution, answer).await;
        // Whoever goes on after an error and answers as if all were well is told so.
        open.ended = result.is_ok();
        result
    }
}

async fn commit<T: DatabaseTransaction>(
    mut inner: T,
    execution: &Execution,
    answer: Answer,
) -> Result<(), CommitError> {
    let engine = execution.engine();
    let options = engine.options();
    let store = store_of::<T>(execution)?;
    let (key, lease) = (execution.store_key(), execution.lease());
    if matches!(execution.fate().as_deref(), Some(Fate::Committed(_))) {
        return Err(CommitError::AlreadyCommitted);
    }
    if execution.open().load(Ordering::Acquire) & OVER != 0 {
        return Err(CommitError::Gone);
    }

    let mut refused = None;
    let completing = engine.ask(async {
        let completed = inner.complete(store, key, lease, &answer.payload, options.ttl);
        completed.await.map_err(|error| match error {
            NotCompleted::Store(error) => error,
            reason => {
                refused = Some(reason);
                StoreError::Gone
            }
        })
    });
    if let Err(error) = completing.await {
        let rolled_back = engine.ask(async {
            let rolled_back = inner.rollback().await;
            rolled_back.map_err(|error| StoreError::unavailable("idempotency", error))
        });
        // Where it cannot be said, the database finds out by itself.
        let _ = rolled_back.await;
        return Err(match refused {
            Some(NotCompleted::Superseded) => {
                execution.supersede();
                CommitError::Superseded
            }
            Some(NotCompleted::Completed) => CommitError::AlreadyCommitted,
            Some(NotCompleted::Failed | NotCompleted::Gone) => CommitError::Gone,
            Some(NotCompleted::Conflict(source)) => CommitError::Refused(source),
            Some(NotCompleted::Store(_)) | None => {
                telemetry::store_error(key, "complete", &error);
                CommitError::Store(error)
            }
        });
    }

    let ours = answer.payload.bytes.clone();
    // From here on a cancelled call leaves it open whether the transaction was committed.
    *execution.fate() = Some(Box::new(Fate::Unsure(answer)));
    let mut refused = None;
    let committing = engine.ask_within(options.record_timeout, async {
        let committed = inner.commit().await;
        committed.map_err(|error| {
            let NotCommitted { certain, source } = error;
            match certain {
                true => {
                    refused = Some(source);
                    StoreError::Gone
                }
                false => StoreError::unavailable("idempotency", source),
            }
        })
    });
    let committed = committing.await;
    let mut fate = execution.fate();
    match (committed, refused) {
        (Ok(()), _) => {
            if let Some(Fate::Unsure(answer)) = fate.take().map(|fate| *fate) {
                *fate = Some(Box::new(Fate::Committed(answer)));
            }
            drop(fate);
            T::committed(store, key);
            Ok(())
        }
        (Err(_), Some(source)) => {
            // Another transaction of this execution may be on its way by now.
            let is_ours = |fate: &Fate| match fate {
                Fate::Unsure(answer) => answer.payload.bytes.as_ptr() == ours.as_ptr(),
                Fate::LeftOpen | Fate::Committed(_) => false,
            };
            if fate.as_deref().is_some_and(is_ours) {
                *fate = None;
            }
            Err(CommitError::Refused(source))
        }
        (Err(error), None) => {
            telemetry::store_error(key, "commit", &error);
            Err(CommitError::Unknown(error))
        }
    }
}

impl Running {
    /// The answer that was committed, if one was: the execution is over, and nothing is left to
    /// record.
    pub(crate) fn committed(&self) -> Option<Answer> {
        let mut fate = self.execution().fate();
        match fate.take().map(|fate| *fate) {
            Some(Fate::Committed(answer)) => Some(answer),
            other => {
                *fate = other.map(Box::new);
                None
            }
        }
    }

    /// Whether the handler, which has ended, answers as if all were well, and has not committed its
    /// transaction. Its answer is then not to be sent.
    pub(crate) fn forgot_to_commit(&self, ending: &Ending) -> bool {
        let open = self.execution().open().fetch_or(OVER, Ordering::AcqRel);
        let forgot = matches!(ending, Ending::Completed(_))
            && (open != 0 || self.execution().fate().is_some());
        if forgot {
            telemetry::not_committed(self.execution().store_key());
        }
        forgot
    }
}

impl Execution {
    /// Whether a renewal has nothing to do, or would only wait for the transaction's end.
    pub(super) fn is_committing(&self) -> bool {
        matches!(
            self.fate().as_deref(),
            Some(Fate::Unsure(_) | Fate::Committed(_))
        )
    }

    /// The answer of a commit that had not ended when the handler had, or of which nobody heard
    /// whether it succeeded, once the store shows that it did.
    pub(crate) fn was_committed(&self, recorded: &Payload) -> Option<Answer> {
        let mut fate = self.fate();
        match fate.take().map(|fate| *fate) {
            Some(Fate::Unsure(answer) | Fate::Committed(answer)) if answer.payload == *recorded => {
                Some(answer)
            }
            other => {
                *fate = other.map(Box::new);
                None
            }
        }
    }
}

impl<T: DatabaseTransaction> Deref for Transaction<T> {
    type Target = T::Connection;

    fn deref(&self) -> &T::Connection {
        self.inner.connection_ref()
    }
}

impl<T: DatabaseTransaction> DerefMut for Transaction<T> {
    fn deref_mut(&mut self) -> &mut T::Connection {
        self.inner.connection()
    }
}

impl<T> fmt::Debug for Transaction<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("execution", &self.open.execution)
            .finish_non_exhaustive()
    }
}

/// Why a transaction was not committed. After any but [`Unknown`](Self::Unknown) it is certain that
/// nothing was written.
///
/// Return it as an error, as a 500 or 503: the layer then records a failure, and a retry runs the
/// handler again. Where the record turns out to be completed all the same, by this commit or by
/// another execution, the caller gets the recorded answer instead.
#[derive(Debug)]
#[non_exhaustive]
pub enum CommitError {
    /// The records are not kept in a database of this transaction's kind.
    OtherStore,
    /// The answer cannot be recorded: it is too large, or not a final one, or could not be read to
    /// its end.
    Answer(Box<dyn Error + Send + Sync>),
    /// Another execution has taken the key over: this one was silent beyond its lease (P6).
    Superseded,
    /// The record is not there, or not in progress: it expired, an operator removed it, the handler
    /// has answered before, or it is in another database.
    Gone,
    /// This execution has committed another transaction.
    AlreadyCommitted,
    /// The record could not be completed; also where a statement before had failed, or the transaction
    /// is a savepoint.
    Store(StoreError),
    /// The database refused to commit: a deferred constraint, or a serialisation failure, after which
    /// the handler may begin another transaction.
    Refused(Box<dyn Error + Send + Sync>),
    /// The connection was lost, or the database did not answer within
    /// [`record_timeout`](crate::IdempotencyLayer::record_timeout), after it was told to commit.
    /// The layer finds out: return this as an error.
    Unknown(StoreError),
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherStore => "the records are not kept in the database of this transaction",
            Self::Answer(_) => "the answer cannot be recorded",
            Self::Superseded => "another execution has taken the key over",
            Self::Gone => "the record of this execution is not there",
            Self::AlreadyCommitted => "this execution has committed a transaction already",
            Self::Store(_) => "the record could not be completed",
            Self::Refused(_) => "the database refused to commit",
            Self::Unknown(_) => "it is not known whether the transaction was committed",
        })
    }
}

impl Error for CommitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Answer(error) | Self::Refused(error) => Some(&**error),
            Self::Store(error) | Self::Unknown(error) => Some(error),
            Self::OtherStore | Self::Superseded | Self::Gone | Self::AlreadyCommitted => None,
        }
    }
}
