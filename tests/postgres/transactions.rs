//! Completion inside a transaction.

use std::{error::Error, time::Duration};

use sqlx::{AssertSqlSafe, PgConnection, Postgres, Transaction};
use tower_idempotency::store::{DatabaseTransaction, NotCompleted};
use tower_idempotency::{Claim, ClaimRequest, Entry, Lease, State, Store, StoreKey};

use crate::support::{LEASE, Own, TTL, answer, claimed, claimed_as, key, request};

async fn begin(own: &Own) -> Transaction<'static, Postgres> {
    own.pool.begin().await.unwrap()
}

/// An effect of the handler's.
async fn pay(own: &Own, connection: &mut PgConnection) {
    let sql = format!("INSERT INTO {}.payments VALUES (1)", own.schema);
    sqlx::query(AssertSqlSafe(sql))
        .execute(connection)
        .await
        .unwrap();
}

async fn payments(own: &Own) -> i64 {
    let sql = format!("SELECT count(*) FROM {}.payments", own.schema);
    let count = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&own.pool);
    count.await.unwrap()
}

async fn with_payments() -> Own {
    let own = Own::new(4).await;
    own.run(&format!("CREATE TABLE {}.payments (n int)", own.schema))
        .await;
    own
}

/// P7: effect and record are committed together, and the retry gets the answer.
#[tokio::test]
async fn p7_effect_and_record_commit_together() {
    let own = with_payments().await;
    let key = key("k");
    let lease = claimed(&own.store, &key).await.lease;
    let mut transaction = begin(&own).await;
    pay(&own, &mut transaction).await;
    transaction
        .complete(&own.store, &key, &lease, &answer(), TTL)
        .await
        .unwrap();
    // Nobody else sees it before.
    let found = own.store.get(&key).await.unwrap().unwrap();
    assert_eq!(found.record.state, State::InProgress);
    assert_eq!(payments(&own).await, 0);
    transaction.commit().await.unwrap();
    assert_eq!(payments(&own).await, 1);
    let found = own.store.claim(&key, &request()).await.unwrap();
    assert_eq!(found, Claim::Completed(answer()));
    // The engine may complete it once more, which changes nothing.
    own.store
        .complete(&key, &lease, &answer(), TTL)
        .await
        .unwrap();
}

/// P7: neither is there after a rollback, nor after the connection broke; the attempt goes on.
#[tokio::test]
async fn p7_effect_and_record_vanish_together() {
    let own = with_payments().await;
    let key = key("k");
    let lease = claimed(&own.store, &key).await.lease;
    for breaks in [false, true] {
        let mut transaction = begin(&own).await;
        pay(&own, &mut transaction).await;
        transaction
            .complete(&own.store, &key, &lease, &answer(), TTL)
            .await
            .unwrap();
        if breaks {
            let id: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
                .fetch_one(&mut *transaction)
                .await
                .unwrap();
            let end = "SELECT pg_terminate_backend($1, 30000)";
            sqlx::query(end).bind(id).execute(&own.pool).await.unwrap();
            transaction.commit().await.unwrap_err();
        } else {
            transaction.rollback().await.unwrap();
        }
        assert_eq!(payments(&own).await, 0);
        own.store
            .renew(&key, &lease, LEASE, TTL, None)
            .await
            .unwrap();
    }
}

async fn refusal(own: &Own, key: &StoreKey, lease: &Lease) -> NotCompleted {
    let mut transaction = begin(own).await;
    let before: String = row(own).await;
    let done = transaction
        .complete(&own.store, key, lease, &answer(), TTL)
        .await;
    // It is no error of the server's: the transaction can be asked still.
    sqlx::query("SELECT 1")
        .execute(&mut *transaction)
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(row(own).await, before, "nothing was changed");
    done.unwrap_err()
}

async fn row(own: &Own) -> String {
    let sql = format!(
        "SELECT concat(string_agg(r::text, ';')) FROM {} r",
        own.table()
    );
    let row = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&own.pool);
    row.await.unwrap()
}

