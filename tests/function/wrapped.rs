//! S28: functions that are keyed by a key function over their arguments.

use std::time::Duration;

use tower_idempotency::{Fingerprint, Function, OnConflict, Outcome, RunError, function::Effect};

use crate::support::{Bench, Effects, Failure, Op, Text};

/// What the functions here take. It is neither `Clone` nor known to `serde`.
struct Order {
    user: u64,
    action: &'static str,
    cents: u64,
}

fn order(user: u64, action: &'static str, cents: u64) -> Order {
    Order {
        user,
        action,
        cents,
    }
}

fn cents(order: &Order) -> Fingerprint {
    let mut hasher = Fingerprint::hasher("cents/1");
    hasher.field(order.cents.to_be_bytes());
    hasher.finish()
}

async fn charge(order: Order, effects: Effects) -> Result<String, Failure> {
    match order.action {
        "decline" => Err(Failure::Declined),
        "lose" => Err(Failure::Lost),
        _ => Ok(format!("{} cents, effect {}", order.cents, effects.add())),
    }
}

/// A function of a type that can be named, in a struct say.
fn function(bench: &Bench) -> Function<Order, String, Failure, Text> {
    let effects = bench.effects.clone();
    bench.operation.clone().wrap_with(
        |order: &Order| format!("user:{}:{}", order.user, order.action),
        cents,
        move |order, _execution| charge(order, effects.clone()),
    )
}

/// One key of the arguments, one run; other arguments that count are a mismatch.
#[tokio::test]
async fn s28_a_function_runs_once_for_each_key_of_its_arguments() {
    let bench = Bench::new();
    let charge = function(&bench);
    let first = charge.call(order(7, "buy", 100)).await.unwrap();
    assert_eq!(
        (first.value().as_str(), first.outcome()),
        ("100 cents, effect 1", Outcome::Completed)
    );
    let again = charge.clone().call(order(7, "buy", 100)).await.unwrap();
    assert!(again.is_replayed());
    assert_eq!(again.into_value(), first.into_value());
    let other = charge.call(order(7, "buy", 200)).await;
    assert!(matches!(other, Err(RunError::Mismatch)));
    for other in [order(7, "rent", 100), order(8, "buy", 100)] {
        assert!(!charge.call(other).await.unwrap().is_replayed());
    }
    assert_eq!(bench.effects.count(), 3);
    let names = bench.operation.call("user:7:buy").store_key().unwrap();
    assert!(bench.operation.store().get(&names).await.unwrap().is_some());
}

/// The scope and the judge are told by the arguments and the error.
#[tokio::test]
async fn s28_a_function_has_a_scope_and_a_judge() {
    let bench = Bench::new();
    let judged = function(&bench)
        .scope(|order: &Order| format!("merchant-{}", order.cents))
        .judge(|failure| match failure {
            Failure::Declined => Effect::None,
            Failure::Lost => Effect::Unknown,
        });
    for cents in [1, 2] {
        assert!(
            !judged
                .call(order(7, "buy", cents))
                .await
                .unwrap()
                .is_replayed()
        );
    }
    let declined = judged.call(order(7, "decline", 1)).await;
    assert!(matches!(declined, Err(RunError::Work(Failure::Declined))));
    let lost = judged.call(order(7, "lose", 1)).await;
    assert!(matches!(lost, Err(RunError::Work(Failure::Lost))));
    assert_eq!(
        (bench.store.count(Op::Release), bench.store.count(Op::Fail)),
        (1, 1)
    );
    // By default nobody knows.
    let unjudged = function(&bench).call(order(7, "decline", 3)).await;
    assert!(matches!(unjudged, Err(RunError::Work(Failure::Declined))));
    assert_eq!(bench.store.count(Op::Fail), 2);
}

/// Its calls can be spawned, and its options are those of its operation.
#[tokio::test(start_paused = true)]
async fn s28_p1_a_function_is_called_from_many_tasks() {
    fn shared<T: Send + Sync + 'static>(_: &T) {}
    let bench = Bench::new().with(|pay| pay.on_conflict(OnConflict::Wait(Duration::from_secs(60))));
    let charge = function(&bench);
    shared(&charge);
    let calls: Vec<_> = (0..50)
        .map(|_| tokio::spawn(charge.call(order(7, "buy", 100))))
        .collect();
    for call in calls {
        let done = call.await.unwrap().unwrap();
        assert_eq!(done.value(), "100 cents, effect 1");
    }
    charge.operation().drain().await;
    assert_eq!(bench.effects.count(), 1);
}

/// I11: a key function that makes no key.
#[tokio::test]
async fn s28_i11_a_function_without_a_key_does_not_run() {
    let bench = Bench::new();
    let work = |(), _| async { Ok::<_, Failure>(String::new()) };
    let keyless = bench.operation.clone().wrap_with(
        |(): &()| "",
        |()| Fingerprint::hasher("none/1").finish(),
        work,
    );
    let refused = keyless.call(()).await;
    assert!(matches!(refused, Err(RunError::InvalidKey(_))));
    assert!(bench.store.calls().is_empty());
}

/// U19: debug output holds nothing of the arguments, for there are none yet.
#[test]
fn s28_u19_a_function_shows_its_operation() {
    let shown = format!("{:?}", function(&Bench::new()));
    assert!(
        shown.contains("Function") && shown.contains("\"pay\""),
        "{shown}"
    );
}
