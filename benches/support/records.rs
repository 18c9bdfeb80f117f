//! A store with a given number of records, like those that requests leave.

use std::{cell::Cell, rc::Rc, time::Duration};

use bytes::Bytes;
use http::Request;
use tower::{Layer, service_fn};
use tower_idempotency::{
    Claim, ClaimRequest, Execution, Fingerprint, MemoryStore, OwnerId, Payload, Record,
    RequestBody, Store, StoreKey,
};

use super::service::{self, Upload, handler, layer, now};

pub(crate) const TTL: Duration = Duration::from_secs(24 * 60 * 60);
pub(crate) const LEASE: Duration = Duration::from_secs(30);

/// What the layer makes of a request: taken from one that it answered.
pub(crate) struct Sample {
    scope: String,
    endpoint: String,
    fingerprint: Fingerprint,
    payload: Payload,
}

impl Sample {
    /// In an entered runtime.
    pub(crate) fn of(upload: &Upload) -> Self {
        let store = service::store();
        let (send, sent) = std::sync::mpsc::channel();
        let spy = move |request: Request<RequestBody<Upload>>| {
            let execution: &Execution = request.extensions().get().expect("an execution");
            send.send(execution.store_key().clone()).expect("a reader");
            handler(request)
        };
        let mut service = layer(store.clone()).layer(service_fn(spy));
        service::outcome(&mut service, service::request(Some(0), upload));
        let key = sent.recv().expect("the handler ran");
        let found = now(store.get(&key)).expect("the store answers");
        let Record {
            fingerprint,
            payload,
            ..
        } = found.expect("a record").record;
        let sample = Self {
            scope: key.parts().scope.to_owned(),
            endpoint: key.parts().endpoint.to_owned(),
            fingerprint,
            payload: payload.expect("an answer"),
        };
        assert_eq!(sample.key(0), key);
        sample
    }

    /// Under which the request with this number's key is kept.
    pub(crate) fn key(&self, number: u64) -> StoreKey {
        StoreKey::new("idem", &self.scope, &self.endpoint, &service::key(number))
    }

    /// The length of a key and an encoded answer: what a record cannot do without.
    pub(crate) fn content(&self) -> usize {
        self.key(0).as_str().len() + self.payload.bytes.len()
    }

    /// A copy of the answer, as each request makes its own.
    pub(crate) fn payload(&self) -> Payload {
        Payload::new(
            self.payload.code,
            Bytes::copy_from_slice(&self.payload.bytes),
        )
    }

    pub(crate) fn claim_request(&self, lease: Duration) -> ClaimRequest {
        ClaimRequest {
            fingerprint: self.fingerprint,
            // Each key is claimed once, so one owner will do; random numbers are the engine's cost.
            owner: OwnerId::from_u128(1),
            lease,
            ttl: TTL,
            take_over: true,
        }
    }

    pub(crate) fn claim(&self, store: &MemoryStore, key: &StoreKey) -> Claim {
        now(store.claim(key, &self.claim_request(LEASE))).expect("the store answers")
    }

    /// The two calls of a fresh request.
    pub(crate) fn claim_and_complete(&self, store: &MemoryStore, key: &StoreKey) {
        let claim = self.claim(store, key);
        let Claim::Claimed(claimed) = claim else {
            panic!("{claim:?}");
        };
        now(store.complete(key, &claimed.lease, &self.payload(), TTL)).expect("the store answers");
    }
}

/// A store that keeps its number of records: for those that were added, as many of the oldest are
/// removed. So a table neither grows while it is measured, nor is new memory warmer than old.
pub(crate) struct Window {
    pub(crate) store: MemoryStore,
    pub(crate) sample: Rc<Sample>,
    records: u64,
    next: Cell<u64>,
    seen: Cell<u64>,
}

impl Window {
    /// In an entered runtime.
    pub(crate) fn filled(records: u64, upload: &Upload) -> Rc<Self> {
        let (store, sample) = (service::store(), Rc::new(Sample::of(upload)));
        for number in 0..records {
            sample.claim_and_complete(&store, &sample.key(number));
        }
        Rc::new(Self {
            store,
            sample,
            records,
            next: Cell::new(records),
            seen: Cell::new(0),
        })
    }

    /// Numbers of keys that were never used.
    pub(crate) fn fresh(&self, number: usize) -> std::ops::Range<u64> {
        let next = self.next.get();
        self.next.set(next + number as u64);
        next..self.next.get()
    }

    /// Numbers of keys that have a record, from all over the store.
    pub(crate) fn recorded(&self, number: usize) -> Vec<u64> {
        // A prime step, so that neighbours in time are no neighbours in memory.
        const STEP: u64 = 7_368_787;
        let oldest = self.next.get() - self.records;
        let seen = self.seen.get();
        self.seen.set(seen + number as u64);
        let turns = seen..self.seen.get();
        turns
            .map(|turn| oldest + turn.wrapping_mul(STEP) % self.records)
            .collect()
    }

    /// Removes what is too much.
    pub(crate) fn trim(&self, added: std::ops::Range<u64>) {
        for number in added {
            let key = self.sample.key(number - self.records);
            assert!(now(self.store.forget(&key)).expect("the store answers"));
        }
    }
}

/// Lets all records of a store expire, and sends requests for another key until they are gone.
///
/// The runtime's clock must be paused. It is moved on for good.
pub(crate) fn expire(runtime: &tokio::runtime::Runtime, store: &MemoryStore, absent: &StoreKey) {
    runtime.block_on(tokio::time::advance(TTL + LEASE));
    // Each looks into some shard, however few records there are.
    for _ in 0..store.len() + 1_000 {
        assert!(matches!(now(store.get(absent)), Ok(None)));
    }
    assert!(store.is_empty(), "{} records are left", store.len());
}
