//! The way to an execution: claim the key, wait for a running duplicate, or say what to answer.

use std::{future::Future, time::Duration};

use tokio::{
    runtime::Handle,
    sync::OwnedMutexGuard,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    engine::{
        attached::Stage,
        core::{Engine, OnConflict, deadline},
        running::{Ending, Running},
        work::Counted,
    },
    fingerprint::Fingerprint,
    key::StoreKey,
    record::{Claim, ClaimRequest, FencingToken, Lease, OwnerId, Payload},
    store::{StoreError, jittered},
    telemetry::{self, Reason},
};

/// Why a key can be neither claimed nor answered for. What the store says of itself is not in it, nor
/// what a caller of the engine refuses before: so whoever matches on it has all there is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Taken {
    InProgress,
    Mismatch,
    OtherAlgorithm,
    NotReplayable,
    Abandoned,
}

impl From<Taken> for Reason {
    fn from(taken: Taken) -> Self {
        match taken {
            Taken::InProgress => Self::InProgress,
            Taken::Mismatch => Self::Mismatch,
            Taken::OtherAlgorithm => Self::OtherAlgorithm,
            Taken::NotReplayable => Self::NotReplayable,
            Taken::Abandoned => Self::Abandoned,
        }
    }
}

/// What is to be done with a request.
pub(crate) enum Begin {
    /// Run it: the key is claimed.
    Run(Running),
    /// Give this recorded answer.
    Replay(Payload),
    /// Refuse it: the key is taken.
    Refuse(Taken),
    /// Refuse it: the store could not be asked, cannot read its record, or is full.
    StoreFailed(Reason, StoreError),
    /// Run it without a record: the store cannot be asked, and the engine fails open.
    Unprotected,
    /// Do nothing: the caller left before the claim was known, and it has been given back.
    CallerLeft,
}

