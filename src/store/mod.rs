//! Where records are kept: the [`Store`] trait, and the stores.

mod contract;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
mod tiered;
mod transaction;
#[cfg(any(feature = "redis", feature = "postgres", feature = "sqlite"))]
mod wakes;

pub(crate) use contract::jittered;

#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::redis::{Reconnecting, RedisStore};
pub use contract::{Store, StoreError};
pub use memory::{MemoryStore, MemoryStoreBuilder, WhenFull};
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use postgres::{PostgresStore, PostgresStoreBuilder};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "postgres", feature = "sqlite"))))]
pub use sql::InvalidName;
#[cfg(feature = "sqlite")]
#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
pub use sqlite::SqliteStore;
pub use tiered::Tiered;
pub use transaction::{DatabaseTransaction, NotCommitted, NotCompleted};
