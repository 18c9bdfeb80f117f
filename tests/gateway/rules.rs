//! The rules of heads by themselves.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue, Method, Version, request::Parts};

use crate::forward::{Rules, Unfit};

fn rules() -> Rules {
    Rules {
        via: "gate".to_owned(),
        trust_forwarded: false,
        upstream: "10.0.0.1:4000".parse().unwrap(),
        http2: false,
    }
}

const CLIENT: &str = "192.0.2.7";

fn parts(method: Method, uri: &str, lines: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri.parse().unwrap();
    for (name, value) in lines {
        let name: HeaderName = name.parse().unwrap();
        let value = HeaderValue::from_str(value).unwrap();
        request.headers_mut().append(name, value);
    }
    request.into_parts().0
}

fn get(lines: &[(&str, &str)]) -> Parts {
    let mut parts = parts(Method::GET, "/", lines);
    let host = HeaderValue::from_static("shop.example");
    parts.headers.entry("host").or_insert(host);
    parts
}

fn apply(rules: &Rules, parts: &mut Parts, client: &str) -> Result<(), Unfit> {
    let client: IpAddr = client.parse().unwrap();
    rules.request(parts, client, None)
}

fn lines<'a>(parts: &'a Parts, name: &str) -> Vec<&'a str> {
    let lines = parts.headers.get_all(name).iter();
    lines.map(|line| line.to_str().unwrap()).collect()
}

/// RFC 9110, 7.6.1: what is about the connection goes, and what it names.
#[test]
fn connection_headers_go() {
    let mut parts = get(&[
        ("connection", "close, X-One"),
        ("connection", "x-two,,"),
        ("x-one", "1"),
        ("x-one", "1 again"),
        ("x-two", "2"),
        ("x-three", "3"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("te", "gzip"),
        ("expect", "100-continue"),
    ]);
    apply(&rules(), &mut parts, CLIENT).unwrap();
    let mut left: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["forwarded", "host", "via", "x-three"]);
    assert_eq!(lines(&parts, "host"), ["10.0.0.1:4000"]);
}

/// What `Connection` names cannot take away what the gateway itself says.
#[test]
fn nobody_can_have_the_gateways_own_lines_removed() {
    let named = "host, via, forwarded, idempotency-attempt, te";
    let mut parts = get(&[("connection", named), ("te", "trailers")]);
    let client = CLIENT.parse().unwrap();
    rules().request(&mut parts, client, Some(3)).unwrap();
    assert_eq!(lines(&parts, "idempotency-attempt"), ["3"]);
    for name in ["host", "via", "forwarded", "te"] {
        assert_eq!(lines(&parts, name).len(), 1, "{name}");
    }
}

/// gRPC does not work without `TE: trailers`.
#[test]
fn trailers_may_come() {
    for (http2, connection) in [(true, &[][..]), (false, &["te"])] {
        let rules = Rules { http2, ..rules() };
        let mut parts = get(&[("te", "gzip, Trailers")]);
        apply(&rules, &mut parts, CLIENT).unwrap();
        assert_eq!(lines(&parts, "te"), ["trailers"]);
        assert_eq!(lines(&parts, "connection"), connection);
    }
}

/// RFC 9110, 7.8: an upgrade is for the next hop, and is offered to the one after it by the gateway;
/// HTTP/2 is never.
#[test]
fn upgrades_are_offered_anew() {
    let offer = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "h2c, websocket"),
    ];
    let mut parts = get(&offer);
    apply(&rules(), &mut parts, CLIENT).unwrap();
    assert_eq!(lines(&parts, "upgrade"), ["websocket"]);
    assert_eq!(lines(&parts, "connection"), ["upgrade"]);
    let http2 = Rules {
        http2: true,
        ..rules()
    };
    assert_eq!(apply(&http2, &mut get(&offer), CLIENT), Err(Unfit::Upgrade));

    for ignored in [
        [
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c"),
        ],
        [("connection", "keep-alive"), ("upgrade", "websocket")],
    ] {
        let mut parts = get(&ignored);
        apply(&http2, &mut parts, CLIENT).unwrap();
        apply(&rules(), &mut get(&ignored), CLIENT).unwrap();
        assert!(lines(&parts, "upgrade").is_empty());
    }
}

