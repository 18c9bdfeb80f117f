//! Where the layer can be put, without a framework: builders, boxes, stores behind pointers, and
//! services that choose or make services.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full, combinators::BoxBody};
use tower::{
    BoxError, Layer, MakeService, ServiceBuilder, ServiceExt,
    buffer::Buffer,
    layer::layer_fn,
    limit::ConcurrencyLimit,
    make::Shared,
    service_fn,
    steer::Steer,
    util::{BoxCloneService, BoxCloneServiceLayer, BoxCloneSyncService, BoxService, MapErrLayer},
};
use tower_http::{map_request_body::MapRequestBodyLayer, map_response_body::MapResponseBodyLayer};
use tower_idempotency::{
    Idempotency, IdempotencyLayer, MemoryStore, RequestBody, ResponseBody, ResponseFuture, Scope,
    Store,
};

use crate::support::{
    Payments, Scripted, ask, ask_it, assert_once, assert_paid, layer, post, post_to,
};

type Full1 = Full<Bytes>;
type Boxed = BoxBody<Bytes, Infallible>;

/// What a stack may ask of the types of this crate. They are as much `Send` and `Sync` as what they
/// hold.
#[test]
fn auto_traits() {
    fn send<T: Send + 'static>() {}
    fn sync<T: Send + Sync + 'static>() {}
    fn default<T: Default>() {}
    struct NotDefault;

    sync::<IdempotencyLayer<MemoryStore>>();
    sync::<Idempotency<Payments>>();
    sync::<RequestBody<Full1>>();
    sync::<ResponseBody<Full1>>();
    sync::<ResponseBody<Boxed>>();
    type Call = std::future::Ready<Result<Response<Full1>, Infallible>>;
    send::<ResponseFuture<Call, Full1, Infallible>>();
    default::<ResponseBody<NotDefault>>();
}

#[tokio::test]
async fn in_a_service_builder() {
    let payments = Payments::new();
    let service = ServiceBuilder::new()
        .boxed_clone()
        .layer(layer_fn(|inner| ConcurrencyLimit::new(inner, 8)))
        .layer(layer(MemoryStore::new()))
        .layer(layer_fn(|inner| ConcurrencyLimit::new(inner, 8)))
        .map_response(|response: Response<Full1>| response)
        .service(payments.clone());
    assert_once(&service, &payments).await;

    // As a tuple, and as a stack that is a layer itself.
    let payments = Payments::new();
    let stack = ServiceBuilder::new().layer(layer(MemoryStore::new()));
    let service = (MapResponseBodyLayer::new(Boxed::new), stack).layer(payments.clone());
    assert_once(&service, &payments).await;
}

/// Switched off it covers nothing, and keeps its place.
#[tokio::test]
async fn p10_switched_off() {
    let (payments, store) = (Payments::new(), Scripted::new());
    let off = layer(store.clone()).require_key(true).covers(|_| false);
    let service = off.layer(payments.clone());
    for number in 1..=2 {
        let answer = ask(&service, post("k", "b")).await;
        assert_eq!(answer.text(), format!("effect {number}: b"));
    }
    assert_eq!(store.calls(), []);
}

/// `option_layer` asks for the same types with the layer and without it: bodies that hide theirs.
#[tokio::test]
async fn in_an_option_layer() {
    for on in [true, false] {
        let payments = Payments::new();
        let idempotency = on.then(|| {
            (
                MapResponseBodyLayer::new(BodyExt::boxed),
                layer(MemoryStore::new()),
                MapRequestBodyLayer::new(BodyExt::boxed),
            )
        });
        let service = ServiceBuilder::new()
            .map_request(|request: Request<Full1>| request.map(BodyExt::boxed))
            .option_layer(idempotency)
            .layer(MapResponseBodyLayer::new(<Full1 as BodyExt>::boxed))
            .service(payments.clone());
        match on {
            true => assert_once(&service, &payments).await,
            false => {
                for replay in 1..=2 {
                    let answer = ask(&service, post("k", "b")).await;
                    assert_eq!(answer.text(), format!("effect {replay}: b"));
                }
            }
        }
    }
}

#[tokio::test]
async fn around_and_inside_of_boxed_services() {
    let payments = Payments::new();
    let outer = BoxCloneService::new(layer(MemoryStore::new()).layer(payments.clone()));
    assert_once(&outer, &payments).await;

    let payments = Payments::new();
    let outer = BoxCloneSyncService::new(layer(MemoryStore::new()).layer(payments.clone()));
    assert_once(&outer, &payments).await;

    let payments = Payments::new();
    let mut outer = BoxService::new(layer(MemoryStore::new()).layer(payments.clone()));
    for _ in 0..2 {
        assert_eq!(
            ask_it(&mut outer, post("k", "b")).await.text(),
            "effect 1: b"
        );
    }
    assert_eq!(payments.effects(), 1);

    let payments = Payments::new();
    let inner: BoxCloneService<Request<RequestBody<Full1>>, Response<Full1>, Infallible> =
        BoxCloneService::new(payments.clone());
    assert_once(&layer(MemoryStore::new()).layer(inner), &payments).await;

    let payments = Payments::new();
    let inner: BoxCloneSyncService<Request<RequestBody<Full1>>, Response<Full1>, BoxError> =
        BoxCloneSyncService::new(MapErrLayer::new(BoxError::from).layer(payments.clone()));
    let service = BoxCloneSyncService::new(layer(MemoryStore::new()).layer(inner));
    assert_once(&service, &payments).await;

    // The layer itself in a box.
    let payments = Payments::new();
    let boxed = BoxCloneServiceLayer::new(layer(MemoryStore::new()));
    assert_once(&boxed.layer(payments.clone()), &payments).await;
}

