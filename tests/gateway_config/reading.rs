//! What is read from the command line and from files.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use http::{HeaderName, Method};
use tempfile::TempDir;

use crate::config::{
    Config, Conflict, Ended, Key, Refusals, ScopeBy, Takeover, Unknown,
    options::{Kind, OPTIONS, Part},
};

/// What the program makes of these words.
pub(crate) fn read(args: &[&str]) -> Result<Config, Ended> {
    Config::from_args(["gateway"].iter().chain(args))
}

/// What it makes of a file with this text, and these words.
pub(crate) fn read_file(text: &str, args: &[&str]) -> Result<Config, Ended> {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("g.toml");
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let read = read(&[&["--config", file], args].concat());
    // As if it were called from that folder.
    read.map_err(|ended| Ended {
        text: ended.text.replace(file, "g.toml"),
        ..ended
    })
}

fn header(name: &'static str) -> HeaderName {
    HeaderName::from_static(name)
}

const UPSTREAM: [&str; 2] = ["--upstream", "http://127.0.0.1:4000"];

/// Without a file: one route for everything, under flags.
#[test]
fn the_command_line_makes_one_route() {
    let config = read(&[&UPSTREAM[..], &["--scope-header", "Authorization"]].concat()).unwrap();
    assert_eq!(config.upstream, "http://127.0.0.1:4000/");
    assert_eq!(config.listen.to_string(), "127.0.0.1:3000");
    assert_eq!(config.store, "memory");
    assert_eq!(config.prefix, "idem");
    assert!(!config.demo && !config.upstream_http2 && !config.trust_forwarded);
    assert_eq!(config.connect_timeout, Duration::from_secs(5));
    assert_eq!(config.upstream_timeout, Duration::from_secs(60));
    assert_eq!(config.idle_timeout, Duration::from_secs(60));
    assert_eq!(config.header_read_timeout, Duration::from_secs(30));
    assert_eq!(config.drain_timeout, Duration::from_secs(30));
    assert_eq!(config.max_connections, 10_000);
    assert_eq!(config.buffer_limit, 256 * 1024 * 1024);
    assert_eq!(config.via, "tower-idempotency");
    let [route] = &config.routes[..] else {
        panic!("{config:?}")
    };
    assert_eq!(route.path.to_string(), "/*");
    assert_eq!(route.methods, [Method::POST, Method::PATCH]);
    assert_eq!(route.key, Key::Header(header("idempotency-key")));
    assert_eq!(route.scope, ScopeBy::Header(header("authorization")));
    assert_eq!(route.ttl, Duration::from_secs(24 * 60 * 60));
    assert_eq!(route.lease, Duration::from_secs(30));
    assert_eq!(route.on_conflict, Conflict::Reject);
    assert_eq!(route.takeover, Takeover::Retry);
    assert_eq!(route.unknown, Unknown::Retry);
    assert_eq!(route.refusals, Refusals::Problem);
    assert_eq!(route.body_limit, 1024 * 1024);
    assert!(!route.required);
}

/// Each flag arrives where it belongs.
#[test]
fn every_flag_is_read() {
    let config = read(&[
        "--upstream=http://[::1]:4000/",
        "--upstream-http2",
        "--trust-forwarded",
        "--addr=[::]:0",
        "--store=tiered:memory,memory",
        "--prefix=pay",
        "--connect-timeout=1s",
        "--upstream-timeout=1m 1s",
        "--idle-timeout=3s",
        "--header-read-timeout=4s",
        "--drain-timeout=5s",
        "--max-connections=7",
        "--buffer-limit=2MiB",
        "--via=edge-1:80",
        "--path=/v1/*",
        "--methods=PUT,DELETE, MERGE",
        "--key-json=/a~1b",
        "--require-key",
        "--single-tenant",
        "--ttl=8s",
        "--lease=500ms",
        "--on-conflict=wait:9s",
        "--takeover=refuse",
        "--unknown=keep",
        "--refusals=stripe",
        "--body-limit=10",
    ])
    .unwrap();
    let seconds = Duration::from_secs;
    assert_eq!(config.upstream.authority().unwrap(), "[::1]:4000");
    assert!(!config.demo && config.upstream_http2 && config.trust_forwarded);
    assert_eq!(config.listen.to_string(), "[::]:0");
    assert_eq!(config.store, "tiered:memory,memory");
    assert_eq!(config.prefix, "pay");
    assert_eq!(config.connect_timeout, seconds(1));
    assert_eq!(config.upstream_timeout, seconds(61));
    assert_eq!(config.idle_timeout, seconds(3));
    assert_eq!(config.header_read_timeout, seconds(4));
    assert_eq!(config.drain_timeout, seconds(5));
    assert_eq!(config.max_connections, 7);
    assert_eq!(config.buffer_limit, 2 * 1024 * 1024);
    assert_eq!(config.via, "edge-1:80");
    let [route] = &config.routes[..] else {
        panic!("{config:?}")
    };
    assert_eq!(route.path.to_string(), "/v1/*");
    let merge = Method::from_bytes(b"MERGE").unwrap();
    assert_eq!(route.methods, [Method::PUT, Method::DELETE, merge]);
    assert_eq!(route.key, Key::Json("/a~1b".to_owned()));
    assert!(route.required);
    assert_eq!(route.scope, ScopeBy::SingleTenant);
    assert_eq!(route.ttl, seconds(8));
    assert_eq!(route.lease, Duration::from_millis(500));
    assert_eq!(route.on_conflict, Conflict::Wait(seconds(9)));
    assert_eq!(route.takeover, Takeover::Refuse);
    assert_eq!(route.unknown, Unknown::Keep);
    assert_eq!(route.refusals, Refusals::Stripe);
    assert_eq!(route.body_limit, 10);
}

