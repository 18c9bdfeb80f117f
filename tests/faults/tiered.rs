//! `Tiered`, with either of its stores failing.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use tower_idempotency::{MemoryStore, Outcome, Tiered};
use tracing_subscriber::fmt::MakeWriter;

use crate::{
    servers::{postgres::PostgresServer, proxy::Proxy, redis::RedisServer},
    support::{Instance, PATIENCE, Place, Server, Work, over_each_server, soon},
};

over_each_server! {
    p8_s19_far_is_down
}

/// What is told in this test's thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn count(&self, what: &str) -> usize {
        let told = self.0.lock().unwrap();
        String::from_utf8_lossy(&told).matches(what).count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// S19: near is killed, frozen, or cut off: each request is answered all the same, and each outage
/// is told once. Redis before PostgreSQL.
#[tokio::test]
async fn s19_near_fails() {
    const FAILS: &str = "the near store fails";
    const ANSWERS: &str = "the near store answers again";

    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).finish();
    let _told = tracing::subscriber::set_default(subscriber);
    let mut server = <RedisServer as Server>::start();
    let proxy = Proxy::before(server.address()).await;
    let far_proxy = Proxy::before(PostgresServer::shared().address()).await;
    let near = RedisServer::store_at(&proxy.address().to_string()).await;
    let far = PostgresServer::store_at(&far_proxy.address().to_string()).await;
    // A busy machine is no outage.
    let tiered = Tiered::new(near, far).near_timeout(Duration::from_secs(2));
    let work = Work::new();
    let instance = Instance::new(Arc::new(tiered), &work);
    let instance = instance.with(|layer| layer.store_timeout(PATIENCE));
    let mut runs = 0;
    for (at, outage) in ["killed", "frozen", "cut off"].into_iter().enumerate() {
        let key = |n: usize| format!("near {outage} {n}");
        runs += 1;
        let before = runs;
        instance
            .send(&key(0))
            .await
            .is_run(Outcome::Completed, runs);
        let asked = far_proxy.round_trips();
        instance.send(&key(0)).await.is_replay_of(before);
        assert_eq!(far_proxy.round_trips(), asked, "near has it");
        match outage {
            "killed" => server.process().kill(),
            "frozen" => server.process().freeze(),
            _ => {
                proxy.refuse(true);
                proxy.cut();
            }
        }
        for n in 1..=5 {
            runs += 1;
            let answer = instance.send(&key(n)).await;
            answer.is_run(Outcome::Completed, runs);
            instance.send(&key(n)).await.is_replay_of(runs);
            instance.send(&key(0)).await.is_replay_of(before);
        }
        assert_eq!((log.count(FAILS), log.count(ANSWERS)), (at + 1, at));
        match outage {
            "killed" => server.restart(),
            "frozen" => server.process().thaw(),
            _ => proxy.refuse(false),
        }
        soon("near is asked again", async {
            while log.count(ANSWERS) == at {
                instance.send(&key(0)).await.is_replay_of(before);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        assert_eq!((log.count(FAILS), log.count(ANSWERS)), (at + 1, at + 1));
    }
    assert_eq!(work.count(), runs);
}

/// P8, S19: without far near answers what it has a copy of, and nothing runs.
async fn p8_s19_far_is_down<S: Server>() {
    let mut server = S::start();
    let far = S::store_at(&server.place()).await;
    let work = Work::new();
    let instance = Instance::new(Arc::new(Tiered::new(MemoryStore::new(), far)), &work);
    instance.send("done").await.is_run(Outcome::Completed, 1);
    work.entered().await;
    work.hold();
    let first = instance.start("held");
    work.entered().await;
    server.kill();
    instance.send("done").await.is_replay_of(1);
    instance.send("new").await.is_unavailable();
    instance.send("held").await.is_unavailable();
    work.let_go();
    first.await.unwrap().is_run(Outcome::Unrecorded, 2);
    // What far has not recorded is no answer to give again.
    instance.send("held").await.is_unavailable();
    server.restart();
    instance.drain().await;
    instance.send("held").await.is_replay_of(2);
    work.let_go();
    instance.retry("new").await.is_run(Outcome::Completed, 3);
    assert_eq!(work.count(), 3);
}
