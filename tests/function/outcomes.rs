//! S28: what a call gives, in each state of its key.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::join_all, poll};
use tokio::time::{Instant, sleep};
use tower_idempotency::{
    Entry, Execution, MemoryStore, OnConflict, Operation, Outcome, RunError, Store,
    function::Effect,
};

use crate::support::{Bench, Effects, Failure, Op, Ran, Text};

fn value(ran: Ran) -> (String, Outcome) {
    let done = ran.unwrap();
    let outcome = done.outcome();
    assert_eq!(done.is_replayed(), outcome == Outcome::Replayed);
    (done.into_value(), outcome)
}

/// S10, P2: work runs once for each key, and everyone gets its value.
#[tokio::test]
async fn s28_p2_work_runs_once_for_each_key() {
    let bench = Bench::new();
    let one = "effect 1".to_owned();
    assert_eq!(
        value(bench.send("k", "b").await),
        (one.clone(), Outcome::Completed)
    );
    for _ in 0..2 {
        assert_eq!(
            value(bench.send("k", "b").await),
            (one.clone(), Outcome::Replayed)
        );
    }
    // Another key is another thing, also for the same input (U28).
    assert_eq!(value(bench.send("l", "b").await).0, "effect 2");
    assert_eq!(bench.effects.count(), 2);
    // A replay costs one call of the store.
    assert_eq!(bench.store.count(Op::Claim), 4);
    assert_eq!(bench.store.calls().len(), 6);
}

/// S07, U26: another input is a mismatch, when the work is done and also while it runs.
#[tokio::test]
async fn s28_s07_u26_another_input_is_a_mismatch() {
    let bench = Bench::new();
    let work = |_| std::future::pending::<Result<String, Failure>>();
    let mut running = Box::pin(bench.call("k", "b").run(work));
    assert!(poll!(running.as_mut()).is_pending());
    bench.send("done", "b").await.unwrap();
    for key in ["k", "done"] {
        let mismatch = bench.send(key, "c").await.unwrap_err();
        assert!(matches!(mismatch, RunError::Mismatch), "{mismatch:?}");
        assert!(!mismatch.is_retryable() && !mismatch.work_ran());
    }
    assert_eq!(bench.effects.count(), 1);
}

/// S03, P1: a call that meets running work says so, or waits for its value.
#[tokio::test(start_paused = true)]
async fn s28_s03_running_work_is_reported_or_waited_for() {
    let bench = Bench::new();
    let waiting = bench
        .clone()
        .with(|pay| pay.on_conflict(OnConflict::Wait(Duration::from_secs(5))));
    for (lasts, waits_for) in [(3, Some(3)), (9, None)] {
        let key = format!("{lasts} s");
        let work = move |_| async move {
            sleep(Duration::from_secs(lasts)).await;
            Ok::<_, Failure>("done".to_owned())
        };
        let first = tokio::spawn(bench.call(&key, "b").run(work));
        tokio::task::yield_now().await;

        let running = bench.send(&key, "b").await.unwrap_err();
        assert!(matches!(running, RunError::InProgress), "{running:?}");
        assert!(running.is_retryable() && !running.work_ran());

        let start = Instant::now();
        let waited = waiting.send(&key, "b").await;
        match waits_for {
            Some(_) => assert_eq!(value(waited), ("done".to_owned(), Outcome::Replayed)),
            None => assert!(matches!(waited, Err(RunError::InProgress))),
        }
        assert_eq!(start.elapsed().as_secs(), waits_for.unwrap_or(5));
        first.await.unwrap().unwrap();
    }
    assert_eq!(bench.effects.count(), 0);
}

/// U01, S14, S15: fifty at once, on several threads, through two operations that share one store
/// object: one runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s28_p1_u01_fifty_at_once_run_once() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let servers = [(); 2].map(|()| Operation::with_codec("pay", Arc::clone(&store), Text));
    for wait in [false, true] {
        let effects = Effects::default();
        let calls = (0..50).map(|n| {
            let mut server = servers[n % 2].clone();
            if wait {
                server = server.on_conflict(OnConflict::Wait(Duration::from_secs(60)));
            }
            let effects = effects.clone();
            let work = move |_| async move {
                tokio::task::yield_now().await;
                Ok::<_, Failure>(format!("effect {}", effects.add()))
            };
            tokio::spawn(server.call(format!("waits: {wait}")).run(work))
        });
        let mut fresh = 0;
        for ran in join_all(calls).await {
            match ran.unwrap() {
                Ok(done) => {
                    assert_eq!(done.value(), "effect 1");
                    fresh += usize::from(!done.is_replayed());
                }
                Err(error) => assert!(matches!(error, RunError::InProgress) && !wait),
            }
        }
        assert_eq!((fresh, effects.count()), (1, 1));
    }
}

