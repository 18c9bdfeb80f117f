//! Requests per second of several servers over one store.

use std::{
    cell::Cell,
    convert::Infallible,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use tokio::task::JoinSet;
use tower::{Service, ServiceExt};

use super::{
    report::{Report, median},
    sides::{Kind, Servers, unused},
    support::{
        measuring,
        service::{Upload, layered, request},
    },
};

const CLIENTS: usize = 64;
const SERVERS: usize = 4;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(500);

/// Of each server.
const CONNECTIONS: u32 = 8;

/// Recorded before replays are measured; replays go through them.
const RECORDED: usize = 1_000;

pub(crate) fn rows(report: &mut Report, servers: &Servers, upload: &Upload) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (rounds, round, records) = match measuring() {
        true => (ROUNDS, ROUND, RECORDED),
        false => (1, Duration::from_millis(20), 4),
    };
    let few = [1, 3].map(|servers| (Kind::Sqlite, servers));
    let sides = Kind::ALL.into_iter().map(|kind| (kind, SERVERS)).chain(few);
    let rows = sides.map(|(kind, tasks)| {
        runtime.block_on(async {
            let mut services = Vec::new();
            for _ in 0..tasks {
                let side = servers.open(kind, CONNECTIONS, &[]).await;
                services.push(layered(side.store));
            }
            let mut recorded = Vec::new();
            for _ in 0..records {
                let number = unused();
                send(&services[0], number, upload, false).await;
                recorded.push(number);
            }
            let [mut fresh, mut replay] = [const { Vec::new() }; 2];
            let mut refused = 0;
            for _ in 0..rounds {
                let (rate, not) = requests(&services, &[], upload, round).await;
                fresh.push(rate);
                refused += not;
                let (rate, not) = requests(&services, &recorded, upload, round).await;
                replay.push(rate);
                refused += not;
            }
            let name = match tasks {
                SERVERS => kind.name().to_owned(),
                1 => format!("{}, one server", kind.name()),
                _ => format!("{}, {tasks} servers", kind.name()),
            };
            let rate = |rates| format!("{:.0}/s", median(rates));
            vec![name, rate(fresh), rate(replay), refused.to_string()]
        })
    });
    let rows = rows.collect();
    let head = [
        "four servers, 64 clients",
        "fresh",
        "replay",
        "refused (503)",
    ];
    report.table(&head, rows);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    report.note(format!(
        "Throughput: {CONNECTIONS} connections of PostgreSQL for each server, one of Redis, and \
         what `SqliteStore::open` gives; clients, servers and stores share {cores} cores."
    ));
}

/// One request after the other of each client: for keys that nobody used, or for these. How many
/// were answered in a second, and how many refused in all.
async fn requests<S, B>(
    services: &[S],
    recorded: &[u64],
    upload: &Upload,
    time: Duration,
) -> (f64, u64)
where
    S: Service<Request<Upload>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
    B: Body<Data = Bytes, Error = Infallible> + Send,
{
    let start = Instant::now();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let service = services[client % services.len()].clone();
        let (recorded, upload) = (recorded.to_vec(), upload.clone());
        clients.spawn(async move {
            let (mut answered, mut refused) = (0_u64, 0_u64);
            let at = Cell::new(client * 7);
            while start.elapsed() < time {
                at.set(at.get() + 1);
                let number = match &recorded[..] {
                    [] => unused(),
                    numbers => numbers[at.get() % numbers.len()],
                };
                match send(&service, number, &upload, !recorded.is_empty()).await {
                    true => answered += 1,
                    false => refused += 1,
                }
            }
            (answered, refused)
        });
    }
    let counts = clients.join_all().await;
    let taken = start.elapsed().as_secs_f64();
    let (answered, refused) = counts
        .into_iter()
        .fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    (answered as f64 / taken, refused)
}

/// Whether it was answered, as it should be, or refused, since the store took too long.
async fn send<S, B>(service: &S, number: u64, upload: &Upload, replayed: bool) -> bool
where
    S: Service<Request<Upload>, Response = Response<B>, Error = Infallible> + Clone,
    B: Body<Data = Bytes, Error = Infallible>,
{
    let Ok(answer) = service.clone().oneshot(request(Some(number), upload)).await;
    if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
        return false;
    }
    assert_eq!(answer.status(), StatusCode::CREATED);
    let marked = answer.headers().contains_key("idempotent-replayed");
    assert_eq!(marked, replayed);
    true
}
