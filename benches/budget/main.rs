//! The budgets of the design, each measured in this run beside its floor, as one table:
//! `cargo bench --bench budget`. With `--bench allocations` before it, as in a plain `cargo bench`,
//! the table has the allocations too; a process that counts them would be slower.
//!
//! - *Times* are those of one thread. A round does a short batch of each side in turn, so that what
//!   disturbs the machine disturbs all of them; and each turn begins with a batch that is not
//!   counted, so that no side pays for what the side before it left in the caches. Each figure is
//!   the median of its rounds. Requests are made before and futures are polled by hand, so no
//!   executor is measured. What the layer adds is the request's time less that of the bare service
//!   in the same round.
//! - *Memory* is what the system says that the process holds, in a process of its own. It is known
//!   on Linux only.
//! - *10 million records* take 8 GB and about a minute, in processes of their own; where there is
//!   less memory, or with `BENCH_SKIP_LARGE` set, they are left out.
//! - *Loopback*: the bare service and the layer behind hyper, HTTP/1.1 with 64 connections that are
//!   kept, one thread for the server and one for all clients. On a machine with two cores that is
//!   one each; the system's share of both is in all figures. The server is the one that is meant to
//!   be busy: how busy is said below the table.
//!
//! `floors` says what the floors are. Budgets over Redis are in `stores`.

#[path = "../support/mod.rs"]
mod support;

mod large;
mod loopback;
mod memory;
mod table;
mod timing;

use support::handover;
use table::Table;

fn main() {
    let role = std::env::args().nth(1).unwrap_or_default();
    // This program again, for a part that needs a process of its own.
    match role.as_str() {
        memory::ROLE => return memory::child(),
        large::STORE => return large::child_store(),
        large::MAP => return large::child_map(),
        _ => {}
    }
    let counts = handover::take();
    let mut table = Table::default();
    {
        let runtime = support::runtime();
        let _entered = runtime.enter();
        timing::rows(&mut table, counts.as_ref());
    }
    memory::rows(&mut table, counts.as_ref());
    large::rows(&mut table);
    loopback::rows(&mut table);
    if counts.is_none() {
        table.note("Allocations: run `cargo bench --bench allocations --bench budget`.");
    }
    table.print();
}

/// Runs this program again in another role, and reads the numbers that it prints, by name.
fn numbers_of(role: &str) -> std::collections::HashMap<String, f64> {
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
    command.arg(role);
    if support::measuring() {
        command.arg("--bench");
    }
    let output = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .expect("this program runs");
    assert!(output.status.success(), "{role} failed");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, number)| Some((name.to_owned(), number.parse().ok()?)))
        .collect()
}
