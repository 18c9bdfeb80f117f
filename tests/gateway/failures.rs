//! What becomes of a key whose request the upstream does not answer.

use std::{io, net::SocketAddr, time::Duration};

use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
};

use crate::{
    servers::process::free_address,
    support::{
        Client, Gateway, Payload, Seen, Upstream, channel, created, empty, post, problem, request,
        send, soon, told,
    },
};

const QUICK: [&str; 2] = ["--upstream-timeout", "300ms"];

/// U03: nobody there, so nothing was done: 502, and the key is free at once, for whatever payload.
#[tokio::test]
async fn u03_a_service_that_is_down_costs_no_key() {
    for unknown in ["retry", "keep"] {
        let addr = free_address();
        let gateway = Gateway::start(addr, &["--unknown", unknown]);
        for body in ["1 EUR", "2 EUR"] {
            let answer = send(gateway.addr, false, post("k", body)).await;
            assert_eq!(told(&answer), (502, false));
            assert_eq!(problem(&answer), "upstream_unreachable");
        }
        let seen = Seen::default();
        let _upstream = Upstream::start_at(addr, {
            let seen = seen.clone();
            move |request: Request<Incoming>| {
                seen.note(request.headers());
                async { Ok(created("paid")) }
            }
        })
        .await;
        let answer = send(gateway.addr, false, post("k", "3 EUR")).await;
        assert_eq!(told(&answer), (201, false));
        assert_eq!(seen.line("idempotency-attempt").as_deref(), Some("1"));
    }
}

/// How a service fails to answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// It closes the connection, or resets the stream.
    Dies,
    /// It says nothing for too long.
    Slow,
}

/// Fails at the first request, and answers the others.
async fn faulty(fault: Fault) -> (Seen, Upstream) {
    let seen = Seen::default();
    let upstream = Upstream::start({
        let seen = seen.clone();
        move |request: Request<Incoming>| {
            let count = seen.note(request.headers());
            async move {
                crate::support::read(request.into_body()).await?;
                match (count, fault) {
                    (1, Fault::Dies) => Err(io::Error::other("it dies")),
                    (1, Fault::Slow) => std::future::pending().await,
                    _ => Ok(created(format!("payment {count}"))),
                }
            }
        }
    });
    (seen, upstream.await)
}

const FAULTS: [(Fault, u16, &str); 2] = [
    (Fault::Dies, 502, "upstream_broken"),
    (Fault::Slow, 504, "upstream_slow"),
];

/// S04, P5: the upstream may have done it, so the same payload may come again at once, as the
/// second attempt, and no other payload may.
#[tokio::test]
async fn s04_p5_unknown_is_tried_again_by_default() {
    for http2 in [false, true] {
        for (fault, status, error) in FAULTS {
            let (seen, upstream) = faulty(fault).await;
            let flags: &[&str] = match http2 {
                true => &[QUICK[0], QUICK[1], "--upstream-http2"],
                false => &QUICK,
            };
            let gateway = Gateway::start(upstream.addr, flags);
            let failed = send(gateway.addr, http2, post("k", "1 EUR")).await;
            assert_eq!(told(&failed), (status, false), "{fault:?} {http2}");
            assert_eq!(problem(&failed), error);
            let other = send(gateway.addr, http2, post("k", "2 EUR")).await;
            assert_eq!(told(&other), (422, false), "{fault:?} {http2}");
            for replayed in [false, true] {
                let again = send(gateway.addr, http2, post("k", "1 EUR")).await;
                assert_eq!(told(&again), (201, replayed), "{fault:?} {http2}");
                assert_eq!(&again.body()[..], b"payment 2");
            }
            assert_eq!(seen.line("idempotency-attempt").as_deref(), Some("2"));
            assert_eq!(seen.count(), 2);
        }
    }
}

/// S04, P2: where a repeated effect is worse than none, the failure is what a retry gets.
#[tokio::test]
async fn s04_p2_unknown_is_kept_where_told() {
    for (fault, status, error) in FAULTS {
        let (seen, upstream) = faulty(fault).await;
        let flags = ["--upstream-timeout", "300ms", "--unknown", "keep"];
        let gateway = Gateway::start(upstream.addr, &flags);
        for replayed in [false, true] {
            let failed = send(gateway.addr, false, post("k", "1 EUR")).await;
            assert_eq!(told(&failed), (status, replayed), "{fault:?}");
            assert_eq!(problem(&failed), error);
        }
        assert_eq!(seen.count(), 1, "{fault:?}");
    }
}

/// A service that takes each request and answers the first of them only, all on one connection.
async fn closes_at_the_second() -> (SocketAddr, mpsc::UnboundedReceiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (got, counted) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut requests = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = Vec::new();
            loop {
                let mut some = [0; 4096];
                match stream.read(&mut some).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => bytes.extend(&some[..n]),
                }
                if !bytes.ends_with(b"1 EUR") {
                    continue;
                }
                bytes.clear();
                requests += 1;
                got.send(requests).unwrap();
                if requests > 1 {
                    break;
                }
                let answer = b"HTTP/1.1 201 Created\r\ncontent-length: 4\r\n\r\npaid";
                stream.write_all(answer).await.unwrap();
            }
        }
    });
    (addr, counted)
}

