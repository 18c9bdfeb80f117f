//! The way of one call: claim, work, record, value.

use std::{panic::resume_unwind, sync::Arc};

use super::{
    codec::{self, Codec},
    commit,
    done::Done,
    error::{Effect, RunError},
    operation::Operation,
};
use crate::{
    engine::{Begin, Ended, Ending, Execution, Running, Stage, Taken},
    fingerprint::Fingerprint,
    key::StoreKey,
    record::Payload,
    telemetry::{self, Outcome, Reason},
};

/// One call on its way.
pub(super) struct Run<C> {
    pub(super) operation: Operation<C>,
    pub(super) key: StoreKey,
    pub(super) fingerprint: Fingerprint,
    pub(super) stage: Arc<Stage>,
}

impl<C> Run<C> {
    pub(super) async fn run<T: 'static, E, W, J, Fut>(
        self,
        work: W,
        judge: J,
    ) -> Result<Done<T>, RunError<E>>
    where
        C: Codec<T>,
        W: FnOnce(Execution) -> Fut,
        J: FnOnce(&E) -> Effect,
        Fut: Future<Output = Result<T, E>>,
    {
        let engine = self.operation.engine();
        let begin = engine.begin(&self.key, &self.fingerprint, &self.stage, || {});
        match begin.await {
            Begin::Run(running) => self.execute(running, work, judge).await,
            Begin::Replay(payload) => match self.read(&payload) {
                Ok(value) => Ok(self.done(value, Outcome::Replayed)),
                Err(error) => {
                    self.tell(Outcome::Refused(Reason::StoreUnavailable));
                    Err(RunError::Unreadable(error))
                }
            },
            Begin::Refuse(taken) => {
                self.tell(Outcome::Refused(taken.into()));
                Err(match taken {
                    Taken::InProgress => RunError::InProgress,
                    Taken::Mismatch => RunError::Mismatch,
                    Taken::OtherAlgorithm => RunError::OtherAlgorithm,
                    Taken::NotReplayable => RunError::NotReplayable,
                    Taken::Abandoned => RunError::Abandoned,
                })
            }
            Begin::StoreFailed(reason, error) => {
                self.tell(Outcome::Refused(reason));
                Err(RunError::Store(error))
            }
            Begin::Unprotected => unreachable!("an operation does not fail open"),
            // Nobody is there to read this.
            Begin::CallerLeft => Err(RunError::InProgress),
        }
    }

    /// Runs the work under its claim, and records how it ended.
    async fn execute<T: 'static, E, W, J, Fut>(
        &self,
        mut running: Running,
        work: W,
        judge: J,
    ) -> Result<Done<T>, RunError<E>>
    where
        C: Codec<T>,
        W: FnOnce(Execution) -> Fut,
        J: FnOnce(&E) -> Effect,
        Fut: Future<Output = Result<T, E>>,
    {
        let execution = running.execution().clone();
        // Elsewhere no transaction can begin, and nobody asks.
        if self.operation.store().transactional().is_some() {
            execution.answered_by(commit::front::<T, C>(&self.operation));
        }
        let ended = running.watch(async {
            match work(execution).await {
                Ok(value) => (Ending::Completed(self.encode(&value)), Ok(value)),
                Err(error) => match judge(&error) {
                    Effect::None => (Ending::Rejected, Err(error)),
                    Effect::Unknown => (Ending::Failed, Err(error)),
                },
            }
        });
        let ended = ended.await;
        if let Some(committed) = running.committed() {
            return self.committed(&committed.payload);
        }
        let (ending, answer) = match ended {
            Ok((ending, _)) if running.forgot_to_commit(&ending) => {
                (Ending::Failed, Err(RunError::NotCommitted))
            }
            Ok((ending, answer)) => (ending, answer.map_err(RunError::Work)),
            Err(panic) => {
                self.tell(Outcome::Failed);
                running.end(Ending::Failed).await;
                resume_unwind(panic);
            }
        };
        let ending = running.settled(ending);
        let outcome = match ending {
            Ending::Completed(_) => Outcome::Completed,
            Ending::Rejected => Outcome::Rejected,
            Ending::Failed | Ending::NotRun => Outcome::Failed,
        };
        let outcome = match running.end(ending).await {
            Ended::Recorded => outcome,
            Ended::NotReplayable => Outcome::NotReplayable,
            Ended::Unrecorded => Outcome::Unrecorded,
            Ended::Superseded(recorded) => {
                let recorded = recorded.filter(Payload::is_replayable);
                if let Some(Ok(value)) = recorded.map(|payload| self.read(&payload)) {
                    return Ok(self.done(value, Outcome::Replayed));
                }
                Outcome::Superseded
            }
            Ended::Committed(committed) => return self.committed(&committed.payload),
        };
        match answer {
            // Given, this value could differ from the one that is or will be recorded.
            Ok(_) if outcome == Outcome::Superseded => {
                self.tell(outcome);
                Err(RunError::Superseded)
            }
            Ok(value) => Ok(self.done(value, outcome)),
            Err(error) => {
                self.tell(outcome);
                Err(error)
            }
        }
    }

    /// Whatever came after the commit: this is what a later call gets, too.
    fn committed<T, E>(&self, payload: &Payload) -> Result<Done<T>, RunError<E>>
    where
        C: Codec<T>,
    {
        let value = self.read(payload).map_err(RunError::Unreadable);
        self.tell(Outcome::Completed);
        value.map(|value| Done::new(value, Outcome::Completed))
    }

    fn encode<T>(&self, value: &T) -> Payload
    where
        C: Codec<T>,
    {
        let limit = self.operation.limit_of_results();
        codec::encode(self.operation.codec(), value, limit).unwrap_or_else(|error| {
            telemetry::not_encoded(&self.key, &*error);
            codec::not_replayable()
        })
    }

    fn read<T>(&self, payload: &Payload) -> Result<T, Box<dyn std::error::Error + Send + Sync>>
    where
        C: Codec<T>,
    {
        codec::decode(self.operation.codec(), payload)
            .inspect_err(|error| telemetry::unreadable(&self.key, &**error))
    }

    fn done<T>(&self, value: T, outcome: Outcome) -> Done<T> {
        self.tell(outcome);
        Done::new(value, outcome)
    }

    fn tell(&self, outcome: Outcome) {
        telemetry::outcome(Some(&self.key), outcome);
    }
}
