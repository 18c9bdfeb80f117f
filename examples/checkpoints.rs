//! An order that takes three calls to other services, in a process that dies on the way: the next
//! attempt goes on where the last one came to, and nothing is done twice.
//!
//! `cargo run --features sqlite --example checkpoints` plays it: it starts itself four times, and
//! two of these processes die. It ends with 0 only if each service has done its part once.

use std::{
    collections::BTreeMap,
    error::Error,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use clap::Parser;
use tower_idempotency::{Execution, OnConflict, Operation, SqliteStore};

/// The three calls: to the warehouse, to the bank, to the courier.
const STEPS: [&str; 3] = ["stock", "card", "courier"];

#[derive(Parser)]
struct Flags {
    /// Fulfil the order, as a process that finds its database and the other services in this
    /// folder. Without it: play the whole scene.
    #[arg(long)]
    folder: Option<PathBuf>,

    /// Die at once when the service of this step has done its part, before that is written down.
    #[arg(long, value_name = "STEP")]
    die_in: Option<String>,

    /// Die when this step is done and written down.
    #[arg(long, value_name = "STEP")]
    die_after: Option<String>,
}

/// What the services answered, by step: this is what is saved, and what the order's answer is.
type Receipts = BTreeMap<String, String>;

/// The work. It is not cut off by a crash so much as continued by the next process.
async fn fulfil(
    execution: Execution,
    flags: Flags,
    folder: PathBuf,
) -> Result<Receipts, WorkError> {
    let mut receipts: Receipts = match execution.checkpoint() {
        Some(saved) => serde_json::from_slice(&saved)?,
        None => Receipts::new(),
    };
    let (attempt, entry) = (execution.attempt(), execution.entry());
    let known: Vec<_> = receipts.keys().map(String::as_str).collect();
    println!("  attempt {attempt} ({entry:?}), checkpoint: {known:?}");

    for step in STEPS {
        if let Some(receipt) = receipts.get(step) {
            println!("  {step}: done before, {receipt}");
            continue;
        }
        // The same key in every attempt: should this process die between the call and the
        // checkpoint, the service sees the repetition, and answers as it did.
        let receipt = call_service(&folder, step, &execution.derive(step))?;
        println!("  {step}: {receipt}");
        die_if(&flags.die_in, step);

        receipts.insert(step.to_owned(), receipt);
        execution
            .save_checkpoint(serde_json::to_vec(&receipts)?)
            .await?;
        die_if(&flags.die_after, step);
    }
    Ok(receipts)
}

type WorkError = Box<dyn Error + Send + Sync>;

fn die_if(at: &Option<String>, step: &str) {
    if at.as_deref() == Some(step) {
        println!("  … and the process dies");
        std::process::abort();
    }
}

/// Another company's service, which takes an idempotency key as good ones do. Its book has one line
/// for each call: what it has done, or that it had done so before.
fn call_service(folder: &Path, step: &str, key: &str) -> io::Result<String> {
    let path = folder.join(format!("{step}.book"));
    let mut book = OpenOptions::new().create(true).append(true).open(&path)?;
    let lines = fs::read_to_string(&path)?;
    let done = lines.lines().any(|line| line == format!("done {key}"));
    writeln!(book, "{} {key}", if done { "repeated" } else { "done" })?;
    Ok(format!("receipt {}", &key[..8]))
}

/// One process: it wants the order fulfilled, whatever others have done of it.
async fn run(flags: Flags, folder: PathBuf) -> Result<(), Box<dyn Error>> {
    let store = SqliteStore::open(folder.join("records.db")).await?;
    store.migrate().await?;
    let orders = Operation::new("fulfil", store)
        // How long the next process waits for one that died.
        .lease(Duration::from_secs(1))
        .on_conflict(OnConflict::Wait(Duration::from_secs(30)));
    let call = orders.call("order-7").input("a book");
    let done = call.run(|execution| fulfil(execution, flags, folder)).await;
    let done = done.map_err(|error| error.to_string())?;
    let how = match done.is_replayed() {
        true => "fulfilled before",
        false => "fulfilled",
    };
    println!("  {how}: {:?}", done.value());
    Ok(())
}

/// The whole scene.
fn play() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let start = |flags: &[&str]| {
        Command::new(std::env::current_exe()?)
            .arg("--folder")
            .arg(folder.path())
            .args(flags)
            .status()
    };
    println!("A process dies between the first call and the second:");
    let first = start(&["--die-after", "stock"])?;
    println!("The next one takes over, and dies after a call that it has not written down:");
    let second = start(&["--die-in", "card"])?;
    println!("The third one comes to the end:");
    let third = start(&[])?;
    println!("Whoever asks once more gets the same:");
    let fourth = start(&[])?;
    let lived = [first, second, third, fourth].map(|status| status.success());
    if lived != [false, false, true, true] {
        return Err(format!("the processes ended otherwise: {lived:?}").into());
    }

    println!("What the services have in their books:");
    for step in STEPS {
        let book = fs::read_to_string(folder.path().join(format!("{step}.book")))?;
        let count = |what| book.lines().filter(|line| line.starts_with(what)).count();
        let (done, repeated) = (count("done"), count("repeated"));
        println!("  {step}: {done} done, {repeated} repeated");
        if done != 1 {
            return Err(format!("{step} was done {done} times").into());
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut flags = Flags::parse();
    let result = match flags.folder.take() {
        Some(folder) => run(flags, folder).await,
        None => play(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
