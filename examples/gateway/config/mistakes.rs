//! What is wrong with a configuration: all of it at once.

use std::fmt;

use super::options::At;

/// What is wrong, in the order of the file, after what is wrong on the command line.
#[derive(Debug)]
pub(crate) struct Mistakes {
    /// The name of the file.
    file: String,
    found: Vec<(At, String)>,
    fatal: bool,
}

impl Mistakes {
    /// None yet. `file` is the name of the file, if there is one.
    pub(crate) fn new(file: Option<&str>) -> Self {
        Self {
            file: file.unwrap_or_default().to_owned(),
            found: Vec::new(),
            fatal: false,
        }
    }

    /// Adds what is wrong with the option `name`; or, where it is empty, with the whole line.
    pub(crate) fn add(&mut self, at: &At, name: &str, told: String) {
        let place = match at {
            At::CommandLine => String::new(),
            At::Line(line) => format!("{}:{line}: ", self.file),
        };
        let name = match name {
            "" => String::new(),
            name => format!("{} ", at.name(name)),
        };
        let told = format!("{place}{name}{told}");
        self.found.push((at.clone(), told));
    }

    /// Adds what leaves nothing else to be read.
    pub(crate) fn add_fatal(&mut self, at: &At, name: &str, told: String) {
        self.fatal = true;
        self.add(at, name, told);
    }

    pub(crate) fn len(&self) -> usize {
        self.found.len()
    }

    /// Whether there is nothing to be read.
    pub(crate) fn is_fatal(&self) -> bool {
        self.fatal
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Puts them into their order.
    pub(crate) fn sorted(mut self) -> Self {
        self.found.sort_by(|(one, _), (other, _)| one.cmp(other));
        self
    }
}

/// One a line.
impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (_, told) in &self.found {
            writeln!(f, "error: {told}")?;
        }
        Ok(())
    }
}

/// What may have been meant, as the end of a sentence; empty where nothing is like it.
pub(crate) fn similar<'a>(given: &str, names: impl Iterator<Item = &'a str>) -> String {
    let given = given.to_lowercase();
    let slips = |name| strsim::osa_distance(&given, name);
    let nearest = names.map(|name| (slips(name), name)).min();
    match nearest {
        // One slip, and one more for every three letters of a longer name.
        Some((slips, name)) if slips <= 1.max(name.len() / 3) && slips < name.len() => {
            format!("; did you mean `{name}`?")
        }
        _ => String::new(),
    }
}
