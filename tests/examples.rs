//! Every example as a process of its own: it does what `examples/README.md` says, and ends well.

#[path = "servers/mod.rs"]
mod servers;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use servers::example::{Example, FEATURES, example, run};
use tokio::net::TcpStream;

/// Real time: only how long a broken build takes to fail.
const DEADLINE: Duration = Duration::from_secs(60);

/// What kind of program an example is.
#[derive(Clone, Copy)]
enum Kind {
    /// It takes `--addr`, prints where it listens, serves, and ends with 0 after a signal.
    Server,
    /// It runs to its end and exits with 0. All of these are in what it prints, in this order.
    Program(&'static [&'static str]),
}

/// All of them.
const EXAMPLES: &[(&str, Kind)] = &[
    ("axum", Kind::Server),
    (
        "checkpoints",
        Kind::Program(&[
            "attempt 1 (First), checkpoint: []",
            "the process dies",
            "attempt 2 (Takeover), checkpoint: [\"stock\"]",
            "stock: done before",
            "card: receipt",
            "the process dies",
            "attempt 3 (Takeover), checkpoint: [\"stock\"]",
            "card: receipt",
            "courier: receipt",
            "fulfilled: ",
            "fulfilled before: ",
            "stock: 1 done, 0 repeated",
            "card: 1 done, 1 repeated",
            "courier: 1 done, 0 repeated",
        ]),
    ),
    (
        "client",
        Kind::Program(&[
            "hyper-1: the request is lost",
            "hyper-1: payment 1, 201",
            "hyper-2: the answer is lost",
            "hyper-2: payment 2, 201, replayed",
            "hyper-3: the answer breaks off",
            "hyper-3: payment 3, 201, replayed",
            "hyper-4: refused with 503",
            "hyper-4: payment 4, 201",
            "hyper: 4 operations, 8 tries, 4 effects",
            "reqwest-3: payment 7, 201, replayed",
            "reqwest: 4 operations, 8 tries, 4 effects",
            "tonic-3: payment 11, replayed",
            "tonic: 4 operations, 8 tries, 4 effects",
        ]),
    ),
    (
        "forwarding",
        Kind::Program(&[
            "confirmed: attempt 1 (First), charge 1 and charge 2",
            "answered: 500",
            "confirmed: attempt 2 (Retry), charge 3 and charge 4",
            "the connection breaks",
            "confirmed: attempt 2 (Retry), charge 5 and charge 6",
            "the connection breaks",
            "the process dies",
            "confirmed: attempt 2 (Takeover), charge 7 and charge 8",
            "replayed: attempt 2 (Retry), charge 3 and charge 4",
            "4 orders, 7 attempts, 1 death.",
            "16 requests, 8 charges, 4 receipts.",
        ]),
    ),
    (
        "function",
        Kind::Program(&[
            "paid: payment 1 over 500 cents",
            "replayed: payment 1 over 500 cents",
            "refused: the key was used for another input",
            "refused: another call with this key is running",
            "gave up: true",
            "failed: the connection to the bank was lost",
            "Four orders, ten calls, 4 payments.",
        ]),
    ),
    ("gateway", Kind::Server),
    ("hyper", Kind::Server),
    (
        "memcached_store",
        Kind::Program(&[
            "paid: payment 1",
            "replayed: payment 1",
            "paid: payment 2",
            "old records are dropped:",
            "A duplicate of order 1 pays a second time:",
            "paid: payment",
            "A duplicate of order 2 pays while the first call still does:",
            "paid: payment",
            "gets the receipt that is recorded:",
            "replayed: payment",
            "# With 1 MB and `-M`",
            "the next refused before anything ran",
            "refused: the work did not run, since the store failed: the memcached store is full",
            "Nothing is dropped: a duplicate of order 1 gets its receipt:",
            "replayed: payment 1",
            "none waits any more",
        ]),
    ),
    ("payments", Kind::Server),
    (
        "tonic",
        Kind::Program(&[
            "paid: payment 1, attempt 1",
            "replayed: payment 1, attempt 1",
            "FailedPrecondition, MISMATCH: ",
            "paid: payment 2, attempt 1",
            "Aborted, IN_PROGRESS: ",
            "Aborted, IN_PROGRESS: ",
            "Unavailable: simulated failure",
            "paid: payment 3, attempt 2",
            "gave up: true",
            "replayed: payment 4, attempt 1",
            "InvalidArgument: how much?",
            "InvalidArgument, KEY_MISSING: ",
            "paid: 3 payments",
            "replayed: 3 payments",
            "paid: [34, 33, 33]",
            "replayed: [34, 33, 33]",
            "DeadlineExceeded, BODY_TOO_SLOW: ",
            "paid: payment 11, attempt 0",
            "Payments: 11",
        ]),
    ),
    ("transfer", Kind::Server),
    (
        "worker",
        Kind::Program(&[
            "19 messages: 12 orders",
            "ann dies before the effect",
            "bob dies between effect and record",
            "cid: ",
            "order-3: paid 300 cents",
            "cid dies after the record, before it says so",
            "Two others work",
            "settlement:2026-11-20: attempt 1 (First), 0 of 3 payouts on record",
            "settlement:2026-11-20 dies between effect and record",
            "settlement:2026-11-20: attempt 2 (Takeover), 1 of 3 payouts on record",
            "shop-1 was paid",
            "shop-2 is paid",
            "19 messages, ",
            " deliveries, 4 set aside",
            "payments: the bank was asked ",
            ", and paid 12",
            "payouts: the bank was asked 4 times, and paid 3",
            "12 orders, 12 payments: each was paid once.",
        ]),
    ),
];

