//! The layer itself before the service, and nothing before it.

use axum::Router;
use tower_idempotency::{IdempotencyLayer, KeySource, MemoryStore, Scope};

use crate::{
    library::Library,
    run::{Keys, run, served},
};

pub(crate) fn idempotency() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new(), Scope::header("authorization")).require_key(true)
}

pub(crate) fn by_header(app: Router) -> Router {
    app.layer(idempotency())
}

pub(crate) fn by_member(app: Router) -> Router {
    app.layer(idempotency().key(KeySource::json_pointer("/idempotency_key")))
}

/// U32, S26: the library makes a key for each operation by itself.
#[tokio::test]
async fn u32_stripe_makes_its_keys() {
    let (upstream, server) = served(by_header).await;
    let what = "its keys, the layer";
    let to = [server.address()];
    run(Library::Stripe, Keys::OfTheLibrary, what, &upstream, &to)
        .await
        .assert_once();
}

/// U32, S09.
#[tokio::test]
async fn u32_stripe_with_keys_of_the_application() {
    let (upstream, server) = served(by_header).await;
    let what = "the application's keys, the layer";
    let to = [server.address()];
    run(
        Library::Stripe,
        Keys::OfTheApplication,
        what,
        &upstream,
        &to,
    )
    .await
    .assert_once();
}

/// U32, S01: the key is in the body.
#[tokio::test]
async fn u32_s01_square() {
    let (upstream, server) = served(by_member).await;
    let to = [server.address()];
    run(
        Library::Square,
        Keys::OfTheApplication,
        "the layer",
        &upstream,
        &to,
    )
    .await
    .assert_once();
}

/// What the others show is not the network's doing, nor the library's.
#[tokio::test]
async fn without_the_layer_effects_are_repeated() {
    for (library, keys) in [
        (Library::Stripe, Keys::OfTheLibrary),
        (Library::Square, Keys::OfTheApplication),
    ] {
        let (upstream, server) = served(|app| app).await;
        let to = [server.address()];
        let run = run(library, keys, "no protection", &upstream, &to).await;
        run.assert_repeated();
    }
}
