//! One worker: it takes messages, has each paid once, and acknowledges what is recorded.
//!
//! | the worker dies | the next delivery |
//! |---|---|
//! | before the claim of the key | is the first attempt |
//! | after the claim | waits for the lease, and takes over |
//! | after the effect, before the record | does too, and asks the bank again: see `bank.rs` |
//! | after the record, before the acknowledgement | gets the recorded result, and acknowledges |

use std::{fmt, sync::Arc, time::Duration};

use redis::{
    AsyncCommands as _, FromRedisValue, Script,
    aio::ConnectionManager,
    streams::{
        StreamAutoClaimOptions, StreamAutoClaimReply, StreamId, StreamPendingCountReply,
        StreamReadOptions, StreamReadReply,
    },
};
use tokio::{task::JoinSet, time::timeout};
use tower_idempotency::{
    Execution, OnConflict, Operation, Outcome, RedisStore, RunError, function::Effect,
};

use crate::{
    Failure, Flags, Point, STREAM,
    bank::{Bank, Entry},
    stop::Stop,
};

pub(crate) const GROUP: &str = "workers";
/// Where messages go that nobody can work on.
pub(crate) const DEAD: &str = "payments:dead";
/// How many deliveries there were, for the reader.
pub(crate) const DELIVERIES: &str = "payments:deliveries";

/// How long one reading waits for new messages. Then it looks again for those of dead workers, and
/// whether to stop.
pub(crate) const BLOCK: Duration = Duration::from_millis(500);

/// How long a stop waits for what is in hand.
const STOP: Duration = Duration::from_secs(30);

pub(crate) struct Consumer {
    name: String,
    redis: ConnectionManager,
    reader: ConnectionManager,
    payments: Operation,
    bank: Bank,
    batch: usize,
    delay: Duration,
    idle: Duration,
    deliveries: u64,
    die: Option<Point>,
}

/// A message, and how often it was delivered.
struct Delivery {
    message: StreamId,
    count: u64,
}

/// What a message asks for.
struct Order {
    name: String,
    merchant: String,
    cents: u32,
    /// What is to go wrong.
    simulate: Option<String>,
}

/// What becomes of a delivery.
enum Fate {
    /// It is done and recorded, now or before.
    Done(String),
    /// It stays pending, and so is delivered again.
    Again(String),
    /// No delivery will make it succeed.
    SetAside(String),
}

impl Consumer {
    pub(crate) fn new(
        name: &str,
        redis: ConnectionManager,
        reader: ConnectionManager,
        store: RedisStore<ConnectionManager>,
        bank: Bank,
        flags: &Flags,
    ) -> Self {
        let lease = Duration::from_millis(flags.lease_ms);
        let payments = Operation::new("payment", store)
            .lease(lease)
            // Longer than a lease: a message of a dead worker is taken over by the delivery that
            // meets it, and not put off once more.
            .on_conflict(OnConflict::Wait(lease + Duration::from_secs(5)))
            // Longer than the stream keeps a message, and a producer sends one again.
            .ttl(Duration::from_secs(7 * 24 * 60 * 60));
        Self {
            name: name.to_owned(),
            redis,
            reader,
            payments,
            bank,
            batch: flags.batch.into(),
            delay: Duration::from_millis(flags.delay_ms),
            idle: Duration::from_millis(flags.idle_ms),
            deliveries: flags.deliveries,
            die: flags.die,
        }
    }

    /// Works until it is to stop, and ends then what it has in hand.
    pub(crate) async fn run(self, stop: Stop) -> Result<(), Failure> {
        let this = Arc::new(self);
        this.create_group().await?;
        println!("{} works", this.name);
        let patience = async {
            stop.clone().asked().await;
            tokio::time::sleep(STOP).await;
        };
        tokio::select! {
            () = this.work(stop.clone()) => println!("{} has stopped", this.name),
            () = patience => {
                return Err("some work does not end; its messages are delivered again".into());
            }
        }
        Ok(())
    }

