//! Requests that wait for another instance's execution.

use std::time::{Duration, Instant};

use tower_idempotency::Outcome;

use crate::{
    servers::proxy::Proxy,
    support::{PATIENCE, Server, Work, over_each_server, until},
};

over_each_server! {
    s03_woken_by_another_instance
    p9_u29_the_server_dies_while_others_wait
}

/// S03: an end is told to those who wait at another instance. They look at the record each half
/// second to a second besides; so the handler is let go when they have just looked.
async fn s03_woken_by_another_instance<S: Server>() {
    /// Less than the pause between two looks.
    const PROMPTLY: Duration = Duration::from_millis(400);

    let work = Work::held();
    let server = S::shared();
    let instance = server.instance(&work).await;
    let proxy = Proxy::before(server.address()).await;
    let waiting = S::instance_behind(&proxy, &work).await.waiting(PATIENCE);
    let mut took = Vec::new();
    for round in 1..=5 {
        let key = format!("woken {round}");
        let first = instance.start(&key);
        work.entered().await;
        let begun = waiting.calls.more("wait", usize::from(round == 1));
        let second = waiting.start(&key);
        begun.await;
        let mut seen = (proxy.round_trips(), Instant::now());
        until("they look only now and then", || {
            if proxy.round_trips() == seen.0 {
                return false;
            }
            let pause = seen.1.elapsed();
            seen = (proxy.round_trips(), Instant::now());
            pause > PROMPTLY
        })
        .await;
        let start = Instant::now();
        work.let_go();
        second.await.unwrap().is_replay_of(round);
        took.push(start.elapsed());
        first.await.unwrap().is_run(Outcome::Completed, round);
    }
    // The machine may be busy now and then.
    let prompt = took.iter().filter(|took| **took < PROMPTLY).count();
    assert!(prompt >= 3, "{took:?}");
}

/// P9, U29: those who wait while the server dies are answered within their limit, with a refusal
/// that says when to come again, or with the answer if it is back by then. The record is as it was.
async fn p9_u29_the_server_dies_while_others_wait<S: Server>() {
    const LIMIT: Duration = Duration::from_secs(3);

    let mut server = S::start();
    let work = Work::held();
    let instance = server.instance(&work).await;
    let patient = server.instance(&work).await.waiting(PATIENCE);
    let hasty = server.instance(&work).await.waiting(LIMIT);
    let first = instance.start("k");
    work.entered().await;
    let (hasty_one, patient_one) = (hasty.start("k"), patient.start("k"));
    until("they wait", || {
        hasty.calls.count("wait") > 0 && patient.calls.count("wait") > 0
    })
    .await;
    server.kill();
    let answer = hasty_one.await.unwrap();
    answer.is_in_progress();
    assert!(answer.took >= LIMIT, "{answer:?}");
    assert!(answer.took < PATIENCE / 2, "{answer:?}");
    // Nothing of it is left to be awaited.
    hasty.drain().await;
    assert!(!patient_one.is_finished());

    server.restart();
    work.let_go();
    let answer = first.await.unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
    patient_one.await.unwrap().is_replay_of(1);
    hasty.send("k").await.is_replay_of(1);
    assert_eq!(work.count(), 1);
}
