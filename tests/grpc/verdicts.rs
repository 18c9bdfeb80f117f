//! What each status makes of its operation.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Request as HttpRequest, Response as HttpResponse};
use http_body_util::{BodyExt, Full};
use prost::Message;
use tonic::{Code, Response, Status};
use tower::{Layer as _, ServiceExt as _};
use tower_idempotency::{
    Entry, Execution, IdempotencyLayer, Outcome, RequestBody,
    verdict::{self, Verdict},
};

use crate::{
    payments::{PartsRequest, Payment},
    support::{Answers, Server, Till, euros, framed, is_replay, keyed, layer},
};

/// Each code, and what is made of it.
const TABLE: [(Code, Verdict); 17] = [
    (Code::Ok, Verdict::Completed),
    (Code::Cancelled, Verdict::Failed),
    (Code::Unknown, Verdict::Failed),
    (Code::InvalidArgument, Verdict::Rejected),
    (Code::DeadlineExceeded, Verdict::Failed),
    (Code::NotFound, Verdict::Rejected),
    (Code::AlreadyExists, Verdict::Rejected),
    (Code::PermissionDenied, Verdict::Rejected),
    (Code::ResourceExhausted, Verdict::Failed),
    (Code::FailedPrecondition, Verdict::Rejected),
    (Code::Aborted, Verdict::Failed),
    (Code::OutOfRange, Verdict::Failed),
    (Code::Unimplemented, Verdict::Rejected),
    (Code::Internal, Verdict::Failed),
    (Code::Unavailable, Verdict::Failed),
    (Code::DataLoss, Verdict::Failed),
    (Code::Unauthenticated, Verdict::Rejected),
];

/// Another payload, which succeeds at once.
const OTHER: u64 = 100;

/// S04, S30, U03, U04: what a rejection and a failure leave of their key, over the line.
#[tokio::test]
async fn s04_s30_u03_u04_each_code_is_judged_as_the_table_says() {
    // The amount is the code that the first attempt fails with.
    let till = Till::new().on_pay(|request| async move {
        let execution = request.extensions().get::<Execution>().unwrap();
        let attempt = execution.attempt();
        let code = Code::from_i32(i32::try_from(request.get_ref().amount).unwrap());
        if attempt == 1 && ![0, OTHER].contains(&request.get_ref().amount) {
            return Err(Status::new(code, "as told"));
        }
        Ok(Response::new(Payment {
            attempt,
            ..Payment::default()
        }))
    });
    let server = Server::of(&layer(), till).await;
    let mut client = server.client().await;
    for (code, verdict) in TABLE {
        let amount = u64::try_from(code as i32).unwrap();
        let key = format!("{code:?}");
        let first = client.pay(keyed(&key, euros(amount))).await;
        assert_eq!(first.err().map(|status| status.code()), {
            (code != Code::Ok).then_some(code)
        });
        let other = client.pay(keyed(&key, euros(OTHER))).await;
        match verdict {
            Verdict::Rejected => assert_eq!(other.unwrap().get_ref().attempt, 1, "{code:?}"),
            _ => assert_eq!(
                other.unwrap_err().code(),
                Code::FailedPrecondition,
                "{code:?}"
            ),
        }
        let again = client.pay(keyed(&key, euros(amount))).await;
        match verdict {
            Verdict::Completed => assert!(is_replay(&again.unwrap()), "{code:?}"),
            Verdict::Failed => {
                let again = again.unwrap();
                assert_eq!(
                    (again.get_ref().attempt, is_replay(&again)),
                    (2, false),
                    "{code:?}"
                );
            }
            Verdict::Rejected => {
                assert_eq!(
                    again.unwrap_err().code(),
                    Code::FailedPrecondition,
                    "{code:?}"
                );
            }
        }
    }
}

