//! The state machine: how a record may change. Pure functions over `Option<&Record>` and a clock
//! reading; this is the specification that every store follows.
//!
//! ```text
//!             claim                 complete
//!   absent ──────────▶ in_progress ──────────▶ completed ──(ttl)──▶ absent
//!     ▲                 │   ▲  │ fail
//!     │ release         │   │  ▼
//!     └─────────────────┘   └─ failed ──(ttl)──▶ absent
//!                       claim: a retry over failed, a takeover over abandoned (attempt + 1)
//! ```
//!
//! `give_back` undoes a claim under which nothing ran.
//!
//! A record that is absent and one that has expired are the same thing to every function here. A
//! store that can run Rust code while it holds a record's lock runs these functions
//! (`MemoryStore` does); any other must give the same replies.
//!
//! ```
//! use std::time::Duration;
//! use tower_idempotency::{Claim, ClaimRequest, Fingerprint, OwnerId, Timestamp, machine};
//!
//! let now = Timestamp::from_micros(1_000_000);
//! let request = ClaimRequest {
//!     fingerprint: Fingerprint::hasher("doc").finish(),
//!     owner: OwnerId::from_u128(1),
//!     lease: Duration::from_secs(30),
//!     ttl: Duration::from_secs(86_400),
//!     take_over: true,
//! };
//! let step = machine::claim(None, now, &request);
//! assert!(matches!(step.reply, Claim::Claimed(_)));
//!
//! // A second claimant, while the first one runs:
//! let machine::Change::Put(record) = step.change else { unreachable!() };
//! let other = ClaimRequest { owner: OwnerId::from_u128(2), ..request };
//! let step = machine::claim(Some(&record), now, &other);
//! assert!(matches!(step.reply, Claim::InProgress { .. }));
//! assert_eq!(step.change, machine::Change::Keep);
//! ```

use std::time::Duration;

use bytes::Bytes;

use crate::record::{
    Claim, ClaimRequest, Claimed, Entry, FencingToken, Lease, OwnerId, Payload, Record, Snapshot,
    State, Timestamp,
};

/// What an operation does to the record, and what it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Step<T> {
    /// To be applied in the same atomic step in which the record was read.
    pub change: Change,
    /// The answer.
    pub reply: T,
}

/// What becomes of the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing. An expired record may be removed all the same.
    Keep,
    /// This is the record now.
    Put(Record),
    /// It is absent now.
    Remove,
}

/// Why an owner's change is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// Another owner holds or has finished the record, or this one finished it otherwise.
    Superseded,
    /// There is nothing to renew: the record is absent, or its owner finished it.
    Gone,
}

/// Claims the key, or says why it cannot be claimed.
///
/// A mismatch goes before a conflict: another payload is told so also while the first one runs.
/// A claim by the owner that already holds the record is granted again with the same proof.
pub fn claim(record: Option<&Record>, now: Timestamp, request: &ClaimRequest) -> Step<Claim> {
    let previous_token = record.map(|record| record.token);
    let Some(record) = live(record, now) else {
        let lease = Lease {
            owner: request.owner,
            token: next_token(previous_token, now),
            attempt: 1,
            fingerprint: request.fingerprint,
        };
        return granted(lease, Entry::First, None, now, now, request);
    };
    if !record.fingerprint.same_algorithm(&request.fingerprint) {
        return keep(Claim::OtherAlgorithm);
    }
    if record.fingerprint != request.fingerprint {
        return keep(Claim::Mismatch);
    }
    let entry = match (record.state, &record.payload) {
        (State::Completed, Some(payload)) => return keep(Claim::Completed(payload.clone())),
        // No function here makes one; a store that finds one keeps it closed.
        (State::Completed, None) => return keep(Claim::Completed(Payload::not_replayable(0))),
        (State::InProgress, _) if record.owner == request.owner => {
            let (lease, checkpoint) = (lease_of(record), record.checkpoint.clone());
            let (entry, created_at) = (record.entry, record.created_at);
            return granted(lease, entry, checkpoint, created_at, now, request);
        }
        (State::InProgress, _) if !record.is_abandoned(now) => {
            return keep(Claim::InProgress {
                token: record.token,
            });
        }
        (State::InProgress, _) if !request.take_over => return keep(Claim::Abandoned),
        (State::InProgress, _) => Entry::Takeover,
        (State::Failed, _) => Entry::Retry,
    };
    let lease = Lease {
        owner: request.owner,
        token: next_token(previous_token, now),
        attempt: record.attempt.saturating_add(1),
        fingerprint: record.fingerprint,
    };
    let checkpoint = record.checkpoint.clone();
    granted(lease, entry, checkpoint, record.created_at, now, request)
}

