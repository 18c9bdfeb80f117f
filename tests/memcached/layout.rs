//! What stands in memcached, and what the store does with anything else.

use std::time::Duration;

use bytes::Bytes;
use tower_idempotency::{Claim, ClaimRequest, OwnerId, Payload, Store, StoreError, StoreKey};

use crate::support::{
    LEASE, MemcachedServer, MemcachedStore, TTL, answer, claim, completed, corrupt, granted, key,
    request, store,
};

/// How many seconds an item has left, `-1` for one that stays.
fn left(server: &MemcachedServer, name: &str) -> i64 {
    let answer = server.ask(format!("mg {} t\r\n", key(name).as_str()));
    let answer = String::from_utf8(answer).unwrap();
    let left = answer.trim_end().strip_prefix("HD t");
    left.unwrap_or_else(|| panic!("{name}: {answer}"))
        .parse()
        .unwrap()
}

/// S16: an item has the text of its store key where memcached takes it.
#[tokio::test]
async fn s16_a_record_reads_as_documented() {
    let server = MemcachedServer::start(&[]);
    let store = store(&server);
    let asked = ClaimRequest {
        owner: OwnerId::from_u128(0x0102),
        ..request()
    };
    let lease = granted(store.claim(&key("k"), &asked).await).lease;
    let saved = Some(Bytes::from_static(b"step 1"));
    let renewed = store.renew(&key("k"), &lease, LEASE, TTL, saved).await;
    renewed.unwrap();
    let record = store.get(&key("k")).await.unwrap().unwrap().record;
    let mut expected = b"\x01\0\0\x06test/1".to_vec();
    expected.extend(asked.fingerprint.digest());
    expected.extend(0x0102_u128.to_be_bytes());
    expected.extend(lease.token.as_u64().to_be_bytes());
    expected.extend(1_u32.to_be_bytes());
    for time in [record.created_at, record.lease_until, record.expires_at] {
        expected.extend(time.as_micros().to_be_bytes());
    }
    expected.extend(b"\x01\0\0\0\x06step 1\0");
    assert_eq!(server.value("idem:caller:endpoint:k"), Some(expected));

    let payload = Payload::new(201, Bytes::from_static(b"\0\r\nEND\r\n\xff"));
    let done = store.complete(&key("k"), &lease, &payload, TTL).await;
    done.unwrap();
    let value = server.value("idem:caller:endpoint:k").unwrap();
    assert_eq!(value[1], 1);
    assert!(value.ends_with(b"\0\x01\0\xc9\0\0\0\x09\0\r\nEND\r\n\xff"));
    let replayed = store.claim(&key("k"), &request()).await.unwrap();
    assert_eq!(replayed, Claim::Completed(payload));
}

/// U02, I11, S20: no key can do or address anything but its own record, whatever it holds.
#[tokio::test]
async fn u02_i11_s20_keys_are_only_keys() {
    let server = MemcachedServer::start(&[]);
    let store = store(&server);
    completed(&store, &key("witness")).await;
    let long = "x".repeat(300);
    let longest = "x".repeat(250 - "idem:caller:endpoint:".len());
    let too_long = format!("{longest}x");
    let hashed = format!("#{}", "0".repeat(64));
    let mut keys: Vec<_> = [
        "",
        " ",
        "a b",
        "a",
        "a ",
        "\r\nflush_all\r\n",
        "k\r\nset idem:caller:endpoint:witness 0 0 1\r\nx\r\n",
        "\n",
        "\0",
        "\u{7f}",
        "ключ",
        "é",
        &long,
        &longest,
        &too_long,
        &hashed,
    ]
    .map(key)
    .into();
    // A prefix that is too long is a `#` and a digest, as a hashed key is.
    keys.push(StoreKey::new(&"p".repeat(200), "", "", ""));
    keys.push(StoreKey::new("", "", "", ""));
    for (n, key) in keys.iter().enumerate() {
        let lease = claim(&store, key).await;
        let payload = Payload::new(n as u16, Bytes::from(key.as_str().to_owned()));
        store.complete(key, &lease, &payload, TTL).await.unwrap();
    }
    for (n, key) in keys.iter().enumerate() {
        let payload = Payload::new(n as u16, Bytes::from(key.as_str().to_owned()));
        let found = store.claim(key, &request()).await.unwrap();
        assert_eq!(found, Claim::Completed(payload), "{:?}", key.as_str());
    }
    let witness = store.claim(&key("witness"), &request()).await.unwrap();
    assert_eq!(witness, Claim::Completed(answer()));
    assert_eq!(server.stat("curr_items"), keys.len() as u64 + 1);
    assert_eq!(server.stat("cmd_flush"), 0);
    assert!(server.value(key(&longest).as_str()).is_some());
    let named = MemcachedStore::item_key(&key(" "));
    // As `printf 'idem:caller:endpoint: ' | sha256sum` has it.
    let digest = "b276ce0228efc3d15a90de9615f57ea5ccd1c5945e2c6a734dcfb359274bf1dd";
    assert_eq!(named, format!("#{digest}"));
}

