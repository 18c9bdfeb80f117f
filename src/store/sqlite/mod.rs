//! Records in an SQLite file.

mod error;
mod row;
mod schema;
mod store;

pub use store::SqliteStore;
