//! The floors: what no implementation can do without.
//!
//! - *The bare service*: the handler alone, called the same way.
//! - *SHA-256 of the body*: two payloads cannot be told apart by less.
//! - *Two map operations*: before the handler an insertion of what makes the claim, and after it a
//!   look-up of the same key and an update with the answer. The map is a [`HashMap`] of the
//!   standard library behind one [`Mutex`], with its default hasher, and holds as many entries as
//!   the store. Its key is a [`String`] of the length of a store key, allocated for the insertion;
//!   its value has the size of a [`Record`], and lies in the table. It is a floor, not a rival: it
//!   allocates no answer, reads no clock, knows no expiry and keeps no order by which anything
//!   could expire. Its figure is that of a process which also serves requests: with a heap and
//!   caches of its own it takes about two thirds of it.

use std::{
    collections::HashMap,
    hint::black_box,
    sync::{Mutex, PoisonError},
};

use tower_idempotency::Record;

use super::records::Sample;

pub(crate) type Value = [u8; size_of::<Record>()];

/// A map that keeps its number of entries, as [`Window`](super::records::Window) does.
pub(crate) struct Map {
    entries: Mutex<HashMap<String, Value>>,
    records: u64,
    next: u64,
}

impl Map {
    pub(crate) fn filled(records: u64, sample: &Sample) -> Self {
        let entries = (0..records).map(|number| (name(sample, number), value(number)));
        Self {
            entries: Mutex::new(entries.collect()),
            records,
            next: records,
        }
    }

    /// Names that were never used, and their values.
    pub(crate) fn fresh(&mut self, number: usize, sample: &Sample) -> Vec<(String, Value)> {
        let numbers = self.next..self.next + number as u64;
        self.next = numbers.end;
        numbers.map(|n| (name(sample, n), value(n))).collect()
    }

    /// The two operations.
    pub(crate) fn insert_and_update(&self, name: &str, value: &Value) {
        let old = self.lock().insert(name.to_owned(), *value);
        assert!(old.is_none());
        let mut entries = self.lock();
        *entries.get_mut(name).expect("an entry") = *black_box(value);
    }

    /// Removes as many of the oldest as were added.
    pub(crate) fn trim(&mut self, added: usize, sample: &Sample) {
        let first = self.next - self.records - added as u64;
        for number in first..first + added as u64 {
            self.remove(&name(sample, number));
        }
    }

    pub(crate) fn remove(&self, name: &str) {
        let removed = self.lock().remove(name);
        assert!(removed.is_some());
    }

    /// One look-up, as a replay needs.
    pub(crate) fn look_up(&self, name: &str) {
        black_box(self.lock().get(name));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Value>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn name(sample: &Sample, number: u64) -> String {
    sample.key(number).as_str().to_owned()
}

pub(crate) fn value(number: u64) -> Value {
    [number as u8; _]
}
