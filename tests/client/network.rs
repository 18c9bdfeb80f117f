//! S09, S26, S27, P1, P2, P4: both ends, and a network between them that loses requests and answers,
//! breaks answers off, delivers twice, late or never, and answers for the server. Each operation has
//! one effect and one answer. `--nocapture` shows the counts.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use prost::Message;
use tokio::{net::TcpListener, task::JoinSet, time::sleep};
use tonic::{codegen::http::uri::PathAndQuery, transport::Endpoint};
use tonic_prost::ProstCodec;
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, retry::budget::TpsBudget, service_fn,
};
use tower_idempotency::{
    IdempotencyKey, IdempotencyLayer, MemoryStore, RequestBody, Scope,
    client::{RepeatBody, RetryLayer, RetryPolicy, SetIdempotencyKeyLayer},
};

use crate::support::SECOND;

const OPERATIONS: usize = 300;
const AT_ONCE: usize = 32;

/// How long the whole of it may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Random, and the same each time for the same numbers.
fn random(seed: u64, numbers: [usize; 3]) -> u64 {
    // SplitMix64.
    numbers.iter().fold(seed, |state, number| {
        let state = state ^ (*number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    })
}

/// `NETWORK_SEED` repeats a run, as far as the order of what happens at once allows.
fn seed() -> u64 {
    let given = std::env::var("NETWORK_SEED").ok();
    given.map_or_else(
        || std::process::id().into(),
        |seed| seed.parse().expect("a number"),
    )
}

/// Serves until the test's runtime ends.
async fn serve<S, F, B>(service: S) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<B>, Future = F> + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, S::Error>> + Send + 'static,
    S::Error: Into<BoxError> + Send,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                // Broken connections are what this is about.
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    addr
}

/// What was done, in its order.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<Vec<String>>>);

/// A payment over HTTP, or over gRPC: one text comes, another goes.
async fn pay(
    ledger: Ledger,
    request: Request<RequestBody<Incoming>>,
) -> Result<Response<BoxBody<Bytes, io::Error>>, BoxError> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let kind = parts.headers.get(header::CONTENT_TYPE).cloned();
    let grpc = kind.as_ref().is_some_and(|kind| kind == "application/grpc");
    let order = match grpc {
        true => String::decode(&body[5..])?,
        false => String::from_utf8(body.to_vec())?,
    };
    sleep(Duration::from_millis(random(0, [order.len(), 1, 2]) % 4)).await;
    let number = {
        let mut done = ledger.0.lock().unwrap();
        done.push(order.clone());
        done.len()
    };
    sleep(Duration::from_millis(1)).await;
    let answer = format!("payment {number} for {order}{}", ".".repeat(1000));
    let response = Response::builder();
    let response = match grpc {
        false => response
            .status(StatusCode::CREATED)
            .header(header::LOCATION, format!("/payments/{number}"))
            .body(Full::from(answer).map_err(|never| match never {}).boxed()),
        true => {
            let mut message = BytesMut::new();
            message.put_u8(0);
            message.put_u32(answer.encoded_len() as u32);
            answer.encode(&mut message)?;
            let ok = (
                HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            );
            let frames = [
                Frame::data(message.freeze()),
                Frame::trailers(HeaderMap::from_iter([ok])),
            ];
            let frames = futures::stream::iter(frames.map(Ok));
            response
                .header(header::CONTENT_TYPE, "application/grpc")
                .body(BoxBody::new(StreamBody::new(frames)))
        }
    };
    Ok(response?)
}

/// What the network does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Delivered,
    /// It never arrives, and its connection ends.
    RequestLost,
    /// It arrives, and its connection ends before the answer.
    AnswerLost,
    /// Half of the answer arrives.
    AnswerCut,
    /// Two copies arrive at the same time, and the answer to one of them goes back.
    Twice,
    /// Another copy arrives later.
    TwiceLate,
    Delayed,
    /// The network answers by itself, some of these times although the request arrived.
    Refused,
    /// It arrives, and nothing comes back, no end of the connection either.
    Silence,
    /// The same, and it does not arrive.
    Void,
}

impl Fate {
    fn of(number: u64) -> Self {
        match number % 100 {
            0..35 => Self::Delivered,
            35..46 => Self::RequestLost,
            46..57 => Self::AnswerLost,
            57..66 => Self::AnswerCut,
            66..73 => Self::Twice,
            73..80 => Self::TwiceLate,
            80..85 => Self::Delayed,
            85..94 => Self::Refused,
            94..97 => Self::Silence,
            _ => Self::Void,
        }
    }
}

