//! What an error of the client or the server means.

use std::{error::Error, fmt};

use redis::{ErrorKind, RedisError};

use crate::store::contract::StoreError;

pub(super) const NAME: &str = "redis";

/// The errors of a server that mean something to us, by the word that they begin with.
const KNOWN: &[(&str, &str)] = &[
    ("OOM", "its memory is full"),
    (
        "WRONGTYPE",
        "what stands under the record's key is not a hash",
    ),
    (
        "READONLY",
        "it is a replica: a failover is under way, or the address is wrong",
    ),
    (
        "NOREPLICAS",
        "it has fewer replicas than it must have to write",
    ),
    ("MISCONF", "it cannot save to its disk, and takes no writes"),
    ("LOADING", "it is loading its data"),
    ("MASTERDOWN", "it is a replica that has lost its primary"),
    ("CLUSTERDOWN", "its cluster is down"),
    ("TRYAGAIN", "its cluster is moving the key"),
    (
        "MOVED",
        "another node has the key: a cluster needs a cluster connection",
    ),
    (
        "ASK",
        "another node has the key: a cluster needs a cluster connection",
    ),
    (
        "NOPERM",
        "the user may not run scripts, or not on these keys",
    ),
    ("NOAUTH", "the connection has not said who it is"),
    ("BUSY", "a script keeps it busy"),
];

/// What a server answered, without its text: that may quote arguments (U19).
#[derive(Debug)]
struct Answered {
    code: String,
    about: &'static str,
}

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered {}: {}", self.code, self.about)
    }
}

impl Error for Answered {}

pub(super) fn store_error(error: RedisError) -> StoreError {
    match error.kind() {
        // The client's own words, about addresses and connections.
        ErrorKind::Io
        | ErrorKind::AuthenticationFailed
        | ErrorKind::InvalidClientConfig
        | ErrorKind::MasterNameNotFoundBySentinel
        | ErrorKind::NoValidReplicasFoundBySentinel
        | ErrorKind::EmptySentinelList
        | ErrorKind::ClusterConnectionNotFound
        | ErrorKind::RESP3NotSupported => StoreError::unavailable(NAME, error),
        ErrorKind::Server(_) | ErrorKind::Extension => answered(&error),
        kind => StoreError::unavailable(NAME, format!("the client failed: {kind:?}")),
    }
}

fn answered(error: &RedisError) -> StoreError {
    let code = error.code().unwrap_or_default();
    match known(error) {
        Some((code @ "WRONGTYPE", about)) => StoreError::corrupt(NAME, said(code, about)),
        Some(("OOM", _)) => StoreError::Full { store: NAME },
        Some((code, about)) => StoreError::unavailable(NAME, said(code, about)),
        None => StoreError::unavailable(
            NAME,
            said(
                code,
                "nothing that the store knows; its scripts need Redis 6.2 or later, or Valkey",
            ),
        ),
    }
}

fn known(error: &RedisError) -> Option<&'static (&'static str, &'static str)> {
    let code = error.code().unwrap_or_default();
    let known = KNOWN.iter().find(|(known, _)| *known == code);
    // Redis 6.2 puts the place in a script in front: `@user_script: 12: -OOM command not allowed`.
    known.or_else(|| {
        let within = |known: &str| {
            let detail = error.detail().filter(|_| code.starts_with("@user_script"));
            detail.is_some_and(|text| text.contains(&format!(" -{known} ")))
        };
        KNOWN.iter().find(|(known, _)| within(known))
    })
}

fn said(code: &str, about: &'static str) -> Answered {
    // A code is a word of the server's, unless something else answers.
    let word = |byte: u8| byte.is_ascii_uppercase();
    let code = if !code.is_empty() && code.len() <= 16 && code.bytes().all(word) {
        code
    } else {
        "an unknown error"
    };
    Answered {
        code: code.to_owned(),
        about,
    }
}

/// Whether the connection broke under a command, which may or may not have been run.
pub(super) fn is_broken(error: &RedisError) -> bool {
    error.is_io_error() && !error.is_timeout() && !error.is_connection_refusal()
}

/// Whether another connection may do better: this one broke, hangs or is out of step, or leads to a
/// server that is not, or may not be, the primary.
pub(super) fn is_of_the_connection(error: &RedisError) -> bool {
    const PLACES: [&str; 4] = ["READONLY", "MASTERDOWN", "LOADING", "NOREPLICAS"];
    error.is_io_error()
        || error.is_unrecoverable_error()
        || known(error).is_some_and(|(code, _)| PLACES.contains(code))
}
