//! What the layer adds to a service that does nothing, beside the floor of each case in the same
//! run: the bare service, SHA-256 of the body.
//!
//! `cargo bench --bench requests`

use std::{convert::Infallible, hint::black_box};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::{Request, Response};
use http_body_util::Full;
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use tower::{Layer, Service, service_fn};
use tower_idempotency::{IdempotencyLayer, MemoryStore, RequestBody, Scope};

type Body = Full<Bytes>;

async fn handler<B>(_: Request<B>) -> Result<Response<Body>, Infallible> {
    Ok(Response::new(Full::from("done")))
}

fn layer() -> IdempotencyLayer<MemoryStore> {
    let store = MemoryStore::builder()
        .max_entries(usize::MAX)
        .max_bytes(usize::MAX)
        .build();
    IdempotencyLayer::new(store, Scope::single_tenant())
}

fn request(key: Option<&str>, body: &Bytes) -> Request<Body> {
    let mut request = Request::post("/payments");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    request.body(Full::new(body.clone())).expect("a request")
}

fn requests(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let _guard = runtime.enter();
    for size in [1024, 64 * 1024] {
        let body = Bytes::from(vec![7; size]);
        let mut group = c.benchmark_group(format!("{} KiB", size / 1024));
        group.throughput(Throughput::Bytes(size as u64));

        group.bench_function("floor: SHA-256 of the body", |b| {
            b.iter(|| Sha256::digest(black_box(&body)));
        });
        let mut bare = service_fn(handler::<Body>);
        group.bench_function("floor: bare service", |b| {
            b.iter(|| runtime.block_on(bare.call(request(Some("k"), &body))));
        });
        let mut service = layer().layer(service_fn(handler::<RequestBody<Body>>));
        group.bench_function("bypass", |b| {
            b.iter(|| runtime.block_on(service.call(request(None, &body))));
        });
        group.bench_function("replay", |b| {
            b.iter(|| runtime.block_on(service.call(request(Some("k"), &body))));
        });
        let mut number = 0_u64;
        group.bench_function("fresh", |b| {
            b.iter(|| {
                number += 1;
                runtime.block_on(service.call(request(Some(&number.to_string()), &body)))
            });
        });
        group.finish();
    }
}

criterion_group!(benches, requests);
criterion_main!(benches);
