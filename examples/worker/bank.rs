//! The effect: money that moves, in a bank whose books say how often it did.
//!
//! It is outside of the store of records, as effects are. So a process can die after the effect and
//! before the record, and whoever takes over cannot know that it was done: it is asked for again.
//! The record makes it happen at least once in that case, and once in every other. That it happens
//! once in all of them takes the bank: it looks for the key of the call and moves the money in one
//! step, here a script, in a database an `INSERT` under a unique key in the transaction that moves
//! the money, with a payment provider its idempotency key. Looking first and paying then would leave
//! a gap, as would a checkpoint: it narrows it, and says what was done, but is written after it.

use std::collections::BTreeMap;

use redis::{AsyncCommands as _, RedisResult, Script, aio::ConnectionManager};
use serde::{Deserialize, Serialize};

/// What was done, by the key it was done under.
const ENTRIES: &str = "bank:entries";
/// How often each key came.
const CALLS: &str = "bank:calls";
const BALANCES: &str = "bank:balances";

/// One movement of money.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// What for: an order, a settlement.
    pub(crate) what: String,
    pub(crate) merchant: String,
    pub(crate) cents: i64,
}

#[derive(Clone)]
pub(crate) struct Bank {
    redis: ConnectionManager,
}

impl Bank {
    pub(crate) fn new(redis: ConnectionManager) -> Self {
        Self { redis }
    }

    /// Moves the money, unless it has under this key. Says whether it had.
    pub(crate) async fn book(&self, key: &str, entry: &Entry) -> RedisResult<bool> {
        let booked: bool = Script::new(
            r"
            redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
            if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then
                return 0
            end
            redis.call('HINCRBY', KEYS[3], ARGV[3], ARGV[4])
            return 1
            ",
        )
        .key(&[ENTRIES, CALLS, BALANCES])
        .arg(key)
        .arg(serde_json::to_string(entry).map_err(std::io::Error::from)?)
        .arg(&entry.merchant)
        .arg(entry.cents)
        .invoke_async(&mut self.redis.clone())
        .await?;
        Ok(!booked)
    }

    pub(crate) async fn balances(&self) -> RedisResult<BTreeMap<String, i64>> {
        self.redis.clone().hgetall(BALANCES).await
    }

    /// Every entry, with the number of times that it was asked for.
    pub(crate) async fn entries(&self) -> Result<Vec<(Entry, u64)>, crate::Failure> {
        let mut redis = self.redis.clone();
        let calls: BTreeMap<String, u64> = redis.hgetall(CALLS).await?;
        let entries: BTreeMap<String, String> = redis.hgetall(ENTRIES).await?;
        let mut read = Vec::with_capacity(entries.len());
        for (key, entry) in entries {
            let calls = calls.get(&key).copied().unwrap_or_default();
            read.push((serde_json::from_str(&entry)?, calls));
        }
        Ok(read)
    }
}
