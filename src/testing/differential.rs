//! The differential test of [`Store`]: random operations and steps of the clock, and after each of
//! them the reply and the record that [`machine`] gives.
//!
//! [`run`] takes what [`run_all`](super::store::run_all) takes, and needs no more than a line:
//!
//! ```
//! use tower_idempotency::{MemoryStore, testing::{differential, store::Fixture}};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! differential::run(|| async {
//!     let store = MemoryStore::new();
//!     let clock = store.clone();
//!     Fixture::new(store, move |by| {
//!         clock.advance_clock(by);
//!         std::future::ready(())
//!     })
//! })
//! .await;
//! # }
//! ```
//!
//! It finds what nobody thought of a case for; the [suite](super::store) says what is wrong in
//! words, and covers what takes more than one caller at a time.
//!
//! # What is compared
//!
//! Every reply, and the record of the key after each operation. Times are compared as they are left
//! at the moment, to within a few seconds: leases, times to live and steps of the clock are chosen
//! so that nothing ends within 20 s of an operation. Tokens are numbers of the store's own: a new
//! claim's has to be greater than any before it of that key, and where the machine tells of one
//! claim again the store has to.

use std::{
    any::Any,
    collections::HashMap,
    fmt::{Debug, Write},
    future::Future,
    panic::AssertUnwindSafe,
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::FutureExt;
use proptest::{
    collection::vec,
    option,
    prelude::{Just, Strategy, any},
    prop_oneof,
    sample::select,
    strategy::ValueTree,
    test_runner::{Config, RngSeed, TestRunner, contextualize_config},
};
use tokio::{task::yield_now, time::timeout};

use crate::{
    fingerprint::Fingerprint,
    key::StoreKey,
    machine::{self, Change, Refused, Step},
    record::{
        Claim, ClaimRequest, FencingToken, Lease, OwnerId, Payload, Record, Snapshot, State,
        Timestamp,
    },
    store::{Store, StoreError},
    testing::store::Fixture,
};

/// Compares a store with the machine over random sequences of operations, each on a fixture of its
/// own.
///
/// 64 sequences of 1 to 80 operations; the environment variable `PROPTEST_CASES` sets another
/// number. A sequence in which they differ is made as short as possible, in up to 500 further runs
/// (`PROPTEST_MAX_SHRINK_ITERS`).
///
/// # Panics
///
/// If they differ: with the shortest sequence that was found, how they differ at its end, and a seed
/// with which `PROPTEST_RNG_SEED` gives the same sequences again. Also if a sequence takes so long
/// that nobody can tell.
pub async fn run<S: Store, F: Future<Output = Fixture<S>>>(fixture: impl Fn() -> F) {
    let config = contextualize_config(Config {
        cases: 64,
        max_shrink_iters: 500,
        failure_persistence: None,
        ..Config::default()
    });
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => getrandom::u64().expect("the operating system gives random numbers"),
    };
    let (cases, mut shrinks) = (config.cases, config.max_shrink_iters);
    let mut runner = TestRunner::new(Config {
        rng_seed: RngSeed::Fixed(seed),
        ..config
    });
    let operations = vec(operation(), 1..=80);
    for case in 1..=cases {
        let tree = operations.new_tree(&mut runner);
        let mut tree = tree.expect("operations are made without rejection");
        let drawn = tree.current();
        let Err(mut fault) = play(fixture().await, &drawn).await else {
            continue;
        };
        let mut simpler = tree.simplify();
        while simpler && shrinks > 0 {
            shrinks -= 1;
            simpler = match play(fixture().await, &tree.current()).await {
                Ok(()) => tree.complicate(),
                Err(found) => {
                    fault = found;
                    tree.simplify()
                }
            };
        }
        panic!(
            "the store and the machine differ, in case {case} of {cases}:\n{fault}\n\
             (shrunk from {} operations; PROPTEST_RNG_SEED={seed} gives the same cases again)",
            drawn.len()
        );
    }
}

/// A case that takes longer is no use: what ends in the store may not have ended in the model.
const SLOW: Duration = Duration::from_secs(10);

/// How far two readings of what is left of a time may be apart.
const TOLERANCE: Duration = Duration::from_secs(10);

/// From here on a time is one without an end: a store need not keep more.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// An operation that returns at once is given this long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two operations.
const TICK: Duration = Duration::from_micros(1);

