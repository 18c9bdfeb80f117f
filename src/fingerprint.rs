//! What tells two payloads apart: the [`Fingerprint`] of a request.
//!
//! ```
//! use tower_idempotency::Fingerprint;
//!
//! let mut hasher = Fingerprint::hasher("order/1");
//! hasher.field("amount").field("100");
//! let fingerprint = hasher.finish();
//!
//! // The text form is what stores that keep text hold.
//! let text = fingerprint.to_string();
//! assert!(text.starts_with("order/1:"));
//! assert_eq!(text.parse(), Ok(fingerprint));
//!
//! // Fields are length-prefixed: moving a byte from one to the next changes the fingerprint.
//! let mut other = Fingerprint::hasher("order/1");
//! other.field("amount1").field("00");
//! assert_ne!(other.finish(), fingerprint);
//! ```

use std::{error::Error, fmt, str::FromStr};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::key::push_hex;

/// A 256-bit checksum of a request, with the name of the algorithm that made it.
///
/// Two fingerprints of different algorithms cannot be compared: see
/// [`same_algorithm`](Self::same_algorithm). Comparing is not done in constant time, since a
/// fingerprint is no proof of identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    algorithm: Algorithm,
    digest: [u8; 32],
}

impl Fingerprint {
    /// Starts a fingerprint under an algorithm's name.
    ///
    /// Change the name whenever you change what is hashed, or how: during a rolling deploy a
    /// retry that meets a record made by the other version is then told so, instead of being
    /// called a mismatch (U37).
    ///
    /// # Panics
    ///
    /// If `algorithm` is empty, longer than 16 bytes, or holds anything but visible ASCII
    /// without `:`. It is a literal of yours, not input.
    #[must_use]
    pub fn hasher(algorithm: &str) -> FingerprintHasher {
        FingerprintHasher {
            algorithm: Algorithm::new(algorithm).expect("a valid algorithm name"),
            state: State::Plain(Sha256::new()),
        }
    }

    /// Puts a fingerprint together again from what a store kept.
    ///
    /// # Errors
    ///
    /// [`InvalidFingerprint`] where the algorithm's name is not one that
    /// [`hasher`](Self::hasher) takes.
    pub fn from_parts(algorithm: &str, digest: [u8; 32]) -> Result<Self, InvalidFingerprint> {
        Ok(Self {
            algorithm: Algorithm::new(algorithm).ok_or(InvalidFingerprint)?,
            digest,
        })
    }

    /// The name of the algorithm.
    #[must_use]
    pub fn algorithm(&self) -> &str {
        self.algorithm.as_str()
    }

    /// The checksum.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Whether the two were made the same way, so that comparing them means something.
    #[must_use]
    pub fn same_algorithm(&self, other: &Self) -> bool {
        self.algorithm == other.algorithm
    }
}

/// `algorithm:hex`, the form that [`FromStr`] reads.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(81);
        text.push_str(self.algorithm());
        text.push(':');
        push_hex(&mut text, &self.digest);
        f.write_str(&text)
    }
}

/// Only the algorithm: the checksum of a low-entropy body can be guessed back (U19).
impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({}:…)", self.algorithm())
    }
}

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, hex) = text.split_once(':').ok_or(InvalidFingerprint)?;
        let hex = hex.as_bytes();
        if hex.len() != 64 {
            return Err(InvalidFingerprint);
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
        }
        Self::from_parts(algorithm, digest)
    }
}

fn hex_digit(digit: u8) -> Result<u8, InvalidFingerprint> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(InvalidFingerprint),
    }
}

/// The text or the parts are not those of a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidFingerprint;

impl fmt::Display for InvalidFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a fingerprint")
    }
}

impl Error for InvalidFingerprint {}

/// A name of 1 to 16 visible ASCII characters, padded with zero bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Algorithm([u8; 16]);

impl Algorithm {
    fn new(name: &str) -> Option<Self> {
        let visible = |b: u8| matches!(b, b'!'..=b'~') && b != b':';
        if !matches!(name.len(), 1..=16) || !name.bytes().all(visible) {
            return None;
        }
        let mut padded = [0; 16];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        Some(Self(padded))
    }

    fn as_str(&self) -> &str {
        let len = self.0.iter().position(|&b| b == 0).unwrap_or(16);
        // Only `new` makes one, from ASCII.
        std::str::from_utf8(&self.0[..len]).unwrap_or_default()
    }
}

