//! Several threads on distinct keys and on one hot key: how many requests all of them do together.
//! The floor is the same number of threads on one map behind one mutex.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput};
use http::StatusCode;

use super::support::{
    self,
    floors::{Map, name, value},
    records::Sample,
    service::{KIB, Upload, call, layered, request, store},
};

/// What the threads do.
#[derive(Clone, Copy)]
enum On {
    DistinctKeys,
    OneHotKey,
}

/// So many requests each thread makes before all begin together.
const BATCH: u64 = 500;

/// Runs `work` on so many threads until each has done its share, in batches that all begin at once.
/// `prepare` makes the requests of one batch, outside of the time that is taken.
fn share<T>(
    threads: u64,
    times: u64,
    prepare: impl Fn(u64) -> Vec<T> + Sync,
    worker: impl Fn() -> Box<dyn FnMut(T)> + Sync,
) -> Duration {
    let each = times.div_ceil(threads);
    let batches = each.div_ceil(BATCH);
    let barrier = Barrier::new(threads as usize + 1);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let runtime = support::runtime();
                let _entered = runtime.enter();
                let mut work = worker();
                for batch in 0..batches {
                    let items = prepare(BATCH.min(each - batch * BATCH));
                    barrier.wait();
                    items.into_iter().for_each(&mut work);
                    barrier.wait();
                }
            });
        }
        (0..batches)
            .map(|_| {
                barrier.wait();
                let start = Instant::now();
                barrier.wait();
                start.elapsed()
            })
            .sum()
    })
}

pub(crate) fn threads(c: &mut Criterion) {
    let upload = Upload::whole(KIB);
    let sample = Arc::new(Sample::of(&upload));
    for (title, on) in [
        ("distinct keys, fresh", On::DistinctKeys),
        ("one hot key, replayed", On::OneHotKey),
    ] {
        let mut group = c.benchmark_group(format!("threads, {title}"));
        group.throughput(Throughput::Elements(1));
        for threads in [1, 2, 4] {
            let next = AtomicU64::new(1);
            let number = || match on {
                On::DistinctKeys => next.fetch_add(1, Relaxed),
                On::OneHotKey => 0,
            };
            let service = layered(store());
            group.bench_function(format!("{threads}"), |b| {
                call(
                    &mut service.clone(),
                    request(Some(0), &upload),
                    StatusCode::CREATED,
                );
                let prepare = |batch| {
                    (0..batch)
                        .map(|_| request(Some(number()), &upload))
                        .collect()
                };
                let worker = || -> Box<dyn FnMut(_)> {
                    let mut service = service.clone();
                    Box::new(move |request| call(&mut service, request, StatusCode::CREATED))
                };
                b.iter_custom(|times| share(threads, times, prepare, worker));
            });
            let map = Arc::new(Map::filled(1, &sample));
            group.bench_function(format!("floor: the map, {threads}"), |b| {
                let prepare = |batch| (0..batch).map(|_| name(&sample, number())).collect();
                let worker = || -> Box<dyn FnMut(String)> {
                    let map = Arc::clone(&map);
                    match on {
                        On::DistinctKeys => {
                            let value = value(1);
                            Box::new(move |name| map.insert_and_update(&name, &value))
                        }
                        On::OneHotKey => Box::new(move |name| map.look_up(&name)),
                    }
                };
                b.iter_custom(|times| share(threads, times, prepare, worker));
            });
        }
        group.finish();
    }
}
