//! Callers that do not wait: deadlines, disconnects, waiting duplicates, and a server that stops.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use tokio::sync::{Semaphore, mpsc};
use tonic::{Code, Request, Response, service::Routes};
use tower_idempotency::{Execution, IdempotencyLayer, MemoryStore, OnConflict, Scope};

use crate::{
    payments::Payment,
    support::{Server, Till, euros, in_time, is_replay, keyed, layer},
};

/// Each payment says that it begins, and then waits for its permit.
struct Gated {
    till: Till,
    begun: mpsc::UnboundedReceiver<u32>,
    gate: Arc<Semaphore>,
}

fn gated() -> Gated {
    let (begin, begun) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let till = Till::new().on_pay(move |request| {
        let (begin, gate) = (begin.clone(), Arc::clone(&gate));
        async move {
            let attempt = request.extensions().get().map_or(0, Execution::attempt);
            begin.send(attempt).unwrap();
            gate.acquire().await.unwrap().forget();
            Ok(Response::new(Payment {
                attempt,
                ..Payment::default()
            }))
        }
    });
    Gated {
        till,
        begun,
        gate: opened,
    }
}

/// P4, U08, S09: the deadline of a call, which tonic keeps on both sides, is its caller's. The work
/// goes on; a retry is told so, and then gets the answer.
#[tokio::test]
async fn p4_u08_s09_a_deadline_does_not_undo_the_work() {
    let Gated {
        till,
        mut begun,
        gate,
    } = gated();
    let layer = layer();
    let server = Server::of(&layer, till).await;
    let mut client = server.client().await;
    let mut request = keyed("a", euros(7));
    request.set_timeout(Duration::from_secs(1));
    let status = in_time(client.pay(request)).await.unwrap_err();
    // Whichever side was first.
    assert!(
        matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded),
        "{status}"
    );
    assert_eq!(in_time(begun.recv()).await, Some(1));

    let status = client.pay(keyed("a", euros(7))).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    gate.add_permits(1);
    in_time(layer.drain()).await;
    // Another deadline is not another payload.
    let mut request = keyed("a", euros(7));
    request.set_timeout(Duration::from_secs(20));
    let again = client.pay(request).await.unwrap();
    assert!(is_replay(&again) && again.get_ref().attempt == 1);
    assert!(begun.try_recv().is_err());
}

/// P4: so is the limit that the server sets for all calls.
#[tokio::test]
async fn p4_the_servers_timeout_does_not_undo_the_work() {
    let Gated {
        till,
        mut begun,
        gate,
    } = gated();
    let layer = layer();
    let builder = tonic::transport::Server::builder().timeout(Duration::from_secs(1));
    let server = Server::start_with(builder, layer.clone(), Routes::new(till.server())).await;
    let mut client = server.client().await;
    let status = in_time(client.pay(keyed("a", euros(7)))).await.unwrap_err();
    assert!(
        matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded),
        "{status}"
    );
    assert_eq!(in_time(begun.recv()).await, Some(1));
    gate.add_permits(1);
    in_time(layer.drain()).await;
    assert!(is_replay(&client.pay(keyed("a", euros(7))).await.unwrap()));
    assert!(begun.try_recv().is_err());
}

/// P4, U08: nor does a caller who is gone.
#[tokio::test]
async fn p4_u08_a_disconnect_does_not_undo_the_work() {
    let Gated {
        till,
        mut begun,
        gate,
    } = gated();
    let layer = layer();
    let server = Server::of(&layer, till).await;
    let mut leaving = server.client().await;
    let call = tokio::spawn(async move { leaving.pay(keyed("a", euros(7))).await });
    assert_eq!(in_time(begun.recv()).await, Some(1));
    // Its connection ends with it.
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    gate.add_permits(1);
    in_time(layer.drain()).await;
    let mut client = server.client().await;
    assert!(is_replay(&client.pay(keyed("a", euros(7))).await.unwrap()));
    assert!(begun.try_recv().is_err());
}

