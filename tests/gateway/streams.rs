//! P10: what is not covered streams through, both ways, as fast as its reader reads and no faster.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::{Semaphore, mpsc};

use crate::support::{Client, Gateway, Payload, Upstream, channel, empty, full, request, soon};

const MIB: usize = 1024 * 1024;

fn flags(http2: bool) -> &'static [&'static str] {
    match http2 {
        true => &["--upstream-http2"],
        false => &[],
    }
}

async fn frame(body: &mut Incoming) -> Bytes {
    let frame = soon("a frame", body.frame()).await.expect("a frame");
    frame.expect("no error").into_data().expect("data")
}

/// The end, after which nothing more comes: over HTTP/2 it may be a frame of its own.
async fn end(body: &mut Incoming) {
    while let Some(frame) = soon("the end", body.frame()).await {
        let data = frame.expect("no error").into_data().expect("data");
        assert_eq!(data, "");
    }
}

/// P10: each event arrives before the next one is made, with and without a key.
#[tokio::test]
async fn p10_events_arrive_as_they_are_made() {
    for http2 in [false, true] {
        let (bodies, mut made) = mpsc::unbounded_channel();
        let upstream = Upstream::start(move |_| {
            let (sender, body) = channel();
            bodies.send(sender).unwrap();
            async {
                let answer = Response::builder().header("content-type", "text/event-stream");
                Ok(answer.body(body).unwrap())
            }
        })
        .await;
        let gateway = Gateway::start(upstream.addr, flags(http2));
        for (method, key) in [
            (Method::GET, &[][..]),
            (Method::POST, &[("idempotency-key", "k")]),
        ] {
            let mut client = Client::connect(gateway.addr, http2).await;
            let asked = client.send(request(method, "/events", key, empty()));
            let answer = soon("an answer", asked).await.unwrap();
            let events = made.recv().await.unwrap();
            let mut body = answer.into_body();
            for event in ["one", "two", "three"] {
                events.send(Ok(Frame::data(event.into()))).await.unwrap();
                assert_eq!(frame(&mut body).await, event);
            }
            drop(events);
            end(&mut body).await;
        }
    }
}

/// P10: what a client sends bit by bit arrives bit by bit, also while answers come back.
#[tokio::test]
async fn p10_both_sides_may_speak_at_once() {
    for http2 in [false, true] {
        let upstream = Upstream::start(|request: Request<Incoming>| async {
            let echo = request.into_body().map_err(Into::into);
            Ok(Response::new(BodyExt::boxed(echo)))
        })
        .await;
        let gateway = Gateway::start(upstream.addr, flags(http2));
        let mut client = Client::connect(gateway.addr, http2).await;
        let (words, body) = channel();
        let answer = client.send(request(Method::POST, "/echo", &[], body));
        let answer = tokio::spawn(answer);
        words.send(Ok(Frame::data("one".into()))).await.unwrap();
        let answer = soon("an answer", answer).await.unwrap().unwrap();
        let mut body = answer.into_body();
        assert_eq!(frame(&mut body).await, "one");
        for word in ["two", "three"] {
            words.send(Ok(Frame::data(word.into()))).await.unwrap();
            assert_eq!(frame(&mut body).await, word);
        }
        drop(words);
        end(&mut body).await;
    }
}

/// As much as anybody takes, counted as it goes.
fn endless(chunks: usize) -> (Arc<AtomicUsize>, Payload) {
    let taken = Arc::new(AtomicUsize::new(0));
    let chunk = Bytes::from(vec![7; MIB]);
    let stream = stream::unfold(0, {
        let taken = Arc::clone(&taken);
        move |sent| {
            let more = (sent < chunks).then(|| {
                taken.fetch_add(MIB, Ordering::SeqCst);
                (Ok(Frame::data(chunk.clone())), sent + 1)
            });
            async { more }
        }
    });
    (taken, BodyExt::boxed(StreamBody::new(stream)))
}

