//! P3, P6, P8: what happens when the store is away, at each moment and in each way.

use std::time::Duration;

use http::{Response, StatusCode};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_idempotency::{
    Execution, IdempotencyLayer, Outcome, Reason, RequestBody, Store, Takeover,
};

use crate::support::{
    Answer, Effects, Fault, Given, Handled, Op, Scripted, answer, layer, post, read,
};

/// A layer over a scripted store, with a handler that answers 201 and counts.
struct Bench {
    store: Scripted,
    layer: IdempotencyLayer<Scripted>,
    effects: Effects,
}

impl Bench {
    fn new() -> Self {
        let store = Scripted::new();
        Self {
            layer: layer(store.clone()),
            store,
            effects: Effects::default(),
        }
    }

    fn with(
        self,
        set: impl FnOnce(IdempotencyLayer<Scripted>) -> IdempotencyLayer<Scripted>,
    ) -> Self {
        Self {
            layer: set(self.layer.clone()),
            ..self
        }
    }

    async fn send(&self, key: &str, body: &str) -> (Outcome, Answer) {
        let effects = self.effects.clone();
        let handler = move |_: Handled| {
            let number = effects.add();
            async move { answer(201, format!("effect {number}")) }
        };
        let service = self.layer.layer(service_fn(handler));
        let response = service.oneshot(post(key, body)).await.unwrap();
        let outcome = *response.extensions().get::<Outcome>().unwrap();
        (outcome, read(response).await)
    }
}

#[tokio::test(start_paused = true)]
async fn p8_u13_a_store_that_cannot_be_asked_refuses() {
    for fault in [
        Fault::Lost,
        Fault::Hangs,
        Fault::AnswerLost,
        Fault::AnswerHangs,
        Fault::Corrupt,
        Fault::Panics,
    ] {
        let bench = Bench::new();
        bench.store.next(Op::Claim, fault);
        let start = Instant::now();
        let (outcome, refused) = bench.send("k", "b").await;
        assert_eq!(outcome, Outcome::Refused(Reason::StoreUnavailable));
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.headers["retry-after"], "1");
        assert_eq!(refused.problem(), "store-unavailable");
        assert_eq!(bench.effects.count(), 0);
        // The deadline of a store call is 2 s by default.
        let hung = matches!(fault, Fault::Hangs | Fault::AnswerHangs);
        assert_eq!(start.elapsed().as_secs(), if hung { 2 } else { 0 });

        // A claim that was granted unheard is given back, long before its lease ends.
        bench.layer.drain().await;
        assert_eq!(bench.store.store().len(), 0, "{fault:?}");
        let (outcome, _) = bench.send("k", "another body").await;
        assert_eq!((outcome, bench.effects.count()), (Outcome::Completed, 1));
    }
}

/// The release of a claim that was perhaps granted leaves alone what others did since.
#[tokio::test(start_paused = true)]
async fn p8_the_late_release_touches_nobody_else() {
    let bench = Bench::new();
    bench.store.next(Op::Claim, Fault::Lost);
    assert_eq!(bench.send("k", "b").await.1.status.as_u16(), 503);
    assert_eq!(bench.send("k", "b").await.0, Outcome::Completed);
    bench.layer.drain().await;
    assert_eq!(bench.store.count(Op::GiveBack), 1);
    assert_eq!(bench.send("k", "b").await.0, Outcome::Replayed);
}

/// P8: giving back is tried again until it succeeds, with pauses that grow.
#[tokio::test(start_paused = true)]
async fn p8_giving_back_is_tried_again() {
    for fault in [Fault::Lost, Fault::Panics] {
        let bench = Bench::new();
        bench.store.next(Op::Claim, Fault::AnswerLost);
        bench.store.always(Op::GiveBack, fault);
        assert_eq!(bench.send("k", "b").await.1.status.as_u16(), 503);
        tokio::time::sleep(Duration::from_secs(20)).await;
        let (outcome, _) = bench.send("k", "b").await;
        assert_eq!(outcome, Outcome::Refused(Reason::InProgress));
        let tries = bench.store.count(Op::GiveBack);
        assert!((3..=10).contains(&tries), "{tries} tries in 20 s");
        bench.store.mend();
        tokio::time::sleep(Duration::from_secs(6)).await;
        let (outcome, _) = bench.send("k", "b").await;
        assert_eq!((outcome, bench.effects.count()), (Outcome::Completed, 1));
    }
}

