//! A value that is committed in the work's own transaction: [`Transaction::commit_value`].

use std::{any::Any, error::Error, sync::Arc};

use super::{
    codec::{self, Codec},
    operation::Operation,
};
use crate::{
    engine::{Answer, CommitError, Front, Transaction},
    record::Payload,
    store::DatabaseTransaction,
};

/// How an operation records the values of one of its calls.
struct Encode(Box<EncodeFn>);

/// `None` for a value of another type.
type EncodeFn = dyn Fn(&dyn Any) -> Option<Encoded> + Send + Sync;

type Encoded = Result<Payload, Box<dyn Error + Send + Sync>>;

/// What `commit_value` finds in the execution.
pub(super) fn front<T: 'static, C: Codec<T>>(operation: &Operation<C>) -> Front {
    let operation = operation.clone();
    Arc::new(Encode(Box::new(move |value| {
        let value: &T = value.downcast_ref()?;
        let limit = operation.limit_of_results();
        Some(codec::encode(operation.codec(), value, limit))
    })))
}

impl<T: DatabaseTransaction> Transaction<T> {
    /// For the work of an [`Operation`](crate::Operation): completes the record with this value and
    /// commits: the work's rows, the record and the value, or none of them (P7). Gives the value
    /// back, for the work to return.
    ///
    /// The value is of the type that the work returns. The caller gets it as it was recorded, and
    /// so does every later call, whatever the work does afterwards.
    ///
    /// # Errors
    ///
    /// [`CommitError`]. After any but [`Unknown`](CommitError::Unknown) it is certain that nothing
    /// was written. [`CommitError::Answer`] also for a value of another type, or over the
    /// [limit](crate::Operation::result_limit), or that the codec does not take.
    ///
    /// # Cancellation
    ///
    /// As [`commit`](Self::commit).
    pub async fn commit_value<V: Send + 'static>(self, value: V) -> Result<V, CommitError> {
        let front = self.execution().front().cloned();
        let encode = front.as_deref().and_then(|front| front.downcast_ref());
        let Encode(encode) = encode.ok_or_else(|| refused("this is no operation's execution"))?;
        let encoded = encode(&value);
        let payload =
            encoded.ok_or_else(|| refused("it is not of the type that the work returns"))?;
        let payload = payload.map_err(CommitError::Answer)?;
        if !payload.is_replayable() {
            return Err(refused("it is larger than the limit"));
        }
        let kept = Box::new(());
        self.commit_answer(Answer { payload, kept }).await?;
        Ok(value)
    }
}

fn refused(why: &'static str) -> CommitError {
    CommitError::Answer(why.into())
}
