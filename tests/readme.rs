//! What the README owes its readers.

use std::path::Path;

/// S32: when another way is better, the README says which.
#[test]
fn s32_the_readme_names_the_alternatives() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(readme).expect("a README");
    for alternative in [
        "PUT",
        "ETag",
        "If-Match",
        "client-generated",
        "unique constraint",
    ] {
        assert!(readme.contains(alternative), "nothing about {alternative}");
    }
    for command in ["./scripts/test", "cargo run --example payments"] {
        assert!(readme.contains(command), "`{command}` is not there");
    }
}

/// A run that a reader is told to repeat is one that there is.
#[test]
fn the_tests_that_are_named_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for readme in ["README.md", "examples/README.md"] {
        let text = std::fs::read_to_string(root.join(readme)).expect("a README");
        for line in text.lines().filter(|line| line.contains("cargo test ")) {
            let mut rest = line.split(" --test ").skip(1);
            let Some(name) = rest.next().and_then(|rest| rest.split(' ').next()) else {
                continue;
            };
            let file = root.join("tests").join(name);
            let found = file.with_extension("rs").is_file() || file.join("main.rs").is_file();
            assert!(found, "{readme}: {line}");
            named += 1;
        }
    }
    assert!(named >= 6, "{named}");
}
