//! A reverse proxy that gives idempotency to a service in any language.
//!
//! `cargo run --example gateway` starts it before a small service of its own; `README.md` beside
//! this folder has requests to try. `-- --upstream http://127.0.0.1:4000` puts it before yours.

mod config;
mod failure;
mod forward;
mod outcome;
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
use tower::Layer as _;
use tower_idempotency::{IdempotencyLayer, Scope, verdict};

use crate::{config::Config, serve::Gateway, upstream::Upstream};

/// A reverse proxy that gives idempotency to a service in any language.
#[derive(Parser)]
struct Flags {
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:3000")]
    addr: SocketAddr,
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
        upstream_timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(60),
        drain_timeout: Duration::from_secs(30),
        max_connections: 10_000,
        header_read_timeout: Duration::from_secs(30),
        via: "tower-idempotency".to_owned(),
        buffer_limit: 256 * 1024 * 1024,
        routes: Vec::new(),
    };
    let opened = store::open(&config.store).await?;
    let scope = match &flags.scope_header {
        Some(name) => Scope::header(name),
        None => Scope::single_tenant(),
    };
    let idempotency = IdempotencyLayer::new(opened.store, scope)
        .require_key(flags.require_key)
        .ttl(Duration::from_secs(flags.ttl_secs.unwrap_or(24 * 60 * 60)))
        .judge(
            |answer, trailers| match answer.extensions.get::<outcome::NotSent>() {
                Some(_) => verdict::Verdict::Rejected,
                None => verdict::by_status(answer, trailers),
            },
        );
    let service = idempotency.layer(Upstream::new(&config)?);

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
        idempotency.drain().await;
    };
    tokio::select! {
        finished = timeout(config.drain_timeout, finished) => match finished {
            Ok(()) => Ok(()),
            Err(_) => cut_off(&gateway, &idempotency).await,
        },
        () = signals.next() => Err("stopped before everything was finished".to_owned()),
    }
}

/// What is cut off has no key, or its key is free when its lease ends.
async fn cut_off<S, Store: ?Sized>(
    gateway: &Gateway<S>,
    idempotency: &IdempotencyLayer<Store>,
) -> Result<(), String> {
    say(format_args!(
        "connections cut off: {}",
        gateway.connections()
    ));
    match timeout(Duration::ZERO, idempotency.drain()).await {
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
