//! Many clients, one record: what each reads may be old when it writes.

use futures::future::join_all;
use tower_idempotency::{Claim, Entry, Lease, Store};

use crate::support::{
    LEASE, MemcachedServer, MemcachedStore, TTL, answer, claim, completed, granted, key, request,
    soon, store,
};

/// Two clients, each with connections of its own.
fn two(server: &MemcachedServer) -> [MemcachedStore; 2] {
    [store(server), store(server)]
}

/// Fifty claim at once, half of them over each client.
async fn fifty(stores: &[MemcachedStore; 2], name: &str) -> Vec<Claim> {
    let claims = (0..50).map(|n| {
        let (store, key) = (stores[n % 2].clone(), key(name));
        tokio::spawn(async move { store.claim(&key, &request()).await.unwrap() })
    });
    let claims = soon(join_all(claims)).await;
    claims.into_iter().map(Result::unwrap).collect()
}

/// P1, S10, S14, S15: of fifty claimants over two clients one wins, whatever was there before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_s10_s14_s15_of_fifty_claimants_one_wins() {
    let server = MemcachedServer::start(&[]);
    let stores = two(&server);
    let store = &stores[0];
    for round in 0..10 {
        let names = ["absent", "released", "failed", "abandoned"];
        let names = names.map(|name| format!("{name} {round}"));
        let [absent, released, failed, abandoned] = &names;
        let lease = claim(store, &key(released)).await;
        let freed = store.release(&key(released), &lease, TTL).await;
        freed.unwrap();
        let lease = claim(store, &key(failed)).await;
        store.fail(&key(failed), &lease, TTL).await.unwrap();
        let lease = claim(store, &key(abandoned)).await;
        let ended = std::time::Duration::ZERO;
        store
            .renew(&key(abandoned), &lease, ended, TTL, None)
            .await
            .unwrap();
        for (name, entry) in [
            (absent, Entry::First),
            (released, Entry::First),
            (failed, Entry::Retry),
            (abandoned, Entry::Takeover),
        ] {
            let claims = fifty(&stores, name).await;
            let won: Vec<_> = claims
                .iter()
                .filter_map(|claim| match claim {
                    Claim::Claimed(claimed) => Some(claimed),
                    _ => None,
                })
                .collect();
            assert_eq!(won.len(), 1, "{name}");
            assert_eq!(won[0].entry, entry, "{name}");
            let token = won[0].lease.token;
            let lost = |claim: &&Claim| **claim == Claim::InProgress { token };
            assert_eq!(claims.iter().filter(lost).count(), 49, "{name}");
        }
    }
}

/// P6: an owner whose record is renewed by hundreds at once loses none of them, though each write but
/// one is refused at first; nor is the completion among them lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_change_that_comes_too_late_is_made_again() {
    let server = MemcachedServer::start(&[]);
    let stores = two(&server);
    let lease = claim(&stores[0], &key("k")).await;
    let renewals = (0..64).map(|n| {
        let store = stores[n % 2].clone();
        tokio::spawn(async move {
            let checkpoint = Some(n.to_string().into());
            let key = key("k");
            store.renew(&key, &lease, LEASE, TTL, checkpoint).await
        })
    });
    for renewed in soon(join_all(renewals)).await {
        renewed.unwrap().unwrap();
    }
    assert!(server.stat("cas_badval") > 0, "nobody was too late");
    let complete = |store: MemcachedStore| async move {
        let key = key("k");
        store.complete(&key, &lease, &answer(), TTL).await
    };
    let both = stores.clone().map(complete);
    for done in soon(join_all(both)).await {
        done.unwrap();
    }
    let found = stores[1].claim(&key("k"), &request()).await.unwrap();
    assert_eq!(found, Claim::Completed(answer()));
}

/// P6: between a stale owner's reading and its writing another one takes over: the write is refused
/// by memcached, and then by the machine.
#[tokio::test]
async fn p6_a_takeover_in_between_is_seen() {
    let server = MemcachedServer::start(&[]);
    let [one, other] = two(&server);
    for round in 0..100 {
        let key = key(&round.to_string());
        let asked = tower_idempotency::ClaimRequest {
            lease: std::time::Duration::ZERO,
            ..request()
        };
        let stale = granted(one.claim(&key, &asked).await).lease;
        let (payload, asked) = (answer(), request());
        let (done, taken) = soon(async {
            tokio::join!(
                one.complete(&key, &stale, &payload, TTL),
                other.claim(&key, &asked)
            )
        })
        .await;
        let record = one.get(&key).await.unwrap().unwrap().record;
        let owner_of = |lease: Lease| record.owner == lease.owner;
        match (done, taken.unwrap()) {
            (Ok(()), Claim::Completed(found)) => {
                assert!(found == payload && owner_of(stale));
            }
            (Err(tower_idempotency::StoreError::Superseded), Claim::Claimed(taken)) => {
                assert!(owner_of(taken.lease));
            }
            (done, taken) => panic!("both or neither: {done:?} {taken:?}"),
        }
    }
    completed(&one, &key("after")).await;
}