/// An answer without what is each time another.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

struct Network {
    seed: u64,
    servers: Vec<SocketAddr>,
    http1: Client<HttpConnector, Full<Bytes>>,
    http2: Client<HttpConnector, Full<Bytes>>,
    fates: Mutex<BTreeMap<Fate, usize>>,
    /// How often each key was sent.
    tries: Mutex<HashMap<String, usize>>,
    /// Each successful answer of a server, by key, whether it reached the client or not.
    answers: Mutex<HashMap<String, Vec<Answer>>>,
    replays: AtomicUsize,
    conflicts: AtomicUsize,
    /// Copies that are still on their way.
    late: Mutex<JoinSet<()>>,
}

impl Network {
    fn new(seed: u64, servers: Vec<SocketAddr>) -> Arc<Self> {
        let builder = Client::builder(TokioExecutor::new());
        Arc::new(Self {
            seed,
            servers,
            http1: builder.clone().build_http(),
            http2: builder.clone().http2_only(true).build_http(),
            fates: Mutex::default(),
            tries: Mutex::default(),
            answers: Mutex::default(),
            replays: AtomicUsize::new(0),
            conflicts: AtomicUsize::new(0),
            late: Mutex::default(),
        })
    }

    /// Brings a request to one of the servers.
    async fn deliver(
        &self,
        mut request: Request<Full<Bytes>>,
        server: u64,
    ) -> Result<Answer, BoxError> {
        let key = request.headers()["idempotency-key"].to_str()?;
        let key = key.trim_matches('"').to_owned();
        let server = self.servers[server as usize % self.servers.len()];
        let path = request.uri().path();
        *request.uri_mut() = format!("http://{server}{path}").parse::<Uri>()?;
        let client = match request.headers().contains_key(header::TE) {
            true => &self.http2,
            false => &self.http1,
        };
        let (mut parts, body) = client.request(request).await?.into_parts();
        let body = body.collect().await?;
        parts.headers.remove(header::DATE);
        if parts.headers.remove("idempotent-replayed").is_some() {
            self.replays.fetch_add(1, SeqCst);
        }
        let mut answer = Answer {
            status: parts.status,
            headers: parts.headers,
            trailers: body.trailers().cloned(),
            body: body.to_bytes(),
        };
        // An empty map of trailers and none are the same on the wire.
        answer.trailers = answer.trailers.filter(|trailers| !trailers.is_empty());
        let done = answer.status == StatusCode::CREATED
            || (answer.trailers.as_ref()).is_some_and(|map| map["grpc-status"] == "0");
        if done {
            let mut answers = self.answers.lock().unwrap();
            answers.entry(key).or_default().push(answer.clone());
        } else {
            self.conflicts.fetch_add(1, SeqCst);
        }
        Ok(answer)
    }

    async fn carry(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<BoxBody<Bytes, BoxError>>, BoxError> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let key = parts.headers["idempotency-key"].to_str()?;
        let key = key.trim_matches('"').to_owned();
        let number: usize = key.trim_start_matches("order-").parse()?;
        let attempt = {
            let mut tries = self.tries.lock().unwrap();
            let tries = tries.entry(key).or_default();
            *tries += 1;
            *tries
        };
        let request = Request::from_parts(parts, Full::from(body));
        let roll = |what| random(self.seed, [number, attempt, what]);
        let pause = Duration::from_millis(roll(1) % 40);
        let fate = Fate::of(roll(0));
        *self.fates.lock().unwrap().entry(fate).or_default() += 1;
        let first = self.deliver(request.clone(), roll(2));
        let lost = || io::Error::other("the network lost it");
        let answer = match fate {
            Fate::Delivered => first.await?,
            Fate::RequestLost => return Err(lost().into()),
            Fate::AnswerLost => {
                first.await?;
                return Err(lost().into());
            }
            Fate::AnswerCut => {
                let answer = first.await?;
                let half = answer.body.slice(..answer.body.len() / 2);
                let frames = [Ok(Frame::data(half)), Err(BoxError::from(lost()))];
                let frames = futures::stream::iter(frames);
                return Ok(answer.head(BodyExt::boxed(StreamBody::new(frames))));
            }
            Fate::Twice => {
                let second = self.deliver(request, roll(3));
                let (first, second) = futures::join!(first, second);
                if roll(4) % 2 == 0 { first? } else { second? }
            }
            Fate::TwiceLate => {
                let answer = first.await?;
                let (network, server) = (Arc::clone(&self), roll(3));
                self.late.lock().unwrap().spawn(async move {
                    sleep(pause).await;
                    network.deliver(request, server).await.unwrap();
                });
                answer
            }
            Fate::Delayed => {
                sleep(pause).await;
                first.await?
            }
            Fate::Refused => {
                if roll(3) % 2 == 0 {
                    first.await?;
                }
                let status = [429, 502, 503, 504][roll(4) as usize % 4];
                let mut response = Response::new(Full::from("try again"));
                *response.status_mut() = StatusCode::from_u16(status)?;
                if roll(5) % 2 == 0 {
                    let soon = HeaderValue::from_static("0");
                    response.headers_mut().insert(header::RETRY_AFTER, soon);
                }
                return Ok(response.map(|body| body.map_err(|never| match never {}).boxed()));
            }
            Fate::Silence => {
                first.await?;
                std::future::pending().await
            }
            Fate::Void => std::future::pending().await,
        };
        let frames = [
            Some(Ok(Frame::data(answer.body.clone()))),
            answer.trailers.clone().map(|map| Ok(Frame::trailers(map))),
        ];
        let frames = futures::stream::iter(frames.into_iter().flatten());
        Ok(answer.head(BodyExt::boxed(StreamBody::new(frames))))
    }

