//! What is compared: the same routes, bare or behind one of the layers, each as its documentation
//! sets it up and with the store in memory that comes with it.

use std::sync::Arc;

use axum::Router;
use axum_idempotent::{IdempotentLayer, IdempotentOptions};
use clap::ValueEnum;
use ruts::{CookieOptions, SessionLayer, store::moka::MokaStore};
use tower_cookies::CookieManagerLayer;
use tower_idempotency::{IdempotencyLayer, MemoryStore, Scope};

use crate::requests::{KEY, SESSION, TENANT};

const DAY: u64 = 24 * 60 * 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Candidate {
    Bare,
    Ours,
    AxumIdempotentKey,
    AxumIdempotentHash,
    Idempotent,
}

impl Candidate {
    pub(crate) const ALL: [Self; 5] = [
        Self::Bare,
        Self::Ours,
        Self::AxumIdempotentKey,
        Self::AxumIdempotentHash,
        Self::Idempotent,
    ];

    /// The name, with the version that was built.
    pub(crate) fn title(self) -> String {
        match self {
            Self::Bare => format!("bare axum {}", version("axum")),
            Self::Ours => format!("tower-idempotency {}", version("tower-idempotency")),
            Self::AxumIdempotentKey => {
                format!("axum-idempotent {}, by key", version("axum-idempotent"))
            }
            Self::AxumIdempotentHash => {
                format!("axum-idempotent {}, by hash", version("axum-idempotent"))
            }
            Self::Idempotent => format!("idempotent {}", version("idempotent")),
        }
    }

    /// Puts the layer around the routes. Within a runtime: `idempotent` starts its store as a task.
    pub(crate) fn around(self, routes: Router) -> Router {
        match self {
            Self::Bare => routes,
            Self::Ours => routes.layer(IdempotencyLayer::new(
                MemoryStore::new(),
                Scope::header(TENANT),
            )),
            Self::AxumIdempotentKey => in_session(
                routes,
                IdempotentOptions::default().use_idempotency_key_header(Some(KEY), false),
            ),
            Self::AxumIdempotentHash => in_session(routes, IdempotentOptions::default()),
            Self::Idempotent => {
                let store = idempotent::memory::MemoryStore::builder();
                let store = store.try_build().expect("a store with default settings");
                let layer = idempotent::middleware::IdempotencyLayer::new(store).scope(|parts| {
                    let tenant = parts.headers.get(TENANT)?;
                    tenant.to_str().ok().map(String::from)
                });
                routes.layer(layer)
            }
        }
    }

    /// The header that marks a replay.
    pub(crate) fn replay_marker(self) -> Option<&'static str> {
        match self {
            Self::Bare => None,
            Self::Ours | Self::Idempotent => Some("idempotent-replayed"),
            Self::AxumIdempotentKey | Self::AxumIdempotentHash => Some("idempotency-replayed"),
        }
    }
}

/// Answers live as long as those of the others, and there is room for as many of them.
fn in_session(routes: Router, options: IdempotentOptions) -> Router {
    let store = MokaStore::builder().max_capacity(1_000_000).build();
    let cookie = CookieOptions::build().name(SESSION).max_age(DAY);
    let options = options.expire_after(DAY.try_into().expect("a day in seconds is a small number"));
    routes
        .layer(IdempotentLayer::<MokaStore>::new(options))
        .layer(SessionLayer::new(Arc::new(store)).with_cookie_options(cookie))
        .layer(CookieManagerLayer::new())
}

/// The version of a dependency, as locked.
fn version(name: &str) -> &'static str {
    let mut lines = include_str!("../Cargo.lock").lines();
    let wanted = format!("name = \"{name}\"");
    lines
        .find(|line| *line == wanted)
        .and_then(|_| {
            lines
                .next()?
                .strip_prefix("version = \"")?
                .strip_suffix('"')
        })
        .expect("the lock file names each candidate")
}
