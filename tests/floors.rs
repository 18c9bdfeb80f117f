//! The floors of the crate: a module knows only what stands on the floors below it.
//!
//! Reads the sources, so that a wrong import fails here and not in a review. Test code may know
//! everything and is passed over.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    iter::Peekable,
    path::Path,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// From the ground up: what things are (the first three rows), how a record may change and who
/// keeps it (three rows), what works on that, and what faces its users. Modules of one row do not
/// know each other; the files within one folder module do.
const FLOORS: &[&[&str]] = &[
    &["key", "json"],
    &["fingerprint"],
    &["record"],
    &["machine"],
    &["store/contract"],
    &["store/transaction"],
    &["telemetry", "store/sql", "store/wakes"],
    &[
        "store/memory",
        "store/postgres",
        "store/redis",
        "store/sqlite",
        "store/tiered",
        "engine",
        "testing",
    ],
    &["server", "function", "client"],
];

/// Outside of `server` and `client`, nobody has heard of HTTP.
const HTTP: &[&str] = &[
    "http",
    "http_body",
    "http_body_util",
    "hyper",
    "tower",
    "axum",
    "tonic",
    "tonic_types",
    "prost",
];

/// Within `server`, `layer` stands on top: it has the options and knows `service`.
const TOP_OF_SERVER: &str = "server/layer";

#[test]
fn each_module_knows_only_the_floors_below() {
    let sources = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "");
    assert!(sources.contains_key("lib.rs"));
    let faults = faults(&sources);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The checker itself: each of these is caught, and names what is wrong.
#[test]
fn violations_are_caught() {
    let cases = [
        ("key.rs", "use crate::record::Record;", "key -> record"),
        ("key.rs", "fn f() { crate::record::f() }", "key -> record"),
        ("key.rs", "use super::record;", "key -> record"),
        (
            "key.rs",
            "mod a { use super::super::record::R; }",
            "key -> record",
        ),
        (
            "key.rs",
            "macro_rules! m { () => { $crate::record::f() } }",
            "key -> record",
        ),
        (
            "key.rs",
            "pin_project! { struct A { b: crate::record::R } }",
            "key -> record",
        ),
        (
            "key.rs",
            "use crate::{fingerprint as f};",
            "key -> fingerprint",
        ),
        ("key.rs", "use crate::Record;", "key -> record"),
        (
            "key.rs",
            "use crate::*;",
            "key: cannot tell what `crate::*` is",
        ),
        (
            "key.rs",
            "use crate::nothing;",
            "key: cannot tell what `crate::nothing` is",
        ),
        (
            "store/contract.rs",
            "use super::MemoryStore;",
            "store/contract -> store/memory",
        ),
        (
            "store/contract.rs",
            "use super::memory;",
            "store/contract -> store/memory",
        ),
        (
            "store/memory.rs",
            "use crate::engine::Engine;",
            "store/memory -> engine/core",
        ),
        (
            "engine/core.rs",
            "use crate::store::{Store, MemoryStore};",
            "engine/core -> store/memory",
        ),
        (
            "store/redis/script.rs",
            "use crate::store::MemoryStore;",
            "store/redis/script -> store/memory",
        ),
        (
            "store/memory.rs",
            "use super::redis::RedisStore;",
            "store/memory -> store/redis/script",
        ),
        (
            "engine/core.rs",
            "use crate::server::layer;",
            "engine/core -> server/layer",
        ),
        (
            "function/run.rs",
            "use crate::server::layer;",
            "function/run -> server/layer",
        ),
        (
            "function/run.rs",
            "use http::StatusCode;",
            "function/run mentions http",
        ),
        (
            "function/run.rs",
            "use crate::client::Purpose;",
            "function/run -> client/key",
        ),
        (
            "client/key.rs",
            "use crate::server::L;",
            "client/key -> server/layer",
        ),
        (
            "server/service.rs",
            "use crate::client::Purpose;",
            "server/service -> client/key",
        ),
        (
            "engine/core.rs",
            "use http::StatusCode;",
            "engine/core mentions http",
        ),
        (
            "engine/core.rs",
            "use {http_body::Body};",
            "engine/core mentions http_body",
        ),
        (
            "server/service.rs",
            "use super::layer::L;",
            "server/service -> server/layer",
        ),
        (
            "server/service.rs",
            "use crate::server;",
            "server/service -> server",
        ),
        (
            "engine/core.rs",
            "use crate::store;",
            "engine/core: cannot tell what `crate::store` is",
        ),
        (
            "server/extract/key.rs",
            "use super::super::layer::L;",
            "server/extract/key -> server/layer",
        ),
        (
            "store/mod.rs",
            "fn f() {}",
            "store is more than docs and re-exports",
        ),
        (
            "store/mod.rs",
            "impl A for B {}",
            "store is more than docs and re-exports",
        ),
        ("attic.rs", "", "attic has no floor"),
    ];
    for (file, text, fault) in cases {
        let mut sources = sound();
        let source = sources.entry(file.to_owned()).or_default();
        source.push_str(text);
        assert_eq!(faults(&sources), [fault], "{file}: {text}");
    }
}

