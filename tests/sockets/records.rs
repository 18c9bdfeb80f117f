//! Keys made to look like other records, and more keys than there is room for.

use std::{collections::HashSet, convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Layer, Service as _, ServiceExt, service_fn};
use tower_idempotency::{
    Claim, ClaimRequest, Fingerprint, IdempotencyLayer, MemoryStore, Outcome, OwnerId, Payload,
    Reason, RequestBody, Scope, Store, StoreKey, store::WhenFull,
};

use crate::support::{RAW, Server, Service, head, layer};

/// Callers whose names are not hashed.
fn by_caller(store: MemoryStore) -> IdempotencyLayer<MemoryStore> {
    let scope = Scope::from_fn(|parts| {
        let caller = parts.headers.get("x-caller")?;
        caller.to_str().ok().map(str::to_owned)
    });
    IdempotencyLayer::new(store, scope).require_key(true)
}

/// I11, I12, U02, U33: each caller, endpoint and key is an operation of its own, whatever they
/// hold, and gets its own answer again.
#[tokio::test]
async fn i11_i12_u02_u33_no_key_addresses_another_record() {
    const CALLERS: &[&str] = &["a", "a:b", "a%3Ab", "a:", ":", "%", "#", "idem", "a/pay"];
    const PATHS: &[&str] = &[
        "/pay", "/pay/", "/pay/k", "/pay:k", "/pay%2Fk", "/PAY", "//pay",
    ];
    const KEYS: &[&str] = &[
        "k", "K", "b:k", ":k", "k:", "::k", "%3Ak", "a:b", "#k", "../k", "/pay:k", "*", "k*",
        "{k}", "k k", "idem:a", "%00",
    ];
    for stack in RAW {
        let store = MemoryStore::new();
        let layer = by_caller(store.clone());
        let server = Server::with(stack, &layer, Service::new(), store.clone()).await;
        let mut connection = server.connect().await;
        let mut answers = Vec::new();
        for replay in [false, true] {
            let mut next = 0;
            for caller in CALLERS {
                for path in PATHS {
                    // One that is another's record, in full.
                    let other = StoreKey::new("idem", "a", &"0".repeat(32), "k");
                    for key in KEYS.iter().copied().chain([other.as_str()]) {
                        let lines = format!(
                            "idempotency-key: \"{key}\"\nx-caller: {caller}\ncontent-length: 0"
                        );
                        connection.send(head(path, &lines)).await;
                        let answer = connection.answer().await;
                        assert_eq!(answer.status, 201, "{caller} {path} {key}");
                        assert_eq!(answer.is_replay(), replay, "{caller} {path} {key}");
                        assert!(answer.text().ends_with(&format!(" of {key}, 0 bytes")));
                        if replay {
                            assert_eq!(answers[next], answer.body);
                            next += 1;
                        } else {
                            answers.push(answer.body);
                        }
                    }
                }
            }
        }
        let all = CALLERS.len() * PATHS.len() * (KEYS.len() + 1);
        assert_eq!(answers.iter().collect::<HashSet<_>>().len(), all);
        assert_eq!((server.service.started(), store.len()), (all, all));
    }
}

type Body = Full<Bytes>;

fn post(caller: &str, path: &str, key: &str) -> Request<Body> {
    Request::post(path)
        .header("x-caller", caller)
        .header("idempotency-key", key)
        .body(Full::default())
        .unwrap()
}

async fn created(_: Request<RequestBody<Body>>) -> Result<Response<Body>, Infallible> {
    Ok(Response::builder()
        .status(201)
        .body(Full::from("done"))
        .unwrap())
}

/// I11, U33: nor do prefixes, or keys that are shared between endpoints.
#[tokio::test]
async fn i11_u33_prefixes_and_shared_endpoints() {
    let store = MemoryStore::new();
    let mut records = 0;
    for (prefix, by_endpoint) in [
        ("p", false),
        ("p:a", false),
        ("p%3Aa", false),
        ("", false),
        (":", false),
        ("p", true),
    ] {
        let layer = by_caller(store.clone())
            .prefix(prefix)
            .scope_by_endpoint(by_endpoint);
        let mut service = layer.layer(service_fn(created));
        for caller in ["a", "a:", "a::", ":a", "p"] {
            for key in ["k", ":k", "::k", "a::k", "p:a::k", "k:"] {
                let answer = service.ready().await.unwrap().call(post(caller, "/", key));
                let answer = answer.await.unwrap();
                records += 1;
                assert_eq!(
                    answer.extensions().get(),
                    Some(&Outcome::Completed),
                    "{prefix} {caller} {key}"
                );
                assert_eq!(store.len(), records, "{prefix} {caller} {key}");
            }
        }
    }
}