    /// What Redis refuses, or a Redis that is away, ends nothing.
    async fn work(self: &Arc<Self>, mut stop: Stop) {
        let mut in_hand = JoinSet::new();
        let mut cursor = "0-0".to_owned();
        while !stop.is_asked() {
            if in_hand.len() >= self.batch {
                in_hand.join_next().await.into_iter().for_each(tell);
                continue;
            }
            match self.take(&mut cursor, self.batch - in_hand.len()).await {
                Ok(deliveries) => {
                    for delivery in deliveries {
                        // A worker that dies takes down what else it has in hand. The last
                        // delivery is alone, so that none is set aside for another's fault.
                        let alone = delivery.count >= self.deliveries;
                        if alone {
                            all_end(&mut in_hand).await;
                        }
                        let this = Arc::clone(self);
                        in_hand.spawn(async move { this.work_on(delivery).await });
                        if alone {
                            all_end(&mut in_hand).await;
                        }
                    }
                }
                Err(error) => {
                    eprintln!("{}: nothing to read: {error}", self.name);
                    let _ = timeout(Duration::from_secs(1), stop.asked()).await;
                    // A Redis that lost its data has no group either.
                    let _ = self.create_group().await;
                }
            }
            while let Some(ended) = in_hand.try_join_next() {
                tell(ended);
            }
        }
        all_end(&mut in_hand).await;
        // And records that the store has yet to take.
        self.payments.drain().await;
    }

