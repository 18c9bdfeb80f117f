//! P4, U08, S09: a caller who leaves does not undo the work.

use std::{sync::Arc, task::Poll, time::Duration};

use futures::{FutureExt, poll};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tower_idempotency::{Outcome, RunError, function::Effect};

use crate::support::{Bench, Effects, Failure, Fault, Op, Scripted, yield_once};

/// Work that yields before its effect and after.
async fn slow(effects: Effects) -> Result<String, Failure> {
    yield_once().await;
    let number = effects.add();
    yield_once().await;
    Ok(format!("effect {number}"))
}

/// Drops the call after each number of polls in turn. Everything that can be waited for is pending
/// once: each store call before it takes effect and after, the work before its effect and after.
#[tokio::test(start_paused = true)]
async fn s28_p4_u08_the_call_is_dropped_at_each_of_its_await_points() {
    let (mut cancelled, mut detached, mut polls) = (0, 0, 0);
    loop {
        let bench = Bench::over(Scripted::yielding());
        let run = || {
            let effects = bench.effects.clone();
            bench.call("k", "b").run(move |_| slow(effects))
        };
        let mut call = Box::pin(run());
        let mut ended = false;
        for _ in 0..polls {
            ended |= poll!(call.as_mut()).is_ready();
        }
        drop(call);
        bench.operation.drain().await;

        if !ended {
            match bench.effects.count() {
                // Dropped before the claim was known: nothing ran, and nothing is stored.
                0 => {
                    cancelled += 1;
                    assert_eq!(bench.store.store().len(), 0, "after {polls} polls");
                }
                1 => detached += 1,
                more => panic!("{more} effects after {polls} polls"),
            }
        }
        let before = bench.effects.count();
        let retry = run().await.unwrap();
        assert_eq!(retry.value(), "effect 1", "after {polls} polls");
        assert_eq!(retry.is_replayed(), before == 1, "after {polls} polls");
        assert_eq!(bench.effects.count(), 1, "after {polls} polls");
        if ended {
            break;
        }
        polls += 1;
    }
    // Never polled, before and after the claim; then the work before and after its effect, before
    // and after the record.
    assert_eq!((cancelled, detached), (3, 4));
}

/// The same for work that fails, that does nothing, and that panics: what its end says of the key is
/// so also where nobody hears of it.
#[tokio::test(start_paused = true)]
async fn s28_p4_u03_failing_work_is_dropped_at_each_of_its_await_points() {
    for ends in ["fails", "does nothing", "panics"] {
        let (mut detached, mut polls) = (0, 0);
        loop {
            let bench = Bench::over(Scripted::yielding());
            let effects = bench.effects.clone();
            let work = move |_| async move {
                slow(effects).await.unwrap();
                assert_ne!(ends, "panics", "as the test wants it");
                Err::<String, _>(Failure::Lost)
            };
            let judge = move |_: &Failure| match ends {
                "does nothing" => Effect::None,
                _ => Effect::Unknown,
            };
            let call = bench.call("k", "b").run_judged(work, judge);
            let mut call = Box::pin(std::panic::AssertUnwindSafe(call).catch_unwind());
            let mut ended = false;
            for _ in 0..polls {
                ended |= poll!(call.as_mut()).is_ready();
            }
            drop(call);
            bench.operation.drain().await;
            detached += usize::from(!ended && bench.effects.count() == 1);

            let free = bench.effects.count() == 0 || ends == "does nothing";
            let other = bench.send("k", "another input").await;
            match free {
                true => assert_eq!(
                    other.unwrap().outcome(),
                    Outcome::Completed,
                    "{ends} {polls}"
                ),
                false => {
                    assert!(matches!(other, Err(RunError::Mismatch)), "{ends} {polls}");
                    let retry = bench.send("k", "b").await.unwrap();
                    assert_eq!(retry.outcome(), Outcome::Completed, "{ends} {polls}");
                }
            }
            if ended {
                break;
            }
            polls += 1;
        }
        assert_eq!(detached, 4, "{ends}");
    }
}

