//! What names an operation: the client's [`IdempotencyKey`] and the [`StoreKey`] under which its
//! record is kept.
//!
//! ```
//! use tower_idempotency::{IdempotencyKey, StoreKey};
//!
//! let key = IdempotencyKey::new("order_123_payment_1")?;
//! let stored = StoreKey::new("idem", "merchant:7", "4f2a", key.as_str());
//!
//! // Each part is escaped where it could be mistaken for a separator.
//! assert_eq!(stored.as_str(), "idem:merchant%3A7:4f2a:order_123_payment_1");
//! assert_eq!(stored.parts().scope, "merchant%3A7");
//!
//! // Neither type shows the client's key in debug output.
//! assert!(!format!("{key:?} {stored:?}").contains("order_123"));
//! # Ok::<(), tower_idempotency::InvalidKey>(())
//! ```

use std::{
    borrow::Cow,
    cell::Cell,
    error::Error,
    fmt,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::{Arc, LazyLock},
};

use sfv::{Parser, StringRef};
use sha2::{Digest, Sha256};

/// The key that a client chose for one logical operation: 1 to 255 characters, each visible ASCII
/// or a space.
///
/// The limits are this crate's; the [IETF draft] leaves format and length to the resource and says
/// that they are to be published. `Debug` prints a hash, so that a key does not reach a log by
/// accident (a key may hold an order number or an e-mail address).
///
/// [IETF draft]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// The greatest length, in characters.
    pub const MAX_LEN: usize = 255;

    /// Takes `key` as it stands, without unquoting or trimming.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] where the key is empty, longer than [`MAX_LEN`](Self::MAX_LEN), or holds
    /// anything but visible ASCII and spaces.
    pub fn new(key: impl AsRef<str>) -> Result<Self, InvalidKey> {
        let key = key.as_ref();
        Self::check(key)?;
        Ok(Self(key.into()))
    }

    /// Whether [`new`](Self::new) takes `key`.
    pub(crate) fn check(key: &str) -> Result<(), InvalidKey> {
        Err(InvalidKey::new(match key.len() {
            0 => "the key is empty",
            1..=Self::MAX_LEN if key.bytes().all(|b| matches!(b, b' '..=b'~')) => return Ok(()),
            1..=Self::MAX_LEN => {
                "the key holds a character that is neither visible ASCII nor a space"
            }
            _ => "the key is longer than 255 characters",
        }))
    }

    /// The key in the value of a header: a structured-field string, whose parameters are ignored,
    /// or bare; where `strict`, only the former.
    pub(crate) fn in_field(value: &[u8], strict: bool) -> Result<Cow<'_, str>, InvalidKey> {
        let value = value.trim_ascii();
        if value.first() == Some(&b'"') {
            let string = Parser::new(value)
                .parse_item::<Cow<'_, StringRef>>()
                .map_err(|_| InvalidKey::new("the key is not a structured-field string"))?;
            let key = match string {
                Cow::Borrowed(string) => Cow::Borrowed(string.as_str()),
                Cow::Owned(string) => Cow::Owned(string.into()),
            };
            Self::check(&key)?;
            return Ok(key);
        }
        if strict && !value.is_empty() {
            return Err(InvalidKey::new("the key is not in double quotes"));
        }
        if value.contains(&b',') {
            return Err(InvalidKey::new(
                "there is a comma in the key, as if two keys were joined",
            ));
        }
        if value.contains(&b'"') {
            return Err(InvalidKey::new("there is a double quote in the key"));
        }
        let key = std::str::from_utf8(value)
            .map_err(|_| InvalidKey::new("the key holds a byte that is not ASCII"))?;
        Self::check(key)?;
        Ok(Cow::Borrowed(key))
    }

    /// The value of a header with this key: bare, unless it would be read back as another one or
    /// as none, or `quoted` is asked for.
    #[cfg(feature = "client")]
    pub(crate) fn to_field(&self, quoted: bool) -> Cow<'_, str> {
        let bare = Self::in_field(self.0.as_bytes(), false);
        if !quoted && bare.is_ok_and(|read| read == *self.0) {
            return Cow::Borrowed(&self.0);
        }
        let mut field = String::with_capacity(self.0.len() + 2);
        field.push('"');
        for character in self.0.chars() {
            if matches!(character, '"' | '\\') {
                field.push('\\');
            }
            field.push(character);
        }
        field.push('"');
        Cow::Owned(field)
    }

    /// The key, in clear.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdempotencyKey(#{})", short_hash(&self.0))
    }
}

/// Why a key was refused. The message names the fault and never the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidKey(Cow<'static, str>);

