//! Counts the bytes that executions hold, so that all of them together are bounded (P9, U36).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// How many bytes are held in memory for executions: bodies, and answers that are not recorded yet.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicUsize);

impl Gauge {
    /// Adds `bytes` unless there would be more than `limit` then.
    pub(crate) fn try_add(&self, bytes: usize, limit: usize) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|&sum| sum <= limit)
            })
            .is_ok()
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// One body's share of a [`Gauge`], given back on drop.
pub(crate) struct Permit {
    gauge: Arc<Gauge>,
    bytes: usize,
}

impl Permit {
    pub(crate) fn new(gauge: &Arc<Gauge>) -> Self {
        Self {
            gauge: Arc::clone(gauge),
            bytes: 0,
        }
    }

    pub(crate) fn try_add(&mut self, bytes: usize, limit: usize) -> bool {
        let added = self.gauge.try_add(bytes, limit);
        if added {
            self.bytes += bytes;
        }
        added
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.gauge.add(bytes);
        self.bytes += bytes;
    }

    pub(crate) fn sub(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.gauge.sub(bytes);
        self.bytes -= bytes;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gauge.sub(self.bytes);
    }
}
