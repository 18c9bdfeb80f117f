//! One run: three servers on one store, one of which is killed each second, and two hundred clients.

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    sync::{
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::future::join_all;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::{
    client::{self, Client, Met, Random},
    judge::{Answer, Effect, Kill, Log, Millis, Row, Verdict, judge},
    servers::{
        example::example,
        process::{Process, accepts, wait_until},
    },
};

const SERVERS: usize = 3;
const CLIENTS: usize = 200;
/// How often each key is sent, each time by another client.
const TIMES: usize = 5;
const LEASE: Duration = Duration::from_secs(3);
const BETWEEN_KILLS: Duration = Duration::from_secs(1);
/// More than the lease of the last kill, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What becomes of a key whose process died.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Takeover {
    Run,
    Refuse,
}

/// What a run is about.
#[derive(Debug)]
pub(crate) struct Setting<'a> {
    /// For the reader.
    pub(crate) name: &'a str,
    /// The flag of the servers.
    pub(crate) store: &'a str,
    pub(crate) takeover: Takeover,
    /// Whether the store is a database, so that there are transfers too: half of the keys.
    pub(crate) transfers: bool,
}

/// How long a run takes: as many seconds as `CHAOS_SECONDS` says, or eight.
pub(crate) fn time() -> Duration {
    Duration::from_secs(number("CHAOS_SECONDS").unwrap_or(8))
}

/// Runs it, and prints what happened. The error is whatever is not as promised.
pub(crate) fn run(setting: &Setting<'_>, time: Duration) -> Result<(), Vec<String>> {
    let seed = number("CHAOS_SEED").unwrap_or_else(now);
    let name = format!("{}, takeover {:?}", setting.name, setting.takeover);
    println!("{name}: {time:?} with CHAOS_SEED={seed}");

    let folder = tempfile::tempdir().expect("a folder");
    let ledger = folder.path().join("ledger.jsonl");
    let mut random = Random::new(seed);
    let addresses: Vec<_> = (0..SERVERS).map(|_| address(&mut random)).collect();
    let start = |address| Server::start(address, &ledger, setting);
    // At once: they make the tables together.
    let servers = thread::scope(|scope| {
        let starting: Vec<_> = addresses
            .iter()
            .map(|address| scope.spawn(|| start(*address)))
            .collect();
        let started = starting.into_iter().map(|server| server.join());
        started.map(|server| server.expect("it starts")).collect()
    });

    let load = Load {
        run: seed,
        over: AtomicBool::new(false),
        servers: &addresses,
        met: Met::default(),
        transfers: setting.transfers,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let clock = Instant::now();
    let (answers, kills, servers) = thread::scope(|scope| {
        let (stop, stopped) = mpsc::channel::<()>();
        let killing = scope.spawn(|| kill_each_second(servers, stopped, start, random));
        let answers = runtime.block_on(async {
            let over = async {
                sleep(time).await;
                load.over.store(true, Relaxed);
                // Nobody dies any more, so that whoever waits for a lease sees its end.
                drop(stop);
            };
            let answers = futures::future::join(load.answers(), over);
            timeout(time + PATIENCE, answers).await
        });
        let (kills, servers) = killing.join().expect("the servers start again");
        let (answers, ()) = answers.expect("every client comes to an end");
        (answers, kills, servers)
    });
    let took = clock.elapsed();

    let mut log = Log {
        lease: LEASE.as_millis() as Millis,
        takes_over: setting.takeover == Takeover::Run,
        times: TIMES,
        kills,
        effects: read_ledger(&ledger),
        ..Log::default()
    };
    for (path, key, answer) in answers {
        let answers: &mut BTreeMap<_, Vec<_>> = match path {
            PAYMENTS => &mut log.payments,
            _ => &mut log.transfers,
        };
        answers.entry(key).or_default().push(answer);
    }
    if setting.transfers {
        let rows = runtime.block_on(client::get(addresses[0], TRANSFERS));
        let rows = rows.expect("the table");
        log.rows = rows.as_array().expect("a list").iter().map(row).collect();
    }
    drop(servers);

    for kill in &log.kills {
        println!("  {}: killed process {}", kill.sent, kill.process);
    }
    // A run in which nothing happened shows nothing.
    let keys = log.payments.len() + log.transfers.len();
    assert!(keys > CLIENTS / TIMES, "{name}: few keys");
    let kills = log.kills.len();
    assert!(
        2 * (kills as u64 + 1) >= time.as_secs(),
        "{name}: few kills"
    );

    let report = Report {
        name: &name,
        took,
        kills,
        met: &load.met,
        verdict: &judge(&log)?,
    };
    println!("{report}");
    Ok(())
}

const PAYMENTS: &str = "/payments";
const TRANSFERS: &str = "/transfers";

/// An address that stays free while its server is dead: below the ports that connections begin at,
/// or one of the clients', to nobody, would meet itself there.
fn address(random: &mut Random) -> SocketAddr {
    loop {
        let port = 10_000 + random.below(20_000) as u16;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return listener.local_addr().expect("an address");
        }
    }
}

struct Load<'a> {
    /// Part of the keys, and the seed of what is random.
    run: u64,
    over: AtomicBool,
    servers: &'a [SocketAddr],
    met: Met,
    transfers: bool,
}

