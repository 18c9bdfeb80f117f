//! Clients whose clocks are an hour off.

use tower_idempotency::PostgresStore;

use crate::{
    servers::skew,
    support::{Own, builder, server},
};

/// P1, S17: the clock is the server's.
#[tokio::test]
async fn p1_s17_clients_clocks_may_be_an_hour_off() {
    let own = Own::new(2).await;
    skew::leave(&own.store).await;
    for offset in skew::OFFSETS {
        let variables = [("SERVER", server().url()), ("SCHEMA", own.schema.clone())];
        let variables = variables
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        skew::run("skew::skewed_client", offset, &variables);
        skew::judge_client(&own.store, offset).await;
    }
}

#[tokio::test]
#[ignore = "run by the test above, in a process of its own"]
async fn skewed_client() {
    let variable = |name| std::env::var(name).unwrap();
    let pool = sqlx::PgPool::connect(&variable("SERVER")).await.unwrap();
    let store: PostgresStore = builder(&pool, &variable("SCHEMA")).build();
    skew::judge(&store, skew::offset()).await;
}
