//! What the candidates do, besides how fast: each case is played, and its answer is what happened.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Request, StatusCode, header},
    response::{AppendHeaders, IntoResponse, Response},
    routing::post,
};
use http_body_util::BodyExt;
use tokio::{
    runtime::Builder,
    sync::Semaphore,
    task::{JoinSet, yield_now},
    time::timeout,
};
use tower::ServiceExt;

use crate::{
    app::Payment,
    candidates::Candidate,
    requests::{Operation, TENANT, payment},
};

/// How many duplicates come at once.
const DUPLICATES: u32 = 50;

/// Longer than a case takes, so that one that hangs ends.
const PATIENCE: Duration = Duration::from_secs(30);

/// The names of the cases.
pub(crate) const CASES: [&str; 6] = [
    "50 requests with one key at once",
    "A retry after the answer",
    "The same key, another body",
    "The same key, another caller",
    "The handler answered 500, then a retry",
    "The caller leaves while the handler runs, then a retry",
];

/// What happens in each case.
pub(crate) fn run(candidate: Candidate) -> [String; 6] {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let cases = async {
            [
                at_once(&Played::new(candidate)).await,
                retry(&Played::new(candidate)).await,
                other_body(&Played::new(candidate)).await,
                other_caller(&Played::new(candidate)).await,
                failed(&Played::new(candidate)).await,
                left(&Played::new(candidate)).await,
            ]
        };
        timeout(PATIENCE, cases).await.expect("a case hangs")
    })
}

async fn at_once(played: &Played) -> String {
    let mut tasks = JoinSet::new();
    for _ in 0..DUPLICATES {
        let events = Arc::clone(&played.events);
        let sent = played.send("/gated", Operation(0), 1);
        tasks.spawn(async move {
            let answer = sent.await;
            events.add_permits(1);
            answer
        });
    }
    // Each has come to the handler or has its answer: only now may the handler go on.
    drop(played.events.acquire_many(DUPLICATES).await);
    played.open();
    let answers = tasks.join_all().await;
    let refused = answers
        .iter()
        .filter(|answer| answer.status == StatusCode::CONFLICT)
        .count();
    let served = answers
        .iter()
        .filter(|answer| answer.status == StatusCode::CREATED)
        .count();
    assert_eq!(refused + served, answers.len());
    match (played.executions(), refused) {
        (executions, 0) => format!("{executions} executions"),
        (1, refused) => format!("1 execution, {refused} × 409"),
        (executions, refused) => format!("{executions} executions, {refused} × 409"),
    }
}

async fn retry(played: &Played) -> String {
    let first = played.send("/payments", Operation(0), 1).await;
    let again = played.send("/payments", Operation(0), 1).await;
    if played.executions() > 1 {
        return "executed again".to_owned();
    }
    let mut kept = vec!["status"];
    assert_eq!(first.status, again.status);
    if first.body == again.body {
        kept.push("body");
    }
    let same = |name| {
        first
            .headers
            .get_all(&name)
            .iter()
            .eq(again.headers.get_all(&name))
    };
    if same(header::LOCATION) && same(header::LINK) {
        kept.push("headers");
    }
    if same(header::SET_COOKIE) {
        kept.push("cookies");
    }
    format!("replayed: {}", kept.join(", "))
}

async fn other_body(played: &Played) -> String {
    played.send("/payments", Operation(0), 1).await;
    let other = played.send("/payments", Operation(0), 2).await;
    match (other.status, played.executions()) {
        (StatusCode::CREATED, 1) => "the first one's answer".to_owned(),
        (StatusCode::CREATED, 2) => "executed".to_owned(),
        (status, 1) => format!("refused, {}", status.as_u16()),
        (status, executions) => unreachable!("{status} and {executions} executions"),
    }
}

async fn other_caller(played: &Played) -> String {
    let operation = Operation(0);
    played.send("/payments", operation, 1).await;
    let mut request = operation.request("/payments", &payment(1));
    let stranger = Operation(1_000).request("/payments", &payment(1));
    for name in [TENANT, "cookie"] {
        let theirs = stranger.headers()[name].clone();
        request.headers_mut().insert(name, theirs);
    }
    ask(played.app.clone(), request).await;
    match played.executions() {
        1 => "the first one's answer".to_owned(),
        _ => "executed".to_owned(),
    }
}