/// And these are not.
#[test]
fn what_is_sound_is_not_reported() {
    assert_eq!(faults(&sound()), [""; 0]);
    let cases = [
        (
            "key.rs",
            "/// [`crate::record`]\n// crate::record\nconst A: &str = \"crate::record\";",
        ),
        (
            "key.rs",
            "#[cfg(test)] mod tests { use crate::record::Record; use super::*; }",
        ),
        ("key.rs", "#[cfg(test)] use crate::record::Record;"),
        ("key.rs", "mod a { use super::Key; }"),
        ("engine/core.rs", "fn f() { crate::hash!() }"),
        (
            "engine/tests.rs",
            "use crate::store::MemoryStore; use http::Request;",
        ),
        (
            "server/layer.rs",
            "use super::{service::{self, S}, extract}; use crate::{Store, engine};",
        ),
        ("client/retry.rs", "use http::Request; use crate::engine;"),
        (
            "server/service.rs",
            "use super::extract::Key; use crate::{engine::Engine, key::Key};",
        ),
        (
            "client/key.rs",
            "use http::Request; use crate::engine::Engine;",
        ),
        (
            "store/mod.rs",
            "pub(crate) use contract::jittered; #[cfg(test)] mod tests;",
        ),
    ];
    for (file, text) in cases {
        let mut sources = sound();
        sources.entry(file.to_owned()).or_default().push_str(text);
        assert_eq!(faults(&sources), [""; 0], "{file}: {text}");
    }
}

/// A small crate in which everything stands where it should.
fn sound() -> BTreeMap<String, String> {
    [
        ("lib.rs", "mod key; pub mod store; pub use record::Record; pub use store::Store;"),
        ("key.rs", "pub struct Key; macro_rules! hash { () => {} }"),
        ("fingerprint.rs", "use crate::key::Key;"),
        ("record.rs", "use crate::fingerprint::F;"),
        ("store/mod.rs", "//! Docs.\nmod contract; mod memory; mod redis; pub use contract::Store; pub use memory::{MemoryStore};"),
        ("store/contract.rs", "use crate::record::Record;"),
        ("store/memory.rs", "use super::contract::Store; use crate::{key::{Key}, store::Store};"),
        ("store/redis/mod.rs", "mod reply; mod script; pub use script::RedisStore;"),
        ("store/redis/script.rs", "use super::reply::R; use crate::store::contract::Store;"),
        ("store/redis/reply.rs", ""),
        ("engine/mod.rs", "mod core; pub(crate) use self::core::Engine; #[cfg(test)] mod tests;"),
        ("engine/core.rs", "use crate::store::Store as _;"),
        ("engine/tests.rs", ""),
        ("client/mod.rs", "mod key; pub use key::Purpose;"),
        ("client/key.rs", "use crate::key::Key;"),
        ("server/mod.rs", "mod extract; mod layer; mod service; pub use layer::L;"),
        ("server/layer.rs", "use super::service::S;"),
        ("server/service.rs", "use crate::engine::Engine;"),
        ("server/extract/mod.rs", "mod key; pub(crate) use key::Key;"),
        ("server/extract/key.rs", "use crate::server::service::S;"),
    ]
    .map(|(file, text)| (file.to_owned(), text.to_owned()))
    .into()
}