const KEYS: [&str; 3] = ["a", "b", "ключ:'%\0"];

#[derive(Clone, Debug)]
enum Operation {
    Claim {
        key: usize,
        owner: u8,
        body: Body,
        lease: Duration,
        ttl: Duration,
        take_over: bool,
    },
    Renew(Proof, Duration, Duration, Option<&'static str>),
    Complete(Proof, Duration, Answer),
    Fail(Proof, Duration),
    Release(Proof, Duration),
    GiveBack(Proof, Duration),
    Get(usize),
    Forget(usize),
    Wait(Proof),
    Pass(Duration),
}

/// What a claim of this owner gave, if it was ever granted one; otherwise made up.
#[derive(Clone, Copy, Debug)]
struct Proof {
    key: usize,
    /// `None` for whoever has the record: otherwise most operations would be refused.
    owner: Option<u8>,
    /// Not the last claim, but the first.
    first: bool,
}

#[derive(Clone, Copy, Debug)]
enum Body {
    One,
    Another,
    OtherAlgorithm,
}

impl Body {
    fn fingerprint(self) -> Fingerprint {
        let (algorithm, body) = match self {
            Self::One => ("differential/1", "one"),
            Self::Another => ("differential/1", "another"),
            Self::OtherAlgorithm => ("differential/2", "one"),
        };
        let mut hasher = Fingerprint::hasher(algorithm);
        hasher.field(body);
        hasher.finish()
    }
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Text,
    EveryByte,
    NotReplayable,
}

impl Answer {
    fn payload(self) -> Payload {
        match self {
            Self::Text => Payload::new(201, Bytes::from_static(b"answer")),
            Self::EveryByte => Payload::new(u16::MAX, (0..=u8::MAX).collect::<Vec<_>>().into()),
            Self::NotReplayable => Payload::not_replayable(200),
        }
    }
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Steps are whole minutes, leases end 20 s after one and records 20 s or 40 s.
fn operation() -> impl Strategy<Value = Operation> {
    use Operation::{Claim, Complete, Fail, Forget, Get, GiveBack, Pass, Release, Renew, Wait};
    let key = || 0..KEYS.len();
    let owner = || 0..4_u8;
    let proof = || {
        let whose = prop_oneof![2 => Just(None), 3 => owner().prop_map(Some)];
        (key(), whose, prop_oneof![5 => Just(false), 1 => Just(true)])
            .prop_map(|(key, owner, first)| Proof { key, owner, first })
    };
    let body = prop_oneof![
        8 => Just(Body::One),
        1 => Just(Body::Another),
        1 => Just(Body::OtherAlgorithm),
    ];
    let (short, long) = (seconds(20), seconds(620));
    let lease = move || {
        select(vec![
            long,
            short,
            seconds(80),
            Duration::ZERO,
            Duration::MAX,
        ])
    };
    let day = seconds(86_420);
    let ttl = move || {
        select(vec![
            day,
            long,
            seconds(80),
            short,
            Duration::ZERO,
            Duration::MAX,
        ])
    };
    let answer = select(vec![Answer::Text, Answer::EveryByte, Answer::NotReplayable]);
    let checkpoint = option::of(select(vec!["half", "", "\0'\u{1f511}"]));
    let claim = (key(), owner(), body, lease(), ttl(), any::<bool>());
    prop_oneof![
        10 => claim.prop_map(|(key, owner, body, lease, ttl, take_over)| Claim {
            key, owner, body, lease, ttl, take_over
        }),
        5 => (proof(), lease(), ttl(), checkpoint)
            .prop_map(|(proof, lease, ttl, saved)| Renew(proof, lease, ttl, saved)),
        4 => (proof(), ttl(), answer).prop_map(|(proof, ttl, answer)| Complete(proof, ttl, answer)),
        3 => (proof(), ttl()).prop_map(|(proof, ttl)| Fail(proof, ttl)),
        3 => (proof(), ttl()).prop_map(|(proof, ttl)| Release(proof, ttl)),
        3 => (proof(), ttl()).prop_map(|(proof, ttl)| GiveBack(proof, ttl)),
        1 => key().prop_map(Get),
        1 => key().prop_map(Forget),
        2 => proof().prop_map(Wait),
        4 => select(vec![60, 600, 3_600, 86_400]).prop_map(|by| Pass(seconds(by))),
    ]
}

/// Plays a sequence up to its end, or to where store and machine differ.
async fn play<S: Store>(fixture: Fixture<S>, operations: &[Operation]) -> Result<(), String> {
    let began = Instant::now();
    let mut world = World::new(&fixture);
    for (n, operation) in operations.iter().enumerate() {
        let played = AssertUnwindSafe(world.play(operation)).catch_unwind().await;
        let played = played.unwrap_or_else(|panic| Err(format!("it panics: {}", said(&*panic))));
        if let Err(fault) = played {
            assert!(
                began.elapsed() < SLOW,
                "{n} operations took more than {SLOW:?}: nobody can tell what is right"
            );
            let mut told = String::new();
            for operation in &operations[..=n] {
                let _ = writeln!(told, "    {operation:?}");
            }
            return Err(told + &fault);
        }
    }
    Ok(())
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or_default()
}

/// A store, and the model beside it.
struct World<'a, S> {
    fixture: &'a Fixture<S>,
    now: Timestamp,
    keys: Vec<Key>,
}

struct Key {
    name: StoreKey,
    record: Option<Record>,
    /// Each owner's proofs, of the model and of the store.
    proofs: HashMap<OwnerId, Vec<(Lease, Lease)>>,
    /// The store's tokens by those of the model.
    tokens: HashMap<FencingToken, FencingToken>,
}

/// Of a proof that is made up.
const NO_TOKEN: FencingToken = FencingToken::from_u64(0);

impl<'a, S: Store> World<'a, S> {
    fn new(fixture: &'a Fixture<S>) -> Self {
        let key = |name| Key {
            name: StoreKey::new("idem", "caller", "endpoint", name),
            record: None,
            proofs: HashMap::new(),
            tokens: [(NO_TOKEN, NO_TOKEN)].into(),
        };
        Self {
            fixture,
            now: Timestamp::from_micros(1 << 50),
            keys: KEYS.into_iter().map(key).collect(),
        }
    }

