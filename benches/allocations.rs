//! How often one request asks the allocator for memory, and for how many bytes.
//!
//! `cargo bench --bench allocations`
//!
//! A target of its own: counting takes some 10 ns for each allocation, which timings must not pay.
//! The figures are those of one request, from the call to the drop of its answer, after some
//! others; reallocations count as allocations. They are kept for the table that `budget` prints in
//! the same run of cargo.

mod support;

use allocation_counter::{AllocationInfo, measure};
use support::{
    case::{self, Case},
    handover,
    records::{Window, expire},
    service,
};
use tokio::runtime::Runtime;

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

/// What the allocator was asked for and has not got back, for each of so many records: while they
/// are there, beyond key and encoded answer, and after they expired.
fn of_a_record(runtime: &Runtime, records: u64) -> (i64, i64) {
    runtime.block_on(async { tokio::time::pause() });
    let upload = service::Upload::whole(service::KIB);
    let mut window = None;
    let filled = measure(|| window = Some(Window::filled(records, &upload)));
    let window = window.expect("a window");
    let absent = window.sample.key(records);
    let expired = measure(|| expire(runtime, &window.store, &absent));
    let each = |bytes: i64| bytes / records as i64;
    (
        each(filled.bytes_current) - window.sample.content() as i64,
        each(filled.bytes_current + expired.bytes_current),
    )
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
    let (held, left) = of_a_record(&runtime, support::many(1_000_000));
    println!("\nHeld for each record, beyond key and encoded answer: {held} bytes");
    println!("After all records have expired and gone, for each: {left} bytes\n");
    lines.push(format!("record\t1\t{held}"));
    lines.push(format!("expired\t1\t{left}"));
    handover::leave(&lines);
}
