//! Functions over JSON: inputs by their meaning, results through `serde`.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    error::Error,
};

use serde::{Deserialize, Serialize, Serializer};
use tower_idempotency::{
    Execution, MemoryStore, Operation, Outcome, RunError, function::InvalidInput,
};

use crate::support::{Effects, Failure, Op, Scripted};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Receipt {
    id: u64,
    lines: Vec<String>,
    note: Option<String>,
}

fn receipt() -> Receipt {
    Receipt {
        id: u64::MAX,
        lines: vec!["ä \"quoted\"".into(), String::new()],
        note: None,
    }
}

async fn nothing(_: Execution) -> Result<(), Failure> {
    Ok(())
}

/// A value comes back as it was.
#[tokio::test]
async fn s28_p2_a_value_comes_back_as_it_was() {
    let pay = Operation::new("pay", MemoryStore::new());
    for replayed in [false, true] {
        let done = pay
            .call("k")
            .input("b")
            .run(|_| async { Ok::<_, Failure>(receipt()) });
        let done = done.await.unwrap();
        assert_eq!((done.value(), done.is_replayed()), (&receipt(), replayed));
        let unit = pay.call("unit").run(nothing).await.unwrap();
        assert_eq!(unit.is_replayed(), replayed);
    }
}

/// S24: an input counts by its meaning: neither the order of a map nor the type that held it
/// matters, but each value does.
#[tokio::test]
async fn s28_s24_an_input_counts_by_its_meaning() {
    let pay = Operation::new("pay", MemoryStore::new());
    let names: Vec<_> = (0..50).map(|n| format!("name {n}")).collect();
    let one: HashMap<_, _> = names.iter().zip(0..).collect();
    let other: HashMap<_, _> = names.iter().rev().zip((0..50).rev()).collect();
    let sorted: BTreeMap<_, _> = names
        .iter()
        .zip(0..)
        .map(|(name, n)| (name, f64::from(n)))
        .collect();
    pay.call("k").input(&one).run(nothing).await.unwrap();
    for done in [
        pay.call("k").input(&other).run(nothing).await,
        pay.call("k").input(&sorted).run(nothing).await,
    ] {
        assert!(done.unwrap().is_replayed());
    }
    let mut changed = one.clone();
    changed.insert(&names[0], 7);
    let mismatch = pay.call("k").input(&changed).run(nothing).await;
    assert!(matches!(mismatch, Err(RunError::Mismatch)));

    // Several inputs are a tuple, and each has its place.
    pay.call("pair")
        .input(&("a", "b"))
        .run(nothing)
        .await
        .unwrap();
    for other in [("b", "a"), ("ab", ""), ("a", "b ")] {
        let mismatch = pay.call("pair").input(&other).run(nothing).await;
        assert!(matches!(mismatch, Err(RunError::Mismatch)), "{other:?}");
    }
}

/// What the documentation says of `NaN`: as an input it is `null`, as a result it is not read again.
#[tokio::test]
async fn s28_u18_nan_is_no_number() {
    let pay = Operation::new("pay", MemoryStore::new());
    let work = |_| async { Ok::<_, Failure>(f64::NAN) };
    let none = None::<f64>;
    pay.call("k").input(&f64::NAN).run(work).await.unwrap();
    let again = pay.call("k").input(&none).run(work).await;
    assert!(matches!(again, Err(RunError::Unreadable(_))), "{again:?}");
}

/// What the documentation says of the one `null` of JSON, and of what is nested deeply.
#[tokio::test]
async fn s28_u18_what_json_does_not_give_back() {
    #[derive(Debug, Serialize, Deserialize)]
    struct Deep(Vec<Self>);
    let deep = |levels| (1..levels).fold(Deep(Vec::new()), |inner, _| Deep(vec![inner]));

    let pay = Operation::new("pay", MemoryStore::new());
    for replayed in [false, true] {
        let unit = pay.call("unit").run(async |_| Ok::<_, Failure>(Some(())));
        assert_eq!(unit.await.unwrap().value().is_none(), replayed);
        let none = pay.call("none");
        let none = none.run(async |_| Ok::<_, Failure>(Some(None::<u8>)));
        assert_eq!(none.await.unwrap().value().is_none(), replayed);
        let nan = pay.call("nan");
        let nan = nan.run(async |_| Ok::<_, Failure>(Some(f64::NAN)));
        assert_eq!(nan.await.unwrap().value().is_none(), replayed);

        let read = pay
            .call("deep")
            .run(async move |_| Ok::<_, Failure>(deep(127)));
        assert_eq!(read.await.unwrap().is_replayed(), replayed);
        let deeper = pay.call("deeper");
        let deeper = deeper.run(async move |_| Ok::<_, Failure>(deep(128)));
        match deeper.await {
            Ok(_) => assert!(!replayed),
            Err(error) => assert!(matches!(error, RunError::Unreadable(_)) && replayed),
        }
    }
}

