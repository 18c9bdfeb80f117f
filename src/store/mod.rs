//! Where records are kept: the [`Store`] trait, and the stores.

mod contract;
mod memory;
mod tiered;

pub(crate) use contract::jittered;

pub use contract::{Store, StoreError};
pub use memory::{MemoryStore, MemoryStoreBuilder, WhenFull};
pub use tiered::Tiered;
