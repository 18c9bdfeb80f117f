//! S16: the conformance suite.

use tower_idempotency::testing::differential;

use crate::support::fixture;

/// Random operations, against the machine.
#[tokio::test]
async fn s16_it_agrees_with_the_machine() {
    differential::run(async || fixture(|store| store)).await;
}

mod bare {
    tower_idempotency::store_conformance!(super::fixture(|store| store));
}

mod boxed {
    use tower_idempotency::Store;
    tower_idempotency::store_conformance!(
        super::fixture(|store| Box::new(store) as Box<dyn Store>)
    );
}

mod shared {
    use {std::sync::Arc, tower_idempotency::Store};
    tower_idempotency::store_conformance!(
        super::fixture(|store| Arc::new(store) as Arc<dyn Store>)
    );
}

mod on_many_threads {
    tower_idempotency::store_conformance!(
        super::fixture(|store| store);
        flavor = "multi_thread", worker_threads = 2
    );
}
