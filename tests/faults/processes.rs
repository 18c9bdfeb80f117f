//! Instances that are processes of their own: killed in mid-handler (`kill -9`), or frozen beyond
//! their lease and woken.

use std::{
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{ChildStdout, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use axum::{Extension, Router, http::HeaderMap, routing::post};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};
use tower_idempotency::{
    Entry, Execution, IdempotencyLayer, Outcome, Reason, Scope, Store, Takeover,
};

use crate::{
    servers::process::Process,
    support::{PATIENCE, Place, SqliteFile, Work, over_each_place, soon, until},
};

over_each_place! {
    p5_s27_killed_in_mid_handler
    p5_killed_while_others_wait
    p6_u12_woken_after_its_key_was_completed
    p6_u12_woken_while_its_key_is_held
}

/// Of the process, and renewed by it each third of it.
const LEASE: Duration = Duration::from_secs(4);

/// Which kind of store, and where. Set, it makes of the test below a process of the others.
const STORE: &str = "TOWER_IDEMPOTENCY_STORE";

/// A process that serves payments. A request with `x-hold` is held until the process is told to let
/// it go.
struct Instance {
    process: Process,
    address: SocketAddr,
    /// It prints no more, and is not to find nobody listening.
    _lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Instance {
    fn start<P: Place>(place: &P) -> Self {
        let mut process = Process::start(
            Command::new(env::current_exe().unwrap())
                .args(["processes::serves_by_itself", "--exact", "--nocapture"])
                .env(STORE, format!("{} {}", P::KIND, place.place()))
                .stdout(Stdio::piped()),
        );
        let mut lines = BufReader::new(process.stdout()).lines();
        let address = lines
            .find_map(|line| Some(line.unwrap().split_once("serves at ")?.1.parse().unwrap()))
            .expect("it serves");
        Self {
            process,
            address,
            _lines: lines,
        }
    }

    /// A request that is held.
    fn start_held(&self, key: &str) -> JoinHandle<Option<Reply>> {
        let request = Request::post("/payments")
            .header("host", "localhost")
            .header("idempotency-key", key)
            .header("x-hold", "1");
        tokio::spawn(send(self.address, request.body("100 EUR".into()).unwrap()))
    }

    /// Waits until one more handler runs.
    async fn entered(&self) {
        assert_eq!(self.tell("/entered").await.status, StatusCode::OK);
    }

    /// Lets one handler end.
    async fn let_go(&self) {
        assert_eq!(self.tell("/let-go").await.status, StatusCode::OK);
    }

    async fn tell(&self, what: &str) -> Reply {
        let request = Request::post(what).header("host", "localhost");
        let reply = send(self.address, request.body(Full::default()).unwrap());
        reply.await.expect("the process answers")
    }
}

#[derive(Debug)]
struct Reply {
    status: StatusCode,
    replayed: bool,
    retry_after: bool,
    body: Bytes,
}

/// Nothing where the connection breaks.
async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Option<Reply> {
    let reply = async {
        let stream = TcpStream::connect(address).await.ok()?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .ok()?;
        tokio::spawn(connection);
        let (parts, body) = sender.send_request(request).await.ok()?.into_parts();
        Some(Reply {
            status: parts.status,
            replayed: parts.headers.contains_key("idempotent-replayed"),
            retry_after: parts.headers.contains_key("retry-after"),
            body: body.collect().await.ok()?.to_bytes(),
        })
    };
    soon("the process answers or ends", reply).await
}

/// The process of the other tests; and, by itself, the test that it serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serves_by_itself() {
    if let Ok(store) = env::var(STORE) {
        let (kind, place) = store.split_once(' ').unwrap();
        return serve(open(kind, place).await).await;
    }
    let file = SqliteFile::new();
    let instance = Instance::start(&file);
    let first = instance.start_held("serves by itself");
    instance.entered().await;
    instance.let_go().await;
    let reply = first.await.unwrap().unwrap();
    assert_eq!((reply.status, reply.replayed), (StatusCode::CREATED, false));
    assert_eq!(reply.body, "attempt 1 of a process");
}

async fn open(kind: &str, place: &str) -> Arc<dyn Store> {
    use crate::servers::{postgres::PostgresServer, redis::RedisServer};
    match kind {
        RedisServer::KIND => RedisServer::store_at(place).await,
        PostgresServer::KIND => PostgresServer::store_at(place).await,
        SqliteFile::KIND => SqliteFile::store_at(place).await,
        _ => panic!("{kind}"),
    }
}

async fn serve(store: Arc<dyn Store>) {
    struct Gates {
        entered: Semaphore,
        gate: Semaphore,
    }
    let gates = Arc::new(Gates {
        entered: Semaphore::new(0),
        gate: Semaphore::new(0),
    });
    let take = async |semaphore: &Semaphore| semaphore.acquire().await.unwrap().forget();
    type Shared = Extension<Arc<Gates>>;
    let pay = async move |Extension(gates): Shared, execution: Execution, headers: HeaderMap| {
        gates.entered.add_permits(1);
        if headers.contains_key("x-hold") {
            take(&gates.gate).await;
        }
        let attempt = execution.attempt();
        (
            StatusCode::CREATED,
            format!("attempt {attempt} of a process"),
        )
    };
    let entered = async move |Extension(gates): Shared| take(&gates.entered).await;
    let let_go = async move |Extension(gates): Shared| gates.gate.add_permits(1);
    // As the instances of the tests, so that they share keys.
    let layer = IdempotencyLayer::new(store, Scope::single_tenant()).lease(LEASE);
    let app = Router::new()
        .route("/payments", post(pay))
        .layer(layer)
        .route("/entered", post(entered))
        .route("/let-go", post(let_go))
        .layer(Extension(gates));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("serves at {}", listener.local_addr().unwrap());
    axum::serve(listener, app).await.unwrap();
}

/// P5, S27: the key is taken until the lease ends; the next attempt knows that it takes over, or is
/// refused where that was chosen.
async fn p5_s27_killed_in_mid_handler<P: Place>() {
    let key = "killed in mid-handler";
    let place = P::shared();
    let work = Work::new();
    let instance = place.instance(&work).await;
    let refusing = instance.clone().with(|l| l.takeover(Takeover::refuse()));
    let mut process = Instance::start(&*place);
    let first = process.start_held(key);
    process.entered().await;
    process.process.kill();
    assert!(first.await.unwrap().is_none(), "its client has no answer");
    let start = std::time::Instant::now();
    instance.send(key).await.is_in_progress();

    let abandoned = async {
        loop {
            let answer = refusing.send(key).await;
            assert_eq!(answer.status, 409);
            if answer.outcome == Outcome::Refused(Reason::Abandoned) {
                break;
            }
            answer.is_in_progress();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("the lease ends", abandoned).await;
    // It may have been renewed last a third of it before.
    assert!(start.elapsed() >= LEASE / 2, "{:?}", start.elapsed());
    assert_eq!(work.count(), 0);

    instance.send(key).await.is_run(Outcome::Completed, 1);
    let run = &work.runs()[0];
    assert_eq!((run.attempt, run.entry), (2, Entry::Takeover));
    instance.send(key).await.is_replay_of(1);
    refusing.send(key).await.is_replay_of(1);
}

/// P5: nobody tells of its end; whoever waits notices it all the same, and one takes over.
async fn p5_killed_while_others_wait<P: Place>() {
    let key = "killed while others wait";
    let place = P::shared();
    let work = Work::new();
    let mut waiting = Vec::new();
    let mut process = Instance::start(&*place);
    let first = process.start_held(key);
    process.entered().await;
    for _ in 0..3 {
        let instance = place.instance(&work).await.waiting(PATIENCE);
        let request = instance.start(key);
        until("it waits", || instance.calls.count("wait") > 0).await;
        waiting.push(request);
    }
    process.process.kill();
    assert!(first.await.unwrap().is_none());
    let mut ran = 0;
    for request in waiting {
        let answer = request.await.unwrap();
        match answer.outcome {
            Outcome::Completed => ran += 1,
            _ => answer.is_replay_of(1),
        }
    }
    assert_eq!((ran, work.count()), (1, 1));
    let run = &work.runs()[0];
    assert_eq!((run.attempt, run.entry), (2, Entry::Takeover));
}

/// P6, U12: a process that is woken after another one took over and completed changes nothing: its
/// client gets the recorded answer, and not its own.
async fn p6_u12_woken_after_its_key_was_completed<P: Place>() {
    let key = "woken after completion";
    let place = P::shared();
    let work = Work::new();
    let instance = place.instance(&work).await;
    let process = Instance::start(&*place);
    let first = process.start_held(key);
    process.entered().await;
    process.process.freeze();
    instance.send(key).await.is_in_progress();
    instance.retry(key).await.is_run(Outcome::Completed, 1);
    let run = &work.runs()[0];
    assert_eq!((run.attempt, run.entry), (2, Entry::Takeover));

    process.process.thaw();
    process.let_go().await;
    let reply = first.await.unwrap().unwrap();
    assert_eq!((reply.status, reply.replayed), (StatusCode::CREATED, true));
    assert_eq!(reply.body, "run 1");
    instance.send(key).await.is_replay_of(1);
    assert_eq!(work.count(), 1);
}

/// P6, U12: the same while the other one runs. Neither its renewals nor its completion touch the
/// record; its client is told to come again, and gets the one answer.
async fn p6_u12_woken_while_its_key_is_held<P: Place>() {
    let key = "woken while held";
    let place = P::shared();
    let work = Work::held();
    let instance = place.instance(&work).await;
    let process = Instance::start(&*place);
    let first = process.start_held(key);
    process.entered().await;
    process.process.freeze();
    let retrying = instance.clone();
    let second = tokio::spawn(async move { retrying.retry(key).await });
    work.entered().await;

    process.process.thaw();
    process.let_go().await;
    let reply = first.await.unwrap().unwrap();
    assert_eq!(
        (reply.status, reply.retry_after),
        (StatusCode::CONFLICT, true)
    );
    assert!(!work.runs()[0].execution.is_superseded());
    instance.send(key).await.is_in_progress();
    work.let_go();
    second.await.unwrap().is_run(Outcome::Completed, 1);
    let again = process.start_held(key).await.unwrap().unwrap();
    assert_eq!((again.status, again.replayed), (StatusCode::CREATED, true));
    assert_eq!(again.body, "run 1");
    assert_eq!(work.count(), 1);
}
