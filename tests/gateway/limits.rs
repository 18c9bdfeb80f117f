//! P9: limits, each with a clear end.

use std::time::Duration;

use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};

use crate::support::{
    Client, Gateway, Raw, Seen, Upstream, channel, created, empty, full, problem, request, send,
    soon, told,
};

async fn lengths() -> (Seen, Upstream) {
    let seen = Seen::default();
    let upstream = Upstream::start({
        let seen = seen.clone();
        move |request: Request<Incoming>| {
            seen.note(request.headers());
            async {
                let body = crate::support::read(request.into_body()).await?;
                Ok(created(body.len().to_string()))
            }
        }
    });
    (seen, upstream.await)
}

/// P9, U16: a body of just the limit passes under a key, one byte more does not; without a key any does.
#[tokio::test]
async fn p9_u16_bodies() {
    let (seen, upstream) = lengths().await;
    let gateway = Gateway::start(upstream.addr, &["--body-limit", "64KiB"]);
    let limit = 64 * 1024;
    for http2 in [false, true] {
        let post = |key: &'static str, length: usize| {
            let lines = [("idempotency-key", key)];
            let lines = if key.is_empty() { &[][..] } else { &lines };
            let body = full(vec![7; length]);
            send(
                gateway.addr,
                http2,
                request(Method::POST, "/pay", lines, body),
            )
        };
        let exact = post(if http2 { "b" } else { "a" }, limit).await;
        assert_eq!(
            (told(&exact), &exact.body()[..]),
            ((201, false), &b"65536"[..])
        );
        let before = seen.count();
        let beyond = post("c", limit + 1).await;
        assert_eq!(told(&beyond), (413, false));
        assert_eq!(problem(&beyond), "body_too_large");
        assert_eq!(seen.count(), before);
        let without = post("", 4 * limit).await;
        assert_eq!(&without.body()[..], b"262144");
    }
}

/// P9: a head of many kilobytes is refused, whatever asks.
#[tokio::test]
async fn p9_heads() {
    let (seen, upstream) = lengths().await;
    let gateway = Gateway::start(upstream.addr, &[]);
    let mut client = Raw::connect(gateway.addr).await;
    let line = "x".repeat(100 * 1024);
    client
        .send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-long: {line}"))
        .await;
    let head = client.head().await;
    assert!(head.starts_with("http/1.1 431 "), "{head}");

    let mut client = Client::connect(gateway.addr, true).await;
    let sent = request(Method::GET, "/", &[("x-long", &line)], empty());
    // Refused with a status, or not sent at all, since the server has said how much it takes.
    if let Ok(answer) = soon("an answer", client.send(sent)).await {
        assert_eq!(answer.status(), 431);
    }
    assert_eq!(seen.count(), 0);
    let next = send(gateway.addr, true, request(Method::GET, "/", &[], empty())).await;
    assert_eq!(next.status(), 201);
}

/// P9: with all places taken, the next client waits until somebody leaves.
#[tokio::test]
async fn p9_connections() {
    let (_, upstream) = lengths().await;
    let gateway = Gateway::start(upstream.addr, &["--max-connections", "2"]);
    let get = || request(Method::GET, "/", &[], empty());
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(gateway.addr, false).await;
        soon("an answer", client.send(get())).await.unwrap();
        clients.push(client);
    }
    let waiting = tokio::spawn(send(gateway.addr, false, get()));
    // Whoever has a place keeps it meanwhile.
    for client in &mut clients {
        let Client::One(sender) = client else {
            continue;
        };
        soon("its turn", sender.ready()).await.unwrap();
        assert_eq!(
            soon("an answer", client.send(get()))
                .await
                .unwrap()
                .status(),
            201
        );
    }
    assert!(!waiting.is_finished());
    clients.pop();
    assert_eq!(soon("a place", waiting).await.unwrap().status(), 201);
}

/// P9: a client that never ends its head, or never begins, does not keep its place.
#[tokio::test]
async fn p9_slow_and_silent_clients() {
    let (_, upstream) = lengths().await;
    let flags = ["--header-read-timeout", "300ms", "--idle-timeout", "500ms"];
    let gateway = Gateway::start(upstream.addr, &flags);
    for begun in [
        "",
        "G",
        "PRI * HTTP/2.0\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx-slow: ",
    ] {
        let mut client = Raw::connect(gateway.addr).await;
        client.send(begun).await;
        client.rest().await;
    }
    for http2 in [false, true] {
        let mut client = Client::connect(gateway.addr, http2).await;
        let get = request(Method::GET, "/", &[], empty());
        soon("an answer", client.send(get)).await.unwrap();
        soon("the end of an idle connection", async {
            match &mut client {
                Client::One(sender) => {
                    while sender.ready().await.is_ok() {
                        tokio::task::yield_now().await;
                        if sender.is_closed() {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
                Client::Two(sender) => {
                    while !sender.is_closed() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            }
        })
        .await;
    }
}

/// P9: a client that does not take its answer does not keep its place; one that takes it slowly does.
#[tokio::test]
async fn p9_who_takes_nothing_leaves() {
    let upstream = Upstream::start(async |_| {
        let (words, body) = channel();
        tokio::spawn(async move {
            while words
                .send(Ok(Frame::data(vec![0; 65536].into())))
                .await
                .is_ok()
            {}
        });
        Ok(Response::new(body))
    })
    .await;
    let flags = ["--idle-timeout", "400ms", "--max-connections", "1"];
    let gateway = Gateway::start(upstream.addr, &flags);
    let get = || request(Method::GET, "/", &[], empty());

    let mut slow = Client::connect(gateway.addr, false).await;
    let answer = soon("an answer", slow.send(get())).await.unwrap();
    let mut body = answer.into_body();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        for _ in 0..400 {
            soon("more", body.frame()).await.unwrap().unwrap();
        }
    }
    drop((slow, body));

    for http2 in [false, true, false] {
        let mut greedy = Client::connect(gateway.addr, http2).await;
        let answer = soon("an answer", greedy.send(get())).await.unwrap();
        let mut next = Client::connect(gateway.addr, false).await;
        soon("a place", next.send(get())).await.unwrap();
        drop((greedy, answer));
    }
}

/// A connection is not idle while an answer is made or sent, however long that takes: the next request
/// goes over it as well.
#[tokio::test]
async fn what_runs_is_not_idle() {
    let upstream = Upstream::start(async |_| {
        tokio::time::sleep(Duration::from_millis(600)).await;
        let (words, body) = channel();
        tokio::spawn(async move {
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let _ = words.send(Ok(Frame::data("word".into()))).await;
            }
        });
        Ok(Response::new(body))
    })
    .await;
    let gateway = Gateway::start(upstream.addr, &["--idle-timeout", "400ms"]);
    for http2 in [false, true] {
        let mut client = Client::connect(gateway.addr, http2).await;
        for turn in 1..=2 {
            let asked = client.send(request(Method::GET, "/", &[], empty()));
            let answer = soon("an answer", asked).await;
            let answer = answer.unwrap_or_else(|error| panic!("{http2} {turn}: {error}"));
            let body = soon("a body", answer.into_body().collect()).await.unwrap();
            assert_eq!(body.to_bytes(), "wordwordwordword");
            if let Client::One(sender) = &mut client {
                soon("its turn", sender.ready()).await.unwrap();
            }
        }
    }
}
