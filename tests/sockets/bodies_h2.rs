//! Bodies over HTTP/2 that break off, stall, lie about their length, or are too large.

use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, client::SendRequest};
use http::{Request, StatusCode};
use tokio::net::TcpStream;

use crate::support::{Client, Server, Stack, fresh_key, pieces, request, soon, until, whole};

/// A connection of which each frame is ours.
async fn connect(server: &Server) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

fn post(length: Option<usize>) -> Request<()> {
    let mut request = Request::post("http://localhost/pay").header("idempotency-key", fresh_key());
    if let Some(length) = length {
        request = request.header("content-length", length);
    }
    request.body(()).unwrap()
}

/// The connection is as good as new.
async fn assert_usable(sender: SendRequest<Bytes>, case: &str) {
    let mut sender = soon("a stream", sender.ready()).await.unwrap();
    let (answer, mut body) = sender.send_request(post(None), false).unwrap();
    body.send_data(Bytes::from_static(b"good"), true).unwrap();
    let answer = soon("an answer", answer).await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED, "{case}");
}

/// U17: a stream that is reset in its body never reaches the handler, whatever the client gives as
/// its reason. `NO_ERROR` looks to hyper like the end of the body.
#[tokio::test]
async fn u17_streams_that_are_reset() {
    for reason in [Reason::CANCEL, Reason::NO_ERROR, Reason::INTERNAL_ERROR] {
        for length in [None, Some(10)] {
            for sent in [0, 5] {
                let case = format!("{reason:?} {length:?} {sent}");
                let server = Server::start(Stack::Http2, |layer| layer).await;
                let mut sender = connect(&server).await;
                let (answer, mut body) = sender.send_request(post(length), false).unwrap();
                if sent > 0 {
                    body.send_data(vec![b'x'; sent].into(), false).unwrap();
                }
                until("the head", || server.service.present() == 1).await;
                body.send_reset(reason);
                assert!(soon("the reset", answer).await.is_err(), "{case}");
                until("the end", || server.service.present() == 0).await;
                assert_usable(sender, &case).await;
                assert_eq!(server.service.started(), 1, "{case}");
                assert_eq!(server.store.len(), 1, "{case}");
            }
        }
    }
}

/// U17: so does one whose connection ends.
#[tokio::test]
async fn u17_connections_that_end() {
    for length in [None, Some(10)] {
        let server = Server::start(Stack::Http2, |layer| layer).await;
        let stream = TcpStream::connect(server.addr).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut sender: SendRequest<Bytes> = sender.ready().await.unwrap();
        let (_answer, mut body) = sender.send_request(post(length), false).unwrap();
        body.send_data(Bytes::from_static(b"abc"), false).unwrap();
        until("the head", || server.service.present() == 1).await;
        connection.abort();
        until("the end", || server.service.present() == 0).await;
        server.assert_untouched("the connection ended");
    }
}

/// Less, or more, than was stated is an error of the stream, and of no other.
#[tokio::test]
async fn u17_lengths_that_lie() {
    for (stated, sent) in [(10, 5), (10, 0), (5, 10), (0, 1)] {
        let case = format!("{stated} stated, {sent} sent");
        let server = Server::start(Stack::Http2, |layer| layer).await;
        let mut sender = connect(&server).await;
        let (answer, mut body) = sender.send_request(post(Some(stated)), false).unwrap();
        body.send_data(vec![b'x'; sent].into(), true).unwrap();
        match soon("an answer", answer).await {
            Ok(answer) => assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{case}"),
            Err(error) => assert_eq!(error.reason(), Some(Reason::PROTOCOL_ERROR), "{case}"),
        }
        until("the end", || server.service.present() == 0).await;
        assert_usable(sender, &case).await;
        assert_eq!(
            (server.service.started(), server.store.len()),
            (1, 1),
            "{case}"
        );
    }
}

/// A stalled stream is answered with 408, and its neighbours live on.
#[tokio::test]
async fn streams_that_stall() {
    for sent in [0, 5] {
        let timeout = Duration::from_millis(100);
        let server = Server::start(Stack::Http2, |layer| layer.body_timeout(timeout)).await;
        let mut sender = connect(&server).await;
        let (answer, mut body) = sender.send_request(post(Some(10)), false).unwrap();
        body.send_data(vec![b'x'; sent].into(), false).unwrap();
        let answer = soon("an answer", answer).await.unwrap();
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        server.assert_untouched("stalled");
        assert_usable(sender, "stalled").await;
    }
}

/// U16: exactly the limit passes, one byte more is 413, with known and unknown length; the
/// connection lives on.
#[tokio::test]
async fn u16_the_limit_of_bodies() {
    const LIMIT: usize = 20_000;
    let server = Server::start(Stack::Http2, |layer| layer.body_limit(LIMIT)).await;
    let mut client = Client::connect(server.addr).await;
    for size in [0, 1, LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT, 100 * LIMIT] {
        for known in [true, false] {
            let case = format!("{size} known: {known}");
            let ran = server.service.started();
            let body = Bytes::from(vec![b'x'; size]);
            let sent = match known {
                true => whole(body.clone()),
                false => pieces(body.chunks(999).map(|piece| body.slice_ref(piece))),
            };
            let key = fresh_key();
            let answer = client
                .try_send(request("/pay", &[key.as_bytes()], sent))
                .await;
            let answer = answer.unwrap_or_else(|error| panic!("{case}: {error:?}"));
            if size <= LIMIT {
                assert_eq!(answer.status, 201, "{case}");
                assert_eq!(server.service.last_body(), body, "{case}");
            } else {
                answer.assert_refused(413, "body-too-large", &case);
                assert_eq!(server.service.started(), ran, "{case}");
                assert_eq!(server.store.len(), ran, "{case}");
                client.assert_usable(&case).await;
            }
        }
    }
}

/// U16: a length that is beyond everything is refused at once.
#[tokio::test]
async fn u16_ten_gigabytes_are_refused_at_once() {
    let server = Server::start(Stack::Http2, |layer| layer).await;
    let mut sender = connect(&server).await;
    let length = Some(10_000_000_000);
    let (answer, _body) = sender.send_request(post(length), false).unwrap();
    let answer = soon("an answer", answer).await.unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    server.assert_untouched("ten gigabytes");
    assert_usable(sender, "ten gigabytes").await;
}

/// P9: a body of small frames is one body. h2 bounds how many tiny ones it takes, and ends the
/// connection that sends more; then nothing ran.
#[tokio::test]
async fn p9_small_frames() {
    let body = Bytes::from((0..64 * 1024_u32).map(|n| n as u8).collect::<Vec<_>>());
    for (size, passes) in [(1, false), (512, true)] {
        let server = Server::start(Stack::Http2, |layer| layer).await;
        let mut client = Client::connect(server.addr).await;
        let small = pieces(body.chunks(size).map(|piece| body.slice_ref(piece)));
        let answer = client.try_send(request("/pay", &[b"k"], small)).await;
        match answer {
            Ok(answer) => {
                assert_eq!(answer.status, 201);
                assert_eq!(server.service.last_body(), body);
                let replay = client.send(request("/pay", &[b"k"], whole(body.clone())));
                assert!(replay.await.is_replay());
            }
            Err(error) => {
                assert!(!passes, "{error:?}");
                until("the end", || server.service.present() == 0).await;
                server.assert_untouched("tiny frames");
            }
        }
    }
}
