//! S26, U32: what is tried again, when, and how often.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI32, AtomicU32, Ordering::SeqCst},
    },
    task::Poll,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{FutureExt, poll};
use http::{HeaderName, Method, Request, Response, header::RETRY_AFTER};
use http_body_util::Full;
use tokio::{sync::Semaphore, time::Instant};
use tower::{
    BoxError, Layer, Service, ServiceExt,
    retry::{
        Policy,
        budget::{Budget, TpsBudget},
    },
    service_fn,
};
use tower_idempotency::{
    IdempotencyLayer, MemoryStore, Scope,
    client::{RetryLayer, RetryPolicy},
};

use crate::support::{SECOND, Script, Step, post, request, text};

const NONE: &[(&str, &str)] = &[];
const SOON: &[(&str, &str)] = &[("retry-after", "1")];
const GRPC: (&str, &str) = ("content-type", "application/grpc+proto");

/// Both ways to use the policy, with as many retries as it wants.
async fn both_ways(step: &Step, request: impl Fn() -> Request<Full<Bytes>>) -> usize {
    both_ways_with(RetryPolicy::new, step, request).await
}

async fn both_ways_with(
    policy: impl Fn() -> RetryPolicy,
    step: &Step,
    request: impl Fn() -> Request<Full<Bytes>>,
) -> usize {
    let script = Script::new([step.clone(), step.clone()]);
    let service = RetryLayer::new(policy()).layer(script.clone());
    let _ = service.oneshot(request()).await;
    let by_policy = Script::new([step.clone(), step.clone()]);
    let service = tower::retry::RetryLayer::new(policy()).layer(by_policy.clone());
    let _ = service.oneshot(request()).await;
    assert_eq!(script.tries(), by_policy.tries(), "{step:?}");
    script.tries()
}

/// Each status, with a key. 1: the answer stands. 3: two failures, then success.
#[tokio::test(start_paused = true)]
async fn s26_u32_each_status_is_tried_again_or_stands() {
    for status in 200..600_u16 {
        let tries = match status {
            429 | 502 | 503 | 504 => 3,
            _ => 1,
        };
        let step = Step::Answer(status, NONE);
        assert_eq!(both_ways(&step, post).await, tries, "{status}");
        let tries = match status {
            409 | 429 | 502 | 503 | 504 => 3,
            _ => 1,
        };
        let step = Step::Answer(status, SOON);
        assert_eq!(both_ways(&step, post).await, tries, "{status}");
    }
    assert_eq!(both_ways(&Step::Lost, post).await, 3);
}

/// An answer that stands is given as it came.
#[tokio::test(start_paused = true)]
async fn u32_a_refusal_reaches_the_caller_whole() {
    let script = Script::new([Step::Answer(422, &[("x-a", "1"), ("x-a", "2")])]);
    let service = RetryLayer::default().layer(script.clone());
    let response = service.oneshot(post()).await.unwrap();
    assert_eq!(response.status(), 422);
    assert_eq!(response.headers().get_all("x-a").iter().count(), 2);
    assert_eq!(text(response).await, "answer 422");
}

/// All that a server gets of an operation is the same at each try, its key first of all.
#[tokio::test(start_paused = true)]
async fn s26_one_operation_is_one_request_each_time() {
    let script = Script::new([Step::Lost, Step::Answer(503, NONE), Step::Answer(409, SOON)]);
    let service = RetryLayer::default().layer(script.clone());
    let response = service.oneshot(post()).await.unwrap();
    assert_eq!(text(response).await, "answer 200");
    let seen = script.seen();
    assert_eq!(seen.len(), 4);
    assert_eq!(seen[0].headers["idempotency-key"], "order-1");
    assert_eq!(seen[0].uri, "https://bank.example/payments?fast=1");
    for again in &seen {
        let mut again = again.clone();
        again.at = seen[0].at;
        assert_eq!(again, seen[0]);
    }
}

