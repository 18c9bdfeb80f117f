//! Clients whose clocks are an hour off, each a process of its own: nobody can move the clock of one
//! process in part.
//!
//! A test leaves records, runs a second one, which is ignored otherwise, in such processes, and
//! looks at what they left:
//!
//! ```ignore
//! #[tokio::test]
//! async fn clients_clocks_may_be_an_hour_off() {
//!     let server = Server::start();
//!     let store = connect(&server.url()).await;
//!     skew::leave(&store).await;
//!     for offset in skew::OFFSETS {
//!         skew::run("skewed_client", offset, &[("SERVER", &server.url())]);
//!         skew::judge_client(&store, offset).await;
//!     }
//! }
//!
//! #[tokio::test]
//! #[ignore = "run by the test above, in a process of its own"]
//! async fn skewed_client() {
//!     let store = connect(&std::env::var("SERVER").unwrap()).await;
//!     skew::judge(&store, skew::offset()).await;
//! }
//! ```

use std::{
    fs::File,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tower_idempotency::{
    Claim, ClaimRequest, Fingerprint, Lease, OwnerId, Payload, Snapshot, State, Store, StoreKey,
};

use super::process::{Process, program};

/// In seconds.
pub const OFFSETS: [i64; 2] = [3600, -3600];

/// Where a skewed process finds its offset.
const OFFSET: &str = "CLIENT_CLOCK_OFFSET";

/// Long enough for every run, short beside the offsets.
const LONG: Duration = Duration::from_secs(600);
const SHORTLY: Duration = Duration::from_secs(120);

/// Runs a test of this program, by its full name, in a process whose wall clock is `offset` seconds
/// ahead. Its other clocks are not moved.
///
/// # Panics
///
/// If that test fails or does not exist.
pub fn run(test: &str, offset: i64, variables: &[(&str, &str)]) {
    let library = program(
        &["libfaketimeMT.so.1"],
        "libfaketime",
        &["/usr/lib/*/faketime", "/usr/lib/faketime"],
    );
    let folder = tempfile::tempdir().expect("a folder for the output");
    let path = folder.path().join("output");
    let file = File::create(&path).expect("a file for the output");
    let mut process = Process::start(
        Command::new(std::env::current_exe().expect("this program has a file"))
            .args([test, "--exact", "--ignored", "--nocapture"])
            .env("LD_PRELOAD", library)
            .env("FAKETIME", format!("{offset:+}"))
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env(OFFSET, offset.to_string())
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stderr(file.try_clone().expect("the same file"))
            .stdout(file),
    );
    process.ended();
    let output = std::fs::read_to_string(&path).expect("the output is text");
    assert!(
        output.contains("test result: ok. 1 passed"),
        "{test}, its clock {offset} s off, said:\n{output}"
    );
}

/// Of this process, which [`run`] has started.
pub fn offset() -> i64 {
    let offset = std::env::var(OFFSET).expect("started by `run`");
    offset.parse().expect("a number of seconds")
}

fn key(name: &str) -> StoreKey {
    StoreKey::new("skew", "", "", name)
}

fn request(lease: Duration) -> ClaimRequest {
    ClaimRequest {
        fingerprint: Fingerprint::hasher("skew/1").finish(),
        owner: OwnerId::random(),
        lease,
        ttl: LONG,
        take_over: false,
    }
}

async fn claim(store: &impl Store, name: &str, lease: Duration) -> Lease {
    let claim = store.claim(&key(name), &request(lease)).await;
    match claim.expect("a claim is answered") {
        Claim::Claimed(claimed) => claimed.lease,
        other => panic!("{name} should be free: {other:?}"),
    }
}

fn answer() -> Payload {
    Payload::new(201, Bytes::from_static(b"answer"))
}

async fn complete(store: &impl Store, name: &str, ttl: Duration) {
    let lease = claim(store, name, LONG).await;
    let completed = store.complete(&key(name), &lease, &answer(), ttl).await;
    completed.expect("the owner may do this");
}

async fn snapshot(store: &impl Store, name: &str) -> Option<Snapshot> {
    store.get(&key(name)).await.expect("a key can be read")
}

/// Leaves a record in each state for [`judge`] to look at.
pub async fn leave(store: &impl Store) {
    claim(store, "held", LONG).await;
    claim(store, "abandoned", Duration::ZERO).await;
    complete(store, "completed", LONG).await;
    complete(store, "expired", Duration::ZERO).await;
    let lease = claim(store, "failed", LONG).await;
    let failed = store.fail(&key("failed"), &lease, LONG).await;
    failed.expect("the owner may do this");
}

/// Sees that a client whose clock is off finds what [`leave`] left as it is, and leaves records of
/// its own for [`judge_client`].
pub async fn judge(store: &impl Store, offset: i64) {
    let held = snapshot(store, "held").await.expect("it is there");
    let server = held.now.as_micros() / 1_000_000;
    let own = SystemTime::UNIX_EPOCH.elapsed().expect("later than 1970");
    let ahead = own.as_secs().cast_signed() - server.cast_signed();
    assert!(
        ahead.abs_diff(offset) < SHORTLY.as_secs(),
        "the store's time should be {offset} s behind this client's, and is {ahead} s"
    );
    assert!(!held.is_abandoned());
    for (name, lease) in [("held", LONG), ("abandoned", Duration::ZERO)] {
        let found = store.claim(&key(name), &request(lease)).await;
        match (name, found.expect("a claim is answered")) {
            ("held", Claim::InProgress { .. }) | ("abandoned", Claim::Abandoned) => {}
            (_, other) => panic!("{name}: {other:?}"),
        }
    }
    let found = store.claim(&key("completed"), &request(LONG)).await;
    assert_eq!(found.expect("answered"), Claim::Completed(answer()));
    let failed = snapshot(store, "failed").await.expect("it is there");
    assert_eq!(failed.record.state, State::Failed);
    assert_eq!(snapshot(store, "expired").await, None);

    claim(store, &format!("held by {offset}"), LONG).await;
    claim(store, &format!("left by {offset}"), Duration::ZERO).await;
    complete(store, &format!("completed by {offset}"), LONG).await;
}

/// Sees that what a client left whose clock is off has the times of the store.
pub async fn judge_client(store: &impl Store, offset: i64) {
    let own = |what: &str| format!("{what} by {offset}");
    let held = snapshot(store, &own("held")).await.expect("it is there");
    let left = held.record.lease_until.since(held.now);
    assert!(left <= LONG && left + SHORTLY > LONG, "{left:?}");
    assert!(held.now.since(held.record.created_at) < SHORTLY);
    let completed = snapshot(store, &own("completed")).await;
    let completed = completed.expect("it is there");
    let left = completed.record.expires_at.since(completed.now);
    assert!(left <= LONG && left + SHORTLY > LONG, "{left:?}");

    // P6: the tokens of both clients are of one row.
    let forgotten = store.forget(&key(&own("held"))).await;
    assert!(forgotten.expect("a key can be forgotten"));
    let next = claim(store, &own("held"), LONG).await;
    assert!(next.token > held.record.token, "{next:?}");
    let asked = ClaimRequest {
        take_over: true,
        ..request(LONG)
    };
    let taken = store.claim(&key(&own("left")), &asked).await;
    assert!(matches!(taken, Ok(Claim::Claimed(_))), "{taken:?}");
}
