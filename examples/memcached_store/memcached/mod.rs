//! A [`Store`](tower_idempotency::Store) of one's own: records in memcached.
//!
//! - `store`: the operations, how each is made atomic, and what memcached costs. Begin there.
//! - `layout`: how a record stands in an item, and under which key.
//! - `client`: connections, and the few commands that are needed.

mod client;
mod layout;
mod store;

pub(crate) use store::MemcachedStore;
