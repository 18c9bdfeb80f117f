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
use tower_idempotency::Store;

use super::support::{
    self,
    floors::{Map, name, value},
    records::Sample,
    service::{KIB, Upload, call, layered, now, request, store},
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
/// Each item of a batch is made from the number of a key, outside of the time that is taken; so is
/// what `clean` does with the numbers.
fn share<T>(
    (threads, times): (u64, u64),
    number: impl Fn() -> u64 + Sync,
    make: impl Fn(u64) -> T + Sync,
    worker: impl Fn() -> Box<dyn FnMut(T)> + Sync,
    clean: impl Fn(u64) + Sync,
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
                    let size = BATCH.min(each - batch * BATCH);
                    let numbers: Vec<_> = (0..size).map(|_| number()).collect();
                    let items: Vec<_> = numbers.iter().map(|n| make(*n)).collect();
                    barrier.wait();
                    items.into_iter().for_each(&mut work);
                    barrier.wait();
                    numbers.into_iter().for_each(&clean);
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
    let sample = Sample::of(&upload);
    let store = store();
    let map = Arc::new(Map::filled(1, &sample));
    let service = layered(store.clone());
    // The hot key.
    let hot = request(Some(0), &upload);
    call(&mut service.clone(), hot, StatusCode::CREATED);
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
            group.bench_function(format!("{threads}"), |b| {
                let make = |number| request(Some(number), &upload);
                let worker = || -> Box<dyn FnMut(_)> {
                    let mut service = service.clone();
                    Box::new(move |request| call(&mut service, request, StatusCode::CREATED))
                };
                let clean = |number| {
                    if let On::DistinctKeys = on {
                        let forgotten = now(store.forget(&sample.key(number)));
                        assert!(forgotten.expect("the store answers"));
                    }
                };
                b.iter_custom(|times| share((threads, times), number, make, worker, clean));
            });
            group.bench_function(format!("floor: the map, {threads}"), |b| {
                let make = |number| name(&sample, number);
                let worker = || -> Box<dyn FnMut(String)> {
                    let (map, value) = (Arc::clone(&map), value(1));
                    match on {
                        On::DistinctKeys => {
                            Box::new(move |name| map.insert_and_update(&name, &value))
                        }
                        On::OneHotKey => Box::new(move |name| map.look_up(&name)),
                    }
                };
                let clean = |number| {
                    if let On::DistinctKeys = on {
                        map.remove(&name(&sample, number));
                    }
                };
                b.iter_custom(|times| share((threads, times), number, make, worker, clean));
            });
        }
        group.finish();
    }
}
