//! Keys, scopes, inputs; and what is shown of them.

use std::{convert::Infallible, error::Error};

use tower_idempotency::{
    Fingerprint, IdempotencyKey, InvalidKey, Operation, RunError, StoreError, function::Call,
};

use crate::support::{Bench, Failure, Ran, Text};

/// I11: what is no key is refused before the store is asked.
#[tokio::test]
async fn s28_i11_an_invalid_key_is_refused_before_the_store_is_asked() {
    let bench = Bench::new();
    for bad in ["", "é", "a\nb", "\0", &"k".repeat(256)] {
        let refused = bench.send(bad, "b").await.unwrap_err();
        assert!(matches!(refused, RunError::InvalidKey(_)), "{refused:?}");
        assert!(!refused.is_retryable() && !refused.work_ran());
        assert_eq!(
            refused.source().unwrap().downcast_ref::<InvalidKey>(),
            IdempotencyKey::new(bad).as_ref().err()
        );
        assert!(bench.call(bad, "b").store_key().is_err());
    }
    assert_eq!((bench.store.calls().len(), bench.effects.count()), (0, 0));
    // A key with any other characters is one, and another key than each of the others (U02).
    for good in ["k", "k:", ":k", "k/l", "k l", "%3A", &"k".repeat(255)] {
        assert!(
            !bench.send(good, "b").await.unwrap().is_replayed(),
            "{good}"
        );
    }
}

/// I12, U33: prefix, scope and name each make another thing of one key.
#[tokio::test]
async fn s28_u33_prefix_scope_and_name_keep_keys_apart() {
    let bench = Bench::new();
    let other = Operation::with_codec("refund", bench.store.clone(), Text);
    let calls = || {
        [
            bench.call("k", "b"),
            bench.call("k", "b").scope("merchant-7"),
            bench.call("k", "b").scope("merchant:7"),
            other.call("k").input_bytes("b"),
            other.clone().prefix("other").call("k").input_bytes("b"),
        ]
    };
    for call in calls() {
        assert!(!bench.send_over(call).await.unwrap().is_replayed());
    }
    for call in calls() {
        assert!(bench.send_over(call).await.unwrap().is_replayed());
    }
    let names = calls().map(|call| call.store_key().unwrap().as_str().to_owned());
    assert_eq!(
        names,
        [
            "idem::pay:k",
            "idem:merchant-7:pay:k",
            "idem:merchant%3A7:pay:k",
            "idem::refund:k",
            "other::refund:k",
        ]
    );
}

type MakeCall<'a> = dyn Fn(&str) -> Call<Text> + 'a;