/// RFC 9110, 9.2.2: what is not idempotent needs a key.
#[tokio::test(start_paused = true)]
async fn s26_without_a_key_only_idempotent_methods_are_tried_again() {
    let steps = [Step::Lost, Step::Answer(503, SOON), Step::Answer(409, SOON)];
    for (method, tries) in [
        ("GET", 3),
        ("HEAD", 3),
        ("OPTIONS", 3),
        ("TRACE", 3),
        ("PUT", 3),
        ("DELETE", 3),
        ("POST", 1),
        ("PATCH", 1),
        ("CONNECT", 1),
        ("PURGE", 1),
    ] {
        let method: Method = method.parse().unwrap();
        for step in &steps {
            let tried = both_ways(step, || request(method.clone(), None)).await;
            assert_eq!(tried, tries, "{method} {step:?}");
            let with_key = both_ways(step, || request(method.clone(), Some("k"))).await;
            assert_eq!(with_key, 3, "{method} {step:?}");
        }
    }
}

/// P8, S26: what no server takes for a key protects nothing.
#[tokio::test(start_paused = true)]
async fn s26_a_header_without_a_key_is_none() {
    for value in ["", " ", "\"\"", "\"k", "k, l"] {
        let keyless = || request(Method::POST, Some(value));
        assert_eq!(both_ways(&Step::Lost, keyless).await, 1, "{value:?}");
    }
    let twice = || {
        let mut request = post();
        let other = "order-2".parse().unwrap();
        request.headers_mut().append("idempotency-key", other);
        request
    };
    assert_eq!(both_ways(&Step::Lost, twice).await, 1);
    for value in ["k", "\"k\"", "\"k, l\"; v=1"] {
        let keyed = || request(Method::POST, Some(value));
        assert_eq!(both_ways(&Step::Lost, keyed).await, 3, "{value:?}");
    }
}

/// The key's header is the one that is told.
#[tokio::test(start_paused = true)]
async fn s26_a_key_may_stand_in_another_header() {
    let name = HeaderName::from_static("x-request-id");
    let policy = || RetryPolicy::new().key_header(name.clone());
    assert_eq!(both_ways_with(policy, &Step::Lost, post).await, 1);
    let with_id = || {
        let mut request = request(Method::POST, None);
        request.headers_mut().insert(&name, "k".parse().unwrap());
        request
    };
    assert_eq!(both_ways_with(policy, &Step::Lost, with_id).await, 3);
}

/// What is opted into: other 5xx, where they can mean that another try helps.
#[tokio::test(start_paused = true)]
async fn server_errors_are_tried_again_where_asked_for() {
    let policy = || RetryPolicy::new().server_errors(true);
    for (status, tries) in [(500, 3), (501, 1), (505, 1), (507, 3), (400, 1), (422, 1)] {
        let step = Step::Answer(status, NONE);
        assert_eq!(both_ways_with(policy, &step, post).await, tries, "{status}");
    }
    for (grpc, tries) in [("2", 3), ("13", 3), ("3", 1), ("9", 1)] {
        let headers = vec![GRPC, ("grpc-status", grpc)].leak();
        let step = Step::Answer(200, headers);
        assert_eq!(both_ways_with(policy, &step, post).await, tries, "{grpc}");
    }
}

/// gRPC: the status is in a header of an answer that is a 200 by HTTP.
#[tokio::test(start_paused = true)]
async fn grpc_statuses_are_tried_again_or_stand() {
    for code in 0..=17_u8 {
        let code: &'static str = code.to_string().leak();
        for (after, again) in [
            (None, &["14"][..]),
            (Some("1"), &["8", "10", "14"][..]),
            (Some("3600"), &[][..]),
        ] {
            let mut headers = vec![GRPC, ("grpc-status", code)];
            headers.extend(after.map(|after| ("retry-after", after)));
            let step = Step::Answer(200, headers.leak());
            let tries = if again.contains(&code) { 3 } else { 1 };
            assert_eq!(both_ways(&step, post).await, tries, "{code} {after:?}");
            // A call without a key is never made twice.
            let without = both_ways(&step, || request(Method::POST, None)).await;
            assert_eq!(without, 1, "{code}");
        }
    }
    // A proxy's answer is no gRPC answer, and another type that begins alike is none either.
    let proxy = Step::Answer(503, &[GRPC]);
    assert_eq!(both_ways(&proxy, post).await, 3);
    let web = &[
        ("content-type", "application/grpc-web"),
        ("grpc-status", "14"),
    ];
    assert_eq!(both_ways(&Step::Answer(200, web), post).await, 1);
}

