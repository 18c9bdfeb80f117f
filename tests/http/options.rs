//! What the options of a layer change: where keys come from, whose they are, what refusals say.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::{
    Execution, Fingerprinter, IdempotencyLayer, InvalidKey, KeySource, MemoryStore, OnConflict,
    Outcome, Reason, RequestBody, Scope, Store,
};

use crate::support::{Answer, Effects, Handled, answer, layer, post, read};

/// What came of each request in turn, through services of this layer.
async fn outcomes<S: Store>(
    layer: &IdempotencyLayer<S>,
    requests: impl IntoIterator<Item = Request<Full<Bytes>>>,
) -> Vec<Option<Outcome>> {
    let mut outcomes = Vec::new();
    for request in requests {
        outcomes.push(ask(layer, request).await.0);
    }
    outcomes
}

async fn ask<S: Store>(
    layer: &IdempotencyLayer<S>,
    request: Request<Full<Bytes>>,
) -> (Option<Outcome>, Answer) {
    let handler = |_: Handled| async { answer(201, "done") };
    let service = layer.layer(service_fn(handler));
    let response = service.oneshot(request).await.unwrap();
    let outcome = response.extensions().get::<Outcome>().copied();
    (outcome, read(response).await)
}

fn request(method: &str, uri: &str, headers: &[(&str, &str)], body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::from(body.to_owned())).unwrap()
}

const RAN: Option<Outcome> = Some(Outcome::Completed);
const REPLAYED: Option<Outcome> = Some(Outcome::Replayed);

const fn refused(reason: Reason) -> Option<Outcome> {
    Some(Outcome::Refused(reason))
}

/// S12, I08: missing where required.
#[tokio::test]
async fn s12_i08_a_key_can_be_required() {
    let unkeyed = || request("POST", "/pay", &[], "b");
    let optional = layer(MemoryStore::new());
    assert_eq!(outcomes(&optional, [unkeyed()]).await, [None]);

    let required = optional.require_key(true);
    let (outcome, refusal) = ask(&required, unkeyed()).await;
    assert_eq!(outcome, refused(Reason::KeyMissing));
    assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
    assert_eq!(refusal.problem(), "key-missing");
    // S11: other methods need none.
    let get = request("GET", "/pay", &[], "");
    assert_eq!(outcomes(&required, [get]).await, [None]);
}

/// S11: POST and PATCH by default; a predicate can narrow and widen.
#[tokio::test]
async fn s11_what_is_covered() {
    let key = [("idempotency-key", "k")];
    let all = ["POST", "PATCH", "PUT", "DELETE"].map(|method| request(method, "/a", &key, ""));
    let default = layer(MemoryStore::new());
    assert_eq!(
        outcomes(&default, all.clone()).await,
        [RAN, RAN, None, None]
    );
    let chosen = layer(MemoryStore::new())
        .covers(|parts| parts.method == "DELETE" || parts.uri.path() == "/b");
    assert_eq!(outcomes(&chosen, all).await, [None, None, None, RAN]);
    let path = request("POST", "/b", &key, "");
    assert_eq!(outcomes(&chosen, [path]).await, [RAN]);
}

/// U33, I12, S21: another caller never receives one caller's answer; U15: the scope is who the
/// caller is.
#[tokio::test]
async fn u33_i12_s21_u15_callers_are_apart() {
    let from = |who: &str| {
        request(
            "POST",
            "/a",
            &[("idempotency-key", "k"), ("x-api-key", who)],
            "b",
        )
    };
    let by_header = IdempotencyLayer::new(MemoryStore::new(), Scope::header("x-api-key"));
    let seen = outcomes(&by_header, [from("ann"), from("bob"), from("ann")]).await;
    assert_eq!(seen, [RAN, RAN, REPLAYED]);
    let (outcome, refusal) = ask(&by_header, post("k", "b")).await;
    assert_eq!(outcome, refused(Reason::CallerUnknown));
    assert_eq!(refusal.status, StatusCode::FORBIDDEN);

    #[derive(Clone)]
    struct Account(&'static str);
    let with = |account, token: &'static str| {
        let mut request = post("k", "b");
        request.extensions_mut().insert(Account(account));
        request
            .headers_mut()
            .insert("authorization", token.parse().unwrap());
        request
    };
    let by_account = IdempotencyLayer::new(
        MemoryStore::new(),
        Scope::extension(|account: &Account| account.0.to_owned()),
    );
    let requests = [with("ann", "t1"), with("ann", "t2"), with("bob", "t1")];
    assert_eq!(outcomes(&by_account, requests).await, [RAN, REPLAYED, RAN]);
    let seen = outcomes(&by_account, [post("k", "b")]).await;
    assert_eq!(seen, [refused(Reason::CallerUnknown)]);
}

