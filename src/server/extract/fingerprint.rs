//! With which payload: [`Fingerprinter`].

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::request::Parts;

use super::target::target;
use crate::fingerprint::{Fingerprint, FingerprintHasher};

/// What of a request tells two payloads apart. A key that comes again with another fingerprint is
/// refused with 422.
///
/// Headers never count on their own: clients add retry counters, dates and traces to them.
///
/// Whenever you change from one form to another, or what a closure hashes, records of the other
/// form are still in the store; their retries get a 409 of their own problem type until those
/// records expire, and no false 422 (U37).
#[derive(Clone)]
pub struct Fingerprinter {
    kind: Kind,
    start: FingerprintHasher,
}

#[derive(Clone)]
enum Kind {
    Request,
    #[cfg(feature = "json")]
    Json,
    Function(Arc<Function>),
}

type Function = dyn Fn(&Parts, &Bytes, &mut FingerprintHasher) + Send + Sync;

/// [`request`](Self::request).
impl Default for Fingerprinter {
    fn default() -> Self {
        Self::request()
    }
}

impl Fingerprinter {
    /// SHA-256 over method, path, query and all bytes of the body. The default, and the only form
    /// that hashes a body while it arrives.
    #[must_use]
    pub fn request() -> Self {
        Self {
            kind: Kind::Request,
            start: Fingerprint::hasher("sha256/1"),
        }
    }

    /// Like [`request`](Self::request), but with a JSON body by its meaning: the order of members,
    /// white space, escapes and the spelling of numbers do not matter (S24). For clients that
    /// serialise anew for each try.
    ///
    /// As in RFC 8785, except that numbers count by their exact decimal value. There, numbers
    /// are doubles, and 9007199254740993 and 9007199254740992 would be the same amount; here
    /// `1.0` is `1`, and these two differ.
    ///
    /// A body counts as JSON if its `Content-Type` says so (`application/json` or `…+json`) or is
    /// absent, and if it has one meaning only: no name twice in an object, and no more than 127
    /// levels. Any other body counts by its bytes.
    #[cfg(feature = "json")]
    #[must_use]
    pub fn json() -> Self {
        Self {
            kind: Kind::Json,
            start: Fingerprint::hasher("json/1"),
        }
    }

    /// What `fingerprint` hashes, and nothing else: selected members of the body, or a form whose
    /// fields come in any order (I04, U35). It decides whether method, path and query count.
    ///
    /// `algorithm` names what the closure does. Change it with the closure; see
    /// [`Fingerprint::hasher`].
    ///
    /// ```
    /// use tower_idempotency::Fingerprinter;
    ///
    /// let form = Fingerprinter::from_fn("form/1", |parts, body, hasher| {
    ///     let mut fields: Vec<_> = body.split(|&b| b == b'&').collect();
    ///     fields.sort();
    ///     hasher.field(parts.uri.path());
    ///     for field in fields {
    ///         hasher.field(field);
    ///     }
    /// });
    /// ```
    ///
    /// A retry of a multipart form may come with a new boundary. What stands between the
    /// boundaries is then what counts:
    ///
    /// ```
    /// use http::header::CONTENT_TYPE;
    /// use tower_idempotency::Fingerprinter;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let multipart = Fingerprinter::from_fn("multipart/1", |parts, body, hasher| {
    ///     let content_type = parts.headers.get(CONTENT_TYPE);
    ///     let boundary = content_type
    ///         .and_then(|value| value.to_str().ok()?.split_once("boundary="))
    ///         .map(|(_, boundary)| boundary.trim_matches('"').as_bytes())
    ///         .filter(|boundary| !boundary.is_empty());
    ///     hasher.field(parts.uri.path());
    ///     let mut rest = &body[..];
    ///     if let Some(boundary) = boundary {
    ///         let next = |rest: &[u8]| rest.windows(boundary.len()).position(|at| at == boundary);
    ///         while let Some(at) = next(rest) {
    ///             hasher.field(&rest[..at]);
    ///             rest = &rest[at + boundary.len()..];
    ///         }
    ///     }
    ///     hasher.field(rest);
    /// });
    /// # use http::Request;
    /// # use http_body_util::Full;
    /// # use tower::{Layer, ServiceExt, service_fn};
    /// # use tower_idempotency::{IdempotencyLayer, MemoryStore, Outcome, Scope};
    /// # let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_tenant())
    /// #     .fingerprint(multipart);
    /// # let ask = async |boundary: &str, file: &str| {
    /// #     let service = layer.layer(service_fn(async |_: Request<_>| {
    /// #         Ok::<_, std::convert::Infallible>(http::Response::new(Full::<bytes::Bytes>::default()))
    /// #     }));
    /// #     let request = Request::post("/upload")
    /// #         .header("idempotency-key", "k")
    /// #         .header("content-type", format!("multipart/form-data; boundary=\"{boundary}\""))
    /// #         .body(Full::<bytes::Bytes>::from(format!("--{boundary}\r\n\r\n{file}\r\n--{boundary}--\r\n")))
    /// #         .unwrap();
    /// #     let response = service.oneshot(request).await.unwrap();
    /// #     response.extensions().get::<Outcome>().unwrap().as_str()
    /// # };
    /// # assert_eq!(ask("one", "file").await, "completed");
    /// # assert_eq!(ask("two", "file").await, "replayed");
    /// # assert_eq!(ask("two", "other").await, "mismatch");
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// If `algorithm` is no name that [`Fingerprint::hasher`] takes.
    #[must_use]
    pub fn from_fn(
        algorithm: &str,
        fingerprint: impl Fn(&Parts, &Bytes, &mut FingerprintHasher) + Send + Sync + 'static,
    ) -> Self {
        Self {
            kind: Kind::Function(Arc::new(fingerprint)),
            start: Fingerprint::hasher(algorithm),
        }
    }

