//! What a proxy changes in the heads of messages, both ways.

use std::{fmt::Write as _, net::IpAddr};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, MAX_FORWARDS, TE,
        TRANSFER_ENCODING, UPGRADE, VIA,
    },
    request, response,
    uri::Authority,
};

/// How often the upstream has been asked this: 1 at first, one more at each further attempt under
/// the same key. Where no key is, there is no such header.
pub(crate) const ATTEMPT: HeaderName = HeaderName::from_static("idempotency-attempt");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What is the same for all messages.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// The name of this proxy.
    pub(crate) via: String,
    /// Whether what clients say of those before them is kept: right behind another proxy that is
    /// under the same control, and nowhere else.
    pub(crate) trust_forwarded: bool,
    pub(crate) upstream: Authority,
    /// Over HTTP/2, which has no upgrades and takes the host from elsewhere.
    pub(crate) http2: bool,
}

/// Why a request is not for this proxy to forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// It asks for a tunnel to somewhere (CONNECT).
    Connect,
    /// No host, or more than one (RFC 9112, 3.2).
    Host,
    /// An upgrade, over HTTP/2.
    Upgrade,
    /// It was to go so far and no further (RFC 9110, 7.6.2).
    LastHop,
    /// It names no path.
    Target,
    /// Its body is coded for the way, and not only in chunks (RFC 9112, 6.1).
    Coding,
}

impl Rules {
    /// Makes the head of a request into the one that the upstream gets.
    pub(crate) fn request(
        &self,
        parts: &mut request::Parts,
        client: IpAddr,
        attempt: Option<u32>,
    ) -> Result<(), Unfit> {
        if parts.method == Method::CONNECT {
            return Err(Unfit::Connect);
        }
        if parts.uri.path_and_query().is_none() {
            return Err(Unfit::Target);
        }
        let host = host(parts)?;
        let headers = &mut parts.headers;
        // Nobody has taken off what is below the chunks, and nobody behind would know of it.
        if members(headers, &TRANSFER_ENCODING)
            .any(|coding| !coding.eq_ignore_ascii_case(b"chunked"))
        {
            return Err(Unfit::Coding);
        }
        if matches!(parts.method, Method::OPTIONS | Method::TRACE) {
            go_one_further(headers)?;
        }

        let upgrade = upgrade(headers);
        let trailers = takes_trailers(headers);
        strip(headers);
        // Whoever reads a body here has told the client to send it.
        headers.remove(EXPECT);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        if let Some(protocols) = upgrade {
            if self.http2 {
                return Err(Unfit::Upgrade);
            }
            headers.insert(UPGRADE, protocols);
        }
        match (headers.contains_key(UPGRADE), trailers && !self.http2) {
            (true, _) => drop(headers.insert(CONNECTION, HeaderValue::from_static("upgrade"))),
            (false, true) => drop(headers.insert(CONNECTION, HeaderValue::from_static("te"))),
            (false, false) => {}
        }

        join_cookies(headers);
        headers.remove(HOST);
        if !self.http2
            && let Ok(upstream) = HeaderValue::from_str(self.upstream.as_str())
        {
            headers.insert(HOST, upstream);
        }
        if !self.trust_forwarded {
            drop_forwarded(headers);
        }
        append(headers, FORWARDED, &forwarded(client, host.as_ref()));
        append(headers, VIA, &self.via(parts.version));
        headers.remove(ATTEMPT);
        remove_doubles(headers);
        if let Some(attempt) = attempt {
            headers.insert(ATTEMPT, HeaderValue::from(attempt));
        }
        Ok(())
    }