/// RFC 9110, 7.6.3: over which protocol it came, and to whom.
#[test]
fn via_says_the_way() {
    for (version, says) in [
        (Version::HTTP_10, "1.0 gate"),
        (Version::HTTP_11, "1.1 gate"),
        (Version::HTTP_2, "2 gate"),
    ] {
        let mut parts = get(&[]);
        parts.version = version;
        apply(&rules(), &mut parts, CLIENT).unwrap();
        assert_eq!(lines(&parts, "via"), [says]);
    }
    let mut parts = get(&[("via", "1.0 fred"), ("via", "1.1 p.example (a, b)")]);
    apply(&rules(), &mut parts, CLIENT).unwrap();
    assert_eq!(
        lines(&parts, "via"),
        ["1.0 fred, 1.1 p.example (a, b), 1.1 gate"]
    );
}

/// RFC 9113, 8.2.3: what HTTP/2 divides is one line over HTTP/1.1.
#[test]
fn cookies_are_one_line() {
    let mut parts = get(&[("cookie", "a=1"), ("cookie", "b=2; c=3")]);
    apply(&rules(), &mut parts, CLIENT).unwrap();
    assert_eq!(lines(&parts, "cookie"), ["a=1; b=2; c=3"]);
}

/// RFC 7239: who asked, and for which host. What a client says of those before it counts only where
/// it is told to.
#[test]
fn forwarded_is_the_gateways_own() {
    let came = [
        ("forwarded", "for=1.2.3.4;host=\"a,b\""),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "bank.example"),
        ("x-forwarded-host", "shop.example"),
        ("x-forwarded-prefix", "/admin"),
    ];
    let own = "for=192.0.2.7;host=\"shop.example\";proto=http";
    let mut parts = get(&came);
    apply(&rules(), &mut parts, CLIENT).unwrap();
    assert_eq!(lines(&parts, "forwarded"), [own]);
    for (name, _) in &came[1..] {
        assert!(lines(&parts, name).is_empty(), "{name}");
    }

    let trusting = Rules {
        trust_forwarded: true,
        ..rules()
    };
    let mut parts = get(&came);
    apply(&trusting, &mut parts, CLIENT).unwrap();
    let both = format!("for=1.2.3.4;host=\"a,b\", {own}");
    assert_eq!(lines(&parts, "forwarded"), [both]);
    assert_eq!(lines(&parts, "x-forwarded-for"), ["1.2.3.4"]);

    for (client, says) in [
        ("2001:db8::1", "for=\"[2001:db8::1]\""),
        // IPv4 over a socket for both.
        ("::ffff:192.0.2.7", "for=192.0.2.7"),
    ] {
        let mut parts = get(&[("host", "[::1]:3000")]);
        apply(&rules(), &mut parts, client).unwrap();
        let says = format!("{says};host=\"[::1]:3000\";proto=http");
        assert_eq!(lines(&parts, "forwarded"), [says]);
    }
}

