//! What the layer takes from the allocator: nothing for a request that it does not cover (P10),
//! and for bodies in memory about what it counts (P9, U36).
//!
//! Allocations are counted for one thread at a time, so each server here has one thread, and its
//! clients have others.

#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    time::Duration,
};

use allocation_counter::{AllocationInfo, measure};
use bytes::Bytes;
use futures::FutureExt;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::sync::oneshot;
use tower::{Layer, Service, service_fn};
#[cfg(feature = "json")]
use tower_idempotency::Operation;
use tower_idempotency::{IdempotencyLayer, MemoryStore, RequestBody, Scope};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

fn layer() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new(), Scope::single_tenant())
}

async fn handler<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    drop(request);
    let done = Full::new(Bytes::from_static(b"done"));
    let mut response = Response::new(done);
    *response.status_mut() = http::StatusCode::CREATED;
    Ok(response)
}

/// What one request takes, from the call to the end of its answer.
fn cost<S, B>(service: &mut S, request: Request<Full<Bytes>>) -> (u64, u64)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Debug,
{
    let mut request = Some(request);
    let info = measure(|| {
        let call = service.call(request.take().unwrap());
        let response = call.now_or_never().unwrap().unwrap();
        let mut body = response.into_body();
        let frame = body.frame().now_or_never().unwrap().unwrap();
        assert_eq!(frame.unwrap().into_data().unwrap(), "done");
        assert!(body.frame().now_or_never().unwrap().is_none());
    });
    (info.count_total, info.bytes_total)
}

/// P10, S11: a request that the layer does not cover allocates what it does without the layer, and
/// not once more. It needs no runtime either.
#[test]
fn p10_s11_a_request_that_is_not_covered_allocates_nothing() {
    let request = |method: &str, headers: &[(&str, &str)]| {
        let request = Request::builder().method(method).uri("/pay?a=b");
        headers
            .iter()
            .fold(request, |request, (name, value)| {
                request.header(*name, *value)
            })
            .body(Full::new(Bytes::from_static(b"body")))
            .unwrap()
    };
    const KEY: (&str, &str) = ("idempotency-key", "k");
    let upgrade = [KEY, ("connection", "upgrade"), ("upgrade", "websocket")];
    let cases: [(&str, &[(&str, &str)]); 10] = [
        ("GET", &[KEY]),
        ("HEAD", &[KEY]),
        ("PUT", &[KEY]),
        ("DELETE", &[KEY]),
        ("OPTIONS", &[]),
        ("GET", &[]),
        ("POST", &[]),
        ("PATCH", &[("content-type", "application/json")]),
        ("POST", &[("content-type", "application/grpc")]),
        ("POST", &upgrade),
    ];
    let mut bare = service_fn(handler);
    let mut layered = layer().layer(service_fn(handler));
    for (method, headers) in cases {
        let floor = cost(&mut bare, request(method, headers));
        let with_layer = cost(&mut layered, request(method, headers));
        assert_eq!(with_layer, floor, "{method} {headers:?}");
    }
    let mut narrowed = layer().covers(|_| false).layer(service_fn(handler));
    let floor = cost(&mut bare, request("POST", &[KEY]));
    assert_eq!(cost(&mut narrowed, request("POST", &[KEY])), floor);
    // The counter counts.
    let mut boxed = tower::util::BoxService::new(service_fn(handler));
    assert!(cost(&mut boxed, request("GET", &[])) > floor);
}

/// What a covered request takes beyond the bare service, so that a change that takes more is
/// noticed. In either case three are the response's extensions, two a store call's future and the
/// record's name; a first request has three more in the request's extensions. The table of records
/// grows now and then, so the least of several counts.
#[tokio::test]
async fn a_covered_request_allocates_little() {
    let request = |key: &str| {
        let request = Request::post("/pay").header("idempotency-key", key);
        request
            .body(Full::new(Bytes::from_static(b"body")))
            .unwrap()
    };
    let mut bare = service_fn(handler);
    let mut layered = layer().layer(service_fn(handler));
    let (floor, _) = cost(&mut bare, request("k"));
    let mut least = |key: &dyn Fn(u32) -> String| {
        let costs = (0..100).map(|n| cost(&mut layered, request(&key(n))).0 - floor);
        costs.min().unwrap()
    };
    let first = least(&|n| format!("key-{n}"));
    assert!(first <= 17, "{first} for a first request");
    let replay = least(&|_| "key-0".to_owned());
    assert!(replay <= 9, "{replay} for a replay");
}

/// What the first call of a function takes: a transaction, which this store cannot have, costs
/// nothing.
#[cfg(feature = "json")]
#[tokio::test]
async fn a_function_allocates_little() {
    let operation = Operation::new("payment", MemoryStore::new());
    let costs = (0..100).map(|n| {
        let key = format!("key-{n}");
        let cost = measure(|| {
            let paid = operation.call(&key).input(&100);
            let paid = paid.run(|_| async { Ok::<_, Infallible>(1) });
            let done = paid.now_or_never().unwrap().unwrap();
            assert!(!done.is_replayed());
        });
        cost.count_total
    });
    let first = costs.min().unwrap();
    assert!(first <= 15, "{first} for a first call");
}

