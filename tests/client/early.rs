//! S26: over sockets, an answer that comes before the body was sent.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use futures::stream;
use http::{Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_idempotency::client::RetryLayer;

const FRAMES: usize = 14;
const FRAME: usize = 64 * 1024;

/// The server does not read the body of the first try of each operation, over HTTP/1.1 and HTTP/2:
/// the next one brings all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s26_an_early_refusal_does_not_cost_the_body() {
    for http2 in [false, true] {
        let tries = Arc::new(AtomicU32::new(0));
        let server = service_fn(move |request: Request<Incoming>| {
            let first = tries.fetch_add(1, SeqCst).is_multiple_of(2);
            async move {
                let mut response = Response::new(Full::<Bytes>::default());
                if first {
                    *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                    return Ok(response);
                }
                let sum = request.into_body().collect().await?.to_bytes();
                let sum = sum.iter().map(|byte| usize::from(*byte)).sum::<usize>();
                *response.body_mut() = Full::from(sum.to_string());
                Ok::<_, hyper::Error>(response)
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = TowerToHyperService::new(server.clone());
                tokio::spawn(async move {
                    let server = auto::Builder::new(TokioExecutor::new());
                    drop(server.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        let mut pool = Client::builder(TokioExecutor::new());
        let client = RetryLayer::default().layer(pool.http2_only(http2).build_http());
        for _ in 0..5 {
            let frames =
                (0..FRAMES).map(|_| Ok::<_, Infallible>(Frame::data(vec![1; FRAME].into())));
            let request = Request::post(format!("http://{address}/"))
                .header("idempotency-key", "k")
                .header(header::CONTENT_LENGTH, FRAMES * FRAME)
                .body(StreamBody::new(stream::iter(frames.collect::<Vec<_>>())))
                .unwrap();
            let response = client.clone().oneshot(request).await;
            let response = response.unwrap_or_else(|error: BoxError| panic!("{error:?}"));
            let sum = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(sum, (FRAMES * FRAME).to_string());
        }
    }
}
