//! The scripts beside this file: what they are told, and what they say.

use std::{
    io::{Read as _, Seek as _, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{task::spawn_blocking, time::timeout};

use crate::servers::{process::Process, python::python};

/// Only how long a broken build takes to fail.
const PATIENCE: Duration = Duration::from_secs(120);

/// One of the scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Library {
    Stripe,
    Square,
}

/// One call that an application makes, or makes again.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Job {
    /// The application's own name for it, by which the effects are counted.
    pub(crate) operation: String,
    pub(crate) amount: u64,
    /// `None` leaves it to the library.
    pub(crate) key: Option<String>,
    /// How often the library may try again.
    pub(crate) retries: u32,
    /// Whether the application calls again where the library gives up for want of an answer.
    pub(crate) again: bool,
}

/// What came of it.
#[derive(Debug, Deserialize)]
pub(crate) struct Answer {
    pub(crate) operation: String,
    pub(crate) calls: u32,
    /// The payment's.
    pub(crate) id: Option<String>,
    /// The exception's name.
    pub(crate) error: Option<String>,
    pub(crate) status: Option<u16>,
}

impl Library {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stripe => "Stripe",
            Self::Square => "Square",
        }
    }

    /// Runs the jobs, `threads` at once, each try with a time limit in seconds.
    ///
    /// # Panics
    ///
    /// If the script does not say of each what came of it.
    pub(crate) async fn run(
        self,
        url: &str,
        threads: usize,
        seconds: f64,
        jobs: &[Job],
    ) -> Vec<Answer> {
        let script = match self {
            Self::Stripe => "stripe_payments.py",
            Self::Square => "square_payments.py",
        };
        let arguments = [url.to_owned(), threads.to_string(), seconds.to_string()];
        let output = run(script, &arguments, jobs).await;
        let answers: Vec<_> = output
            .lines()
            .map(|line| serde_json::from_str::<Answer>(line).expect("an answer"))
            .collect();
        let operations = |answers: &[Answer]| -> Vec<_> {
            answers.iter().map(|it| it.operation.clone()).collect()
        };
        let asked: Vec<_> = jobs.iter().map(|job| job.operation.clone()).collect();
        assert_eq!(operations(&answers), asked, "an answer to each: {output}");
        answers
    }
}

/// What one of the scripts prints, until it ends. It reads the jobs, and its errors appear among the
/// test's.
pub(crate) async fn run(script: &str, arguments: &[String], jobs: &[impl Serialize]) -> String {
    let mut input = tempfile::tempfile().expect("a file");
    for job in jobs {
        let line = serde_json::to_string(job).expect("JSON");
        writeln!(input, "{line}").expect("a line is written");
    }
    input.rewind().expect("a file has a beginning");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdks");
    let script = folder.join(script);
    let program = spawn_blocking(move || python(&folder.join("requirements.txt"))).await;
    let mut process = Process::start(
        Command::new(program.expect("an environment"))
            .arg(script)
            .args(arguments)
            // Everything here is on this machine.
            .env("NO_PROXY", "127.0.0.1")
            .env("no_proxy", "127.0.0.1")
            .stdin(input)
            .stdout(Stdio::piped()),
    );
    let mut stdout = process.stdout();
    let output = spawn_blocking(move || {
        let mut output = String::new();
        stdout.read_to_string(&mut output).map(|_| output)
    });
    let output = timeout(PATIENCE, output).await;
    let output = output.expect("the script ends in time").expect("no panic");
    output.expect("text")
}