/// Without an upstream and without a file it is one to try, and needs no scope.
#[test]
fn without_an_upstream_it_is_one_to_try() {
    assert!(read(&[]).unwrap().demo);
    let config = read(&["--addr=127.0.0.1:0", "--scope-header=x-api-key"]).unwrap();
    assert!(config.demo);
    assert_eq!(config.routes[0].scope, ScopeBy::Header(header("x-api-key")));
    assert!(
        !read(&[&UPSTREAM[..], &["--single-tenant"]].concat())
            .unwrap()
            .demo
    );
}

/// Flags win over the file, and where it has no routes they make the one.
#[test]
fn flags_win_over_the_file() {
    let file = "upstream = 'http://a:1'\nstore = 'tiered:memory,memory'\nvia = 'file'\n";
    let config = read_file(file, &["--via=flag", "--single-tenant", "--ttl=1h"]).unwrap();
    assert_eq!(
        (&*config.via, &*config.store),
        ("flag", "tiered:memory,memory")
    );
    assert_eq!(config.upstream, "http://a:1/");
    assert_eq!(config.routes[0].ttl, Duration::from_secs(60 * 60));
    let [first, last] = ["--via=one", "--via=two"];
    let config = read_file(file, &["--single-tenant", first, last]).unwrap();
    assert_eq!(config.via, "two");
}

/// Routes stay in their order, and each has the defaults for what it does not say.
#[test]
fn a_file_has_routes_in_their_order() {
    let file = "
        upstream = 'http://a:1'
        max-connections = 0x10
        [[route]]
        path = '/b/*'
        methods = ['POST']
        single-tenant = true
        [[route]]
        path = '/a'
        scope-header = 'x-user'
        body-limit = 5
        require-key = true
        [[route]]
        single-tenant = true
    ";
    let config = read_file(file, &[]).unwrap();
    assert_eq!(config.max_connections, 16);
    let paths: Vec<_> = config
        .routes
        .iter()
        .map(|route| route.path.to_string())
        .collect();
    assert_eq!(paths, ["/b/*", "/a", "/*"]);
    assert_eq!(config.routes[0].methods, [Method::POST]);
    assert_eq!(config.routes[1].scope, ScopeBy::Header(header("x-user")));
    assert_eq!(config.routes[1].body_limit, 5);
    assert!(config.routes[1].required && !config.routes[2].required);
    assert_eq!(config.routes[2].methods, [Method::POST, Method::PATCH]);
}

fn sample() -> String {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/gateway/gateway.toml");
    fs::read_to_string(PathBuf::from(file)).unwrap()
}

/// The sample is read as it stands.
#[test]
fn the_sample_is_read() {
    let config = read_file(&sample(), &[]).unwrap();
    let [payments, process, rest] = &config.routes[..] else {
        panic!("{config:?}")
    };
    assert_eq!(payments.path.to_string(), "/v1/payments");
    assert_eq!(payments.ttl, Duration::from_secs(7 * 24 * 60 * 60));
    assert_eq!(
        payments.on_conflict,
        Conflict::Wait(Duration::from_secs(30))
    );
    assert_eq!(process.key, Key::Json("/idempotency_key".to_owned()));
    assert_eq!(rest.path.to_string(), "/*");
}

