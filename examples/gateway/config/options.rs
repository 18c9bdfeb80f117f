//! The options: each has one name, on the command line and in the file, and one default.

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};

/// Where an option belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Gateway,
    /// In the file once for each route; on the command line for the only one.
    Route,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    /// Several texts; on the command line with commas between.
    List,
    /// On, or off.
    Switch,
}

#[derive(Debug)]
pub(crate) struct Opt {
    pub(crate) name: &'static str,
    pub(crate) part: Part,
    pub(crate) kind: Kind,
    value: &'static str,
    /// As it would be given. None where the option has to be given, or says nothing if it is not.
    pub(crate) default: Option<&'static str>,
    help: &'static str,
}

const fn opt(
    part: Part,
    name: &'static str,
    value: &'static str,
    default: Option<&'static str>,
    help: &'static str,
) -> Opt {
    Opt {
        name,
        part,
        kind: Kind::Text,
        value,
        default,
        help,
    }
}

const fn switch(part: Part, name: &'static str, help: &'static str) -> Opt {
    Opt {
        kind: Kind::Switch,
        ..opt(part, name, "", Some("false"), help)
    }
}

use Part::{Gateway, Route};

/// All of them. Their parsers are in `read`.
pub(crate) const OPTIONS: &[Opt] = &[
    opt(
        Gateway,
        "listen",
        "IP:PORT",
        Some("127.0.0.1:3000"),
        "Where to listen; with port 0 on a free port, which is printed.",
    ),
    opt(
        Gateway,
        "upstream",
        "URL",
        None,
        "The service behind the gateway, as http://HOST:PORT. Without it (and without a file) a \
         small one is started, to try the gateway with.",
    ),
    switch(
        Gateway,
        "upstream-http2",
        "Speak HTTP/2 with the service, without asking it first: for gRPC, with the feature grpc.",
    ),
    opt(
        Gateway,
        "store",
        "URL",
        Some("memory"),
        "Where the records are kept: memory, redis://…, postgres://…, sqlite:FILE, or \
         tiered:NEAR,FAR, two of these. Gateways that share a store share its records.",
    ),
    opt(
        Gateway,
        "prefix",
        "NAME",
        Some("idem"),
        "What the name of each record begins with. Gateways before different services that share a \
         store need one each: otherwise they would give each other's answers.",
    ),
    opt(
        Gateway,
        "connect-timeout",
        "TIME",
        Some("5s"),
        "How long a connection to the service may take to be made. Then: 502, nothing was done.",
    ),
    opt(
        Gateway,
        "upstream-timeout",
        "TIME",
        Some("60s"),
        "How long the head of the service's answer may take. Then: 504, and it is not known what \
         was done.",
    ),
    opt(
        Gateway,
        "idle-timeout",
        "TIME",
        Some("60s"),
        "How long a connection stays open on which nothing happens, on either side.",
    ),
    opt(
        Gateway,
        "header-read-timeout",
        "TIME",
        Some("30s"),
        "How long the head of a request may take to arrive.",
    ),
    opt(
        Gateway,
        "drain-timeout",
        "TIME",
        Some("30s"),
        "How long a stop waits for what runs.",
    ),
    opt(
        Gateway,
        "max-connections",
        "N",
        Some("10000"),
        "How many clients may be connected at once. More wait to be let in.",
    ),
    opt(
        Gateway,
        "buffer-limit",
        "SIZE",
        Some("256MiB"),
        "The bodies of all requests under keys and of their answers together, in memory. At the \
         limit a request under a key gets 503.",
    ),
    opt(
        Gateway,
        "via",
        "NAME",
        Some("tower-idempotency"),
        "What the gateway calls itself in Via.",
    ),
    switch(
        Gateway,
        "trust-forwarded",
        "Keep what Forwarded and X-Forwarded-* say already: right behind another proxy of yours, \
         and nowhere else.",
    ),
    opt(
        Route,
        "path",
        "PATH",
        Some("/*"),
        "Which paths are covered: /v1/payments is that one, /v1/* is /v1 and all below it.",
    ),
    Opt {
        kind: Kind::List,
        ..opt(
            Route,
            "methods",
            "METHODS",
            Some("POST,PATCH"),
            "Which methods are covered.",
        )
    },
    opt(
        Route,
        "key-header",
        "NAME",
        Some("idempotency-key"),
        "The header with the key.",
    ),
    opt(
        Route,
        "key-json",
        "POINTER",
        None,
        "Where the key stands in a JSON body, instead of a header, as /idempotency_key (RFC 6901). \
         Every body is read for it, also one that has none.",
    ),
    switch(
        Route,
        "require-key",
        "Refuse requests that have no key, with 400. Otherwise they stream through.",
    ),
    opt(
        Route,
        "scope-header",
        "NAME",
        None,
        "The header that tells callers apart, as x-api-key. A caller gets only answers of its own. \
         Not for tokens that are renewed between two tries.",
    ),
    switch(
        Route,
        "single-tenant",
        "Callers are not told apart: everybody who reaches the gateway may see every answer.",
    ),
    opt(
        Route,
        "ttl",
        "TIME",
        Some("24h"),
        "How long an answer can be replayed.",
    ),
    opt(
        Route,
        "lease",
        "TIME",
        Some("30s"),
        "How long a key stays taken whose gateway died.",
    ),
    opt(
        Route,
        "on-conflict",
        "reject|wait:TIME",
        Some("reject"),
        "What a duplicate meets while the first request still runs: 409, or its answer, if that \
         comes in this time.",
    ),
    opt(
        Route,
        "takeover",
        "retry|refuse",
        Some("retry"),
        "What a request meets whose gateway died under it: it is sent once more, or refused with \
         409 until somebody has looked.",
    ),
    opt(
        Route,
        "unknown",
        "retry|keep",
        Some("retry"),
        "What becomes of a key where it is not known what the service did (502, 504, and each 5xx \
         and 408 of its own): a retry is sent once more, or gets the same failure again.",
    ),
    opt(
        Route,
        "refusals",
        "problem|stripe",
        Some("problem"),
        "The form of what the gateway itself answers: problem documents (RFC 9457), or errors as \
         Stripe's API has them, for its libraries.",
    ),
    opt(
        Route,
        "body-limit",
        "SIZE",
        Some("1MiB"),
        "The greatest body of a request with a key. A greater one gets 413.",
    ),
];

