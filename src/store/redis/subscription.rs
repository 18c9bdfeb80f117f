//! One subscription for all who wait.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::{
    StreamExt,
    future::{Either, select},
};
use redis::{
    Client, RedisError,
    aio::{PubSubSink, PubSubStream},
};
use tokio::time::{sleep, timeout};

use crate::{
    key::StoreKey,
    store::{
        contract::jittered,
        wakes::{Listener, WakeId, Wakes},
    },
};

/// Where scripts tell of ends. The scripts hold the name too.
const CHANNEL: &str = "tower-idempotency";

/// How long the server has to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often the connection is asked whether it is there.
const BEAT: Duration = Duration::from_secs(1);

/// After so many beats without a waiter the subscription ends.
const LINGER: u8 = 5;

/// The pause before the next attempt to subscribe: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Who waits, and the task that hears for them. There is one while somebody waits, and a few
/// seconds after.
pub(super) struct Subscription(Arc<Shared>);

struct Shared {
    client: Client,
    wakes: Wakes,
    /// Whether a wake will be heard.
    up: AtomicBool,
    /// Whether there is a task.
    running: Mutex<bool>,
}

impl Subscription {
    pub(super) fn new(client: Client) -> Self {
        Self(Arc::new(Shared {
            client,
            wakes: Wakes::default(),
            up: AtomicBool::new(false),
            running: Mutex::new(false),
        }))
    }

    pub(super) fn listen(&self, key: &StoreKey) -> Listener {
        self.0.wakes.listen(WakeId::of(key))
    }

    /// Whether whoever listens hears of every end from now on, unless the connection breaks: once it
    /// does so again, all are woken. Subscribes where that is not under way.
    pub(super) fn is_up(&self) -> bool {
        let mut running = lock(&self.0.running);
        if !*running {
            *running = true;
            let task = Task {
                shared: Arc::clone(&self.0),
                ended: false,
            };
            tokio::spawn(task.run());
        }
        self.0.up.load(SeqCst)
    }

    #[cfg(feature = "testing")]
    pub(super) fn wake_all(&self) {
        self.0.wakes.wake_all();
    }
}

struct Task {
    shared: Arc<Shared>,
    ended: bool,
}

impl Task {
    async fn run(mut self) {
        let mut pause = PAUSES.0;
        loop {
            if let Ok(Ok((sink, messages))) = timeout(PATIENCE, self.subscribe()).await {
                pause = PAUSES.0;
                self.shared.up.store(true, SeqCst);
                // What ended before was not heard.
                self.shared.wakes.wake_all();
                self.hear(sink, messages).await;
                if self.ended {
                    return;
                }
                self.shared.up.store(false, SeqCst);
                // They poll meanwhile.
                self.shared.wakes.wake_all();
            }
            if self.end_if_idle() {
                return;
            }
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn subscribe(&self) -> Result<(PubSubSink, PubSubStream), RedisError> {
        let mut connection = self.shared.client.get_async_pubsub().await?;
        connection.subscribe(CHANNEL).await?;
        Ok(connection.split())
    }

    /// Until the connection breaks, or nobody has waited for a while.
    async fn hear(&mut self, mut sink: PubSubSink, mut messages: PubSubStream) {
        let mut idle = 0;
        let mut beat = Box::pin(sleep(BEAT));
        loop {
            match select(messages.next(), beat.as_mut()).await {
                Either::Left((Some(message), _)) => {
                    if let Some(id) = WakeId::parse(message.get_payload_bytes()) {
                        self.shared.wakes.wake(id);
                    }
                }
                Either::Left((None, _)) => return,
                Either::Right(_) => {
                    idle = match self.shared.wakes.is_empty() {
                        true => idle + 1,
                        false => 0,
                    };
                    if idle >= LINGER && self.end_if_idle() {
                        return;
                    }
                    // A connection can hang without breaking.
                    let pong = timeout(PATIENCE, sink.ping::<redis::Value>());
                    if !matches!(pong.await, Ok(Ok(_))) {
                        return;
                    }
                    beat.set(sleep(BEAT));
                }
            }
        }
    }

    /// Whoever comes after this starts another task.
    fn end_if_idle(&mut self) -> bool {
        let mut running = lock(&self.shared.running);
        // Who waits registers before asking whether a task is running.
        if self.shared.wakes.is_empty() {
            self.shared.up.store(false, SeqCst);
            *running = false;
            self.ended = true;
        }
        self.ended
    }
}

/// Where the runtime ends before its task, that of another waiter takes over.
impl Drop for Task {
    fn drop(&mut self) {
        if !self.ended {
            let mut running = lock(&self.shared.running);
            self.shared.up.store(false, SeqCst);
            *running = false;
            drop(running);
            self.shared.wakes.wake_all();
        }
    }
}

fn lock(running: &Mutex<bool>) -> MutexGuard<'_, bool> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}
