//! For which operation: [`KeySource`].

use std::{borrow::Cow, fmt, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, request::Parts};

use super::scope::header_name;
use crate::{
    fingerprint::Fingerprint,
    key::{IdempotencyKey, InvalidKey, push_hex},
};

/// Where a request's idempotency key stands.
///
/// A source that reads the body ([`json_pointer`](Self::json_pointer),
/// [`derived`](Self::derived), [`from_body`](Self::from_body)) has every covered request read into
/// memory before the layer knows whether it holds a key; the others leave a request without a key
/// untouched.
#[derive(Clone)]
pub struct KeySource(Kind);

#[derive(Clone)]
enum Kind {
    Header {
        name: HeaderName,
        strict: bool,
    },
    #[cfg(feature = "json")]
    Pointer(Arc<[String]>),
    Derived,
    Parts(Arc<KeyFromParts>),
    Body(Arc<KeyFromBody>),
}

type KeyFromParts = dyn Fn(&Parts) -> Result<Option<IdempotencyKey>, InvalidKey> + Send + Sync;
type KeyFromBody =
    dyn Fn(&Parts, &Bytes) -> Result<Option<IdempotencyKey>, InvalidKey> + Send + Sync;

/// The [`header`](Self::header) `Idempotency-Key`.
impl Default for KeySource {
    fn default() -> Self {
        Self::header("idempotency-key")
    }
}

impl KeySource {
    /// The header `name`, as the [IETF draft] has it: a structured-field string (RFC 9651), whose
    /// parameters are ignored. A bare value is taken too, as official SDKs send it, and `"k"` and
    /// `k` are one key.
    ///
    /// Refused are an empty key, a header that occurs twice (also with equal values), a value that
    /// begins with a quote and is no structured-field string, and a bare value with a comma, which
    /// is what a proxy makes of two headers, or with a quote.
    ///
    /// # Panics
    ///
    /// If `name` cannot be the name of a header.
    ///
    /// [IETF draft]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07
    #[must_use]
    pub fn header(name: impl AsRef<str>) -> Self {
        Self(Kind::Header {
            name: header_name(name.as_ref()),
            strict: false,
        })
    }

    /// Takes only the structured form of a header, so that a client that follows the draft to the
    /// letter learns of its mistakes. Off by default, since most clients send bare keys. Other
    /// sources have no strict form and stay as they are.
    #[must_use]
    pub fn strict(mut self) -> Self {
        if let Kind::Header { strict, .. } = &mut self.0 {
            *strict = true;
        }
        self
    }

    /// The string at an RFC 6901 pointer into a JSON body, such as `/idempotency_key`.
    ///
    /// `null`, no value there and a body that is not JSON mean that there is no key. A value that
    /// is no string is refused, and so is a name on the way that occurs twice: this layer and the
    /// handler could take different ones.
    ///
    /// # Panics
    ///
    /// If `pointer` is not empty and does not begin with `/`, or has a `~` that is not followed by
    /// `0` or `1`.
    #[cfg(feature = "json")]
    #[must_use]
    pub fn json_pointer(pointer: impl AsRef<str>) -> Self {
        let path = parse_pointer(pointer.as_ref()).expect("a JSON pointer");
        Self(Kind::Pointer(path.into()))
    }

    /// A key derived from the request itself: the digest of its fingerprint.
    ///
    /// Every covered request has a key then, and equal requests of one caller are one operation
    /// until the record expires. For clients that send no key and payloads that name the operation
    /// themselves (an order number, say). Two equal payments on one day would be one.
    #[must_use]
    pub fn derived() -> Self {
        Self(Kind::Derived)
    }

    /// What `key` makes of everything but the body. `Ok(None)` means that there is no key.
    #[must_use]
    pub fn from_fn(
        key: impl Fn(&Parts) -> Result<Option<IdempotencyKey>, InvalidKey> + Send + Sync + 'static,
    ) -> Self {
        Self(Kind::Parts(Arc::new(key)))
    }

    /// What `key` makes of the request with its body. `Ok(None)` means that there is no key.
    #[must_use]
    pub fn from_body(
        key: impl Fn(&Parts, &Bytes) -> Result<Option<IdempotencyKey>, InvalidKey>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self(Kind::Body(Arc::new(key)))
    }

    /// Whether only [`key_from_body`](Self::key_from_body) can tell.
    pub(crate) fn needs_body(&self) -> bool {
        match &self.0 {
            Kind::Header { .. } | Kind::Parts(_) => false,
            #[cfg(feature = "json")]
            Kind::Pointer(_) => true,
            Kind::Derived | Kind::Body(_) => true,
        }
    }

