//! From what was given to a [`Config`]: every option has its parser here, and what several of them
//! say together is checked.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http::{Method, Uri};

use super::{
    Config, Key, Route, ScopeBy,
    file::File,
    mistakes::Mistakes,
    options::{At, Given, Set, named},
    values,
};

/// The least lease. Less could not be renewed in time over a network.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);

/// What one part was given, and where its mistakes go.
struct Reader<'a> {
    set: &'a Set,
    /// Where the part begins.
    at: &'a At,
    mistakes: &'a mut Mistakes,
}

impl Reader<'_> {
    fn given(&self, name: &str) -> Option<&Given> {
        self.set.get(name)
    }

    /// The value of an option; none where it was not given, or wrongly.
    fn optional<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Given { text, at } = self.set.get(name)?;
        let parsed = parse(text);
        parsed
            .map_err(|told| self.mistakes.add(at, name, told))
            .ok()
    }

    /// The value of an option, or its default. That stands in for a wrong one, too, so that the
    /// other mistakes can be found.
    fn get<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let default = || {
            let default = named(name).and_then(|option| option.default);
            parse(default.expect("a default")).expect("a default is right")
        };
        self.optional(name, &parse).unwrap_or_else(default)
    }

    /// The name of an option, as it is written here.
    fn name(&self, name: &str) -> String {
        self.at.name(name)
    }

    /// Adds what is wrong about an option; where that was not given, about the part.
    fn wrong(&mut self, name: &str, told: impl Into<String>) {
        let at = self.set.get(name).map_or(self.at, |given| &given.at);
        self.mistakes.add(at, name, told.into());
    }
}

/// Makes sense of what was given. `demo` says whether a gateway without an upstream is one to try.
pub(super) fn config(
    flags: &Set,
    route_flags: &Set,
    file: File,
    demo: bool,
    mistakes: &mut Mistakes,
) -> Config {
    let mut gateway = file.gateway;
    gateway.extend(flags.clone());

    let routes = match &*file.routes {
        [] => vec![(At::CommandLine, route_flags.clone())],
        routes => {
            for (name, given) in route_flags {
                let told = "is for a gateway of one route, and the file has routes of its own";
                mistakes.add(&given.at, name, told.to_owned());
            }
            routes.to_vec()
        }
    };
    let demo = demo && !gateway.contains_key("upstream");
    let mut reader = Reader {
        set: &gateway,
        at: &At::CommandLine,
        mistakes,
    };
    let upstream = reader.optional("upstream", values::upstream);
    if upstream.is_none() && reader.given("upstream").is_none() && !demo {
        let told = "is not given: which service is behind the gateway? As in http://127.0.0.1:4000";
        reader.wrong("upstream", told);
    }
    let listen = reader.get("listen", values::address);
    if upstream
        .as_ref()
        .is_some_and(|uri| is_reached_at(listen, uri))
    {
        reader.wrong(
            "upstream",
            format!("is the gateway itself, which listens on {listen}"),
        );
    }
    let buffer_limit = reader.get("buffer-limit", values::size);
    let config = Config {
        demo,
        listen,
        // For a demo, and where it is wrong.
        upstream: upstream.unwrap_or(Uri::from_static("http://127.0.0.1:0")),
        store: reader.get("store", values::store),
        prefix: reader.get("prefix", values::prefix),
        upstream_http2: reader.get("upstream-http2", values::switch),
        connect_timeout: reader.get("connect-timeout", values::time),
        upstream_timeout: reader.get("upstream-timeout", values::time),
        idle_timeout: reader.get("idle-timeout", values::time),
        drain_timeout: reader.get("drain-timeout", values::time),
        max_connections: reader.get("max-connections", values::count),
        header_read_timeout: reader.get("header-read-timeout", values::time),
        via: reader.get("via", values::pseudonym),
        trust_forwarded: reader.get("trust-forwarded", values::switch),
        buffer_limit,
        routes: Vec::new(),
    };
    let read = routes.iter().map(|(at, set)| {
        let mut reader = Reader { set, at, mistakes };
        let route = route(&mut reader, demo, buffer_limit);
        (at, route)
    });
    let routes: Vec<_> = read.collect();
    // Where a route is not what it was meant to be, it may seem to take what it does not.
    if mistakes.is_empty() {
        unreachable(&routes, mistakes);
    }
    Config {
        routes: routes.into_iter().map(|(_, route)| route).collect(),
        ..config
    }
}