/// Errors can be told apart. One that is not to be tried again is given as it is.
#[tokio::test(start_paused = true)]
async fn errors_can_be_told_apart() {
    let policy = RetryPolicy::<BoxError>::new()
        .retry_errors(|error: &BoxError| error.to_string().contains("timed out"));
    let script = Script::always(Step::Lost);
    let service = RetryLayer::new(policy).layer(script.clone());
    let error = service.oneshot(post()).await.unwrap_err();
    assert_eq!(error.to_string(), "the connection was lost");
    assert_eq!(script.tries(), 1);
}

/// Each wait is between its length and half as much more, twice the one before, up to the longest.
#[tokio::test(start_paused = true)]
async fn waits_grow_and_are_jittered() {
    let mut first = Vec::new();
    for _ in 0..50 {
        let script = Script::always(Step::Lost);
        let policy = RetryPolicy::new().tries(12).time(1000 * SECOND);
        let service = RetryLayer::new(policy).layer(script.clone());
        service.oneshot(post()).await.unwrap_err();
        let pauses = script.pauses();
        assert_eq!(pauses.len(), 11);
        for (n, pause) in pauses.iter().enumerate() {
            let least = Duration::from_millis(100 << n).min(10 * SECOND);
            // The timer counts in milliseconds.
            let most = least + least / 2 + Duration::from_millis(2);
            assert!((least..=most).contains(pause), "{n}: {pause:?}");
        }
        first.push(pauses[0]);
    }
    first.sort();
    assert!(
        first[49] - first[0] > Duration::from_millis(25),
        "{first:?}"
    );
}