/// S03, U29: duplicates may wait for the answer; one that gives up changes nothing.
#[tokio::test]
async fn s03_u29_duplicates_wait_and_one_that_gives_up_changes_nothing() {
    let Gated {
        till,
        mut begun,
        gate,
    } = gated();
    let layer = layer().on_conflict(OnConflict::Wait(Duration::from_secs(20)));
    let server = Server::of(&layer, till).await;
    let client = server.client().await;
    let call = |request: Request<_>| {
        let mut client = client.clone();
        tokio::spawn(async move { client.pay(request).await })
    };
    let first = call(keyed("a", euros(7)));
    assert_eq!(in_time(begun.recv()).await, Some(1));
    let waiting = [call(keyed("a", euros(7))), call(keyed("a", euros(7)))];
    let mut hasty = keyed("a", euros(7));
    hasty.set_timeout(Duration::from_millis(200));
    let gave_up = in_time(call(hasty)).await.unwrap().unwrap_err();
    assert!(
        matches!(gave_up.code(), Code::Cancelled | Code::DeadlineExceeded),
        "{gave_up}"
    );
    gate.add_permits(1);
    assert!(!is_replay(&in_time(first).await.unwrap().unwrap()));
    for answer in in_time(join_all(waiting)).await {
        assert!(is_replay(&answer.unwrap().unwrap()));
    }
    assert!(begun.try_recv().is_err());
}

/// S03: one that has waited for as long as it may is told that the first still runs.
#[tokio::test]
async fn s03_a_wait_ends_at_its_limit() {
    let Gated {
        till,
        mut begun,
        gate,
    } = gated();
    let layer = layer().on_conflict(OnConflict::Wait(Duration::from_millis(50)));
    let server = Server::of(&layer, till).await;
    let mut client = server.client().await;
    let mut first = client.clone();
    let first = tokio::spawn(async move { first.pay(keyed("a", euros(7))).await });
    assert_eq!(in_time(begun.recv()).await, Some(1));
    let status = in_time(client.pay(keyed("a", euros(7)))).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    gate.add_permits(1);
    in_time(first).await.unwrap().unwrap();
}

/// U21: a server that stops first ends its calls, and then waits for the work of callers who left.
#[tokio::test]
async fn u21_a_shutdown_waits_for_what_runs_on() {
    let Gated {
        till,
        mut begun,
        gate,
    } = gated();
    let store = Arc::new(MemoryStore::new());
    let layer = IdempotencyLayer::new(Arc::clone(&store), Scope::single_tenant());
    let server = Server::of(&layer, till.clone()).await;
    let mut leaving = server.client().await;
    let call = tokio::spawn(async move { leaving.pay(keyed("left", euros(7))).await });
    assert_eq!(in_time(begun.recv()).await, Some(1));
    call.abort();
    let mut staying = server.client().await;
    let stays = tokio::spawn(async move { staying.pay(keyed("stays", euros(7))).await });
    assert_eq!(in_time(begun.recv()).await, Some(1));

    let stopped = tokio::spawn(server.stopped());
    gate.add_permits(2);
    assert!(!is_replay(&in_time(stays).await.unwrap().unwrap()));
    in_time(stopped).await.unwrap();
    in_time(layer.drain()).await;

    // Another server finds both.
    let layer = IdempotencyLayer::new(store, Scope::single_tenant());
    let server = Server::of(&layer, till).await;
    let mut client = server.client().await;
    for key in ["left", "stays"] {
        assert!(is_replay(&client.pay(keyed(key, euros(7))).await.unwrap()));
    }
    assert!(begun.try_recv().is_err());
}

/// U01, S10, S14: fifty at once, over two servers that share their store.
#[tokio::test]
async fn u01_s10_s14_fifty_duplicates_over_two_servers_are_one_payment() {
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    let till = Till::new().on_pay(move |_| {
        let id = counted.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            tokio::task::yield_now().await;
            Ok(Response::new(Payment {
                id: id.into(),
                ..Payment::default()
            }))
        }
    });
    let store = Arc::new(MemoryStore::new());
    let layer = |_| IdempotencyLayer::new(Arc::clone(&store), Scope::single_tenant());
    let [one, two] = [0, 1].map(layer);
    let servers = [
        Server::of(&one, till.clone()).await,
        Server::of(&two, till).await,
    ];
    let clients = [servers[0].client().await, servers[1].client().await];
    let calls = (0..50).map(|n| {
        let mut client = clients[n % 2].clone();
        tokio::spawn(async move {
            loop {
                match client.pay(keyed("a", euros(7))).await {
                    Ok(answer) => break answer.into_inner().id,
                    Err(status) => assert_eq!(status.code(), Code::Aborted),
                }
                tokio::task::yield_now().await;
            }
        })
    });
    for id in in_time(join_all(calls)).await {
        assert_eq!(id.unwrap(), 1);
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
}
