//! Clients that try again: hyper's, reqwest's and tonic's, each with `RetryLayer` around it, over a
//! line on which things get lost.
//!
//! `cargo run --features client --example client` plays it and ends.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header, uri::PathAndQuery};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tonic::{Status, transport::Channel};
use tonic_prost::ProstCodec;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_idempotency::{
    IdempotencyKey, IdempotencyLayer, MemoryStore, RequestBody, Scope,
    client::{RepeatBody, RetryLayer, SetIdempotencyKeyLayer},
};

type Answer = Response<tonic::body::Body>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let scene = Scene::default();
    let address = start(scene.clone()).await?;
    with_hyper(address).await?;
    scene.tell("hyper");
    with_reqwest(address).await?;
    scene.tell("reqwest");
    with_tonic(address).await?;
    scene.tell("tonic");
    Ok(())
}

/// hyper-util's client takes requests as the layers send them: with the key of their operation, and
/// again where that can help.
async fn with_hyper(address: SocketAddr) -> Result<(), BoxError> {
    let client = ServiceBuilder::new()
        .layer(SetIdempotencyKeyLayer::new())
        .layer(RetryLayer::default())
        .service(Client::builder(TokioExecutor::new()).build_http());
    for n in 1..=4 {
        let order = format!("hyper-{n}");
        // The order has a name, so the operation has one. Without it, the layer would make a random
        // one, once for all tries.
        let request = Request::post(format!("http://{address}/payments"))
            .extension(IdempotencyKey::new(&order)?)
            .body(Full::<Bytes>::from("100 EUR"))?;
        let (head, body) = client.clone().oneshot(request).await?.into_parts();
        let payment = body.collect().await?.to_bytes();
        let payment = String::from_utf8_lossy(&payment);
        println!("{order}: {payment}, {}", told(head.status, &head.headers));
    }
    Ok(())
}

/// reqwest's client has a request of its own: the function translates, and stands for the client.
async fn with_reqwest(address: SocketAddr) -> Result<(), BoxError> {
    let pool = reqwest::Client::new();
    let send = move |request: Request<RepeatBody<Full<Bytes>>>| {
        let pool = pool.clone();
        async move {
            let request = request.map(reqwest::Body::wrap).try_into()?;
            let response = pool.execute(request).await?;
            Ok::<_, reqwest::Error>(Response::<reqwest::Body>::from(response))
        }
    };
    let client = RetryLayer::default().layer(service_fn(send));
    for n in 1..=4 {
        let order = format!("reqwest-{n}");
        let request = Request::post(format!("http://{address}/payments"))
            .header("idempotency-key", &order)
            .body(Full::from("100 EUR"))?;
        let (head, body) = client.clone().oneshot(request).await?.into_parts();
        let payment = body.collect().await?.to_bytes();
        let payment = String::from_utf8_lossy(&payment);
        println!("{order}: {payment}, {}", told(head.status, &head.headers));
    }
    Ok(())
}

/// tonic's channel wants its own kind of body. What comes of this goes into a generated client too:
/// `BankClient::new(channel)`.
async fn with_tonic(address: SocketAddr) -> Result<(), BoxError> {
    let channel = Channel::from_shared(format!("http://{address}"))?.connect_lazy();
    let channel = ServiceBuilder::new()
        .layer(RetryLayer::default())
        .map_request(|request: Request<RepeatBody<tonic::body::Body>>| {
            request.map(tonic::body::Body::new)
        })
        .service(channel);
    let mut client = tonic::client::Grpc::new(channel);
    for n in 1..=4 {
        let order = format!("tonic-{n}");
        let mut request = tonic::Request::new("100 EUR".to_owned());
        request
            .metadata_mut()
            .insert("idempotency-key", order.parse()?);
        client.ready().await?;
        let path = PathAndQuery::from_static("/bank.Bank/Pay");
        let codec = ProstCodec::<String, String>::default();
        let response = client.unary(request, path, codec).await?;
        let replayed = response.metadata().contains_key("idempotent-replayed");
        let payment = response.into_inner();
        println!(
            "{order}: {payment}{}",
            if replayed { ", replayed" } else { "" }
        );
    }
    Ok(())
}

