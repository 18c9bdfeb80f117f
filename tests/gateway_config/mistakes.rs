//! What is said of each mistake: where it is, what is wrong, and what would be right.

use crate::{
    config::Ended,
    reading::{read, read_file},
};

/// What is said of a command line; the whole of it.
fn told(args: &[&str]) -> String {
    of(read(args).expect_err("a mistake"))
}

/// What is said of a file.
fn told_of_file(text: &str) -> String {
    of(read_file(text, &[]).expect_err("a mistake"))
}

fn of(ended: Ended) -> String {
    assert_eq!(ended.code, 2, "{}", ended.text);
    assert!(ended.text.ends_with('\n'), "{}", ended.text);
    ended.text
}

/// A wrong value is told with its option, and says what would be right.
#[test]
fn a_wrong_value_is_told_with_its_option() {
    for (option, value, expected) in [
        ("listen", "localhost:80", "an IP address and a port"),
        ("listen", "3000", "an IP address and a port"),
        ("upstream", "127.0.0.1:4000", "http://"),
        ("upstream", "localhost", "http://"),
        ("upstream", "ftp://a:1", "does not begin with http://"),
        ("upstream", "https://a", "no TLS"),
        ("upstream", "http://a:1/v1", "has a path"),
        ("upstream", "http://a:1?b", "has a path"),
        ("upstream", "http://:1", "lacks a host"),
        ("upstream", "http://a:", "lacks a host or a port"),
        ("upstream", "http://a:x", "a port"),
        ("upstream", "http://a:0", "a port"),
        ("upstream", "http://a:99999", "a port"),
        ("upstream", "http://a b", "is no URL"),
        ("upstream", "http://u:hunter2@a:1", "a name or password"),
        ("upstream", "", "is no URL"),
        ("store", "memroy", "is memory, redis://…"),
        ("store", "reddis://a", "did you mean `redis`?"),
        ("store", "memory:", "is memory, redis://…"),
        ("store", "redis", "is memory, redis://…"),
        ("store", "sqlite:", "names no file"),
        ("store", "tiered:memory", "there are two"),
        (
            "store",
            "tiered:memory,tiered:memory,memory",
            "tiers in a tier",
        ),
        ("store", "mongodb://u:hunter2@a", "is memory, redis://…"),
        ("connect-timeout", "5", "time unit needed"),
        ("upstream-timeout", "soon", "is no time"),
        ("idle-timeout", "0s", "is no time at all"),
        ("drain-timeout", "-1s", "is no time"),
        ("header-read-timeout", "1parsec", "is no time"),
        ("ttl", "100y", "longer than ten years"),
        ("lease", "1ms", "less than 100ms"),
        ("max-connections", "99999999999999999999", "a whole number"),
        ("max-connections", "0", "at least 1"),
        ("max-connections", "many", "a whole number"),
        ("buffer-limit", "0", "nothing at all"),
        ("buffer-limit", "1 sack", "is no size"),
        ("body-limit", "-1", "is no size"),
        ("body-limit", "1GiB", "more than the limit for all"),
        ("via", "two words", "is a single word"),
        ("via", "", "is a single word"),
        ("path", "v1", "does not begin with `/`"),
        ("path", "/v1/*/pay", "elsewhere"),
        ("methods", "post", "`POST`"),
        ("methods", "GET", "changes nothing"),
        ("methods", "POST,POST", "twice"),
        ("methods", "", "no method"),
        ("methods", "POST,", "no method"),
        ("methods", "PO ST", "no method"),
        ("key-header", "my key", "name of a header"),
        ("key-header", "connection", "a header of connections"),
        ("key-header", "X-Forwarded-For", "of connections or proxies"),
        ("prefix", "", "is a single word"),
        ("key-json", "idempotency_key", "begins with `/`"),
        ("key-json", "/a~2", "`~0`"),
        ("on-conflict", "wait", "as in wait:30s"),
        ("on-conflict", "wait:", "is no time"),
        ("on-conflict", "wait:x", "is no time"),
        ("on-conflict", "rejcet", "did you mean `reject`?"),
        ("takeover", "run", "is retry or refuse"),
        ("takeover", "refuze", "did you mean `refuse`?"),
        ("unknown", "Keep", "did you mean `keep`?"),
        ("refusals", "json", "is problem or stripe"),
        ("refusals", "Stripe", "did you mean `stripe`?"),
    ] {
        let flag = format!("--{option}={value}");
        let mut args = vec![&*flag, "--single-tenant"];
        if option != "upstream" {
            args.push("--upstream=http://a:1");
        }
        let text = told(&args);
        let start = format!("error: `--{option}` ");
        assert!(text.starts_with(&start), "{flag}: {text}");
        assert!(text.contains(expected), "{flag}: {text}");
        assert_eq!(text.lines().count(), 1, "{flag}: {text}");
        // U19: what could be a secret is not repeated.
        assert!(!text.contains("hunter2"), "{flag}: {text}");
    }
}