/// `Retry-After` is the least wait; what is not readable says nothing.
#[tokio::test(start_paused = true)]
async fn retry_after_is_the_least_wait() {
    const DATE: (&str, &str) = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
    let after: fn(&'static str) -> _ = |value| vec![("retry-after", value)].leak() as &[_];
    for (headers, least) in [
        (after("3"), 3 * SECOND),
        (after("10"), 10 * SECOND),
        (after("0"), Duration::from_millis(100)),
        (after("-3"), Duration::from_millis(100)),
        (after("3.5"), Duration::from_millis(100)),
        (after(""), Duration::from_millis(100)),
        (after("soon"), Duration::from_millis(100)),
        (after("\u{ff}"), Duration::from_millis(100)),
        // Past, by the server's clock and by ours.
        (
            after("Sun, 06 Nov 1994 08:49:37 GMT"),
            Duration::from_millis(100),
        ),
        (
            &[("retry-after", "Sun, 06 Nov 1994 08:49:30 GMT"), DATE],
            Duration::from_millis(100),
        ),
        // The server's clock stands in 1994, and 7 seconds are 7 seconds.
        (
            &[("retry-after", "Sun, 06 Nov 1994 08:49:44 GMT"), DATE],
            7 * SECOND,
        ),
        // The two older forms of a date.
        (
            &[("retry-after", "Sunday, 06-Nov-94 08:49:42 GMT"), DATE],
            5 * SECOND,
        ),
        (
            &[("retry-after", "Sun Nov  6 08:49:41 1994"), DATE],
            4 * SECOND,
        ),
    ] {
        let script = Script::new([Step::Answer(503, headers)]);
        let service = RetryLayer::default().layer(script.clone());
        assert_eq!(service.oneshot(post()).await.unwrap().status(), 200);
        let pause = script.pauses()[0];
        let most = least + least / 2 + Duration::from_millis(2);
        assert!((least..=most).contains(&pause), "{headers:?}: {pause:?}");
    }
}

/// A date without the server's own is compared with our clock.
#[tokio::test(start_paused = true)]
async fn a_retry_after_date_is_compared_with_our_clock() {
    let soon = httpdate::fmt_http_date(SystemTime::now() + 8 * SECOND);
    let headers = vec![("retry-after", &*soon.leak())].leak();
    let script = Script::new([Step::Answer(429, headers)]);
    let service = RetryLayer::default().layer(script.clone());
    assert_eq!(service.oneshot(post()).await.unwrap().status(), 200);
    // The real clock goes on meanwhile, and a date has no fractions.
    let pause = script.pauses()[0];
    assert!(pause > 3 * SECOND && pause < 13 * SECOND, "{pause:?}");
}

/// Who asks for more than the longest wait is not asked again, and the caller is told.
#[tokio::test(start_paused = true)]
async fn a_long_retry_after_is_given_to_the_caller() {
    for (status, after) in [
        (429, "11"),
        (503, "86400"),
        (409, "18446744073709551616"),
        (503, "Fri, 31 Dec 9999 23:59:59 GMT"),
    ] {
        let headers = vec![("retry-after", after)].leak();
        let script = Script::always(Step::Answer(status, headers));
        let service = RetryLayer::default().layer(script.clone());
        let response = service.oneshot(post()).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()[RETRY_AFTER], after);
        assert_eq!(script.tries(), 1, "{after}");
    }
    // The same is waited for where it is no more than that.
    let script = Script::new([Step::Answer(429, &[("retry-after", "3600")])]);
    let policy = RetryPolicy::new()
        .delays(SECOND, 3600 * SECOND)
        .time(2 * 3600 * SECOND);
    let service = RetryLayer::new(policy).layer(script.clone());
    assert_eq!(service.oneshot(post()).await.unwrap().status(), 200);
    // No length is too long to be set.
    let policy = RetryPolicy::new()
        .delays(Duration::MAX, Duration::MAX)
        .time(Duration::MAX);
    let service = RetryLayer::new(policy).layer(Script::new([Step::Lost]));
    assert_eq!(service.oneshot(post()).await.unwrap().status(), 200);
}

/// Tries that fail are counted, and the last answer or error is the caller's.
#[tokio::test(start_paused = true)]
async fn tries_are_limited() {
    for (tries, expected) in [(0, 1), (1, 1), (2, 2), (4, 4), (7, 7)] {
        let policy = || RetryPolicy::new().tries(tries);
        let script = Script::always(Step::Lost);
        let service = RetryLayer::new(policy()).layer(script.clone());
        let error = service.oneshot(post()).await.unwrap_err();
        assert_eq!(error.to_string(), "the connection was lost");
        assert_eq!(script.tries(), expected);
        let script = Script::always(Step::Answer(502, NONE));
        let service = RetryLayer::new(policy()).layer(script.clone());
        let response = service.oneshot(post()).await.unwrap();
        assert_eq!(text(response).await, "answer 502");
        assert_eq!(script.tries(), expected);
    }
}

/// Waiting for another try of the operation is no failure, and ends with the time.
#[tokio::test(start_paused = true)]
async fn waiting_for_a_running_operation_is_no_failure() {
    let running = Step::Answer(409, SOON);
    let steps = std::iter::repeat_n(running.clone(), 7).chain([Step::Lost; 1]);
    let script = Script::new(steps);
    let service = RetryLayer::new(RetryPolicy::new().tries(2)).layer(script.clone());
    assert_eq!(service.oneshot(post()).await.unwrap().status(), 200);
    assert_eq!(script.tries(), 9);

    let script = Script::always(running);
    let service = RetryLayer::default().layer(script.clone());
    let start = Instant::now();
    let response = service.oneshot(post()).await.unwrap();
    assert_eq!(response.status(), 409);
    let last = script.seen().last().unwrap().at - start;
    assert!(last > 40 * SECOND && last <= 60 * SECOND, "{last:?}");
}