    async fn play(&mut self, operation: &Operation) -> Result<(), String> {
        // No two claims have one token, not even where the store's clock stands still meanwhile.
        self.fixture.advance(TICK).await;
        self.now = self.now + TICK;
        let now = self.now;
        let store = self.fixture.store();
        let touched = match *operation {
            Operation::Pass(by) => {
                self.fixture.advance(by).await;
                self.now = now + by;
                return Ok(());
            }
            Operation::Claim {
                key,
                owner,
                body,
                lease,
                ttl,
                take_over,
            } => {
                let request = ClaimRequest {
                    fingerprint: body.fingerprint(),
                    owner: owner_id(owner),
                    lease,
                    ttl,
                    take_over,
                };
                let found = store.claim(&self.keys[key].name, &request).await;
                let key = &mut self.keys[key];
                let expected = key.step(|record| machine::claim(record, now, &request));
                key.compare_claims(expected, found)?;
                key
            }
            Operation::Renew(proof, lease, ttl, saved) => {
                let (key, model, real) = self.proof(proof);
                let saved = saved.map(|saved| Bytes::from_static(saved.as_bytes()));
                let found = store.renew(&key.name, &real, lease, ttl, saved.clone());
                let found = found.await;
                let renew = |record: Option<&Record>| {
                    machine::renew(record, now, &model, lease, ttl, saved.clone())
                };
                compare(key.step(renew), found)?;
                key
            }
            Operation::Complete(proof, ttl, answer) => {
                let (key, model, real) = self.proof(proof);
                let payload = answer.payload();
                let found = store.complete(&key.name, &real, &payload, ttl).await;
                let complete =
                    |record: Option<&Record>| machine::complete(record, now, &model, &payload, ttl);
                compare(key.step(complete), found)?;
                key
            }
            Operation::Fail(proof, ttl) => {
                let (key, model, real) = self.proof(proof);
                let found = store.fail(&key.name, &real, ttl).await;
                compare(
                    key.step(|record| machine::fail(record, now, &model, ttl)),
                    found,
                )?;
                key
            }
            Operation::Release(proof, ttl) => {
                let (key, model, real) = self.proof(proof);
                let found = store.release(&key.name, &real, ttl).await;
                compare(
                    key.step(|record| machine::release(record, now, &model, ttl)),
                    found,
                )?;
                key
            }
            Operation::GiveBack(proof, ttl) => {
                let (key, model, real) = self.proof(proof);
                let found = store.give_back(&key.name, &real, ttl).await;
                compare(
                    key.step(|record| machine::give_back(record, now, &model, ttl)),
                    found,
                )?;
                key
            }
            Operation::Get(key) => &mut self.keys[key],
            Operation::Forget(key) => {
                let key = &mut self.keys[key];
                let found = store.forget(&key.name).await;
                let expected = key.step(|record| machine::forget(record, now));
                same("reply", &expected, &found.map_err(|error| told(&error))?)?;
                key
            }
            Operation::Wait(proof) => {
                let (key, model, real) = self.proof(proof);
                if machine::is_over(key.record.as_ref(), now, model.token) {
                    let found = timeout(PATIENCE, waited(store, &key.name, real.token)).await;
                    let found = found.map_err(|_| "the wait does not end".to_owned())?;
                    key.compare_snapshots(now, found)?;
                } else {
                    let mut waiting = pin!(store.wait(&key.name, real.token));
                    // It may return early, and it may be dropped.
                    if let Poll::Ready(found) = futures::poll!(waiting.as_mut()) {
                        key.compare_snapshots(now, found)?;
                    }
                }
                key
            }
        };
        let found = store.get(&touched.name).await;
        touched.compare_snapshots(now, found)
    }

