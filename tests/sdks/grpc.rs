//! grpcio, against the example `tonic`.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, task::AbortHandle};
use tonic::transport::server::TcpIncoming;

use crate::{
    bank::Bank,
    gateway::gateway,
    library::{self, Answer},
    network::{
        Fault::{self, *},
        Network,
    },
    payments::payments_server::PaymentsServer,
    run::{OPERATIONS, Run, faults, own_key, plan},
    servers::example::{Example, example},
    upstream::Effects,
};

const THREADS: usize = 12;
/// The deadline of a call.
const SECONDS: f64 = 8.0;
/// How long an execution takes that others are to meet, in milliseconds.
const LONG: u64 = 1500;

fn server() -> Example {
    Example::start(example("tonic").args(["--serve", "127.0.0.1:0"]))
}

/// Where the scripts find what the service is.
fn protos() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tonic");
    folder.to_str().expect("a path of text").to_owned()
}

#[derive(Serialize)]
struct Job {
    operation: String,
    amount: u64,
    key: String,
    delay_ms: u64,
}

#[derive(Deserialize)]
struct Paid {
    /// Whether the call was made once more, and its answer was a replay that is equal in all its
    /// parts: initial metadata, message, trailing metadata and status.
    same: bool,
    #[serde(flatten)]
    answer: Answer,
}

/// Makes calls over a bad network to `to`, tried again in one of the ways that the script knows.
/// What was done is asked of `server`. Says too whether each answer came again as it was.
async fn lossy(retries: &str, what: &str, to: SocketAddr, server: SocketAddr) -> (Run, bool) {
    let network = Network::before(&[to], None, Arc::new(plan)).await;
    let meets = |fault: &Fault| matches!(fault, Duplicate | Leave);
    let jobs: Vec<_> = (0..OPERATIONS)
        .map(|n| Job {
            operation: n.to_string(),
            amount: amount(n),
            key: own_key(n),
            delay_ms: LONG * u64::from(faults(n).iter().any(meets)),
        })
        .collect();
    let arguments = [
        protos(),
        network.address().to_string(),
        server.to_string(),
        THREADS.to_string(),
        SECONDS.to_string(),
        retries.to_owned(),
    ];
    let output = library::run("grpc_payments.py", &arguments, &jobs).await;
    let mut lines: Vec<_> = output.lines().collect();
    assert_eq!(lines.len(), OPERATIONS + 1, "{output}");
    let paid: Vec<(u64, String)> =
        serde_json::from_str(lines.pop().expect("a last line")).expect("the payments");
    let (mut answers, mut same) = (Vec::new(), true);
    for line in lines {
        let paid: Paid = serde_json::from_str(line).expect("an answer");
        same &= paid.same;
        answers.push(paid.answer);
    }
    let operations: BTreeMap<_, _> = (0..OPERATIONS).map(|n| (amount(n), n)).collect();
    let mut effects = Effects::new();
    for (amount, payment) in paid {
        let operation = operations[&amount].to_string();
        effects.entry(operation).or_default().push(payment);
    }
    let run = Run::judge("grpcio", what, &effects, &network, &answers);
    (run, same)
}

/// It tells the payments of one operation from those of another.
fn amount(operation: usize) -> u64 {
    100 + operation as u64
}

/// P2, P4, S09, S10: gRPC's own retry policy, which waits as long as it is told to.
#[tokio::test]
async fn p2_p4_grpcio_with_its_retry_policy() {
    let server = server();
    let to = server.address();
    let (run, same) = lossy("policy", "its retry policy", to, to).await;
    run.assert_once();
    assert!(same, "another answer");
}

/// P2, P4, S09, S10.
#[tokio::test]
async fn p2_p4_grpcio_that_calls_again() {
    let server = server();
    let to = server.address();
    let (run, same) = lossy("calls", "calls again", to, to).await;
    run.assert_once();
    assert!(same, "another answer");
}

/// P2, P4, S09, S10: the gateway, before a service that knows nothing of keys.
#[tokio::test]
async fn p2_p4_grpcio_through_the_gateway() {
    let server = Bare::start().await;
    let gateway = gateway(server.address, "x-api-key", &["--upstream-http2"]);
    let what = "calls again, the gateway";
    let (run, same) = lossy("calls", what, gateway.address(), server.address).await;
    run.assert_once();
    assert!(same, "another answer");
}

/// What the others show is neither the network's doing nor the client's.
#[tokio::test]
async fn without_the_layer_effects_are_repeated() {
    let server = Bare::start().await;
    let to = server.address;
    lossy("bare", "no protection", to, to)
        .await
        .0
        .assert_repeated();
}

/// S26: with a new key for each try it is no use.
#[tokio::test]
async fn s26_grpcio_with_a_new_key_for_each_try() {
    let server = server();
    let to = server.address();
    let (run, _) = lossy("careless", "a new key for each try", to, to).await;
    run.assert_repeated();
}

