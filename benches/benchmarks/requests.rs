//! One request after the other, with bodies of all sizes, at 10 thousand records.

use std::{cell::LazyCell, time::Duration};

use criterion::{Criterion, Throughput};

use super::{
    measure,
    support::{case, many, records::Window, service},
};

/// At half a million requests a second, some ten thousand records live at once.
const SHORT: Duration = Duration::from_millis(20);

pub(crate) fn requests(c: &mut Criterion) {
    for (size, upload) in service::uploads() {
        let window = LazyCell::new(|| Window::filled(many(10_000), &upload));
        let mut group = c.benchmark_group(format!("requests, {size}"));
        group.throughput(Throughput::Bytes(upload.bytes().len() as u64));
        measure(&mut group, "floor: bare service", || case::bare(&upload));
        measure(&mut group, "floor: SHA-256 of the body", || {
            case::sha_256(&upload)
        });
        measure(&mut group, "bypass", || case::bypass(&upload));
        measure(&mut group, "fresh", || case::fresh(&window, &upload));
        measure(&mut group, "replay", || case::replay(&window, &upload));
        measure(&mut group, "conflict", || case::conflict(&upload));
        group.finish();
    }
    let upload = service::Upload::whole(service::KIB);
    let mut group = c.benchmark_group("requests, 1 KiB, as many expire");
    measure(&mut group, "fresh", || {
        case::fresh_and_expiring(&upload, SHORT)
    });
    group.finish();
}
