//! An execution that holds its key: run it, keep its lease alive, record how it ended.

use std::{
    any::Any,
    future::Future,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::CatchUnwind};
use pin_project_lite::pin_project;
use tokio::{
    runtime::Handle,
    sync::OwnedMutexGuard,
    task::AbortHandle,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    engine::{
        core::{Engine, deadline},
        execution::Execution,
        gauge::Permit,
        transaction::Answer,
        within::within,
        work::Counted,
    },
    key::StoreKey,
    record::{Claimed, Payload},
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
    /// It ran, and did nothing.
    Rejected,
    /// It ran, and its effect is unknown.
    Failed,
    /// It did not run.
    NotRun,
}

/// What became of the record.
pub(crate) enum Ended {
    /// It says how the work ended.
    Recorded,
    /// The key counts as completed, but the store had no room for the answer.
    NotReplayable,
    /// The store could not be told within the budget, and is told in the background; or it cannot
    /// read its record and is told no more.
    Unrecorded,
    /// Another execution had taken the key over; where that one is completed, this is its answer.
    Superseded(Option<Payload>),
    /// The handler's transaction had been committed, though nobody heard of it: this is its answer.
    Committed(Answer),
}

/// A claimed key. Dropped without [`end`](Self::end), it is abandoned: the lease is renewed no
/// more.
pub(crate) struct Running {
    execution: Execution,
    renewal: Option<Renewal>,
    _counted: Counted,
    /// Where this execution waited for another one, those that still wait come after it.
    _turn: Option<OwnedMutexGuard<()>>,
}

