//! P4, U08, S09: a caller who leaves does not undo the work.

use std::{convert::Infallible, task::Poll, time::Duration};

use futures::{FutureExt, poll};
use http::{Request, Response, StatusCode};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_idempotency::{OnConflict, Outcome, RequestBody};

use crate::support::{
    Effects, Fault, Given, Handled, Op, Scripted, YieldingBody, answer, layer, post, read,
    yield_once,
};

/// A handler that yields before its effect and after, over bodies that yield.
async fn slow(
    effects: Effects,
    _: Request<RequestBody<YieldingBody>>,
) -> Result<Response<YieldingBody>, Infallible> {
    yield_once().await;
    let number = effects.add();
    yield_once().await;
    let body = format!("effect {number}");
    Ok(Response::new(YieldingBody::new([&body[..3], &body[3..]])))
}

fn request() -> Request<YieldingBody> {
    Request::post("/pay")
        .header("idempotency-key", "k")
        .body(YieldingBody::new(["a", "b"]))
        .unwrap()
}

/// Drops the answer's future after each number of polls in turn. Everything that can be waited for
/// is pending once: each frame of both bodies, each store call before it takes effect and after,
/// the handler before its effect and after.
#[tokio::test(start_paused = true)]
async fn p4_u08_the_future_is_dropped_at_each_of_its_await_points() {
    let (mut cancelled, mut detached, mut polls) = (0, 0, 0);
    loop {
        let (store, effects) = (Scripted::yielding(), Effects::default());
        let layer = layer(store.clone());
        let handler = {
            let effects = effects.clone();
            move |request| slow(effects.clone(), request)
        };
        let mut service = layer.layer(service_fn(handler));

        let mut call = Box::pin(service.ready().await.unwrap().call(request()));
        let mut ended = false;
        for _ in 0..polls {
            ended |= poll!(call.as_mut()).is_ready();
        }
        drop(call);
        layer.drain().await;

        if !ended {
            match effects.count() {
                // Dropped before the claim was known: nothing ran, and nothing is stored.
                0 => {
                    cancelled += 1;
                    assert_eq!(store.store().len(), 0, "after {polls} polls");
                }
                1 => detached += 1,
                more => panic!("{more} effects after {polls} polls"),
            }
        }
        let before = effects.count();
        let retry = service.ready().await.unwrap().call(request()).await;
        let retry = read(retry.unwrap()).await;
        assert_eq!(retry.text(), "effect 1", "after {polls} polls");
        assert_eq!(retry.is_replay(), before == 1, "after {polls} polls");
        assert_eq!(effects.count(), 1, "after {polls} polls");
        if ended {
            break;
        }
        polls += 1;
    }
    // Never polled, three frames of the body and its end, before and after the claim; then the
    // handler before and after its effect, three frames of its answer, before and after the record.
    assert_eq!((cancelled, detached), (7, 7));
}

/// A claim that the store granted after its caller left is given back: the key is free at once,
/// and not only when the lease ends.
#[tokio::test(start_paused = true)]
async fn p4_a_claim_whose_caller_left_is_released() {
    let (store, effects) = (Scripted::new(), Effects::default());
    store.next(Op::Claim, Fault::AnswerHeld);
    let layer = layer(store.clone());
    let handler = {
        let effects = effects.clone();
        move |_: Handled| {
            let number = effects.add();
            async move { answer(201, format!("effect {number}")) }
        }
    };
    let mut service = layer.layer(service_fn(handler));
    let mut call = Box::pin(service.ready().await.unwrap().call(post("k", "b")));
    assert!(poll!(call.as_mut()).is_pending());
    assert_eq!(store.store().len(), 1, "claimed");
    drop(call);
    store.open();
    layer.drain().await;
    assert_eq!((store.store().len(), effects.count()), (0, 0));

    let retry = service.ready().await.unwrap().call(post("k", "b")).await;
    assert_eq!(retry.unwrap().status(), StatusCode::CREATED);
}

