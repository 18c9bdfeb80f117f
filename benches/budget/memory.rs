//! What records hold, and what is given back when they expire.

use std::{fs, time::Duration};

use tower_idempotency::Store;

use super::{
    numbers_of,
    support::{
        self,
        handover::Counts,
        many,
        records::{Sample, TTL},
        service::{self, KIB, Upload},
    },
    table::{Row, Table},
};

pub(crate) const ROLE: &str = "memory";

const WHAT: &str = "resident memory per completed record, beyond key and answer";
const BUDGET: &str = "400 bytes, given back";

/// The tables of a store grow by doubling, so a record holds more just after that. Between a half
/// and the whole of this number each table grows once, and the worst of ten readings counts.
const RECORDS: u64 = 1_000_000;

pub(crate) fn rows(table: &mut Table, counts: Option<&Counts>) {
    let numbers = numbers_of(ROLE);
    let number = |name: &str| numbers.get(name).copied();
    let (Some(most), Some(left), Some(content)) =
        (number("most"), number("left"), number("content"))
    else {
        return table.not_measured(
            WHAT,
            BUDGET,
            "this system does not say what a process holds",
        );
    };
    let live = counts.and_then(|counts| counts.get("record"));
    table.row(Row {
        what: WHAT.to_owned(),
        measured: format!("{most:.0} bytes"),
        floor: format!("{content:.0} bytes (key and answer)"),
        ratio: format!("{:.2}", most / content),
        budget: BUDGET.to_owned(),
        met: Some(most <= 400.0 && left <= 0.05),
        allocations: live.map_or_else(String::new, |(_, bytes)| format!("({bytes} bytes held)")),
    });
    table.note(format!(
        "Memory: the worst of ten readings up to {} records. Once all had expired and gone, {:.1} % \
         of what they had held was left.",
        many(RECORDS),
        100.0 * left
    ));
}

/// Fills a store and lets its records expire. Prints nothing where memory cannot be read.
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
            let Some(held) = resident() else { return };
            let each = (held - before) / number as f64;
            most = most.max(each - sample.content() as f64);
        }
    }
    let Some(full) = resident() else { return };
    runtime.block_on(tokio::time::advance(TTL + Duration::from_secs(1)));
    // Requests with other keys find what expired and remove it.
    let absent = sample.key(0);
    for _ in 0..records {
        if store.is_empty() {
            break;
        }
        assert!(matches!(service::now(store.get(&absent)), Ok(None)));
    }
    assert!(store.is_empty(), "{} records are left", store.len());
    let Some(after) = resident() else { return };
    println!("content {}", sample.content());
    println!("most {most}");
    println!("left {}", (after - before) / (full - before).max(1.0));
}

/// In bytes, where the system says.
fn resident() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0)
}
