//! Many requests that wait for one execution: from its end until all of them have their answer.
//! The floor is as many tasks on one channel of tokio, woken by one message.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput};
use http::Request;
use tokio::{
    runtime::Runtime,
    sync::{Semaphore, watch},
    task::{JoinSet, yield_now},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::{OnConflict, Outcome, RequestBody};

use super::support::{
    many,
    service::{KIB, Upload, handler, layer, request, store},
};

const LONG: Duration = Duration::from_secs(60 * 60);

pub(crate) fn waiters(c: &mut Criterion, runtime: &Runtime) {
    for waiters in [100, 1_000] {
        let mut group = c.benchmark_group(format!("waiters, {waiters} on one key"));
        let waiters = many(waiters);
        group.throughput(Throughput::Elements(waiters));
        group.bench_function("floor: one message", |b| {
            b.iter_custom(|times| (0..times).map(|_| runtime.block_on(tasks(waiters))).sum());
        });
        group.bench_function("one completion", |b| {
            b.iter_custom(|times| {
                (0..times)
                    .map(|_| runtime.block_on(requests(waiters)))
                    .sum()
            });
        });
        group.finish();
    }
}

/// From the end of the handler until all have their answers.
async fn requests(waiters: u64) -> Duration {
    let (gate, entered) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU64::new(0)));
    let held = {
        let (gate, entered) = (Arc::clone(&gate), Arc::clone(&entered));
        move |request: Request<RequestBody<Upload>>| {
            entered.fetch_add(1, Relaxed);
            let gate = Arc::clone(&gate);
            async move {
                let _permit = gate.acquire().await;
                handler(request).await
            }
        }
    };
    let layer = layer(store()).on_conflict(OnConflict::Wait(LONG));
    let service = layer.layer(service_fn(held));
    let upload = Upload::whole(KIB);
    let mut tasks = JoinSet::new();
    for _ in 0..=waiters {
        let answer = service.clone().oneshot(request(Some(0), &upload));
        tasks.spawn(async {
            answer
                .await
                .map(|answer| answer.extensions().get().copied())
        });
    }
    settle(waiters).await;

    let start = Instant::now();
    gate.add_permits(1);
    let mut replays = 0;
    while let Some(ended) = tasks.join_next().await {
        let Ok(outcome) = ended.expect("no panic");
        match outcome {
            Some(Outcome::Replayed) => replays += 1,
            outcome => assert_eq!(outcome, Some(Outcome::Completed)),
        }
    }
    let taken = start.elapsed();
    assert_eq!((replays, entered.load(Relaxed)), (waiters, 1));
    taken
}

/// From a message until all tasks that waited for it have ended.
async fn tasks(waiters: u64) -> Duration {
    let (sender, receiver) = watch::channel(());
    let mut tasks = JoinSet::new();
    for _ in 0..=waiters {
        let mut receiver = receiver.clone();
        tasks.spawn(async move { receiver.changed().await });
    }
    settle(waiters).await;

    let start = Instant::now();
    sender.send_replace(());
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no panic").expect("a message");
    }
    start.elapsed()
}

/// Lets every task run until it waits. The runtime comes back to this one after some sixty others.
async fn settle(tasks: u64) {
    for _ in 0..tasks {
        yield_now().await;
    }
}
