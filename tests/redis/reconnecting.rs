//! `Reconnecting`, over connections that fail as they are told: how often it opens one, and when.

use std::{
    collections::VecDeque,
    future::{pending, ready},
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use redis::{
    Client, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, ServerErrorKind, Value,
    aio::ConnectionLike, cmd,
};
use tokio::time::{Instant, sleep, timeout};
use tower_idempotency::{Reconnecting, RedisStore, Store};

use crate::{
    servers::redis::{RedisServer, connection},
    support::{claim, key, soon, unavailable},
};

/// A connection that answers each command with the next of these, and without them its number.
#[derive(Clone)]
struct Fake {
    number: i64,
    answers: Arc<Mutex<VecDeque<RedisResult<Value>>>>,
}

impl ConnectionLike for Fake {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let (late, number) = (command.args_iter().len() > 1, self.number);
        let answer = self.answers.lock().unwrap().pop_front();
        Box::pin(async move {
            if late {
                sleep(Duration::from_millis(300)).await;
            }
            answer.unwrap_or(Ok(Value::Int(number)))
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _: &'a Pipeline,
        _: usize,
        _: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let answer = self.answers.lock().unwrap().pop_front();
        let number = Value::Int(self.number);
        Box::pin(ready(answer.unwrap_or(Ok(number)).map(|value| vec![value])))
    }

    fn get_db(&self) -> i64 {
        self.number
    }
}

/// What opening does from now on.
#[derive(Clone, Copy)]
enum Opening {
    Works,
    TakesLong,
    Fails,
    Hangs,
    Panics,
}

#[derive(Clone)]
struct Server {
    opening: Arc<Mutex<Opening>>,
    opened: Arc<Mutex<Vec<Instant>>>,
    answers: Arc<Mutex<VecDeque<RedisResult<Value>>>>,
}

impl Server {
    fn new(opening: Opening) -> (Self, Reconnecting<Fake>) {
        let server = Self {
            opening: Arc::new(Mutex::new(opening)),
            opened: Arc::default(),
            answers: Arc::default(),
        };
        let behind = server.clone();
        (server, Reconnecting::new(move || behind.open()))
    }

    fn open(&self) -> BoxFuture<'static, RedisResult<Fake>> {
        let opening = *self.opening.lock().unwrap();
        let mut opened = self.opened.lock().unwrap();
        opened.push(Instant::now());
        let fake = Fake {
            number: opened.len().try_into().unwrap(),
            answers: Arc::clone(&self.answers),
        };
        async move {
            match opening {
                Opening::Works => {}
                Opening::TakesLong => sleep(Duration::from_millis(300)).await,
                Opening::Fails => return Err(io::Error::other("away").into()),
                Opening::Hangs => pending().await,
                Opening::Panics => panic!("as the test asks"),
            }
            Ok(fake)
        }
        .boxed()
    }

    fn now(&self, opening: Opening) {
        *self.opening.lock().unwrap() = opening;
    }

    fn opened(&self) -> usize {
        self.opened.lock().unwrap().len()
    }

    fn answers(&self, answer: RedisResult<Value>) {
        self.answers.lock().unwrap().push_back(answer);
    }
}

async fn ask(connection: &Reconnecting<Fake>) -> RedisResult<i64> {
    cmd("ASK").query_async(&mut connection.clone()).await
}

fn broken() -> RedisError {
    io::Error::from(io::ErrorKind::ConnectionReset).into()
}

fn refused(text: &str) -> Value {
    let line = format!("-{text}\r\n");
    redis::parse_redis_value(line.as_bytes()).unwrap()
}

/// P9: nothing is opened before the first command; all that come meanwhile share one attempt, and
/// one that is dropped ends it for nobody.
#[tokio::test(start_paused = true)]
async fn p9_all_who_ask_share_one_attempt() {
    let (server, connection) = Server::new(Opening::TakesLong);
    assert_eq!((server.opened(), connection.get_db()), (0, 0));
    let hasty = timeout(Duration::from_millis(1), ask(&connection)).await;
    assert!(hasty.is_err());
    let answers = join_all((0..100).map(|_| ask(&connection))).await;
    assert!(answers.iter().all(|answer| matches!(answer, Ok(1))));
    assert_eq!((server.opened(), connection.get_db()), (1, 1));
    // It ended although nobody was left.
    server.answers(Err(broken()));
    ask(&connection).await.unwrap_err();
    let hasty = timeout(Duration::from_millis(1), ask(&connection)).await;
    assert!(hasty.is_err());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(ask(&connection).now_or_never().unwrap().unwrap(), 2);
}

/// S16, P8: what another connection may do better has one opened, and what it would not do better
/// has not. The command gets its error in any case.
#[tokio::test(start_paused = true)]
async fn s16_p8_a_new_connection_is_for_errors_of_the_connection() {
    let kind = |kind: io::ErrorKind| Err(io::Error::from(kind).into());
    let worse: [(&str, RedisResult<Value>); 10] = [
        ("reset", kind(io::ErrorKind::ConnectionReset)),
        ("closed", kind(io::ErrorKind::BrokenPipe)),
        ("late", kind(io::ErrorKind::TimedOut)),
        ("not understood", Err((ErrorKind::Parse, "what?").into())),
        ("replica", Ok(refused("READONLY You can't write"))),
        (
            "replica, Redis 6.2",
            Ok(refused("@user_script: 12: -READONLY You can't write")),
        ),
        ("no primary", Ok(refused("MASTERDOWN Link is down"))),
        ("loading", Ok(refused("LOADING Redis is loading"))),
        ("cut off", Ok(refused("NOREPLICAS Not enough"))),
        (
            "replica, told by the client",
            Err((ErrorKind::Server(ServerErrorKind::ReadOnly), "no").into()),
        ),
    ];
    let (server, connection) = Server::new(Opening::Works);
    for (name, answer) in worse {
        let before = ask(&connection).await.unwrap();
        for by_pipeline in [false, true] {
            let expected = before + i64::from(by_pipeline);
            assert_eq!(ask(&connection).await.unwrap(), expected, "{name}");
            server.answers(answer.clone());
            let mut asked = connection.clone();
            match by_pipeline {
                true => {
                    let all: RedisResult<Vec<i64>> =
                        redis::pipe().cmd("ASK").query_async(&mut asked).await;
                    all.unwrap_err();
                }
                false => drop(ask(&connection).await.unwrap_err()),
            }
        }
        assert_eq!(ask(&connection).await.unwrap(), before + 2, "{name}");
    }
    let opened = server.opened();
    for same in [
        "NOSCRIPT No matching script",
        "OOM command not allowed",
        "WRONGTYPE Operation against a key",
        "NOPERM this user",
        "BUSY Redis is busy",
        "MISCONF disk",
        "ERR unknown",
    ] {
        server.answers(Ok(refused(same)));
        ask(&connection).await.unwrap_err();
        ask(&connection).await.unwrap();
        assert_eq!(server.opened(), opened, "{same}");
    }
}

/// A command that was under way on an old connection says nothing of the new one.
#[tokio::test(start_paused = true)]
async fn a_late_error_spares_the_new_connection() {
    let (server, connection) = Server::new(Opening::Works);
    ask(&connection).await.unwrap();
    server.answers(Err(broken()));
    let mut late = connection.clone();
    let slow = cmd("ASK").arg("slowly").to_owned();
    let slow = slow.query_async::<i64>(&mut late);
    let meanwhile = async {
        tokio::task::yield_now().await;
        server.answers(Err(broken()));
        ask(&connection).await.unwrap_err();
        assert_eq!(ask(&connection).await.unwrap(), 2);
    };
    let (late, ()) = tokio::join!(slow, meanwhile);
    late.unwrap_err();
    assert_eq!(ask(&connection).await.unwrap(), 2);
    assert_eq!(server.opened(), 2);
}

/// P8, P9: while none can be opened each command fails with the attempt that it awaited; however
/// many ask, there is an attempt every half second at least and every second at most.
#[tokio::test(start_paused = true)]
async fn p8_p9_attempts_that_fail_are_spaced() {
    let (server, connection) = Server::new(Opening::Fails);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        let answers = join_all((0..10).map(|_| ask(&connection))).await;
        let away = |answer: &RedisResult<i64>| {
            let error = answer.as_ref().unwrap_err();
            error.to_string().contains("away")
        };
        assert!(answers.iter().all(away), "{answers:?}");
    }
    assert!((20..=48).contains(&server.opened()), "{}", server.opened());
    {
        let opened = server.opened.lock().unwrap();
        let pauses = opened.windows(2).map(|two| two[1] - two[0]);
        let pauses: Vec<_> = pauses.collect();
        assert!(pauses[0] <= Duration::from_millis(51), "{pauses:?}");
        assert!(
            pauses
                .iter()
                .all(|&pause| pause <= Duration::from_millis(1001))
        );
    }
    // One that lasted is followed by none.
    server.now(Opening::Works);
    ask(&connection).await.unwrap();
    sleep(Duration::from_secs(2)).await;
    server.answers(Err(broken()));
    ask(&connection).await.unwrap_err();
    let before = Instant::now();
    ask(&connection).await.unwrap();
    assert_eq!(before.elapsed(), Duration::ZERO);
}

