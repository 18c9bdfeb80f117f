//! Processes of the scene: none of them outlives it, however it ends.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::Failure;

/// One process, killed when this is dropped, and also when this program is killed.
pub(crate) struct Process {
    child: Child,
    /// Kills it when its own input ends: the other end of that is held here, by nobody else.
    watchdog: Child,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::null()).spawn()?;
        let watchdog = Command::new("sh")
            .args(["-c", r#"cat; kill -KILL "$1""#, "watchdog"])
            .arg(child.id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match watchdog {
            Ok(watchdog) => Ok(Self { child, watchdog }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let ended = self.child.try_wait()?;
        if ended.is_some() {
            self.dismiss();
        }
        Ok(ended)
    }

    /// Asks it to stop, as a supervisor does.
    pub(crate) fn terminate(&self) -> io::Result<()> {
        let kill = format!("kill -TERM {}", self.child.id());
        Command::new("sh").args(["-c", &kill]).status().map(drop)
    }

    /// The number of the process may be another's by now.
    fn dismiss(&mut self) {
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.dismiss();
    }
}

/// A Redis on a free port, which keeps nothing.
pub(crate) struct PrivateRedis {
    pub(crate) url: String,
    _process: Process,
    _folder: TempDir,
}

impl PrivateRedis {
    pub(crate) async fn start() -> Result<Self, Failure> {
        // Somebody else may take the port between the look and the start.
        for _ in 0..5 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            let port = port.port().to_string();
            let folder = tempfile::tempdir()?;
            let mut process = start_server(&port, &folder)?;
            let url = format!("redis://127.0.0.1:{port}");
            let client = redis::Client::open(&*url)?;
            let start = Instant::now();
            while process.ended()?.is_none() && start.elapsed() < Duration::from_secs(20) {
                if client.get_multiplexed_async_connection().await.is_ok() {
                    return Ok(Self {
                        url,
                        _process: process,
                        _folder: folder,
                    });
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Err("redis-server does not start".into())
    }
}

fn start_server(port: &str, folder: &TempDir) -> Result<Process, Failure> {
    for program in ["redis-server", "valkey-server"] {
        let started = Process::start(
            Command::new(program)
                .args(["--bind", "127.0.0.1", "--port", port, "--save", "", "--dir"])
                .arg(folder.path())
                .stdout(Stdio::null()),
        );
        match started {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            started => return Ok(started?),
        }
    }
    Err(
        "redis-server is not installed: `apt-get install redis-server`, or `valkey-server`; or say \
         where one is: `--redis URL` with `--produce`, `--consume`, `--settle` or `--show`"
            .into(),
    )
}
