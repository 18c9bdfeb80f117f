//! What the benchmarks share: requests and the service they go to, a store with a given number of
//! records, the floors, and the cases that are measured.

// Each of the benchmarks takes a part of it.
#![allow(dead_code)]

pub(crate) mod case;
pub(crate) mod floors;
pub(crate) mod handover;

pub(crate) mod records;
pub(crate) mod service;

/// Whether to measure. `cargo bench` says so; `cargo test --benches` does not, and then every case
/// runs once or twice, on a few records, to show that it runs.
pub(crate) fn measuring() -> bool {
    std::env::args().any(|arg| arg == "--bench")
}

/// This many, or a few where nothing is measured.
pub(crate) fn many(number: u64) -> u64 {
    match measuring() {
        true => number,
        false => number.min(20),
    }
}

/// A runtime for one thread. Enter it: what is measured is polled by hand, and asks it for timers.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Why so many records are left out, if they are: they take some 600 bytes each, and the benchmark
/// has more to hold.
pub(crate) fn left_out(records: u64) -> Option<&'static str> {
    if records < 10_000_000 {
        return None;
    }
    if std::env::var_os("BENCH_SKIP_LARGE").is_some() {
        return Some("BENCH_SKIP_LARGE is set");
    }
    let needed = many(records) * 800;
    let enough = available_memory().is_some_and(|available| available > needed);
    (!enough).then_some("there is not enough free memory")
}

/// In bytes, where the system says.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
