//! Waiting for another execution: all that wait for one claim in one process share one wait, so
//! that a hot key costs the store one poll and not a thousand (U30).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};

use crate::{
    key::StoreKey,
    record::{FencingToken, Snapshot},
    store::{Store, StoreError},
};

type Waited = Result<Option<Snapshot>, Arc<StoreError>>;
type Wait = BoxFuture<'static, Waited>;

#[derive(Default)]
pub(super) struct Waits(Mutex<HashMap<(StoreKey, FencingToken), WeakShared<Wait>>>);

impl Waits {
    /// Waits until the claim with this token no longer runs.
    ///
    /// Whoever drops this leaves the wait to the others; the last one ends it.
    pub(super) async fn join(
        &self,
        store: &Arc<dyn Store>,
        key: &StoreKey,
        token: FencingToken,
    ) -> Waited {
        let name = (key.clone(), token);
        // Declared before the share, so that it is dropped after it.
        let _place = Place {
            waits: self,
            name: &name,
        };
        let shared = {
            let mut waits = self.lock();
            match waits.get(&name).and_then(usable) {
                Some(shared) => shared,
                None => {
                    let (store, key) = (Arc::clone(store), key.clone());
                    let wait: Wait =
                        async move { store.wait(&key, token).await.map_err(Arc::new) }.boxed();
                    let shared = wait.shared();
                    if let Some(weak) = shared.downgrade() {
                        waits.insert(name.clone(), weak);
                    }
                    shared
                }
            }
        };
        shared.await
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(StoreKey, FencingToken), WeakShared<Wait>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait that is over is not joined: it may have ended early.
fn usable(wait: &WeakShared<Wait>) -> Option<Shared<Wait>> {
    wait.upgrade().filter(|shared| shared.peek().is_none())
}

/// Removes a wait's entry when the last share in it is gone.
struct Place<'a> {
    waits: &'a Waits,
    name: &'a (StoreKey, FencingToken),
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waits = self.waits.lock();
        if waits
            .get(self.name)
            .is_some_and(|wait| usable(wait).is_none())
        {
            waits.remove(self.name);
        }
    }
}
