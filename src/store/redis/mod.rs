//! Records in Redis or Valkey: see [`RedisStore`].

mod error;
mod layout;
mod script;
mod store;
mod subscription;

pub use store::RedisStore;