/// A scope that is no header's name is not repeated: it may be what should stand in the header.
#[test]
fn u19_a_value_in_place_of_a_name_is_not_repeated() {
    let text = told(&["--upstream=http://a:1", "--scope-header=Bearer hunter2"]);
    assert!(
        text.starts_with("error: `--scope-header` is the name of a header"),
        "{text}"
    );
    assert!(!text.contains("hunter2"), "{text}");
}

/// I12: nothing is shared unless that was said.
#[test]
fn i12_a_scope_is_needed() {
    let text = told(&["--upstream=http://a:1"]);
    assert!(
        text.starts_with("error: `--scope-header` or `--single-tenant` is needed"),
        "{text}"
    );
    let text = told(&[
        "--upstream=http://a:1",
        "--single-tenant",
        "--scope-header=x",
    ]);
    assert!(text.contains("`--single-tenant` is given beside"), "{text}");
    let key = "--scope-header=idempotency-key";
    let text = told(&["--upstream=http://a:1", key]);
    assert!(text.contains("a caller of its own"), "{text}");
    let file = "upstream = 'http://a:1'\n[[route]]\nsingle-tenant = false\n";
    let text = told_of_file(file);
    assert!(
        text.starts_with("error: g.toml:2: `scope-header` or `single-tenant` is needed"),
        "{text}"
    );
}

/// What cannot be meant together.
#[test]
fn contradictions_are_told() {
    for (flags, expected) in [
        (&["--ttl=10s"][..], "`--ttl` is less than the lease (30s)"),
        (
            &["--ttl=1h", "--lease=2h"],
            "`--ttl` is less than the lease (2h)",
        ),
        (&["--lease=2days"], "`--ttl` is less than the lease (2days)"),
        (
            &["--key-json=/a", "--key-header=b"],
            "a key stands in one place",
        ),
        (&["--buffer-limit=1KiB"], "`--body-limit` is more than"),
        (
            &["--listen=127.0.0.1:80"],
            "`--upstream` is the gateway itself",
        ),
        (
            &["--listen=0.0.0.0:80"],
            "`--upstream` is the gateway itself",
        ),
    ] {
        let always = ["--upstream=http://127.0.0.1", "--single-tenant"];
        let text = told(&[&always[..], flags].concat());
        assert!(text.contains(expected), "{flags:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{flags:?}: {text}");
    }
}

