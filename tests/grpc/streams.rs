//! Calls that stream, under a key: each ends, and the caller learns why.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use h2::Reason;
use prost::Message as _;
use tokio::{
    net::TcpStream,
    sync::{Semaphore, mpsc},
};
use tonic::{Code, Request, Response, Status, Streaming, service::Routes};
use tower::ServiceBuilder;
use tower_idempotency::Execution;

use crate::{
    payments::{Batch, PartsRequest, PayRequest, Payment},
    support::{Answers, Server, Till, euros, framed, in_time, is_replay, keyed, layer},
};

fn parts(parts: u32) -> PartsRequest {
    PartsRequest {
        parts,
        ..PartsRequest::default()
    }
}

fn numbered(id: u32) -> Result<Payment, Status> {
    Ok(Payment {
        id: id.into(),
        ..Payment::default()
    })
}

async fn all(messages: Streaming<Payment>) -> Result<Vec<u64>, Status> {
    messages.map_ok(|payment| payment.id).try_collect().await
}

/// Says that it begins, and answers each message as it comes.
fn exchanging(begun: mpsc::UnboundedSender<()>) -> Till {
    Till::new().on_exchange(move |request: Request<Streaming<PayRequest>>| {
        let _ = begun.send(());
        async move {
            let answers = request.into_inner().map_ok(|request| Payment {
                id: request.amount,
                ..Payment::default()
            });
            Ok(Response::new(Box::pin(answers) as Answers))
        }
    })
}

/// P2: what the client streams is read to its end, before the handler runs, and compared as a whole.
#[tokio::test]
async fn p2_client_streaming_is_made_once_when_the_client_has_sent_all() {
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let till = Till::new().on_batch(move |request: Request<Streaming<PayRequest>>| {
        begun.send(()).unwrap();
        async move {
            let attempt = request.extensions().get().map_or(0, Execution::attempt);
            let paid = request.into_inner().map_ok(|request| Payment {
                amount: request.amount,
                attempt,
                ..Payment::default()
            });
            Ok(Response::new(Batch {
                payments: paid.try_collect().await?,
            }))
        }
    });
    let server = Server::of(&layer(), till).await;
    let mut client = server.client().await;

    let (send, mut sent) = mpsc::unbounded_channel();
    let messages = stream::poll_fn(move |cx| sent.poll_recv(cx));
    let mut first = client.clone();
    let first = tokio::spawn(async move { first.pay_batch(keyed("a", messages)).await });
    for amount in [1, 2, 3] {
        send.send(euros(amount)).unwrap();
    }
    // Another call on this connection is answered meanwhile, and this one has not begun.
    let other = client.pay_batch(keyed("b", stream::iter([euros(9)])));
    assert!(!is_replay(&in_time(other).await.unwrap()));
    has_begun.recv().await.unwrap();
    assert!(has_begun.try_recv().is_err());
    drop(send);
    let first = in_time(first).await.unwrap().unwrap();
    let amounts: Vec<_> = first.get_ref().payments.iter().map(|p| p.amount).collect();
    assert_eq!(amounts, [1, 2, 3]);
    has_begun.recv().await.unwrap();

    let messages = || stream::iter([1, 2, 3].map(euros));
    let again = in_time(client.pay_batch(keyed("a", messages())))
        .await
        .unwrap();
    assert!(is_replay(&again));
    assert_eq!(first.get_ref(), again.get_ref());
    let shorter = client.pay_batch(keyed("a", messages().take(2)));
    let status = in_time(shorter).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(has_begun.try_recv().is_err());
}

/// P2: a stream that ends within the limits is an answer as any other.
#[tokio::test]
async fn p2_server_streaming_is_replayed_whole() {
    let till = Till::new().on_parts(|request| async move {
        let messages = stream::iter((1..=request.get_ref().parts).map(numbered));
        Ok(Response::new(Box::pin(messages) as Answers))
    });
    let server = Server::of(&layer(), till).await;
    let mut client = server.client().await;
    for (key, count) in [("none", 0), ("three", 3)] {
        for replayed in [false, true] {
            let answer = client.pay_in_parts(keyed(key, parts(count))).await.unwrap();
            assert_eq!(is_replay(&answer), replayed);
            let expected: Vec<u64> = (1..=count.into()).collect();
            assert_eq!(all(answer.into_inner()).await.unwrap(), expected);
        }
    }
}

