//! Clients that send no more after their request, and read on.
//!
//! hyper, as axum uses it, takes this for a client that has left (`leaving.rs` has what follows).
//! Told to keep the connection half open, it answers; here it is told so.

use tower_idempotency::MemoryStore;

use crate::support::{
    Answer, LARGE, LAST_CHUNK, Server, Service, Stack, chunk, head, layer, post_to, until,
};

const KEY: &str = "idempotency-key: k";

async fn ask(server: &Server, bytes: impl AsRef<[u8]>) -> Answer {
    let mut connection = server.connect().await;
    connection.send(bytes).await.end().await;
    let answer = connection.answer().await;
    connection.assert_closed("half closed").await;
    answer
}

/// S09, P2: such a client gets the whole answer, fresh and replayed, in whatever way its body and
/// the answer's are framed.
#[tokio::test]
async fn s09_p2_whole_answers() {
    for path in ["/pay", "/headers", "/trailers", "/empty", "/unknown-length"] {
        let server = Server::start(Stack::HalfOpen, |layer| layer).await;
        let known = post_to(path, &format!("{KEY}\nte: trailers"), b"x");
        let head = head(
            path,
            &format!("{KEY}\nte: trailers\ntransfer-encoding: chunked"),
        );
        let chunked = [head.as_bytes(), &chunk(b"x"), LAST_CHUNK].concat();
        let fresh = ask(&server, &known).await;
        for bytes in [known, chunked] {
            let replay = ask(&server, bytes).await;
            assert!(replay.is_replay() && !fresh.is_replay(), "{path}");
            assert_eq!((replay.status, &replay.body), (fresh.status, &fresh.body));
            assert_eq!(replay.trailers, fresh.trailers, "{path}");
        }
        assert_eq!((server.service.started(), server.store.len()), (1, 1));
    }
}

/// P2: also where the answer is large, and much of it is sent after the client's end was seen.
#[tokio::test]
async fn p2_large_answers() {
    let server = Server::start(Stack::HalfOpen, |layer| layer.response_limit(LARGE)).await;
    for replay in [false, true] {
        let answer = ask(&server, post_to("/large", KEY, b"x")).await;
        assert_eq!((answer.body.len(), answer.is_replay()), (LARGE, replay));
    }
}

/// P1, S03, S14: and where the handler is slow: the end of the client's bytes is not the client's
/// end. A duplicate meanwhile is refused, and its refusal arrives.
#[tokio::test]
async fn p1_s14_slow_answers() {
    let (store, service) = (MemoryStore::new(), Service::new());
    let layer = layer(store.clone());
    let server = Server::with(Stack::HalfOpen, &layer, service.clone(), store).await;
    let mut connection = server.connect().await;
    connection.send(post_to("/slow", KEY, b"x")).await;
    connection.end().await;
    until("the handler", || service.started() == 1).await;

    let refused = ask(&server, post_to("/slow", KEY, b"x")).await;
    refused.assert_refused(409, "in-progress", "half closed");
    let refused = ask(&server, post_to("/slow", KEY, b"y")).await;
    refused.assert_refused(422, "mismatch", "half closed");
    assert_eq!(service.present(), 1);

    service.open(1);
    let answer = connection.answer().await;
    assert_eq!(answer.text(), "effect 1 of k, 1 bytes");
    connection.assert_closed("half closed").await;
    let replay = ask(&server, post_to("/slow", KEY, b"x")).await;
    assert_eq!(
        (replay.text(), replay.is_replay()),
        ("effect 1 of k, 1 bytes", true)
    );
}

/// S14: requests before the end are all answered, in order.
#[tokio::test]
async fn s14_several_requests_and_then_no_more() {
    let server = Server::start(Stack::HalfOpen, |layer| layer).await;
    let mut connection = server.connect().await;
    let sent = [
        post_to("/pay", KEY, b"x"),
        post_to("/pay", KEY, b"x"),
        post_to("/pay", KEY, b"y"),
    ];
    connection.send(sent.concat()).await.end().await;
    for replay in [false, true] {
        let answer = connection.answer().await;
        assert_eq!((answer.status, answer.is_replay()), (201, replay));
    }
    let answer = connection.answer().await;
    answer.assert_refused(422, "mismatch", "half closed");
    connection.assert_closed("half closed").await;
}