impl InvalidKey {
    /// A fault, described for the client that sent the key.
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for InvalidKey {}

/// The name of a record in a store: `prefix:scope:endpoint:key`.
///
/// Two keys are equal only if all four parts are: prefix, scope and endpoint are percent-encoded
/// (all but ASCII letters, digits, `-`, `.`, `_` and `~`), so that they hold no `:`, and the
/// client's key comes last and as it stands. A client's key, whatever it holds, can therefore
/// address no record outside its own scope and endpoint.
///
/// The text is what stores see; it is not a secret, but `Debug` prints only a hash of it.
#[derive(Clone)]
pub struct StoreKey {
    text: Arc<str>,
    /// Of the text. Computed once, since a request looks its record up more than once.
    hash: u64,
    scope: u32,
    endpoint: u32,
    key: u32,
}

/// The four parts of a [`StoreKey`], as they stand in its text (so the first three are escaped).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct StoreKeyParts<'a> {
    /// The prefix that all records of one application share.
    pub prefix: &'a str,
    /// The caller; empty for a single tenant.
    pub scope: &'a str,
    /// The endpoint or the operation; empty where keys are shared between endpoints.
    pub endpoint: &'a str,
    /// The client's key.
    pub key: &'a str,
}

impl fmt::Debug for StoreKeyParts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreKeyParts")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// A part longer than this is replaced by `#` and its SHA-256, so that a caller's identity of any
/// length gives a key of bounded length (P9). `#` is escaped elsewhere, so the two never meet.
const LONGEST_PART: usize = 128;

impl StoreKey {
    /// Composes a key from its four parts.
    ///
    /// A prefix, scope or endpoint that is longer than 128 bytes when escaped is replaced by its
    /// SHA-256, so a store key of a valid [`IdempotencyKey`] never exceeds 642 bytes.
    #[must_use]
    pub fn new(prefix: &str, scope: &str, endpoint: &str, key: &str) -> Self {
        Self::compose(prefix, Part::Text(scope), Part::Text(endpoint), key)
    }

    /// The same, for parts that may be digests.
    pub(crate) fn compose(prefix: &str, scope: Part<'_>, endpoint: Part<'_>, key: &str) -> Self {
        // The text is put together here, and then copied once.
        let mut text = SCRATCH.try_with(Cell::take).unwrap_or_default();
        text.clear();
        Part::Text(prefix).push(&mut text);
        text.push(':');
        let scope_at = text.len();
        scope.push(&mut text);
        text.push(':');
        let endpoint_at = text.len();
        endpoint.push(&mut text);
        text.push(':');
        let key_at = text.len();
        text.push_str(key);
        let composed = Self {
            hash: hash(&text),
            scope: scope_at as u32,
            endpoint: endpoint_at as u32,
            key: key_at as u32,
            text: text.as_str().into(),
        };
        if text.capacity() <= LARGEST_SCRATCH {
            // Fails only while the thread ends.
            let _ = SCRATCH.try_with(|scratch| scratch.set(text));
        }
        composed
    }

    /// The whole key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The whole key, shared: cloning it copies no text.
    #[must_use]
    pub fn shared(&self) -> &Arc<str> {
        &self.text
    }

    /// A hash of the text, keyed at random for this process.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// The parts, for a store that keeps them in columns of their own.
    #[must_use]
    pub fn parts(&self) -> StoreKeyParts<'_> {
        let (scope, endpoint, key) = (
            self.scope as usize,
            self.endpoint as usize,
            self.key as usize,
        );
        StoreKeyParts {
            prefix: &self.text[..scope - 1],
            scope: &self.text[scope..endpoint - 1],
            endpoint: &self.text[endpoint..key - 1],
            key: &self.text[key..],
        }
    }

    /// A short hash by which log lines of one record can be brought together.
    ///
    /// Eight bytes of SHA-256, in hex. It hides the key from a reader, not from somebody who can
    /// guess it and compare.
    #[must_use]
    pub fn log_id(&self) -> String {
        short_hash(&self.text)
    }
}

thread_local! {
    static SCRATCH: Cell<String> = const { Cell::new(String::new()) };
}

/// More than any valid key takes. A longer one leaves no memory behind.
const LARGEST_SCRATCH: usize = 1024;

/// The hash of a store key's text, for tables in this process. Keyed at random, so that nobody can
/// choose keys that collide.
pub(crate) fn hash(text: &str) -> u64 {
    static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    HASHER.hash_one(text)
}

/// A part of a store key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    Text(&'a str),
    /// Stands as lower-case hex.
    Digest(&'a [u8]),
}

impl Part<'_> {
    fn push(self, text: &mut String) {
        match self {
            Self::Text(part) => push_escaped(text, part),
            Self::Digest(digest) => push_hex(text, digest),
        }
    }
}

impl PartialEq for StoreKey {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.text == other.text
    }
}

impl Eq for StoreKey {}