    /// Makes the fingerprint an HMAC under `secret`: see [`FingerprintHasher::keyed`]. Use it
    /// where bodies hold little that cannot be guessed and others can read the store. All servers
    /// that share a store need the same secret.
    ///
    /// # Panics
    ///
    /// If `secret` is empty, which is what a setting that was not set looks like.
    #[must_use]
    pub fn keyed(self, secret: impl AsRef<[u8]>) -> Self {
        let secret = secret.as_ref();
        assert!(!secret.is_empty(), "the secret is empty");
        Self {
            start: self.start.keyed(secret),
            ..self
        }
    }

    /// Whether the body can be given to the hasher piece by piece, with
    /// [`raw`](FingerprintHasher::raw), as it arrives; otherwise it is
    /// [`finish_whole`](Self::finish_whole) that hashes it.
    pub(crate) fn streams(&self) -> bool {
        matches!(self.kind, Kind::Request)
    }

    /// A hasher that has seen all but the body.
    pub(crate) fn start(&self, parts: &Parts) -> FingerprintHasher {
        let mut hasher = self.start.clone();
        if matches!(self.kind, Kind::Function(_)) {
            return hasher;
        }
        let target = target(parts);
        hasher.field(parts.method.as_str()).field(target.path());
        // No query and an empty one are two targets.
        match target.query() {
            None => hasher.raw([0]),
            Some(query) => hasher.raw([1]).field(query),
        };
        hasher
    }

    /// The fingerprint of a request whose body was not given to the hasher yet.
    pub(crate) fn finish_whole(
        &self,
        mut hasher: FingerprintHasher,
        parts: &Parts,
        body: &Bytes,
    ) -> Fingerprint {
        match &self.kind {
            Kind::Request => {
                hasher.raw(body);
            }
            #[cfg(feature = "json")]
            Kind::Json => {
                let canonical = match may_be_json(parts) {
                    true => crate::json::canonical(body),
                    false => None,
                };
                match canonical {
                    Some(canonical) => hasher.field("json").raw(canonical),
                    None => hasher.field("bytes").raw(body),
                };
            }
            Kind::Function(fingerprint) => fingerprint(parts, body, &mut hasher),
        }
        hasher.finish()
    }
}

#[cfg(feature = "json")]
fn may_be_json(parts: &Parts) -> bool {
    let Some(value) = parts.headers.get(http::header::CONTENT_TYPE) else {
        return true;
    };
    let media_type = value.as_bytes().split(|&b| b == b';').next();
    let media_type = media_type
        .unwrap_or_default()
        .trim_ascii()
        .to_ascii_lowercase();
    media_type == b"application/json" || media_type.ends_with(b"+json")
}

