//! The examples of this crate, as programs: built as the test is, and no older than their sources.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Seek as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::process::{PATIENCE, Process};

macro_rules! features {
    ($($name:literal)*) => { &[$(($name, cfg!(feature = $name))),*] };
}

/// All features of this crate, and whether the test has them. `tests/examples.rs` sees that none is
/// missing.
pub const FEATURES: &[(&str, bool)] = features![
    "axum" "client" "default" "grpc" "json" "postgres" "redis" "sqlite" "testing" "tracing"
];

/// An example, ready to run.
///
/// Cargo builds it first, once for a process, with the features and the profile of the test and in the
/// same folder. After `cargo test` nothing is left to build; after `cargo test --test …`, which
/// builds no examples, it takes as long as it takes: call this before a time limit begins.
///
/// # Panics
///
/// With cargo's words, if it cannot be built.
pub fn example(name: &str) -> Command {
    static BUILT: Mutex<BTreeMap<String, Result<PathBuf, String>>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let program = built.entry(name.to_owned()).or_insert_with(|| build(name));
    let program = program.clone();
    drop(built);
    match program {
        Ok(program) => Command::new(program),
        Err(said) => panic!("the example `{name}` cannot be built:\n{said}"),
    }
}

fn build(name: &str) -> Result<PathBuf, String> {
    let features = FEATURES.iter().filter(|(_, is_on)| *is_on);
    let features: Vec<_> = features.map(|(name, _)| *name).collect();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    let target = target.expect("it is in the target folder");
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--locked", "--example", name])
        .args(["--no-default-features", "--features", &features.join(",")])
        .args(["--profile", &profile(target)])
        .args(["--message-format", "json-render-diagnostics"])
        .arg("--target-dir")
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null());
    // What cargo tells the test of itself is not there when cargo builds: a build script that looks
    // at it would run again. What the user tells cargo stays.
    for (variable, _) in std::env::vars_os() {
        let of_test = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];
        let text = variable.to_string_lossy();
        if text == "CARGO" || of_test.iter().any(|start| text.starts_with(start)) {
            cargo.env_remove(variable);
        }
    }
    let output = cargo.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    // A line for each thing that there is now. Of these only the example is a program.
    let built = String::from_utf8_lossy(&output.stdout);
    let program = built.lines().find_map(|line| {
        let built: Value = serde_json::from_str(line).ok()?;
        built["executable"].as_str().map(PathBuf::from)
    });
    program.ok_or_else(|| format!("cargo names no program: {built}"))
}

/// Which profile the test was built with: its folder below `target` tells.
fn profile(target: &Path) -> String {
    let test = std::env::current_exe().expect("a running test has a path");
    // It may have come by a symbolic link.
    let target = target.canonicalize().expect("the target folder");
    let within = test.strip_prefix(&target);
    let within =
        within.unwrap_or_else(|_| panic!("{test:?} is not in {target:?}, where it was built"));
    let folder = within.iter().next().expect("a folder");
    match folder.to_str().expect("a name of a profile") {
        // As `cargo test` has it; `dev` shares the folder, and all else unless it is told otherwise.
        "debug" => "test".to_owned(),
        other => other.to_owned(),
    }
}

/// An example that serves, killed when this is dropped.
#[derive(Debug)]
pub struct Example {
    pub process: Process,
    /// Where it says that it listens.
    address: SocketAddr,
    /// Open as long as it runs: it may print.
    stdout: BufReader<ChildStdout>,
}

impl Example {
    /// Starts it, with flags that let it choose a port, and waits until it listens.
    ///
    /// # Panics
    ///
    /// If it ends before.
    pub fn start(command: &mut Command) -> Self {
        let mut process = Process::start(command.stdin(Stdio::null()).stdout(Stdio::piped()));
        let mut stdout = BufReader::new(process.stdout());
        let mut line = String::new();
        // It may say more before.
        let address = loop {
            line.clear();
            let read = stdout.read_line(&mut line).expect("a line");
            assert!(read > 0, "{command:?} ended with {:?}", process.code());
            if let Some(addr) = line.trim_end().strip_prefix("listening on http://") {
                break addr.parse().expect("an address");
            }
        };
        Self {
            process,
            address,
            stdout,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until it has ended by itself: with which code, none where a signal ended it, and what it
    /// has said since it listens.
    ///
    /// # Panics
    ///
    /// If it does not end within [`PATIENCE`].
    pub async fn ended(&mut self) -> (Option<i32>, String) {
        let start = Instant::now();
        while self.process.is_running() {
            assert!(start.elapsed() < PATIENCE, "the server does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut said = String::new();
        self.stdout.read_to_string(&mut said).expect("text");
        (self.process.code(), said)
    }
}

/// How a program ended, and what it has said.
#[derive(Debug)]
pub struct Ended {
    /// None where a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program to its end.
///
/// # Panics
///
/// If it does not end within [`PATIENCE`].
pub fn run(command: &mut Command) -> Ended {
    // No pipes: one that nobody reads may fill.
    let [mut stdout, mut stderr] = [(); 2].map(|()| tempfile::tempfile().expect("a file"));
    command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().expect("the same file"))
        .stderr(stderr.try_clone().expect("the same file"));
    let code = Process::start(command).code();
    let [stdout, stderr] = [&mut stdout, &mut stderr].map(|file| {
        let mut said = String::new();
        file.rewind().expect("its start");
        file.read_to_string(&mut said).expect("text");
        said
    });
    Ended {
        code,
        stdout,
        stderr,
    }
}
