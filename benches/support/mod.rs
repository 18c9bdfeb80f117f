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

/// Whether there is room for so many records: some 600 bytes each, and what the benchmark needs.
pub(crate) fn has_memory_for(records: u64) -> bool {
    let needed = many(records) * 800;
    available_memory().is_some_and(|available| available > needed)
}

/// In bytes, where the system says.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
