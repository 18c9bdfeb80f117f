//! The example `worker` on a Redis: processes that are killed with -9 at any moment, messages that
//! nobody can work on, a job of the day that five start, and stops that lose nothing. It prints its
//! counts (`-- --nocapture` shows them).
//!
//! The bank's books say what was done, and how often it was asked for. That an order was paid once
//! is the bank's doing where a worker died between payment and record; that the bank was asked no
//! more often than these deaths explain is the crate's.

#[path = "servers/mod.rs"]
mod servers;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use redis::{
    Commands as _, Connection,
    streams::{StreamInfoGroupsReply, StreamInfoStreamReply, StreamPendingReply, StreamRangeReply},
};
use serde_json::Value;
use servers::{
    example::{example, run},
    process::{PATIENCE, Process, free_address, wait_until},
    redis::RedisServer,
};

const STREAM: &str = "payments";
const DEAD: &str = "payments:dead";
const GROUP: &str = "workers";

/// A line of a process, or none at the end of its output.
type Line = (usize, Option<String>);

/// One Redis, what is in it, and what the processes on it say.
struct Place {
    redis: RedisServer,
    connection: Connection,
    said: Receiver<Line>,
    says: Sender<Line>,
}

impl Place {
    fn new() -> Self {
        let redis = RedisServer::start(&[]);
        let connection = redis.client().get_connection().expect("a connection");
        let (says, said) = mpsc::channel();
        Self {
            redis,
            connection,
            said,
            says,
        }
    }

    /// Starts a process, whose lines are said by this number.
    fn start(&self, number: usize, flags: &[&str]) -> Process {
        let mut command = example("worker");
        command
            .args(["--redis", &self.redis.url()])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut process = Process::start(&mut command);
        let lines = BufReader::new(process.stdout()).lines();
        let says = self.says.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                println!("  {number}: {line}");
                // Nobody listens any more once the test has ended.
                let _ = says.send((number, Some(line)));
            }
            let _ = says.send((number, None));
        });
        process
    }

    /// The next line that has this in it, and who said it.
    fn hears(&self, part: &str) -> (usize, String) {
        loop {
            let heard = self.said.recv_timeout(PATIENCE);
            match heard.unwrap_or_else(|_| panic!("nobody said {part:?}")) {
                (number, Some(line)) if line.contains(part) => return (number, line),
                _ => {}
            }
        }
    }

    /// All lines of these many processes, from now to their ends.
    fn hears_out(&self, processes: usize) -> Vec<(usize, String)> {
        let (mut lines, mut ended) = (Vec::new(), 0);
        while ended < processes {
            match self.said.recv_timeout(PATIENCE).expect("they end") {
                (number, Some(line)) => lines.push((number, line)),
                (_, None) => ended += 1,
            }
        }
        lines
    }

    fn send(&mut self, fields: &[(&str, &str)]) -> String {
        let id: Option<String> = self.connection.xadd(STREAM, "*", fields).expect("sent");
        id.expect("an id")
    }

    fn send_order(&mut self, name: &str, cents: u64) -> String {
        let cents = cents.to_string();
        self.send(&[("order", name), ("merchant", "shop"), ("cents", &cents)])
    }

    fn pending(&mut self) -> usize {
        let pending: StreamPendingReply = self.connection.xpending(STREAM, GROUP).expect("a group");
        pending.count()
    }

    /// Whether every message was delivered, and is acknowledged.
    fn is_all_done(&mut self) -> bool {
        let stream: StreamInfoStreamReply = self.connection.xinfo_stream(STREAM).expect("it is");
        let groups: StreamInfoGroupsReply = self.connection.xinfo_groups(STREAM).expect("it is");
        let group = groups.groups.iter().find(|group| group.name == GROUP);
        group.is_some_and(|group| group.last_delivered_id == stream.last_generated_id)
            && self.pending() == 0
    }

    /// What the bank did, each with what for, and how often it was asked for that.
    fn books(&mut self) -> Vec<(String, u64)> {
        let entries: BTreeMap<String, String> =
            self.connection.hgetall("bank:entries").expect("entries");
        let calls: BTreeMap<String, u64> = self.connection.hgetall("bank:calls").expect("calls");
        assert!(entries.keys().eq(calls.keys()), "an entry for each key");
        let entries = entries.iter().map(|(key, entry)| {
            let entry: Value = serde_json::from_str(entry).expect("an entry");
            let text = |name: &str| entry[name].as_str().expect("a text").to_owned();
            (format!("{} {}", text("what"), text("merchant")), calls[key])
        });
        entries.collect()
    }

    /// The reason, the number of deliveries and the order of each dead letter.
    fn dead(&mut self) -> BTreeMap<String, (String, u64, Option<String>)> {
        let dead: StreamRangeReply = self.connection.xrange_all(DEAD).expect("dead letters");
        let letters = dead.ids.iter().map(|letter| {
            let told = (
                letter.get("reason").expect("a reason"),
                letter.get("deliveries").expect("a number"),
                letter.get("order"),
            );
            (letter.get("id").expect("an id"), told)
        });
        let letters: Vec<_> = letters.collect();
        let number = letters.len();
        let letters: BTreeMap<_, _> = letters.into_iter().collect();
        assert_eq!(letters.len(), number, "a message is set aside once");
        letters
    }
}

