//! What near holds, and for how long.

use std::{future::Future, sync::Arc, time::Duration};

use futures::future::join_all;
use tower_idempotency::{Claim, MemoryStore, Payload, State, Store, StoreError, Tiered};

use crate::support::{
    Mode, NEAR_FOR, PATIENCE, Spied, TTL, answer, claim, complete, end, key, other_payload,
    replays, request,
};

type Memory = Spied<MemoryStore>;

/// Two watched stores, a pair of them, and their clocks.
fn pair() -> (Memory, Memory, Tiered<Memory, Memory>, [MemoryStore; 2]) {
    let clocks = [MemoryStore::new(), MemoryStore::new()];
    let [near, far] = clocks.clone().map(Spied::new);
    let tiered = Tiered::new(near.clone(), far.clone());
    (near, far, tiered, clocks)
}

/// S19: a replay that near has a copy for does not call far; for any two empty stores.
pub(crate) async fn replays_are_near<N: Store, F: Store>(near: N, far: F) {
    let (near, far) = (Spied::new(near), Arc::new(Spied::new(far)));
    let tiered = Tiered::new(near, far.clone()).near_timeout(PATIENCE);
    complete(&tiered, "k", "answer", TTL).await;
    assert_eq!(far.calls(), ["claim", "complete"]);
    for _ in 0..3 {
        replays(&tiered, "k", "answer").await;
    }
    let none: [&str; 0] = [];
    assert_eq!(far.calls(), none);
    let found = tiered.claim(&key("k"), &other_payload()).await.unwrap();
    assert_eq!(found, Claim::Mismatch);
    assert_eq!(far.calls(), ["claim"]);

    // Another server, whose near has no copy: one more call, and then none.
    let other = Tiered::new(MemoryStore::new(), far.clone()).near_timeout(PATIENCE);
    replays(&other, "k", "answer").await;
    assert_eq!(far.calls(), ["claim", "get"]);
    replays(&other, "k", "answer").await;
    assert_eq!(far.calls(), none);
}

/// S19: that an answer cannot be replayed is known near too.
#[tokio::test(start_paused = true)]
async fn s19_an_answer_that_cannot_be_replayed_is_copied() {
    let (_, far, tiered, _) = pair();
    let lease = claim(&tiered, "k").await;
    let payload = Payload::not_replayable(200);
    let completed = tiered.complete(&key("k"), &lease, &payload, TTL).await;
    completed.unwrap();
    far.calls();
    let found = tiered.claim(&key("k"), &request()).await.unwrap();
    assert_eq!(found, Claim::Completed(payload));
    assert!(far.calls().is_empty());
}

/// S19: nothing but completed records gets into near, and near is asked for nothing else.
#[tokio::test(start_paused = true)]
async fn s19_near_holds_what_is_completed() {
    let (near, _, tiered, [in_near, _]) = pair();
    let (ttl, saved) = (TTL, Some("half".into()));
    let lease = claim(&tiered, "failed").await;
    let failed = key("failed");
    let renewed = tiered.renew(&failed, &lease, TTL, ttl, saved).await;
    renewed.unwrap();
    tiered.fail(&key("failed"), &lease, ttl).await.unwrap();
    let lease = claim(&tiered, "released").await;
    tiered.release(&key("released"), &lease, ttl).await.unwrap();
    let lease = claim(&tiered, "given back").await;
    let given = tiered.give_back(&key("given back"), &lease, ttl).await;
    given.unwrap();
    let lease = claim(&tiered, "running").await;
    let held = tiered.claim(&key("running"), &request()).await.unwrap();
    assert_eq!(held, Claim::InProgress { token: lease.token });
    assert!(tiered.get(&key("running")).await.unwrap().is_some());
    assert!(in_near.is_empty());
    assert!(near.calls().iter().all(|call| *call == "get"));

    complete(&tiered, "done", "answer", ttl).await;
    assert_eq!(in_near.len(), 1);
    let copy = in_near.get(&key("done")).await.unwrap().unwrap();
    assert_eq!(copy.record.state, State::Completed);
    assert_eq!(near.calls(), ["get", "complete"]);
}

/// P2: a copy lives no longer than half of what far's record has left, whenever it is made.
#[tokio::test(start_paused = true)]
async fn p2_a_copy_is_gone_before_its_record() {
    for ttl in [Duration::from_secs(20), NEAR_FOR, TTL, 24 * TTL] {
        let (_, far, tiered, [in_near, in_far]) = pair();
        complete(&tiered, "k", "answer", ttl).await;
        let other_near = MemoryStore::new();
        let other = Tiered::new(other_near.clone(), far);
        for left in [ttl, ttl / 2, ttl / 10] {
            let now = in_far.get(&key("k")).await.unwrap().unwrap();
            in_far.advance_clock(now.record.expires_at.since(now.now) - left);
            assert!(other_near.forget(&key("k")).await.unwrap() || left == ttl);
            replays(&other, "k", "answer").await;
            let copies = match left == ttl {
                true => vec![&in_near, &other_near],
                false => vec![&other_near],
            };
            for near in copies {
                let copy = near.get(&key("k")).await.unwrap().unwrap();
                let lives = copy.record.expires_at.since(copy.now);
                assert!(
                    lives <= left / 2 && lives <= NEAR_FOR,
                    "{lives:?} of {left:?}"
                );
                assert!(lives >= (left / 2).min(NEAR_FOR) - Duration::from_secs(1));
            }
        }
    }
}

