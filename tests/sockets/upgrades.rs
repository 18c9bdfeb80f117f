//! Requests that leave HTTP: the bytes after them flow both ways through the layer, untouched.

use http::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Client, Payload, RAW, Raw, Server, Stack, request, soon, whole};

const WEBSOCKET: &str = "connection: upgrade\r\nupgrade: shout\r\n";
const KEY: &str = "idempotency-key: k\r\n";

/// What is said is shouted back, in several turns.
async fn assert_shouts(connection: &mut Raw) {
    for (said, back) in [("hello", "HELLO"), ("a\r\n\r\nb", "A\r\n\r\nB")] {
        connection.send(said).await;
        assert_eq!(connection.take(back.len()).await, back.as_bytes());
    }
}

/// A layer that covers everything it can, and insists on keys.
async fn strict(stack: Stack) -> Server {
    Server::start(stack, |layer| layer.covers(|_| true)).await
}

/// S11, P10: an upgrade passes with and without a key, whatever the layer covers; under one key as
/// often as it is asked for, and nothing is stored.
#[tokio::test]
async fn s11_p10_upgrades_over_http_1() {
    for stack in RAW {
        let server = strict(stack).await;
        let mut started = 0;
        for method in ["GET", "POST"] {
            for key in ["", KEY, KEY, "idempotency-key: \"\r\n"] {
                let case = format!("{stack:?} {method} {key:?}");
                let mut connection = server.connect().await;
                connection
                    .send(format!(
                        "{method} /upgrade HTTP/1.1\r\nhost: x\r\n{WEBSOCKET}{key}\r\n"
                    ))
                    .await;
                let answer = connection.answer().await;
                assert_eq!((answer.status, answer.is_replay()), (101, false), "{case}");
                assert_eq!(answer.header("upgrade"), Some("shout"), "{case}");
                assert_shouts(&mut connection).await;
                started += 1;
                assert_eq!((server.service.started(), server.store.len()), (started, 0));
            }
        }
    }
}

/// S11, P10: so does what the client sends without waiting for the switch.
#[tokio::test]
async fn s11_p10_bytes_that_follow_at_once() {
    for stack in RAW {
        let server = strict(stack).await;
        let mut connection = server.connect().await;
        let head = format!("POST /upgrade HTTP/1.1\r\nhost: x\r\n{WEBSOCKET}{KEY}\r\n");
        connection.send(head + "hello").await;
        assert_eq!(connection.answer().await.status, 101);
        assert_eq!(connection.take(5).await, b"HELLO");
        assert_shouts(&mut connection).await;
    }
}

/// S11, P10: a tunnel over HTTP/1.1.
#[tokio::test]
async fn s11_p10_connect_over_http_1() {
    for stack in RAW {
        let server = strict(stack).await;
        for key in ["", KEY, KEY] {
            let mut connection = server.connect().await;
            let head = format!("CONNECT elsewhere:443 HTTP/1.1\r\nhost: elsewhere\r\n{key}\r\n");
            connection.send(head).await;
            let answer = connection.try_answer(true).await.unwrap();
            assert_eq!((answer.status, answer.is_replay()), (200, false));
            for line in ["content-length", "transfer-encoding"] {
                assert_eq!(answer.header(line), None, "{stack:?} {line}");
            }
            assert_shouts(&mut connection).await;
        }
        assert_eq!((server.service.started(), server.store.len()), (3, 0));
    }
}

