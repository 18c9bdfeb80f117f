//! No store reads its client's clock, except those that have no other.
//!
//! Each server's store is tested with clients whose clocks are an hour off
//! (`tests/servers/skew.rs`); here that machinery itself is.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "servers/mod.rs"]
mod servers;

use std::{
    fs,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use futures::FutureExt;
use servers::skew;
use tower_idempotency::MemoryStore;

/// What tells the wall clock's time, in the standard library and in crates at hand.
const CLOCKS: [&str; 5] = [
    "SystemTime",
    "UNIX_EPOCH",
    "chrono",
    "OffsetDateTime",
    "Utc",
];

/// The stores that have no server: `MemoryStore` has one process, and an SQLite file one machine, whose
/// clock is the same for all processes that share the file.
const WITHOUT_SERVER: [&str; 2] = ["memory.rs", "sqlite"];

/// The sources of the stores that name a wall clock.
fn readers(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(readers(&path));
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.lines().filter(|line| !line.trim().starts_with("//"));
            let named = |line: &str| {
                line.split(|c: char| !c.is_alphanumeric() && c != '_')
                    .any(|word| CLOCKS.contains(&word))
            };
            if code.into_iter().any(named) {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn stores_with_a_server_read_no_clock_of_their_own() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store");
    let readers = readers(&folder);
    assert!(readers.contains(&folder.join("memory.rs")), "{readers:?}");
    let serverless = |path: &&PathBuf| {
        let mut allowed = WITHOUT_SERVER.iter().map(|name| folder.join(name));
        allowed.any(|allowed| path.starts_with(allowed))
    };
    let wrong: Vec<_> = readers.iter().filter(|path| !serverless(path)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

const NOW: &str = "CLOCK_OF_THE_PARENT";

fn now() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap()
}

#[test]
fn a_clients_clock_can_be_an_hour_off() {
    for offset in skew::OFFSETS {
        let now = now().as_secs().to_string();
        skew::run("skewed_process", offset, &[(NOW, &now)]);
    }
    let missing = std::panic::catch_unwind(|| skew::run("no_such_test", 0, &[]));
    assert!(missing.is_err(), "a test that does not exist passes");
}

#[tokio::test]
#[ignore = "run by the test above, in a process of its own"]
async fn skewed_process() {
    let parent: i64 = std::env::var(NOW).unwrap().parse().unwrap();
    let ahead = now().as_secs().cast_signed() - parent;
    assert!(ahead.abs_diff(skew::offset()) < 60, "{ahead} s ahead");
    // Timers go as ever.
    let start = std::time::Instant::now();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(start.elapsed() < Duration::from_secs(30));
}

/// What clients are asked to see holds where the clocks agree, and does not where the store's time
/// is the client's.
#[tokio::test]
async fn a_store_that_reads_its_clients_clock_is_found() {
    let store = MemoryStore::new();
    skew::leave(&store).await;
    skew::judge(&store, 0).await;
    skew::judge_client(&store, 0).await;

    let store = MemoryStore::new();
    skew::leave(&store).await;
    store.advance_clock(Duration::from_secs(3600));
    // Once because the offset is not what it should be, and once because it tells.
    for offset in [0, -3600] {
        let judged = AssertUnwindSafe(skew::judge(&store, offset));
        assert!(judged.catch_unwind().await.is_err(), "{offset}");
    }
}