/// The option of this name.
pub(crate) fn named(name: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|option| option.name == name)
}

/// A value, as it was given.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// Of a list, with commas between.
    pub(crate) text: String,
    pub(crate) at: At,
}

/// Where something was given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum At {
    CommandLine,
    Line(usize),
}

impl At {
    /// The name of an option, as it is written there.
    pub(crate) fn name(&self, name: &str) -> String {
        match self {
            Self::CommandLine => format!("`--{name}`"),
            Self::Line(_) => format!("`{name}`"),
        }
    }
}

/// What was given for one part.
pub(crate) type Set = BTreeMap<&'static str, Given>;

/// The command line.
pub(crate) fn command() -> Command {
    let mut command = Command::new("gateway")
        .about("A reverse proxy that gives idempotency to a service in any language.")
        .after_help("Times are given as 30s, 5m or 1h 30m, sizes as 65536, 64KiB or 1MiB.")
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .help("Read options from this file; the command line wins. gateway.toml beside the source has all of them."),
        )
        .arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .help("Read the configuration, say what it means, and end."),
        );
    for option in OPTIONS {
        let arg = Arg::new(option.name)
            .long(option.name)
            .help(help(option))
            .help_heading(match option.part {
                Gateway => "Gateway",
                Route => "What is covered, and how (where the file has no routes)",
            });
        let arg = match option.kind {
            Kind::Switch => arg.action(ArgAction::SetTrue),
            // The last one counts, as with other programs: a script can end with `"$@"`.
            Kind::Text | Kind::List => arg
                .value_name(option.value)
                .action(ArgAction::Set)
                .overrides_with(option.name),
        };
        command = command.arg(match option.name {
            "listen" => arg.visible_alias("addr"),
            _ => arg,
        });
    }
    command
}

fn help(option: &Opt) -> String {
    match (option.kind, option.default) {
        (Kind::Text | Kind::List, Some(default)) => format!("{} [default: {default}]", option.help),
        _ => option.help.to_owned(),
    }
}

/// What the command line gives for one part.
pub(crate) fn from_flags(matches: &ArgMatches, part: Part) -> Set {
    let given = |option: &Opt| {
        let name = option.name;
        if matches.value_source(name) != Some(ValueSource::CommandLine) {
            return None;
        }
        match option.kind {
            Kind::Switch => Some("true".to_owned()),
            Kind::Text | Kind::List => matches.get_one::<String>(name).cloned(),
        }
    };
    let of_part = OPTIONS.iter().filter(|option| option.part == part);
    let given = of_part.filter_map(|option| Some((option.name, given(option)?)));
    let at = |(name, text)| {
        let at = At::CommandLine;
        (name, Given { text, at })
    };
    given.map(at).collect()
}
