//! `MemoryStore` by the number of its records.

use std::{cell::LazyCell, rc::Rc};

use criterion::Criterion;

use super::{
    measure,
    support::{
        case, left_out, many,
        records::{Sample, Window},
        service::{KIB, Upload},
    },
};

pub(crate) fn store(c: &mut Criterion) {
    let upload = Upload::whole(KIB);
    for (name, records) in [
        ("10 thousand", 10_000),
        ("1 million", 1_000_000),
        ("10 million", 10_000_000),
    ] {
        if let Some(reason) = left_out(records) {
            eprintln!("store, {name} records: left out, {reason}");
            continue;
        }
        let records = many(records);
        let window = LazyCell::new(|| Window::filled(records, &upload));
        let mut group = c.benchmark_group(format!("store, {name} records"));
        // Before the window is filled, so that only one of them is in memory.
        measure(&mut group, "floor: two map operations", || {
            case::two_map_operations(&Rc::new(Sample::of(&upload)), records)
        });
        measure(&mut group, "claim and complete", || {
            case::claim_and_complete(&window)
        });
        measure(&mut group, "claim what is completed", || {
            case::claim_completed(&window)
        });
        measure(&mut group, "fresh request", || {
            case::fresh(&window, &upload)
        });
        measure(&mut group, "replayed request", || {
            case::replay(&window, &upload)
        });
        group.finish();
    }
}
