//! The demo server as a process of its own, over real TCP: what its users see with curl.

#[path = "../examples/payments/client.rs"]
mod client;
#[path = "servers/mod.rs"]
mod servers;

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use client::Answer;
use futures::future::join_all;
use serde_json::Value;
use servers::example::{Ended, Example, example, run};
use tokio::{net::TcpStream, task::JoinHandle};

/// Real time: only how long a broken build takes to fail.
const DEADLINE: Duration = Duration::from_secs(60);

const ORDER: &str = r#"{"amount": 100, "currency": "EUR", "reference": "order-1"}"#;
/// Works for so long that the other requests of a race are there before it ends.
const SLOW: &str = r#"{"amount": 100, "currency": "EUR", "simulate": {"delay_ms": 1500}}"#;

/// A running server, killed when the test ends.
struct Server {
    example: Example,
    addr: SocketAddr,
    ledger: PathBuf,
}

impl Server {
    fn start(flags: &[&str]) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let ledger = std::env::temp_dir().join(format!(
            "payments-ledger-{}-{}.jsonl",
            std::process::id(),
            STARTED.fetch_add(1, Ordering::Relaxed)
        ));
        let mut command = example("payments");
        command
            .args(["--addr", "127.0.0.1:0", "--ledger"])
            .arg(&ledger)
            .args(flags)
            .stderr(Stdio::null());
        let example = Example::start(&mut command);
        Self {
            addr: example.address(),
            example,
            ledger,
        }
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        tokio::time::timeout(
            DEADLINE,
            client::send(self.addr, method, path, headers, body),
        )
        .await
        .expect("an answer in time")
        .expect("an answer")
    }

    /// A payment or a transfer during which the server dies.
    #[cfg(feature = "sqlite")]
    async fn dies_of(&mut self, path: &str, key: &str, body: &str) {
        let headers = [("idempotency-key", key)];
        let answer = client::send(self.addr, "POST", path, &headers, body);
        let answer = tokio::time::timeout(DEADLINE, answer).await;
        let answer = answer.expect("an end in time");
        assert!(answer.is_err(), "{answer:?}");
        // By a signal.
        assert_eq!(self.example.ended().await.0, None);
    }

    /// The table of transfers.
    #[cfg(any(feature = "redis", feature = "postgres", feature = "sqlite"))]
    async fn rows(&self) -> Vec<Value> {
        let rows = self.get("/transfers").await;
        serde_json::from_str(&rows.body).expect("a list")
    }

    #[cfg(feature = "sqlite")]
    async fn transfer(&self, key: &str, body: &str) -> Answer {
        self.send("POST", "/transfers", &[("idempotency-key", key)], body)
            .await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    async fn pay(&self, key: &str, body: &str) -> Answer {
        self.send("POST", "/payments", &[("idempotency-key", key)], body)
            .await
    }

    /// `times` requests at once, over connections that are open already.
    async fn race(&self, key: &str, body: &str, times: usize) -> Vec<JoinHandle<Answer>> {
        let connections = join_all((0..times).map(|_| TcpStream::connect(self.addr))).await;
        connections
            .into_iter()
            .map(|connection| {
                let connection = connection.expect("a connection");
                let (key, body) = (key.to_owned(), body.to_owned());
                tokio::spawn(async move {
                    let headers = [("idempotency-key", key.as_str())];
                    client::send_on(connection, "POST", "/payments", &headers, &body)
                        .await
                        .expect("an answer")
                })
            })
            .collect()
    }

    /// A request that is in the handler now. Of two equal ones one was refused, so the other is.
    async fn running(&self, key: &str) -> JoinHandle<Answer> {
        let race = self.race(key, SLOW, 2).await;
        let (refused, _, mut rest) = futures::future::select_all(race).await;
        assert_eq!(refused.expect("no panic").status, 409);
        rest.remove(0)
    }

    fn ledger(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.ledger).expect("the ledger");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a line of JSON"))
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.ledger);
    }
}

