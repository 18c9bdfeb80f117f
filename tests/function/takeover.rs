//! P2, P5, P6: what happens after a crash, and to an execution that was taken over while it ran.

use std::time::Duration;

use futures::poll;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tower_idempotency::{Entry, Execution, Outcome, RunError};

use crate::support::{Bench, Failure, Fault, Op, Ran, crash};

async fn past_the_lease() {
    sleep(Duration::from_secs(30)).await;
}

/// P5, S08: after a crash the next call runs, once the lease is over, and knows.
#[tokio::test(start_paused = true)]
async fn s28_p5_s08_a_takeover_knows_what_was_done() {
    let bench = Bench::new();
    crash(&bench, "k").await;
    let held = bench.send("k", "b").await;
    assert!(matches!(held, Err(RunError::InProgress)));
    past_the_lease().await;
    let work = |execution: Execution| async move {
        assert_eq!(
            (execution.attempt(), execution.entry()),
            (2, Entry::Takeover)
        );
        assert_eq!(execution.checkpoint().as_deref(), Some(&b"step 1"[..]));
        Ok::<_, Failure>("taken over".to_owned())
    };
    let done = bench.call("k", "b").run(work).await.unwrap();
    assert_eq!(done.value(), "taken over");
    assert!(bench.send("k", "b").await.unwrap().is_replayed());
}

/// The lease is what it was set to.
#[tokio::test(start_paused = true)]
async fn s28_p5_a_shorter_lease_is_over_sooner() {
    let bench = Bench::new().with(|pay| pay.lease(Duration::from_secs(3)));
    crash(&bench, "k").await;
    sleep(Duration::from_millis(2_999)).await;
    assert!(bench.send("k", "b").await.is_err());
    sleep(Duration::from_millis(1)).await;
    assert!(bench.send("k", "b").await.is_ok());
}

/// P5: or nobody runs until an operator has resolved it.
#[tokio::test(start_paused = true)]
async fn s28_p5_a_takeover_can_be_refused() {
    let bench = Bench::new().with(|pay| pay.take_over(false));
    crash(&bench, "k").await;
    past_the_lease().await;
    for _ in 0..2 {
        let refused = bench.send("k", "b").await.unwrap_err();
        assert!(matches!(refused, RunError::Abandoned), "{refused:?}");
        assert!(!refused.is_retryable() && !refused.work_ran());
    }
    let (store, record) = (
        bench.operation.store(),
        bench.call("k", "b").store_key().unwrap(),
    );
    let found = store.get(&record).await.unwrap().unwrap();
    assert!(found.is_abandoned());
    assert_eq!(found.record.checkpoint.as_deref(), Some(&b"step 1"[..]));
    assert!(store.forget(&record).await.unwrap());
    assert_eq!(bench.send("k", "b").await.unwrap().value(), "effect 1");
}

/// Starts work that ends when it is told how, lets its lease end, and hands over to `takes_over`
/// before it tells it. Gives what the first call gives.
async fn superseded(
    bench: &Bench,
    ends: Result<&str, Failure>,
    takes_over: impl AsyncFnOnce(),
) -> Ran {
    let ends = ends.map(str::to_owned);
    let (tell, told) = oneshot::channel();
    let work = |execution: Execution| async move {
        let ends = told.await.unwrap();
        // The store may have told it by now, or not.
        let _ = timeout(Duration::from_secs(20), execution.superseded()).await;
        ends
    };
    bench.store.always(Op::Renew, Fault::Lost);
    let stale = tokio::spawn(bench.call("k", "b").run(work));
    tokio::task::yield_now().await;
    past_the_lease().await;
    takes_over().await;
    bench.store.mend();
    tell.send(ends).unwrap();
    stale.await.unwrap()
}

/// P2, P6: the stale execution's value is not recorded and not given: its caller gets the one that
/// everyone gets.
#[tokio::test(start_paused = true)]
async fn s28_p2_p6_a_stale_execution_gives_the_other_ones_value() {
    for ends in [Ok("stale"), Err(Failure::Lost), Err(Failure::Declined)] {
        let bench = Bench::new();
        let stale = superseded(&bench, ends, async || {
            bench.send("k", "b").await.unwrap();
        });
        let stale = stale.await.unwrap();
        assert_eq!(stale.value(), "effect 1");
        assert_eq!(stale.outcome(), Outcome::Replayed);
        assert_eq!(bench.send("k", "b").await.unwrap().value(), "effect 1");
    }
}

/// P2, P6: nor while the other one still runs. An error of the stale one is its caller's.
#[tokio::test(start_paused = true)]
async fn s28_p2_p6_a_stale_execution_says_so_while_the_other_one_runs() {
    for ends in [Ok("stale"), Err(Failure::Lost)] {
        let bench = Bench::new();
        let (tell, told) = oneshot::channel();
        let mut other = None;
        let stale = superseded(&bench, ends, async || {
            let work = |_| async move { Ok::<_, Failure>(told.await.unwrap()) };
            other = Some(tokio::spawn(bench.call("k", "b").run(work)));
            tokio::task::yield_now().await;
        });
        let error = stale.await.unwrap_err();
        match ends {
            Ok(_) => assert!(matches!(error, RunError::Superseded), "{error:?}"),
            Err(_) => assert!(matches!(error, RunError::Work(Failure::Lost)), "{error:?}"),
        }
        assert!(error.is_retryable() && error.work_ran());
        tell.send("other".to_owned()).unwrap();
        let other = other.unwrap().await.unwrap().unwrap();
        assert_eq!(
            (other.value().as_str(), other.outcome()),
            ("other", Outcome::Completed)
        );
        assert_eq!(bench.send("k", "b").await.unwrap().value(), "other");
    }
}

/// P2: nor where the other one's value cannot be given.
#[tokio::test(start_paused = true)]
async fn s28_p2_a_stale_execution_says_so_where_the_value_cannot_be_given() {
    for (value, then) in [
        (
            "not to be written",
            "the work is done, and its result cannot be given again",
        ),
        (
            "not to be read",
            "the work is done, and its recorded result cannot be read",
        ),
        (
            "panic when read",
            "the work is done, and its recorded result cannot be read",
        ),
    ] {
        let bench = Bench::new();
        let stale = superseded(&bench, Ok("stale"), async || {
            bench.give("k", Ok(value)).await.unwrap();
        });
        let error = stale.await.unwrap_err();
        assert!(matches!(error, RunError::Superseded), "{value}: {error:?}");
        // The next call says what is wrong.
        let next = bench.send("k", "b").await.unwrap_err();
        assert_eq!(next.to_string(), then);
    }
}

/// P1: work that takes longer than its lease keeps it.
#[tokio::test(start_paused = true)]
async fn s28_p1_long_work_keeps_its_lease() {
    let bench = Bench::new().with(|pay| pay.lease(Duration::from_secs(3)));
    let work = |_| async {
        sleep(Duration::from_secs(60)).await;
        Ok::<_, Failure>("done".to_owned())
    };
    let mut long = Box::pin(bench.call("k", "b").run(work));
    assert!(poll!(long.as_mut()).is_pending());
    for _ in 0..59 {
        sleep(Duration::from_secs(1)).await;
        let meanwhile = bench.send("k", "b").await;
        assert!(matches!(meanwhile, Err(RunError::InProgress)));
    }
    assert_eq!(long.await.unwrap().outcome(), Outcome::Completed);
}