/// The future of a request is dropped by a thread that is in no runtime.
#[test]
fn p4_dropped_outside_a_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (store, effects) = (Scripted::new(), Effects::default());
    let layer = layer(store);
    let (started, go) = (
        std::sync::Arc::new(tokio::sync::Notify::new()),
        std::sync::Arc::new(tokio::sync::Notify::new()),
    );
    let handler = {
        let (effects, started, go) = (effects.clone(), started.clone(), go.clone());
        move |_: Handled| {
            let (effects, started, go) = (effects.clone(), started.clone(), go.clone());
            async move {
                started.notify_one();
                go.notified().await;
                effects.add();
                answer(201, "done")
            }
        }
    };
    let mut service = layer.layer(service_fn(handler));
    let mut call = None;
    runtime.block_on(async {
        let called = service.ready().await.unwrap().call(post("k", "b"));
        let call = call.insert(Box::pin(called));
        tokio::select! {
            _ = call.as_mut() => unreachable!("the handler waits"),
            () = started.notified() => {}
        }
    });
    drop(call);
    go.notify_one();
    runtime.block_on(async {
        layer.drain().await;
        assert_eq!(effects.count(), 1);
        let retry = service.ready().await.unwrap().call(post("k", "b")).await;
        assert!(read(retry.unwrap()).await.is_replay());
    });
}

/// An outer timeout is a caller who leaves.
#[tokio::test(start_paused = true)]
async fn p4_s09_an_outer_timeout_does_not_cut_the_work_short() {
    let effects = Effects::default();
    let layer = layer(Scripted::new());
    let handler = {
        let effects = effects.clone();
        move |_: Handled| {
            let effects = effects.clone();
            async move {
                tokio::time::sleep(Duration::from_secs(60)).await;
                effects.add();
                answer(201, "done")
            }
        }
    };
    let service = layer.layer(service_fn(handler));
    let mut impatient = tower::timeout::Timeout::new(service.clone(), Duration::from_secs(1));
    let late = impatient.ready().await.unwrap().call(post("k", "b")).await;
    assert!(late.is_err());

    // It still runs, beyond its first lease too.
    tokio::time::sleep(Duration::from_secs(45)).await;
    let running = service.clone().oneshot(post("k", "b")).await.unwrap();
    assert_eq!(running.status(), StatusCode::CONFLICT);
    layer.drain().await;
    let retry = read(service.clone().oneshot(post("k", "b")).await.unwrap()).await;
    assert!(retry.is_replay());
    assert_eq!((retry.status.as_u16(), effects.count()), (201, 1));
}

/// U21: `drain` waits for attached work, for detached work, and for records that the store has not
/// taken yet; and for nothing else.
#[tokio::test(start_paused = true)]
async fn u21_p4_drain_waits_for_what_runs_on() {
    let store = Scripted::new();
    let layer = layer(store.clone()).record_timeout(Duration::from_secs(1));
    assert!(layer.drain().now_or_never().is_some(), "nothing runs");

    let handler = |_: Handled| async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        answer(201, "done")
    };
    let mut service = layer.layer(service_fn(handler));
    let mut attached = Box::pin(service.ready().await.unwrap().call(post("a", "b")));
    assert!(poll!(attached.as_mut()).is_pending());
    let mut drained = Box::pin(layer.drain());
    assert!(poll!(drained.as_mut()).is_pending(), "attached work");
    drop(attached);
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(poll!(drained.as_mut()).is_pending(), "detached work");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(poll!(drained.as_mut()), Poll::Ready(()));

    store.always(Op::Complete, Fault::Lost);
    let unrecorded = service.ready().await.unwrap().call(post("c", "b")).await;
    assert_eq!(unrecorded.unwrap().status(), StatusCode::CREATED);
    let mut drained = Box::pin(layer.drain());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(poll!(drained.as_mut()).is_pending(), "an open record");
    store.mend();
    drained.await;
    let retry = read(service.oneshot(post("c", "b")).await.unwrap()).await;
    assert!(retry.is_replay());
}

