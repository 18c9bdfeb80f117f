//! S26, U32: what a client of ours does about each refusal of a server of ours.

use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{poll, stream};
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::{
    Fingerprinter, IdempotencyLayer, InvalidKey, Outcome, Reason, RequestBody, Scope, Takeover,
    client::{RetryLayer, RetryPolicy},
};

use crate::{
    base::{Fault, Op, Scripted, layer, post},
    support::SECOND,
};

type Layered = IdempotencyLayer<Scripted>;
type Outgoing = Request<UnsyncBoxBody<Bytes, Infallible>>;

/// What becomes of the tries of an operation.
#[derive(Debug, PartialEq)]
enum Tries {
    /// The answer to the first one stands.
    One,
    /// As many as may fail.
    Limited,
    /// As many as there is time for: none of them counts as a failure.
    Waiting,
}

const MOST: u32 = 3;

fn outgoing(body: &'static str) -> Outgoing {
    post("k", "").map(|_| Full::from(body).boxed_unsync())
}

/// The same in a gRPC call.
fn in_grpc(mut request: Outgoing) -> Outgoing {
    let kind = HeaderValue::from_static("application/grpc");
    request.headers_mut().insert(CONTENT_TYPE, kind);
    request
}

/// Sends a request to a server whose handler answers, or never does.
async fn ask(layer: Layered, answers: bool, request: Outgoing) -> (Tries, Option<Reason>) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    let told = Arc::new(Mutex::new(None));
    let last = Arc::clone(&told);
    let server = layer.layer(service_fn(
        move |request: Request<RequestBody<_>>| async move {
            if !answers {
                pending().await
            }
            // A gRPC answer, too, that is done.
            let mut response = Response::new(Full::<Bytes>::from("done"));
            if let Some(kind) = request.headers().get(CONTENT_TYPE) {
                response.headers_mut().insert(CONTENT_TYPE, kind.clone());
                let ok = HeaderValue::from_static("0");
                response.headers_mut().insert("grpc-status", ok);
            }
            Ok::<_, Infallible>(response)
        },
    ));
    let network = service_fn(move |request| {
        counted.fetch_add(1, SeqCst);
        let answer = server.clone().oneshot(request);
        let told = Arc::clone(&told);
        async move {
            let response = answer.await?;
            *told.lock().unwrap() = response.extensions().get::<Outcome>().copied();
            Ok::<_, Infallible>(response)
        }
    });
    let policy = RetryPolicy::new().tries(MOST).time(20 * SECOND);
    let client = RetryLayer::new(policy)
        .try_timeout(3600 * SECOND)
        .layer(network);
    client.oneshot(request).await.unwrap();
    let tries = match count.load(SeqCst) {
        1 => Tries::One,
        MOST => Tries::Limited,
        more if more > MOST => Tries::Waiting,
        few => panic!("{few} tries"),
    };
    let reason = match last.lock().unwrap().take() {
        Some(Outcome::Refused(reason)) => Some(reason),
        _ => None,
    };
    (tries, reason)
}

/// A server that refuses the request for `reason`.
async fn refusing(reason: Reason, form: fn(Outgoing) -> Outgoing) -> Layered {
    let store = Scripted::new();
    let base = layer(store.clone());
    match reason {
        Reason::KeyInvalid => base.validate_key(|_| Err(InvalidKey::new("no"))),
        Reason::CallerUnknown => base.scope(Scope::header("x-caller")),
        Reason::BodyTooLarge => base.body_limit(1),
        Reason::BodyTooSlow => base.body_timeout(SECOND),
        Reason::InProgress | Reason::Abandoned => {
            let running = base.clone().max_detached(0);
            let mut running = Box::pin(ask(running, false, form(outgoing("5 EUR"))));
            assert!(poll!(&mut running).is_pending());
            if reason == Reason::InProgress {
                // Its lease is kept.
                tokio::spawn(running);
            } else {
                drop(running);
                tokio::time::sleep(Duration::from_secs(30)).await;
            }
            base.takeover(Takeover::refuse())
        }
        Reason::Mismatch => {
            ask(base.clone(), true, form(outgoing("6 EUR"))).await;
            base
        }
        Reason::OtherAlgorithm => {
            let other = Fingerprinter::request().keyed("secret");
            let other = base.clone().fingerprint(other);
            ask(other, true, form(outgoing("5 EUR"))).await;
            base
        }
        Reason::NotReplayable => {
            let short = base.clone().response_limit(1);
            ask(short, true, form(outgoing("5 EUR"))).await;
            base
        }
        Reason::StoreUnavailable => {
            store.always(Op::Claim, Fault::Lost);
            base
        }
        Reason::Overloaded => base.buffer_limit(0),
        other => panic!("{other}"),
    }
}

/// S26, U32: nothing is tried again that cannot succeed, and what can is, over HTTP and over gRPC.
#[tokio::test(start_paused = true)]
async fn s26_u32_each_refusal_is_tried_again_or_stands() {
    let plain: fn(Outgoing) -> Outgoing = |request| request;
    for form in [plain, in_grpc] {
        for (reason, tries) in [
            (Reason::KeyInvalid, Tries::One),
            (Reason::CallerUnknown, Tries::One),
            (Reason::BodyTooLarge, Tries::One),
            (Reason::BodyTooSlow, Tries::One),
            (Reason::InProgress, Tries::Waiting),
            (Reason::Mismatch, Tries::One),
            (Reason::OtherAlgorithm, Tries::Waiting),
            (Reason::NotReplayable, Tries::One),
            (Reason::Abandoned, Tries::One),
            (Reason::StoreUnavailable, Tries::Limited),
            (Reason::Overloaded, Tries::Limited),
        ] {
            let server = refusing(reason, form).await;
            let request = match reason {
                Reason::BodyTooSlow => outgoing("").map(|_| {
                    let never = StreamBody::new(stream::pending());
                    never.boxed_unsync()
                }),
                _ => outgoing("5 EUR"),
            };
            let told = ask(server, true, form(request)).await;
            assert_eq!(told, (tries, Some(reason)));
        }
    }
}