/// P8, P9: and it ends with the lease. No more than 100 claims are given back at once; the others'
/// keys are free when their leases end.
#[tokio::test(start_paused = true)]
async fn p8_p9_giving_back_is_bounded() {
    let bench = Bench::new();
    bench.store.always(Op::Claim, Fault::AnswerLost);
    bench.store.always(Op::GiveBack, Fault::Hangs);
    for key in 0..101 {
        let (_, refused) = bench.send(&key.to_string(), "b").await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bench.store.count(Op::GiveBack), 100);
    let start = Instant::now();
    bench.layer.drain().await;
    let left = start.elapsed().as_secs();
    assert!((25..=35).contains(&left), "over after {left} s");

    // And so again in the next outage.
    let before = bench.store.count(Op::GiveBack);
    bench.store.mend();
    bench.store.next(Op::Claim, Fault::AnswerLost);
    bench.send("another", "b").await;
    bench.layer.drain().await;
    assert_eq!(bench.store.count(Op::GiveBack), before + 1);
    for key in ["another", "100"] {
        assert_eq!(bench.send(key, "b").await.0, Outcome::Completed);
    }
}

/// U13: what is recorded is not executed again because a reading failed.
#[tokio::test(start_paused = true)]
async fn u13_a_passing_read_error_does_not_execute_again() {
    for fault in [Fault::Lost, Fault::AnswerLost, Fault::Hangs, Fault::Corrupt] {
        let bench = Bench::new();
        bench.send("k", "b").await;
        bench.store.next(Op::Claim, fault);
        let (_, refused) = bench.send("k", "b").await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        bench.layer.drain().await;
        let (outcome, again) = bench.send("k", "b").await;
        assert_eq!((outcome, again.text()), (Outcome::Replayed, "effect 1"));
    }
}

#[tokio::test(start_paused = true)]
async fn p8_failing_open_is_a_choice() {
    let bench = Bench::new().with(|layer| layer.fail_open(true));
    bench.store.next(Op::Claim, Fault::Lost);
    let (outcome, answered) = bench.send("k", "b").await;
    assert_eq!(
        (outcome, answered.text()),
        (Outcome::Unprotected, "effect 1")
    );
    bench.layer.drain().await;
    assert_eq!(bench.store.store().len(), 0);

    // A record that is there and cannot be read is no reason to execute again.
    bench.store.next(Op::Claim, Fault::Corrupt);
    let (outcome, _) = bench.send("k", "b").await;
    assert_eq!(outcome, Outcome::Refused(Reason::StoreUnavailable));
    // Nor is a full store.
    bench.store.next(Op::Claim, Fault::Full);
    let (outcome, _) = bench.send("k", "b").await;
    assert_eq!(outcome, Outcome::Refused(Reason::Overloaded));
    assert_eq!(bench.effects.count(), 1);
}

/// A handler that runs without protection sees no execution.
#[tokio::test]
async fn p8_unprotected_handlers_see_no_execution() {
    let store = Scripted::new();
    store.next(Op::Claim, Fault::Lost);
    let layer = layer(store).fail_open(true);
    let handler = |request: Handled| async move {
        let seen = request.extensions().get::<Execution>().is_some();
        answer(200, if seen { "seen" } else { "not seen" })
    };
    let service = layer.layer(service_fn(handler));
    let unprotected = service.clone().oneshot(post("k", "b")).await.unwrap();
    assert_eq!(read(unprotected).await.text(), "not seen");
    let protected = service.oneshot(post("k", "b")).await.unwrap();
    assert_eq!(read(protected).await.text(), "seen");
}