/// U21: a claim on its way is running work already: what it grants could run after the drain.
#[tokio::test(start_paused = true)]
async fn u21_drain_waits_for_a_claim_on_its_way() {
    let store = Scripted::new();
    store.next(Op::Claim, Fault::AnswerHeld);
    let layer = layer(store.clone());
    let mut service = layer.layer(service_fn(|_: Handled| async { answer(201, "done") }));
    let mut call = Box::pin(service.ready().await.unwrap().call(post("k", "b")));
    assert!(poll!(call.as_mut()).is_pending());
    let mut drained = Box::pin(layer.drain());
    assert!(poll!(drained.as_mut()).is_pending());
    store.open();
    assert_eq!(call.await.unwrap().status(), StatusCode::CREATED);
    assert_eq!(poll!(drained.as_mut()), Poll::Ready(()));
}

/// U21: a request that waits for an execution of another process runs nothing, and is not waited
/// for.
#[tokio::test(start_paused = true)]
async fn u21_drain_does_not_wait_for_waiters() {
    let (store, effects) = (Scripted::new(), Effects::default());
    let elsewhere = layer(store.clone()).layer(service_fn(for_a_second(&effects)));
    let running = tokio::spawn(elsewhere.oneshot(post("k", "b")));
    tokio::task::yield_now().await;
    let here = layer(store).on_conflict(OnConflict::Wait(Duration::from_secs(60)));
    let mut service = here.layer(service_fn(for_a_second(&effects)));
    let mut waiting = Box::pin(service.ready().await.unwrap().call(post("k", "b")));
    assert!(poll!(waiting.as_mut()).is_pending());
    assert!(here.drain().now_or_never().is_some());
    assert!(read(waiting.await.unwrap()).await.is_replay());
    assert!(!read(running.await.unwrap().unwrap()).await.is_replay());
}

/// Ends after a second.
fn for_a_second(
    effects: &Effects,
) -> impl Fn(Handled) -> futures::future::BoxFuture<'static, Given> + Clone + use<> {
    let effects = effects.clone();
    move |_| {
        let effects = effects.clone();
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            effects.add();
            answer(201, "done")
        })
    }
}

/// P3: detached work goes on recording in the place that it has, also where that was the last one.
#[tokio::test(start_paused = true)]
async fn p3_p4_detached_work_goes_on_recording_at_the_limit() {
    let (store, effects) = (Scripted::new(), Effects::default());
    let layer = layer(store.clone()).max_detached(1);
    let mut service = layer.layer(service_fn(for_a_second(&effects)));
    store.always(Op::Complete, Fault::Lost);
    let mut call = Box::pin(service.ready().await.unwrap().call(post("k", "b")));
    assert!(poll!(call.as_mut()).is_pending());
    drop(call);
    tokio::time::sleep(Duration::from_secs(60)).await;
    store.mend();
    layer.drain().await;
    let again = read(service.oneshot(post("k", "b")).await.unwrap()).await;
    assert_eq!((again.is_replay(), effects.count()), (true, 1));
}

/// P3, P9: where there is no place to record in the background, the answer waits for its record.
#[tokio::test(start_paused = true)]
async fn p3_p9_without_a_place_the_answer_waits_for_its_record() {
    let (store, effects) = (Scripted::new(), Effects::default());
    let layer = layer(store.clone()).max_detached(0);
    let service = layer.layer(service_fn(for_a_second(&effects)));
    store.always(Op::Complete, Fault::Lost);
    let call = tokio::spawn(service.clone().oneshot(post("k", "b")));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!call.is_finished());
    store.mend();
    let first = call.await.unwrap().unwrap();
    assert_eq!(first.extensions().get(), Some(&Outcome::Completed));
    let again = read(service.oneshot(post("k", "b")).await.unwrap()).await;
    assert_eq!((again.is_replay(), effects.count()), (true, 1));
}

