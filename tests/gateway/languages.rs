//! A service that is not Rust.

use std::{
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
};

use http::Method;

use crate::{
    servers::process::{Process, program},
    support::{Gateway, empty, post, request, send, told},
};

/// Python's own server, threads and all: each payment is an effect; `crash` takes effect, and then ends the
/// connection without a word.
const SERVER: &str = r#"
import http.server, json, threading

payments, lock = [], threading.Lock()

class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        attempt = self.headers.get("idempotency-attempt")
        with lock:
            payments.append([self.headers.get("idempotency-key"), attempt, body])
            number = len(payments)
        if body == "crash" and attempt == "1":
            self.close_connection = True
            return
        self.answer(201, {"payment": number})

    def do_GET(self):
        with lock:
            self.answer(200, payments)

    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
print(server.server_port, flush=True)
server.serve_forever()
"#;

/// S09, S10, S26: a service in Python gets idempotency by standing behind the gateway.
#[tokio::test]
async fn s09_s10_a_service_in_python() {
    let python = program(&["python3"], "python3", &[]);
    let mut command = Command::new(python);
    command.args(["-c", SERVER]).stdout(Stdio::piped());
    let mut process = Process::start(&mut command);
    let mut line = String::new();
    BufReader::new(process.stdout())
        .read_line(&mut line)
        .expect("a line");
    let port: u16 = line.trim().parse().expect("a port");
    let gateway = Gateway::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), &[]);

    for (replayed, http2) in [(false, false), (true, false), (true, true)] {
        let answer = send(gateway.addr, http2, post("a", "1 EUR")).await;
        assert_eq!(told(&answer), (201, replayed));
        assert_eq!(&answer.body()[..], br#"{"payment": 1}"#);
    }
    // Twenty keys at once, each twice: one effect for each.
    let calls = (0..40_u32).map(|n| {
        let key = format!("many-{}", n / 2);
        let sent = request(Method::POST, "/pay", &[("idempotency-key", &key)], empty());
        tokio::spawn(send(gateway.addr, n.is_multiple_of(2), sent))
    });
    let calls: Vec<_> = calls.collect();
    for call in calls {
        let status = call.await.unwrap().status();
        assert!(status == 201 || status == 409, "{status}");
    }
    assert_eq!(
        told(&send(gateway.addr, false, post("b", "crash")).await),
        (502, false)
    );
    assert_eq!(
        told(&send(gateway.addr, false, post("b", "crash")).await),
        (201, false)
    );

    let list = send(gateway.addr, false, request(Method::GET, "/", &[], empty())).await;
    let payments: Vec<[String; 3]> = serde_json::from_slice(list.body()).expect("payments");
    let attempts = |key: &str| -> Vec<&str> {
        let of_key = payments.iter().filter(|payment| payment[0] == key);
        of_key.map(|payment| &payment[1][..]).collect()
    };
    assert_eq!(attempts("a"), ["1"]);
    for n in 0..20 {
        assert_eq!(attempts(&format!("many-{n}")), ["1"]);
    }
    // It was carried out when its answer was lost: the service could know by the number.
    assert_eq!(attempts("b"), ["1", "2"]);
}
