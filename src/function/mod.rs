//! The same promises for any asynchronous work, without HTTP: a consumer of a queue, a job of the
//! day, a call to another service.
//!
//! ```
//! # #[cfg(feature = "json")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_idempotency::{MemoryStore, Operation};
//! # async fn pay(cents: u64) -> Result<String, std::fmt::Error> { Ok(format!("paid {cents}")) }
//!
//! let payment = Operation::new("payment", MemoryStore::new());
//!
//! let first = payment.call("order-1").input(&100).run(|_| pay(100)).await?;
//! let again = payment.call("order-1").input(&100).run(|_| pay(100)).await?;
//!
//! assert!(!first.is_replayed() && again.is_replayed());
//! assert_eq!(first.into_value(), again.into_value());
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "json"))]
//! # fn main() {}
//! ```
//!
//! An [`Operation`] has the name, the store and the options. A [`Call`] has a key, says what the
//! input is, and runs the work, unless it is done. What comes back is [`Done`], or a [`RunError`]
//! that says whether the work ran and whether to try again. [`Operation::wrap`] makes a [`Function`]
//! of the whole, whose key is made from its arguments.
//!
//! # A consumer of a queue
//!
//! A queue delivers a message at least once, often twice (S27). Its id is the key; where a producer
//! may send twice, and so under two ids, what the message is about is: an order's number, say.
//! `examples/worker.rs` has the whole of it, on a Redis stream, with workers that die.
//!
//! ```
//! # #[cfg(feature = "json")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! # use tower_idempotency::{Execution, MemoryStore, Operation};
//! # #[derive(Clone)]
//! # struct Message { id: String, body: String }
//! # enum Reply { Acknowledge, DeliverAgain, SetAside }
//! # async fn ship(_: String, _: Execution) -> Result<(), std::fmt::Error> { Ok(()) }
//! async fn consume(shipping: &Operation, message: Message) -> Reply {
//!     let call = shipping.call(&message.id).input_bytes(&message.body);
//!     match call.run(|execution| ship(message.body, execution)).await {
//!         Ok(_) => Reply::Acknowledge,
//!         // It failed, or runs on another server, or the store is away.
//!         Err(error) if error.is_retryable() => Reply::DeliverAgain,
//!         Err(_) => Reply::SetAside,
//!     }
//! }
//! # let shipping = Operation::new("shipping", MemoryStore::new());
//! # let message = Message { id: "m-1".into(), body: "1 piece".into() };
//! # let reply = consume(&shipping, message.clone()).await;
//! # assert!(matches!(reply, Reply::Acknowledge));
//! # let reply = consume(&shipping, Message { body: "2 pieces".into(), ..message }).await;
//! # assert!(matches!(reply, Reply::SetAside));
//! # }
//! # #[cfg(not(feature = "json"))]
//! # fn main() {}
//! ```
//!
//! # A job of the day
//!
//! Every server starts it, one runs it, and a restart at noon does not run it again. The key is the
//! business day, and the record outlives it:
//!
//! ```
//! # #[cfg(feature = "json")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use std::time::Duration;
//! # use tower_idempotency::{Entry, Execution, MemoryStore, Operation, RunError};
//! # async fn send_invoices(_: Execution) -> Result<u32, std::fmt::Error> { Ok(12) }
//! # let today = || "2026-03-31";
//! let week = Duration::from_secs(7 * 24 * 60 * 60);
//! let invoices = Operation::new("invoices", MemoryStore::new()).ttl(week);
//! match invoices.call(today()).run(send_invoices).await {
//!     Ok(sent) => println!("{} sent, just now or before", sent.value()),
//!     Err(RunError::InProgress) => println!("another server is at it"),
//!     Err(error) => return Err(error.into()),
//! }
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "json"))]
//! # fn main() {}
//! ```
//!
//! # Errors of the work
//!
//! An error of the work is not recorded: it is the caller's, and the next call with the same key and
//! input runs the work again (S30). It then knows that it is a retry, and what the last attempt
//! saved: see [`Execution`]. Where an error is certain to come before any effect,
//! [`Call::run_judged`] frees the key for another input, too.
//!
//! An error that is itself the answer, and is to be the same for everyone who asks, belongs into the
//! value (S04):
//!
//! ```
//! # #[cfg(feature = "json")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use tower_idempotency::{MemoryStore, Operation};
//! #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
//! struct Declined;
//!
//! # let charge = Operation::new("charge", MemoryStore::new());
//! // The inner result is the value, the outer error is that of an attempt.
//! let declines = async |_| Ok::<Result<u64, Declined>, std::io::Error>(Err(Declined));
//! let first = charge.call("order-1").run(declines).await?;
//! let again = charge.call("order-1").run(declines).await?;
//! assert_eq!((first.into_value(), again.is_replayed()), (Err(Declined), true));
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "json"))]
//! # fn main() {}
//! ```
//!
//! # Without the store
//!
//! There is no option to fail open. [`RunError::Store`] says that nothing ran, so whoever would
//! rather do the work twice than not at all does it there.
//!
//! # Work that blocks
//!
//! Work that blocks its thread belongs into `tokio::task::spawn_blocking`, or nothing renews its
//! lease and it can be taken over while it runs; await the handle inside the work, so that it is
//! recorded when it ends. For work whose future is not `Send`, have a thread with a runtime and a
//! `tokio::task::LocalSet` of its own, and await its answer over a channel.
//!
//! ```
//! # #[cfg(feature = "json")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use tower_idempotency::{MemoryStore, Operation};
//! # let render = Operation::new("render", MemoryStore::new());
//! # fn draw() -> Vec<u8> { vec![1] }
//! // A panic of `draw` is an error of the handle, and so of the work.
//! let image = render.call("cover-7").run(|_| tokio::task::spawn_blocking(draw)).await?;
//! # assert_eq!(image.value(), &[1]);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "json"))]
//! # fn main() {}
//! ```
//!
//! # Work that calls its own key
//!
//! It meets itself: it gets [`RunError::InProgress`], after the time to wait where
//! [`on_conflict`](Operation::on_conflict) is to wait. It does not hang. A step of the work that is
//! to be idempotent by itself is an operation with a name of its own.
//!
//! # This or the layer
//!
//! [`IdempotencyLayer`](crate::IdempotencyLayer) reads key, caller and payload from a request,
//! judges by the status, and gives a recorded answer back byte for byte, whatever made it. A
//! function gives a typed value to a caller inside the program: key, scope and input are said by
//! hand, the value must have a codec, and a change of its type is a change of what is recorded.
//! Behind the layer, its own [`Execution::derive`] gives a key for a function's call.
//!
//! As with the layer, a `tracing` span goes with work whose caller left, and `tokio::task_local!`
//! values do not. Keys in events are hashed.
//!
//! [`Execution`]: crate::Execution
//! [`Execution::derive`]: crate::Execution::derive

mod call;
mod codec;
mod commit;
mod done;
mod error;
mod operation;
mod run;
mod wrap;

pub use call::Call;
pub use codec::{Codec, Json};
pub use done::Done;
pub use error::{Effect, InvalidInput, RunError};
pub use operation::Operation;
pub use wrap::Function;
