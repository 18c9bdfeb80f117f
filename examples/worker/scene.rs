//! The whole scene: a Redis, a producer that sends some orders twice, workers that die, and a
//! settlement whose first scheduler does.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use redis::{AsyncCommands as _, Client, aio::ConnectionManager};

use crate::{
    Failure, PATIENCE, STREAM, connect,
    counts::{Counts, is_all_done},
    order,
    process::{PrivateRedis, Process},
};

const ORDERS: u32 = 12;

/// Longer than the scene takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(50);

pub(crate) async fn play() -> Result<(), Failure> {
    let redis = PrivateRedis::start().await?;
    let client = Client::open(&*redis.url)?;
    let mut connection = connect(&client, PATIENCE).await?;
    let scene = Scene {
        url: &redis.url,
        start: Instant::now(),
    };

    let sent = send_orders(&mut connection).await?;
    println!("{sent} messages: {ORDERS} orders, of which three are sent twice; and four more that");
    println!("nobody can pay: without a sum, under a name that is taken, declined, and deadly.");

    println!("Three workers take one message each, and die:");
    for (name, point) in [("ann", "taken"), ("bob", "paid"), ("cid", "recorded")] {
        let mut worker = scene.worker(name, &["--die", point])?;
        if scene.end_of(&mut worker).await? {
            return Err(format!("{name} did not die").into());
        }
    }

    println!("Two others work, and are started again when they die:");
    let mut workers = Vec::new();
    for name in ["dora", "emil"] {
        workers.push((name, scene.worker(name, &[])?));
    }
    while !is_all_done(&mut connection).await? {
        for (name, worker) in &mut workers {
            if worker.ended()?.is_some() {
                *worker = scene.worker(name, &[])?;
            }
        }
        scene.pause().await?;
    }
    for (name, mut worker) in workers {
        worker.terminate()?;
        if !scene.end_of(&mut worker).await? {
            return Err(format!("{name} did not stop as it should").into());
        }
    }

    println!("A scheduler settles the day, and dies between a payout and its checkpoint:");
    let mut first = scene.scheduler(&["--die", "paid"])?;
    if scene.end_of(&mut first).await? {
        return Err("the scheduler did not die".into());
    }
    println!("Four others start the same job:");
    let others: Result<Vec<_>, _> = (0..4).map(|_| scene.scheduler(&[])).collect();
    for mut other in others? {
        if !scene.end_of(&mut other).await? {
            return Err("a scheduler did not settle the day".into());
        }
    }

    let counts = Counts::read(connection).await?;
    counts.print();
    let orders = u64::from(ORDERS);
    // Bob's order was asked for twice, and so was the second payout.
    let as_it_should = (counts.paid, counts.payouts, counts.dead) == (orders, 3, 4)
        && counts.asked > orders
        && counts.payouts_asked > 3;
    if !as_it_should {
        return Err(format!("not as it should be: {counts:?}").into());
    }
    println!(
        "{ORDERS} orders, {} payments: each was paid once.",
        counts.paid
    );
    Ok(())
}

/// Returns how many messages were sent.
async fn send_orders(redis: &mut ConnectionManager) -> Result<u64, Failure> {
    let mut messages: Vec<_> = (1..=ORDERS).map(|n| order(n).to_vec()).collect();
    // The producer lost the answer, and sent again.
    messages.extend([3, 5, 7].map(|n| order(n).to_vec()));
    let mut unpayable = [4, ORDERS + 1, ORDERS + 2, ORDERS + 3].map(|n| order(n).to_vec());
    // The first one is another order under the name of a paid one.
    unpayable[0][2].1 = "1".to_owned();
    unpayable[1][2].1 = "a lot".to_owned();
    unpayable[2].push(("simulate", "decline".to_owned()));
    unpayable[3].push(("simulate", "crash".to_owned()));
    messages.extend(unpayable);
    for message in &messages {
        let _id: String = redis.xadd(STREAM, "*", message).await?;
    }
    Ok(messages.len() as u64)
}

struct Scene<'a> {
    url: &'a str,
    start: Instant,
}

impl Scene<'_> {
    /// One message at a time, so that a death hits that one alone.
    fn worker(&self, name: &str, flags: &[&str]) -> Result<Process, Failure> {
        let role = ["--consume", name, "--batch", "1", "--deliveries", "3"];
        self.process(&role, flags)
    }

    fn scheduler(&self, flags: &[&str]) -> Result<Process, Failure> {
        self.process(&["--settle", "2026-11-20"], flags)
    }

    /// Short times, so that the scene is.
    fn process(&self, role: &[&str], flags: &[&str]) -> Result<Process, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--redis", self.url]).args(role).args(flags);
        command.args(["--idle-ms", "1500", "--lease-ms", "500"]);
        Ok(Process::start(&mut command)?)
    }

    /// Waits for the end of a process. Says whether it ended well.
    async fn end_of(&self, process: &mut Process) -> Result<bool, Failure> {
        loop {
            if let Some(status) = process.ended()? {
                return Ok(status.success());
            }
            self.pause().await?;
        }
    }

    async fn pause(&self) -> Result<(), Failure> {
        if self.start.elapsed() > LIMIT {
            return Err("the scene takes too long".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(())
    }
}
