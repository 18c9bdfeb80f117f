//! An execution that holds its key: run it, keep its lease alive, record how it ended.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::AssertUnwindSafe,
    pin::pin,
    time::Duration,
};

use futures::FutureExt;
use tokio::{
    runtime::Handle,
    task::AbortHandle,
    time::{sleep, timeout_at},
};

use crate::{
    engine::{
        core::{Engine, deadline},
        execution::Execution,
        work::Counted,
    },
    key::StoreKey,
    record::{Claimed, Payload, State},
    store::{StoreError, jittered},
    telemetry,
};

/// What a panic carried.
type Panic = Box<dyn Any + Send>;

/// How the work ended.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    /// It is done; this is the answer.
    Completed(Payload),
    /// Nothing was done.
    Rejected,
    /// Its effect is unknown.
    Failed,
    /// Nobody could tell what an earlier attempt did, and nothing was done now: the key is
    /// abandoned again.
    Unresolved,
}

/// What became of the record.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It says how the work ended.
    Recorded,
    /// The key counts as completed, but the store had no room for the answer.
    NotReplayable,
    /// The store could not be told within the budget, and is told in the background.
    Unrecorded,
    /// Another execution had taken the key over; where that one is completed, this is its answer.
    Superseded(Option<Payload>),
}

/// A claimed key. Dropped without [`end`](Self::end), it is abandoned: the lease is renewed no
/// more.
pub(crate) struct Running {
    execution: Execution,
    renewal: Option<Renewal>,
    _counted: Counted,
}

struct Renewal(AbortHandle);

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Running {
    pub(super) fn new(engine: Engine, key: StoreKey, claimed: Claimed) -> Self {
        let counted = engine.work().start();
        telemetry::claimed(&key, &claimed);
        Self {
            execution: Execution::new(engine, key, claimed),
            renewal: None,
            _counted: counted,
        }
    }

    pub(crate) fn execution(&self) -> &Execution {
        &self.execution
    }

    /// Runs the work, and catches its panic. The lease is renewed from the moment when the work
    /// does not end at once, by a task of its own: work that keeps its thread busy keeps its
    /// lease, too.
    pub(crate) async fn watch<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Panic> {
        let mut work = pin!(AssertUnwindSafe(work).catch_unwind());
        poll_fn(|cx| {
            let polled = work.as_mut().poll(cx);
            if polled.is_pending() {
                self.keep_renewing();
            }
            polled
        })
        .await
    }

    fn keep_renewing(&mut self) {
        if self.renewal.is_none() {
            let task = Handle::current().spawn(keep_renewing(self.execution.clone()));
            self.renewal = Some(Renewal(task.abort_handle()));
        }
    }

    /// Records how the work ended: within the budget, or else in the background (P3).
    pub(crate) async fn end(mut self, ending: Ending) -> Ended {
        let budget = deadline(self.execution.engine().options().record_timeout);
        let ending = match self.record(ending).await {
            Ok(ended) => return ended,
            Err(ending) => ending,
        };
        // Until it is recorded, the lease must not end.
        self.keep_renewing();
        let engine = self.execution.engine().clone();
        let mut recording = Box::pin(self.keep_recording(ending));
        match timeout_at(budget, &mut recording).await {
            Ok(ended) => ended,
            Err(_) => {
                match engine.work().detach(engine.options().max_detached) {
                    Some(counted) => {
                        let span = telemetry::Span::current();
                        Handle::current().spawn(span.instrument(async move {
                            recording.await;
                            drop(counted);
                        }));
                    }
                    None => telemetry::detached_limit(),
                }
                Ended::Unrecorded
            }
        }
    }

    /// Gives the claim back without having run anything.
    pub(super) async fn give_back(self) {
        self.end(Ending::Rejected).await;
    }

    async fn keep_recording(self, mut ending: Ending) -> Ended {
        let mut pause = Duration::from_millis(50);
        loop {
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(Duration::from_secs(2));
            match self.record(ending).await {
                Ok(ended) => return ended,
                Err(again) => ending = again,
            }
        }
    }

    /// Tries once. Gives the ending back where it is worth another try.
    async fn record(&self, ending: Ending) -> Result<Ended, Ending> {
        let error = match self.tell(&ending).await {
            Ok(()) => return Ok(ended(&ending)),
            Err(error) => error,
        };
        let key = self.execution.store_key();
        match (error, ending) {
            // Nothing is there to be given up.
            (StoreError::Gone, Ending::Unresolved) => Ok(Ended::Recorded),
            (StoreError::Superseded, _) => {
                self.execution.supersede();
                Ok(Ended::Superseded(self.recorded_by_another().await))
            }
            (error @ StoreError::Full { .. }, Ending::Completed(payload))
                if payload.is_replayable() =>
            {
                telemetry::store_error(key, "complete", &error);
                // Without its answer the record still keeps the operation from running again.
                let bare = Ending::Completed(Payload::not_replayable(payload.code));
                match self.tell(&bare).await {
                    Ok(()) => Ok(ended(&bare)),
                    Err(_) => Err(bare),
                }
            }
            (error @ (StoreError::Unavailable { .. } | StoreError::Full { .. }), ending) => {
                telemetry::store_error(key, "record", &error);
                Err(ending)
            }
            // What cannot be read now cannot be written over later either.
            (error @ (StoreError::Corrupt { .. } | StoreError::Gone), _) => {
                telemetry::store_error(key, "record", &error);
                Ok(Ended::Unrecorded)
            }
        }
    }

    async fn tell(&self, ending: &Ending) -> Result<(), StoreError> {
        let engine = self.execution.engine();
        let (ttl, store) = (engine.options().ttl, engine.store());
        let (key, lease) = (self.execution.store_key(), self.execution.lease());
        match ending {
            Ending::Completed(payload) => {
                engine.ask(store.complete(key, lease, payload, ttl)).await
            }
            Ending::Rejected => engine.ask(store.release(key, lease, ttl)).await,
            Ending::Failed => engine.ask(store.fail(key, lease, ttl)).await,
            Ending::Unresolved => {
                let abandon = store.renew(key, lease, Duration::ZERO, ttl, None);
                engine.ask(abandon).await
            }
        }
    }

    async fn recorded_by_another(&self) -> Option<Payload> {
        let engine = self.execution.engine();
        let key = self.execution.store_key();
        let found = engine.ask(engine.store().get(key)).await.ok()??;
        let same = found.record.fingerprint == self.execution.lease().fingerprint;
        (same && found.record.state == State::Completed)
            .then_some(found.record.payload)
            .flatten()
    }
}

fn ended(ending: &Ending) -> Ended {
    match ending {
        Ending::Completed(payload) if !payload.is_replayable() => Ended::NotReplayable,
        Ending::Completed(_) | Ending::Rejected | Ending::Failed | Ending::Unresolved => {
            Ended::Recorded
        }
    }
}

/// Renews the lease each third of it, and sooner again after an error.
async fn keep_renewing(execution: Execution) {
    let lease = execution.engine().options().lease;
    let (regular, hurried) = (
        (lease / 3).max(SHORTEST_PAUSE),
        (lease / 10).clamp(SHORTEST_PAUSE, Duration::from_secs(1)),
    );
    let mut pause = regular;
    loop {
        sleep(pause).await;
        pause = match execution.renew(None).await {
            Ok(()) => regular,
            Err(StoreError::Superseded) => return,
            Err(error) => {
                telemetry::store_error(execution.store_key(), "renew", &error);
                hurried
            }
        };
    }
}

/// Keeps a tiny lease (U23) from turning its renewal into a busy loop.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
