//! [`PostgresStore`]: records in a table of PostgreSQL, for many servers, and beside the rows of a
//! handler.

mod listening;
mod reply;
mod statements;
mod store;
mod transaction;

pub use store::{PostgresStore, PostgresStoreBuilder};
