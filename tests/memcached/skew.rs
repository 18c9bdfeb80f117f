//! Clients whose clocks are an hour off.

use crate::{
    servers::skew,
    support::{MemcachedServer, MemcachedStore, store},
};

/// P1, S16: the clock is the server's.
#[tokio::test]
async fn p1_s16_clients_clocks_may_be_an_hour_off() {
    let server = MemcachedServer::start(&[]);
    let store = store(&server);
    let address = server.address().to_string();
    skew::leave(&store).await;
    for offset in skew::OFFSETS {
        skew::run("skew::skewed_client", offset, &[("SERVER", &address)]);
        skew::judge_client(&store, offset).await;
    }
}

#[tokio::test]
#[ignore = "run by the test above, in a process of its own"]
async fn skewed_client() {
    let store = MemcachedStore::new(std::env::var("SERVER").unwrap());
    skew::judge(&store, skew::offset()).await;
}
