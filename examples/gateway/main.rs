//! A reverse proxy that gives idempotency to a service in any language.
//!
//! `cargo run --example gateway` starts it before a small service of its own; `README.md` beside
//! this folder has requests to try. `-- --upstream http://127.0.0.1:4000` puts it before yours.

mod config;
mod failure;
mod forward;
mod outcome;
mod routes;
mod serve;
#[path = "../payments/store.rs"]
#[allow(dead_code, reason = "only records are kept in it")]
mod store;
mod upstream;

use std::{
    fmt::Display,
    io::{self, Write as _},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use http::Uri;
use tokio::{net::TcpListener, time::timeout};

use crate::{config::Config, routes::Routes, serve::Gateway, upstream::Upstream};

/// A reverse proxy that gives idempotency to a service in any language.
#[derive(Parser)]
struct Flags {
    #[arg(
        long,
        alias = "listen",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:3000"
    )]
    addr: SocketAddr,
    #[arg(long)]
    single_tenant: bool,
    #[arg(long, default_value = "retry")]
    unknown: String,
    #[arg(long, default_value = "retry")]
    takeover: String,
    #[arg(long, default_value = "30s", value_parser = dur)]
    lease: Duration,
    #[arg(long, default_value = "1MiB")]
    body_limit: String,
    #[arg(long, default_value = "tower-idempotency")]
    via: String,
    #[arg(long, default_value = "60s", value_parser = dur)]
    upstream_timeout: Duration,
    #[arg(long, default_value = "60s", value_parser = dur)]
    idle_timeout: Duration,
    #[arg(long, default_value = "30s", value_parser = dur)]
    drain_timeout: Duration,
    #[arg(long, default_value = "30s", value_parser = dur)]
    header_read_timeout: Duration,
    #[arg(long, default_value_t = 10000)]
    max_connections: usize,
    #[arg(long, value_name = "URL")]
    upstream: Uri,
    #[arg(long, value_name = "URL", default_value = "memory")]
    store: String,
    #[arg(long)]
    upstream_http2: bool,
    #[arg(long)]
    scope_header: Option<String>,
    #[arg(long)]
    require_key: bool,
    #[arg(long)]
    ttl_secs: Option<u64>,
}

fn dur(s: &str) -> Result<Duration, String> {
    let i = s.find(|c: char| !c.is_ascii_digit()).ok_or("unit")?;
    let n: u64 = s[..i].parse().map_err(|_| "number")?;
    Ok(match &s[i..] {
        "ms" => Duration::from_millis(n),
        "s" => Duration::from_secs(n),
        _ => Duration::from_secs(3600 * n),
    })
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Flags::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> Result<(), String> {
    let config = Config {
        listen: flags.addr,
        upstream: flags.upstream,
        store: flags.store,
        upstream_http2: flags.upstream_http2,
        connect_timeout: Duration::from_secs(5),
        upstream_timeout: flags.upstream_timeout,
        idle_timeout: flags.idle_timeout,
        drain_timeout: flags.drain_timeout,
        max_connections: flags.max_connections,
        header_read_timeout: flags.header_read_timeout,
        via: flags.via,
        trust_forwarded: false,
        buffer_limit: 256 * 1024 * 1024,
        routes: vec![config::Route {
            path: config::PathPattern::all(),
            methods: vec![http::Method::POST, http::Method::PATCH],
            key: config::Key::Header(http::HeaderName::from_static("idempotency-key")),
            required: flags.require_key,
            scope: match &flags.scope_header {
                Some(n) => config::ScopeBy::Header(n.parse().unwrap()),
                None => config::ScopeBy::SingleTenant,
            },
            ttl: Duration::from_secs(flags.ttl_secs.unwrap_or(24 * 60 * 60)),
            on_conflict: config::Conflict::Reject,
            body_limit: if flags.body_limit == "64KiB" {
                65536
            } else {
                1024 * 1024
            },
            takeover: if flags.takeover == "retry" {
                config::Takeover::Retry
            } else {
                config::Takeover::Refuse
            },
            unknown: if flags.unknown == "retry" {
                config::Unknown::Retry
            } else {
                config::Unknown::Keep
            },
            lease: flags.lease,
        }],
    };
    let opened = store::open(&config.store).await?;
    let routes = Routes::new(&config, opened.store);
    let service = routes.service(Upstream::new(&config)?);

    let listener = TcpListener::bind(config.listen).await;
    let listener =
        listener.map_err(|error| format!("cannot listen on {}: {error}", config.listen))?;
    let addr = listener.local_addr().map_err(|error| error.to_string())?;
    // Before anybody is told the address, so that no signal is missed from then on.
    let mut signals =
        Signals::listen().map_err(|error| format!("cannot wait for signals: {error}"))?;
    say(format_args!("listening on http://{addr}"));

    let gateway = Gateway::new(&config, service);
    gateway.serve(listener, signals.next()).await;
    say("stopping: what runs is finished first; once more to stop at once");

    let finished = async {
        gateway.shutdown().await;
        routes.drain().await;
    };
    tokio::select! {
        finished = timeout(config.drain_timeout, finished) => match finished {
            Ok(()) => Ok(()),
            Err(_) => cut_off(&gateway, &routes).await,
        },
        () = signals.next() => Err("stopped before everything was finished".to_owned()),
    }
}

/// What is cut off has no key, or its key is free when its lease ends.
async fn cut_off<S>(gateway: &Gateway<S>, routes: &Routes) -> Result<(), String> {
    say(format_args!(
        "connections cut off: {}",
        gateway.connections()
    ));
    match timeout(Duration::ZERO, routes.drain()).await {
        Ok(()) => Ok(()),
        Err(_) => Err("some requests under keys did not end in time".to_owned()),
    }
}

struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {})
    }

    async fn next(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}

/// Prints a line. Unlike `println!` it does not panic where nobody reads any more.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