async fn answers(race: Vec<JoinHandle<Answer>>) -> Vec<Answer> {
    let all = tokio::time::timeout(DEADLINE, join_all(race)).await;
    let all = all.expect("answers in time").into_iter();
    all.map(|answer| answer.expect("no panic")).collect()
}

fn assert_fresh(answer: &Answer) {
    assert_eq!(answer.status, 201, "{answer:?}");
    assert!(!answer.is_replay(), "{answer:?}");
    assert_eq!(answer.json("/status"), Some("succeeded".into()));
}

fn assert_replay(answer: &Answer, first: &Answer) {
    assert_eq!(answer.status, first.status, "{answer:?}");
    assert!(answer.is_replay(), "{answer:?}");
    assert_eq!(answer.body, first.body);
    assert_eq!(answer.header("location"), first.header("location"));
}

/// A refusal of the layer (not of the handler), which names its reason.
fn assert_refused(answer: &Answer, status: u16, reason: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    let content_type = answer.header("content-type").unwrap_or_default();
    assert_eq!(content_type, "application/problem+json");
    assert_eq!(answer.json("/error"), Some(reason.into()), "{answer:?}");
    assert_eq!(answer.json("/status"), Some(status.into()), "{answer:?}");
}

/// S12, S13, U02, U27, I05, I06: the handler's 201 with its Location, and again.
#[tokio::test]
async fn s13_u27_first_request_and_replay() {
    let server = Server::start(&[]);
    let first = server.pay("order-1", ORDER).await;
    assert_fresh(&first);
    assert_eq!(first.json("/amount"), Some(100.into()));
    assert_eq!(first.json("/currency"), Some("EUR".into()));
    let id = first.json("/payment_id").unwrap();
    let location = format!("/payments/{}", id.as_str().unwrap());
    assert_eq!(first.header("location"), Some(location.as_str()));

    assert_replay(&server.pay("order-1", ORDER).await, &first);
    // U02: quoted, it is the same key.
    assert_replay(&server.pay("\"order-1\"", ORDER).await, &first);
    // S24: the same payload, spelt otherwise.
    let respelt = r#"{"reference":"order-1","currency":"EUR","amount":100.0}"#;
    assert_replay(&server.pay("order-1", respelt).await, &first);

    let ledger = server.ledger();
    assert_eq!(ledger.len(), 1, "{ledger:?}");
    assert_eq!(ledger[0]["key"], "order-1");
    assert_eq!(ledger[0]["scope"], "anonymous");
    assert!(ledger[0]["at"].as_u64().unwrap() > 1_700_000_000_000);
    assert_eq!(ledger[0]["payment_id"], id);
}

/// S07, S24, I09: the same key for another payload.
#[tokio::test]
async fn s07_i09_another_body_is_refused() {
    let server = Server::start(&[]);
    let first = server.pay("order-1", ORDER).await;
    let other = ORDER.replace("100", "999");
    assert_refused(&server.pay("order-1", &other).await, 422, "mismatch");
    assert_replay(&server.pay("order-1", ORDER).await, &first);
    // U28: under a key of its own it is an operation of its own.
    assert_fresh(&server.pay("order-2", &other).await);
    assert_eq!(server.ledger().len(), 2);
}

/// U26: a mismatch is reported before a conflict.
#[tokio::test]
async fn u26_another_body_in_mid_request_is_a_mismatch() {
    let server = Server::start(&[]);
    let running = server.running("order-1").await;
    assert_refused(&server.pay("order-1", ORDER).await, 422, "mismatch");
    assert_fresh(&running.await.unwrap());
}

