//! What a case asks of a database.

use std::{future::Future, time::Duration};

use tower_idempotency::{Store, store::DatabaseTransaction};

/// The connection that a transaction stands for.
pub(crate) type Connection<D> = <<D as Database>::Transaction as DatabaseTransaction>::Connection;

/// A database of a case's own, with a store and with the table of the business. A clone is another
/// handle to it.
pub(crate) trait Database: Clone + Send + Sync + 'static {
    type Store: Store + Clone;
    type Transaction: DatabaseTransaction<Store = Self::Store, Connection: Send> + 'static;

    /// Its name, for another process.
    const KIND: &str;

    /// Another one, empty but for its tables.
    fn new() -> impl Future<Output = Self> + Send;

    /// Another database, whose tables have the same names.
    fn elsewhere(&self) -> impl Future<Output = Self> + Send;

    /// Where it is, for another process.
    fn place(&self) -> String;

    /// A handle to one that there is.
    fn at(place: &str) -> impl Future<Output = Self> + Send;

    fn store(&self) -> &Self::Store;

    fn advance_clock(&self, by: Duration);

    fn begin(&self) -> impl Future<Output = Result<Self::Transaction, sqlx::Error>> + Send;

    /// Writes a row of the business.
    fn insert(
        &self,
        connection: &mut Connection<Self>,
        key: &str,
        note: &str,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Writes what the database refuses when it is to be committed, and not before.
    fn insert_what_is_refused(
        &self,
        connection: &mut Connection<Self>,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Writes a row of the business within a savepoint, and rolls back to that.
    fn insert_and_undo(
        &self,
        connection: &mut Connection<Self>,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// The rows of the business: keys and notes, in the order of the keys.
    fn rows(&self) -> impl Future<Output = Vec<(String, String)>> + Send;
}

/// Runs cases on each database. A case is an `async fn` over a [`Database`] in the module itself.
macro_rules! on_each_database {
    ($($case:ident),* $(,)?) => {
        mod on_postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    crate::bench::soon(super::$case::<crate::postgres::Postgres>()).await;
                }
            )*
        }

        mod on_sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    crate::bench::soon(super::$case::<crate::sqlite::Sqlite>()).await;
                }
            )*
        }
    };
}
