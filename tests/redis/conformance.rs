//! S16: the conformance suite, over each kind of connection.

use std::{sync::OnceLock, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use redis::{
    Client,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tower_idempotency::{
    Claim, ClaimRequest, FencingToken, Lease, OwnerId, Payload, RedisStore, Snapshot, Store,
    StoreError, StoreKey,
    testing::{differential, store::Fixture},
};

use crate::{
    servers::redis::{RedisCluster, RedisPair, RedisSentinel},
    support::{self, client, connection, following},
};

async fn fixture<S: Store>(
    wrap: impl FnOnce(RedisStore<MultiplexedConnection>) -> S,
) -> Fixture<S> {
    support::fixture(connection(&client()).await, wrap)
}

/// Random operations, against the machine.
#[tokio::test]
async fn it_agrees_with_the_machine() {
    differential::run(|| fixture(|store| store)).await;
    differential::run(cluster).await;
}

mod bare {
    tower_idempotency::store_conformance!(super::fixture(|store| store).await);
}

mod boxed {
    use tower_idempotency::Store;
    tower_idempotency::store_conformance!(
        super::fixture(|store| Box::new(store) as Box<dyn Store>).await
    );
}

mod shared {
    use {std::sync::Arc, tower_idempotency::Store};
    tower_idempotency::store_conformance!(
        super::fixture(|store| Arc::new(store) as Arc<dyn Store>).await
    );
}

mod on_many_threads {
    tower_idempotency::store_conformance!(
        super::fixture(|store| store).await;
        flavor = "multi_thread", worker_threads = 2
    );
}

mod subscribed {
    use crate::support::{client, connection, fixture};
    tower_idempotency::store_conformance!({
        let client = client();
        fixture(connection(&client).await, |store| store.with_client(client))
    });
}

mod over_a_managed_connection {
    use crate::support::{client, fixture, managed};
    tower_idempotency::store_conformance!({ fixture(managed(&client()).await, |store| store) });
}

mod over_resp3 {
    use crate::support::{client, connection, fixture};
    use redis::{Client, IntoConnectionInfo, ProtocolVersion};
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
        fixture(connection(&client).await, |store| store.with_client(client))
    });
}

mod over_a_cluster {
    tower_idempotency::store_conformance!(super::cluster().await);
}

mod over_sentinel {
    tower_idempotency::store_conformance!(super::sentinel().await);
}

async fn sentinel() -> Fixture<Apart<impl Store>> {
    static PAIR: OnceLock<(RedisPair, RedisSentinel)> = OnceLock::new();
    let (pair, sentinel) = PAIR.get_or_init(|| {
        let pair = RedisPair::for_all();
        let sentinel = RedisSentinel::for_all(&pair, Duration::from_secs(600));
        (pair, sentinel)
    });
    apart(following(sentinel), pair.primary.client())
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
    apart(connection, cluster.client())
}

fn apart<C>(connection: C, client: Client) -> Fixture<Apart<RedisStore<C>>>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    let prefix = OwnerId::random().to_string();
    let apart = {
        let prefix = prefix.clone();
        move |key: &StoreKey| StoreKey::new(&prefix, "", "", key.as_str())
    };
    let wrap = |store: RedisStore<_>| Apart {
        store: store.with_client(client),
        prefix,
    };
    support::fixture_at(connection, wrap, move |key| apart(key).as_str().to_owned())
}

/// In one database each case has keys of its own.
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
