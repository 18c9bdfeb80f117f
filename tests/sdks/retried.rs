//! U32: after what a library tries again by itself. What the layer refuses for now (409, 503) is among
//! it, and what it refuses for good (400, 422) is not.

use std::sync::Arc;

use axum::Router;

use crate::{
    layer::{by_header, by_member},
    library::{Job, Library},
    network::{
        Fault::{self, *},
        Network,
    },
    run::served,
};

/// For one try; one of them waits so long.
const SECONDS: f64 = 5.0;

const FAULTS: &[Fault] = &[
    LoseRequest,
    LoseAnswer,
    CutAnswer,
    HoldAnswer,
    Answer(400),
    Answer(401),
    Answer(402),
    Answer(403),
    Answer(404),
    Answer(408),
    Answer(409),
    Answer(413),
    Answer(422),
    Answer(425),
    Answer(429),
    Answer(500),
    Answer(502),
    Answer(503),
    Answer(504),
];

/// Lets each of the faults befall the first try of one operation.
async fn retried(library: Library, wrap: fn(Router) -> Router) -> Vec<Fault> {
    let (upstream, server) = served(wrap).await;
    let fault = |key: &str| FAULTS[key.parse::<usize>().expect("a number")];
    let network = Network::before(
        &[server.address()],
        Some(Arc::clone(&upstream)),
        Arc::new(move |key| vec![fault(&key.text)]),
    )
    .await;
    let jobs: Vec<_> = (0..FAULTS.len())
        .map(|n| Job {
            operation: n.to_string(),
            amount: 100,
            key: Some(n.to_string()),
            retries: 1,
            again: false,
        })
        .collect();
    let answers = library
        .run(&network.url(), jobs.len(), SECONDS, &jobs)
        .await;

    let seen = network.seen();
    let tries = |key: &str| seen.get(key).expect("it was sent").tries;
    let mut retried = Vec::new();
    for answer in &answers {
        let fault = fault(&answer.operation);
        assert_eq!(answer.calls, 1, "{answer:?}");
        match tries(&answer.operation) {
            1 => assert!(answer.error.is_some(), "{fault:?}: {answer:?}"),
            2 => {
                assert!(answer.id.is_some(), "{fault:?}: {answer:?}");
                retried.push(fault);
            }
            more => panic!("{more} tries after {fault:?}"),
        }
    }
    // Of those that got through nothing was done twice.
    let effects = upstream.effects();
    assert!(effects.values().all(|done| done.len() == 1), "{effects:?}");
    let others: Vec<_> = FAULTS.iter().filter(|it| !retried.contains(it)).collect();
    println!(
        "{} tries again after {retried:?}, and not after {others:?}",
        library.name()
    );
    retried
}

/// U32. An answer of 429 is none of ours.
#[tokio::test]
async fn u32_what_stripe_tries_again() {
    let retried = retried(Library::Stripe, by_header).await;
    let expected = [
        LoseRequest,
        LoseAnswer,
        HoldAnswer,
        Answer(409),
        Answer(500),
        Answer(502),
        Answer(503),
        Answer(504),
    ];
    assert_eq!(retried, expected);
}

/// U32. A lost connection is the application's: it has the key, and calls again.
#[tokio::test]
async fn u32_what_square_tries_again() {
    let retried = retried(Library::Square, by_member).await;
    let expected = [
        Answer(408),
        Answer(409),
        Answer(429),
        Answer(500),
        Answer(502),
        Answer(503),
        Answer(504),
    ];
    assert_eq!(retried, expected);
}
