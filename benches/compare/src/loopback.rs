//! Requests over TCP to a server as a user would start it: `axum::serve` on a runtime with a thread
//! for each core.
//!
//! The client is another thread of the process, with all connections on it and a reader that does
//! the least: a client that does more would take more of the cores from the server, and hide what
//! the candidates differ in.

use std::{
    fs,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use axum::body::Bytes;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::JoinSet,
    time::timeout,
};

use crate::{
    Effort,
    app::{self, Executions},
    candidates::Candidate,
    requests::{Operation, payment},
    table::median,
};

pub(crate) const CONNECTIONS: u64 = 64;

/// Longer than any run takes, so that one that hangs ends.
const PATIENCE: Duration = Duration::from_secs(120);

/// What one process found out.
#[derive(Serialize, Deserialize)]
pub(crate) struct Found {
    /// Requests per second, in the middle one of several slices.
    pub(crate) fresh: f64,
    pub(crate) replay: f64,
    /// Bytes by which the process grew per fresh request; none where Linux does not tell.
    pub(crate) resident: Option<f64>,
}

/// In a process in which nothing else ran: memory that was freed before would be used again, and
/// hide what is used now.
pub(crate) fn run(candidate: Candidate, effort: &Effort) -> Found {
    let (address, bound) = mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let executions = Executions::default();
    let routes = app::routes(executions.clone());
    let server = thread::spawn(move || {
        Runtime::new().expect("a runtime").block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let local = listener.local_addr().expect("the port");
            address.send(local).expect("the client waits for it");
            axum::serve(listener, candidate.around(routes))
                .with_graceful_shutdown(async { drop(stopped.await) })
                .await
                .expect("serving does not end by itself");
        });
    });
    let address = bound.recv().expect("the server started");

    let (slices, each) = (effort.slices, effort.per_connection);
    let client = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let found = client.block_on(async {
        timeout(PATIENCE, async {
            let body = payment(5_000);
            let mut connections = Vec::new();
            for _ in 0..CONNECTIONS {
                let stream = TcpStream::connect(address).await.expect("a connection");
                stream.set_nodelay(true).expect("an option of TCP");
                connections.push(Connection {
                    stream,
                    candidate,
                    body: body.clone(),
                    buffer: Vec::new(),
                });
            }
            let slice = CONNECTIONS * each;
            let rate = |elapsed: Duration| slice as f64 / elapsed.as_secs_f64();
            let replays = candidate != Candidate::Bare;
            let (mut fresh, mut replay) = (Vec::new(), Vec::new());
            let mut before = None;
            for number in 0..=slices {
                // The first slice is there to warm up.
                if number == 1 {
                    before = resident();
                }
                let (first, ran) = (number * slice, executions.count());
                let elapsed = ask(&mut connections, first, each, false).await;
                fresh.push(rate(elapsed));
                assert_eq!(executions.count() - ran, slice);
                let elapsed = ask(&mut connections, first, each, replays).await;
                replay.push(rate(elapsed));
                assert_eq!(
                    executions.count() - ran,
                    if replays { slice } else { 2 * slice }
                );
            }
            let grown = resident().zip(before).map(|(after, before)| after - before);
            Found {
                fresh: median(&fresh[1..]),
                replay: median(&replay[1..]),
                resident: grown.map(|bytes| bytes / (slices * slice) as f64),
            }
        })
        .await
    });
    drop(stop);
    server.join().expect("the server ends well");
    found.expect("the run hangs")
}

struct Connection {
    stream: TcpStream,
    candidate: Candidate,
    body: Bytes,
    buffer: Vec<u8>,
}

/// Sends `each` operations over each connection, one after the other, and all connections at once.
async fn ask(connections: &mut Vec<Connection>, first: u64, each: u64, replay: bool) -> Duration {
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for (mut connection, n) in connections.drain(..).zip(0..) {
        tasks.spawn(async move {
            for operation in 0..each {
                let operation = Operation(first + n * each + operation);
                connection.ask(operation, replay).await;
            }
            connection
        });
    }
    connections.extend(tasks.join_all().await);
    started.elapsed()
}

impl Connection {
    async fn ask(&mut self, operation: Operation, replay: bool) {
        let Self {
            stream,
            candidate,
            body,
            buffer,
        } = self;
        operation.write(buffer, body);
        stream.write_all(buffer).await.expect("the server reads");
        buffer.clear();
        let head = loop {
            let read = stream.read_buf(buffer).await.expect("the server answers");
            assert_ne!(read, 0, "the server hung up");
            if let Some(head) = complete(buffer) {
                break head;
            }
        };
        assert!(head.starts_with("HTTP/1.1 201 "), "{candidate:?}: {head}");
        let marked = candidate
            .replay_marker()
            .is_some_and(|marker| head.contains(marker));
        assert_eq!(marked, replay, "{candidate:?}: {head}");
    }
}

/// The head of an answer whose body is there too.
fn complete(answer: &[u8]) -> Option<&str> {
    const END: &str = "\r\n\r\n";
    let text = str::from_utf8(answer).expect("an answer in ASCII");
    let (head, body) = text.split_once(END)?;
    let (_, length) = head.split_once("content-length: ")?;
    let length = length.split("\r\n").next()?;
    let length: usize = length.parse().expect("a length");
    (body.len() == length).then_some(head)
}

/// The bytes that this process has in memory; none where Linux does not tell.
fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_with_its_last_byte() {
        let answer = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\ndate: x\r\n\r\n{}";
        for end in 0..answer.len() {
            assert_eq!(complete(&answer[..end]), None);
        }
        assert!(complete(answer).unwrap().ends_with("date: x"));
    }
}