/// U34: all bytes of an input count. U37: each way to compare inputs has its own name, so that a
/// change from one to another makes no mismatch.
#[tokio::test]
async fn s28_u34_u37_inputs_are_compared_by_one_way_each() {
    let bench = Bench::new();
    let of = |algorithm| Fingerprint::hasher(algorithm).finish();
    let calls: &[(&str, &MakeCall<'_>)] = &[
        ("none", &|key| bench.operation.call(key)),
        ("bytes", &|key| bench.call(key, "")),
        ("own", &|key| bench.call(key, "").fingerprint(of("mine/1"))),
        ("its next", &|key| {
            bench.call(key, "").fingerprint(of("mine/2"))
        }),
        #[cfg(feature = "json")]
        ("json", &|key| bench.operation.call(key).input("")),
    ];
    for (one, call) in calls {
        bench.send_over(call(one)).await.unwrap();
        assert!(bench.send_over(call(one)).await.unwrap().is_replayed());
        for (other, call) in calls.iter().filter(|(other, _)| other != one) {
            let refused = bench.send_over(call(one)).await.unwrap_err();
            assert!(matches!(refused, RunError::OtherAlgorithm), "{one} {other}");
            assert!(refused.is_retryable() && !refused.work_ran());
        }
    }
    let large = "a".repeat(1 << 20);
    bench.send("large", &large).await.unwrap();
    let other = bench.send("large", &format!("{}b", &large[1..])).await;
    assert!(matches!(other, Err(RunError::Mismatch)));
}

/// The input that is said last counts.
#[tokio::test]
async fn s28_the_last_input_counts() {
    let bench = Bench::new();
    bench.send("k", "b").await.unwrap();
    let call = bench.call("k", "c").input_bytes("b");
    assert!(bench.send_over(call).await.unwrap().is_replayed());
}

/// U24: what becomes of the input while the work runs has no say.
#[tokio::test]
async fn s28_u24_the_input_is_that_of_the_call() {
    let bench = Bench::new();
    let mut input = b"input".to_vec();
    let call = bench.operation.call("k").input_bytes(&input);
    let work = move |_| async move {
        input.clear();
        Ok::<_, Failure>("done".to_owned())
    };
    call.run(work).await.unwrap();
    assert!(bench.send("k", "input").await.unwrap().is_replayed());
}

/// U19: neither messages nor debug output hold a key, a scope, an input or a value.
#[tokio::test(start_paused = true)]
async fn s28_u19_nothing_shows_a_secret() {
    let bench = Bench::new();
    let call = || {
        bench
            .call("secret-key", "secret-input")
            .scope("secret-scope")
    };
    let mut shown = vec![format!("{:?} {:?}", call(), bench.operation)];
    let work = |execution| async move {
        assert!(!format!("{execution:?}").contains("secret"));
        Ok::<_, Failure>("secret-value".to_owned())
    };
    shown.push(format!("{:?}", call().run(work).await));
    let mut errors: Vec<RunError<Failure>> = vec![
        bench
            .send_over(call().input_bytes("other"))
            .await
            .unwrap_err(),
        bench.send("secret-\n", "secret-input").await.unwrap_err(),
        RunError::Store(StoreError::Full { store: "memory" }),
        // The type has changed.
        call().run(|_| async { Ok::<u64, _>(1) }).await.unwrap_err(),
    ];
    assert!(matches!(errors[3], RunError::Unreadable(_)));
    errors.extend([
        RunError::Work(Failure::Lost),
        RunError::InProgress,
        RunError::OtherAlgorithm,
        RunError::NotReplayable,
        RunError::Abandoned,
        RunError::Superseded,
    ]);
    for error in &errors {
        shown.push(format!("{error} {error:?}"));
        let mut source = error.source();
        while let Some(error) = source {
            shown.push(format!("{error} {error:?}"));
            source = error.source();
        }
    }
    for shown in shown {
        assert!(!shown.contains("secret"), "{shown}");
    }
    // Each has a message of its own.
    let mut messages: Vec<_> = errors.iter().map(ToString::to_string).collect();
    messages.sort();
    messages.dedup();
    assert_eq!(messages.len(), errors.len());
}

/// Sources are there exactly where there is one.
#[test]
fn s28_errors_have_sources() {
    let work: RunError<Failure> = RunError::Work(Failure::Lost);
    assert_eq!(work.source().unwrap().downcast_ref(), Some(&Failure::Lost));
    let none: RunError<Failure> = RunError::InProgress;
    assert!(none.source().is_none());
    // Through `?`, where the work's own error is one.
    fn passes(ran: Ran) -> Result<String, Box<dyn Error + Send + Sync>> {
        Ok(ran?.into_value())
    }
    assert!(passes(Err(none)).is_err());
}

/// An error of another kind than [`Error`], that takes those of ours up.
#[derive(Debug)]
enum Mine {
    Theirs(Failure),
    Ours(RunError<Infallible>),
}

impl From<RunError<Infallible>> for Mine {
    fn from(error: RunError<Infallible>) -> Self {
        Self::Ours(error)
    }
}

/// One error for all, where the work's own is none by itself: nothing of ours is lost.
#[test]
fn s28_one_error_for_all() {
    let unreadable = "as the test wants it";
    let all: [RunError<Mine>; 10] = [
        RunError::InProgress,
        RunError::Mismatch,
        RunError::OtherAlgorithm,
        RunError::NotReplayable,
        RunError::Unreadable(unreadable.into()),
        RunError::Abandoned,
        RunError::Superseded,
        RunError::Store(StoreError::Full { store: "memory" }),
        RunError::InvalidKey(InvalidKey::new("of the test")),
        RunError::Work(Mine::Theirs(Failure::Lost)),
    ];
    for error in all {
        let shown = (error.to_string(), error.is_retryable(), error.work_ran());
        match error.flatten() {
            Mine::Ours(error) => {
                assert_eq!(
                    (error.to_string(), error.is_retryable(), error.work_ran()),
                    shown
                );
                let source = error.source().map(ToString::to_string);
                match error {
                    RunError::Unreadable(_) => assert_eq!(source.as_deref(), Some(unreadable)),
                    RunError::InvalidKey(_) => assert_eq!(source.as_deref(), Some("of the test")),
                    RunError::Store(_) => assert!(source.is_some()),
                    _ => assert_eq!(source, None),
                }
            }
            Mine::Theirs(failure) => {
                assert_eq!((failure, &*shown.0), (Failure::Lost, "the work failed"))
            }
        }
    }
    // A boxed error takes ours up by itself.
    type BoxError = Box<dyn Error + Send + Sync>;
    fn passes(ran: Result<(), RunError<BoxError>>) -> Result<(), BoxError> {
        ran.map_err(RunError::flatten)
    }
    let theirs = passes(Err(RunError::Work(Failure::Lost.into()))).unwrap_err();
    assert!(theirs.is::<Failure>());
    let ours = passes(Err(RunError::InProgress)).unwrap_err();
    assert!(ours.is::<RunError<Infallible>>());
}