/// P1: a request that a kept connection may have carried is not sent again over another one.
#[tokio::test]
async fn p1_nothing_is_sent_twice() {
    for key in [true, false] {
        let (addr, mut counted) = closes_at_the_second().await;
        let gateway = Gateway::start(addr, &[]);
        let sent = |name| match key {
            true => post(name, "1 EUR"),
            false => request(Method::POST, "/pay", &[], crate::support::full("1 EUR")),
        };
        assert_eq!(send(gateway.addr, false, sent("a")).await.status(), 201);
        let lost = send(gateway.addr, false, sent("b")).await;
        assert_eq!(lost.status(), 502);
        assert_eq!(problem(&lost), "upstream_broken");
        assert_eq!(counted.recv().await, Some(1));
        assert_eq!(counted.recv().await, Some(2));
        assert!(counted.try_recv().is_err(), "sent a third time");
    }
}

/// RFC 9113, 8.7: a refused stream is a promise that nothing was done; any other reset is none.
#[tokio::test]
async fn u03_a_refused_stream_costs_no_key() {
    for (reason, error, status) in [
        (h2::Reason::REFUSED_STREAM, "upstream_unreachable", 201),
        (h2::Reason::INTERNAL_ERROR, "upstream_broken", 422),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut refused = false;
            while let Ok((stream, _)) = listener.accept().await {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    if !refused {
                        refused = true;
                        respond.send_reset(reason);
                        continue;
                    }
                    let answer = Response::builder().status(201).body(()).unwrap();
                    respond.send_response(answer, true).unwrap();
                }
            }
        });
        let gateway = Gateway::start(addr, &["--upstream-http2"]);
        let failed = send(gateway.addr, false, post("k", "1 EUR")).await;
        assert_eq!(
            (told(&failed), &problem(&failed)[..]),
            ((502, false), error)
        );
        let other = send(gateway.addr, false, post("k", "2 EUR")).await;
        assert_eq!(told(&other), (status, false), "{reason:?}");
    }
}

/// U03: an answer that breaks off in its middle is no answer: its caller sees that, and the retry runs.
#[tokio::test]
async fn u03_an_answer_cut_in_its_middle_is_not_recorded() {
    for key in [&[("idempotency-key", "k")][..], &[]] {
        let seen = Seen::default();
        let upstream = Upstream::start({
            let seen = seen.clone();
            move |request: Request<Incoming>| {
                let count = seen.note(request.headers());
                async move {
                    if count > 1 {
                        return Ok(created("paid"));
                    }
                    let (words, body) = channel();
                    tokio::spawn(async move {
                        let _ = words.send(Ok(Frame::data("pa".into()))).await;
                        let _ = words.send(Err("it dies".into())).await;
                    });
                    let answer = Response::builder().header("content-length", "4");
                    Ok(answer.body(body).unwrap())
                }
            }
        })
        .await;
        let gateway = Gateway::start(upstream.addr, &[]);
        let mut client = Client::connect(gateway.addr, false).await;
        let asked = client.send(request(Method::POST, "/pay", key, empty()));
        // Broken before its head is sent, or in its body.
        if let Ok(answer) = soon("an answer", asked).await {
            assert_eq!(answer.status(), 200);
            let body = soon("a body", answer.into_body().collect()).await;
            assert!(body.is_err(), "{body:?}");
        }
        let again = send(
            gateway.addr,
            false,
            request(Method::POST, "/pay", key, empty()),
        )
        .await;
        assert_eq!(told(&again), (201, false));
        let attempt = if key.is_empty() { None } else { Some("2") };
        assert_eq!(seen.line("idempotency-attempt").as_deref(), attempt);
    }
}

/// I10: the gateway's own failures have the form of their route, too.
#[tokio::test]
async fn i10_failures_as_stripe_has_them() {
    let gateway = Gateway::start(free_address(), &["--refusals", "stripe"]);
    let failed = send(gateway.addr, false, post("k", "1 EUR")).await;
    assert_eq!(told(&failed), (502, false));
    assert_eq!(failed.headers()["content-type"], "application/json");
    let said: serde_json::Value = serde_json::from_slice(failed.body()).unwrap();
    assert_eq!(said["error"]["type"], "api_error");
    assert_eq!(said["error"]["code"], "upstream_unreachable");
}

