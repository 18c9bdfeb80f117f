//! A job of the business day: every scheduler starts it, one runs it, and a restart at noon does not
//! run it again.
//!
//! Its key is the day that it is for, not the day of the clock: a run that was late, or began before
//! midnight, is the same job. One that died is taken over where it was: by a scheduler that waits for
//! it, or by the next to start it.
//!
//! The key keeps one day's job from being done twice. It does not keep the jobs of two days apart: at
//! the same time, both would find the same balances, and pay them out. Start them one after another,
//! or let each find only what its own day brought in.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use tower_idempotency::{CheckpointError, Execution, OnConflict, Operation, RunError, Store};

use crate::{
    Failure, Flags, Point,
    bank::{Bank, Entry},
    stop::Stop,
};

pub(crate) struct Settlement {
    jobs: Operation,
    bank: Bank,
    delay: Duration,
    die: Option<Point>,
}

/// What is paid out, and how far it is. Saved before the first payout and after each: the bank goes
/// on taking payments, and a takeover must pay what the first attempt set out to.
#[derive(Serialize, Deserialize)]
struct Plan {
    payouts: Vec<(String, i64)>,
    done: usize,
}

/// What is recorded.
#[derive(Serialize, Deserialize)]
struct Settled {
    payouts: usize,
    cents: i64,
}

impl Settlement {
    pub(crate) fn new(store: impl Store, bank: Bank, flags: &Flags) -> Self {
        let jobs = Operation::new("job", store)
            .lease(Duration::from_millis(flags.lease_ms))
            // Whoever waits takes over as soon as the one that runs has died.
            .on_conflict(OnConflict::Wait(Duration::from_secs(10 * 60)))
            // Longer than anyone starts the job of a day again.
            .ttl(Duration::from_secs(40 * 24 * 60 * 60));
        Self {
            jobs,
            bank,
            delay: Duration::from_millis(flags.delay_ms),
            die: flags.die,
        }
    }

    /// Returns when the day is settled, by whomever.
    pub(crate) async fn run(&self, day: &str, mut stop: Stop) -> Result<(), Failure> {
        let name = format!("settlement:{day}");
        let pays = Payer {
            name: name.clone(),
            bank: self.bank.clone(),
            delay: self.delay,
            die: self.die,
            stop: stop.clone(),
        };
        println!("{name} is asked for");
        let call = self.jobs.call(&name).run(|execution| pays.run(execution));
        let settled = tokio::select! {
            biased;
            settled = call => Some(settled),
            () = stop.asked() => None,
        };
        let settled = match settled {
            Some(settled) => settled,
            None => {
                // One that only waited has nothing to end; one that runs goes on without its
                // caller, and ends after the payout in hand.
                self.jobs.drain().await;
                return Err(format!("{name}: stopped before it was settled").into());
            }
        };
        let done = settled.map_err(|error| match error {
            RunError::Work(error) => format!("{name}: {error}"),
            error => format!("{name}: {error}"),
        })?;
        Point::Recorded.dies(self.die, &name);
        let how = if done.is_replayed() { "before" } else { "now" };
        let Settled { payouts, cents } = done.value();
        println!("{name}: settled {how}: {payouts} payouts, {cents} cents");
        Ok(())
    }
}

/// The work, which owns what it needs: it may outlive its caller.
struct Payer {
    name: String,
    bank: Bank,
    delay: Duration,
    die: Option<Point>,
    stop: Stop,
}

impl Payer {
    async fn run(self, execution: Execution) -> Result<Settled, SettleError> {
        let name = &self.name;
        let mut plan: Plan = match execution.checkpoint() {
            Some(saved) => serde_json::from_slice(&saved)?,
            None => {
                let balances = self.bank.balances().await?.into_iter();
                Plan {
                    payouts: balances.filter(|(_, cents)| *cents > 0).collect(),
                    done: 0,
                }
            }
        };
        let (entry, attempt) = (execution.entry(), execution.attempt());
        let (done, all) = (plan.done, plan.payouts.len());
        println!("{name}: attempt {attempt} ({entry:?}), {done} of {all} payouts on record");
        execution
            .save_checkpoint(serde_json::to_vec(&plan)?)
            .await?;
        Point::Taken.dies(self.die, name);
        while let Some((merchant, cents)) = plan.payouts.get(plan.done) {
            if self.stop.is_asked() {
                return Err(SettleError::Stopped);
            }
            tokio::time::sleep(self.delay).await;
            let payout = Entry {
                what: name.clone(),
                merchant: merchant.clone(),
                cents: -cents,
            };
            // Should this process die before the checkpoint, the bank knows the call again.
            let key = execution.derive(merchant);
            let repeated = self.bank.book(&key, &payout).await?;
            let how = if repeated { "was" } else { "is" };
            println!("{name}: {merchant} {how} paid {cents} cents");
            // The second one, so that there is a checkpoint with something in it.
            if plan.done == 1 {
                Point::Paid.dies(self.die, name);
            }
            tokio::time::sleep(self.delay).await;
            plan.done += 1;
            execution
                .save_checkpoint(serde_json::to_vec(&plan)?)
                .await?;
        }
        Ok(Settled {
            payouts: plan.payouts.len(),
            cents: plan.payouts.iter().map(|(_, cents)| cents).sum(),
        })
    }
}

/// `YYYY-MM-DD`. Another spelling would be another key, and so a second settlement.
pub(crate) fn business_day(day: &str) -> Result<String, String> {
    let number = |digits: Option<&str>, length: usize| {
        let digits = digits?;
        let plain = digits.len() == length && digits.bytes().all(|digit| digit.is_ascii_digit());
        plain.then(|| digits.parse::<u32>().ok()).flatten()
    };
    let mut parts = day.split('-');
    let year = number(parts.next(), 4);
    let month = number(parts.next(), 2).filter(|month| (1..=12).contains(month));
    let in_month = number(parts.next(), 2).filter(|day| (1..=31).contains(day));
    match (year, month, in_month, parts.next()) {
        (Some(_), Some(_), Some(_), None) => Ok(day.to_owned()),
        _ => Err("a day is written as in 2026-11-20".to_owned()),
    }
}

/// Why a day is not settled. The next attempt goes on from the checkpoint.
#[derive(Debug)]
enum SettleError {
    Stopped,
    Bank(redis::RedisError),
    Plan(serde_json::Error),
    Checkpoint(CheckpointError),
}

impl fmt::Display for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped before it was settled"),
            Self::Bank(error) => write!(f, "the bank does not answer: {error}"),
            Self::Plan(error) => write!(f, "the checkpoint is no plan: {error}"),
            // Superseded: another one has taken over, and goes on.
            Self::Checkpoint(CheckpointError::Store(error)) => write!(f, "{error}"),
            Self::Checkpoint(error) => write!(f, "{error}"),
        }
    }
}

impl From<redis::RedisError> for SettleError {
    fn from(error: redis::RedisError) -> Self {
        Self::Bank(error)
    }
}

impl From<serde_json::Error> for SettleError {
    fn from(error: serde_json::Error) -> Self {
        Self::Plan(error)
    }
}

impl From<CheckpointError> for SettleError {
    fn from(error: CheckpointError) -> Self {
        Self::Checkpoint(error)
    }
}
