//! The other end: requests that go out, each operation under one key.
//!
//! [`SetIdempotencyKeyLayer`] wraps an HTTP client (hyper-util's, a tonic `Channel`, whatever is a
//! [`tower::Service`] over HTTP) and gives each POST and PATCH an `Idempotency-Key`. It stands
//! *outside* of a layer that retries, so that all tries of one operation have one key (S26):
//!
//! ```
//! use tower::ServiceBuilder;
//! use tower_idempotency::client::SetIdempotencyKeyLayer;
//! # use std::{convert::Infallible, future};
//! # use bytes::Bytes;
//! # use http::{Request, Response};
//! # use http_body_util::Full;
//! # use tower::{Service, ServiceExt, retry::{Policy, RetryLayer}, service_fn};
//! # #[derive(Clone)]
//! # struct Twice(bool);
//! # impl<R> Policy<Request<Full<Bytes>>, R, Infallible> for Twice {
//! #     type Future = future::Ready<()>;
//! #     fn retry(&mut self, _: &mut Request<Full<Bytes>>, _: &mut Result<R, Infallible>) -> Option<Self::Future> {
//! #         (!std::mem::replace(&mut self.0, true)).then(|| future::ready(()))
//! #     }
//! #     fn clone_request(&mut self, request: &Request<Full<Bytes>>) -> Option<Request<Full<Bytes>>> {
//! #         Some(request.clone())
//! #     }
//! # }
//! # let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
//! # let sent = seen.clone();
//! # let http_client = service_fn(move |request: Request<Full<Bytes>>| {
//! #     sent.lock().unwrap().push(request.headers()["idempotency-key"].clone());
//! #     future::ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))
//! # });
//! # let retry = RetryLayer::new(Twice(false));
//!
//! let client = ServiceBuilder::new()
//!     .layer(SetIdempotencyKeyLayer::new())
//!     .layer(retry)
//!     .service(http_client);
//! # let request = Request::post("http://bank.example/charges").body(Full::default()).unwrap();
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(client.oneshot(request)).unwrap();
//! # let seen = seen.lock().unwrap();
//! # assert_eq!((seen.len(), &seen[0]), (2, &seen[1]));
//! ```
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
//!   head of the answer).
//!
//! A call that was answered with an error, that failed, or whose future was dropped gives its purpose
//! back: a handler may then try again, by a loop of its own, and the try has the same key. One that
//! needs the answer of a done call again (the connection broke within its body, say) gives the request
//! the key itself, as a header or an [`IdempotencyKey`](crate::IdempotencyKey) among its extensions,
//! with `execution.derive("deposit")`. Nothing is refused then.
//!
//! # Which layers stand where
//!
//! Outermost is this layer, inside of it retries and hedges, then timeouts of one try, and the client.
//! A layer further in finds the key as an [`IdempotencyKey`](crate::IdempotencyKey) among the
//! request's extensions, whatever its header is called.
//!
//! [checkpoint]: crate::Execution::save_checkpoint
//! [`Execution`]: crate::Execution
//! [`Execution::derive`]: crate::Execution::derive
//! [current]: crate::Execution::current

mod error;
mod key;
mod purpose;

pub use error::SetKeyError;
pub use key::{SetIdempotencyKey, SetIdempotencyKeyFuture, SetIdempotencyKeyLayer};
pub use purpose::Purpose;
