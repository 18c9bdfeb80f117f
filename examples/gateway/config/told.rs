//! A configuration in words: what `--check` prints.

use std::fmt;

use bytesize::ByteSize;
use http::Method;
use humantime::format_duration as time;

use super::{Config, Conflict, Key, Refusals, Route, ScopeBy, Takeover, Unknown};

/// No secrets: a store is named by its kind alone.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "listens on {}, for up to {} clients; closes a connection that is idle for {}, or on \
             which the head of a request takes longer than {}",
            self.listen,
            self.max_connections,
            time(self.idle_timeout),
            time(self.header_read_timeout),
        )?;
        match self.demo {
            true => writeln!(
                f,
                "passes requests on to a small service of its own, to try it with"
            )?,
            false => {
                let version = if self.upstream_http2 { "2" } else { "1.1" };
                writeln!(
                    f,
                    "passes requests on to {} over HTTP/{version}",
                    self.upstream
                )?;
            }
        }
        writeln!(
            f,
            "  502 where no connection is made in {}, 504 where no answer begins in {}",
            time(self.connect_timeout),
            time(self.upstream_timeout),
        )?;
        let forwarded = match self.trust_forwarded {
            true => "added to what has come",
            false => "what has come is dropped",
        };
        writeln!(
            f,
            "  calls itself {} in Via; Forwarded: {forwarded}",
            self.via
        )?;
        let store = match self.store.strip_prefix("tiered:") {
            Some(tiers) => tiers
                .split(',')
                .map(kind)
                .collect::<Vec<_>>()
                .join(", then "),
            None => kind(&self.store).to_owned(),
        };
        let buffer_limit = bytes(self.buffer_limit);
        writeln!(
            f,
            "keeps records in: {store}; bodies in memory: up to {buffer_limit} at once"
        )?;
        writeln!(f, "  their names begin with {}", self.prefix)?;
        if self.store == "memory" {
            writeln!(
                f,
                "  they end with this process, and other gateways do not see them"
            )?;
        }
        writeln!(
            f,
            "stops when all is finished, but after {} anyway",
            time(self.drain_timeout)
        )?;
        writeln!(f, "covers, by the first that fits:")?;
        for (number, route) in (1..).zip(&self.routes) {
            writeln!(f, "{number}. {route}")?;
        }
        writeln!(f, "all else streams through untouched")
    }
}

/// In words, too, since a store's URL may hold a password.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn kind(url: &str) -> &str {
    url.split(':').next().unwrap_or_default()
}

fn bytes(bytes: usize) -> String {
    ByteSize::b(u64::try_from(bytes).unwrap_or(u64::MAX))
        .display()
        .iec()
        .to_string()
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let methods: Vec<_> = self.methods.iter().map(Method::as_str).collect();
        writeln!(f, "{} {}", methods.join(", "), self.path)?;
        let without = match self.required {
            true => "refused with 400",
            false => "passed on untouched",
        };
        match &self.key {
            Key::Header(name) => write!(f, "   key: the header {name}")?,
            Key::Json(pointer) => write!(f, "   key: {pointer} in the JSON body")?,
        }
        writeln!(f, "; without one: {without}")?;
        match &self.scope {
            ScopeBy::Header(name) => {
                writeln!(
                    f,
                    "   callers: told apart by {name}; without it: refused with 403"
                )?;
            }
            ScopeBy::SingleTenant => {
                writeln!(
                    f,
                    "   callers: all are one, and may see each other's answers"
                )?;
            }
        }
        writeln!(f, "   an answer is replayed for {}", time(self.ttl))?;
        match self.on_conflict {
            Conflict::Reject => writeln!(f, "   while the first request runs: 409")?,
            Conflict::Wait(limit) => writeln!(
                f,
                "   while the first request runs: its answer, or 409 after {}",
                time(limit)
            )?,
        }
        let lease = time(self.lease);
        match self.takeover {
            Takeover::Retry => {
                writeln!(
                    f,
                    "   after a crash: a retry is sent once more, {lease} later"
                )?;
            }
            Takeover::Refuse => {
                writeln!(f, "   after a crash: 409 until somebody has looked")?;
            }
        }
        match self.unknown {
            Unknown::Retry => writeln!(f, "   outcome unknown: a retry is sent once more")?,
            Unknown::Keep => writeln!(f, "   outcome unknown: a retry gets the same failure")?,
        }
        match self.refusals {
            Refusals::Problem => writeln!(f, "   refusals: problem documents")?,
            Refusals::Stripe => writeln!(f, "   refusals: errors as Stripe has them")?,
        }
        write!(f, "   bodies with a key: up to {}", bytes(self.body_limit))
    }
}
