//! The way to an execution: claim the key, wait for a running duplicate, or say what to answer.

use std::time::Duration;

use tokio::{runtime::Handle, time::Instant};

use crate::{
    engine::{
        attached::Stage,
        core::{Engine, OnConflict, deadline},
        running::Running,
    },
    fingerprint::Fingerprint,
    key::StoreKey,
    record::{Claim, ClaimRequest, FencingToken, Lease, OwnerId, Payload, State},
    store::StoreError,
    telemetry::{self, Reason},
};

/// What is to be done with a request.
pub(crate) enum Begin {
    /// Run it: the key is claimed.
    Run(Running),
    /// Give this recorded answer.
    Replay(Payload),
    /// Refuse it.
    Refuse(Reason),
    /// Run it without a record: the store cannot be asked, and the engine fails open.
    Unprotected,
    /// Do nothing: the caller left before the claim was known, and it has been given back.
    CallerLeft,
}

/// The pause before a key is claimed again after a wait that ended early or failed.
const PAUSE: Duration = Duration::from_millis(25);

impl Engine {
    /// Claims the key, or says why not.
    ///
    /// `before_wait` is called before each wait for a running duplicate: whatever the caller holds
    /// for the work (a ready service) is to be let go, or waiting requests starve the one they
    /// wait for.
    pub(crate) async fn begin(
        &self,
        key: &StoreKey,
        fingerprint: Fingerprint,
        stage: &Stage,
        mut before_wait: impl FnMut(),
    ) -> Begin {
        let options = self.options();
        let wait_until = match options.on_conflict {
            OnConflict::Reject => None,
            OnConflict::Wait(limit) => Some(deadline(limit)),
        };
        let request = ClaimRequest {
            fingerprint,
            owner: OwnerId::random(),
            lease: options.lease,
            ttl: options.ttl,
            take_over: options.take_over,
        };
        let mut place = None;
        let mut waited_for = None;
        loop {
            stage.claiming();
            let claim = self.ask(self.store().claim(key, &request)).await;
            let token = match claim {
                Ok(Claim::Claimed(claimed)) => {
                    let running = Running::new(self.clone(), key.clone(), claimed);
                    if stage.granted() {
                        return Begin::Run(running);
                    }
                    running.give_back().await;
                    return Begin::CallerLeft;
                }
                Err(error) => {
                    let begin = self.unavailable(key, &request, error);
                    return match stage.not_granted() {
                        true => begin,
                        false => Begin::CallerLeft,
                    };
                }
                Ok(_) if !stage.not_granted() => return Begin::CallerLeft,
                Ok(Claim::Completed(payload)) => return completed(payload),
                Ok(Claim::Mismatch) => return Begin::Refuse(Reason::Mismatch),
                Ok(Claim::OtherAlgorithm) => return Begin::Refuse(Reason::OtherAlgorithm),
                Ok(Claim::Abandoned { .. }) => return Begin::Refuse(Reason::Abandoned),
                Ok(Claim::InProgress { token, .. }) => token,
            };
            let Some(until) = wait_until else {
                return Begin::Refuse(Reason::InProgress);
            };
            if place.is_none() {
                place = self.work().wait(options.max_waiting);
            }
            if place.is_none() || Instant::now() >= until {
                return Begin::Refuse(Reason::InProgress);
            }
            before_wait();
            // The same claim still runs: the last wait ended early.
            let early = waited_for.replace(token) == Some(token);
            let waited = async {
                if early {
                    tokio::time::sleep(PAUSE).await;
                }
                self.waits().join(self.store(), key, token).await
            };
            match tokio::time::timeout_at(until, waited).await {
                Err(_) => return Begin::Refuse(Reason::InProgress),
                Ok(Err(error)) => telemetry::store_error(key, "wait", &error),
                Ok(Ok(Some(found))) if found.record.fingerprint == fingerprint => {
                    if let (State::Completed, Some(payload)) =
                        (found.record.state, found.record.payload)
                    {
                        return completed(payload);
                    }
                }
                Ok(Ok(_)) => {}
            }
        }
    }

    fn unavailable(&self, key: &StoreKey, request: &ClaimRequest, error: StoreError) -> Begin {
        telemetry::store_error(key, "claim", &error);
        if let StoreError::Full { .. } = error {
            return Begin::Refuse(Reason::Overloaded);
        }
        if let StoreError::Unavailable { .. } = error {
            self.release_later(key, request);
            if self.options().fail_open {
                return Begin::Unprotected;
            }
        }
        Begin::Refuse(Reason::StoreUnavailable)
    }

    /// A claim whose answer did not arrive may have been granted, and would keep its key until the
    /// lease ends. So it is released once, a little later, as far as the limit on detached work
    /// allows; where nothing was claimed, the release finds nothing of its owner's and changes
    /// nothing.
    fn release_later(&self, key: &StoreKey, request: &ClaimRequest) {
        let Some(counted) = self.work().detach(self.options().max_detached) else {
            return;
        };
        let lease = Lease {
            owner: request.owner,
            // The store decides by the owner alone.
            token: FencingToken::from_u64(0),
            attempt: 1,
            fingerprint: request.fingerprint,
        };
        let (engine, key) = (self.clone(), key.clone());
        Handle::current().spawn(async move {
            let options = engine.options();
            tokio::time::sleep(options.store_timeout).await;
            let release = engine.store().release(&key, &lease, options.ttl);
            match engine.ask(release).await {
                // Superseded: the claim was not granted, and another one was.
                Ok(()) | Err(StoreError::Superseded) => {}
                Err(error) => telemetry::store_error(&key, "release", &error),
            }
            drop(counted);
        });
    }
}

fn completed(payload: Payload) -> Begin {
    match payload.is_replayable() {
        true => Begin::Replay(payload),
        false => Begin::Refuse(Reason::NotReplayable),
    }
}
