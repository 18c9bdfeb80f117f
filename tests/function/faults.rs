//! P3, P8, P9: what happens when the store is away, and at the limits.

use std::{error::Error, time::Duration};

use futures::poll;
use tokio::time::{Instant, sleep};
use tower_idempotency::{CheckpointError, Execution, OnConflict, Outcome, RunError, StoreError};

use crate::support::{Bench, Failure, Fault, Op};

/// P8, U13: where the store cannot be asked, nothing runs, and the caller has the store's error. A
/// claim that was granted unheard is given back.
#[tokio::test(start_paused = true)]
async fn s28_p8_u13_a_store_that_cannot_be_asked_runs_nothing() {
    for fault in [
        Fault::Lost,
        Fault::Hangs,
        Fault::AnswerLost,
        Fault::AnswerHangs,
        Fault::Panics,
        Fault::Corrupt,
        Fault::Full,
    ] {
        let bench = Bench::new();
        bench.store.next(Op::Claim, fault);
        let start = Instant::now();
        let refused = bench.send("k", "b").await.unwrap_err();
        let source = refused.source().unwrap().downcast_ref::<StoreError>();
        let retryable = match (fault, source.unwrap()) {
            (Fault::Corrupt, StoreError::Corrupt { .. }) => false,
            (Fault::Full, StoreError::Full { .. }) => true,
            (_, StoreError::Unavailable { .. }) => true,
            (_, other) => panic!("{fault:?}: {other:?}"),
        };
        assert!(matches!(refused, RunError::Store(_)));
        assert_eq!(
            (refused.is_retryable(), refused.work_ran()),
            (retryable, false)
        );
        assert_eq!(bench.effects.count(), 0, "{fault:?}");
        // The deadline of a store call is 2 s by default.
        let hung = matches!(fault, Fault::Hangs | Fault::AnswerHangs);
        assert_eq!(start.elapsed().as_secs(), if hung { 2 } else { 0 });

        bench.operation.drain().await;
        assert_eq!(bench.store.store().len(), 0, "{fault:?}");
        let retry = bench.send("k", "another input").await.unwrap();
        assert_eq!(retry.outcome(), Outcome::Completed);
        // What is done is not done again because a reading failed.
        bench.store.next(Op::Claim, fault);
        bench.send("k", "another input").await.unwrap_err();
        bench.operation.drain().await;
        assert!(
            bench
                .send("k", "another input")
                .await
                .unwrap()
                .is_replayed()
        );
        assert_eq!(bench.effects.count(), 1);
    }
}

/// P8: the deadline of a store call can be set.
#[tokio::test(start_paused = true)]
async fn s28_p8_the_deadline_of_store_calls_can_be_set() {
    let bench = Bench::new().with(|pay| pay.store_timeout(Duration::from_millis(300)));
    bench.store.next(Op::Claim, Fault::Hangs);
    let start = Instant::now();
    let refused = bench.send("k", "b").await;
    assert!(matches!(refused, Err(RunError::Store(_))), "{refused:?}");
    assert_eq!(start.elapsed().as_millis(), 300);
}

/// P3: recording is tried again before the value is given.
#[tokio::test(start_paused = true)]
async fn s28_p3_recording_is_tried_again() {
    for fault in [Fault::Lost, Fault::AnswerLost, Fault::Hangs, Fault::Panics] {
        let bench = Bench::new();
        bench.store.next(Op::Complete, fault);
        let done = bench.send("k", "b").await.unwrap();
        assert_eq!(done.outcome(), Outcome::Completed);
        assert_eq!(bench.store.count(Op::Complete), 2);
        assert!(bench.send("k", "b").await.unwrap().is_replayed());
    }
}

/// P3: past the budget the value is given all the same, and recording goes on. Meanwhile the key is
/// held, and nothing runs again.
#[tokio::test(start_paused = true)]
async fn s28_p3_past_the_budget_the_value_is_given() {
    for (fault, budget) in [(Fault::Lost, 5), (Fault::Hangs, 1)] {
        let bench = Bench::new().with(|pay| match budget {
            5 => pay,
            seconds => pay.record_timeout(Duration::from_secs(seconds)),
        });
        bench.store.always(Op::Complete, fault);
        let start = Instant::now();
        let done = bench.send("k", "b").await.unwrap();
        assert_eq!(done.outcome(), Outcome::Unrecorded);
        assert_eq!(done.value(), "effect 1");
        assert_eq!(start.elapsed().as_secs(), budget);

        sleep(Duration::from_secs(100)).await;
        let meanwhile = bench.send("k", "b").await;
        assert!(matches!(meanwhile, Err(RunError::InProgress)));
        bench.store.mend();
        bench.operation.drain().await;
        let again = bench.send("k", "b").await.unwrap();
        assert!(again.is_replayed());
        assert_eq!(
            (again.value().as_str(), bench.effects.count()),
            ("effect 1", 1)
        );
    }
}

/// P3: an error of the work is the caller's also where the store cannot be told of it.
#[tokio::test(start_paused = true)]
async fn s28_p3_an_error_is_given_where_the_store_is_away() {
    let bench = Bench::new();
    bench.store.always(Op::Fail, Fault::Lost);
    let failed = bench.give("k", Err(Failure::Lost)).await;
    assert!(matches!(failed, Err(RunError::Work(Failure::Lost))));
    bench.store.mend();
    bench.operation.drain().await;
    assert!(!bench.send("k", "b").await.unwrap().is_replayed());
}

