//! The file, as far as it can be read without knowing what its values mean.

use std::{fs, path::Path};

use toml::{
    Spanned,
    de::{DeInteger, DeTable, DeValue},
};

use super::{
    mistakes::{Mistakes, similar},
    options::{At, Given, Kind, OPTIONS, Part, Set, named},
};

/// What a file gives.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) gateway: Set,
    pub(crate) routes: Vec<(At, Set)>,
}

/// Reads the file, and whatever of it makes sense. Every mistake is told.
pub(crate) fn read(path: &Path, mistakes: &mut Mistakes) -> File {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let told = format!("names {}, which cannot be read: {error}", path.display());
            mistakes.add_fatal(&At::CommandLine, "config", told);
            return File::default();
        }
    };
    let (table, errors) = DeTable::parse_recoverable(&text);
    let line = |offset: usize| {
        let before = text.as_bytes().iter().take(offset);
        At::Line(1 + before.filter(|&&b| b == b'\n').count())
    };
    for error in &errors {
        let at = line(error.span().map_or(0, |span| span.start));
        mistakes.add_fatal(&at, "", format!("is no TOML: {}", error.message()));
    }
    if !errors.is_empty() {
        // What was read around them may be anything.
        return File::default();
    }

    let mut file = File::default();
    for (name, value) in table.get_ref() {
        let at = line(name.span().start);
        if **name.get_ref() == *"route" {
            let Some(routes) = value.get_ref().as_array() else {
                let told = "begins with `[[route]]`, in two brackets, since there can be several";
                mistakes.add(&at, "route", told.to_owned());
                continue;
            };
            for route in routes.iter() {
                let at = line(route.span().start);
                let Some(table) = route.get_ref().as_table() else {
                    mistakes.add(&at, "route", "is a table: `[[route]]`".to_owned());
                    continue;
                };
                let mut set = Set::new();
                for (name, value) in table {
                    let at = line(name.span().start);
                    put(&mut set, Part::Route, at, name.get_ref(), value, mistakes);
                }
                file.routes.push((at, set));
            }
        } else {
            let (set, part) = (&mut file.gateway, Part::Gateway);
            put(set, part, at, name.get_ref(), value, mistakes);
        }
    }
    file
}

fn put(
    set: &mut Set,
    part: Part,
    at: At,
    name: &str,
    value: &Spanned<DeValue<'_>>,
    mistakes: &mut Mistakes,
) {
    let Some(option) = named(name) else {
        let here = OPTIONS.iter().filter(|option| option.part == part);
        let hint = similar(name, here.map(|option| option.name));
        mistakes.add(&at, "", format!("there is no option `{name}`{hint}"));
        return;
    };
    if option.part != part {
        let told = match option.part {
            Part::Route => "is for a route: put it below a `[[route]]`",
            Part::Gateway => "is for the whole gateway: put it before the first `[[route]]`",
        };
        mistakes.add(&at, name, told.to_owned());
        return;
    }
    let (text, wanted) = match (option.kind, value.get_ref()) {
        (Kind::Switch, DeValue::Boolean(on)) => (Some(on.to_string()), ""),
        (Kind::Switch, _) => (None, "true or false, without quotes"),
        (Kind::Text, DeValue::String(text)) => (Some(text.clone().into_owned()), ""),
        (Kind::Text, DeValue::Integer(number)) => (Some(decimal(number)), ""),
        (Kind::Text, _) => (None, "a text, in quotes"),
        (Kind::List, DeValue::Array(values)) => {
            let texts = values.iter().map(|value| value.get_ref().as_str());
            let texts: Option<Vec<_>> = texts.collect();
            (texts.map(|texts| texts.join(",")), "a list of texts")
        }
        (Kind::List, _) => (None, "a list, as in [\"POST\", \"PATCH\"]"),
    };
    match text {
        Some(text) => drop(set.insert(option.name, Given { text, at })),
        None => {
            let is = value.get_ref().type_str();
            mistakes.add(&at, name, format!("is {wanted}; this is of the type {is}"));
        }
    }
}

/// As the command line would have it.
fn decimal(number: &DeInteger<'_>) -> String {
    match i128::from_str_radix(number.as_str(), number.radix()) {
        Ok(number) => number.to_string(),
        // Too large for whatever it is for.
        Err(_) => number.to_string(),
    }
}