/// The layer does not ask what the error is: it hands it on.
#[tokio::test]
async fn the_inner_error_type_is_kept() {
    #[derive(Debug, PartialEq)]
    struct OutOfPaper(u32);
    let printer = service_fn(|_: Request<RequestBody<Full1>>| async {
        Err::<Response<Empty<Bytes>>, _>(OutOfPaper(7))
    });
    let service = layer(MemoryStore::new()).layer(printer);
    let error = service.clone().oneshot(post("k", "b")).await.unwrap_err();
    assert_eq!(error, OutOfPaper(7));
    let outside = MapErrLayer::new(|error: OutOfPaper| error.0).layer(service);
    assert_eq!(outside.oneshot(post("k", "b")).await.unwrap_err(), 7);
}

/// A store that is chosen at run time, behind each kind of pointer.
#[tokio::test]
async fn over_a_dyn_store() {
    let store = MemoryStore::new();
    let scope = Scope::single_tenant;
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let boxed: Box<dyn Store> = Box::new(store.clone());
    let payments = Payments::new();
    let first = IdempotencyLayer::new(shared, scope()).layer(payments.clone());
    assert_paid(&ask(&first, post("k", "b")).await, false);
    let second = IdempotencyLayer::new(boxed, scope()).layer(payments.clone());
    assert_paid(&ask(&second, post("k", "b")).await, true);
    let erased: [IdempotencyLayer<dyn Store>; 2] = [
        IdempotencyLayer::new(store.clone(), scope()).into(),
        IdempotencyLayer::new(Scripted::new(), scope()).into(),
    ];
    let [third, other] = erased.map(|layer| (layer.clone().layer(payments.clone()), layer));
    assert_paid(&ask(&third.0, post("k", "b")).await, true);
    assert_eq!(ask(&other.0, post("k", "b")).await.text(), "effect 2: b");
    assert!(other.1.store().get(&some_key()).await.unwrap().is_none());
    assert_eq!(store.len(), 1);
}

fn some_key() -> tower_idempotency::StoreKey {
    tower_idempotency::StoreKey::new("idem", "", "", "never")
}

/// Each of the services that one chooses from has the layer, or all have it together.
#[tokio::test]
async fn around_and_inside_of_steer() {
    fn pick<B, S>(request: &Request<B>, _: &[S]) -> usize {
        usize::from(request.uri().path() != "/pay")
    }
    let (payments, others) = (Payments::new(), Payments::new());
    let layer = layer(MemoryStore::new());
    let layered = [&payments, &others].map(|service| layer.layer(service.clone()));
    let service = Steer::new(layered, pick::<Full1, _>);
    assert_once(&service, &payments).await;
    assert_paid(&ask(&service, post_to("/other", "k", "b")).await, false);
    assert_eq!(others.effects(), 1);

    let services = [payments.clone(), others.clone()];
    let service = layer.layer(Steer::new(services, pick::<RequestBody<Full1>, _>));
    // The records are the same ones.
    assert_paid(&ask(&service, post_to("/other", "k", "b")).await, true);

    // A clone of `Steer` that was ready takes its services for ready, whether they are or not: over
    // services with limits it stands behind a buffer.
    let (payments, others) = (Payments::new(), Payments::new());
    let services = [&payments, &others].map(|service| ConcurrencyLimit::new(service.clone(), 1));
    let steer = Buffer::new(Steer::new(services, pick::<RequestBody<Full1>, _>), 8);
    let service = crate::base::layer(MemoryStore::new()).layer(steer);
    assert_once(&service, &payments).await;
}

/// A service for each connection, all of one layer.
#[tokio::test]
async fn inside_of_a_make_service() {
    let (payments, idempotency) = (Payments::new(), layer(MemoryStore::new()));
    let make = {
        let payments = payments.clone();
        service_fn(move |_address: u16| {
            let service = idempotency.layer(payments.clone());
            async move { Ok::<_, Infallible>(service) }
        })
    };
    assert_one_for_all_connections(make, &payments).await;

    let payments = Payments::new();
    let make = Shared::new(layer(MemoryStore::new()).layer(payments.clone()));
    assert_one_for_all_connections(make, &payments).await;
}

async fn assert_one_for_all_connections<M>(mut make: M, payments: &Payments)
where
    M: MakeService<
            u16,
            Request<Full1>,
            Response = Response<ResponseBody<Full1>>,
            Error = Infallible,
            Service = Idempotency<Payments>,
            MakeError = Infallible,
        >,
{
    for (connection, replay) in [(1, false), (2, true)] {
        std::future::poll_fn(|cx| make.poll_ready(cx))
            .await
            .unwrap();
        let service = make.make_service(connection).await.unwrap();
        assert_paid(&ask(&service, post("k", "b")).await, replay);
    }
    assert_eq!(payments.effects(), 1);
}
