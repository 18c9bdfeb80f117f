//! Workers on a Redis stream that pay each order once, although messages are sent twice and
//! delivered again after crashes; and a job of the business day that many start and one runs.
//!
//! `cargo run --features redis --example worker` plays it: it starts a Redis of its own and several
//! workers, which are this program again, and some of them die where it hurts. It ends with 0 only
//! if each order was paid once. With `--redis URL` it is one of these programs: `--produce 20`
//! sends orders, `--consume ann` is a worker, `--settle 2026-11-20` starts the job, and `--show`
//! counts.
//!
//! How a message becomes one effect is in `worker/consumer.rs`, the effect itself in
//! `worker/bank.rs`, the job in `worker/settlement.rs`.

#[path = "worker/bank.rs"]
mod bank;
#[path = "worker/consumer.rs"]
mod consumer;
#[path = "worker/counts.rs"]
mod counts;
#[path = "worker/process.rs"]
mod process;
#[path = "worker/scene.rs"]
mod scene;
#[path = "worker/settlement.rs"]
mod settlement;
#[path = "payments/signals.rs"]
mod signals;
#[path = "worker/stop.rs"]
mod stop;

use std::{error::Error, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use redis::{
    AsyncCommands as _, Client,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tower_idempotency::RedisStore;

use crate::{bank::Bank, consumer::Consumer, counts::Counts, settlement::Settlement, stop::Stop};

/// What goes wrong below ends up in a message to a reader.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// The stream of orders. A message is one order: `order`, which names it, `merchant`, `cents`.
const STREAM: &str = "payments";

const TEN_DAYS: u64 = 10 * 24 * 60 * 60 * 1000;

#[derive(Parser)]
struct Flags {
    /// The Redis or Valkey that everything is in. Without it: play the scene, on one of its own.
    #[arg(long, value_name = "URL", requires = "task")]
    redis: Option<String>,

    #[command(flatten)]
    task: Task,

    /// How many messages a worker has in hand at once.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,

    /// The time that the work takes before its effect, and again after it, in milliseconds.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=TEN_DAYS))]
    delay_ms: u64,

    /// After what time without an acknowledgement a message is delivered again, in milliseconds.
    /// More than the lease, or who gets it only waits; and than the work takes, as a rule: it is not
    /// paid again meanwhile, but takes a second worker's time.
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(..=TEN_DAYS))]
    idle_ms: u64,

    /// How long the key of a worker that died stays taken, in milliseconds.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(10..))]
    lease_ms: u64,

    /// After how many deliveries a message that fails is set aside.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    deliveries: u64,

    /// Die at once when the work comes to this point.
    #[arg(long, value_enum, requires = "redis", conflicts_with_all = ["produce", "show"])]
    die: Option<Point>,
}

#[derive(clap::Args)]
#[group(id = "task", multiple = false, requires = "redis")]
struct Task {
    /// Send this many orders: `order-1` and so on, the same ones each time.
    #[arg(long, value_name = "N")]
    produce: Option<u32>,

    /// Be the worker of this name, until a signal comes.
    #[arg(long, value_name = "NAME")]
    consume: Option<String>,

    /// Pay out to each merchant what the bank holds, once for this business day.
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = settlement::business_day)]
    settle: Option<String>,

    /// Count messages, deliveries and effects.
    #[arg(long)]
    show: bool,
}

/// Where a crash hurts.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Point {
    /// The message or the job is taken, and nothing done.
    Taken,
    /// The bank has paid, and nothing is recorded: not the result, nor a checkpoint.
    Paid,
    /// The result is recorded, and the message not acknowledged: nobody is told.
    Recorded,
}

impl Point {
    /// Ends this process as a crash does, if it is to die here.
    fn dies(self, at: Option<Self>, who: &str) {
        if at == Some(self) {
            let point = match self {
                Self::Taken => "before the effect",
                Self::Paid => "between effect and record",
                Self::Recorded => "after the record, before it says so",
            };
            println!("{who} dies {point}");
            std::process::abort();
        }
    }
}

/// A connection that opens itself again, and what an answer may take.
async fn connect(client: &Client, patience: Duration) -> Result<ConnectionManager, Failure> {
    let config = ConnectionManagerConfig::new().set_response_timeout(Some(patience));
    Ok(ConnectionManager::new_with_config(client.clone(), config).await?)
}

/// An answer that is late is one that does not come. Reading waits for messages on top of that.
const PATIENCE: Duration = Duration::from_secs(5);

async fn perform(url: &str, flags: &Flags) -> Result<(), Failure> {
    let client = Client::open(url)?;
    // Tells at once that nobody listens there; the connections below would try for a while.
    drop(client.get_multiplexed_async_connection().await?);
    let connection = connect(&client, PATIENCE).await?;
    // With a client, whoever waits for another worker's result is woken by it.
    let store = RedisStore::new(connection.clone()).with_client(client.clone());
    let bank = Bank::new(connection.clone());
    let task = &flags.task;
    if let Some(orders) = task.produce {
        produce(connection, orders).await
    } else if let Some(name) = &task.consume {
        if flags.idle_ms <= flags.lease_ms {
            return Err("--idle-ms must be more than --lease-ms".into());
        }
        // Reading waits, and whatever shared its connection would wait with it.
        let reader = connect(&client, consumer::BLOCK + PATIENCE).await?;
        let stop = Stop::on_signal()?;
        let consumer = Consumer::new(name, connection, reader, store, bank, flags);
        consumer.run(stop).await
    } else if let Some(day) = &task.settle {
        let stop = Stop::on_signal()?;
        Settlement::new(store, bank, flags).run(day, stop).await
    } else {
        Counts::read(connection).await?.print();
        Ok(())
    }
}

async fn produce(mut redis: ConnectionManager, orders: u32) -> Result<(), Failure> {
    for n in 1..=orders {
        let order = order(n);
        let _id: String = redis.xadd(STREAM, "*", &order).await?;
    }
    println!("{orders} orders sent");
    Ok(())
}

/// The fields of an order that is always the same.
fn order(n: u32) -> [(&'static str, String); 3] {
    [
        ("order", format!("order-{n}")),
        ("merchant", format!("shop-{}", n % 3)),
        ("cents", (u64::from(n) * 100).to_string()),
    ]
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let result = match &flags.redis {
        Some(url) => perform(url, &flags).await,
        None => scene::play().await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
