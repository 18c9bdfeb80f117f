//! S03, U29, U30: waiting for a running duplicate.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    StreamExt,
    future::join_all,
    poll,
    stream::{self, BoxStream},
};
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::{sync::Semaphore, time::Instant};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimit, service_fn};
use tower_idempotency::{Execution, OnConflict, RequestBody, Store};

use crate::support::{Effects, Fault, Given, Handled, Op, Scripted, answer, layer, post, read};

const LIMIT: Duration = Duration::from_secs(60);

/// A handler that waits for a permit, counts, and gives what `give` gives for its number.
fn gated(
    gate: &Arc<Semaphore>,
    effects: &Effects,
    give: fn(usize) -> Given,
) -> impl Fn(Handled) -> futures::future::BoxFuture<'static, Given> + Clone + use<> {
    let (gate, effects) = (gate.clone(), effects.clone());
    move |_| {
        let (gate, effects) = (gate.clone(), effects.clone());
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            give(effects.add())
        })
    }
}

fn created(number: usize) -> Given {
    answer(201, format!("effect {number}"))
}

/// A thousand duplicates: one execution, one wait, and one claim each, whatever their number of
/// polls.
#[tokio::test(start_paused = true)]
async fn u30_s10_a_thousand_waiters_share_one_wait() {
    let (store, gate) = (Scripted::new(), Arc::new(Semaphore::new(0)));
    let effects = Effects::default();
    let layer = layer(store.clone()).on_conflict(OnConflict::Wait(LIMIT));
    let service = layer.layer(service_fn(gated(&gate, &effects, created)));
    let calls = (0..1_000).map(|_| tokio::spawn(service.clone().oneshot(post("k", "b"))));
    let calls: Vec<_> = calls.collect();
    tokio::time::sleep(Duration::from_secs(40)).await;
    gate.add_permits(1);

    let mut replays = 0;
    for call in calls {
        let answer = read(call.await.unwrap().unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (201, "effect 1"));
        replays += usize::from(answer.is_replay());
    }
    assert_eq!((effects.count(), replays), (1, 999));
    // One claim each, and one wait for all, looked after every five seconds.
    assert_eq!((store.count(Op::Claim), store.count(Op::Wait)), (1_000, 8));
    assert_eq!(store.count(Op::Get), 7);
}

#[tokio::test(start_paused = true)]
async fn s03_i07_a_wait_has_a_limit() {
    let (gate, effects) = (Arc::new(Semaphore::new(0)), Effects::default());
    let layer = layer(Scripted::new()).on_conflict(OnConflict::Wait(LIMIT));
    let service = layer.layer(service_fn(gated(&gate, &effects, created)));
    let first = tokio::spawn(service.clone().oneshot(post("k", "b")));
    tokio::task::yield_now().await;
    let start = Instant::now();
    let late = service.clone().oneshot(post("k", "b")).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), LIMIT.as_secs());
    assert_eq!(late.status(), StatusCode::CONFLICT);
    assert_eq!(late.headers()["retry-after"], "1");

    // U26: another payload does not wait.
    let start = Instant::now();
    let other = service.clone().oneshot(post("k", "other")).await.unwrap();
    assert_eq!(other.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(start.elapsed(), Duration::ZERO);
    gate.add_permits(1);
    assert_eq!(read(first.await.unwrap().unwrap()).await.text(), "effect 1");
}

/// U29: a waiter that gives up changes nothing, for the execution or for other waiters; also if it
/// was the one that polled the shared wait.
#[tokio::test(start_paused = true)]
async fn u29_a_waiter_that_gives_up_changes_nothing() {
    let (store, gate) = (Scripted::new(), Arc::new(Semaphore::new(0)));
    let effects = Effects::default();
    let layer = layer(store.clone()).on_conflict(OnConflict::Wait(LIMIT));
    let mut service = layer.layer(service_fn(gated(&gate, &effects, created)));
    let first = tokio::spawn(service.ready().await.unwrap().call(post("k", "b")));
    tokio::task::yield_now().await;
    let mut waiters = Vec::new();
    for _ in 0..3 {
        let mut waiter = Box::pin(service.ready().await.unwrap().call(post("k", "b")));
        assert!(poll!(waiter.as_mut()).is_pending());
        waiters.push(waiter);
    }
    let last = waiters.pop().unwrap();
    drop(waiters);
    let last = tokio::spawn(last);
    tokio::task::yield_now().await;
    gate.add_permits(1);
    assert_eq!(read(last.await.unwrap().unwrap()).await.text(), "effect 1");
    assert!(!read(first.await.unwrap().unwrap()).await.is_replay());
    let calls = store.calls();
    assert!(
        !calls.contains(&Op::Release) && !calls.contains(&Op::Fail),
        "{calls:?}"
    );
    assert_eq!(effects.count(), 1);
}

