//! Clients that leave, gateways that stop, gateways that die.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use futures::future::join_all;
use http::{Method, Request};
use hyper::body::Incoming;
use tokio::{net::TcpStream, sync::Semaphore};

use crate::support::{
    Client, Gateway, Raw, Seen, Upstream, created, empty, post, problem, request, send, soon, told,
    until,
};

/// Answers once it is let.
async fn gated() -> (Seen, Arc<Semaphore>, Upstream) {
    let (seen, gate) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let upstream = Upstream::start({
        let (seen, gate) = (seen.clone(), Arc::clone(&gate));
        move |request: Request<Incoming>| {
            let count = seen.note(request.headers());
            let gate = Arc::clone(&gate);
            async move {
                let open = gate.acquire().await.map_err(io::Error::other)?;
                open.forget();
                Ok(created(format!("payment {count}")))
            }
        }
    });
    (seen, gate, upstream.await)
}

/// P4, U08, S09: a client leaves in the middle; the upstream finishes, and the retry gets its answer.
#[tokio::test]
async fn p4_u08_s09_who_leaves_finds_the_answer_later() {
    for http2 in [false, true] {
        let (seen, gate, upstream) = gated().await;
        let gateway = Gateway::start(upstream.addr, &[]);
        let mut client = Client::connect(gateway.addr, http2).await;
        let asked = tokio::spawn(client.send(post("k", "1 EUR")));
        until("the upstream has it", || seen.count() == 1).await;
        asked.abort();
        drop(client);
        let meanwhile = send(gateway.addr, http2, post("k", "1 EUR")).await;
        assert_eq!(told(&meanwhile), (409, false));
        gate.add_permits(1);
        soon("the record", async {
            while told(&send(gateway.addr, http2, post("k", "1 EUR")).await) != (201, true) {}
        })
        .await;
        assert_eq!(seen.count(), 1);
    }
}

/// U21: told to stop, it takes nobody any more, finishes what it has, closes what is idle, ends with 0.
#[tokio::test]
async fn u21_a_stop_finishes_what_runs() {
    let (seen, gate, upstream) = gated().await;
    let gateway = Gateway::start(upstream.addr, &[]);
    let mut idle = Raw::connect(gateway.addr).await;
    let silent_http2 = Client::connect(gateway.addr, true).await;
    let (mut one, mut two) = (
        Client::connect(gateway.addr, false).await,
        Client::connect(gateway.addr, true).await,
    );
    let running = [
        tokio::spawn(one.send(post("a", "1 EUR"))),
        tokio::spawn(two.send(post("b", "1 EUR"))),
        tokio::spawn(two.send(request(Method::POST, "/pay", &[], empty()))),
    ];
    let mut leaver = Client::connect(gateway.addr, false).await;
    let left = tokio::spawn(leaver.send(post("c", "1 EUR")));
    until("the upstream has them", || seen.count() == 4).await;
    left.abort();
    drop(leaver);

    gateway.example.process.signal("TERM");
    assert_eq!(idle.rest().await, b"");
    let addr = gateway.addr;
    soon("nobody listens", async {
        while TcpStream::connect(addr).await.is_ok() {}
    })
    .await;
    let Client::Two(sender) = &silent_http2 else {
        unreachable!("it speaks HTTP/2")
    };
    until("it is closed", || sender.is_closed()).await;
    gate.add_permits(4);
    for answer in join_all(running).await {
        assert_eq!(answer.unwrap().unwrap().status(), 201);
    }
    drop((one, two));
    let (code, said) = soon("the end", gateway.ended()).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(seen.count(), 4);
}

