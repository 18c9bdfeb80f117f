//! Clients whose clocks are an hour off.

use crate::{
    servers::{redis::RedisServer, skew},
    support::store_at,
};

/// P1, S16: the clock is the server's.
#[tokio::test]
async fn p1_s16_clients_clocks_may_be_an_hour_off() {
    let server = RedisServer::start(&[]);
    let store = store_at(&server.url()).await;
    skew::leave(&store).await;
    for offset in skew::OFFSETS {
        skew::run("skew::skewed_client", offset, &[("SERVER", &server.url())]);
        skew::judge_client(&store, offset).await;
    }
}

#[tokio::test]
#[ignore = "run by the test above, in a process of its own"]
async fn skewed_client() {
    let store = store_at(&std::env::var("SERVER").unwrap()).await;
    skew::judge(&store, skew::offset()).await;
}