/// S21: one key at two endpoints is two operations, unless that is turned off.
#[tokio::test]
async fn s21_endpoints_are_apart() {
    let at = |path| request("POST", path, &[("idempotency-key", "k")], "b");
    let apart = layer(MemoryStore::new());
    let requests = || [at("/a"), at("/b"), at("/a?x=1"), at("/a")];
    let mismatch = refused(Reason::Mismatch);
    let seen = outcomes(&apart, requests()).await;
    assert_eq!(seen, [RAN, RAN, mismatch, REPLAYED]);
    let shared = layer(MemoryStore::new()).scope_by_endpoint(false);
    let seen = outcomes(&shared, requests()).await;
    assert_eq!(seen, [RAN, mismatch, mismatch, REPLAYED]);
}

/// U25: two layers that share a store keep their own settings; and two prefixes their own records.
#[tokio::test(start_paused = true)]
async fn u25_layers_that_share_a_store_keep_their_settings() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let long = layer(Arc::clone(&store)).require_key(true);
    let short = long
        .clone()
        .ttl(Duration::from_secs(1))
        .require_key(false)
        .prefix("other");
    for layer in [&long, &short] {
        assert_eq!(outcomes(layer, [post("k", "b")]).await, [RAN]);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(outcomes(&long, [post("k", "b")]).await, [REPLAYED]);
    assert_eq!(outcomes(&short, [post("k", "b")]).await, [RAN]);
    let unkeyed = || request("POST", "/pay", &[], "b");
    assert_eq!(
        outcomes(&long, [unkeyed()]).await,
        [refused(Reason::KeyMissing)]
    );
    assert_eq!(outcomes(&short, [unkeyed()]).await, [None]);
}

/// U25, U33: a clone can tell callers apart otherwise, and then shares no record with the original.
#[tokio::test]
async fn u25_u33_a_clone_has_a_scope_of_its_own() {
    let store = MemoryStore::new();
    let everybody = layer(store.clone());
    let by_user = everybody.clone().scope(Scope::header("x-user"));
    let from = |user| request("POST", "/pay", &[("idempotency-key", "k"), user], "b");
    let (ann, bob) = (from(("x-user", "ann")), from(("x-user", "bob")));
    assert_eq!(outcomes(&everybody, [post("k", "b")]).await, [RAN]);
    let told = outcomes(&by_user, [ann.clone(), bob.clone(), ann]).await;
    assert_eq!(told, [RAN, RAN, REPLAYED]);
    let unknown = outcomes(&by_user, [post("k", "b")]).await;
    assert_eq!(unknown, [refused(Reason::CallerUnknown)]);
    assert_eq!(outcomes(&everybody, [bob]).await, [REPLAYED]);
    assert_eq!(store.len(), 3);
}

/// P1, U25: one request may pass two layers over one store, a router's and a route's, say. The inner
/// one does not wait for the outer one, nor refuse; where it names its records otherwise, both
/// record.
#[tokio::test(start_paused = true)]
async fn p1_u25_two_layers_over_one_store_on_one_path() {
    for on_conflict in [
        OnConflict::Reject,
        OnConflict::Wait(Duration::from_secs(60)),
    ] {
        for (prefix, records) in [("idem", 1), ("other", 2)] {
            let store = MemoryStore::new();
            let outer = layer(store.clone()).on_conflict(on_conflict);
            let effects = Effects::default();
            let handler = {
                let effects = effects.clone();
                move |_: Request<RequestBody<RequestBody<Full<Bytes>>>>| {
                    let number = effects.add();
                    async move { answer(201, format!("effect {number}")) }
                }
            };
            let inner = outer.clone().prefix(prefix).layer(service_fn(handler));
            let service = outer.layer(inner);
            let start = Instant::now();
            for expected in [RAN, REPLAYED] {
                let response = service.clone().oneshot(post("k", "b")).await.unwrap();
                assert_eq!(response.extensions().get().copied(), expected);
                assert_eq!(read(response).await.text(), "effect 1");
            }
            assert_eq!(start.elapsed(), Duration::ZERO);
            assert_eq!((effects.count(), store.len()), (1, records));
        }
    }
}

