//! The future that its caller polls, and that outlives its caller (P4).

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep_until},
};

use crate::{engine::work::Work, telemetry};

/// How far the work inside an [`Attached`] future has come.
///
/// Only one side at a time touches it: the work while it is polled, the caller while it is not.
#[derive(Debug, Default)]
pub(crate) struct Stage(AtomicU8);

/// Nothing is claimed, or nothing is claimed any more: a caller who leaves just cancels.
const FREE: u8 = 0;
/// A claim is on its way to the store.
const CLAIMING: u8 = 1;
/// The key is claimed, and its end is not recorded yet.
const CLAIMED: u8 = 2;
/// The caller left while a claim was on its way.
const LEFT: u8 = 3;

impl Stage {
    pub(super) fn claiming(&self) {
        self.0.store(CLAIMING, Ordering::Release);
    }

    /// The claim was granted. Says whether the caller is still there; if not, nothing may run.
    #[must_use]
    pub(super) fn granted(&self) -> bool {
        self.0.swap(CLAIMED, Ordering::AcqRel) != LEFT
    }

    /// The claim was not granted. Says whether the caller is still there.
    #[must_use]
    pub(super) fn not_granted(&self) -> bool {
        self.0.swap(FREE, Ordering::AcqRel) != LEFT
    }

    /// Notes that the caller left, and says whether the work must go on.
    fn leave(&self) -> bool {
        match self.0.load(Ordering::Acquire) {
            FREE => false,
            CLAIMING => {
                self.0.store(LEFT, Ordering::Release);
                true
            }
            _ => true,
        }
    }
}

/// Boxed work that is polled in place, and handed to the runtime if it is dropped between the
/// sending of its claim and its end.
///
/// Dropped while a claim is on its way, it goes on only to learn the claim's fate and to release
/// it: nothing ran yet, and nothing will.
pub(crate) struct Attached<T> {
    work: Option<BoxFuture<'static, T>>,
    on_drop: OnDrop<T>,
}

struct OnDrop<T> {
    stage: Arc<Stage>,
    counts: Arc<Work>,
    limit: usize,
    // A drop may happen outside the runtime, so its handle is taken at the call.
    runtime: Handle,
    span: telemetry::Span,
    // `Drop` cannot ask for `T: Send + 'static`; `new` can, and keeps the proof here.
    spawn: fn(&Self, BoxFuture<'static, T>),
}

/// For a timer that is never waited for. To read the clock would take longer than to make it.
static ANY_TIME: LazyLock<Instant> = LazyLock::new(Instant::now);

impl<T: Send + 'static> Attached<T> {
    /// # Panics
    ///
    /// Outside a tokio runtime, or in one without timers.
    pub(crate) fn new(
        work: BoxFuture<'static, T>,
        stage: Arc<Stage>,
        counts: &Arc<Work>,
        limit: usize,
    ) -> Self {
        // Without timers no lease is kept, and only slow work would show it: in the panic of a task
        // that nobody awaits, while another execution of its key may start (P1).
        drop(sleep_until(*ANY_TIME));
        Self {
            work: Some(work),
            on_drop: OnDrop {
                stage,
                counts: Arc::clone(counts),
                limit,
                runtime: Handle::current(),
                span: telemetry::Span::current(),
                spawn: OnDrop::spawn,
            },
        }
    }
}

impl<T: Send + 'static> OnDrop<T> {
    fn spawn(&self, work: BoxFuture<'static, T>) {
        let Some(counted) = self.counts.detach(self.limit) else {
            self.span.in_scope(telemetry::detached_limit);
            return;
        };
        self.runtime.spawn(self.span.clone().instrument(async move {
            drop(work.await);
            drop(counted);
        }));
    }
}

impl<T> Future for Attached<T> {
    type Output = T;

    /// # Panics
    ///
    /// When polled again after its end, or if the work panics.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // Taken out while it is polled: work that panicked is not to be polled by a runtime.
        let mut work = self.work.take().expect("not polled after its end");
        let polled = work.as_mut().poll(cx);
        if polled.is_pending() {
            self.work = Some(work);
        }
        polled
    }
}

impl<T> Drop for Attached<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take()
            && self.on_drop.stage.leave()
        {
            (self.on_drop.spawn)(&self.on_drop, work);
        }
    }
}

impl<T> fmt::Debug for Attached<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}
