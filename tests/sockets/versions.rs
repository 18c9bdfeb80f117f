//! HTTP/1.0, ways to frame an answer, and lines that belong to one connection.

use crate::support::{Answer, Client, RAW, Raw, Server, Stack, post_to, request, whole};

const KEY: &str = "idempotency-key: k";

fn old(path: &str, lines: &str) -> String {
    format!("POST {path} HTTP/1.0\r\n{KEY}\r\n{lines}content-length: 1\r\n\r\nx")
}

/// P2: an answer that comes in chunks ends with the connection where the client speaks HTTP/1.0;
/// whoever asked first, the other gets the same body.
#[tokio::test]
async fn p2_answers_in_pieces_to_old_clients() {
    for stack in RAW {
        for path in ["/unknown-length", "/trailers"] {
            for old_first in [true, false] {
                let case = format!("{stack:?} {path} old first: {old_first}");
                let server = Server::start(stack, |layer| layer).await;
                for n in 0..4 {
                    let mut connection = server.connect().await;
                    let is_old = (n % 2 == 0) == old_first;
                    let sent = match is_old {
                        true => old(path, "te: trailers\r\n").into_bytes(),
                        false => post_to(path, &format!("{KEY}\nte: trailers"), b"x"),
                    };
                    let answer = connection.send(sent).await.answer().await;
                    assert_eq!(answer.is_replay(), n > 0, "{case}");
                    assert_eq!(answer.text(), "in pieces", "{case}");
                    if is_old {
                        assert_eq!(answer.header("transfer-encoding"), None, "{case}");
                        connection.assert_closed(&case).await;
                    } else {
                        let trailers = if path == "/trailers" { 2 } else { 0 };
                        assert_eq!(answer.trailers.len(), trailers, "{case}");
                        connection.assert_usable(&case).await;
                    }
                }
                assert_eq!(server.service.effects(), 3, "{case}");
            }
        }
    }
}

/// S14: an old client that asks for its connection to go on gets its answer and the replay on it.
#[tokio::test]
async fn s14_old_clients_that_keep_their_connection() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        for replay in [false, true] {
            let sent = old("/pay", "connection: keep-alive\r\n");
            let answer = connection.send(sent).await.answer().await;
            assert_eq!((answer.status, answer.is_replay()), (201, replay));
            assert_eq!(answer.header("connection"), Some("keep-alive"));
        }
        connection.send(old("/pay", "")).await;
        assert!(connection.answer().await.is_replay());
        connection.assert_closed("no keep-alive").await;
    }
}

/// S14: the forms of one target are one operation, on one connection.
#[tokio::test]
async fn s14_forms_of_the_target() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        for (n, target) in ["/pay?a=1", "http://x/pay?a=1", "HTTP://Y:80/pay?a=1"]
            .iter()
            .enumerate()
        {
            connection.send(post_to(target, KEY, b"x")).await;
            let answer = connection.answer().await;
            assert_eq!(
                (answer.status, answer.is_replay()),
                (201, n > 0),
                "{target}"
            );
        }
        connection.send(post_to("http://x/pay", KEY, b"x")).await;
        let answer = connection.answer().await;
        answer.assert_refused(422, "mismatch", "another query");
    }
}

async fn ask(stack: Stack, server: &Server, path: &str) -> (Answer, Option<Raw>) {
    if stack == Stack::Http2 {
        let mut client = Client::connect(server.addr).await;
        let answer = client.send(request(path, &[b"k"], whole("x"))).await;
        return (answer, None);
    }
    let mut connection = server.connect().await;
    let answer = connection
        .send(post_to(path, KEY, b"x"))
        .await
        .answer()
        .await;
    (answer, Some(connection))
}

/// P2: an answer of unknown length states one once the layer has read it, fresh and replayed.
#[tokio::test]
async fn p2_answers_of_unknown_length() {
    for stack in [Stack::Axum, Stack::Http1, Stack::Http2] {
        let server = Server::start(stack, |layer| layer).await;
        for replay in [false, true] {
            let (answer, connection) = ask(stack, &server, "/unknown-length").await;
            assert_eq!((answer.text(), answer.is_replay()), ("in pieces", replay));
            assert_eq!(answer.header("content-length"), Some("9"));
            assert_eq!(answer.header("transfer-encoding"), None);
            if let Some(mut connection) = connection {
                connection.assert_usable("unknown length").await;
            }
        }
    }
}