/// S05: records expire after 24 hours by default, and the key can be used again, for any payload.
#[tokio::test(start_paused = true)]
async fn s05_records_expire() {
    let layer = layer(MemoryStore::new());
    assert_eq!(outcomes(&layer, [post("k", "b")]).await, [RAN]);
    tokio::time::sleep(Duration::from_secs(24 * 60 * 60 - 1)).await;
    assert_eq!(outcomes(&layer, [post("k", "b")]).await, [REPLAYED]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(outcomes(&layer, [post("k", "other")]).await, [RAN]);
}

/// U28: one body under two keys is two operations; S07, I09: two bodies under one key are refused.
#[tokio::test]
async fn u28_s07_i09_keys_and_payloads() {
    let layer = layer(MemoryStore::new());
    let requests = [
        post("1", "b"),
        post("2", "b"),
        post("1", "c"),
        post("1", "b"),
    ];
    let seen = outcomes(&layer, requests).await;
    assert_eq!(seen, [RAN, RAN, refused(Reason::Mismatch), REPLAYED]);
    let (_, refusal) = ask(&layer, post("1", "c")).await;
    assert_eq!(refusal.status, StatusCode::UNPROCESSABLE_ENTITY);
}

/// I03, I11: a validator of one's own, before any lookup, for replays too (U31).
#[tokio::test]
async fn i03_i11_u31_keys_are_validated_each_time() {
    let store = crate::support::Scripted::new();
    let strict = layer(store.clone()).validate_key(|key| match key.as_str().len() {
        8 => Ok(()),
        _ => Err(InvalidKey::new("a key of this resource has 8 characters")),
    });
    assert_eq!(outcomes(&strict, [post("12345678", "b")]).await, [RAN]);
    let calls = store.calls().len();
    let (outcome, refusal) = ask(&strict, post("123", "b")).await;
    assert_eq!(outcome, refused(Reason::KeyInvalid));
    assert!(refusal.text().contains("8 characters"));
    assert_eq!(store.calls().len(), calls, "no lookup");
    // A record that an earlier, laxer version left is not given away.
    assert_eq!(
        outcomes(&layer(store.clone()), [post("123", "b")]).await,
        [RAN]
    );
    let seen = outcomes(&strict, [post("123", "b")]).await;
    assert_eq!(seen, [refused(Reason::KeyInvalid)]);
}

/// I03, I08, I09, I10: where clients can read about keys; and answers of one's own.
#[tokio::test]
async fn i03_i08_i10_refusals_point_to_docs_and_can_be_replaced() {
    let documented = layer(MemoryStore::new())
        .require_key(true)
        .docs_url("https://example.com/docs/idempotency");
    let (_, refusal) = ask(&documented, request("POST", "/a", &[], "")).await;
    let link = "<https://example.com/docs/idempotency>; rel=\"describedby\"";
    assert_eq!(refusal.headers["link"], link);
    let own = "https://example.com/docs/idempotency#key-missing";
    assert!(refusal.text().contains(own), "{}", refusal.text());

    let replaced = documented.on_refusal(|refusal, response| {
        assert_eq!(refusal.status(), response.status());
        Response::builder()
            .status(refusal.status())
            .header("x-reason", refusal.reason().as_str())
            .body(Bytes::from("mine"))
            .unwrap()
    });
    let (outcome, refusal) = ask(&replaced, request("POST", "/a", &[], "")).await;
    assert_eq!(outcome, refused(Reason::KeyMissing));
    assert_eq!((refusal.text(), refusal.status.as_u16()), ("mine", 400));
    assert_eq!(refusal.headers["x-reason"], "key-missing");
}

/// S13, I07, S29, U26: a conflict says when to retry, and a mismatch goes before it.
#[tokio::test(start_paused = true)]
async fn s13_i07_s29_u26_conflicts() {
    let layer = layer(MemoryStore::new()).retry_after(Duration::from_millis(2_500));
    let handler = |_: Handled| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        answer(201, "done")
    };
    let first = tokio::spawn(
        layer
            .layer(service_fn(handler))
            .oneshot(post("order-1", "b")),
    );
    tokio::task::yield_now().await;
    let (outcome, conflict) = ask(&layer, post("order-1", "b")).await;
    assert_eq!(outcome, refused(Reason::InProgress));
    assert_eq!(conflict.status, StatusCode::CONFLICT);
    assert_eq!(conflict.headers["retry-after"], "3");
    let problem: serde_json::Value = serde_json::from_slice(&conflict.body).unwrap();
    assert_eq!(problem["retry_after"], 3);
    assert_eq!(problem["status"], 409);
    assert_eq!(problem["error"], "in_progress");
    assert!(problem["detail"].as_str().unwrap().contains("order-1"));
    let seen = outcomes(&layer, [post("order-1", "other")]).await;
    assert_eq!(seen, [refused(Reason::Mismatch)]);
    assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::CREATED);
}

