//! P4, U08, S09: clients that leave after their operation began.

use std::time::Duration;

use h2::Reason;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tower_idempotency::{IdempotencyLayer, MemoryStore, OnConflict};

use crate::support::{
    Client, LARGE, RAW, Raw, Server, Service, Stack, app, layer, post, post_to, request, soon,
    until, whole,
};

const KEY: &str = "idempotency-key: k";

async fn server(stack: Stack) -> (Server, IdempotencyLayer<MemoryStore>) {
    let store = MemoryStore::new();
    let layer = layer(store.clone());
    let server = Server::with(stack, &layer, Service::new(), store).await;
    (server, layer)
}

/// However the client leaves, the effect happens once, and the retry replays it; before its end
/// the retry is told that it runs.
#[tokio::test]
async fn p4_u08_s09_a_client_that_leaves_while_the_handler_runs() {
    for stack in RAW {
        for leaves in ["closes", "is killed", "stops sending"] {
            let case = format!("{stack:?} {leaves}");
            let (server, layer) = server(stack).await;
            let mut connection = server.connect().await;
            connection.send(post_to("/slow", KEY, b"x")).await;
            until("the handler", || server.service.started() == 1).await;
            match leaves {
                "closes" => drop(connection),
                "is killed" => connection.kill(),
                _ => {
                    connection.end().await;
                }
            }
            until("the server to notice", || server.service.present() == 0).await;
            assert_eq!(server.service.effects(), 0, "{case}");

            let mut other = server.connect().await;
            other.send(post_to("/slow", KEY, b"x")).await;
            other
                .answer()
                .await
                .assert_refused(409, "in-progress", &case);

            server.service.open(1);
            soon("the end of the work", layer.drain()).await;
            assert_eq!(server.service.effects(), 1, "{case}");
            other.send(post_to("/slow", KEY, b"x")).await;
            let replay = other.answer().await;
            assert!(replay.is_replay(), "{case}");
            assert_eq!(replay.text(), "effect 1 of k, 1 bytes", "{case}");
            assert_eq!((server.service.started(), server.store.len()), (1, 1));
        }
    }
}

/// The same where one stream of an HTTP/2 connection is reset, or all of it ends.
#[tokio::test]
async fn p4_u08_a_stream_that_is_reset_while_the_handler_runs() {
    for reason in [Some(Reason::CANCEL), Some(Reason::NO_ERROR), None] {
        let case = format!("{reason:?}");
        let (server, layer) = server(Stack::Http2).await;
        let stream = TcpStream::connect(server.addr).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        let head = request("/slow", &[b"k"], whole("")).map(drop);
        let (answer, mut body) = sender.send_request(head, false).unwrap();
        body.send_data(bytes::Bytes::from_static(b"x"), true)
            .unwrap();
        until("the handler", || server.service.started() == 1).await;
        match reason {
            Some(reason) => body.send_reset(reason),
            None => connection.abort(),
        }
        drop(answer);
        until("the server to notice", || server.service.present() == 0).await;

        server.service.open(1);
        soon("the end of the work", layer.drain()).await;
        let mut client = Client::connect(server.addr).await;
        let replay = client.send(request("/slow", &[b"k"], whole("x"))).await;
        assert!(replay.is_replay(), "{case}");
        assert_eq!(replay.text(), "effect 1 of k, 1 bytes", "{case}");
        assert_eq!(server.service.effects(), 1, "{case}");
    }
}

/// Clients that are killed at any moment after they sent: whatever the server had come to, there
/// is one effect once the retries are through.
#[tokio::test]
async fn p4_s09_clients_that_are_killed_at_any_moment() {
    for stack in RAW {
        for turns in 0..30 {
            let (server, layer) = server(stack).await;
            let mut connection = server.connect().await;
            connection.send(post(KEY, b"x")).await;
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            connection.kill();
            let mut retry = server.connect().await;
            let answer = loop {
                retry.send(post(KEY, b"x")).await;
                let answer = retry.answer().await;
                if answer.status != 409 {
                    break answer;
                }
            };
            assert_eq!(answer.text(), "effect 1 of k, 1 bytes");
            soon("the end of the work", layer.drain()).await;
            assert_eq!(server.service.effects(), 1);
        }
    }
}

