//! Records in an SQLite file.

mod error;
mod row;
mod schema;
mod store;
mod transaction;

pub use store::SqliteStore;