#[tokio::test(start_paused = true)]
async fn p9_a_full_store_refuses_new_keys() {
    let bench = Bench::new();
    bench.store.next(Op::Claim, Fault::Full);
    let (outcome, refused) = bench.send("k", "b").await;
    assert_eq!(outcome, Outcome::Refused(Reason::Overloaded));
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        (refused.problem().as_str(), bench.effects.count()),
        ("overloaded", 0)
    );
}

/// P3: a record that the store does not take at once is tried again before the answer leaves.
#[tokio::test(start_paused = true)]
async fn p3_recording_is_tried_again() {
    for fault in [
        Fault::Lost,
        Fault::AnswerLost,
        Fault::Hangs,
        Fault::AnswerHangs,
        Fault::Panics,
    ] {
        let bench = Bench::new();
        bench.store.next(Op::Complete, fault);
        let (outcome, first) = bench.send("k", "b").await;
        assert_eq!((outcome, first.text()), (Outcome::Completed, "effect 1"));
        assert_eq!(bench.store.count(Op::Complete), 2);
        let (outcome, again) = bench.send("k", "b").await;
        assert_eq!((outcome, again.text()), (Outcome::Replayed, "effect 1"));
    }
}

/// P3: past the budget the answer leaves, and recording goes on until it succeeds. Meanwhile the
/// key is held, beyond the lease too, and nothing runs again.
#[tokio::test(start_paused = true)]
async fn p3_past_the_budget_recording_goes_on_in_the_background() {
    for fault in [Fault::Lost, Fault::Hangs, Fault::Panics] {
        let bench = Bench::new();
        bench.store.always(Op::Complete, fault);
        let start = Instant::now();
        let (outcome, first) = bench.send("k", "b").await;
        assert_eq!((outcome, first.text()), (Outcome::Unrecorded, "effect 1"));
        assert_eq!(start.elapsed().as_secs(), 5, "{fault:?}");

        tokio::time::sleep(Duration::from_secs(100)).await;
        let (outcome, _) = bench.send("k", "b").await;
        assert_eq!(outcome, Outcome::Refused(Reason::InProgress));

        bench.store.mend();
        bench.layer.drain().await;
        let (outcome, again) = bench.send("k", "b").await;
        assert_eq!((outcome, again.text()), (Outcome::Replayed, "effect 1"));
        assert_eq!(bench.effects.count(), 1);
    }
}

/// P3: the budget is that of the whole recording, its first try included.
#[tokio::test(start_paused = true)]
async fn p3_the_budget_covers_the_first_try() {
    let bench = Bench::new().with(|layer| {
        layer
            .store_timeout(Duration::from_secs(60))
            .record_timeout(Duration::from_secs(1))
    });
    bench.store.next(Op::Complete, Fault::Hangs);
    let start = Instant::now();
    let (outcome, first) = bench.send("k", "b").await;
    assert_eq!((outcome, first.text()), (Outcome::Unrecorded, "effect 1"));
    assert_eq!(start.elapsed(), Duration::from_secs(1));
    bench.layer.drain().await;
    assert_eq!(bench.send("k", "b").await.0, Outcome::Replayed);
}

/// P1, P3: the lease is kept while the record is tried, whatever its length is beside the deadline
/// of a store call, and whenever in it the handler ends.
#[tokio::test(start_paused = true)]
async fn p1_p3_the_lease_is_kept_while_the_record_is_tried() {
    for lease in [
        1_000, 3_999, 4_000, 4_001, 5_000, 6_000, 6_001, 7_000, 30_000,
    ] {
        for ran in [0, 1, 33, 65, 99] {
            let lease = Duration::from_millis(lease);
            let bench = Bench::new().with(|layer| layer.lease(lease));
            bench.store.always(Op::Complete, Fault::Hangs);
            let handler = move |_: Handled| async move {
                tokio::time::sleep(lease * ran / 100).await;
                answer(201, "done")
            };
            let mut service = bench.layer.layer(service_fn(handler));
            let first = tokio::spawn(service.ready().await.unwrap().call(post("k", "b")));
            for _ in 0..60 {
                tokio::time::sleep(lease / 20).await;
                let (outcome, _) = bench.send("k", "b").await;
                let held = Outcome::Refused(Reason::InProgress);
                assert_eq!(outcome, held, "{lease:?}, ended after {ran} % of it");
            }
            first.await.unwrap().unwrap();
            bench.store.mend();
            bench.layer.drain().await;
            assert_eq!(bench.send("k", "b").await.0, Outcome::Replayed);
            assert_eq!(bench.effects.count(), 0);
        }
    }
}

