//! Connections that leave HTTP.

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Gateway, Raw, Seen, Upstream, created, empty, soon};

/// Shouts back what is said, once it was asked to. What is posted, it takes as any service would.
async fn shouting() -> (Seen, Upstream) {
    let seen = Seen::default();
    let upstream = Upstream::start({
        let seen = seen.clone();
        move |mut request: Request<Incoming>| {
            seen.note(request.headers());
            async move {
                if !request.headers().contains_key("upgrade") {
                    return Ok(created("paid"));
                }
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let mut stream = TokioIo::new(upgrade.await.unwrap());
                    let mut some = [0; 64];
                    loop {
                        let n = stream.read(&mut some).await.unwrap();
                        if n == 0 {
                            break;
                        }
                        some.make_ascii_uppercase();
                        stream.write_all(&some[..n]).await.unwrap();
                    }
                });
                let answer = Response::builder()
                    .status(StatusCode::SWITCHING_PROTOCOLS)
                    .header("connection", "upgrade")
                    .header("upgrade", "shout");
                Ok(answer.body(empty()).unwrap())
            }
        }
    });
    (seen, upstream.await)
}

const UPGRADE: &str = "connection: keep-alive, Upgrade\r\nupgrade: shout\r\n";

async fn assert_shouts(connection: &mut Raw) {
    for (said, back) in [("hello", "HELLO"), ("a\r\n\r\nb", "A\r\n\r\nB")] {
        connection.send(said).await;
        assert_eq!(connection.take(back.len()).await, back.as_bytes());
    }
}

/// P10: bytes flow both ways, also those that the client sends without waiting; the end of one side is the
/// end of both.
#[tokio::test]
async fn p10_an_upgrade_becomes_a_tunnel() {
    let (seen, upstream) = shouting().await;
    let gateway = Gateway::start(upstream.addr, &["--idle-timeout", "300ms"]);
    let mut connection = Raw::connect(gateway.addr).await;
    let head = format!("GET /chat HTTP/1.1\r\nhost: a\r\n{UPGRADE}\r\n");
    connection.send(head + "early").await;
    let head = connection.head().await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(head.contains("connection: upgrade\r\n"), "{head}");
    assert!(head.contains("upgrade: shout\r\n"), "{head}");
    assert_eq!(connection.take(5).await, b"EARLY");
    assert_shouts(&mut connection).await;
    // A tunnel is not idle, however long nobody speaks.
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    assert_shouts(&mut connection).await;
    assert_eq!(seen.line("upgrade").as_deref(), Some("shout"));
    connection.0.shutdown().await.unwrap();
    assert_eq!(connection.rest().await, b"");
    gateway.example.process.signal("TERM");
    assert_eq!(soon("the end", gateway.ended()).await.0, Some(0));
}

/// P9: a tunnel keeps its place among the connections, and a stop cuts it off when its time is up.
#[tokio::test]
async fn p9_u21_a_tunnel_counts() {
    let (_, upstream) = shouting().await;
    let flags = ["--max-connections", "1", "--drain-timeout", "300ms"];
    let gateway = Gateway::start(upstream.addr, &flags);
    let mut connection = Raw::connect(gateway.addr).await;
    let head = format!("GET /chat HTTP/1.1\r\nhost: a\r\n{UPGRADE}\r\n");
    connection.send(&head).await;
    connection.head().await;
    assert_shouts(&mut connection).await;
    let mut waiting = Raw::connect(gateway.addr).await;
    waiting.send(&head).await;
    let came = waiting.0.try_read(&mut [0; 1]);
    assert!(came.is_err(), "{came:?}");
    assert_shouts(&mut connection).await;
    gateway.example.process.signal("TERM");
    let (code, said) = soon("the end", gateway.ended()).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("connections cut off: 1"), "{said}");
}

/// An upgrade is no way around a route: whatever the client offers, a POST with a key is covered.
#[tokio::test]
async fn p2_an_offer_does_not_lead_past_a_route() {
    let (seen, upstream) = shouting().await;
    let gateway = Gateway::start(upstream.addr, &[]);
    for replayed in [false, true] {
        let mut connection = Raw::connect(gateway.addr).await;
        connection
            .send(format!(
                "POST /pay HTTP/1.1\r\nhost: a\r\nidempotency-key: k\r\ncontent-length: 0\r\n{UPGRADE}\r\n"
            ))
            .await;
        let head = connection.head().await;
        assert!(head.starts_with("http/1.1 201 "), "{head}");
        assert_eq!(head.contains("idempotent-replayed"), replayed, "{head}");
    }
    assert_eq!((seen.count(), seen.line("upgrade")), (1, None));
}

/// HTTP/2 has no upgrades, so that there is none to a service behind it.
#[tokio::test]
async fn no_upgrade_over_http2() {
    let (seen, upstream) = shouting().await;
    let gateway = Gateway::start(upstream.addr, &["--upstream-http2"]);
    let mut connection = Raw::connect(gateway.addr).await;
    connection
        .send(format!("GET /chat HTTP/1.1\r\nhost: a\r\n{UPGRADE}\r\n"))
        .await;
    let head = connection.head().await;
    assert!(head.starts_with("http/1.1 501 "), "{head}");
    assert_eq!(seen.count(), 0);
}