/// U06: a long one reaches its caller whole, and is not made again.
#[tokio::test]
async fn u06_a_long_answer_is_passed_on_and_not_made_again() {
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let till = Till::new().on_parts(move |request| {
        begun.send(()).unwrap();
        async move {
            let messages = stream::iter((1..=request.get_ref().parts).map(numbered));
            Ok(Response::new(Box::pin(messages) as Answers))
        }
    });
    let server = Server::of(&layer().response_limit(1000), till).await;
    let mut client = server.client().await;
    let answer = client.pay_in_parts(keyed("a", parts(2000))).await.unwrap();
    let ids = in_time(all(answer.into_inner())).await.unwrap();
    assert_eq!(ids, (1..=2000).collect::<Vec<u64>>());
    has_begun.recv().await.unwrap();
    let status = client
        .pay_in_parts(keyed("a", parts(2000)))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(has_begun.try_recv().is_err());
}

/// U06: one without an end flows from when its time to be recorded is over; a retry is told
/// meanwhile, and the next one, too.
#[tokio::test]
async fn u06_a_slow_answer_flows_and_is_not_made_again() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let till = Till::new().on_parts(move |request| {
        let gate = Arc::clone(&gate);
        async move {
            let first = stream::iter([numbered(1)]);
            let rest = stream::iter(2..=request.get_ref().parts).then(move |id| {
                let gate = Arc::clone(&gate);
                async move {
                    gate.acquire().await.unwrap().forget();
                    numbered(id)
                }
            });
            Ok(Response::new(Box::pin(first.chain(rest)) as Answers))
        }
    });
    let layer = layer().response_timeout(Duration::from_millis(50));
    let server = Server::of(&layer, till).await;
    let mut client = server.client().await;
    let answer = in_time(client.pay_in_parts(keyed("a", parts(3))))
        .await
        .unwrap();
    let mut messages = answer.into_inner();
    let first = in_time(messages.message()).await.unwrap().unwrap();
    assert_eq!(first.id, 1);
    let status = client.pay_in_parts(keyed("a", parts(3))).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    opened.add_permits(2);
    assert_eq!(in_time(all(messages)).await.unwrap(), [2, 3]);
    let status = client.pay_in_parts(keyed("a", parts(3))).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
}

/// P4, U08: a caller who leaves while the answer is made does not cut it off.
#[tokio::test]
async fn p4_u08_a_streamed_answer_is_recorded_though_its_caller_left() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let till = Till::new().on_parts(move |request| {
        let (gate, begun) = (Arc::clone(&gate), begun.clone());
        async move {
            let messages = stream::iter(1..=request.get_ref().parts).then(move |id| {
                let (gate, begun) = (Arc::clone(&gate), begun.clone());
                async move {
                    begun.send(id).unwrap();
                    gate.acquire().await.unwrap().forget();
                    numbered(id)
                }
            });
            Ok(Response::new(Box::pin(messages) as Answers))
        }
    });
    let layer = layer();
    let server = Server::of(&layer, till).await;
    let mut client = server.client().await;
    let mut leaving = client.clone();
    let call = async move { leaving.pay_in_parts(keyed("a", parts(3))).await };
    let call = tokio::spawn(call);
    assert_eq!(in_time(has_begun.recv()).await, Some(1));
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    opened.add_permits(3);
    in_time(layer.drain()).await;
    let answer = client.pay_in_parts(keyed("a", parts(3))).await.unwrap();
    assert!(is_replay(&answer));
    assert_eq!(all(answer.into_inner()).await.unwrap(), [1, 2, 3]);
    assert_eq!(
        (has_begun.recv().await, has_begun.recv().await),
        (Some(2), Some(3))
    );
    assert!(has_begun.try_recv().is_err());
}

/// Of two who wait for each other one gives up: a call whose client waits for an answer before it
/// sends on is refused when its time is up, and nothing was done.
#[tokio::test]
async fn p9_a_bidirectional_call_under_a_key_fails_clearly() {
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let layer = layer().body_timeout(Duration::from_millis(100));
    let server = Server::of(&layer, exchanging(begun)).await;
    let mut client = server.client().await;
    let messages = || stream::iter([euros(1)]).chain(stream::pending());
    for _ in 0..2 {
        let call = client.exchange(keyed("a", messages()));
        let status = in_time(call).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(has_begun.try_recv().is_err());
    }
    // Without a key it is not covered, and works.
    let call = client.exchange(messages());
    let mut answers = in_time(call).await.unwrap().into_inner();
    assert_eq!(in_time(answers.message()).await.unwrap().unwrap().id, 1);
    // And a client that has sent all before it listens can have one.
    let (begun, _) = mpsc::unbounded_channel();
    let server = Server::of(&crate::support::layer(), exchanging(begun)).await;
    let mut client = server.client().await;
    for replayed in [false, true] {
        let call = client.exchange(keyed("a", stream::iter([1, 2].map(euros))));
        let answer = in_time(call).await.unwrap();
        assert_eq!(is_replay(&answer), replayed);
        assert_eq!(in_time(all(answer.into_inner())).await.unwrap(), [1, 2]);
    }
}