/// No try begins after the time, and no wait for it either.
#[tokio::test(start_paused = true)]
async fn the_time_is_limited() {
    let policy = RetryPolicy::new().tries(100).time(2 * SECOND);
    let script = Script::always(Step::Answer(503, SOON));
    let service = RetryLayer::new(policy).layer(script.clone());
    let start = Instant::now();
    assert_eq!(service.oneshot(post()).await.unwrap().status(), 503);
    assert_eq!(script.tries(), 2);
    assert!(start.elapsed() < 2 * SECOND);
}

/// The time counts from each operation's own beginning, not from the first one of the service.
#[tokio::test(start_paused = true)]
async fn each_operation_has_its_own_time_and_tries() {
    let script = Script::always(Step::Lost);
    let policy = RetryPolicy::new().time(5 * SECOND);
    let mut service = RetryLayer::new(policy).layer(script.clone());
    let operation = async |service: &mut tower_idempotency::client::Retry<Script>| {
        let ready = ServiceExt::<Request<Full<Bytes>>>::ready(service)
            .await
            .unwrap();
        ready.call(post()).await.unwrap_err();
    };
    operation(&mut service).await;
    tokio::time::sleep(100 * SECOND).await;
    operation(&mut service).await;
    assert_eq!(script.tries(), 8);
    // At the same time, on clones.
    let mut operations: Vec<_> = (0..5).map(|_| service.clone()).collect();
    futures::future::join_all(operations.iter_mut().map(|s| s.call(post()))).await;
    assert_eq!(script.tries(), 28);
}

/// P9: the budget is all clones' together, so that an outage is no storm.
#[tokio::test(start_paused = true)]
async fn p9_an_outage_is_no_storm() {
    let script = Script::always(Step::Lost);
    // Two a second for ten seconds, and nothing else.
    let budget = Arc::new(TpsBudget::new(10 * SECOND, 2, 0.0));
    let layer = RetryLayer::new(RetryPolicy::new().budget(budget));
    let services: Vec<_> = (0..10).map(|_| layer.layer(script.clone())).collect();
    let operations = (0..100).map(|n| services[n % 10].clone().oneshot(post()));
    for result in futures::future::join_all(operations).await {
        assert_eq!(result.unwrap_err().to_string(), "the connection was lost");
    }
    assert_eq!(script.tries(), 120);
}

/// What a budget is asked and told.
#[derive(Default)]
struct Counting {
    balance: AtomicI32,
    deposits: AtomicU32,
}

impl Budget for Counting {
    fn deposit(&self) {
        self.deposits.fetch_add(1, SeqCst);
    }

    fn withdraw(&self) -> bool {
        self.balance.fetch_sub(1, SeqCst) > 0
    }
}

/// Answers that stand are paid in, further tries are paid for, waiting costs nothing, and nothing is
/// paid for a try that is not made.
#[tokio::test(start_paused = true)]
async fn the_budget_counts_what_failed() {
    let budget = Arc::new(Counting::default());
    budget.balance.store(5, SeqCst);
    let policy = RetryPolicy::new().budget(Arc::clone(&budget));
    let run = async |script: Script| {
        let service = RetryLayer::new(policy.clone()).layer(script.clone());
        let _ = service.oneshot(post()).await;
        let left = budget.balance.load(SeqCst);
        (script.tries(), left, budget.deposits.load(SeqCst))
    };
    let running = Step::Answer(409, SOON);
    assert_eq!(run(Script::new([])).await, (1, 5, 1));
    assert_eq!(
        run(Script::new([running.clone(), running])).await,
        (3, 5, 2)
    );
    assert_eq!(run(Script::new([Step::Lost])).await, (2, 4, 3));
    assert_eq!(run(Script::always(Step::Lost)).await, (4, 1, 3));
    let long = Step::Answer(503, &[("retry-after", "11")]);
    assert_eq!(run(Script::always(long)).await, (1, 1, 3));
    assert_eq!(run(Script::new([Step::Answer(422, NONE)])).await, (1, 1, 4));
    assert_eq!(run(Script::always(Step::Lost)).await, (2, -1, 4));
}

