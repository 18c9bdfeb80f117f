//! Round trips of one request, counted on the wire.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use tokio::time::{sleep, timeout};
use tower_idempotency::{Claim, Store, Tiered};

use super::{
    latency::call,
    report::Report,
    servers::proxy::Proxy,
    sides::{Servers, postgres_at, redis_at, unused},
    support::{
        records::Sample,
        service::{Upload, layered, request, store},
    },
};

/// So many requests of each kind are counted.
const REQUESTS: u64 = 20;

pub(crate) async fn rows(report: &mut Report, servers: &Servers, sample: &Sample, upload: &Upload) {
    let redis = Proxy::before(servers.redis()).await;
    let postgres = Proxy::before(servers.postgres().address()).await;
    let over_redis: Arc<dyn Store> = Arc::new(redis_at(redis.address()).await);
    let over_postgres: Arc<dyn Store> = Arc::new(postgres_at(postgres.address(), false).await);
    let tested: Arc<dyn Store> = Arc::new(postgres_at(postgres.address(), true).await);
    let near_redis: Arc<dyn Store> = Arc::new(Tiered::new(store(), Arc::clone(&over_redis)));
    let near_postgres: Arc<dyn Store> = Arc::new(Tiered::new(store(), Arc::clone(&over_postgres)));
    let sides = [
        ("Redis", &redis, over_redis, Some([2, 1, 1])),
        ("PostgreSQL", &postgres, over_postgres, Some([2, 1, 1])),
        (
            "PostgreSQL, connections tested before use",
            &postgres,
            tested,
            None,
        ),
        ("memory before Redis", &redis, near_redis, Some([2, 0, 1])),
        (
            "memory before PostgreSQL",
            &postgres,
            near_postgres,
            Some([2, 0, 1]),
        ),
    ];
    let mut rows = Vec::new();
    for (name, proxy, store, budget) in sides {
        let trips = trips(proxy, store, sample, upload).await;
        let mut row = vec![name.to_owned()];
        row.extend(trips.map(|trips| format!("{trips}")));
        rows.push(row);
        if let Some(budget) = budget {
            for (what, (trips, most)) in ["fresh", "replay", "conflict"]
                .iter()
                .zip(trips.into_iter().zip(budget))
            {
                let what = format!("{name}, {what}, round trips");
                report.budget(&what, trips, f64::from(most));
            }
        }
    }
    let head = ["round trips of one request", "fresh", "replay", "conflict"];
    report.table(&head, rows);
}

/// Of a fresh request, a replay and a conflict.
async fn trips(proxy: &Proxy, store: Arc<dyn Store>, sample: &Sample, upload: &Upload) -> [f64; 3] {
    let running = unused();
    // An hour.
    let claim = sample.claim_request(Duration::from_secs(3_600));
    let claim = store.claim(&sample.key(running), &claim).await;
    assert!(matches!(claim, Ok(Claim::Claimed(_))), "{claim:?}");
    let mut service = layered(store);
    // What is sent once, the scripts and the statements.
    let warm = unused();
    call(
        &mut service,
        request(Some(warm), upload),
        StatusCode::CREATED,
    )
    .await;
    call(
        &mut service,
        request(Some(warm), upload),
        StatusCode::CREATED,
    )
    .await;
    call(
        &mut service,
        request(Some(running), upload),
        StatusCode::CONFLICT,
    )
    .await;
    quiet(proxy).await;
    let recorded: Vec<_> = (0..REQUESTS).map(|_| unused()).collect();
    let mut counts = [0.0; 3];
    for (kind, count) in counts.iter_mut().enumerate() {
        let before = proxy.round_trips();
        for &number in &recorded {
            let (number, expected) = match kind {
                2 => (running, StatusCode::CONFLICT),
                _ => (number, StatusCode::CREATED),
            };
            let replayed = call(&mut service, request(Some(number), upload), expected).await;
            assert_eq!(replayed, kind == 1);
        }
        quiet(proxy).await;
        *count = (proxy.round_trips() - before) as f64 / REQUESTS as f64;
    }
    counts
}

/// Waits until nothing more is on its way.
async fn quiet(proxy: &Proxy) {
    let settled = async {
        let mut seen = proxy.bytes();
        loop {
            sleep(Duration::from_millis(50)).await;
            let now = proxy.bytes();
            if now == seen {
                return;
            }
            seen = now;
        }
    };
    let settled = timeout(Duration::from_secs(20), settled).await;
    settled.expect("the wire falls silent");
}
