//! memcached: one server.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::Duration,
};

use super::process::{PATIENCE, Process, free_address, program, wait_until};

/// One server, without records.
#[derive(Debug)]
pub struct MemcachedServer {
    process: Process,
    address: SocketAddr,
    options: Vec<String>,
}

impl MemcachedServer {
    /// With options as on its command line: `["-m", "1"]`.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn start(options: &[&str]) -> Self {
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        // Somebody else may have taken the port meanwhile.
        for _ in 0..5 {
            let address = free_address();
            let process = spawn(address, &options);
            let mut server = Self {
                process,
                address,
                options: options.clone(),
            };
            if server.answers() {
                return server;
            }
        }
        panic!("memcached does not start with {options:?}");
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Starts it again, at the same address, without records.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = spawn(self.address, &self.options);
        assert!(self.answers(), "memcached does not start again");
    }

    /// What it answers to these commands, over a connection of its own.
    ///
    /// # Panics
    ///
    /// If it does not answer.
    pub fn ask(&self, commands: impl AsRef<[u8]>) -> Vec<u8> {
        let answered = ask(self.address, commands.as_ref());
        answered.expect("memcached answers")
    }

    /// One of its statistics.
    ///
    /// # Panics
    ///
    /// If there is none of that name, or it is no number.
    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.ask("stats\r\n");
        let stats = String::from_utf8(stats).expect("text");
        let start = format!("STAT {name} ");
        let value = stats.lines().find_map(|line| line.strip_prefix(&start));
        let value = value.unwrap_or_else(|| panic!("no {name} in {stats}"));
        value.parse().expect("a number")
    }

    /// The value of an item, if it is there.
    ///
    /// # Panics
    ///
    /// If memcached does not know the key for one.
    pub fn value(&self, key: &str) -> Option<Vec<u8>> {
        let answer = self.ask(format!("mg {key} v\r\n"));
        if answer == b"EN\r\n" {
            return None;
        }
        let head = answer.iter().position(|&byte| byte == b'\n');
        let value = &answer[head.expect("a line") + 1..];
        assert!(answer.starts_with(b"VA "), "{key} is no key");
        Some(value.strip_suffix(b"\r\n").expect("a whole value").to_vec())
    }

    /// Writes an item.
    ///
    /// # Panics
    ///
    /// If memcached does not take it.
    pub fn set(&self, key: &str, value: &[u8]) {
        let head = format!("set {key} 0 0 {}\r\n", value.len());
        let answer = self.ask([head.as_bytes(), value, b"\r\n"].concat());
        assert_eq!(String::from_utf8_lossy(&answer), "STORED\r\n");
    }

    /// Whether it comes up.
    fn answers(&mut self) -> bool {
        let mut answers = false;
        wait_until("memcached answers or ends", || {
            answers = ask(self.address, b"").is_ok();
            answers || !self.process.is_running()
        });
        // Another process might have answered.
        answers && self.process.is_running()
    }
}

fn spawn(address: SocketAddr, options: &[String]) -> Process {
    let mut command = Command::new(program(&["memcached"], "memcached", &["/usr/bin"]));
    command
        // As root it wants to know whom to be instead; others it does not ask.
        .args(["-u", "nobody", "-l", "127.0.0.1", "-U", "0", "-t", "2"])
        .args(["-p", &address.port().to_string()])
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Process::start(&mut command)
}

/// Sends commands, and one more whose answer tells that theirs are complete.
fn ask(address: SocketAddr, commands: &[u8]) -> std::io::Result<Vec<u8>> {
    const END: &[u8] = b"MN\r\n";
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(commands)?;
    stream.write_all(b"mn\r\n")?;
    let mut answer = Vec::new();
    while !answer.ends_with(END) {
        let mut part = [0; 4096];
        match stream.read(&mut part)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => answer.extend(&part[..read]),
        }
    }
    answer.truncate(answer.len() - END.len());
    Ok(answer)
}
