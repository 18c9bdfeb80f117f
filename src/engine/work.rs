//! Counts what runs: for [`drain`](super::Engine::drain), and for the limits on waiting and
//! detached work (P9).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use crate::engine::gauge::Gauge;

/// How many claims whose answer did not arrive are given back at once. More of them wait for their
/// lease to end: an outage must not fill the process with attempts to tidy up after it.
const RELEASES: usize = 100;

#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Executions from the sending of their claim to their record, and every detached task.
    running: AtomicUsize,
    /// Tasks that no caller polls any more.
    detached: AtomicUsize,
    /// Requests that wait for another execution.
    waiting: AtomicUsize,
    /// Tasks that give back claims whose answer did not arrive.
    releasing: AtomicUsize,
    bytes: Arc<Gauge>,
    idle: Notify,
}

impl Work {
    /// Counts one execution, until the guard is dropped.
    pub(super) fn start(self: &Arc<Self>) -> Counted {
        self.running.fetch_add(1, Ordering::Relaxed);
        Counted {
            work: Arc::clone(self),
            kind: Kind::Running,
        }
    }

    /// Counts one detached task, unless there are `limit` of them.
    pub(super) fn detach(self: &Arc<Self>, limit: usize) -> Option<Counted> {
        take(&self.detached, limit).then(|| {
            self.running.fetch_add(1, Ordering::Relaxed);
            Counted {
                work: Arc::clone(self),
                kind: Kind::Detached,
            }
        })
    }

    /// Counts one waiting request, unless there are `limit` of them.
    pub(super) fn wait(self: &Arc<Self>, limit: usize) -> Option<Counted> {
        take(&self.waiting, limit).then(|| Counted {
            work: Arc::clone(self),
            kind: Kind::Waiting,
        })
    }

    /// Counts one task that gives a claim back, unless there are enough of them.
    pub(super) fn release(self: &Arc<Self>) -> Option<Counted> {
        take(&self.releasing, RELEASES).then(|| {
            self.running.fetch_add(1, Ordering::Relaxed);
            Counted {
                work: Arc::clone(self),
                kind: Kind::Releasing,
            }
        })
    }

    /// The bytes that executions hold.
    pub(crate) fn bytes(&self) -> &Arc<Gauge> {
        &self.bytes
    }

    pub(super) async fn idle(&self) {
        loop {
            let mut notified = std::pin::pin!(self.idle.notified());
            // Registered before the look, so that an end between the two is not missed.
            notified.as_mut().enable();
            if self.running.load(Ordering::Acquire) == 0 {
                return;
            }
            notified.await;
        }
    }
}

fn take(count: &AtomicUsize, limit: usize) -> bool {
    count
        .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| {
            (n < limit).then_some(n + 1)
        })
        .is_ok()
}

#[derive(Debug, PartialEq)]
enum Kind {
    Running,
    Detached,
    Waiting,
    Releasing,
}

/// One counted thing; dropping it ends the count.
#[derive(Debug)]
pub(super) struct Counted {
    work: Arc<Work>,
    kind: Kind,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let work = &self.work;
        match self.kind {
            Kind::Waiting => {
                work.waiting.fetch_sub(1, Ordering::AcqRel);
                return;
            }
            Kind::Detached => {
                work.detached.fetch_sub(1, Ordering::AcqRel);
            }
            Kind::Releasing => {
                work.releasing.fetch_sub(1, Ordering::AcqRel);
            }
            Kind::Running => {}
        }
        if work.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            work.idle.notify_waiters();
        }
    }
}