/// P2: when far's record has expired, the key is free, though near's clock is at half the speed.
#[tokio::test(start_paused = true)]
async fn p2_near_answers_for_no_new_operation() {
    let (_, _, tiered, [in_near, in_far]) = pair();
    let tiered = tiered.near_for(Duration::MAX);
    complete(&tiered, "k", "of the first", TTL).await;
    in_near.advance_clock(TTL / 2);
    in_far.advance_clock(TTL);
    complete(&tiered, "k", "of the second", TTL).await;
    replays(&tiered, "k", "of the second").await;
}

/// P2: of a completion that is sent again nobody knows what was recorded, and when: it makes no copy.
#[tokio::test(start_paused = true)]
async fn p2_a_completion_sent_again_makes_no_copy() {
    let (_, far, tiered, [in_near, in_far]) = pair();
    let tiered = tiered.near_for(Duration::MAX);
    let lease = claim(&tiered, "k").await;
    far.set(Mode::AnswersAreLost);
    let sent = end(&tiered, "k", &lease, "first").await;
    assert!(matches!(sent, Err(StoreError::Unavailable { .. })));
    far.set(Mode::Works);
    in_far.advance_clock(TTL / 2);
    end(&tiered, "k", &lease, "second").await.unwrap();
    assert!(in_near.is_empty());
    replays(&tiered, "k", "first").await;
    let copy = in_near.get(&key("k")).await.unwrap().unwrap();
    assert_eq!(copy.record.payload, Some(answer("first")));
    assert!(copy.record.expires_at.since(copy.now) <= TTL / 4);

    // Nor does one that was answered, once near has lost the copy.
    assert!(in_near.forget(&key("k")).await.unwrap());
    end(&tiered, "k", &lease, "third").await.unwrap();
    assert!(in_near.is_empty());
    // Nor one whose caller left, whether it took effect or not.
    let lease = claim(&tiered, "left").await;
    far.set(Mode::Hangs);
    let mut sent = Box::pin(end(&tiered, "left", &lease, "left"));
    assert!(futures::poll!(sent.as_mut()).is_pending());
    drop(sent);
    far.set(Mode::Works);
    end(&tiered, "left", &lease, "left").await.unwrap();
    assert!(in_near.is_empty());
}

/// P6: what far refused to record does not get into near.
#[tokio::test(start_paused = true)]
async fn p6_a_refused_completion_is_not_copied() {
    let (near, far, tiered, [in_near, _]) = pair();
    let stale = claim(&tiered, "k").await;
    tokio::time::advance(TTL / 2).await;
    let lease = claim(&tiered, "k").await;
    near.calls();
    let late = end(&tiered, "k", &stale, "stale").await;
    assert!(matches!(late, Err(StoreError::Superseded)));
    far.set(Mode::Fails);
    let lost = end(&tiered, "k", &lease, "lost").await;
    assert!(matches!(lost, Err(StoreError::Unavailable { .. })));
    assert!(near.calls().is_empty() && in_near.is_empty());
}

/// U30: of a thousand replays at once of one key, one makes the copy.
#[tokio::test(start_paused = true)]
async fn u30_a_copy_is_made_once() {
    let (_, far, tiered, _) = pair();
    complete(&far, "k", "answer", TTL).await;
    far.calls();
    // The one that copies is still at it when the last one asks.
    far.set(Mode::HangsOnGet);
    join_all((0..1000).map(|_| replays(&tiered, "k", "answer"))).await;
    let gets = far.calls().into_iter().filter(|call| *call == "get");
    assert_eq!(gets.count(), 1);
}

/// An operator's word goes for both; where another server has a near of its own, that answers until
/// its copy has expired.
#[tokio::test(start_paused = true)]
async fn forgetting_removes_both() {
    let (_, far, tiered, [in_near, _]) = pair();
    let other = Tiered::new(MemoryStore::new(), far);
    complete(&tiered, "k", "answer", 24 * TTL).await;
    replays(&other, "k", "answer").await;
    assert!(tiered.forget(&key("k")).await.unwrap());
    assert!(in_near.is_empty());
    complete(&tiered, "k", "anew", TTL).await;

    replays(&other, "k", "answer").await;
    tokio::time::advance(NEAR_FOR).await;
    replays(&other, "k", "anew").await;
}