/// P4: claims that are given back after an outage take no places from executions.
#[tokio::test(start_paused = true)]
async fn p4_p9_giving_back_takes_no_place_from_executions() {
    let (store, effects) = (Scripted::new(), Effects::default());
    let layer = layer(store.clone()).max_detached(1);
    let mut service = layer.layer(service_fn(for_a_second(&effects)));
    let mut call = Box::pin(service.ready().await.unwrap().call(post("k", "b")));
    assert!(poll!(call.as_mut()).is_pending());
    for key in ["a", "b", "c"] {
        store.next(Op::Claim, Fault::Lost);
        let refused = service.ready().await.unwrap().call(post(key, "b")).await;
        assert_eq!(refused.unwrap().status().as_u16(), 503);
    }
    drop(call);
    layer.drain().await;
    assert_eq!((effects.count(), store.count(Op::GiveBack)), (1, 3));
    let again = read(service.oneshot(post("k", "b")).await.unwrap()).await;
    assert!(again.is_replay());
}

/// P9: work beyond the limit is cut off, and its key is taken over after the lease.
#[tokio::test(start_paused = true)]
async fn p9_p5_detached_work_is_bounded() {
    let effects = Effects::default();
    let layer = layer(Scripted::new()).max_detached(1);
    let handler = {
        let effects = effects.clone();
        move |_: Handled| {
            let effects = effects.clone();
            async move {
                tokio::time::sleep(Duration::from_secs(5)).await;
                effects.add();
                answer(201, "done")
            }
        }
    };
    let mut service = layer.layer(service_fn(handler));
    for key in ["kept", "cut off"] {
        let mut call = Box::pin(service.ready().await.unwrap().call(post(key, "b")));
        assert!(poll!(call.as_mut()).is_pending());
    }
    layer.drain().await;
    assert_eq!(effects.count(), 1);
    let kept = read(service.clone().oneshot(post("kept", "b")).await.unwrap()).await;
    assert!(kept.is_replay());
    let cut = service.clone().oneshot(post("cut off", "b")).await.unwrap();
    assert_eq!(cut.status(), StatusCode::CONFLICT);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let cut = service.clone().oneshot(post("cut off", "b")).await.unwrap();
    assert_eq!((cut.status(), effects.count()), (StatusCode::CREATED, 2));
}

/// A request whose caller left while its claim was on its way does not go on to wait for another
/// execution, nor to run unprotected.
#[tokio::test(start_paused = true)]
async fn p4_a_caller_who_left_neither_waits_nor_runs_unprotected() {
    // The first one fails after a second, so whoever waited for it would run.
    let (store, effects) = (Scripted::new(), Effects::default());
    let waiting = layer(store.clone()).on_conflict(OnConflict::Wait(Duration::from_secs(60)));
    let handler = {
        let effects = effects.clone();
        move |_: Handled| {
            effects.add();
            async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                answer(500, "no")
            }
        }
    };
    let mut service = waiting.layer(service_fn(handler.clone()));
    let first = tokio::spawn(service.ready().await.unwrap().call(post("k", "b")));
    tokio::task::yield_now().await;
    store.next(Op::Claim, Fault::AnswerHeld);
    let mut second = Box::pin(service.ready().await.unwrap().call(post("k", "b")));
    assert!(poll!(second.as_mut()).is_pending());
    drop(second);
    store.open();
    waiting.drain().await;
    first.await.unwrap().unwrap();
    assert_eq!(effects.count(), 1);

    let open = layer(store.clone()).fail_open(true);
    let mut service = open.layer(service_fn(handler));
    store.next(Op::Claim, Fault::Hangs);
    let mut call = Box::pin(service.ready().await.unwrap().call(post("other", "b")));
    assert!(poll!(call.as_mut()).is_pending());
    drop(call);
    open.drain().await;
    assert_eq!(effects.count(), 1);
}

/// P4, P8: where the layer fails open and the caller has left, nothing runs, so a claim that was
/// granted unheard is given back.
#[tokio::test(start_paused = true)]
async fn p4_p8_failing_open_for_nobody_gives_the_claim_back() {
    let store = Scripted::new();
    let open = layer(store.clone()).fail_open(true);
    let mut service = open.layer(service_fn(|_: Handled| async { answer(201, "ran") }));
    store.next(Op::Claim, Fault::AnswerHangs);
    let mut call = Box::pin(service.ready().await.unwrap().call(post("k", "b")));
    assert!(poll!(call.as_mut()).is_pending());
    drop(call);
    open.drain().await;
    assert_eq!(store.store().len(), 0);
}
