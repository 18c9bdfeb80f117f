//! gRPC through the gateway: tonic at both ends.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures::{StreamExt as _, future::BoxFuture, stream};
use http::uri::PathAndQuery;
use tokio::{net::TcpListener, sync::mpsc};
use tonic::{
    Request, Response, Status, Streaming, body::Body, server::NamedService,
    transport::server::TcpIncoming,
};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::{
    servers::process::free_address,
    support::{Gateway, soon},
};

type Codec = ProstCodec<String, String>;

/// Counts what it is asked for, and echoes streams.
#[derive(Clone, Default)]
struct Till {
    payments: Arc<AtomicUsize>,
}

impl NamedService for Till {
    const NAME: &'static str = "shop.Till";
}

const PAY: PathAndQuery = PathAndQuery::from_static("/shop.Till/Pay");

/// The service on a free port.
async fn serve(till: Till) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(till);
    let serving = server.serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(serving);
    addr
}

struct Pay(Arc<AtomicUsize>);

impl tonic::server::UnaryService<String> for Pay {
    type Response = String;
    type Future = BoxFuture<'static, Result<Response<String>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let number = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        let what = request.into_inner();
        Box::pin(async move {
            match &what[..] {
                "" => return Err(Status::invalid_argument("how much?")),
                "once" if number == 1 => return Err(Status::internal("it broke")),
                _ => {}
            }
            let mut answer = Response::new(format!("payment {number} of {what}"));
            answer.metadata_mut().insert("x-till", "7".parse().unwrap());
            Ok(answer)
        })
    }
}

struct Echo;

impl tonic::server::StreamingService<String> for Echo {
    type Response = String;
    type ResponseStream = stream::BoxStream<'static, Result<String, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<String>>) -> Self::Future {
        Box::pin(async { Ok(Response::new(request.into_inner().boxed())) })
    }
}

impl Service<http::Request<Body>> for Till {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let pay = Pay(Arc::clone(&self.payments));
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Codec::default());
            Ok(match request.uri().path() {
                "/shop.Till/Pay" => grpc.unary(pay, request).await,
                _ => grpc.streaming(Echo, request).await,
            })
        })
    }
}

type Client = tonic::client::Grpc<tonic::transport::Channel>;

async fn client(gateway: &Gateway) -> Client {
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", gateway.addr));
    let channel = soon("a channel", channel.unwrap().connect()).await;
    Client::new(channel.unwrap())
}

/// Calls under a key.
async fn pay(
    client: &mut Client,
    key: &'static str,
    what: &str,
) -> Result<Response<String>, Status> {
    client.ready().await.unwrap();
    let mut request = Request::new(what.to_owned());
    let key = key.parse().unwrap();
    request.metadata_mut().insert("idempotency-key", key);
    let call = client.unary(request, PAY, Codec::default());
    soon("an answer", call).await
}

/// S04, U03, U26: what is known of a key is told by gRPC's own statuses, and so is what a service did.
#[tokio::test]
async fn s04_u03_u26_grpc_statuses_decide() {
    let till = Till::default();
    let addr = serve(till.clone()).await;
    let gateway = Gateway::start(addr, &["--upstream-http2"]);
    let mut client = client(&gateway).await;
    let failed = pay(&mut client, "k", "once").await.unwrap_err();
    assert_eq!(failed.code(), tonic::Code::Internal);
    let other = pay(&mut client, "k", "2 EUR").await.unwrap_err();
    assert_eq!(other.code(), tonic::Code::FailedPrecondition);
    let again = pay(&mut client, "k", "once").await.unwrap();
    assert_eq!(again.get_ref(), "payment 2 of once");
    // A mistake costs no key.
    let refused = pay(&mut client, "m", "").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let mended = pay(&mut client, "m", "3 EUR").await.unwrap();
    assert_eq!(mended.get_ref(), "payment 4 of 3 EUR");
    let nowhere = Gateway::start(free_address(), &["--upstream-http2"]);
    let down = pay(&mut self::client(&nowhere).await, "d", "1 EUR").await;
    let down = down.unwrap_err();
    assert_eq!(down.code(), tonic::Code::Unavailable);
}

/// S09, P2, P10: a unary call under a key keeps message, metadata and status; a call both ways without
/// one flows.
#[tokio::test]
async fn s09_p2_p10_grpc_calls() {
    let till = Till::default();
    let addr = serve(till.clone()).await;
    let gateway = Gateway::start(addr, &["--upstream-http2"]);
    let mut client = client(&gateway).await;
    for replayed in [false, true] {
        let answer = pay(&mut client, "k", "1 EUR").await.unwrap();
        assert_eq!(answer.get_ref(), "payment 1 of 1 EUR");
        assert_eq!(answer.metadata().get("x-till").unwrap(), "7");
        let told = answer.metadata().contains_key("idempotent-replayed");
        assert_eq!(told, replayed);
    }
    assert_eq!(till.payments.load(Ordering::SeqCst), 1);

    client.ready().await.unwrap();
    let call = client.unary(Request::new(String::new()), PAY, Codec::default());
    let refused: Result<Response<String>, _> = soon("an answer", call).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::InvalidArgument);

    client.ready().await.unwrap();
    let (words, receiver) = mpsc::unbounded_channel();
    words.send("one".to_owned()).unwrap();
    let request = Request::new(stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    }));
    let echo = PathAndQuery::from_static("/shop.Till/Echo");
    let call = client.streaming(request, echo, Codec::default());
    let mut answers: Streaming<String> = soon("an answer", call).await.unwrap().into_inner();
    for word in ["one", "two", "three"] {
        if word != "one" {
            words.send(word.to_owned()).unwrap();
        }
        let heard = soon("a word", answers.message()).await.unwrap();
        assert_eq!(heard.as_deref(), Some(word));
    }
    drop(words);
    assert!(soon("the end", answers.message()).await.unwrap().is_none());
}
