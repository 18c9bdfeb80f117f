//! Which paths a route is for, and which other spellings of them there are.

use std::{borrow::Cow, fmt};

/// Paths: `/v1/payments` is that one, `/v1/*` is `/v1` and all below it.
///
/// They are compared byte by byte with the path as the client sent it, since that is what the
/// upstream gets. What else the upstream may take for the same path is told by
/// [`plain`], and is not for a route to match, but for the gateway to refuse: it
/// cannot know which of the two readings the upstream has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathPattern {
    /// Without the `/*`.
    base: String,
    /// Whether it ends with `/*`.
    below: bool,
    plain: Vec<u8>,
}

impl PathPattern {
    /// Why a text is no pattern is said so that it can follow "the path `…`".
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let (base, below) = match text.strip_suffix("/*") {
            Some(base) => (base, true),
            None => (text, false),
        };
        if base.contains('*') {
            return Err("has a `*` elsewhere than in a `/*` at its end");
        }
        if !(base.starts_with('/') || below && base.is_empty()) {
            return Err("does not begin with `/`");
        }
        if base.contains('{') || base.contains("/:") {
            return Err(
                "looks like one with parameters; there are none here: end it with `/*` before the \
                 first of them",
            );
        }
        if base.contains(['?', '#']) {
            return Err("has a query or a fragment, and routes are told by the path alone");
        }
        if !base.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("has a character that cannot stand in a path; escape it, as in `%20`");
        }
        let segments = match below {
            true => base,
            false => base.strip_suffix('/').unwrap_or(base),
        };
        let odd = |segment| matches!(segment, "" | "." | "..");
        if base.contains([';', '\\']) || segments.split('/').skip(1).any(odd) {
            return Err(
                "has a `//`, `.`, `..`, `;` or `\\` in it, and so is spelt in no plain way",
            );
        }
        let plain = plain(base).into_owned();
        Ok(Self {
            base: base.to_owned(),
            below,
            plain,
        })
    }

    /// The path that it is for, and below which others may be.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Whether it is for this path, as it is spelt.
    pub(crate) fn matches(&self, path: &str) -> bool {
        reaches(self.base.as_bytes(), self.below, path.as_bytes())
    }

    /// Whether it is for the path of which `plain` is the [plain spelling](plain).
    pub(crate) fn matches_plain(&self, plain: &[u8]) -> bool {
        reaches(&self.plain, self.below, plain)
    }

    /// Whether it is for every path that `other` is for, in one spelling or another.
    pub(crate) fn includes(&self, other: &Self) -> bool {
        (self.below || !other.below) && self.matches_plain(&other.plain)
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)?;
        f.write_str(if self.below { "/*" } else { "" })
    }
}

fn reaches(base: &[u8], below: bool, path: &[u8]) -> bool {
    // What is no path (`*`, and the authority of CONNECT) is below the root, too.
    match path.strip_prefix(base) {
        Some(rest) => rest.is_empty() || below && (base.is_empty() || rest.starts_with(b"/")),
        None => false,
    }
}

/// The spelling that all spellings of a path have in common which some server takes for the same:
/// escapes are resolved (also those of escapes), `\` is `/`, letters are small, parameters (`;…`),
/// empty segments, `.` and `..` are gone, and so is a slash at the end.
///
/// Allocates only for a path that is spelt otherwise.
pub(crate) fn plain(path: &str) -> Cow<'_, [u8]> {
    let trimmed = path.strip_suffix('/').unwrap_or(path);
    if is_plain(trimmed) {
        return Cow::Borrowed(trimmed.as_bytes());
    }
    let resolved = resolve(path);
    let mut plain = Vec::with_capacity(resolved.len());
    for segment in resolved.split(|&b| b == b'/') {
        let segment = segment.split(|&b| b == b';').next().unwrap_or_default();
        match segment {
            b"" | b"." => {}
            b".." => {
                let parent = plain.iter().rposition(|&b| b == b'/');
                plain.truncate(parent.unwrap_or(0));
            }
            segment => {
                plain.push(b'/');
                plain.extend_from_slice(segment);
            }
        }
    }
    Cow::Owned(plain)
}

fn is_plain(path: &str) -> bool {
    let odd = |b: u8| b.is_ascii_uppercase() || matches!(b, b'%' | b'\\' | b';');
    let mut segments = path.split('/');
    segments.next().is_some_and(str::is_empty)
        && !path.bytes().any(odd)
        && !segments.any(|segment| matches!(segment, "" | "." | ".."))
}

/// Resolves escapes until there are none, and small letters and slashes with them.
///
/// In one pass, whatever the path: each escape is resolved as soon as its last byte is there, and
/// what it stands for may be the last byte of another.
fn resolve(path: &str) -> Vec<u8> {
    let mut resolved = Vec::with_capacity(path.len());
    for b in path.bytes() {
        resolved.push(b);
        while let [.., b'%', high, low] = *resolved
            && let (Some(high), Some(low)) = (hex(high), hex(low))
        {
            resolved.truncate(resolved.len() - 3);
            resolved.push(high << 4 | low);
        }
    }
    for b in &mut resolved {
        *b = match *b {
            b'\\' => b'/',
            b => b.to_ascii_lowercase(),
        };
    }
    resolved
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}
