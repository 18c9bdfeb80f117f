//! `Tiered`: the conformance suite, and what is its own (S19).
#![allow(clippy::unwrap_used, reason = "a test")]

mod copies;
mod faults;
#[cfg(all(feature = "postgres", feature = "redis", feature = "sqlite"))]
mod pairs;
#[cfg(all(feature = "postgres", feature = "redis", feature = "sqlite"))]
#[path = "../servers/mod.rs"]
mod servers;
mod support;

use std::{future::ready, time::Duration};

use support::{Mode, Spied};
use tower_idempotency::{
    MemoryStore, Store, Tiered,
    testing::{differential, store::Fixture},
};

type Pair = Tiered<Spied<MemoryStore>, MemoryStore>;

fn fixture<S: Store>(mode: Mode, wrap: impl Fn(Pair) -> S) -> Fixture<S> {
    let (near, far) = (MemoryStore::new(), MemoryStore::new());
    let clocks = [near.clone(), far.clone()];
    let near = Spied::new(near);
    near.set(mode);
    Fixture::new(wrap(Tiered::new(near, far)), move |by| {
        for clock in &clocks {
            clock.advance_clock(by);
        }
        ready(())
    })
    .incorruptible()
}

/// Near keeps what it is given for as long as it ever may.
fn for_long(pair: Pair) -> Pair {
    pair.near_for(Duration::MAX)
}

mod bare {
    use super::{Mode, fixture};
    tower_idempotency::store_conformance!(fixture(Mode::Works, |pair| pair); start_paused = true);
}

mod boxed {
    use {
        super::{Mode, fixture},
        tower_idempotency::Store,
    };
    tower_idempotency::store_conformance!(
        fixture(Mode::Works, |pair| Box::new(pair) as Box<dyn Store>);
        start_paused = true
    );
}

mod shared {
    use {
        super::{Mode, fixture},
        std::sync::Arc,
        tower_idempotency::Store,
    };
    tower_idempotency::store_conformance!(
        fixture(Mode::Works, |pair| Arc::new(pair) as Arc<dyn Store>);
        start_paused = true
    );
}

mod on_many_threads {
    use super::{Mode, fixture};
    tower_idempotency::store_conformance!(
        fixture(Mode::Works, |pair| pair);
        flavor = "multi_thread", worker_threads = 4
    );
}

mod near_keeps_for_long {
    use super::{Mode, fixture, for_long};
    tower_idempotency::store_conformance!(fixture(Mode::Works, for_long); start_paused = true);
}

mod near_fails {
    use super::{Mode, fixture};
    tower_idempotency::store_conformance!(fixture(Mode::Fails, |pair| pair); start_paused = true);
}

mod near_forgets {
    use super::{Mode, fixture};
    tower_idempotency::store_conformance!(fixture(Mode::Forgets, |pair| pair); start_paused = true);
}

mod near_hangs {
    use super::{Mode, fixture};
    tower_idempotency::store_conformance!(fixture(Mode::Hangs, |pair| pair); start_paused = true);
}

mod near_is_full {
    use super::{Mode, fixture};
    tower_idempotency::store_conformance!(fixture(Mode::Full, |pair| pair); start_paused = true);
}

mod near_cannot_read {
    use super::{Mode, fixture};
    tower_idempotency::store_conformance!(fixture(Mode::Corrupt, |pair| pair); start_paused = true);
}

#[tokio::test(start_paused = true)]
async fn it_agrees_with_the_machine() {
    differential::run(|| ready(fixture(Mode::Works, |pair| pair))).await;
    for mode in Mode::ALL {
        differential::run(|| ready(fixture(mode, for_long))).await;
    }
}

/// What holds for any two stores.
#[tokio::test(start_paused = true)]
async fn s19_replays_of_any_pair_are_near() {
    let (near, far) = (MemoryStore::new(), MemoryStore::new());
    copies::replays_are_near(near, far).await;
}
