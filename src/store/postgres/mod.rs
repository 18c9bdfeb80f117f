//! [`PostgresStore`]: records in a table of PostgreSQL, for many servers, and beside the rows of a
//! handler.

mod listening;
mod reply;
mod statements;
mod store;

pub use store::{PostgresStore, PostgresStoreBuilder};