/// P3, P4: a caller who leaves while its value waits for its record does not end the recording.
#[tokio::test(start_paused = true)]
async fn s28_p3_p4_a_caller_may_leave_while_it_is_recorded() {
    let bench = Bench::new();
    bench.store.always(Op::Complete, Fault::Lost);
    let late = timeout(Duration::from_secs(1), bench.send("k", "b")).await;
    assert!(late.is_err());
    sleep(Duration::from_secs(60)).await;
    bench.store.mend();
    bench.operation.drain().await;
    assert!(bench.send("k", "b").await.unwrap().is_replayed());
    assert_eq!(bench.effects.count(), 1);
}

/// A claim that the store granted after its caller left is given back, and nothing runs.
#[tokio::test(start_paused = true)]
async fn s28_p4_a_claim_whose_caller_left_is_given_back() {
    let bench = Bench::new();
    bench.store.next(Op::Claim, Fault::AnswerHeld);
    let mut call = Box::pin(bench.send("k", "b"));
    assert!(poll!(call.as_mut()).is_pending());
    assert_eq!(bench.store.store().len(), 1, "claimed");
    drop(call);
    bench.store.open();
    bench.operation.drain().await;
    assert_eq!((bench.store.store().len(), bench.effects.count()), (0, 0));
    assert!(bench.send("k", "another input").await.is_ok());
}

/// The call is dropped by a thread that is in no runtime.
#[test]
fn s28_p4_dropped_outside_a_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let bench = Bench::new();
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let work = {
        let (effects, started, go) = (bench.effects.clone(), started.clone(), go.clone());
        move |_| async move {
            started.notify_one();
            go.notified().await;
            Ok::<_, Failure>(format!("effect {}", effects.add()))
        }
    };
    let mut call = Box::pin(bench.call("k", "b").run(work));
    runtime.block_on(async {
        tokio::select! {
            _ = call.as_mut() => unreachable!("the work waits"),
            () = started.notified() => {}
        }
    });
    drop(call);
    go.notify_one();
    runtime.block_on(async {
        bench.operation.drain().await;
        assert_eq!(bench.effects.count(), 1);
        assert!(bench.send("k", "b").await.unwrap().is_replayed());
    });
}

/// S09: a timeout around the call is a caller who leaves. U21: `drain` waits for what runs on.
#[tokio::test(start_paused = true)]
async fn s28_p4_s09_u21_a_timeout_does_not_cut_the_work_short() {
    let bench = Bench::new();
    assert!(
        bench.operation.drain().now_or_never().is_some(),
        "nothing runs"
    );
    let effects = bench.effects.clone();
    let work = move |_| async move {
        sleep(Duration::from_secs(60)).await;
        Ok::<_, Failure>(format!("effect {}", effects.add()))
    };
    let late = timeout(Duration::from_secs(1), bench.call("k", "b").run(work)).await;
    assert!(late.is_err());

    // It still runs, beyond its first lease too.
    sleep(Duration::from_secs(45)).await;
    assert!(matches!(
        bench.send("k", "b").await,
        Err(RunError::InProgress)
    ));
    let mut drained = Box::pin(bench.operation.drain());
    assert_eq!(poll!(drained.as_mut()), Poll::Pending);
    drained.await;
    let retry = bench.send("k", "b").await.unwrap();
    assert!(retry.is_replayed());
    assert_eq!(
        (retry.value().as_str(), bench.effects.count()),
        ("effect 1", 1)
    );
}

/// U03: a panic of work whose caller left is recorded as a failure, too.
#[tokio::test(start_paused = true)]
async fn s28_u03_p4_detached_work_may_panic() {
    let bench = Bench::new();
    let work = |_| async {
        sleep(Duration::from_secs(1)).await;
        panic!("as the test wants it");
        #[allow(unreachable_code)]
        Ok::<String, Failure>(String::new())
    };
    let mut call = Box::pin(bench.call("k", "b").run(work));
    assert!(poll!(call.as_mut()).is_pending());
    drop(call);
    bench.operation.drain().await;
    assert!(matches!(
        bench.send("k", "c").await,
        Err(RunError::Mismatch)
    ));
    assert!(!bench.send("k", "b").await.unwrap().is_replayed());
}
