//! Who calls: [`Scope`].

use std::{fmt, sync::Arc};

use http::{HeaderName, request::Parts};
use sha2::{Digest, Sha256};

use crate::key::Part;

/// What tells one caller from another. A key belongs to the caller that sent it: another caller
/// with the same key is another operation, and gets nobody else's answer (I12, U33).
///
/// There is no default. Take the identity that your authentication established, and let the layer
/// stand inside of it:
///
/// ```
/// use tower_idempotency::Scope;
///
/// #[derive(Clone)]
/// struct Account { id: u64 }
///
/// let scope = Scope::extension(|account: &Account| account.id.to_string());
/// ```
///
/// A request that does not tell is refused with 403; the handler does not run.
#[derive(Clone)]
pub struct Scope(Kind);

#[derive(Clone)]
enum Kind {
    SingleTenant,
    Header(HeaderName),
    Function(Arc<Identity>),
}

type Identity = dyn Fn(&Parts) -> Option<String> + Send + Sync;

impl Scope {
    /// The caller is whoever sends this value in this header, once and not empty.
    ///
    /// The value may be a secret, so only its SHA-256 becomes part of a record's key. For API keys
    /// that a client holds for long. Not for access tokens: a client that refreshes its token
    /// between two tries would be another caller, and its retry would run again (U15). Use
    /// [`extension`](Self::extension) with the principal instead.
    ///
    /// # Panics
    ///
    /// If `name` cannot be the name of a header.
    #[must_use]
    pub fn header(name: impl AsRef<str>) -> Self {
        Self(Kind::Header(header_name(name.as_ref())))
    }

    /// The caller is what `identity` makes of the request extension `T`, which a layer outside has
    /// set.
    ///
    /// Where the extension is absent or the identity empty, the caller is not known. The identity
    /// becomes part of a record's key as it stands: use an id and not a secret.
    #[must_use]
    pub fn extension<T>(identity: impl Fn(&T) -> String + Send + Sync + 'static) -> Self
    where
        T: Send + Sync + 'static,
    {
        Self::from_fn(move |parts| parts.extensions.get().map(&identity))
    }

    /// The caller is what `identity` makes of the request; `None` or empty where it is not known.
    ///
    /// The identity becomes part of a record's key as it stands: use an id and not a secret.
    #[must_use]
    pub fn from_fn(identity: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Kind::Function(Arc::new(identity)))
    }

    /// All requests come from one caller.
    ///
    /// Right only where everybody who reaches the service may see every answer: behind a gateway
    /// for one client, say, or between two services of one owner.
    #[must_use]
    pub fn single_tenant() -> Self {
        Self(Kind::SingleTenant)
    }

    /// The caller of this request.
    pub(crate) fn identify(&self, parts: &Parts) -> Result<Caller, Unidentified> {
        let caller = match &self.0 {
            Kind::SingleTenant => return Ok(Caller::Anyone),
            Kind::Header(name) => {
                let mut values = parts.headers.get_all(name).iter();
                match (values.next(), values.next()) {
                    (Some(value), None) if !value.as_bytes().trim_ascii().is_empty() => {
                        Some(Caller::Hashed(hashed(name, value.as_bytes())))
                    }
                    _ => None,
                }
            }
            Kind::Function(identity) => identity(parts)
                .filter(|identity| !identity.is_empty())
                .map(Caller::Named),
        };
        caller.ok_or(Unidentified)
    }
}

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The single tenant.
    Anyone,
    /// Not empty.
    Named(String),
    Hashed([u8; 32]),
}

impl Caller {
    /// As a part of a store key: only the single tenant's is empty.
    pub(crate) fn part(&self) -> Part<'_> {
        match self {
            Self::Anyone => Part::Text(""),
            Self::Named(identity) => Part::Text(identity),
            Self::Hashed(digest) => Part::Digest(digest),
        }
    }
}

/// Of name and value, so that equal values of two headers are two callers.
fn hashed(name: &HeaderName, value: &[u8]) -> [u8; 32] {
    let mut sha = Sha256::new();
    sha.update((name.as_str().len() as u64).to_be_bytes());
    sha.update(name);
    sha.update(value);
    sha.finalize().into()
}

