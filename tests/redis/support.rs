//! What the tests of `RedisStore` share.

use std::{
    future::ready,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
    sentinel::{SentinelClient, SentinelServerType},
};
use tokio::sync::Mutex;
use tower_idempotency::{
    Claim, ClaimRequest, Claimed, Entry, Fingerprint, Lease, OwnerId, Payload, Reconnecting,
    RedisStore, Store, StoreError, StoreKey,
    testing::store::{Corruption, Fixture},
};

pub(crate) use crate::servers::redis::connection;
use crate::servers::redis::{RedisSentinel, RedisServer};

pub(crate) const LEASE: Duration = Duration::from_secs(60);
pub(crate) const TTL: Duration = Duration::from_secs(3600);

/// A client of a database that nobody else uses, on the server that all tests share.
pub(crate) fn client() -> Client {
    static SERVER: OnceLock<RedisServer> = OnceLock::new();
    static DATABASE: AtomicU32 = AtomicU32::new(0);
    let server = SERVER.get_or_init(|| RedisServer::for_all(&["--databases", "5000"]));
    let database = DATABASE.fetch_add(1, SeqCst);
    Client::open(format!("{}/{database}", server.url())).unwrap()
}

pub(crate) async fn store_at(url: &str) -> RedisStore<MultiplexedConnection> {
    RedisStore::new(connection(&Client::open(url).unwrap()).await)
}

/// A connection that opens itself again.
pub(crate) async fn managed(client: &Client) -> ConnectionManager {
    let patience = ConnectionManagerConfig::new()
        .set_number_of_retries(1)
        .set_connection_timeout(Some(Duration::from_secs(20)))
        .set_response_timeout(Some(Duration::from_secs(20)));
    ConnectionManager::new_with_config(client.clone(), patience)
        .await
        .unwrap()
}

/// A connection to whichever server this Sentinel takes for the primary.
pub(crate) fn following(sentinel: &RedisSentinel) -> Reconnecting<MultiplexedConnection> {
    let (sentinels, name) = (vec![sentinel.url()], "main".to_owned());
    let client = SentinelClient::build(sentinels, name, None, SentinelServerType::Master);
    let client = Arc::new(Mutex::new(client.unwrap()));
    Reconnecting::new(move || {
        let client = Arc::clone(&client);
        async move {
            let patience =
                AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(20)));
            let mut client = client.lock().await;
            client.get_async_connection_with_config(&patience).await
        }
    })
}

/// A store over this connection, made ready by `wrap`.
pub(crate) fn fixture<C, S>(connection: C, wrap: impl FnOnce(RedisStore<C>) -> S) -> Fixture<S>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
    S: Store,
{
    fixture_at(connection, wrap, |key| key.as_str().to_owned())
}

/// The same, where a record is kept under another name.
pub(crate) fn fixture_at<C, S>(
    connection: C,
    wrap: impl FnOnce(RedisStore<C>) -> S,
    name: impl Fn(&StoreKey) -> String + Send + Sync + 'static,
) -> Fixture<S>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
    S: Store,
{
    let store = RedisStore::new(connection.clone());
    let clock = store.clone();
    let fixture = Fixture::new(wrap(store), move |by| {
        clock.advance_clock(by);
        ready(())
    });
    fixture.with_corruption(move |key, how| damage(connection.clone(), name(&key), how))
}

/// Makes a record unreadable.
async fn damage<C: ConnectionLike>(mut connection: C, name: String, how: Corruption) {
    let kept: i64 = redis::cmd("EXISTS")
        .arg(&name)
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(kept, 1);
    let mut spoil = redis::cmd(if how == Corruption::CutShort {
        "HDEL"
    } else {
        "HSET"
    });
    spoil.arg(name).arg(match how {
        Corruption::CutShort => &["fingerprint"][..],
        Corruption::UnknownVersion => &["v", "2"],
        _ => &["owner", "unreadable-"],
    });
    let _: i64 = spoil.query_async(&mut connection).await.unwrap();
}

pub(crate) fn key(name: &str) -> StoreKey {
    StoreKey::new("idem", "caller", "endpoint", name)
}

pub(crate) fn request() -> ClaimRequest {
    ClaimRequest {
        fingerprint: Fingerprint::hasher("test/1").finish(),
        owner: OwnerId::random(),
        lease: LEASE,
        ttl: TTL,
        take_over: true,
    }
}

pub(crate) fn answer() -> Payload {
    Payload::new(201, "paid".into())
}

pub(crate) fn granted(claim: Result<Claim, StoreError>) -> Claimed {
    match claim {
        Ok(Claim::Claimed(claimed)) => claimed,
        other => panic!("the claim should be granted: {other:?}"),
    }
}

pub(crate) async fn claim(store: &impl Store, key: &StoreKey) -> Lease {
    let claimed = granted(store.claim(key, &request()).await);
    assert_eq!(claimed.entry, Entry::First);
    claimed.lease
}

pub(crate) async fn completed(store: &impl Store, key: &StoreKey) -> Lease {
    let lease = claim(store, key).await;
    store.complete(key, &lease, &answer(), TTL).await.unwrap();
    lease
}

/// # Panics
///
/// If it is anything but unavailable, or its source tells a secret.
pub(crate) fn unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unavailable { source, .. }) => source.to_string(),
        other => panic!("the store should be unavailable: {other:?}"),
    }
}

pub(crate) fn corrupt<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Corrupt { source, .. }) => source.to_string(),
        other => panic!("the record should be corrupt: {other:?}"),
    }
}

/// Until the store can be asked.
pub(crate) async fn again<T: std::fmt::Debug>(ask: impl AsyncFn() -> Result<T, StoreError>) -> T {
    loop {
        match ask().await {
            Ok(answer) => return answer,
            error => drop(unavailable(error)),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Long enough for a busy machine; a test that takes longer has failed.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("it takes too long")
}
