//! Every requirement that is met here, and every promise, is named by a test: in its name or in its
//! documentation.

use std::{collections::BTreeSet, fs, path::Path};

/// What the sources ask for: S01 to S33.
const FROM_SOURCES: std::ops::RangeInclusive<u8> = 1..=33;
/// The IETF draft: I01 to I12.
const FROM_DRAFT: std::ops::RangeInclusive<u8> = 1..=12;
/// What users of other implementations miss: U01 to U38.
const FROM_USERS: std::ops::RangeInclusive<u8> = 1..=38;
/// What the README promises: P1 to P10.
const PROMISED: std::ops::RangeInclusive<u8> = 1..=10;

#[test]
fn each_requirement_is_named_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = BTreeSet::new();
    for folder in ["tests", "src"] {
        read(&root.join(folder), &mut |path, text| {
            let path = path.strip_prefix(root).expect("a path below the root");
            if path != Path::new(file!()) {
                named.extend(ids(tests_in(path, text)));
            }
        });
    }
    let required = FROM_SOURCES.map(|n| format!("S{n:02}"));
    let required = required.chain(FROM_DRAFT.map(|n| format!("I{n:02}")));
    let required = required.chain(FROM_USERS.map(|n| format!("U{n:02}")));
    let required = required.chain(PROMISED.map(|n| format!("P{n}")));
    let missing: Vec<_> = required.filter(|id| !named.contains(id)).collect();
    assert!(missing.is_empty(), "no test names {}", missing.join(", "));
}

#[test]
fn ids_are_found_in_names_and_in_documentation() {
    let test = "/// U08, P4: text.\nfn s13_u27_replay() { us05(); u1(); S001; p01(); }";
    let found = ["P4", "S13", "U08", "U27"];
    assert_eq!(ids(test), found.map(str::to_owned).into());
    let source = "/// S01\nfn f() {}\n#[cfg(test)]\nmod tests { /* S02 */ }";
    let path = |path| Path::new(path);
    assert_eq!(
        ids(tests_in(path("src/a.rs"), source)),
        ["S02".to_owned()].into()
    );
    assert_eq!(tests_in(path("src/a.rs"), "/// S01\nfn f() {}"), "");
    assert_eq!(tests_in(path("src/a/tests.rs"), "/// S01"), "/// S01");
    assert_eq!(tests_in(path("tests/a.rs"), "/// S01"), "/// S01");
}

fn read(folder: &Path, visit: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read(&path, visit);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            visit(&path, &fs::read_to_string(&path).expect("a source"));
        }
    }
}

/// The part of a file that is tests: all of it in a folder of tests, else what follows the first
/// `#[cfg(test)]` (test modules come last).
fn tests_in<'a>(path: &Path, text: &'a str) -> &'a str {
    let is_test = |part: &std::ffi::OsStr| {
        ["tests", "tests.rs", "testing"].contains(&part.to_str().unwrap_or_default())
    };
    match path.iter().any(is_test) {
        true => text,
        false => text.find("#[cfg(test)]").map_or("", |at| &text[at..]),
    }
}

/// All ids in a text: `S01`, or `s01` as part of a name; promises have no zero in front.
fn ids(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words
        .map(str::to_ascii_uppercase)
        .filter(|word| {
            let (kind, number) = word.split_at(word.len().min(1));
            number.bytes().all(|digit| digit.is_ascii_digit())
                && match kind {
                    "S" | "I" | "U" => number.len() == 2,
                    "P" => matches!(number.len(), 1 | 2) && !number.starts_with('0'),
                    _ => false,
                }
        })
        .collect()
}
