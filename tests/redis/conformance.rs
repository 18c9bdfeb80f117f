//! S16: the conformance suite, over each kind of connection.

use std::{sync::OnceLock, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tower_idempotency::{
    Claim, ClaimRequest, FencingToken, Lease, OwnerId, Payload, RedisStore, Snapshot, Store,
    StoreError, StoreKey, testing::store::Fixture,
};

use crate::{servers::redis::RedisCluster, support::fixture};

mod bare {
    use crate::support::{fixture, store};
    tower_idempotency::store_conformance!(fixture(store().await, |store| store));
}

mod boxed {
    use crate::support::{fixture, store};
    use tower_idempotency::Store;
    tower_idempotency::store_conformance!(fixture(store().await, |store| {
        Box::new(store) as Box<dyn Store>
    }));
}

mod shared {
    use crate::support::{fixture, store};
    use {std::sync::Arc, tower_idempotency::Store};
    tower_idempotency::store_conformance!(fixture(store().await, |store| {
        Arc::new(store) as Arc<dyn Store>
    }));
}

mod on_many_threads {
    use crate::support::{fixture, store};
    tower_idempotency::store_conformance!(
        fixture(store().await, |store| store);
        flavor = "multi_thread", worker_threads = 2
    );
}

mod subscribed {
    use crate::{
        servers::redis::connection,
        support::{client, fixture},
    };
    use tower_idempotency::RedisStore;
    tower_idempotency::store_conformance!({
        let client = client();
        let store = RedisStore::new(connection(&client).await).with_client(client);
        fixture(store, |store| store)
    });
}

mod over_a_managed_connection {
    use crate::support::{client, fixture, managed};
    use tower_idempotency::RedisStore;
    tower_idempotency::store_conformance!({
        let store = RedisStore::new(managed(&client()).await);
        fixture(store, |store| store)
    });
}

mod over_resp3 {
    use crate::{
        servers::redis::connection,
        support::{client, fixture},
    };
    use redis::{Client, IntoConnectionInfo, ProtocolVersion};
    use tower_idempotency::RedisStore;
    tower_idempotency::store_conformance!({
        let info = client()
            .get_connection_info()
            .clone()
            .into_connection_info()
            .unwrap();
        let settings = info
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(settings)).unwrap();
        let store = RedisStore::new(connection(&client).await).with_client(client);
        fixture(store, |store| store)
    });
}

mod over_a_cluster {
    tower_idempotency::store_conformance!(super::cluster().await);
}

async fn cluster() -> Fixture<Apart<impl Store>> {
    static CLUSTER: OnceLock<RedisCluster> = OnceLock::new();
    let cluster = CLUSTER.get_or_init(RedisCluster::for_all);
    let client = redis::cluster::ClusterClientBuilder::new(cluster.urls())
        .response_timeout(Duration::from_secs(20))
        .connection_timeout(Duration::from_secs(20))
        .build()
        .unwrap();
    let connection = client.get_async_connection().await.unwrap();
    let store = RedisStore::new(connection).with_client(cluster.client());
    let prefix = OwnerId::random().to_string();
    fixture(store, move |store| Apart {
        store,
        prefix: prefix.clone(),
    })
}

/// A cluster has one database: each case has keys of its own.
struct Apart<S> {
    store: S,
    prefix: String,
}

impl<S> Apart<S> {
    fn key(&self, key: &StoreKey) -> StoreKey {
        StoreKey::new(&self.prefix, "", "", key.as_str())
    }
}

#[async_trait]
impl<S: Store> Store for Apart<S> {
    async fn claim(&self, key: &StoreKey, request: &ClaimRequest) -> Result<Claim, StoreError> {
        self.store.claim(&self.key(key), request).await
    }

    async fn renew(
        &self,
        key: &StoreKey,
        lease: &Lease,
        lease_for: Duration,
        ttl: Duration,
        checkpoint: Option<Bytes>,
    ) -> Result<(), StoreError> {
        let key = self.key(key);
        self.store
            .renew(&key, lease, lease_for, ttl, checkpoint)
            .await
    }

    async fn complete(
        &self,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.store
            .complete(&self.key(key), lease, payload, ttl)
            .await
    }

    async fn fail(&self, key: &StoreKey, lease: &Lease, ttl: Duration) -> Result<(), StoreError> {
        self.store.fail(&self.key(key), lease, ttl).await
    }

    async fn release(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.store.release(&self.key(key), lease, ttl).await
    }

    async fn give_back(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.store.give_back(&self.key(key), lease, ttl).await
    }

    async fn get(&self, key: &StoreKey) -> Result<Option<Snapshot>, StoreError> {
        self.store.get(&self.key(key)).await
    }

    async fn forget(&self, key: &StoreKey) -> Result<bool, StoreError> {
        self.store.forget(&self.key(key)).await
    }

    async fn wait(
        &self,
        key: &StoreKey,
        token: FencingToken,
    ) -> Result<Option<Snapshot>, StoreError> {
        self.store.wait(&self.key(key), token).await
    }
}
