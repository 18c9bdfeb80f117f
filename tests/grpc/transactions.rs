//! P7: a tonic handler whose rows and reply are committed together.

use prost::Message as _;
use tonic::{
    Code, Request, Response, Status, codec::CompressionEncoding, metadata::MetadataValue,
    service::Routes,
};
use tonic_types::StatusExt as _;
use tower_idempotency::{CommitError, Execution, IdempotencyLayer, Scope, SqliteStore};

use crate::{
    base::{Fault, Op, Scripted},
    payments::{PayRequest, Payment},
    support::{PAY, Server, Till, euros, is_replay, keyed},
};

fn execution(request: &Request<PayRequest>) -> Result<Execution, Status> {
    let execution = request.extensions().get().cloned();
    execution.ok_or_else(|| Status::invalid_argument("send a key"))
}

fn reply(execution: &Execution) -> Response<Payment> {
    let mut reply = Response::new(Payment {
        attempt: execution.attempt(),
        currency: "EUR".repeat(50),
        ..Payment::default()
    });
    let metadata = reply.metadata_mut();
    metadata.append("x-part", MetadataValue::from_static("1"));
    metadata.append("x-part", MetadataValue::from_static("2"));
    metadata.append_bin("x-part-bin", MetadataValue::from_bytes(b"\0\xff"));
    // A server says this itself.
    metadata.append("grpc-status", MetadataValue::from_static("7"));
    metadata.append("content-type", MetadataValue::from_static("text/plain"));
    reply
}

/// What was committed is what a tonic server would have sent, fresh and replayed.
#[tokio::test]
async fn p7_a_row_and_its_reply_are_committed_together() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("payments.db"));
    let store = store.await.unwrap();
    store.migrate().await.unwrap();
    let pool = store.pool().clone();
    let made = sqlx::raw_sql("CREATE TABLE payments (amount INTEGER NOT NULL)");
    made.execute(&pool).await.unwrap();

    let database = pool.clone();
    let till = Till::new().on_pay(move |request| {
        let pool = database.clone();
        async move {
            let execution = execution(&request)?;
            let amount = i64::try_from(request.get_ref().amount).unwrap();
            // What commits nothing answers the same.
            if amount == 0 {
                return Ok(reply(&execution));
            }
            let mut transaction = execution.transaction(pool.begin().await.unwrap())?;
            sqlx::query("INSERT INTO payments (amount) VALUES (?)")
                .bind(amount)
                .execute(&mut *transaction)
                .await
                .unwrap();
            match amount {
                // Rolled back, on purpose.
                1 => return Err(Status::failed_precondition("not enough")),
                // Forgotten.
                2 => return Ok(reply(&execution)),
                _ => {}
            }
            let reply = transaction.commit_reply(reply(&execution)).await?;
            match amount {
                // It comes too late.
                3 => Err(Status::internal("after all")),
                4 => panic!("after all"),
                _ => Ok(reply),
            }
        }
    });
    let rows = async || {
        let rows = sqlx::query_scalar("SELECT amount FROM payments ORDER BY rowid");
        let rows: Vec<i64> = rows.fetch_all(&pool).await.unwrap();
        rows
    };
    let layer = IdempotencyLayer::new(store, Scope::single_tenant());
    let server = Server::of(&layer, till).await;
    let send = async |amount: u64| {
        let key = amount.to_string();
        let headers = [("idempotency-key", &key[..])];
        let message = euros(amount).encode_to_vec();
        server.raw(PAY, &headers, &message).await.stripped()
    };

    let (plain, _) = send(0).await;
    for amount in [5, 3, 4] {
        for expected in [false, true] {
            let (committed, replayed) = send(amount).await;
            assert_eq!(replayed, expected, "{amount}");
            assert_eq!(committed, plain, "{amount}");
        }
    }
    assert_eq!(rows().await, [5, 3, 4]);

    let mut client = server.client().await;
    let status = client.pay(keyed("1", euros(1))).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let status = client.pay(keyed("2", euros(2))).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "NOT_COMMITTED");
    assert_eq!(rows().await, [5, 3, 4]);
    // The first one did nothing, and the second one may be tried again.
    assert!(!is_replay(&client.pay(keyed("1", euros(6))).await.unwrap()));
    let status = client.pay(keyed("2", euros(6))).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(rows().await, [5, 3, 4, 6]);
}

