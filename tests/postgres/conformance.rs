//! The conformance suite.

use std::future::ready;

use tower_idempotency::{PostgresStore, Store, testing::store::Fixture};

use crate::support::Own;

async fn fixture<S: Store>(wrap: impl Fn(PostgresStore) -> S) -> Fixture<S> {
    let own = Own::new(8).await;
    let clock = own.store.clone();
    Fixture::new(wrap(own.store), move |by| {
        clock.advance_clock(by);
        ready(())
    })
}

mod bare {
    tower_idempotency::store_conformance!(super::fixture(|store| store).await);
}

mod boxed {
    use tower_idempotency::Store;
    tower_idempotency::store_conformance!(
        super::fixture(|store| Box::new(store) as Box<dyn Store>).await
    );
}

mod shared {
    use {std::sync::Arc, tower_idempotency::Store};
    tower_idempotency::store_conformance!(
        super::fixture(|store| Arc::new(store) as Arc<dyn Store>).await
    );
}

mod on_many_threads {
    tower_idempotency::store_conformance!(
        super::fixture(|store| store).await;
        flavor = "multi_thread", worker_threads = 4
    );
}