/// U18: whatever stands there, it is read or an error, and nothing panics; an error names a field,
/// and no operation replaces what it cannot read.
#[tokio::test]
async fn u18_u19_any_bytes_are_a_record_or_an_error() {
    let server = MemcachedServer::start(&[]);
    let store = store(&server);
    let lease = claim(&store, &key("k")).await;
    let saved = Some(Bytes::from_static(b"the-progress"));
    let renewed = store.renew(&key("k"), &lease, LEASE, TTL, saved).await;
    renewed.unwrap();
    let running = server.value(key("k").as_str()).unwrap();
    let payload = Payload::new(201, Bytes::from_static(b"the-answer"));
    let done = store.complete(&key("k"), &lease, &payload, TTL).await;
    done.unwrap();
    let done = server.value(key("k").as_str()).unwrap();

    let refuse = async |value: &[u8]| {
        server.set(key("k").as_str(), value);
        let told = [
            corrupt(store.get(&key("k")).await),
            corrupt(store.claim(&key("k"), &request()).await),
            corrupt(store.complete(&key("k"), &lease, &payload, TTL).await),
        ];
        for told in told {
            assert!(!told.contains("the-"), "{told}");
        }
        assert_eq!(server.value(key("k").as_str()).unwrap(), value);
    };
    for value in [&running, &done] {
        for length in 0..value.len() {
            refuse(&value[..length]).await;
        }
        refuse(&[value, &b"x"[..]].concat()).await;
        for at in 0..value.len() {
            for byte in [0, 2, 9, 0xff] {
                let mut spoilt = value.clone();
                spoilt[at] = byte;
                server.set(key("k").as_str(), &spoilt);
                match store.get(&key("k")).await {
                    Ok(_) | Err(StoreError::Corrupt { .. }) => {}
                    other => panic!("{byte} at {at}: {other:?}"),
                }
            }
        }
    }
    for (at, byte) in [(0, 0), (0, 2), (1, 3), (2, 3), (3, 0), (3, 17), (4, b':')] {
        let mut spoilt = done.clone();
        spoilt[at] = byte;
        refuse(&spoilt).await;
    }
    // A state and an answer that do not belong together.
    let mut spoilt = done.clone();
    spoilt[1] = 0;
    refuse(&spoilt).await;
    let mut spoilt = running.clone();
    spoilt[1] = 1;
    refuse(&spoilt).await;
    assert!(store.forget(&key("k")).await.unwrap());
    claim(&store, &key("k")).await;
}

/// U10, P9: memcached drops a record by itself, soon after it expires and never before.
#[tokio::test]
async fn u10_p9_items_end_with_their_records() {
    let server = MemcachedServer::start(&[]);
    let store = store(&server);
    let day = 24 * 3600;
    for (name, seconds) in [("short", 100), ("month", 30 * day), ("year", 365 * day)] {
        let lease = claim(&store, &key(name)).await;
        let ttl = Duration::from_secs(seconds);
        let done = store.complete(&key(name), &lease, &answer(), ttl).await;
        done.unwrap();
        let (left, seconds) = (left(&server, name), seconds as i64);
        // A slow machine has less left.
        assert!(
            (seconds - 30..=seconds + 3).contains(&left),
            "{name}: {left}"
        );
    }
    let lease = claim(&store, &key("forever")).await;
    let longest = Duration::MAX;
    store
        .complete(&key("forever"), &lease, &answer(), longest)
        .await
        .unwrap();
    assert_eq!(left(&server, "forever"), -1);
}

/// P6, U10: what is left of a removed record is there for the length of a token, and no longer.
#[tokio::test]
async fn p6_u10_a_removed_record_leaves_its_token_for_seconds() {
    let server = MemcachedServer::start(&[]);
    let store = store(&server);
    let mut last = None;
    for round in 0..20 {
        let lease = claim(&store, &key("k")).await;
        assert!(last < Some(lease.token), "{round}");
        last = Some(lease.token);
        let freed = store.release(&key("k"), &lease, TTL).await;
        freed.unwrap();
        assert!((0..=4).contains(&left(&server, "k")));
    }
    assert!(!store.forget(&key("k")).await.unwrap());
}
