//! Where records are kept: the [`Store`] trait, and the stores.

mod contract;

pub use contract::{Store, StoreError};
