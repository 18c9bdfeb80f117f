//! What the README owes its readers.

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
