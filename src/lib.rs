//! Idempotency for tower services: **an operation named by a key happens once, and everyone who
//! asks again gets the same answer.**
//!
//! [`IdempotencyLayer`] wraps any [`tower::Service`] over HTTP. A request that carries an
//! [`Idempotency-Key`][draft] claims that key in a [`Store`]; the handler runs; its answer is
//! recorded, and then sent. Whoever asks again with the same key and payload gets the recorded
//! answer, whoever asks meanwhile is told so, and another payload under the same key is refused.
//!
//! ```no_run
//! use axum::{Router, routing::post};
//! use tower_idempotency::{IdempotencyLayer, MemoryStore, Scope};
//!
//! # #[tokio::main]
//! # async fn main() -> std::io::Result<()> {
//! let idempotency = IdempotencyLayer::new(MemoryStore::new(), Scope::header("x-api-key"));
//! let app: Router = Router::new()
//!     .route("/payments", post(|| async { "paid" }))
//!     .layer(idempotency.clone());
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! let stop = async { drop(tokio::signal::ctrl_c().await) };
//! axum::serve(listener, app).with_graceful_shutdown(stop).await?;
//! // What runs on although its client left is recorded before the process ends.
//! idempotency.drain().await;
//! # Ok(())
//! # }
//! ```
//!
//! [`IdempotencyLayer`] has an example that runs without a server, and every option with its
//! default. The [README][readme] says what is promised and what is not, and when another way is
//! better; [`stacks`] says which layers go outside and which inside, and what a wrong order breaks.
//!
//! # Where things are
//!
//! | question | answer |
//! |---|---|
//! | Which requests, whose, how long, how large? | [`IdempotencyLayer`], [`KeySource`], [`Scope`], [`Fingerprinter`] |
//! | What counts as done? | [`verdict`] |
//! | What can the handler know and do? | [`Execution`], in the request's extensions; in axum an extractor |
//! | What after a crash? | [`Takeover`], [`Entry`] |
//! | What happened? | [`Outcome`], in the response's extensions |
//! | Where are records kept? | [`Store`], [`MemoryStore`], [`RedisStore`], [`PostgresStore`], [`SqliteStore`], [`Tiered`] |
//! | How may a record change? | [`machine`] |
//! | How for gRPC? | the same layer, with the feature `grpc`: [`stacks`] has a tonic server |
//! | How for a function, not HTTP? | [`function`] |
//! | How for requests that go out? | [`client`] |
//!
//! # Runtime
//!
//! A tokio runtime with time enabled is needed for covered requests and for functions. Nothing runs
//! in the background but for them: a task renews the lease of an execution while it runs, and
//! executions whose callers left go on as tasks.
//!
//! # Features
//!
//! - `json` (default): keys from a JSON body, fingerprints over canonical JSON, and functions whose
//!   inputs and results are JSON.
//! - `tracing` (default): events with the target `tower_idempotency`. Keys appear hashed.
//! - `axum`: reads axum's `OriginalUri`, so that nested routers do not share records; handlers take
//!   an [`Execution`] as an argument. Turn it on in every axum app.
//! - `redis`: [`RedisStore`], records in Redis or Valkey; [`Reconnecting`], for Sentinel.
//! - `postgres`: [`PostgresStore`], on `sqlx`, without TLS unless you turn it on there.
//! - `sqlite`: [`SqliteStore`], records in an SQLite file, which several processes of one machine may
//!   share.
//! - `grpc`: gRPC calls are refused and judged by gRPC's own statuses; a service under the layer goes
//!   into a tonic server by itself, and its handlers commit replies together with rows. Turn it on in
//!   every tonic server.
//! - `client`: the other end, requests that go out: [`client`], and [`Execution::current`].
//! - `testing`: the conformance suite, and a test of random operations, for stores of your own.
//!
//! [draft]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07
//! [readme]: https://docs.rs/crate/tower-idempotency/latest
#![cfg_attr(docsrs, feature(doc_cfg))]
// Links to what a feature brings are plain text where it is off.
#![cfg_attr(
    not(all(
        feature = "axum",
        feature = "client",
        feature = "grpc",
        feature = "json",
        feature = "postgres",
        feature = "redis",
        feature = "sqlite",
        feature = "testing"
    )),
    allow(rustdoc::broken_intra_doc_links)
)]
#![forbid(unsafe_code)]

#[cfg(feature = "client")]
#[cfg_attr(docsrs, doc(cfg(feature = "client")))]
pub mod client;
mod engine;
mod fingerprint;
pub mod function;
#[cfg(feature = "json")]
mod json;
mod key;
pub mod machine;
mod record;
mod server;
#[cfg(doc)]
#[doc = include_str!("docs/stacks.md")]
#[cfg_attr(feature = "grpc", doc = include_str!("docs/tonic.md"))]
pub mod stacks {}
pub mod store;
mod telemetry;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;

pub use engine::{CheckpointError, CommitError, Execution, OnConflict, Transaction};
pub use fingerprint::{Fingerprint, FingerprintHasher, InvalidFingerprint};
pub use function::{Done, Function, Operation, RunError};
pub use key::{IdempotencyKey, InvalidKey, StoreKey, StoreKeyParts};
pub use record::{
    Claim, ClaimRequest, Claimed, Entry, FencingToken, Lease, OwnerId, Payload, Record, Snapshot,
    State, Timestamp,
};
#[cfg(feature = "axum")]
pub use server::MissingExecution;
pub use server::{
    Committed, Fingerprinter, Idempotency, IdempotencyLayer, KeySource, Probed, Refusal,
    RequestBody, ResponseBody, ResponseFuture, Scope, Takeover, verdict,
};
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use store::PostgresStore;
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub use store::SqliteStore;
pub use store::{MemoryStore, Store, StoreError, Tiered};
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use store::{Reconnecting, RedisStore};
pub use telemetry::{Outcome, Reason};

#[cfg(all(doctest, feature = "json"))]
#[doc = include_str!("../README.md")]
struct Readme;
