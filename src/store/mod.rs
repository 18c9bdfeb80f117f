//! Where records are kept: the [`Store`] trait, and the stores.

mod contract;
mod memory;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;

pub(crate) use contract::jittered;

pub use contract::{Store, StoreError};
pub use memory::{MemoryStore, MemoryStoreBuilder, WhenFull};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "postgres", feature = "sqlite"))))]
pub use sql::InvalidName;
