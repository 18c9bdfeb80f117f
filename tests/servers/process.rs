//! One server process.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Longer than any server takes to start or stop, also on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A process that is killed when this is dropped, and also when this process ends in any other
/// way: a panic that aborts, a signal, or a value that lives in a `static`.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Kills it once the other end of its standard input is closed, which is held here.
    watchdog: Child,
}

impl Process {
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        Self::start_in(command, None)
    }

    /// The same for a process whose value may never be dropped: if so, its folder is removed too.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn start_in(command: &mut Command, folder: Option<&Path>) -> Self {
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("{command:?} does not start: {error}"),
        };
        // The end of the input is the end of this process: nobody else holds the pipe.
        let script = r#"cat; kill -KILL "$1"; [ -z "$2" ] || { sleep 1; rm -rf "$2"; }"#;
        let watchdog = Command::new("sh")
            .args(["-c", script, "watchdog", &child.id().to_string()])
            .arg(folder.unwrap_or(Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match watchdog {
            Ok(watchdog) => Self { child, watchdog },
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("no watchdog for {command:?}: {error}");
            }
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it prints, where the command pipes that.
    ///
    /// # Panics
    ///
    /// If it does not, or it was taken before.
    pub fn stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("a piped output")
    }

    /// Sends a signal by its name: `STOP`, `CONT`, `TERM`, `INT`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", self.id())])
            .status();
        assert!(sent.expect("sh runs").success(), "no signal {name}");
    }

    /// Stops it where it is. It keeps its connections, and answers nothing.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.dismiss();
    }

    pub fn is_running(&mut self) -> bool {
        let running = matches!(self.child.try_wait(), Ok(None));
        if !running {
            self.dismiss();
        }
        running
    }

    /// Its number may be another's by now.
    fn dismiss(&mut self) {
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self) {
        wait_until("the process ends", || !self.is_running());
    }

    /// The same, and with which code; none where a signal ended it.
    pub fn code(&mut self) -> Option<i32> {
        self.ended();
        self.child.wait().ok()?.code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where a program is, by any of its names: on the path, or in one of these folders (`*` stands for one
/// name).
///
/// # Panics
///
/// If it is not installed: with the package to install.
pub fn program(names: &[&str], package: &str, folders: &[&str]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).collect::<Vec<_>>();
    let elsewhere = folders
        .iter()
        .flat_map(|folder| match folder.split_once('*') {
            None => vec![PathBuf::from(folder)],
            Some((before, after)) => {
                let mut found: Vec<_> = std::fs::read_dir(before)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|entry| PathBuf::from(format!("{}{after}", entry.path().display())))
                    .collect();
                found.sort();
                found.reverse();
                found
            }
        });
    on_path
        .into_iter()
        .chain(elsewhere)
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .find(|file| file.is_file())
        .unwrap_or_else(|| {
            let names = names.join(" or ");
            panic!("{names} is not installed: `apt-get install {package}`, or run scripts/test")
        })
}

/// An address of this machine that nobody listens on.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address")
}

pub fn accepts(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// # Panics
///
/// If it is not so within [`PATIENCE`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