/// What depends on a value that is wrong is not told: it may be right.
#[test]
fn no_mistake_is_made_up() {
    let text = told_of_file(
        "upstream = 'http://a:1'
[[route]]
single-tenant = true
ttl = '10s'
lease = 'short'
[[route]]
single-tenant = true
methods = ['PUT', 'get']
",
    );
    let lines: Vec<_> = text.lines().collect();
    let [lease, methods] = lines[..] else {
        panic!("{text}")
    };
    assert!(
        lease.starts_with("error: g.toml:5: `lease` is no time"),
        "{text}"
    );
    assert!(
        methods.starts_with("error: g.toml:8: `methods` has"),
        "{text}"
    );
    for upstream in [
        "http://127.0.0.1:3001",
        "http://10.0.0.1:3000",
        "http://[::1]:3000",
    ] {
        let upstream = format!("--upstream={upstream}");
        read(&[&upstream, "--single-tenant"]).unwrap();
    }
    for (listen, upstream) in [("[::1]:80", "[::1]"), ("[::]:3000", "LocalHost:3000")] {
        let (listen, upstream) = (
            format!("--listen={listen}"),
            format!("--upstream=http://{upstream}"),
        );
        assert!(told(&[&listen, &upstream, "--single-tenant"]).contains("the gateway itself"));
    }
}

/// Flags that do not exist are clap's to tell, with what may have been meant.
#[test]
fn an_unknown_flag_is_told_with_what_may_have_been_meant() {
    let text = told(&["--scope-haeder=x"]);
    assert!(text.contains("--scope-header"), "{text}");
    assert!(told(&["http://a:1"]).contains("unexpected argument"));
    assert!(told(&["--ttl"]).contains("a value is required"));
}

/// Every mistake of a file is told, in the order of its lines, each with its line.
#[test]
fn all_mistakes_of_a_file_are_told_at_once() {
    let text = told_of_file(
        "upstrem = 'http://a:1'
listen = 'here'
ttl = '1h'
upstream-http2 = 'yes'
via = 1.5
methods = ['POST']
frobnicate = 1

[[route]]
path = '/a'
store = 'memory'
methods = 'POST'
lease = '1w'
tll = '1h'
single-tenant = true

[[route]]
path = '/b/{id}'
methods = ['GET']
scope-header = 'x y'
[route.more]
",
    );
    let expected = [
        ("", "`--upstream` is not given"),
        (
            "g.toml:1: ",
            "there is no option `upstrem`; did you mean `upstream`?",
        ),
        ("g.toml:2: ", "`listen` is an IP address"),
        (
            "g.toml:3: ",
            "`ttl` is for a route: put it below a `[[route]]`",
        ),
        (
            "g.toml:4: ",
            "`upstream-http2` is true or false, without quotes",
        ),
        (
            "g.toml:5: ",
            "`via` is a text, in quotes; this is of the type float",
        ),
        ("g.toml:6: ", "`methods` is for a route"),
        ("g.toml:7: ", "there is no option `frobnicate`"),
        ("g.toml:9: ", "`ttl` is less than the lease (7days)"),
        ("g.toml:11: ", "`store` is for the whole gateway"),
        (
            "g.toml:12: ",
            "`methods` is a list, as in [\"POST\", \"PATCH\"]",
        ),
        (
            "g.toml:14: ",
            "there is no option `tll`; did you mean `ttl`?",
        ),
        ("g.toml:18: ", "`path` looks like one with parameters"),
        ("g.toml:19: ", "`methods` has GET in it"),
        ("g.toml:20: ", "`scope-header` is the name of a header"),
        ("g.toml:21: ", "there is no option `more`"),
    ];
    let lines: Vec<_> = text.lines().collect();
    for (line, (place, told)) in lines.iter().zip(expected) {
        assert!(
            line.starts_with(&format!("error: {place}{told}")),
            "{line}\n{told}"
        );
    }
    assert_eq!(lines.len(), expected.len(), "{text}");
}

/// What is no TOML is told with its line, and nothing is made up from what surrounds it.
#[test]
fn what_is_no_toml_is_told_with_its_line() {
    for (file, start) in [
        (
            "upstream = 'http://a:1'\nvia = \n",
            "error: g.toml:2: is no TOML: ",
        ),
        ("via = 'a'\n\nvia = 'b'\n", "error: g.toml:3: is no TOML: "),
        ("[[route]\n", "error: g.toml:1: is no TOML: "),
        ("via = 'a", "error: g.toml:1: is no TOML: "),
    ] {
        let text = told_of_file(file);
        assert!(text.starts_with(start), "{file}: {text}");
        assert!(!text.contains("not given"), "{file}: {text}");
    }
    let two = told_of_file("a = \nb = 'x'\nc = ]\n");
    assert!(
        two.contains("g.toml:1") && two.contains("g.toml:3"),
        "{two}"
    );
    for (file, expected) in [
        ("[route]\npath = '/a'\n", "in two brackets"),
        ("route = 5\n", "in two brackets"),
        ("route = [5]\n", "is a table"),
    ] {
        let text = told_of_file(file);
        assert!(text.contains(expected), "{file}: {text}");
    }
}