fn of_kind(server: bool) -> impl Iterator<Item = (&'static str, Kind)> {
    let examples = EXAMPLES.iter().copied();
    examples.filter(move |(_, kind)| matches!(kind, Kind::Server) == server)
}

/// An example that is not listed, or not run here, fails; and so does one that is gone.
#[test]
fn each_example_is_listed_and_run() {
    let in_folder: Vec<_> = examples().into_keys().collect();
    let run_here: Vec<_> = EXAMPLES.iter().map(|(name, _)| *name).collect();
    let mut listed: Vec<_> = sections().into_iter().map(|section| section.name).collect();
    assert_eq!(run_here, in_folder, "what is run here, and what there is");
    listed.sort_unstable();
    assert_eq!(listed, in_folder, "what is listed, and what there is");
}

/// The one command of each example asks for the features it needs, and for no others.
#[test]
fn each_command_works_as_it_stands() {
    let examples = examples();
    for section in sections() {
        let features = &examples[&section.name].join(",");
        let name = &section.name;
        let command = match features.is_empty() {
            true => format!("cargo run --example {name}"),
            false => format!("cargo run --features {features} --example {name}"),
        };
        assert_eq!(section.command, command);
    }
}

/// Each request of the list gets the answer that stands behind it; then a signal ends the server,
/// which exits with 0.
#[tokio::test]
async fn u21_each_server_does_what_it_says_and_stops() {
    let sections = sections();
    for (name, _) in of_kind(true) {
        let section = sections.iter().find(|section| section.name == name);
        let requests = &section.expect("a section").requests;
        assert!(requests.len() > 2, "{name}: nothing to try");
        for signal in ["TERM", "INT"] {
            let mut server = start(name, &[]);
            for request in requests {
                request.check(server.address()).await;
            }
            server.process.signal(signal);
            assert_eq!(server.ended().await.0, Some(0), "{name}: {signal}");
            assert!(TcpStream::connect(server.address()).await.is_err());
        }
    }
}

/// P4, U08, U21: what was begun is done when the process ends, also for a client that has left.
#[tokio::test]
async fn p4_u08_u21_each_server_finishes_what_it_began() {
    for (name, path, key, effect) in [
        ("axum", "/invoices", "alice-1", "alice got an invoice for x"),
        ("hyper", "/orders", "alice", "x"),
    ] {
        for leaves in [true, false] {
            let case = format!("{name}, the client leaves: {leaves}");
            let mut server = start(name, &[]);
            let addr = server.address();
            let lines = [("x-api-key", key), ("idempotency-key", "k")];
            let call = || tokio::spawn(send(addr, false, request(Method::POST, path, &lines, "x")));
            // Of two equal ones one is refused, so the other runs.
            let race = [call(), call()];
            let (refused, _, mut rest) = futures::future::select_all(race).await;
            assert_eq!(refused.expect("no panic").status(), 409, "{case}");
            let running = rest.remove(0);
            if leaves {
                running.abort();
                assert!(running.await.is_err_and(|error| error.is_cancelled()));
                server.process.signal("TERM");
            } else {
                server.process.signal("TERM");
                assert_eq!(running.await.expect("no panic").status(), 201, "{case}");
            }
            let (code, printed) = server.ended().await;
            assert_eq!(code, Some(0), "{case}");
            let last = printed.lines().last();
            assert_eq!(last, Some(effect), "{case}: {printed}");
        }
    }
}