impl Load<'_> {
    /// The last answer to each sending, once all have one.
    async fn answers(&self) -> Vec<(&'static str, String, Answer)> {
        let groups = (0..CLIENTS / TIMES).map(|group| self.group(group));
        join_all(groups).await.into_iter().flatten().collect()
    }

    /// Clients that send the same keys, one key after another.
    async fn group(&self, group: usize) -> Vec<(&'static str, String, Answer)> {
        let path = match self.transfers && group % 2 == 1 {
            true => TRANSFERS,
            false => PAYMENTS,
        };
        let client = |n: usize| {
            let random = Random::new(self.run ^ (1 + group * TIMES + n) as u64);
            Client::new(self.servers, &self.met, random)
        };
        let mut clients: Vec<_> = (0..TIMES).map(client).collect();
        let mut answers = Vec::new();
        let body = r#"{"amount": 100, "currency": "EUR"}"#;
        for n in 0.. {
            if self.over.load(Relaxed) {
                break;
            }
            let key = format!("{}-{group}-{n}", self.run);
            let sent = clients
                .iter_mut()
                .map(|client| client.send(path, &key, body));
            let answered = join_all(sent).await.into_iter();
            answers.extend(answered.map(|answer| (path, key.clone(), answer)));
        }
        answers
    }
}

struct Server {
    process: Process,
    address: SocketAddr,
    started: Millis,
}

impl Server {
    fn start(address: SocketAddr, ledger: &Path, setting: &Setting<'_>) -> Self {
        let takeover = match setting.takeover {
            Takeover::Run => "run",
            Takeover::Refuse => "refuse",
        };
        let mut command = example("payments");
        let started = now();
        let mut process = Process::start(
            command
                .args(["--addr", &address.to_string(), "--store", setting.store])
                .arg("--ledger")
                .arg(ledger)
                .args(["--lease-secs", &LEASE.as_secs().to_string()])
                .args(["--delay-ms", "20", "--takeover", takeover])
                .stdout(Stdio::null()),
        );
        wait_until("a server listens, or ends", || {
            accepts(address) || !process.is_running()
        });
        assert!(process.is_running(), "a server does not start");
        Self {
            process,
            address,
            started,
        }
    }
}

/// Kills one of the servers and starts it again, until it is told to stop.
fn kill_each_second(
    mut servers: Vec<Server>,
    stopped: mpsc::Receiver<()>,
    start: impl Fn(SocketAddr) -> Server,
    mut random: Random,
) -> (Vec<Kill>, Vec<Server>) {
    let mut kills = Vec::new();
    let mut next = Instant::now() + BETWEEN_KILLS;
    let wait = |until: Instant| until.saturating_duration_since(Instant::now());
    while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(wait(next)) {
        next += BETWEEN_KILLS;
        let server = &mut servers[random.below(SERVERS as u64) as usize];
        let sent = now();
        server.process.kill();
        kills.push(Kill {
            process: server.process.id(),
            started: server.started,
            sent,
            gone: now(),
        });
        *server = start(server.address);
    }
    (kills, servers)
}

fn read_ledger(path: &Path) -> Vec<Effect> {
    let text = std::fs::read_to_string(path).expect("a ledger");
    let line = |line: &str| -> Value { serde_json::from_str(line).expect("a line of JSON") };
    text.lines().map(|text| effect(&line(text))).collect()
}

fn effect(line: &Value) -> Effect {
    Effect {
        id: text(line, "payment_id"),
        key: text(line, "key"),
        process: line["process"].as_u64().expect("a process") as u32,
        at: line["at"].as_u64().expect("a time"),
        attempt: line["attempt"].as_u64().expect("an attempt"),
    }
}

fn row(row: &Value) -> Row {
    Row {
        id: text(row, "id"),
        key: text(row, "key"),
    }
}

fn text(object: &Value, member: &str) -> String {
    object[member].as_str().expect("a text").to_owned()
}

fn now() -> Millis {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("a clock that is set").as_millis() as Millis
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is a number")),
    )
}

/// What is printed of a run.
struct Report<'a> {
    name: &'a str,
    took: Duration,
    kills: usize,
    met: &'a Met,
    verdict: &'a Verdict,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            took,
            kills,
            met,
            verdict,
        } = self;
        writeln!(f, "{name}: as promised, {:.1} s", took.as_secs_f64())?;
        writeln!(
            f,
            "  {} keys, each sent {TIMES} times: {} requests; {} replays, {} conflicts, \
             {} answers of 503, {} connections lost",
            verdict.keys,
            met.requests.load(Relaxed),
            met.replays.load(Relaxed),
            met.conflicts.load(Relaxed),
            met.unavailable.load(Relaxed),
            met.dropped.load(Relaxed),
        )?;
        writeln!(
            f,
            "  {kills} kills; {} effects, {} of them after a takeover, {} extra; {} rows, none extra; \
             {} keys abandoned",
            verdict.effects,
            verdict.takeovers,
            verdict.extra.len(),
            verdict.rows,
            verdict.abandoned,
        )?;
        for extra in &verdict.extra {
            let effect = &extra.effect;
            let (at, sent) = (effect.at as i64, extra.kill.sent as i64);
            writeln!(
                f,
                "    {}: attempt {} in process {}, killed {} ms after it; the next one {} ms later",
                effect.id,
                effect.attempt,
                effect.process,
                sent - at,
                extra.next as i64 - sent,
            )?;
        }
        Ok(())
    }
}
