//! The layer behind real servers, driven over TCP by clients that mean no good, or have bad luck.
//!
//! | what | where |
//! |---|---|
//! | keys and callers | `heads` |
//! | bodies: chunked, HTTP/2, broken, slow, too large | `bodies`, `bodies_h2`, `floods`, `memory` |
//! | `Expect: 100-continue`, 1xx | `expect`, and `versions` for a handler's own |
//! | answers: HEAD, 204, 304, duplicate lines, bytes that are not UTF-8, pipelines | `wire` |
//! | trailers | `trailers` |
//! | HTTP/1.0, forms of the target, lengths and chunks, lines of the connection | `versions` |
//! | upgrades and CONNECT | `upgrades` |
//! | the connection after each refusal | `keep_alive` |
//! | clients that leave, or send no more | `leaving`, `half_close` |
//! | several servers, one store | `sharing`, `records` |
//! | axum's routers and arguments | `routers` |

#![allow(clippy::unwrap_used)]

mod bodies;
mod bodies_h2;
mod down;
mod expect;
mod floods;
mod half_close;
mod heads;
mod keep_alive;
mod leaving;
mod memory;
mod records;
#[cfg(feature = "axum")]
mod routers;
mod sharing;
mod support;
mod trailers;
mod upgrades;
mod versions;
mod wire;
