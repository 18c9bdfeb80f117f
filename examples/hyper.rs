//! The layer without a framework: hyper's server over HTTP/1.1 and HTTP/2, and a function.
//!
//! `cargo run --example hyper` starts it; `README.md` beside this file has requests to try.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use clap::Parser;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, time::timeout};
use tower::{Layer, service_fn};
use tower_idempotency::{Execution, IdempotencyLayer, MemoryStore, RequestBody, Scope};

/// Orders that are taken once.
#[derive(Parser)]
struct Flags {
    /// Where to listen; with port 0 on a free port, which is printed.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:3000")]
    addr: SocketAddr,
}

#[derive(Clone, Default)]
struct Orders(Arc<Mutex<Vec<String>>>);

impl Orders {
    fn add(&self, order: String) -> usize {
        let mut orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        orders.push(order);
        orders.len()
    }

    fn lines(&self) -> String {
        let orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        orders.iter().map(|order| format!("{order}\n")).collect()
    }
}

/// What the layer gives to the handler is an ordinary request, but for the type of its body.
async fn handle(
    orders: Orders,
    request: Request<RequestBody<Incoming>>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let response = Response::builder();
    let response = match (&parts.method, parts.uri.path()) {
        (&Method::POST, "/orders") => {
            // Under a key the body has been read already, and comes from memory.
            let order = body.collect().await?.to_bytes();
            let order = String::from_utf8_lossy(&order).into_owned();
            // It takes its time, so that duplicates can meet it and clients can leave.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let attempt = parts.extensions.get().map_or(0, Execution::attempt);
            let number = orders.add(order);
            response
                .status(StatusCode::CREATED)
                .header(header::LOCATION, format!("/orders/{number}"))
                .body(format!("order {number}, attempt {attempt}\n").into())
        }
        (&Method::GET, "/orders") => response.body(orders.lines().into()),
        _ => response
            .status(StatusCode::NOT_FOUND)
            .body("there is /orders\n".into()),
    };
    Ok(response.expect("a number can stand in a header"))
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let flags = Flags::parse();
    let orders = Orders::default();
    let idempotency = IdempotencyLayer::new(MemoryStore::new(), Scope::header("x-api-key"))
        .require_key(true)
        // Covered are POST and PATCH; of those only what takes an order.
        .covers(|parts| parts.method == Method::POST && parts.uri.path() == "/orders");
    let service = idempotency.layer(service_fn({
        let orders = orders.clone();
        move |request| handle(orders.clone(), request)
    }));

    let listener = TcpListener::bind(flags.addr).await?;
    // Before anybody is told the address, so that no signal is missed from then on.
    let mut signal = pin!(stop_signal()?);
    println!("listening on http://{}", listener.local_addr()?);

    let mut server = auto::Builder::new(TokioExecutor::new());
    // With a timer, a client that never ends its head does not hold its connection for ever.
    server.http1().timer(TokioTimer::new());
    let connections = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut signal => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, say: others close theirs meanwhile.
                eprintln!("cannot accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(service.clone());
        let connection = server.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let connection = connections.watch(connection.into_owned());
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("a connection broke: {error}");
            }
        });
    }
    drop(listener);

    // First the connections; then the work that goes on although its client left.
    let finished = async {
        connections.shutdown().await;
        idempotency.drain().await;
    };
    if timeout(Duration::from_secs(30), finished).await.is_err() {
        return Err(io::Error::other("some requests do not end"));
    }
    print!("stopped. Orders:\n{}", orders.lines());
    Ok(())
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