/// P4, U08, U21: what plays a scene by itself serves, too, where it is told so, and stops as the others do.
#[tokio::test]
async fn p4_u08_u21_tonic_serves_and_stops() {
    // Seven cents, in a frame: as it happens, the bytes are text.
    let seven_cents = "\0\0\0\0\u{7}\u{8}\u{7}\u{12}\u{3}EUR";
    let lines = [
        ("content-type", "application/grpc"),
        ("x-api-key", "alice"),
        ("idempotency-key", "k"),
    ];
    // The same, and what makes it wait for a second. P4, U08: its client does not.
    let slowly = "\0\0\0\0\u{d}\u{8}\u{7}\u{12}\u{3}EUR\u{1a}\u{4}\u{8}\u{88}\0";
    for signal in ["TERM", "INT"] {
        let mut server = start("tonic", &[]);
        for replayed in [false, true] {
            let path = "/payments.v1.Payments/Pay";
            let call = request(Method::POST, path, &lines, seven_cents);
            let answer = send(server.address(), true, call).await;
            assert_eq!(answer.headers()["payment-status"], "succeeded");
            assert_eq!(is_replay(&answer), replayed);
        }
        let mut lines = lines;
        lines[2].1 = "slow";
        let call = || {
            let call = request(Method::POST, "/payments.v1.Payments/Pay", &lines, slowly);
            tokio::spawn(send(server.address(), true, call))
        };
        // Of two equal ones one is refused, so the other runs.
        let (refused, _, rest) = futures::future::select_all([call(), call()]).await;
        assert_eq!(refused.expect("no panic").headers()["grpc-status"], "10");
        rest.iter().for_each(tokio::task::JoinHandle::abort);
        server.process.signal(signal);
        let stopped = (Some(0), "stopped. Payments: 2\n".to_owned());
        assert_eq!(server.ended().await, stopped, "{signal}");
    }
}

/// S05: the answer of an invoice outlives that of a payment.
#[tokio::test]
async fn s05_axum_keeps_invoices_for_longer() {
    let server = start("axum", &["--ttl-secs", "1"]);
    let post = async |path| {
        let lines = [("x-api-key", "alice-1"), ("idempotency-key", "k")];
        let sent = request(Method::POST, path, &lines, "1 EUR");
        let response = send(server.address(), false, sent).await;
        (response.status().as_u16(), is_replay(&response))
    };
    assert_eq!(post("/invoices").await, (201, false));
    let start = Instant::now();
    assert_eq!(post("/payments").await, (201, false));
    // The payment, which is the younger one, expires.
    while post("/payments").await == (201, true) {
        assert!(start.elapsed() < DEADLINE, "the payment is kept");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(start.elapsed() >= Duration::from_secs(1));
    let invoice = post("/invoices").await;
    // A machine so slow that the seven seconds are over learns nothing here.
    assert!(invoice == (201, true) || start.elapsed() > Duration::from_secs(6));
}

/// What is no server ends by itself. Among them is one that dies between its steps, and does each
/// once (S08, P5).
#[test]
fn each_program_runs_to_its_end() {
    for (name, kind) in of_kind(false) {
        let Kind::Program(prints) = kind else {
            unreachable!("servers are passed over")
        };
        let ended = run(&mut example(name));
        assert_eq!(ended.code, Some(0), "{name}: {ended:#?}");
        let mut rest = &ended.stdout[..];
        for line in prints {
            let found = rest.find(line);
            let at = found.unwrap_or_else(|| panic!("{name}: no {line:?} in {rest}"));
            rest = &rest[at + line.len()..];
        }
    }
}

/// One that a test does not know of would be missing in the examples that it builds.
#[test]
fn each_feature_is_known() {
    let features = package()["features"].take();
    let features = features.as_object().expect("features").keys();
    assert!(FEATURES.iter().map(|(name, _)| *name).eq(features));
}

/// What cargo says of this crate.
fn package() -> Value {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .output()
        .expect("cargo runs");
    let mut metadata: Value = serde_json::from_slice(&metadata.stdout).expect("JSON");
    metadata["packages"][0].take()
}

/// The examples that cargo finds, each with the features that are not on by default.
fn examples() -> BTreeMap<String, Vec<String>> {
    let package = package();
    let texts = |list: &Value| -> Vec<String> {
        let texts = list.as_array().into_iter().flatten();
        texts.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let on = texts(&package["features"]["default"]);
    let targets = package["targets"].as_array().expect("targets");
    let examples = targets
        .iter()
        .filter(|target| target["kind"][0] == "example");
    let examples: BTreeMap<_, _> = examples
        .map(|example| {
            let mut features = texts(&example["required-features"]);
            features.retain(|feature| !on.contains(feature));
            (
                example["name"].as_str().expect("a name").to_owned(),
                features,
            )
        })
        .collect();
    // And cargo finds all that are there.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() || path.extension() == Some(OsStr::new("rs")) {
            let name = path.file_stem().expect("a name").to_string_lossy();
            assert!(examples.contains_key(&*name), "{name} is no example");
        }
    }
    examples
}

