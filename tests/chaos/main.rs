//! Three servers on one store, two hundred clients that send each key five times, and every second
//! one server is killed with -9 and started again: the promises P1, P2, P5 and P7 (S14, U01) in a run
//! of eight seconds for each store, or of `CHAOS_SECONDS`. It prints its counts (`-- --nocapture`
//! shows them), and names what is not as promised.
//!
//! The servers are the example `payments`. A payment is a line in a ledger, which a kill between
//! the line and the record repeats, if the next request may take over: each one that is repeated
//! must have had such a kill. A transfer is a row in the same database as its record: nothing may
//! repeat it.

mod client;
mod judge;
mod run;
#[path = "../servers/mod.rs"]
mod servers;

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use run::{Setting, Takeover, run, time};
use servers::{postgres::PostgresServer, redis::RedisServer};

/// Each run has the machine for itself.
fn alone<T>(run: impl FnOnce() -> T) -> T {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    run()
}

fn assert_promised(name: &str, store: &str, transfers: bool, takeover: Takeover) {
    let setting = Setting {
        name,
        store,
        takeover,
        transfers,
    };
    if let Err(faults) = run(&setting, time()) {
        panic!("{} faults\n{}", faults.len(), faults.join("\n"));
    }
}

fn on_redis(takeover: Takeover) {
    alone(|| {
        let redis = RedisServer::start(&[]);
        assert_promised("Redis", &redis.url(), false, takeover);
    });
}

fn on_postgres(takeover: Takeover) {
    alone(|| {
        let postgres = PostgresServer::start();
        assert_promised("PostgreSQL", &postgres.url(), true, takeover);
    });
}

fn on_sqlite(takeover: Takeover) {
    alone(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("payments.db");
        let store = format!("sqlite:{}", file.display());
        assert_promised("SQLite", &store, true, takeover);
    });
}

/// P1, P2, P5.
#[test]
fn p1_p2_p5_redis() {
    on_redis(Takeover::Run);
}

/// P5: at most once.
#[test]
fn p5_redis_without_takeovers() {
    on_redis(Takeover::Refuse);
}

/// P1, P2, P5, P7.
#[test]
fn p1_p2_p5_p7_postgres() {
    on_postgres(Takeover::Run);
}

/// P5: at most once. P7.
#[test]
fn p5_p7_postgres_without_takeovers() {
    on_postgres(Takeover::Refuse);
}

/// P1, P2, P5, P7.
#[test]
fn p1_p2_p5_p7_sqlite() {
    on_sqlite(Takeover::Run);
}

/// P5: at most once. P7.
#[test]
fn p5_p7_sqlite_without_takeovers() {
    on_sqlite(Takeover::Refuse);
}

/// S19, P1, P2, P5, P7: near is shared by the servers, and decides nothing.
#[test]
fn s19_redis_before_postgres() {
    alone(|| {
        let (redis, postgres) = (RedisServer::start(&[]), PostgresServer::start());
        let store = format!("tiered:{},{}", redis.url(), postgres.url());
        assert_promised("Redis before PostgreSQL", &store, true, Takeover::Run);
    });
}

/// S19, P1, P2, P5, P7: near dies with each server.
#[test]
fn s19_memory_before_sqlite() {
    alone(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("payments.db");
        let store = format!("tiered:memory,sqlite:{}", file.display());
        assert_promised("memory before SQLite", &store, true, Takeover::Run);
    });
}

/// U01: servers that share nothing are found out.
#[test]
fn u01_separate_stores_break_the_promises() {
    let setting = Setting {
        name: "three memories",
        store: "memory",
        takeover: Takeover::Run,
        transfers: false,
    };
    let faults = alone(|| run(&setting, Duration::from_secs(3))).expect_err("faults");
    let found = |what: &str| faults.iter().any(|fault| fault.contains(what));
    assert!(found("two answers"), "{faults:?}");
    assert!(faults.len() > 20, "{faults:?}");
}
