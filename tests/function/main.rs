//! Functions without HTTP (S28): by hand, on paused time, over a store that does as it is told, with
//! a codec of their own. What needs the feature `json` is in `json`.

#![allow(clippy::unwrap_used)]

#[path = "../http/support.rs"]
#[allow(dead_code)]
mod http_support;

mod cancellation;
mod faults;
mod inputs;
#[cfg(feature = "json")]
mod json;
mod outcomes;
mod records;
mod support;
mod takeover;
mod transactions;
mod wrapped;
