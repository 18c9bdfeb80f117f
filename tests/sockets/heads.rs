//! Bad heads: keys that are none, and callers who are nobody.

use tower_idempotency::{IdempotencyLayer, KeySource, MemoryStore, Scope};

use crate::support::{
    Client, PATIENCE, RAW, Server, Service, Stack, chunk, fresh_key, head, post, request, whole,
};

const NAME: &str = "idempotency-key";

/// Values that are no key; several lines where there are several.
fn bad() -> Vec<Vec<Vec<u8>>> {
    let one = |value: &[u8]| vec![value.to_vec()];
    let two = |a: &[u8], b: &[u8]| vec![a.to_vec(), b.to_vec()];
    vec![
        // Nothing at all.
        one(b""),
        one(b" \t "),
        one(b"\"\""),
        // Not ASCII, not visible.
        one("schl\u{fc}ssel".as_bytes()),
        one(b"\xff\xfe"),
        one(b"\"caf\xe9\""),
        one("\"\u{1f511}\"".as_bytes()),
        one(b"a\tb"),
        one(b"\"a\tb\""),
        // Too long, in either form; also where escapes double the characters.
        one("a".repeat(256).as_bytes()),
        one(format!("\"{}\"", "a".repeat(256)).as_bytes()),
        one(format!("\"{}\"", "\\\\".repeat(256)).as_bytes()),
        one("a".repeat(8_000).as_bytes()),
        // Repeated: equal, different, in both forms, one of them empty.
        two(b"a", b"a"),
        two(b"a", b"b"),
        two(b"a", b"\"a\""),
        two(b"a", b""),
        two(b"", b""),
        // Joined by a proxy (U38).
        one(b"a, b"),
        one(b"a,b"),
        one(b"a,"),
        one(b",a"),
        one(b"\"a\", \"b\""),
        one(b"\"a\", b"),
        one(b"a, \"b\""),
        // Quotes.
        one(b"\""),
        one(b"\"a"),
        one(b"a\""),
        one(b"a\"b\"c"),
        one(b"\"a\"\""),
        // Escapes.
        one(b"\"a\\"),
        one(b"\"a\\\""),
        one(b"\"a\\n\""),
        one(b"\"a\\u0062\""),
        // What follows a string.
        one(b"\"a\"b"),
        one(b"\"a\" b"),
        one(b"\"a\";"),
        one(b"\"a\";;b"),
        one(b"\"a\";B=1"),
        one(b"\"a\";b=\"c"),
    ]
}

fn lines(values: &[Vec<u8>]) -> Vec<u8> {
    let mut lines = Vec::new();
    for value in values {
        lines.extend_from_slice(b"Idempotency-Key: ");
        lines.extend_from_slice(value);
        lines.extend_from_slice(b"\r\n");
    }
    lines
}

/// A POST of `body` whose lines of keys are these bytes.
fn with(lines: &[u8], body: &[u8]) -> Vec<u8> {
    let start = format!(
        "POST /pay HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n",
        body.len()
    );
    [start.as_bytes(), lines, b"\r\n", body].concat()
}

/// I02, I08, I10, I11, U38: each is answered with 400, nothing runs, nothing is stored, and the
/// connection goes on; also where a body of 100 KiB follows that nobody wants.
#[tokio::test]
async fn i02_i08_i10_i11_u38_bad_keys_over_http_1() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        for (n, values) in bad().iter().enumerate() {
            let case = format!("{stack:?} {:?}", String::from_utf8_lossy(&lines(values)));
            for size in [3, 100 * 1024] {
                let sent = with(&lines(values), &vec![b'x'; size]);
                connection.send(sent).await;
                let answer = connection.answer().await;
                answer.assert_refused(400, "key-invalid", &case);
                assert_eq!(server.service.started(), n, "{case}");
                assert_eq!(server.store.len(), n, "{case}");
            }
            connection.assert_usable(&case).await;
        }
    }
}

/// I02, I08, I10, I11, U38: the same over HTTP/2, on one connection.
#[tokio::test]
async fn i02_i08_i10_i11_u38_bad_keys_over_http_2() {
    let server = Server::start(Stack::Http2, |layer| layer).await;
    let mut client = Client::connect(server.addr).await;
    for values in bad() {
        let case = format!("{:?}", String::from_utf8_lossy(&lines(&values)));
        // What HTTP/1.1 trims, HTTP/2 cannot carry at the ends.
        let values: Vec<_> = values.iter().map(|value| value.trim_ascii()).collect();
        for size in [3, 100 * 1024] {
            let answer = client
                .send(request("/pay", &values, whole(vec![b'x'; size])))
                .await;
            answer.assert_refused(400, "key-invalid", &case);
        }
    }
    server.assert_untouched("bad keys");
    client.assert_usable("after all of them").await;
}

