//! P7: an answer that is committed in the handler's own transaction, over a database that does as it
//! is told. Real databases are asked in the tests of their stores.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture, poll};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use tokio::time::{Instant, sleep, timeout};
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::{
    Claim, ClaimRequest, CommitError, Committed, Entry, Execution, IdempotencyLayer, MemoryStore,
    Outcome, OwnerId, Reason, State, Store, StoreError, StoreKey,
};

use crate::support::{
    Answer, Effects, Fault, Given, Handled, Op, Scripted, answer, layer, post, read,
};

/// What a handler here does with its execution.
type Handler = Arc<dyn Fn(Scripted, Execution) -> BoxFuture<'static, Given> + Send + Sync>;

fn handler<F>(handler: impl Fn(Scripted, Execution) -> F + Send + Sync + 'static) -> Handler
where
    F: Future<Output = Given> + Send + 'static,
{
    Arc::new(move |store, execution| handler(store, execution).boxed())
}

/// Writes a row and commits it with this answer.
async fn pay(store: &Scripted, execution: &Execution) -> Result<Committed, CommitError> {
    let mut transaction = execution.transaction(store.begin())?;
    transaction.push(format!("attempt {}", execution.attempt()));
    let answer = Response::builder()
        .status(201)
        .header("location", "/payments/1")
        .header("set-cookie", "session=1")
        .body(Full::new(Bytes::from(format!(
            "attempt {}",
            execution.attempt()
        ))));
    transaction.commit(answer.unwrap()).await
}

/// Commits, and answers with what was committed, or else with a 500.
fn good() -> Handler {
    handler(|store, execution| async move {
        match pay(&store, &execution).await {
            Ok(committed) => Ok(committed.into_inner().map(Full::new)),
            Err(error) => answer(500, error.to_string()),
        }
    })
}

#[derive(Clone)]
struct Bench {
    store: Scripted,
    layer: IdempotencyLayer<Scripted>,
    key: Arc<Mutex<Option<StoreKey>>>,
}

impl Bench {
    fn new() -> Self {
        let store = Scripted::new();
        Self {
            layer: layer(store.clone()),
            store,
            key: Arc::default(),
        }
    }

    async fn send(&self, handler: &Handler) -> (Outcome, Answer) {
        let (bench, handler) = (self.clone(), Arc::clone(handler));
        let service = move |request: Handled| {
            let execution = request.extensions().get::<Execution>().unwrap().clone();
            *bench.key.lock().unwrap() = Some(execution.store_key().clone());
            handler(bench.store.clone(), execution)
        };
        let service = self.layer.layer(service_fn(service));
        let response = service.oneshot(post("k", "body")).await.unwrap();
        let outcome = *response.extensions().get::<Outcome>().unwrap();
        (outcome, read(response).await)
    }

    fn key(&self) -> StoreKey {
        self.key.lock().unwrap().clone().expect("a handler ran")
    }

    async fn state(&self) -> Option<State> {
        let found = self.store.store().get(&self.key()).await.unwrap();
        found.map(|found| found.record.state)
    }

    /// Another server takes the key over.
    async fn take_over(&self) -> tower_idempotency::Lease {
        let key = self.key();
        let found = self.store.store().get(&key).await.unwrap().unwrap();
        let request = ClaimRequest {
            fingerprint: found.record.fingerprint,
            owner: OwnerId::random(),
            lease: Duration::from_secs(30),
            ttl: Duration::from_secs(3600),
            take_over: true,
        };
        match self.store.store().claim(&key, &request).await.unwrap() {
            Claim::Claimed(claimed) => claimed.lease,
            claim => panic!("{claim:?}"),
        }
    }
}

/// P7, P2: rows, record and answer are written at once. The store is not told again, and a retry
/// replays.
#[tokio::test(start_paused = true)]
async fn p7_rows_and_record_are_committed_together() {
    let bench = Bench::new();
    let (outcome, first) = bench.send(&good()).await;
    assert_eq!(outcome, Outcome::Completed);
    assert_eq!((first.status.as_u16(), first.text()), (201, "attempt 1"));
    assert_eq!(first.headers["set-cookie"], "session=1");
    assert_eq!(bench.store.rows(), ["attempt 1"]);
    assert_eq!(bench.state().await, Some(State::Completed));
    assert_eq!(
        bench.store.calls(),
        [Op::Claim, Op::CompleteIn, Op::Commit],
        "nothing is recorded a second time"
    );

    let (outcome, again) = bench.send(&good()).await;
    assert_eq!(outcome, Outcome::Replayed);
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(again.headers["location"], "/payments/1");
    // What is not for a later caller is not recorded, as without a transaction.
    assert!(!again.headers.contains_key("set-cookie"));
    assert_eq!(bench.store.rows(), ["attempt 1"]);
}

/// P7: what the layer is told to keep of an answer holds for a committed one, too.
#[tokio::test(start_paused = true)]
async fn p7_cookies_are_recorded_where_the_layer_is_told_so() {
    let mut bench = Bench::new();
    bench.layer = bench.layer.replay_set_cookie(true);
    bench.send(&good()).await;
    let (_, again) = bench.send(&good()).await;
    assert!(again.is_replay());
    assert_eq!(again.headers["set-cookie"], "session=1");
}

/// P7, P2: whatever comes after the commit, the caller gets what was committed, and a retry too.
#[tokio::test(start_paused = true)]
async fn p7_p2_nothing_after_the_commit_changes_the_answer() {
    let after: [(&str, Handler); 4] = [
        (
            "another answer",
            handler(|store, execution| async move {
                drop(pay(&store, &execution).await.unwrap());
                answer(200, "made up")
            }),
        ),
        (
            "a rejection",
            handler(|store, execution| async move {
                drop(pay(&store, &execution).await.unwrap());
                answer(422, "made up")
            }),
        ),
        (
            "a failure",
            handler(|store, execution| async move {
                drop(pay(&store, &execution).await.unwrap());
                answer(500, "made up")
            }),
        ),
        (
            "a panic",
            handler(|store, execution| async move {
                drop(pay(&store, &execution).await.unwrap());
                panic!("as the test wants it")
            }),
        ),
    ];
    for (what, handler) in after {
        let bench = Bench::new();
        for outcome in [Outcome::Completed, Outcome::Replayed] {
            let (told, given) = bench.send(&handler).await;
            assert_eq!(told, outcome, "{what}");
            assert_eq!((given.status.as_u16(), given.text()), (201, "attempt 1"));
        }
        assert_eq!(bench.store.rows(), ["attempt 1"], "{what}");
    }
}

/// P7, U03: an inner layer that fails after the commit does not take the answer away.
#[tokio::test(start_paused = true)]
async fn p7_an_error_of_an_inner_layer_after_the_commit_is_not_seen() {
    let store = Scripted::new();
    let database = store.clone();
    let service = layer(store.clone()).layer(service_fn(move |request: Handled| {
        let (store, execution) = (database.clone(), request.extensions().get().cloned());
        async move {
            let execution: Execution = execution.unwrap();
            drop(pay(&store, &execution).await.unwrap());
            Err::<Response<Full<Bytes>>, _>("an inner layer's time was over")
        }
    }));
    let given = read(service.oneshot(post("k", "body")).await.unwrap()).await;
    assert_eq!((given.status.as_u16(), given.text()), (201, "attempt 1"));
    assert_eq!(store.rows().len(), 1);
}

/// P7: trailers are committed, and are given to the first caller, too.
#[tokio::test(start_paused = true)]
async fn p7_u07_trailers_are_committed() {
    let bench = Bench::new();
    let handler = handler(|store, execution| async move {
        let transaction = execution.transaction(store.begin()).unwrap();
        let sum = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("7"))]);
        let frames = [
            Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"a"))),
            Ok(Frame::data(Bytes::from_static(b"b"))),
            Ok(Frame::trailers(sum)),
        ];
        let body = StreamBody::new(futures::stream::iter(frames));
        let committed = transaction.commit(Response::new(body)).await.unwrap();
        Ok(committed.into_inner().map(Full::new))
    });
    for replayed in [false, true] {
        let (_, given) = bench.send(&handler).await;
        assert_eq!(given.is_replay(), replayed);
        assert_eq!(given.text(), "ab");
        assert_eq!(given.trailers.unwrap()["x-sum"], "7");
    }
}

