//! How a handler can end its transaction.

use futures::future::join;
use tower_idempotency::{CommitError, Outcome, State};

use crate::{
    bench::{Bench, answer, commit, good, handler, kind, note, pay, told},
    database::Database,
};

on_each_database!(
    p7_rows_record_and_answer_are_written_at_once,
    p7_nothing_after_the_commit_changes_the_answer,
    p7_s22_a_business_error_writes_nothing_and_frees_the_key,
    p7_a_failure_writes_nothing_and_can_be_retried,
    p7_an_answer_without_its_commit_is_not_sent,
    p7_a_rollback_on_purpose_is_no_mistake,
    p7_the_second_of_two_commits_writes_nothing,
    p7_of_two_commits_at_once_one_writes,
    p7_what_is_refused_at_the_commit_is_not_written,
    p7_savepoints_are_the_handlers_own_matter,
    p7_operations_beside_each_other_write_a_row_each,
);

/// P7, P2: rows, record and answer are there together, and a retry replays.
async fn p7_rows_record_and_answer_are_written_at_once<D: Database>() {
    let bench = Bench::<D>::new().await;
    let first = bench.send("k", &good()).await;
    first.is(Outcome::Completed, 201, "attempt 1");
    assert_eq!(first.headers["location"], "/transfers/1");
    bench.is_settled("k", 1).await;
    // Under another key it is another operation.
    bench.can_be_done("another", 1).await;
    bench.is_settled("k", 1).await;
}

/// P7, P2: what was committed is the answer, whatever the handler says afterwards.
async fn p7_nothing_after_the_commit_changes_the_answer<D: Database>() {
    let bench = Bench::<D>::new().await;
    for (key, status) in [("200", 200), ("404", 404), ("500", 500), ("panics", 0)] {
        let after = handler(move |database, execution| async move {
            drop(pay(&database, &execution).await.unwrap());
            assert_ne!(status, 0, "as the test wants it");
            answer(status, "made up")
        });
        let first = bench.send(key, &after).await;
        first.is(Outcome::Completed, 201, "attempt 1");
        bench.is_settled(key, 1).await;
    }
}

/// P7, S22: a 4xx leaves neither rows nor a record, dropped or rolled back.
async fn p7_s22_a_business_error_writes_nothing_and_frees_the_key<D: Database>() {
    let bench = Bench::<D>::new().await;
    for (key, explicit) in [("dropped", false), ("rolled back", true)] {
        let refused = handler(move |database: D, execution| async move {
            let transaction = database.begin().await.unwrap();
            let mut transaction = execution.transaction(transaction).unwrap();
            let written = database.insert(&mut transaction, execution.key(), "half");
            written.await.unwrap();
            if explicit {
                transaction.rollback().await.unwrap();
            }
            answer(402, "no funds")
        });
        for _ in 0..2 {
            let seen = bench.send(key, &refused).await;
            seen.is(Outcome::Rejected, 402, "no funds");
            bench.holds(key, None, &[]).await;
        }
        bench.can_be_done(key, 1).await;
    }
}

/// P7: a 5xx and a panic leave no rows, and a record that says so; a retry is the next attempt.
async fn p7_a_failure_writes_nothing_and_can_be_retried<D: Database>() {
    let bench = Bench::<D>::new().await;
    let fails = handler(|database: D, execution| async move {
        let transaction = database.begin().await.unwrap();
        let mut transaction = execution.transaction(transaction).unwrap();
        let written = database.insert(&mut transaction, execution.key(), "half");
        written.await.unwrap();
        answer(500, "broken")
    });
    let seen = bench.send("k", &fails).await;
    seen.is(Outcome::Failed, 500, "broken");
    bench.holds("k", Some((State::Failed, 1)), &[]).await;

    let panics = handler(|database: D, execution| async move {
        let transaction = database.begin().await.unwrap();
        let mut transaction = execution.transaction(transaction).unwrap();
        let written = database.insert(&mut transaction, execution.key(), "half");
        written.await.unwrap();
        panic!("as the test wants it")
    });
    assert!(bench.start("k", &panics).await.unwrap_err().is_panic());
    bench.holds("k", Some((State::Failed, 2)), &[]).await;
    bench.can_be_done("k", 3).await;
}

/// P7: a handler that forgets to commit does not get away with its answer.
async fn p7_an_answer_without_its_commit_is_not_sent<D: Database>() {
    let bench = Bench::<D>::new().await;
    let forgetful = handler(|database: D, execution| async move {
        let transaction = database.begin().await.unwrap();
        let mut transaction = execution.transaction(transaction).unwrap();
        let written = database.insert(&mut transaction, execution.key(), "lost");
        written.await.unwrap();
        answer(201, "paid")
    });
    let seen = bench.send("k", &forgetful).await;
    assert_eq!((seen.outcome, seen.status), (Outcome::Failed, 500));
    assert_eq!(seen.problem(), "not-committed");
    bench.holds("k", Some((State::Failed, 1)), &[]).await;
    bench.can_be_done("k", 2).await;
}

