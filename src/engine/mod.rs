//! What gives the promises to any asynchronous work: claim a key, run, renew, record, release.
//!
//! The engine knows no HTTP and no concrete store. The server layer and functions drive it so:
//! [`Engine::begin`] claims the key or says what to answer instead; [`Running::watch`] runs the
//! work and keeps the lease alive meanwhile; [`Running::end`] records how it ended. All three run
//! inside one [`Attached`] future, which moves to the runtime when its caller leaves.

mod attached;
mod begin;
mod core;
mod execution;
mod gauge;
#[cfg(feature = "client")]
mod purposes;
mod running;
mod transaction;
mod waiting;
mod within;
mod work;

pub(crate) use attached::{Attached, Stage};
pub(crate) use begin::{Begin, Taken};
pub(crate) use core::Engine;
pub use core::OnConflict;
pub(crate) use execution::Front;
pub use execution::{CheckpointError, Execution};
pub(crate) use gauge::{Gauge, Permit};
#[cfg(feature = "client")]
pub(crate) use purposes::{PurposeRefused, PurposeUse};
pub(crate) use running::{Ended, Ending, Running};
pub(crate) use transaction::Answer;
pub use transaction::{CommitError, Transaction};
pub(crate) use within::within;
