//! A memcached of one's own, which ends with this program.

use std::{
    error::Error,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub(crate) struct Memcached {
    address: SocketAddr,
    /// A shell that ends the server when its own input ends: when this is dropped, and also when
    /// this program is killed.
    shell: Child,
}

impl Memcached {
    /// On a free port of this machine, with these options.
    pub(crate) async fn start(options: &[&str]) -> Result<Self, Box<dyn Error>> {
        let found = Command::new("memcached").arg("-V").output();
        if let Err(error) = found {
            return Err(match error.kind() {
                io::ErrorKind::NotFound => {
                    "memcached is not installed: apt-get install memcached; \
                    or say where one runs, with --memcached HOST:PORT"
                        .into()
                }
                _ => format!("memcached does not run: {error}").into(),
            });
        }
        // Somebody else may have taken the port meanwhile.
        for _ in 0..5 {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let address = listener.local_addr()?;
            drop(listener);
            let shell = Command::new("sh")
                .args(["-c", r#"memcached "$@" & cat; kill $!"#, "sh"])
                // As root, memcached wants to know whom to be instead.
                .args(["-u", "nobody", "-l", "127.0.0.1"])
                .args(["-p", &address.port().to_string()])
                .args(options)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()?;
            let server = Self { address, shell };
            if server.answers().await {
                return Ok(server);
            }
        }
        Err("memcached does not start".into())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    async fn answers(&self) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if self.version().await.is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    async fn version(&self) -> io::Result<()> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(b"version\r\n").await?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).await?;
        match &answer {
            b"VERSION " => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl Drop for Memcached {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
