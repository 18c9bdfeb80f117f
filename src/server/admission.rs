//! What stands between a request and the store: its key, its caller and its body, each within the
//! limits.

use std::{borrow::Cow, future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use http::{header::EXPECT, request::Parts};
use http_body::Body;

use super::{
    body::{self, BufferedBody, ReadError},
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
    Refused {
        refusal: Refusal,
        /// Whether some of the body is still to come, so that the connection cannot go on.
        unread: bool,
    },
    /// It has no key and needs none.
    Keyless(BufferedBody),
}

impl From<Refusal> for Turned {
    fn from(refusal: Refusal) -> Self {
        Self::Refused {
            refusal,
            unread: false,
        }
    }
}

/// Checks the key, the caller and the body, in this order, and names the record.
#[expect(clippy::manual_async_fn, reason = "smaller: see `Covered`")]
pub(super) fn admit<B>(
    config: &Config,
    parts: &Parts,
    mut body: Pin<&mut B>,
    found: &InHead,
) -> impl Future<Output = Result<Admitted, Turned>>
where
    B: Body<Data = Bytes>,
    B::Error: 'static,
{
    async move {
        let (refusal, leave) = match identify(config, parts, found) {
            Ok(known) => {
                // Reading tells a client that waits to send.
                let told = body.size_hint().lower() <= config.read_limits.max as u64;
                match read(config, parts, body.as_mut()).await {
                    Ok((body, fingerprint)) => {
                        return name(config, parts, known, body, fingerprint);
                    }
                    Err(refusal) => {
                        // One that was too slow is not waited for again, and of a body that broke
                        // off nothing is left that could be told apart.
                        let reason = refusal.reason();
                        let lost = matches!(reason, Reason::BodyTooSlow | Reason::BodyBroken);
                        (refusal, lost || !told && waits_to_send(parts))
                    }
                }
            }
            Err(refusal) => (refusal, waits_to_send(parts)),
        };
        let unread = match leave {
            true => !body.is_end_stream(),
            false => !discard(config, body).await,
        };
        Err(Turned::Refused { refusal, unread })
    }
}

/// Names the record.
fn name(
    config: &Config,
    parts: &Parts,
    known: Known<'_>,
    mut body: BufferedBody,
    fingerprint: Fingerprint,
) -> Result<Admitted, Turned> {
    let from_body;
    let key = match &known.key {
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
    let endpoint = match &endpoint {
        Some(name) => Part::Digest(name),
        None => Part::Text(""),
    };
    Ok(Admitted {
        store_key: StoreKey::compose(&config.prefix, known.caller.part(), endpoint, key),
        body,
        fingerprint,
    })
}

/// Whether the client sends its body only once it is told to, as the first reading would tell it.
fn waits_to_send(parts: &Parts) -> bool {
    parts.headers.contains_key(EXPECT)
}

/// What is left of the body is in the way of the connection's next request. Says whether it came to
/// the end.
async fn discard<B: Body<Data = Bytes>>(config: &Config, body: Pin<&mut B>) -> bool {
    let max = config.read_limits.max.saturating_add(DISCARD_BEYOND);
    body::discard(body, max, DISCARD_TIMEOUT).await
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

#[expect(clippy::manual_async_fn, reason = "smaller: see `Covered`")]
fn read<B>(
    config: &Config,
    parts: &Parts,
    body: Pin<&mut B>,
) -> impl Future<Output = Result<(BufferedBody, Fingerprint), Refusal>>
where
    B: Body<Data = Bytes>,
    B::Error: 'static,
{
    async move {
        let mut hasher = config.fingerprinter.start(parts);
        let streams = config.fingerprinter.streams();
        let bytes = config.engine.work().bytes();
        let read = body::read(body, &config.read_limits, bytes, |data| {
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
}
