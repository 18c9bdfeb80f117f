//! An example of this crate, as a server of its own.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{ChildStdout, Command, Stdio},
};

use crate::servers::process::Process;

/// Killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Example {
    _process: Process,
    /// Open as long as it runs: it may print.
    _stdout: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Example {
    /// Starts what cargo builds beside the tests, with flags that let it choose a port.
    pub(crate) fn start(name: &str, flags: &[&str]) -> Self {
        let test = std::env::current_exe().expect("a running test has a path");
        let profile = test.ancestors().nth(2).expect("it is in target/*/deps");
        let program = profile.join("examples").join(name);
        assert!(
            program.is_file(),
            "{} is missing: `cargo test` builds it, and so does \
             `cargo build --all-features --example {name}`",
            program.display()
        );
        let mut process = Process::start(
            Command::new(program)
                .args(flags)
                .stdin(Stdio::null())
                .stdout(Stdio::piped()),
        );
        let mut stdout = BufReader::new(process.stdout());
        let mut line = String::new();
        stdout.read_line(&mut line).expect("the first line");
        let address = line.trim_end().strip_prefix("listening on http://");
        let address = address.and_then(|address| address.parse().ok());
        Self {
            _process: process,
            _stdout: stdout,
            address: address.unwrap_or_else(|| panic!("{name}: no address in {line:?}")),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}