    /// Whether a request with these headers has no key, as far as can be told at a glance.
    pub(crate) fn is_absent(&self, headers: &HeaderMap) -> bool {
        matches!(&self.0, Kind::Header { name, .. } if !headers.contains_key(name))
    }

    /// What the head of a request has of a key. Allocates nothing if there is none (P10).
    pub(crate) fn in_head(&self, parts: &Parts) -> InHead {
        match &self.0 {
            Kind::Header { .. } => InHead::Header,
            Kind::Parts(key) => match key(parts) {
                Ok(None) => InHead::Nothing,
                Ok(Some(key)) => InHead::Made(Ok(key)),
                Err(error) => InHead::Made(Err(error)),
            },
            #[cfg(feature = "json")]
            Kind::Pointer(_) => InHead::Nothing,
            Kind::Derived | Kind::Body(_) => InHead::Nothing,
        }
    }

    /// The key, where it is not in the body.
    pub(crate) fn key_from_head<'a>(
        &self,
        parts: &'a Parts,
        found: &'a InHead,
    ) -> Result<Option<Cow<'a, str>>, InvalidKey> {
        match (found, &self.0) {
            (InHead::Made(Ok(key)), _) => Ok(Some(Cow::Borrowed(key.as_str()))),
            (InHead::Made(Err(error)), _) => Err(error.clone()),
            (InHead::Header, Kind::Header { name, strict }) => {
                let mut values = parts.headers.get_all(name).iter();
                match (values.next(), values.next()) {
                    (None, _) => Ok(None),
                    (Some(value), None) => {
                        IdempotencyKey::in_field(value.as_bytes(), *strict).map(Some)
                    }
                    (Some(_), Some(_)) => Err(InvalidKey::new("the key header occurs twice")),
                }
            }
            (InHead::Header | InHead::Nothing, _) => Ok(None),
        }
    }

    /// The key of a request whose body was read.
    pub(crate) fn key_from_body(
        &self,
        parts: &Parts,
        body: &Bytes,
        fingerprint: &Fingerprint,
    ) -> Result<Option<IdempotencyKey>, InvalidKey> {
        match &self.0 {
            // Their keys are in the head.
            Kind::Header { .. } | Kind::Parts(_) => Ok(None),
            #[cfg(feature = "json")]
            Kind::Pointer(path) => from_json(body, path),
            Kind::Derived => {
                let mut key = String::with_capacity(64);
                push_hex(&mut key, fingerprint.digest());
                IdempotencyKey::new(key).map(Some)
            }
            Kind::Body(key) => key(parts, body),
        }
    }
}

/// What the head of a request has of a key.
pub(crate) enum InHead {
    Nothing,
    /// A header, if it is there, which is not looked for yet.
    Header,
    Made(Result<IdempotencyKey, InvalidKey>),
}

#[cfg(feature = "json")]
fn from_json(body: &[u8], path: &[String]) -> Result<Option<IdempotencyKey>, InvalidKey> {
    use crate::json::{Found, find};

    match find(body, path) {
        Found::Nothing => Ok(None),
        Found::String(key) => IdempotencyKey::new(key).map(Some),
        Found::NotAString => Err(InvalidKey::new("the key in the body is not a string")),
        Found::Ambiguous => Err(InvalidKey::new("the key is in the body twice")),
    }
}

