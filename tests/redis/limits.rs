//! Memory that is full, and servers that drop what they should keep.

use std::{
    io::{self, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use redis::{
    Arg, Cmd, Pipeline, RedisFuture, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tower_idempotency::{Claim, RedisStore, Store, StoreError};

use crate::{
    servers::redis::RedisServer,
    support::{LEASE, TTL, answer, claim, completed, granted, key, request},
};

/// P9: a server whose memory is full takes no new key. Those that are held can be renewed and
/// ended, and what is recorded is answered.
#[tokio::test]
async fn p9_full_memory_refuses_new_keys_only() {
    let server = RedisServer::start(&["--maxmemory-policy", "noeviction"]);
    let store = RedisStore::new(server.connection().await);
    let mut leases = Vec::new();
    for name in [
        "complete",
        "fail",
        "release",
        "give back",
        "retry",
        "lost",
        "expired",
    ] {
        leases.push(claim(&store, &key(name)).await);
    }
    let [complete, fail, release, give_back, retry, lost, expired] = leases[..] else {
        unreachable!()
    };
    completed(&store, &key("done")).await;
    store.fail(&key("retry"), &retry, TTL).await.unwrap();
    store.forget(&key("lost")).await.unwrap();
    let (name, at_once) = (key("expired"), Duration::ZERO);
    store
        .complete(&name, &expired, &answer(), at_once)
        .await
        .unwrap();

    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let full = |result: Result<(), StoreError>| {
        assert!(matches!(result, Err(StoreError::Full { .. })), "{result:?}");
    };
    full(store.claim(&key("new"), &request()).await.map(drop));
    // One that was lost is new.
    full(store.complete(&key("lost"), &lost, &answer(), TTL).await);
    assert_eq!(store.get(&key("new")).await.unwrap(), None);

    let done = store.claim(&key("done"), &request()).await.unwrap();
    assert_eq!(done, Claim::Completed(answer()));
    let step = Some(vec![1; 10_000].into());
    let held = key("complete");
    store
        .renew(&held, &complete, LEASE, TTL, step)
        .await
        .unwrap();
    store
        .complete(&held, &complete, &answer(), TTL)
        .await
        .unwrap();
    let done = store.claim(&held, &request()).await.unwrap();
    assert_eq!(done, Claim::Completed(answer()));
    store.fail(&key("fail"), &fail, TTL).await.unwrap();
    store.release(&key("release"), &release, TTL).await.unwrap();
    store
        .give_back(&key("give back"), &give_back, TTL)
        .await
        .unwrap();
    let again = granted(store.claim(&key("retry"), &request()).await);
    assert_eq!(again.lease.attempt, 2);
    assert!(store.forget(&key("done")).await.unwrap());

    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    claim(&store, &key("new")).await;
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);
impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection, and how often it was asked for the server's configuration.
#[derive(Clone)]
struct Counted(MultiplexedConnection, Arc<AtomicUsize>);

impl ConnectionLike for Counted {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        let asks = matches!(cmd.args_iter().next(), Some(Arg::Simple(b"CONFIG")));
        let asked = Arc::clone(&self.1);
        let answer = self.0.req_packed_command(cmd);
        Box::pin(async move {
            let answer = answer.await;
            asked.fetch_add(usize::from(asks), SeqCst);
            answer
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.0.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.0.get_db()
    }
}

/// P9: a policy that evicts is told once for each store, and costs no request anything.
#[tokio::test]
async fn p9_an_evicting_policy_is_told_once() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let told = || {
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        text.matches("maxmemory-policy to noeviction").count()
    };
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = async |server: &RedisServer| {
        let connection = server.connection().await;
        RedisStore::new(Counted(connection, Arc::clone(&asked)))
    };
    let settled = async |times: usize| {
        crate::support::soon(async {
            while asked.load(SeqCst) < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(asked.load(SeqCst), times);
    };

    let server = RedisServer::start(&["--maxmemory-policy", "volatile-lru"]);
    let store = counted(&server).await;
    store.get(&key("0")).await.unwrap();
    settled(0).await;
    for n in 0..5 {
        claim(&store.clone(), &key(&n.to_string())).await;
    }
    settled(1).await;
    assert_eq!(told(), 1);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(
        text.contains("WARN") && text.contains("volatile-lru"),
        "{text}"
    );

    // One that keeps everything, and one that does not say.
    server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    let other = counted(&server).await;
    claim(&other, &key("other")).await;
    settled(2).await;
    server.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    server.command(&["ACL", "SETUSER", "default", "-config"]);
    let silent = counted(&server).await;
    claim(&silent, &key("silent")).await;
    settled(3).await;
    claim(&silent, &key("silent again")).await;
    settled(3).await;
    assert_eq!(told(), 1);
}
