//! P7 for functions: a value that is committed in the work's own transaction.

use tower_idempotency::{CommitError, Execution, Outcome, RunError};

use crate::support::{Bench, Failure, Fault, Op, Scripted};

async fn pay(store: &Scripted, execution: &Execution, value: &str) -> Result<String, CommitError> {
    let mut transaction = execution.transaction(store.begin())?;
    transaction.push(value.to_owned());
    transaction.commit_value(value.to_owned()).await
}

/// P7, S28: rows, record and value are written at once; what the work does afterwards changes
/// nothing, and the next call gets the same value.
#[tokio::test(start_paused = true)]
async fn s28_p7_rows_and_value_are_committed_together() {
    for after in ["the value", "another value", "an error", "a panic"] {
        let bench = Bench::new();
        for outcome in [Outcome::Completed, Outcome::Replayed] {
            let store = bench.store.clone();
            let work = move |execution: Execution| async move {
                let value = pay(&store, &execution, "paid").await.unwrap();
                match after {
                    "the value" => Ok(value),
                    "another value" => Ok("made up".to_owned()),
                    "an error" => Err(Failure::Lost),
                    _ => panic!("as the test wants it"),
                }
            };
            let done = bench.call("k", "b").run(work).await.unwrap();
            assert_eq!(
                (done.outcome(), done.value().as_str()),
                (outcome, "paid"),
                "{after}"
            );
        }
        assert_eq!(bench.store.rows(), ["paid"], "{after}");
        let calls = [Op::Claim, Op::CompleteIn, Op::Commit, Op::Claim];
        assert_eq!(bench.store.calls(), calls, "{after}");
    }
}

/// P7: work that forgets to commit gives no value.
#[tokio::test(start_paused = true)]
async fn s28_p7_a_value_without_its_commit_is_not_given() {
    let bench = Bench::new();
    let store = bench.store.clone();
    let forgetful = move |execution: Execution| async move {
        let mut transaction = execution.transaction(store.begin()).unwrap();
        transaction.push("lost".to_owned());
        Ok::<_, Failure>("paid".to_owned())
    };
    let error = bench.call("k", "b").run(forgetful).await.unwrap_err();
    assert!(matches!(error, RunError::NotCommitted), "{error:?}");
    assert!(error.work_ran() && !error.is_retryable());
    assert!(bench.store.rows().is_empty());
    let store = bench.store.clone();
    let mended = move |execution: Execution| async move {
        assert_eq!(execution.attempt(), 2);
        Ok::<_, Failure>(pay(&store, &execution, "paid").await.unwrap())
    };
    assert_eq!(
        bench.call("k", "b").run(mended).await.unwrap().value(),
        "paid"
    );
    assert_eq!(bench.store.rows(), ["paid"]);
}

/// P7: a commit of which nobody heard: what the store shows counts.
#[tokio::test(start_paused = true)]
async fn s28_p7_a_commit_without_an_answer_is_looked_into() {
    for (fault, committed) in [(Fault::Lost, false), (Fault::AnswerLost, true)] {
        let bench = Bench::new();
        bench.store.next(Op::Commit, fault);
        let store = bench.store.clone();
        let work = move |execution: Execution| async move {
            match pay(&store, &execution, "paid").await {
                Err(CommitError::Unknown(_)) => Err::<String, _>(Failure::Lost),
                other => panic!("{other:?}"),
            }
        };
        match bench.call("k", "b").run(work).await {
            Ok(done) if committed => assert_eq!(done.value(), "paid"),
            Err(RunError::Work(Failure::Lost)) if !committed => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(bench.store.rows().len(), usize::from(committed));
    }
}

/// P7: a value that could not be given again is not committed, nor one of another type.
#[tokio::test(start_paused = true)]
async fn s28_p7_a_value_that_cannot_be_given_again_is_not_committed() {
    let bench = Bench::new().with(|pay| pay.result_limit(10));
    let store = bench.store.clone();
    let work = move |execution: Execution| async move {
        for value in ["not to be written", "panic when written", "far too large"] {
            let refused = pay(&store, &execution, value).await.unwrap_err();
            assert!(matches!(refused, CommitError::Answer(_)), "{refused:?}");
        }
        let transaction = execution.transaction(store.begin()).unwrap();
        let refused = transaction.commit_value(7_i8).await.unwrap_err();
        assert!(matches!(refused, CommitError::Answer(_)), "{refused:?}");
        // Nor is it a request's.
        let transaction = execution.transaction(store.begin()).unwrap();
        let refused = transaction.commit(http::Response::new(String::new())).await;
        assert!(
            matches!(refused, Err(CommitError::Answer(_))),
            "{refused:?}"
        );
        Ok::<_, Failure>(pay(&store, &execution, "paid").await.unwrap())
    };
    assert_eq!(
        bench.call("k", "b").run(work).await.unwrap().value(),
        "paid"
    );
    assert_eq!(bench.store.rows(), ["paid"]);
}
