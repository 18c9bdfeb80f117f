//! What the gateway is told to do, on the command line and in a file.
//!
//! `options` has all options; `file` and the command line say what was given for them, `values` what
//! a single value means, `read` what all of them mean together. All mistakes are told at once, by
//! `mistakes`. `told` puts a configuration into words, for `--check`. `path` is what a route is for.

mod file;
mod mistakes;
pub(crate) mod options;
mod path;
mod read;
mod told;
mod values;

use std::{
    ffi::OsString,
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use http::{HeaderName, Method, Uri};

use mistakes::Mistakes;
use options::Part;

pub(crate) use path::{PathPattern, plain};

/// What the gateway is told to do. Nothing in it has to be checked again.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    /// Whether the upstream is a small service of the gateway's own, to try it with. It is still to
    /// be started, and `upstream` to be told where it listens.
    pub(crate) demo: bool,
    /// Scheme `http` and authority; no path.
    pub(crate) upstream: Uri,
    /// As `payments --store` takes it.
    pub(crate) store: String,
    /// What the name of each record begins with.
    pub(crate) prefix: String,
    /// HTTP/2 with prior knowledge, instead of HTTP/1.1.
    pub(crate) upstream_http2: bool,
    pub(crate) connect_timeout: Duration,
    /// Until the head of the upstream's answer is there.
    pub(crate) upstream_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) max_connections: usize,
    pub(crate) header_read_timeout: Duration,
    /// The name of this gateway in `Via`.
    pub(crate) via: String,
    /// Whether `Forwarded` and `X-Forwarded-*` are kept as they come: behind another proxy of ours.
    pub(crate) trust_forwarded: bool,
    /// The bodies of all routes together, in bytes.
    pub(crate) buffer_limit: usize,
    /// The first that matches counts.
    pub(crate) routes: Vec<Route>,
}

impl Config {
    /// Reads the command line, and the file that it names.
    pub(crate) fn from_args(
        args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, Ended> {
        let matches = options::command().try_get_matches_from(args)?;
        let name = matches.get_one::<String>("config");
        let mut mistakes = Mistakes::new(name.map(String::as_str));
        let file = match name {
            Some(name) => file::read(Path::new(name), &mut mistakes),
            None => file::File::default(),
        };
        // What cannot be read is not to be called incomplete as well.
        if mistakes.is_fatal() {
            return Err(mistakes.into());
        }
        let flags = options::from_flags(&matches, Part::Gateway);
        let route_flags = options::from_flags(&matches, Part::Route);
        let demo = name.is_none();
        let config = read::config(&flags, &route_flags, file, demo, &mut mistakes);
        if !mistakes.is_empty() {
            return Err(mistakes.into());
        }
        if matches.get_flag("check") {
            return Err(Ended {
                code: 0,
                text: config.to_string(),
            });
        }
        Ok(config)
    }
}

/// Why the gateway does not start: it was asked something else (`--help`, `--check`), or it was told
/// something that cannot be.
#[derive(Debug)]
pub(crate) struct Ended {
    /// 0 where the text is what was asked for; 2, as is usual, where it tells of mistakes.
    pub(crate) code: u8,
    pub(crate) text: String,
}

impl Ended {
    /// Says it, where such things are said, and gives the code for the process to end with.
    pub(crate) fn say(self) -> ExitCode {
        // Where nobody reads, nothing is lost.
        let _ = match self.code {
            0 => io::stdout().write_all(self.text.as_bytes()),
            _ => io::stderr().write_all(self.text.as_bytes()),
        };
        ExitCode::from(self.code)
    }
}

impl From<clap::Error> for Ended {
    fn from(error: clap::Error) -> Self {
        Self {
            code: u8::try_from(error.exit_code()).unwrap_or(2),
            text: error.render().to_string(),
        }
    }
}

impl From<Mistakes> for Ended {
    fn from(mistakes: Mistakes) -> Self {
        Self {
            code: 2,
            text: mistakes.sorted().to_string(),
        }
    }
}

/// Which requests are covered, and how.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) path: PathPattern,
    pub(crate) methods: Vec<Method>,
    pub(crate) key: Key,
    pub(crate) required: bool,
    pub(crate) scope: ScopeBy,
    pub(crate) ttl: Duration,
    pub(crate) on_conflict: Conflict,
    pub(crate) body_limit: usize,
    pub(crate) takeover: Takeover,
    pub(crate) unknown: Unknown,
    pub(crate) refusals: Refusals,
    pub(crate) lease: Duration,
}

/// Where the key stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Header(HeaderName),
    /// An RFC 6901 pointer into a JSON body.
    Json(String),
}

/// Whose keys are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ScopeBy {
    Header(HeaderName),
    SingleTenant,
}

/// What a duplicate meets while the first request still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conflict {
    Reject,
    Wait(Duration),
}

/// What a request meets whose key was left by a gateway that died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takeover {
    Retry,
    Refuse,
}

/// What becomes of a key whose request was sent, and may or may not have been carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// A retry is sent to the upstream: at least once.
    Retry,
    /// The failure is recorded, and replayed: at most once.
    Keep,
}

/// The form of what the gateway itself answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Refusals {
    /// Problem documents (RFC 9457).
    #[default]
    Problem,
    /// Errors as Stripe's API has them, and its libraries read them.
    Stripe,
}