/// P6, P7: whoever does not hold the record is told why, and changes nothing.
#[tokio::test]
async fn p6_p7_each_refusal_has_its_reason() {
    let own = Own::new(4).await;
    let (store, key) = (&own.store, &key("k"));
    let no_lease = ClaimRequest {
        lease: Duration::ZERO,
        ..request()
    };
    // Lost to a newer owner, in whatever state that is, and when it gave the record back.
    let stale = claimed_as(store, key, &no_lease).await.lease;
    let newer = claimed(store, key).await.lease;
    assert!(matches!(
        refusal(&own, key, &stale).await,
        NotCompleted::Superseded
    ));
    store.give_back(key, &newer, TTL).await.unwrap();
    assert!(matches!(
        refusal(&own, key, &stale).await,
        NotCompleted::Superseded
    ));
    assert!(matches!(
        refusal(&own, key, &newer).await,
        NotCompleted::Superseded
    ));
    let newest = claimed(store, key).await.lease;
    store.fail(key, &newest, TTL).await.unwrap();
    assert!(matches!(
        refusal(&own, key, &stale).await,
        NotCompleted::Superseded
    ));
    assert!(matches!(
        refusal(&own, key, &newest).await,
        NotCompleted::Failed
    ));
    store.complete(key, &newest, &answer(), TTL).await.unwrap();
    assert!(matches!(
        refusal(&own, key, &stale).await,
        NotCompleted::Superseded
    ));
    assert!(matches!(
        refusal(&own, key, &newest).await,
        NotCompleted::Completed
    ));
    store.advance_clock(TTL);
    assert!(matches!(
        refusal(&own, key, &newest).await,
        NotCompleted::Gone
    ));
    store.forget(key).await.unwrap();
    assert!(matches!(
        refusal(&own, key, &newest).await,
        NotCompleted::Gone
    ));
}

/// P7: a lease that ended is good while nobody took over.
#[tokio::test]
async fn p7_a_lease_that_ended_is_good() {
    let own = Own::new(4).await;
    let key = key("k");
    let no_lease = ClaimRequest {
        lease: Duration::ZERO,
        ..request()
    };
    claimed_as(&own.store, &key, &no_lease).await;
    let next = ClaimRequest {
        owner: request().owner,
        ..no_lease
    };
    let lease = claimed_as(&own.store, &key, &next).await.lease;
    let mut transaction = begin(&own).await;
    transaction
        .complete(&own.store, &key, &lease, &answer(), TTL)
        .await
        .unwrap();
    // A second time it is told so.
    let again = transaction
        .complete(&own.store, &key, &lease, &answer(), TTL)
        .await;
    assert!(matches!(again, Err(NotCompleted::Completed)), "{again:?}");
    transaction.commit().await.unwrap();
    let record = own.store.get(&key).await.unwrap().unwrap().record;
    assert_eq!((record.state, record.attempt), (State::Completed, 2));
    assert_eq!(
        (record.entry, record.payload),
        (Entry::Takeover, Some(answer()))
    );
}

/// P7: a renewal during the transaction does no harm under `READ COMMITTED`, and is a conflict that
/// can be tried again under the levels above.
#[tokio::test]
async fn p7_a_renewal_during_the_transaction() {
    let own = Own::new(4).await;
    for (level, conflicts) in [
        ("READ COMMITTED", false),
        ("REPEATABLE READ", true),
        ("SERIALIZABLE", true),
    ] {
        let key = key(level);
        let lease = claimed(&own.store, &key).await.lease;
        for renews in [true, false] {
            let mut transaction = begin(&own).await;
            let set = format!("SET TRANSACTION ISOLATION LEVEL {level}");
            sqlx::query(AssertSqlSafe(set))
                .execute(&mut *transaction)
                .await
                .unwrap();
            // The snapshot is taken here.
            sqlx::query("SELECT 1")
                .execute(&mut *transaction)
                .await
                .unwrap();
            if renews {
                own.store
                    .renew(&key, &lease, LEASE, TTL, None)
                    .await
                    .unwrap();
            }
            let done = transaction
                .complete(&own.store, &key, &lease, &answer(), TTL)
                .await;
            if renews && conflicts {
                let error = done.unwrap_err();
                assert!(matches!(error, NotCompleted::Conflict(_)), "{error:?}");
                let told = error.source().unwrap().to_string();
                assert!(told.contains("40001"), "{told}");
                transaction.rollback().await.unwrap();
            } else {
                done.unwrap();
                transaction.commit().await.unwrap();
                break;
            }
        }
        let found = own.store.claim(&key, &request()).await.unwrap();
        assert_eq!(found, Claim::Completed(answer()), "{level}");
    }
}
