//! Where records are kept: the [`Store`] trait, and the stores.

mod contract;
mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "redis", feature = "postgres"))]
#[cfg_attr(
    not(test),
    allow(dead_code, reason = "for the stores whose servers tell of ends")
)]
mod wakes;
mod transaction;

pub(crate) use contract::jittered;

#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::redis::RedisStore;
pub use contract::{Store, StoreError};
pub use memory::{MemoryStore, MemoryStoreBuilder, WhenFull};
pub use transaction::{DatabaseTransaction, NotCommitted};
