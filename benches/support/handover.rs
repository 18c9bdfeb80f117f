//! What `allocations` counted, for the table of `budget`: a file beside the build, valid only
//! within one run of cargo.

use std::{collections::HashMap, fs, path::PathBuf};

/// Allocations and bytes.
pub(crate) type Counts = HashMap<String, (i64, i64)>;

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("allocations")
}

/// The process that runs the benchmarks one after the other.
#[cfg(unix)]
fn run() -> Option<String> {
    Some(std::os::unix::process::parent_id().to_string())
}

#[cfg(not(unix))]
fn run() -> Option<String> {
    None
}

/// Lines of name, allocations and bytes, with tabs between.
pub(crate) fn leave(lines: &[String]) {
    if let Some(run) = run() {
        let text = format!("{run}\n{}\n", lines.join("\n"));
        fs::write(file(), text).expect("a file beside the build");
    }
}

/// What this run of cargo has counted, if it has.
pub(crate) fn take() -> Option<Counts> {
    let text = fs::read_to_string(file()).ok()?;
    let (counted_by, lines) = text.split_once('\n')?;
    if run()? != counted_by {
        return None;
    }
    let count = |line: &str| {
        let mut fields = line.split('\t');
        let name = fields.next()?.to_owned();
        let allocations = fields.next()?.parse().ok()?;
        Some((name, (allocations, fields.next()?.parse().ok()?)))
    };
    Some(lines.lines().filter_map(count).collect())
}