/// A file that is not there, or is none.
#[test]
fn a_file_that_cannot_be_read_is_told() {
    for (file, why) in [("/no/such/file.toml", "No such file"), ("/", "directory")] {
        let text = told(&["--config", file]);
        let start = format!("error: `--config` names {file}, which cannot be read: ");
        assert!(text.starts_with(&start) && text.contains(why), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("latin1.toml");
    std::fs::write(&file, b"via = '\xe4'").unwrap();
    let text = told(&["--config", file.to_str().unwrap()]);
    assert!(text.contains("valid UTF-8"), "{text}");
}

/// Routes that no request can come to.
#[test]
fn routes_that_are_never_reached_are_told() {
    let file = |routes: &[(&str, &str)]| {
        let mut file = "upstream = 'http://a:1'\n".to_owned();
        for (path, methods) in routes {
            file += &format!(
                "[[route]]\nsingle-tenant = true\npath = '{path}'\nmethods = [{methods}]\n"
            );
        }
        file
    };
    for (routes, expected) in [
        (
            [("/*", "'POST'"), ("/a", "'POST'")],
            "error: g.toml:6: the route for /a gets no POST: the one for /* in line 2 comes first \
             and takes all of it\n",
        ),
        (
            [("/a/*", "'POST', 'PATCH'"), ("/a/b/*", "'PATCH', 'PUT'")],
            "error: g.toml:6: the route for /a/b/* gets no PATCH: the one for /a/* in line 2 comes \
             first and takes all of it\n",
        ),
        (
            [("/a", "'POST'"), ("/A/", "'POST'")],
            "error: g.toml:6: the route for /A/ gets no POST: the one for /a in line 2 comes first \
             and takes all of it; the case of letters and a slash at the end make no difference\n",
        ),
    ] {
        assert_eq!(told_of_file(&file(&routes)), expected);
    }
    for routes in [
        [("/a", "'POST'"), ("/*", "'POST'")],
        [("/*", "'POST'"), ("/*", "'PATCH'")],
        [("/a", "'POST'"), ("/a/*", "'POST'")],
        [("/a/*", "'POST'"), ("/ab", "'POST'")],
    ] {
        read_file(&file(&routes), &[]).unwrap();
    }
}

/// The flags of a route, beside a file that has routes.
#[test]
fn flags_of_a_route_do_not_go_with_routes_of_a_file() {
    let file = "upstream = 'http://a:1'\n[[route]]\nsingle-tenant = true\n";
    let text = of(read_file(file, &["--ttl=1h", "--via=x"]).expect_err("a mistake"));
    assert!(
        text.starts_with("error: `--ttl` is for a gateway of one route"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1, "{text}");
}

/// A store that was left out of the program is told with the feature that puts it in.
#[test]
fn a_store_that_is_not_built_in_is_told_with_its_feature() {
    for (url, feature, built) in [
        ("redis://a", "redis", cfg!(feature = "redis")),
        ("postgres://a", "postgres", cfg!(feature = "postgres")),
        ("sqlite:a", "sqlite", cfg!(feature = "sqlite")),
    ] {
        let store = format!("--store={url}");
        let read = read(&[&store, "--upstream=http://a:1", "--single-tenant"]);
        match read {
            Ok(_) => assert!(built, "{url}"),
            Err(ended) => {
                assert!(!built, "{url}");
                let text = of(ended);
                assert!(text.contains(&format!("`--features {feature}`")), "{text}");
            }
        }
    }
}
