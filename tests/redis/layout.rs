//! What stands in Redis, as the documentation has it, and what the store does with anything else.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use redis::{AsyncCommands, aio::MultiplexedConnection};
use tower_idempotency::{
    Claim, ClaimRequest, FencingToken, OwnerId, Payload, RedisStore, State, Store,
};

use crate::{
    servers::redis::connection,
    support::{LEASE, TTL, answer, claim, client, completed, corrupt, granted, key, request},
};

async fn with_eyes() -> (RedisStore<MultiplexedConnection>, MultiplexedConnection) {
    let connection = connection(&client()).await;
    (RedisStore::new(connection.clone()), connection)
}

type Fields = BTreeMap<String, Vec<u8>>;

async fn fields(connection: &mut MultiplexedConnection, name: &str) -> Fields {
    connection.hgetall(key(name).as_str()).await.unwrap()
}

fn text<'a>(fields: &'a Fields, name: &str) -> &'a str {
    std::str::from_utf8(&fields[name]).unwrap()
}

/// S16: a person can read a record with `HGETALL`, under the text of its key.
#[tokio::test]
async fn s16_a_record_reads_as_documented() {
    let (store, mut connection) = with_eyes().await;
    let asked = request();
    let lease = granted(store.claim(&key("k"), &asked).await).lease;
    let names: Vec<String> = connection.keys("*").await.unwrap();
    assert_eq!(names, ["idem:caller:endpoint:k"]);

    let found = fields(&mut connection, "k").await;
    let record = store.get(&key("k")).await.unwrap().unwrap().record;
    let mut expected: Fields = [
        ("v", "1".to_owned()),
        ("state", "in_progress".to_owned()),
        ("algorithm", "test/1".to_owned()),
        (
            "fingerprint",
            asked.fingerprint.to_string()["test/1:".len()..].to_owned(),
        ),
        ("owner", asked.owner.to_string()),
        ("token", lease.token.to_string()),
        ("attempt", "1".to_owned()),
        ("entry", "first".to_owned()),
        ("created_at", record.created_at.as_micros().to_string()),
        ("lease_until", record.lease_until.as_micros().to_string()),
        ("expires_at", record.expires_at.as_micros().to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value.into_bytes()))
    .into();
    assert_eq!(found, expected);
    assert_eq!(record.lease_until.since(record.created_at), LEASE);
    assert_eq!(record.expires_at.since(record.lease_until), TTL);

    let step = Some(Bytes::from_static(b"step 1"));
    let renewed = store.renew(&key("k"), &lease, LEASE, TTL, step).await;
    renewed.unwrap();
    let found = fields(&mut connection, "k").await;
    assert_eq!(text(&found, "checkpoint"), "step 1");

    let payload = Payload::new(201, Bytes::from_static(b"\0\xff paid"));
    let done = store.complete(&key("k"), &lease, &payload, TTL).await;
    done.unwrap();
    let found = fields(&mut connection, "k").await;
    expected.extend([
        ("state".to_owned(), b"completed".to_vec()),
        ("code".to_owned(), b"201".to_vec()),
        ("body".to_owned(), b"\0\xff paid".to_vec()),
    ]);
    for changed in ["lease_until", "expires_at"] {
        expected.insert(changed.to_owned(), found[changed].clone());
    }
    assert_eq!(found, expected, "the checkpoint has gone");

    let lease = claim(&store, &key("failed")).await;
    store.fail(&key("failed"), &lease, TTL).await.unwrap();
    let found = fields(&mut connection, "failed").await;
    assert_eq!(text(&found, "state"), "failed");
    granted(store.claim(&key("failed"), &request()).await);
    let found = fields(&mut connection, "failed").await;
    assert_eq!(
        (text(&found, "entry"), text(&found, "attempt")),
        ("retry", "2")
    );
}

