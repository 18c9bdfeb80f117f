//! Many large bodies at once.

use std::sync::Arc;

use tokio::{sync::Barrier, task::JoinSet};
use tower_idempotency::MemoryStore;

use crate::support::{
    Client, RAW, Raw, Server, Service, Stack, chunk, fresh_key, head, layer, post, request, soon,
    until, whole,
};

const MIB: usize = 1024 * 1024;
const CLIENTS: usize = 64;

/// U36: sixty-four uploads of 1 MiB where four have room: each is answered with 201 or with 503
/// and `Retry-After`, nothing of the refused ones is stored, and when they are gone there is room
/// again for as much as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u36_a_flood_over_http_1() {
    for stack in RAW {
        let server = Server::start(stack, |layer| layer.buffer_limit(4 * MIB)).await;
        let barrier = Arc::new(Barrier::new(CLIENTS));
        let mut clients = JoinSet::new();
        for n in 0..CLIENTS {
            let (addr, barrier) = (server.addr, Arc::clone(&barrier));
            clients.spawn(async move {
                let mut connection = Raw::connect(addr).await;
                let known = n % 2 == 0;
                let lines = match known {
                    true => format!("content-length: {MIB}"),
                    false => "transfer-encoding: chunked".to_owned(),
                };
                let key = fresh_key();
                connection
                    .send(head("/pay", &format!("idempotency-key: {key}\n{lines}")))
                    .await;
                let piece = |len: usize| match known {
                    true => vec![b'x'; len],
                    false => chunk(&vec![b'x'; len]),
                };
                // The first few get in whole; of the rest all have begun before one goes on.
                if n >= 3 {
                    connection.try_send(piece(MIB / 4)).await;
                }
                barrier.wait().await;
                let rest = if n >= 3 { MIB / 4 * 3 } else { MIB };
                connection.try_send(piece(rest)).await;
                if !known {
                    connection.try_send("0\r\n\r\n").await;
                }
                connection.try_answer(false).await
            });
        }
        let (mut passed, mut refused) = (0, 0);
        while let Some(answer) = clients.join_next().await {
            // A refused client that is slow to send the rest may find its connection closed.
            match answer.unwrap() {
                Some(answer) if answer.status == 201 => passed += 1,
                Some(answer) => {
                    answer.assert_refused(503, "overloaded", "a flood");
                    assert_eq!(answer.header("retry-after"), Some("1"));
                    refused += 1;
                }
                None => panic!("{stack:?}: no answer"),
            }
        }
        assert_eq!(passed + refused, CLIENTS);
        assert!(refused > 0, "{stack:?}: there was room for all");
        assert_eq!(server.service.started(), passed);
        assert_eq!(server.store.len(), passed);
        assert!(server.service.lengths().iter().all(|&len| len == MIB));

        until("all to be gone", || server.service.present() == 0).await;
        assert_room(&server).await;
    }
}

/// As much as the limit allows passes.
async fn assert_room(server: &Server) {
    let ran = server.service.started();
    let mut connections = Vec::new();
    for _ in 0..4 {
        let mut connection = server.connect().await;
        let key = format!("idempotency-key: {}\ncontent-length: {MIB}", fresh_key());
        connection.send(head("/pay", &key)).await;
        // All but one byte of each, so that all are in memory together.
        connection.send(vec![b'x'; MIB - 1]).await;
        connections.push(connection);
    }
    for connection in &mut connections {
        connection.send("x").await;
        assert_eq!(connection.answer().await.status, 201);
    }
    assert_eq!(server.service.started(), ran + 4);
}

/// U36: the same on one HTTP/2 connection, and it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u36_a_flood_over_http_2() {
    let store = MemoryStore::new();
    let layer = layer(store.clone()).buffer_limit(MIB);
    let server = Server::with(Stack::Http2, &layer, Service::new(), store).await;
    let client = Client::connect(server.addr).await;
    let mut calls = JoinSet::new();
    for _ in 0..CLIENTS {
        let mut client = client.clone();
        calls.spawn(async move {
            let key = fresh_key();
            let body = whole(vec![b'x'; MIB / 4]);
            client.send(request("/pay", &[key.as_bytes()], body)).await
        });
    }
    let mut passed = 0;
    while let Some(answer) = calls.join_next().await {
        let answer = answer.unwrap();
        match answer.status {
            201 => passed += 1,
            _ => answer.assert_refused(503, "overloaded", "a flood"),
        }
    }
    assert_eq!(
        (server.service.started(), server.store.len()),
        (passed, passed)
    );
    let mut client = client;
    let answer = client
        .send(request("/pay", &[b"k"], whole(vec![b'x'; MIB])))
        .await;
    assert_eq!(answer.status, 201);
}

/// U36: uploads that break off, stall or are refused give their room back.
#[tokio::test]
async fn u36_room_comes_back() {
    for stack in RAW {
        let timeout = std::time::Duration::from_millis(300);
        let server = Server::start(stack, |layer| {
            layer.buffer_limit(4 * MIB).body_timeout(timeout)
        })
        .await;
        for how in ["breaks off", "stalls", "is too large"] {
            let mut connections = Vec::new();
            for _ in 0..4 {
                let mut connection = server.connect().await;
                let key = fresh_key();
                let lines = format!("idempotency-key: {key}\ntransfer-encoding: chunked");
                connection.send(head("/pay", &lines)).await;
                connection.send(chunk(&vec![b'x'; MIB])).await;
                connections.push(connection);
            }
            for mut connection in connections {
                match how {
                    "breaks off" => connection.kill(),
                    "stalls" => {
                        let answer = connection.answer().await;
                        answer.assert_refused(408, "body-too-slow", how);
                    }
                    _ => {
                        connection.try_send(chunk(b"x")).await;
                        connection.try_send("0\r\n\r\n").await;
                        let status = connection.answer().await.status;
                        assert!([408, 413].contains(&status), "{status}");
                    }
                }
            }
            until("all to be gone", || server.service.present() == 0).await;
        }
        assert_eq!(server.service.started(), 0, "{stack:?}");
        assert_eq!(server.store.len(), 0, "{stack:?}");
        // On a busy machine this one may be too slow for the timeout, too.
        soon("room", async {
            loop {
                let mut connection = server.connect().await;
                let key = format!("idempotency-key: {}", fresh_key());
                connection.try_send(post(&key, &vec![b'x'; MIB])).await;
                let answer = connection.answer().await;
                match answer.status {
                    201 => break,
                    _ => answer.assert_refused(408, "body-too-slow", "a busy machine"),
                }
            }
        })
        .await;
    }
}
