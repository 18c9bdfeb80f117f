//! A store of one's own, on memcached: how one is written, and what a cache costs that forgets.
//!
//! `cargo run --example memcached_store` starts memcached three times, on free ports, and plays
//! payments on each: once with room for all, once with so little that it drops records, and once
//! with so little that it refuses to take more. `--memcached HOST:PORT` plays the first part only,
//! on a server of yours.
//!
//! The store is in `memcached/`; `tests/memcached` proves it, with the conformance suite and more.

mod memcached;
mod server;

use std::{
    convert::Infallible,
    error::Error,
    future::ready,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use clap::Parser;
use futures::future::join_all;
use memcached::MemcachedStore;
use server::Memcached;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tower_idempotency::{Done, Operation, Outcome, OwnerId, RunError, Store, StoreError};

type BoxError = Box<dyn Error>;

#[derive(Parser)]
struct Flags {
    /// A memcached that runs, as HOST:PORT. Without it: start some, and play all of the scene.
    #[arg(long, value_name = "HOST:PORT")]
    memcached: Option<String>,
}

/// A bank, with the number of payments that it has made.
#[derive(Clone)]
struct Bank {
    payments: Arc<AtomicU32>,
    pay: Operation,
    store: MemcachedStore,
}

type Paid = Result<Done<u32>, RunError<Infallible>>;

impl Bank {
    fn new(address: impl Into<String>) -> Self {
        let store = MemcachedStore::new(address);
        Self {
            payments: Arc::default(),
            pay: Operation::new("pay", store.clone())
                // How long a payment waits for its record while memcached is full.
                .record_timeout(Duration::from_millis(500)),
            store,
        }
    }

    /// Pays an order, once.
    async fn pay(&self, order: u32) -> Paid {
        self.pay_slowly(order, ready(())).await
    }

    /// The same, where the bank takes as long as `takes` does.
    async fn pay_slowly(
        &self,
        order: u32,
        takes: impl Future<Output = ()> + Send + 'static,
    ) -> Paid {
        let payments = Arc::clone(&self.payments);
        let work = |_| async move {
            takes.await;
            Ok(payments.fetch_add(1, SeqCst) + 1)
        };
        self.pay.call(key(order)).run(work).await
    }

    fn payments(&self) -> u32 {
        self.payments.load(SeqCst)
    }
}

fn key(order: u32) -> String {
    format!("order-{order:05}")
}

/// What every store gives.
async fn play_on(address: &str) -> Result<(), BoxError> {
    let mut bank = Bank::new(address);
    // A server of yours may remember the last run.
    bank.pay = bank.pay.prefix(format!("run-{}", OwnerId::random()));

    // Tells at once that nobody is there.
    bank.store.get(&bank.pay.call(key(1)).store_key()?).await?;
    println!("The first call for order 1 pays:");
    tell(&bank.pay(1).await);
    println!("A duplicate gets the same receipt:");
    tell(&bank.pay(1).await);
    println!("Three at once for order 2, of which one pays:");
    let pay = || bank.pay_slowly(2, sleep(Duration::from_millis(100)));
    for paid in join_all([pay(), pay(), pay()]).await {
        tell(&paid);
    }
    expect("payments for two orders", bank.payments(), 2)
}

/// What only a cache gives: with 1 MB of memory it drops what is old.
async fn play_evictions() -> Result<(), BoxError> {
    let server = Memcached::start(&SMALL).await?;
    let bank = Bank::new(server.address().to_string());
    println!("Order 1 is paid, and order 2 is being paid:");
    tell(&bank.pay(1).await);
    let (begun, goes_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = tokio::spawn({
        let (bank, begun, goes_on) = (bank.clone(), Arc::clone(&begun), Arc::clone(&goes_on));
        let takes = async move {
            begun.notify_one();
            goes_on.notified().await;
        };
        async move { bank.pay_slowly(2, takes).await }
    });
    begun.notified().await;
    println!("Meanwhile other orders come in, until memory is full and old records are dropped:");
    let mut orders = 2;
    while bank.store.evictions() < 300 {
        let next = pay_next(&bank, orders, 20).await?;
        orders += next.paid;
        expect("an end of memory", orders < MOST, true)?;
    }
    println!(
        "  {} more paid, {} records dropped",
        orders - 2,
        bank.store.evictions()
    );

    println!("A duplicate of order 1 pays a second time:");
    tell(&bank.pay(1).await);
    println!("A duplicate of order 2 pays while the first call still does:");
    tell(&bank.pay(2).await);
    expect("payments", bank.payments(), orders + 1)?;
    println!("The first call pays too, and gets the receipt that is recorded:");
    goes_on.notify_one();
    tell(&slow.await?);
    println!("  {orders} orders, {} payments", bank.payments());
    expect("payments", bank.payments(), orders + 2)
}

/// The same with `-M`: memcached drops nothing, and refuses what it has no room for.
async fn play_refusals() -> Result<(), BoxError> {
    let server = Memcached::start(&[&SMALL[..], &["-M"]].concat()).await?;
    let bank = Bank::new(server.address().to_string());
    println!("Order 1 is paid, and then other orders, until memory is full:");
    tell(&bank.pay(1).await);
    let mut all = Tally {
        paid: 1,
        ..Tally::default()
    };
    // Many at once, and the last of the room one by one.
    while all.without_record == 0 && all.refused == 0 {
        all.add(pay_next(&bank, all.paid, 20).await?);
        expect("an end of memory", all.paid < MOST, true)?;
    }
    while all.refused == 0 {
        all.add(pay_next(&bank, all.paid, 1).await?);
        expect("an end of memory", all.paid < MOST, true)?;
    }
    println!(
        "  {} more paid, and the next refused before anything ran",
        all.paid - 1
    );
    tell(&bank.pay(MOST).await);
    println!("Nothing is dropped: a duplicate of order 1 gets its receipt:");
    tell(&bank.pay(1).await);
    expect("payments", bank.payments(), all.paid)?;
    expect("records dropped", bank.store.evictions(), 0)?;

    println!("Who began before waits for room for its record, until somebody makes some:");
    for order in 2..100 {
        let old = bank.pay.call(key(order)).store_key()?;
        bank.store.forget(&old).await?;
    }
    timeout(Duration::from_secs(30), bank.pay.drain()).await?;
    println!(
        "  {} were left without their receipt in it; none waits any more",
        all.without_record
    );
    expect("payments", bank.payments(), all.paid)
}

/// 1 MB, of which each item takes 2 KB, however small it is: so there is room for a few hundred.
const SMALL: [&str; 6] = ["-m", "1", "-I", "512k", "-n", "2000"];

/// More orders than 1 MB holds, by far.
const MOST: u32 = 5_000;

#[derive(Default)]
struct Tally {
    paid: u32,
    /// Of these: where there was no room for the record, or for the receipt in it.
    without_record: u32,
    refused: u32,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.paid += other.paid;
        self.without_record += other.without_record;
        self.refused += other.refused;
    }
}

/// Pays some orders more after so many, all at once.
async fn pay_next(bank: &Bank, orders: u32, more: u32) -> Result<Tally, BoxError> {
    let next = (1..=more).map(|n| bank.pay(orders + n));
    let mut tally = Tally::default();
    for paid in join_all(next).await {
        match paid {
            Ok(done) => {
                tally.paid += 1;
                tally.without_record += u32::from(done.outcome() != Outcome::Completed);
            }
            Err(RunError::Store(StoreError::Full { .. })) => tally.refused += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(tally)
}

fn tell(paid: &Paid) {
    match paid {
        Ok(done) => {
            let how = if done.is_replayed() {
                "replayed"
            } else {
                "paid"
            };
            println!("  {how}: payment {}", done.value());
        }
        Err(error) => println!("  refused: {}", whole(error)),
    }
}

/// An error with what caused it.
fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn expect<T: PartialEq + std::fmt::Display>(what: &str, is: T, should: T) -> Result<(), BoxError> {
    match is == should {
        true => Ok(()),
        false => Err(format!("{what}: {is} and not {should}").into()),
    }
}

async fn play(flags: Flags) -> Result<(), BoxError> {
    if let Some(address) = flags.memcached {
        return play_on(&address).await;
    }
    println!("# With memory for all of it\n");
    let server = Memcached::start(&[]).await?;
    play_on(&server.address().to_string()).await?;
    println!("\n# With 1 MB, as a cache\n");
    play_evictions().await?;
    println!("\n# With 1 MB and `-M`\n");
    play_refusals().await
}

#[tokio::main]
async fn main() -> ExitCode {
    match play(Flags::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", whole(&*error));
            ExitCode::FAILURE
        }
    }
}
