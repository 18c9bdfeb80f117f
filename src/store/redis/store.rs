//! [`RedisStore`]: records in Redis or Valkey, for many servers.

use std::{
    fmt,
    future::pending,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::Either;
use redis::{Client, Value, aio::ConnectionLike};
use tokio::time::timeout;

use super::{
    error::{NAME, is_broken, store_error},
    layout::{Reply, Unreadable, claimed, digest},
    script::{self, Script},
    subscription::Subscription,
};
use crate::{
    key::StoreKey,
    machine::{self, Change, Refused, Step},
    record::{Claim, ClaimRequest, FencingToken, Lease, Payload, Record, Snapshot, Timestamp},
    store::{
        contract::{Store, StoreError, jittered},
        wakes::WakeId,
    },
    telemetry,
};

#[doc = include_str!("store.md")]
#[derive(Clone)]
pub struct RedisStore<C> {
    connection: C,
    subscription: Option<Arc<Subscription>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Whether the server was asked which keys it drops.
    asked: AtomicBool,
    /// What is added to the server's clock, in µs. Only tests add anything.
    ahead: AtomicU64,
}

/// While nothing is heard of the record a wait reads it after this at first, and after
/// [`LONGEST_PAUSE`] at most.
const FIRST_PAUSE: Duration = Duration::from_millis(25);

/// A wait that relies on messages reads the record after this all the same, since one can be lost.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long the server has to say which keys it drops. Nobody waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

impl<C> RedisStore<C> {
    /// Records behind this connection. It sends nothing yet.
    #[must_use]
    pub fn new(connection: C) -> Self {
        Self {
            connection,
            subscription: None,
            shared: Arc::default(),
        }
    }

    /// Lets who waits be woken by a message: the store subscribes over a connection of its own,
    /// which `client` opens, while somebody waits. Without it, waiting polls.
    ///
    /// The client is for the same server, for its primary or a replica of it, or for any node of the
    /// same cluster, since they pass messages on to one another. A connection that breaks is opened
    /// again, after 50 ms at first and 5 s at most; until then waiting polls. Make clones after this
    /// call: earlier ones go on polling.
    #[must_use]
    pub fn with_client(mut self, client: Client) -> Self {
        self.subscription = Some(Arc::new(Subscription::new(client)));
        self
    }

    /// Moves the store's clock forward, for tests of what happens later: this handle and its clones
    /// add to what the server's clock says. The server itself knows nothing of it, so it drops no
    /// record earlier.
    #[cfg(feature = "testing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn advance_clock(&self, by: Duration) {
        let ahead = &self.shared.ahead;
        let _ = ahead.fetch_update(Relaxed, Relaxed, |ahead| {
            Some(ahead.saturating_add(micros_of(by)))
        });
        // Whoever waits for the end of a lease had better look again.
        if let Some(subscription) = &self.subscription {
            subscription.wake_all();
        }
    }
}

/// Without the connection, which may show an address or a password.
impl<C> fmt::Debug for RedisStore<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("subscribes", &self.subscription.is_some())
            .finish_non_exhaustive()
    }
}

impl<C> RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    /// Runs a script once; and again where the connection broke under it, if the operation can be
    /// sent again. A connection that opens itself anew carries the second one.
    async fn run(
        &self,
        script: &Script,
        key: &StoreKey,
        arguments: &[&[u8]],
        again: bool,
    ) -> Result<Reply, StoreError> {
        let ahead = self.shared.ahead.load(Relaxed).to_string();
        let arguments = &[&[ahead.as_bytes()], arguments].concat();
        let mut connection = self.connection.clone();
        let value = match script.run(&mut connection, key, arguments).await {
            Err(error) if again && is_broken(&error) => {
                script.run(&mut connection, key, arguments).await
            }
            answer => answer,
        };
        Reply::read(value.map_err(store_error)?).map_err(corrupt)
    }

    /// Runs a script that answers nothing but whether it did what it was asked. If not, the machine
    /// says why, with the record that the script found.
    async fn change(
        &self,
        script: &Script,
        key: &StoreKey,
        arguments: &[&[u8]],
        machine: impl FnOnce(Option<&Record>, Timestamp) -> Step<Result<(), Refused>> + Send,
    ) -> Result<(), StoreError> {
        match self.run(script, key, arguments, true).await? {
            Reply::Done(_) => Ok(()),
            Reply::Kept(record, now) => Ok(explained(machine(record.as_ref(), now))??),
        }
    }

    async fn stop(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
        how: &str,
        machine: impl FnOnce(Option<&Record>, Timestamp) -> Step<Result<(), Refused>> + Send,
    ) -> Result<(), StoreError> {
        let (whom, owner) = (WakeId::of(key).to_string(), lease.owner.to_string());
        let ttl = micros_of(ttl).to_string();
        let arguments = [&whom, &owner, &ttl, how].map(str::as_bytes);
        self.change(&script::STOP, key, &arguments, machine).await
    }

    /// Asks the server once, in the background, whether it drops keys before their time when its
    /// memory is full. One that does not tell is not asked again.
    fn ask_what_is_dropped(&self) {
        if !telemetry::EVENTS || self.shared.asked.swap(true, SeqCst) {
            return;
        }
        let mut connection = self.connection.clone();
        tokio::spawn(async move {
            let mut ask = redis::cmd("CONFIG");
            ask.arg("GET").arg("maxmemory-policy");
            let asked = timeout(PATIENCE, ask.query_async::<Value>(&mut connection)).await;
            if let Ok(Ok(answer)) = asked
                && let Some(policy) = evicting(&answer)
            {
                telemetry::evicting(NAME, policy);
            }
        });
    }
}