/// Sets the lease to end after `lease_for` from now, and saves a checkpoint where one is given.
///
/// Works for the owner also after its lease ended, if nobody took over. A renewal never revives a
/// record that was released or finished: there is nothing to renew then, and the reply is
/// [`Refused::Gone`].
pub fn renew(
    record: Option<&Record>,
    now: Timestamp,
    lease: &Lease,
    lease_for: Duration,
    ttl: Duration,
    checkpoint: Option<Bytes>,
) -> Step<Result<(), Refused>> {
    let Some(record) = live(record, now) else {
        return keep(Err(Refused::Gone));
    };
    if record.owner != lease.owner {
        return keep(Err(Refused::Superseded));
    }
    if record.state != State::InProgress {
        return keep(Err(Refused::Gone));
    }
    let lease_until = now + lease_for;
    put(Record {
        checkpoint: checkpoint.or_else(|| record.checkpoint.clone()),
        lease_until,
        expires_at: lease_until + ttl,
        ..record.clone()
    })
}

/// Records the answer.
///
/// Works for the owner also after its lease ended, if nobody took over, and where the store lost
/// the record: recording late beats executing twice. Completing again as the same owner changes
/// nothing and succeeds.
pub fn complete(
    record: Option<&Record>,
    now: Timestamp,
    lease: &Lease,
    payload: &Payload,
    ttl: Duration,
) -> Step<Result<(), Refused>> {
    let live = live(record, now);
    match live {
        Some(record) if record.owner != lease.owner => return keep(Err(Refused::Superseded)),
        Some(record) if record.state == State::Completed => return keep(Ok(())),
        _ => {}
    }
    put(Record {
        state: State::Completed,
        fingerprint: lease.fingerprint,
        owner: lease.owner,
        token: lease.token,
        attempt: lease.attempt,
        entry: live.map_or(Entry::First, |record| record.entry),
        checkpoint: None,
        payload: Some(payload.clone()),
        created_at: live.map_or(now, |record| record.created_at),
        lease_until: now,
        expires_at: now + ttl,
    })
}

/// Ends the attempt with its effect unknown: the record keeps attempt, fingerprint and
/// checkpoint, and can be claimed at once.
///
/// Where the store lost the record there is nothing to keep, and the reply is `Ok`. Failing again
/// as the same owner changes nothing and succeeds.
pub fn fail(
    record: Option<&Record>,
    now: Timestamp,
    lease: &Lease,
    ttl: Duration,
) -> Step<Result<(), Refused>> {
    match live(record, now) {
        None => keep(Ok(())),
        Some(record) if record.owner != lease.owner => keep(Err(Refused::Superseded)),
        Some(record) => match record.state {
            State::InProgress => put(failed(record, now, ttl)),
            State::Failed => keep(Ok(())),
            State::Completed => keep(Err(Refused::Superseded)),
        },
    }
}

/// Ends the attempt with nothing done: the key is free at once, for any payload.
///
/// Only a first attempt that saved no checkpoint can say that nothing was done. Any other counts
/// as failed, since an earlier attempt, or this one, may have acted. Releasing again as the same
/// owner changes nothing and succeeds.
pub fn release(
    record: Option<&Record>,
    now: Timestamp,
    lease: &Lease,
    ttl: Duration,
) -> Step<Result<(), Refused>> {
    match held(record, now, lease) {
        Some(held) if held.attempt == 1 && held.checkpoint.is_none() => Step {
            change: Change::Remove,
            reply: Ok(()),
        },
        _ => fail(record, now, lease, ttl),
    }
}

