//! Connections that break, and connections that are not to be had.

use std::sync::Arc;

use sqlx::{Connection, postgres::PgPoolOptions};
use tower_idempotency::{Entry, Outcome, PostgresStore};

use crate::{
    servers::{postgres::PostgresServer, proxy::Proxy, redis::RedisServer},
    support::{
        Instance, PATIENCE, Place, RECORD_TIMEOUT, STORE_TIMEOUT, Server, Work, over_each_server,
        pool, postgres, soon, until,
    },
};

over_each_server! {
    cut_while_idle
    p1_cut_while_the_handler_runs
    p8_cut_off_for_a_while
}

/// A connection that broke while it was idle costs no request.
async fn cut_while_idle<S: Server>() {
    let server = S::shared();
    let proxy = Proxy::before(server.address()).await;
    let work = Work::new();
    let instance = S::instance_behind(&proxy, &work).await;
    for round in 1..=5 {
        let key = format!("cut while idle {round}");
        proxy.cut();
        instance.send(&key).await.is_run(Outcome::Completed, round);
        proxy.cut();
        instance.send(&key).await.is_replay_of(round);
    }
    assert!(proxy.connections() >= 10, "it was cut");
}

/// P1: over a connection that breaks in mid-handler the answer is recorded, before it is sent.
async fn p1_cut_while_the_handler_runs<S: Server>() {
    let server = S::shared();
    let proxy = Proxy::before(server.address()).await;
    let work = Work::held();
    let instance = S::instance_behind(&proxy, &work).await;
    let other = server.instance(&work).await;
    let key = "cut while the handler runs";
    let first = instance.start(key);
    work.entered().await;
    proxy.cut();
    other.send(key).await.is_in_progress();
    work.let_go();
    first.await.unwrap().is_run(Outcome::Completed, 1);
    other.send(key).await.is_replay_of(1);
    instance.send(key).await.is_replay_of(1);
}

/// P8, P3: an instance that is cut off refuses, while others go on; what it had begun is recorded
/// when it is back.
async fn p8_cut_off_for_a_while<S: Server>() {
    let server = S::shared();
    let proxy = Proxy::before(server.address()).await;
    let work = Work::held();
    let instance = S::instance_behind(&proxy, &work).await;
    let other = server.instance(&work).await;
    let first = instance.start("cut off 1");
    work.entered().await;
    proxy.refuse(true);
    proxy.cut();
    instance.send("cut off 2").await.is_unavailable();
    work.let_go();
    let answer = first.await.unwrap();
    answer.is_run(Outcome::Unrecorded, 1);
    assert!(answer.took >= RECORD_TIMEOUT, "{answer:?}");
    other.send("cut off 1").await.is_in_progress();
    work.let_go();
    other.send("cut off 2").await.is_run(Outcome::Completed, 2);

    proxy.refuse(false);
    instance.drain().await;
    other.send("cut off 1").await.is_replay_of(1);
    instance.retry("cut off 2").await.is_replay_of(2);
    assert_eq!(work.count(), 2);
}

/// A claim whose connection breaks while it is under way is sent again by the same owner: its
/// request is served, and runs once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cut_while_a_claim_is_under_way() {
    let mut server = <RedisServer as Server>::start();
    let proxy = Proxy::before(server.address()).await;
    let work = Work::new();
    let instance = RedisServer::instance_behind(&proxy, &work).await;
    let instance = instance.with(|layer| layer.store_timeout(PATIENCE));
    instance.send("before").await.is_run(Outcome::Completed, 1);
    server.process().freeze();
    let sent = proxy.bytes().0;
    let request = instance.start("k");
    until("the claim is sent", || proxy.bytes().0 > sent).await;
    proxy.cut();
    server.process().thaw();
    request.await.unwrap().is_run(Outcome::Completed, 2);
    instance.send("k").await.is_replay_of(2);
    assert_eq!(work.count(), 2);
}