    /// Makes the head of an answer into the one that the client gets.
    pub(crate) fn answer(&self, parts: &mut response::Parts) {
        let headers = &mut parts.headers;
        let upgrade = headers.get(UPGRADE).cloned();
        // Chunks win over a length that contradicts them (RFC 9112, 6.3).
        if headers.contains_key(TRANSFER_ENCODING) {
            headers.remove(CONTENT_LENGTH);
        }
        strip(headers);
        if parts.status == http::StatusCode::SWITCHING_PROTOCOLS
            && let Some(protocol) = upgrade
        {
            headers.insert(UPGRADE, protocol);
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        append(headers, VIA, &self.via(parts.version));
    }

    /// The protocol over which a message came, and who got it.
    fn via(&self, received: Version) -> String {
        let version = match received {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2",
            _ => "1.1",
        };
        format!("{version} {}", self.via)
    }
}

/// Removes what is about the connection it came over (RFC 9110, 7.6.1).
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = members(headers, &CONNECTION)
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .collect();
    let always = [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    for name in named.iter().chain(&always) {
        headers.remove(name);
    }
}

/// Removes what a server that takes `_` for `-` (CGI, WSGI) could take for what only a proxy says.
fn remove_doubles(headers: &mut HeaderMap) {
    let said = [ATTEMPT, CONTENT_LENGTH, TRANSFER_ENCODING];
    let doubles = headers.keys().filter(|name| {
        let name = name.as_str();
        let meant = name.replace('_', "-");
        name.contains('_')
            && (meant.starts_with("x-forwarded-") || said.iter().any(|said| *said == *meant))
    });
    for name in doubles.cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// The protocols that the client would rather speak, but for HTTP/2: that is for two neighbours to
/// agree on, and no proxy could follow them.
fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = members(headers, &CONNECTION).any(|name| name.eq_ignore_ascii_case(b"upgrade"));
    let protocols: Vec<_> = members(headers, &UPGRADE)
        .filter(|protocol| asked && !protocol.eq_ignore_ascii_case(b"h2c"))
        .collect();
    match protocols.is_empty() {
        true => None,
        false => HeaderValue::from_bytes(&protocols.join(&b", "[..])).ok(),
    }
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    members(headers, &TE).any(|coding| coding.eq_ignore_ascii_case(b"trailers"))
}

/// Counts this hop, where the client counts them.
fn go_one_further(headers: &mut HeaderMap) -> Result<(), Unfit> {
    let left = headers.get(MAX_FORWARDS).map(HeaderValue::to_str);
    let Some(Ok(left)) = left.map(|left| left.unwrap_or_default().parse::<u64>()) else {
        return Ok(());
    };
    let left = left.checked_sub(1).ok_or(Unfit::LastHop)?;
    headers.insert(MAX_FORWARDS, HeaderValue::from(left));
    Ok(())
}

/// The host that the client meant: in the target, or else in `Host`. HTTP/1.0 need not say.
fn host(parts: &request::Parts) -> Result<Option<Authority>, Unfit> {
    let mut lines = parts.headers.get_all(HOST).iter();
    let host = match (lines.next(), lines.next()) {
        (None, None) => None,
        (Some(host), None) => Some(host),
        _ => return Err(Unfit::Host),
    };
    let host = host.filter(|host| !host.is_empty());
    match (parts.uri.authority(), host) {
        (Some(host), _) => Ok(Some(host.clone())),
        (None, Some(host)) => {
            let host = Authority::try_from(host.as_bytes()).map_err(|_| Unfit::Host)?;
            match host.as_str().contains('@') {
                true => Err(Unfit::Host),
                false => Ok(Some(host)),
            }
        }
        (None, None) if parts.version == Version::HTTP_11 && !parts.headers.contains_key(HOST) => {
            Err(Unfit::Host)
        }
        (None, None) => Ok(None),
    }
}

/// One element of `Forwarded` (RFC 7239).
fn forwarded(client: IpAddr, host: Option<&Authority>) -> String {
    let mut element = match client.to_canonical() {
        IpAddr::V4(client) => format!("for={client}"),
        IpAddr::V6(client) => format!("for=\"[{client}]\""),
    };
    if let Some(host) = host {
        // Never the name and password that can stand before it. No quotes can be in it.
        let host = host.as_str();
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        // Writing to a `String` cannot fail.
        let _ = write!(element, ";host=\"{host}\"");
    }
    element.push_str(";proto=http");
    element
}

/// What clients could write, and only proxies should.
fn drop_forwarded(headers: &mut HeaderMap) {
    headers.remove(FORWARDED);
    let names = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-forwarded-"));
    for name in names.cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// HTTP/2 may divide them over several lines, HTTP/1.1 may not (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let lines = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
    let lines: Vec<&[u8]> = lines.collect();
    if lines.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Adds a member to a list, on one line: not every server puts several together.
fn append(headers: &mut HeaderMap, name: HeaderName, member: &str) {
    let lines = headers.get_all(&name).iter().map(HeaderValue::as_bytes);
    let mut list: Vec<&[u8]> = lines.filter(|line| !line.is_empty()).collect();
    list.push(member.as_bytes());
    // Each part was in a header before, or is made of what may be.
    if let Ok(list) = HeaderValue::from_bytes(&list.join(&b", "[..])) {
        headers.insert(name, list);
    }
}

/// The members of a comma-separated list of names, over all its lines.
fn members<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| line.as_bytes().split(|&b| b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}