/// All sources below a folder, by their path in it.
fn read(folder: &Path, prefix: &str) -> BTreeMap<String, String> {
    let mut sources = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = format!("{prefix}{}", name.expect("a name in UTF-8"));
        if path.is_dir() {
            sources.extend(read(&path, &format!("{name}/")));
        } else if name.ends_with(".rs") {
            sources.insert(name, fs::read_to_string(&path).expect("a source"));
        }
    }
    sources
}

/// What is wrong with a crate, given as its files.
fn faults(sources: &BTreeMap<String, String>) -> Vec<String> {
    let files: BTreeMap<Vec<String>, File> = sources
        .iter()
        .map(|(path, text)| (module_of(path), File::parse(path, text)))
        .collect();
    let tests: BTreeSet<_> = files
        .iter()
        .flat_map(|(module, file)| {
            let child = |name: &String| [module.as_slice(), std::slice::from_ref(name)].concat();
            file.test_modules.iter().map(child)
        })
        .collect();

    let mut faults = Vec::new();
    for (module, file) in &files {
        if module.is_empty() || tests.iter().any(|test| module.starts_with(test)) {
            continue;
        }
        let name = module.join("/");
        if file.is_folder {
            if file.has_code {
                faults.push(format!("{name} is more than docs and re-exports"));
            }
            continue;
        }
        let Some(floor) = floor(&name) else {
            faults.push(format!("{name} has no floor"));
            continue;
        };
        for path in &file.paths {
            let Some(target) = resolve(&files, path, 0).or_else(|| exporter(&files, path)) else {
                let path = path.join("::");
                faults.push(format!("{name}: cannot tell what `crate::{path}` is"));
                continue;
            };
            let known = target.join("/");
            let siblings = entry(&name) == entry(&known);
            let allowed = target == *module
                || if siblings {
                    known != TOP_OF_SERVER && known != "server"
                } else {
                    self::floor(&known).is_some_and(|below| below < floor)
                };
            if !allowed {
                faults.push(format!("{name} -> {known}"));
            }
        }
        if !["server", "client"].contains(&module[0].as_str()) {
            let mentioned = HTTP.iter().filter(|what| file.names.contains(**what));
            faults.extend(mentioned.map(|what| format!("{name} mentions {what}")));
        }
    }
    faults.dedup();
    faults
}

/// The floor of a file, or of the folder that it is in.
fn floor(name: &str) -> Option<usize> {
    let entry = entry(name)?;
    FLOORS.iter().position(|floor| floor.contains(&entry))
}