/// I02: what cannot stand in a header at all is refused by the server before the layer sees it.
#[tokio::test]
async fn i02_i11_bytes_that_no_header_may_hold() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        for value in [
            &b"a\0b"[..],
            b"\x01",
            b"a\x7fb",
            b"a\r\n folded: b",
            b"a\rb",
            b"\"a\nb\"",
        ] {
            let case = format!("{stack:?} {value:?}");
            let mut connection = server.connect().await;
            connection.send(with(&lines(&[value.to_vec()]), b"x")).await;
            assert_eq!(connection.answer().await.status, 400, "{case}");
            connection.assert_closed(&case).await;
        }
        server.assert_untouched("bytes that no header may hold");
    }
}

/// S12, I08: no key where one is required; S11: no key is needed where the layer does not look.
#[tokio::test]
async fn s11_s12_i08_a_missing_key() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        for size in [0, 10, 100 * 1024] {
            connection.send(post("", &vec![b'x'; size])).await;
            let answer = connection.answer().await;
            answer.assert_refused(400, "key-missing", "no key");
        }
        server.assert_untouched("no key");
        connection.assert_usable("no key").await;

        connection
            .send("GET /pay HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .await;
        assert!(
            connection
                .answer()
                .await
                .text()
                .ends_with("of none, 0 bytes")
        );
        assert_eq!(server.store.len(), 1);
    }
}

/// I12, U33: a caller who does not say who it is gets 403, whatever follows.
#[tokio::test]
async fn i12_u33_an_unknown_caller() {
    for stack in RAW {
        let store = MemoryStore::new();
        let scope = Scope::header("x-api-key");
        let layer = IdempotencyLayer::new(store.clone(), scope);
        let server = Server::with(stack, &layer, Service::new(), store).await;
        let mut connection = server.connect().await;
        for caller in ["", "\nx-api-key:", "\nx-api-key: a\nx-api-key: a"] {
            for size in [3, 100 * 1024] {
                connection
                    .send(post(&format!("{NAME}: k{caller}"), &vec![b'x'; size]))
                    .await;
                let answer = connection.answer().await;
                answer.assert_refused(403, "caller-unknown", caller);
            }
        }
        server.assert_untouched("unknown callers");
        connection
            .send(post(&format!("{NAME}: k\nx-api-key: a"), b"x"))
            .await;
        assert_eq!(connection.answer().await.status, 201);
    }
}

/// A refused head whose body comes in chunks, or slowly, leaves the connection usable, too; and
/// one whose body never ends is answered all the same, and then cut off.
#[tokio::test]
async fn refusals_come_whatever_the_body_does() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let bad = head("/pay", &format!("{NAME}: \"\ntransfer-encoding: chunked"));

        let mut connection = server.connect().await;
        connection.send(&bad).await;
        for _ in 0..10 {
            connection.send(chunk(&[b'x'; 10 * 1024])).await;
            tokio::task::yield_now().await;
        }
        connection.send("0\r\n\r\n").await;
        let answer = connection.answer().await;
        answer.assert_refused(400, "key-invalid", "in chunks");
        connection.assert_usable("in chunks").await;
        assert_eq!(server.service.started(), 1);

        // More than anyone reads for nothing.
        let mut endless = server.connect().await;
        endless.send(&bad).await;
        for _ in 0..200 {
            endless.try_send(chunk(&[b'x'; 10 * 1024])).await;
        }
        if let Some(answer) = endless.try_answer(false).await {
            answer.assert_refused(400, "key-invalid", "endless");
        }
        endless.assert_closed("endless").await;

        // It just stops.
        let mut stalled = server.connect().await;
        stalled.send(&bad).await.send(chunk(b"x")).await;
        let asked = std::time::Instant::now();
        let answer = stalled.answer().await;
        answer.assert_refused(400, "key-invalid", "stalled");
        assert!(asked.elapsed() < PATIENCE / 2);
        stalled.assert_closed("stalled").await;
        assert_eq!(server.service.started(), 1);
        assert_eq!(server.store.len(), 1);
    }
}

/// I01, U02: all spellings of one key are one key.
#[tokio::test]
async fn i01_u02_spellings_of_one_key() {
    for stack in RAW {
        for (spellings, key) in [
            (
                &[
                    "k",
                    "\"k\"",
                    "  k\t",
                    "\"k\";a",
                    "\"k\"; a=1;b=\"x,y\";c=:aGk=:",
                ][..],
                "k",
            ),
            (&["\"a\\\"b\\\\c\"", "\"a\\\"b\\\\c\";p=?0"], "a\"b\\c"),
            (&["a b", "\"a b\""], "a b"),
            (&["\"a, b\"", "\"a, b\";v=2"], "a, b"),
            (&["\" k \"", " \" k \" "], " k "),
            (&["k;v=1", "\"k;v=1\""], "k;v=1"),
            (&["a:b/c?d=e&f", "\"a:b/c?d=e&f\""], "a:b/c?d=e&f"),
        ] {
            let server = Server::start(stack, |layer| layer).await;
            let mut connection = server.connect().await;
            for (n, spelling) in spellings.iter().enumerate() {
                connection
                    .send(post(&format!("IDEMPOTENCY-KEY: {spelling}"), b"x"))
                    .await;
                let answer = connection.answer().await;
                assert_eq!(answer.status, 201, "{spelling}");
                assert_eq!(answer.text(), format!("effect 1 of {key}, 1 bytes"));
                assert_eq!(answer.is_replay(), n > 0, "{spelling}");
            }
            assert_eq!((server.service.effects(), server.store.len()), (1, 1));
        }
    }
}

