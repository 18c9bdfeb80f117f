//! The server is frozen (SIGSTOP) for longer than a store call may take, and thawed.

use tower_idempotency::{Entry, Outcome};

use crate::support::{
    PATIENCE, RECORD_TIMEOUT, SHORT_LEASE, STORE_TIMEOUT, Server, Work, over_each_server,
};

over_each_server! {
    p8_frozen_at_the_claim
    p1_frozen_at_a_renewal
    p1_frozen_for_longer_than_the_lease
    p3_frozen_at_the_completion
    p9_frozen_while_others_wait
}

/// P8: the request is refused at the deadline. Its claim may take effect in the thaw, unheard: then
/// it is given back, and does not keep the key for its lease.
async fn p8_frozen_at_the_claim<S: Server>() {
    let mut server = S::start();
    let work = Work::new();
    let instance = server.instance(&work).await;
    instance.send("before").await.is_run(Outcome::Completed, 1);
    server.freeze();
    let refused = instance.send("k").await;
    refused.is_unavailable();
    assert!(refused.took >= STORE_TIMEOUT, "{refused:?}");
    assert!(refused.took < PATIENCE / 2, "{refused:?}");
    instance.send("before").await.is_unavailable();
    assert_eq!(work.count(), 1);

    server.thaw();
    instance.drain().await;
    let start = std::time::Instant::now();
    instance.retry("k").await.is_run(Outcome::Completed, 2);
    // Its lease is 30 s.
    assert!(start.elapsed().as_secs() < 15);
    let run = &work.runs()[1];
    assert_eq!((run.attempt, run.entry), (1, Entry::First));
    instance.send("before").await.is_replay_of(1);
}

/// P1: a renewal that hangs is tried again; the lease holds over an outage that is shorter.
async fn p1_frozen_at_a_renewal<S: Server>() {
    let mut server = S::start();
    let work = Work::held();
    let lease = 4 * SHORT_LEASE;
    let instance = server.instance(&work).await.with(|l| l.lease(lease));
    let other = server.instance(&work).await.with(|l| l.lease(lease));
    let first = instance.start("k");
    work.entered().await;
    server.freeze();
    // The first one was given up when the second one begins.
    instance.calls.more("renew", 2).await;
    other.send("k").await.is_unavailable();
    server.thaw();
    other.drain().await;
    other.send("k").await.is_in_progress();
    // And it is kept beyond its first end.
    instance.calls.more("renew", 3).await;
    other.send("k").await.is_in_progress();
    work.let_go();
    first.await.unwrap().is_run(Outcome::Completed, 1);
    other.send("k").await.is_replay_of(1);
    assert_eq!(work.count(), 1);
}

/// P1: the lease ended, and nobody took over: its owner's answer is recorded.
async fn p1_frozen_for_longer_than_the_lease<S: Server>() {
    let mut server = S::start();
    let work = Work::held();
    let instance = server.instance(&work).await;
    let instance = instance.with(|layer| layer.lease(SHORT_LEASE).record_timeout(PATIENCE));
    let first = instance.start("k");
    work.entered().await;
    server.freeze();
    tokio::time::sleep(SHORT_LEASE).await;
    let completing = instance.calls.more("complete", 1);
    work.let_go();
    completing.await;
    server.thaw();
    first.await.unwrap().is_run(Outcome::Completed, 1);
    instance.send("k").await.is_replay_of(1);
    assert_eq!((work.count(), work.runs()[0].attempt), (1, 1));
}

/// P3: the answer is given after the budget. Recorded is the first completion that gets through.
async fn p3_frozen_at_the_completion<S: Server>() {
    let mut server = S::start();
    let work = Work::held();
    let instance = server.instance(&work).await;
    let first = instance.start("k");
    work.entered().await;
    server.freeze();
    work.let_go();
    let answer = first.await.unwrap();
    answer.is_run(Outcome::Unrecorded, 1);
    assert!(answer.took >= RECORD_TIMEOUT, "{answer:?}");
    instance.send("k").await.is_unavailable();
    server.thaw();
    instance.drain().await;
    instance.send("k").await.is_replay_of(1);
    assert_eq!(work.count(), 1);
}

/// P9: whoever waits when the server freezes is answered within its limit; whoever has more
/// patience gets the answer after the thaw.
async fn p9_frozen_while_others_wait<S: Server>() {
    let mut server = S::start();
    let work = Work::held();
    let instance = server.instance(&work).await;
    let patient = server.instance(&work).await.waiting(PATIENCE);
    let hasty = patient.clone().waiting(2 * STORE_TIMEOUT);
    let first = instance.start("k");
    work.entered().await;
    let waiting = patient.calls.more("wait", 1);
    let patient_one = patient.start("k");
    waiting.await;
    let claiming = patient.calls.more("claim", 1);
    let hasty_one = hasty.start("k");
    claiming.await;
    server.freeze();
    let answer = hasty_one.await.unwrap();
    assert!(matches!(answer.status, 409 | 503), "{answer:?}");
    assert!(answer.retry_after.is_some());
    assert!(answer.took < PATIENCE / 2, "{answer:?}");
    assert!(!patient_one.is_finished());
    server.thaw();
    work.let_go();
    first.await.unwrap().is_run(Outcome::Completed, 1);
    patient_one.await.unwrap().is_replay_of(1);
    assert_eq!(work.count(), 1);
}