/// Of the text, so that a store with several servers can choose among them by it: the hash that is
/// kept is another one in each process.
impl Hash for StoreKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreKey(#{})", self.log_id())
    }
}

fn push_escaped(text: &mut String, part: &str) {
    let start = text.len();
    // Most parts are short and have nothing to escape.
    if part.len() <= LONGEST_PART && part.bytes().all(is_unreserved) {
        return text.push_str(part);
    }
    for &byte in part.as_bytes() {
        match is_unreserved(byte) {
            true => text.push(byte as char),
            false => {
                const UPPER: &[u8; 16] = b"0123456789ABCDEF";
                text.push('%');
                text.push(UPPER[usize::from(byte >> 4)] as char);
                text.push(UPPER[usize::from(byte & 15)] as char);
            }
        }
        if text.len() - start > LONGEST_PART {
            text.truncate(start);
            text.push('#');
            push_hex(text, &Sha256::digest(part));
            return;
        }
    }
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Appends `bytes` in lower-case hex.
pub(crate) fn push_hex(text: &mut String, bytes: &[u8]) {
    // A digest's worth at a time: to push the digits one by one would check for room each time.
    for part in bytes.chunks(32) {
        let mut digits = [0; 64];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(part) {
            pair[0] = LOWER[usize::from(byte >> 4)];
            pair[1] = LOWER[usize::from(byte & 15)];
        }
        let digits = std::str::from_utf8(&digits[..2 * part.len()]);
        text.push_str(digits.unwrap_or_default());
    }
}

const LOWER: &[u8; 16] = b"0123456789abcdef";

pub(crate) fn short_hash(text: &str) -> String {
    let mut hex = String::with_capacity(16);
    push_hex(&mut hex, &Sha256::digest(text)[..8]);
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_1_to_255_characters_of_visible_ascii_or_space() {
        let every: String = (b' '..=b'~').map(char::from).collect();
        assert_eq!(IdempotencyKey::new(&every).unwrap().as_str(), every);
        assert!(IdempotencyKey::new("a".repeat(255)).is_ok());
        for bad in ["", &"a".repeat(256), "a\nb", "a\0", "\u{7f}", "é", "\t"] {
            assert!(IdempotencyKey::new(bad).is_err(), "{bad:?}");
        }
    }

    /// U02, I11: whatever the parts hold, different parts give different store keys.
    #[test]
    fn u02_i11_store_keys_are_injective() {
        let parts = [
            "", "a", ":", "a:b", "%3A", "%", "#", "a/b", "b", "é", "\n", "::",
        ];
        let mut seen = std::collections::HashMap::new();
        for prefix in parts {
            for scope in parts {
                for endpoint in parts {
                    for key in parts {
                        let made = StoreKey::new(prefix, scope, endpoint, key);
                        let old =
                            seen.insert(made.as_str().to_owned(), (prefix, scope, endpoint, key));
                        assert_eq!(old, None, "{:?} twice", made.as_str());
                    }
                }
            }
        }
    }

    #[test]
    fn parts_are_those_of_the_text() {
        let key = StoreKey::new("p:", "", "e", "k:1");
        let parts = key.parts();
        assert_eq!(
            (parts.prefix, parts.scope, parts.endpoint, parts.key),
            ("p%3A", "", "e", "k:1")
        );
    }

    /// U01, P1: a store that chooses a server by the hash of a key chooses the same one in every
    /// process, so what is hashed is the text alone.
    #[test]
    fn p1_u01_the_hash_is_that_of_the_text() {
        let hasher = std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default();
        let key = StoreKey::new("idem", "caller", "endpoint", "k");
        assert_eq!(hasher.hash_one(&key), hasher.hash_one(key.as_str()));
    }

    /// P9: a caller's identity of any length gives a key of bounded length.
    #[test]
    fn p9_long_scopes_are_hashed() {
        let fits = "s".repeat(128);
        assert_eq!(StoreKey::new("p", &fits, "e", "k").parts().scope, fits);
        let long = StoreKey::new("p", &"s".repeat(129), "e", "k");
        assert!(long.parts().scope.starts_with('#'));
        assert_eq!(long.parts().scope.len(), 65);
        assert_ne!(long, StoreKey::new("p", &"s".repeat(130), "e", "k"));
        assert_ne!(long, StoreKey::new("p", long.parts().scope, "e", "k"));
    }

    /// U19: debug output holds no key in clear.
    #[test]
    fn u19_debug_holds_no_key() {
        let key = IdempotencyKey::new("secret-key").unwrap();
        let store = StoreKey::new("idem", "tenant-x", "e", key.as_str());
        let shown = format!("{key:?} {store:?} {:?}", store.parts());
        assert!(
            !shown.contains("secret-key") && !shown.contains("tenant-x"),
            "{shown}"
        );
    }
}