/// U36, P9: answers that wait to be recorded in the background count among the buffered bytes, so
/// an outage of the store cannot fill the memory with them.
#[tokio::test(start_paused = true)]
async fn u36_p9_answers_that_wait_to_be_recorded_are_bounded() {
    let bench = Bench::new().with(|layer| layer.buffer_limit(1_000));
    bench.store.always(Op::Complete, Fault::Lost);
    let handler = |_: Handled| async { answer(201, "x".repeat(1_000)) };
    let service = bench.layer.layer(service_fn(handler));
    let first = service.clone().oneshot(post("k", "b")).await.unwrap();
    assert_eq!(first.extensions().get(), Some(&Outcome::Unrecorded));
    assert_eq!(read(first).await.body.len(), 1_000);

    let (outcome, refused) = bench.send("another", "b").await;
    assert_eq!(outcome, Outcome::Refused(Reason::Overloaded));
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.problem(), "overloaded");

    bench.store.mend();
    bench.layer.drain().await;
    assert_eq!(bench.send("another", "b").await.0, Outcome::Completed);
    let again = read(service.oneshot(post("k", "b")).await.unwrap()).await;
    assert_eq!((again.is_replay(), again.body.len()), (true, 1_000));
}

/// P3: recording late beats executing twice: the record is made anew where the store lost it.
#[tokio::test(start_paused = true)]
async fn p3_a_lost_record_is_made_anew() {
    let bench = Bench::new();
    let store = bench.store.clone();
    let handler = move |request: Handled| {
        let store = store.clone();
        async move {
            let execution = request.extensions().get::<Execution>().unwrap().clone();
            assert!(store.forget(execution.store_key()).await.unwrap());
            answer(201, "done")
        }
    };
    let service = bench.layer.layer(service_fn(handler));
    let first = service.clone().oneshot(post("k", "b")).await.unwrap();
    assert_eq!(first.extensions().get(), Some(&Outcome::Completed));
    let again = service.oneshot(post("k", "b")).await.unwrap();
    assert!(read(again).await.is_replay());
}

/// P9: where the store has no room for an answer, the key still counts as completed.
#[tokio::test(start_paused = true)]
async fn p9_u06_no_room_for_an_answer() {
    let bench = Bench::new();
    bench.store.next(Op::Complete, Fault::Full);
    let (outcome, first) = bench.send("k", "b").await;
    assert_eq!(
        (outcome, first.text()),
        (Outcome::NotReplayable, "effect 1")
    );
    let (outcome, retry) = bench.send("k", "b").await;
    assert_eq!(outcome, Outcome::Refused(Reason::NotReplayable));
    assert_eq!(retry.status, StatusCode::CONFLICT);
    assert!(!retry.headers.contains_key("retry-after"));
    assert_eq!(bench.effects.count(), 1);
}