/// P2: what the handler says of its own connection, and the time, is not said again. An answer that
/// comes with `Transfer-Encoding`, as a proxy may copy it, arrives.
#[tokio::test]
async fn p2_lines_of_the_connection_are_not_replayed() {
    const THEN: &str = "Thu, 01 Jan 1970 00:00:00 GMT";
    for stack in [Stack::Axum, Stack::Http1, Stack::Http2] {
        let server = Server::start(stack, |layer| layer).await;
        let (fresh, connection) = ask(stack, &server, "/own-lines").await;
        assert_eq!((fresh.text(), fresh.is_replay()), ("in pieces", false));
        assert_eq!(fresh.header("date"), Some(THEN));
        if let Some(mut connection) = connection {
            assert_eq!(fresh.header("transfer-encoding"), Some("chunked"));
            assert_eq!(fresh.header("connection"), Some("close, x-hop"));
            assert_eq!(fresh.header("x-hop"), Some("1"));
            connection.assert_closed("its first answer").await;
        }
        let (replay, connection) = ask(stack, &server, "/own-lines").await;
        assert_eq!((replay.text(), replay.is_replay()), ("in pieces", true));
        assert!(replay.header("date").is_some_and(|date| date != THEN));
        for line in ["connection", "x-hop"] {
            assert_eq!(replay.header(line), None, "{stack:?}");
        }
        // The server's own: the handler's is not recorded.
        let transfer = (stack != Stack::Http2).then_some("chunked");
        assert_eq!(replay.header("transfer-encoding"), transfer);
        assert_eq!(replay.header("content-length"), None);
        if let Some(mut connection) = connection {
            connection.assert_usable("its replay").await;
        }
    }
}

/// P2: an answer in chunks that are none ends all the same, fresh and replayed.
#[tokio::test]
async fn p2_no_data_in_chunks() {
    for stack in [Stack::Axum, Stack::Http1, Stack::Http2] {
        for covers in [false, true] {
            let server = Server::start(stack, |layer| layer.covers(move |_| covers)).await;
            for replay in [false, covers] {
                let (answer, connection) = ask(stack, &server, "/framed-empty").await;
                assert_eq!((answer.text(), answer.is_replay()), ("", replay));
                if let Some(mut connection) = connection {
                    connection.send(post_to("/framed-empty", KEY, b"x")).await;
                    assert_eq!(connection.answer().await.status, 200);
                }
            }
        }
    }
}

/// P10, U24: the handler gets the request's lines as they were sent, under a key as without the
/// layer: duplicates in their order, bytes that are not UTF-8, empty ones.
#[tokio::test]
async fn p10_u24_lines_of_requests_reach_the_handler() {
    let mut sent = format!("POST /pay HTTP/1.1\r\nhost: x\r\n{KEY}\r\n").into_bytes();
    for (name, value) in [
        ("X-A", &b"2"[..]),
        ("x-raw", b"caf\xe9 \xff"),
        ("x-A", b"1"),
        ("x-empty", b""),
        ("x-a", b"2"),
        ("Content-Length", b"1"),
    ] {
        sent.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    sent.extend(b"\r\nx");
    for stack in RAW {
        let mut heads = Vec::new();
        for covers in [false, true] {
            let server = Server::start(stack, |layer| layer.covers(move |_| covers)).await;
            let mut connection = server.connect().await;
            let answer = connection.send(&sent).await.answer().await;
            assert_eq!(answer.text().contains("of k"), covers);
            let head = server.service.last_head();
            let lines = head
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()));
            heads.push(lines.collect::<Vec<_>>());
        }
        assert_eq!(heads[0], heads[1]);
        assert_eq!(heads[0].len(), 8);
        let of_a = heads[0].iter().filter(|(name, _)| name == "x-a");
        let of_a: Vec<_> = of_a.map(|(_, value)| value.as_bytes()).collect();
        assert_eq!(of_a, [b"2", b"1", b"2"]);
        let raw = heads[0].iter().find(|(name, _)| name == "x-raw").unwrap();
        assert_eq!(raw.1.as_bytes(), b"caf\xe9 \xff");
    }
}

/// U06: a status that is no answer is for no server to send, and is never recorded as one: hyper
/// makes it a 500, and the retry is told that nothing can be repeated.
#[tokio::test]
async fn u06_a_handler_that_answers_with_1xx() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        connection.send(post_to("/hints", KEY, b"x")).await;
        assert_eq!(connection.answer().await.status, 500);
        let mut retry = server.connect().await;
        retry.send(post_to("/hints", KEY, b"x")).await;
        let answer = retry.answer().await;
        answer.assert_refused(409, "not-replayable", "1xx");
        assert_eq!(server.service.started(), 1);
    }
}