/// Waits until no more is taken, and says how much was.
async fn settled(taken: &AtomicUsize) -> usize {
    soon("a standstill", async {
        let mut before = usize::MAX;
        loop {
            let now = taken.load(Ordering::SeqCst);
            if now == before && now > 0 {
                return now;
            }
            before = now;
            // What is asserted holds however early this ends.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
    .await
}

/// What the sockets of two connections may hold, and then some.
const IN_SOCKETS: usize = 64 * MIB;
const LARGE: usize = 256;

/// P9, P10: an upload waits for a service that does not read, and then arrives whole; the gateway
/// holds little of it.
#[tokio::test]
async fn p9_p10_a_large_upload_is_held_back_and_not_held() {
    for http2 in [false, true] {
        let gate = Arc::new(Semaphore::new(0));
        let upstream = Upstream::start({
            let gate = Arc::clone(&gate);
            move |request: Request<Incoming>| {
                let gate = Arc::clone(&gate);
                async move {
                    let _open = gate.acquire().await.map_err(io::Error::other)?;
                    let mut body = request.into_body();
                    let mut length = 0;
                    while let Some(frame) = body.frame().await {
                        let frame = frame.map_err(io::Error::other)?;
                        length += frame.data_ref().map_or(0, Bytes::len);
                    }
                    Ok(Response::new(full(length.to_string())))
                }
            }
        })
        .await;
        let gateway = Gateway::start(upstream.addr, flags(http2));
        let mut client = Client::connect(gateway.addr, http2).await;
        let (taken, body) = endless(LARGE);
        let answer = tokio::spawn(client.send(request(Method::POST, "/upload", &[], body)));
        let held = settled(&taken).await;
        assert!(held < IN_SOCKETS, "{held} bytes with nobody reading");
        gate.add_permits(1);
        let answer = soon("an answer", answer).await.unwrap().unwrap();
        let length = soon("a body", answer.into_body().collect()).await.unwrap();
        assert_eq!(length.to_bytes(), (LARGE * MIB).to_string());
        let peak = gateway.peak_memory();
        assert!(peak < 96 * MIB, "{peak} bytes of memory");
    }
}

/// P9, P10: and so it is with what comes back.
#[tokio::test]
async fn p9_p10_a_large_answer_is_held_back_and_not_held() {
    for http2 in [false, true] {
        let (bodies, mut made) = mpsc::unbounded_channel();
        let upstream = Upstream::start(move |_| {
            let (taken, body) = endless(LARGE);
            bodies.send(taken).unwrap();
            async { Ok(Response::new(body)) }
        })
        .await;
        let gateway = Gateway::start(upstream.addr, flags(http2));
        let mut client = Client::connect(gateway.addr, http2).await;
        let answer = client.send(request(Method::GET, "/download", &[], empty()));
        let answer = soon("an answer", answer).await.unwrap();
        let taken = made.recv().await.unwrap();
        let held = settled(&taken).await;
        assert!(held < IN_SOCKETS, "{held} bytes with nobody reading");
        let mut body = answer.into_body();
        let mut length = 0;
        while let Some(frame) = soon("a frame", body.frame()).await {
            length += frame.unwrap().data_ref().map_or(0, Bytes::len);
        }
        assert_eq!(length, LARGE * MIB);
        let peak = gateway.peak_memory();
        assert!(peak < 96 * MIB, "{peak} bytes of memory");
    }
}

/// U06: so does a large answer under a key: it arrives whole, and its key counts as used.
#[tokio::test]
async fn u06_a_large_answer_under_a_key_arrives_whole() {
    let upstream = Upstream::start(async |_| Ok(Response::new(endless(8).1))).await;
    let gateway = Gateway::start(upstream.addr, &[]);
    let first = crate::support::send(gateway.addr, false, crate::support::post("k", "")).await;
    assert_eq!(
        (first.status().as_u16(), first.body().len()),
        (200, 8 * MIB)
    );
    let again = crate::support::send(gateway.addr, false, crate::support::post("k", "")).await;
    assert_eq!(again.status(), 409);
    assert_eq!(crate::support::problem(&again), "not_replayable");
}

/// A client that leaves an uncovered request takes it along.
#[tokio::test]
async fn p10_who_leaves_an_uncovered_request_ends_it() {
    for http2 in [false, true] {
        let (gone, mut ended) = mpsc::unbounded_channel();
        let (came, mut begun) = mpsc::unbounded_channel();
        let upstream = Upstream::start(move |_| {
            let (gone, came) = (gone.clone(), came.clone());
            async move {
                struct Tell(mpsc::UnboundedSender<()>);
                impl Drop for Tell {
                    fn drop(&mut self) {
                        let _ = self.0.send(());
                    }
                }
                let _tell = Tell(gone);
                came.send(()).unwrap();
                std::future::pending().await
            }
        })
        .await;
        let gateway = Gateway::start(upstream.addr, flags(http2));
        let mut client = Client::connect(gateway.addr, http2).await;
        let asked = tokio::spawn(client.send(request(Method::POST, "/slow", &[], empty())));
        soon("the request", begun.recv()).await.unwrap();
        asked.abort();
        drop(client);
        soon("its end", ended.recv()).await.unwrap();
    }
}

/// A service that refuses an upload before it has read it is heard, where it reads on until it is heard,
/// as it should (RFC 9112, 9.6).
#[tokio::test]
async fn p10_an_early_answer_arrives() {
    for http2 in [false, true] {
        let upstream = Upstream::start(|request: Request<Incoming>| async {
            let mut rest = request.into_body();
            tokio::spawn(async move { while let Some(Ok(_)) = rest.frame().await {} });
            let mut answer = Response::new(full("too much"));
            *answer.status_mut() = http::StatusCode::PAYLOAD_TOO_LARGE;
            Ok(answer)
        })
        .await;
        let gateway = Gateway::start(upstream.addr, flags(http2));
        for _ in 0..10 {
            let mut client = Client::connect(gateway.addr, http2).await;
            let (words, body) = channel();
            let answer = client.send(request(Method::POST, "/upload", &[], body));
            let answer = tokio::spawn(answer);
            words.send(Ok(Frame::data("begun".into()))).await.unwrap();
            let answer = soon("an answer", answer).await.unwrap();
            assert_eq!(answer.expect("an answer").status(), 413, "{http2}");
        }
    }
}
