//! What the layer asks of a request: who calls ([`Scope`]), for which operation ([`KeySource`]),
//! with which payload ([`Fingerprinter`]), and where to (`target`).

mod fingerprint;
mod key;
mod scope;
mod target;

pub use fingerprint::Fingerprinter;
pub use key::KeySource;
pub use scope::Scope;

pub(crate) use key::InHead;
pub(crate) use scope::Caller;
pub(crate) use target::{endpoint, is_upgrade};