/// A caller who leaves while it waits ends the operation there.
#[tokio::test(start_paused = true)]
async fn leaving_in_mid_wait_sends_nothing_more() {
    let script = Script::always(Step::Lost);
    let mut operation = Box::pin(RetryLayer::default().layer(script.clone()).oneshot(post()));
    assert!(poll!(&mut operation).is_pending());
    assert_eq!(script.tries(), 1);
    drop(operation);
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(script.tries(), 1);
}

/// A caller who leaves in mid-try leaves the service inside.
#[tokio::test(start_paused = true)]
async fn leaving_in_mid_try_ends_the_try() {
    let alive = Arc::new(());
    let held = Arc::clone(&alive);
    let never = service_fn(move |_| {
        let held = Arc::clone(&held);
        async move {
            let () = std::future::pending().await;
            drop(held);
            Ok::<Response<Full<Bytes>>, BoxError>(Response::default())
        }
    });
    let mut operation = Box::pin(RetryLayer::default().layer(never).oneshot(post()));
    assert!(poll!(&mut operation).is_pending());
    assert_eq!(Arc::strong_count(&alive), 3);
    drop(operation);
    assert_eq!(Arc::strong_count(&alive), 1);
}

/// Tries are made of the service that was asked for its readiness.
#[tokio::test(start_paused = true)]
async fn u20_each_try_waits_for_readiness() {
    #[derive(Clone)]
    struct Careful {
        ready: bool,
        script: Script,
        asked: Arc<AtomicU32>,
    }
    impl<B> Service<Request<B>> for Careful
    where
        Script: Service<Request<B>>,
    {
        type Response = <Script as Service<Request<B>>>::Response;
        type Error = <Script as Service<Request<B>>>::Error;
        type Future = <Script as Service<Request<B>>>::Future;

        fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), Self::Error>> {
            // Each time once not, then ready.
            self.ready = self.asked.fetch_add(1, SeqCst) % 2 == 1;
            cx.waker().wake_by_ref();
            match self.ready {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            }
        }

        fn call(&mut self, request: Request<B>) -> Self::Future {
            assert!(
                std::mem::take(&mut self.ready),
                "called before it was ready"
            );
            self.script.call(request)
        }
    }
    let script = Script::new([Step::Lost, Step::Lost]);
    let service = RetryLayer::default().layer(Careful {
        ready: false,
        script: script.clone(),
        asked: Arc::default(),
    });
    assert_eq!(service.oneshot(post()).await.unwrap().status(), 200);
    assert_eq!(script.tries(), 3);
}

/// S09, P2: the client gave up on the first try, the server did the work; the next try is told to
/// wait, and then gets the first one's answer.
#[tokio::test(start_paused = true)]
async fn s09_a_try_that_finds_its_operation_running_waits_for_the_answer() {
    let gate = Arc::new(Semaphore::new(0));
    let runs = Arc::new(AtomicU32::new(0));
    let statuses = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let (gate, runs) = (Arc::clone(&gate), Arc::clone(&runs));
        service_fn(move |_| {
            let (gate, runs) = (Arc::clone(&gate), Arc::clone(&runs));
            async move {
                let run = runs.fetch_add(1, SeqCst) + 1;
                gate.acquire().await.unwrap().forget();
                Ok::<_, BoxError>(Response::new(Full::<Bytes>::from(format!("payment {run}"))))
            }
            .boxed()
        })
    };
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_tenant());
    let server = layer.layer(handler);
    let network = {
        let statuses = Arc::clone(&statuses);
        service_fn(move |request| {
            let answer = server.clone().oneshot(request).boxed();
            let statuses = Arc::clone(&statuses);
            async move {
                let response = answer.await?;
                statuses.lock().unwrap().push(response.status().as_u16());
                Ok::<_, BoxError>(response)
            }
        })
    };
    let client = RetryLayer::default().try_timeout(2 * SECOND).layer(network);
    let mut operation = Box::pin(client.oneshot(post()));
    // One time-out and some conflicts later.
    let early = tokio::time::timeout(12 * SECOND, &mut operation).await;
    assert!(early.is_err(), "the work is not done");
    gate.add_permits(1);
    let response = operation.await.unwrap();
    assert_eq!(response.headers()["idempotent-replayed"], "true");
    assert_eq!(text(response).await, "payment 1");
    assert_eq!(runs.load(SeqCst), 1);
    let statuses = statuses.lock().unwrap();
    let (last, conflicts) = statuses.split_last().unwrap();
    assert_eq!(*last, 200);
    assert!(conflicts.len() > 2 && conflicts.iter().all(|status| *status == 409));
}

