//! Several processes on one file, which die at any moment.
//!
//! The processes are this test binary, started again for one test, the [`child`], which does
//! nothing unless it finds what to do in its environment.

use std::{
    collections::{HashMap, HashSet},
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use tower_idempotency::{Claim, ClaimRequest, SqliteStore, Store, StoreError};

use crate::support::*;

const FILE: &str = "TOWER_IDEMPOTENCY_TEST_FILE";
const KEYS: u64 = 40;
/// Short: a key whose process died is taken over within the test. Far longer than a child holds a
/// key while it lives.
const SHORT_LEASE: Duration = Duration::from_secs(1);

/// Not a test, but what the other processes run: claims keys and completes them, and tells of
/// each step, until it is killed or all keys are completed.
#[tokio::test]
async fn child() {
    let Some(path) = std::env::var_os(FILE) else {
        return;
    };
    let store = SqliteStore::open(path).await.unwrap();
    store.migrate().await.unwrap();
    let mut completed = HashSet::new();
    let mut random = u64::from(std::process::id());
    while completed.len() < KEYS as usize {
        // Of Knuth's, good enough to mix steps.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let name = (random >> 33) % KEYS;
        let asked = ClaimRequest {
            lease: SHORT_LEASE,
            ..request()
        };
        match store.claim(&key(name), &asked).await {
            Ok(Claim::Claimed(claimed)) => {
                let lease = claimed.lease;
                println!("\nran {name} {}", lease.token);
                tokio::time::sleep(Duration::from_millis(random % 8)).await;
                let answer = answer(lease.token.to_string());
                match store.complete(&key(name), &lease, &answer, TTL).await {
                    Ok(()) => println!("\ndone {name} {}", lease.token),
                    // It was held up beyond its lease.
                    Err(StoreError::Superseded) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
            Ok(Claim::Completed(_)) => {
                completed.insert(name);
            }
            Ok(Claim::InProgress { .. }) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            other => panic!("{other:?}"),
        }
    }
}

struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "processes::child", "--nocapture"])
            .env(FILE, path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// The next that it tells: what, which key, and which token.
    fn tells(&mut self) -> Option<(String, u64, String)> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // The process may die in the middle of a line.
            let line = line.strip_suffix('\n')?;
            let words: Vec<_> = line.split(' ').collect();
            if let [what @ ("ran" | "done"), name, token] = words[..] {
                return Some((what.to_owned(), name.parse().unwrap(), token.to_owned()));
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// P1, P2, P5, S14: two processes work on the same keys, and one after another is killed with -9 at
/// a moment of chance. What one of them said was completed is so afterwards, with its answer; a
/// key runs again only where the process that ran it was killed before it said so, and not before
/// its lease has ended; and the file is sound.
#[tokio::test]
async fn p1_p2_p5_s14_processes_are_killed_at_any_moment() {
    let file = File::new();
    let store = file.store().await;
    let path = file.path();
    let told = tokio::task::spawn_blocking(move || {
        let mut told = Vec::new();
        let mut kills = 0;
        let mut round = 0;
        loop {
            round += 1;
            let mut victim = Process::start(&path);
            let mut other = Process::start(&path);
            // From before the first claim to some way on.
            for _ in 0..round % 7 {
                told.extend(victim.tells());
            }
            victim.child.kill().unwrap();
            victim.child.wait().unwrap();
            kills += 1;
            told.extend(std::iter::from_fn(|| victim.tells()));
            for _ in 0..round % 3 {
                told.extend(other.tells());
            }
            if kills >= 24 {
                // The last one ends all that is left.
                told.extend(std::iter::from_fn(|| other.tells()));
                assert!(other.child.wait().unwrap().success());
                return (told, kills);
            }
            other.child.kill().unwrap();
            other.child.wait().unwrap();
            kills += 1;
            told.extend(std::iter::from_fn(|| other.tells()));
        }
    });
    let (told, kills) = soon(told).await.unwrap();

    let mut runs = HashMap::<u64, Vec<u64>>::new();
    let mut done = HashMap::<u64, String>::new();
    for (what, name, token) in told {
        match what.as_str() {
            "ran" => runs.entry(name).or_default().push(token.parse().unwrap()),
            _ => assert_eq!(done.insert(name, token), None, "completed twice"),
        }
    }
    assert_eq!(runs.len() as u64, KEYS);
    let mut again = 0;
    for (name, tokens) in &mut runs {
        // A token is the time of its claim.
        tokens.sort_unstable();
        for pair in tokens.windows(2) {
            let between = Duration::from_micros(pair[1] - pair[0]);
            assert!(
                between >= SHORT_LEASE,
                "{name} ran twice within {between:?}"
            );
            again += 1;
        }
        // Nothing ran after the completion, whether it was told of or not.
        let last = tokens.last().unwrap().to_string();
        let replay = store.claim(&key(name), &request()).await.unwrap();
        assert_eq!(replay, Claim::Completed(answer(last.clone())), "{name}");
        assert!(done.get(name).is_none_or(|token| *token == last), "{name}");
    }
    println!("{again} keys ran again, after {kills} kills");
    assert!(again <= kills, "no more runs than kills");
    let sound: String = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert_eq!(sound, "ok");
}
