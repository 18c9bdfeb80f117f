//! Near and far failing.

use std::{
    cell::RefCell,
    convert::Infallible,
    io::Write,
    sync::{
        Arc, Once,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::{Claim, IdempotencyLayer, MemoryStore, Scope, Store, StoreError, Tiered};

use crate::support::{
    Mode, Spied, TTL, claim, complete, end, key, other_payload, replays, request,
};

type Memory = Spied<MemoryStore>;

fn pair() -> (Memory, Memory, Tiered<Memory, Memory>) {
    let (near, far) = (
        Spied::new(MemoryStore::new()),
        Spied::new(MemoryStore::new()),
    );
    let tiered = Tiered::new(near.clone(), far.clone());
    (near, far, tiered)
}

/// Each test has a thread of its own, and so a log of its own.
struct Log;

thread_local! {
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.with_borrow_mut(|log| log.write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn collect() -> Self {
        static SUBSCRIBER: Once = Once::new();
        SUBSCRIBER.call_once(|| {
            tracing_subscriber::fmt()
                .with_max_level(tracing::Level::TRACE)
                .with_ansi(false)
                .with_writer(|| Self)
                .init();
        });
        Self
    }

    /// The lines since it was last asked.
    fn lines(&self) -> Vec<String> {
        let text = LOG.with_borrow_mut(|log| String::from_utf8(std::mem::take(log)).unwrap());
        text.lines().map(str::to_owned).collect()
    }

    fn tells(&self, parts: &[&str]) {
        let lines = self.lines();
        assert_eq!(lines.len(), parts.len(), "{lines:#?}");
        for (line, part) in lines.iter().zip(parts) {
            assert!(line.contains(part), "{part:?} in {line}");
            assert!(!line.contains("secret"), "U19: {line}");
        }
    }
}

const FAILS: &str = "the near store fails";
const ANSWERS: &str = "the near store answers again";
const PAUSE: Duration = Duration::from_secs(1);

/// Near failing costs one event, not a request, and a call of near a second.
#[tokio::test(start_paused = true)]
async fn s19_an_outage_of_near_is_told_once() {
    let log = Log::collect();
    for mode in [Mode::Fails, Mode::Hangs] {
        let (near, _, tiered) = pair();
        complete(&tiered, "secret", "secret", TTL).await;
        near.calls();
        log.tells(&[]);
        near.set(mode);
        // Also where many meet it at once.
        join_all((0..100).map(|_| replays(&tiered, "secret", "secret"))).await;
        log.tells(&[FAILS]);
        // Only a failure that is not known yet can be met twice.
        let met = [1, 100][usize::from(mode == Mode::Hangs)];
        assert_eq!(near.calls().len(), met);
        for n in 0..10 {
            replays(&tiered, "secret", "secret").await;
            complete(&tiered, &format!("secret {n}"), "secret", TTL).await;
        }
        assert!(near.calls().is_empty(), "near is left alone");
        for _ in 0..10 {
            tokio::time::advance(PAUSE).await;
            replays(&tiered, "secret", "secret").await;
            replays(&tiered, "secret", "secret").await;
            assert_eq!(near.calls(), ["get"]);
        }
        log.tells(&[]);

        near.set(Mode::Works);
        tokio::time::advance(PAUSE).await;
        replays(&tiered, "secret", "secret").await;
        log.tells(&[ANSWERS]);
        replays(&tiered, "secret", "secret").await;
        assert_eq!(near.calls(), ["get", "get"]);
        near.set(mode);
        replays(&tiered, "secret", "secret").await;
        log.tells(&[FAILS]);
    }
}

/// A hanging near takes its deadline from one request a second, and from no other.
#[tokio::test(start_paused = true)]
async fn a_hanging_near_delays_little() {
    let (near, _, tiered) = pair();
    complete(&tiered, "k", "answer", TTL).await;
    let tiered = tiered.near_timeout(Duration::from_millis(30));
    near.set(Mode::Hangs);
    let deadline = Duration::from_millis(30)..Duration::from_millis(35);
    for _ in 0..3 {
        let start = Instant::now();
        replays(&tiered, "k", "answer").await;
        assert!(deadline.contains(&start.elapsed()), "{:?}", start.elapsed());
        let start = Instant::now();
        replays(&tiered, "k", "answer").await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        tokio::time::advance(PAUSE).await;
    }
    // A completion, too.
    near.set(Mode::Works);
    let lease = claim(&tiered, "other").await;
    near.set(Mode::Hangs);
    let start = Instant::now();
    end(&tiered, "other", &lease, "answer").await.unwrap();
    assert!(deadline.contains(&start.elapsed()), "{:?}", start.elapsed());
}

/// Of a near that fails every other call, not each failure is an outage: an answer to a call from
/// before one began does not end it.
#[tokio::test(start_paused = true)]
async fn a_flapping_near_floods_no_log() {
    let log = Log::collect();
    let (near, _, tiered) = pair();
    complete(&tiered, "k", "answer", TTL).await;
    near.set(Mode::Slow);
    let mut slow: Vec<_> = (0..10)
        .map(|_| Box::pin(replays(&tiered, "k", "answer")))
        .collect();
    for call in &mut slow {
        assert!(futures::poll!(call.as_mut()).is_pending());
    }
    near.set(Mode::Fails);
    for call in slow {
        replays(&tiered, "k", "answer").await;
        call.await;
    }
    log.tells(&[FAILS]);
    near.set(Mode::Works);
    tokio::time::advance(PAUSE).await;
    replays(&tiered, "k", "answer").await;
    log.tells(&[ANSWERS]);
}

/// A full near takes no copies and goes on with those that it has. It is told once.
#[tokio::test(start_paused = true)]
async fn a_full_near_is_told_once() {
    let log = Log::collect();
    let (near, far, tiered) = pair();
    complete(&tiered, "kept", "answer", TTL).await;
    near.set(Mode::Full);
    for n in 0..5 {
        complete(&tiered, &n.to_string(), "answer", TTL).await;
        replays(&tiered, &n.to_string(), "answer").await;
    }
    log.tells(&[FAILS]);
    far.calls();
    replays(&tiered, "kept", "answer").await;
    assert!(far.calls().is_empty());
    near.set(Mode::Works);
    complete(&tiered, "fits", "answer", TTL).await;
    near.set(Mode::Full);
    complete(&tiered, "full again", "answer", TTL).await;
    log.tells(&[FAILS]);
}

/// U18: a copy that cannot be read is removed, and made again.
#[tokio::test(start_paused = true)]
async fn u18_an_unreadable_copy_is_made_again() {
    let (near, far, tiered) = pair();
    complete(&tiered, "k", "answer", TTL).await;
    near.calls();
    near.set(Mode::Corrupt);
    let found = tiered.claim(&key("k"), &other_payload()).await.unwrap();
    assert_eq!(found, Claim::Mismatch);
    assert_eq!(near.calls(), ["get", "forget"]);
    near.set(Mode::Works);
    replays(&tiered, "k", "answer").await;
    far.calls();
    replays(&tiered, "k", "answer").await;
    assert!(far.calls().is_empty());
}

/// P8: without far, near answers replays and decides nothing.
#[tokio::test(start_paused = true)]
async fn p8_near_decides_nothing_without_far() {
    let (near, far, tiered) = pair();
    complete(&tiered, "k", "answer", TTL).await;
    let running = claim(&tiered, "running").await;
    near.calls();
    far.set(Mode::Fails);
    replays(&tiered, "k", "answer").await;
    let unsure = [
        tiered.claim(&key("new"), &request()).await.map(drop),
        tiered.claim(&key("k"), &other_payload()).await.map(drop),
        tiered.claim(&key("running"), &request()).await.map(drop),
        tiered.get(&key("k")).await.map(drop),
        tiered.forget(&key("k")).await.map(drop),
        tiered.wait(&key("running"), running.token).await.map(drop),
        tiered.fail(&key("running"), &running, TTL).await,
    ];
    for result in unsure {
        assert!(
            matches!(result, Err(StoreError::Unavailable { .. })),
            "{result:?}"
        );
    }
    assert!(near.calls().iter().all(|call| *call == "get"));
}

/// A far that does not answer for the copy costs the replay no more than near's deadline.
#[tokio::test(start_paused = true)]
async fn a_copy_is_not_waited_for() {
    let (near, far, tiered) = pair();
    complete(&far, "k", "answer", TTL).await;
    far.set(Mode::HangsOnGet);
    for _ in 0..2 {
        let start = Instant::now();
        replays(&tiered, "k", "answer").await;
        assert!(start.elapsed() <= Duration::from_millis(105));
        assert_eq!(near.calls(), ["get"], "near is not to blame");
    }
}

/// S19: whatever becomes of near, each operation happens once and is replayed.
#[tokio::test(start_paused = true)]
async fn s19_no_request_fails_by_near() {
    for mode in Mode::ALL {
        let (near, _, tiered) = pair();
        near.set(mode);
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        let handler = service_fn(move |_: http::Request<_>| {
            let runs = counted.clone();
            async move {
                let run = runs.fetch_add(1, SeqCst);
                let body = Full::new(Bytes::from(format!("paid {run}")));
                Ok::<_, Infallible>(http::Response::new(body))
            }
        });
        let service = IdempotencyLayer::new(tiered, Scope::single_tenant()).layer(handler);
        for n in 0..3 {
            for retry in 0..3 {
                let request = http::Request::post("/payments")
                    .header("idempotency-key", format!("key-{n}"))
                    .body(Full::new(Bytes::from_static(b"body")));
                let response = service.clone().oneshot(request.unwrap()).await.unwrap();
                let replayed = response.headers().contains_key("idempotent-replayed");
                assert_eq!((response.status().as_u16(), replayed), (200, retry > 0));
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, format!("paid {n}"), "{mode:?}");
            }
        }
        assert_eq!(runs.load(SeqCst), 3, "{mode:?}");
    }
}
