//! Where records are kept: the [`Store`] trait, and the stores.

mod contract;
mod memory;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(any(feature = "redis", feature = "postgres", feature = "sqlite"))]
#[cfg_attr(
    not(test),
    allow(dead_code, reason = "for the stores whose servers tell of ends")
)]
mod wakes;

pub(crate) use contract::jittered;

pub use contract::{Store, StoreError};
pub use memory::{MemoryStore, MemoryStoreBuilder, WhenFull};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "postgres", feature = "sqlite"))))]
pub use sql::{InvalidName, NotCompleted};
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub use sqlite::SqliteStore;