    fn proof(&mut self, proof: Proof) -> (&mut Key, Lease, Lease) {
        let key = &mut self.keys[proof.key];
        let holder = key.record.as_ref().map(|record| record.owner);
        let owner = match proof.owner {
            Some(owner) => owner_id(owner),
            None => holder.unwrap_or(owner_id(0)),
        };
        let given = key.proofs.get(&owner).and_then(|given| match proof.first {
            true => given.first(),
            false => given.last(),
        });
        let made_up = Lease {
            owner,
            token: NO_TOKEN,
            attempt: 1,
            fingerprint: Body::One.fingerprint(),
        };
        let (model, real) = given.copied().unwrap_or((made_up, made_up));
        (key, model, real)
    }
}

fn owner_id(owner: u8) -> OwnerId {
    OwnerId::from_u128((1 << 127) + u128::from(owner))
}

/// Waits as a caller does: again if the store returned early.
async fn waited<S: Store>(
    store: &S,
    key: &StoreKey,
    token: FencingToken,
) -> Result<Option<Snapshot>, StoreError> {
    loop {
        let found = store.wait(key, token).await?;
        let over = found
            .as_ref()
            .is_none_or(|found| machine::is_over(Some(&found.record), found.now, token));
        if over {
            return Ok(found);
        }
        yield_now().await;
    }
}

impl Key {
    fn step<T>(&mut self, function: impl Fn(Option<&Record>) -> Step<T>) -> T {
        let Step { change, reply } = function(self.record.as_ref());
        match change {
            Change::Keep => {}
            Change::Put(record) => self.record = Some(record),
            Change::Remove => self.record = None,
        }
        reply
    }

    fn compare_claims(
        &mut self,
        expected: Claim,
        found: Result<Claim, StoreError>,
    ) -> Result<(), String> {
        match (expected, found) {
            (Claim::Claimed(expected), Ok(Claim::Claimed(found))) => {
                let (model, real) = (expected.lease, found.lease);
                same("entry", &expected.entry, &found.entry)?;
                same("checkpoint", &expected.checkpoint, &found.checkpoint)?;
                same("owner of the proof", &model.owner, &real.owner)?;
                same("attempt of the proof", &model.attempt, &real.attempt)?;
                same(
                    "fingerprint of the proof",
                    &model.fingerprint,
                    &real.fingerprint,
                )?;
                self.grow_or_stay(model.token, real.token)?;
                let given = self.proofs.entry(model.owner).or_default();
                given.push((model, real));
                Ok(())
            }
            (Claim::InProgress { token: model }, Ok(Claim::InProgress { token: real })) => {
                same("token", &self.tokens.get(&model).copied(), &Some(real))
            }
            (Claim::Completed(expected), Ok(Claim::Completed(found))) => {
                same_payload(Some(&expected), Some(&found))
            }
            (expected, Ok(found)) => same("reply", &expected, &found),
            (expected, Err(error)) => Err(differ("reply", &expected, &told(&error))),
        }
    }

