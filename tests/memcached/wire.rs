//! What goes over the wire, and what breaks there.

use tower_idempotency::{Claim, Store, StoreError};

use crate::{
    servers::proxy::{Cut, Proxy},
    support::{
        LEASE, MemcachedServer, MemcachedStore, TTL, answer, claim, completed, granted, key,
        request, soon, store, unavailable,
    },
};

async fn behind_proxy() -> (MemcachedServer, Proxy, MemcachedStore) {
    let server = MemcachedServer::start(&[]);
    let proxy = Proxy::before(server.address()).await;
    let store = MemcachedStore::new(proxy.address().to_string());
    (server, proxy, store)
}

/// S16: a change is a reading and a write, a look is a reading.
#[tokio::test]
async fn s16_a_change_takes_two_round_trips_and_a_look_one() {
    let (_server, proxy, store) = behind_proxy().await;
    let asked = request();
    let mut before = 0;
    let mut took = |what: &str, trips: u64| {
        let now = proxy.round_trips();
        assert_eq!(now - before, trips, "{what}");
        before = now;
    };
    let key = key("k");
    let lease = granted(store.claim(&key, &asked).await).lease;
    took("claim", 2);
    let held = store.claim(&key, &request()).await.unwrap();
    assert!(matches!(held, Claim::InProgress { .. }));
    took("conflict", 1);
    store.renew(&key, &lease, LEASE, TTL, None).await.unwrap();
    took("renew", 2);
    store.complete(&key, &lease, &answer(), TTL).await.unwrap();
    took("complete", 2);
    store.claim(&key, &request()).await.unwrap();
    took("replay", 1);
    store.get(&key).await.unwrap();
    took("get", 1);
    assert!(store.forget(&key).await.unwrap());
    took("forget", 2);
    assert_eq!(proxy.connections(), 1);
}

/// P8: connections that were closed while they lay idle cost nobody an answer.
#[tokio::test]
async fn p8_a_connection_that_was_closed_is_opened_again() {
    let (_server, proxy, store) = behind_proxy().await;
    for round in 0..10 {
        let name = key(&round.to_string());
        proxy.cut();
        let lease = claim(&store, &name).await;
        proxy.cut();
        soon(store.renew(&name, &lease, LEASE, TTL, None))
            .await
            .unwrap();
        proxy.cut();
        soon(store.complete(&name, &lease, &answer(), TTL))
            .await
            .unwrap();
    }
    assert!(proxy.connections() > 10);
}

/// P1, P6: a write whose words or whose answer were lost is unavailable, and sent again by the same
/// owner it does what it would have done.
#[tokio::test]
async fn p1_p6_what_was_lost_is_sent_again() {
    let (_server, proxy, store) = behind_proxy().await;
    for cut in [Cut::Before, Cut::After] {
        let name = key(&format!("{cut:?}"));
        let asked = request();
        proxy.cut_at(b"add ", cut);
        unavailable(soon(store.claim(&name, &asked)).await);
        let there = store.get(&name).await.unwrap().is_some();
        assert_eq!(there, cut == Cut::After);
        let lease = granted(store.claim(&name, &asked).await).lease;
        let held = store.claim(&name, &request()).await.unwrap();
        assert_eq!(held, Claim::InProgress { token: lease.token });

        proxy.cut_at(b"cas ", cut);
        unavailable(soon(store.complete(&name, &lease, &answer(), TTL)).await);
        let done = store.complete(&name, &lease, &answer(), TTL).await;
        done.unwrap();
        let replayed = store.claim(&name, &request()).await.unwrap();
        assert_eq!(replayed, Claim::Completed(answer()));
    }
}

/// P1: a call that is dropped at any point leaves nothing on its connection that the next one could
/// take for its own answer.
#[tokio::test]
async fn p1_a_dropped_call_spoils_no_other() {
    let server = MemcachedServer::start(&[]);
    let store = store(&server);
    let done = completed(&store, &key("done")).await;
    for polls in 0..40 {
        let name = key(&format!("dropped {polls}"));
        let asked = request();
        let mut call = Box::pin(store.claim(&name, &asked));
        let mut dropped = true;
        for _ in 0..polls {
            if futures::poll!(call.as_mut()).is_ready() {
                dropped = false;
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(call);
        let found = store.get(&key("done")).await.unwrap().unwrap().record;
        assert_eq!(found.owner, done.owner);
        // It took effect or not, and the owner may ask again.
        granted(store.claim(&name, &asked).await);
        let held = store.claim(&name, &request()).await.unwrap();
        assert!(matches!(held, Claim::InProgress { .. }), "{dropped}");
    }
}

/// P8, U19: whatever answers there, if it is not memcached, is unavailable, and what it says is not
/// repeated.
#[tokio::test]
async fn p8_u19_another_server_is_unavailable() {
    for (says, close) in [
        ("HTTP/1.1 400 Bad Request\r\nsecret\r\n\r\n", false),
        ("ERROR\r\nERROR\r\n", false),
        ("STAT time 12\r\nSTAT time x\r\nEND\r\nEND\r\n", false),
        ("END\r\nEND\r\n", false),
        ("STAT time 12\r\nEND\r\nVALUE k 0 secret 1\r\n", false),
        (
            "STAT time 12\r\nEND\r\nVALUE k 0 3 1\r\nsecret\r\nEND\r\n",
            false,
        ),
        (
            "STAT time 12\r\nEND\r\nVALUE k 0 99999999999999 1\r\n",
            false,
        ),
        ("STAT time 12\r\nEND\r\nVALUE k 0 30 1\r\nsec", true),
        ("STAT time 12\r\nEND\r\nsecret\r\n", false),
        ("\u{0}\r\n", false),
        ("STAT time 12", true),
        ("", true),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let store = MemcachedStore::new(listener.local_addr().unwrap().to_string());
        let serve = async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1024];
            let _ = stream.read(&mut asked).await.unwrap();
            stream.write_all(says.as_bytes()).await.unwrap();
            match close {
                true => drop(stream),
                // Until the client has had enough.
                false => while stream.read(&mut asked).await.is_ok_and(|read| read > 0) {},
            }
        };
        let name = key("k");
        let ask = async {
            let told = unavailable(store.claim(&name, &request()).await);
            assert!(!told.contains("secret"), "{told}");
        };
        soon(async { tokio::join!(serve, ask) }).await;
    }
}

/// P9: a line without an end is not read to its end.
#[tokio::test]
async fn p9_an_endless_line_is_refused() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = MemcachedStore::new(listener.local_addr().unwrap().to_string());
    let serve = async {
        use tokio::io::AsyncWriteExt;
        let (mut stream, _) = listener.accept().await.unwrap();
        while stream.write_all(&[b'x'; 1024]).await.is_ok() {}
    };
    let name = key("k");
    let ask = async { unavailable(store.get(&name).await) };
    soon(async { tokio::join!(serve, ask) }).await;
}

/// P8: where nobody listens there is no store.
#[tokio::test]
async fn p8_nobody_there_is_unavailable() {
    let address = crate::servers::process::free_address();
    let store = MemcachedStore::new(address.to_string());
    let found: Result<_, StoreError> = store.get(&key("k")).await;
    unavailable(found);
}
