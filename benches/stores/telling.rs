//! What it costs those who complete at the same time that PostgreSQL tells who waits.

use std::time::{Duration, Instant};

use futures::future::{self, Either};
use sqlx::{Connection, PgConnection};
use tokio::time::{sleep, timeout};
use tower_idempotency::{Claim, PostgresStore, Store};

use super::{
    latency::claim_and_complete,
    report::{Report, median},
    sides::{Servers, unused},
    support::{measuring, records::Sample},
};

const COMPLETERS: usize = 32;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(400);

pub(crate) async fn rows(report: &mut Report, servers: &Servers, sample: &Sample) {
    let pool = servers.postgres().pool(COMPLETERS as u32 + 1).await;
    let silent = PostgresStore::builder(pool.clone())
        .without_notifications()
        .build();
    let telling = PostgresStore::new(pool);
    let (rounds, round) = match measuring() {
        true => (ROUNDS, ROUND),
        false => (1, Duration::from_millis(20)),
    };
    // One of its own waits, so that somebody listens; the lease is longer than all of this takes.
    let key = sample.key(unused());
    let claim = sample.claim_request(Duration::from_secs(3_600));
    let claim = telling.claim(&key, &claim).await;
    let Ok(Claim::Claimed(claimed)) = claim else {
        panic!("{claim:?}");
    };
    let token = claimed.lease.token;
    let mut rates = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        rates[0].push(rate(&silent, sample, round).await);
        rates[1].push(rate(&telling, sample, round).await);
        let waits = telling.wait(&key, token);
        let told = async {
            let mut connection = servers.postgres().connect().await;
            let class = class(&mut connection).await;
            hold_all(&mut connection, class).await;
            let rate = rate(&telling, sample, round).await;
            connection.close().await.expect("it closes");
            rate
        };
        match future::select(Box::pin(waits), Box::pin(told)).await {
            Either::Left((ended, _)) => panic!("the wait ended: {ended:?}"),
            Either::Right((rate, _)) => rates[2].push(rate),
        }
    }
    let names = [
        "`without_notifications`",
        "nobody waits",
        "somebody waits for each, so each is told",
    ];
    let rows = names
        .into_iter()
        .zip(rates)
        .map(|(name, rates)| vec![name.to_owned(), format!("{:.0}/s", median(rates))]);
    let head = ["PostgreSQL, 32 at a time", "claim and complete"];
    report.table(&head, rows.collect());
}

async fn rate(store: &PostgresStore, sample: &Sample, time: Duration) -> f64 {
    let start = Instant::now();
    let completers = (0..COMPLETERS).map(|_| async {
        let mut done = 0;
        while start.elapsed() < time {
            claim_and_complete(store, sample).await;
            done += 1;
        }
        done
    });
    let done: u64 = future::join_all(completers).await.into_iter().sum();
    done as f64 / start.elapsed().as_secs_f64()
}

/// The first number of the locks that waiters hold, once one holds one.
async fn class(connection: &mut PgConnection) -> i32 {
    let looking = async {
        loop {
            let held = sqlx::query_scalar::<_, i64>(
                "SELECT classid::bigint FROM pg_locks WHERE locktype = 'advisory' AND granted \
                 AND mode = 'ShareLock' LIMIT 1",
            );
            let held = held.fetch_optional(&mut *connection).await;
            if let Some(class) = held.expect("an answer") {
                return class as u32 as i32;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let found = timeout(Duration::from_secs(20), looking).await;
    found.expect("the one who waits holds a lock")
}

/// As if somebody waited for each key.
async fn hold_all(connection: &mut PgConnection, class: i32) {
    sqlx::query("SELECT pg_advisory_lock_shared($1, bucket) FROM generate_series(0, 255) bucket")
        .bind(class)
        .execute(connection)
        .await
        .expect("the locks");
}