/// P9: at the limit a new key is refused with 503 and `Retry-After`, an old one replays, and the
/// store never holds more; when the records expire there is room again (S05, S06).
#[tokio::test(start_paused = true)]
async fn p9_s06_more_keys_than_there_is_room_for() {
    const ROOM: usize = 2_000;
    let store = MemoryStore::builder().max_entries(ROOM).build();
    let layer = layer(store.clone()).ttl(Duration::from_secs(60));
    let mut service = layer.layer(service_fn(created));
    for round in 0..3 {
        for n in 0..2 * ROOM {
            let request = post("", "/", &format!("{round}-{n}"));
            let answer = service.ready().await.unwrap().call(request).await.unwrap();
            let outcome = answer.extensions().get().copied();
            if n < ROOM {
                assert_eq!(answer.status(), StatusCode::CREATED, "{n}");
            } else {
                assert_eq!(outcome, Some(Outcome::Refused(Reason::Overloaded)));
                assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
                assert_eq!(answer.headers()["retry-after"], "1");
            }
            assert!(store.len() <= ROOM);
        }
        let old = post("", "/", &format!("{round}-0"));
        let old = service.ready().await.unwrap().call(old).await.unwrap();
        assert_eq!(old.extensions().get(), Some(&Outcome::Replayed));
        tokio::time::advance(Duration::from_secs(61)).await;
    }
}

/// P9: where the oldest may be dropped, everybody passes and the store never holds more.
#[tokio::test(start_paused = true)]
async fn p9_more_keys_than_there_is_room_for_drop_the_oldest() {
    const ROOM: usize = 1_000;
    let store = MemoryStore::builder()
        .max_entries(ROOM)
        .when_full(WhenFull::DropOldestCompleted)
        .build();
    let layer = layer(store.clone());
    let mut service = layer.layer(service_fn(created));
    for n in 0..5 * ROOM {
        let request = post("", "/", &n.to_string());
        let answer = service.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED, "{n}");
        assert!(store.len() <= ROOM);
    }
    assert_eq!(store.evicted(), 4 * ROOM as u64);
}

fn claim(n: usize) -> ClaimRequest {
    ClaimRequest {
        fingerprint: Fingerprint::from_parts("t", [n as u8; 32]).unwrap(),
        owner: OwnerId::random(),
        lease: Duration::from_secs(1),
        ttl: Duration::from_secs(1),
        take_over: true,
    }
}

async fn operation(store: &MemoryStore, n: usize) -> bool {
    let key = StoreKey::new("p", "", "", &n.to_string());
    let request = claim(n);
    let Ok(claim) = store.claim(&key, &request).await else {
        return false;
    };
    let Claim::Claimed(claimed) = claim else {
        panic!("{n}: another has this key");
    };
    let payload = Payload::new(200, Bytes::from_static(b"done"));
    let completed = store.complete(&key, &claimed.lease, &payload, request.ttl);
    completed.await.unwrap();
    true
}

/// P9, S06, U10: a million distinct keys that come a thousand a second and live for a second are
/// about a thousand records, whoever looks for them again; and nothing is left in the end but what
/// has not expired.
#[tokio::test(start_paused = true)]
async fn p9_s06_u10_a_million_keys_that_expire() {
    let store = MemoryStore::new();
    let mut most = 0;
    for n in 0..1_000_000 {
        assert!(operation(&store, n).await);
        most = most.max(store.len());
        if n % 100 == 99 {
            tokio::time::advance(Duration::from_millis(100)).await;
        }
    }
    // Two operations per key remove several records, so what has expired is soon gone.
    assert!(most < 2_000, "{most} records");
    assert!(store.bytes() < 2_000 * 1_000, "{} bytes", store.bytes());
}

/// P9: a million distinct keys that do not expire stop at the limit, or drop the oldest.
#[tokio::test(start_paused = true)]
async fn p9_a_million_keys_that_stay() {
    for (when_full, admitted) in [
        (WhenFull::Refuse, 1_000),
        (WhenFull::DropOldestCompleted, 100_000),
    ] {
        let store = MemoryStore::builder()
            .max_entries(1_000)
            .when_full(when_full)
            .build();
        let mut passed = 0;
        for n in 0..100_000 {
            passed += usize::from(operation(&store, n).await);
            assert!(store.len() <= 1_000);
        }
        assert_eq!(passed, admitted);
        assert_eq!(store.evicted(), admitted as u64 - 1_000);
    }
}
