//! P7 on real databases: a handler's rows, the record and the answer are written at once or not at
//! all, whatever happens meanwhile.
//!
//! A case is written once, over a [`Database`](database::Database), and runs on each. It looks at
//! four things: the record, the rows of the business, what the caller gets, and what a retry gets. No
//! constraint of the business's table keeps it from a second row.
#![allow(clippy::unwrap_used, reason = "a test")]

#[macro_use]
mod database;
mod bench;
mod cancellation;
mod crashes;
mod faults;
mod isolation;
mod locks;
mod outcomes;
mod places;
mod postgres;
#[path = "../servers/mod.rs"]
mod servers;
mod sqlite;
mod stress;
mod takeover;
