//! The same behind the example `gateway`, before a service that knows nothing of keys.

use std::net::SocketAddr;

use crate::{
    library::Library,
    run::{Keys, run, served},
    servers::example::{Example, example},
};

/// It tells its callers apart by a header.
pub(crate) fn gateway(upstream: SocketAddr, caller: &str, flags: &[&str]) -> Example {
    let upstream = format!("http://{upstream}");
    let mut all = vec!["--listen", "127.0.0.1:0", "--upstream", &upstream];
    all.extend(["--scope-header", caller]);
    all.extend(flags);
    Example::start(example("gateway").args(all))
}

/// One that is told by a file where each library puts its keys, and `v1` of the first one's route.
pub(crate) fn for_both(upstream: SocketAddr, v1: &str) -> Example {
    let told = format!(
        r#"
        listen = "127.0.0.1:0"
        upstream = "http://{upstream}"

        [[route]]
        path = "/v1/*"
        key-header = "idempotency-key"
        require-key = true
        scope-header = "authorization"
        {v1}

        [[route]]
        path = "/v2/payments"
        key-json = "/idempotency_key"
        require-key = true
        scope-header = "authorization"
        "#
    );
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gateway.toml");
    std::fs::write(&file, told).expect("a file");
    // It is read before the gateway says where it listens.
    Example::start(example("gateway").arg("--config").arg(file))
}

/// U32, S26, P4: the library makes a key for each operation by itself.
#[tokio::test]
async fn u32_stripe_makes_its_keys() {
    let (upstream, server) = served(|app| app).await;
    let gateway = gateway(server.address(), "authorization", &[]);
    let what = "its keys, the gateway";
    let to = [gateway.address()];
    let run = run(Library::Stripe, Keys::OfTheLibrary, what, &upstream, &to).await;
    run.assert_once();
}

/// U32, S01, S09, P4: at the same time through one gateway, each with its own kind of keys.
#[tokio::test]
async fn u32_s01_stripe_and_square_with_keys_of_the_application() {
    let (upstream, server) = served(|app| app).await;
    let gateway = for_both(server.address(), "");
    let keys = Keys::OfTheApplication;
    let what = "the application's keys, one gateway for both";
    let to = [gateway.address()];
    let run = |library| run(library, keys, what, &upstream, &to);
    let (stripe, square) = tokio::join!(run(Library::Stripe), run(Library::Square));
    stripe.assert_once();
    square.assert_once();
}

/// U32, S14, U01: the tries of one operation, and duplicates at once, reach two gateways, which share
/// nothing but the store.
#[tokio::test]
async fn u01_s14_stripe_through_two_gateways() {
    let (upstream, server) = served(|app| app).await;
    let folder = tempfile::tempdir().expect("a folder");
    let store = format!("sqlite:{}", folder.path().join("records.db").display());
    let start = || gateway(server.address(), "authorization", &["--store", &store]);
    let gateways = [start(), start()];
    let to = gateways.each_ref().map(Example::address);
    let what = "its keys, two gateways";
    let run = run(Library::Stripe, Keys::OfTheLibrary, what, &upstream, &to).await;
    run.assert_once();
}