/// The file, or the folder that it is in, that stands on a floor.
fn entry(name: &str) -> Option<&'static str> {
    let mut entries = FLOORS.iter().copied().flatten().copied();
    entries.find(|entry| {
        let rest = name.strip_prefix(entry);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// `store/mod.rs` is the module `store`, `store/memory.rs` is `store::memory`, `lib.rs` the root.
fn module_of(path: &str) -> Vec<String> {
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let mut module: Vec<_> = path.split('/').map(str::to_owned).collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
        module.pop();
    }
    module
}

/// The file that holds what `path` (from the root of the crate) names.
fn resolve(files: &BTreeMap<Vec<String>, File>, path: &[String], depth: u8) -> Option<Vec<String>> {
    let module = (0..=path.len()).rev().map(|length| &path[..length]);
    let module = module
        .into_iter()
        .find(|prefix| files.contains_key(*prefix))?;
    let file = &files[module];
    if !module.is_empty() && !file.is_folder {
        return Some(module.to_vec());
    }
    // A folder that stands on one floor can be meant as a whole.
    if module == path && floor(&module.join("/")).is_some() {
        return Some(module.to_vec());
    }
    // Otherwise a root or a folder holds only names of what stands elsewhere.
    let item = path.get(module.len())?;
    let target = file.exports.get(item).filter(|_| depth < 8)?;
    let target = [target, &path[module.len() + 1..]].concat();
    resolve(files, &target, depth + 1)
}

/// The file that defines an exported macro: such a macro stands in the root, whoever defines it.
fn exporter(files: &BTreeMap<Vec<String>, File>, path: &[String]) -> Option<Vec<String>> {
    let [name] = path else { return None };
    let mut files = files.iter();
    files.find_map(|(module, file)| file.macros.contains(name).then(|| module.clone()))
}

/// What a source tells of itself, its tests left out.
struct File {
    is_folder: bool,
    /// Paths into this crate, from its root.
    paths: BTreeSet<Vec<String>>,
    /// The names that a root or folder gives to paths of this crate.
    exports: BTreeMap<String, Vec<String>>,
    /// The macros that it defines.
    macros: BTreeSet<String>,
    /// Child modules that are there for tests only.
    test_modules: Vec<String>,
    /// All identifiers.
    names: BTreeSet<String>,
    /// Whether there is anything but `mod x;` and `use`.
    has_code: bool,
}

impl File {
    fn parse(path: &str, text: &str) -> Self {
        let tokens: TokenStream = text
            .parse()
            .unwrap_or_else(|error| panic!("{path} is not Rust: {error}"));
        let mut file = Self {
            is_folder: path.ends_with("mod.rs"),
            paths: BTreeSet::new(),
            exports: BTreeMap::new(),
            macros: BTreeSet::new(),
            test_modules: Vec::new(),
            names: BTreeSet::new(),
            has_code: false,
        };
        let module = module_of(path);
        let code = file.without_tests(tokens);
        for definition in code.windows(3) {
            if word(&definition[0]) == "macro_rules" {
                file.macros.insert(word(&definition[2]));
            }
        }
        if file.is_folder || module.is_empty() {
            file.read_exports(&module, &code);
        }
        file.read_paths(&module, &code);
        file
    }

    /// The trees of a file or block without attributes and without what is there for tests only.
    fn without_tests(&mut self, tokens: TokenStream) -> Vec<TokenTree> {
        let mut code = Vec::new();
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            if !is(&token, '#') {
                code.push(token);
                continue;
            }
            // `#![…]` and `#[…]`.
            tokens.next_if(|next| is(next, '!'));
            let attribute = tokens.next_if(|next| group(next, Delimiter::Bracket).is_some());
            if attribute.is_some_and(|attribute| is_cfg_test(&attribute)) {
                self.skip_item(&mut tokens);
            }
        }
        code
    }

    fn skip_item(&mut self, tokens: &mut impl Iterator<Item = TokenTree>) {
        let mut words = Vec::new();
        for token in tokens {
            match &token {
                TokenTree::Ident(word) => words.push(word.to_string()),
                TokenTree::Punct(mark) if mark.as_char() == ';' => break,
                TokenTree::Group(block) if block.delimiter() == Delimiter::Brace => break,
                _ => {}
            }
        }
        if let Some(at) = words.iter().position(|word| word == "mod") {
            self.test_modules.extend(words.get(at + 1).cloned());
        }
    }

    /// Reads the items of a root or folder, which should be declarations and re-exports.
    fn read_exports(&mut self, module: &[String], code: &[TokenTree]) {
        for item in code.split_inclusive(|token| is(token, ';')) {
            let mut tokens = item.iter().cloned().peekable();
            if tokens.next_if(|token| word(token) == "pub").is_some() {
                tokens.next_if(|token| group(token, Delimiter::Parenthesis).is_some());
            }
            let kind = tokens.next().map(|token| word(&token)).unwrap_or_default();
            let ended = item.last().is_some_and(|token| is(token, ';'));
            match kind.as_str() {
                "use" if ended => {
                    let mut named = Vec::new();
                    use_tree(&mut tokens, Vec::new(), &mut named);
                    for (name, path) in named {
                        self.exports.insert(name, absolute(module, path));
                    }
                }
                "mod"
                    if ended
                        && item
                            .iter()
                            .all(|token| group(token, Delimiter::Brace).is_none()) => {}
                _ => self.has_code = true,
            }
        }
    }

    fn read_paths(&mut self, module: &[String], code: &[TokenTree]) {
        let mut tokens = code.iter().cloned().peekable();
        let mut inline = None;
        while let Some(token) = tokens.next() {
            match &token {
                TokenTree::Ident(ident) => {
                    let ident = ident.to_string();
                    let next_is_path = tokens.peek().is_some_and(|next| is(next, ':'));
                    match ident.as_str() {
                        "crate" | "super" if next_is_path => {
                            let mut named = Vec::new();
                            let start = vec![ident];
                            skip_colons(&mut tokens);
                            use_tree(&mut tokens, start, &mut named);
                            for (_, path) in named {
                                self.names.extend(path.iter().cloned());
                                self.paths.insert(absolute(module, path));
                            }
                        }
                        "mod" => inline = tokens.peek().map(word),
                        _ => {
                            self.names.insert(ident);
                        }
                    }
                }
                TokenTree::Group(block) => {
                    let code = self.without_tests(block.stream());
                    match inline.take() {
                        Some(name) if block.delimiter() == Delimiter::Brace => {
                            self.read_paths(&[module, &[name]].concat(), &code);
                        }
                        _ => self.read_paths(module, &code),
                    }
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }
}

/// Reads the rest of a path or use tree that began with `path`: each name with its path.
fn use_tree(
    tokens: &mut Peekable<impl Iterator<Item = TokenTree>>,
    mut path: Vec<String>,
    named: &mut Vec<(String, Vec<String>)>,
) {
    while let Some(token) = tokens.peek() {
        if let Some(branches) = group(token, Delimiter::Brace) {
            tokens.next();
            let branches: Vec<_> = branches.into_iter().collect();
            for branch in branches.split(|token| is(token, ',')) {
                if !branch.is_empty() {
                    let mut branch = branch.iter().cloned().peekable();
                    use_tree(&mut branch, path.clone(), named);
                }
            }
            return;
        }
        let segment = if is(token, '*') {
            "*".to_owned()
        } else {
            word(token)
        };
        if segment.is_empty() {
            break;
        }
        tokens.next();
        if segment != "self" {
            path.push(segment);
        }
        if !skip_colons(tokens) {
            break;
        }
    }
    let mut name = path.last().cloned().unwrap_or_default();
    if tokens.next_if(|token| word(token) == "as").is_some() {
        name = tokens.next().map(|token| word(&token)).unwrap_or_default();
    }
    named.push((name, path));
}

/// Turns a path as it is written in `module` into one from the root of the crate.
fn absolute(module: &[String], path: Vec<String>) -> Vec<String> {
    let supers = path
        .iter()
        .take_while(|segment| *segment == "super")
        .count();
    if path.first().is_some_and(|segment| segment == "crate") {
        path[1..].to_vec()
    } else {
        let base = &module[..module.len().saturating_sub(supers)];
        [base, &path[supers..]].concat()
    }
}

fn skip_colons(tokens: &mut Peekable<impl Iterator<Item = TokenTree>>) -> bool {
    let first = tokens.next_if(|token| is(token, ':')).is_some();
    first && tokens.next_if(|token| is(token, ':')).is_some()
}

fn is(token: &TokenTree, mark: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == mark)
}

fn word(token: &TokenTree) -> String {
    match token {
        TokenTree::Ident(ident) => ident.to_string(),
        TokenTree::Group(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => String::new(),
    }
}

fn group(token: &TokenTree, delimiter: Delimiter) -> Option<TokenStream> {
    match token {
        TokenTree::Group(group) if group.delimiter() == delimiter => Some(group.stream()),
        _ => None,
    }
}

/// `#[cfg(test)]`, also within `all(…)`; anything with `not` in it counts as code.
fn is_cfg_test(attribute: &TokenTree) -> bool {
    let text = attribute.to_string().replace(char::is_whitespace, "");
    text.starts_with("[cfg(")
        && text.contains("test")
        && !text.contains("not(")
        && text
            .split(|c: char| !c.is_alphanumeric())
            .any(|word| word == "test")
}
