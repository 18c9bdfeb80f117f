//! Requests that go straight into the service, one at a time, on one thread: time and allocations
//! without a network.

use std::time::Duration;

use allocation_counter::measure;
use axum::{
    Router,
    body::{Body, Bytes},
    http::{Request, StatusCode},
};
use http_body_util::BodyExt;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

use crate::{
    Effort,
    app::{self, Executions},
    candidates::Candidate,
    requests::{Operation, PATH, payment},
};

/// What one process found out.
#[derive(Serialize, Deserialize)]
pub(crate) struct Found {
    /// Nanoseconds of computing per request.
    pub(crate) fresh_time: f64,
    pub(crate) replay_time: f64,
    /// Allocations per request.
    pub(crate) fresh_allocations: f64,
    pub(crate) replay_allocations: f64,
    /// Bytes that a fresh request allocates and does not give back.
    pub(crate) kept: f64,
}

pub(crate) fn run(candidate: Candidate, effort: &Effort) -> Found {
    // All work is on this thread, so that its time and its allocations are all there are.
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut bench = Bench::new(candidate, runtime);

    bench.fresh(effort.warm_up);
    let kept = measure(|| bench.fresh(effort.records)).bytes_current;

    let counted = bench.batch(effort.batch);
    let fresh_allocations = measure(|| bench.call(counted.requests, false)).count_total;
    let again = bench.again(&counted.operations);
    let replay_allocations = measure(|| bench.call(again, true)).count_total;

    let (mut fresh_time, mut replay_time) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..effort.batches {
        let batch = bench.batch(effort.batch);
        fresh_time += time(|| bench.call(batch.requests, false));
        let again = bench.again(&batch.operations);
        replay_time += time(|| bench.call(again, true));
    }

    let timed = (effort.batches * effort.batch) as f64;
    Found {
        fresh_time: fresh_time.as_nanos() as f64 / timed,
        replay_time: replay_time.as_nanos() as f64 / timed,
        fresh_allocations: fresh_allocations as f64 / effort.batch as f64,
        replay_allocations: replay_allocations as f64 / effort.batch as f64,
        kept: kept as f64 / effort.records as f64,
    }
}

struct Bench {
    candidate: Candidate,
    runtime: Runtime,
    app: Router,
    executions: Executions,
    body: Bytes,
    next: u64,
}

/// Requests that were made beforehand, so that making them is not measured.
struct Batch {
    operations: Vec<Operation>,
    requests: Vec<Request<Body>>,
}

impl Bench {
    fn new(candidate: Candidate, runtime: Runtime) -> Self {
        let executions = Executions::default();
        let routes = app::routes(executions.clone());
        let entered = runtime.enter();
        let app = candidate.around(routes);
        drop(entered);
        Self {
            candidate,
            runtime,
            app,
            executions,
            body: payment(5_000),
            next: 0,
        }
    }

    fn operation(&mut self) -> Operation {
        self.next += 1;
        Operation(self.next)
    }

    fn batch(&mut self, size: usize) -> Batch {
        let operations: Vec<_> = (0..size).map(|_| self.operation()).collect();
        let requests = self.again(&operations);
        Batch {
            operations,
            requests,
        }
    }

    fn again(&self, operations: &[Operation]) -> Vec<Request<Body>> {
        let request = |operation: &Operation| operation.request(PATH, &self.body);
        operations.iter().map(request).collect()
    }

    /// One new operation after the other, of which nothing is kept here.
    fn fresh(&mut self, operations: usize) {
        for _ in 0..operations {
            let request = self.operation().request(PATH, &self.body);
            let before = self.executions.count();
            self.runtime
                .block_on(call(&self.app, request, self.candidate, false));
            assert_eq!(self.executions.count(), before + 1);
        }
    }

    fn call(&self, requests: Vec<Request<Body>>, again: bool) {
        let replay = again && self.candidate != Candidate::Bare;
        let expected = match replay {
            true => self.executions.count(),
            false => self.executions.count() + requests.len() as u64,
        };
        self.runtime.block_on(async {
            for request in requests {
                call(&self.app, request, self.candidate, replay).await;
            }
        });
        assert_eq!(self.executions.count(), expected, "{:?}", self.candidate);
    }
}

/// One request to the end of its answer, as a connection of `axum::serve` makes it. What is timed
/// must be what was meant, so the answer is looked at.
async fn call(app: &Router, request: Request<Body>, candidate: Candidate, replay: bool) {
    let Ok(mut response) = app.clone().oneshot(request).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let marked = candidate
        .replay_marker()
        .is_some_and(|marker| response.headers().contains_key(marker));
    assert_eq!(marked, replay, "{candidate:?}");
    let mut length = 0;
    while let Some(frame) = response.body_mut().frame().await {
        let frame = frame.expect("a body in memory");
        length += frame.data_ref().map_or(0, Bytes::len);
    }
    assert!(length > 0);
}

/// The time that this thread computed: what other processes took of its core does not count.
fn time(work: impl FnOnce()) -> Duration {
    let now = || clock_gettime(ClockId::ThreadCPUTime);
    let started = now();
    work();
    let spent = now() - started;
    spent.try_into().expect("the clock goes forward")
}
