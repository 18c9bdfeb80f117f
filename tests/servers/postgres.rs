//! A PostgreSQL server of a test's own.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use sqlx::{
    ConnectOptions, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tempfile::TempDir;

use super::process::{Process, free_address, program, wait_until};

/// A server with data of its own. It ends with this process, however that ends.
#[derive(Debug)]
pub struct PostgresServer {
    process: Process,
    folder: TempDir,
    address: SocketAddr,
    settings: Vec<String>,
    names: AtomicU32,
}

impl PostgresServer {
    /// A server that does not wait for the disk: what it wrote is lost with the machine, though not
    /// with its processes.
    pub fn start() -> Self {
        Self::with(&["fsync=off"])
    }

    /// A server with settings, as they stand in `postgresql.conf`.
    pub fn with(settings: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("postgres").tempdir();
        let folder = folder.expect("a temporary folder");
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(folder.path()));
        }
        let data = folder.path().join("data");
        run(server_command("initdb")
            .args(["--no-sync", "-A", "trust", "-E", "UTF8", "--locale=C"])
            .args(["-U", "postgres", "-D"])
            .arg(&data));
        let settings: Vec<_> = settings
            .iter()
            .map(|setting| (*setting).to_owned())
            .collect();
        let address = free_address();
        Self {
            process: launch(folder.path(), address, &settings),
            folder,
            address,
            settings,
            names: AtomicU32::new(0),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the server wrote to its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).expect("a log")
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address)
    }

    pub fn options(&self) -> PgConnectOptions {
        options_for(self.address)
    }

    pub async fn connect(&self) -> PgConnection {
        self.options().connect().await.expect("a connection")
    }

    /// A pool that does not test its connections.
    pub async fn pool(&self, connections: u32) -> PgPool {
        let options = PgPoolOptions::new()
            .max_connections(connections)
            .test_before_acquire(false);
        let pool = options.connect_with(self.options()).await;
        pool.expect("a pool")
    }

    /// A name that no other test has.
    pub fn new_name(&self) -> String {
        format!("test_{}", self.names.fetch_add(1, Relaxed))
    }

    /// Stops it where it is, and all of its processes. They keep their connections.
    pub fn freeze(&self) {
        self.process.freeze();
        for child in self.children() {
            signal("STOP", child);
        }
    }

    pub fn thaw(&self) {
        for child in self.children() {
            signal("CONT", child);
        }
        self.process.thaw();
    }

    /// Shuts it down in order, without waiting for clients.
    pub fn stop(&mut self) {
        self.process.signal("INT");
        self.process.ended();
    }

    /// Ends all of its processes as a crash does.
    pub fn kill(&mut self) {
        let children = self.children();
        self.process.kill();
        for child in &children {
            signal("KILL", *child);
        }
        // A zombie, until somebody takes note of its end, holds nothing.
        wait_until("no process of the server is left", || {
            let state = |child: &u32| stat(*child).map(|(state, _)| state);
            children
                .iter()
                .all(|child| matches!(state(child), None | Some('Z')))
        });
    }

    /// Starts it again at the same address, with the data that it had.
    pub fn restart(&mut self) {
        self.process = launch(self.folder.path(), self.address, &self.settings);
    }

    fn children(&self) -> Vec<u32> {
        let numbers = fs::read_dir("/proc").expect("/proc").flatten();
        numbers
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|id| stat(*id).is_some_and(|(_, parent)| parent == self.process.id()))
            .collect()
    }
}

pub fn options_for(address: SocketAddr) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host(&address.ip().to_string())
        .port(address.port())
        .username("postgres")
        .database("postgres")
}

fn launch(folder: &Path, address: SocketAddr, settings: &[String]) -> Process {
    let log = folder.join("log");
    let output = fs::OpenOptions::new().create(true).append(true).open(&log);
    let output = output.expect("a log");
    let mut command = server_command("postgres");
    command.arg("-D").arg(folder.join("data"));
    let address_settings = [
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={}", address.port()),
        "unix_socket_directories=".to_owned(),
        "max_connections=200".to_owned(),
        "shared_buffers=32MB".to_owned(),
    ];
    for setting in address_settings.iter().chain(settings) {
        command.args(["-c", setting]);
    }
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("the log"))
        .stderr(output);
    let mut process = Process::start_in(&mut command, Some(folder));
    let is_ready = binary("pg_isready");
    wait_until("the server is ready", || {
        let text = || fs::read_to_string(&log).unwrap_or_default();
        assert!(process.is_running(), "the server ended: {}", text());
        let port = address.port().to_string();
        let ready = Command::new(&is_ready)
            .args(["-q", "-h", "127.0.0.1", "-p", &port])
            .status();
        ready.expect("pg_isready runs").success()
    });
    process
}

fn binary(name: &str) -> PathBuf {
    program(&[name], "postgresql", &["/usr/lib/postgresql/*/bin"])
}

/// The server refuses to run as root.
fn server_command(name: &str) -> Command {
    let binary = binary(name);
    if !is_root() {
        return Command::new(binary);
    }
    // It replaces itself by the program, so that the process is the server's.
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
        .arg(binary)
        .current_dir("/");
    command
}

fn is_root() -> bool {
    fs::metadata("/proc/self").expect("/proc").uid() == 0
}

fn run(command: &mut Command) {
    let output = command.output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
}

fn signal(name: &str, id: u32) {
    // A process that is gone needs none.
    let _ = Command::new("kill")
        .args([&format!("-{name}"), &id.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// State and parent follow the name, which is in parentheses and may hold anything.
fn stat(id: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut words = stat.rsplit_once(')')?.1.split_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}
