//! Bodies over HTTP/1.1 that break off, stall, lie about their length, or are too large.

use std::time::{Duration, Instant};

use crate::support::{
    LAST_CHUNK, PATIENCE, RAW, Server, chunk, fresh_key, head, post, soon, until,
};

const KNOWN: &str = "content-length: 100";
const UNKNOWN: &str = "transfer-encoding: chunked";

fn begin(lines: &str) -> String {
    head(
        "/pay",
        &format!("idempotency-key: {}\n{lines}", fresh_key()),
    )
}

/// What a client does that leaves.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    /// Closes.
    Closes,
    /// Closes with a reset.
    IsKilled,
    /// Sends no more, and waits for an answer.
    StopsSending,
}

/// U17: the handler never runs, nothing is stored, whenever and however the client leaves.
#[tokio::test]
async fn u17_bodies_that_break_off() {
    for stack in RAW {
        for (lines, sent) in [
            (KNOWN, b"".to_vec()),
            (KNOWN, b"x".to_vec()),
            (KNOWN, vec![b'x'; 99]),
            (UNKNOWN, b"".to_vec()),
            (UNKNOWN, b"5".to_vec()),
            (UNKNOWN, b"5\r\nab".to_vec()),
            (UNKNOWN, b"5\r\nabcde".to_vec()),
            (UNKNOWN, chunk(b"abcde")),
            (UNKNOWN, b"5\r\nabcde\r\n0".to_vec()),
            (UNKNOWN, b"5\r\nabcde\r\n0\r\n".to_vec()),
            (UNKNOWN, b"5\r\nabcde\r\n0\r\nx-trailer: 1\r\n".to_vec()),
        ] {
            for leaves in [Leaves::Closes, Leaves::IsKilled, Leaves::StopsSending] {
                let case = format!("{stack:?} {leaves:?} {:?}", String::from_utf8_lossy(&sent));
                let server = Server::start(stack, |layer| layer).await;
                let mut connection = server.connect().await;
                connection.send(begin(lines)).await.send(&sent).await;
                until("the head", || server.service.present() == 1).await;
                match leaves {
                    Leaves::Closes => drop(connection),
                    Leaves::IsKilled => connection.kill(),
                    Leaves::StopsSending => {
                        connection.end().await;
                        if let Some(answer) = connection.try_answer(false).await {
                            answer.assert_refused(400, "body-broken", &case);
                        }
                        connection.assert_closed(&case).await;
                    }
                }
                until("the end", || server.service.present() == 0).await;
                server.assert_untouched(&case);
            }
        }
    }
}