/// Where the execution that they wait for fails, waiters try for themselves, one after the other.
#[tokio::test(start_paused = true)]
async fn s30_waiters_of_a_failure_run_one_after_the_other() {
    let (gate, effects) = (Arc::new(Semaphore::new(0)), Effects::default());
    let layer = layer(Scripted::new()).on_conflict(OnConflict::Wait(LIMIT));
    let third_time = |number| match number {
        1 | 2 => answer(503, format!("failure {number}")),
        _ => created(number),
    };
    let service = layer.layer(service_fn(gated(&gate, &effects, third_time)));
    let calls = (0..5).map(|_| tokio::spawn(service.clone().oneshot(post("k", "b"))));
    let calls: Vec<_> = calls.collect();
    gate.add_permits(5);
    let answers = join_all(calls).await;
    let mut texts = Vec::new();
    for answer in answers {
        texts.push(read(answer.unwrap().unwrap()).await.text().to_owned());
    }
    texts.sort();
    let expected = ["effect 3", "effect 3", "effect 3", "failure 1", "failure 2"];
    assert_eq!(texts, expected);
    assert_eq!(effects.count(), 3);
}

/// A waiter whose execution goes silent takes over when the lease ends.
#[tokio::test(start_paused = true)]
async fn p5_a_waiter_takes_over() {
    let (gate, effects) = (Arc::new(Semaphore::new(0)), Effects::default());
    let layer = layer(Scripted::new()).on_conflict(OnConflict::Wait(LIMIT));
    let handler = gated(&gate, &effects, created);
    let mut crashing = layer
        .clone()
        .max_detached(0)
        .layer(service_fn(handler.clone()));
    let mut call = Box::pin(crashing.ready().await.unwrap().call(post("k", "b")));
    assert!(poll!(call.as_mut()).is_pending());
    drop(call);
    gate.add_permits(1);
    let start = Instant::now();
    let service = layer.layer(service_fn(handler));
    let taken = read(service.oneshot(post("k", "b")).await.unwrap()).await;
    assert_eq!((taken.text(), taken.is_replay()), ("effect 1", false));
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn p9_waiting_is_bounded() {
    let (gate, effects) = (Arc::new(Semaphore::new(0)), Effects::default());
    let layer = layer(Scripted::new())
        .on_conflict(OnConflict::Wait(LIMIT))
        .max_waiting(2);
    let mut service = layer.layer(service_fn(gated(&gate, &effects, created)));
    let mut calls = Vec::new();
    for _ in 0..3 {
        let mut call = Box::pin(service.ready().await.unwrap().call(post("k", "b")));
        assert!(poll!(call.as_mut()).is_pending());
        calls.push(call);
    }
    let more = service.ready().await.unwrap().call(post("k", "b")).await;
    assert_eq!(more.unwrap().status(), StatusCode::CONFLICT);
    // A place that was given up is free again.
    calls.pop();
    let mut call = Box::pin(service.ready().await.unwrap().call(post("k", "b")));
    assert!(poll!(call.as_mut()).is_pending());
    gate.add_permits(1);
    let first = calls.swap_remove(0).await.unwrap();
    assert!(!read(first).await.is_replay());
    assert_eq!(read(call.await.unwrap()).await.text(), "effect 1");
}

/// Waits that fail: one of all waiters reads the record, with pauses that grow, and none of them
/// claims again meanwhile. Also where the reading fails.
#[tokio::test(start_paused = true)]
async fn u30_waits_that_fail_do_not_storm() {
    for (waits, gets) in [
        (Fault::Lost, None),
        (Fault::Panics, None),
        (Fault::Lost, Some(Fault::Lost)),
        (Fault::Corrupt, Some(Fault::Panics)),
    ] {
        let (store, gate) = (Scripted::new(), Arc::new(Semaphore::new(0)));
        let effects = Effects::default();
        store.always(Op::Wait, waits);
        if let Some(gets) = gets {
            store.always(Op::Get, gets);
        }
        let layer = layer(store.clone()).on_conflict(OnConflict::Wait(LIMIT));
        let service = layer.layer(service_fn(gated(&gate, &effects, created)));
        let calls = (0..200).map(|_| tokio::spawn(service.clone().oneshot(post("k", "b"))));
        let calls: Vec<_> = calls.collect();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(store.count(Op::Claim), 200);
        // 25 ms at first, then twice that, and 1 s at most; each time at least half of it.
        for op in [Op::Wait, Op::Get] {
            let asked = store.count(op);
            assert!((10..=30).contains(&asked), "{op:?}: {asked} in 10 s");
        }
        gate.add_permits(1);
        store.mend();
        for call in calls {
            assert_eq!(read(call.await.unwrap().unwrap()).await.text(), "effect 1");
        }
        assert_eq!((effects.count(), store.count(Op::Claim)), (1, 200));
    }
}

/// A shared wait that hangs, because a message was lost or a connection is dead, does not hide the
/// answer: the record is read every five seconds all the same.
#[tokio::test(start_paused = true)]
async fn u30_s03_a_wait_that_hangs_does_not_hide_the_answer() {
    for fault in [Fault::Hangs, Fault::AnswerHangs] {
        let (store, gate) = (Scripted::new(), Arc::new(Semaphore::new(0)));
        let effects = Effects::default();
        let layer = layer(store.clone()).on_conflict(OnConflict::Wait(LIMIT));
        let service = layer.layer(service_fn(gated(&gate, &effects, created)));
        store.always(Op::Wait, fault);
        let calls = (0..3).map(|_| tokio::spawn(service.clone().oneshot(post("k", "b"))));
        let calls: Vec<_> = calls.collect();
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!((store.count(Op::Wait), store.count(Op::Get)), (3, 2));
        let start = Instant::now();
        gate.add_permits(1);
        for call in calls {
            assert_eq!(read(call.await.unwrap().unwrap()).await.text(), "effect 1");
        }
        let after = start.elapsed();
        assert!(after <= Duration::from_secs(5), "{fault:?}: {after:?}");
        assert_eq!((effects.count(), store.count(Op::Claim)), (1, 3));
    }
}

/// Waiters behind a handler that fails each time run one after the other, and cost the store a few
/// calls each, not one for each of the others.
#[tokio::test(start_paused = true)]
async fn s30_u30_waiters_of_a_failing_handler_do_not_storm() {
    const WAITERS: usize = 500;
    let (store, effects, at_once) = (Scripted::new(), Effects::default(), Effects::default());
    let handler = {
        let (effects, running) = (effects.clone(), Arc::new(Semaphore::new(1)));
        let at_once = at_once.clone();
        move |_: Handled| {
            let (effects, at_once) = (effects.clone(), at_once.clone());
            let running = running.clone();
            async move {
                let alone = running.try_acquire();
                if alone.is_err() {
                    at_once.add();
                }
                effects.add();
                tokio::time::sleep(Duration::from_millis(10)).await;
                answer(503, "no")
            }
        }
    };
    let layer = layer(store.clone()).on_conflict(OnConflict::Wait(LIMIT));
    let service = layer.layer(service_fn(handler));
    let calls = (0..WAITERS).map(|_| tokio::spawn(service.clone().oneshot(post("k", "b"))));
    for answer in join_all(calls).await {
        assert_eq!(answer.unwrap().unwrap().status().as_u16(), 503);
    }
    assert_eq!((effects.count(), at_once.count()), (WAITERS, 0));
    for op in [Op::Claim, Op::Wait, Op::Get] {
        let calls = store.count(op);
        assert!(calls <= 3 * WAITERS, "{op:?}: {calls} calls");
    }
}

/// Readiness: a waiting duplicate does not hold the place in a limited inner service that the
/// execution it waits for needs; and the service is called only when it was ready (U20).
#[tokio::test(start_paused = true)]
async fn u20_waiting_holds_no_place_in_the_inner_service() {
    let (gate, effects) = (Arc::new(Semaphore::new(0)), Effects::default());
    let layer = layer(Scripted::new()).on_conflict(OnConflict::Wait(LIMIT));
    let first_time = |number| match number {
        1 => answer(503, "failure"),
        _ => created(number),
    };
    let entered = Effects::default();
    let handler = {
        let (gated, entered) = (gated(&gate, &effects, first_time), entered.clone());
        move |request| {
            entered.add();
            gated(request)
        }
    };
    let service = layer.layer(ConcurrencyLimit::new(service_fn(handler), 2));
    let calls = (0..4).map(|_| tokio::spawn(service.clone().oneshot(post("k", "b"))));
    let calls: Vec<_> = calls.collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(entered.count(), 1);
    // One place is held by the execution, and the other one is free though three wait.
    let other = tokio::spawn(service.clone().oneshot(post("other", "b")));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((entered.count(), effects.count()), (2, 0));
    gate.add_permits(3);
    assert_eq!(other.await.unwrap().unwrap().status(), StatusCode::CREATED);
    let mut failures = 0;
    for call in calls {
        failures += usize::from(call.await.unwrap().unwrap().status().is_server_error());
    }
    assert_eq!((failures, effects.count()), (1, 3));
}

/// Readiness: nor does a request whose body is still on its way.
#[tokio::test(start_paused = true)]
async fn u20_p9_a_slow_upload_holds_no_place_in_the_inner_service() {
    type Upload = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;
    let upload = |key: &str, sent: &Arc<Semaphore>| {
        let sent = sent.clone();
        let frame = async move {
            sent.acquire().await.unwrap().forget();
            Ok(Frame::data(Bytes::from("b")))
        };
        Request::post("/pay")
            .header("idempotency-key", key)
            .body(Upload::new(stream::once(frame).boxed()))
            .unwrap()
    };
    let handler = |_: Request<RequestBody<Upload>>| async { answer(201, "done") };
    let layer = layer(Scripted::new());
    let service = layer.layer(ConcurrencyLimit::new(service_fn(handler), 1));
    let (later, now) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(1)));
    let slow = tokio::spawn(service.clone().oneshot(upload("slow", &later)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let quick = tokio::spawn(service.oneshot(upload("quick", &now)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(quick.is_finished() && !slow.is_finished());
    later.add_permits(1);
    for call in [slow, quick] {
        assert_eq!(call.await.unwrap().unwrap().status(), StatusCode::CREATED);
    }
}

/// A waiter in line for its turn does not overlook what another server recorded meanwhile.
#[tokio::test(start_paused = true)]
async fn u30_p2_a_waiter_in_line_finds_what_another_server_recorded() {
    let store = Scripted::new();
    let here = layer(store.clone()).on_conflict(OnConflict::Wait(Duration::from_secs(600)));
    // The first one fails; the second one, after it, takes long.
    let (effects, key) = (Effects::default(), Arc::new(Mutex::new(None)));
    let handler = {
        let (effects, key) = (effects.clone(), key.clone());
        move |request: Handled| {
            let execution = request.extensions().get::<Execution>().unwrap();
            *key.lock().unwrap() = Some(execution.store_key().clone());
            let number = effects.add();
            async move {
                let (time, status) = if number == 1 { (1, 503) } else { (300, 201) };
                tokio::time::sleep(Duration::from_secs(time)).await;
                answer(status, "here")
            }
        }
    };
    let service = here.layer(service_fn(handler));
    let calls = (0..3).map(|_| tokio::spawn(service.clone().oneshot(post("k", "b"))));
    let mut calls: Vec<_> = calls.collect();
    tokio::time::sleep(Duration::from_secs(2)).await;

    // Another server, which shares nothing but the store, has the key by an operator's hand.
    let key = key.lock().unwrap().clone().unwrap();
    assert!(store.forget(&key).await.unwrap());
    let there = layer(store.clone()).layer(service_fn(|_: Handled| async { answer(201, "there") }));
    let start = Instant::now();
    let taken = read(there.oneshot(post("k", "b")).await.unwrap()).await;
    assert_eq!((taken.text(), effects.count()), ("there", 2));
    let last = read(calls.pop().unwrap().await.unwrap().unwrap()).await;
    assert_eq!((last.text(), last.is_replay()), ("there", true));
    assert!(
        start.elapsed() <= Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

/// P4, P9, U29: a request that waits for an execution which fails, and then takes its turn, is
/// dropped after each number of polls. Its place in line, its turn and its claim are free at once
/// for the next one, and the work is done once.
#[tokio::test(start_paused = true)]
async fn p4_p9_u29_a_waiter_is_dropped_at_each_of_its_await_points() {
    let (mut left, mut runs_on, mut polls) = (0, 0, 0);
    loop {
        let (store, gate) = (Scripted::yielding(), Arc::new(Semaphore::new(0)));
        let (failing, effects) = (Effects::default(), Effects::default());
        let fails = gated(&gate, &failing, |_| answer(503, "no"));
        let there = layer(store.clone()).layer(service_fn(fails));
        let running = tokio::spawn(there.oneshot(post("k", "b")));
        tokio::time::sleep(Duration::from_millis(1)).await;

        let here = layer(store.clone())
            .on_conflict(OnConflict::Wait(LIMIT))
            .max_waiting(1);
        let open = Arc::new(Semaphore::new(1_000));
        let service = here.layer(service_fn(gated(&open, &effects, created)));
        let mut waiter = Box::pin(service.clone().oneshot(post("k", "b")));
        let mut ended = false;
        for poll in 0..polls {
            if poll == 10 {
                gate.add_permits(1);
            }
            if ended {
                break;
            }
            ended = poll!(waiter.as_mut()).is_ready();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        drop(waiter);
        gate.add_permits(1);
        assert_eq!(running.await.unwrap().unwrap().status().as_u16(), 503);

        let start = Instant::now();
        let next = read(service.clone().oneshot(post("k", "b")).await.unwrap()).await;
        assert_eq!(next.text(), "effect 1", "after {polls} polls");
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "after {polls} polls"
        );
        here.drain().await;
        assert_eq!(effects.count(), 1, "after {polls} polls");
        if ended {
            break;
        }
        match next.is_replay() {
            true => runs_on += 1,
            false => left += 1,
        }
        polls += 1;
    }
    assert!(left > 10 && runs_on > 1, "{left} left, {runs_on} ran on");
}