/// It has every option, and what it says behind a `#` is what holds where nothing is said.
#[test]
fn the_sample_has_every_option_and_every_default() {
    let sample = sample();
    let (mut active, mut commented) = (BTreeSet::new(), BTreeSet::new());
    let mut part = Part::Gateway;
    for line in sample.lines() {
        if line == "[[route]]" {
            part = Part::Route;
        }
        let (set, setting) = match line.strip_prefix("# ") {
            Some(setting) => (&mut commented, setting),
            None => (&mut active, line),
        };
        let Ok(table) = setting.parse::<toml::Table>() else {
            continue;
        };
        for (name, value) in table.iter().filter(|(name, _)| *name != "route") {
            let option = OPTIONS.iter().find(|option| option.name == name);
            let option = option.unwrap_or_else(|| panic!("no option: {line}"));
            assert_eq!(option.part, part, "{line}");
            set.insert(option.name);
            if line.starts_with("# ") {
                let text = match value {
                    toml::Value::String(text) => text.clone(),
                    toml::Value::Array(texts) => {
                        let texts = texts.iter().map(|text| text.as_str().unwrap());
                        texts.collect::<Vec<_>>().join(",")
                    }
                    other => other.to_string(),
                };
                assert_eq!(Some(&*text), option.default, "{line}");
            }
        }
    }
    for option in OPTIONS {
        match option.default {
            Some(_) => assert!(
                commented.contains(option.name),
                "{} as a comment",
                option.name
            ),
            None => assert!(active.contains(option.name), "{}", option.name),
        }
        assert!(option.kind != Kind::Switch || option.default == Some("false"));
    }
}

/// With its defaults written out the sample means the same.
#[test]
fn the_defaults_of_the_sample_mean_what_they_say() {
    let uncommented = |line: &str| match line.strip_prefix("# ") {
        Some(setting) if setting.parse::<toml::Table>().is_ok() => format!("{setting}\n"),
        _ => format!("{line}\n"),
    };
    let written_out: String = sample().lines().map(uncommented).collect();
    assert!(written_out.contains("\nttl = \"24h\""));
    let written_out = read_file(&written_out, &[]).unwrap();
    assert_eq!(
        format!("{written_out:?}"),
        format!("{:?}", read_file(&sample(), &[]).unwrap())
    );
}

/// `--help` and `--check` are answered, with 0; the answer to `--check` has no password in it.
#[test]
fn u19_what_was_asked_is_answered() {
    let help = read(&["--help"]).unwrap_err();
    assert_eq!(help.code, 0);
    for option in OPTIONS {
        assert!(
            help.text.contains(&format!("--{}", option.name)),
            "{}",
            help.text
        );
    }
    let file = sample();
    let (far, kind) = match cfg!(feature = "redis") {
        true => ("redis://:hunter2@127.0.0.1", "redis"),
        false => ("memory", "memory"),
    };
    let store = format!("--store=tiered:memory,{far}");
    let told = read_file(&file, &["--check", &store]).unwrap_err();
    assert_eq!(told.code, 0);
    assert!(!told.text.contains("hunter2"), "{}", told.text);
    for part in [
        "listens on 127.0.0.1:3000, for up to 10000 clients",
        "passes requests on to http://127.0.0.1:4000/ over HTTP/1.1",
        "502 where no connection is made in 5s, 504 where no answer begins in 1m",
        &format!("keeps records in: memory, then {kind}; bodies in memory: up to 256.0 MiB"),
        "1. POST /v1/payments",
        "key: the header idempotency-key; without one: refused with 400",
        "callers: told apart by x-api-key; without it: refused with 403",
        "replayed for 7days",
        "its answer, or 409 after 30s",
        "409 until somebody has looked",
        "a retry gets the same failure",
        "2. POST, PATCH /process-request",
        "key: /idempotency_key in the JSON body; without one: passed on untouched",
        "callers: all are one",
        "3. POST, PATCH /*",
        "a retry is sent once more, 30s later",
        "up to 1.0 MiB",
        "all else streams through untouched",
    ] {
        assert!(told.text.contains(part), "{part}: {}", told.text);
    }
    let told = read(&["--check"]).unwrap_err();
    assert!(
        told.text.contains("a small service of its own"),
        "{}",
        told.text
    );
    assert!(told.text.contains("end with this process"), "{}", told.text);
}
