//! gRPC: a payment service in tonic, and a client that repeats itself.
//!
//! `cargo run --features grpc --example tonic` plays a scene between the two and ends;
//! `-- --serve 127.0.0.1:3000` serves until it is stopped. How the layer is put in is in this file,
//! what the service does in `bank.rs`, and what the client tries in `scene.rs`.
//!
//! `payments.v1.rs` is generated from `payments.proto`; a test sees that the two agree.

mod bank;
mod scene;

#[allow(
    clippy::all,
    clippy::use_self,
    missing_docs,
    unreachable_pub,
    reason = "generated"
)]
mod payments {
    include!("payments.v1.rs");
}

use std::{
    error::Error,
    future::Future,
    io::{self, Write as _},
    net::SocketAddr,
    pin::pin,
    time::Duration,
};

use clap::Parser;
use tokio::{net::TcpListener, time::timeout};
use tonic::transport::server::TcpIncoming;
use tower::ServiceBuilder;
use tower_idempotency::{IdempotencyLayer, MemoryStore, Scope};

use crate::{bank::Bank, payments::payments_server::PaymentsServer};

/// Payments over gRPC, each of which is made once.
#[derive(Parser)]
struct Flags {
    /// Serve here until stopped, instead of playing the scene; with port 0 on a free port, which is
    /// printed. Callers say who they are by the metadata `x-api-key`.
    #[arg(long, value_name = "HOST:PORT")]
    serve: Option<SocketAddr>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let bank = Bank::default();
    match Flags::parse().serve {
        Some(addr) => {
            let listener = TcpListener::bind(addr).await?;
            // Before anybody is told the address, so that no signal is missed from then on.
            let stop = stop_signal()?;
            say(format_args!(
                "listening on http://{}",
                listener.local_addr()?
            ));
            serve(listener, bank.clone(), stop).await?;
            say(format_args!("stopped. Payments: {}", bank.count()));
        }
        None => {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let addr = listener.local_addr()?;
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let mut server = pin!(serve(listener, bank, async { drop(stopped.await) }));
            tokio::select! {
                ended = &mut server => ended?,
                played = scene::play(addr) => played?,
            }
            drop(stop);
            server.await?;
        }
    }
    Ok(())
}

/// Serves until `stop`, and then finishes what runs.
async fn serve(
    listener: TcpListener,
    bank: Bank,
    stop: impl Future<Output = ()>,
) -> Result<(), Box<dyn Error>> {
    let idempotency = IdempotencyLayer::new(MemoryStore::new(), Scope::header("x-api-key"))
        // How long a call waits that sends on and on.
        .body_timeout(Duration::from_secs(3));
    // To gRPC every method is a POST: which of them are to be covered is said by path.
    let pay = idempotency
        .clone()
        .require_key(true)
        .covers(|parts| parts.uri.path() == "/payments.v1.Payments/Pay");
    // For these a key is welcome.
    let streams = idempotency.clone().covers(|parts| {
        matches!(
            parts.uri.path().strip_prefix("/payments.v1.Payments/"),
            Some("PayBatch" | "PayInParts" | "Exchange")
        )
    });

    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let stop = async {
        stop.await;
        let _ = stopping.send(());
    };
    let server = tonic::transport::Server::builder()
        .layer(ServiceBuilder::new().layer(pay).layer(streams))
        .add_service(PaymentsServer::new(bank))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop);
    // A call that does not end must not hold the process for good.
    let limit = async {
        let _ = stopped.await;
        tokio::time::sleep(Duration::from_secs(90)).await;
    };
    tokio::select! {
        served = server => served?,
        () = limit => {}
    }
    // First the connections; then the work that goes on although its client left.
    let drained = timeout(Duration::from_secs(90), idempotency.drain());
    Ok(drained.await?)
}

/// Prints a line. Unlike `println!` it does not panic where nobody reads any more.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Ctrl-C, or what a supervisor sends.
#[cfg(unix)]
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    Ok(async { drop(tokio::signal::ctrl_c().await) })
}
