//! Transfers: rows in the database that also keeps the records, each committed together with its
//! record.
#![cfg_attr(
    not(any(feature = "postgres", feature = "sqlite")),
    allow(
        unreachable_code,
        unused_variables,
        reason = "there is no such database"
    )
)]

use axum::response::Response;
use serde::Serialize;
use tower_idempotency::{Committed, Execution};

use crate::{app::Simulate, store::Database};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Serialize)]
pub(crate) struct Transfer {
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) scope: String,
    pub(crate) amount: i64,
}

impl Database {
    /// Makes the table, unless it is there. Several servers may do so at once.
    pub(crate) async fn create_table(&self) -> Result<(), BoxError> {
        match *self {
            #[cfg(feature = "postgres")]
            Self::Postgres(ref pool) => {
                let mut transaction = pool.begin().await?;
                // `IF NOT EXISTS` alone can fail where two sessions do this at once.
                sqlx::query("SELECT pg_advisory_xact_lock(hashtext('transfers'))")
                    .execute(&mut *transaction)
                    .await?;
                sqlx::query(sql::CREATE).execute(&mut *transaction).await?;
                transaction.commit().await?;
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite(ref pool) => {
                sqlx::query(sql::CREATE).execute(pool).await?;
            }
        }
        Ok(())
    }

    /// Makes the transfer: its row, its answer and the completed record, or none of them (P7).
    pub(crate) async fn transfer(
        &self,
        execution: &Execution,
        simulate: &Simulate,
        transfer: Transfer,
        answer: Response,
    ) -> Result<Committed, BoxError> {
        // The same words for two types of transaction, which have no common trait in `sqlx`.
        #[cfg(any(feature = "postgres", feature = "sqlite"))]
        macro_rules! commit {
            ($transaction:expr) => {{
                let mut transaction = execution.transaction($transaction)?;
                sqlx::query(sql::INSERT)
                    .bind(transfer.id)
                    .bind(transfer.key)
                    .bind(transfer.scope)
                    .bind(transfer.amount)
                    .execute(&mut *transaction)
                    .await?;
                simulate.pass(crate::app::Crash::BeforeEffect, execution);
                let committed = transaction.commit(answer).await?;
                simulate.pass(crate::app::Crash::AfterEffect, execution);
                Ok(committed)
            }};
        }
        match *self {
            #[cfg(feature = "postgres")]
            Self::Postgres(ref pool) => commit!(pool.begin().await?),
            // The write lock from the start: a transaction that began as a reader could not get it
            // after another one has written.
            #[cfg(feature = "sqlite")]
            Self::Sqlite(ref pool) => commit!(pool.begin_with("BEGIN IMMEDIATE").await?),
        }
    }

    /// All of them, by their time.
    pub(crate) async fn transfers(&self) -> Result<Vec<Transfer>, BoxError> {
        #[cfg(any(feature = "postgres", feature = "sqlite"))]
        let transfer = |(id, key, scope, amount)| Transfer {
            id,
            key,
            scope,
            amount,
        };
        match *self {
            #[cfg(feature = "postgres")]
            Self::Postgres(ref pool) => {
                let rows = sqlx::query_as(sql::SELECT).fetch_all(pool).await?;
                Ok(rows.into_iter().map(transfer).collect())
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite(ref pool) => {
                let rows = sqlx::query_as(sql::SELECT).fetch_all(pool).await?;
                Ok(rows.into_iter().map(transfer).collect())
            }
        }
    }
}

/// Read by PostgreSQL and SQLite alike.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod sql {
    /// No unique constraint on key and scope: should a transfer be made twice, it is seen.
    pub(super) const CREATE: &str = "CREATE TABLE IF NOT EXISTS transfers (
        id text PRIMARY KEY,
        key text NOT NULL,
        scope text NOT NULL,
        amount bigint NOT NULL,
        created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP
    )";
    pub(super) const INSERT: &str =
        "INSERT INTO transfers (id, key, scope, amount) VALUES ($1, $2, $3, $4)";
    pub(super) const SELECT: &str =
        "SELECT id, key, scope, amount FROM transfers ORDER BY created_at, id";
}
