//! Each case by itself, beside its floors, with what criterion knows of it: `cargo bench --bench
//! benchmarks`, and with a word after it only the cases whose names hold the word (`-- waiters`).
//!
//! Times are those of the whole request, the bare service included; `budget` subtracts it. The
//! cases at 10 million records take 8 GB, and half a minute to fill; where there is less, or with
//! `BENCH_SKIP_LARGE` set, they are left out.

#[path = "../support/mod.rs"]
mod support;

mod requests;
mod store;
mod threads;
mod waiters;

use std::time::Duration;

use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};
use support::case::Case;

/// Measures one case, which is made only where it was asked for.
fn measure(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, make: impl FnOnce() -> Case) {
    let (mut make, mut case) = (Some(make), None);
    group.bench_function(name, |b| {
        if let Some(make) = make.take() {
            case = Some(make());
        }
        if let Some(case) = &mut case {
            b.iter_custom(|times| case.time(times));
        }
    });
}

fn main() {
    let runtime = support::runtime();
    let _entered = runtime.enter();
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(700))
        .sample_size(20)
        .configure_from_args();
    requests::requests(&mut criterion);
    store::store(&mut criterion);
    threads::threads(&mut criterion);
    waiters::waiters(&mut criterion, &runtime);
    criterion.final_summary();
}
