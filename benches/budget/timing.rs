//! What one request costs: bypass, fresh, replay, large bodies.

use super::{
    support::{
        case::{self, Case},
        handover::Counts,
        many, measuring,
        records::Window,
        service::{KIB, Upload, uploads},
    },
    table::{Row, Table},
};

/// At least; short ones get more.
const ROUNDS: usize = 301;

/// The nanoseconds that each of the cases takes, round by round.
pub(crate) struct Rounds(Vec<Vec<f64>>);

impl Rounds {
    /// Does a batch of each case in turn, many times.
    pub(crate) fn of(cases: &mut [Case], batch: u64) -> Self {
        let (rounds, batch) = match measuring() {
            true => (ROUNDS, batch),
            false => (2, 2),
        };
        let mut times = vec![Vec::with_capacity(rounds); cases.len()];
        // The first rounds warm up, and do not count.
        for round in 0..rounds + rounds / 10 {
            for (case, times) in cases.iter_mut().zip(&mut times) {
                // Not counted: the caches are still those of the case before.
                case.time(batch);
                let taken = case.time(batch).as_nanos() as f64 / batch as f64;
                if round >= rounds / 10 {
                    times.push(taken);
                }
            }
        }
        Self(times)
    }

    /// The median over the rounds of what is made of the times of one round.
    pub(crate) fn median(&self, of: impl Fn(&dyn Fn(usize) -> f64) -> f64) -> f64 {
        let rounds = 0..self.0[0].len();
        let mut values: Vec<_> = rounds.map(|r| of(&|case| self.0[case][r])).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }
}

pub(crate) fn nanoseconds(time: f64) -> String {
    match time.abs() {
        under if under < 10_000.0 => format!("{time:.0} ns"),
        _ => format!("{:.1} µs", time / 1_000.0),
    }
}

pub(crate) fn rows(table: &mut Table, counts: Option<&Counts>) {
    let upload = Upload::whole(KIB);
    bypass(table, counts, &upload);
    let window = Window::filled(many(10_000), &upload);
    let added = |case: &str, size: &str| added(counts?, case, size);

    let mut cases = [
        case::bare(&upload),
        case::fresh(&window, &upload),
        case::replay(&window, &upload),
        case::sha_256(&upload),
        case::two_map_operations(&window.sample, many(10_000)),
    ];
    let times = Rounds::of(&mut cases, 100);
    let [fresh, replay] = [1, 2].map(|case| times.median(|t| t(case) - t(0)));
    let [sha, map] = [3, 4].map(|case| times.median(|t| t(case)));

    let allocations = added("fresh", "1 KiB");
    let ratio = fresh / (sha + map);
    let few = allocations.is_none_or(|(count, _)| count <= 12);
    table.row(Row {
        what: "fresh, body of 1 KiB, 10 thousand records".to_owned(),
        measured: nanoseconds(fresh),
        floor: format!(
            "{} (SHA-256 {}, map {})",
            nanoseconds(sha + map),
            nanoseconds(sha),
            nanoseconds(map)
        ),
        ratio: format!("{ratio:.2}"),
        budget: "2.5 x, 12 allocations".to_owned(),
        met: Some(ratio <= 2.5 && few),
        allocations: shown(allocations),
    });
    table.row(Row {
        what: "replay, body of 1 KiB, 10 thousand records".to_owned(),
        measured: nanoseconds(replay),
        floor: format!("{} (SHA-256)", nanoseconds(sha)),
        ratio: format!("{:.2}", replay / sha),
        budget: "SHA-256 + 500 ns".to_owned(),
        met: Some(replay <= sha + 500.0),
        allocations: shown(added("replay", "1 KiB")),
    });
    table.note(format!(
        "The bare service takes {}, and a replay spares it.",
        nanoseconds(times.median(|t| t(0)))
    ));

    for (size, upload) in uploads() {
        let len = upload.bytes().len();
        if len < 64 * KIB {
            continue;
        }
        let window = Window::filled(many(10_000), &upload);
        let mut cases = [
            case::bare(&upload),
            case::fresh(&window, &upload),
            case::sha_256(&upload),
        ];
        let batch = (256 * KIB / len).max(1);
        let times = Rounds::of(&mut cases, batch as u64);
        let fresh = times.median(|t| t(1) - t(0));
        let sha = times.median(|t| t(2));
        table.row(Row {
            what: format!("fresh, body of {size}"),
            measured: nanoseconds(fresh),
            floor: format!("{} (SHA-256)", nanoseconds(sha)),
            ratio: format!("{:.2}", fresh / sha),
            budget: "1.1 x".to_owned(),
            met: Some(fresh <= 1.1 * sha),
            allocations: shown(added("fresh", size)),
        });
    }
}

fn bypass(table: &mut Table, counts: Option<&Counts>, upload: &Upload) {
    let mut cases = [case::bare_keyless(upload), case::bypass(upload)];
    let times = Rounds::of(&mut cases, 200);
    let bypass = times.median(|t| t(1) - t(0));
    let bare = times.median(|t| t(0));
    let allocations = counts.and_then(|counts| added(counts, "bypass", "1 KiB"));
    let none = allocations.is_none_or(|(count, _)| count == 0);
    table.row(Row {
        what: "bypass".to_owned(),
        measured: nanoseconds(bypass),
        floor: format!("{} (bare)", nanoseconds(bare)),
        ratio: format!("{:.2}", bypass / bare),
        budget: "30 ns, 0 allocations".to_owned(),
        met: Some(bypass < 30.0 && none),
        allocations: shown(allocations),
    });
}

/// What the layer takes beyond the bare service.
fn added(counts: &Counts, case: &str, size: &str) -> Option<(i64, i64)> {
    let of = |case: &str| counts.get(&format!("{case}, {size}"));
    let ((count, bytes), (bare_count, bare_bytes)) = (of(case)?, of("floor: bare service")?);
    Some((count - bare_count, bytes - bare_bytes))
}

fn shown(allocations: Option<(i64, i64)>) -> String {
    allocations.map_or_else(String::new, |(count, bytes)| {
        format!("{count} ({bytes} bytes)")
    })
}
