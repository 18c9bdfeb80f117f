//! Trailers, of answers and of requests.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tower_idempotency::{MemoryStore, OnConflict};

use crate::support::{
    Answer, Client, Payload, RAW, Server, Service, Stack, chunk, head, layer, post_to, request,
    until, whole,
};

const KEY: &str = "idempotency-key: k";
const TAKES: &str = "idempotency-key: k\nte: trailers";

#[track_caller]
fn assert_sum(answer: &Answer, body: &str, replay: bool, case: &str) {
    assert_eq!(answer.is_replay(), replay, "{case}");
    assert_eq!(answer.text(), body, "{case}");
    let line = |value: &[u8]| ("x-sum".to_owned(), value.to_vec());
    assert_eq!(answer.trailers, [line(b"1"), line(b"2")], "{case}");
    assert_eq!(answer.header("content-length"), None, "{case}");
}

const BODIES: [(&str, &str); 2] = [("/trailers", "in pieces"), ("/trailers-only", "")];

/// U07: trailers arrive, fresh and replayed, over HTTP/2; also after no data at all.
#[tokio::test]
async fn u07_trailers_over_http_2() {
    for (path, body) in BODIES {
        let server = Server::start(Stack::Http2, |layer| layer).await;
        let mut client = Client::connect(server.addr).await;
        for replay in [false, true] {
            let answer = client.send(request(path, &[b"k"], whole("x"))).await;
            assert_sum(&answer, body, replay, path);
        }
    }
}

/// U07: and over HTTP/1.1, to a client that takes them.
#[tokio::test]
async fn u07_trailers_over_http_1() {
    for stack in RAW {
        for (path, body) in BODIES {
            let server = Server::start(stack, |layer| layer).await;
            let mut connection = server.connect().await;
            for replay in [false, true] {
                connection.send(post_to(path, TAKES, b"x")).await;
                assert_sum(&connection.answer().await, body, replay, path);
            }
            connection.assert_usable("after trailers").await;
        }
    }
}

/// U07: a client that does not take them gets the same body without, and leaves them to one that
/// does.
#[tokio::test]
async fn u07_clients_that_take_no_trailers() {
    for stack in RAW {
        for (path, body) in BODIES {
            let server = Server::start(stack, |layer| layer).await;
            let mut connection = server.connect().await;
            for replay in [false, true] {
                let answer = connection
                    .send(post_to(path, KEY, b"x"))
                    .await
                    .answer()
                    .await;
                assert_eq!((answer.text(), answer.is_replay()), (body, replay));
                assert_eq!(answer.trailers, []);
            }
            connection.send(post_to(path, TAKES, b"x")).await;
            assert_sum(&connection.answer().await, body, true, path);
        }
    }
}

/// U07, P5: after a crash the next attempt's trailers are sent, and replayed.
#[tokio::test]
async fn u07_p5_trailers_after_a_takeover() {
    for stack in [Stack::Axum, Stack::Http1, Stack::Http2] {
        let (store, service) = (MemoryStore::new(), Service::new());
        let crashes = layer(store.clone())
            .lease(Duration::from_millis(10))
            .max_detached(0);
        let server = Server::with(Stack::Http1, &crashes, service.clone(), store.clone()).await;
        let mut connection = server.connect().await;
        connection.send(post_to("/slow-trailers", KEY, b"x")).await;
        until("the handler", || service.started() == 1).await;
        connection.kill();
        until("the server to notice", || service.present() == 0).await;

        service.open(1);
        let server = Server::with(stack, &layer(store.clone()), service.clone(), store).await;
        let ask = async || match stack {
            Stack::Http2 => {
                let mut client = Client::connect(server.addr).await;
                let request = request("/slow-trailers", &[b"k"], whole("x"));
                client.send(request).await
            }
            _ => {
                let mut connection = server.connect().await;
                connection
                    .send(post_to("/slow-trailers", TAKES, b"x"))
                    .await;
                connection.answer().await
            }
        };
        let mut answer = ask().await;
        while answer.status == 409 {
            answer = ask().await;
        }
        assert_sum(&answer, "in pieces", false, "the takeover");
        assert_sum(&ask().await, "in pieces", true, "its replay");
        assert_eq!((service.started(), service.effects()), (2, 1));
    }
}

/// U07, S03: those who waited for the answer get its trailers, too.
#[tokio::test]
async fn u07_s03_trailers_for_those_who_wait() {
    let wait = OnConflict::Wait(Duration::from_secs(60));
    let server = Server::start(Stack::Http2, |layer| layer.on_conflict(wait)).await;
    let client = Client::connect(server.addr).await;
    let calls = [(); 3].map(|()| {
        let mut client = client.clone();
        let request = request("/slow-trailers", &[b"k"], whole("x"));
        tokio::spawn(async move { client.send(request).await })
    });
    until("all to be there", || server.service.present() == 3).await;
    server.service.open(1);
    let mut replays = 0;
    for call in calls {
        let answer = call.await.unwrap();
        replays += usize::from(answer.is_replay());
        assert_sum(&answer, "in pieces", answer.is_replay(), "waited");
    }
    assert_eq!((replays, server.service.effects()), (2, 1));
}

/// The trailers that the requests below carry.
fn sent() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    for value in [&b"2"[..], b"1", b"caf\xe9"] {
        let value = HeaderValue::from_bytes(value).unwrap();
        trailers.append("x-check", value);
    }
    trailers
}

fn with_trailers(keys: &[&[u8]]) -> http::Request<Payload> {
    let frames = [
        Frame::data(Bytes::from_static(b"in ")),
        Frame::data(Bytes::from_static(b"pieces")),
        Frame::trailers(sent()),
    ];
    let frames = futures::stream::iter(frames.map(Ok));
    request("/pay", keys, StreamBody::new(frames).boxed())
}

/// U07: a request's trailers reach the handler, under a key and without one, and have no part in
/// the fingerprint.
#[tokio::test]
async fn u07_trailers_of_requests() {
    for stack in RAW {
        for key in [KEY, "x: no key"] {
            let server = Server::start(stack, |layer| layer.require_key(false)).await;
            let mut connection = server.connect().await;
            let head = head("/pay", &format!("{key}\ntransfer-encoding: chunked"));
            let body = [chunk(b"in "), chunk(b"pieces"), b"0\r\n".to_vec()].concat();
            let trailers = b"X-Check: 2\r\nx-check: 1\r\nx-check: caf\xe9\r\n\r\n";
            let sent_bytes = [head.as_bytes(), &body, trailers].concat();
            let answer = connection.send(sent_bytes).await.answer().await;
            assert_eq!(answer.status, 201);
            assert_eq!(server.service.last_body(), "in pieces");
            assert_eq!(
                server.service.last_trailers(),
                Some(sent()),
                "{stack:?} {key}"
            );

            // None this time.
            let again = [head.as_bytes(), &body, b"\r\n"].concat();
            let answer = connection.send(again).await.answer().await;
            assert_eq!(answer.is_replay(), key == KEY);
            connection.assert_usable("after trailers").await;
        }
    }
    for keys in [&[&b"k"[..]][..], &[]] {
        let server = Server::start(Stack::Http2, |layer| layer.require_key(false)).await;
        let mut client = Client::connect(server.addr).await;
        let answer = client.send(with_trailers(keys)).await;
        assert_eq!(answer.status, 201);
        assert_eq!(server.service.last_body(), "in pieces");
        assert_eq!(server.service.last_trailers(), Some(sent()), "{keys:?}");
        let answer = client.send(request("/pay", keys, whole("in pieces"))).await;
        assert_eq!(answer.is_replay(), !keys.is_empty());
    }
}
