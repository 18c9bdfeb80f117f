//! A store that cannot be asked.

use std::time::Duration;

use bytes::Bytes;
use tower_idempotency::{
    Claim, ClaimRequest, Lease, Payload, Snapshot, Store, StoreError, StoreKey,
};

/// A store that cannot be asked.
pub(crate) struct Down;

impl Down {
    fn error<T>(&self) -> Result<T, StoreError> {
        Err(StoreError::unavailable("down", "as the test wants it"))
    }
}

#[async_trait::async_trait]
impl Store for Down {
    async fn claim(&self, _: &StoreKey, _: &ClaimRequest) -> Result<Claim, StoreError> {
        self.error()
    }
    async fn renew(
        &self,
        _: &StoreKey,
        _: &Lease,
        _: Duration,
        _: Duration,
        _: Option<Bytes>,
    ) -> Result<(), StoreError> {
        self.error()
    }
    async fn complete(
        &self,
        _: &StoreKey,
        _: &Lease,
        _: &Payload,
        _: Duration,
    ) -> Result<(), StoreError> {
        self.error()
    }
    async fn fail(&self, _: &StoreKey, _: &Lease, _: Duration) -> Result<(), StoreError> {
        self.error()
    }
    async fn release(&self, _: &StoreKey, _: &Lease, _: Duration) -> Result<(), StoreError> {
        self.error()
    }
    async fn give_back(&self, _: &StoreKey, _: &Lease, _: Duration) -> Result<(), StoreError> {
        self.error()
    }
    async fn get(&self, _: &StoreKey) -> Result<Option<Snapshot>, StoreError> {
        self.error()
    }
    async fn forget(&self, _: &StoreKey) -> Result<bool, StoreError> {
        self.error()
    }
}
