//! What a call is made for: [`Purpose`].

use std::{borrow::Cow, fmt, sync::Arc};

use http::request::Parts;

/// What a call to another service is made for, within the operation that makes it: `"deposit"`,
/// `"label 3"`. An extension of the outgoing request; see the [module's docs](super#purposes).
///
/// It must be the same in each attempt of the operation, also in one by the next release of the
/// program, and different for each of its calls: an item's number will do, a time or a random number
/// will not. Outside of an execution it has no effect.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Purpose(Arc<str>);

impl Purpose {
    /// Any text, which is not sent: the key is a hash of it.
    #[must_use]
    pub fn new(purpose: impl Into<Arc<str>>) -> Self {
        Self(purpose.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// That of a request: the one that it was given, or else its method and its URI up to the path.
    /// Not the query, which more often than a path holds what changes from try to try: a time, a
    /// signature.
    pub(super) fn of(parts: &Parts) -> Self {
        if let Some(given) = parts.extensions.get::<Self>() {
            return given.clone();
        }
        let (method, uri) = (&parts.method, &parts.uri);
        // Scheme and host are the same in any case of letters; credentials may change.
        let origin: Cow<'_, str> = match (uri.scheme_str(), uri.host()) {
            (Some(scheme), Some(host)) => {
                let port = uri.port_u16().map(|port| format!(":{port}"));
                let port = port.unwrap_or_default();
                format!("{scheme}://{host}{port}")
                    .to_ascii_lowercase()
                    .into()
            }
            // A client whose server is known otherwise.
            _ => "".into(),
        };
        Self(format!("{method} {origin}{}", uri.path()).into())
    }
}

impl fmt::Debug for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Purpose").field(&self.as_str()).finish()
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    /// S25: a call that has no name is known by its method and URI, without what may change.
    #[test]
    fn s25_a_request_is_known_by_its_method_and_uri() {
        for (uri, purpose) in [
            (
                "http://bank.example/charges",
                "POST http://bank.example/charges",
            ),
            (
                "HTTP://Bank.Example/Charges?t=1",
                "POST http://bank.example/Charges",
            ),
            (
                "https://u:p@bank.example:8443",
                "POST https://bank.example:8443/",
            ),
            ("http://[::1]:3000/a", "POST http://[::1]:3000/a"),
            ("/charges?t=1", "POST /charges"),
        ] {
            let request = Request::post(uri).body(()).unwrap();
            assert_eq!(Purpose::of(&request.into_parts().0).as_str(), purpose);
        }
        let patch = Request::patch("/a").body(()).unwrap().into_parts().0;
        assert_eq!(Purpose::of(&patch).as_str(), "PATCH /a");
        let named = Request::post("/a").extension(Purpose::new("b")).body(());
        assert_eq!(Purpose::of(&named.unwrap().into_parts().0).as_str(), "b");
    }
}
