//! The other end: requests that go out, each operation under one key, and tried again where that can
//! help.
//!
//! A client whose answer is lost asks again; that is what keys are for. [`SetIdempotencyKeyLayer`]
//! gives each POST and PATCH the key of its operation. [`RetryLayer`] stands inside of it and sends the
//! request again, as it was: after those failures where it can help, not too often, and never one that
//! could take effect twice. So all tries of an operation have one key (S26). **The server must know
//! keys:** to one that ignores the header, a POST that is sent twice is two operations. Leave those
//! servers out with [`covers`](SetIdempotencyKeyLayer::covers): what has no key is sent once.
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
//! use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn};
//! use tower_idempotency::{
//!     IdempotencyLayer, MemoryStore, Scope,
//!     client::{RetryLayer, SetIdempotencyKeyLayer},
//! };
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
//! let client = ServiceBuilder::new()
//!     .layer(SetIdempotencyKeyLayer::new())
//!     .layer(RetryLayer::default())
//!     .service(network);
//!
//! let request = Request::post("https://bank.example/payments")
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
//! # Forwarding
//!
//! What a handler does by calling other services is done once only if those calls are recognised when
//! the handler runs again: after a failure, or in another process after a crash. So a call that is
//! made inside an [`Execution`] gets a key that is derived from the execution's own, and is the same
//! in each attempt (S25). Nothing need be passed down:
//!
//! ```
//! use std::convert::Infallible;
//!
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::Full;
//! use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
//! use tower_idempotency::{
//!     Execution, IdempotencyLayer, MemoryStore, RequestBody, Scope,
//!     client::{Purpose, SetIdempotencyKeyLayer},
//! };
//! # use std::sync::{Arc, atomic::{AtomicU32, Ordering::SeqCst}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! # let charges = Arc::new(AtomicU32::new(0));
//! # let counted = charges.clone();
//! // Another company's service. Over a network it would stand behind an HTTP client.
//! let bank = service_fn(move |_: Request<RequestBody<Full<Bytes>>>| {
//!     let number = charges.fetch_add(1, SeqCst) + 1;
//!     let charged = Response::new(Full::<Bytes>::from(format!("charge {number}")));
//!     async move { Ok::<_, Infallible>(charged) }
//! });
//! let bank = IdempotencyLayer::new(MemoryStore::new(), Scope::single_tenant()).layer(bank);
//!
//! let bank = SetIdempotencyKeyLayer::new().require_execution(true).layer(bank);
//! let shop = service_fn(move |request: Request<RequestBody<Full<Bytes>>>| {
//!     let bank = bank.clone();
//!     async move {
//!         let charge = Request::post("http://bank.example/charges")
//!             .extension(Purpose::new("deposit"))
//!             .body(Full::from("5 EUR"))?;
//!         let charged = bank.oneshot(charge).await?;
//!         // The first attempt fails after the charge.
//!         let attempt = request.extensions().get().map_or(0, Execution::attempt);
//!         let status = if attempt == 1 { StatusCode::BAD_GATEWAY } else { charged.status() };
//!         Ok::<_, BoxError>(Response::builder().status(status).body(Full::<Bytes>::default())?)
//!     }
//! });
//! let mut shop = IdempotencyLayer::new(MemoryStore::new(), Scope::single_tenant()).layer(shop);
//!
//! let order = || {
//!     let order = Request::post("/orders").header("idempotency-key", "order-1");
//!     order.body(Full::<Bytes>::from("a book")).unwrap()
//! };
//! let first = shop.ready().await.unwrap().call(order()).await.unwrap();
//! let retry = shop.ready().await.unwrap().call(order()).await.unwrap();
//! assert_eq!((first.status(), retry.status()), (StatusCode::BAD_GATEWAY, StatusCode::OK));
//! # let charges = counted.load(SeqCst);
//! assert_eq!(charges, 1);
//! # }
//! ```
//!
//! The execution is the one in the outgoing request's extensions, or else the [current] one. A task
//! that the handler spawned has no current one, and neither has a call that passes through a
//! `tower::buffer` outside of this layer: give the request a clone of the execution, and have the
//! layer [require](SetIdempotencyKeyLayer::require_execution) one, so that a call which was forgotten
//! is refused rather than made under a new key in each attempt.
//!
//! A request that a handler passes on with the headers it came with has the key of the handler's
//! caller, which is kept. Remove it where the other service does not know that caller: two callers may
//! choose the same key, and one would get the other's answer (U33).
//!
//! The key is half of it. The other service must know keys, and remember them for as long as the
//! operation may be tried again; and the call must say the same in each attempt, or the service takes
//! it for a misuse of the key (422): a time or a random number in its body belongs into a
//! [checkpoint]. A handler that has made such a call should fail with a 5xx, not with a 4xx, which
//! says that nothing was done.
//!
//! # Purposes
//!
//! A forwarded key is [`Execution::derive`] of the call's [`Purpose`]. A request without one has its
//! method and URI for it, up to the path: `POST http://bank.example/charges`. So a handler that makes
//! one call to each endpoint needs to name nothing. **Give a `Purpose`** to a call whose URI is not the
//! same in each attempt (the address of one replica, a random number in the path), since it would have
//! another key then, and to each of several calls to one endpoint.
//!
//! Two calls under one key would be one operation to the service, which would answer the second one
//! with the first one's answer, and not do it. Therefore a purpose is for one call of an attempt, and
//! another call with it is refused with [`SetKeyError::PurposeTaken`]:
//!
//! - while the first one is under way;
//! - once the first one was answered with a status below 400 (and, over gRPC, without an error in the
//!   head of the answer);
//! - in any case where it was made of method and URI: another call to the endpoint need not be another
//!   try of the first one.
//!
//! A call with a `Purpose` that was answered with an error, that failed, or whose future was dropped
//! gives that back: a handler may then try again, by a loop of its own, and the try has the same key. One
//! that needs the answer of a done call again (the connection broke within its body, say) gives the
//! request the key itself, as a header or an [`IdempotencyKey`](crate::IdempotencyKey) among its
//! extensions, with `execution.derive("deposit")`. Nothing is refused then.
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
//!
//! A layer further in finds the key as an [`IdempotencyKey`](crate::IdempotencyKey) among the
//! request's extensions, whatever its header is called.
//!
//! [checkpoint]: crate::Execution::save_checkpoint
//! [`Execution`]: crate::Execution
//! [`Execution::derive`]: crate::Execution::derive
//! [current]: crate::Execution::current

mod collect;
mod error;
mod grpc;
mod key;
mod layer;
mod purpose;
mod repeat;
mod retry;

pub use collect::{CollectedBody, TryError};
pub use error::SetKeyError;
pub use key::{SetIdempotencyKey, SetIdempotencyKeyFuture, SetIdempotencyKeyLayer};
pub use layer::{Retry, RetryFuture, RetryLayer};
pub use purpose::Purpose;
pub use repeat::RepeatBody;
pub use retry::RetryPolicy;
