//! How often one request asks the allocator for memory, and for how many bytes.
//!
//! `cargo bench --bench allocations`
//!
//! A target of its own: counting takes some 10 ns for each allocation, which timings must not pay.
//! The figures are those of one request, from the call to the drop of its answer, after some others;
//! reallocations count as allocations. They are kept for the table that `budget` prints in the same
//! run of cargo.

mod support;

use std::rc::Rc;

use allocation_counter::{AllocationInfo, measure};
use support::{
    case::{self, Case},
    handover,
    records::Window,
    service,
};

/// What one request takes. Others before it filled what is filled once, and the least of several
/// counts: now and then a table grows.
fn of_one(case: &mut Case) -> AllocationInfo {
    let counted = (0..50).map(|_| {
        let mut info = AllocationInfo::default();
        case.round(1, &mut |work| info = measure(work));
        info
    });
    counted
        .min_by_key(|info| (info.count_total, info.bytes_total))
        .expect("some rounds")
}

/// What the allocator was asked for and has not got back, for each record of a store, beyond key
/// and encoded answer.
fn of_a_record(records: u64) -> i64 {
    let upload = service::Upload::whole(service::KIB);
    let mut window: Option<Rc<Window>> = None;
    let info = measure(|| window = Some(Window::filled(records, &upload)));
    let window = window.expect("a window");
    info.bytes_current / records as i64 - window.sample.content() as i64
}

fn main() {
    let runtime = support::runtime();
    let _entered = runtime.enter();
    let mut lines = Vec::new();
    println!("| request body | request | allocations | bytes |");
    println!("|---|---|--:|--:|");
    for (size, upload) in service::uploads() {
        let window = Window::filled(support::many(10_000), &upload);
        let cases = [
            ("floor: bare service", case::bare(&upload)),
            ("bypass", case::bypass(&upload)),
            ("fresh", case::fresh(&window, &upload)),
            ("replay", case::replay(&window, &upload)),
            ("conflict", case::conflict(&upload)),
        ];
        for (name, mut case) in cases {
            let AllocationInfo {
                count_total,
                bytes_total,
                ..
            } = of_one(&mut case);
            println!("| {size} | {name} | {count_total} | {bytes_total} |");
            lines.push(format!("{name}, {size}\t{count_total}\t{bytes_total}"));
        }
    }
    let live = of_a_record(support::many(1_000_000));
    println!("\nHeld for each record, beyond key and encoded answer: {live} bytes\n");
    lines.push(format!("record\t1\t{live}"));
    handover::leave(&lines);
}
