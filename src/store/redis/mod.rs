//! Records in Redis or Valkey: see [`RedisStore`].

mod error;
mod layout;
mod reconnecting;
mod script;
mod store;
mod subscription;

pub use reconnecting::Reconnecting;
pub use store::RedisStore;