async fn failed(played: &Played) -> String {
    let first = played.send("/fails", Operation(0), 1).await;
    assert_eq!(first.status, StatusCode::INTERNAL_SERVER_ERROR);
    let again = played.send("/fails", Operation(0), 1).await;
    assert_eq!(again.status, StatusCode::INTERNAL_SERVER_ERROR);
    match played.executions() {
        1 => "the 500 again".to_owned(),
        _ => "executed again".to_owned(),
    }
}

async fn left(played: &Played) -> String {
    let first = tokio::spawn(played.send("/gated", Operation(0), 1));
    drop(played.events.acquire().await);
    first.abort();
    assert!(first.await.is_err_and(|error| error.is_cancelled()));
    played.open();
    // While what was left behind still runs, a retry is told so.
    let answer = loop {
        let answer = played.send("/gated", Operation(0), 1).await;
        if answer.status != StatusCode::CONFLICT {
            break answer;
        }
        yield_now().await;
    };
    assert_eq!(answer.status, StatusCode::CREATED);
    match (played.executions(), played.finished.load(Relaxed)) {
        (1, 1) => "ran to its end, replayed".to_owned(),
        (2, 1) => "cut off, executed again".to_owned(),
        (begun, finished) => unreachable!("{begun} executions began, {finished} ended"),
    }
}

/// A candidate with routes of its own.
struct Played {
    app: Router,
    state: Arc<Counted>,
}

struct Counted {
    /// One for each execution that began at the gate.
    events: Arc<Semaphore>,
    gate: Semaphore,
    begun: AtomicU64,
    finished: AtomicU64,
}

impl std::ops::Deref for Played {
    type Target = Counted;

    fn deref(&self) -> &Counted {
        &self.state
    }
}

impl Played {
    fn new(candidate: Candidate) -> Self {
        let state = Arc::new(Counted {
            events: Arc::new(Semaphore::new(0)),
            gate: Semaphore::new(0),
            begun: AtomicU64::new(0),
            finished: AtomicU64::new(0),
        });
        let routes = Router::new()
            .route("/payments", post(pay))
            .route("/gated", post(gated))
            .route("/fails", post(fail))
            .with_state(Arc::clone(&state));
        Self {
            app: candidate.around(routes),
            state,
        }
    }

    fn send(
        &self,
        path: &str,
        operation: Operation,
        amount: u64,
    ) -> impl Future<Output = Answer> + Send + 'static {
        ask(self.app.clone(), operation.request(path, &payment(amount)))
    }

    fn open(&self) {
        self.gate.close();
    }

    fn executions(&self) -> u64 {
        self.begun.load(Relaxed)
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

async fn ask(app: Router, request: Request<Body>) -> Answer {
    let Ok(response): Result<Response, Infallible> = app.oneshot(request).await;
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a body in memory").to_bytes();
    Answer {
        status: head.status,
        headers: head.headers,
        body,
    }
}

async fn pay(State(state): State<Arc<Counted>>, Json(payment): Json<Payment>) -> Response {
    let number = state.begun.fetch_add(1, Relaxed);
    let body = format!("payment {number} of {}", payment.amount);
    let headers = AppendHeaders([
        (header::LOCATION, "/payments/1"),
        (header::LINK, "</a>; rel=first"),
        (header::LINK, "</b>; rel=last"),
        (header::SET_COOKIE, "seen=1"),
    ]);
    (StatusCode::CREATED, headers, body).into_response()
}

async fn gated(State(state): State<Arc<Counted>>) -> StatusCode {
    state.begun.fetch_add(1, Relaxed);
    state.events.add_permits(1);
    // Closed when it is to go on.
    drop(state.gate.acquire().await);
    state.finished.fetch_add(1, Relaxed);
    StatusCode::CREATED
}

async fn fail(State(state): State<Arc<Counted>>) -> StatusCode {
    state.begun.fetch_add(1, Relaxed);
    StatusCode::INTERNAL_SERVER_ERROR
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The columns are of the candidates that they are said to be.
    #[test]
    fn bare_axum_protects_nothing_and_ours_does() {
        let bare = run(Candidate::Bare);
        assert_eq!(bare[0], "50 executions");
        assert!(bare[1..5].iter().all(|case| case.starts_with("executed")));
        assert_eq!(bare[5], "cut off, executed again");
        let ours = run(Candidate::Ours);
        assert_eq!(ours[0], "1 execution, 49 × 409");
        assert!(ours[1].starts_with("replayed: status, body, headers"));
        assert_eq!(ours[2], "refused, 422");
        assert_eq!(
            ours[3..],
            ["executed", "executed again", "ran to its end, replayed"]
        );
    }
}
