//! What a call gives: the work's value, and how it came about.

use std::fmt;

use crate::telemetry::Outcome;

/// The value of work that was done, by this call or by an earlier one.
pub struct Done<T> {
    value: T,
    outcome: Outcome,
}

impl<T> Done<T> {
    pub(super) fn new(value: T, outcome: Outcome) -> Self {
        Self { value, outcome }
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The value.
    #[must_use]
    pub fn into_value(self) -> T {
        self.value
    }

    /// Whether this is a recorded value. The work did not run; or it ran beside another execution
    /// that took its key over, and this is the other's value, which everyone gets.
    #[must_use]
    pub fn is_replayed(&self) -> bool {
        self.outcome == Outcome::Replayed
    }

    /// What happened: [`Completed`](Outcome::Completed) or [`Replayed`](Outcome::Replayed), as a
    /// rule.
    ///
    /// [`NotReplayable`](Outcome::NotReplayable): the work is done, but its value was too large, or
    /// the codec or the store did not take it; this is the only call that gets it.
    /// [`Unrecorded`](Outcome::Unrecorded): the store could not be told in time, and recording goes
    /// on in the background.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }
}

/// Without the value (U19).
impl<T> fmt::Debug for Done<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Done")
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}
