//! One client, which waits for each answer.

use std::{
    convert::Infallible,
    hint::black_box,
    pin::pin,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use tower::{Service, ServiceExt, service_fn};
use tower_idempotency::{Claim, Store};

use super::{
    report::{Report, median, micros},
    sides::{Floor, Kind, Servers, unused},
    support::{
        measuring,
        records::{LEASE, Sample, TTL},
        service::{Upload, handler, layered, request},
    },
};

const ROUNDS: usize = 31;

/// How long a turn takes, at least; one operation, at least.
const TURN: Duration = Duration::from_millis(12);

/// Replays go through so many records.
const RECORDED: usize = 200;

#[derive(Clone, Copy)]
enum Case {
    Bare,
    Fresh,
    Replay,
    Conflict,
    ClaimAndComplete,
    ClaimCompleted,
    Floor(usize),
}

const CASES: [Case; 6] = [
    Case::Bare,
    Case::Fresh,
    Case::Replay,
    Case::Conflict,
    Case::ClaimAndComplete,
    Case::ClaimCompleted,
];

/// Everything that the cases of one store need.
struct Bench<'a, S, N> {
    service: S,
    bare: N,
    store: &'a dyn Store,
    floors: &'a mut [Floor],
    sample: &'a Sample,
    upload: &'a Upload,
    recorded: Vec<u64>,
    running: u64,
    turns: usize,
}

pub(crate) async fn rows(report: &mut Report, servers: &Servers, sample: &Sample, upload: &Upload) {
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        let mut side = servers.open(kind, 1, &sample.payload().bytes).await;
        let names: Vec<_> = side.floors.iter().map(Floor::name).collect();
        let mut bench = Bench {
            service: layered(side.store.clone()),
            bare: service_fn(handler::<Upload>),
            store: &*side.store,
            floors: &mut side.floors,
            sample,
            upload,
            recorded: Vec::new(),
            running: unused(),
            turns: 0,
        };
        bench.prepare().await;
        let times = bench.rounds().await;
        let time = |case: usize| median(times[case].clone());
        let added = |case: usize| median(each(&times, |t| t(case) - t(0)));
        let mut row = vec![kind.name().to_owned()];
        row.extend([added(1), added(2), added(3), time(4), time(5)].map(micros));
        let floors = names.iter().enumerate();
        let floors: Vec<_> = floors
            .map(|(at, name)| format!("{name} {}", micros(time(CASES.len() + at))))
            .collect();
        row.push(floors.join(", "));
        let over = |case: usize, floor: usize| {
            let floor = CASES.len() + floor;
            median(each(&times, |t| (t(case) - t(0)) / t(floor)))
        };
        row.push(match names[..] {
            [] => String::new(),
            [_] => format!("{:.2} / {:.2}", over(1, 0), over(2, 0)),
            _ => format!("{:.2} / {:.2}", over(1, 1), over(2, 0)),
        });
        if kind == Kind::Redis {
            report.budget("Redis, replay beside PING", over(2, 0), 1.4);
            report.budget("Redis, fresh beside PING", over(1, 0), 3.0);
        }
        if kind == Kind::Memory {
            let note = "Times of one request less that of the bare service";
            report.note(format!("{note}, {} here.", micros(time(0))));
        }
        rows.push(row);
    }
    let head = [
        "what the layer adds",
        "fresh",
        "replay",
        "conflict",
        "claim and complete alone",
        "claim alone, of a completed one",
        "floors, same connection",
        "fresh / write floor, replay / read floor",
    ];
    report.table(&head, rows);
}

/// What is made of the times of each round.
fn each(times: &[Vec<f64>], of: impl Fn(&dyn Fn(usize) -> f64) -> f64) -> Vec<f64> {
    let rounds = 0..times[0].len();
    rounds.map(|round| of(&|case| times[case][round])).collect()
}