/// S04, P2: where nothing is to be sent twice, a broken answer is no reason to.
#[tokio::test]
async fn s04_p2_an_answer_cut_in_its_middle_is_kept_where_told() {
    let seen = Seen::default();
    let upstream = Upstream::start({
        let seen = seen.clone();
        move |request: Request<Incoming>| {
            seen.note(request.headers());
            async {
                let (words, body) = channel();
                tokio::spawn(async move {
                    let _ = words.send(Ok(Frame::data("pa".into()))).await;
                    let _ = words.send(Err("it dies".into())).await;
                });
                let answer = Response::builder().header("content-length", "4");
                Ok(answer.body(body).unwrap())
            }
        }
    })
    .await;
    let gateway = Gateway::start(upstream.addr, &["--unknown", "keep"]);
    let mut client = Client::connect(gateway.addr, false).await;
    let answer = soon("an answer", client.send(post("k", ""))).await;
    let body = soon("a body", answer.expect("a head").into_body().collect()).await;
    assert!(body.is_err(), "{body:?}");
    let again = send(gateway.addr, false, post("k", "")).await;
    assert_eq!(
        (told(&again), &problem(&again)[..]),
        ((409, false), "not_replayable")
    );
    assert_eq!(seen.count(), 1);
}

/// The upstream's time runs while it has something to do, not while its client sends slowly.
#[tokio::test]
async fn a_slow_client_is_not_the_services_fault() {
    let upstream = Upstream::start(|request: Request<Incoming>| async {
        let body = crate::support::read(request.into_body()).await?;
        Ok(created(body))
    })
    .await;
    let gateway = Gateway::start(upstream.addr, &["--upstream-timeout", "2s"]);
    let upload = |times: usize, pause: Duration, ends: bool| async move {
        let mut client = Client::connect(gateway.addr, false).await;
        let (words, body) = channel();
        let sent = request(Method::POST, "/upload", &[], body);
        let answer = tokio::spawn(client.send(sent));
        for _ in 0..times {
            words.send(Ok(Frame::data("word ".into()))).await.unwrap();
            tokio::time::sleep(pause).await;
        }
        let words = (!ends).then_some(words);
        let answer = soon("an answer", answer).await.unwrap().unwrap();
        drop(words);
        answer.status()
    };
    // Longer than the limit in all, and never for so long at once.
    assert_eq!(upload(15, Duration::from_millis(200), true).await, 201);
    // And one that stops.
    assert_eq!(upload(1, Duration::ZERO, false).await, 408);
}

/// U04: what the upstream itself says is judged by its status.
#[tokio::test]
async fn u04_the_services_own_words_are_judged_by_status() {
    let seen = Seen::default();
    let upstream = Upstream::start({
        let seen = seen.clone();
        move |request: Request<Incoming>| {
            seen.note(request.headers());
            async move {
                let status = request.uri().path()[1..].parse().unwrap();
                let mut answer: Response<Payload> = Response::new(crate::support::full("said"));
                *answer.status_mut() = http::StatusCode::from_u16(status).unwrap();
                Ok(answer)
            }
        }
    })
    .await;
    let gateway = Gateway::start(upstream.addr, &[]);
    for (status, runs, replayed) in [
        (201, 1, true),
        (303, 1, true),
        (404, 2, false),
        (500, 2, false),
        (502, 2, false),
        (504, 2, false),
    ] {
        let before = seen.count();
        let path = format!("/{status}");
        let asked = || {
            let key = [("idempotency-key", "k")];
            send(
                gateway.addr,
                false,
                request(Method::POST, &path, &key, empty()),
            )
        };
        assert_eq!(told(&asked().await), (status, false));
        let again = asked().await;
        assert_eq!(told(&again), (status, replayed), "{status}");
        assert_eq!(&again.body()[..], b"said");
        assert_eq!(seen.count() - before, runs, "{status}");
    }
}

/// U13, P8: a store that goes away closes the way, and what is not covered goes on.
#[tokio::test]
async fn p8_u13_no_store_no_effect() {
    let seen = Seen::default();
    let upstream = Upstream::start({
        let seen = seen.clone();
        move |request: Request<Incoming>| {
            seen.note(request.headers());
            async { Ok(created("paid")) }
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("records.db");
    let store = format!("sqlite:{}", file.display());
    let gateway = Gateway::start(upstream.addr, &["--store", &store]);
    assert_eq!(
        told(&send(gateway.addr, false, post("a", "")).await),
        (201, false)
    );
    // Somebody else holds the database, and does not let go.
    let url = format!("sqlite://{}", file.display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    let mut holder = pool.acquire().await.unwrap();
    sqlx::query("BEGIN EXCLUSIVE")
        .execute(&mut *holder)
        .await
        .unwrap();
    let refused = send(gateway.addr, false, post("b", "")).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let open = send(
        gateway.addr,
        false,
        request(Method::POST, "/pay", &[], empty()),
    )
    .await;
    assert_eq!(open.status(), 201);
    assert_eq!(seen.count(), 2);
    sqlx::query("ROLLBACK").execute(&mut *holder).await.unwrap();
    // The claim that nobody waited for is given back.
    soon("the key", async {
        while told(&send(gateway.addr, false, post("b", "")).await) != (201, false) {}
    })
    .await;
    assert_eq!(seen.count(), 3);
}