/// A failure of the handler is tried again where that is asked for, and runs again.
#[tokio::test(start_paused = true)]
async fn u04_a_failed_attempt_is_followed_by_the_next() {
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let handler = service_fn(move |_| {
        let run = counted.fetch_add(1, SeqCst);
        let response = Response::builder().status(if run < 2 { 500 } else { 201 });
        async move { response.body(Full::<Bytes>::default()) }
    });
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_tenant());
    let policy = RetryPolicy::new().server_errors(true);
    let client = RetryLayer::new(policy).layer(layer.layer(handler));
    assert_eq!(client.oneshot(post()).await.unwrap().status(), 201);
    assert_eq!(runs.load(SeqCst), 3);
}

/// The policy by itself, over a service with an error of its own type.
#[tokio::test(start_paused = true)]
async fn the_policy_goes_into_towers_own_retries() {
    #[derive(Debug, PartialEq)]
    struct Failure(u32);
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let service = service_fn(move |_: Request<String>| {
        let call = counted.fetch_add(1, SeqCst);
        async move { Err::<Response<()>, _>(Failure(call)) }
    });
    let policy = RetryPolicy::new().retry_errors(|error: &Failure| error.0 < 2);
    let service = tower::retry::RetryLayer::new(policy).layer(service);
    let request = post().map(|_| "100 EUR".to_owned());
    assert_eq!(service.oneshot(request).await.unwrap_err(), Failure(2));
}

/// It needs a tokio runtime only where it waits.
#[test]
fn what_stands_needs_no_runtime() {
    let mut policy = RetryPolicy::<BoxError>::new();
    let mut request = post();
    assert!(Policy::<_, Response<()>, _>::clone_request(&mut policy, &request).is_some());
    let mut result = Ok(Response::new(()));
    assert!(policy.retry(&mut request, &mut result).is_none());
    let service = RetryLayer::default().layer(Script::default());
    let response = service.oneshot(post()).now_or_never().unwrap().unwrap();
    assert_eq!(response.status(), 200);
}

/// U19: what is printed of these has no keys in it.
#[test]
fn u19_debug_output_has_no_keys() {
    let layer = RetryLayer::default();
    let service = layer.layer(Script::default());
    let future = service.clone().oneshot(post());
    let printed = format!("{layer:?} {service:?} {:?}", RetryPolicy::<BoxError>::new());
    assert!(printed.contains("tries: 4"));
    drop(future);
    let future = tower::Service::call(&mut service.clone(), post());
    assert!(!format!("{future:?}").contains("order-1"));
}

/// A stack as services have it: with errors that are boxed inside already, in a task of its own.
#[tokio::test(start_paused = true)]
async fn a_stack_runs_in_a_task() {
    let script = Script::new([Step::Lost]);
    let client = tower::ServiceBuilder::new()
        .timeout(100 * SECOND)
        .layer(RetryLayer::default())
        .timeout(SECOND)
        .service(script.clone());
    let operation = async move {
        let response = client.oneshot(post()).await?;
        Ok::<_, BoxError>(response.status())
    };
    assert_eq!(tokio::spawn(operation).await.unwrap().unwrap(), 200);
    assert_eq!(script.tries(), 2);
}
