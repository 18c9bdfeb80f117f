//! The state machine, exactly: every pair of state and operation, every edge of its two clocks,
//! and P2, P5 and P6 over random operations.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tower_idempotency::{
    Claim as Answer, ClaimRequest, Claimed, Entry, FencingToken, Fingerprint, Lease, OwnerId,
    Payload, Record, Snapshot, State, Timestamp,
    machine::{self, Change, Refused, Step},
};

const NOW: Timestamp = Timestamp::from_micros(1_000_000_000_000);
const LEASE: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(3600);
const US: Duration = Duration::from_micros(1);
const MINE: OwnerId = OwnerId::from_u128(1);
const OTHER: OwnerId = OwnerId::from_u128(2);

fn before(at: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_micros(at.as_micros() - by.as_micros() as u64)
}

fn fingerprint() -> Fingerprint {
    Fingerprint::hasher("t/1").finish()
}

fn request(owner: OwnerId) -> ClaimRequest {
    ClaimRequest {
        fingerprint: fingerprint(),
        owner,
        lease: LEASE,
        ttl: TTL,
        take_over: true,
    }
}

fn answer() -> Payload {
    Payload::new(201, Bytes::from_static(b"answer"))
}

/// What there is before an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    Absent,
    InProgress,
    Abandoned,
    Completed,
    Failed,
    /// Abandoned without an owner, whoever that was: a takeover was given back.
    GivenBack,
    Expired,
}

use Before::*;

const TOKEN: FencingToken = FencingToken::from_u64(500);

/// A record at its second attempt, first claimed a minute before `NOW`.
fn record(before_it: Before, owner: OwnerId) -> Option<Record> {
    let base = Record {
        state: State::InProgress,
        fingerprint: fingerprint(),
        owner,
        token: TOKEN,
        attempt: 2,
        entry: Entry::Takeover,
        checkpoint: Some(Bytes::from_static(b"half")),
        payload: None,
        created_at: before(NOW, Duration::from_secs(60)),
        lease_until: NOW + US,
        expires_at: NOW + US + TTL,
    };
    Some(match before_it {
        Absent => return None,
        InProgress => base,
        Abandoned => Record {
            lease_until: NOW,
            expires_at: NOW + TTL,
            ..base
        },
        Completed => Record {
            state: State::Completed,
            checkpoint: None,
            payload: Some(answer()),
            lease_until: before(NOW, US),
            expires_at: NOW + US,
            ..base
        },
        Failed => Record {
            state: State::Failed,
            lease_until: before(NOW, US),
            expires_at: NOW + US,
            ..base
        },
        GivenBack => Record {
            owner: OwnerId::NOBODY,
            lease_until: NOW,
            expires_at: NOW + TTL,
            ..base
        },
        Expired => Record {
            state: State::Completed,
            checkpoint: None,
            payload: Some(answer()),
            lease_until: before(NOW, TTL),
            expires_at: NOW,
            ..base
        },
    })
}

