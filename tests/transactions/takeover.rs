//! A key that changes hands while its handler is in the middle of its work.
//!
//! The clock of the store is moved ahead, so that a lease ends, or a record expires, between two
//! steps. Nothing renews meanwhile.

use tower_idempotency::{Entry, Outcome, State, Store};

use crate::{
    bench::{Bench, Gate, LEASE, TTL, answer, commit, good, good_after, handler, note, pay, told},
    database::Database,
};

on_each_database!(
    p7_a_lease_that_ended_does_no_harm,
    p7_p6_while_a_newer_owner_runs_nothing_is_committed,
    p7_p6_after_a_newer_owner_completed_nothing_is_committed,
    p7_p6_after_a_newer_owner_failed_nothing_is_committed,
    p7_p6_after_a_newer_owner_was_rejected_nothing_is_committed,
    p7_p6_two_executions_at_once_leave_one_row,
    p7_a_record_that_expired_cannot_be_completed,
    p7_p6_an_operation_of_a_later_day_is_left_alone,
    p7_p6_a_record_that_was_removed_is_not_made_anew,
);

/// P7: nobody took over, so the first owner may still commit.
async fn p7_a_lease_that_ended_does_no_harm<D: Database>() {
    let bench = Bench::<D>::new().await;
    let gate = Gate::new();
    let slow = bench.start("k", &good_after(&gate));
    gate.reached().await;
    bench.database.advance_clock(LEASE + LEASE / 2);
    gate.open();
    slow.await.unwrap().is(Outcome::Completed, 201, "attempt 1");
    bench.is_settled("k", 1).await;
}

/// P7, P6: the commit is refused, and nobody is told of an answer that is not there yet.
async fn p7_p6_while_a_newer_owner_runs_nothing_is_committed<D: Database>() {
    let bench = Bench::<D>::new().await;
    let (first, second) = (Gate::new(), Gate::new());
    let stale = bench.start("k", &good_after(&first));
    first.reached().await;
    bench.database.advance_clock(LEASE);
    let newer = bench.start("k", &good_after(&second));
    second.reached().await;
    bench.holds("k", Some((State::InProgress, 2)), &[]).await;

    first.open();
    let seen = stale.await.unwrap();
    seen.is(Outcome::Superseded, 500, "Superseded");
    bench.holds("k", Some((State::InProgress, 2)), &[]).await;

    second.open();
    let seen = newer.await.unwrap();
    seen.is(Outcome::Completed, 201, "attempt 2");
    bench.is_settled("k", 2).await;
}

/// P7, P6: the caller of the first owner gets the answer of the newer one.
async fn p7_p6_after_a_newer_owner_completed_nothing_is_committed<D: Database>() {
    let bench = Bench::<D>::new().await;
    let gate = Gate::new();
    let stale = bench.start("k", &good_after(&gate));
    gate.reached().await;
    bench.database.advance_clock(LEASE);
    let newer = bench.send("k", &good()).await;
    newer.is(Outcome::Completed, 201, "attempt 2");

    gate.open();
    let seen = stale.await.unwrap();
    seen.is(Outcome::Replayed, 201, "attempt 2");
    bench.is_settled("k", 2).await;
}

/// P7, P6: the newer owner's failure stands, and a retry is the third attempt.
async fn p7_p6_after_a_newer_owner_failed_nothing_is_committed<D: Database>() {
    let bench = Bench::<D>::new().await;
    let gate = Gate::new();
    let stale = bench.start("k", &good_after(&gate));
    gate.reached().await;
    bench.database.advance_clock(LEASE);
    let fails = handler(|_, execution| async move {
        assert_eq!(execution.entry(), Entry::Takeover);
        answer(500, "broken")
    });
    bench
        .send("k", &fails)
        .await
        .is(Outcome::Failed, 500, "broken");

    gate.open();
    let seen = stale.await.unwrap();
    seen.is(Outcome::Superseded, 500, "Superseded");
    bench.holds("k", Some((State::Failed, 2)), &[]).await;
    bench.can_be_done("k", 3).await;
}

/// P7, P6: a rejection of the newer owner's is no proof that the first one did nothing, so it counts
/// as a failure; and the first one still has no say.
async fn p7_p6_after_a_newer_owner_was_rejected_nothing_is_committed<D: Database>() {
    let bench = Bench::<D>::new().await;
    let gate = Gate::new();
    let stale = bench.start("k", &good_after(&gate));
    gate.reached().await;
    bench.database.advance_clock(LEASE);
    let rejects = handler(|_, _| async move { answer(409, "no") });
    assert_eq!(bench.send("k", &rejects).await.status, 409);

    gate.open();
    assert_eq!(stale.await.unwrap().text, "Superseded");
    bench.holds("k", Some((State::Failed, 2)), &[]).await;
    bench.can_be_done("k", 3).await;
}

