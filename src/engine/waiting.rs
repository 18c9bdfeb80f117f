//! Waiting for another execution.
//!
//! All that wait for one claim in one process share one wait, so that a hot key costs the store one
//! poll and not a thousand (U30). Where the execution they waited for did not complete, they try
//! for themselves in turn, one after the other, and not all at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use tokio::{sync::OwnedMutexGuard, time::sleep};

use crate::{
    engine::core::Engine,
    key::StoreKey,
    machine,
    record::{FencingToken, Snapshot},
    store::{StoreError, jittered},
    telemetry,
};

/// How long a store's own wait is relied upon, before the record is read all the same: a message
/// can be lost, and a connection can hang.
const TRUSTED: Duration = Duration::from_secs(5);

/// The pause before the record is read after a wait that ended early or failed: at first, and at
/// most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(1));

type Wait = BoxFuture<'static, Option<Snapshot>>;

#[derive(Default)]
pub(super) struct Waits {
    waits: Mutex<HashMap<(StoreKey, FencingToken), WeakShared<Wait>>>,
    turns: Mutex<HashMap<StoreKey, Weak<tokio::sync::Mutex<()>>>>,
}

impl Waits {
    /// Waits until the claim with this token no longer runs, and gives the record as it then is.
    ///
    /// Whoever drops this leaves the wait to the others; the last one ends it.
    pub(super) async fn join(
        &self,
        engine: &Engine,
        key: &StoreKey,
        token: FencingToken,
    ) -> Option<Snapshot> {
        let name = (key.clone(), token);
        // Declared before the share, so that it is dropped after it.
        let _place = Place {
            waits: self,
            name: &name,
        };
        let shared = {
            let mut waits = lock(&self.waits);
            match waits.get(&name).and_then(usable) {
                Some(shared) => shared,
                None => {
                    let wait: Wait = wait(engine.clone(), key.clone(), token).boxed();
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

    /// Waits for the turn to claim a key again. It is held until the guard is dropped.
    pub(super) async fn turn(&self, key: &StoreKey) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.turns);
            match turns.get(key).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    // Those that are over go when the next one comes.
                    turns.retain(|_, turn| turn.strong_count() > 0);
                    let turn = Arc::default();
                    turns.insert(key.clone(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}

async fn wait(engine: Engine, key: StoreKey, token: FencingToken) -> Option<Snapshot> {
    let is_over = |found: &Option<Snapshot>| match found {
        Some(Snapshot { record, now }) => machine::is_over(Some(record), *now, token),
        None => true,
    };
    let mut pause = PAUSES.0;
    let mut told = false;
    let mut tell = |operation, error: &StoreError| {
        if !std::mem::replace(&mut told, true) {
            telemetry::store_error(&key, operation, error);
        }
    };
    loop {
        let began = tokio::time::Instant::now();
        match engine
            .ask_within(TRUSTED, engine.store().wait(&key, token))
            .await
        {
            Ok(found) if is_over(&found) => return found,
            // It is a wait: nothing is wrong with it when it takes its time.
            Err(_) if began.elapsed() >= TRUSTED => pause = PAUSES.0,
            Ok(_) => {}
            Err(error) => tell("wait", &error),
        }
        sleep(jittered(pause)).await;
        pause = (pause * 2).min(PAUSES.1);
        match engine.ask(engine.store().get(&key)).await {
            Ok(found) if is_over(&found) => return found,
            Ok(_) => {}
            Err(error) => tell("get", &error),
        }
    }
}

/// A wait that is over is not joined: its record may have been claimed anew.
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
        let mut waits = lock(&self.waits.waits);
        if waits
            .get(self.name)
            .is_some_and(|wait| usable(wait).is_none())
        {
            waits.remove(self.name);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;
    use crate::{MemoryStore, fingerprint::Fingerprint, record::*};

    /// P9, U29: a wait leaves nothing behind, whether it ended or was given up.
    #[tokio::test(start_paused = true)]
    async fn p9_u29_waits_leave_nothing_behind() {
        let engine = Engine::new(Arc::new(MemoryStore::new()));
        let key = StoreKey::new("idem", "", "", "k");
        let (lease, ttl) = (Duration::from_secs(30), Duration::from_secs(60));
        let request = ClaimRequest {
            fingerprint: Fingerprint::hasher("t").finish(),
            owner: OwnerId::from_u128(1),
            lease,
            ttl,
            take_over: true,
        };
        let claim = engine.store().claim(&key, &request).await.unwrap();
        let Claim::Claimed(Claimed { lease, .. }) = claim else {
            panic!("{claim:?}")
        };
        let waits = engine.waits();
        for ends in [false, true] {
            let mut joined = Vec::new();
            for _ in 0..3 {
                let mut join = Box::pin(waits.join(&engine, &key, lease.token));
                assert!(poll!(join.as_mut()).is_pending());
                joined.push(join);
            }
            assert_eq!(lock(&waits.waits).len(), 1, "one wait for all");
            if ends {
                let answer = Payload::not_replayable(201);
                let store = engine.store();
                store.complete(&key, &lease, &answer, ttl).await.unwrap();
                for join in joined {
                    assert_eq!(join.await.unwrap().record.state, State::Completed);
                }
            } else {
                drop(joined);
            }
            assert!(lock(&waits.waits).is_empty());
        }

        for name in ["a", "b", "c"] {
            drop(waits.turn(&StoreKey::new("idem", "", "", name)).await);
        }
        assert!(lock(&waits.turns).len() <= 1, "those that are over go");
    }
}