/// U10, P9: the server drops a record by itself, soon after it expires and never before.
#[tokio::test]
async fn p9_u10_the_server_drops_what_has_expired() {
    let (store, mut connection) = with_eyes().await;
    let seconds = |n| Duration::from_secs(n);
    for (name, lease, ttl) in [
        ("short", seconds(0), seconds(100)),
        ("long", seconds(1000), seconds(1_000_000)),
    ] {
        let asked = ClaimRequest {
            lease,
            ttl,
            ..request()
        };
        let held = granted(store.claim(&key(name), &asked).await).lease;
        let both = (lease + ttl).as_millis() as i64;
        let left: i64 = connection.pttl(key(name).as_str()).await.unwrap();
        assert!(
            (both - 30_000..=both + 2).contains(&left),
            "{left} of {both}"
        );
        store
            .complete(&key(name), &held, &answer(), ttl)
            .await
            .unwrap();
        let both = ttl.as_millis() as i64;
        let left: i64 = connection.pttl(key(name).as_str()).await.unwrap();
        assert!(
            (both - 30_000..=both + 2).contains(&left),
            "{left} of {both}"
        );
        let at = redis::Script::new(
            "local t = redis.call('TIME')
             return t[1] * 1000 + math.floor(t[2] / 1000) + redis.call('PTTL', KEYS[1])",
        );
        let expires: i64 = at
            .key(key(name).as_str())
            .invoke_async(&mut connection)
            .await
            .unwrap();
        let record = store.get(&key(name)).await.unwrap().unwrap().record;
        let after = expires * 1000 - record.expires_at.as_micros() as i64;
        assert!((0..=3_000).contains(&after), "{after} µs after it expires");
    }
    let forever = granted(store.claim(&key("forever"), &request()).await).lease;
    let name = key("forever");
    store
        .complete(&name, &forever, &answer(), Duration::MAX)
        .await
        .unwrap();
    let left: i64 = connection.pttl(key("forever").as_str()).await.unwrap();
    assert!(left > 365 * 24 * 3_600_000, "{left}");

    let asked = ClaimRequest {
        lease: Duration::ZERO,
        ttl: Duration::from_millis(50),
        ..request()
    };
    granted(store.claim(&key("gone"), &asked).await);
    crate::support::soon(async {
        while connection.exists(key("gone").as_str()).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// P6: numbers keep all of their 64 bits, which Lua's have no room for, and stop at the greatest.
#[tokio::test]
async fn p6_numbers_lose_no_digit() {
    let (store, mut connection) = with_eyes().await;
    for (kept, next) in [
        (u64::MAX - 2, u64::MAX - 1),
        (u64::MAX, u64::MAX),
        (9_007_199_254_740_993, 9_007_199_254_740_994),
        (9_999_999_999_999_999_999, 10_000_000_000_000_000_000),
    ] {
        let key = key(&kept.to_string());
        let lease = claim(&store, &key).await;
        store.fail(&key, &lease, TTL).await.unwrap();
        let _: () = connection
            .hset(key.as_str(), "token", kept.to_string())
            .await
            .unwrap();
        let claimed = granted(store.claim(&key, &request()).await);
        assert_eq!(claimed.lease.token, FencingToken::from_u64(next));
        let record = store.get(&key).await.unwrap().unwrap().record;
        assert_eq!(record.token, claimed.lease.token);
    }
    let most = key("attempts");
    let lease = claim(&store, &most).await;
    store.fail(&most, &lease, TTL).await.unwrap();
    for _ in 0..2 {
        let _: () = connection
            .hset(most.as_str(), "attempt", u32::MAX - 1)
            .await
            .unwrap();
        let claimed = granted(store.claim(&most, &request()).await);
        assert_eq!(claimed.lease.attempt, u32::MAX);
        store.fail(&most, &claimed.lease, TTL).await.unwrap();
    }
    // A lease and a time to live that are each within reach, and together are not.
    let asked = ClaimRequest {
        lease: Duration::from_micros(u64::MAX / 2),
        ttl: Duration::from_micros(u64::MAX / 2),
        ..request()
    };
    granted(store.claim(&key("far"), &asked).await);
    let record = store.get(&key("far")).await.unwrap().unwrap().record;
    assert_eq!(record.expires_at.as_micros(), u64::MAX);
    let lease = record.lease_until.since(record.created_at);
    assert_eq!(lease, asked.lease);
}

/// U18: a record that this version cannot read is neither used nor overwritten, whatever is asked,
/// and `forget` removes it.
#[tokio::test]
async fn u18_what_cannot_be_read_is_corrupt() {
    let (store, mut connection) = with_eyes().await;
    let digest = "0".repeat(64);
    let spoils: &[(&str, &[&str])] = &[
        ("v", &["", "0", "2", "01"]),
        ("state", &["", "done", "COMPLETED"]),
        ("algorithm", &["", "a:b", "seventeen-letters", "a b", "é"]),
        ("fingerprint", &["", &digest[1..], "g"]),
        ("owner", &["", "0", "ABCDEFABCDEFABCDEFABCDEFABCDEFAB"]),
        (
            "token",
            &["", "-1", "1.5", "1e3", "007", "18446744073709551616"],
        ),
        ("attempt", &["", "4294967296", "one"]),
        ("entry", &["", "second"]),
        ("created_at", &["", "now"]),
        ("lease_until", &["", "+1"]),
        ("expires_at", &["", " 1", "18446744073709551616"]),
        ("code", &["", "65536", "200"]),
        ("body", &["a body"]),
    ];
    for state in [State::InProgress, State::Completed, State::Failed] {
        for (field, values) in spoils {
            let values = values.iter().copied().map(Some).chain([None]);
            for value in values {
                let about = format!("{field} {value:?} of {state:?}");
                let completed = state == State::Completed;
                let sound = match value {
                    Some(value) => completed && ["200", "a body"].contains(&value),
                    None => !completed && ["code", "body"].contains(field),
                };
                if sound {
                    continue;
                }
                let key = key(&about);
                let lease = claim(&store, &key).await;
                match state {
                    State::InProgress => {}
                    State::Completed => store.complete(&key, &lease, &answer(), TTL).await.unwrap(),
                    State::Failed => store.fail(&key, &lease, TTL).await.unwrap(),
                }
                let _: () = match value {
                    Some(value) => connection.hset(key.as_str(), *field, value).await.unwrap(),
                    None => connection.hdel(key.as_str(), *field).await.unwrap(),
                };
                let before: Fields = connection.hgetall(key.as_str()).await.unwrap();
                let secret = |said: String| {
                    assert!(!said.contains("caller"), "{said}");
                };
                secret(corrupt(store.claim(&key, &request()).await));
                let asked = ClaimRequest {
                    owner: lease.owner,
                    ..request()
                };
                secret(corrupt(store.claim(&key, &asked).await));
                secret(corrupt(store.renew(&key, &lease, LEASE, TTL, None).await));
                secret(corrupt(store.complete(&key, &lease, &answer(), TTL).await));
                secret(corrupt(store.fail(&key, &lease, TTL).await));
                secret(corrupt(store.release(&key, &lease, TTL).await));
                secret(corrupt(store.give_back(&key, &lease, TTL).await));
                secret(corrupt(store.get(&key).await));
                secret(corrupt(store.wait(&key, lease.token).await));
                let after: Fields = connection.hgetall(key.as_str()).await.unwrap();
                assert_eq!(before, after, "{about}");
                assert!(store.forget(&key).await.unwrap(), "{about}");
                assert!(!store.forget(&key).await.unwrap(), "{about}");
                claim(&store, &key).await;
            }
        }
    }
}

/// U18: also where it would have expired, and where something else stands under the name.
#[tokio::test]
async fn u18_what_is_not_a_record_is_corrupt() {
    let (store, mut connection) = with_eyes().await;
    let lease = completed(&store, &key("other")).await;
    let expired = claim(&store, &key("expired")).await;
    let name = key("expired");
    let spoilt = [("expires_at", "1"), ("v", "2")];
    let _: () = connection
        .hset_multiple(name.as_str(), &spoilt)
        .await
        .unwrap();
    let _: () = connection.set(key("text").as_str(), "x").await.unwrap();
    let _: () = connection.lpush(key("list").as_str(), "x").await.unwrap();
    let _: () = connection
        .hset(key("hash").as_str(), "x", "y")
        .await
        .unwrap();
    for name in ["expired", "text", "list", "hash"] {
        let key = key(name);
        corrupt(store.claim(&key, &request()).await);
        corrupt(store.renew(&key, &expired, LEASE, TTL, None).await);
        corrupt(store.complete(&key, &lease, &answer(), TTL).await);
        corrupt(store.fail(&key, &lease, TTL).await);
        corrupt(store.release(&key, &lease, TTL).await);
        corrupt(store.give_back(&key, &lease, TTL).await);
        corrupt(store.get(&key).await);
        corrupt(store.wait(&key, lease.token).await);
        assert!(store.forget(&key).await.unwrap(), "{name}");
        claim(&store, &key).await;
    }
}

/// P1: two stores, as in two processes, keep one another out, and read what the other wrote.
#[tokio::test]
async fn p1_p2_stores_of_one_server_share_its_records() {
    let client = client();
    let here = RedisStore::new(connection(&client).await);
    let there = RedisStore::new(connection(&client).await);
    let lease = claim(&here, &key("k")).await;
    let held = there.claim(&key("k"), &request()).await.unwrap();
    assert_eq!(held, Claim::InProgress { token: lease.token });
    let stranger = tower_idempotency::Lease {
        owner: OwnerId::random(),
        ..lease
    };
    assert!(
        there
            .complete(&key("k"), &stranger, &answer(), TTL)
            .await
            .is_err()
    );
    // The lease, not the connection, is the proof.
    there
        .complete(&key("k"), &lease, &answer(), TTL)
        .await
        .unwrap();
    let replayed = here.claim(&key("k"), &request()).await.unwrap();
    assert_eq!(replayed, Claim::Completed(answer()));
}

/// U19: nothing that is shown has an address, a password or a key in it.
#[tokio::test]
async fn u19_debug_shows_no_secret() {
    let client = redis::Client::open("redis://user:secret@127.0.0.1:1/").unwrap();
    let store = RedisStore::new(connection(&crate::support::client()).await).with_client(client);
    claim(&store, &key("secret")).await;
    let shown = format!("{store:?}");
    assert!(
        !shown.contains("secret") && !shown.contains("127"),
        "{shown}"
    );
}

/// P2: a time that a script cannot hold as a number is compared all the same.
#[tokio::test]
async fn p2_a_replay_in_the_far_future_is_one() {
    let (store, _eyes) = with_eyes().await;
    store.advance_clock(Duration::from_micros(1 << 53));
    completed(&store, &key("k")).await;
    for _ in 0..2 {
        let replayed = store.claim(&key("k"), &request()).await.unwrap();
        assert_eq!(replayed, Claim::Completed(answer()));
        store.advance_clock(TTL - LEASE);
    }
    store.advance_clock(TTL);
    granted(store.claim(&key("k"), &request()).await);
}