/// U21: a shutdown in the middle: whoever stays gets the answer, whoever left has the work done
/// all the same, and the next server replays both.
#[tokio::test]
async fn p4_u08_u21_a_graceful_shutdown() {
    let (store, service) = (MemoryStore::new(), Service::new());
    let layer = layer(store.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let app = app(service.clone()).layer(layer.clone());
    let serving = tokio::spawn(async move {
        axum::serve(listener, app)
            .with_graceful_shutdown(async { stopped.await.unwrap() })
            .await
    });

    let (mut leaves, mut stays) = (Raw::connect(addr).await, Raw::connect(addr).await);
    leaves
        .send(post_to("/slow", "idempotency-key: leaves", b"x"))
        .await;
    stays
        .send(post_to("/slow", "idempotency-key: stays", b"x"))
        .await;
    until("both", || service.started() == 2).await;
    stop.send(()).unwrap();
    leaves.kill();

    let mut drained = std::pin::pin!(layer.drain());
    assert!(futures::poll!(drained.as_mut()).is_pending());
    service.open(2);
    assert!(stays.answer().await.text().ends_with("of stays, 1 bytes"));
    stays.assert_closed("after the shutdown").await;
    soon("the server's end", serving).await.unwrap().unwrap();
    soon("the end of the work", drained).await;
    assert_eq!(service.effects(), 2);

    let next = Server::with(Stack::Http1, &layer, service.clone(), store).await;
    let mut connection = next.connect().await;
    for key in ["leaves", "stays"] {
        connection
            .send(post_to("/slow", &format!("idempotency-key: {key}"), b"x"))
            .await;
        let answer = connection.answer().await;
        assert!(answer.is_replay());
        assert!(answer.text().ends_with(&format!("of {key}, 1 bytes")));
    }
    assert_eq!(service.effects(), 2);
}

/// U29: those who wait for another and leave change nothing for it, nor for those who stay.
#[tokio::test]
async fn u29_clients_that_leave_while_they_wait() {
    for stack in RAW {
        let store = MemoryStore::new();
        let wait = OnConflict::Wait(Duration::from_secs(60));
        let layer = layer(store.clone()).on_conflict(wait);
        let server = Server::with(stack, &layer, Service::new(), store).await;
        let mut waiting = Vec::new();
        for n in 1..=10 {
            let mut connection = server.connect().await;
            connection.send(post_to("/slow", KEY, b"x")).await;
            until("the request", || server.service.present() == n).await;
            waiting.push(connection);
        }
        let (mut first, mut last) = (waiting.remove(0), waiting.remove(8));
        for connection in waiting {
            connection.kill();
        }
        until("them to be gone", || server.service.present() == 2).await;
        server.service.open(1);
        for (connection, replay) in [(&mut first, false), (&mut last, true)] {
            let answer = connection.answer().await;
            assert_eq!(answer.text(), "effect 1 of k, 1 bytes");
            assert_eq!(answer.is_replay(), replay);
        }
        soon("the end of the work", layer.drain()).await;
        assert_eq!((server.service.started(), server.store.len()), (1, 1));
    }
}

/// S09: a client that leaves in the middle of its answer gets it whole when it asks again, or is
/// told that it cannot be given again; it is not run again.
#[tokio::test]
async fn s09_u06_a_client_that_leaves_in_its_answer() {
    for stack in RAW {
        for (limit, replays) in [(LARGE, true), (LARGE / 4, false)] {
            let server = Server::start(stack, |layer| layer.response_limit(limit)).await;
            let mut connection = server.connect().await;
            connection.send(post_to("/large", KEY, b"x")).await;
            connection.begin_answer().await;
            connection.kill();

            let mut retry = server.connect().await;
            let answer = retry
                .send(post_to("/large", KEY, b"x"))
                .await
                .answer()
                .await;
            match replays {
                true => assert_eq!((answer.is_replay(), answer.body.len()), (true, LARGE)),
                false => answer.assert_refused(409, "not-replayable", "over the limit"),
            }
            assert_eq!(server.service.started(), 1);
        }
    }
}