/// A record that cannot be read cannot be written either; the answer is not held up for it.
#[tokio::test(start_paused = true)]
async fn p3_a_corrupt_record_does_not_hold_the_answer_up() {
    let bench = Bench::new();
    bench.store.next(Op::Complete, Fault::Corrupt);
    let start = Instant::now();
    let (outcome, first) = bench.send("k", "b").await;
    assert_eq!((outcome, first.text()), (Outcome::Unrecorded, "effect 1"));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

/// Failures and rejections are recorded with the same care.
#[tokio::test(start_paused = true)]
async fn p3_u03_failures_and_rejections_are_tried_again_too() {
    for (status, op) in [(500, Op::Fail), (422, Op::Release)] {
        for fault in [Fault::Lost, Fault::AnswerLost, Fault::Hangs, Fault::Panics] {
            let bench = Bench::new();
            bench.store.next(op, fault);
            let handler = move |_: Handled| async move { answer(status, "no") };
            let service = bench.layer.layer(service_fn(handler));
            let first = service.clone().oneshot(post("k", "b")).await.unwrap();
            assert_eq!(first.status(), status);
            assert_eq!(bench.store.count(op), 2);
            let (outcome, _) = bench.send("k", "b").await;
            assert_eq!(outcome, Outcome::Completed, "{op:?} {fault:?}");
        }
    }
}

/// P1: the lease is renewed for as long as the handler runs, every third of it, through passing
/// errors.
#[tokio::test(start_paused = true)]
async fn p1_u23_a_long_execution_keeps_its_key() {
    for lease in [Duration::from_secs(30), Duration::from_secs(3)] {
        let bench = Bench::new().with(|layer| layer.lease(lease));
        let handler = |_: Handled| async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            answer(201, "late")
        };
        let mut service = bench.layer.layer(service_fn(handler));
        let call = service.ready().await.unwrap().call(post("k", "b"));
        let first = tokio::spawn(call);
        bench.store.next(Op::Renew, Fault::Lost);
        for _ in 0..99 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (outcome, _) = bench.send("k", "b").await;
            assert_eq!(outcome, Outcome::Refused(Reason::InProgress));
        }
        let expected = 100 * 3 / lease.as_secs() as usize;
        let renewals = bench.store.count(Op::Renew);
        assert!(
            renewals.abs_diff(expected) <= 3,
            "{renewals} renewals, not {expected}"
        );
        assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::CREATED);
        // And no longer.
        let renewals = bench.store.count(Op::Renew);
        tokio::time::sleep(lease * 3).await;
        assert_eq!(bench.store.count(Op::Renew), renewals);
        assert_eq!(bench.effects.count(), 0);
    }
}

/// P1: a renewal that hangs, or panics, leaves time for another one within the lease, however long
/// that is.
#[tokio::test(start_paused = true)]
async fn p1_u23_a_renewal_that_hangs_does_not_lose_the_lease() {
    for lease in [100, 1_000, 3_000, 6_000, 30_000] {
        for fault in [Fault::Hangs, Fault::Panics] {
            let lease = Duration::from_millis(lease);
            let bench = Bench::new().with(|layer| layer.lease(lease));
            let handler = move |_: Handled| async move {
                tokio::time::sleep(lease * 3).await;
                answer(201, "late")
            };
            bench.store.next(Op::Renew, fault);
            let mut service = bench.layer.layer(service_fn(handler));
            let first = tokio::spawn(service.ready().await.unwrap().call(post("k", "b")));
            for _ in 0..59 {
                tokio::time::sleep(lease / 20).await;
                let (outcome, _) = bench.send("k", "b").await;
                let held = Outcome::Refused(Reason::InProgress);
                assert_eq!(outcome, held, "{lease:?} {fault:?}");
            }
            assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::CREATED);
            assert_eq!(bench.effects.count(), 0);
        }
    }
}