/// S20, S01: keys from other headers, from the request itself, and from closures.
#[tokio::test]
async fn s20_other_sources_of_keys() {
    let header = layer(MemoryStore::new()).key(KeySource::header("x-request-key"));
    let with = |name| request("POST", "/a", &[(name, "k")], "b");
    let requests = [
        with("x-request-key"),
        with("x-request-key"),
        with("idempotency-key"),
    ];
    assert_eq!(outcomes(&header, requests).await, [RAN, REPLAYED, None]);

    let derived = layer(MemoryStore::new()).key(KeySource::derived());
    let body = |body| request("POST", "/a", &[], body);
    let requests = [body("1"), body("2"), body("1")];
    assert_eq!(outcomes(&derived, requests).await, [RAN, RAN, REPLAYED]);

    let closure = layer(MemoryStore::new()).key(KeySource::from_fn(|parts| {
        let query = parts
            .uri
            .query()
            .and_then(|query| query.strip_prefix("key="));
        query
            .map(tower_idempotency::IdempotencyKey::new)
            .transpose()
    }));
    let at = |uri| request("POST", uri, &[], "b");
    let requests = [at("/a?key=1"), at("/a?key=1"), at("/a?key="), at("/a")];
    let seen = outcomes(&closure, requests).await;
    assert_eq!(seen, [RAN, REPLAYED, refused(Reason::KeyInvalid), None]);

    let first_line = KeySource::from_body(|_, body| {
        let line = body.split(|&b| b == b'\n').next().unwrap_or_default();
        match line {
            b"" => Ok(None),
            line => tower_idempotency::IdempotencyKey::new(String::from_utf8_lossy(line)).map(Some),
        }
    });
    let from_body = layer(MemoryStore::new()).key(first_line);
    let requests = [body("k\n1"), body("k\n1"), body("k\n2"), body("\n1")];
    let seen = outcomes(&from_body, requests).await;
    assert_eq!(seen, [RAN, REPLAYED, refused(Reason::Mismatch), None]);
}

/// S01: the key comes from the JSON body.
#[cfg(feature = "json")]
#[tokio::test]
async fn s01_a_key_in_the_body() {
    let layer = layer(MemoryStore::new())
        .key(KeySource::json_pointer("/idempotency_key"))
        .require_key(true);
    let with = |body| {
        let json = [("content-type", "application/json")];
        request("POST", "/process-request", &json, body)
    };
    let body =
        r#"{"idempotency_key": "abc-123", "payload": {"action": "apply_discount", "amount": 50}}"#;
    let other =
        r#"{"idempotency_key": "abc-123", "payload": {"action": "apply_discount", "amount": 51}}"#;
    let requests = [
        with(body),
        with(body),
        with(other),
        with("{}"),
        with("no json"),
    ];
    let seen = outcomes(&layer, requests).await;
    let missing = refused(Reason::KeyMissing);
    assert_eq!(seen[..3], [RAN, REPLAYED, refused(Reason::Mismatch)]);
    assert_eq!(seen[3..], [missing, missing]);
    for wrong in [r#"{"idempotency_key": 7}"#, r#"{"idempotency_key": ""}"#] {
        assert_eq!(
            outcomes(&layer, [with(wrong)]).await,
            [refused(Reason::KeyInvalid)]
        );
    }
}

