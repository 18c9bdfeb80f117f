//! Which paths a pattern is for, and which spellings are one.

use std::borrow::Cow;

use proptest::prelude::*;

use crate::config::{PathPattern, plain};

fn pattern(text: &str) -> PathPattern {
    PathPattern::parse(text).unwrap_or_else(|why| panic!("{text} {why}"))
}

#[test]
fn a_pattern_is_one_path_or_all_below_one() {
    for (text, path, matches) in [
        ("/v1/pay", "/v1/pay", true),
        ("/v1/pay", "/v1/pay/", false),
        ("/v1/pay", "/v1/Pay", false),
        ("/v1/pay", "/v1/pay/1", false),
        ("/v1/pay/", "/v1/pay/", true),
        ("/v1/pay:undo", "/v1/pay:undo", true),
        ("/", "/", true),
        ("/", "/v1", false),
        ("/v1/*", "/v1", true),
        ("/v1/*", "/v1/", true),
        ("/v1/*", "/v1/pay/1", true),
        ("/v1/*", "/v1//pay", true),
        ("/v1/*", "/v12", false),
        ("/v1/*", "/", false),
        ("/*", "/", true),
        ("/*", "/v1", true),
        ("/*", "*", true),
        ("/*", "", true),
    ] {
        assert_eq!(pattern(text).matches(path), matches, "{text} {path}");
        assert_eq!(pattern(text).to_string(), text);
    }
}

#[test]
fn what_is_no_pattern_is_told_so() {
    for (text, why) in [
        ("", "does not begin"),
        ("v1/pay", "does not begin"),
        ("*", "elsewhere"),
        ("/v1/*/pay", "elsewhere"),
        ("/v1*", "elsewhere"),
        ("/v1/{id}", "parameters"),
        ("/v1/:id/undo", "parameters"),
        ("/v1?a", "query"),
        ("/v1#a", "query"),
        ("/v1/a b", "escape it"),
        ("/v1/ä", "escape it"),
        ("/v1//pay", "plain"),
        ("//", "plain"),
        ("//*", "plain"),
        ("/v1//*", "plain"),
        ("/v1/../pay", "plain"),
        ("/v1/./*", "plain"),
        ("/v1/pay;a", "plain"),
        ("/v1\\pay", "plain"),
    ] {
        let told = PathPattern::parse(text).expect_err(text);
        assert!(told.contains(why), "{text} {told}");
    }
}

#[test]
fn spellings_that_some_server_takes_for_one_have_one_plain_spelling() {
    for spelling in [
        "/v1/pay",
        "/v1/pay/",
        "/v1/pay//",
        "//v1/pay",
        "/v1//pay",
        "/v1/./pay",
        "/v1/x/../pay",
        "/../v1/pay",
        "/v1/pay/.",
        "/v1/pay/x/..",
        "/V1/Pay",
        "/v1/p%61y",
        "/v1/%70%61%79",
        "/v1%2Fpay",
        "/v1%2fpay",
        "/v1%252Fpay",
        "/v1%25%32%46pay",
        "/v1/%2e%2E/v1/pay",
        "/v1/x%2f..%2fpay",
        "/v1\\pay",
        "/v1/x%5c..%5cpay",
        "/v1/pay;a=b",
        "/v1;a/pay;b;c",
        "/v1/x/..;a/pay",
        "/v1/pay%3Ba",
        "/%76%31/;/pay",
    ] {
        let plain = plain(spelling);
        assert_eq!(String::from_utf8_lossy(&plain), "/v1/pay", "{spelling}");
    }
    assert_eq!(&*plain("/"), b"");
    assert_eq!(&*plain("/.."), b"");
    // No escapes: these stay.
    assert_eq!(&*plain("/a%"), b"/a%");
    assert_eq!(&*plain("/a%2"), b"/a%2");
    assert_eq!(&*plain("/a%zz"), b"/a%zz");
    assert_eq!(&*plain("/a%+1"), b"/a%+1");
}

/// P10: a path that is plain already costs no allocation, nor does a slash at its end.
#[test]
fn p10_a_plain_path_is_borrowed() {
    for path in [
        "/",
        "/v1/pay",
        "/v1/pay/",
        "/v1/pay:undo",
        "/a/b.c/...",
        "/a/b+c,d",
    ] {
        assert!(matches!(plain(path), Cow::Borrowed(_)), "{path}");
    }
}

/// Takes time in proportion to the path, however many escapes stand in one another.
#[test]
fn p9_nested_escapes_are_resolved_in_one_pass() {
    let path = format!("/%{}2Fpay", "25".repeat(1_000_000));
    assert!(&*plain(&path) == b"/pay");
}

proptest! {
    /// The plain spelling has itself as its plain spelling, and begins with a slash or is empty.
    #[test]
    fn a_plain_spelling_is_plain(path in "/([a-cA-C/.;%25\\\\]|%2[eEfF5]|%5[cC]){0,24}") {
        let once = plain(&path).into_owned();
        let Ok(text) = String::from_utf8(once.clone()) else {
            return Ok(());
        };
        prop_assert!(text.is_empty() || text.starts_with('/') && !text.ends_with('/'), "{}", text);
        prop_assert!(!text.contains("//") && !text.contains("/../"), "{}", text);
        let twice = plain(&text);
        prop_assert_eq!(&*twice, &*once);
    }

    /// A pattern that includes another is for all that the other is for.
    #[test]
    fn what_a_pattern_includes_it_is_for(
        outer in "(/[ab]){0,2}(/\\*)?", inner in "(/[ab]){0,3}(/\\*)?", path in "(/[ab]){1,4}",
    ) {
        if let (Ok(outer), Ok(inner)) = (PathPattern::parse(&outer), PathPattern::parse(&inner))
            && outer.includes(&inner)
            && inner.matches(&path)
        {
            prop_assert!(outer.matches(&path));
        }
    }
}