/// U30: a thousand duplicates of a hot key cost one execution, and no storm on the store.
#[tokio::test(start_paused = true)]
async fn s28_u30_a_thousand_duplicates_cost_one_execution() {
    let bench = Bench::new().with(|pay| pay.on_conflict(OnConflict::Wait(Duration::from_secs(60))));
    let effects = bench.effects.clone();
    let work = move |_| async move {
        sleep(Duration::from_secs(10)).await;
        Ok::<_, Failure>(format!("effect {}", effects.add()))
    };
    let first = tokio::spawn(bench.call("k", "b").run(work));
    tokio::task::yield_now().await;
    let all = join_all((0..1000).map(|_| bench.send("k", "b"))).await;
    for ran in all {
        assert_eq!(value(ran), ("effect 1".to_owned(), Outcome::Replayed));
    }
    first.await.unwrap().unwrap();
    assert_eq!(bench.effects.count(), 1);
    assert_eq!(bench.store.count(Op::Claim), 1001);
    let others = bench.store.calls().len() - 1001;
    assert!(others < 30, "{others} calls beside the claims");
}

/// S30, U03: after an error the same input runs again at once, and knows that it is a retry;
/// another input does not.
#[tokio::test]
async fn s28_s30_an_error_frees_the_key_for_the_same_input() {
    let bench = Bench::new();
    let failed = bench.give("k", Err(Failure::Lost)).await.unwrap_err();
    assert!(
        matches!(failed, RunError::Work(Failure::Lost)),
        "{failed:?}"
    );
    assert!(failed.is_retryable() && failed.work_ran());
    assert!(matches!(
        bench.send("k", "c").await,
        Err(RunError::Mismatch)
    ));

    let work = |execution: Execution| async move {
        assert_eq!((execution.attempt(), execution.entry()), (2, Entry::Retry));
        Ok::<_, Failure>("done".to_owned())
    };
    let retry = bench.call("k", "b").run(work).await;
    assert_eq!(value(retry), ("done".to_owned(), Outcome::Completed));
}

impl Failure {
    fn judged(&self) -> Effect {
        match self {
            Self::Declined => Effect::None,
            Self::Lost => Effect::Unknown,
        }
    }
}

fn judge(failure: &Failure) -> Effect {
    failure.judged()
}

/// An error that is judged as one that did nothing frees the key for any input; but not on a later
/// attempt, nor after a checkpoint.
#[tokio::test]
async fn s28_s22_an_error_that_did_nothing_frees_the_key() {
    let bench = Bench::new();
    let fail = async |key: &str, failure, checkpoint: bool| {
        let work = move |execution: Execution| async move {
            if checkpoint {
                execution.save_checkpoint("step 1").await.unwrap();
            }
            Err::<String, _>(failure)
        };
        let ran = bench.call(key, "b").run_judged(work, judge).await;
        assert!(matches!(ran, Err(RunError::Work(error)) if error == failure));
    };
    fail("k", Failure::Declined, false).await;
    assert_eq!(bench.store.store().len(), 0);
    bench.send("k", "c").await.unwrap();

    fail("later", Failure::Lost, false).await;
    fail("later", Failure::Declined, false).await;
    fail("after a checkpoint", Failure::Declined, true).await;
    for key in ["later", "after a checkpoint"] {
        let other = bench.send(key, "c").await;
        assert!(matches!(other, Err(RunError::Mismatch)), "{key}");
        bench.send(key, "b").await.unwrap();
    }
}

/// U03: a panic of the work, of what makes it, or of the judge goes on to the caller, and the key is
/// free for the same input at once.
#[tokio::test]
async fn s28_u03_a_panic_frees_the_key_and_goes_on() {
    let bench = Bench::new();
    let panics = |at: &'static str| {
        let work = move |_| {
            assert_ne!(at, "making", "as the test wants it");
            async move {
                tokio::task::yield_now().await;
                assert_ne!(at, "working", "as the test wants it");
                Err::<String, _>(Failure::Declined)
            }
        };
        let judge = move |_: &Failure| {
            assert_ne!(at, "judging", "as the test wants it");
            Effect::None
        };
        let call = bench.call(at, "b").run_judged(work, judge);
        std::panic::AssertUnwindSafe(call).catch_unwind()
    };
    for at in ["making", "working", "judging"] {
        let panic = panics(at).await.unwrap_err();
        let panic = panic.downcast::<String>().unwrap();
        assert!(panic.contains("as the test wants it"), "{panic}");
        let other = bench.send(at, "c").await;
        assert!(matches!(other, Err(RunError::Mismatch)), "{at}");
        bench.send(at, "b").await.unwrap();
    }
}

/// S08: what an attempt saved is there for the next one.
#[tokio::test]
async fn s28_s08_the_next_attempt_has_the_checkpoint() {
    let bench = Bench::new();
    let steps = Effects::default();
    let attempt = || {
        let steps = steps.clone();
        bench
            .call("k", "b")
            .run(move |execution: Execution| async move {
                if execution.checkpoint().is_none() {
                    steps.add();
                    execution.save_checkpoint("charged").await.unwrap();
                    return Err(Failure::Lost);
                }
                assert_eq!(execution.checkpoint().as_deref(), Some(&b"charged"[..]));
                Ok("sent".to_owned())
            })
    };
    assert!(matches!(
        attempt().await,
        Err(RunError::Work(Failure::Lost))
    ));
    assert_eq!(
        value(attempt().await),
        ("sent".to_owned(), Outcome::Completed)
    );
    assert_eq!(
        value(attempt().await),
        ("sent".to_owned(), Outcome::Replayed)
    );
    assert_eq!(steps.count(), 1);
}

