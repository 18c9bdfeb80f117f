//! [`Reconnecting`]: a connection that is opened anew.

use std::{
    fmt,
    io::{Error, ErrorKind::TimedOut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{self, BoxFuture},
};
use redis::{Cmd, Pipeline, RedisError, RedisFuture, RedisResult, Value, aio::ConnectionLike};
use tokio::time::{Instant, sleep, timeout};

use super::error::is_of_the_connection;
use crate::store::contract::jittered;

/// A connection that is opened anew, by asking again where the server is: over Sentinel it follows a
/// failover.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use redis::sentinel::{SentinelClient, SentinelServerType};
/// use tokio::sync::Mutex;
/// use tower_idempotency::{Reconnecting, RedisStore};
///
/// # fn example() -> Result<(), redis::RedisError> {
/// let sentinels = vec!["redis://10.0.0.1:26379", "redis://10.0.0.2:26379", "redis://10.0.0.3:26379"];
/// let name = "mymaster".to_owned();
/// let client = SentinelClient::build(sentinels, name, None, SentinelServerType::Master)?;
/// let client = Arc::new(Mutex::new(client));
/// let store = RedisStore::new(Reconnecting::new(move || {
///     let client = Arc::clone(&client);
///     async move { client.lock().await.get_async_connection().await }
/// }));
/// # Ok(())
/// # }
/// ```
///
/// The first command opens it; a clone shares it. It is given up once a command
///
/// - fails to be sent or answered, or is answered too late, or not understood;
/// - is answered `READONLY`, `MASTERDOWN`, `LOADING` or `NOREPLICAS`: the server is no longer the
///   primary, or not yet, or may be one that was cut off from the others.
///
/// That command fails all the same, but for what [`RedisStore`](crate::RedisStore) sends once more. The
/// next one has it opened, in a task: one at a time, whose end all commands await that come
/// meanwhile. Where that fails, they fail with it. A connection or an attempt that did not last
/// for a second is followed by a pause, of 50 ms at first and 1 s at most; an attempt ends after
/// 5 s. A command that is dropped ends no attempt.
///
/// A server that is gone without a word shows by answers that are too late: a connection needs a
/// time-out for answers, shorter than the layer's for store calls. The client has one of 500 ms by
/// default.
pub struct Reconnecting<C>(Arc<Shared<C>>);

struct Shared<C> {
    open: Box<dyn Fn() -> BoxFuture<'static, RedisResult<C>> + Send + Sync>,
    last: Mutex<Last<C>>,
}

type Opening<C> = future::Shared<BoxFuture<'static, RedisResult<C>>>;

/// The last attempt to open a connection, and what came of it.
struct Last<C> {
    number: u64,
    /// None once it was given up.
    opening: Option<Opening<C>>,
    began: Instant,
    /// Before the next one.
    pause: Duration,
}

/// How long an attempt may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause after a connection or an attempt that did not last: at first, and at most. One that
/// lasted longer than the latter is followed by none.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

impl<C> Reconnecting<C>
where
    C: Clone + Send + Sync + 'static,
{
    /// Connections that `open` opens. It is not called yet.
    #[must_use]
    pub fn new<O, F>(open: O) -> Self
    where
        O: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = RedisResult<C>> + Send + 'static,
    {
        Self(Arc::new(Shared {
            open: Box::new(move || open().boxed()),
            last: Mutex::new(Last {
                number: 0,
                opening: None,
                began: Instant::now(),
                pause: Duration::ZERO,
            }),
        }))
    }

    /// The connection there is, or that will be, and the number of the attempt that made it.
    fn opening(&self) -> (u64, Opening<C>) {
        let mut last = lock(&self.0.last);
        let last = &mut *last;
        let opening = last.opening.get_or_insert_with(|| {
            (last.number, last.began) = (last.number + 1, Instant::now());
            attempt(Arc::clone(&self.0), jittered(last.pause))
        });
        (last.number, opening.clone())
    }

    /// Unless there is a newer one.
    fn give_up(&self, number: u64) {
        let mut last = lock(&self.0.last);
        if last.number == number && last.opening.take().is_some() {
            last.pause = match last.began.elapsed() > PAUSES.1 {
                true => Duration::ZERO,
                false => (last.pause * 2).clamp(PAUSES.0, PAUSES.1),
            };
        }
    }

    async fn ask<A>(
        &self,
        send: impl AsyncFnOnce(C) -> RedisResult<A>,
        error: impl FnOnce(&A) -> Option<RedisError>,
    ) -> RedisResult<A> {
        let (number, opening) = self.opening();
        let connection = match opening.await {
            Ok(connection) => connection,
            Err(error) => {
                self.give_up(number);
                return Err(error);
            }
        };
        let answer = send(connection).await;
        let of_the_connection = match &answer {
            Ok(answer) => error(answer).is_some_and(|error| is_of_the_connection(&error)),
            Err(error) => is_of_the_connection(error),
        };
        if of_the_connection {
            self.give_up(number);
        }
        answer
    }
}

/// In a task of its own, so that callers without patience do not keep it from ending.
fn attempt<C>(shared: Arc<Shared<C>>, pause: Duration) -> Opening<C>
where
    C: Clone + Send + Sync + 'static,
{
    let task = tokio::spawn(async move {
        if !pause.is_zero() {
            sleep(pause).await;
        }
        match timeout(PATIENCE, (shared.open)()).await {
            Ok(opened) => opened,
            Err(_) => Err(Error::new(TimedOut, "no connection in time").into()),
        }
    });
    let opened = async move {
        // The runtime of whoever asked first may end before all that share this.
        let ended = |_| Err(Error::other("the attempt to connect did not end").into());
        task.await.unwrap_or_else(ended)
    };
    opened.boxed().shared()
}

impl<C> ConnectionLike for Reconnecting<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        self.ask(
            async |mut connection: C| connection.req_packed_command(command).await,
            refusal,
        )
        .boxed()
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.ask(
            async move |mut connection: C| {
                connection
                    .req_packed_commands(pipeline, offset, count)
                    .await
            },
            |answers: &Vec<Value>| answers.iter().find_map(refusal),
        )
        .boxed()
    }

    /// That of the connection, once there is one.
    fn get_db(&self) -> i64 {
        let last = lock(&self.0.last);
        match last.opening.as_ref().and_then(Opening::peek) {
            Some(Ok(connection)) => connection.get_db(),
            _ => 0,
        }
    }
}

fn refusal(answer: &Value) -> Option<RedisError> {
    match answer {
        Value::ServerError(error) => Some(error.clone().into()),
        _ => None,
    }
}

impl<C> Clone for Reconnecting<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Without the connection, which may show an address or a password.
impl<C> fmt::Debug for Reconnecting<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reconnecting").finish_non_exhaustive()
    }
}

fn lock<C>(last: &Mutex<Last<C>>) -> MutexGuard<'_, Last<C>> {
    last.lock().unwrap_or_else(PoisonError::into_inner)
}