/// A body without a key reaches the handler as it came.
#[tokio::test]
async fn a_keyless_body_is_handed_on() {
    let effects = Effects::default();
    let handler = {
        let effects = effects.clone();
        move |request: Handled| {
            let effects = effects.clone();
            async move {
                assert!(request.extensions().get::<Execution>().is_none());
                let body = http_body_util::BodyExt::collect(request.into_body()).await;
                effects.add();
                answer(200, body.unwrap().to_bytes())
            }
        }
    };
    let layer = layer(MemoryStore::new()).key(KeySource::from_body(|_, _| Ok(None)));
    let service = layer.layer(service_fn(handler));
    for _ in 0..2 {
        let passed = service
            .clone()
            .oneshot(request("POST", "/", &[], "all of it"))
            .await;
        assert_eq!(read(passed.unwrap()).await.text(), "all of it");
    }
    assert_eq!(effects.count(), 2);
}

/// S24, I04, U37: fingerprints of one's own; of canonical JSON; and of another version.
#[tokio::test]
async fn s24_i04_u37_fingerprints() {
    let amount_only = layer(MemoryStore::new()).fingerprint(Fingerprinter::from_fn(
        "amount/1",
        |_, body, hasher| {
            hasher.field(body.split(|&b| b == b';').next().unwrap_or_default());
        },
    ));
    let requests = [
        post("k", "100;note"),
        post("k", "100;other"),
        post("k", "200;note"),
    ];
    let seen = outcomes(&amount_only, requests).await;
    assert_eq!(seen, [RAN, REPLAYED, refused(Reason::Mismatch)]);

    // U37: a rolling deploy changes the algorithm.
    let store = MemoryStore::new();
    let old = layer(store.clone());
    let new = old
        .clone()
        .fingerprint(Fingerprinter::request().keyed(b"secret"));
    assert_eq!(outcomes(&old, [post("k", "b")]).await, [RAN]);
    let (outcome, refusal) = ask(&new, post("k", "b")).await;
    assert_eq!(outcome, refused(Reason::OtherAlgorithm));
    assert_eq!(refusal.status, StatusCode::CONFLICT);
    assert!(refusal.headers.contains_key("retry-after"));
    assert_eq!(
        outcomes(&new, [post("new", "b"), post("new", "b")]).await,
        [RAN, REPLAYED]
    );
}