/// What the list says of one example.
struct Section {
    name: String,
    command: String,
    requests: Vec<Line>,
}

fn sections() -> Vec<Section> {
    let list = include_str!("../examples/README.md");
    let sections = list.split("\n## ").skip(1);
    let section = |text: &str| {
        // What follows is for reading on.
        let text = text.split("\n### ").next().unwrap_or_default();
        let mut blocks = text.split("\n```").skip(1).step_by(2);
        let mut block = || {
            let block = blocks.next().and_then(|block| block.strip_prefix("sh\n"));
            block.map(str::to_owned)
        };
        let command = block().expect("a command");
        let requests = block().unwrap_or_default();
        assert!(block().is_none(), "more than a command and requests");
        Section {
            name: text.lines().next().unwrap_or_default().to_owned(),
            command: command.trim_end().to_owned(),
            requests: requests
                .lines()
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(Line::parse)
                .collect(),
        }
    };
    sections.map(section).collect()
}

/// One line to try: a request, how often it is sent at once, and what comes back.
#[derive(Debug)]
struct Line {
    text: String,
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
    http2: bool,
    statuses: Vec<u16>,
    replayed: bool,
    contains: String,
}

impl Line {
    /// `curl …  # 201`, `# 201 replayed: some text`, or `for i in 1 2; do curl … & done; wait`
    /// with `# 201 and 409`. Whatever else a shell and curl understand is a fault of the list.
    fn parse(text: &str) -> Self {
        let (command, expected) = text.rsplit_once("  # ").expect("what comes back");
        let (expected, contains) = expected.split_once(": ").unwrap_or((expected, ""));
        let replayed = expected.ends_with(" replayed");
        let statuses = expected.trim_end_matches(" replayed").split(" and ");
        let statuses: Vec<_> = statuses.map(|s| s.parse().expect("a status")).collect();
        let command = match statuses.len() {
            1 => Some(command),
            _ => command
                .strip_prefix("for i in 1 2; do ")
                .and_then(|command| command.strip_suffix(" & done; wait")),
        };
        let mut words = words(command.expect("a loop")).into_iter();
        assert_eq!(words.next().as_deref(), Some("curl"), "{text}");
        let mut line = Self {
            text: text.to_owned(),
            method: Method::GET,
            path: String::new(),
            headers: Vec::new(),
            body: String::new(),
            http2: false,
            statuses,
            replayed,
            contains: contains.to_owned(),
        };
        let mut method = None;
        while let Some(word) = words.next() {
            let mut value = || words.next().expect("a value");
            match word.as_str() {
                "-i" => {}
                "--http2-prior-knowledge" => line.http2 = true,
                "-X" => method = Some(value().parse().expect("a method")),
                // As curl does: what it sends is a form, unless it is told otherwise.
                "-d" | "--json" => {
                    let form = word == "-d";
                    let kind = if form {
                        "x-www-form-urlencoded"
                    } else {
                        "json"
                    };
                    let kind = format!("application/{kind}");
                    line.headers.push(("content-type".to_owned(), kind));
                    line.body = value();
                    line.method = Method::POST;
                }
                "-H" => {
                    let header = value();
                    let (name, value) = header.split_once(": ").expect("a header");
                    line.headers.push((name.to_owned(), value.to_owned()));
                }
                url => {
                    let path = url.strip_prefix("localhost:3000");
                    line.path = path.expect("a path on port 3000").to_owned();
                }
            }
        }
        line.method = method.unwrap_or(line.method);
        line
    }