/// A generator of Knuth's, good enough to choose victims.
struct Random(u64);

impl Random {
    /// `WORKER_SEED` repeats the choices of a run, though not their moments.
    fn new() -> Self {
        let seed = std::env::var("WORKER_SEED").map(|seed| seed.parse().expect("a number"));
        let seed = seed.unwrap_or_else(|_| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.expect("a clock that is set").as_micros() as u64
        });
        println!("WORKER_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: usize) -> usize {
        let Self(state) = self;
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as usize % limit
    }
}

/// S27, S20, S10, P1, P5, U01: 150 orders, each of which is sent four times, and four workers, one
/// of which is killed with -9 every 150 ms or so. Each order is paid once; and the bank was asked
/// again only for what a worker that was killed had in hand.
#[test]
fn s27_s20_p1_p5_u01_each_order_is_paid_once_whatever_is_killed() {
    const ORDERS: usize = 150;
    const TIMES: usize = 4;
    const WORKERS: usize = 4;
    const BATCH: usize = 4;
    const KILLS: usize = 40;

    let mut random = Random::new();
    let mut place = Place::new();
    let mut messages: Vec<_> = (0..ORDERS * TIMES).map(|n| n % ORDERS).collect();
    for at in (1..messages.len()).rev() {
        messages.swap(at, random.below(at + 1));
    }
    for order in &messages {
        place.send_order(&format!("order-{order}"), 1 + *order as u64);
    }

    let flags = |name: &str| {
        let flags = format!(
            "--consume {name} --batch {BATCH} --delay-ms 100 --lease-ms 1500 --idle-ms 2500 \
             --deliveries 1000"
        );
        flags.split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    let start = |place: &Place, number: usize| {
        let flags = flags(&format!("worker-{number}"));
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        place.start(number, &flags)
    };
    let mut workers: Vec<_> = (0..WORKERS).map(|number| start(&place, number)).collect();
    let began = Instant::now();
    place.hears("works");
    let mut kills = 0;
    while kills < KILLS && !place.is_all_done() {
        // Not for an order of events, but to hit them anywhere.
        thread::sleep(Duration::from_millis(50 + random.below(200) as u64));
        let victim = random.below(WORKERS);
        assert!(workers[victim].is_running(), "it ended by itself");
        workers[victim].kill();
        kills += 1;
        workers[victim] = start(&place, victim);
    }
    wait_until("all is done", || place.is_all_done());
    let took = began.elapsed();
    for worker in &mut workers {
        worker.signal("TERM");
        worker.ended();
    }

    let books = place.books();
    let paid: BTreeSet<_> = books.iter().map(|(what, _)| what.clone()).collect();
    let asked: u64 = books.iter().map(|(_, calls)| calls).sum();
    let deliveries: u64 = place
        .connection
        .get("payments:deliveries")
        .expect("a number");
    let messages = messages.len();
    println!(
        "{messages} messages for {ORDERS} orders in {took:?}, {kills} kills: {deliveries} \
         deliveries, {} payments, for which the bank was asked {asked} times",
        books.len()
    );
    assert_eq!(books.len(), ORDERS, "one payment for each order");
    let orders = (0..ORDERS).map(|order| format!("order-{order} shop"));
    assert_eq!(paid, orders.collect(), "and none for anything else");
    let cents: u64 = place
        .connection
        .hget("bank:balances", "shop")
        .expect("cents");
    assert_eq!(cents, (1..=ORDERS as u64).sum::<u64>());
    assert!(place.dead().is_empty());
    let explained = ORDERS + kills * BATCH;
    assert!(asked <= explained as u64, "asked {asked} times");
    // Or the test would show nothing: of what the crate does, and of what the bank does.
    assert!(kills >= 10 && explained < messages, "{kills} kills");
    assert!(
        asked > ORDERS as u64,
        "nobody died between payment and record"
    );
}

/// S27, S07: a message that nobody can read, one for another order under a name that is taken, one
/// that always fails, and one that ends its worker: each ends among the dead letters, once, with
/// the reason; and what was in hand beside them is paid.
#[test]
fn s27_s07_what_cannot_be_worked_on_is_set_aside() {
    let mut place = Place::new();
    let shop = ("merchant", "shop");
    place.send_order("taken", 5);
    let failing = [("order", "failing"), shop, ("cents", "5")];
    let failing = place.send(&[&failing[..], &[("simulate", "decline")]].concat());
    let flags = "--consume w --deliveries 3 --lease-ms 200 --idle-ms 500";
    let flags: Vec<_> = flags.split(' ').collect();
    let mut worker = place.start(0, &flags);
    wait_until("they are done", || place.is_all_done());
    // It did nothing, so another order may come under its name.
    place.send_order("failing", 7);
    wait_until("it is paid", || place.is_all_done());

    let unreadable = place.send(&[("order", "unreadable"), shop, ("cents", "many")]);
    let nameless = place.send(&[shop, ("cents", "5")]);
    let no_key = place.send_order("\u{e4}", 5);
    let other = place.send_order("taken", 6);
    let deadly = [("order", "deadly"), shop, ("cents", "5")];
    let deadly = place.send(&[&deadly[..], &[("simulate", "crash")]].concat());
    for n in 0..6 {
        place.send_order(&format!("beside-{n}"), 5);
    }

    let mut deaths = 0;
    wait_until("all is done", || {
        if !worker.is_running() {
            deaths += 1;
            worker = place.start(0, &flags);
        }
        place.is_all_done()
    });
    assert_eq!(deaths, 3);
    worker.signal("TERM");
    worker.ended();

    let dead = place.dead();
    println!("{dead:#?}");
    let told = |id: &str, reason: &str, deliveries: u64, order: Option<&str>| {
        let (why, number, what) = &dead[id];
        assert!(why.contains(reason), "{why}");
        assert!(*number >= deliveries, "{why}: {number}");
        assert_eq!(what.as_deref(), order);
    };
    told(&unreadable, "no number", 1, Some("unreadable"));
    told(&nameless, "no order is named", 1, None);
    told(&no_key, "the key is invalid", 1, Some("\u{e4}"));
    told(&other, "used for another input", 1, Some("taken"));
    told(&failing, "the bank declines it", 3, Some("failing"));
    told(&deadly, "its workers die of it", 4, Some("deadly"));
    assert_eq!(dead.len(), 6);
    let paid: BTreeSet<_> = place.books().into_iter().map(|(what, _)| what).collect();
    let beside = (0..6).map(|n| format!("beside-{n} shop"));
    let others = ["taken shop", "failing shop"].map(str::to_owned);
    assert_eq!(paid, beside.chain(others).collect());
}

/// S27, U21: a stop finishes and acknowledges what is in hand, and takes nothing more; the second
/// signal ends the process at once, and another worker pays.
#[test]
fn s27_u21_a_stop_loses_nothing() {
    let mut place = Place::new();
    let flags = "--consume w --batch 1 --lease-ms 300 --idle-ms 600 --delay-ms";
    let flags = |delay| flags.split(' ').chain([delay]).collect::<Vec<_>>();

    let mut worker = place.start(0, &flags("1500"));
    place.hears("works");
    place.send_order("in-hand", 5);
    wait_until("it is in hand", || place.pending() == 1);
    worker.signal("TERM");
    place.send_order("later", 5);
    assert!(place.hears("in-hand").1.contains("paid 5 cents"));
    place.hears("has stopped");
    worker.ended();
    assert_eq!(place.pending(), 0, "it is acknowledged");
    assert_eq!(place.books(), [("in-hand shop".to_owned(), 1)]);

    // Of another kind, since two of one kind may become one.
    let mut worker = place.start(1, &flags("600000"));
    wait_until("it is in hand", || place.pending() == 1);
    worker.signal("TERM");
    worker.signal("INT");
    worker.ended();
    assert_eq!(place.pending(), 1, "nobody acknowledged it");
    assert_eq!(place.books().len(), 1);

    let mut worker = place.start(2, &flags("0"));
    place.hears("delivery 2: later: paid 5 cents");
    wait_until("all is done", || place.is_all_done());
    worker.signal("TERM");
    worker.ended();
    assert_eq!(place.books().len(), 2);
}

/// S27: a worker outlives its Redis; one that comes back empty has no group, and gets one.
#[test]
fn s27_a_worker_outlives_its_redis() {
    let mut place = Place::new();
    let flags = "--consume w --lease-ms 300 --idle-ms 600";
    let mut worker = place.start(0, &flags.split(' ').collect::<Vec<_>>());
    place.send_order("before", 5);
    place.hears("before: paid");
    place.redis.restart();
    place.connection = place.redis.client().get_connection().expect("a connection");
    place.send_order("after", 5);
    place.hears("after: paid");
    wait_until("all is done", || place.is_all_done());
    worker.signal("TERM");
    place.hears("has stopped");
    worker.ended();
}

/// Money that is there to be paid out.
fn fill(place: &mut Place, merchants: usize) {
    for n in 0..merchants {
        let _: i64 = place
            .connection
            .hset("bank:balances", format!("shop-{n}"), 100 + n)
            .expect("a balance");
    }
}

/// S20, S27, S28, P1, P5, S08: five processes start the job of one business day. The one that runs
/// it is killed with -9 after its second payout; another takes over where it was; each merchant is
/// paid out once, and all who live say the same. Later that day it does not run again; the next day it does.
#[test]
fn s20_s27_s28_p1_p5_the_job_of_a_day_runs_once() {
    const MERCHANTS: usize = 5;
    let mut place = Place::new();
    fill(&mut place, MERCHANTS);
    let flags = |day| ["--settle", day, "--delay-ms", "200", "--lease-ms", "1000"];
    let today = flags("2026-11-20");
    let mut five: Vec<_> = (0..5).map(|number| place.start(number, &today)).collect();
    let (runs, _) = place.hears("shop-1 is paid");
    five[runs].kill();
    // The bank goes on. What comes in now is for the next day, also for whoever takes over.
    let _: i64 = place
        .connection
        .hincr("bank:balances", "shop-4", 1000)
        .expect("a balance");
    let said: Vec<_> = place.hears_out(5);
    for process in &mut five {
        process.ended();
    }
    let count = |part: &str| said.iter().filter(|(_, line)| line.contains(part)).count();
    assert_eq!(count("attempt 2 (Takeover)"), 1);
    assert_eq!(count("settled now: 5 payouts, 510 cents"), 1);
    assert_eq!(count("settled before: 5 payouts, 510 cents"), 3);
    assert_eq!(
        count("0 of 5 payouts on record"),
        0,
        "the checkpoint is read"
    );

    let expected: BTreeSet<_> = (0..MERCHANTS)
        .map(|n| format!("settlement:2026-11-20 shop-{n}"))
        .collect();
    let books = place.books();
    let paid: BTreeSet<_> = books.iter().map(|(what, _)| what.clone()).collect();
    let asked: u64 = books.iter().map(|(_, calls)| calls).sum();
    println!(
        "5 processes, 1 kill: {} payouts, for which the bank was asked {asked} times",
        books.len()
    );
    assert_eq!((books.len(), paid), (MERCHANTS, expected));
    // Its process was killed before it could save that it was done.
    assert!(asked <= MERCHANTS as u64 + 1);
    let balances: BTreeMap<String, i64> =
        place.connection.hgetall("bank:balances").expect("balances");
    assert_eq!(
        balances.into_values().collect::<Vec<_>>(),
        [0, 0, 0, 0, 1000]
    );

    let _: i64 = place
        .connection
        .hset("bank:balances", "shop-0", 7)
        .expect("a balance");
    for (day, how) in [
        ("2026-11-20", "settled before: 5 payouts, 510 cents"),
        ("2026-11-21", "settled now: 2 payouts, 1007 cents"),
    ] {
        place.start(5, &flags(day)).ended();
        let said = place.hears_out(1);
        assert!(said.last().expect("a line").1.contains(how), "{said:?}");
    }
}

/// S27, S08, U21: a stop ends the job after the payout in hand; the next process goes on from there
/// at once, without waiting for a lease, and nothing is asked for twice.
#[test]
fn s27_s08_u21_a_job_that_was_stopped_goes_on() {
    let mut place = Place::new();
    fill(&mut place, 4);
    let flags = "--settle 2026-11-20 --lease-ms 600000 --delay-ms";
    let flags = |delay| flags.split(' ').chain([delay]).collect::<Vec<_>>();
    let mut first = place.start(0, &flags("500"));
    place.hears("shop-0 is paid");
    // One that only waits gives up at once.
    let mut waits = place.start(1, &flags("0"));
    assert_eq!(place.hears("is asked for").0, 1);
    waits.signal("TERM");
    waits.ended();
    first.signal("TERM");
    first.ended();
    let said = place.hears_out(2);
    let settled = said.iter().any(|(_, line)| line.contains(" settled "));
    assert!(!settled, "{said:?}");
    let payouts = place.books().len();
    assert!((1..4).contains(&payouts), "{payouts} payouts");

    place.start(2, &flags("0")).ended();
    let (_, line) = place.hears("attempt 2 (Retry)");
    let on_record = format!("{payouts} of 4 payouts on record");
    assert!(line.contains(&on_record), "{line}");
    place.hears("settled now: 4 payouts, 406 cents");
    let books = place.books();
    assert_eq!(books.len(), 4);
    assert!(books.iter().all(|(_, calls)| *calls == 1), "{books:?}");
}

/// Each mistake is told, and the program ends with a code that says so.
#[test]
fn mistakes_are_told() {
    let nobody = format!("redis://{}", free_address());
    for (flags, code, told) in [
        ("--redis redis://127.0.0.1:1".to_owned(), 2, "--consume"),
        ("--consume w".to_owned(), 2, "--redis"),
        (format!("--redis {nobody} --consume w"), 1, "error: "),
        (
            format!("--redis {nobody} --settle 2026-11-2"),
            2,
            "2026-11-20",
        ),
        (
            format!("--redis {nobody} --settle 2026-13-20"),
            2,
            "2026-11-20",
        ),
        (
            format!("--redis {nobody} --settle 2026-11-20-1"),
            2,
            "2026-11-20",
        ),
        (
            format!("--redis {nobody} --show --produce 1"),
            2,
            "--produce",
        ),
        (format!("--redis {nobody} --show --die paid"), 2, "--die"),
    ] {
        let output = run(example("worker").args(flags.split(' ')));
        let error = output.stderr;
        assert_eq!(output.code, Some(code), "{flags}: {error}");
        assert!(error.contains(told), "{flags}: {error}");
    }
    let redis = RedisServer::start(&[]);
    let flags = [
        "--redis",
        &redis.url(),
        "--consume",
        "w",
        "--idle-ms",
        "100",
    ];
    let refused = run(example("worker").args(flags).args(["--lease-ms", "100"]));
    let error = refused.stderr;
    assert!(
        error.contains("--idle-ms must be more than --lease-ms"),
        "{error}"
    );
    // The scene, where there is no server to start.
    let output = run(example("worker").env("PATH", ""));
    let error = output.stderr;
    assert_eq!(output.code, Some(1), "{error}");
    assert!(error.contains("apt-get install redis-server"), "{error}");
}
