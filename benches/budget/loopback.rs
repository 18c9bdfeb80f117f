//! Requests per second over loopback, with 64 connections.

use std::{
    cell::Cell,
    convert::Infallible,
    fs,
    net::SocketAddr,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tower::{Layer, Service, service_fn};
use tower_idempotency::RequestBody;

use super::{
    support::{
        self, measuring,
        service::{ANSWER, CALLER, KIB, handler, key, layer, store},
    },
    table::{Row, Table},
};

const CONNECTIONS: u64 = 64;
const ROUNDS: usize = 15;
const ROUND: Duration = Duration::from_millis(400);

/// Recorded before replays are measured; replays go through them.
const RECORDED: u64 = 1_000;

pub(crate) fn rows(table: &mut Table) {
    let (rounds, round) = match measuring() {
        true => (ROUNDS, ROUND),
        false => (1, Duration::from_millis(20)),
    };
    let server = Server::start();
    let client = support::runtime();
    // The clients' thread never sleeps. To wake it would cost the server more than a request does,
    // and the faster of two servers less of it: their ratio would be that of the wakes.
    client.spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    });
    let fresh_key = Cell::new(RECORDED);
    let fresh = || fresh_key.replace(fresh_key.get() + 1);
    let known_key = Cell::new(0);
    let known = || {
        known_key.set((known_key.get() + 1) % RECORDED);
        known_key.get()
    };
    let run = |to, keys: &dyn Fn() -> u64, replayed, until| {
        client.block_on(requests(to, keys, replayed, until))
    };
    // Each key once, by one client: what is in progress is refused.
    for number in 0..RECORDED {
        run(server.layered, &|| number, false, Until::Requests(1));
    }
    let [mut bare, mut new, mut again] = [const { Vec::new() }; 3];
    let mut busy = Vec::new();
    for _ in 0..rounds {
        let until = Until::Time(round);
        let (start, used) = (Instant::now(), server.cpu_time());
        bare.push(run(server.bare, &known, false, until));
        new.push(run(server.layered, &fresh, false, until));
        again.push(run(server.layered, &known, true, until));
        if let (Some(before), Some(now)) = (used, server.cpu_time()) {
            busy.push((now - before).as_secs_f64() / start.elapsed().as_secs_f64());
        }
    }
    for (name, rates, least) in [("fresh", &new, 0.85), ("replay", &again, 1.0)] {
        let ratios: Vec<_> = rates.iter().zip(&bare).map(|(r, bare)| r / bare).collect();
        let ratio = median(&ratios);
        table.row(Row {
            what: format!("{name}, loopback, {CONNECTIONS} connections, body of 1 KiB"),
            measured: format!("{:.0} requests/s", median(rates)),
            floor: format!("{:.0} requests/s (bare)", median(&bare)),
            ratio: format!("{:.0} %", 100.0 * ratio),
            budget: format!("{:.0} %", 100.0 * least),
            met: Some(ratio >= least),
            allocations: String::new(),
        });
    }
    table.note(match busy.is_empty() {
        false => format!(
            "Loopback: one thread for the server, busy for {:.0} % of the time, and one for all \
             clients, which does not sleep.",
            100.0 * median(&busy)
        ),
        true => {
            "Loopback: one thread for the server, and one for all clients, which does not sleep."
                .to_owned()
        }
    });
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Both services in one thread. It ends with this.
struct Server {
    bare: SocketAddr,
    layered: SocketAddr,
    /// Where Linux tells how long the thread has run.
    schedstat: Option<String>,
    _stop: oneshot::Sender<()>,
}

impl Server {
    fn start() -> Self {
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        thread::spawn(move || {
            support::runtime().block_on(async move {
                let layered = layer(store()).layer(service_fn(handler::<RequestBody<Incoming>>));
                let bare = serve(service_fn(handler::<Incoming>)).await;
                let layered = serve(layered).await;
                let thread = fs::read_link("/proc/thread-self").ok();
                let schedstat = thread.map(|path| format!("/proc/{}/schedstat", path.display()));
                tell.send((bare, layered, schedstat)).expect("a reader");
                let _ = stopped.await;
            });
        });
        let (bare, layered, schedstat) = told.recv().expect("the server starts");
        Self {
            bare,
            layered,
            schedstat,
            _stop: stop,
        }
    }

    fn cpu_time(&self) -> Option<Duration> {
        let text = fs::read_to_string(self.schedstat.as_ref()?).ok()?;
        let nanoseconds = text.split_whitespace().next()?.parse().ok()?;
        Some(Duration::from_nanos(nanoseconds))
    }
}

async fn serve<S, B>(service: S) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            stream.set_nodelay(true).expect("a socket");
            let service = TowerToHyperService::new(service.clone());
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // Ends when its client closes it.
            tokio::spawn(connection);
        }
    });
    address
}

#[derive(Clone, Copy)]
enum Until {
    Requests(u64),
    Time(Duration),
}

/// Sends one request after the other on each connection, and says how many were answered per
/// second.
async fn requests(to: SocketAddr, keys: &dyn Fn() -> u64, replayed: bool, until: Until) -> f64 {
    let (connections, limit, time) = match until {
        Until::Requests(number) => (1, number, Duration::MAX),
        Until::Time(time) => (CONNECTIONS, u64::MAX, time),
    };
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(to).await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        streams.push(stream);
    }
    let start = Instant::now();
    let clients = streams.into_iter().map(|mut stream| async move {
        let mut sent = template();
        let mut answered = 0;
        while answered < limit && start.elapsed() < time {
            let text = key(keys());
            sent[KEY_AT..KEY_AT + text.len()].copy_from_slice(text.as_bytes());
            stream.write_all(&sent).await.expect("sent");
            answer(&mut stream, replayed).await;
            answered += 1;
        }
        answered
    });
    let answered: u64 = futures::future::join_all(clients).await.into_iter().sum();
    answered as f64 / start.elapsed().as_secs_f64()
}

const KEY_AT: usize = HEAD.len();
const HEAD: &str = "POST /payments HTTP/1.1\r\nidempotency-key: ";

fn template() -> Vec<u8> {
    let key = key(0);
    let body = "x".repeat(KIB);
    format!(
        "{HEAD}{key}\r\nhost: localhost\r\nx-api-key: {CALLER}\r\n\
         content-type: application/json\r\ncontent-length: {KIB}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Reads one answer, and checks that it is the one that is to be measured.
async fn answer(stream: &mut TcpStream, replayed: bool) {
    let mut buffer = [0; KIB];
    let mut len = 0;
    while !buffer[..len].ends_with(ANSWER.as_bytes()) {
        let read = stream.read(&mut buffer[len..]).await.expect("an answer");
        assert_ne!(read, 0, "{}", String::from_utf8_lossy(&buffer[..len]));
        len += read;
    }
    assert!(buffer.starts_with(b"HTTP/1.1 201"));
    let mark = b"idempotent-replayed: true";
    let marked = buffer[..len].windows(mark.len()).any(|part| part == mark);
    assert_eq!(marked, replayed);
}