fn told(status: StatusCode, headers: &HeaderMap) -> String {
    let replayed = headers.contains_key("idempotent-replayed");
    format!(
        "{}{}",
        status.as_u16(),
        if replayed { ", replayed" } else { "" }
    )
}

/// What happened, as only the other side knows it.
#[derive(Clone, Default)]
struct Scene(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    payments: usize,
    effects: usize,
    tries: HashMap<String, usize>,
}

impl Scene {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Money moves.
    fn pay(&self) -> String {
        let mut counts = self.counts();
        counts.payments += 1;
        counts.effects += 1;
        format!("payment {}", counts.payments)
    }

    /// How many operations there were, and how many tries and effects, since it was asked last.
    fn tell(&self, client: &str) {
        let mut counts = self.counts();
        let tries = std::mem::take(&mut counts.tries);
        let effects = std::mem::take(&mut counts.effects);
        let operations = tries.len();
        let tries: usize = tries.into_values().sum();
        println!("{client}: {operations} operations, {tries} tries, {effects} effects\n");
    }
}

/// The bank: over HTTP, and over gRPC.
async fn bank(scene: Scene, request: Request<RequestBody<Incoming>>) -> Result<Answer, BoxError> {
    if is_grpc(request.headers()) {
        let pay = service_fn(move |_: tonic::Request<String>| {
            let payment = tonic::Response::new(scene.pay());
            async move { Ok::<_, Status>(payment) }
        });
        let codec = ProstCodec::<String, String>::default();
        return Ok(tonic::server::Grpc::new(codec).unary(pay, request).await);
    }
    let payment = Full::<Bytes>::from(scene.pay());
    let response = Response::builder().status(StatusCode::CREATED);
    Ok(response.body(tonic::body::Body::new(payment))?)
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The line: something happens to the first try of each payment, another thing to each.
async fn line<S, B>(scene: Scene, bank: S, request: Request<Incoming>) -> Result<Answer, BoxError>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = BoxError>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let key = request.headers().get("idempotency-key");
    let key = key.and_then(|key| key.to_str().ok()).unwrap_or_default();
    let key = key.to_owned();
    let first = {
        let mut counts = scene.counts();
        let tries = counts.tries.entry(key.clone()).or_default();
        *tries += 1;
        *tries == 1
    };
    let lost = || io::Error::other("the line is down");
    if first && key.ends_with('1') {
        println!("{key}: the request is lost");
        return Err(lost().into());
    }
    if first && key.ends_with('4') {
        println!("{key}: refused with 503");
        let response = Response::builder()
            .status(StatusCode::SERVICE_UNAVAILABLE)
            .header(header::RETRY_AFTER, "1");
        return Ok(response.body(tonic::body::Body::new(Empty::new()))?);
    }
    let (head, body) = bank.oneshot(request).await?.into_parts();
    if first && key.ends_with('2') {
        println!("{key}: the answer is lost");
        return Err(lost().into());
    }
    if first && key.ends_with('3') {
        println!("{key}: the answer breaks off");
        let half = [Ok(Frame::data(Bytes::from_static(b"pay"))), Err(lost())];
        let half = StreamBody::new(futures::stream::iter(half));
        return Ok(Response::from_parts(head, tonic::body::Body::new(half)));
    }
    Ok(Response::from_parts(head, tonic::body::Body::new(body)))
}

/// Starts the bank, behind the line, on a free port.
async fn start(scene: Scene) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let idempotency = IdempotencyLayer::new(MemoryStore::new(), Scope::single_tenant());
    let bank = idempotency.layer(service_fn({
        let scene = scene.clone();
        move |request| bank(scene.clone(), request)
    }));
    let service = service_fn(move |request| line(scene.clone(), bank.clone(), request));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                // That connections break is what this is about.
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    Ok(address)
}
