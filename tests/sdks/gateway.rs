//! The same behind the example `gateway`, before a service that knows nothing of keys.

use std::net::SocketAddr;

use crate::{
    example::Example,
    library::Library,
    run::{Keys, run, served},
};

/// It tells its callers apart by a header.
pub(crate) fn gateway(upstream: SocketAddr, caller: &str, flags: &[&str]) -> Example {
    let upstream = format!("http://{upstream}");
    let mut all = vec!["--addr", "127.0.0.1:0", "--upstream", &upstream];
    all.extend(["--store", "memory", "--scope-header", caller]);
    all.extend(flags);
    Example::start("gateway", &all)
}

/// U32, S26, P4: the library makes a key for each operation by itself.
#[tokio::test]
async fn u32_stripe_makes_its_keys() {
    let (upstream, server) = served(|app| app).await;
    let gateway = gateway(server.address(), "authorization", &[]);
    let what = "its keys, the gateway";
    let to = gateway.address();
    let run = run(Library::Stripe, Keys::OfTheLibrary, what, &upstream, to).await;
    run.assert_once();
}

/// U32, S09, P4.
#[tokio::test]
async fn u32_stripe_with_keys_of_the_application() {
    let (upstream, server) = served(|app| app).await;
    let gateway = gateway(server.address(), "authorization", &[]);
    let what = "the application's keys, the gateway";
    let to = gateway.address();
    let run = run(Library::Stripe, Keys::OfTheApplication, what, &upstream, to).await;
    run.assert_once();
}
