//! Where a request goes: its original target, its endpoint's name, and whether it leaves HTTP.

use http::{HeaderMap, HeaderName, Method, Uri, header, request::Parts};
use sha2::{Digest, Sha256};

/// The target as the client sent it.
///
/// axum's nested routers cut their own prefix off the URI, so that siblings see the same path.
/// With the feature `axum` the URI that the outermost router saw counts (U09).
pub(crate) fn target(parts: &Parts) -> &Uri {
    #[cfg(feature = "axum")]
    if let Some(axum::extract::OriginalUri(uri)) = parts.extensions.get() {
        return uri;
    }
    &parts.uri
}

/// A name for method and path.
pub(crate) fn endpoint(parts: &Parts) -> [u8; 16] {
    let mut sha = Sha256::new();
    for part in [parts.method.as_str(), target(parts).path()] {
        sha.update((part.len() as u64).to_be_bytes());
        sha.update(part);
    }
    let digest: [u8; 32] = sha.finalize().into();
    let mut name = [0; 16];
    name.copy_from_slice(&digest[..16]);
    name
}

/// Whether the connection may stop to speak HTTP with this request, so that there is no answer to
/// record.
///
/// An offer of `h2c` alone does not count: Java's `HttpClient` makes it with an ordinary POST.
pub(crate) fn is_upgrade(parts: &Parts) -> bool {
    if parts.method == Method::CONNECT {
        return true;
    }
    members(&parts.headers, &header::CONNECTION)
        .any(|option| option.eq_ignore_ascii_case(b"upgrade"))
        && members(&parts.headers, &header::UPGRADE)
            .any(|protocol| !protocol.eq_ignore_ascii_case(b"h2c"))
}

/// The members of a comma-separated header, over all its lines.
fn members<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| line.as_bytes().split(|&b| b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let request = headers
            .iter()
            .fold(Request::builder(), |request, (name, value)| {
                request.header(*name, *value)
            });
        request
            .method(method)
            .uri(uri)
            .body(())
            .unwrap()
            .into_parts()
            .0
    }

    #[test]
    fn an_endpoint_is_method_and_path() {
        let name = |method, uri| endpoint(&parts(method, uri, &[]));
        assert_eq!(name("POST", "/a"), name("POST", "http://host/a?q"));
        assert_ne!(name("POST", "/a"), name("PATCH", "/a"));
        assert_ne!(name("POST", "/a"), name("POST", "/a/"));
        assert_ne!(name("POST", "/a"), name("POST", "/A"));
    }

    /// U09: inside nested routers the path that the client sent counts.
    #[cfg(feature = "axum")]
    #[test]
    fn u09_the_original_uri_counts() {
        let nested = |original: &'static str| {
            let mut parts = parts("POST", "/pay", &[]);
            let original = axum::extract::OriginalUri(Uri::from_static(original));
            parts.extensions.insert(original);
            parts
        };
        assert_eq!(target(&nested("/v1/pay?a")).path(), "/v1/pay");
        assert_ne!(endpoint(&nested("/v1/pay")), endpoint(&nested("/v2/pay")));
    }

    #[test]
    fn upgrades_are_told_from_offers_of_h2c() {
        let upgrade = |headers: &[(&str, &str)]| is_upgrade(&parts("POST", "/", headers));
        assert!(upgrade(&[
            ("connection", "Upgrade"),
            ("upgrade", "websocket")
        ]));
        assert!(upgrade(&[
            ("connection", "close, upgrade"),
            ("upgrade", "h2c, TCP")
        ]));
        assert!(upgrade(&[
            ("connection", "HTTP2-Settings"),
            ("connection", "Upgrade"),
            ("upgrade", "h2c"),
            ("upgrade", "x"),
        ]));
        assert!(!upgrade(&[
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c")
        ]));
        assert!(!upgrade(&[("upgrade", "websocket")]));
        assert!(!upgrade(&[("connection", "upgrade")]));
        assert!(!upgrade(&[("connection", "upgrade"), ("upgrade", ", ")]));
        assert!(!upgrade(&[("connection", "not-upgrade"), ("upgrade", "x")]));
        assert!(is_upgrade(&parts("CONNECT", "host:1", &[])));
    }
}