/// A reply that cannot be committed is an error, and its retry commits.
#[tokio::test]
async fn p7_a_commit_that_fails_is_a_status() {
    let store = Scripted::new();
    let rows = store.clone();
    let till = Till::new().on_pay(move |request| {
        let store = store.clone();
        async move {
            let execution = execution(&request)?;
            let mut transaction = execution.transaction(store.begin())?;
            transaction.push(format!("attempt {}", execution.attempt()));
            Ok(transaction.commit_reply(reply(&execution)).await?)
        }
    });
    // Whoever compresses all answers does not compress these, and says so.
    let gzip = CompressionEncoding::Gzip;
    let service = till.server().send_compressed(gzip);
    let layer = IdempotencyLayer::new(rows.clone(), Scope::single_tenant());
    let server = Server::start(layer.clone(), Routes::new(service.clone())).await;
    let mut client = server.client().await.accept_compressed(gzip);
    for (n, op) in [Op::CompleteIn, Op::Commit].into_iter().enumerate() {
        rows.next(op, Fault::Lost);
        let key = format!("{op:?}");
        let status = client.pay(keyed(&key, euros(7))).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{op:?}: {status}");
        assert_eq!(rows.rows().len(), n);
        let paid = client.pay(keyed(&key, euros(7))).await.unwrap();
        assert_eq!((paid.get_ref().attempt, is_replay(&paid)), (2, false));
        assert_eq!(paid.get_ref().currency.len(), 150);
        assert!(!paid.metadata().contains_key("grpc-encoding"));
        assert!(is_replay(&client.pay(keyed(&key, euros(7))).await.unwrap()));
        assert_eq!(rows.rows(), vec!["attempt 2"; n + 1]);
    }

    // Committed, though nobody heard so: the handler's error is not what its caller gets.
    rows.next(Op::Commit, Fault::AnswerLost);
    for replayed in [false, true] {
        let paid = client.pay(keyed("unheard", euros(7))).await.unwrap();
        let attempt = paid.get_ref().attempt;
        assert_eq!((attempt, is_replay(&paid)), (1, replayed));
    }
    assert_eq!(rows.rows(), ["attempt 2", "attempt 2", "attempt 1"]);

    // One that is too large to be recorded.
    let small = layer.response_limit(50);
    let server = Server::start(small, Routes::new(service)).await;
    let mut client = server.client().await;
    let status = client.pay(keyed("large", euros(7))).await.unwrap_err();
    assert_eq!((status.code(), status.message()), {
        (Code::Internal, "the answer cannot be recorded")
    });
    assert_eq!(rows.rows().len(), 3);
}

#[test]
fn p7_each_commit_error_has_a_code_and_keeps_what_the_database_said() {
    let source = || "a password".into();
    let store = |error| tower_idempotency::StoreError::unavailable("x", error);
    let source_error: fn() -> std::io::Error = || std::io::Error::other("a password");
    for (error, code) in [
        (CommitError::OtherStore, Code::Internal),
        (CommitError::Answer(source()), Code::Internal),
        (CommitError::AlreadyCommitted, Code::Internal),
        (CommitError::Superseded, Code::Aborted),
        (CommitError::Gone, Code::Aborted),
        (CommitError::Refused(source()), Code::Aborted),
        (CommitError::Store(store(source_error())), Code::Unavailable),
        (
            CommitError::Unknown(store(source_error())),
            Code::Unavailable,
        ),
    ] {
        let text = error.to_string();
        let status = Status::from(error);
        assert_eq!((status.code(), status.message()), (code, &text[..]));
        assert!(!status.message().contains("password"));
        let source = std::error::Error::source(&status).unwrap();
        assert!(source.is::<CommitError>(), "{text}");
    }
}
