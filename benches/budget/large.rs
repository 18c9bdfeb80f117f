//! A whole fresh request at 10 million records beside one at 10 thousand.

use std::rc::Rc;

use super::{
    numbers_of,
    support::{
        self, case, left_out, many,
        records::{Sample, Window},
        service::{KIB, Upload},
    },
    table::{Row, Table},
    timing::{Rounds, nanoseconds},
};

pub(crate) const STORE: &str = "--child=large-store";
pub(crate) const MAP: &str = "--child=large-map";

const WHAT: &str = "a whole fresh request at 10 million records, beside 10 thousand";
const BUDGET: &str = "2 x";
const SMALL: u64 = 10_000;
const LARGE: u64 = 10_000_000;

pub(crate) fn rows(table: &mut Table) {
    if let Some(reason) = left_out(LARGE) {
        return table.not_measured(WHAT, BUDGET, reason);
    }
    // One after the other, so that only one of them is in memory.
    let (store, map) = (numbers_of(STORE), numbers_of(MAP));
    let ratio = store["ratio"];
    table.row(Row {
        what: WHAT.to_owned(),
        measured: format!(
            "{} beside {}",
            nanoseconds(store["large"]),
            nanoseconds(store["small"])
        ),
        floor: format!(
            "{} beside {} (map, {:.2} x)",
            nanoseconds(map["large"]),
            nanoseconds(map["small"]),
            map["ratio"]
        ),
        ratio: format!("{ratio:.2} x"),
        budget: BUDGET.to_owned(),
        met: Some(ratio <= 2.0),
        allocations: String::new(),
    });
}

pub(crate) fn child_store() {
    let runtime = support::runtime();
    let _entered = runtime.enter();
    let upload = Upload::whole(KIB);
    let windows = [SMALL, LARGE].map(|records| Window::filled(many(records), &upload));
    let mut cases = windows.map(|window| case::fresh(&window, &upload));
    report(&Rounds::of(&mut cases, 100));
}

pub(crate) fn child_map() {
    let runtime = support::runtime();
    let _entered = runtime.enter();
    let sample = Rc::new(Sample::of(&Upload::whole(KIB)));
    let mut cases = [SMALL, LARGE].map(|records| case::two_map_operations(&sample, many(records)));
    report(&Rounds::of(&mut cases, 100));
}

fn report(times: &Rounds) {
    println!("small {}", times.median(|t| t(0)));
    println!("large {}", times.median(|t| t(1)));
    println!("ratio {}", times.median(|t| t(1) / t(0)));
}