/// P6, U12: an owner that was cut off from the store beyond its lease is told that it was
/// superseded, changes nothing, and its caller gets the recorded answer.
#[tokio::test(start_paused = true)]
async fn p6_u12_a_stale_owner_changes_nothing() {
    let bench = Bench::new();
    let effects = bench.effects.clone();
    let handler = move |request: Handled| {
        let effects = effects.clone();
        async move {
            let execution = request.extensions().get::<Execution>().unwrap().clone();
            let attempt = execution.attempt();
            if attempt == 1 {
                tokio::time::timeout(Duration::from_secs(600), execution.superseded())
                    .await
                    .expect("it is told");
                assert!(execution.is_superseded());
                assert!(execution.save_checkpoint("late").await.is_err());
            }
            effects.add();
            answer(201, format!("attempt {attempt}"))
        }
    };
    let mut service = bench.layer.layer(service_fn(handler));
    let stale = tokio::spawn(service.ready().await.unwrap().call(post("k", "b")));
    tokio::task::yield_now().await;
    bench.store.always(Op::Renew, Fault::Lost);
    tokio::time::sleep(Duration::from_secs(31)).await;

    let newer = service.clone().oneshot(post("k", "b")).await.unwrap();
    assert_eq!(read(newer).await.text(), "attempt 2");
    bench.store.mend();
    let stale = stale.await.unwrap().unwrap();
    assert_eq!(stale.extensions().get(), Some(&Outcome::Replayed));
    assert_eq!(read(stale).await.text(), "attempt 2");
    let again = service.oneshot(post("k", "b")).await.unwrap();
    assert_eq!(read(again).await.text(), "attempt 2");
}

/// P6: a stale owner that ends while the newer one still runs does not send an answer that could
/// differ from the one to be recorded.
#[tokio::test(start_paused = true)]
async fn p6_superseded_by_one_that_still_runs() {
    let bench = Bench::new();
    let handler = move |request: Handled| async move {
        let attempt = request.extensions().get::<Execution>().unwrap().attempt();
        let time = if attempt == 1 { 60 } else { 600 };
        tokio::time::sleep(Duration::from_secs(time)).await;
        answer(201, format!("attempt {attempt}"))
    };
    let mut service = bench.layer.layer(service_fn(handler));
    bench.store.next(Op::Renew, Fault::Hangs);
    bench.store.always(Op::Renew, Fault::Lost);
    let stale = tokio::spawn(service.ready().await.unwrap().call(post("k", "b")));
    tokio::time::sleep(Duration::from_secs(40)).await;
    let newer = tokio::spawn(service.ready().await.unwrap().call(post("k", "b")));
    tokio::task::yield_now().await;
    bench.store.mend();

    let stale: Response<_> = stale.await.unwrap().unwrap();
    assert_eq!(stale.extensions().get(), Some(&Outcome::Superseded));
    let stale = read(stale).await;
    assert_eq!(
        (stale.status, stale.problem().as_str()),
        (StatusCode::CONFLICT, "in-progress")
    );
    assert_eq!(
        read(newer.await.unwrap().unwrap()).await.text(),
        "attempt 2"
    );
    let again = service.oneshot(post("k", "b")).await.unwrap();
    assert_eq!(read(again).await.text(), "attempt 2");
}

/// P6, U06: one that was superseded by an answer that cannot be replayed says so, as any later
/// request with the key is told.
#[tokio::test(start_paused = true)]
async fn p6_u06_superseded_by_an_answer_that_cannot_be_replayed() {
    let bench = Bench::new().with(|layer| layer.response_limit(10));
    let handler = |request: Handled| async move {
        match request.extensions().get::<Execution>().unwrap().attempt() {
            1 => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                answer(201, "short")
            }
            _ => answer(201, "x".repeat(100)),
        }
    };
    let mut service = bench.layer.layer(service_fn(handler));
    bench.store.always(Op::Renew, Fault::Lost);
    let stale = tokio::spawn(service.ready().await.unwrap().call(post("k", "b")));
    tokio::time::sleep(Duration::from_secs(40)).await;
    let newer = service.ready().await.unwrap().call(post("k", "b")).await;
    let newer = newer.unwrap();
    assert_eq!(newer.extensions().get(), Some(&Outcome::NotReplayable));

    let stale = stale.await.unwrap().unwrap();
    let expected = Outcome::Refused(Reason::NotReplayable);
    assert_eq!(stale.extensions().get(), Some(&expected));
    let stale = read(stale).await;
    assert_eq!(stale.status, StatusCode::CONFLICT);
    assert_eq!(stale.problem(), "not-replayable");
    assert!(!stale.headers.contains_key("retry-after"));
    assert_eq!(bench.send("k", "b").await.0, expected);
}