/// RFC 9112, 3.2: one host, in the target or in its header.
#[test]
fn a_request_names_one_host() {
    let host = |uri: &str, version, lines: &[(&str, &str)]| {
        let mut parts = parts(Method::GET, uri, lines);
        parts.version = version;
        apply(&rules(), &mut parts, CLIENT)?;
        let forwarded = super::rules::lines(&parts, "forwarded")[0].to_owned();
        let host = forwarded
            .split(';')
            .find_map(|part| part.strip_prefix("host="));
        Ok(host.map(|host| host.trim_matches('"').to_owned()))
    };
    let (old, new) = (Version::HTTP_10, Version::HTTP_11);
    assert_eq!(host("/", old, &[]), Ok(None));
    assert_eq!(host("/", new, &[("host", "")]), Ok(None));
    assert_eq!(host("/", new, &[]), Err(Unfit::Host));
    assert_eq!(
        host("/", new, &[("host", "a"), ("host", "a")]),
        Err(Unfit::Host)
    );
    for wrong in ["a b", "a\"", "u@a", "a/b", "a,b\""] {
        assert_eq!(
            host("/", new, &[("host", wrong)]),
            Err(Unfit::Host),
            "{wrong}"
        );
    }
    // The target counts before the header, and never with a name and a password.
    let whole = host("http://u:p@a.example:80/", new, &[("host", "b")]);
    assert_eq!(whole, Ok(Some("a.example:80".to_owned())));
    let second = host("http://a.example/", Version::HTTP_2, &[]);
    assert_eq!(second, Ok(Some("a.example".to_owned())));
}

/// RFC 9110, 7.6.2.
#[test]
fn max_forwards_are_counted() {
    for method in [Method::OPTIONS, Method::TRACE] {
        for (came, goes) in [("2", Ok("1")), ("0", Err(Unfit::LastHop)), ("x", Ok("x"))] {
            let lines = [("host", "a"), ("max-forwards", came)];
            let mut parts = parts(method.clone(), "/", &lines);
            let gone = apply(&rules(), &mut parts, CLIENT);
            let gone = gone.map(|()| super::rules::lines(&parts, "max-forwards")[0]);
            assert_eq!(gone, goes, "{method} {came}");
        }
    }
    let mut parts = get(&[("max-forwards", "0")]);
    apply(&rules(), &mut parts, CLIENT).unwrap();
    assert_eq!(lines(&parts, "max-forwards"), ["0"]);
}

/// The number of an attempt is the gateway's to tell.
#[test]
fn nobody_else_counts_attempts() {
    let mut parts = get(&[("idempotency-attempt", "7")]);
    apply(&rules(), &mut parts, CLIENT).unwrap();
    assert!(lines(&parts, "idempotency-attempt").is_empty());
}

/// To a server that makes `HTTP_…` of names, `_` and `-` are one: what a proxy says has no double, and
/// what a client says for itself may be called as it likes.
#[test]
fn nobody_else_says_it_with_underscores() {
    let doubles = [
        "idempotency_attempt",
        "x_forwarded_for",
        "x-forwarded_for",
        "content_length",
        "transfer_encoding",
    ];
    for trust_forwarded in [false, true] {
        let lines: Vec<_> = doubles.iter().map(|name| (*name, "1")).collect();
        let mut parts = get(&lines);
        let own = HeaderValue::from_static("2");
        parts.headers.insert("x_request_id", own);
        let rules = Rules {
            trust_forwarded,
            ..rules()
        };
        apply(&rules, &mut parts, CLIENT).unwrap();
        for name in doubles {
            assert!(super::rules::lines(&parts, name).is_empty(), "{name}");
        }
        assert_eq!(super::rules::lines(&parts, "x_request_id"), ["2"]);
    }
}

/// RFC 9112, 6.1: a coding that is not undone here would be lost.
#[test]
fn chunks_and_no_other_coding() {
    for (lines, goes) in [
        (&["chunked"][..], Ok(())),
        (&["Chunked"], Ok(())),
        (&["gzip, chunked"], Err(Unfit::Coding)),
        (&["gzip", "chunked"], Err(Unfit::Coding)),
    ] {
        let lines: Vec<_> = lines
            .iter()
            .map(|line| ("transfer-encoding", *line))
            .collect();
        assert_eq!(apply(&rules(), &mut get(&lines), CLIENT), goes, "{lines:?}");
    }
}

/// A tunnel to wherever the client wants is not this gateway's to give.
#[test]
fn no_tunnels() {
    let mut parts = parts(
        Method::CONNECT,
        "bank.example:443",
        &[("host", "bank.example")],
    );
    assert_eq!(apply(&rules(), &mut parts, CLIENT), Err(Unfit::Connect));
}
