//! The other end: requests that go out.
//!
//! A client whose answer is lost asks again; that is what keys are for. [`RetryLayer`] asks again:
//! after those failures where it can help, not too often, and never with a request that could take
//! effect twice. What it asks with is the request as it was, so one operation has one key (S26):
//! the key is set outside of it, or by the caller.
//!
//! ```
//! use std::{
//!     convert::Infallible,
//!     sync::atomic::{AtomicU32, Ordering::Relaxed},
//! };
//!
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{BoxError, Layer, ServiceExt, service_fn};
//! use tower_idempotency::{IdempotencyLayer, MemoryStore, Scope, client::RetryLayer};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! static PAYMENTS: AtomicU32 = AtomicU32::new(0);
//! static ANSWERS: AtomicU32 = AtomicU32::new(0);
//!
//! let server = IdempotencyLayer::new(MemoryStore::new(), Scope::single_tenant()).layer(service_fn(
//!     |_| async {
//!         let number = PAYMENTS.fetch_add(1, Relaxed) + 1;
//!         Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(format!("payment {number}"))))
//!     },
//! ));
//! // The first answer is lost on the way.
//! let network = service_fn(move |request| {
//!     let answer = server.clone().oneshot(request);
//!     async move {
//!         let answer = answer.await?;
//!         match ANSWERS.fetch_add(1, Relaxed) {
//!             0 => Err(BoxError::from("the connection was lost")),
//!             _ => Ok(answer),
//!         }
//!     }
//! });
//! let client = RetryLayer::default().layer(network);
//!
//! let request = Request::post("https://bank.example/payments")
//!     .header("idempotency-key", "order-1")
//!     .body(Full::<Bytes>::from("100 EUR"))?;
//! let answer = client.oneshot(request).await?;
//!
//! assert_eq!(answer.headers()["idempotent-replayed"], "true");
//! assert_eq!(answer.into_body().collect().await?.to_bytes(), "payment 1");
//! assert_eq!((PAYMENTS.load(Relaxed), ANSWERS.load(Relaxed)), (1, 2));
//! # Ok(())
//! # }
//! ```
//!
//! # Clients
//!
//! It stands around whatever sends a `http::Request`. The service inside gets its own body back in a
//! [`RepeatBody`]:
//!
//! - hyper-util's client takes that as it is: `layer.layer(Client::builder(executor).build_http())`.
//! - tonic's `Channel` wants a body of tonic's: `ServiceBuilder::new().layer(layer)
//!   .map_request(|request: http::Request<_>| request.map(tonic::body::Body::new)).service(channel)`
//!   goes into a generated client. Set the key as metadata of the call.
//! - reqwest's client wants a request of its own: `request.map(reqwest::Body::wrap).try_into()` makes it,
//!   and its answer goes `.into()` an `http::Response`.
//!
//! `examples/client.rs` has the three of them.
//!
//! # Other layers
//!
//! | layer | outside of `RetryLayer` | inside |
//! |---|---|---|
//! | what sets the key | one operation, one key | a POST seems to have no key, and is sent once |
//! | a time-out | the operation's, with all tries | a try's: an error, and tried again; [`try_timeout`](RetryLayer::try_timeout) covers the answer's body too |
//! | credentials, signatures that expire, traces | the same for all tries | made anew for each try |
//! | what makes errors of answers | they stand for the caller alone | all of them are tried again: keep it outside |
//! | a concurrency limit | an operation holds its place while it waits | a try holds it |

mod collect;
mod grpc;
mod layer;
mod repeat;
mod retry;

pub use collect::{CollectedBody, TryError};
pub use layer::{ResponseFuture, Retry, RetryLayer};
pub use repeat::RepeatBody;
pub use retry::RetryPolicy;
