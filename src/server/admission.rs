//! What stands between a request and the store: its key, its caller and its body, each within the
//! limits.

use std::{
    borrow::Cow,
    pin::{Pin, pin},
    time::Duration,
};

use bytes::Bytes;
use http::{header::EXPECT, request::Parts};
use http_body::Body;

use super::{
    body::{self, BufferedBody, ReadError, ReadLimits},
    config::Config,
    extract::{self, Caller, InHead},
    problem::Refusal,
};
use crate::{
    fingerprint::Fingerprint,
    key::{Part, StoreKey},
    telemetry::Reason,
};

/// How long a refusal waits for the rest of a body that nobody will read.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// How many bytes beyond the limit of bodies it reads of that: a body that is a little too large
/// does not cost its connection.
const DISCARD_BEYOND: usize = 256 * 1024;

/// A request that was admitted to the store.
pub(super) struct Admitted {
    pub(super) body: BufferedBody,
    pub(super) store_key: StoreKey,
    pub(super) fingerprint: Fingerprint,
}

/// Why a request does not reach the store.
pub(super) enum Turned {
    Refused(Refusal),
    /// It has no key and needs none.
    Keyless(BufferedBody),
}

impl From<Refusal> for Turned {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Checks the key, the caller and the body, in this order, and names the record.
pub(super) async fn admit<B: Body<Data = Bytes>>(
    config: &Config,
    parts: &Parts,
    body: B,
    found: InHead,
) -> Result<Admitted, Turned> {
    let mut body = pin!(body);
    let identified = identify(config, parts, &found);
    // Reading tells a client that waits for `100 Continue` to send.
    let reads = identified.is_ok() && body.size_hint().lower() <= config.body_limit as u64;
    let read = match identified {
        Ok(known) => read(config, parts, body.as_mut())
            .await
            .map(|(body, fingerprint)| (known, body, fingerprint)),
        Err(refusal) => Err(refusal),
    };
    let (Known { key, caller }, mut body, fingerprint) = match read {
        Ok(read) => read,
        Err(refusal) => {
            // What is left of the body is in the way of the connection's next request. A client
            // that was not told to send has sent none, and one that was too slow is not waited for
            // again.
            let late = refusal.reason() == Reason::BodyTooSlow;
            if !late && (reads || !parts.headers.contains_key(EXPECT)) {
                let max = config.body_limit.saturating_add(DISCARD_BEYOND);
                body::discard(body, max, DISCARD_TIMEOUT).await;
            }
            return Err(refusal.into());
        }
    };
    let from_body;
    let key = match &key {
        Some(key) => &**key,
        None => {
            let found = config
                .key
                .key_from_body(parts, &body.contiguous(), &fingerprint)
                .map_err(|error| config.invalid(&error))?;
            match found {
                Some(key) => {
                    from_body = key;
                    config.validate(from_body.as_str())?;
                    from_body.as_str()
                }
                None if config.key_required => {
                    return Err(config.refusal(Reason::KeyMissing, None).into());
                }
                None => return Err(Turned::Keyless(body)),
            }
        }
    };
    let endpoint = config.scope_by_endpoint.then(|| extract::endpoint(parts));
    let endpoint = endpoint
        .as_ref()
        .map_or(Part::Text(""), |name| Part::Digest(name));
    Ok(Admitted {
        store_key: StoreKey::compose(&config.prefix, caller.part(), endpoint, key),
        body,
        fingerprint,
    })
}

/// What the head of a request tells.
struct Known<'a> {
    /// None where it is in the body, if anywhere.
    key: Option<Cow<'a, str>>,
    caller: Caller,
}

fn identify<'a>(
    config: &Config,
    parts: &'a Parts,
    found: &'a InHead,
) -> Result<Known<'a>, Refusal> {
    let key = config.key.key_from_head(parts, found);
    let key = key.map_err(|error| config.invalid(&error))?;
    match &key {
        Some(key) => config.validate(key)?,
        None if config.key.needs_body() => {}
        None => return Err(config.refusal(Reason::KeyMissing, None)),
    }
    match config.scope.identify(parts) {
        Ok(caller) => Ok(Known { key, caller }),
        Err(_) => Err(config.refusal(Reason::CallerUnknown, key.as_deref())),
    }
}

async fn read<B: Body<Data = Bytes>>(
    config: &Config,
    parts: &Parts,
    body: Pin<&mut B>,
) -> Result<(BufferedBody, Fingerprint), Refusal> {
    let limits = ReadLimits {
        max: config.body_limit,
        timeout: config.body_timeout,
        total: config.buffer_limit,
    };
    let mut hasher = config.fingerprinter.start(parts);
    let streams = config.fingerprinter.streams();
    let read = body::read(body, limits, config.engine.work().bytes(), |data| {
        if streams {
            hasher.raw(data);
        }
    });
    let mut body = read.await.map_err(|error| {
        let reason = match error {
            ReadError::TooLarge => Reason::BodyTooLarge,
            ReadError::TooSlow => Reason::BodyTooSlow,
            ReadError::Broken => Reason::BodyBroken,
            ReadError::Overloaded => Reason::Overloaded,
        };
        config.refusal(reason, None)
    })?;
    let fingerprint = match streams {
        true => hasher.finish(),
        false => config
            .fingerprinter
            .finish_whole(hasher, parts, &body.contiguous()),
    };
    Ok((body, fingerprint))
}