    /// From the first message on, so that what was sent before there was a worker is read.
    async fn create_group(&self) -> Result<(), Failure> {
        let mut redis = self.redis.clone();
        let created: Result<(), _> = redis.xgroup_create_mkstream(STREAM, GROUP, "0").await;
        match created {
            Err(error) if error.code() != Some("BUSYGROUP") => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Takes one message that was left by another, or up to `count` new ones.
    async fn take(&self, cursor: &mut String, count: usize) -> Result<Vec<Delivery>, Failure> {
        let mut reader = self.reader.clone();
        let idle = self.idle.as_millis() as u64;
        let options = StreamAutoClaimOptions::default().count(1);
        let left: StreamAutoClaimReply = reader
            .xautoclaim_options(STREAM, GROUP, &self.name, idle, &*cursor, options)
            .await?;
        // It looks at a part of what is pending at a time, and says where to go on.
        *cursor = left.next_stream_id;
        let mut taken = Vec::new();
        for message in left.claimed {
            let id = &message.id;
            let pending: StreamPendingCountReply =
                reader.xpending_count(STREAM, GROUP, id, id, 1).await?;
            // Otherwise it was acknowledged meanwhile.
            if let Some(found) = pending.ids.first() {
                let count = found.times_delivered as u64;
                taken.push(Delivery { message, count });
            }
        }
        if taken.is_empty() {
            let options = StreamReadOptions::default()
                .group(GROUP, &self.name)
                .count(count)
                .block(BLOCK.as_millis() as usize);
            let new: Option<StreamReadReply> =
                reader.xread_options(&[STREAM], &[">"], &options).await?;
            let new = new.into_iter().flat_map(|reply| reply.keys);
            let new = new.flat_map(|stream| stream.ids);
            taken.extend(new.map(|message| Delivery { message, count: 1 }));
        }
        if !taken.is_empty() {
            // Whoever takes messages works on them, also where they cannot be counted.
            let _: redis::RedisResult<()> = reader.incr(DELIVERIES, taken.len()).await;
            Point::Taken.dies(self.die, &self.name);
        }
        Ok(taken)
    }

    async fn work_on(self: Arc<Self>, delivery: Delivery) {
        let fate = match Order::read(&delivery.message) {
            Ok(order) => self.pay_once(order, delivery.count).await,
            Err(reason) => Fate::SetAside(reason.to_owned()),
        };
        let id = &delivery.message.id;
        println!("{}: {id}, delivery {}: {fate}", self.name, delivery.count);
        let mut redis = self.redis.clone();
        let told: Result<(), redis::RedisError> = match fate {
            Fate::Done(_) => {
                Point::Recorded.dies(self.die, &self.name);
                redis.xack(STREAM, GROUP, &[id]).await
            }
            Fate::Again(_) => Ok(()),
            Fate::SetAside(reason) => self.set_aside(&delivery, &reason).await,
        };
        if let Err(error) = told {
            // It stays pending. The next delivery finds the record, or sets it aside.
            eprintln!("{}: {id} is delivered again: {error}", self.name);
        }
    }

    /// The heart of it. The key is the order's own name: the id of the message would be another one
    /// each time that the producer sends.
    async fn pay_once(self: &Arc<Self>, order: Order, count: u64) -> Fate {
        let name = order.name.clone();
        let this = Arc::clone(self);
        let call = self
            .payments
            .call(&name)
            // Merchants name their orders themselves, and two may choose the same name.
            .scope(&order.merchant)
            .input(&order.cents);
        let result = call.run_judged(
            move |execution| async move { this.pay(execution, order, count).await },
            |error| match error {
                // A corrected message may come under the same name.
                PayError::Declined => Effect::None,
                PayError::TooOften | PayError::Bank(_) => Effect::Unknown,
            },
        );
        match result.await {
            // The result is not on record yet. Should this process die first, it had better be
            // delivered again.
            Ok(done) if done.outcome() == Outcome::Unrecorded => {
                Fate::Again(format!("{name}: {}, to be recorded", done.value()))
            }
            Ok(done) if done.is_replayed() => {
                Fate::Done(format!("{name}: recorded before: {}", done.value()))
            }
            Ok(done) => Fate::Done(format!("{name}: {}", done.value())),
            Err(RunError::NotReplayable) => Fate::Done(format!("{name}: done before")),
            Err(RunError::Work(error @ PayError::TooOften)) => {
                Fate::SetAside(format!("{name}: {error}"))
            }
            Err(RunError::Work(error)) if count >= self.deliveries => {
                Fate::SetAside(format!("{name}: {error}"))
            }
            Err(RunError::Work(error)) => Fate::Again(format!("{name}: {error}")),
            Err(error) if error.is_retryable() => Fate::Again(format!("{name}: {error}")),
            // Another order under this name, or no name at all.
            Err(error) => Fate::SetAside(format!("{name}: {error}")),
        }
    }

    /// The work of one attempt.
    async fn pay(
        &self,
        execution: Execution,
        order: Order,
        count: u64,
    ) -> Result<String, PayError> {
        // It ended its workers each time, or there would be an error or a record. Looked at here
        // and not before, since what is recorded is done, however often it is delivered.
        if count > self.deliveries {
            return Err(PayError::TooOften);
        }
        tokio::time::sleep(self.delay).await;
        match order.simulate.as_deref() {
            Some("decline") => return Err(PayError::Declined),
            Some("crash") => {
                println!("{} dies of {}", self.name, order.name);
                std::process::abort();
            }
            _ => {}
        }
        let entry = Entry {
            what: order.name,
            merchant: order.merchant,
            cents: order.cents.into(),
        };
        // The same in each attempt, and also where the record was lost.
        let key = execution.derive("payment");
        let repeated = self.bank.book(&key, &entry).await.map_err(PayError::Bank)?;
        Point::Paid.dies(self.die, &self.name);
        tokio::time::sleep(self.delay).await;
        Ok(match repeated {
            false => format!("paid {} cents", entry.cents),
            true => format!("{} cents were paid by one that died", entry.cents),
        })
    }

    /// Moves a message to the dead letters, with the reason: once, whoever else does so too.
    async fn set_aside(&self, delivery: &Delivery, reason: &str) -> redis::RedisResult<()> {
        let script = Script::new(
            r"
            if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then
                redis.call('XADD', KEYS[2], '*', unpack(ARGV, 3))
            end
            ",
        );
        let mut call = script.key(&[STREAM, DEAD]);
        call.arg(GROUP).arg(&delivery.message.id);
        call.arg("id").arg(&delivery.message.id);
        call.arg("reason").arg(reason);
        call.arg("deliveries").arg(delivery.count);
        for (field, value) in &delivery.message.map {
            call.arg(field).arg(Vec::<u8>::from_redis_value_ref(value)?);
        }
        call.invoke_async(&mut self.redis.clone()).await
    }
}

async fn all_end(in_hand: &mut JoinSet<()>) {
    while let Some(ended) = in_hand.join_next().await {
        tell(ended);
    }
}

/// What a panic in the work leaves is delivered again.
fn tell(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        eprintln!("a message is delivered again: {error}");
    }
}

impl Order {
    fn read(message: &StreamId) -> Result<Self, &'static str> {
        let name = message.get("order").ok_or("no order is named")?;
        let merchant = message.get("merchant").ok_or("no merchant is named")?;
        let cents = message
            .get("cents")
            .ok_or("no cents, or no number of them")?;
        Ok(Self {
            name,
            merchant,
            cents,
            simulate: message.get("simulate"),
        })
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(what) => f.write_str(what),
            Self::Again(what) => write!(f, "{what}; it is delivered again"),
            Self::SetAside(what) => write!(f, "{what}; it is set aside"),
        }
    }
}

/// Why an order was not paid.
#[derive(Debug)]
enum PayError {
    /// Nothing was done, for certain.
    Declined,
    /// Its workers died of it.
    TooOften,
    /// Whether it paid is unknown.
    Bank(redis::RedisError),
}

impl fmt::Display for PayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Declined => f.write_str("the bank declines it"),
            Self::TooOften => f.write_str("its workers die of it"),
            Self::Bank(error) => write!(f, "the bank does not answer: {error}"),
        }
    }
}
