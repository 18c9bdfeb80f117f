//! Many callers, tiny leases, and connections that die at any moment: a row for each operation that
//! was answered, and at most one for any other.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};
use tower_idempotency::{Outcome, State};

use crate::{
    bench::{Bench, Handler, commit, handler, note, soon, told, unwanted},
    database::Database,
    postgres::{Postgres, server},
    servers::proxy::Proxy,
};

const TASKS: u64 = 64;
const KEYS: u64 = 200;
/// Each key is sent by two tasks at least.
const KEYS_OF_A_TASK: u64 = 7;
/// For so long connections die. After that all is to be answered.
const STORM: Duration = Duration::from_secs(12);

/// Numbers of chance, from a seed.
#[derive(Clone)]
struct Chance(Arc<AtomicU64>);

impl Chance {
    fn new() -> Self {
        let seed = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_micros() as u64;
        println!("seed {seed}");
        Self(Arc::new(AtomicU64::new(seed)))
    }

    /// Below this.
    fn below(&self, most: u64) -> u64 {
        // Steps of the golden ratio, mixed.
        let mut next = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Relaxed);
        next = (next ^ (next >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        next = (next ^ (next >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (next ^ (next >> 31)) % most
    }

    async fn pause(&self, most: u64) {
        sleep(Duration::from_millis(self.below(most))).await;
    }
}

/// Begins, writes and commits with pauses of chance between, longer than its lease at times. What goes
/// wrong is a 500.
fn erratic<D: Database>(chance: &Chance) -> Handler<D> {
    let chance = chance.clone();
    handler(move |database: D, execution| {
        let chance = chance.clone();
        async move {
            let attempt = async {
                chance.pause(60).await;
                let transaction = database.begin().await.ok()?;
                let mut transaction = execution.transaction(transaction).ok()?;
                let note = note(&execution);
                let written = database.insert(&mut transaction, execution.key(), &note);
                written.await.ok()?;
                chance.pause(60).await;
                Some(commit(transaction, &execution).await)
            };
            match attempt.await {
                Some(committed) => told(committed),
                None => crate::bench::answer(500, "broken"),
            }
        }
    })
}

/// Sends all, while `storm` goes on, and looks at what there is then.
async fn stress<D: Database>(bench: Bench<D>, chance: Chance, storm: JoinHandle<()>) {
    let bench = bench.with(|layer| {
        layer
            .lease(Duration::from_millis(50))
            .store_timeout(Duration::from_millis(400))
            .record_timeout(Duration::from_millis(800))
    });
    let erratic = erratic(&chance);
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (bench, chance, erratic) = (bench.clone(), chance.clone(), erratic.clone());
        tasks.spawn(async move {
            let mut answers = Vec::new();
            for step in 0..KEYS_OF_A_TASK {
                // Neighbours meet at a key at the same time.
                let key = ((task / 2 + step * 31) * 7 % KEYS).to_string();
                loop {
                    let seen = bench.send(&key, &erratic).await;
                    if seen.status == 201 {
                        answers.push((key, seen.text));
                        break;
                    }
                    chance.pause(20).await;
                }
            }
            answers
        });
    }
    let mut answers = BTreeMap::<String, String>::new();
    let mut answered = 0;
    while let Some(told) = tasks.join_next().await {
        for (key, text) in told.unwrap() {
            answered += 1;
            let first = answers.entry(key.clone()).or_insert_with(|| text.clone());
            assert_eq!(*first, text, "{key} has two answers");
        }
    }
    storm.abort();
    let _ = storm.await;
    bench.layer.drain().await;
    let mut rows = BTreeMap::<String, Vec<String>>::new();
    for (key, note) in bench.database.rows().await {
        rows.entry(key).or_default().push(note);
    }
    let takeovers = rows
        .values()
        .filter(|notes| notes[0] != "attempt 1")
        .count();
    println!(
        "{answered} answers for {} keys, {} with rows, {takeovers} not at the first attempt",
        answers.len(),
        rows.len(),
    );
    for (key, notes) in &rows {
        assert_eq!(notes.len(), 1, "{key}: {notes:?}");
    }
    for (key, answer) in &answers {
        assert_eq!(rows[key], [answer.as_str()], "{key}");
        bench
            .send(key, &unwanted())
            .await
            .is(Outcome::Replayed, 201, answer);
    }
    // What has a row was answered, or is by a retry.
    for key in rows.keys() {
        assert!(
            matches!(bench.record(key).await, Some((State::Completed, _))),
            "{key}"
        );
    }
}

/// P7, P6, P1: connections are ended by the server, and cut on their way, at any moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_p6_connections_die_at_any_moment() {
    soon(async {
        let chance = Chance::new();
        let proxy = Arc::new(Proxy::before(server().address()).await);
        let database = Postgres::on(server(), proxy.address(), 24).await;
        let storm = tokio::spawn({
            let (database, chance) = (database.clone(), chance.clone());
            let proxy = Arc::clone(&proxy);
            async move {
                let (start, mut kills) = (Instant::now(), 0);
                while start.elapsed() < STORM {
                    chance.pause(150).await;
                    kills += 1;
                    match chance.below(4) {
                        // All at once.
                        0 => proxy.cut(),
                        _ => {
                            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                                 WHERE application_name = current_schema() \
                                 ORDER BY random() LIMIT 2";
                            // This connection may be cut, too.
                            database.try_run(end).await;
                        }
                    }
                }
                println!("{kills} times connections died");
            }
        });
        stress(Bench::over(database), chance, storm).await;
    })
    .await;
}