/// A rejection on a later attempt says nothing of the earlier one.
#[tokio::test]
async fn s08_a_rejection_on_a_later_attempt_counts_as_failed() {
    let till = Till::new().on_pay(|request| async move {
        let execution = request.extensions().get::<Execution>().unwrap();
        match execution.attempt() {
            1 => Err(Status::internal("half done")),
            2 => {
                assert_eq!(execution.entry(), Entry::Retry);
                Err(Status::invalid_argument("what was that?"))
            }
            _ => Ok(Response::new(Payment::default())),
        }
    });
    let server = Server::of(&layer(), till).await;
    let mut client = server.client().await;
    for code in [Code::Internal, Code::InvalidArgument] {
        let status = client.pay(keyed("a", euros(7))).await.unwrap_err();
        assert_eq!(status.code(), code);
        let status = client.pay(keyed("a", euros(8))).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
    }
    assert!(!is_replay(&client.pay(keyed("a", euros(7))).await.unwrap()));
}

/// U03: a panic is a failure, whose retry runs at once. In tonic's server it also ends the connection.
#[tokio::test]
async fn u03_a_panic_is_a_failure() {
    let till = Till::new().on_pay(|request| async move {
        let attempt = request.extensions().get().map_or(0, Execution::attempt);
        assert_ne!(attempt, 1, "a panic on purpose");
        Ok(Response::new(Payment {
            attempt,
            ..Payment::default()
        }))
    });
    let server = Server::of(&layer(), till).await;
    let mut client = server.client().await;
    assert!(client.pay(keyed("a", euros(7))).await.is_err());
    let mut client = server.client().await;
    let other = client.pay(keyed("a", euros(8))).await.unwrap_err();
    assert_eq!(other.code(), Code::FailedPrecondition);
    for replayed in [false, true] {
        let answer = client.pay(keyed("a", euros(7))).await.unwrap();
        assert_eq!(
            (answer.get_ref().attempt, is_replay(&answer)),
            (2, replayed)
        );
    }
}

/// An error in trailers, after the head: with no message before it, it is judged as ever; with one,
/// something was done, and the key is not free.
#[tokio::test]
async fn u04_a_rejection_after_messages_counts_as_failed() {
    // So many messages, and then an error, on the first attempt.
    let till = Till::new().on_parts(|request| async move {
        let attempt = request.extensions().get::<Execution>().unwrap().attempt();
        let messages = request.get_ref().parts;
        let messages = stream::iter(0..messages).map(|_| Ok(Payment::default()));
        let error = stream::iter([Err(Status::invalid_argument("no more"))]);
        let answer: Answers = match attempt {
            1 => Box::pin(messages.chain(error)),
            _ => Box::pin(messages),
        };
        Ok(Response::new(answer))
    });
    let server = Server::of(&layer(), till).await;
    let mut client = server.client().await;
    for parts in [0, 1] {
        let key = format!("after {parts}");
        let mut call = async |parts, amount| {
            let request = PartsRequest {
                parts,
                amount,
                ..PartsRequest::default()
            };
            let answer = client.pay_in_parts(keyed(&key, request)).await?;
            let mut messages = answer.into_inner();
            let mut count = 0;
            while messages.message().await?.is_some() {
                count += 1;
            }
            Ok::<u32, Status>(count)
        };
        let error = call(parts, 1).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        let other = call(parts, 2).await.unwrap_err();
        match parts {
            // It was the first attempt of another payload, and so told the same.
            0 => assert_eq!(other.code(), Code::InvalidArgument),
            _ => {
                assert_eq!(other.code(), Code::FailedPrecondition);
                assert_eq!(call(parts, 1).await.unwrap(), parts);
            }
        }
    }
}

type Line = (&'static str, &'static str);

async fn judged(headers: &[Line], body: Bytes, trailers: Option<&[Line]>) -> Outcome {
    outcome(&layer(), headers, body, trailers).await
}