/// S24: canonical JSON, so that the order of members does not matter.
#[cfg(feature = "json")]
#[tokio::test]
async fn s24_canonical_json() {
    let layer = layer(MemoryStore::new()).fingerprint(Fingerprinter::json());
    let json = [
        ("idempotency-key", "k"),
        ("content-type", "application/json"),
    ];
    let with = |body| request("POST", "/pay", &json, body);
    let requests = [
        with(r#"{"amount": 100, "currency": "EUR"}"#),
        with(r#"{"currency":"EUR","amount":1e2}"#),
        with(r#"{"currency":"EUR","amount":"100"}"#),
    ];
    let seen = outcomes(&layer, requests).await;
    assert_eq!(seen, [RAN, REPLAYED, refused(Reason::Mismatch)]);
}

/// Headers have no part in a fingerprint: clients count their tries there.
#[tokio::test]
async fn i04_headers_are_not_compared() {
    let layer = layer(MemoryStore::new());
    let with = |retry| {
        let headers = [("idempotency-key", "k"), ("x-retry-count", retry)];
        request("POST", "/pay", &headers, "b")
    };
    let seen = outcomes(&layer, [with("0"), with("1")]).await;
    assert_eq!(seen, [RAN, REPLAYED]);
}

/// Options that make no sense are refused where they are set.
#[test]
fn nonsense_is_refused_where_it_is_set() {
    let fresh = || layer(MemoryStore::new());
    let nonsense: [fn(IdempotencyLayer<MemoryStore>) -> IdempotencyLayer<MemoryStore>; 5] = [
        |layer| layer.ttl(Duration::ZERO),
        |layer| layer.ttl(Duration::from_nanos(999_999)),
        |layer| layer.lease(Duration::ZERO),
        |layer| layer.lease(Duration::from_micros(9_999)),
        |layer| layer.docs_url("not a url\n"),
    ];
    for set in nonsense {
        let fresh = fresh();
        let set = std::panic::AssertUnwindSafe(|| set(fresh));
        assert!(std::panic::catch_unwind(set).is_err());
    }
}

/// U23, S05: short times are times: a lease of a few milliseconds is held, and renewed, for as long
/// as the handler runs; a record that lives for one is replayed until it expires.
#[tokio::test(start_paused = true)]
async fn u23_s05_short_times_are_kept() {
    let (ttl, lease) = (Duration::from_millis(1), Duration::from_millis(10));
    let layer = layer(MemoryStore::new()).ttl(ttl).lease(lease);
    let handler = |_: Handled| async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        answer(201, "done")
    };
    let service = layer.layer(service_fn(handler));
    let first = tokio::spawn(service.oneshot(post("k", "b")));
    for _ in 0..49 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let seen = outcomes(&layer, [post("k", "b")]).await;
        assert_eq!(seen, [refused(Reason::InProgress)]);
    }
    assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::CREATED);
    assert_eq!(outcomes(&layer, [post("k", "b")]).await, [REPLAYED]);
    tokio::time::sleep(ttl).await;
    assert_eq!(outcomes(&layer, [post("k", "b")]).await, [RAN]);
}

/// Limits and times that are meant as none overflow nothing.
#[tokio::test]
async fn endless_times_overflow_nothing() {
    let endless = layer(MemoryStore::new())
        .ttl(Duration::MAX)
        .lease(Duration::MAX)
        .store_timeout(Duration::MAX)
        .record_timeout(Duration::MAX)
        .body_timeout(Duration::MAX)
        .response_timeout(Duration::MAX)
        .retry_after(Duration::MAX)
        .body_limit(usize::MAX)
        .response_limit(usize::MAX)
        .buffer_limit(usize::MAX)
        .on_conflict(OnConflict::Wait(Duration::MAX));
    let requests = || [post("k", "b"), post("k", "b"), post("k", "c")];
    let seen = outcomes(&endless, requests()).await;
    assert_eq!(seen, [RAN, REPLAYED, refused(Reason::Mismatch)]);
}

/// U37: a record is found again by the next version of this crate. Its name is made of the prefix,
/// the caller, the endpoint and the key, and none of them may be written in another way.
#[tokio::test(start_paused = true)]
async fn u37_s21_records_keep_their_names() {
    for (scope, name) in [
        (
            Scope::single_tenant(),
            "idem::dcf6ef7c655e73c4f388ba367ea8dda5:k",
        ),
        (
            Scope::from_fn(|_| Some("merchant:7".to_owned())),
            "idem:merchant%3A7:dcf6ef7c655e73c4f388ba367ea8dda5:k",
        ),
        (
            Scope::header("x-api-key"),
            "idem:71b064d25dd8d9da6f5519015db2d5424a75c74af583a5aa1b82fa2c930828de:\
             dcf6ef7c655e73c4f388ba367ea8dda5:k",
        ),
    ] {
        let layer = IdempotencyLayer::new(MemoryStore::new(), scope);
        let service = layer.layer(service_fn(|request: Handled| {
            let execution = request.extensions().get::<Execution>().unwrap();
            let name = execution.store_key().as_str().to_owned();
            async { answer(201, name) }
        }));
        let mut request = post("\"k\"", "b");
        let caller = "one".parse().unwrap();
        request.headers_mut().insert("x-api-key", caller);
        let told = read(service.oneshot(request).await.unwrap()).await;
        assert_eq!(told.text(), name);
    }
}