/// The proof that `MINE` shows: of `record`, where it is its own.
fn proof() -> Lease {
    Lease {
        owner: MINE,
        token: TOKEN,
        attempt: 2,
        fingerprint: fingerprint(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operation {
    Claim,
    /// Without taking over.
    ClaimMeekly,
    /// For another payload.
    ClaimElse,
    /// Under another algorithm.
    ClaimOtherwise,
    Renew,
    /// With a checkpoint.
    Save,
    Complete,
    Fail,
    Release,
    GiveBack,
    Get,
    Forget,
}

use Operation::*;

/// What an operation makes of a record.
#[derive(Clone, Copy, Debug, PartialEq)]
enum After {
    /// Nothing.
    Keeps,
    Removes,
    /// In progress, claimed now: the attempt.
    Claimed(u32),
    /// In progress under the claim that it had, with a new end.
    Renewed,
    /// The same, with a new checkpoint.
    Saved,
    Completed,
    Failed,
    /// Abandoned, without an owner.
    GivenBack,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Reply {
    Granted(Entry),
    Answered,
    Held,
    Abandoned,
    Mismatch,
    OtherAlgorithm,
    Ok,
    Superseded,
    Gone,
    Found,
    Nothing,
}

type Row = (Before, Operation, (Reply, After), (Reply, After));

/// The whole machine: `(before, operation)` to what `MINE` gets on a record of its own, and on one
/// of `OTHER`'s. Where there is no live record the two are the same.
#[rustfmt::skip]
const TABLE: &[Row] = {
    use Entry::{First, Retry, Takeover};
    use Reply::{Answered, Found, Gone, Granted, Held, Mismatch, Nothing, Ok, OtherAlgorithm, Superseded};
    use After::{Keeps, Removes, Renewed, Saved};
    &[
        (Absent, Claim,          (Granted(First), After::Claimed(1)), (Granted(First), After::Claimed(1))),
        (Absent, ClaimMeekly,    (Granted(First), After::Claimed(1)), (Granted(First), After::Claimed(1))),
        (Absent, ClaimElse,      (Granted(First), After::Claimed(1)), (Granted(First), After::Claimed(1))),
        (Absent, ClaimOtherwise, (Granted(First), After::Claimed(1)), (Granted(First), After::Claimed(1))),
        (Absent, Renew,          (Gone, Keeps),                       (Gone, Keeps)),
        (Absent, Save,           (Gone, Keeps),                       (Gone, Keeps)),
        (Absent, Complete,       (Ok, After::Completed),              (Ok, After::Completed)),
        (Absent, Fail,           (Ok, Keeps),                         (Ok, Keeps)),
        (Absent, Release,        (Ok, Keeps),                         (Ok, Keeps)),
        (Absent, GiveBack,       (Ok, Keeps),                         (Ok, Keeps)),
        (Absent, Get,            (Nothing, Keeps),                    (Nothing, Keeps)),
        (Absent, Forget,         (Nothing, Removes),                  (Nothing, Removes)),

        (InProgress, Claim,          (Granted(Takeover), Renewed), (Held, Keeps)),
        (InProgress, ClaimMeekly,    (Granted(Takeover), Renewed), (Held, Keeps)),
        (InProgress, ClaimElse,      (Mismatch, Keeps),            (Mismatch, Keeps)),
        (InProgress, ClaimOtherwise, (OtherAlgorithm, Keeps),      (OtherAlgorithm, Keeps)),
        (InProgress, Renew,          (Ok, Renewed),                (Superseded, Keeps)),
        (InProgress, Save,           (Ok, Saved),                  (Superseded, Keeps)),
        (InProgress, Complete,       (Ok, After::Completed),       (Superseded, Keeps)),
        (InProgress, Fail,           (Ok, After::Failed),          (Superseded, Keeps)),
        (InProgress, Release,        (Ok, After::Failed),          (Superseded, Keeps)),
        (InProgress, GiveBack,       (Ok, After::GivenBack),       (Superseded, Keeps)),
        (InProgress, Get,            (Found, Keeps),               (Found, Keeps)),
        (InProgress, Forget,         (Found, Removes),             (Found, Removes)),

        (Abandoned, Claim,          (Granted(Takeover), Renewed), (Granted(Takeover), After::Claimed(3))),
        (Abandoned, ClaimMeekly,    (Granted(Takeover), Renewed), (Reply::Abandoned, Keeps)),
        (Abandoned, ClaimElse,      (Mismatch, Keeps),            (Mismatch, Keeps)),
        (Abandoned, ClaimOtherwise, (OtherAlgorithm, Keeps),      (OtherAlgorithm, Keeps)),
        (Abandoned, Renew,          (Ok, Renewed),                (Superseded, Keeps)),
        (Abandoned, Save,           (Ok, Saved),                  (Superseded, Keeps)),
        (Abandoned, Complete,       (Ok, After::Completed),       (Superseded, Keeps)),
        (Abandoned, Fail,           (Ok, After::Failed),          (Superseded, Keeps)),
        (Abandoned, Release,        (Ok, After::Failed),          (Superseded, Keeps)),
        (Abandoned, GiveBack,       (Ok, After::GivenBack),       (Superseded, Keeps)),
        (Abandoned, Get,            (Found, Keeps),               (Found, Keeps)),
        (Abandoned, Forget,         (Found, Removes),             (Found, Removes)),

        (Completed, Claim,          (Answered, Keeps),       (Answered, Keeps)),
        (Completed, ClaimMeekly,    (Answered, Keeps),       (Answered, Keeps)),
        (Completed, ClaimElse,      (Mismatch, Keeps),       (Mismatch, Keeps)),
        (Completed, ClaimOtherwise, (OtherAlgorithm, Keeps), (OtherAlgorithm, Keeps)),
        (Completed, Renew,          (Gone, Keeps),           (Superseded, Keeps)),
        (Completed, Save,           (Gone, Keeps),           (Superseded, Keeps)),
        (Completed, Complete,       (Ok, Keeps),             (Superseded, Keeps)),
        (Completed, Fail,           (Superseded, Keeps),     (Superseded, Keeps)),
        (Completed, Release,        (Superseded, Keeps),     (Superseded, Keeps)),
        (Completed, GiveBack,       (Superseded, Keeps),     (Superseded, Keeps)),
        (Completed, Get,            (Found, Keeps),          (Found, Keeps)),
        (Completed, Forget,         (Found, Removes),        (Found, Removes)),

        (Failed, Claim,          (Granted(Retry), After::Claimed(3)), (Granted(Retry), After::Claimed(3))),
        (Failed, ClaimMeekly,    (Granted(Retry), After::Claimed(3)), (Granted(Retry), After::Claimed(3))),
        (Failed, ClaimElse,      (Mismatch, Keeps),                   (Mismatch, Keeps)),
        (Failed, ClaimOtherwise, (OtherAlgorithm, Keeps),             (OtherAlgorithm, Keeps)),
        (Failed, Renew,          (Gone, Keeps),                       (Superseded, Keeps)),
        (Failed, Save,           (Gone, Keeps),                       (Superseded, Keeps)),
        (Failed, Complete,       (Ok, After::Completed),              (Superseded, Keeps)),
        (Failed, Fail,           (Ok, Keeps),                         (Superseded, Keeps)),
        (Failed, Release,        (Ok, Keeps),                         (Superseded, Keeps)),
        (Failed, GiveBack,       (Ok, Keeps),                         (Superseded, Keeps)),
        (Failed, Get,            (Found, Keeps),                      (Found, Keeps)),
        (Failed, Forget,         (Found, Removes),                    (Found, Removes)),

        (GivenBack, Claim,          (Granted(Takeover), After::Claimed(3)), (Granted(Takeover), After::Claimed(3))),
        (GivenBack, ClaimMeekly,    (Reply::Abandoned, Keeps),              (Reply::Abandoned, Keeps)),
        (GivenBack, ClaimElse,      (Mismatch, Keeps),                      (Mismatch, Keeps)),
        (GivenBack, ClaimOtherwise, (OtherAlgorithm, Keeps),                (OtherAlgorithm, Keeps)),
        (GivenBack, Renew,          (Superseded, Keeps),                    (Superseded, Keeps)),
        (GivenBack, Save,           (Superseded, Keeps),                    (Superseded, Keeps)),
        (GivenBack, Complete,       (Superseded, Keeps),                    (Superseded, Keeps)),
        (GivenBack, Fail,           (Superseded, Keeps),                    (Superseded, Keeps)),
        (GivenBack, Release,        (Superseded, Keeps),                    (Superseded, Keeps)),
        (GivenBack, GiveBack,       (Superseded, Keeps),                    (Superseded, Keeps)),
        (GivenBack, Get,            (Found, Keeps),                         (Found, Keeps)),
        (GivenBack, Forget,         (Found, Removes),                       (Found, Removes)),

        (Expired, Claim,          (Granted(First), After::Claimed(1)), (Granted(First), After::Claimed(1))),
        (Expired, ClaimMeekly,    (Granted(First), After::Claimed(1)), (Granted(First), After::Claimed(1))),
        (Expired, ClaimElse,      (Granted(First), After::Claimed(1)), (Granted(First), After::Claimed(1))),
        (Expired, ClaimOtherwise, (Granted(First), After::Claimed(1)), (Granted(First), After::Claimed(1))),
        (Expired, Renew,          (Gone, Keeps),                       (Gone, Keeps)),
        (Expired, Save,           (Gone, Keeps),                       (Gone, Keeps)),
        (Expired, Complete,       (Ok, After::Completed),              (Ok, After::Completed)),
        (Expired, Fail,           (Ok, Keeps),                         (Ok, Keeps)),
        (Expired, Release,        (Ok, Keeps),                         (Ok, Keeps)),
        (Expired, GiveBack,       (Ok, Keeps),                         (Ok, Keeps)),
        (Expired, Get,            (Nothing, Keeps),                    (Nothing, Keeps)),
        (Expired, Forget,         (Nothing, Removes),                  (Nothing, Removes)),
    ]
};

/// Runs one operation as `MINE`.
fn run(record: Option<&Record>, operation: Operation) -> (Reply, Change) {
    let saved = Bytes::from_static(b"more");
    let lease = proof();
    let claim = |request: ClaimRequest| {
        let Step { change, reply } = machine::claim(record, NOW, &request);
        let reply = match reply {
            Answer::Claimed(Claimed {
                lease,
                entry,
                checkpoint,
            }) => {
                // What is granted is what is kept.
                let Change::Put(kept) = &change else {
                    panic!("granted and not kept");
                };
                assert_eq!(kept.owner, MINE);
                assert_eq!((lease.owner, lease.token), (kept.owner, kept.token));
                assert_eq!(
                    (lease.attempt, lease.fingerprint),
                    (kept.attempt, kept.fingerprint)
                );
                assert_eq!(checkpoint, kept.checkpoint);
                Reply::Granted(entry)
            }
            Answer::Completed(payload) => {
                assert_eq!(payload, answer());
                Reply::Answered
            }
            Answer::InProgress { token } => {
                assert_eq!(token, TOKEN);
                Reply::Held
            }
            Answer::Abandoned => Reply::Abandoned,
            Answer::Mismatch => Reply::Mismatch,
            Answer::OtherAlgorithm => Reply::OtherAlgorithm,
            other => panic!("{other:?}"),
        };
        (reply, change)
    };
    let ended = |step: Step<Result<(), Refused>>| {
        let reply = match step.reply {
            Ok(()) => Reply::Ok,
            Err(Refused::Superseded) => Reply::Superseded,
            Err(Refused::Gone) => Reply::Gone,
        };
        (reply, step.change)
    };
    match operation {
        Claim => claim(request(MINE)),
        ClaimMeekly => claim(ClaimRequest {
            take_over: false,
            ..request(MINE)
        }),
        ClaimElse => claim(ClaimRequest {
            fingerprint: Fingerprint::from_parts("t/1", [7; 32]).unwrap(),
            ..request(MINE)
        }),
        ClaimOtherwise => claim(ClaimRequest {
            fingerprint: Fingerprint::from_parts("t/2", *fingerprint().digest()).unwrap(),
            ..request(MINE)
        }),
        Renew => ended(machine::renew(record, NOW, &lease, LEASE, TTL, None)),
        Save => ended(machine::renew(record, NOW, &lease, LEASE, TTL, Some(saved))),
        Complete => {
            let payload = Payload::new(200, Bytes::from_static(b"another"));
            ended(machine::complete(record, NOW, &lease, &payload, TTL))
        }
        Fail => ended(machine::fail(record, NOW, &lease, TTL)),
        Release => ended(machine::release(record, NOW, &lease, TTL)),
        GiveBack => ended(machine::give_back(record, NOW, &lease, TTL)),
        Get => {
            let found = machine::get(record, NOW);
            if let Some(Snapshot { record: read, now }) = &found {
                assert_eq!((Some(read), *now), (record, NOW));
            }
            let reply = found.map_or(Reply::Nothing, |_| Reply::Found);
            (reply, Change::Keep)
        }
        Forget => {
            let Step { change, reply } = machine::forget(record, NOW);
            let reply = match reply {
                true => Reply::Found,
                false => Reply::Nothing,
            };
            (reply, change)
        }
    }
}

/// The record that there is to be, in full.
fn expected(was: Option<&Record>, operation: Operation, after: After) -> Change {
    let live = was.filter(|record| record.is_live(NOW));
    let mut record = was.cloned().unwrap_or(Record {
        created_at: NOW,
        ..record(InProgress, MINE).unwrap()
    });
    match after {
        After::Keeps => return Change::Keep,
        After::Removes => return Change::Remove,
        After::Claimed(attempt) => {
            record.state = State::InProgress;
            record.owner = MINE;
            record.token = FencingToken::from_u64(NOW.as_micros());
            record.attempt = attempt;
            record.entry = live.map_or(Entry::First, |live| match live.state {
                State::Failed => Entry::Retry,
                _ => Entry::Takeover,
            });
            if live.is_none() {
                record.created_at = NOW;
                record.checkpoint = None;
                record.fingerprint = match operation {
                    ClaimElse => Fingerprint::from_parts("t/1", [7; 32]).unwrap(),
                    ClaimOtherwise => {
                        Fingerprint::from_parts("t/2", *fingerprint().digest()).unwrap()
                    }
                    _ => fingerprint(),
                };
            }
            record.payload = None;
            record.lease_until = NOW + LEASE;
            record.expires_at = NOW + LEASE + TTL;
        }
        After::Renewed | After::Saved => {
            if after == After::Saved {
                record.checkpoint = Some(Bytes::from_static(b"more"));
            }
            record.lease_until = NOW + LEASE;
            record.expires_at = NOW + LEASE + TTL;
        }
        After::Completed => {
            record.state = State::Completed;
            record.owner = MINE;
            record.checkpoint = None;
            record.payload = Some(Payload::new(200, Bytes::from_static(b"another")));
            if live.is_none() {
                record.created_at = NOW;
                record.entry = Entry::First;
            }
            record.lease_until = NOW;
            record.expires_at = NOW + TTL;
        }
        After::Failed => {
            record.state = State::Failed;
            record.lease_until = NOW;
            record.expires_at = NOW + TTL;
        }
        After::GivenBack => {
            record.owner = OwnerId::NOBODY;
            record.lease_until = NOW;
            record.expires_at = NOW + TTL;
        }
    }
    Change::Put(record)
}

/// S02, S04, S07, S22, P2, P5, P6, U12, U26, U37: each state, each operation, each owner.
#[test]
fn every_pair_of_state_and_operation() {
    for &(before, operation, mine, others) in TABLE {
        for (owner, (reply, after)) in [(MINE, mine), (OTHER, others)] {
            let was = record(before, owner);
            let (replied, change) = run(was.as_ref(), operation);
            let whose = if owner == MINE { "own" } else { "another's" };
            assert_eq!(replied, reply, "{operation:?} on {before:?}, {whose}");
            assert_eq!(
                change,
                expected(was.as_ref(), operation, after),
                "{operation:?} on {before:?}, {whose}"
            );
        }
    }
}

#[test]
fn the_table_has_every_pair_once() {
    let states = [
        Absent, InProgress, Abandoned, Completed, Failed, GivenBack, Expired,
    ];
    let operations = [
        Claim,
        ClaimMeekly,
        ClaimElse,
        ClaimOtherwise,
        Renew,
        Save,
        Complete,
        Fail,
        Release,
        GiveBack,
        Get,
        Forget,
    ];
    for state in states {
        for operation in operations {
            let rows = TABLE
                .iter()
                .filter(|row| (row.0, row.1) == (state, operation));
            assert_eq!(rows.count(), 1, "{operation:?} on {state:?}");
        }
    }
    assert_eq!(TABLE.len(), states.len() * operations.len());
}

/// S22: only a first attempt without a checkpoint frees its key; an empty checkpoint is one.
#[test]
fn s22_what_a_release_frees() {
    let was = |attempt, checkpoint: Option<&'static [u8]>| Record {
        attempt,
        checkpoint: checkpoint.map(Bytes::from_static),
        ..record(InProgress, MINE).unwrap()
    };
    let first = machine::release(Some(&was(1, None)), NOW, &proof(), TTL);
    assert_eq!((first.change, first.reply), (Change::Remove, Ok(())));
    for (attempt, checkpoint) in [
        (2, None),
        (1, Some(&b""[..])),
        (1, Some(b"x")),
        (2, Some(b"x")),
    ] {
        let was = was(attempt, checkpoint);
        let step = machine::release(Some(&was), NOW, &proof(), TTL);
        assert_eq!(step, machine::fail(Some(&was), NOW, &proof(), TTL));
        assert!(matches!(step.change, Change::Put(kept) if kept.state == State::Failed));
    }
    // Late is not too late, if nobody took over.
    let late = Record {
        lease_until: before(NOW, LEASE),
        ..was(1, None)
    };
    let step = machine::release(Some(&late), NOW, &proof(), TTL);
    assert_eq!(step.change, Change::Remove);
    // A first attempt of somebody else is not freed.
    let other = Record {
        owner: OTHER,
        ..was(1, None)
    };
    let step = machine::release(Some(&other), NOW, &proof(), TTL);
    assert_eq!(step.reply, Err(Refused::Superseded));
    assert_eq!(step.change, Change::Keep);
}

/// What `MINE` is granted now, on this record.
fn granted(was: Option<&Record>) -> (Record, Claimed) {
    match machine::claim(was, NOW, &request(MINE)) {
        Step {
            change: Change::Put(kept),
            reply: Answer::Claimed(claimed),
        } => (kept, claimed),
        other => panic!("not granted: {other:?}"),
    }
}

/// What there is before a claim with each entry.
const ENTRIES: [(Before, Entry); 4] = [
    (Absent, Entry::First),
    (Failed, Entry::Retry),
    (Abandoned, Entry::Takeover),
    (GivenBack, Entry::Takeover),
];

/// A claim that is sent again is granted again as what it was: the proof, the entry and the
/// checkpoint, also late and without takeover.
#[test]
fn a_claim_sent_again_says_the_same() {
    for (before_it, entry) in ENTRIES {
        let (kept, claimed) = granted(record(before_it, OTHER).as_ref());
        assert_eq!((claimed.entry, kept.entry), (entry, entry), "{before_it:?}");
        for (later, take_over) in [(NOW, true), (NOW + LEASE + US, false)] {
            let asked = ClaimRequest {
                take_over,
                ..request(MINE)
            };
            let again = machine::claim(Some(&kept), later, &asked);
            assert_eq!(again.reply, Answer::Claimed(claimed.clone()));
            let expected = Record {
                lease_until: later + LEASE,
                expires_at: later + LEASE + TTL,
                ..kept.clone()
            };
            assert_eq!(again.change, Change::Put(expected), "{before_it:?}");
        }
    }
}

/// P5: a claim that is given back leaves what it found, but for the number of attempts: whether it
/// runs, has renewed its lease or let it end, and with or without a checkpoint from before.
#[test]
fn p5_what_a_give_back_leaves() {
    for (before_it, entry) in ENTRIES {
        for checkpoint in [None, Some(Bytes::new()), Some(Bytes::from_static(b"half"))] {
            let was = record(before_it, OTHER).map(|was| Record {
                checkpoint: checkpoint.clone(),
                ..was
            });
            let (kept, Claimed { lease, .. }) = granted(was.as_ref());
            let end = NOW + LEASE;
            for now in [NOW, before(end, US), end, end + US, before(end + TTL, US)] {
                let step = machine::give_back(Some(&kept), now, &lease, TTL);
                assert_eq!(step.reply, Ok(()), "{before_it:?}");
                let ended = Record {
                    lease_until: now,
                    expires_at: now + TTL,
                    ..kept.clone()
                };
                let expected = match entry {
                    Entry::First => Change::Remove,
                    Entry::Retry => Change::Put(Record {
                        state: State::Failed,
                        ..ended
                    }),
                    Entry::Takeover => Change::Put(Record {
                        owner: OwnerId::NOBODY,
                        ..ended
                    }),
                };
                assert_eq!(step.change, expected, "{before_it:?}");
                let Change::Put(left) = step.change else {
                    continue;
                };
                assert_eq!((left.attempt, left.entry), (3, entry));
                assert_eq!(left.checkpoint, checkpoint);
                assert!(machine::is_over(Some(&left), now, lease.token));

                // The next claimant knows what this one knew.
                let next = machine::claim(Some(&left), now, &request(OTHER)).reply;
                assert!(
                    matches!(&next, Answer::Claimed(next)
                        if (next.entry, next.lease.attempt) == (entry, 4)
                            && next.checkpoint == checkpoint
                            && next.lease.token > lease.token),
                    "{next:?}"
                );
                let meek = ClaimRequest {
                    take_over: false,
                    ..request(OTHER)
                };
                let meekly = machine::claim(Some(&left), now, &meek).reply;
                match entry {
                    Entry::Takeover => assert_eq!(meekly, Answer::Abandoned),
                    _ => assert_eq!(meekly, next),
                }
            }
        }
    }
}

/// A first claim that saved its progress ran, and is not undone.
#[test]
fn a_first_claim_with_progress_is_failed_by_a_give_back() {
    let (kept, Claimed { lease, .. }) = granted(None);
    let saved = Record {
        checkpoint: Some(Bytes::new()),
        ..kept
    };
    let step = machine::give_back(Some(&saved), NOW, &lease, TTL);
    assert_eq!(step, machine::fail(Some(&saved), NOW, &lease, TTL));
    assert!(matches!(step.change, Change::Put(kept) if kept.state == State::Failed));
}

/// P6, U12: what is still on its way of a claim that was given back: a renewal revives nothing, and
/// after a takeover nothing else is taken either. Giving back again changes nothing.
#[test]
fn p6_u12_what_comes_after_a_give_back() {
    use Refused::{Gone, Superseded};
    for (before_it, entry) in ENTRIES {
        let was = record(before_it, OTHER);
        let (kept, Claimed { lease, .. }) = granted(was.as_ref());
        let left = match machine::give_back(Some(&kept), NOW, &lease, TTL).change {
            Change::Put(left) => Some(left),
            Change::Remove => None,
            Change::Keep => panic!("nothing was given back"),
        };
        let (left, now) = (left.as_ref(), NOW + US);
        // After a takeover another owner's are all refused, and otherwise the giver's renewal.
        let (renewed, ended) = match entry {
            Entry::First | Entry::Retry => (Err(Gone), Ok(())),
            Entry::Takeover => (Err(Superseded), Err(Superseded)),
        };
        let saved = Some(Bytes::from_static(b"more"));
        for step in [
            machine::renew(left, now, &lease, LEASE, TTL, saved),
            machine::renew(left, now, &lease, LEASE, TTL, None),
        ] {
            let expected = Step {
                change: Change::Keep,
                reply: renewed,
            };
            assert_eq!(step, expected, "{before_it:?}");
        }
        for step in [
            machine::give_back(left, now, &lease, TTL),
            machine::release(left, now, &lease, TTL),
            machine::fail(left, now, &lease, TTL),
        ] {
            let expected = Step {
                change: Change::Keep,
                reply: ended,
            };
            assert_eq!(step, expected, "{before_it:?}");
        }
        let completed = machine::complete(left, now, &lease, &answer(), TTL);
        assert_eq!(completed.reply, ended, "{before_it:?}");
        assert_eq!(completed.change == Change::Keep, ended.is_err());
    }
}

/// A completed record without a payload is made by nobody, and stays closed.
#[test]
fn u18_a_completed_record_without_a_payload_stays_closed() {
    let broken = Record {
        payload: None,
        ..record(Completed, OTHER).unwrap()
    };
    let step = machine::claim(Some(&broken), NOW, &request(MINE));
    assert_eq!(step.change, Change::Keep);
    assert!(matches!(step.reply, Answer::Completed(payload) if !payload.is_replayable()));
}

// Edges

fn reply_at(was: &Record, now: Timestamp, take_over: bool) -> Answer {
    let asked = ClaimRequest {
        take_over,
        ..request(MINE)
    };
    machine::claim(Some(was), now, &asked).reply
}

/// P5: the last microsecond of a lease still holds; the next does not. For every operation.
#[test]
fn p5_the_edge_of_the_lease() {
    let was = record(InProgress, OTHER).unwrap();
    let end = was.lease_until;
    assert_eq!(
        reply_at(&was, before(end, US), true),
        Answer::InProgress { token: TOKEN }
    );
    for now in [end, end + US] {
        assert_eq!(reply_at(&was, now, false), Answer::Abandoned);
        let taken = reply_at(&was, now, true);
        assert!(
            matches!(&taken, Answer::Claimed(claimed)
                if claimed.entry == Entry::Takeover && claimed.lease.attempt == 3),
            "{taken:?}"
        );
    }
    let over = |now| machine::is_over(Some(&was), now, TOKEN);
    assert_eq!(
        [before(end, US), end, end + US].map(over),
        [false, true, true]
    );
    let abandoned = |now| {
        let found = machine::get(Some(&was), now).unwrap();
        assert_eq!(found.is_abandoned(), was.is_abandoned(now));
        found.is_abandoned()
    };
    assert_eq!(
        [before(end, US), end, end + US].map(abandoned),
        [false, true, true]
    );

    // The owner need not mind the edge.
    let own = record(InProgress, MINE).unwrap();
    for now in [before(end, US), end, end + US] {
        let lease = proof();
        let renewed = machine::renew(Some(&own), now, &lease, LEASE, TTL, None);
        assert_eq!(renewed.reply, Ok(()));
        let completed = machine::complete(Some(&own), now, &lease, &answer(), TTL);
        assert_eq!(completed.reply, Ok(()));
        let failed = machine::fail(Some(&own), now, &lease, TTL);
        assert_eq!(failed.reply, Ok(()));
        let Change::Put(kept) = failed.change else {
            panic!("not kept");
        };
        assert_eq!((kept.state, kept.lease_until), (State::Failed, now));
        let claimed = machine::claim(Some(&own), now, &request(MINE));
        assert!(matches!(&claimed.reply, Answer::Claimed(claimed)
                if claimed.lease == proof()));
    }
}

/// S05: the last microsecond of a record is like any other; from then on it is absent to every
/// operation, whatever its state.
#[test]
fn s05_the_edge_of_the_record() {
    for state in [InProgress, Abandoned, Completed, Failed, GivenBack] {
        let was = record(state, OTHER).unwrap();
        let (last, end) = (before(was.expires_at, US), was.expires_at);
        assert!(machine::get(Some(&was), last).is_some(), "{state:?}");
        assert!(machine::forget(Some(&was), last).reply);
        let refused = machine::complete(Some(&was), last, &proof(), &answer(), TTL);
        assert_eq!(refused.reply, Err(Refused::Superseded), "{state:?}");
        let other = ClaimRequest {
            fingerprint: Fingerprint::from_parts("t/1", [7; 32]).unwrap(),
            ..request(MINE)
        };
        let refused = machine::claim(Some(&was), last, &other);
        assert_eq!(refused.reply, Answer::Mismatch);

        for now in [end, end + US] {
            let lease = proof();
            assert_eq!(machine::get(Some(&was), now), None, "{state:?}");
            assert!(!machine::forget(Some(&was), now).reply);
            assert!(machine::is_over(Some(&was), now, TOKEN));
            // All but the token is as if it had never been.
            let claimed = machine::claim(Some(&was), now, &other);
            assert_eq!(claimed, machine::claim(None, now, &other), "{state:?}");
            let renewed = machine::renew(Some(&was), now, &lease, LEASE, TTL, None);
            assert_eq!(renewed, machine::renew(None, now, &lease, LEASE, TTL, None));
            let completed = machine::complete(Some(&was), now, &lease, &answer(), TTL);
            assert_eq!(
                completed,
                machine::complete(None, now, &lease, &answer(), TTL)
            );
            let failed = machine::fail(Some(&was), now, &lease, TTL);
            assert_eq!(failed, machine::fail(None, now, &lease, TTL));
            let released = machine::release(Some(&was), now, &lease, TTL);
            assert_eq!(released, machine::release(None, now, &lease, TTL));
            let given = machine::give_back(Some(&was), now, &lease, TTL);
            assert_eq!(given, machine::give_back(None, now, &lease, TTL));
        }
    }
}

/// U23: leases and times to live of zero end at once.
#[test]
fn u23_zero_ends_at_once() {
    let asked = ClaimRequest {
        lease: Duration::ZERO,
        ..request(MINE)
    };
    let Change::Put(kept) = machine::claim(None, NOW, &asked).change else {
        panic!("not kept");
    };
    assert!(kept.is_live(NOW) && kept.is_abandoned(NOW));
    let own = record(InProgress, MINE).unwrap();
    let zero = Duration::ZERO;
    let Change::Put(kept) = machine::renew(Some(&own), NOW, &proof(), zero, TTL, None).change
    else {
        panic!("not kept");
    };
    assert!(kept.is_live(NOW) && kept.is_abandoned(NOW));
    assert_eq!(kept.expires_at, NOW + TTL);
    for change in [
        machine::complete(Some(&own), NOW, &proof(), &answer(), zero).change,
        machine::fail(Some(&own), NOW, &proof(), zero).change,
        machine::give_back(Some(&own), NOW, &proof(), zero).change,
    ] {
        let Change::Put(kept) = change else {
            panic!("not kept");
        };
        assert!(!kept.is_live(NOW));
    }
}

/// Nothing overflows: times, tokens and attempts stop at their greatest value.
#[test]
fn the_greatest_values_saturate() {
    let end = Timestamp::from_micros(u64::MAX);
    let asked = ClaimRequest {
        lease: Duration::MAX,
        ttl: Duration::MAX,
        ..request(MINE)
    };
    let Change::Put(kept) = machine::claim(None, NOW, &asked).change else {
        panic!("not kept");
    };
    assert_eq!((kept.lease_until, kept.expires_at), (end, end));
    assert!(!kept.is_abandoned(before(end, US)) && kept.is_live(before(end, US)));
    let own = record(InProgress, MINE).unwrap();
    for change in [
        machine::complete(Some(&kept), NOW, &proof(), &answer(), Duration::MAX).change,
        machine::fail(Some(&kept), NOW, &proof(), Duration::MAX).change,
        machine::give_back(Some(&own), NOW, &proof(), Duration::MAX).change,
    ] {
        let Change::Put(kept) = change else {
            panic!("not kept");
        };
        assert_eq!(kept.expires_at, end);
    }
    let last = Record {
        attempt: u32::MAX,
        token: FencingToken::from_u64(u64::MAX),
        ..record(Failed, OTHER).unwrap()
    };
    let step = machine::claim(Some(&last), NOW, &request(MINE));
    assert!(matches!(step.reply, Answer::Claimed(claimed)
            if claimed.lease.attempt == u32::MAX && claimed.lease.token == last.token));
}

/// A token is the store's time, or the next number where that is not greater.
#[test]
fn tokens_follow_time_or_their_predecessor() {
    let token_after = |previous: u64| {
        let was = Record {
            token: FencingToken::from_u64(previous),
            ..record(Expired, OTHER).unwrap()
        };
        let Change::Put(kept) = machine::claim(Some(&was), NOW, &request(MINE)).change else {
            panic!("not kept");
        };
        kept.token.as_u64()
    };
    let now = NOW.as_micros();
    assert_eq!(token_after(now - 2), now);
    assert_eq!(token_after(now - 1), now);
    assert_eq!(token_after(now), now + 1);
    assert_eq!(token_after(now + 9), now + 10);
}

/// Whoever waits for a claim has waited long enough once that very claim does not run.
#[test]
fn when_a_wait_is_over() {
    for (state, over) in [
        (Absent, true),
        (InProgress, false),
        (Abandoned, true),
        (Completed, true),
        (Failed, true),
        (GivenBack, true),
        (Expired, true),
    ] {
        let was = record(state, OTHER);
        assert_eq!(
            machine::is_over(was.as_ref(), NOW, TOKEN),
            over,
            "{state:?}"
        );
        let another = FencingToken::from_u64(499);
        assert!(machine::is_over(was.as_ref(), NOW, another), "{state:?}");
    }
}

// Random operations

/// One move of one of four owners. An owner keeps the proof of its last claim, however stale.
#[derive(Clone, Debug)]
enum Move {
    Claim {
        owner: usize,
        lease: u64,
        ttl: u64,
        take_over: bool,
        other_payload: bool,
        anew: bool,
    },
    Renew {
        owner: usize,
        lease: u64,
        ttl: u64,
        checkpoint: Option<u8>,
    },
    Complete {
        owner: usize,
        ttl: u64,
        answer: u8,
    },
    Fail {
        owner: usize,
        ttl: u64,
    },
    Release {
        owner: usize,
        ttl: u64,
    },
    GiveBack {
        owner: usize,
        ttl: u64,
    },
    Forget,
    Pass(u64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let owner = || 0..4_usize;
    let time = || prop_oneof![0..4_u64, 0..50_u64];
    let one = prop_oneof![
        6 => (owner(), time(), time(), any::<bool>(), prop::bool::weighted(0.1), any::<bool>())
            .prop_map(|(owner, lease, ttl, take_over, other_payload, anew)| Move::Claim {
                owner, lease, ttl, take_over, other_payload, anew,
            }),
        3 => (owner(), time(), time(), any::<Option<u8>>())
            .prop_map(|(owner, lease, ttl, checkpoint)| Move::Renew {
                owner, lease, ttl, checkpoint,
            }),
        3 => (owner(), time(), any::<u8>())
            .prop_map(|(owner, ttl, answer)| Move::Complete { owner, ttl, answer }),
        2 => (owner(), time()).prop_map(|(owner, ttl)| Move::Fail { owner, ttl }),
        2 => (owner(), time()).prop_map(|(owner, ttl)| Move::Release { owner, ttl }),
        3 => (owner(), time()).prop_map(|(owner, ttl)| Move::GiveBack { owner, ttl }),
        1 => Just(Move::Forget),
        4 => time().prop_map(Move::Pass),
    ];
    prop::collection::vec(one, 1..80)
}

/// A record, its clock, and what must stay true of them.
#[derive(Default)]
struct World {
    record: Option<Record>,
    now: u64,
    next_owner: u128,
    /// By owner: the proof of its last claim.
    leases: [Option<Lease>; 4],
    greatest_token: u64,
}

impl World {
    fn live(&self) -> Option<&Record> {
        let now = self.clock();
        self.record.as_ref().filter(|record| record.is_live(now))
    }

    fn clock(&self) -> Timestamp {
        Timestamp::from_micros(self.now)
    }

    fn apply(&mut self, change: Change) {
        // A clock that stands still while a record goes, or comes back as it was, would give a
        // token again; a store whose clock can has to remember the last.
        let passes = match &change {
            Change::Keep => false,
            Change::Put(record) => self.live().is_none() && record.state == State::Completed,
            Change::Remove => true,
        };
        match change {
            Change::Keep => {}
            Change::Put(record) => self.record = Some(record),
            Change::Remove => self.record = None,
        }
        if passes {
            self.now = self.now.max(self.greatest_token) + 1;
        }
    }

    fn play(&mut self, played: &Move) {
        let was = self.live().cloned();
        let now = self.clock();
        let micros = Duration::from_micros;
        match *played {
            Move::Pass(time) => self.now += time,
            Move::Forget => {
                let step = machine::forget(self.record.as_ref(), now);
                assert_eq!(step.reply, was.is_some());
                self.apply(step.change);
            }
            Move::Claim {
                owner,
                lease,
                ttl,
                take_over,
                other_payload,
                anew,
            } => {
                let id = match self.leases[owner].filter(|_| !anew) {
                    Some(lease) => lease.owner,
                    None => {
                        self.next_owner += 1;
                        OwnerId::from_u128(self.next_owner)
                    }
                };
                let asked = ClaimRequest {
                    fingerprint: Fingerprint::from_parts("t", [u8::from(other_payload); 32])
                        .unwrap(),
                    owner: id,
                    lease: micros(lease),
                    ttl: micros(ttl),
                    take_over,
                };
                let step = machine::claim(self.record.as_ref(), now, &asked);
                self.check_claim(was.as_ref(), &asked, &step);
                if let Answer::Claimed(claimed) = &step.reply {
                    self.leases[owner] = Some(claimed.lease);
                }
                self.apply(step.change);
            }
            Move::Renew {
                owner,
                lease,
                ttl,
                checkpoint,
            } => {
                let Some(proof) = self.leases[owner] else {
                    return;
                };
                let saved = checkpoint.map(|byte| Bytes::from(vec![byte]));
                let step = machine::renew(
                    self.record.as_ref(),
                    now,
                    &proof,
                    micros(lease),
                    micros(ttl),
                    saved.clone(),
                );
                check_owner(was.as_ref(), &proof, &step);
                if let Change::Put(kept) = &step.change {
                    let was = was.as_ref().unwrap();
                    // S08, P5: the last checkpoint that was saved stays.
                    let saved = saved.or_else(|| was.checkpoint.clone());
                    assert_eq!(kept.checkpoint, saved);
                    assert_eq!(kept.state, State::InProgress);
                    assert_eq!((kept.attempt, kept.token), (was.attempt, was.token));
                }
                self.apply(step.change);
            }
            Move::Complete { owner, ttl, answer } => {
                let Some(proof) = self.leases[owner] else {
                    return;
                };
                let payload = Payload::new(200, Bytes::from(vec![answer]));
                let step =
                    machine::complete(self.record.as_ref(), now, &proof, &payload, micros(ttl));
                check_owner(was.as_ref(), &proof, &step);
                if let Change::Put(kept) = &step.change {
                    assert_eq!(kept.payload, Some(payload));
                    assert_eq!((kept.attempt, kept.token), (proof.attempt, proof.token));
                }
                self.apply(step.change);
            }
            Move::Fail { owner, ttl }
            | Move::Release { owner, ttl }
            | Move::GiveBack { owner, ttl } => {
                let Some(proof) = self.leases[owner] else {
                    return;
                };
                let function = match played {
                    Move::Fail { .. } => machine::fail,
                    Move::Release { .. } => machine::release,
                    _ => machine::give_back,
                };
                let step = function(self.record.as_ref(), now, &proof, micros(ttl));
                check_owner(was.as_ref(), &proof, &step);
                match &step.change {
                    Change::Keep => {}
                    Change::Put(kept) => {
                        let was = was.as_ref().unwrap();
                        assert_eq!(kept.checkpoint, was.checkpoint);
                        assert_eq!((kept.attempt, kept.token), (was.attempt, was.token));
                        assert_eq!(kept.fingerprint, was.fingerprint);
                        assert_eq!(kept.entry, was.entry);
                        // P5: a takeover that is given back is one for the next claimant too.
                        let given_back =
                            matches!(played, Move::GiveBack { .. }) && was.entry == Entry::Takeover;
                        let (state, owner) = match given_back {
                            true => (State::InProgress, OwnerId::NOBODY),
                            false => (State::Failed, was.owner),
                        };
                        assert_eq!((kept.state, kept.owner), (state, owner));
                    }
                    Change::Remove => {
                        let was = was.as_ref().unwrap();
                        assert_eq!((was.attempt, &was.checkpoint), (1, &None));
                        assert_eq!(was.entry, Entry::First);
                    }
                }
                self.apply(step.change);
            }
        }
        self.check_record(was.as_ref(), now, matches!(played, Move::Forget));
        self.check_nobodys();
    }

    fn check_claim(&mut self, was: Option<&Record>, asked: &ClaimRequest, step: &Step<Answer>) {
        let Answer::Claimed(claimed) = &step.reply else {
            assert_eq!(step.change, Change::Keep, "a refusal changed something");
            return;
        };
        let token = claimed.lease.token.as_u64();
        let Change::Put(kept) = &step.change else {
            panic!("granted and not kept");
        };
        assert_eq!(claimed.entry, kept.entry);
        match was {
            None => {
                assert_eq!((claimed.lease.attempt, &claimed.checkpoint), (1, &None));
                assert_eq!(claimed.entry, Entry::First);
            }
            Some(was) => {
                assert_eq!(was.fingerprint, asked.fingerprint);
                // P5: the checkpoint comes along.
                assert_eq!(claimed.checkpoint, was.checkpoint);
                if was.owner == asked.owner && was.state == State::InProgress {
                    assert_eq!(
                        (was.token, was.attempt),
                        (claimed.lease.token, claimed.lease.attempt)
                    );
                    assert_eq!(claimed.entry, was.entry);
                    return;
                }
                // P1: nobody else holds an unexpired lease.
                assert!(was.state == State::Failed || was.is_abandoned(self.clock()));
                assert!(was.state == State::Failed || asked.take_over);
                // P5: attempts are counted, and who went silent is told of.
                assert_eq!(claimed.lease.attempt, was.attempt + 1);
                let entry = match was.state {
                    State::Failed => Entry::Retry,
                    _ => Entry::Takeover,
                };
                assert_eq!(claimed.entry, entry);
            }
        }
        // P6: tokens strictly grow, whatever came between.
        assert!(
            token > self.greatest_token,
            "{token} after {}",
            self.greatest_token
        );
        self.greatest_token = token;
    }

    /// What may have become of the record by one operation.
    fn check_record(&self, was: Option<&Record>, at: Timestamp, forgotten: bool) {
        let Some(was) = was.filter(|_| !forgotten) else {
            return;
        };
        let kept = self.record.as_ref();
        if was.state == State::Completed {
            // P2: a completed answer does not change, and is there until it expires.
            assert_eq!(kept, Some(was), "a completed record changed");
        }
        if let Some(kept) = kept {
            assert_eq!(kept.created_at, was.created_at);
            assert_eq!(kept.fingerprint, was.fingerprint);
            assert!(kept.attempt >= was.attempt && kept.token >= was.token);
            assert_eq!(kept.payload.is_some(), kept.state == State::Completed);
            // It never expires under a living owner.
            assert!(kept.state != State::InProgress || kept.expires_at >= kept.lease_until);
            if kept.owner != was.owner && kept.owner != OwnerId::NOBODY {
                assert!(was.state == State::Failed || was.is_abandoned(at));
            }
        }
    }

    /// P5, P6: a takeover that was given back. No claimant before can touch the record, and the
    /// next one takes over at once, or is told that it is abandoned.
    fn check_nobodys(&self) {
        let Some(record) = self.live().filter(|kept| kept.owner == OwnerId::NOBODY) else {
            return;
        };
        let (record, now, ttl) = (Some(record), self.clock(), TTL);
        for proof in self.leases.iter().flatten() {
            for step in [
                machine::renew(record, now, proof, LEASE, ttl, Some(Bytes::new())),
                machine::complete(record, now, proof, &answer(), ttl),
                machine::fail(record, now, proof, ttl),
                machine::release(record, now, proof, ttl),
                machine::give_back(record, now, proof, ttl),
            ] {
                let refused = Step {
                    change: Change::Keep,
                    reply: Err(Refused::Superseded),
                };
                assert_eq!(step, refused);
            }
        }
        let was = record.unwrap();
        let asked = ClaimRequest {
            fingerprint: was.fingerprint,
            ..request(OwnerId::from_u128(u128::MAX))
        };
        let next = machine::claim(record, now, &asked).reply;
        assert!(
            matches!(&next, Answer::Claimed(next)
                if (next.entry, next.lease.attempt) == (Entry::Takeover, was.attempt + 1)
                    && next.checkpoint == was.checkpoint),
            "{next:?}"
        );
        let meek = ClaimRequest {
            take_over: false,
            ..asked
        };
        assert_eq!(machine::claim(record, now, &meek).reply, Answer::Abandoned);
    }
}

/// P6: where another owner's record is, nothing changes, and the stale owner is told.
fn check_owner(was: Option<&Record>, proof: &Lease, step: &Step<Result<(), Refused>>) {
    if was.is_some_and(|was| was.owner != proof.owner) {
        assert_eq!(step.reply, Err(Refused::Superseded));
    }
    if step.reply.is_err() {
        assert_eq!(step.change, Change::Keep, "a refusal changed something");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// P1, P2, P5, P6 hold over any sequence of operations of several owners, some of them stale.
    #[test]
    fn p1_p2_p5_p6_hold_over_any_operations(moves in moves()) {
        let mut world = World { now: 1_000, ..World::default() };
        for played in &moves {
            world.play(played);
        }
    }

    /// Each operation can be sent again after its answer was lost: the same owner gets an answer
    /// that means the same, and the record is the same but for its times.
    #[test]
    fn every_operation_can_be_sent_again(moves in moves(), later in 0..10_u64) {
        let mut world = World { now: 1_000, ..World::default() };
        for played in &moves {
            world.play(played);
            if let Move::Claim { .. } | Move::Forget | Move::Pass(_) = played {
                continue;
            }
            let once = world.record.clone();
            world.now += later;
            world.play(played);
            if once.as_ref().is_some_and(|once| once.is_live(world.clock())) {
                let again = world.record.as_ref().unwrap();
                let once = once.unwrap();
                prop_assert_eq!(again.state, once.state);
                prop_assert_eq!(&again.payload, &once.payload);
                prop_assert_eq!(&again.checkpoint, &once.checkpoint);
                prop_assert_eq!(again.owner, once.owner);
                prop_assert_eq!((again.token, again.attempt), (once.token, once.attempt));
            }
        }
    }
}
