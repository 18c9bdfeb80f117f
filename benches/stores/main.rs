//! What a request costs over each store, beside what its server takes for the least that it does:
//! `cargo bench --all-features --bench stores`. About two minutes.
//!
//! The program starts its own servers on this machine, with data under the temporary folder: two of
//! Redis, without persistence and with an append-only file that is synced each second; three nodes
//! of a Redis cluster; two of PostgreSQL, with its defaults and with `fsync = off`. The SQLite file
//! is what `SqliteStore::open` makes, in the log and synced at each commit. So client, server and
//! disk share one machine: a network adds its time once for each round trip.
//!
//! - *Times* are those of one client which waits for each answer, on one thread. A round does a
//!   short turn of each case of one store, so that what disturbs the machine disturbs all of them;
//!   each figure is the median of its rounds, and each ratio the median of the rounds' ratios. The
//!   floors use the same connection as the store.
//! - *Round trips* are counted on the wire, by a proxy that is in the way for that only.
//! - *Throughput*: four servers in this process, each with a layer, a store and connections of its
//!   own, and 64 clients in all, which call the service without HTTP between.
//! - *Telling*: what `NOTIFY` costs those that complete at the same time, in PostgreSQL.

#[path = "../../tests/servers/mod.rs"]
mod servers;
#[path = "../support/mod.rs"]
mod support;

mod latency;
mod report;
mod sides;
mod telling;
mod throughput;
mod trips;

use std::rc::Rc;

use report::Report;
use sides::Servers;
use support::{
    records::Sample,
    service::{KIB, Upload},
};

fn main() {
    let servers = Servers::start();
    let mut report = Report::default();
    let upload = Upload::whole(KIB);
    {
        let runtime = support::runtime();
        let sample = Rc::new({
            let _entered = runtime.enter();
            Sample::of(&upload)
        });
        runtime.block_on(async {
            servers.migrate().await;
            latency::rows(&mut report, &servers, &sample, &upload).await;
            trips::rows(&mut report, &servers, &sample, &upload).await;
            telling::rows(&mut report, &servers, &sample).await;
        });
    }
    throughput::rows(&mut report, &servers, &upload);
    report.print();
}