/// Undoes a claim under which nothing ran, as far as it can be undone: the key is free after a
/// first claim, failed again after a retry, and abandoned again after a takeover, so that the next
/// claimant knows no less than this one did. The number of attempts stays.
///
/// An abandoned record has no owner afterwards, and a renewal that is still on its way cannot
/// revive it. Where the store lost the record the reply is `Ok`. Giving back again changes
/// nothing; after a takeover the reply is then [`Refused::Superseded`].
///
/// The owner that was taken over from is refused afterwards too, though nobody ran since: it was
/// silent beyond its lease, and the next claimant may be asking what became of it (P6).
pub fn give_back(
    record: Option<&Record>,
    now: Timestamp,
    lease: &Lease,
    ttl: Duration,
) -> Step<Result<(), Refused>> {
    match held(record, now, lease) {
        Some(held) if held.entry == Entry::Takeover => put(Record {
            owner: OwnerId::NOBODY,
            lease_until: now,
            expires_at: now + ttl,
            ..held.clone()
        }),
        _ => release(record, now, lease, ttl),
    }
}

/// Reads the record, for an operator or a waiter.
#[must_use]
pub fn get(record: Option<&Record>, now: Timestamp) -> Option<Snapshot> {
    live(record, now).map(|record| Snapshot {
        record: record.clone(),
        now,
    })
}

/// Removes the record, whoever holds it, and says whether there was one.
pub fn forget(record: Option<&Record>, now: Timestamp) -> Step<bool> {
    Step {
        change: Change::Remove,
        reply: live(record, now).is_some(),
    }
}

/// Whether somebody who waits for the claim with this token has waited long enough: the record is
/// absent, finished, abandoned, or under another claim.
#[must_use]
pub fn is_over(record: Option<&Record>, now: Timestamp, token: FencingToken) -> bool {
    live(record, now).is_none_or(|record| {
        record.state != State::InProgress || record.token != token || record.is_abandoned(now)
    })
}

fn live(record: Option<&Record>, now: Timestamp) -> Option<&Record> {
    record.filter(|record| record.is_live(now))
}

/// The record while it is in progress under this owner.
fn held<'a>(record: Option<&'a Record>, now: Timestamp, lease: &Lease) -> Option<&'a Record> {
    live(record, now)
        .filter(|record| record.owner == lease.owner && record.state == State::InProgress)
}

fn next_token(previous: Option<FencingToken>, now: Timestamp) -> FencingToken {
    let after = previous.map_or(0, |token| token.as_u64().saturating_add(1));
    FencingToken::from_u64(after.max(now.as_micros()))
}

fn lease_of(record: &Record) -> Lease {
    Lease {
        owner: record.owner,
        token: record.token,
        attempt: record.attempt,
        fingerprint: record.fingerprint,
    }
}

fn granted(
    lease: Lease,
    entry: Entry,
    checkpoint: Option<Bytes>,
    created_at: Timestamp,
    now: Timestamp,
    request: &ClaimRequest,
) -> Step<Claim> {
    let lease_until = now + request.lease;
    Step {
        change: Change::Put(Record {
            state: State::InProgress,
            fingerprint: lease.fingerprint,
            owner: lease.owner,
            token: lease.token,
            attempt: lease.attempt,
            entry,
            checkpoint: checkpoint.clone(),
            payload: None,
            created_at,
            lease_until,
            expires_at: lease_until + request.ttl,
        }),
        reply: Claim::Claimed(Claimed {
            lease,
            entry,
            checkpoint,
        }),
    }
}

fn failed(record: &Record, now: Timestamp, ttl: Duration) -> Record {
    Record {
        state: State::Failed,
        lease_until: now,
        expires_at: now + ttl,
        ..record.clone()
    }
}

fn keep<T>(reply: T) -> Step<T> {
    Step {
        change: Change::Keep,
        reply,
    }
}

fn put<E>(record: Record) -> Step<Result<(), E>> {
    Step {
        change: Change::Put(record),
        reply: Ok(()),
    }
}