/// S10, S14, S29, S33, I07: fifty at once, one execution, and 49 that are told when to retry.
#[tokio::test]
async fn s10_s29_fifty_at_once_are_one_execution() {
    let server = Server::start(&[]);
    let answers = answers(server.race("order-1", SLOW, 50).await).await;
    let (fresh, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|a| a.status == 201);
    assert_eq!((fresh.len(), refused.len()), (1, 49));
    assert_fresh(fresh[0]);
    for answer in refused {
        assert_refused(answer, 409, "in_progress");
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!(seconds >= 1);
        assert_eq!(answer.json("/retry_after"), Some(seconds.into()));
        let detail = answer.json("/detail").unwrap();
        assert!(detail.as_str().unwrap().contains("order-1"), "{detail}");
    }
    assert_replay(&server.pay("order-1", SLOW).await, fresh[0]);
    assert_eq!(server.ledger().len(), 1);
}

/// S03, S10: with `--on-conflict wait`, fifty equal answers of one execution.
#[tokio::test]
async fn s03_fifty_at_once_wait_for_one_answer() {
    let server = Server::start(&["--on-conflict", "wait", "--delay-ms", "300"]);
    let answers = answers(server.race("order-1", ORDER, 50).await).await;
    let (replayed, fresh): (Vec<_>, Vec<_>) = answers.iter().partition(|a| a.is_replay());
    assert_eq!(fresh.len(), 1);
    assert_fresh(fresh[0]);
    for answer in replayed {
        assert_replay(answer, fresh[0]);
    }
    assert_eq!(server.ledger().len(), 1);
}