/// U11: a fresh request costs two store calls; replay, conflict and mismatch cost one.
#[tokio::test]
async fn u11_store_calls() {
    let bench = Bench::new();
    bench.send("k", "b").await;
    assert_eq!(bench.store.calls(), [Op::Claim, Op::Complete]);
    bench.send("k", "b").await;
    bench.send("k", "another").await;
    assert_eq!(bench.store.calls()[2..], [Op::Claim, Op::Claim]);
}

/// P10: a request that is not covered costs no store call, and its body is not touched.
#[tokio::test]
async fn p10_s11_not_covered_costs_nothing() {
    let bench = Bench::new();
    let handler = |request: http::Request<RequestBody<crate::support::Unreadable>>| async move {
        drop(request);
        Given::Ok(Response::new(http_body_util::Full::from("passed")))
    };
    let service = bench.layer.layer(service_fn(handler));
    for (method, key) in [
        ("GET", true),
        ("PUT", true),
        ("DELETE", true),
        ("HEAD", true),
        ("OPTIONS", true),
        ("POST", false),
    ] {
        let mut request = http::Request::builder().method(method).uri("/pay");
        if key {
            request = request.header("idempotency-key", "k");
        }
        let request = request.body(crate::support::Unreadable).unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        assert!(response.extensions().get::<Outcome>().is_none());
        assert_eq!(read(response).await.text(), "passed");
    }
    assert!(bench.store.calls().is_empty());
}

/// P8: a claim that was granted unheard is not given back while the handler runs without
/// protection: another payload under its key is still a mismatch.
#[tokio::test(start_paused = true)]
async fn p8_s07_what_runs_unprotected_keeps_the_key_that_it_may_have() {
    let bench = Bench::new().with(|layer| layer.fail_open(true));
    bench.store.next(Op::Claim, Fault::AnswerLost);
    let handler = |_: Handled| async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        answer(201, "late")
    };
    let service = bench.layer.layer(service_fn(handler));
    let unprotected = tokio::spawn(service.oneshot(post("k", "b")));
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (outcome, _) = bench.send("k", "another body").await;
    assert_eq!(outcome, Outcome::Refused(Reason::Mismatch));
    assert_eq!(unprotected.await.unwrap().unwrap().status(), 201);
    assert_eq!(bench.store.count(Op::GiveBack), 0);
}

/// P5, P8: where nobody takes over, a claim under which nothing ran is given back also when the
/// store comes back long after its lease.
#[tokio::test(start_paused = true)]
async fn p5_p8_a_lost_claim_does_not_block_its_key_where_takeover_is_refused() {
    let bench = Bench::new().with(|layer| layer.takeover(Takeover::refuse()));
    bench.store.next(Op::Claim, Fault::AnswerLost);
    bench.store.always(Op::GiveBack, Fault::Lost);
    let (outcome, _) = bench.send("k", "b").await;
    assert_eq!(outcome, Outcome::Refused(Reason::StoreUnavailable));
    tokio::time::sleep(Duration::from_secs(300)).await;
    let (outcome, _) = bench.send("k", "b").await;
    assert_eq!(outcome, Outcome::Refused(Reason::Abandoned));
    bench.store.mend();
    bench.layer.drain().await;
    let (outcome, _) = bench.send("k", "b").await;
    assert_eq!(outcome, Outcome::Completed);
}

/// P1: a runtime without timers cannot keep a lease, so nothing is claimed in it.
#[test]
fn p1_without_timers_nothing_runs() {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let (store, effects) = (Scripted::new(), Effects::default());
    let handler = {
        let effects = effects.clone();
        move |_: Handled| {
            effects.add();
            async {
                tokio::task::yield_now().await;
                answer(201, "done")
            }
        }
    };
    let mut service = layer(store.clone()).layer(service_fn(handler));
    let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.unwrap().block_on(async {
            let response = service.ready().await.unwrap().call(post("k", "b")).await;
            read(response.unwrap()).await
        })
    }));
    assert!(asked.is_err(), "{asked:?}");
    assert_eq!((effects.count(), store.count(Op::Claim)), (0, 0));
}