/// P9: connections that break at once are no reason to open one after another.
#[tokio::test(start_paused = true)]
async fn p9_connections_that_do_not_last_are_spaced() {
    let (server, connection) = Server::new(Opening::Works);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        server.answers(Ok(refused("READONLY You can't write")));
        ask(&connection).await.unwrap_err();
    }
    assert!((20..=48).contains(&server.opened()), "{}", server.opened());
}

/// P8: an attempt that hangs is given up, one that panics fails, and the next one serves.
#[tokio::test(start_paused = true)]
async fn p8_an_attempt_that_hangs_or_panics_is_over() {
    let (server, connection) = Server::new(Opening::Hangs);
    let store = RedisStore::new(connection.clone());
    let start = Instant::now();
    unavailable(store.get(&key("k")).await);
    assert!(start.elapsed() <= Duration::from_millis(5001));
    server.now(Opening::Panics);
    ask(&connection).await.unwrap_err();
    server.now(Opening::Works);
    assert_eq!(ask(&connection).await.unwrap(), 3);
}

/// U19: it shows nothing of what it connects to.
#[tokio::test]
async fn u19_it_shows_no_secret() {
    let (_, connection) = Server::new(Opening::Works);
    ask(&connection).await.unwrap();
    assert_eq!(format!("{connection:?}"), "Reconnecting { .. }");
}

/// A connection belongs to the runtime that opened it; the next one opens its own.
#[test]
fn p8_it_outlives_the_runtime_that_opened_it() {
    let runtime = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap()
    };
    let server = RedisServer::start(&[]);
    let client: Client = server.client();
    let store = RedisStore::new(Reconnecting::new(move || {
        let client = client.clone();
        async move { Ok(connection(&client).await) }
    }));
    runtime().block_on(async { claim(&store, &key("k")).await });
    let found = runtime().block_on(async { soon(store.get(&key("k"))).await });
    assert!(found.unwrap().is_some());
}