/// P7, P6: two executions are inside their transactions at the same time, in whatever order they
/// come to their rows and to their end: the one that holds the key writes.
async fn p7_p6_two_executions_at_once_leave_one_row<D: Database>() {
    let bench = Bench::<D>::new().await;
    for (key, newer_first) in [("newer first", true), ("older first", false)] {
        let (older, newer) = (Gate::new(), Gate::new());
        let inside = |gate: &Gate| {
            let gate = gate.clone();
            handler(move |database: D, execution| {
                let gate = gate.clone();
                async move {
                    let transaction = database.begin().await.unwrap();
                    let mut transaction = execution.transaction(transaction).unwrap();
                    gate.pass().await;
                    let note = note(&execution);
                    let written = database.insert(&mut transaction, execution.key(), &note);
                    written.await.unwrap();
                    told(commit(transaction, &execution).await)
                }
            })
        };
        let first = bench.start(key, &inside(&older));
        older.reached().await;
        bench.database.advance_clock(LEASE);
        let second = bench.start(key, &inside(&newer));
        newer.reached().await;
        let (first, second) = match newer_first {
            true => {
                newer.open();
                let second = second.await.unwrap();
                older.open();
                (first.await.unwrap(), second)
            }
            false => {
                older.open();
                let first = first.await.unwrap();
                newer.open();
                (first, second.await.unwrap())
            }
        };
        second.is(Outcome::Completed, 201, "attempt 2");
        match newer_first {
            true => first.is(Outcome::Replayed, 201, "attempt 2"),
            false => first.is(Outcome::Superseded, 500, "Superseded"),
        }
        bench.is_settled(key, 2).await;
    }
    // Let go at the same moment, they come in any order.
    for round in 0..10 {
        let key = round.to_string();
        let (older, newer) = (Gate::new(), Gate::new());
        let first = bench.start(&key, &good_after(&older));
        older.reached().await;
        bench.database.advance_clock(LEASE);
        let second = bench.start(&key, &good_after(&newer));
        newer.reached().await;
        older.open();
        newer.open();
        let (first, second) = (first.await.unwrap(), second.await.unwrap());
        second.is(Outcome::Completed, 201, "attempt 2");
        assert!(matches!(first.status, 201 | 500), "{first:?}");
        bench.is_settled(&key, 2).await;
    }
}

/// P7: nobody came after the record expired, and its first owner does not write all the same: it
/// cannot know that nobody came and went.
async fn p7_a_record_that_expired_cannot_be_completed<D: Database>() {
    let bench = Bench::<D>::new().await;
    let gate = Gate::new();
    let stale = bench.start("k", &good_after(&gate));
    gate.reached().await;
    bench.database.advance_clock(LEASE + TTL);
    assert_eq!(bench.record("k").await, None);
    gate.open();
    let seen = stale.await.unwrap();
    assert_eq!((seen.status, seen.text.as_str()), (500, "Gone"));
    bench.holds("k", None, &[]).await;
    bench.can_be_done("k", 1).await;
}

/// P7, P6: the key was used for a new operation after the record expired: that one has its row, also
/// where it has expired itself meanwhile, and the first one has none.
async fn p7_p6_an_operation_of_a_later_day_is_left_alone<D: Database>() {
    let bench = Bench::<D>::new().await;
    for (key, expired_too) in [("live", false), ("expired", true)] {
        let gate = Gate::new();
        let stale = bench.start(key, &good_after(&gate));
        gate.reached().await;
        bench.database.advance_clock(LEASE + TTL);
        let first_again = handler(|database, execution| async move {
            assert_eq!((execution.entry(), execution.attempt()), (Entry::First, 1));
            told(pay(&database, &execution).await)
        });
        let newer = bench.send(key, &first_again).await;
        newer.is(Outcome::Completed, 201, "attempt 1");
        if expired_too {
            bench.database.advance_clock(TTL);
        }
        gate.open();
        let seen = stale.await.unwrap();
        if expired_too {
            assert_eq!((seen.status, seen.text.as_str()), (500, "Gone"));
            bench.holds(key, None, &["attempt 1"]).await;
        } else {
            seen.is(Outcome::Replayed, 201, "attempt 1");
            bench.is_settled(key, 1).await;
        }
    }
}

/// P7: an operator removed the record while the handler ran: nothing is written.
async fn p7_p6_a_record_that_was_removed_is_not_made_anew<D: Database>() {
    let bench = Bench::<D>::new().await;
    let gate = Gate::new();
    let stale = bench.start("k", &good_after(&gate));
    gate.reached().await;
    let key = bench.store_key("k");
    assert!(bench.database.store().forget(&key).await.unwrap());
    gate.open();
    let seen = stale.await.unwrap();
    assert_eq!((seen.status, seen.text.as_str()), (500, "Gone"));
    bench.holds("k", None, &[]).await;
    bench.can_be_done("k", 1).await;
}
