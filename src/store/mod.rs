//! Where records are kept: the [`Store`] trait, and the stores.

mod contract;
mod memory;
#[cfg(any(feature = "redis", feature = "postgres"))]
#[cfg_attr(
    not(test),
    allow(dead_code, reason = "for the stores whose servers tell of ends")
)]
mod wakes;

pub(crate) use contract::jittered;

pub use contract::{Store, StoreError};
pub use memory::{MemoryStore, MemoryStoreBuilder, WhenFull};
