//! Hears from the server that a claim has ended: one connection for all waiters of a store.
//!
//! A message takes a lock of the whole server until its transaction is committed, so one is sent
//! only if somebody waits. A key belongs to one of 256 buckets; who waits holds the bucket's
//! advisory lock, shared, on this connection. Who ends a claim tries the same lock, exclusively,
//! until its transaction ends: it sends a message if it does not get the lock. So an end that is not
//! told of is committed before a waiter gets the lock, and a waiter reads the record after that.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::{Either, select};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

use crate::store::wakes::{WakeId, Wakes};

/// How long the connection stays when nobody waits.
const LINGER: Duration = Duration::from_secs(10);

/// After this a server counts as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts the task that listens, when somebody waits.
pub(super) struct Listening {
    line: Arc<Line>,
    asking: Mutex<Option<mpsc::UnboundedSender<Ask>>>,
}

struct Line {
    options: Arc<PgConnectOptions>,
    channel: String,
    class: i32,
    wakes: Wakes,
}

struct Ask {
    bucket: u8,
    wish: Wish,
}

enum Wish {
    Hold(oneshot::Sender<Hold>),
    Release,
}

/// While this is good, each end of a claim in its bucket wakes who waits for that claim.
pub(super) struct Hold {
    bucket: u8,
    asking: mpsc::UnboundedSender<Ask>,
}

impl Hold {
    /// Whether the connection is the same still.
    pub(super) fn is_good(&self) -> bool {
        !self.asking.is_closed()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Fails where the connection is gone, and the lock with it.
        let _ = self.asking.send(Ask {
            bucket: self.bucket,
            wish: Wish::Release,
        });
    }
}

impl Listening {
    pub(super) fn new(
        options: Arc<PgConnectOptions>,
        channel: String,
        class: i32,
        wakes: Wakes,
    ) -> Self {
        let line = Arc::new(Line {
            options,
            channel,
            class,
            wakes,
        });
        Self {
            line,
            asking: Mutex::default(),
        }
    }

    /// Nothing where the server does not let us: the connection fails or takes longer than this, or
    /// somebody is just ending a claim in this bucket.
    pub(super) async fn hold(&self, bucket: u8, patience: Duration) -> Option<Hold> {
        let (grant, granted) = oneshot::channel();
        self.ask(Ask {
            bucket,
            wish: Wish::Hold(grant),
        });
        timeout(patience, granted).await.ok()?.ok()
    }

    fn ask(&self, ask: Ask) {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let ask = match &*asking {
            None => ask,
            Some(asking) => match asking.send(ask) {
                Ok(()) => return,
                Err(refused) => refused.0,
            },
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(listen(Arc::clone(&self.line), receiver, sender.downgrade()));
        let _ = sender.send(ask);
        *asking = Some(sender);
    }
}

/// Listens until nobody waits any more, the store is gone, or the connection fails. Waiters see
/// that by the channel, which closes: they look again, and ask again.
async fn listen(
    line: Arc<Line>,
    mut asked: mpsc::UnboundedReceiver<Ask>,
    asking: mpsc::WeakUnboundedSender<Ask>,
) {
    /// In whatever way this ends: messages may have been missed.
    struct Ends(Arc<Line>);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.wakes.wake_all();
        }
    }
    let ends = Ends(Arc::clone(&line));
    let Ok(Ok((pool, mut listener))) = timeout(PATIENCE, connect(&line)).await else {
        drop((asked, ends));
        return;
    };
    let served = serve(&line, &mut listener, &mut asked, &asking).await;
    // The channel closes before waiters wake.
    drop((asked, ends));
    drop(listener);
    if served.is_ok() {
        pool.close().await;
    }
}

async fn connect(line: &Line) -> Result<(PgPool, PgListener), sqlx::Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(PATIENCE)
        .connect_with((*line.options).clone())
        .await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    // Whoever relied on the connection that was lost is to know.
    listener.eager_reconnect(false);
    listener.listen(&line.channel).await?;
    Ok((pool, listener))
}

/// The connection is no good any more.
struct Lost;

async fn serve(
    line: &Line,
    listener: &mut PgListener,
    asked: &mut mpsc::UnboundedReceiver<Ask>,
    asking: &mpsc::WeakUnboundedSender<Ask>,
) -> Result<(), Lost> {
    let mut holds: HashMap<u8, usize> = HashMap::new();
    let mut idle_since = Instant::now();
    loop {
        let next = {
            let told = pin!(listener.try_recv());
            let asked = pin!(async {
                if holds.is_empty() {
                    timeout_at(idle_since + LINGER, asked.recv()).await.ok()?
                } else {
                    asked.recv().await
                }
            });
            match select(asked, told).await {
                Either::Left((ask, _)) => Either::Left(ask),
                Either::Right((message, _)) => Either::Right(message),
            }
        };
        match next {
            Either::Right(Ok(Some(message))) => {
                if let Some(id) = WakeId::parse(message.payload().as_bytes()) {
                    line.wakes.wake(id);
                }
            }
            Either::Right(Ok(None) | Err(_)) => return Err(Lost),
            Either::Left(None) => return Ok(()),
            Either::Left(Some(Ask { bucket, wish })) => {
                let held = holds.get(&bucket).copied().unwrap_or(0);
                match wish {
                    Wish::Hold(grant) => {
                        let Some(asking) = asking.upgrade() else {
                            return Ok(());
                        };
                        if held > 0 || lock(line, listener, bucket, true).await? {
                            holds.insert(bucket, held + 1);
                            // Where nobody takes it, it is released like any other.
                            let _ = grant.send(Hold { bucket, asking });
                        }
                    }
                    Wish::Release if held > 1 => drop(holds.insert(bucket, held - 1)),
                    Wish::Release => {
                        holds.remove(&bucket);
                        lock(line, listener, bucket, false).await?;
                    }
                }
                idle_since = Instant::now();
            }
        }
    }
}

/// Takes the bucket's lock, if it is to be had at once, or lets it go.
async fn lock(
    line: &Line,
    listener: &mut PgListener,
    bucket: u8,
    take: bool,
) -> Result<bool, Lost> {
    let sql = match take {
        true => "SELECT pg_try_advisory_lock_shared($1, $2)",
        false => "SELECT pg_advisory_unlock_shared($1, $2)",
    };
    let query = sqlx::query_scalar(sql)
        .bind(line.class)
        .bind(i32::from(bucket));
    match timeout(PATIENCE, query.fetch_one(listener)).await {
        Ok(Ok(taken)) => Ok(taken),
        Ok(Err(_)) | Err(_) => Err(Lost),
    }
}