/// P3, U18: a record that the store cannot read is not written over; the value is given.
#[tokio::test(start_paused = true)]
async fn s28_p3_u18_a_corrupt_record_hides_no_value() {
    let bench = Bench::new();
    bench.store.next(Op::Complete, Fault::Corrupt);
    let done = bench.send("k", "b").await.unwrap();
    assert_eq!(done.outcome(), Outcome::Unrecorded);
    assert_eq!(done.value(), "effect 1");
}

/// P9: a store without room for the value still keeps the work from running again.
#[tokio::test(start_paused = true)]
async fn s28_p9_a_full_store_keeps_the_key() {
    let bench = Bench::new();
    bench.store.next(Op::Complete, Fault::Full);
    let done = bench.send("k", "b").await.unwrap();
    assert_eq!(done.outcome(), Outcome::NotReplayable);
    assert_eq!(done.value(), "effect 1");
    let again = bench.send("k", "b").await.unwrap_err();
    assert!(matches!(again, RunError::NotReplayable), "{again:?}");
    assert!(!again.is_retryable() && !again.work_ran());
    assert_eq!(bench.effects.count(), 1);
}

/// P9, U06: a value at the limit is recorded, one byte more is not; its caller gets it all the same.
#[tokio::test]
async fn s28_p9_u06_a_value_over_the_limit_is_given_once() {
    let mib = 1024 * 1024;
    let bench = Bench::new();
    let small = bench
        .clone()
        .with(|pay| pay.prefix("small").result_limit(8));
    for (bench, limit) in [(&bench, mib), (&small, 8)] {
        let (fits, over) = ("v".repeat(limit), "v".repeat(limit + 1));
        let done = bench.give("fits", Ok(&fits)).await.unwrap();
        assert_eq!(done.outcome(), Outcome::Completed);
        assert_eq!(*bench.send("fits", "b").await.unwrap().value(), fits);

        let done = bench.give("over", Ok(&over)).await.unwrap();
        assert_eq!(done.outcome(), Outcome::NotReplayable);
        assert_eq!(done.into_value(), over);
        let again = bench.send("over", "b").await;
        assert!(matches!(again, Err(RunError::NotReplayable)), "{again:?}");
    }
    assert_eq!(bench.effects.count(), 4);
}

/// P9: checkpoints have a limit, 64 KiB unless set otherwise.
#[tokio::test]
async fn s28_p9_checkpoints_are_bounded() {
    let bench = Bench::new();
    let small = bench
        .clone()
        .with(|pay| pay.prefix("small").checkpoint_limit(8));
    for (bench, most) in [(&bench, 64 * 1024), (&small, 8)] {
        let work = move |execution: Execution| async move {
            execution.save_checkpoint(vec![0; most]).await.unwrap();
            let over = execution.save_checkpoint(vec![0; most + 1]).await;
            assert!(matches!(over, Err(CheckpointError::TooLarge { limit }) if limit == most));
            Ok::<_, Failure>(String::new())
        };
        bench.call("k", "b").run(work).await.unwrap();
    }
}

/// P9: one call more than may wait does not wait. U29: those that do change nothing by giving up.
#[tokio::test(start_paused = true)]
async fn s28_p9_u29_waiting_calls_are_bounded() {
    let wait = OnConflict::Wait(Duration::from_secs(60));
    let bench = Bench::new().with(|pay| pay.on_conflict(wait).max_waiting(1));
    let work = |_| async {
        sleep(Duration::from_secs(5)).await;
        Ok::<_, Failure>("done".to_owned())
    };
    let first = tokio::spawn(bench.call("k", "b").run(work));
    tokio::task::yield_now().await;
    let mut waits = Box::pin(bench.send("k", "b"));
    assert!(poll!(waits.as_mut()).is_pending());
    let one_more = bench.send("k", "b").await;
    assert!(matches!(one_more, Err(RunError::InProgress)));
    drop(waits);
    assert!(bench.send("k", "b").await.unwrap().is_replayed());
    assert!(!first.await.unwrap().unwrap().is_replayed());
    assert_eq!(bench.effects.count(), 0);
}

/// P9: work beyond the limit on what goes on without its caller is cut off, and its key is claimed
/// again after the lease.
#[tokio::test(start_paused = true)]
async fn s28_p9_detached_work_is_bounded() {
    let bench = Bench::new().with(|pay| pay.max_detached(1));
    for key in ["kept", "cut off"] {
        let effects = bench.effects.clone();
        let work = move |_| async move {
            sleep(Duration::from_secs(5)).await;
            Ok::<_, Failure>(format!("effect {}", effects.add()))
        };
        let mut call = Box::pin(bench.call(key, "b").run(work));
        assert!(poll!(call.as_mut()).is_pending());
    }
    bench.operation.drain().await;
    assert_eq!(bench.effects.count(), 1);
    assert!(bench.send("kept", "b").await.unwrap().is_replayed());
    let cut = bench.send("cut off", "b").await;
    assert!(matches!(cut, Err(RunError::InProgress)));
    sleep(Duration::from_secs(30)).await;
    assert!(!bench.send("cut off", "b").await.unwrap().is_replayed());
}