struct Renewal(AbortHandle);

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Running {
    pub(super) fn new(
        engine: Engine,
        key: StoreKey,
        claimed: Claimed,
        counted: Counted,
        turn: Option<OwnedMutexGuard<()>>,
    ) -> Self {
        telemetry::claimed(&key, &claimed);
        Self {
            execution: Execution::new(engine, key, claimed),
            renewal: None,
            _counted: counted,
            _turn: turn,
        }
    }

    pub(crate) fn execution(&self) -> &Execution {
        &self.execution
    }

    /// Runs the work, and catches its panic. The lease is renewed from the moment when the work
    /// does not end at once, by a task of its own: on a runtime with several threads, work that
    /// keeps its thread busy from then on keeps its lease, too.
    pub(crate) fn watch<F: Future>(&mut self, work: F) -> Watch<'_, F> {
        Watch {
            running: self,
            work: AssertUnwindSafe(work).catch_unwind(),
        }
    }

    fn keep_renewing(&mut self, first: First) {
        if self.renewal.is_none() {
            let task = Handle::current().spawn(keep_renewing(self.execution.clone(), first));
            self.renewal = Some(Renewal(task.abort_handle()));
        }
    }

    /// How the work ended, seen over all attempts: one that did nothing does not undo what an
    /// earlier one, or a step before a checkpoint, may have done.
    pub(crate) fn settled(&self, ending: Ending) -> Ending {
        let alone = self.execution.attempt() == 1 && self.execution.checkpoint().is_none();
        match ending {
            Ending::Rejected if !alone || self.execution.is_committing() => Ending::Failed,
            ending => ending,
        }
    }

    /// Records how the work ended: within the budget, or else in the background (P3).
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` has room for each argument twice"
    )]
    pub(crate) fn end(mut self, mut ending: Ending) -> impl Future<Output = Ended> {
        async move {
            let options = self.execution.engine().options();
            let limit = options.record_timeout;
            // A record that hangs for its whole deadline must not outlast the lease. Otherwise
            // nothing is renewed beside it: a renewal would come after the end, and find nothing to
            // renew.
            match options.store_timeout.saturating_mul(2) < options.lease {
                true => self.renewal = None,
                false => self.keep_renewing(First::Soon),
            }
            let budget = {
                let mut recording = pin!(within(limit, self.record(&mut ending)));
                if let Some(Some(ended)) = recording.as_mut().await {
                    return ended;
                }
                let until = recording.deadline();
                until.unwrap_or_else(|| deadline(limit))
            };
            Box::pin(self.end_later(ending, budget)).await
        }
    }

    /// Tries again until it is recorded: until the budget is over for the caller, and then in the
    /// background.
    async fn end_later(mut self, ending: Ending, budget: Instant) -> Ended {
        // Half of the lease may be over by now, after a third of it was over before.
        self.keep_renewing(First::Soon);
        let engine = self.execution.engine().clone();
        let mut recording = Box::pin(self.keep_recording(ending));
        if let Ok(ended) = timeout_at(budget, &mut recording).await {
            return ended;
        }
        let Some(counted) = engine.work().detach(engine.options().max_detached) else {
            // Whoever waits for the answer waits on, rather than that the record is lost.
            return recording.await;
        };
        let span = telemetry::Span::current();
        Handle::current().spawn(span.instrument(async move {
            recording.await;
            drop(counted);
        }));
        Ended::Unrecorded
    }

    async fn keep_recording(self, mut ending: Ending) -> Ended {
        let mut held = Permit::new(self.execution.engine().work().bytes());
        if let Ending::Completed(payload) = &ending {
            held.add(payload.bytes.len());
        }
        let mut pause = Duration::from_millis(50);
        loop {
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(Duration::from_secs(2));
            if let Some(ended) = self.record(&mut ending).await {
                return ended;
            }
        }
    }

    /// Tries once. `None` where it is worth another try.
    async fn record(&self, ending: &mut Ending) -> Option<Ended> {
        let mut told = self.tell(ending).await;
        if let (Err(error @ StoreError::Full { .. }), Ending::Completed(payload)) =
            (&told, &*ending)
            && payload.is_replayable()
        {
            telemetry::store_error(self.execution.store_key(), "complete", error);
            // Without its answer the record still keeps the operation from running again.
            *ending = Ending::Completed(Payload::not_replayable(payload.code));
            told = self.tell(ending).await;
        }
        let error = match told {
            Ok(()) => {
                return Some(match ending {
                    Ending::Completed(payload) if !payload.is_replayable() => Ended::NotReplayable,
                    _ => Ended::Recorded,
                });
            }
            // It did not run, and whoever has the key now does not care.
            Err(StoreError::Superseded) if matches!(ending, Ending::NotRun) => {
                return Some(Ended::Recorded);
            }
            Err(StoreError::Superseded) => {
                let recorded = self.recorded_by_another().await;
                let own = recorded
                    .as_ref()
                    .and_then(|it| self.execution.was_committed(it));
                if let Some(answer) = own {
                    return Some(Ended::Committed(answer));
                }
                self.execution.supersede();
                return Some(Ended::Superseded(recorded));
            }
            Err(error) => error,
        };
        telemetry::store_error(self.execution.store_key(), "record", &error);
        match error {
            StoreError::Unavailable { .. } | StoreError::Full { .. } => None,
            // What cannot be read now cannot be written over later either.
            StoreError::Corrupt { .. } | StoreError::Gone | StoreError::Superseded => {
                Some(Ended::Unrecorded)
            }
        }
    }

    async fn tell(&self, ending: &Ending) -> Result<(), StoreError> {
        let engine = self.execution.engine();
        let (ttl, store) = (engine.options().ttl, engine.store());
        let (key, lease) = (self.execution.store_key(), self.execution.lease());
        let call = match ending {
            Ending::Completed(payload) => store.complete(key, lease, payload, ttl),
            Ending::Rejected => store.release(key, lease, ttl),
            Ending::Failed => store.fail(key, lease, ttl),
            Ending::NotRun => store.give_back(key, lease, ttl),
        };
        engine.ask(call).await
    }

    async fn recorded_by_another(&self) -> Option<Payload> {
        let engine = self.execution.engine();
        let key = self.execution.store_key();
        let found = engine.ask(engine.store().get(key)).await.ok()??;
        found.answer_for(&self.execution.lease().fingerprint)
    }
}

pin_project! {
    /// Work whose lease is kept alive. Written out, since an `async fn` would keep the work twice: as
    /// it was given, and as it is polled.
    #[must_use = "futures do nothing unless polled"]
    pub(crate) struct Watch<'a, F> {
        running: &'a mut Running,
        #[pin]
        work: CatchUnwind<AssertUnwindSafe<F>>,
    }
}

impl<F: Future> Future for Watch<'_, F> {
    type Output = Result<F::Output, Panic>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = this.running.execution.within(|| this.work.poll(cx));
        if polled.is_pending() {
            this.running.keep_renewing(First::Regular);
        }
        polled
    }
}

/// When the lease is renewed first.
enum First {
    /// After a third of it: it has just begun.
    Regular,
    /// After a tenth of it: nobody knows how much of it is left.
    Soon,
}

/// Renews the lease each third of it, and sooner again after an error.
async fn keep_renewing(execution: Execution, first: First) {
    let options = execution.engine().options();
    let regular = (options.lease / 3).max(SHORTEST_PAUSE);
    let hurried = (options.lease / 10).clamp(SHORTEST_PAUSE, Duration::from_secs(1));
    // A renewal that hangs must leave time for another one.
    let limit = options.store_timeout.min(regular);
    let mut gone = false;
    let mut pause = match first {
        First::Regular => regular,
        First::Soon => hurried,
    };
    loop {
        sleep(pause).await;
        pause = match execution.renew(None, limit).await {
            Ok(()) => regular,
            Err(StoreError::Superseded) => return,
            // The record is in the hands of the handler's transaction.
            Err(_) if execution.is_committing() => regular,
            // The store lost the record. The answer will make it anew.
            Err(StoreError::Gone) if gone => regular,
            Err(error) => {
                gone = matches!(error, StoreError::Gone);
                telemetry::store_error(execution.store_key(), "renew", &error);
                if gone { regular } else { hurried }
            }
        };
    }
}

/// Keeps a tiny lease (U23) from turning its renewal into a busy loop.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