#[async_trait]
impl<C> Store for RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    async fn claim(&self, key: &StoreKey, request: &ClaimRequest) -> Result<Claim, StoreError> {
        let (owner, digest) = (request.owner.to_string(), digest(&request.fingerprint));
        let lease = micros_of(request.lease).to_string();
        let ttl = micros_of(request.ttl).to_string();
        let algorithm = request.fingerprint.algorithm();
        let take_over = if request.take_over { "1" } else { "0" };
        let arguments = [&owner, algorithm, &digest, &lease, &ttl, take_over].map(str::as_bytes);
        match self.run(&script::CLAIM, key, &arguments, true).await? {
            Reply::Done(told) => {
                self.ask_what_is_dropped();
                let claimed = claimed(told, request.owner, request.fingerprint);
                Ok(Claim::Claimed(claimed.map_err(corrupt)?))
            }
            Reply::Kept(record, now) => explained(machine::claim(record.as_ref(), now, request)),
        }
    }

    async fn renew(
        &self,
        key: &StoreKey,
        lease: &Lease,
        lease_for: Duration,
        ttl: Duration,
        checkpoint: Option<Bytes>,
    ) -> Result<(), StoreError> {
        let (whom, owner) = (WakeId::of(key).to_string(), lease.owner.to_string());
        let lease_micros = micros_of(lease_for).to_string();
        let ttl_micros = micros_of(ttl).to_string();
        let mut arguments = [&whom, &owner, &lease_micros, &ttl_micros]
            .map(|argument| argument.as_bytes())
            .to_vec();
        arguments.extend(checkpoint.as_deref());
        self.change(&script::RENEW, key, &arguments, |record, now| {
            machine::renew(record, now, lease, lease_for, ttl, checkpoint.clone())
        })
        .await
    }

    async fn complete(
        &self,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let arguments = [
            WakeId::of(key).to_string(),
            lease.owner.to_string(),
            lease.token.to_string(),
            lease.attempt.to_string(),
            lease.fingerprint.algorithm().to_owned(),
            digest(&lease.fingerprint),
            micros_of(ttl).to_string(),
            payload.code.to_string(),
        ];
        let mut arguments: Vec<&[u8]> = arguments.iter().map(String::as_bytes).collect();
        arguments.push(&payload.bytes);
        self.change(&script::COMPLETE, key, &arguments, |record, now| {
            machine::complete(record, now, lease, payload, ttl)
        })
        .await
    }

    async fn fail(&self, key: &StoreKey, lease: &Lease, ttl: Duration) -> Result<(), StoreError> {
        self.stop(key, lease, ttl, "fail", |record, now| {
            machine::fail(record, now, lease, ttl)
        })
        .await
    }

    async fn release(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.stop(key, lease, ttl, "release", |record, now| {
            machine::release(record, now, lease, ttl)
        })
        .await
    }

    async fn give_back(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.stop(key, lease, ttl, "give_back", |record, now| {
            machine::give_back(record, now, lease, ttl)
        })
        .await
    }

    async fn get(&self, key: &StoreKey) -> Result<Option<Snapshot>, StoreError> {
        match self.run(&script::GET, key, &[], true).await? {
            Reply::Done(_) => Err(corrupt(Unreadable("reply"))),
            Reply::Kept(record, now) => Ok(machine::get(record.as_ref(), now)),
        }
    }

    async fn forget(&self, key: &StoreKey) -> Result<bool, StoreError> {
        let whom = WakeId::of(key).to_string();
        // Sent again it would say that there was nothing.
        match self
            .run(&script::FORGET, key, &[whom.as_bytes()], false)
            .await?
        {
            Reply::Done(told) => Ok(matches!(told[..], [Value::Int(1)])),
            Reply::Kept(..) => Err(corrupt(Unreadable("reply"))),
        }
    }

    async fn wait(
        &self,
        key: &StoreKey,
        token: FencingToken,
    ) -> Result<Option<Snapshot>, StoreError> {
        let subscription = self.subscription.as_deref();
        // Before the first look: an end that falls behind it is heard.
        let mut listener = subscription.map(|subscription| subscription.listen(key));
        let mut pause = FIRST_PAUSE;
        loop {
            let is_up = subscription.is_some_and(Subscription::is_up);
            let Some(found) = self.get(key).await? else {
                return Ok(None);
            };
            let (record, now) = (&found.record, found.now);
            if machine::is_over(Some(record), now, token) {
                return Ok(Some(found));
            }
            if is_up {
                pause = LONGEST_PAUSE;
            }
            let ends = record.lease_until.min(record.expires_at).since(now);
            let woken = match &mut listener {
                Some(listener) => Either::Left(listener.woken()),
                None => Either::Right(pending()),
            };
            // Either way it is time to look again.
            let _ = timeout(jittered(pause).min(ends), woken).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// What the machine says of a record that a script left alone.
fn explained<T>(step: Step<T>) -> Result<T, StoreError> {
    match step.change {
        Change::Keep => Ok(step.reply),
        // The script would have done that, could it read the record.
        Change::Put(_) | Change::Remove => Err(corrupt(Unreadable("record"))),
    }
}

fn corrupt(unreadable: Unreadable) -> StoreError {
    StoreError::corrupt(NAME, unreadable)
}

fn micros_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The policy in the answer of one server, or of several, if it is not to keep everything.
fn evicting(answer: &Value) -> Option<&str> {
    match answer {
        Value::BulkString(text) => {
            let text = std::str::from_utf8(text).ok()?;
            let drops = text.starts_with("allkeys-") || text.starts_with("volatile-");
            drops.then_some(text)
        }
        Value::Array(values) => values.iter().find_map(evicting),
        Value::Map(pairs) => pairs.iter().find_map(|(_, value)| evicting(value)),
        _ => None,
    }
}
