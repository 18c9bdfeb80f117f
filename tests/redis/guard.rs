//! The servers of the tests themselves.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use crate::servers::process::{Process, wait_until};

const AS_VICTIM: &str = "TOWER_IDEMPOTENCY_VICTIM";

/// A server ends with the tests that started it, also where they are killed.
#[test]
fn a_server_ends_with_its_tests_however_they_end() {
    if std::env::var_os(AS_VICTIM).is_some() {
        let server = Process::start(Command::new("sleep").arg("600").stdout(Stdio::null()));
        println!("victim {}", server.id());
        loop {
            std::thread::park();
        }
    }
    let name = "guard::a_server_ends_with_its_tests_however_they_end";
    let mut tests = Process::start(
        Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(AS_VICTIM, "")
            .stdout(Stdio::piped()),
    );
    let mut lines = BufReader::new(tests.stdout()).lines();
    let server: u32 = lines
        .find_map(|line| Some(line.unwrap().split_once("victim ")?.1.trim().parse()))
        .unwrap()
        .unwrap();
    let runs = || {
        let state = std::fs::read_to_string(format!("/proc/{server}/stat")).unwrap_or_default();
        !state.is_empty() && !state.contains(") Z ")
    };
    assert!(runs());
    tests.kill();
    wait_until("the server has ended", || !runs());
}