/// S11, P10: a tunnel over HTTP/2, and its extended form, which websockets take there (RFC 8441).
#[tokio::test]
async fn s11_p10_connect_over_http_2() {
    let server = strict(Stack::Http2).await;
    let mut client = Client::connect(server.addr).await;
    // The server's settings, which allow the extended form, are there with the first answer.
    client.assert_usable("before").await;
    for extended in [false, true] {
        for key in [None, Some("k"), Some("k")] {
            let case = format!("extended: {extended}, {key:?}");
            let mut request: Request<Payload> = Request::new(whole(""));
            *request.method_mut() = Method::CONNECT;
            let uri = match extended {
                true => "http://localhost/pay",
                false => "elsewhere:443",
            };
            *request.uri_mut() = uri.parse().unwrap();
            if extended {
                let websocket = hyper::ext::Protocol::from_static("websocket");
                request.extensions_mut().insert(websocket);
            }
            if let Some(key) = key {
                let key = key.parse().unwrap();
                request.headers_mut().insert("idempotency-key", key);
            }
            let response = soon("an answer", client.0.send_request(request)).await;
            let response = response.unwrap_or_else(|error| panic!("{case}: {error:?}"));
            assert_eq!(response.status(), StatusCode::OK, "{case}");
            let upgraded = soon("the tunnel", hyper::upgrade::on(response)).await;
            let mut tunnel = TokioIo::new(upgraded.unwrap());
            for (said, back) in [("hello", "HELLO"), ("again", "AGAIN")] {
                tunnel.write_all(said.as_bytes()).await.unwrap();
                let mut read = [0; 5];
                let whole = tunnel.read_exact(&mut read);
                soon("an echo", whole).await.unwrap();
                assert_eq!(read, back.as_bytes(), "{case}");
            }
        }
    }
    assert_eq!((server.service.started(), server.store.len()), (7, 1));
    client.assert_usable("beside tunnels").await;
}

/// An offer of `h2c` is an ordinary request: covered, answered over HTTP/1.1, and replayed.
#[tokio::test]
async fn s14_offers_of_h2c_are_covered() {
    for stack in RAW {
        let server = strict(stack).await;
        let mut connection = server.connect().await;
        for replay in [false, true] {
            connection
                .send(format!(
                    "POST /pay HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\n\
                     upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n{KEY}content-length: 1\r\n\r\nx"
                ))
                .await;
            let answer = connection.answer().await;
            assert_eq!((answer.status, answer.is_replay()), (201, replay));
        }
        connection.assert_usable("after an offer").await;
    }
}

/// U06: a covered request whose handler leaves HTTP all the same: its bytes flow, and a retry is
/// told that there is no answer to repeat.
#[tokio::test]
async fn u06_a_switch_that_nobody_foresaw() {
    for stack in RAW {
        let server = strict(stack).await;
        let head = format!(
            "POST /upgrade HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n{KEY}\r\n"
        );
        let mut connection = server.connect().await;
        let answer = connection.send(&head).await.answer().await;
        assert_eq!(answer.status, 101);
        assert_shouts(&mut connection).await;

        let mut retry = server.connect().await;
        let answer = retry.send(&head).await.answer().await;
        answer.assert_refused(409, "not-replayable", "a switch");
        assert_eq!(server.service.started(), 1);
        assert_shouts(&mut connection).await;
        retry.assert_usable("after a switch").await;
    }
}

/// An answer to an offer of an upgrade that the handler does not take is an ordinary one, and not
/// protected: an upgrade passes before anybody knows what comes of it.
#[tokio::test]
async fn s11_upgrades_that_do_not_happen() {
    for stack in RAW {
        let server = strict(stack).await;
        let mut connection = server.connect().await;
        for n in 1..=2 {
            connection
                .send(format!(
                    "POST /pay HTTP/1.1\r\nhost: x\r\n{WEBSOCKET}{KEY}content-length: 1\r\n\r\nx"
                ))
                .await;
            let answer = connection.answer().await;
            assert_eq!(answer.text(), format!("effect {n} of none, 1 bytes"));
        }
        assert_eq!(server.store.len(), 0);
        connection.assert_usable("no upgrade").await;
    }
    // Over HTTP/2 these lines mean nothing and are no part of a request (RFC 9113, 8.2.2).
    let server = strict(Stack::Http2).await;
    let mut client = Client::connect(server.addr).await;
    for replay in [false, true] {
        let answer = client.send(request("/pay", &[b"k"], whole("x"))).await;
        assert_eq!(answer.is_replay(), replay);
    }
}