/// The reference tokens of a pointer, unescaped.
#[cfg(feature = "json")]
fn parse_pointer(pointer: &str) -> Option<Vec<String>> {
    let Some(tokens) = pointer.strip_prefix('/') else {
        return pointer.is_empty().then(Vec::new);
    };
    let unescape = |token: &str| {
        let valid = token
            .split('~')
            .skip(1)
            .all(|after| after.starts_with(['0', '1']));
        valid.then(|| token.replace("~1", "/").replace("~0", "~"))
    };
    tokens.split('/').map(unescape).collect()
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Header { name, strict } => f
                .debug_struct("KeySource::Header")
                .field("name", name)
                .field("strict", strict)
                .finish(),
            #[cfg(feature = "json")]
            Kind::Pointer(path) => f.debug_tuple("KeySource::Pointer").field(path).finish(),
            Kind::Derived => f.write_str("KeySource::Derived"),
            Kind::Parts(_) => f.write_str("KeySource::Parts"),
            Kind::Body(_) => f.write_str("KeySource::Body"),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};
    use proptest::prelude::*;

    use super::*;

    fn parts(values: &[&[u8]]) -> Parts {
        let mut parts = Request::new(()).into_parts().0;
        for value in values {
            let value = HeaderValue::from_bytes(value).unwrap();
            parts.headers.append("idempotency-key", value);
        }
        parts
    }

    fn source() -> KeySource {
        KeySource::default()
    }

    fn key(source: &KeySource, values: &[&[u8]]) -> Result<Option<String>, InvalidKey> {
        let parts = parts(values);
        let found = source.in_head(&parts);
        let key = source.key_from_head(&parts, &found)?;
        Ok(key.map(Cow::into_owned))
    }

    /// I01, U02: the structured form, with escapes and parameters, and the bare form; both name
    /// one key.
    #[test]
    fn i01_u02_quoted_and_bare_are_one_key() {
        for (value, expected) in [
            (&b"k"[..], "k"),
            (b"\"k\"", "k"),
            (b" \t\"k\" ", "k"),
            (b"\tk\t", "k"),
            (b"\"k\";v=1;w=\"x,y\"", "k"),
            (br#""a\"b\\c""#, r#"a"b\c"#),
            (b"\"a, b\"", "a, b"),
            (b"a b", "a b"),
            (b"a:b/c?d", "a:b/c?d"),
            (b"\"a:b/c?d\"", "a:b/c?d"),
            (b"'k'", "'k'"),
            (b"a\\b", "a\\b"),
            (b"k;v=1", "k;v=1"),
            (b"\" k \"", " k "),
        ] {
            assert_eq!(
                key(&source(), &[value]),
                Ok(Some(expected.to_owned())),
                "{value:?}"
            );
        }
        assert_eq!(key(&source(), &[]), Ok(None));
    }

    /// U32, S20: what official SDKs and businesses send is taken as it is.
    #[test]
    fn u32_s20_keys_of_sdks_are_taken() {
        for sent in [
            "8e03978e-40d5-43dd-bc93-6894a57f9324",
            "00000000-0000-0000-0000-000000000000",
            "018f4e9c-7a1b-1c3d-0e4f-ffffffffffff",
            "8E03978E40D543DDBC936894A57F9324",
            "auto_4f9c2d1e-0b7a-11ef-9c1a-0242ac120002",
            "stripe-node-retry-5d1a6b4e-6f3c-4a51-8f0e-2b6f8a9c7d10",
            "order_123_payment_1",
            "user:42:transfer/2024-01-01",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "dGhpcyBpcyBiYXNlNjQ=",
        ] {
            assert_eq!(
                key(&source(), &[sent.as_bytes()]),
                Ok(Some(sent.to_owned()))
            );
        }
    }

    /// I02, I11, U38: whatever could be read two ways, or is no key, is refused.
    #[test]
    fn i02_i11_u38_malformed_keys_are_refused() {
        let long = "a".repeat(256);
        let long_quoted = format!("\"{long}\"");
        for bad in [
            &[&b""[..]][..],
            &[b" \t"],
            &[b"\"\""],
            &[b"a", b"a"],
            &[b"a", b"b"],
            &[b"a", b""],
            &[b"\"a\"", b"\"a\""],
            &[b"a, b"],
            &[b"a,"],
            &[b","],
            &[b"\"a\", \"b\""],
            &[b"a, \"b\""],
            &[b"\"a"],
            &[b"a\""],
            &[b"a\"b"],
            &[b"\""],
            &[b"\"a\"b"],
            &[b"\"a\\\""],
            &[b"\"a\\x\""],
            &[b"\"a\";"],
            &[b"\"a\";V=1"],
            &[b"\"a\tb\""],
            &[b"a\tb"],
            &[b"\xff"],
            &["é".as_bytes()],
            &["\"é\"".as_bytes()],
            &[long.as_bytes()],
            &[long_quoted.as_bytes()],
        ] {
            assert!(key(&source(), bad).is_err(), "{bad:?}");
        }
        let longest = "a".repeat(255);
        assert_eq!(
            key(&source(), &[longest.as_bytes()]),
            Ok(Some(longest.clone()))
        );
        let quoted = format!("\"{longest}\"");
        assert_eq!(key(&source(), &[quoted.as_bytes()]), Ok(Some(longest)));
    }

    /// I02: the strict form takes nothing bare.
    #[test]
    fn i02_strict_takes_only_the_structured_form() {
        let strict = source().strict();
        assert_eq!(key(&strict, &[b"\"k\""]), Ok(Some("k".to_owned())));
        for bare in [&b"k"[..], b"1", b":aGk=:", b"?1"] {
            assert!(key(&strict, &[bare]).is_err(), "{bare:?}");
        }
        assert_eq!(key(&strict, &[]), Ok(None));
    }

    /// U19: what is said of a bad key does not repeat it.
    #[test]
    fn u19_a_refusal_does_not_repeat_the_value() {
        for bad in [&b"secret, x"[..], b"\"secret", b"secret\"", b"secret\xff"] {
            let error = key(&source(), &[bad]).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
    }

    fn in_body(source: &KeySource, body: &'static str) -> Result<Option<String>, InvalidKey> {
        assert!(source.needs_body());
        let head = parts(&[b"other"]);
        assert!(matches!(source.in_head(&head), InHead::Nothing));
        let fingerprint = Fingerprint::from_parts("t", [0xab; 32]).unwrap();
        let key = source.key_from_body(
            &parts(&[b"other"]),
            &Bytes::from_static(body.as_bytes()),
            &fingerprint,
        )?;
        Ok(key.map(|key| key.as_str().to_owned()))
    }

    /// S01: the key comes from the body.
    #[cfg(feature = "json")]
    #[test]
    fn s01_a_key_in_the_body_is_found() {
        let source = KeySource::json_pointer("/idempotency_key");
        let key = |body| in_body(&source, body);
        assert_eq!(
            key(r#"{"idempotency_key":"abc-123","payload":{"action":"apply_discount"}}"#),
            Ok(Some("abc-123".to_owned()))
        );
        for absent in ["", "{}", "[]", "x", r#"{"idempotency_key":null}"#] {
            assert_eq!(key(absent), Ok(None), "{absent}");
        }
        for bad in [
            r#"{"idempotency_key":1}"#,
            r#"{"idempotency_key":""}"#,
            r#"{"idempotency_key":"\n"}"#,
            r#"{"idempotency_key":"a","idempotency_key":"a"}"#,
        ] {
            assert!(key(bad).is_err(), "{bad}");
        }
        let escaped = KeySource::json_pointer("/a~1b/~01/0");
        assert_eq!(
            in_body(&escaped, r#"{"a/b":{"~1":["k"]}}"#),
            Ok(Some("k".to_owned()))
        );
        assert_eq!(
            in_body(&KeySource::json_pointer(""), "\"k\""),
            Ok(Some("k".to_owned()))
        );
    }

    #[cfg(feature = "json")]
    #[test]
    fn a_pointer_is_checked_at_once() {
        for bad in ["a", "a/b", "/~", "/~2", "/a~/b"] {
            assert_eq!(parse_pointer(bad), None, "{bad}");
        }
    }

    /// S20: a hash of the operation's parameters, or what a closure finds.
    #[test]
    fn s20_derived_keys_and_closures() {
        assert_eq!(
            in_body(&KeySource::derived(), ""),
            Ok(Some("ab".repeat(32)))
        );
        let first_line = KeySource::from_body(|_, body| {
            let line = body.split(|&b| b == b'\n').next().unwrap_or_default();
            IdempotencyKey::new(String::from_utf8_lossy(line)).map(Some)
        });
        assert_eq!(in_body(&first_line, "k\nrest"), Ok(Some("k".to_owned())));

        let path = KeySource::from_fn(|parts| match parts.uri.path() {
            "/" => Ok(None),
            path => IdempotencyKey::new(path).map(Some),
        });
        assert!(!path.needs_body());
        assert_eq!(key(&path, &[b"ignored"]), Ok(None));
    }

    proptest! {
        /// I01, U02: any key comes through its structured form, and, unless it looks like
        /// something else, through its bare form.
        #[test]
        fn i01_u02_any_key_survives_its_spellings(text in "[ -~]{1,255}") {
            let quoted = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            prop_assert_eq!(key(&source(), &[quoted.as_bytes()]), Ok(Some(text.clone())));
            if !text.contains([',', '"']) && !text.trim().is_empty() {
                let bare = key(&source(), &[text.as_bytes()]);
                prop_assert_eq!(bare, Ok(Some(text.trim().to_owned())));
            }
        }

        /// I11: no value of a header makes reading panic, and what is taken is a valid key.
        #[test]
        fn i11_any_value_is_taken_or_refused(
            value in "[\"\\\\;, a=\\t\u{e9}~*?:1-]{0,12}",
            strict in any::<bool>(),
        ) {
            let source = if strict { source().strict() } else { source() };
            if let Ok(key) = key(&source, &[value.as_bytes()]) {
                prop_assert!(IdempotencyKey::new(key.unwrap()).is_ok());
            }
        }
    }
}