/// The service of the example without the layer, in this process, until it is dropped.
struct Bare {
    address: SocketAddr,
    serving: AbortHandle,
}

impl Bare {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serving = tonic::transport::Server::builder()
            .add_service(PaymentsServer::new(Bank::default()))
            .serve_with_incoming(TcpIncoming::from(listener));
        Self {
            address,
            serving: tokio::spawn(serving).abort_handle(),
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// What came of one call.
#[derive(Debug, Deserialize)]
struct Outcome {
    case: String,
    code: String,
    /// Of payments.
    answer: Option<Vec<String>>,
    message: Option<String>,
    /// The parts of `grpc-status-details-bin`, by type.
    details: Option<BTreeMap<String, String>>,
    /// But for that.
    trailing: Option<BTreeMap<String, String>>,
}

const INFO: &str = "google.rpc.ErrorInfo";
const RETRY: &str = "google.rpc.RetryInfo";

impl Outcome {
    fn answered(&self) -> &[String] {
        assert_eq!(self.code, "OK", "{self:?}");
        self.answer.as_deref().expect("an answer")
    }

    /// By the layer: with its reason, and with when to retry where that can succeed (I07, S29).
    fn refused(&self, code: &str, reason: &str, retry: bool) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(
            self.message
                .as_ref()
                .is_some_and(|message| !message.is_empty())
        );
        let details = self.details.as_ref().expect("details");
        assert!(
            details[INFO].contains(&format!("reason: \"{reason}\"")),
            "{self:?}"
        );
        assert_eq!(details.contains_key(RETRY), retry, "{self:?}");
        let trailing = self.trailing.as_ref().expect("trailing metadata");
        assert_eq!(trailing.contains_key("retry-after"), retry, "{self:?}");
    }

    /// By the handler.
    fn failed(&self, code: &str, message: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.message.as_deref(), Some(message));
        assert!(
            self.details.as_ref().is_some_and(BTreeMap::is_empty),
            "{self:?}"
        );
    }
}

/// The gRPC column of the table of answers, and calls that stream, as another client sees them
/// (I06 to I09, S07, S10, S22, U26): none of them hangs.
#[tokio::test]
async fn i06_i07_i08_i09_grpcio_is_refused() {
    let server = server();
    let arguments = [protos(), server.address().to_string()];
    let output = library::run("grpc_refusals.py", &arguments, &[] as &[Job]).await;
    let mut outcomes = Vec::new();
    for line in output.lines() {
        outcomes.push(serde_json::from_str::<Outcome>(line).expect("an outcome"));
    }
    for Outcome {
        case,
        code,
        message,
        ..
    } in &outcomes
    {
        let message = message.as_deref().unwrap_or_default();
        println!("grpcio, {case}: {code} {message}");
    }
    let mut outcomes = outcomes.into_iter();
    let mut next = |case: &str| {
        let outcome = outcomes.next().expect("one more case");
        assert_eq!(outcome.case, case, "{outcome:?}");
        outcome
    };

    next("no key").refused("INVALID_ARGUMENT", "KEY_MISSING", false);
    next("malformed key").refused("INVALID_ARGUMENT", "KEY_INVALID", false);
    next("no caller").refused("PERMISSION_DENIED", "CALLER_UNKNOWN", false);
    assert_eq!(next("first").answered(), ["1"]);
    assert_eq!(next("again").answered(), ["1"]);
    next("other payload").refused("FAILED_PRECONDITION", "MISMATCH", false);
    assert_eq!(next("other caller").answered(), ["2"]);
    // S22: nothing was done, so that the key is free for the right payload.
    next("the handler's mistake").failed("INVALID_ARGUMENT", "how much?");
    assert_eq!(next("corrected").answered(), ["3"]);
    // U04: the failure is not kept.
    next("the handler fails").failed("UNAVAILABLE", "simulated failure");
    assert_eq!(next("tried again").answered(), ["4"]);

    for _ in 0..2 {
        next("three at once").refused("ABORTED", "IN_PROGRESS", true);
    }
    assert_eq!(next("three at once").answered(), ["5"]);
    assert_eq!(next("after the three").answered(), ["5"]);

    for again in ["", " again"] {
        let batch = next(&format!("client stream{again}"));
        assert_eq!(batch.answered(), ["6", "7", "8"]);
    }
    for again in ["", " again"] {
        let parts = next(&format!("server stream{again}"));
        assert_eq!(parts.answered(), ["9", "10", "11"]);
    }
    next("both").refused("DEADLINE_EXCEEDED", "BODY_TOO_SLOW", false);
    let paid = next("paid");
    let expected = [
        "k",
        "k",
        "corrected",
        "flaky",
        "three",
        "batch",
        "batch",
        "batch",
        "parts",
        "parts",
        "parts",
    ];
    assert_eq!(paid.answered(), expected);
    println!(
        "grpcio, refusals and streams: payments of 7 operations {}, effects {}",
        expected.len(),
        paid.answered().len()
    );
}
