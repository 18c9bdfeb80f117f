//! Heads on the wire, both ways. The rules by themselves are in `rules`.

use http::{Method, Response};
use tokio::net::TcpListener;

use crate::support::{
    Gateway, Raw, Seen, Upstream, created, empty, full, post, request, send, told,
};

async fn noting() -> (Seen, Upstream) {
    let seen = Seen::default();
    let upstream = Upstream::start({
        let seen = seen.clone();
        move |request| {
            seen.note(request.headers());
            async { Ok(created("paid")) }
        }
    });
    (seen, upstream.await)
}

/// What is about a connection stays on it, what is for the end gets there, in its order.
#[tokio::test]
async fn both_ways_lose_what_is_about_the_connection() {
    let seen = Seen::default();
    let upstream = Upstream::start({
        let seen = seen.clone();
        move |request| {
            seen.note(request.headers());
            async {
                let answer = Response::builder()
                    .header("connection", "x-mine")
                    .header("x-mine", "1")
                    .header("keep-alive", "timeout=5")
                    .header("proxy-connection", "keep-alive")
                    .header("upgrade", "h2c")
                    .header("x-many", "b")
                    .header("x-many", "a")
                    .header("via", "1.0 cache")
                    .body(full("hello"));
                Ok(answer.unwrap())
            }
        }
    })
    .await;
    let gateway = Gateway::start(upstream.addr, &["--via", "gate"]);
    let mut client = Raw::connect(gateway.addr).await;
    client
        .send(
            "POST /a%2Fb//c?x=%20&y HTTP/1.1\r\nhost: shop.example\r\nconnection: keep-alive, x-hop\r\n\
             x-hop: 1\r\nkeep-alive: 5\r\nproxy-connection: x\r\nte: trailers, gzip\r\n\
             x-many: b\r\nx-many: a\r\nvia: 1.0 fred\r\nforwarded: for=1.2.3.4\r\n\
             idempotency-attempt: 9\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
    let head = client.head().await;
    for gone in ["x-mine", "keep-alive", "proxy-connection", "upgrade:"] {
        assert!(!head.contains(gone), "{gone} in {head}");
    }
    assert!(head.contains("via: 1.0 cache, 1.1 gate\r\n"), "{head}");
    let (b, a) = (head.find("x-many: b"), head.find("x-many: a"));
    assert!(b.is_some() && b < a, "{head}");

    for gone in [
        "x-hop",
        "keep-alive",
        "proxy-connection",
        "idempotency-attempt",
    ] {
        assert!(seen.lines(gone).is_empty(), "{gone}");
    }
    assert_eq!(seen.line("te").as_deref(), Some("trailers"));
    assert_eq!(seen.lines("x-many"), ["b", "a"]);
    assert_eq!(seen.line("via").as_deref(), Some("1.0 fred, 1.1 gate"));
    assert_eq!(seen.line("host"), Some(upstream.addr.to_string()));
    let forwarded = "for=127.0.0.1;host=\"shop.example\";proto=http";
    assert_eq!(seen.line("forwarded").as_deref(), Some(forwarded));
}

/// The target reaches the upstream as it was sent.
#[tokio::test]
async fn targets_are_kept_as_they_are() {
    let upstream = Upstream::start(async |request: http::Request<_>| {
        Ok(Response::new(full(request.uri().to_string())))
    })
    .await;
    let gateway = Gateway::start(upstream.addr, &[]);
    for (sent, got) in [
        ("/", "/"),
        ("/a%2Fb//c/../d;e?x=%20&y", "/a%2Fb//c/../d;e?x=%20&y"),
        ("http://shop.example/a?b", "/a?b"),
        ("http://shop.example", "/"),
    ] {
        let mut client = Raw::connect(gateway.addr).await;
        let head = format!("GET {sent} HTTP/1.1\r\nhost: shop.example\r\n\r\n");
        client.send(head).await;
        assert!(client.head().await.starts_with("http/1.1 200"), "{sent}");
        assert_eq!(client.take(got.len()).await, got.as_bytes(), "{sent}");
    }
    let mut client = Raw::connect(gateway.addr).await;
    client.send("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.head().await;
    assert_eq!(client.take(1).await, b"*");
}

/// U27: an answer is replayed with the `Via` of its first way.
#[tokio::test]
async fn u27_a_replay_has_the_same_head() {
    let (seen, upstream) = noting().await;
    let gateway = Gateway::start(upstream.addr, &[]);
    for replayed in [false, true] {
        let answer = send(gateway.addr, false, post("k", "1 EUR")).await;
        assert_eq!(told(&answer), (201, replayed));
        assert_eq!(answer.headers()["via"], "1.1 tower-idempotency");
        assert_eq!(&answer.body()[..], b"paid");
    }
    assert_eq!(seen.count(), 1);
    // The key goes with it, and the number of the attempt; without a key there is none.
    assert_eq!(seen.line("idempotency-key").as_deref(), Some("k"));
    assert_eq!(seen.line("idempotency-attempt").as_deref(), Some("1"));
    let plain = request(
        Method::POST,
        "/pay",
        &[("idempotency-attempt", "4")],
        empty(),
    );
    send(gateway.addr, false, plain).await;
    assert_eq!(seen.line("idempotency-attempt"), None);
}

/// A request without one host, or for a tunnel, goes nowhere.
#[tokio::test]
async fn what_is_not_for_it_is_refused() {
    let (seen, upstream) = noting().await;
    let gateway = Gateway::start(upstream.addr, &[]);
    for (sent, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
        (
            "CONNECT bank.example:443 HTTP/1.1\r\nhost: bank.example\r\n\r\n",
            "501",
        ),
        (
            "TRACE / HTTP/1.1\r\nhost: a\r\nmax-forwards: 0\r\n\r\n",
            "405",
        ),
        (
            "OPTIONS / HTTP/1.1\r\nhost: a\r\nmax-forwards: 0\r\n\r\n",
            "204",
        ),
        ("POST bank.example:443 HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        (
            "POST / HTTP/1.1\r\nhost: a\r\nidempotency-key: k\r\n\
             transfer-encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            "501",
        ),
        // Two lengths, or a length and chunks: nobody is to read them differently.
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            "400",
        ),
    ] {
        let mut client = Raw::connect(gateway.addr).await;
        client.send(sent).await;
        let head = client.head().await;
        assert!(
            head.starts_with(&format!("http/1.1 {status} ")),
            "{sent}: {head}"
        );
    }
    assert_eq!(seen.count(), 0);
}

/// Chunks win over a length that contradicts them, and the upstream sees one of the two.
#[tokio::test]
async fn no_request_can_hide_in_another() {
    let seen = Seen::default();
    let upstream = Upstream::start({
        let seen = seen.clone();
        move |request: http::Request<hyper::body::Incoming>| {
            seen.note(request.headers());
            async {
                Ok(Response::new(full(
                    crate::support::read(request.into_body()).await?,
                )))
            }
        }
    })
    .await;
    let gateway = Gateway::start(upstream.addr, &[]);
    let mut client = Raw::connect(gateway.addr).await;
    client
        .send(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 40\r\ntransfer-encoding: chunked\r\n\r\n\
             2\r\nhi\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nhost: a\r\n\r\n",
        )
        .await;
    client.head().await;
    let both = seen.lines("content-length").len() + seen.lines("transfer-encoding").len();
    assert!(seen.count() == 1 || both <= 1, "{seen:?}");
    assert_eq!(client.take(2).await, b"hi");
}

/// In an answer, too, chunks win over a length that contradicts them, fresh and replayed.
#[tokio::test]
async fn no_answer_can_hide_in_another() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let mut connection = Raw(listener.accept().await.unwrap().0);
            connection.head().await;
            connection
                .send(
                    "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\
                     connection: close\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n",
                )
                .await;
        }
    });
    let gateway = Gateway::start(upstream, &[]);
    for key in [&[("idempotency-key", "k")][..], &[]] {
        for _ in 0..2 {
            let request = request(Method::POST, "/", key, empty());
            let answer = send(gateway.addr, false, request).await;
            assert_eq!(answer.body(), "abcdef", "{:?}", answer.headers());
        }
    }
}