/// Nor does a call hang that is refused before it is read.
#[tokio::test]
async fn s12_a_streaming_call_is_refused_though_its_client_goes_on() {
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let server = Server::of(&layer().require_key(true), exchanging(begun)).await;
    let mut client = server.client().await;
    let messages = || stream::iter([euros(1)]).chain(stream::pending());
    let status = in_time(client.exchange(messages())).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = in_time(client.pay_batch(messages())).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(has_begun.try_recv().is_err());
}

/// The way to have both: cover the methods that are not streams.
#[tokio::test]
async fn p10_a_bidirectional_call_that_is_not_covered_works_with_a_key() {
    let (begun, _) = mpsc::unbounded_channel();
    let layer = layer().covers(|parts| parts.uri.path() == crate::support::PAY);
    let server = Server::of(&layer, exchanging(begun)).await;
    let mut client = server.client().await;
    let (send, mut sent) = mpsc::unbounded_channel();
    let messages = stream::poll_fn(move |cx| sent.poll_recv(cx));
    send.send(euros(1)).unwrap();
    let call = client.exchange(keyed("a", messages));
    let mut answers = in_time(call).await.unwrap().into_inner();
    assert_eq!(in_time(answers.message()).await.unwrap().unwrap().id, 1);
    send.send(euros(2)).unwrap();
    assert_eq!(in_time(answers.message()).await.unwrap().unwrap().id, 2);
    drop(send);
    assert!(in_time(answers.message()).await.unwrap().is_none());
}

/// Says when it is dropped.
struct Leaves(mpsc::UnboundedSender<&'static str>);

impl Drop for Leaves {
    fn drop(&mut self) {
        let _ = self.0.send("left");
    }
}

/// U17: a client that breaks off within its messages has made no call, whatever it gives as its
/// reason (`NO_ERROR` and `CANCEL` look to hyper like the end of the body): nothing runs, and its key
/// is free.
#[tokio::test]
async fn u17_a_streaming_call_that_breaks_off_is_not_made() {
    for (method, reason) in [
        ("PayBatch", Reason::CANCEL),
        ("PayBatch", Reason::NO_ERROR),
        ("Exchange", Reason::CANCEL),
        ("Exchange", Reason::NO_ERROR),
    ] {
        let (begun, mut has_begun) = mpsc::unbounded_channel();
        let till = exchanging(begun.clone()).on_batch(move |_| {
            begun.send(()).unwrap();
            async { Ok(Response::new(Batch::default())) }
        });
        let (tell, mut told) = mpsc::unbounded_channel();
        let stack = ServiceBuilder::new()
            .map_future(move |call| {
                tell.send("came").unwrap();
                let leaves = Leaves(tell.clone());
                async move {
                    let _leaves = leaves;
                    call.await
                }
            })
            .layer(layer());
        let server = Server::start(stack, Routes::new(till.server())).await;

        let stream = TcpStream::connect(server.addr).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        let call = http::Request::post(format!("http://localhost/payments.v1.Payments/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("idempotency-key", "a");
        let (_answer, mut body) = sender.send_request(call.body(()).unwrap(), false).unwrap();
        let message = Bytes::from(framed(&euros(1).encode_to_vec()));
        body.send_data(message, false).unwrap();
        assert_eq!(in_time(told.recv()).await, Some("came"));
        body.send_reset(reason);
        assert_eq!(in_time(told.recv()).await, Some("left"));
        assert!(has_begun.try_recv().is_err(), "{method}, {reason:?}");

        let mut client = server.client().await;
        let whole = || keyed("a", stream::iter([euros(2)]));
        let replayed = match method {
            "PayBatch" => in_time(client.pay_batch(whole()))
                .await
                .map(|a| is_replay(&a)),
            _ => in_time(client.exchange(whole()))
                .await
                .map(|a| is_replay(&a)),
        };
        assert!(!replayed.unwrap(), "{method}, {reason:?}");
        assert!(has_begun.try_recv().is_ok() && has_begun.try_recv().is_err());
        connection.abort();
    }
}
