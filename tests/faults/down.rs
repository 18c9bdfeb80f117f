//! The server is down.

use tower_idempotency::Outcome;

use crate::support::{RECORD_TIMEOUT, Server, Work, over_each_server};

over_each_server! {
    p8_u13_down_at_the_claim
    p3_down_at_the_completion
    p3_back_within_the_budget
    p3_s22_down_at_the_rejection
    p1_p2_restarted_with_its_data
}

/// P8, U13: the handler does not run, and runs once when the server is back.
async fn p8_u13_down_at_the_claim<S: Server>() {
    let mut server = S::start();
    let work = Work::new();
    let instance = server.instance(&work).await;
    instance.send("before").await.is_run(Outcome::Completed, 1);
    server.kill();
    instance.send("k").await.is_unavailable();
    // A replay is not to be had either, and nothing is executed again instead.
    instance.send("before").await.is_unavailable();
    assert_eq!(work.count(), 1);

    server.restart();
    instance.retry("k").await.is_run(Outcome::Completed, 2);
    instance.send("k").await.is_replay_of(2);
    instance.send("before").await.is_replay_of(1);
    assert_eq!(work.count(), 2);
}

/// P3: the answer is given after the budget, and recorded in the background once the server is
/// back. P1: nothing runs twice meanwhile.
async fn p3_down_at_the_completion<S: Server>() {
    let mut server = S::start();
    let work = Work::held();
    let instance = server.instance(&work).await;
    let other = server.instance(&work).await;
    let first = instance.start("k");
    work.entered().await;
    server.kill();
    work.let_go();
    let answer = first.await.unwrap();
    answer.is_run(Outcome::Unrecorded, 1);
    assert!(answer.took >= RECORD_TIMEOUT, "{answer:?}");
    instance.send("k").await.is_unavailable();
    other.send("k").await.is_unavailable();

    server.restart();
    // Whether it is recorded by now or not.
    other.retry("k").await.is_replay_of(1);
    instance.drain().await;
    instance.send("k").await.is_replay_of(1);
    assert_eq!(work.count(), 1);
}

/// P3: an outage within the budget only delays the answer.
async fn p3_back_within_the_budget<S: Server>() {
    let mut server = S::start();
    let work = Work::held();
    let instance = server.instance(&work).await;
    let instance = instance.with(|layer| layer.record_timeout(crate::support::PATIENCE));
    let first = instance.start("k");
    work.entered().await;
    server.kill();
    work.let_go();
    instance.calls.more("complete", 2).await;
    assert!(!first.is_finished());
    server.restart();
    first.await.unwrap().is_run(Outcome::Completed, 1);
    instance.send("k").await.is_replay_of(1);
    assert_eq!(work.count(), 1);
}

/// P3, S22: a rejection is given too, and frees the key later, for another payload.
async fn p3_s22_down_at_the_rejection<S: Server>() {
    let mut server = S::start();
    let work = Work::held();
    work.answers_with(422);
    let instance = server.instance(&work).await;
    let first = instance.start("k");
    work.entered().await;
    server.kill();
    work.let_go();
    let answer = first.await.unwrap();
    answer.is_run(Outcome::Unrecorded, 1);
    assert_eq!(answer.status, 422);

    server.restart();
    instance.drain().await;
    work.answers_with(201);
    work.let_go();
    let corrected = instance.send_body("k", "99 EUR").await;
    corrected.is_run(Outcome::Completed, 2);
}

/// P1, P2: a server that crashes and comes back with its data in mid-handler changes nothing.
async fn p1_p2_restarted_with_its_data<S: Server>() {
    let mut server = S::start();
    let work = Work::held();
    let instance = server.instance(&work).await;
    let other = server.instance(&work).await;
    let first = instance.start("k");
    work.entered().await;
    server.kill();
    server.restart();
    let conflict = async {
        loop {
            let answer = other.send("k").await;
            if answer.status != 503 {
                return answer;
            }
        }
    };
    crate::support::soon("it is back", conflict)
        .await
        .is_in_progress();
    work.let_go();
    first.await.unwrap().is_run(Outcome::Completed, 1);
    other.send("k").await.is_replay_of(1);
    assert_eq!(work.count(), 1);
}