/// Makes a [`Fingerprint`], piece by piece. See [`Fingerprint::hasher`].
#[derive(Clone)]
pub struct FingerprintHasher {
    algorithm: Algorithm,
    state: State,
}

#[derive(Clone)]
enum State {
    Plain(Sha256),
    // Boxed: two SHA-256 states, and rarely used.
    Keyed(Box<Hmac<Sha256>>),
}

impl FingerprintHasher {
    /// Makes this an HMAC-SHA-256 under `secret`, so that whoever reads the store cannot guess a
    /// low-entropy body (a card's expiry date, say) back from its fingerprint.
    ///
    /// What was hashed before this call is forgotten. The algorithm's name becomes `hmac-` and
    /// eleven hex digits that depend on the old name and the secret: rotating the secret is
    /// then seen as another algorithm, not as another payload.
    #[must_use]
    pub fn keyed(self, secret: &[u8]) -> Self {
        let mac = |message: &[u8]| {
            let mut mac =
                Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
            mac.update(message);
            mac
        };
        let id = mac(self.algorithm.as_str().as_bytes())
            .finalize()
            .into_bytes();
        let mut name = String::from("hmac-");
        push_hex(&mut name, &id[..6]);
        name.truncate(16);
        Self {
            algorithm: Algorithm::new(&name).expect("hex is visible ASCII"),
            state: State::Keyed(Box::new(mac(b""))),
        }
    }

    /// Adds a field: its length, then its bytes.
    pub fn field(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.raw((bytes.len() as u64).to_be_bytes());
        self.raw(bytes)
    }

    /// Adds bytes without a length, for a last part that arrives in pieces.
    pub fn raw(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        match &mut self.state {
            State::Plain(sha) => sha.update(bytes),
            State::Keyed(mac) => Mac::update(mac.as_mut(), bytes.as_ref()),
        }
        self
    }

    /// The fingerprint of all that was added.
    #[must_use]
    pub fn finish(self) -> Fingerprint {
        Fingerprint {
            algorithm: self.algorithm,
            digest: match self.state {
                State::Plain(sha) => sha.finalize().into(),
                State::Keyed(mac) => mac.finalize().into_bytes().into(),
            },
        }
    }
}

impl fmt::Debug for FingerprintHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FingerprintHasher")
            .field("algorithm", &self.algorithm.as_str())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(secret: Option<&[u8]>, fields: &[&str]) -> Fingerprint {
        let mut hasher = Fingerprint::hasher("test/1");
        if let Some(secret) = secret {
            hasher = hasher.keyed(secret);
        }
        for field in fields {
            hasher.field(field);
        }
        hasher.finish()
    }

    #[test]
    fn text_form_round_trips_and_rejects_garbage() {
        for fingerprint in [of(None, &["a"]), of(Some(b"k"), &["a"])] {
            assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        }
        let hex = "0".repeat(64);
        for bad in [
            "",
            ":",
            &hex,
            &format!(":{hex}"),
            &format!("a:{}", &hex[1..]),
            &format!("a:{}G", &hex[1..]),
            &format!("seventeen-letters:{hex}"),
            &format!("a b:{hex}"),
        ] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(InvalidFingerprint), "{bad}");
        }
    }

    #[test]
    fn u37_another_secret_is_another_algorithm() {
        let (one, two) = (of(Some(b"one"), &["a"]), of(Some(b"two"), &["a"]));
        assert!(!one.same_algorithm(&two));
        assert!(!one.same_algorithm(&of(None, &["a"])));
        assert!(one.same_algorithm(&of(Some(b"one"), &["b"])));
        assert_eq!(one, of(Some(b"one"), &["a"]));
        assert_ne!(one, of(Some(b"one"), &["b"]));
    }

    /// The published vectors: SHA-256 of "abc", and RFC 4231's second HMAC case.
    #[test]
    fn digests_are_sha_256_and_hmac_sha_256() {
        let mut plain = Fingerprint::hasher("t");
        plain.raw("abc");
        assert_eq!(
            plain.finish().to_string(),
            "t:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let mut keyed = Fingerprint::hasher("t").keyed(b"Jefe");
        keyed.raw("what do ya want for nothing?");
        let text = keyed.finish().to_string();
        assert!(text.starts_with("hmac-"), "{text}");
        assert!(
            text.ends_with(":5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
            "{text}"
        );
    }

    #[test]
    fn u19_debug_holds_no_digest() {
        let fingerprint = of(None, &["1234"]);
        let shown = format!("{fingerprint:?}");
        assert!(!shown.contains(&fingerprint.to_string()[7..20]), "{shown}");
    }
}