pub(super) fn header_name(name: &str) -> HeaderName {
    HeaderName::from_bytes(name.as_bytes()).expect("a valid header name")
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::SingleTenant => f.write_str("Scope::SingleTenant"),
            Kind::Header(name) => write!(f, "Scope::Header({name})"),
            Kind::Function(_) => f.write_str("Scope::Function"),
        }
    }
}

/// A request does not say who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unidentified;

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};

    use super::*;

    fn with(values: &[&[u8]]) -> Parts {
        let mut parts = Request::new(()).into_parts().0;
        for value in values {
            let value = HeaderValue::from_bytes(value).unwrap();
            parts.headers.append("x-api-key", value);
        }
        parts
    }

    /// I12, U33: without an identity there is no scope, and different values are different ones.
    #[test]
    fn i12_u33_a_header_tells_callers_apart() {
        let scope = Scope::header("X-Api-Key");
        let one = scope.identify(&with(&[b"one"])).unwrap();
        assert!(matches!(one, Caller::Hashed(_)));
        assert_eq!(scope.identify(&with(&[b"one"])), Ok(one.clone()));
        assert_ne!(scope.identify(&with(&[b"\xff"])), Ok(one.clone()));
        let mut other = with(&[]);
        other
            .headers
            .insert("x-user", HeaderValue::from_static("one"));
        assert_ne!(Scope::header("x-user").identify(&other), Ok(one));
        for unknown in [&[][..], &[&b""[..]], &[b" "], &[b"one", b"one"]] {
            assert_eq!(
                scope.identify(&with(unknown)),
                Err(Unidentified),
                "{unknown:?}"
            );
        }
    }

    /// U15: the scope can be the principal, whatever token it came with.
    #[test]
    fn u15_the_scope_can_be_the_principal() {
        #[derive(Clone)]
        struct Principal(&'static str);
        let scope = Scope::extension::<Principal>(|principal| principal.0.to_owned());
        let identify = |token: &[u8], principal| {
            let mut parts = with(&[token]);
            parts.extensions.insert(Principal(principal));
            scope.identify(&parts)
        };
        assert_eq!(identify(b"t1", "ann"), Ok(Caller::Named("ann".to_owned())));
        assert_eq!(identify(b"t2", "ann"), identify(b"t1", "ann"));
        assert_ne!(identify(b"t1", "bob"), identify(b"t1", "ann"));
        assert_eq!(identify(b"t1", ""), Err(Unidentified));
        assert_eq!(scope.identify(&with(&[b"t1"])), Err(Unidentified));
    }

    /// U33: only a single tenant is nobody in particular.
    #[test]
    fn u33_no_other_scope_is_the_single_tenants() {
        let identify = |scope: Scope| scope.identify(&with(&[]));
        assert_eq!(identify(Scope::single_tenant()), Ok(Caller::Anyone));
        assert_eq!(identify(Scope::from_fn(|_| None)), Err(Unidentified));
        let empty = Scope::from_fn(|_| Some(String::new()));
        assert_eq!(identify(empty), Err(Unidentified));
        let method = Scope::from_fn(|parts| Some(parts.method.to_string()));
        assert_eq!(identify(method), Ok(Caller::Named("GET".to_owned())));
    }

    /// U19: debug output holds no identity, and a record's key holds no header's value.
    #[test]
    fn u19_secrets_do_not_show() {
        let scope = Scope::header("x-api-key");
        let caller = scope.identify(&with(&[b"sk_live_1"])).unwrap();
        assert!(matches!(caller, Caller::Hashed(_)));
        let shown = format!(
            "{scope:?} {:?} {:?}",
            Scope::single_tenant(),
            Scope::from_fn(|_| None)
        );
        assert_eq!(
            shown,
            "Scope::Header(x-api-key) Scope::SingleTenant Scope::Function"
        );
    }

    #[test]
    #[should_panic(expected = "a valid header name")]
    fn a_header_name_is_checked_at_once() {
        let _ = Scope::header("not a name");
    }
}
