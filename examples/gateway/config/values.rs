//! What a single value means. Each error can follow the name of its option.

use std::{net::SocketAddr, time::Duration};

use bytesize::ByteSize;
use http::{HeaderName, Method, Uri, uri::Scheme};

use super::{Conflict, PathPattern, Refusals, Takeover, Unknown, mistakes::similar};

type Parsed<T> = Result<T, String>;

/// Some ten years. What is longer is a slip, and no clock has to count so far.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

pub(super) fn address(text: &str) -> Parsed<SocketAddr> {
    text.parse()
        .map_err(|_| "is an IP address and a port, as in 127.0.0.1:3000 or [::]:3000".to_owned())
}

/// The errors leave out the URL, where a password could stand.
pub(super) fn upstream(text: &str) -> Parsed<Uri> {
    const AS: &str = "as in http://127.0.0.1:4000";
    let uri: Uri = match text.parse() {
        Ok(uri) => uri,
        Err(error) => return Err(format!("is no URL: {error}; {AS}")),
    };
    let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(format!("does not begin with http://, {AS}"));
    };
    if *scheme == Scheme::HTTPS {
        return Err("is reached over http only: there is no TLS in this program".to_owned());
    }
    if *scheme != Scheme::HTTP {
        return Err(format!("does not begin with http://, {AS}"));
    }
    if authority.as_str().contains('@') {
        return Err("has a name or password in it; clients send their own credentials".to_owned());
    }
    let port = authority.port_u16().filter(|&port| port > 0);
    if authority.host().is_empty() || authority.as_str() != authority.host() && port.is_none() {
        return Err(format!("lacks a host or a port, {AS}"));
    }
    let path_and_query = uri.path_and_query().map_or("", |path| path.as_str());
    if !matches!(path_and_query, "" | "/") {
        return Err(format!(
            "has a path or a query, and the paths of requests are passed on as they are; {AS}"
        ));
    }
    Ok(uri)
}

/// Whether there is such a store. The errors name its kind and never the whole URL, which may hold
/// a password.
pub(super) fn store(url: &str) -> Parsed<String> {
    match url.strip_prefix("tiered:") {
        None => one_store(url)?,
        Some(tiers) => {
            let (near, far) = tiers.split_once(',').ok_or(
                "has one tier, and there are two: as in tiered:memory,redis://127.0.0.1:6379",
            )?;
            one_store(near)?;
            one_store(far)?;
        }
    }
    Ok(url.to_owned())
}

fn one_store(url: &str) -> Parsed<()> {
    let (kind, rest) = match url.split_once(':') {
        Some((kind, rest)) => (kind, Some(rest)),
        None => (url, None),
    };
    let (feature, built) = match (kind, rest) {
        ("memory", None) => return Ok(()),
        ("redis" | "rediss" | "redis+unix", Some(_)) => ("redis", cfg!(feature = "redis")),
        ("postgres" | "postgresql", Some(_)) => ("postgres", cfg!(feature = "postgres")),
        ("sqlite", Some("" | "//")) => {
            return Err("names no file, as in sqlite:records.db".to_owned());
        }
        ("sqlite", Some(_)) => ("sqlite", cfg!(feature = "sqlite")),
        ("tiered", Some(_)) => return Err("has tiers in a tier; there are two".to_owned()),
        _ => {
            // What has no colon could be anything; what is before one is no secret.
            let kinds = ["memory", "redis", "postgres", "sqlite", "tiered"];
            let hint = match rest {
                Some(_) => similar(kind, kinds.into_iter()),
                None => String::new(),
            };
            return Err(format!(
                "is memory, redis://…, postgres://…, sqlite:FILE or tiered:NEAR,FAR{hint}"
            ));
        }
    };
    match built {
        true => Ok(()),
        false => Err(format!(
            "names a store that this program was built without: build it with `--features {feature}`"
        )),
    }
}

pub(super) fn time(text: &str) -> Parsed<Duration> {
    match humantime::parse_duration(text.trim()) {
        Err(error) => Err(format!(
            "is no time ({error}); times are given as 30s, 5m or 1h 30m"
        )),
        Ok(Duration::ZERO) => Err("is no time at all".to_owned()),
        Ok(time) if time > LONGEST => Err("is longer than ten years".to_owned()),
        Ok(time) => Ok(time),
    }
}

pub(super) fn size(text: &str) -> Parsed<usize> {
    let size = text.trim().parse::<ByteSize>().ok();
    let bytes = size.and_then(|size| usize::try_from(size.as_u64()).ok());
    match bytes {
        None => Err("is no size; sizes are given as 65536, 64KiB or 1MiB".to_owned()),
        Some(0) => Err("is nothing at all; sizes are given as 65536, 64KiB or 1MiB".to_owned()),
        Some(bytes) => Ok(bytes),
    }
}

