//! Connections that break before and behind the gateway, at any moment.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::join_all;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::{
    servers::proxy::Proxy,
    support::{Client, Gateway, Upstream, created, full, request, soon},
};

const OPERATIONS: usize = 200;

/// What the service has done under each key, and how often it was asked.
type Ledger = Arc<Mutex<HashMap<String, (usize, usize)>>>;

/// A service that looks up what it has done where it is told that this is a second attempt, and nowhere
/// else.
async fn service(ledger: Ledger) -> Upstream {
    Upstream::start(move |request: Request<Incoming>| {
        let ledger = Arc::clone(&ledger);
        async move {
            let line = |name: &str| request.headers()[name].to_str().map(str::to_owned);
            let key = line("idempotency-key").map_err(io::Error::other)?;
            let attempt = line("idempotency-attempt").map_err(io::Error::other)?;
            crate::support::read(request.into_body()).await?;
            let number = {
                let mut ledger = ledger.lock().unwrap();
                let known = ledger.len();
                let (effects, asked) = ledger.entry(key.clone()).or_default();
                *asked += 1;
                if attempt == "1" || *effects == 0 {
                    *effects += 1;
                }
                known
            };
            // Long enough for some to be cut off after their effect.
            tokio::time::sleep(Duration::from_millis(number as u64 % 7)).await;
            Ok(created(format!("done: {key}")))
        }
    })
    .await
}

/// Sends one operation until it is answered.
async fn operate(addr: std::net::SocketAddr, number: usize) -> (usize, String) {
    let key = format!("operation-{number}");
    let mut tries = 0;
    loop {
        tries += 1;
        let tried = async {
            let mut client = Client::try_connect(addr, number.is_multiple_of(2)).await?;
            let sent = request(
                Method::POST,
                "/pay",
                &[("idempotency-key", &key)],
                full("1 EUR"),
            );
            let answer = client.send(sent).await.ok()?;
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await.ok()?.to_bytes();
            Some((status, String::from_utf8_lossy(&body).into_owned()))
        };
        match tried.await {
            Some((201, body)) => return (tries, body),
            None | Some((409 | 502..=504, _)) => {}
            Some(other) => panic!("{key}: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// P1, P2, S09, S26, S27: two hundred operations over a network that breaks on both sides: as many effects,
/// and everybody has the answer.
#[tokio::test]
async fn p1_p2_s09_s27_as_many_effects_as_operations() {
    let ledger = Ledger::default();
    let upstream = service(Arc::clone(&ledger)).await;
    let behind = Proxy::before(upstream.addr).await;
    let gateway = Gateway::start(behind.address(), &[]);
    let before = Proxy::before(gateway.addr).await;
    let addr = before.address();
    let calls = (0..OPERATIONS).map(|number| async move {
        tokio::time::sleep(Duration::from_millis(5 * number as u64)).await;
        operate(addr, number).await
    });
    let cutting = async {
        for turn in 0.. {
            tokio::time::sleep(Duration::from_millis(10)).await;
            match turn % 2 {
                0 => before.cut(),
                _ => behind.cut(),
            }
            if turn > 120 {
                // From here on the network is well, so that all come to an end.
                return std::future::pending().await;
            }
        }
    };
    let answers = tokio::select! {
        answers = soon("all answers", join_all(calls)) => answers,
        () = cutting => unreachable!("it does not end"),
    };
    let tries: usize = answers.iter().map(|(tries, _)| tries).sum();
    for (number, (_, body)) in answers.iter().enumerate() {
        assert_eq!(*body, format!("done: operation-{number}"));
    }
    let ledger = ledger.lock().unwrap();
    let effects: usize = ledger.values().map(|(effects, _)| effects).sum();
    let asked: usize = ledger.values().map(|(_, asked)| asked).sum();
    println!(
        "{OPERATIONS} operations, {tries} tries, {asked} requests to the service, {effects} effects"
    );
    assert!(
        ledger.values().all(|(effects, _)| *effects == 1),
        "{ledger:?}"
    );
    assert_eq!(effects, OPERATIONS);
    assert!(tries > OPERATIONS, "nothing was lost");
}
