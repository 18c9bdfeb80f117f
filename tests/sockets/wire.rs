//! What is on the wire: answers fresh, replayed and refused, and what is left of the connection.

use std::time::Duration;

use http::{Method, Request};
use tower_idempotency::{MemoryStore, OnConflict};

use crate::support::{
    Answer, Client, LARGE, RAW, Server, Service, Stack, head, layer, post, post_to, request, until,
    whole,
};

const KEY: &str = "idempotency-key: k";

/// All lines but those that are new each time, or say that it is a replay.
fn lasting(answer: &Answer) -> Vec<(String, Vec<u8>)> {
    let of_the_moment = ["date", "idempotent-replayed"];
    let mut lines = answer.headers.clone();
    lines.retain(|(name, _)| !of_the_moment.contains(&&name[..]));
    lines
}

/// U22: HEAD, 204 and 304 have the same lines without the layer, fresh and replayed: no length is
/// gained or lost.
#[tokio::test]
async fn u22_bodiless_answers_over_http_1() {
    for stack in RAW {
        for (method, path) in [
            ("HEAD", "/pay"),
            ("HEAD", "/stated"),
            ("HEAD", "/streamed"),
            ("HEAD", "/empty"),
            ("HEAD", "/unmodified"),
            ("HEAD", "/unmodified-stated"),
            ("POST", "/empty"),
            ("POST", "/unmodified"),
            ("POST", "/unmodified-stated"),
            ("PATCH", "/empty"),
        ] {
            let case = format!("{stack:?} {method} {path}");
            let bare = Server::start(stack, |layer| layer.covers(|_| false)).await;
            let server = Server::start(stack, |layer| layer.covers(|_| true)).await;
            let sent = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{KEY}\r\n\r\n");
            let mut answers = Vec::new();
            let (mut to_bare, mut connection) = (bare.connect().await, server.connect().await);
            for connection in [&mut to_bare, &mut connection] {
                connection.send(&sent).await;
                answers.push(connection.try_answer(method == "HEAD").await.unwrap());
            }
            connection.send(&sent).await;
            answers.push(connection.try_answer(method == "HEAD").await.unwrap());
            let [bare, fresh, replay] = &answers[..] else {
                unreachable!()
            };
            assert_eq!(
                (fresh.is_replay(), replay.is_replay()),
                (false, true),
                "{case}"
            );
            assert_eq!(
                (bare.status, fresh.status),
                (fresh.status, replay.status),
                "{case}"
            );
            // The body of a HEAD, which is not sent, names the key, so its length differs.
            if (method, path) != ("HEAD", "/pay") {
                assert_eq!(lasting(bare), lasting(fresh), "{case}");
            }
            assert_eq!(lasting(fresh), lasting(replay), "{case}");
            // Nothing of a body was sent that would now stand before the next answer.
            connection.assert_usable(&case).await;
        }
    }
}

/// U22: the same over HTTP/2.
#[tokio::test]
async fn u22_bodiless_answers_over_http_2() {
    let bare = Server::start(Stack::Http2, |layer| layer.covers(|_| false)).await;
    let server = Server::start(Stack::Http2, |layer| layer.covers(|_| true)).await;
    let (mut to_bare, mut client) = (
        Client::connect(bare.addr).await,
        Client::connect(server.addr).await,
    );
    for (method, path) in [
        (Method::HEAD, "/stated"),
        (Method::HEAD, "/streamed"),
        (Method::HEAD, "/empty"),
        (Method::HEAD, "/unmodified"),
        (Method::HEAD, "/unmodified-stated"),
        (Method::POST, "/empty"),
        (Method::POST, "/unmodified"),
        (Method::POST, "/unmodified-stated"),
        (Method::PATCH, "/empty"),
    ] {
        let sent = || -> Request<_> {
            let mut request = request(path, &[b"k"], whole(""));
            *request.method_mut() = method.clone();
            request
        };
        let bare = to_bare.send(sent()).await;
        let fresh = client.send(sent()).await;
        let replay = client.send(sent()).await;
        assert_eq!(
            (fresh.is_replay(), replay.is_replay()),
            (false, true),
            "{path}"
        );
        assert_eq!(lasting(&bare), lasting(&fresh), "{path}");
        assert_eq!(lasting(&fresh), lasting(&replay), "{path}");
    }
}

