//! The layer, driven as a service: by hand, on paused time, over a store that does as it is told.

#![allow(clippy::unwrap_used)]

mod cancellation;
mod faults;
mod letting_go;
mod options;
mod states;
mod streams;
mod support;
mod takeover;
mod transactions;
mod waiting;