/// P2: what was forgotten while its copy was on its way to near is not answered from there.
#[tokio::test(start_paused = true)]
async fn p2_a_copy_that_comes_after_a_forget_does_not_stay() {
    let (near, far, tiered, [in_near, _]) = pair();
    // Of a completion, and of a replay, which asks near before.
    for (name, polls) in [("completed", 1), ("replayed", 2)] {
        let mut copying: futures::future::BoxFuture<'_, ()> = match polls {
            1 => {
                let lease = claim(&tiered, name).await;
                let tiered = &tiered;
                Box::pin(async move { end(tiered, name, &lease, "old").await.unwrap() })
            }
            _ => {
                complete(&far, name, "old", TTL).await;
                Box::pin(replays(&tiered, name, "old"))
            }
        };
        near.calls();
        near.set(Mode::Slow);
        for _ in 0..polls {
            assert!(futures::poll!(copying.as_mut()).is_pending());
        }
        near.set(Mode::Works);
        assert_eq!(near.calls().last(), Some(&"complete"));
        assert!(tiered.forget(&key(name)).await.unwrap());
        copying.await;
        assert!(in_near.is_empty(), "{name}");
    }
}

/// A copy that far contradicts is removed: its record was forgotten elsewhere.
#[tokio::test(start_paused = true)]
async fn a_copy_that_far_contradicts_is_removed() {
    let (_, far, tiered, [in_near, _]) = pair();
    for next in ["claimed", "running", "completed"] {
        complete(&tiered, next, "old", TTL).await;
        assert!(far.forget(&key(next)).await.unwrap());
        if next != "claimed" {
            let claim = far.claim(&key(next), &other_payload()).await.unwrap();
            let Claim::Claimed(claimed) = claim else {
                panic!("{claim:?}")
            };
            if next == "completed" {
                end(&far, next, &claimed.lease, "new").await.unwrap();
            }
        }
        // Its own payload would still be answered, and this one is not.
        let claim = tiered.claim(&key(next), &other_payload()).await.unwrap();
        match (next, claim) {
            ("claimed", Claim::Claimed(_)) | ("running", Claim::InProgress { .. }) => {}
            ("completed", Claim::Completed(payload)) => assert_eq!(payload, answer("new")),
            (_, other) => panic!("{next}: {other:?}"),
        }
        assert!(in_near.is_empty(), "{next}");
    }
}

/// What others keep in near, against the rules, is neither changed nor taken for an answer.
#[tokio::test(start_paused = true)]
async fn a_record_of_others_in_near_is_left_alone() {
    let (_, far, tiered, [in_near, _]) = pair();
    let stranger = claim(&in_near, "k").await;
    complete(&tiered, "k", "answer", TTL).await;
    for _ in 0..2 {
        far.calls();
        replays(&tiered, "k", "answer").await;
        assert_eq!(far.calls(), ["claim", "get"]);
    }
    let record = in_near.get(&key("k")).await.unwrap().unwrap().record;
    assert_eq!(
        (record.state, record.owner),
        (State::InProgress, stranger.owner)
    );
}

/// U25: handles keep their own settings, and know of each other's claims.
#[tokio::test(start_paused = true)]
async fn u25_clones_have_settings_of_their_own() {
    let (_, _, tiered, [in_near, _]) = pair();
    let without = tiered.clone().near_for(Duration::ZERO);
    complete(&without, "none", "answer", TTL).await;
    replays(&without, "none", "answer").await;
    assert!(in_near.is_empty());
    let lease = claim(&without, "k").await;
    end(&tiered, "k", &lease, "answer").await.unwrap();
    assert_eq!(in_near.len(), 1);
    assert_eq!(
        format!("{without:?}"),
        "Tiered { near_for: 0ns, near_timeout: 100ms, .. }"
    );
}

/// A call that is dropped wherever it hangs does no harm.
#[tokio::test(start_paused = true)]
async fn a_dropped_call_does_no_harm() {
    async fn dropped<T>(call: impl Future<Output = T>) {
        let mut call = Box::pin(call);
        assert!(futures::poll!(call.as_mut()).is_pending());
    }
    let (near, far, tiered, [in_near, in_far]) = pair();
    // A claim, while near is asked.
    near.set(Mode::Hangs);
    dropped(tiered.claim(&key("k"), &request())).await;
    assert!(in_far.is_empty());
    // A replay, while it is copied: the next one copies it.
    near.set(Mode::Works);
    complete(&far, "done", "answer", TTL).await;
    far.set(Mode::HangsOnGet);
    dropped(replays(&tiered, "done", "answer")).await;
    assert!(in_near.is_empty());
    far.set(Mode::Works);
    replays(&tiered, "done", "answer").await;
    assert_eq!(in_near.len(), 1);
    // A completion, while near is told: it is recorded.
    let lease = claim(&tiered, "k").await;
    near.set(Mode::Hangs);
    dropped(end(&tiered, "k", &lease, "answer")).await;
    near.set(Mode::Works);
    end(&tiered, "k", &lease, "answer").await.unwrap();
    assert_eq!(in_near.len(), 1);
    replays(&tiered, "k", "answer").await;
    assert_eq!(in_near.len(), 2);
}
