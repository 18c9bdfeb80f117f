//! Several servers, one store.

use std::time::Duration;

use tower_idempotency::{MemoryStore, OnConflict};

use crate::support::{
    Answer, Client, Raw, Server, Service, Stack, layer, post_to, request, until, whole,
};

const KEY: &str = "idempotency-key: hot";
const ALL: usize = 50;

/// Three servers, each with a layer of its own, over one store and one service.
async fn servers(on_conflict: OnConflict) -> (Vec<Server>, Service) {
    let (store, service) = (MemoryStore::new(), Service::new());
    let mut servers = Vec::new();
    for stack in [Stack::Axum, Stack::Axum, Stack::Http1] {
        let layer = layer(store.clone()).on_conflict(on_conflict);
        servers.push(Server::with(stack, &layer, service.clone(), store.clone()).await);
    }
    (servers, service)
}

/// Fifty clients that all send at once, in turn to each server.
fn clients(servers: &[Server]) -> tokio::sync::mpsc::Receiver<Answer> {
    let (answers, receiver) = tokio::sync::mpsc::channel(ALL);
    for n in 0..ALL {
        let (addr, answers) = (servers[n % servers.len()].addr, answers.clone());
        tokio::spawn(async move {
            let mut connection = Raw::connect(addr).await;
            connection.send(post_to("/slow", KEY, b"x")).await;
            answers.send(connection.answer().await).await.unwrap();
        });
    }
    receiver
}

/// U01, S10, S14, I07, S29: of fifty duplicates over several servers one runs, the others are told
/// so, and their retries get its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u01_s10_s14_fifty_duplicates_over_several_servers() {
    let (servers, service) = servers(OnConflict::Reject).await;
    let mut answers = clients(&servers);
    for _ in 1..ALL {
        let answer = answers.recv().await.unwrap();
        answer.assert_refused(409, "in-progress", "a duplicate");
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert!(answer.text().contains("hot"));
    }
    assert_eq!((service.started(), service.effects()), (1, 0));
    service.open(1);
    let first = answers.recv().await.unwrap();
    assert_eq!((first.status, first.is_replay()), (201, false));

    for server in &servers {
        let mut connection = server.connect().await;
        connection.send(post_to("/slow", KEY, b"x")).await;
        let replay = connection.answer().await;
        assert!(replay.is_replay());
        assert_eq!(replay.body, first.body);
    }
}

/// U01, S03, U30: where they wait, all fifty get one answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u01_s03_s14_fifty_duplicates_that_wait() {
    let (servers, service) = servers(OnConflict::Wait(Duration::from_secs(60))).await;
    let mut answers = clients(&servers);
    until("all to be there", || service.present() == ALL).await;
    service.open(1);
    let mut replays = 0;
    for _ in 0..ALL {
        let answer = answers.recv().await.unwrap();
        assert_eq!(answer.status, 201);
        assert_eq!(answer.text(), "effect 1 of hot, 1 bytes");
        replays += usize::from(answer.is_replay());
    }
    assert_eq!(replays, ALL - 1);
}

/// S10, S33: the same on the streams of one HTTP/2 connection.
#[tokio::test]
async fn s10_fifty_duplicates_on_one_connection() {
    for wait in [false, true] {
        let server = Server::start(Stack::Http2, |layer| match wait {
            true => layer.on_conflict(OnConflict::Wait(Duration::from_secs(60))),
            false => layer,
        })
        .await;
        let client = Client::connect(server.addr).await;
        let calls: Vec<_> = (0..ALL)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(
                    async move { client.send(request("/slow", &[b"hot"], whole("x"))).await },
                )
            })
            .collect();
        match wait {
            true => until("all to be there", || server.service.present() == ALL).await,
            false => {
                until("all but one to be gone", || {
                    server.service.started() == 1
                        && calls.iter().filter(|c| !c.is_finished()).count() == 1
                })
                .await
            }
        }
        server.service.open(1);
        let (mut fresh, mut replays) = (0, 0);
        for call in calls {
            let answer = call.await.unwrap();
            match (answer.status, answer.is_replay()) {
                (201, replay) => {
                    assert_eq!(answer.text(), "effect 1 of hot, 1 bytes");
                    fresh += usize::from(!replay);
                    replays += usize::from(replay);
                }
                _ => answer.assert_refused(409, "in-progress", "a duplicate"),
            }
        }
        assert_eq!((fresh, replays), (1, if wait { ALL - 1 } else { 0 }));
        assert_eq!(server.service.started(), 1);
    }
}

/// S14, U25: duplicates one after the other, each at the next server.
#[tokio::test]
async fn s14_duplicates_one_after_the_other() {
    let (servers, service) = servers(OnConflict::Reject).await;
    service.open(1);
    for n in 0..9 {
        let mut connection = servers[n % servers.len()].connect().await;
        connection.send(post_to("/slow", KEY, b"x")).await;
        let answer = connection.answer().await;
        assert_eq!((answer.status, answer.is_replay()), (201, n > 0));
        assert_eq!(answer.text(), "effect 1 of hot, 1 bytes");
    }
    assert_eq!(service.started(), 1);
}
