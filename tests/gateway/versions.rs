//! HTTP/1.1 and HTTP/2, before and behind the gateway.

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};

use crate::support::{
    Client, Gateway, Payload, Seen, Upstream, created, empty, post, request, send, soon, told,
};

const WAYS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

fn flags(http2: bool) -> &'static [&'static str] {
    match http2 {
        true => &["--upstream-http2"],
        false => &[],
    }
}

/// S09, P2: fresh and replayed, over each pair of protocols; and a replay over the other one.
#[tokio::test]
async fn s09_p2_every_pair_of_protocols() {
    for (before, behind) in WAYS {
        let seen = Seen::default();
        let upstream = Upstream::start({
            let seen = seen.clone();
            move |request: Request<Incoming>| {
                let expected = if behind {
                    Version::HTTP_2
                } else {
                    Version::HTTP_11
                };
                assert_eq!(request.version(), expected);
                let count = seen.note(request.headers());
                async move { Ok(created(format!("payment {count}"))) }
            }
        })
        .await;
        let gateway = Gateway::start(upstream.addr, flags(behind));
        for (http2, replayed) in [(before, false), (before, true), (!before, true)] {
            let answer = send(gateway.addr, http2, post("k", "1 EUR")).await;
            assert_eq!(told(&answer), (201, replayed), "{before} {behind}");
            assert_eq!(&answer.body()[..], b"payment 1");
        }
        let via = if before {
            "2 tower-idempotency"
        } else {
            "1.1 tower-idempotency"
        };
        assert_eq!(seen.line("via").as_deref(), Some(via));
        let via = if behind {
            "2 tower-idempotency"
        } else {
            "1.1 tower-idempotency"
        };
        let answer = send(
            gateway.addr,
            before,
            request(http::Method::GET, "/", &[], empty()),
        );
        assert_eq!(answer.await.headers()["via"], via);
    }
}

fn with_trailers(data: &'static str, name: &'static str) -> Payload {
    let mut trailers = HeaderMap::new();
    trailers.insert(name, HeaderValue::from_static("yes"));
    let frames = [Frame::data(Bytes::from(data)), Frame::trailers(trailers)];
    BodyExt::boxed(StreamBody::new(stream::iter(frames.map(Ok))))
}

/// U07: trailers arrive both ways, under a key and without one, fresh and replayed.
#[tokio::test]
async fn u07_trailers_over_every_pair_of_protocols() {
    for (before, behind) in WAYS {
        let upstream = Upstream::start(|request: Request<Incoming>| async {
            let body = request.into_body().collect().await;
            let body = body.map_err(std::io::Error::other)?;
            assert!(
                body.trailers()
                    .is_some_and(|lines| lines.contains_key("x-there"))
            );
            let answer = Response::builder().header("trailer", "x-back");
            Ok(answer.body(with_trailers("paid", "x-back")).unwrap())
        })
        .await;
        let gateway = Gateway::start(upstream.addr, flags(behind));
        for key in ["", "k", "k"] {
            let mut client = Client::connect(gateway.addr, before).await;
            let lines = [
                ("te", "trailers"),
                ("trailer", "x-there"),
                ("idempotency-key", key),
            ];
            let lines = if key.is_empty() { &lines[..2] } else { &lines };
            let body = with_trailers("1 EUR", "x-there");
            let sent = request(http::Method::POST, "/pay", lines, body);
            let answer = soon("an answer", client.send(sent))
                .await
                .expect("an answer");
            let body = soon("a body", answer.into_body().collect()).await.unwrap();
            let came = body.trailers().map(|lines| lines["x-back"].clone());
            assert_eq!(
                came,
                Some(HeaderValue::from_static("yes")),
                "{before} {behind} {key:?}"
            );
        }
    }
}

/// A request's content arrives over every pair of protocols, of known length or not, with any method;
/// and an empty one says that it is empty, which many servers insist on.
#[tokio::test]
async fn p10_content_is_framed_for_every_protocol() {
    for (before, behind) in WAYS {
        let seen = Seen::default();
        let upstream = Upstream::start({
            let seen = seen.clone();
            move |request: Request<Incoming>| {
                seen.note(request.headers());
                async { Ok(created(crate::support::read(request.into_body()).await?)) }
            }
        })
        .await;
        let gateway = Gateway::start(upstream.addr, flags(behind));
        for method in ["GET", "POST", "DELETE"] {
            let method: http::Method = method.parse().unwrap();
            for known in [true, false] {
                let case = format!("{before} {behind} {method} {known}");
                let content = if known {
                    crate::support::full("content")
                } else {
                    let frames = [Ok(Frame::data(Bytes::from("content")))];
                    BodyExt::boxed(StreamBody::new(stream::iter(frames)))
                };
                let framing = [("transfer-encoding", "chunked")];
                let lines = if known || before { &[][..] } else { &framing };
                let sent = request(method.clone(), "/", lines, content);
                let answer = send(gateway.addr, before, sent).await;
                assert_eq!(&answer.body()[..], b"content", "{case}");
                let length = seen.line("content-length");
                assert_eq!(length.as_deref(), known.then_some("7"), "{case}");
            }
        }
        let sent = request(http::Method::POST, "/", &[], empty());
        send(gateway.addr, before, sent).await;
        assert_eq!(
            seen.line("content-length").as_deref(),
            Some("0"),
            "{before} {behind}"
        );
        assert_eq!(seen.line("transfer-encoding"), None);
    }
}

/// U22: what has no body gains none, and keeps the length that it states.
#[tokio::test]
async fn u22_answers_without_a_body() {
    for (before, behind) in WAYS {
        let upstream = Upstream::start(async |request: Request<Incoming>| {
            let status = request.uri().path()[1..].parse::<u16>();
            let mut answer = Response::builder().status(status.map_err(std::io::Error::other)?);
            if request.method() == http::Method::HEAD {
                answer = answer.header("content-length", "1234");
            }
            Ok(answer.body(empty()).unwrap())
        })
        .await;
        let gateway = Gateway::start(upstream.addr, flags(behind));
        for (method, path, length) in [
            ("HEAD", "/200", Some("1234")),
            ("HEAD", "/304", Some("1234")),
            ("GET", "/204", None),
            ("GET", "/304", None),
            ("POST", "/204", None),
        ] {
            let case = format!("{before} {behind} {method} {path}");
            for replayed in [false, method == "POST"] {
                let method = method.parse().unwrap();
                let sent = request(method, path, &[("idempotency-key", "k")], empty());
                let answer = send(gateway.addr, before, sent).await;
                assert_eq!(
                    told(&answer),
                    (path[1..].parse().unwrap(), replayed),
                    "{case}"
                );
                let stated = answer.headers().get("content-length");
                let stated = stated.map(|length| length.to_str().unwrap());
                assert_eq!(stated, length, "{case}");
                assert!(answer.body().is_empty());
            }
        }
    }
}
