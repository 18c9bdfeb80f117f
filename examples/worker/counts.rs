//! What there is to count, in the bank's books and in the stream.

use redis::{
    AsyncCommands as _,
    aio::ConnectionManager,
    streams::{StreamInfoGroupsReply, StreamInfoStreamReply, StreamPendingReply},
};

use crate::{
    Failure, STREAM,
    bank::Bank,
    consumer::{DEAD, DELIVERIES, GROUP},
};

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) messages: u64,
    pub(crate) deliveries: u64,
    pub(crate) dead: u64,
    /// Of orders: how often the bank was asked, and how often it paid.
    pub(crate) asked: u64,
    pub(crate) paid: u64,
    pub(crate) payouts_asked: u64,
    pub(crate) payouts: u64,
}

impl Counts {
    pub(crate) async fn read(mut redis: ConnectionManager) -> Result<Self, Failure> {
        let deliveries: Option<u64> = redis.get(DELIVERIES).await?;
        let mut counts = Self {
            messages: redis.xlen(STREAM).await?,
            deliveries: deliveries.unwrap_or_default(),
            dead: redis.xlen(DEAD).await?,
            ..Self::default()
        };
        for (entry, calls) in Bank::new(redis).entries().await? {
            if entry.cents < 0 {
                counts.payouts += 1;
                counts.payouts_asked += calls;
            } else {
                counts.paid += 1;
                counts.asked += calls;
            }
        }
        Ok(counts)
    }

    pub(crate) fn print(&self) {
        let Self {
            messages,
            deliveries,
            dead,
            asked,
            paid,
            payouts_asked,
            payouts,
        } = self;
        println!("{messages} messages, {deliveries} deliveries, {dead} set aside");
        println!("payments: the bank was asked {asked} times, and paid {paid}");
        println!("payouts: the bank was asked {payouts_asked} times, and paid {payouts}");
    }
}

/// Whether every message was delivered, and each is acknowledged.
pub(crate) async fn is_all_done(redis: &mut ConnectionManager) -> Result<bool, Failure> {
    let stream: StreamInfoStreamReply = redis.xinfo_stream(STREAM).await?;
    let groups: StreamInfoGroupsReply = redis.xinfo_groups(STREAM).await?;
    let group = groups.groups.iter().find(|group| group.name == GROUP);
    if group.is_none_or(|group| group.last_delivered_id != stream.last_generated_id) {
        return Ok(false);
    }
    let pending: StreamPendingReply = redis.xpending(STREAM, GROUP).await?;
    Ok(pending.count() == 0)
}
