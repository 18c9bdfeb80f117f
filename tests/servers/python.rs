//! Python, with the packages of a file of requirements.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};

use super::process::program;

/// A Python program that finds these packages: of a virtual environment that the first test to ask
/// makes, below `target`, and that the others find there until the requirements change.
///
/// The packages come from where pip is set to get them. Only ready-made ones: nothing is compiled.
///
/// # Panics
///
/// If Python is not installed, or a package cannot be had.
pub fn python(requirements: &Path) -> PathBuf {
    let python = program(&["python3"], "python3 python3-venv", &[]);
    let version = output(
        Command::new(&python).arg("--version"),
        "apt-get install python3",
    );
    let wanted = fs::read(requirements).expect("a file of requirements");
    let mut hash = Sha256::new_with_prefix(version);
    hash.update(&wanted);
    let name: String = hash.finalize()[..8]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("python-{name}"));
    fs::create_dir_all(&folder).expect("a folder");

    // Other tests may want it at this moment, also of other processes.
    let lock = File::create(folder.join("lock")).expect("a file");
    lock.lock().expect("a lock");
    let (environment, ready) = (folder.join("environment"), folder.join("ready"));
    let program = environment.join("bin").join("python");
    if !ready.is_file() {
        // What a process has left that was killed meanwhile.
        let _ = fs::remove_dir_all(&environment);
        output(
            Command::new(&python).args(["-m", "venv"]).arg(&environment),
            "apt-get install python3-venv, or run scripts/test",
        );
        output(
            Command::new(&program)
                .args([
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                ])
                .args(["--only-binary", ":all:", "--requirement"])
                .arg(requirements),
            "is there a network, and a package index that pip is set to use?",
        );
        File::create(&ready).expect("a file");
    }
    program
}

fn output(command: &mut Command, hint: &str) -> Vec<u8> {
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{command:?} does not start: {error}"),
    };
    assert!(
        output.status.success(),
        "{command:?} fails: {hint}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    output.stdout
}