    fn count(&self, fate: Fate) -> usize {
        self.fates.lock().unwrap().get(&fate).copied().unwrap_or(0)
    }
}

impl Answer {
    fn head<B>(&self, body: B) -> Response<B> {
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response
    }
}

/// Tries as often as it takes, and does not wait long for a silent network.
fn layer() -> RetryLayer {
    let policy = RetryPolicy::new()
        .tries(60)
        .time(PATIENCE)
        .delays(Duration::from_millis(5), 2 * SECOND)
        .budget(Arc::new(TpsBudget::new(10 * SECOND, 1000, 1.0)));
    RetryLayer::new(policy).try_timeout(SECOND)
}

/// What one client does: pays an order through the network, and tells the answer.
type Operation = Box<dyn Fn(String) -> BoxFuture<'static, Result<String, BoxError>> + Send>;

/// Two servers that share a store, a network, and many operations of one client at once. If they are
/// not `protected`, the servers have the layer, but it covers nothing.
async fn run(name: &str, protected: bool, client: impl FnOnce(SocketAddr) -> Operation) {
    let ledger = Ledger::default();
    let layer = IdempotencyLayer::new(Arc::new(MemoryStore::new()), Scope::single_tenant())
        .covers(move |_| protected)
        .require_key(true)
        .retry_after(SECOND);
    let mut servers = Vec::new();
    for _ in 0..2 {
        let ledger = ledger.clone();
        let handler = service_fn(move |request| pay(ledger.clone(), request));
        servers.push(serve(layer.layer(handler)).await);
    }
    let seed = seed();
    println!("{name}: NETWORK_SEED={seed}");
    let network = Network::new(seed, servers);
    let carried = Arc::clone(&network);
    let address = serve(service_fn(move |request| {
        Arc::clone(&carried).carry(request).boxed()
    }))
    .await;

    let operation = client(address);
    let operations = (0..OPERATIONS).map(|n| {
        let order = format!("order-{n}");
        operation(order.clone()).map(|answer| (order, answer))
    });
    let operations = futures::stream::iter(operations).buffer_unordered(AT_ONCE);
    let answers: Vec<_> = tokio::time::timeout(PATIENCE, operations.collect())
        .await
        .expect("all operations end in time");
    // What is still on its way arrives.
    let late = std::mem::take(&mut *network.late.lock().unwrap());
    late.join_all().await;
    layer.drain().await;

    let done = ledger.0.lock().unwrap().clone();
    let tries: usize = network.tries.lock().unwrap().values().sum();
    println!(
        "{name}: operations {OPERATIONS}, effects {}, tries {tries}; requests lost {}, answers \
         lost {}, cut {}, delivered twice {}, delayed {}, refused {}, silence {}; replays {}, \
         conflicts {}",
        done.len(),
        network.count(Fate::RequestLost),
        network.count(Fate::AnswerLost),
        network.count(Fate::AnswerCut),
        network.count(Fate::Twice) + network.count(Fate::TwiceLate),
        network.count(Fate::Delayed),
        network.count(Fate::Refused),
        network.count(Fate::Silence) + network.count(Fate::Void),
        network.replays.load(SeqCst),
        network.conflicts.load(SeqCst),
    );
    if !protected {
        let different: HashSet<_> = done.iter().collect();
        assert_eq!(different.len(), OPERATIONS);
        assert!(done.len() > OPERATIONS, "the network does no harm");
        return;
    }
    let number_of: HashMap<_, _> = done.iter().zip(1..).collect();
    assert_eq!((done.len(), number_of.len()), (OPERATIONS, OPERATIONS));
    let seen = network.answers.lock().unwrap();
    for (order, answer) in answers {
        let answer = answer.unwrap_or_else(|error| panic!("{order}: {error:?}"));
        let number = number_of[&order];
        let expected = format!("payment {number} for {order}{}", ".".repeat(1000));
        assert_eq!(answer, expected, "{order}");
        // And every answer that a server gave to it, lost or not, is the same one.
        let (first, rest) = seen[&order].split_first().unwrap();
        assert!(rest.iter().all(|again| again == first), "{order}: {rest:?}");
    }
    assert_eq!(
        network.fates.lock().unwrap().len(),
        10,
        "all fates happened"
    );
    assert!(tries > OPERATIONS && network.replays.load(SeqCst) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_s26_hyper_over_a_network_that_loses_things() {
    run("hyper", true, hyper).await;
}

/// What the network does to those who are not protected: the other tests prove something.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s33_without_protection_operations_have_several_effects() {
    run("hyper, unprotected", false, hyper).await;
}

fn hyper(network: SocketAddr) -> Operation {
    let pool = Client::builder(TokioExecutor::new()).build_http::<RepeatBody<Full<Bytes>>>();
    let client = ServiceBuilder::new()
        .layer(SetIdempotencyKeyLayer::new().quoted())
        .layer(layer())
        .service(pool);
    Box::new(move |order| {
        let client = client.clone();
        let request = Request::post(format!("http://{network}/payments"))
            .extension(IdempotencyKey::new(&order).unwrap())
            .body(Full::<Bytes>::from(order));
        async move {
            let response = client.oneshot(request?).await?;
            assert_eq!(response.status(), StatusCode::CREATED);
            let body = response.into_body().collect().await?.to_bytes();
            Ok(String::from_utf8(body.to_vec())?)
        }
        .boxed()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_s26_reqwest_over_a_network_that_loses_things() {
    run("reqwest", true, |network| {
        let pool = reqwest::Client::new();
        let client = layer().layer(service_fn(
            move |request: Request<RepeatBody<reqwest::Body>>| {
                let pool = pool.clone();
                async move {
                    let request = request.map(reqwest::Body::wrap).try_into()?;
                    let response = pool.execute(request).await?;
                    Ok::<_, reqwest::Error>(Response::<reqwest::Body>::from(response))
                }
            },
        ));
        Box::new(move |order| {
            let client = client.clone();
            let request = Request::post(format!("http://{network}/payments"))
                .header("idempotency-key", &order)
                .body(reqwest::Body::from(order));
            async move {
                let response = client.oneshot(request?).await?;
                assert_eq!(response.status(), StatusCode::CREATED);
                let body = response.into_body().collect().await?.to_bytes();
                Ok(String::from_utf8(body.to_vec())?)
            }
            .boxed()
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_s26_tonic_over_a_network_that_loses_things() {
    run("tonic", true, |network| {
        let endpoint = Endpoint::from_shared(format!("http://{network}")).unwrap();
        let client = ServiceBuilder::new()
            .layer(SetIdempotencyKeyLayer::new())
            .layer(layer())
            .map_request(|request: Request<RepeatBody<tonic::body::Body>>| {
                request.map(tonic::body::Body::new)
            })
            .service(endpoint.connect_lazy());
        Box::new(move |order| {
            let mut client = tonic::client::Grpc::new(client.clone());
            async move {
                let mut request = tonic::Request::new(order.clone());
                let extensions = request.extensions_mut();
                extensions.insert(IdempotencyKey::new(&order)?);
                client.ready().await?;
                let path = PathAndQuery::from_static("/bank.Bank/Pay");
                let codec = ProstCodec::<String, String>::default();
                Ok(client.unary(request, path, codec).await?.into_inner())
            }
            .boxed()
        })
    })
    .await;
}
