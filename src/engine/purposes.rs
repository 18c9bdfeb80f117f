//! What an execution calls other services for, so that no two of its calls pass for one.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{engine::execution::Execution, key::push_hex};

/// How many purposes one attempt of an execution can have (P9). Each takes 16 bytes, and room in the
/// table.
pub(crate) const MOST: usize = 4096;

/// Those of one attempt that are in use or spent, as the keys that are derived for them.
#[derive(Default)]
pub(super) struct Purposes(Mutex<HashSet<[u8; 16]>>);

impl Purposes {
    fn lock(&self) -> MutexGuard<'_, HashSet<[u8; 16]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A purpose that a call is made for. Dropped without [`spend`](Self::spend), it is free for another
/// call.
pub(crate) struct PurposeUse {
    execution: Execution,
    derived: [u8; 16],
    spent: bool,
}

/// Why a purpose cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PurposeRefused {
    /// A call for it is being made, or has been done.
    Taken,
    /// There are too many others.
    Full,
}

impl Execution {
    /// Takes a purpose for one call.
    pub(crate) fn use_purpose(&self, purpose: &str) -> Result<PurposeUse, PurposeRefused> {
        let derived = self.derived(purpose);
        let mut taken = self.purposes().lock();
        if taken.contains(&derived) {
            return Err(PurposeRefused::Taken);
        }
        if taken.len() >= MOST {
            return Err(PurposeRefused::Full);
        }
        taken.insert(derived);
        drop(taken);
        Ok(PurposeUse {
            execution: self.clone(),
            derived,
            spent: false,
        })
    }
}

impl PurposeUse {
    /// What [`Execution::derive`] makes of the purpose.
    pub(crate) fn key(&self) -> String {
        let mut key = String::with_capacity(32);
        push_hex(&mut key, &self.derived);
        key
    }

    /// The call is done: in this attempt there is no other one for this purpose.
    pub(crate) fn spend(mut self) {
        self.spent = true;
    }
}

impl Drop for PurposeUse {
    fn drop(&mut self) {
        if !self.spent {
            self.execution.purposes().lock().remove(&self.derived);
        }
    }
}