impl<S, B, N, C> Bench<'_, S, N>
where
    S: Service<Request<Upload>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes, Error = Infallible>,
    N: Service<Request<Upload>, Response = Response<C>, Error = Infallible>,
    C: Body<Data = Bytes, Error = Infallible>,
{
    async fn prepare(&mut self) {
        let records = if measuring() { RECORDED } else { 2 };
        for _ in 0..records {
            let number = unused();
            let answer = request(Some(number), self.upload);
            call(&mut self.service, answer, StatusCode::CREATED).await;
            self.recorded.push(number);
        }
        // For longer than all of this takes.
        let key = self.sample.key(self.running);
        let claim = self.sample.claim_request(Duration::from_secs(3_600));
        let claim = self.store.claim(&key, &claim).await;
        assert!(matches!(claim, Ok(Claim::Claimed(_))), "{claim:?}");
    }

    /// The nanoseconds that each case takes, round by round.
    async fn rounds(&mut self) -> Vec<Vec<f64>> {
        let floors = (0..self.floors.len()).map(Case::Floor);
        let cases: Vec<_> = CASES.into_iter().chain(floors).collect();
        let mut times = vec![Vec::new(); cases.len()];
        let rounds = if measuring() { ROUNDS } else { 1 };
        // The first rounds warm up, and do not count: prepared statements find their plans.
        let warm = rounds / 10;
        for round in 0..rounds + warm {
            for (case, times) in cases.iter().zip(&mut times) {
                let taken = self.turn(*case).await;
                if round >= warm {
                    times.push(taken);
                }
            }
        }
        times
    }

    async fn turn(&mut self, case: Case) -> f64 {
        let length = if measuring() { TURN } else { Duration::ZERO };
        // Not counted: what the case before left behind is not this one's.
        self.once(case).await;
        let (start, mut done) = (Instant::now(), 0);
        loop {
            self.once(case).await;
            done += 1;
            let taken = start.elapsed();
            if taken >= length {
                return taken.as_nanos() as f64 / f64::from(done);
            }
        }
    }

    async fn once(&mut self, case: Case) {
        self.turns += 1;
        let recorded = self.recorded[self.turns % self.recorded.len()];
        match case {
            Case::Bare => {
                let request = request(Some(recorded), self.upload);
                call(&mut self.bare, request, StatusCode::CREATED).await;
            }
            Case::Fresh => {
                let request = request(Some(unused()), self.upload);
                let replayed = call(&mut self.service, request, StatusCode::CREATED).await;
                assert!(!replayed);
            }
            Case::Replay => {
                let request = request(Some(recorded), self.upload);
                let replayed = call(&mut self.service, request, StatusCode::CREATED).await;
                assert!(replayed);
            }
            Case::Conflict => {
                let request = request(Some(self.running), self.upload);
                call(&mut self.service, request, StatusCode::CONFLICT).await;
            }
            Case::ClaimAndComplete => claim_and_complete(self.store, self.sample).await,
            Case::ClaimCompleted => {
                let key = self.sample.key(recorded);
                let claim = self.sample.claim_request(LEASE);
                let claim = self.store.claim(&key, &claim).await;
                assert!(
                    matches!(black_box(&claim), Ok(Claim::Completed(_))),
                    "{claim:?}"
                );
            }
            Case::Floor(at) => self.floors[at].run().await,
        }
    }
}

/// The two calls of the store that a fresh request makes.
pub(crate) async fn claim_and_complete(store: &dyn Store, sample: &Sample) {
    let key = sample.key(unused());
    let claim = store.claim(&key, &sample.claim_request(LEASE)).await;
    let Ok(Claim::Claimed(claimed)) = claim else {
        panic!("{claim:?}");
    };
    let payload = sample.payload();
    let completed = store.complete(&key, &claimed.lease, &payload, TTL).await;
    completed.expect("the store answers");
}

/// Calls the service and reads its answer to the end. Whether it was a replay.
pub(crate) async fn call<S, B>(
    service: &mut S,
    request: Request<Upload>,
    expected: StatusCode,
) -> bool
where
    S: Service<Request<Upload>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes, Error = Infallible>,
{
    let Ok(ready) = service.ready().await;
    let Ok(answer) = ready.call(request).await;
    assert_eq!(answer.status(), expected);
    let replayed = answer.headers().contains_key("idempotent-replayed");
    let mut body = pin!(answer.into_body());
    while let Some(Ok(frame)) = body.frame().await {
        black_box(frame);
    }
    replayed
}
