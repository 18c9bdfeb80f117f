//! Waiting: woken by messages, and all the same without them.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use redis::{AsyncCommands, Client, aio::MultiplexedConnection};
use tower_idempotency::{RedisStore, State, Store};

use crate::{
    servers::{
        process::wait_until,
        proxy::Proxy,
        redis::{RedisServer, connection},
    },
    support::{TTL, answer, claim, key, soon},
};

/// How many connections subscribe.
fn subscribers(server: &RedisServer) -> u64 {
    let told = server.command(&["PUBSUB", "NUMSUB", "tower-idempotency"]);
    let (_, count): (String, u64) = redis::from_redis_value(told).unwrap();
    count
}

async fn subscribed(server: &RedisServer, count: u64) {
    soon(async {
        while subscribers(server) != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A server, a store that waits on it, whose own connection and whose subscription go through a
/// proxy each, and another store that works there.
struct Waiting {
    server: RedisServer,
    asks: Proxy,
    hears: Proxy,
    waits: RedisStore<MultiplexedConnection>,
    works: RedisStore<MultiplexedConnection>,
}

async fn waiting() -> Waiting {
    let server = RedisServer::start(&[]);
    let asks = Proxy::before(server.address()).await;
    let hears = Proxy::before(server.address()).await;
    let through = |proxy: &Proxy| Client::open(format!("redis://{}", proxy.address())).unwrap();
    let waits = RedisStore::new(connection(&through(&asks)).await).with_client(through(&hears));
    let works = RedisStore::new(server.connection().await);
    Waiting {
        server,
        asks,
        hears,
        waits,
        works,
    }
}

impl Waiting {
    /// Claims a key and waits for it until it is completed; `meanwhile` comes before.
    async fn ends(&self, name: &str, meanwhile: impl Future<Output = ()>) {
        let key = key(name);
        let lease = claim(&self.works, &key).await;
        let asked = self.asks.round_trips();
        let wait = soon(self.waits.wait(&key, lease.token));
        let end = async {
            while self.asks.round_trips() == asked {
                tokio::task::yield_now().await;
            }
            meanwhile.await;
            self.works
                .complete(&key, &lease, &answer(), TTL)
                .await
                .unwrap();
        };
        let (found, ()) = tokio::join!(wait, end);
        assert_eq!(found.unwrap().unwrap().record.state, State::Completed);
    }
}

/// S16, U30: who waits is woken by whoever ends the claim, in another process too, and does not ask
/// until then: each wait is one look before and one after.
#[tokio::test]
async fn s16_u30_an_end_elsewhere_wakes_who_waits() {
    const ROUNDS: u64 = 20;
    let all = waiting().await;
    all.ends("first", subscribed(&all.server, 1)).await;
    let (start, before) = (Instant::now(), all.asks.round_trips());
    for round in 0..ROUNDS {
        all.ends(&round.to_string(), std::future::ready(())).await;
    }
    // To find out by polling takes half a second each time.
    let (took, polling) = (start.elapsed(), Duration::from_millis(500) * ROUNDS as u32);
    assert!(took < polling * 4 / 5, "{took:?}");
    let looks = all.asks.round_trips() - before;
    assert!((2 * ROUNDS..=2 * ROUNDS + 4).contains(&looks), "{looks}");
    assert_eq!(all.hears.connections(), 1);
}

/// U30: however many wait, for however many keys, there is one subscription; none before, and none
/// soon after.
#[tokio::test]
async fn u30_all_who_wait_share_one_subscription() {
    let all = waiting().await;
    let names: Vec<_> = (0..30).map(|n| key(&n.to_string())).collect();
    let mut leases = Vec::new();
    for name in &names {
        leases.push(claim(&all.works, name).await);
    }
    assert_eq!((all.hears.connections(), subscribers(&all.server)), (0, 0));
    let clone = all.waits.clone();
    let waits = names
        .iter()
        .zip(&leases)
        .enumerate()
        .map(|(n, (name, lease))| {
            let store = if n % 2 == 0 { &all.waits } else { &clone };
            soon(store.wait(name, lease.token))
        });
    let ends = async {
        subscribed(&all.server, 1).await;
        for (name, lease) in names.iter().zip(&leases) {
            all.works.release(name, lease, TTL).await.unwrap();
        }
    };
    let (found, ()) = tokio::join!(futures::future::join_all(waits), ends);
    assert!(found.iter().all(|found| matches!(found, Ok(None))));
    assert_eq!(all.hears.connections(), 1);
    subscribed(&all.server, 0).await;
    // And it can begin again.
    all.ends("later", subscribed(&all.server, 1)).await;
    assert_eq!(all.hears.connections(), 2);
}

/// S16: while nothing can be heard a wait polls; the subscription comes back by itself.
#[tokio::test]
async fn s16_a_wait_outlives_its_subscription() {
    let all = waiting().await;
    all.ends("cut", async {
        subscribed(&all.server, 1).await;
        all.hears.refuse(true);
        all.hears.cut();
        subscribed(&all.server, 0).await;
    })
    .await;
    all.ends("refused", std::future::ready(())).await;
    all.ends("back", async {
        all.hears.refuse(false);
        subscribed(&all.server, 1).await;
    })
    .await;
}

/// A message can be lost: an end of which nobody tells is found all the same.
#[tokio::test]
async fn s16_a_lost_message_only_delays() {
    let all = waiting().await;
    let (name, mut eyes) = (key("k"), all.server.connection().await);
    let lease = claim(&all.works, &name).await;
    let end = async {
        subscribed(&all.server, 1).await;
        let _: () = eyes.del(name.as_str()).await.unwrap();
    };
    let (found, ()) = tokio::join!(soon(all.waits.wait(&name, lease.token)), end);
    assert_eq!(found.unwrap(), None);
}

/// Rubbish on the channel wakes nobody and breaks nothing.
#[tokio::test]
async fn s16_strange_messages_do_no_harm() {
    let all = waiting().await;
    let mut eyes = all.server.connection().await;
    all.ends("k", async {
        subscribed(&all.server, 1).await;
        for message in [&b""[..], b"hello", &[0xff; 16], &[b'0'; 17]] {
            let _: () = eyes.publish("tower-idempotency", message).await.unwrap();
        }
    })
    .await;
    assert_eq!(all.hears.connections(), 1);
}

/// A user who may neither publish nor subscribe can do everything else.
#[tokio::test]
async fn s16_without_the_channel_all_works_but_the_waking() {
    let server = RedisServer::start(&[]);
    let rights = ["~idem:*", "+@all", "-publish", "resetchannels"];
    server.command(&[&["ACL", "SETUSER", "app", "on", ">secret"][..], &rights].concat());
    let client = Client::open(format!("redis://app:secret@{}", server.address())).unwrap();
    let store = RedisStore::new(connection(&client).await).with_client(client.clone());
    let name = key("k");
    let lease = claim(&store, &name).await;
    let wait = soon(store.wait(&name, lease.token));
    let end = async {
        store.complete(&name, &lease, &answer(), TTL).await.unwrap();
    };
    let (found, ()) = tokio::join!(wait, end);
    assert_eq!(found.unwrap().unwrap().record.state, State::Completed);
    let lease = claim(&store, &key("released")).await;
    store.release(&key("released"), &lease, TTL).await.unwrap();
    assert!(store.forget(&key("k")).await.unwrap());
    assert_eq!(subscribers(&server), 0);
}

/// The subscription lives in the runtime of a waiter. Where that ends, another one's takes over.
#[test]
fn the_subscription_outlives_a_runtime() {
    let server = RedisServer::start(&[]);
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    let (first, second) = (runtime(), runtime());
    let store = second.block_on(async {
        RedisStore::new(server.connection().await).with_client(server.client())
    });
    let lease = second.block_on(claim(&store, &key("k")));
    let waiter = |store: RedisStore<_>| async move { store.wait(&key("k"), lease.token).await };
    first.spawn(waiter(store.clone()));
    wait_until("the first subscribes", || subscribers(&server) == 1);
    let connected = || server.text(&["CLIENT", "LIST", "TYPE", "PUBSUB"]);
    let id = |list: &str| list.split_whitespace().next().map(str::to_owned);
    let before = id(&connected());
    let stays = second.spawn(waiter(store.clone()));
    first.shutdown_background();
    wait_until("the second subscribes instead", || {
        let now = id(&connected());
        now.is_some() && now != before && subscribers(&server) == 1
    });
    second
        .block_on(async { store.complete(&key("k"), &lease, &answer(), TTL).await })
        .unwrap();
    let found = second.block_on(soon(stays)).unwrap().unwrap().unwrap();
    assert_eq!(found.record.state, State::Completed);
}
