//! Where records are kept: the [`Store`] trait, and the stores.

mod contract;
mod memory;

pub use contract::{Store, StoreError};
pub use memory::{MemoryStore, MemoryStoreBuilder, WhenFull};
