//! A service to try the gateway with, where none is named. It knows nothing of idempotency but what
//! the gateway tells it.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, request};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// An order that was taken, and under which key.
struct Order {
    key: String,
    what: String,
}

#[derive(Clone, Default)]
struct Orders(Arc<Mutex<Vec<Order>>>);

/// Starts it on a free port of this machine. It ends with the process.
pub(crate) async fn start() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let orders = Orders::default();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let orders = orders.clone();
            let service = service_fn(move |request| handle(orders.clone(), request));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(address)
}

/// An error closes the connection without an answer, as a crash would.
async fn handle(orders: Orders, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let (status, text) = match (&parts.method, parts.uri.path()) {
        (&Method::POST, "/orders") => {
            let what = String::from_utf8_lossy(&body).into_owned();
            // It takes its time, so that duplicates can meet it and clients can leave.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let breaks_off = what.contains("and break off");
            let attempt = header(&parts, "idempotency-attempt");
            let (number, before) = orders.take(header(&parts, "idempotency-key"), what, attempt);
            if breaks_off && !before {
                return Err(io::Error::other("as it was told"));
            }
            let before = if before { ", taken before" } else { "" };
            let text = format!("order {number}, attempt {attempt}{before}\n");
            (StatusCode::CREATED, text)
        }
        (&Method::GET, "/orders") => (StatusCode::OK, orders.lines()),
        _ => (StatusCode::NOT_FOUND, "there is /orders\n".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    Ok(response)
}

fn header<'a>(parts: &'a request::Parts, name: &str) -> &'a str {
    let value = parts
        .headers
        .get(name)
        .and_then(|value| value.to_str().ok());
    value.unwrap_or("none")
}

impl Orders {
    /// Takes an order, and says its number. A first attempt is always a new order. At a later one
    /// the order may have been taken before its answer was lost: that is for the service to look
    /// up, and nobody else could.
    fn take(&self, key: &str, what: String, attempt: &str) -> (usize, bool) {
        let mut orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match attempt {
            "none" | "1" => None,
            _ => orders.iter().position(|order| order.key == key),
        };
        match before {
            Some(index) => (index + 1, true),
            None => {
                let key = key.to_owned();
                orders.push(Order { key, what });
                (orders.len(), false)
            }
        }
    }

    fn lines(&self) -> String {
        let orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = orders.iter().map(|order| format!("{}\n", order.what));
        lines.collect()
    }
}
