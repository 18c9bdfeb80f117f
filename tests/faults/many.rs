//! Duplicates over several instances of a service.

use std::sync::Arc;

use futures::future::join_all;
use tokio::sync::Barrier;
use tower_idempotency::Outcome;

use crate::support::{Answer, Instance, PATIENCE, Place, Work, over_each_place, soon};

over_each_place! {
    u01_s10_s14_fifty_duplicates_are_refused
    u01_s10_s14_fifty_duplicates_wait
}

/// Three instances, each with connections of its own.
async fn three<P: Place>(place: &P, work: &Work) -> Vec<Instance> {
    let mut instances = Vec::new();
    for _ in 0..3 {
        instances.push(place.instance(work).await.with(patient));
    }
    instances
}

/// Fifty at once on a busy machine take their time.
fn patient<S>(
    layer: tower_idempotency::IdempotencyLayer<S>,
) -> tower_idempotency::IdempotencyLayer<S> {
    layer.store_timeout(PATIENCE).record_timeout(PATIENCE)
}

/// Sends fifty of them at once. The handler is let go once `before` of them have their answers.
async fn fifty(instances: &[Instance], work: &Work, key: &str, before: usize) -> Vec<Answer> {
    let barrier = Arc::new(Barrier::new(50));
    let answered = Arc::new(tokio::sync::Semaphore::new(0));
    let requests: Vec<_> = (0..50)
        .map(|n| {
            let instance = instances[n % instances.len()].clone();
            let (barrier, answered) = (Arc::clone(&barrier), Arc::clone(&answered));
            let key = key.to_owned();
            tokio::spawn(async move {
                barrier.wait().await;
                let answer = instance.send(&key).await;
                answered.add_permits(1);
                answer
            })
        })
        .collect();
    work.entered().await;
    let permits = u32::try_from(before).unwrap();
    let enough = soon("they are answered", answered.acquire_many(permits));
    enough.await.unwrap().forget();
    work.let_go();
    let answers = soon("all are answered", join_all(requests)).await;
    answers.into_iter().map(Result::unwrap).collect()
}

/// U01, S10, S14: fifty duplicates at once over three instances are one execution; the others are
/// refused while it runs, and replayed then.
pub async fn u01_s10_s14_fifty_duplicates_are_refused<P: Place>() {
    let work = Work::held();
    let place = P::shared();
    let instances = three(&*place, &work).await;
    let answers = fifty(&instances, &work, "fifty refused", 49).await;
    for answer in &answers {
        match answer.outcome {
            Outcome::Completed => answer.is_run(Outcome::Completed, 1),
            _ => answer.is_in_progress(),
        }
    }
    let ran = answers.iter().filter(|answer| answer.status == 201);
    assert_eq!((ran.count(), work.count()), (1, 1));
    for instance in instances.iter().cycle().take(50) {
        instance.send("fifty refused").await.is_replay_of(1);
    }
    assert_eq!(work.count(), 1);
}

/// The same where they wait: all get the one answer.
pub async fn u01_s10_s14_fifty_duplicates_wait<P: Place>() {
    let work = Work::held();
    let place = P::shared();
    let instances: Vec<_> = three(&*place, &work)
        .await
        .into_iter()
        .map(|instance| instance.waiting(PATIENCE))
        .collect();
    let answers = fifty(&instances, &work, "fifty wait", 0).await;
    let ran = answers
        .iter()
        .filter(|answer| answer.outcome == Outcome::Completed);
    assert_eq!((ran.count(), work.count()), (1, 1));
    for answer in &answers {
        match answer.outcome {
            Outcome::Completed => answer.is_run(Outcome::Completed, 1),
            _ => answer.is_replay_of(1),
        }
    }
}