/// P3, P4, U21: a stop waits for a record that the store cannot take yet, also where nobody waits for the
/// answer any more.
#[tokio::test]
async fn p3_p4_u21_a_stop_waits_for_records() {
    let (seen, gate, upstream) = gated().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("records.db");
    let store = format!("sqlite:{}", file.display());
    let gateway = Gateway::start(upstream.addr, &["--store", &store]);
    let mut client = Client::connect(gateway.addr, false).await;
    let asked = tokio::spawn(client.send(post("k", "1 EUR")));
    until("the upstream has it", || seen.count() == 1).await;
    asked.abort();
    drop(client);

    let url = format!("sqlite://{}", file.display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    let mut holder = pool.acquire().await.unwrap();
    let lock = sqlx::query("BEGIN EXCLUSIVE").execute(&mut *holder).await;
    lock.unwrap();
    gate.add_permits(1);
    gateway.example.process.signal("TERM");
    let mut ended = Box::pin(gateway.ended());
    let early = tokio::time::timeout(Duration::from_secs(1), &mut ended).await;
    assert!(early.is_err(), "{early:?}");
    let unlock = sqlx::query("ROLLBACK").execute(&mut *holder).await;
    unlock.unwrap();
    let (code, said) = soon("the end", ended).await;
    assert_eq!(code, Some(0), "{said}");

    let next = Gateway::start(upstream.addr, &["--store", &store]);
    let again = send(next.addr, false, post("k", "1 EUR")).await;
    assert_eq!(told(&again), (201, true));
    assert_eq!(seen.count(), 1);
}

/// P9, U21: a stop takes as long as it may. What is cut off has no key, or the exit code says so.
#[tokio::test]
async fn u21_a_stop_has_a_limit() {
    for (key, code) in [(false, 0), (true, 1)] {
        let (seen, _gate, upstream) = gated().await;
        let gateway = Gateway::start(upstream.addr, &["--drain-timeout", "300ms"]);
        let mut client = Client::connect(gateway.addr, false).await;
        let sent = match key {
            true => post("k", "1 EUR"),
            false => request(Method::POST, "/pay", &[], empty()),
        };
        let running = tokio::spawn(client.send(sent));
        until("the upstream has it", || seen.count() == 1).await;
        gateway.example.process.signal("TERM");
        let (ended, said) = soon("the end", gateway.ended()).await;
        assert_eq!(ended, Some(code), "{said}");
        assert!(running.await.unwrap().is_err());
    }
}

/// A second signal does not wait.
#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let (seen, _gate, upstream) = gated().await;
    let gateway = Gateway::start(upstream.addr, &["--drain-timeout", "1h"]);
    let mut client = Client::connect(gateway.addr, false).await;
    let running = tokio::spawn(client.send(post("k", "1 EUR")));
    until("the upstream has it", || seen.count() == 1).await;
    gateway.example.process.signal("TERM");
    let addr = gateway.addr;
    soon("nobody listens", async {
        while TcpStream::connect(addr).await.is_ok() {}
    })
    .await;
    gateway.example.process.signal("INT");
    let (code, said) = soon("the end", gateway.ended()).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(running.await.unwrap().is_err());
}

/// P5, S27: a gateway is killed in the middle of a request; another one on the same store holds the key
/// until the lease ends, and then takes it over, as the second attempt; or refuses until somebody
/// has looked.
#[tokio::test]
async fn p5_s27_a_killed_gateway_is_taken_over() {
    for (takeover, last) in [("retry", 201), ("refuse", 409)] {
        let (seen, gate, upstream) = gated().await;
        let folder = tempfile::tempdir().unwrap();
        let store = format!("sqlite:{}", folder.path().join("records.db").display());
        let flags = ["--store", &store, "--takeover", takeover, "--lease", "2s"];
        let mut first = Gateway::start(upstream.addr, &flags);
        let second = Gateway::start(upstream.addr, &flags);
        let mut client = Client::connect(first.addr, false).await;
        let asked = tokio::spawn(client.send(post("k", "1 EUR")));
        until("the upstream has it", || seen.count() == 1).await;
        let early = send(second.addr, false, post("k", "1 EUR")).await;
        assert_eq!(told(&early), (409, false));
        assert_eq!(problem(&early), "in_progress");
        first.example.process.kill();
        assert!(asked.await.unwrap().is_err());

        // For what was begun, whose answer nobody hears, and for what is to come.
        gate.add_permits(2);
        let answer = soon("the end of the lease", async {
            loop {
                let answer = send(second.addr, false, post("k", "1 EUR")).await;
                let waits = answer.status() == 409 && problem(&answer) == "in_progress";
                if !waits {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        assert_eq!(told(&answer), (last, false), "{takeover}");
        if takeover == "refuse" {
            assert_eq!(problem(&answer), "abandoned");
            assert_eq!(seen.count(), 1);
        } else {
            assert_eq!(seen.count(), 2);
            assert_eq!(seen.line("idempotency-attempt").as_deref(), Some("2"));
            let again = send(second.addr, false, post("k", "1 EUR")).await;
            assert_eq!(told(&again), (201, true));
        }
    }
}

/// U01, P1, S14: fifty at once over two gateways on one store: one effect.
#[tokio::test]
async fn u01_p1_s14_two_gateways_share_a_store() {
    let (seen, gate, upstream) = gated().await;
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", folder.path().join("records.db").display());
    let gateways = [0; 2].map(|_| Gateway::start(upstream.addr, &["--store", &store]));
    let calls = (0..50).map(|n| {
        let gateway = gateways[n % 2].addr;
        tokio::spawn(send(gateway, n % 4 > 1, post("k", "1 EUR")))
    });
    let calls: Vec<_> = calls.collect();
    until("the upstream has it", || seen.count() == 1).await;
    gate.add_permits(50);
    let mut told_ = BTreeMap::new();
    for answer in join_all(calls).await {
        *told_.entry(told(&answer.unwrap())).or_insert(0) += 1;
    }
    assert_eq!(told_.get(&(201, false)), Some(&1), "{told_:?}");
    for answer in told_.keys() {
        let known = [(201, false), (201, true), (409, false)];
        assert!(known.contains(answer), "{told_:?}");
    }
    for gateway in &gateways {
        let again = send(gateway.addr, false, post("k", "1 EUR")).await;
        assert_eq!(told(&again), (201, true));
        assert_eq!(&again.body()[..], b"payment 1");
    }
    assert_eq!(seen.count(), 1);
}