/// Whether a URL leads to this address, as far as that can be told without asking for names.
fn is_reached_at(address: SocketAddr, uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    let here = match ip {
        Ok(ip) => ip == address.ip() || address.ip().is_unspecified() && ip.is_loopback(),
        Err(_) => {
            let ip = address.ip();
            host.eq_ignore_ascii_case("localhost") && (ip.is_loopback() || ip.is_unspecified())
        }
    };
    here && uri.port_u16().unwrap_or(80) == address.port()
}

fn route(reader: &mut Reader<'_>, demo: bool, buffer_limit: usize) -> Route {
    let key_header = reader.get("key-header", values::header);
    let key = match reader.optional("key-json", values::pointer) {
        None => Key::Header(key_header.clone()),
        Some(pointer) => Key::Json(pointer),
    };
    if reader.given("key-json").is_some() && reader.given("key-header").is_some() {
        reader.wrong(
            "key-json",
            "is given beside `key-header`: a key stands in one place",
        );
    }

    let single_tenant = reader.get("single-tenant", values::switch);
    let scope = match reader.optional("scope-header", values::header) {
        Some(name) => ScopeBy::Header(name),
        None => ScopeBy::SingleTenant,
    };
    match reader.given("scope-header") {
        Some(_) if single_tenant => {
            let other = reader.name("scope-header");
            let told = format!("is given beside {other}: callers are told apart, or they are not");
            reader.wrong("single-tenant", told);
        }
        None if !single_tenant && !demo => {
            let told = format!(
                "or {} is needed: without one, whoever guesses another's key would get the other's \
                 answer",
                reader.name("single-tenant")
            );
            reader.wrong("scope-header", told);
        }
        Some(_) | None => {}
    }
    if matches!((&key, &scope), (Key::Header(key), ScopeBy::Header(scope)) if key == scope) {
        let told = "is the header with the key: then each key would be a caller of its own";
        reader.wrong("scope-header", told);
    }

    let found = reader.mistakes.len();
    let (ttl, lease) = (
        reader.get("ttl", values::time),
        reader.get("lease", values::time),
    );
    if lease < SHORTEST_LEASE {
        reader.wrong(
            "lease",
            "is less than 100ms, and could not be renewed in time",
        );
    }
    if ttl < lease && reader.mistakes.len() == found {
        let told = format!(
            "is less than the lease ({}): a record would be gone while its request may still run",
            humantime::format_duration(lease)
        );
        reader.wrong("ttl", told);
    }
    let body_limit = reader.get("body-limit", values::size);
    if body_limit > buffer_limit {
        let told = "is more than the limit for all bodies together: the greatest would never pass";
        reader.wrong("body-limit", told);
    }
    Route {
        path: reader.get("path", values::path),
        methods: reader.get("methods", values::methods),
        key,
        required: reader.get("require-key", values::switch),
        scope,
        ttl,
        on_conflict: reader.get("on-conflict", values::on_conflict),
        body_limit,
        takeover: reader.get("takeover", values::takeover),
        unknown: reader.get("unknown", values::unknown),
        refusals: reader.get("refusals", values::refusals),
        lease,
    }
}

/// Tells of routes that no request can come to, or not with some of their methods.
fn unreachable(routes: &[(&At, Route)], mistakes: &mut Mistakes) {
    for (index, (at, route)) in routes.iter().enumerate() {
        for (before, earlier) in routes.iter().take(index) {
            if !earlier.path.includes(&route.path) {
                continue;
            }
            let methods = route.methods.iter();
            let taken = methods.filter(|method| earlier.methods.contains(method));
            let taken = taken.map(Method::as_str).collect::<Vec<_>>().join(", ");
            if taken.is_empty() {
                continue;
            }
            let line = match before {
                At::CommandLine => String::new(),
                At::Line(line) => format!(" in line {line}"),
            };
            let (path, other) = (&route.path, &earlier.path);
            let why = match other.matches(path.base()) {
                true => "",
                false => "; the case of letters and a slash at the end make no difference",
            };
            let told = format!(
                "the route for {path} gets no {taken}: the one for {other}{line} comes first and \
                 takes all of it{why}"
            );
            mistakes.add(at, "", told);
            break;
        }
    }
}