/// What a server answers that is not tonic, and what is made of it.
async fn outcome<S>(
    layer: &IdempotencyLayer<S>,
    headers: &[Line],
    body: Bytes,
    trailers: Option<&[Line]>,
) -> Outcome
where
    S: ?Sized,
{
    let map = |lines: &[Line]| -> HeaderMap {
        let line = |(name, value): &Line| {
            let name = http::HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        };
        lines.iter().map(line).collect()
    };
    let (headers, trailers) = (map(headers), trailers.map(map));
    let upstream = tower::service_fn(move |_: HttpRequest<RequestBody<Full<Bytes>>>| {
        let (headers, trailers) = (headers.clone(), trailers.clone());
        let body = Full::from(body.clone());
        async move {
            let body = body.with_trailers(async move { trailers.map(Ok) });
            let mut response = HttpResponse::new(body);
            *response.headers_mut() = headers;
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let request = HttpRequest::post("/x.Y/Z")
        .header("content-type", "application/grpc")
        .header("idempotency-key", "a");
    let request = request.body(Full::default()).unwrap();
    let response = layer.layer(upstream).oneshot(request).await.unwrap();
    *response.extensions().get().unwrap()
}

/// The status is in the trailers, or in a head without any; an answer that has none has failed.
#[tokio::test]
async fn u04_an_answer_without_a_status_that_can_be_read_has_failed() {
    let grpc = [("content-type", "application/grpc")];
    let only = |code| [grpc[0], ("grpc-status", code)];
    let message = || Bytes::from(framed(&Payment::default().encode_to_vec()));
    let none = Bytes::new;
    assert_eq!(judged(&grpc, message(), None).await, Outcome::Failed);
    assert_eq!(judged(&grpc, none(), None).await, Outcome::Failed);
    assert_eq!(judged(&grpc, message(), Some(&[])).await, Outcome::Failed);
    for (code, expected) in [
        ("0", Outcome::Completed),
        ("5", Outcome::Rejected),
        ("14", Outcome::Failed),
        ("99", Outcome::Failed),
        ("ok", Outcome::Failed),
        ("", Outcome::Failed),
    ] {
        let trailers = [("grpc-status", code)];
        assert_eq!(judged(&grpc, none(), Some(&trailers)).await, expected);
        assert_eq!(judged(&only(code), none(), None).await, expected);
        // The trailers have the last word.
        assert_eq!(judged(&only("2"), none(), Some(&trailers)).await, expected);
    }
    // What is not gRPC, though it was asked as such, is judged as HTTP is.
    let text = [("content-type", "text/plain"), ("grpc-status", "14")];
    assert_eq!(judged(&text, none(), None).await, Outcome::Completed);
}

/// A status that comes last cannot be waited for where the answer is too large.
#[tokio::test]
async fn u06_an_answer_that_is_sent_on_is_completed_without_a_judge() {
    let grpc = [("content-type", "application/grpc")];
    let limited = layer().response_limit(10);
    let trailers = [("grpc-status", "13")];
    let large = || Bytes::from_static(&[0; 11]);
    let outcome_of = outcome(&limited, &grpc, large(), Some(&trailers)).await;
    assert_eq!(outcome_of, Outcome::NotReplayable);
    let asked = Arc::new(AtomicU32::new(0));
    let judge = {
        let asked = Arc::clone(&asked);
        move |_: &_, _: Option<&_>| {
            asked.fetch_add(1, Ordering::SeqCst);
            Verdict::Rejected
        }
    };
    let judged = layer().response_limit(10).judge(judge);
    let outcome_of = outcome(&judged, &grpc, large(), Some(&trailers)).await;
    assert_eq!(outcome_of, Outcome::NotReplayable);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    // With the status in its head there is something to judge by.
    let head = [grpc[0], ("grpc-status", "3")];
    let outcome_of = outcome(&layer().response_limit(10), &head, large(), None).await;
    assert_eq!(outcome_of, Outcome::Rejected);
}

/// A judge of one's own sees the trailers, and can go on with the default.
#[tokio::test]
async fn s04_a_judge_of_ones_own_reads_the_status() {
    let judge = |parts: &_, trailers: Option<&HeaderMap>| {
        let said = trailers.and_then(|trailers| trailers.get("x-nothing-done"));
        match said {
            Some(_) => Verdict::Rejected,
            None => verdict::by_grpc_status(parts, trailers),
        }
    };
    let grpc = [("content-type", "application/grpc")];
    for (trailers, expected) in [
        (
            &[("grpc-status", "14"), ("x-nothing-done", "1")][..],
            Outcome::Rejected,
        ),
        (&[("grpc-status", "14")], Outcome::Failed),
        (&[("grpc-status", "0")], Outcome::Completed),
    ] {
        let layer = layer().judge(judge);
        let outcome = outcome(&layer, &grpc, Bytes::new(), Some(trailers)).await;
        assert_eq!(outcome, expected);
    }
}