/// S13, U22, U27: status, Location, duplicate lines in their order and bytes that are not UTF-8
/// are the same in the replay.
#[tokio::test]
async fn s13_u22_u27_headers_survive() {
    let check = |fresh: &Answer, replay: &Answer| {
        assert_eq!((fresh.status, replay.status), (201, 201));
        assert_eq!((fresh.is_replay(), replay.is_replay()), (false, true));
        for answer in [fresh, replay] {
            assert_eq!(answer.header("location"), Some("/payments/1"));
            assert_eq!(answer.all("x-a"), [b"2", b"1", b"2"]);
            assert_eq!(answer.all("x-raw"), [b"caf\xe9 \xff"]);
            assert_eq!(answer.all("x-empty"), [b""]);
            assert_eq!(answer.all("date").len(), 1);
        }
        assert_eq!(lasting(fresh), lasting(replay));
        assert_eq!(fresh.body, replay.body);
    };
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        let fresh = connection
            .send(post_to("/headers", KEY, b"x"))
            .await
            .answer()
            .await;
        let replay = connection
            .send(post_to("/headers", KEY, b"x"))
            .await
            .answer()
            .await;
        check(&fresh, &replay);
    }
    let server = Server::start(Stack::Http2, |layer| layer).await;
    let mut client = Client::connect(server.addr).await;
    let fresh = client.send(request("/headers", &[b"k"], whole("x"))).await;
    let replay = client.send(request("/headers", &[b"k"], whole("x"))).await;
    check(&fresh, &replay);
}

/// I07, I09, S24, U26: each refusal after the body was read leaves the connection usable, too.
#[tokio::test]
async fn i07_i09_the_connection_goes_on_after_a_refusal() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer.response_limit(100)).await;
        let mut runs = server.connect().await;
        runs.send(post_to("/slow", KEY, b"x")).await;
        until("the handler", || server.service.started() == 1).await;

        let mut connection = server.connect().await;
        for size in [1, 300 * 1024] {
            let other = vec![b'y'; size];
            connection.send(post_to("/slow", KEY, &other)).await;
            let answer = connection.answer().await;
            answer.assert_refused(422, "mismatch", "another payload");
            connection.assert_usable("another payload").await;
            connection.send(post_to("/slow", KEY, b"x")).await;
            let answer = connection.answer().await;
            answer.assert_refused(409, "in-progress", "in progress");
            connection.assert_usable("in progress").await;
        }
        server.service.open(1);
        assert_eq!(runs.answer().await.status, 201);
        runs.assert_usable("the first").await;
    }
}

/// P8, P9: so does a store that is full.
#[tokio::test]
async fn p9_the_connection_goes_on_when_the_store_is_full() {
    for stack in RAW {
        let store = MemoryStore::builder().max_entries(1).build();
        let server = Server::with(stack, &layer(store.clone()), Service::new(), store).await;
        let mut connection = server.connect().await;
        connection.send(post(KEY, b"x")).await;
        assert_eq!(connection.answer().await.status, 201);
        for _ in 0..3 {
            connection.send(post("idempotency-key: other", b"x")).await;
            let answer = connection.answer().await;
            answer.assert_refused(503, "overloaded", "a full store");
            connection.send(post(KEY, b"x")).await;
            assert!(connection.answer().await.is_replay());
        }
        assert_eq!((server.service.started(), server.store.len()), (1, 1));
    }
}