/// What a server over HTTP/1.1 takes while `client` is busy.
fn serving(
    layer: IdempotencyLayer<MemoryStore>,
    http: hyper::server::conn::http1::Builder,
    client: impl FnOnce(SocketAddr),
) -> AllocationInfo {
    let (address, bound) = mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let serve = async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        address.send(listener.local_addr().unwrap()).unwrap();
        let service = layer.layer(service_fn(handler::<RequestBody<_>>));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = TowerToHyperService::new(service.clone());
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        // Ends with the client, also where that panics.
        let _ = stopped.await;
    };
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        measure(|| runtime.block_on(serve))
    });
    client(bound.recv().unwrap());
    drop(stop);
    server.join().unwrap()
}

/// Begins a POST with a body of this length.
fn begin(addr: SocketAddr, key: &str, length: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    let patience = Some(Duration::from_secs(20));
    stream.set_read_timeout(patience).unwrap();
    let head = format!("POST / HTTP/1.1\r\nhost: x\r\nidempotency-key: {key}\r\n{length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

/// The status of the answer.
fn status(stream: &mut TcpStream) -> u16 {
    let mut line = [0; 12];
    stream.read_exact(&mut line).unwrap();
    std::str::from_utf8(&line[9..]).unwrap().parse().unwrap()
}

/// What hyper and the runtime take for one connection: a read buffer of up to 400 KiB, and its
/// next one.
const CONNECTION: usize = MIB;

/// P9, U36: in whatever packets a body comes, it takes no more than twice what is counted. The
/// pauses keep packets apart; where some meet all the same, it takes less.
#[test]
fn p9_u36_a_body_takes_about_what_is_counted() {
    for (packet, packets) in [
        (100, 1_000),
        (1_024, 1_500),
        (1_460, 1_500),
        (8_192, 500),
        (8_193, 500),
    ] {
        let length = packet * packets;
        let used = serving(
            layer().body_limit(length),
            hyper::server::conn::http1::Builder::new(),
            |addr| {
                let mut stream = begin(addr, "k", &format!("content-length: {length}"));
                for _ in 0..packets {
                    stream.write_all(&vec![b'x'; packet]).unwrap();
                    std::thread::sleep(Duration::from_micros(200));
                }
                assert_eq!(status(&mut stream), 201);
            },
        );
        let most = 2 * length + CONNECTION;
        assert!(
            used.bytes_max < most as u64,
            "{length} bytes in packets of {packet} took {}",
            used.bytes_max
        );
    }
}

/// P9: a body of 64 Ki chunks of one byte takes no more than one in a single piece.
#[test]
fn p9_chunks_of_one_byte_take_their_bytes() {
    let used = serving(
        layer(),
        hyper::server::conn::http1::Builder::new(),
        |addr| {
            let mut stream = begin(addr, "k", "transfer-encoding: chunked");
            for _ in 0..64 {
                stream.write_all(&b"1\r\nx\r\n".repeat(KIB)).unwrap();
            }
            stream.write_all(b"0\r\n\r\n").unwrap();
            assert_eq!(status(&mut stream), 201);
        },
    );
    let most = 2 * 64 * KIB + CONNECTION;
    assert!(used.bytes_max < most as u64, "{}", used.bytes_max);
}

/// U36: of sixty-four uploads of 1 MiB at once no more is in memory than the limit allows, doubled
/// at most, and what hyper needs for each connection, which is bounded here.
#[test]
fn u36_a_flood_takes_no_more_than_the_limit() {
    const CLIENTS: usize = 64;
    const LIMIT: usize = 4 * MIB;
    const BUFFER: usize = 16 * KIB;
    let mut http = hyper::server::conn::http1::Builder::new();
    http.max_buf_size(BUFFER);
    let used = serving(layer().buffer_limit(LIMIT), http, |addr| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| {
                std::thread::spawn(move || {
                    let length = format!("content-length: {MIB}");
                    let mut stream = begin(addr, &n.to_string(), &length);
                    for packet in vec![b'x'; MIB].chunks(1_460) {
                        // The server may have given up on one that is slow after its refusal.
                        if stream.write_all(packet).is_err() {
                            break;
                        }
                    }
                    status(&mut stream)
                })
            })
            .collect();
        let answers: Vec<_> = clients.into_iter().map(|c| c.join().unwrap()).collect();
        assert!(answers.iter().all(|status| [201, 503].contains(status)));
        assert!(answers.contains(&503), "there was room for all");
    });
    let most = 2 * LIMIT + CLIENTS * 4 * BUFFER + CONNECTION;
    assert!(used.bytes_max < most as u64, "{}", used.bytes_max);
    assert!(used.bytes_max > MIB as u64, "{}", used.bytes_max);
}
