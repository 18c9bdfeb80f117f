//! P5 in gRPC: what comes after an execution that went silent.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::{Code, Response, Status, metadata::MetadataValue};
use tower_idempotency::{Entry, Execution, Probed, Takeover};

use crate::{
    payments::Payment,
    support::{PAY, Server, Till, euros, in_time, is_replay, keyed, layer},
};

/// A server whose first payment was made by a process that seems to have died; after a while, so
/// that its lease has ended.
async fn after_a_crash(takeover: Takeover) -> Server {
    let (begin, mut begun) = mpsc::unbounded_channel();
    let crashes = Arc::new(AtomicBool::new(true));
    let till = Till::new().on_pay(move |request| {
        let execution = request.extensions().get::<Execution>().cloned();
        let (begin, crashes) = (begin.clone(), Arc::clone(&crashes));
        async move {
            if crashes.swap(false, Ordering::SeqCst) {
                begin.send(()).unwrap();
                pending::<()>().await;
            }
            let execution = execution.unwrap();
            assert_eq!(execution.entry(), Entry::Takeover);
            Ok(Response::new(Payment {
                attempt: execution.attempt(),
                ..Payment::default()
            }))
        }
    });
    // An execution is cut off when its caller leaves, as if its process had died.
    let layer = layer().max_detached(0).lease(Duration::from_millis(20));
    let server = Server::of(&layer.takeover(takeover), till).await;
    let mut leaving = server.client().await;
    let call = tokio::spawn(async move { leaving.pay(keyed("a", euros(7))).await });
    in_time(begun.recv()).await.unwrap();
    call.abort();
    server
}

/// Asks until the lease has ended.
async fn pay(server: &Server) -> Result<Response<Payment>, Status> {
    let mut client = server.client().await;
    let call = async {
        loop {
            match client.pay(keyed("a", euros(7))).await {
                Err(status) if status.code() == Code::Aborted => {}
                answer => break answer,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(call).await
}

#[tokio::test]
async fn p5_a_takeover_runs_the_handler_again() {
    let server = after_a_crash(Takeover::run()).await;
    let paid = pay(&server).await.unwrap();
    assert_eq!((paid.get_ref().attempt, is_replay(&paid)), (2, false));
    assert!(is_replay(&pay(&server).await.unwrap()));
}

/// A probe that knows the reply: it is sent and recorded as the handler's would be.
#[tokio::test]
async fn p5_the_reply_of_a_probe_is_recorded() {
    let takeover = Takeover::probe(|execution, _| async move {
        let mut reply = Response::new(Payment {
            id: 42,
            key: execution.key().to_owned(),
            ..Payment::default()
        });
        let metadata = reply.metadata_mut();
        metadata.insert("x-found", MetadataValue::from_static("1"));
        Probed::reply(&reply)
    });
    let server = after_a_crash(takeover).await;
    for replayed in [false, true] {
        let paid = pay(&server).await.unwrap();
        assert_eq!(is_replay(&paid), replayed);
        assert_eq!(paid.metadata().get("x-found").unwrap(), "1");
        assert_eq!((paid.get_ref().id, &paid.get_ref().key[..]), (42, "a"));
    }
    let message = euros(7).encode_to_vec();
    let answer = server.raw(PAY, &[("idempotency-key", "a")], &message).await;
    assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
    assert!(!answer.headers.contains_key("grpc-status"));
}

/// Or knows an error; or knows nothing, and then the key stays as it is.
#[tokio::test]
async fn p5_a_probe_may_find_an_error_or_nothing() {
    let takeover = Takeover::probe(|_, _| async {
        Probed::Completed(Status::not_found("no such account").into_http::<Bytes>())
    });
    let server = after_a_crash(takeover).await;
    for replayed in [false, true] {
        let status = pay(&server).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        let told = status.metadata().contains_key("idempotent-replayed");
        assert_eq!(told, replayed);
    }

    let server = after_a_crash(Takeover::probe(|_, _| async { Probed::Unknown })).await;
    for _ in 0..2 {
        let status = pay(&server).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
    }
}