impl Engine {
    /// Claims the key, or says why not.
    ///
    /// `let_go` is called before each wait for a running duplicate: whatever the caller holds for
    /// the work (a ready service) is to be let go, or waiting requests starve the one they wait
    /// for. So it is before a claim is given back whose caller left.
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` has room for each argument twice"
    )]
    pub(crate) fn begin(
        &self,
        key: &StoreKey,
        fingerprint: &Fingerprint,
        stage: &Stage,
        mut let_go: impl FnMut(),
    ) -> impl Future<Output = Begin> {
        async move {
            let options = self.options();
            let request = ClaimRequest {
                fingerprint: *fingerprint,
                owner: OwnerId::random(),
                lease: options.lease,
                ttl: options.ttl,
                take_over: options.take_over,
            };
            let mut line = Line::default();
            loop {
                let counted = self.work().start();
                stage.claiming();
                let claim = self.ask(self.store().claim(key, &request)).await;
                let turn = line.turn.take();
                let token = match self.heard(key, &request, claim, stage, counted, turn) {
                    Heard::Begin(begin) => return begin,
                    Heard::TooLate(running) => {
                        let_go();
                        Box::pin(running.end(Ending::NotRun)).await;
                        return Begin::CallerLeft;
                    }
                    Heard::InProgress(token) => token,
                };
                let OnConflict::Wait(limit) = options.on_conflict else {
                    return Begin::Refuse(Taken::InProgress);
                };
                let Some(until) = line.join(self, limit) else {
                    return Begin::Refuse(Taken::InProgress);
                };
                let_go();
                // Boxed, so that only those that wait have room for it.
                let waited = Box::pin(wait(self, key, token, fingerprint, until));
                match waited.await {
                    Ok(turn) => line.turn = turn,
                    Err(instead) => return instead,
                }
            }
        }
    }

    /// What the store's answer to a claim means. Where the key is not claimed, the turn is over, and
    /// nothing runs any more.
    fn heard(
        &self,
        key: &StoreKey,
        request: &ClaimRequest,
        claim: Result<Claim, StoreError>,
        stage: &Stage,
        counted: Counted,
        turn: Option<OwnedMutexGuard<()>>,
    ) -> Heard {
        let caller_stays = match &claim {
            Ok(Claim::Claimed(_)) => stage.granted(),
            _ => stage.not_granted(),
        };
        Heard::Begin(match claim {
            Ok(Claim::Claimed(claimed)) => {
                let running = Running::new(self.clone(), key.clone(), claimed, counted, turn);
                match caller_stays {
                    true => Begin::Run(running),
                    false => return Heard::TooLate(running),
                }
            }
            Err(error) => self.unavailable(key, request, error, caller_stays),
            Ok(_) if !caller_stays => Begin::CallerLeft,
            Ok(Claim::Completed(payload)) => completed(payload),
            Ok(Claim::Mismatch) => Begin::Refuse(Taken::Mismatch),
            Ok(Claim::OtherAlgorithm) => Begin::Refuse(Taken::OtherAlgorithm),
            Ok(Claim::Abandoned) => Begin::Refuse(Taken::Abandoned),
            Ok(Claim::InProgress { token }) => return Heard::InProgress(token),
        })
    }

    fn unavailable(
        &self,
        key: &StoreKey,
        request: &ClaimRequest,
        error: StoreError,
        caller_stays: bool,
    ) -> Begin {
        telemetry::store_error(key, "claim", &error);
        let unavailable = matches!(error, StoreError::Unavailable { .. });
        if unavailable && caller_stays && self.options().fail_open {
            // The work runs, so a claim that was granted unheard is not given back: until its
            // lease ends it keeps duplicates out.
            return Begin::Unprotected;
        }
        if unavailable {
            self.give_back_later(key, request);
        }
        match error {
            _ if !caller_stays => Begin::CallerLeft,
            StoreError::Full { .. } => Begin::StoreFailed(Reason::Overloaded, error),
            _ => Begin::StoreFailed(Reason::StoreUnavailable, error),
        }
    }

    /// A claim whose answer did not arrive may have been granted, and would keep its key until the
    /// lease ends, or for as long as the record lives where abandoned keys are not taken over. So
    /// it is given back, from a little later on until that succeeds, or the lease is over and
    /// frees the key. Where nothing was claimed, nothing of this owner's is found, and nothing
    /// changes.
    fn give_back_later(&self, key: &StoreKey, request: &ClaimRequest) {
        let Some(counted) = self.work().release() else {
            return telemetry::not_given_back(key);
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
            // Where nobody takes over, the end of the lease frees nothing.
            let until = options.take_over.then(|| deadline(options.lease));
            // The claim may still be on its way.
            let mut pause = options.store_timeout.clamp(SHORTEST, LONGEST);
            loop {
                sleep(pause).await;
                let call = engine.store().give_back(&key, &lease, options.ttl);
                match engine.ask(call).await {
                    Err(StoreError::Unavailable { .. })
                        if until.is_none_or(|until| Instant::now() < until) =>
                    {
                        pause = jittered((pause * 2).min(LONGEST));
                    }
                    // Superseded: the claim was not granted, and another one was.
                    Ok(()) | Err(StoreError::Superseded) => break,
                    Err(error) => break telemetry::store_error(&key, "give_back", &error),
                }
            }
            drop(counted);
        });
    }
}

/// What the store's answer to a claim means.
enum Heard {
    Begin(Begin),
    /// The caller left before the key was claimed: it is to be given back.
    TooLate(Running),
    InProgress(FencingToken),
}

/// A waiter's place among the others, and how long it waits.
#[derive(Default)]
struct Line {
    place: Option<(Counted, Instant)>,
    /// To claim again, after an execution that did not complete. Held until the next claim's
    /// execution is over, or until it is known that there is none.
    turn: Option<OwnedMutexGuard<()>>,
}

impl Line {
    /// Takes a place, unless it has one, and says how long it has it; `None` where there is none.
    fn join(&mut self, engine: &Engine, limit: Duration) -> Option<Instant> {
        if self.place.is_none() {
            let counted = engine.work().wait(engine.options().max_waiting);
            self.place = counted.map(|counted| (counted, deadline(limit)));
        }
        self.place.as_ref().map(|(_, until)| *until)
    }
}

/// Waits until it is worth another claim, with the turn for it, or says what to do instead.
async fn wait(
    engine: &Engine,
    key: &StoreKey,
    token: FencingToken,
    fingerprint: &Fingerprint,
    until: Instant,
) -> Result<Option<OwnedMutexGuard<()>>, Begin> {
    let waited = timeout_at(until, async {
        let found = engine.waits().join(engine, key, token).await;
        match found.and_then(|found| found.answer_for(fingerprint)) {
            Some(payload) => Err(completed(payload)),
            None => Ok(timeout(PATIENCE, engine.waits().turn(key)).await.ok()),
        }
    });
    let too_long = |_| Err(Begin::Refuse(Taken::InProgress));
    waited.await.unwrap_or_else(too_long)
}

/// How long a waiter stands in line for its turn before it looks at the record again: another server
/// may have completed it meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pauses between attempts to give a claim back.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

fn completed(payload: Payload) -> Begin {
    match payload.is_replayable() {
        true => Begin::Replay(payload),
        false => Begin::Refuse(Taken::NotReplayable),
    }
}
