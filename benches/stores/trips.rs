//! Round trips of one request, counted on the wire.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use tokio::time::{sleep, timeout};
use tower_idempotency::{Claim, Store, Tiered};

use super::{
    latency::call,
    report::Report,
    servers::proxy::Proxy,
    sides::{Floor, Servers, Side, postgres_at, redis_at, unused},
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
    let mut rows = Vec::new();
    for (name, proxy, tested, near, most) in [
        ("Redis", &redis, false, false, [2.0, 1.0, 1.0]),
        ("memory before Redis", &redis, false, true, [2.0, 0.0, 1.0]),
        ("PostgreSQL", &postgres, false, false, [2.0, 1.0, 1.0]),
        (
            "PostgreSQL, `test_before_acquire(true)`",
            &postgres,
            true,
            false,
            [2.0, 1.0, 1.0],
        ),
        (
            "memory before PostgreSQL",
            &postgres,
            false,
            true,
            [2.0, 0.0, 1.0],
        ),
    ] {
        let Side { store, mut floors } = match std::ptr::eq(proxy, &redis) {
            true => redis_at(proxy.address()).await,
            false => postgres_at(proxy.address(), tested).await,
        };
        let store: Arc<dyn Store> = match near {
            true => Arc::new(Tiered::new(self::store(), store)),
            false => store,
        };
        let counted = Counted::of(proxy, store, &mut floors[0], sample, upload).await;
        let mut row = vec![name.to_owned()];
        row.extend(counted.requests.map(|trips| trips.to_string()));
        row.push(format!("{} ({})", counted.floor, floors[0].name()));
        rows.push(row);
        let kinds = ["fresh", "replay", "conflict"].iter();
        for (what, (trips, most)) in kinds.zip(counted.requests.into_iter().zip(most)) {
            let what = format!("round trips, {name}, {what}, beside the least command");
            report.budget(&what, trips / counted.floor, most);
        }
    }
    let head = [
        "round trips on the wire",
        "fresh",
        "replay",
        "conflict",
        "the least command",
    ];
    report.table(&head, rows);
    report.note(
        "Round trips: whatever `sqlx` is asked for, its pool sends one more to test the connection \
         once the answer is there. No request waits for that, but the connection is not free before."
            .to_owned(),
    );
}

/// Round trips of a fresh request, a replay and a conflict, and of the least that the server does
/// over the same connection.
struct Counted {
    requests: [f64; 3],
    floor: f64,
}

impl Counted {
    async fn of(
        proxy: &Proxy,
        store: Arc<dyn Store>,
        floor: &mut Floor,
        sample: &Sample,
        upload: &Upload,
    ) -> Self {
        let running = unused();
        // An hour.
        let claim = sample.claim_request(Duration::from_secs(3_600));
        let claim = store.claim(&sample.key(running), &claim).await;
        assert!(matches!(claim, Ok(Claim::Claimed(_))), "{claim:?}");
        let mut service = layered(store);
        // What is sent once: scripts and statements.
        let warm = unused();
        for (number, expected) in [
            (warm, StatusCode::CREATED),
            (warm, StatusCode::CREATED),
            (running, StatusCode::CONFLICT),
        ] {
            call(&mut service, request(Some(number), upload), expected).await;
        }
        floor.run().await;
        let recorded: Vec<_> = (0..REQUESTS).map(|_| unused()).collect();
        let mut requests = [0.0; 3];
        for (kind, count) in requests.iter_mut().enumerate() {
            let before = quiet(proxy).await;
            for &number in &recorded {
                let (number, expected) = match kind {
                    2 => (running, StatusCode::CONFLICT),
                    _ => (number, StatusCode::CREATED),
                };
                let replayed = call(&mut service, request(Some(number), upload), expected).await;
                assert_eq!(replayed, kind == 1);
            }
            *count = (quiet(proxy).await - before) as f64 / REQUESTS as f64;
        }
        let before = quiet(proxy).await;
        for _ in 0..REQUESTS {
            floor.run().await;
        }
        let floor = (quiet(proxy).await - before) as f64 / REQUESTS as f64;
        Self { requests, floor }
    }
}

/// The round trips so far, once nothing more is on its way.
async fn quiet(proxy: &Proxy) -> u64 {
    let settled = async {
        let mut seen = proxy.bytes();
        loop {
            sleep(Duration::from_millis(50)).await;
            let now = proxy.bytes();
            if now == seen {
                return proxy.round_trips();
            }
            seen = now;
        }
    };
    let settled = timeout(Duration::from_secs(20), settled).await;
    settled.expect("the wire falls silent")
}