/// S09, S27, U08, P4: a client that is killed in mid-request loses its answer, not the payment.
#[tokio::test]
async fn s09_u08_a_killed_client_retries_and_gets_the_answer() {
    let server = Server::start(&[]);
    // Aborting drops the connection.
    server.running("order-1").await.abort();

    let start = Instant::now();
    let retry = loop {
        let answer = server.pay("order-1", SLOW).await;
        if answer.status != 409 {
            break answer;
        }
        assert!(start.elapsed() < DEADLINE, "the key stays taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(retry.status, 201);
    assert!(retry.is_replay(), "{retry:?}");
    let ledger = server.ledger();
    assert_eq!(ledger.len(), 1);
    assert_eq!(
        retry.json("/payment_id"),
        Some(ledger[0]["payment_id"].clone())
    );
}

/// S05: after the time to live the key can be used again, and not before.
#[tokio::test]
async fn s05_records_expire() {
    let server = Server::start(&["--ttl-secs", "2"]);
    let start = Instant::now();
    let first = server.pay("order-1", ORDER).await;
    let again = loop {
        let answer = server.pay("order-1", ORDER).await;
        if !answer.is_replay() {
            break answer;
        }
        assert_replay(&answer, &first);
        assert!(start.elapsed() < DEADLINE, "the record does not expire");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert_fresh(&again);
    assert_ne!(again.body, first.body);
    assert_eq!(server.ledger().len(), 2);
}

/// S04, S30, U03, U04: after a failure the next try runs at once; it is not replayed.
#[tokio::test]
async fn s30_u04_failures_are_retried_at_once() {
    let server = Server::start(&[]);
    let order =
        |simulate: &str| format!(r#"{{"amount": 7, "currency": "EUR", "simulate": {simulate}}}"#);

    let failing = order(r#"{"fail_times": 2, "status": 500}"#);
    for _ in 0..2 {
        let answer = server.pay("fails", &failing).await;
        assert_eq!(answer.status, 500);
        assert!(!answer.is_replay());
    }
    assert!(server.ledger().is_empty());
    // Its effect is unknown, so the key keeps its payload.
    assert_refused(&server.pay("fails", ORDER).await, 422, "mismatch");
    let third = server.pay("fails", &failing).await;
    assert_fresh(&third);
    assert_replay(&server.pay("fails", &failing).await, &third);
    assert_eq!(server.ledger()[0]["attempt"], 3);

    let unset = order(r#"{"fail_times": 1}"#);
    assert_eq!(server.pay("unset", &unset).await.status, 503);
    assert_fresh(&server.pay("unset", &unset).await);

    // S22: a 4xx frees the key, yet the demo counts on.
    let rejected = order(r#"{"fail_times": 2, "status": 402}"#);
    for _ in 0..2 {
        assert_eq!(server.pay("rejected", &rejected).await.status, 402);
    }
    assert_fresh(&server.pay("rejected", &rejected).await);
    assert_eq!(server.ledger().len(), 3);
}

/// U03: a panic is a 500 and frees the key at once; the server lives on.
#[tokio::test]
async fn u03_a_panic_frees_the_key() {
    let server = Server::start(&[]);
    let panics =
        r#"{"amount": 7, "currency": "EUR", "simulate": {"fail_times": 1, "panic": true}}"#;
    assert_eq!(server.pay("order-1", panics).await.status, 500);
    assert!(server.ledger().is_empty());
    let retry = server.pay("order-1", panics).await;
    assert_fresh(&retry);
    assert_replay(&server.pay("order-1", panics).await, &retry);
    assert_eq!(server.ledger().len(), 1);
}

/// S12, I02, I08, U38: no key, or one that is none.
#[tokio::test]
async fn s12_i02_u38_a_missing_or_malformed_key_is_refused() {
    let server = Server::start(&[]);
    let missing = server.send("POST", "/payments", &[], ORDER).await;
    assert_refused(&missing, 400, "key_missing");

    let long = "k".repeat(256);
    let malformed = [
        "",
        "\"\"",
        "\"open",
        "open\"",
        "\"a\" \"b\"",
        r#""\x""#,
        "a, b",
        "\"a\", \"b\"",
        "clé",
        "a\tb",
        &long,
    ];
    for key in malformed {
        assert_refused(&server.pay(key, ORDER).await, 400, "key_invalid");
    }
    let repeated = [("idempotency-key", "a"), ("idempotency-key", "a")];
    let repeated = server.send("POST", "/payments", &repeated, ORDER).await;
    assert_refused(&repeated, 400, "key_invalid");
    assert!(server.ledger().is_empty());

    let fits = "k".repeat(255);
    assert_fresh(&server.pay(&fits, ORDER).await);
    assert_fresh(&server.pay(r#""k\"\\";p=1"#, ORDER).await);
    assert_eq!(server.ledger()[1]["key"], r#"k"\"#);
}

/// S22: the handler's own refusal frees the key for the corrected request.
#[tokio::test]
async fn s22_a_rejected_payment_can_be_corrected() {
    let server = Server::start(&[]);
    let bad = [
        "",
        "{",
        "[]",
        r#"{"currency": "EUR"}"#,
        r#"{"amount": 0, "currency": "EUR"}"#,
        r#"{"amount": -1, "currency": "EUR"}"#,
        r#"{"amount": "1", "currency": "EUR"}"#,
        r#"{"amount": 1.5, "currency": "EUR"}"#,
        r#"{"amount": 1, "currency": "euro"}"#,
        r#"{"amount": 1, "currency": "EUR", "simulate": {"status": 201}}"#,
        r#"{"amount": 1, "currency": "EUR", "simulate": {"delay_ms": 60001}}"#,
        r#"{"amount": 1, "currency": "EUR", "simulate": {"unknown": 1}}"#,
    ];
    for body in bad {
        let answer = server.pay("order-1", body).await;
        assert_eq!(answer.status, 422, "{body}: {answer:?}");
        // The handler's own, not the layer's.
        assert_eq!(answer.json("/error"), None, "{answer:?}");
        assert_eq!(answer.json("/status"), Some(422.into()));
    }
    assert!(server.ledger().is_empty());
    assert_fresh(&server.pay("order-1", ORDER).await);
}

/// U33, I12: a key belongs to its caller.
#[tokio::test]
async fn u33_another_caller_has_another_operation() {
    let server = Server::start(&[]);
    let mut answers = Vec::new();
    for caller in ["alice", "bob"] {
        let headers = [("idempotency-key", "order-1"), ("x-api-key", caller)];
        let first = server.send("POST", "/payments", &headers, ORDER).await;
        assert_fresh(&first);
        let again = server.send("POST", "/payments", &headers, ORDER).await;
        assert_replay(&again, &first);
        answers.push(first.body);
    }
    answers.push(server.pay("order-1", ORDER).await.body);
    answers.dedup();
    assert_eq!(answers.len(), 3);
    let scopes: Vec<_> = server.ledger().iter().map(|e| e["scope"].clone()).collect();
    assert_eq!(scopes, ["alice", "bob", "anonymous"]);

    for unclear in [
        &[("x-api-key", "clé")][..],
        &[("x-api-key", "alice"), ("x-api-key", "bob")],
    ] {
        let headers = [&[("idempotency-key", "order-1")], unclear].concat();
        let answer = server.send("POST", "/payments", &headers, ORDER).await;
        assert_refused(&answer, 403, "caller_unknown");
    }
}

/// S01: the key in the body.
#[tokio::test]
async fn s01_process_request() {
    let server = Server::start(&[]);
    let body =
        r#"{"idempotency_key": "abc-123", "payload": {"action": "apply_discount", "amount": 50}}"#;
    let process = async |body: &str| server.send("POST", "/process-request", &[], body).await;

    let first = process(body).await;
    assert_eq!(first.status, 200, "{first:?}");
    assert!(!first.is_replay());
    assert_eq!(first.json("/status"), Some("success".into()));
    assert_replay(&process(body).await, &first);

    let another = process(&body.replace("abc-123", "abc-124")).await;
    assert_eq!(another.status, 200);
    assert_ne!(another.body, first.body);

    let mismatch = process(&body.replace("50", "60")).await;
    assert_refused(&mismatch, 422, "mismatch");
    assert_refused(&process("{}").await, 400, "key_missing");
    let no_string = process(&body.replace("\"abc-123\"", "123")).await;
    assert_refused(&no_string, 400, "key_invalid");

    // The same key on the other endpoint is another operation.
    assert_fresh(&server.pay("abc-123", ORDER).await);
    let keys: Vec<_> = server.ledger().iter().map(|e| e["key"].clone()).collect();
    assert_eq!(keys, ["abc-123", "abc-124", "abc-123"]);
}

/// S11, P10: what needs no protection passes untouched.
#[tokio::test]
async fn s11_reads_pass_untouched() {
    let server = Server::start(&[]);
    let payment = server.pay("order-1", ORDER).await;
    let headers = [("idempotency-key", "order-1")];
    for _ in 0..2 {
        let path = payment.header("location").unwrap();
        let shown = server.send("GET", path, &headers, "").await;
        assert_eq!((shown.status, shown.is_replay()), (200, false));
        assert_eq!(shown.json("/amount"), Some(100.into()));
        let health = server.send("GET", "/healthz", &headers, "").await;
        assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));
    }
    assert_eq!(server.get("/payments/none").await.status, 404);
    let unknown = server.send("POST", "/unknown", &[], ORDER).await;
    assert_eq!(unknown.status, 404);

    let ledger = server.get("/ledger").await;
    let shown: Vec<Value> = serde_json::from_str(&ledger.body).unwrap();
    assert_eq!(shown, server.ledger());
}

/// U21: a signal in mid-request: the answer still arrives, and the exit is clean.
#[tokio::test]
async fn u21_signals_let_requests_finish() {
    let stops = async |signal: &str| {
        let mut server = Server::start(&[]);
        let running = server.running("order-1").await;
        server.example.process.signal(signal);
        assert_fresh(&running.await.unwrap());
        assert_eq!(server.example.ended().await.0, Some(0), "{signal}");
        assert_eq!(server.ledger().len(), 1, "{signal}");
        assert!(TcpStream::connect(server.addr).await.is_err());
    };
    tokio::join!(stops("INT"), stops("TERM"));
}

/// U21, P4, U08: a shutdown waits also for work whose client has left.
#[tokio::test]
async fn u21_shutdown_waits_for_work_without_a_client() {
    let mut server = Server::start(&[]);
    server.running("order-1").await.abort();
    server.example.process.signal("TERM");
    assert_eq!(server.example.ended().await.0, Some(0));
    assert_eq!(server.ledger().len(), 1);
}

/// S31: the demo tells of itself whether it went as it should.
#[test]
fn s31_the_demo_plays_its_transcript() {
    let ended = output(&["--demo"]);
    let transcript = ended.stdout;
    assert_eq!(ended.code, Some(0), "{transcript}");
    let count = |what: &str| transcript.matches(what).count();
    assert_eq!(count("-> POST /payments"), 7, "{transcript}");
    assert_eq!(count("<- 201"), 5, "{transcript}");
    assert_eq!(count("<- 409"), 2, "{transcript}");
    assert_eq!(count("Retry-After: "), 2, "{transcript}");
    assert_eq!(count("Idempotent-Replayed: true"), 2, "{transcript}");
}

/// Wrong flags end with a message that says what is wrong.
#[tokio::test]
async fn bad_flags_are_explained() {
    let server = Server::start(&[]);
    let taken = server.addr.to_string();
    let cases: &[(&[&str], &str)] = &[
        (&["--ttl-secs", "0"], "--ttl-secs"),
        (&["--lease-secs", "0"], "--lease-secs"),
        (&["--delay-ms", "soon"], "--delay-ms"),
        (&["--on-conflict", "maybe"], "reject, wait"),
        (&["--takeover", "maybe"], "run, refuse"),
        (
            &["--store", "mysql://user:secret@host"],
            "there is no store `mysql`; there are memory, redis://…",
        ),
        (&["--store", "memory://secret"], "there is no store"),
        (&["--store", "tiered:memory"], "takes two stores"),
        (
            &["--store", "tiered:memory,tiered:memory,memory"],
            "there is no store `tiered`",
        ),
        // Port 1 refuses connections.
        (
            &["--store", "redis://user:secret@127.0.0.1:1"],
            "the store `redis` cannot be opened: ",
        ),
        (
            &["--store", "rediss://user:secret@127.0.0.1:1"],
            "the store `rediss` cannot be opened: ",
        ),
        (
            &["--store", "redis://user:secret@not a host"],
            "the store `redis` cannot be opened: ",
        ),
        (
            &["--store", "postgres://user:secret@127.0.0.1:1/db"],
            "the store `postgres` cannot be opened: ",
        ),
        (
            &["--store", "postgres://user:secret@not a host"],
            "the store `postgres` cannot be opened: ",
        ),
        (
            &[
                "--store",
                "tiered:memory,postgres://user:secret@127.0.0.1:1/db",
            ],
            "the store `postgres` cannot be opened: ",
        ),
        (
            &["--store", "sqlite:/no/such/folder/payments.db"],
            "the store `sqlite` cannot be opened: ",
        ),
        (
            &["--store", "sqlite:"],
            "the store `sqlite` cannot be opened: ",
        ),
        (&["--addr", "nonsense"], "cannot listen on nonsense"),
        (&["--addr", "127.0.0.1:99999"], "cannot listen on"),
        (&["--addr", &taken], "cannot listen on"),
        (&["--ledger", "/"], "ledger / cannot be opened"),
        (&["--demo", "--ttl-secs", "1"], "cannot be used with"),
    ];
    for (flags, message) in cases {
        let Ended { code, stderr, .. } = output(flags);
        assert!(matches!(code, Some(1 | 2)), "{flags:?}: {code:?}");
        assert!(stderr.contains(message), "{flags:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{flags:?}: {stderr}");
        assert!(!stderr.contains("secret"), "{flags:?}: {stderr}");
    }
}

/// A store that is not compiled in says which feature it is.
#[test]
fn missing_features_are_named() {
    for (store, feature, there) in [
        ("redis://127.0.0.1:1", "redis", cfg!(feature = "redis")),
        (
            "postgres://127.0.0.1:1/db",
            "postgres",
            cfg!(feature = "postgres"),
        ),
        (
            "sqlite:/no/such/folder/db",
            "sqlite",
            cfg!(feature = "sqlite"),
        ),
    ] {
        let Ended { code, stderr, .. } = output(&["--store", store]);
        assert_eq!(code, Some(1), "{stderr}");
        let named = stderr.contains(&format!("add `--features {feature}`"));
        assert_eq!(named, !there, "{store}: {stderr}");
    }
}

/// Transfers need a database.
#[tokio::test]
async fn without_a_database_there_are_no_transfers() {
    let server = Server::start(&[]);
    for method in ["GET", "POST"] {
        let answer = server.send(method, "/transfers", &[], ORDER).await;
        assert_eq!(answer.status, 501, "{answer:?}");
        let detail = answer.json("/detail").unwrap();
        assert!(detail.as_str().unwrap().contains("postgres://"), "{detail}");
    }
}

/// What every store that outlives its process gives: S14, S16, S17.
#[cfg(any(feature = "redis", feature = "postgres", feature = "sqlite"))]
async fn keeps_its_answers(store: &str, with_transfers: bool) {
    let flags = ["--store", store];
    // Three that begin at once share it.
    let start = || {
        std::thread::spawn({
            let store = store.to_owned();
            move || Server::start(&["--store", &store])
        })
    };
    let servers = [start(), start(), start()].map(|server| server.join().expect("it starts"));
    let [one, two, three] = servers;

    let first = one.pay("order-1", ORDER).await;
    assert_fresh(&first);
    assert_replay(&two.pay("order-1", ORDER).await, &first);
    let other = ORDER.replace("100", "999");
    assert_refused(&three.pay("order-1", &other).await, 422, "mismatch");

    let transfers = if with_transfers { 201 } else { 501 };
    let headers = [("idempotency-key", "order-1"), ("x-api-key", "alice")];
    let moved = two.send("POST", "/transfers", &headers, ORDER).await;
    assert_eq!(moved.status, transfers, "{moved:?}");

    drop((one, two, three));
    let server = Server::start(&flags);
    assert_replay(&server.pay("order-1", ORDER).await, &first);
    assert!(server.ledger().is_empty());
    if !with_transfers {
        return;
    }

    // P7: the row and the answer, once.
    assert_fresh(&moved);
    let again = server.send("POST", "/transfers", &headers, ORDER).await;
    assert_replay(&again, &moved);
    let mismatch = server.send("POST", "/transfers", &headers, &other).await;
    assert_refused(&mismatch, 422, "mismatch");
    let id = moved.json("/transfer_id");
    let row = serde_json::json!({
        "id": id, "key": "order-1", "scope": "alice", "amount": 100,
    });
    assert_eq!(server.rows().await, [row]);

    // The same contract as for payments: a key, a body, faults to try a client with.
    let no_key = server.send("POST", "/transfers", &[], ORDER).await;
    assert_refused(&no_key, 400, "key_missing");
    let invalid = server.send("POST", "/transfers", &headers[..1], "{}").await;
    assert_eq!(invalid.status, 422);
    let failing =
        r#"{"amount": 7, "currency": "EUR", "simulate": {"fail_times": 1, "status": 500}}"#;
    let headers = [("idempotency-key", "fails")];
    let failed = server.send("POST", "/transfers", &headers, failing).await;
    assert_eq!(failed.status, 500);
    assert_fresh(&server.send("POST", "/transfers", &headers, failing).await);
    assert_eq!(server.rows().await.len(), 2);
}

/// S16.
#[cfg(feature = "redis")]
#[tokio::test]
async fn s16_redis() {
    let redis = servers::redis::RedisServer::start(&[]);
    keeps_its_answers(&redis.url(), false).await;
}

/// S17, P7.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn s17_p7_postgres() {
    let postgres = servers::postgres::PostgresServer::start();
    keeps_its_answers(&postgres.url(), true).await;
}

/// S17, P7.
#[cfg(feature = "sqlite")]
#[tokio::test]
async fn s17_p7_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", folder.path().join("a.db").display());
    keeps_its_answers(&store, true).await;
}

/// S19, P7: the far store decides, and keeps the transfers.
#[cfg(feature = "sqlite")]
#[tokio::test]
async fn s19_tiered() {
    let folder = tempfile::tempdir().unwrap();
    let far = folder.path().join("a.db");
    keeps_its_answers(&format!("tiered:memory,sqlite:{}", far.display()), true).await;
}

/// S19: Redis before PostgreSQL.
#[cfg(all(feature = "redis", feature = "postgres"))]
#[tokio::test]
async fn s19_tiered_redis_before_postgres() {
    let redis = servers::redis::RedisServer::start(&[]);
    let postgres = servers::postgres::PostgresServer::start();
    let store = format!("tiered:{},{}", redis.url(), postgres.url());
    keeps_its_answers(&store, true).await;
}

#[cfg(feature = "sqlite")]
fn crashing(point: &str) -> String {
    format!(r#"{{"amount": 100, "currency": "EUR", "simulate": {{"crash": "{point}"}}}}"#)
}

/// P5, S08, S27: the key of a process that died is taken until its lease ends. Then the next request
/// runs, and may repeat the effect; or is refused.
#[cfg(feature = "sqlite")]
#[tokio::test]
async fn p5_s27_a_crash_is_taken_over_or_refused() {
    for (point, effects) in [("before-effect", 0), ("after-effect", 1)] {
        let folder = tempfile::tempdir().unwrap();
        let store = format!("sqlite:{}", folder.path().join("a.db").display());
        let flags = ["--store", &store, "--lease-secs", "1"];
        let body = crashing(point);

        let mut crashed = Server::start(&flags);
        crashed.dies_of("/payments", "order-1", &body).await;
        assert_eq!(crashed.ledger().len(), effects, "{point}");

        let refusing = Server::start(&[&flags[..], &["--takeover", "refuse"]].concat());
        let taking_over = Server::start(&flags);
        let start = Instant::now();
        let refused = loop {
            let answer = refusing.pay("order-1", &body).await;
            assert_eq!(answer.status, 409, "{point}: {answer:?}");
            if answer.json("/error") != Some("in_progress".into()) {
                break answer;
            }
            assert!(start.elapsed() < DEADLINE, "the lease does not end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_refused(&refused, 409, "abandoned");
        assert!(refusing.ledger().is_empty());

        let taken = taking_over.pay("order-1", &body).await;
        assert_fresh(&taken);
        let ledger = taking_over.ledger();
        assert_eq!(ledger.len(), 1, "{point}");
        assert_eq!(ledger[0]["attempt"], 2, "{point}");
        assert_eq!(ledger[0]["process"], taking_over.example.process.id());
        assert_replay(&refusing.pay("order-1", &body).await, &taken);
    }
}

/// P7: no crash comes between a row and its record.
#[cfg(feature = "sqlite")]
#[tokio::test]
async fn p7_a_crash_leaves_a_row_with_its_record_or_neither() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", folder.path().join("a.db").display());
    let flags = [
        "--store",
        &store,
        "--lease-secs",
        "1",
        "--on-conflict",
        "wait",
    ];
    for (point, rows, replayed) in [("before-effect", 0, false), ("after-effect", 2, true)] {
        let body = crashing(point);
        Server::start(&flags)
            .dies_of("/transfers", point, &body)
            .await;
        let server = Server::start(&flags);
        assert_eq!(server.rows().await.len(), rows, "{point}");
        let answer = server.transfer(point, &body).await;
        assert_eq!(
            (answer.status, answer.is_replay()),
            (201, replayed),
            "{point}"
        );
        assert_eq!(server.rows().await.len(), rows.max(1), "{point}");
    }
}

/// Runs the example to its end.
fn output(flags: &[&str]) -> Ended {
    run(example("payments").args(flags))
}