    async fn check(&self, addr: SocketAddr) {
        let headers: Vec<_> = self.headers.iter().map(|(n, v)| (&n[..], &v[..])).collect();
        let answers = join_all(self.statuses.iter().map(|_| {
            let request = request(self.method.clone(), &self.path, &headers, &self.body);
            send(addr, self.http2, request)
        }))
        .await;
        let mut statuses: Vec<_> = answers.iter().map(|a| a.status().as_u16()).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, self.statuses, "{}: {answers:?}", self.text);
        for answer in answers {
            assert_eq!(is_replay(&answer), self.replayed, "{}", self.text);
            let body = String::from_utf8_lossy(answer.body());
            assert!(body.contains(&self.contains), "{}: {body}", self.text);
        }
    }
}

/// The words of a command, as far as they have single quotes or none.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for (n, part) in command.split('\'').enumerate() {
        if n % 2 == 1 {
            words.last_mut().expect("a word").push_str(part);
            continue;
        }
        assert!(
            !part.contains(['"', '\\', '$', '`', '|', '&', ';', '*']),
            "{command}"
        );
        for (m, word) in part.split(' ').enumerate() {
            if m > 0 {
                words.push(String::new());
            }
            words.last_mut().expect("a word").push_str(word);
        }
    }
    words
}

/// The list is read as a shell would.
#[test]
fn lines_are_read_as_they_are_meant() {
    let text = r#"curl -i localhost:3000/a?b -H 'Idempotency-Key: "k"' -d '{"a": 1}'  # 201 replayed: x: y"#;
    let line = Line::parse(text);
    assert_eq!((line.method, &line.path[..]), (Method::POST, "/a?b"));
    let key = ("Idempotency-Key", "\"k\"");
    let form = ("content-type", "application/x-www-form-urlencoded");
    let expected = [key, form].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(line.headers, expected);
    assert_eq!(line.body, r#"{"a": 1}"#);
    assert_eq!((line.statuses, line.replayed), (vec![201], true));
    assert_eq!(line.contains, "x: y");

    let text = "for i in 1 2; do curl -X PUT localhost:3000/ & done; wait  # 201 and 409";
    let line = Line::parse(text);
    assert_eq!((line.method, line.statuses), (Method::PUT, vec![201, 409]));
}

fn request(
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::from(body.to_owned()));
    *request.method_mut() = method;
    let uri = format!("http://localhost:3000{path}");
    *request.uri_mut() = uri.parse().expect("a URI");
    for (name, value) in headers {
        let name: HeaderName = name.parse().expect("a name");
        let value: HeaderValue = value.parse().expect("a value");
        request.headers_mut().append(name, value);
    }
    request
}

/// Sends a request on a connection of its own.
async fn send(addr: SocketAddr, http2: bool, request: Request<Full<Bytes>>) -> Response<Bytes> {
    let answer = async {
        let stream = TokioIo::new(TcpStream::connect(addr).await.expect("a connection"));
        // The connection ends when this is dropped.
        let mut connection = tokio::task::JoinSet::new();
        let response = if http2 {
            let executor = TokioExecutor::new();
            let handshake = hyper::client::conn::http2::handshake(executor, stream);
            let (mut sender, driver) = handshake.await.expect("a handshake");
            connection.spawn(driver);
            sender.send_request(request).await
        } else {
            let handshake = hyper::client::conn::http1::handshake(stream);
            let (mut sender, driver) = handshake.await.expect("a handshake");
            connection.spawn(driver);
            sender.send_request(request).await
        };
        let (parts, body) = response.expect("an answer").into_parts();
        let body = body.collect().await.expect("a whole answer").to_bytes();
        Response::from_parts(parts, body)
    };
    let answer = tokio::time::timeout(DEADLINE, answer).await;
    answer.expect("an answer in time")
}

fn is_replay(response: &Response<Bytes>) -> bool {
    response.headers().contains_key("idempotent-replayed")
}

/// Starts a server.
fn start(name: &str, flags: &[&str]) -> Example {
    let addr = match name {
        // It plays its scene unless it is told where to serve.
        "tonic" => "--serve",
        _ => "--addr",
    };
    Example::start(example(name).args([addr, "127.0.0.1:0"]).args(flags))
}