/// P7: a business error rolls back, and frees the key as any rejection does.
#[tokio::test(start_paused = true)]
async fn p7_s22_a_business_error_writes_nothing_and_frees_the_key() {
    for explicit in [false, true] {
        let bench = Bench::new();
        let refused = handler(move |store, execution| async move {
            let mut transaction = execution.transaction(store.begin()).unwrap();
            transaction.push("half".to_owned());
            if explicit {
                transaction.rollback().await.unwrap();
            }
            answer(402, "no funds")
        });
        let (outcome, given) = bench.send(&refused).await;
        assert_eq!(outcome, Outcome::Rejected);
        assert_eq!((given.status.as_u16(), given.text()), (402, "no funds"));
        assert!(bench.store.rows().is_empty());
        assert_eq!(bench.state().await, None);
        let (outcome, _) = bench.send(&good()).await;
        assert_eq!(outcome, Outcome::Completed);
        assert_eq!(bench.store.rows(), ["attempt 1"]);
    }
}

/// P7: a handler that forgets to commit does not get away with a good answer, which would be given
/// for ever while nothing was written.
#[tokio::test(start_paused = true)]
async fn p7_an_answer_without_its_commit_is_not_sent() {
    let bench = Bench::new();
    let forgetful = handler(|store, execution| async move {
        let mut transaction = execution.transaction(store.begin()).unwrap();
        transaction.push("lost".to_owned());
        answer(201, "paid")
    });
    let (outcome, given) = bench.send(&forgetful).await;
    assert_eq!(outcome, Outcome::Failed);
    assert_eq!(given.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(given.problem(), "not-committed");
    assert!(!given.headers.contains_key("retry-after"));
    assert!(bench.store.rows().is_empty());
    assert_eq!(bench.state().await, Some(State::Failed));
    // Once the program is mended, the retry does it.
    let (outcome, _) = bench.send(&good()).await;
    assert_eq!(outcome, Outcome::Completed);
    assert_eq!(bench.store.rows(), ["attempt 2"]);
}

/// P2, P7: nor does one that leaves its transaction to somebody else, who may commit another answer
/// while this one is being recorded.
#[tokio::test(start_paused = true)]
async fn p2_p7_an_answer_beside_an_open_transaction_is_not_sent() {
    let bench = Bench::new();
    let late = Arc::new(Mutex::new(None));
    let leaking = handler({
        let late = Arc::clone(&late);
        move |store, execution| {
            let late = Arc::clone(&late);
            async move {
                let mut transaction = execution.transaction(store.begin()).unwrap();
                transaction.push("late".to_owned());
                *late.lock().unwrap() = Some(transaction);
                answer(201, "paid")
            }
        }
    });
    let (outcome, given) = bench.send(&leaking).await;
    assert_eq!(outcome, Outcome::Failed);
    assert_eq!(given.problem(), "not-committed");
    let transaction = late.lock().unwrap().take().unwrap();
    let late = Response::new(Full::new(Bytes::from("late")));
    let error = transaction.commit(late).await.unwrap_err();
    assert!(matches!(error, CommitError::Gone), "{error:?}");
    assert!(bench.store.rows().is_empty());
    assert_eq!(bench.state().await, Some(State::Failed));
}

/// P2, P7: a transaction that is begun after the handler answered is not committed, whatever has
/// become of the record by then.
#[tokio::test(start_paused = true)]
async fn p2_p7_after_the_answer_nothing_is_committed() {
    let bench = Bench::new();
    let kept = Arc::new(Mutex::new(None));
    let leaking = handler({
        let kept = Arc::clone(&kept);
        move |_, execution| {
            *kept.lock().unwrap() = Some(execution);
            async { answer(201, "paid") }
        }
    });
    bench.store.next(Op::Complete, Fault::Hangs);
    let (send, late) = (bench.send(&leaking), async {
        // The answer is on its way to the record.
        sleep(Duration::from_millis(1)).await;
        let execution = kept.lock().unwrap().take().unwrap();
        pay(&bench.store, &execution).await.unwrap_err()
    });
    let ((outcome, given), error) = futures::join!(send, late);
    assert!(matches!(error, CommitError::Gone), "{error:?}");
    assert_eq!((outcome, given.text()), (Outcome::Completed, "paid"));
    assert!(bench.store.rows().is_empty());
    assert_eq!(bench.send(&good()).await.1.text(), "paid");
}

/// P7: nothing is written on purpose, where the handler says so.
#[tokio::test(start_paused = true)]
async fn p7_a_rollback_on_purpose_is_no_mistake() {
    let bench = Bench::new();
    let looking = handler(|store, execution| async move {
        let mut transaction = execution.transaction(store.begin()).unwrap();
        transaction.push("tried".to_owned());
        transaction.rollback().await.unwrap();
        answer(200, "a dry run")
    });
    let (outcome, given) = bench.send(&looking).await;
    assert_eq!((outcome, given.text()), (Outcome::Completed, "a dry run"));
    assert!(bench.store.rows().is_empty());
}

/// P7: a transaction that failed is tried again within one execution; the one that succeeds counts.
#[tokio::test(start_paused = true)]
async fn p7_a_refused_commit_can_be_tried_again() {
    let bench = Bench::new();
    bench.store.next(Op::Commit, Fault::Full);
    let stubborn = handler(|store, execution| async move {
        let refused = pay(&store, &execution).await.unwrap_err();
        assert!(matches!(refused, CommitError::Refused(_)), "{refused:?}");
        drop(pay(&store, &execution).await.unwrap());
        answer(200, "made up")
    });
    let (outcome, given) = bench.send(&stubborn).await;
    assert_eq!((outcome, given.text()), (Outcome::Completed, "attempt 1"));
    assert_eq!(bench.store.rows(), ["attempt 1"]);
}

/// P7: one that is never committed after that leaves its handler without a good answer.
#[tokio::test(start_paused = true)]
async fn p7_a_refused_commit_is_not_overlooked() {
    let bench = Bench::new();
    bench.store.next(Op::Commit, Fault::Full);
    let careless = handler(|store, execution| async move {
        let _ = pay(&store, &execution).await;
        answer(201, "paid")
    });
    let (outcome, given) = bench.send(&careless).await;
    assert_eq!(outcome, Outcome::Failed);
    assert_eq!(given.problem(), "not-committed");
    assert!(bench.store.rows().is_empty());
    assert_eq!(bench.state().await, Some(State::Failed));
}

/// P7: completing twice: the second transaction writes nothing.
#[tokio::test(start_paused = true)]
async fn p7_the_second_commit_writes_nothing() {
    let bench = Bench::new();
    let twice = handler(|store, execution| async move {
        drop(pay(&store, &execution).await.unwrap());
        let again = pay(&store, &execution).await.unwrap_err();
        assert!(matches!(again, CommitError::AlreadyCommitted), "{again:?}");
        answer(500, "made up")
    });
    let (outcome, given) = bench.send(&twice).await;
    assert_eq!((outcome, given.text()), (Outcome::Completed, "attempt 1"));
    assert_eq!(bench.store.rows(), ["attempt 1"]);
}

/// P6, P7: a handler whose key was taken over commits nothing, and its caller gets the other's
/// answer once there is one.
#[tokio::test(start_paused = true)]
async fn p7_p6_a_superseded_handler_commits_nothing() {
    let bench = Bench::new();
    let frozen = bench.clone();
    let effects = Effects::default();
    let other = effects.clone();
    let late = handler(move |store, execution| {
        let (bench, other) = (frozen.clone(), other.clone());
        async move {
            // No renewal gets through, until the lease is over.
            bench.store.always(Op::Renew, Fault::Lost);
            sleep(Duration::from_secs(31)).await;
            let lease = bench.take_over().await;
            let refused = pay(&store, &execution).await.unwrap_err();
            assert!(matches!(refused, CommitError::Superseded), "{refused:?}");
            assert!(execution.is_superseded());
            assert!(store.rows().is_empty());
            if other.add() == 1 {
                let payload = tower_idempotency::Payload::not_replayable(201);
                let ttl = Duration::from_secs(3600);
                let key = bench.key();
                bench
                    .store
                    .store()
                    .complete(&key, &lease, &payload, ttl)
                    .await
                    .unwrap();
            }
            answer(500, "superseded")
        }
    });
    let (outcome, given) = bench.send(&late).await;
    assert_eq!(outcome, Outcome::Refused(Reason::NotReplayable));
    assert_eq!(given.problem(), "not-replayable");
    assert!(bench.store.rows().is_empty());
}

/// P7: a lease that ended does no harm, as long as nobody took over.
#[tokio::test(start_paused = true)]
async fn p7_a_lease_that_ended_does_no_harm() {
    let bench = Bench::new();
    bench.store.always(Op::Renew, Fault::Lost);
    let slow = handler(|store, execution| async move {
        sleep(Duration::from_secs(300)).await;
        drop(pay(&store, &execution).await.unwrap());
        answer(500, "made up")
    });
    let (outcome, _) = bench.send(&slow).await;
    assert_eq!(outcome, Outcome::Completed);
    assert_eq!(bench.store.rows(), ["attempt 1"]);
}

/// P7: where the record is not there any more, nothing is written: another execution may have
/// completed it, and expired, meanwhile.
#[tokio::test(start_paused = true)]
async fn p7_without_its_record_nothing_is_committed() {
    let bench = Bench::new();
    let lost = handler(|store, execution| async move {
        store.store().forget(execution.store_key()).await.unwrap();
        match pay(&store, &execution).await {
            Err(CommitError::Gone) => answer(500, "gone"),
            other => panic!("{other:?}"),
        }
    });
    let (outcome, given) = bench.send(&lost).await;
    assert_eq!((outcome, given.text()), (Outcome::Failed, "gone"));
    assert!(bench.store.rows().is_empty());
    let (outcome, _) = bench.send(&good()).await;
    assert_eq!(outcome, Outcome::Completed);
    assert_eq!(bench.store.rows().len(), 1);
}

/// P7, P8: the database goes away at each moment. The caller gets what was committed where it was,
/// and otherwise an error; a retry gives one row in all.
#[tokio::test(start_paused = true)]
async fn p7_p8_the_database_goes_away_at_each_moment() {
    for (op, fault, committed) in [
        (Op::CompleteIn, Fault::Lost, false),
        (Op::CompleteIn, Fault::AnswerLost, false),
        (Op::CompleteIn, Fault::Hangs, false),
        (Op::CompleteIn, Fault::Panics, false),
        (Op::CompleteIn, Fault::Corrupt, false),
        (Op::Commit, Fault::Lost, false),
        (Op::Commit, Fault::Hangs, false),
        (Op::Commit, Fault::Panics, false),
        (Op::Commit, Fault::AnswerLost, true),
        (Op::Commit, Fault::AnswerHangs, true),
    ] {
        let bench = Bench::new();
        bench.store.next(op, fault);
        let start = Instant::now();
        let (outcome, first) = bench.send(&good()).await;
        assert!(
            start.elapsed() <= Duration::from_secs(5),
            "{op:?} {fault:?}"
        );
        match committed {
            true => {
                assert_eq!(outcome, Outcome::Completed, "{op:?} {fault:?}");
                assert_eq!((first.status.as_u16(), first.text()), (201, "attempt 1"));
                assert_eq!(first.headers["set-cookie"], "session=1");
            }
            false => {
                assert_eq!(outcome, Outcome::Failed, "{op:?} {fault:?}");
                assert_eq!(first.status.as_u16(), 500);
                assert!(bench.store.rows().is_empty());
            }
        }
        let (_, again) = bench.send(&good()).await;
        assert_eq!(again.status.as_u16(), 201);
        assert_eq!(again.is_replay(), committed);
        assert_eq!(bench.store.rows().len(), 1, "{op:?} {fault:?}");
    }
}

/// P7: a commit that is cut off in the middle by a time limit inside the layer: the layer finds out
/// what became of it.
#[tokio::test(start_paused = true)]
async fn p7_a_commit_that_is_cut_off_is_looked_into() {
    for (fault, committed) in [(Fault::Hangs, false), (Fault::AnswerHangs, true)] {
        for careless in [false, true] {
            let bench = Bench::new();
            bench.store.next(Op::Commit, fault);
            let hasty = handler(move |store, execution| async move {
                let paid = timeout(Duration::from_millis(100), pay(&store, &execution));
                paid.await.unwrap_err();
                answer(if careless { 201 } else { 504 }, "cut off")
            });
            let (outcome, given) = bench.send(&hasty).await;
            match (committed, careless) {
                (true, _) => {
                    assert_eq!(outcome, Outcome::Completed);
                    assert_eq!(given.text(), "attempt 1");
                }
                (false, true) => assert_eq!(given.problem(), "not-committed"),
                (false, false) => assert_eq!(given.text(), "cut off"),
            }
            assert_eq!(bench.store.rows().len(), usize::from(committed));
            bench.send(&good()).await;
            assert_eq!(bench.store.rows().len(), 1);
        }
    }
}

/// P4, P7: a caller who leaves does not undo the work; its retry gets the committed answer.
#[tokio::test(start_paused = true)]
async fn p4_p7_a_caller_who_leaves_finds_what_was_committed() {
    let bench = Bench::new();
    let slow = handler(|store, execution| async move {
        sleep(Duration::from_secs(1)).await;
        let committed = pay(&store, &execution).await.unwrap();
        Ok(committed.into_inner().map(Full::new))
    });
    {
        let mut send = Box::pin(bench.send(&slow));
        assert!(poll!(send.as_mut()).is_pending());
    }
    bench.layer.drain().await;
    let (outcome, _) = bench.send(&good()).await;
    assert_eq!(outcome, Outcome::Replayed);
    assert_eq!(bench.store.rows(), ["attempt 1"]);
}

/// P5, P7: the next attempt after one that died before its commit knows that it is a takeover, and
/// is the only one that writes.
#[tokio::test(start_paused = true)]
async fn p5_p7_a_crash_before_the_commit_leaves_nothing() {
    let bench = Bench::new();
    {
        // As if the process had died: nobody polls it any more.
        let mut dying = bench.clone();
        dying.layer = dying.layer.max_detached(0);
        let dies = handler(|store, execution| async move {
            let mut transaction = execution.transaction(store.begin()).unwrap();
            transaction.push("half".to_owned());
            std::future::pending().await
        });
        let mut send = Box::pin(dying.send(&dies));
        assert!(poll!(send.as_mut()).is_pending());
    }
    sleep(Duration::from_secs(30)).await;
    let next = handler(|store, execution| async move {
        assert_eq!(execution.entry(), Entry::Takeover);
        let committed = pay(&store, &execution).await.unwrap();
        Ok(committed.into_inner().map(Full::new))
    });
    let (outcome, given) = bench.send(&next).await;
    assert_eq!((outcome, given.text()), (Outcome::Completed, "attempt 2"));
    assert_eq!(bench.store.rows(), ["attempt 2"]);
}

/// P7, P9: an answer that could not be replayed is not committed.
#[tokio::test(start_paused = true)]
async fn p7_p9_an_answer_that_cannot_be_replayed_is_not_committed() {
    type Make = fn() -> Response<Full<Bytes>>;
    let answers: [(&str, Make); 3] = [
        ("large", || Response::new(Full::from(vec![0; 2_000]))),
        ("a stream", || {
            let stream = Response::builder().header("content-type", "text/event-stream");
            stream.body(Full::default()).unwrap()
        }),
        ("not final", || {
            Response::builder()
                .status(101)
                .body(Full::default())
                .unwrap()
        }),
    ];
    for (what, given) in answers {
        let mut bench = Bench::new();
        bench.layer = bench.layer.response_limit(1_000);
        let strange = handler(move |store, execution| async move {
            let mut transaction = execution.transaction(store.begin()).unwrap();
            transaction.push("not to be".to_owned());
            match transaction.commit(given()).await {
                Err(CommitError::Answer(_)) => answer(500, "refused"),
                other => panic!("{other:?}"),
            }
        });
        let (outcome, given) = bench.send(&strange).await;
        assert_eq!(
            (outcome, given.text()),
            (Outcome::Failed, "refused"),
            "{what}"
        );
        assert!(bench.store.rows().is_empty(), "{what}");
    }
}

/// P7: a store that is not in the transaction's database says so before anything is written.
#[tokio::test(start_paused = true)]
async fn p7_another_store_is_told_at_once() {
    let database = Scripted::new();
    let service = layer(MemoryStore::new()).layer(service_fn(move |request: Handled| {
        let execution = request.extensions().get::<Execution>().unwrap();
        let refused = execution.transaction(database.begin()).map(drop);
        assert!(matches!(refused, Err(CommitError::OtherStore)));
        async { answer(201, "done otherwise") }
    }));
    let given = read(service.oneshot(post("k", "body")).await.unwrap()).await;
    assert_eq!(
        given.status.as_u16(),
        201,
        "it was not begun, so it is not missed"
    );
}

/// P7: also behind wrappers.
#[tokio::test(start_paused = true)]
async fn p7_wrapped_stores_are_found() {
    let store = Scripted::new();
    let wrapped: Arc<dyn Store> = Arc::new(Box::new(Arc::new(store.clone())));
    let database = store.clone();
    let service = layer(wrapped).layer(service_fn(move |request: Handled| {
        let (store, execution) = (database.clone(), request.extensions().get().cloned());
        async move {
            let execution: Execution = execution.unwrap();
            let committed = pay(&store, &execution).await.unwrap();
            Ok::<_, StoreError>(committed.into_inner().map(Full::new))
        }
    }));
    let given = read(service.oneshot(post("k", "body")).await.unwrap()).await;
    assert_eq!(given.status.as_u16(), 201);
    assert_eq!(store.rows().len(), 1);
}

/// U19: neither keys nor answers are in the debug output.
#[tokio::test(start_paused = true)]
async fn p7_u19_debug_output_names_no_key() {
    let bench = Bench::new();
    let shown = handler(|store, execution| async move {
        let transaction = execution.transaction(store.begin()).unwrap();
        let debug = format!("{transaction:?}");
        assert!(!debug.contains("/pay") && !debug.contains(":k"), "{debug}");
        transaction.rollback().await.unwrap();
        answer(201, "")
    });
    bench.send(&shown).await;
}