    /// A token is either that of a claim that is known, or greater than any before it.
    fn grow_or_stay(&mut self, model: FencingToken, real: FencingToken) -> Result<(), String> {
        if let Some(known) = self.tokens.get(&model) {
            return same("token of the same claim", known, &real);
        }
        let greatest = self.tokens.values().max().copied();
        self.tokens.insert(model, real);
        match greatest.is_none_or(|greatest| greatest < real) {
            true => Ok(()),
            false => Err(format!(
                "the token does not grow: {real:?} after {greatest:?}"
            )),
        }
    }

    fn compare_snapshots(
        &self,
        now: Timestamp,
        found: Result<Option<Snapshot>, StoreError>,
    ) -> Result<(), String> {
        let found =
            found.map_err(|error| format!("the record cannot be read: {}", told(&error)))?;
        let expected = machine::get(self.record.as_ref(), now);
        let (model, real) = match (expected, found) {
            (None, None) => return Ok(()),
            (Some(expected), Some(found)) => (expected, found),
            (expected, found) => return Err(differ("record", &expected, &found)),
        };
        let ((model, model_now), (real, real_now)) =
            ((model.record, model.now), (real.record, real.now));
        same("state", &model.state, &real.state)?;
        same("fingerprint", &model.fingerprint, &real.fingerprint)?;
        same("owner", &model.owner, &real.owner)?;
        same("attempt", &model.attempt, &real.attempt)?;
        let token = self.tokens.get(&model.token).copied();
        same("token", &token, &Some(real.token))?;
        same("checkpoint", &model.checkpoint, &real.checkpoint)?;
        same_payload(model.payload.as_ref(), real.payload.as_ref())?;
        let age = model_now.since(model.created_at);
        same_time("age", age, real_now.since(real.created_at))?;
        let left = model.expires_at.since(model_now);
        let real_left = real.expires_at.since(real_now);
        same_time("time to live that is left", left, real_left)?;
        // They mean nothing once it is over.
        if model.state == State::InProgress {
            same("entry", &model.entry, &real.entry)?;
            let (ended, real_ended) = (model.is_abandoned(model_now), real.is_abandoned(real_now));
            same("end of the lease", &ended, &real_ended)?;
            let left = model.lease_until.since(model_now);
            let real_left = real.lease_until.since(real_now);
            same_time("lease that is left", left, real_left)?;
        }
        Ok(())
    }
}

fn compare(expected: Result<(), Refused>, found: Result<(), StoreError>) -> Result<(), String> {
    match (&expected, &found) {
        (Ok(()), Ok(()))
        | (Err(Refused::Superseded), Err(StoreError::Superseded))
        | (Err(Refused::Gone), Err(StoreError::Gone)) => Ok(()),
        (_, Ok(())) => Err(differ("reply", &expected, &found)),
        (_, Err(error)) => Err(differ("reply", &expected, &told(error))),
    }
}

/// An error with what is behind it.
fn told(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        let _ = write!(text, ": {source}");
        next = source.source();
    }
    text
}

fn differ(what: &str, expected: &dyn Debug, found: &dyn Debug) -> String {
    format!("{what} of the machine: {expected:?}\n{what} of the store:   {found:?}")
}

fn same<T: PartialEq + Debug>(what: &str, expected: &T, found: &T) -> Result<(), String> {
    match expected == found {
        true => Ok(()),
        false => Err(differ(what, expected, found)),
    }
}

fn same_payload(expected: Option<&Payload>, found: Option<&Payload>) -> Result<(), String> {
    same("answer", &expected, &found).map_err(|told| {
        let parts = |payload: Option<&Payload>| payload.map(|p| (p.code, p.bytes.len()));
        match parts(expected) == parts(found) {
            true => "the bytes of the answer differ".to_owned(),
            false => told,
        }
    })
}

fn same_time(what: &str, expected: Duration, found: Duration) -> Result<(), String> {
    let near = expected.abs_diff(found) <= TOLERANCE;
    match near || expected > FOREVER && found > FOREVER {
        true => Ok(()),
        false => Err(differ(what, &expected, &found)),
    }
}
