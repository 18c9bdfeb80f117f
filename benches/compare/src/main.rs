//! This crate beside others that do the same for axum, and beside axum alone.
//!
//! `cargo run --release --ignore-rust-version --manifest-path benches/compare/Cargo.toml` prints two
//! tables in Markdown: how fast and how large each is, and what it does. `-- --quick` takes seconds
//! and is good for nothing but to see that it runs.
//!
//! Each measurement has a process of its own, so that none finds memory that another one left.
//! The candidates take turns, and each round begins with another of them.

mod app;
mod candidates;
mod in_process;
mod loopback;
mod probe;
mod requests;
mod table;

use std::{
    env,
    error::Error,
    process::{Command, Stdio},
    thread,
};

use clap::{Parser, ValueEnum};
use serde::de::DeserializeOwned;

use crate::{candidates::Candidate, table::Measure};

/// Measures idempotency layers for axum side by side, and prints two tables in Markdown.
#[derive(Parser)]
struct Flags {
    /// Few rounds of few requests: to see that it runs, not for figures.
    #[arg(long)]
    quick: bool,

    /// Measures one candidate once, in one way, and prints its figures as JSON.
    #[arg(long, value_name = "CANDIDATE", requires = "way", hide = true)]
    only: Option<Candidate>,

    /// The way of `--only`.
    #[arg(long, value_name = "WAY", requires = "only", hide = true)]
    way: Option<Way>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Way {
    InProcess,
    Loopback,
}

/// How much is done.
struct Effort {
    rounds: usize,
    /// Requests before anything is measured.
    warm_up: usize,
    /// Records that are kept, for their size.
    records: usize,
    /// Requests that are made beforehand and timed together.
    batch: usize,
    batches: usize,
    /// Over TCP: how often the rate is taken, and from how many requests over each connection.
    slices: u64,
    per_connection: u64,
}

const FULL: Effort = Effort {
    rounds: 7,
    warm_up: 2_000,
    records: 30_000,
    batch: 500,
    batches: 40,
    slices: 6,
    per_connection: 100,
};

const QUICK: Effort = Effort {
    rounds: 3,
    warm_up: 500,
    records: 5_000,
    batch: 200,
    batches: 5,
    slices: 3,
    per_connection: 10,
};

/// Of one candidate in one round.
struct Figures {
    in_process: in_process::Found,
    loopback: loopback::Found,
}

const MEASURES: [Measure<Figures>; 8] = [
    Measure {
        label: "fresh, in process, ns",
        figure: |figures| Some(figures.in_process.fresh_time),
        beside_first: true,
    },
    Measure {
        label: "replay, in process, ns",
        figure: |figures| Some(figures.in_process.replay_time),
        beside_first: true,
    },
    Measure {
        label: "fresh, over TCP, requests/s",
        figure: |figures| Some(figures.loopback.fresh),
        beside_first: true,
    },
    Measure {
        label: "replay, over TCP, requests/s",
        figure: |figures| Some(figures.loopback.replay),
        beside_first: true,
    },
    Measure {
        label: "fresh, allocations",
        figure: |figures| Some(figures.in_process.fresh_allocations),
        beside_first: true,
    },
    Measure {
        label: "replay, allocations",
        figure: |figures| Some(figures.in_process.replay_allocations),
        beside_first: true,
    },
    Measure {
        label: "a record, bytes allocated",
        figure: |figures| Some(figures.in_process.kept),
        beside_first: false,
    },
    Measure {
        label: "a record, bytes resident",
        figure: |figures| figures.loopback.resident,
        beside_first: false,
    },
];

fn main() -> Result<(), Box<dyn Error>> {
    let flags = Flags::parse();
    let effort = match flags.quick {
        true => QUICK,
        false => FULL,
    };
    if let Some((candidate, way)) = flags.only.zip(flags.way) {
        let found = match way {
            Way::InProcess => serde_json::to_string(&in_process::run(candidate, &effort))?,
            Way::Loopback => serde_json::to_string(&loopback::run(candidate, &effort))?,
        };
        println!("{found}");
        return Ok(());
    }
    if cfg!(debug_assertions) {
        eprintln!("Without --release the figures mean nothing.");
    }

    let mut columns = Candidate::ALL.map(|candidate| (candidate.title(), Vec::new()));
    for round in 0..effort.rounds {
        for turn in 0..columns.len() {
            let column = (round + turn) % columns.len();
            let (title, rounds) = &mut columns[column];
            eprintln!("round {} of {}: {title}", round + 1, effort.rounds);
            let candidate = Candidate::ALL[column];
            rounds.push(Figures {
                in_process: apart(candidate, Way::InProcess, flags.quick)?,
                loopback: apart(candidate, Way::Loopback, flags.quick)?,
            });
        }
    }
    let names = ["bare axum", "tower-idempotency"].map(str::to_owned);
    let cores = thread::available_parallelism()?;
    println!(
        "{cores} cores, {} {}; medians of {} rounds, in brackets the least and the greatest.\n",
        env::consts::OS,
        env::consts::ARCH,
        effort.rounds
    );
    println!("{}", table::table(&names, &columns, &MEASURES));
    let played = Candidate::ALL.map(|candidate| (candidate.title(), probe::run(candidate)));
    print!("{}", table::plain(probe::CASES, &played));
    Ok(())
}

/// Measures one candidate in a process of its own.
fn apart<F>(candidate: Candidate, way: Way, quick: bool) -> Result<F, Box<dyn Error>>
where
    F: DeserializeOwned,
{
    let mut command = Command::new(env::current_exe()?);
    command.args(["--only", &argument(candidate), "--way", &argument(way)]);
    if quick {
        command.arg("--quick");
    }
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("{candidate:?} failed: {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn argument(value: impl ValueEnum) -> String {
    let value = value.to_possible_value().expect("none is hidden");
    value.get_name().to_owned()
}
