//! Idempotency for tower services.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod fingerprint;
mod key;
pub mod machine;
mod record;
mod server;
pub mod store;
mod telemetry;

pub use fingerprint::{Fingerprint, FingerprintHasher, InvalidFingerprint};
pub use key::{IdempotencyKey, InvalidKey, StoreKey, StoreKeyParts};
pub use record::{
    Claim, ClaimRequest, Claimed, Entry, FencingToken, Lease, OwnerId, Payload, Record, Snapshot,
    State, Timestamp,
};
pub use server::{Refusal, RequestBody, ResponseBody};
pub use store::{MemoryStore, Store, StoreError};
pub use telemetry::{Outcome, Reason};
