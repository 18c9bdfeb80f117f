//! `Expect: 100-continue`: a client that asks before it sends.

use std::time::Duration;

use crate::support::{
    Client, LAST_CHUNK, RAW, Server, Stack, chunk, fresh_key, head, post, request, whole,
};

fn asking(lines: &str) -> String {
    head("/pay", &format!("expect: 100-continue\n{lines}"))
}

/// A good request is told to go on, and its retry too, which replays.
#[tokio::test]
async fn good_requests_are_told_to_go_on() {
    for stack in RAW {
        for (length, body) in [
            ("content-length: 4", b"good".to_vec()),
            (
                "transfer-encoding: chunked",
                [&chunk(b"good"), LAST_CHUNK].concat(),
            ),
        ] {
            let server = Server::start(stack, |layer| layer).await;
            let mut connection = server.connect().await;
            for replay in [false, true] {
                connection
                    .send(asking(&format!("idempotency-key: k\n{length}")))
                    .await;
                assert_eq!(connection.answer().await.status, 100);
                assert_eq!(server.service.started(), usize::from(replay));
                connection.send(&body).await;
                let answer = connection.answer().await;
                assert_eq!((answer.status, answer.is_replay()), (201, replay));
            }
            connection.assert_usable("after 100-continue").await;
        }
    }
}

/// One go-ahead is enough, however many pieces the body comes in; the next thing that is sent is
/// the answer, or its replay, which has no 1xx of its own.
#[tokio::test]
async fn one_go_ahead_for_a_body_in_pieces() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        for replay in [false, true] {
            let lines = "idempotency-key: k\ntransfer-encoding: chunked";
            connection.send(asking(lines)).await;
            assert_eq!(connection.answer().await.status, 100);
            for piece in [&b"g"[..], b"oo", b"d"] {
                connection.send(chunk(piece)).await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            connection.send(LAST_CHUNK).await;
            let answer = connection.answer().await;
            assert_eq!((answer.status, answer.is_replay()), (201, replay));
        }
        connection.assert_usable("after 100-continue").await;
    }
}

/// Without a body there is nothing to go ahead with, for good requests and for bad ones.
#[tokio::test]
async fn nothing_to_go_ahead_with() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        for (lines, status) in [
            ("idempotency-key: k\ncontent-length: 0", 201),
            ("idempotency-key: k\ncontent-length: 0", 201),
            ("content-length: 0", 400),
            ("x: no length", 400),
        ] {
            let answer = connection.send(asking(lines)).await.answer().await;
            assert_eq!(answer.status, status);
            assert_eq!(answer.header("connection"), None);
        }
        connection.assert_usable("nothing to go ahead with").await;
    }
}

/// Over HTTP/2 nobody has to be told: good requests are answered, and replayed, and refused ones
/// cost their stream only.
#[tokio::test]
async fn expectations_over_http_2() {
    let server = Server::start(Stack::Http2, |layer| layer).await;
    let mut client = Client::connect(server.addr).await;
    let asking = |keys: &[&[u8]]| {
        let mut request = request("/pay", keys, whole("good"));
        let expect = "100-continue".parse().unwrap();
        request.headers_mut().insert("expect", expect);
        request
    };
    for replay in [false, true] {
        let answer = client.send(asking(&[b"k"])).await;
        assert_eq!((answer.status, answer.is_replay()), (201, replay));
        let answer = client.send(asking(&[])).await;
        answer.assert_refused(400, "key-missing", "no key");
    }
    client.assert_usable("after expectations").await;
}

/// A request that will be refused is not told to send its body. The connection ends, since nobody
/// knows whether the body comes all the same.
#[tokio::test]
async fn refused_requests_are_not_told_to_go_on() {
    for stack in RAW {
        for (lines, status, kind) in [
            ("content-length: 4", 400, "key-missing"),
            ("transfer-encoding: chunked", 400, "key-missing"),
            ("idempotency-key: \"\ncontent-length: 4", 400, "key-invalid"),
            (
                "idempotency-key: a, b\ncontent-length: 102400",
                400,
                "key-invalid",
            ),
            (
                "idempotency-key: k\ncontent-length: 1048577",
                413,
                "body-too-large",
            ),
            (
                "idempotency-key: k\ncontent-length: 10000000000",
                413,
                "body-too-large",
            ),
        ] {
            let server = Server::start(stack, |layer| layer).await;
            let mut connection = server.connect().await;
            connection.send(asking(lines)).await;
            // Not 100, and without a byte of the body.
            let answer = connection.answer().await;
            answer.assert_refused(status, kind, lines);
            connection.assert_closed(lines).await;
            server.assert_untouched(lines);
        }
    }
}

/// One that was told to go on, and turns out too large on the way, still gets its answer whole:
/// what it sends is read, as from any other client.
#[tokio::test]
async fn u16_too_large_after_the_go_ahead() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer.body_limit(100_000)).await;
        let mut connection = server.connect().await;
        let key = fresh_key();
        connection
            .send(asking(&format!(
                "idempotency-key: {key}\ntransfer-encoding: chunked"
            )))
            .await;
        assert_eq!(connection.answer().await.status, 100);
        for _ in 0..15 {
            connection.try_send(chunk(&[b'x'; 10_000])).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        connection.try_send(LAST_CHUNK).await;
        let answer = connection.answer().await;
        answer.assert_refused(413, "body-too-large", "told to go on");
        server.assert_untouched("told to go on");
        connection.assert_usable("told to go on").await;
    }
}

/// One that was told to go on and stalls gets 408.
#[tokio::test]
async fn stalled_after_the_go_ahead() {
    for stack in RAW {
        let timeout = Duration::from_millis(100);
        let server = Server::start(stack, |layer| layer.body_timeout(timeout)).await;
        let mut connection = server.connect().await;
        connection
            .send(asking("idempotency-key: k\ncontent-length: 4"))
            .await;
        assert_eq!(connection.answer().await.status, 100);
        connection.send("x").await;
        let answer = connection.answer().await;
        answer.assert_refused(408, "body-too-slow", "stalled");
        connection.assert_closed("stalled").await;
        server.assert_untouched("stalled");
    }
}

/// A client that asks and does not wait for the answer is served like any other.
#[tokio::test]
async fn impatient_clients() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        connection
            .send(post("expect: 100-continue\nidempotency-key: k", b"good"))
            .await;
        let mut answer = connection.answer().await;
        if answer.status == 100 {
            answer = connection.answer().await;
        }
        assert_eq!(answer.status, 201);
        connection.assert_usable("impatient").await;
    }
}
