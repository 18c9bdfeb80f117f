//! A reverse proxy that gives idempotency to a service in any language.
//!
//! `cargo run --example gateway` starts it before a small service of its own; `README.md` beside this
//! folder has requests to try. `-- --upstream http://127.0.0.1:4000 --scope-header x-api-key` puts it
//! before yours, `--help` names the options, and `gateway.toml` is a file with all of them.
//!
//! A request comes in at `serve`, goes through the layer of its route in `routes`, and out at
//! `upstream`, with the head that `forward` makes of it. `failure` has the answers that the gateway
//! gives itself (in the form of `problem`), `outcome` what they say to the judge of a route. `config` reads the options.

mod config;
mod demo;
mod failure;
mod forward;
mod outcome;
mod problem;
mod routes;
mod serve;
#[path = "../payments/signals.rs"]
mod signals;
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

use http::{
    Uri,
    uri::{PathAndQuery, Scheme},
};
use tokio::{net::TcpListener, time::timeout};

use crate::{config::Config, routes::Routes, serve::Gateway, signals::Signals, upstream::Upstream};

/// The greatest head of a message, in bytes.
const HEAD_LIMIT: u32 = 64 * 1024;

#[tokio::main]
async fn main() -> ExitCode {
    let config = match Config::from_args(std::env::args_os()) {
        Ok(config) => config,
        Err(ended) => return ended.say(),
    };
    match run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(mut config: Config) -> Result<(), String> {
    if config.demo {
        let started = demo::start().await;
        let addr = started.map_err(|error| format!("no service to try it with: {error}"))?;
        config.upstream = at(addr)?;
    }
    let routes = Routes::new(&config, store::open(&config.store).await?.store);
    let service = routes.service(Upstream::new(&config)?);

    let listener = TcpListener::bind(config.listen).await;
    let listener =
        listener.map_err(|error| format!("cannot listen on {}: {error}", config.listen))?;
    let addr = listener.local_addr().map_err(|error| error.to_string())?;
    // Before anybody is told the address, so that no signal is missed from then on.
    let mut signals =
        Signals::listen().map_err(|error| format!("cannot wait for signals: {error}"))?;
    say(format_args!("listening on http://{addr}"));
    if config.demo {
        say("no --upstream is given: behind it is a service to try it with, which takes orders");
    }

    let gateway = Gateway::new(&config, service);
    gateway.serve(listener, signals.next()).await;
    say("stopping: what runs is finished first; once more to stop at once");

    // First the connections; then the work that goes on although its client left.
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

/// What is cut off has no key, and then that is all; or its key stays taken until its lease ends.
async fn cut_off<S>(gateway: &Gateway<S>, routes: &Routes) -> Result<(), String> {
    let connections = gateway.connections();
    say(format_args!("connections cut off: {connections}"));
    match timeout(Duration::ZERO, routes.drain()).await {
        Ok(()) => Ok(()),
        Err(_) => Err("some requests under keys did not end in time".to_owned()),
    }
}

fn at(addr: SocketAddr) -> Result<Uri, String> {
    let uri = Uri::builder().scheme(Scheme::HTTP);
    let uri = uri.authority(addr.to_string());
    let uri = uri.path_and_query(PathAndQuery::from_static("/")).build();
    uri.map_err(|error| error.to_string())
}

/// Prints a line. Unlike `println!` it does not panic where nobody reads any more.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}
