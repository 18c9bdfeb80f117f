//! What records hold, and what is given back when they expire.

use std::fs;

use super::{
    numbers_of,
    support::{
        self,
        handover::Counts,
        many,
        records::{Sample, expire},
        service::{self, KIB, Upload},
    },
    table::{Row, Table},
};

pub(crate) const ROLE: &str = "--child=memory";

const WHAT: &str = "resident memory per completed record, beyond key and answer";
const BUDGET: &str = "400 bytes, given back";

/// The tables of a store grow by doubling, so a record holds more just after that. Between a half
/// and the whole of this number each table grows once, and the worst of eleven readings counts.
const RECORDS: u64 = 1_000_000;

pub(crate) fn rows(table: &mut Table, counts: Option<&Counts>) {
    let numbers = numbers_of(ROLE);
    let number = |name: &str| numbers.get(name).copied();
    let (Some(most), Some(content)) = (number("most"), number("content")) else {
        return table.not_measured(
            WHAT,
            BUDGET,
            "this system does not say what a process holds",
        );
    };
    let [expired, refilled] = ["expired", "refilled"].map(|name| numbers[name]);
    let counted = |name: &str| Some(counts?.get(name)?.1);
    let (live, left) = (counted("record"), counted("expired"));
    // The store has given back what the allocator has, and what a second filling uses.
    let given_back = refilled <= 1.1 && left.is_none_or(|left| left <= 4);
    table.row(Row {
        what: WHAT.to_owned(),
        measured: format!("{most:.0} bytes"),
        floor: format!("{content:.0} bytes (key and answer)"),
        ratio: format!("{:.2}", most / content),
        budget: BUDGET.to_owned(),
        met: Some(most <= 400.0 && given_back),
        allocations: live.map_or_else(String::new, |live| format!("({live} bytes)")),
    });
    table.note(format!(
        "Memory: the worst of eleven readings up to {} records. When all had expired and gone,{} \
         the process {:.0} %, which the allocator keeps for later; with as many new records the \
         process held {:.0} %.",
        many(RECORDS),
        left.map_or_else(String::new, |left| format!(
            " the store held {left} bytes for each, and"
        )),
        100.0 * expired,
        100.0 * refilled
    ));
}

/// Fills a store, lets its records expire and fills it again. Prints nothing where memory cannot be
/// read.
pub(crate) fn child() {
    let runtime = support::runtime();
    // A clock that can be moved.
    runtime.block_on(async { tokio::time::pause() });
    let _entered = runtime.enter();
    let sample = Sample::of(&Upload::whole(KIB));
    let store = service::store();
    let records = many(RECORDS);
    let mut most = f64::MIN;
    let Some(before) = resident() else { return };
    for number in 1..=records {
        sample.claim_and_complete(&store, &sample.key(number));
        if number >= records / 2 && number.is_multiple_of((records / 20).max(1)) {
            let held = resident().unwrap_or_default() - before;
            most = most.max(held / number as f64 - sample.content() as f64);
        }
    }
    let full = resident().unwrap_or_default();
    expire(&runtime, &store, &sample.key(0));
    let expired = resident().unwrap_or_default();
    for number in 1..=records {
        sample.claim_and_complete(&store, &sample.key(records + number));
    }
    let refilled = resident().unwrap_or_default();
    let part = |resident: f64| (resident - before) / (full - before).max(1.0);
    println!("content {}", sample.content());
    println!("most {most}");
    println!("expired {}", part(expired));
    println!("refilled {}", part(refilled));
}

/// In bytes, where the system says.
fn resident() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0)
}