/// S14: duplicates that are sent without waiting for the answer: they are answered in order, and
/// each key ran once.
#[tokio::test]
async fn s14_pipelined_duplicates() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        let (one, two) = ("idempotency-key: 1", "idempotency-key: \"2\"");
        let sent = [
            post(one, b"x"),
            post(one, b"x"),
            post(two, b"x"),
            post("idempotency-key: a, b", b"xyz"),
            post(one, b"y"),
            post(two, b"x"),
            post(one, b"x"),
            head("/pay", "x: no key, no length").into_bytes(),
            post(two, b"x"),
        ];
        connection.send(sent.concat()).await;
        let replayed = |answer: &Answer, effect: usize, replay: bool| {
            assert_eq!(
                answer.text(),
                format!("effect {effect} of {effect}, 1 bytes")
            );
            assert_eq!(answer.is_replay(), replay);
        };
        replayed(&connection.answer().await, 1, false);
        replayed(&connection.answer().await, 1, true);
        replayed(&connection.answer().await, 2, false);
        connection
            .answer()
            .await
            .assert_refused(400, "key-invalid", "pipelined");
        connection
            .answer()
            .await
            .assert_refused(422, "mismatch", "pipelined");
        replayed(&connection.answer().await, 2, true);
        replayed(&connection.answer().await, 1, true);
        connection
            .answer()
            .await
            .assert_refused(400, "key-missing", "pipelined");
        replayed(&connection.answer().await, 2, true);
        assert_eq!((server.service.started(), server.store.len()), (2, 2));
        connection.assert_usable("pipelined").await;
    }
}

/// S03, S10, S14: duplicates that are sent at once on two connections while the first of them runs:
/// each connection gets its answers in order, and there is one effect, whether they wait or not.
#[tokio::test]
async fn s03_s10_s14_pipelined_duplicates_of_what_runs() {
    for stack in RAW {
        for wait in [false, true] {
            let case = format!("{stack:?} wait: {wait}");
            let server = Server::start(stack, |layer| match wait {
                true => layer.on_conflict(OnConflict::Wait(Duration::from_secs(60))),
                false => layer,
            })
            .await;
            let twice = [post_to("/slow", KEY, b"x"), post_to("/slow", KEY, b"x")].concat();
            let (mut one, mut two) = (server.connect().await, server.connect().await);
            one.send(&twice).await;
            until("the handler", || server.service.started() == 1).await;
            two.send(&twice).await;
            if wait {
                until("the duplicate", || server.service.present() == 2).await;
            } else {
                for _ in 0..2 {
                    let answer = two.answer().await;
                    answer.assert_refused(409, "in-progress", &case);
                }
            }
            server.service.open(1);
            for (connection, replays) in [(&mut one, [false, true]), (&mut two, [true, true])] {
                if !wait && replays[0] {
                    connection.send(&twice).await;
                }
                for replay in replays {
                    let answer = connection.answer().await;
                    assert_eq!(answer.text(), "effect 1 of k, 1 bytes", "{case}");
                    assert_eq!(answer.is_replay(), replay, "{case}");
                }
                connection.assert_usable(&case).await;
            }
        }
    }
}

/// S14, U07, U27: an answer that was recorded over one protocol is replayed over the other.
#[tokio::test]
async fn s14_u07_u27_replays_over_the_other_protocol() {
    for path in ["/pay", "/headers", "/trailers", "/empty"] {
        for first in [Stack::Http1, Stack::Http2] {
            let case = format!("{path} first over {first:?}");
            let (store, service) = (MemoryStore::new(), Service::new());
            let layer = layer(store.clone());
            let one = Server::with(Stack::Http1, &layer, service.clone(), store.clone()).await;
            let two = Server::with(Stack::Http2, &layer, service.clone(), store.clone()).await;
            let (mut raw, mut client) = (one.connect().await, Client::connect(two.addr).await);
            let mut answers = Vec::new();
            for n in 0..4 {
                let over = if n % 2 == 0 { first } else { other(first) };
                answers.push(match over {
                    Stack::Http2 => client.send(request(path, &[b"k"], whole("x"))).await,
                    _ => {
                        let sent = post_to(path, &format!("{KEY}\nte: trailers"), b"x");
                        raw.send(sent).await.answer().await
                    }
                });
            }
            for (n, answer) in answers.iter().enumerate() {
                assert_eq!(answer.is_replay(), n > 0, "{case}");
                assert_eq!(answer.status, answers[0].status, "{case}");
                assert_eq!(answer.body, answers[0].body, "{case}");
                assert_eq!(answer.trailers, answers[0].trailers, "{case}");
                let mut lines = (lasting(answer), lasting(&answers[0]));
                for lines in [&mut lines.0, &mut lines.1] {
                    lines.retain(|(name, _)| name != "transfer-encoding");
                }
                assert_eq!(lines.0, lines.1, "{case}");
            }
            assert_eq!((service.started(), store.len()), (1, 1), "{case}");
            raw.assert_usable(&case).await;
        }
    }
}

