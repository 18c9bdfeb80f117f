//! Payments that a library makes over a bad network, and the judgement of them.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use axum::Router;

use crate::{
    library::{Answer, Job, Library},
    network::{
        Counts,
        Fault::{self, *},
        Key, Network,
    },
    upstream::{Effects, Server, Upstream},
};

/// The keys that the application makes; the others are the library's.
const OWN: &str = "order-";

/// What happens to the tries under one key after another.
const PLANS: &[&[Fault]] = &[
    &[],
    &[LoseAnswer],
    &[LoseRequest],
    &[Duplicate],
    &[LoseAnswer, LoseAnswer],
    &[Leave],
    &[Gateway(502)],
    &[LoseRequest, LoseAnswer],
    &[HoldAnswer],
    &[Duplicate, Gateway(504)],
    &[CutAnswer],
    &[Leave, LoseRequest, Gateway(503)],
];
/// Half an answer, to which `Stripe` raises an error at once. Whoever has left the key to the
/// library cannot call again then: it would make another one.
const FATAL_TO_STRIPE: Fault = CutAnswer;

pub(crate) const OPERATIONS: usize = 5 * PLANS.len();
const THREADS: usize = 20;
/// For one try: long beside what a server needs, since nothing is lost by it but time.
const SECONDS: f64 = 5.0;

/// The key that an application gives to an operation.
pub(crate) fn own_key(operation: usize) -> String {
    format!("{OWN}{operation}")
}

/// What happens to the tries of an operation of the application's key.
pub(crate) fn faults(operation: usize) -> &'static [Fault] {
    PLANS[operation % PLANS.len()]
}

/// What happens to the tries under any key.
pub(crate) fn plan(key: &Key) -> Vec<Fault> {
    if let Some(operation) = key.text.strip_prefix(OWN) {
        // Or a key that was made for a later try.
        return operation.parse().map_or(&[][..], faults).to_vec();
    }
    // Nobody has told how the library's key belongs to an operation.
    match faults(key.order) {
        fatal if fatal.contains(&FATAL_TO_STRIPE) => vec![Gateway(500)],
        faults => faults.to_vec(),
    }
}

/// What was seen of a run.
pub(crate) struct Run {
    pub(crate) counts: Counts,
    /// Effects, of all operations.
    pub(crate) effects: usize,
    /// Whatever is not as promised.
    pub(crate) faults: Vec<String>,
}

/// Who makes the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    OfTheLibrary,
    OfTheApplication,
}

/// Runs a library against servers with this upstream behind them, and prints the counts.
pub(crate) async fn run(
    library: Library,
    keys: Keys,
    what: &str,
    upstream: &Arc<Upstream>,
    servers: &[SocketAddr],
) -> Run {
    let network = Network::before(servers, Some(Arc::clone(upstream)), Arc::new(plan)).await;
    let jobs: Vec<_> = (0..OPERATIONS)
        .map(|n| Job {
            // Others may pay there too.
            operation: format!("{}-{n}", library.name()),
            amount: 100 + n as u64,
            key: (keys == Keys::OfTheApplication).then(|| own_key(n)),
            retries: 8,
            again: keys == Keys::OfTheApplication,
        })
        .collect();
    let answers = library.run(&network.url(), THREADS, SECONDS, &jobs).await;

    Run::judge(
        library.name(),
        what,
        &upstream.effects(),
        &network,
        &answers,
    )
}

impl Run {
    /// Prints the counts, too.
    pub(crate) fn judge(
        library: &str,
        what: &str,
        done: &Effects,
        network: &Network,
        answers: &[Answer],
    ) -> Self {
        let mut faults = network.errors();
        for answer in answers {
            let done = done.get(&answer.operation).map_or(&[][..], |it| it);
            match (done, &answer.id) {
                ([one], Some(id)) if one == id => {}
                _ => faults.push(format!("{answer:?}, and what was done is {done:?}")),
            }
        }
        let ids: BTreeSet<_> = answers.iter().filter_map(|it| it.id.as_ref()).collect();
        if ids.len() != answers.len() {
            faults.push(format!("{} answers to {}", ids.len(), answers.len()));
        }
        // S26: what the library sends again is the same, under the same key.
        let seen = network.seen();
        if seen.len() != answers.len() {
            faults.push(format!("{} keys of {}", seen.len(), answers.len()));
        }
        for (key, seen) in seen {
            if seen.bodies.len() != 1 {
                faults.push(format!("{key}: {:?}", seen.bodies));
            }
        }
        let counts = network.counts();
        let done = answers.iter().filter_map(|it| done.get(&it.operation));
        let effects = done.map(Vec::len).sum();
        println!("{library}, {what}: operations {OPERATIONS}, {counts}, effects {effects}");
        Self {
            counts,
            effects,
            faults,
        }
    }

    /// S09, S10, S14, U08, U32: one effect and one answer each, over a network that did its worst.
    pub(crate) fn assert_once(&self) {
        assert!(self.faults.is_empty(), "{}", self.faults.join("\n"));
        assert_eq!(self.effects, OPERATIONS);
        let Counts {
            requests_lost,
            answers_lost,
            duplicates,
            conflicts,
            replays,
            ..
        } = self.counts;
        let planned = |wanted: fn(&Fault) -> bool| {
            let faults = PLANS.iter().flat_map(|plan| plan.iter());
            (faults.filter(|fault| wanted(fault)).count() * OPERATIONS / PLANS.len()) as u64
        };
        assert_eq!(requests_lost, planned(|it| *it == LoseRequest));
        assert_eq!(duplicates, planned(|it| *it == Duplicate));
        assert_eq!(
            answers_lost,
            planned(|it| !matches!(it, LoseRequest | Duplicate))
        );
        // The second of two, and the first after a connection that was lost.
        let interrupted = planned(|it| matches!(it, Duplicate | Leave));
        assert!(conflicts >= interrupted, "{conflicts} of {interrupted}");
        // Where an answer was lost, the one that got through is a replay.
        let lost = |plan: &&&[Fault]| plan.iter().any(|fault| *fault != LoseRequest);
        let lost = PLANS.iter().filter(lost).count() * OPERATIONS / PLANS.len();
        assert!(replays >= lost as u64, "{replays} of {lost}");
    }

    /// The same without protection: each second execution is found.
    pub(crate) fn assert_repeated(&self) {
        assert!(self.effects > OPERATIONS, "{}", self.effects);
        let repeated = self.faults.iter().filter(|it| it.contains("what was done"));
        assert!(repeated.count() > OPERATIONS / 2, "{:?}", self.faults);
    }
}

/// An upstream, and a server on it as `wrap` has it.
pub(crate) async fn served(wrap: impl FnOnce(Router) -> Router) -> (Arc<Upstream>, Server) {
    let upstream = Arc::new(Upstream::default());
    let server = Server::start(wrap(upstream.routes())).await;
    (upstream, server)
}
