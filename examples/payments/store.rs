//! The store that `--store` names.

use std::{error::Error, sync::Arc};

use tower_idempotency::{MemoryStore, Store, Tiered};

type BoxError = Box<dyn Error + Send + Sync>;

/// Where the records are kept, if that is a database.
#[derive(Clone)]
pub(crate) enum Database {
    #[cfg(feature = "postgres")]
    Postgres(sqlx::PgPool),
    #[cfg(feature = "sqlite")]
    Sqlite(sqlx::SqlitePool),
}

/// A store, and the database that it keeps its records in, if it has one.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) database: Option<Database>,
}

/// Opens the store, and makes its table. Errors name the kind of store and never the whole URL,
/// which may hold a password.
pub(crate) async fn open(url: &str) -> Result<Opened, String> {
    match url.strip_prefix("tiered:") {
        Some(tiers) => {
            let (near, far) = tiers
                .split_once(',')
                .ok_or("tiered: takes two stores, as in tiered:memory,redis://127.0.0.1:6379")?;
            let (near, far) = (open_one(near).await?, open_one(far).await?);
            Ok(Opened {
                store: Arc::new(Tiered::new(near.store, far.store)),
                database: far.database,
            })
        }
        None => open_one(url).await,
    }
}

async fn open_one(url: &str) -> Result<Opened, String> {
    // Only the scheme is repeated.
    let scheme = url.split(':').next().unwrap_or_default();
    let opened = match scheme {
        "memory" if url == scheme => Ok(Opened {
            store: Arc::new(MemoryStore::new()),
            database: None,
        }),
        "redis" | "rediss" | "redis+unix" => redis(url).await,
        "postgres" | "postgresql" => postgres(url).await,
        "sqlite" => sqlite(url).await,
        _ => {
            return Err(format!(
                "there is no store `{scheme}`; there are memory, redis://…, postgres://…, \
                 sqlite:FILE and tiered:NEAR,FAR"
            ));
        }
    };
    opened.map_err(|error| format!("the store `{scheme}` cannot be opened: {}", whole(&*error)))
}

/// An error with what caused it. Some repeat their cause themselves.
fn whole(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !text.ends_with(&why) {
            text = format!("{text}: {why}");
        }
        cause = error.source();
    }
    text
}

#[cfg(feature = "redis")]
async fn redis(url: &str) -> Result<Opened, BoxError> {
    use redis::aio::{ConnectionManager, ConnectionManagerConfig};

    let client = redis::Client::open(url)?;
    // Tells at once that nobody listens there; the manager would try for a while.
    drop(client.get_multiplexed_async_connection().await?);
    // No time-out here: the layer has one for each call of the store.
    let config = ConnectionManagerConfig::new().set_response_timeout(None);
    let connection = ConnectionManager::new_with_config(client.clone(), config).await?;
    let store = tower_idempotency::RedisStore::new(connection).with_client(client);
    Ok(Opened {
        store: Arc::new(store),
        database: None,
    })
}

#[cfg(feature = "postgres")]
async fn postgres(url: &str) -> Result<Opened, BoxError> {
    use std::time::Duration;

    use sqlx::{ConnectOptions as _, Connection as _, postgres::PgConnectOptions};

    const PATIENCE: Duration = Duration::from_secs(5);
    let options: PgConnectOptions = url.parse()?;
    // Tells at once what is wrong; the pool would only say that it waited in vain.
    let first = tokio::time::timeout(PATIENCE, options.connect()).await;
    first
        .map_err(|_| "no answer in 5 seconds")??
        .close()
        .await?;
    // Three servers of this size leave half of the 100 connections that PostgreSQL has by default.
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(15)
        .acquire_timeout(PATIENCE)
        .connect_lazy_with(options);
    let store = tower_idempotency::PostgresStore::new(pool.clone());
    store.migrate().await?;
    Ok(Opened {
        store: Arc::new(store),
        database: Some(Database::Postgres(pool)),
    })
}

#[cfg(feature = "sqlite")]
async fn sqlite(url: &str) -> Result<Opened, BoxError> {
    let file = url.strip_prefix("sqlite:").unwrap_or(url);
    let file = file.strip_prefix("//").unwrap_or(file);
    if file.is_empty() {
        return Err("which file? as in sqlite:payments.db".into());
    }
    let store = tower_idempotency::SqliteStore::open(file).await?;
    store.migrate().await?;
    let pool = store.pool().clone();
    Ok(Opened {
        store: Arc::new(store),
        database: Some(Database::Sqlite(pool)),
    })
}

/// Where a kind of store is not compiled in.
macro_rules! missing {
    ($($feature:literal $name:ident)*) => {$(
        #[cfg(not(feature = $feature))]
        async fn $name(_: &str) -> Result<Opened, BoxError> {
            Err(concat!("this program was built without it: add `--features ", $feature, "`").into())
        }
    )*};
}
missing! { "redis" redis "postgres" postgres "sqlite" sqlite }