fn other(stack: Stack) -> Stack {
    match stack {
        Stack::Http2 => Stack::Http1,
        _ => Stack::Http2,
    }
}

/// U06: an answer over the limit arrives whole, runs once, and its retry is told so; the connection
/// goes on.
#[tokio::test]
async fn u06_large_answers() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        let first = connection
            .send(post_to("/large", KEY, b"x"))
            .await
            .answer()
            .await;
        assert_eq!((first.status, first.body.len()), (200, LARGE));
        let retry = connection
            .send(post_to("/large", KEY, b"x"))
            .await
            .answer()
            .await;
        retry.assert_refused(409, "not-replayable", "over the limit");
        connection.assert_usable("over the limit").await;
    }
    let server = Server::start(Stack::Http2, |layer| layer).await;
    let mut client = Client::connect(server.addr).await;
    let first = client.send(request("/large", &[b"k"], whole("x"))).await;
    assert_eq!((first.status, first.body.len()), (200, LARGE));
    let retry = client.send(request("/large", &[b"k"], whole("x"))).await;
    retry.assert_refused(409, "not-replayable", "over the limit");
    client.assert_usable("over the limit").await;
}

/// U03: a handler that panics ends its connection, or its stream, and frees its key at once.
#[tokio::test]
async fn u03_a_handler_that_panics() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        connection.send(post_to("/panics", KEY, b"x")).await;
        connection.assert_closed("a panic").await;
        let mut connection = server.connect().await;
        connection.send(post_to("/panics", KEY, b"y")).await;
        let answer = connection.answer().await;
        answer.assert_refused(422, "mismatch", "another payload after a panic");
        connection.send(post_to("/panics", KEY, b"x")).await;
        assert_eq!(connection.answer().await.text(), "effect 1 of k, 1 bytes");
    }
    let server = Server::start(Stack::Http2, |layer| layer).await;
    let mut client = Client::connect(server.addr).await;
    let panics = client
        .try_send(request("/panics", &[b"k"], whole("x")))
        .await;
    assert!(panics.is_err());
    let answer = client.send(request("/panics", &[b"k"], whole("x"))).await;
    assert_eq!(answer.text(), "effect 1 of k, 1 bytes");
}

/// An answer to a client of HTTP/1.0, or one that wants no other after it, ends the connection;
/// its retry replays; so it does under the absolute form of the target.
#[tokio::test]
async fn s14_other_ways_to_ask() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        for (n, line) in [
            "POST /pay HTTP/1.1\r\nhost: x\r\nconnection: close",
            "POST /pay HTTP/1.0",
            "POST http://x/pay HTTP/1.1\r\nhost: x\r\nconnection: close",
        ]
        .iter()
        .enumerate()
        {
            let mut connection = server.connect().await;
            connection
                .send(format!("{line}\r\n{KEY}\r\ncontent-length: 1\r\n\r\nx"))
                .await;
            let answer = connection.answer().await;
            assert_eq!(answer.is_replay(), n > 0, "{line}");
            assert_eq!(answer.text(), "effect 1 of k, 1 bytes");
            connection.assert_closed(line).await;
        }
    }
}