/// The longest key passes, in each form, also where escapes make it longer on the wire.
#[tokio::test]
async fn i01_the_longest_keys() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        let (plain, slashes) = ("a".repeat(255), "\\".repeat(255));
        for (sent, key, effect) in [
            (plain.clone(), &plain, 1),
            (format!("\"{plain}\""), &plain, 1),
            (format!("\"{}\"", "\\\\".repeat(255)), &slashes, 2),
            (slashes.clone(), &slashes, 2),
        ] {
            connection
                .send(post(&format!("{NAME}: {sent}"), b"x"))
                .await;
            let answer = connection.answer().await;
            assert_eq!(answer.text(), format!("effect {effect} of {key}, 1 bytes"));
        }
    }
}

/// U32: what official SDKs send is a key like any other, and its retry is a replay.
#[tokio::test]
async fn u32_keys_of_sdks() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        for key in [
            // UUIDs that are not version 4.
            "00000000-0000-0000-0000-000000000000",
            "018f4e9c-7a1b-1c3d-0e4f-ffffffffffff",
            "0190b0f6-5c1d-7d1e-9c1a-6c0f1a2b3c4d",
            "8E03978E-40D5-43DD-BC93-6894A57F9324",
            "auto_4f9c2d1e-0b7a-11ef-9c1a-0242ac120002",
            "stripe-node-retry-5d1a6b4e-6f3c-4a51-8f0e-2b6f8a9c7d10",
            "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        ] {
            for replay in [false, true] {
                connection.send(post(&format!("{NAME}: {key}"), b"x")).await;
                let answer = connection.answer().await;
                assert_eq!((answer.status, answer.is_replay()), (201, replay), "{key}");
            }
        }
    }
}

/// I02: the strict form refuses bare keys on the wire.
#[tokio::test]
async fn i02_strict_keys() {
    for stack in RAW {
        let strict = KeySource::header(NAME).strict();
        let server = Server::start(stack, |layer| layer.key(strict)).await;
        let mut connection = server.connect().await;
        for bare in ["k", "1", "?1", ":aGk=:", "k;v=1", "'k'"] {
            connection
                .send(post(&format!("{NAME}: {bare}"), b"x"))
                .await;
            let answer = connection.answer().await;
            answer.assert_refused(400, "key-invalid", bare);
        }
        server.assert_untouched("bare keys");
        connection.send(post(&format!("{NAME}: \"k\""), b"x")).await;
        assert_eq!(connection.answer().await.status, 201);
    }
}

/// I03: a validator's refusal comes before the body is read, and names its reason.
#[tokio::test]
async fn i03_a_validator_on_the_wire() {
    for stack in RAW {
        let server = Server::start(stack, |layer| {
            layer
                .docs_url("https://docs.example/keys#start")
                .validate_key(|key| match key.as_str().starts_with("order_") {
                    true => Ok(()),
                    false => Err(tower_idempotency::InvalidKey::new("not an order")),
                })
        })
        .await;
        let mut connection = server.connect().await;
        connection
            .send(post(
                &format!("{NAME}: {}", fresh_key()),
                &[b'x'; 100 * 1024],
            ))
            .await;
        let answer = connection.answer().await;
        assert_eq!(answer.status, 400);
        assert_eq!(
            answer.header("link"),
            Some("<https://docs.example/keys#start>; rel=\"describedby\"")
        );
        let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(problem["type"], "https://docs.example/keys#key-invalid");
        assert_eq!(problem["detail"], "not an order");
        server.assert_untouched("no order");
        connection
            .send(post(&format!("{NAME}: order_1"), b"x"))
            .await;
        assert_eq!(connection.answer().await.status, 201);
    }
}

/// Header lines that have nothing to do with the key change nothing.
#[tokio::test]
async fn i11_other_lines_do_not_matter() {
    let server = Server::start(Stack::Http1, |layer| layer).await;
    let mut connection = server.connect().await;
    for (n, more) in [
        "",
        "\nx-retry-count: 1",
        "\nidempotency-key-2: x",
        "\nidempotency_key: x",
    ]
    .iter()
    .enumerate()
    {
        connection
            .send(post(&format!("{NAME}: k{more}"), b"x"))
            .await;
        assert_eq!(connection.answer().await.is_replay(), n > 0, "{more}");
    }
}
