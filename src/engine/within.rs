//! A limit on how long something may take, which costs nothing where it is ready at once.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    task::coop::unconstrained,
    time::{Instant, Sleep, sleep},
};

pin_project! {
    /// The output of a future, or `None` past the limit.
    ///
    /// The time counts from the first poll that finds the future pending: tokio's own timeout asks
    /// the clock when it is made, and has room for a timer, also for a store that answers at once.
    #[must_use = "futures do nothing unless polled"]
    pub(crate) struct Within<F> {
        limit: Duration,
        #[pin]
        future: F,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

/// Gives up on `future` after `limit`.
pub(crate) fn within<F: Future>(limit: Duration, future: F) -> Within<F> {
    Within {
        limit,
        future,
        timer: None,
    }
}

impl<F> Within<F> {
    /// When the limit is reached; none if the future was not pending yet.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timer.as_ref().map(|timer| timer.deadline())
    }
}

impl<F: Future> Future for Within<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(Some(output));
        }
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(sleep(*this.limit)));
        // A future that uses up its task's budget each time must not keep the timer from being
        // heard.
        ready!(Pin::new(&mut unconstrained(timer)).poll(cx));
        Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn, ready};

    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_pending_ends_at_the_limit() {
        let start = Instant::now();
        let limit = Duration::from_secs(2);
        assert_eq!(within(limit, pending::<()>()).await, None);
        assert_eq!(start.elapsed(), limit);
        let done = tokio::time::sleep(limit - Duration::from_millis(1));
        assert_eq!(within(limit, done).await, Some(()));
    }

    /// No timer, and so no clock and no runtime, is needed for what is ready.
    #[test]
    fn what_is_ready_needs_no_timer() {
        let mut ready = within(Duration::ZERO, ready(1));
        assert_eq!((&mut ready).now_or_never(), Some(Some(1)));
        assert_eq!(ready.deadline(), None);
    }

    /// P9: a future that is always woken and uses up its task's budget is given up all the same.
    #[tokio::test]
    async fn p9_a_busy_future_does_not_outlast_its_limit() {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let busy = poll_fn(move |cx| -> Poll<()> {
            // Ready until the budget is used up, and then pending and woken.
            loop {
                let _ = sender.send(());
                if receiver.poll_recv(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        });
        assert_eq!(within(Duration::from_millis(5), busy).await, None);
    }
}