/// S05: a record lives as long as it was told to, and then the key is free.
#[tokio::test(start_paused = true)]
async fn s28_s05_a_record_expires() {
    let bench = Bench::new();
    let short = bench
        .clone()
        .with(|pay| pay.prefix("short").ttl(Duration::from_secs(60)));
    for (bench, ttl) in [(&short, 60), (&bench, 24 * 60 * 60)] {
        bench.send("k", "b").await.unwrap();
        sleep(Duration::from_secs(ttl - 1)).await;
        assert!(bench.send("k", "b").await.unwrap().is_replayed());
        sleep(Duration::from_secs(1)).await;
        assert!(
            !bench
                .send("k", "another input")
                .await
                .unwrap()
                .is_replayed()
        );
    }
}

/// S25: keys for other services are the same in all attempts; the fencing token grows.
#[tokio::test]
async fn s28_s25_the_work_knows_its_execution() {
    let bench = Bench::new();
    let seen = async |key: &'static str| {
        let (tell, told) = tokio::sync::oneshot::channel();
        let work = move |execution: Execution| async move {
            assert_eq!(execution.key(), key);
            let seen = (execution.derive("charge"), execution.fencing_token());
            tell.send(seen).unwrap();
            Err::<String, _>(Failure::Lost)
        };
        bench.call(key, "b").run(work).await.unwrap_err();
        told.await.unwrap()
    };
    let (first, second, other) = (seen("k").await, seen("k").await, seen("l").await);
    assert_eq!(first.0, second.0);
    assert!(first.1 < second.1);
    assert_ne!(first.0, other.0);
}

/// Work that calls its own key meets itself, and does not hang.
#[tokio::test(start_paused = true)]
async fn s28_work_that_calls_its_own_key_meets_itself() {
    for wait in [0, 3] {
        let conflict = match wait {
            0 => OnConflict::Reject,
            seconds => OnConflict::Wait(Duration::from_secs(seconds)),
        };
        let bench = Bench::new().with(|pay| pay.on_conflict(conflict));
        let start = Instant::now();
        let inner = bench.clone();
        let work = move |_| async move {
            let met = inner.send("k", "b").await;
            assert!(matches!(met, Err(RunError::InProgress)));
            Ok::<_, Failure>("outer".to_owned())
        };
        let outer = bench.call("k", "b").run(work).await;
        assert_eq!(value(outer).0, "outer");
        assert_eq!(
            (start.elapsed().as_secs(), bench.effects.count()),
            (wait, 0)
        );
    }
}

/// U25: what is set on a clone is the clone's own.
#[tokio::test]
async fn u25_options_of_a_clone_are_its_own() {
    let bench = Bench::new();
    let tight = bench.clone().with(|pay| pay.result_limit(0));
    assert_eq!(value(bench.send("k", "b").await).1, Outcome::Completed);
    assert_eq!(value(tight.send("l", "b").await).1, Outcome::NotReplayable);
    assert_eq!(value(tight.send("k", "b").await).1, Outcome::Replayed);
}

#[tokio::test]
#[should_panic(expected = "the name of the operation is empty")]
async fn an_operation_has_a_name() {
    let _ = Operation::with_codec("", MemoryStore::new(), Text);
}

#[test]
#[should_panic(expected = "the lease is less than ten milliseconds")]
fn u23_a_lease_that_timers_cannot_keep_is_refused() {
    let _ = Bench::new().with(|pay| pay.lease(Duration::from_millis(9)));
}

#[test]
#[should_panic(expected = "the time to live is less than a millisecond")]
fn u23_a_time_to_live_that_stores_cannot_keep_is_refused() {
    let _ = Bench::new().with(|pay| pay.ttl(Duration::ZERO));
}

#[test]
#[should_panic(expected = "no reactor running")]
fn outside_a_runtime_a_call_panics() {
    let _ = Bench::new().send("k", "b").now_or_never();
}

/// Calls can be spawned: they are `Send`, and borrow nothing.
#[test]
fn calls_are_send_and_static() {
    fn spawnable<T: Send + 'static>(_: T) {}
    let bench = Bench::new();
    let work = |_| async { Ok::<_, Failure>(String::new()) };
    spawnable(bench.operation.call("k").run(work));
    spawnable(
        bench
            .operation
            .call("k")
            .run(async move |execution| work(execution).await),
    );
    spawnable(bench.operation.call("k").run_judged(work, judge));
    // What the work says of its error, the judge need not say again.
    let judged = bench.operation.call("k");
    spawnable(judged.run_judged(work, |failure| failure.judged()));
    // Values and errors need be no more than `Send`.
    let work = |_| async { Err::<u64, _>(std::cell::Cell::new(1)) };
    spawnable(bench.operation.call("k").run(work));
}