/// P7: nothing is written on purpose, and that is recorded as any answer is.
async fn p7_a_rollback_on_purpose_is_no_mistake<D: Database>() {
    let bench = Bench::<D>::new().await;
    let looking = handler(|database: D, execution| async move {
        let transaction = database.begin().await.unwrap();
        let mut transaction = execution.transaction(transaction).unwrap();
        let written = database.insert(&mut transaction, execution.key(), "tried");
        written.await.unwrap();
        transaction.rollback().await.unwrap();
        answer(200, "a dry run")
    });
    for outcome in [Outcome::Completed, Outcome::Replayed] {
        let seen = bench.send("k", &looking).await;
        seen.is(outcome, 200, "a dry run");
        bench.holds("k", Some((State::Completed, 1)), &[]).await;
    }
}

/// P7: completing twice, one after the other.
async fn p7_the_second_of_two_commits_writes_nothing<D: Database>() {
    let bench = Bench::<D>::new().await;
    let twice = handler(|database, execution| async move {
        drop(pay(&database, &execution).await.unwrap());
        let again = pay(&database, &execution).await.unwrap_err();
        assert!(matches!(again, CommitError::AlreadyCommitted), "{again:?}");
        answer(500, "made up")
    });
    let seen = bench.send("k", &twice).await;
    seen.is(Outcome::Completed, 201, "attempt 1");
    bench.is_settled("k", 1).await;
}

/// P7: completing twice at the same time: the database lets one through.
async fn p7_of_two_commits_at_once_one_writes<D: Database>() {
    let bench = Bench::<D>::new().await;
    let twice = handler(|database: D, execution| async move {
        let pays = || {
            let (database, execution) = (database.clone(), execution.clone());
            tokio::spawn(async move { pay(&database, &execution).await.map(drop) })
        };
        let (one, other) = join(pays(), pays()).await;
        let refused = match (one.unwrap(), other.unwrap()) {
            (Ok(()), Err(refused)) | (Err(refused), Ok(())) => refused,
            both => panic!("{both:?}"),
        };
        assert_eq!(kind(&refused), "AlreadyCommitted");
        answer(500, "made up")
    });
    for key in ["1", "2", "3", "4", "5"] {
        let seen = bench.send(key, &twice).await;
        seen.is(Outcome::Completed, 201, "attempt 1");
        bench.is_settled(key, 1).await;
    }
}

/// P7: a deferred constraint speaks at the commit. Nothing is written then, and the handler may
/// begin another transaction, or leave it to a retry.
async fn p7_what_is_refused_at_the_commit_is_not_written<D: Database>() {
    let bench = Bench::<D>::new().await;
    for (key, stubborn) in [("left", false), ("tried again", true)] {
        let refused = handler(move |database: D, execution| async move {
            let transaction = database.begin().await.unwrap();
            let mut transaction = execution.transaction(transaction).unwrap();
            let written = database.insert(&mut transaction, execution.key(), "half");
            written.await.unwrap();
            let written = database.insert_what_is_refused(&mut transaction);
            written.await.unwrap();
            let refused = commit(transaction, &execution).await.unwrap_err();
            assert!(matches!(refused, CommitError::Refused(_)), "{refused:?}");
            match stubborn {
                true => told(pay(&database, &execution).await),
                false => answer(500, "refused"),
            }
        });
        let seen = bench.send(key, &refused).await;
        if stubborn {
            seen.is(Outcome::Completed, 201, "attempt 1");
            bench.is_settled(key, 1).await;
        } else {
            seen.is(Outcome::Failed, 500, "refused");
            bench.holds(key, Some((State::Failed, 1)), &[]).await;
            bench.can_be_done(key, 2).await;
        }
    }
}

/// P7: what the handler undoes within its transaction is not written, and the rest is.
async fn p7_savepoints_are_the_handlers_own_matter<D: Database>() {
    let bench = Bench::<D>::new().await;
    let nesting = handler(|database: D, execution| async move {
        let transaction = database.begin().await.unwrap();
        let mut transaction = execution.transaction(transaction).unwrap();
        database.insert_and_undo(&mut transaction).await.unwrap();
        let note = note(&execution);
        let written = database.insert(&mut transaction, execution.key(), &note);
        written.await.unwrap();
        told(commit(transaction, &execution).await)
    });
    let seen = bench.send("k", &nesting).await;
    seen.is(Outcome::Completed, 201, "attempt 1");
    assert!(bench.rows("undone").await.is_empty());
    bench.is_settled("k", 1).await;
}

/// P7, P1: many operations at the same time, each sent three times: a row each.
async fn p7_operations_beside_each_other_write_a_row_each<D: Database>() {
    let bench = Bench::<D>::new().await;
    let sent: Vec<_> = (0..60)
        .map(|number| bench.start(&(number % 20).to_string(), &good()))
        .collect();
    for seen in sent {
        let seen = seen.await.unwrap();
        assert!(matches!(seen.status, 201 | 409), "{seen:?}");
    }
    for key in 0..20 {
        bench.is_settled(&key.to_string(), 1).await;
    }
}