/// What has no meaning as JSON, or more than one, is refused before the store is asked.
#[tokio::test]
async fn s28_an_input_that_cannot_be_compared_is_refused() {
    struct Twice;
    impl Serialize for Twice {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map([("a", 1), ("a", 2)])
        }
    }
    struct Deep(u32);
    impl Serialize for Deep {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match self.0 {
                0 => serializer.serialize_unit(),
                depth => serializer.collect_seq([Self(depth - 1)]),
            }
        }
    }
    let store = Scripted::new();
    let pay = Operation::new("pay", store.clone());
    pay.call("deep enough")
        .input(&Deep(127))
        .run(nothing)
        .await
        .unwrap();
    let before = store.calls().len();

    let no_names = HashMap::from([((1, 2), 3)]);
    for (call, has_source) in [
        (pay.call("k").input(&no_names), true),
        (pay.call("k").input(&Twice), false),
        (pay.call("k").input(&Deep(128)), false),
    ] {
        let refused = call.run(nothing).await.unwrap_err();
        assert!(matches!(refused, RunError::InvalidInput(_)), "{refused:?}");
        assert!(!refused.is_retryable() && !refused.work_ran());
        let fault = refused
            .source()
            .unwrap()
            .downcast_ref::<InvalidInput>()
            .unwrap();
        assert_eq!(fault.source().is_some(), has_source, "{fault}");
    }
    assert_eq!(store.calls().len(), before);
}

/// S04: an error that is part of the value is recorded and given again; one that is not, is not.
#[tokio::test]
async fn s28_s04_an_error_in_the_value_is_recorded() {
    let pay = Operation::new("pay", MemoryStore::new());
    let effects = Effects::default();
    let declined = || {
        let effects = effects.clone();
        pay.call("recorded").run(move |_| async move {
            effects.add();
            Ok::<Result<u64, String>, Failure>(Err("declined".to_owned()))
        })
    };
    for replayed in [false, true, true] {
        let done = declined().await.unwrap();
        assert_eq!(done.is_replayed(), replayed);
        assert_eq!(done.into_value(), Err("declined".to_owned()));
    }
    assert_eq!(effects.count(), 1);

    for attempt in 1..=3 {
        let effects = effects.clone();
        let failing = pay
            .call("not recorded")
            .run(move |execution: Execution| async move {
                effects.add();
                assert_eq!(execution.attempt(), attempt);
                Err::<u64, _>(Failure::Declined)
            });
        assert!(matches!(
            failing.await,
            Err(RunError::Work(Failure::Declined))
        ));
    }
    assert_eq!(effects.count(), 4);
}

/// U18: a value of a type that has changed since is not read, and nothing runs. U19: the error says
/// where, and not what is there.
#[tokio::test]
async fn s28_u18_u19_a_changed_type_is_reported() {
    let pay = Operation::new("pay", MemoryStore::new());
    let work = |_| async { Ok::<_, Failure>("secret".to_owned()) };
    pay.call("k").run(work).await.unwrap();
    let changed = pay.call("k").run(|_| async { Ok::<_, Failure>(7_u64) });
    let error = changed.await.unwrap_err();
    let RunError::Unreadable(source) = &error else {
        panic!("{error:?}")
    };
    assert_eq!(
        source.to_string(),
        "of another type, at line 1 and column 8"
    );
    assert!(!format!("{error} {error:?}").contains("secret"));
    assert!(pay.call("k").run(work).await.unwrap().is_replayed());
}

/// U06: a value that JSON cannot hold is given once.
#[tokio::test]
async fn s28_u06_a_value_that_json_cannot_hold_is_given_once() {
    #[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
    struct Place(u8, u8);
    let pay = Operation::new("pay", MemoryStore::new());
    let work = |_| async { Ok::<_, Failure>(HashMap::from([(Place(1, 2), 3)])) };
    let done = pay.call("k").run(work).await.unwrap();
    assert_eq!(done.outcome(), Outcome::NotReplayable);
    assert_eq!(done.value()[&Place(1, 2)], 3);
    let again = pay.call("k").run(work).await;
    assert!(matches!(again, Err(RunError::NotReplayable)), "{again:?}");
}

#[derive(Serialize)]
struct Order {
    user: u64,
    action: String,
    cents: u64,
}

/// Wrapped, the arguments are the input, and a key function over them is the key.
#[tokio::test]
async fn s28_s20_a_wrapped_function_is_keyed_by_its_arguments() {
    let store = Scripted::new();
    let effects = Effects::default();
    let count = effects.clone();
    let charge = Operation::new("charge", store.clone()).wrap(
        |order: &Order| format!("user:{}:{}", order.user, order.action),
        move |order, execution: Execution| {
            let effects = count.clone();
            async move {
                assert_eq!(
                    execution.key(),
                    format!("user:{}:{}", order.user, order.action)
                );
                Ok::<_, Infallible>((order.cents, effects.add()))
            }
        },
    );
    let order = |cents| Order {
        user: 7,
        action: "buy".into(),
        cents,
    };
    assert_eq!(
        charge.call(order(100)).await.unwrap().into_value(),
        (100, 1)
    );
    assert_eq!(
        charge.call(order(100)).await.unwrap().into_value(),
        (100, 1)
    );
    assert!(matches!(
        charge.call(order(101)).await,
        Err(RunError::Mismatch)
    ));

    // Several arguments are a tuple; a job may have none but its day.
    let notify = Operation::new("notify", store.clone()).wrap(
        |(user, _): &(u64, String)| user.to_string(),
        |(user, text), _| async move { Ok::<_, Infallible>(format!("{user}: {text}")) },
    );
    let said = notify.call((7, "hello".to_owned())).await.unwrap();
    assert_eq!(said.value(), "7: hello");
    assert_eq!(store.count(Op::Complete), 2);

    let refused = Operation::new("odd", store.clone()).wrap(
        |_: &HashMap<(u8, u8), u8>| "k",
        |_, _| async { Ok::<_, Infallible>(()) },
    );
    let refused = refused.call(HashMap::from([((1, 2), 3)])).await;
    assert!(matches!(refused, Err(RunError::InvalidInput(_))));
    assert_eq!(store.count(Op::Complete), 2);
}