/// A body that stalls is answered with 408, no earlier than it should, and the connection ends:
/// what comes next on it could be the rest.
#[tokio::test]
async fn bodies_that_stall() {
    const TIMEOUT: Duration = Duration::from_millis(100);
    for stack in RAW {
        for (lines, sent) in [
            (KNOWN, &b""[..]),
            (KNOWN, b"abc"),
            (UNKNOWN, b""),
            (UNKNOWN, b"5\r\nab"),
            (UNKNOWN, b"5\r\nabcde\r\n0\r\n"),
        ] {
            let server = Server::start(stack, |layer| layer.body_timeout(TIMEOUT)).await;
            let mut connection = server.connect().await;
            let start = Instant::now();
            connection.send(begin(lines)).await.send(sent).await;
            let answer = connection.answer().await;
            assert!(start.elapsed() >= TIMEOUT && start.elapsed() < PATIENCE / 2);
            answer.assert_refused(408, "body-too-slow", lines);
            connection.assert_closed(lines).await;
            server.assert_untouched(lines);
        }
        // Drop by drop it does not end in time either.
        let server = Server::start(stack, |layer| layer.body_timeout(TIMEOUT)).await;
        let mut connection = server.connect().await;
        connection.send(begin(UNKNOWN)).await;
        soon("an answer", async {
            while server.service.present() == 0 {
                tokio::task::yield_now().await;
            }
            while server.service.present() == 1 {
                connection.try_send(chunk(b"x")).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let answer = connection.answer().await;
        answer.assert_refused(408, "body-too-slow", "drop by drop");
        server.assert_untouched("drop by drop");
    }
}

/// What is longer than it says begins a request that is none: it is refused by the server, and the
/// body that was complete counts once.
#[tokio::test]
async fn bodies_longer_than_they_say() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        connection
            .send([begin("content-length: 3").as_bytes(), b"abcdef\r\n\r\n"].concat())
            .await;
        let answer = connection.answer().await;
        assert!(answer.text().ends_with(", 3 bytes"), "{}", answer.text());
        if let Some(answer) = connection.try_answer(false).await {
            assert_eq!(answer.status, 400);
        }
        connection.assert_closed("longer").await;
        assert_eq!(server.service.lengths(), [3]);
        assert_eq!(server.store.len(), 1);
    }
}

/// Lengths that contradict themselves, or are no lengths.
#[tokio::test]
async fn lengths_that_are_none() {
    for stack in RAW {
        for lines in [
            "content-length: 3\ncontent-length: 4",
            "content-length: 3, 4",
            "content-length: -3",
            "content-length: +3",
            "content-length: 3x",
            "content-length: 0x3",
            "content-length:",
            "content-length: 99999999999999999999999",
            "transfer-encoding: chunked, gzip",
            "transfer-encoding: identity",
            "transfer-encoding: chunked\ntransfer-encoding: identity",
        ] {
            let case = format!("{stack:?} {lines}");
            let server = Server::start(stack, |layer| layer).await;
            let mut connection = server.connect().await;
            connection
                .send([begin(lines).as_bytes(), b"abcd"].concat())
                .await;
            assert_eq!(connection.answer().await.status, 400, "{case}");
            connection.assert_closed(&case).await;
            server.assert_untouched(&case);
        }
        // Both: the chunks count (RFC 9112, 6.3), and what follows them is not run.
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        let smuggled = post("idempotency-key: smuggled", b"evil");
        connection
            .send(
                [
                    begin("content-length: 5\ntransfer-encoding: chunked").as_bytes(),
                    LAST_CHUNK,
                    &smuggled,
                ]
                .concat(),
            )
            .await;
        while connection.try_answer(false).await.is_some() {}
        assert!(server.service.started() <= 1, "{stack:?}");
        assert!(!server.service.lengths().contains(&4), "{stack:?}");
    }
}

/// U17: chunks that are none break the body off.
#[tokio::test]
async fn u17_chunks_that_are_none() {
    for stack in RAW {
        for sent in [
            &b"zz\r\nab\r\n0\r\n\r\n"[..],
            b"-1\r\nab\r\n0\r\n\r\n",
            b"\r\nab\r\n0\r\n\r\n",
            b"5\r\nabc\r\n0\r\n\r\n",
            b"2\r\nabcd\r\n0\r\n\r\n",
            b"2\r\nab\r\nffffffffffffffffff\r\n",
            b"2\r\nab\r\n0\r\nno trailer\r\n\r\n",
        ] {
            let case = format!("{stack:?} {:?}", String::from_utf8_lossy(sent));
            let server = Server::start(stack, |layer| layer).await;
            let mut connection = server.connect().await;
            connection
                .send([begin(UNKNOWN).as_bytes(), sent].concat())
                .await;
            let answer = connection.answer().await;
            answer.assert_refused(400, "body-broken", &case);
            connection.assert_closed(&case).await;
            server.assert_untouched(&case);
        }
    }
}

/// U16: exactly the limit passes, one byte more is 413 and leaves the connection usable, with
/// known and unknown length, in one piece and in several.
#[tokio::test]
async fn u16_the_limit_of_bodies() {
    const LIMIT: usize = 20_000;
    for stack in RAW {
        let server = Server::start(stack, |layer| layer.body_limit(LIMIT)).await;
        let mut connection = server.connect().await;
        for size in [0, 1, LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT, 5 * LIMIT] {
            for known in [true, false] {
                for piece in [size.max(1), size / 2 + 1, 999] {
                    let case = format!("{stack:?} {size} known: {known} in {piece}");
                    let ran = server.service.started();
                    match known {
                        true => {
                            connection
                                .send(begin(&format!("content-length: {size}")))
                                .await
                        }
                        false => connection.send(begin(UNKNOWN)).await,
                    };
                    // The server is to meet the head alone.
                    until("the head", || size == 0 || server.service.present() == 1).await;
                    let body = vec![b'x'; size];
                    for piece in body.chunks(piece) {
                        match known {
                            true => connection.try_send(piece).await,
                            false => connection.try_send(chunk(piece)).await,
                        };
                    }
                    if !known {
                        connection.try_send(LAST_CHUNK).await;
                    }
                    let answer = connection.answer().await;
                    if size <= LIMIT {
                        assert_eq!(answer.status, 201, "{case}");
                        assert_eq!(server.service.started(), ran + 1, "{case}");
                        assert_eq!(server.service.last_body(), body, "{case}");
                    } else {
                        answer.assert_refused(413, "body-too-large", &case);
                        assert_eq!(server.service.started(), ran, "{case}");
                        assert_eq!(server.store.len(), ran, "{case}");
                        connection.assert_usable(&case).await;
                    }
                }
            }
        }
    }
}

/// U16: a length that is beyond everything is refused at once, without a byte of the body.
#[tokio::test]
async fn u16_ten_gigabytes_are_refused_at_once() {
    for stack in RAW {
        for length in ["10000000000", "9223372036854775807", "18446744073709551612"] {
            let server = Server::start(stack, |layer| layer).await;
            let mut connection = server.connect().await;
            connection
                .send(begin(&format!("content-length: {length}")))
                .await;
            let answer = connection.answer().await;
            answer.assert_refused(413, "body-too-large", length);
            connection.assert_closed(length).await;
            server.assert_untouched(length);
        }
    }
}

/// A body without a byte is a body.
#[tokio::test]
async fn u16_empty_bodies() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer.body_limit(0)).await;
        let mut connection = server.connect().await;
        for (lines, rest) in [
            ("content-length: 0", &b""[..]),
            ("x: no length", b""),
            (UNKNOWN, LAST_CHUNK),
        ] {
            connection
                .send([begin(lines).as_bytes(), rest].concat())
                .await;
            let answer = connection.answer().await;
            assert!(answer.text().ends_with(", 0 bytes"), "{}", answer.text());
        }
        // All of them are one payload.
        for (n, (lines, rest)) in [("content-length: 0", &b""[..]), (UNKNOWN, LAST_CHUNK)]
            .into_iter()
            .enumerate()
        {
            let head = head("/pay", &format!("idempotency-key: one\n{lines}"));
            connection.send([head.as_bytes(), rest].concat()).await;
            assert_eq!(connection.answer().await.is_replay(), n > 0);
        }
    }
}

/// P9: 64 Ki chunks of one byte are one body of 64 KiB, and the same as in one piece.
#[tokio::test]
async fn p9_chunks_of_one_byte() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer).await;
        let mut connection = server.connect().await;
        let body: Vec<u8> = (0..64 * 1024_u32).map(|n| n as u8).collect();
        let head = head("/pay", &format!("idempotency-key: k\n{UNKNOWN}"));
        connection.send(head).await;
        let tiny: Vec<u8> = body.iter().flat_map(|&byte| chunk(&[byte])).collect();
        connection.send(tiny).await.send(LAST_CHUNK).await;
        let answer = connection.answer().await;
        assert_eq!(answer.status, 201);
        assert_eq!(server.service.last_body(), body);

        connection.send(post("idempotency-key: k", &body)).await;
        let replay = connection.answer().await;
        assert!(replay.is_replay());
        assert_eq!(replay.body, answer.body);
    }
}
