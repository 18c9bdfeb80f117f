//! The layer around what a tonic client calls.

use std::{
    convert::Infallible,
    future::ready,
    net::TcpListener,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, Request, Response, uri::PathAndQuery};
use http_body::Frame;
use http_body_util::StreamBody;
use tonic::{
    Code, Status,
    client::{Grpc, GrpcService},
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tower::{Layer, service_fn};
use tower_idempotency::{
    Execution, MemoryStore,
    client::{Purpose, SetIdempotencyKeyLayer, SetKeyError},
};

use crate::{base::layer, calls::operation};

#[derive(Clone, PartialEq, prost::Message)]
struct Charge {
    #[prost(uint32, tag = "1")]
    cents: u32,
}

/// One call, as a generated client makes it.
async fn charge<C>(client: C, purpose: Option<&'static str>) -> Result<u32, Status>
where
    C: GrpcService<tonic::body::Body>,
    C::ResponseBody: Send + 'static,
    <C::ResponseBody as http_body::Body>::Error: Into<tower::BoxError>,
{
    let mut client = Grpc::new(client);
    let ready = client.ready().await;
    ready.map_err(|error| Status::from_error(error.into()))?;
    let mut request = tonic::Request::new(Charge { cents: 500 });
    if let Some(purpose) = purpose {
        request.extensions_mut().insert(Purpose::new(purpose));
    }
    let path = PathAndQuery::from_static("/bank.Bank/Charge");
    let codec = ProstCodec::<Charge, Charge>::default();
    let charged = client.unary(request, path, codec).await?;
    Ok(charged.into_inner().cents)
}

/// S26, S25: the key is metadata, bare; calls of an execution have derived ones, and a purpose goes
/// with tonic's request. An error in the head of the answer gives the purpose back.
#[tokio::test]
async fn s25_s26_calls_of_tonic_have_keys() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let log = sent.clone();
    let server = service_fn(move |request: Request<tonic::body::Body>| {
        let key = request.headers()["idempotency-key"].to_str().unwrap();
        let mut sent = log.lock().unwrap();
        sent.push(key.to_owned());
        let mut response = Response::new(());
        let headers = response.headers_mut();
        headers.insert("content-type", "application/grpc".parse().unwrap());
        if sent.len() == 1 {
            headers.insert("grpc-status", "14".parse().unwrap());
            return ready(Ok::<_, Infallible>(
                response.map(|()| tonic::body::Body::empty()),
            ));
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let message = Bytes::from_static(&[0, 0, 0, 0, 3, 8, 0xf4, 3]);
        let frames = [Frame::data(message), Frame::trailers(trailers)];
        let frames = stream::iter(frames.map(Ok::<_, Infallible>));
        ready(Ok(
            response.map(|()| tonic::body::Body::new(StreamBody::new(frames)))
        ))
    });
    let client = SetIdempotencyKeyLayer::new().require_execution(true);
    let client = client.layer(server);

    let outside = charge(client.clone(), None).await.unwrap_err();
    let source = std::error::Error::source(&outside).unwrap();
    let reason = source.downcast_ref::<SetKeyError>();
    assert_eq!(reason, Some(&SetKeyError::NoExecution));

    let seen = sent.clone();
    let status = operation(
        &layer(MemoryStore::new()),
        "k",
        async move |execution: Execution| {
            let failed = charge(client.clone(), Some("deposit")).await.unwrap_err();
            assert_eq!(failed.code(), Code::Unavailable);
            let charged = charge(client.clone(), Some("deposit")).await;
            assert_eq!(charged.unwrap(), 500);
            assert_eq!(charge(client.clone(), None).await.unwrap(), 500);
            for purpose in [Some("deposit"), None] {
                let refused = charge(client.clone(), purpose).await.unwrap_err();
                assert!(refused.message().contains("Purpose"), "{refused:?}");
            }

            let keys = ["deposit", "deposit", "POST /bank.Bank/Charge"];
            let keys = keys.map(|purpose| execution.derive(purpose));
            assert_eq!(*seen.lock().unwrap(), keys);
            201
        },
    );
    assert_eq!(status.await, 201);
}

/// A `Channel` fits under the layer, and its errors keep their meaning.
#[tokio::test]
async fn a_channel_keeps_its_errors() {
    // Nobody listens on a port that was just given back.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let channel: Channel = Endpoint::from_shared(format!("http://{addr}"))
        .unwrap()
        .connect_lazy();
    let channel = SetIdempotencyKeyLayer::new().layer(channel);
    let failed = charge(channel, None).await.unwrap_err();
    assert_eq!(failed.code(), Code::Unavailable, "{failed:?}");
}