impl fmt::Debug for Fingerprinter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fingerprinter").field(&self.start).finish()
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    /// Forms that this build may not have.
    fn json_forms() -> Vec<Fingerprinter> {
        #[cfg(feature = "json")]
        return vec![Fingerprinter::json(), Fingerprinter::json().keyed("one")];
        #[cfg(not(feature = "json"))]
        Vec::new()
    }

    fn parts(method: &str, uri: &str, content_type: Option<&str>) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn of(fingerprinter: &Fingerprinter, parts: &Parts, body: &str) -> Fingerprint {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let whole = fingerprinter.finish_whole(fingerprinter.start(parts), parts, &body);
        if fingerprinter.streams() {
            let mut hasher = fingerprinter.start(parts);
            for piece in body.chunks(3) {
                hasher.raw(piece);
            }
            assert_eq!(hasher.finish(), whole);
        }
        whole
    }

    /// U34, U28: method, path, query and the whole body count; nothing can move between them.
    #[test]
    fn u34_all_of_the_request_counts() {
        let requests = [
            ("POST", "/a", "x"),
            ("PATCH", "/a", "x"),
            ("POST", "/b", "x"),
            ("POST", "/a/", "x"),
            ("POST", "/a?", "x"),
            ("POST", "/a?x", ""),
            ("POST", "/a?x", "x"),
            ("POST", "/ax", ""),
            ("POST", "/a", ""),
            ("POST", "/a", "x "),
            ("POST", "/a", "{\"a\":1}"),
            ("POST", "/a", "{\"a\":2}"),
        ];
        let mut forms = json_forms();
        forms.extend([
            Fingerprinter::request(),
            Fingerprinter::request().keyed("secret"),
        ]);
        for form in forms {
            for (n, &(method, uri, body)) in requests.iter().enumerate() {
                let one = of(&form, &parts(method, uri, None), body);
                assert_eq!(one.digest().len() * 8, 256);
                for &(method, uri, body) in &requests[n + 1..] {
                    let other = of(&form, &parts(method, uri, None), body);
                    assert!(one.same_algorithm(&other));
                    assert_ne!(one, other, "{form:?} {uri} {body}");
                }
            }
        }
        // One byte at the far end of a large body counts.
        let (parts, body) = (parts("POST", "/", None), "a".repeat(1 << 20));
        let request = Fingerprinter::request();
        assert_ne!(
            of(&request, &parts, &body),
            of(&request, &parts, &format!("{}b", &body[1..]))
        );
    }

    /// Headers do not count: clients add retry counters to them.
    #[test]
    fn headers_do_not_count() {
        let (mut one, other) = (parts("POST", "/", None), parts("POST", "/", None));
        one.headers
            .insert("x-retry", http::HeaderValue::from_static("2"));
        let request = Fingerprinter::request();
        assert_eq!(of(&request, &one, "x"), of(&request, &other, "x"));
        let (one, other) = (
            parts("POST", "/", Some("a/b")),
            parts("POST", "http://h/", None),
        );
        assert_eq!(of(&request, &one, "x"), of(&request, &other, "x"));
    }

    /// S24: JSON by its meaning, where it is JSON.
    #[cfg(feature = "json")]
    #[test]
    fn s24_json_counts_by_its_meaning() {
        let json = Fingerprinter::json();
        let (one, other) = (r#"{"a":1,"b":"\u0061"}"#, r#"{ "b": "a", "a": 1.0 }"#);
        let same = |content_type, one, other| {
            let parts = parts("POST", "/", content_type);
            of(&json, &parts, one) == of(&json, &parts, other)
        };
        for content_type in [
            None,
            Some("application/json"),
            Some("Application/JSON ; charset=utf-8"),
            Some("application/vnd.api+json"),
        ] {
            assert!(same(content_type, one, other), "{content_type:?}");
        }
        for content_type in [
            "text/plain",
            "",
            "application/jsonx",
            "application/x-ndjson",
        ] {
            assert!(!same(Some(content_type), one, other), "{content_type}");
        }
        // What has no single meaning counts by its bytes.
        assert!(!same(None, r#"{"a":1,"a":2}"#, r#"{"a":1, "a":2}"#));
        assert!(same(None, "{", "{"));
        assert!(!same(None, "{", "{ "));
        // A body that spells out what another's canonical form is made of is not that body.
        let canonical = crate::json::canonical(b"\"ab\"").unwrap();
        assert!(!same(
            None,
            "\"ab\"",
            std::str::from_utf8(&canonical).unwrap()
        ));
    }

    /// U37: each form and each secret has its own name, so that none is taken for another.
    #[test]
    fn u37_forms_do_not_mix() {
        let mut forms = json_forms();
        forms.extend([
            Fingerprinter::request(),
            Fingerprinter::request().keyed("one"),
            Fingerprinter::request().keyed("two"),
            Fingerprinter::from_fn("mine/1", |_, body, hasher| {
                hasher.raw(body);
            }),
            Fingerprinter::from_fn("mine/2", |_, body, hasher| {
                hasher.raw(body);
            }),
        ]);
        let parts = parts("POST", "/", None);
        for (n, one) in forms.iter().enumerate() {
            for other in &forms[n + 1..] {
                assert!(!of(one, &parts, "x").same_algorithm(&of(other, &parts, "x")));
            }
        }
        let request = of(&Fingerprinter::default(), &parts, "x");
        assert_eq!(request.algorithm(), "sha256/1");
    }

    /// I04, U35: a closure can make the order of a form's fields not matter, and leave out what it
    /// likes.
    #[test]
    fn i04_u35_a_closure_decides_what_counts() {
        let form = Fingerprinter::from_fn("form/1", |_, body, hasher| {
            let mut fields: Vec<_> = body.split(|&b| b == b'&').collect();
            fields.sort_unstable();
            for field in fields
                .into_iter()
                .filter(|field| !field.starts_with(b"try="))
            {
                hasher.field(field);
            }
        });
        assert!(!form.streams());
        let (here, there) = (parts("POST", "/a", None), parts("PATCH", "/b", None));
        assert_eq!(
            of(&form, &here, "a=1&b=2&try=1"),
            of(&form, &there, "b=2&try=2&a=1")
        );
        assert_ne!(of(&form, &here, "a=1&b=2"), of(&form, &here, "a=1&b=3"));
    }

    /// U19: debug output names the algorithm only.
    #[test]
    fn u19_debug_holds_no_secret() {
        let shown = format!("{:?}", Fingerprinter::request().keyed("hunter2"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    #[should_panic(expected = "the secret is empty")]
    fn an_empty_secret_is_refused_at_once() {
        let _ = Fingerprinter::request().keyed("");
    }
}