/// P8: with PostgreSQL it is not: whether it took effect is not known, so the request is refused,
/// and the claim is given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_postgres_cut_while_a_claim_is_under_way() {
    let server = <PostgresServer as Server>::start();
    let proxy = Proxy::before(server.address()).await;
    let work = Work::new();
    let instance = PostgresServer::instance_behind(&proxy, &work).await;
    let patient = instance.clone().with(|l| l.store_timeout(PATIENCE));
    instance.send("before").await.is_run(Outcome::Completed, 1);
    let mut locking = server.connect().await;
    let mut lock = locking.begin().await.unwrap();
    let table = "LOCK TABLE idempotency_records IN ACCESS EXCLUSIVE MODE";
    sqlx::query(table).execute(&mut *lock).await.unwrap();
    let request = patient.start("k");
    let mut watching = server.connect().await;
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    soon("the claim waits for the lock", async {
        while sqlx::query_scalar::<_, i64>(waiting)
            .fetch_one(&mut watching)
            .await
            .unwrap()
            == 0
        {}
    })
    .await;
    proxy.cut();
    request.await.unwrap().is_unavailable();
    assert_eq!(work.count(), 1);
    lock.rollback().await.unwrap();

    // It took effect now, and nobody heard of it.
    instance.retry("k").await.is_run(Outcome::Completed, 2);
    let run = &work.runs()[1];
    assert_eq!((run.attempt, run.entry), (1, Entry::First));
    instance.send("k").await.is_replay_of(2);
}

/// P8: no connection of the pool is free, at the claim and at the completion: no call hangs beyond
/// its deadline, however patient the pool is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_p3_postgres_pool_exhausted() {
    let server = PostgresServer::shared();
    let pool = pool(server.options(), 1).await;
    let work = Work::held();
    let instance = Instance::new(Arc::new(postgres(pool.clone()).await), &work);
    let taken = pool.acquire().await.unwrap();
    let refused = instance.send("exhausted").await;
    refused.is_unavailable();
    assert!(refused.took >= STORE_TIMEOUT, "{refused:?}");
    assert!(refused.took < PATIENCE / 2, "{refused:?}");
    assert_eq!(work.count(), 0);
    drop(taken);

    let first = instance.start("exhausted");
    work.entered().await;
    let taken = pool.acquire().await.unwrap();
    work.let_go();
    let answer = first.await.unwrap();
    answer.is_run(Outcome::Unrecorded, 1);
    assert!(answer.took >= RECORD_TIMEOUT, "{answer:?}");
    drop(taken);
    instance.drain().await;
    instance.send("exhausted").await.is_replay_of(1);
    assert_eq!(work.count(), 1);
}

/// P8: the server takes no more connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_postgres_takes_no_more_connections() {
    let limits = [
        "fsync=off",
        "max_connections=5",
        "superuser_reserved_connections=0",
        "max_wal_senders=0",
    ];
    let server = PostgresServer::with(&limits);
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(server.connect().await);
    }
    // Closed only with its socket's end, so the place may be taken for another moment.
    let store = PostgresStore::new(pool(server.options(), 1).await);
    store.migrate().await.unwrap();
    let lazy = PgPoolOptions::new().connect_lazy_with(server.options());
    let work = Work::new();
    let instance = Instance::new(Arc::new(PostgresStore::new(lazy)), &work);
    instance.send("k").await.is_unavailable();
    assert_eq!(work.count(), 0);
    for other in others {
        other.close().await.unwrap();
    }
    instance.retry("k").await.is_run(Outcome::Completed, 1);
}

/// The same with Redis, once its connection broke.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_redis_takes_no_more_connections() {
    let server = <RedisServer as Server>::start();
    let proxy = Proxy::before(server.address()).await;
    let work = Work::new();
    let instance = RedisServer::instance_behind(&proxy, &work).await;
    let mut admin = server.connection().await;
    let limit = async |clients: u32, admin: &mut redis::aio::MultiplexedConnection| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxclients").arg(clients);
        set.exec_async(admin).await.unwrap();
    };
    limit(1, &mut admin).await;
    proxy.cut();
    instance.send("k").await.is_unavailable();
    assert_eq!(work.count(), 0);
    limit(1000, &mut admin).await;
    instance.retry("k").await.is_run(Outcome::Completed, 1);
}