pub(super) fn count(text: &str) -> Parsed<usize> {
    match text.trim().parse() {
        Ok(0) | Err(_) => Err("is a whole number, at least 1".to_owned()),
        Ok(count) => Ok(count),
    }
}

pub(super) fn switch(text: &str) -> Parsed<bool> {
    text.parse().map_err(|_| "is true or false".to_owned())
}

/// RFC 9110, 7.6.3: a pseudonym is a token, or a host with a port.
pub(super) fn pseudonym(text: &str) -> Parsed<String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:[]".contains(&b);
    match !text.is_empty() && text.bytes().all(token) {
        true => Ok(text.to_owned()),
        false => Err("is a single word, or a host and a port, as in edge-1".to_owned()),
    }
}

pub(super) fn prefix(text: &str) -> Parsed<String> {
    match !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err("is a single word, as in payments".to_owned()),
    }
}

pub(super) fn path(text: &str) -> Parsed<PathPattern> {
    PathPattern::parse(text).map_err(str::to_owned)
}

/// Does not mention the value, which may be what should stand in the header.
pub(super) fn header(text: &str) -> Parsed<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| {
        "is the name of a header: letters, digits and hyphens, as in x-api-key".to_owned()
    })?;
    // These belong to a connection or to the framing, or are what proxies say, and everybody else can
    // write: no client says with them what it wants.
    let of_connections = [
        "connection",
        "content-length",
        "expect",
        "forwarded",
        "host",
        "idempotency-attempt",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
    ];
    match of_connections.contains(&name.as_str()) {
        true => Err(format!(
            "is {name}, a header of connections or proxies and of no caller"
        )),
        false => Ok(name),
    }
}

/// RFC 6901.
pub(super) fn pointer(text: &str) -> Parsed<String> {
    if !text.starts_with('/') {
        return Err("is no JSON pointer: it begins with `/`, as in /idempotency_key".to_owned());
    }
    let escape = |after: &str| after.starts_with(['0', '1']);
    match text.split('~').skip(1).all(escape) {
        true => Ok(text.to_owned()),
        false => Err("is no JSON pointer: in a name `~` is written `~0`, and `/` `~1`".to_owned()),
    }
}

pub(super) fn methods(text: &str) -> Parsed<Vec<Method>> {
    let mut methods = Vec::new();
    for name in text.split(',').map(str::trim) {
        let method = Method::from_bytes(name.as_bytes());
        let method = method.map_err(|_| format!("has `{name}` in it, which is no method"))?;
        if name.bytes().any(|b| b.is_ascii_lowercase()) {
            let capitals = name.to_ascii_uppercase();
            return Err(format!(
                "has `{name}` in it; methods are told by case: `{capitals}`"
            ));
        }
        if method.is_safe() || method == Method::CONNECT {
            return Err(format!(
                "has {method} in it, which changes nothing and is never covered"
            ));
        }
        if methods.contains(&method) {
            return Err(format!("has {method} in it twice"));
        }
        methods.push(method);
    }
    Ok(methods)
}

pub(super) fn on_conflict(text: &str) -> Parsed<Conflict> {
    match text.split_once(':') {
        None if text == "reject" => Ok(Conflict::Reject),
        None if text == "wait" => Err("lacks for how long: as in wait:30s".to_owned()),
        Some(("wait", limit)) => time(limit).map(Conflict::Wait),
        _ => {
            let hint = similar(text, ["reject", "wait"].into_iter());
            Err(format!(
                "is reject, or wait and a time, as in wait:30s{hint}"
            ))
        }
    }
}

pub(super) fn takeover(text: &str) -> Parsed<Takeover> {
    match text {
        "retry" => Ok(Takeover::Retry),
        "refuse" => Ok(Takeover::Refuse),
        _ => Err(format!(
            "is retry or refuse{}",
            similar(text, ["retry", "refuse"].into_iter())
        )),
    }
}

pub(super) fn unknown(text: &str) -> Parsed<Unknown> {
    match text {
        "retry" => Ok(Unknown::Retry),
        "keep" => Ok(Unknown::Keep),
        _ => Err(format!(
            "is retry or keep{}",
            similar(text, ["retry", "keep"].into_iter())
        )),
    }
}

pub(super) fn refusals(text: &str) -> Parsed<Refusals> {
    match text {
        "problem" => Ok(Refusals::Problem),
        "stripe" => Ok(Refusals::Stripe),
        _ => Err(format!(
            "is problem or stripe{}",
            similar(text, ["problem", "stripe"].into_iter())
        )),
    }
}
