//! A server that lost its records: Redis without persistence, restarted in mid-handler.

use tower_idempotency::{Entry, Outcome};

use crate::{
    servers::redis::RedisServer,
    support::{Instance, Place, SHORT_LEASE, Work, soon},
};

/// A held execution over a server that was started again since and has nothing; and another
/// instance.
async fn restarted(work: &Work) -> (RedisServer, Instance, Instance, Held) {
    let mut server = RedisServer::start(&[]);
    let instance = server.instance(work).await.with(|l| l.lease(SHORT_LEASE));
    let other = server.instance(work).await;
    let first = instance.start("k");
    work.entered().await;
    server.restart();
    (server, instance, other, first)
}

type Held = tokio::task::JoinHandle<crate::support::Answer>;

/// P1: where nobody asked meanwhile nothing is lost: the answer makes the record anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_the_answer_makes_the_record_anew() {
    let work = Work::held();
    let (_server, instance, other, first) = restarted(&work).await;
    // It goes on being renewed in vain.
    instance.calls.more("renew", 2).await;
    work.let_go();
    first.await.unwrap().is_run(Outcome::Completed, 1);
    other.retry("k").await.is_replay_of(1);
    assert_eq!(work.count(), 1);
}

/// What is documented as lost: a duplicate that comes before the answer runs again, as if it were
/// the first. P6: from then on the key is its own. The first one hears of it, records nothing, and
/// its client gets the one answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_duplicate_before_the_answer_runs_again() {
    let work = Work::held();
    let (_server, instance, other, first) = restarted(&work).await;
    let retrying = other.clone();
    let second = tokio::spawn(async move { retrying.retry("k").await });
    work.entered().await;
    let runs = work.runs();
    assert_eq!((runs[1].attempt, runs[1].entry), (1, Entry::First));
    let heard = runs[0].execution.superseded();
    soon("the first one hears of the second", heard).await;
    assert!(!runs[1].execution.is_superseded());

    // They are let go in the order in which they came.
    work.let_go();
    let answer = first.await.unwrap();
    assert_eq!(answer.outcome, Outcome::Superseded);
    assert_eq!((answer.status, answer.retry_after.is_some()), (409, true));
    work.let_go();
    second.await.unwrap().is_run(Outcome::Completed, 2);
    instance.send("k").await.is_replay_of(2);
    assert_eq!(work.count(), 2);
}

/// P6: the same where the duplicate is the first to end: the other's client gets that answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_duplicate_that_ends_first_is_the_one_answer() {
    let work = Work::held();
    let (_server, instance, other, first) = restarted(&work).await;
    work.hold_no_more();
    other.retry("k").await.is_run(Outcome::Completed, 2);
    work.let_go();
    first.await.unwrap().is_replay_of(2);
    instance.send("k").await.is_replay_of(2);
    assert_eq!(work.count(), 2);
}
