//! Connections to one memcached, and the few commands that the store needs.
//!
//! No crate has them: the asynchronous ones swap by the meta command `ms`, which will not do (see
//! [`Connection::swap`]), or one command at a time, where a reading of the clock belongs with each
//! record.

use std::{
    error::Error,
    fmt, io,
    sync::{Mutex, PoisonError},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::{Semaphore, SemaphorePermit},
};

/// More would not make one server faster. Who comes beyond it waits, within the deadline of its
/// call (P9).
const MOST_CONNECTIONS: usize = 32;

/// memcached's own limit for an item is never greater, whatever `-I` says.
const LARGEST_VALUE: usize = 1 << 30;

/// Longer than any line that memcached sends: it is not memcached then.
const LONGEST_LINE: u64 = 4096;

/// A pool of connections, opened as they are needed.
///
/// There is no time-out here: the layer has one for each call of a store, and drops what takes
/// longer.
pub(crate) struct Client {
    address: String,
    idle: Mutex<Vec<Connection>>,
    permits: Semaphore,
}

/// What a read found.
pub(crate) struct Found {
    /// The server's clock, in seconds since the Unix epoch.
    pub(crate) seconds: u64,
    /// How many items the server has dropped before their time since it started.
    pub(crate) evictions: u64,
    pub(crate) item: Option<Item>,
}

pub(crate) struct Item {
    pub(crate) value: Bytes,
    /// The number of this version of the item: no other version of any item has it, until the
    /// server starts anew.
    pub(crate) version: u64,
}

impl Client {
    /// `host:port`. Nothing is opened yet.
    pub(crate) fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            idle: Mutex::default(),
            permits: Semaphore::new(MOST_CONNECTIONS),
        }
    }

    /// Reads an item, and the clock just before it, in one round trip; with the connection, over
    /// which a change has to go.
    pub(crate) async fn read(&self, key: &str) -> Result<(Lent<'_>, Found), Failure> {
        loop {
            let mut connection = self.lend().await?;
            match connection.read(key).await {
                Ok(found) => return Ok((connection, found)),
                // It was closed while it lay idle: the server may be there all the same, started
                // anew. To read twice does no harm.
                Err(Failure::Broken(_)) if connection.is_old => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn lend(&self) -> Result<Lent<'_>, Failure> {
        let permit = self.permits.acquire().await;
        let permit = permit.map_err(|_| Failure::Broken(io::ErrorKind::NotConnected.into()))?;
        let idle = self.idle().pop();
        let is_old = idle.is_some();
        let connection = match idle {
            Some(connection) => connection,
            None => Connection::open(&self.address).await?,
        };
        Ok(Lent {
            client: self,
            connection: Some(connection),
            is_old,
            _permit: permit,
        })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        // It is only ever pushed to and popped from.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that goes back to its pool when this is dropped, unless an answer is still to come
/// over it: a call that was cut off in between leaves a connection on which the next one would read
/// the wrong answer.
pub(crate) struct Lent<'a> {
    client: &'a Client,
    /// Taken only when this is dropped.
    connection: Option<Connection>,
    /// Whether it was used before.
    is_old: bool,
    _permit: SemaphorePermit<'a>,
}

impl Lent<'_> {
    async fn read(&mut self, key: &str) -> Result<Found, Failure> {
        self.connection()?.read(key).await
    }

    /// See [`Connection::swap`].
    pub(crate) async fn swap(
        &mut self,
        key: &str,
        version: Option<u64>,
        value: Bytes,
        expiry: u32,
    ) -> Result<bool, Failure> {
        let connection = self.connection()?;
        connection.swap(key, version, value, expiry).await
    }

    /// See [`Connection::delete`].
    pub(crate) async fn delete(&mut self, key: &str, version: u64) -> Result<bool, Failure> {
        self.connection()?.delete(key, version).await
    }

    fn connection(&mut self) -> Result<&mut Connection, Failure> {
        let connection = self.connection.as_mut();
        connection.ok_or_else(|| Failure::Broken(io::ErrorKind::NotConnected.into()))
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && !connection.is_asking
        {
            self.client.idle().push(connection);
        }
    }
}

struct Connection {
    stream: BufReader<TcpStream>,
    /// Whether a command was begun whose answer was not read to its end.
    is_asking: bool,
}

impl Connection {
    async fn open(address: &str) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
            is_asking: false,
        })
    }

    /// `stats` and `gets` in one write. memcached answers in the order of the commands, so the time
    /// is never later than that of the record.
    async fn read(&mut self, key: &str) -> Result<Found, Failure> {
        self.is_asking = true;
        let commands = format!("stats\r\ngets {key}\r\n");
        self.stream.write_all(commands.as_bytes()).await?;
        let (mut seconds, mut evictions) = (None, 0);
        loop {
            let line = self.line().await?;
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next()) {
                (Some("STAT"), Some("time"), Some(time)) => seconds = time.parse().ok(),
                (Some("STAT"), Some("evictions"), Some(count)) => {
                    evictions = count.parse().unwrap_or_default();
                }
                (Some("STAT"), ..) => {}
                (Some("END"), None, None) => break,
                _ => return Err(Failure::refused(&line)),
            }
        }
        let seconds = seconds.ok_or(Failure::Refused("no `time` in its `stats`".to_owned()))?;
        let item = self.item().await?;
        self.is_asking = false;
        Ok(Found {
            seconds,
            evictions,
            item,
        })
    }

    /// `VALUE <key> <flags> <length> <version>`, the value, `END`; or only that.
    async fn item(&mut self) -> Result<Option<Item>, Failure> {
        let line = self.line().await?;
        if line == "END" {
            return Ok(None);
        }
        let mut words = line.split(' ');
        let head = (words.next(), words.nth(2), words.next());
        let (Some("VALUE"), Some(length), Some(version)) = head else {
            return Err(Failure::refused(&line));
        };
        let length = length
            .parse()
            .ok()
            .filter(|length| *length <= LARGEST_VALUE);
        let (Some(length), Ok(version)) = (length, version.parse()) else {
            return Err(Failure::refused(&line));
        };
        let mut value = vec![0; length];
        self.stream.read_exact(&mut value).await?;
        for expected in ["", "END"] {
            let line = self.line().await?;
            if line != expected {
                return Err(Failure::refused(&line));
            }
        }
        let value = value.into();
        Ok(Some(Item { value, version }))
    }

    /// Writes an item, if it is still the version that was read, or still absent where none was.
    /// Whether it was: `false` changes nothing.
    ///
    /// By the commands `cas` and `add`. The meta command for both, `ms`, removes the item that is
    /// there when there is no room for the new one, whatever its version (seen on 1.6.18): a renewal
    /// that is too large would free the key of a running operation.
    async fn swap(
        &mut self,
        key: &str,
        version: Option<u64>,
        value: Bytes,
        expiry: u32,
    ) -> Result<bool, Failure> {
        let length = value.len();
        if length > LARGEST_VALUE {
            return Err(Failure::Full);
        }
        let command = match version {
            None => format!("add {key} 0 {expiry} {length}\r\n"),
            Some(version) => format!("cas {key} 0 {expiry} {length} {version}\r\n"),
        };
        self.is_asking = true;
        let head = Buf::chain(command.as_bytes(), value);
        let mut whole = Buf::chain(head, &b"\r\n"[..]);
        self.stream.write_all_buf(&mut whole).await?;
        let line = self.line().await?;
        self.is_asking = false;
        match line.as_str() {
            "STORED" => Ok(true),
            "NOT_STORED" | "EXISTS" | "NOT_FOUND" => Ok(false),
            _ => Err(self.refused(&line)),
        }
    }

    /// Removes an item, if it is still the version that was read. This one needs no room.
    async fn delete(&mut self, key: &str, version: u64) -> Result<bool, Failure> {
        self.is_asking = true;
        let command = format!("md {key} C{version}\r\n");
        self.stream.write_all(command.as_bytes()).await?;
        let line = self.line().await?;
        self.is_asking = false;
        match line.as_str() {
            "HD" => Ok(true),
            "EX" | "NF" => Ok(false),
            _ => Err(self.refused(&line)),
        }
    }

    /// Where memcached ran out of room the connection is as good as before; otherwise nobody knows
    /// what comes next over it.
    fn refused(&mut self, line: &str) -> Failure {
        let failure = Failure::refused(line);
        self.is_asking = !matches!(failure, Failure::Full);
        failure
    }

    async fn line(&mut self) -> Result<String, Failure> {
        let mut line = Vec::new();
        let mut stream = (&mut self.stream).take(LONGEST_LINE);
        stream.read_until(b'\n', &mut line).await?;
        match line.strip_suffix(b"\r\n").map(str::from_utf8) {
            Some(Ok(line)) => Ok(line.to_owned()),
            None if (line.len() as u64) < LONGEST_LINE => {
                Err(Failure::Broken(io::ErrorKind::UnexpectedEof.into()))
            }
            _ => Err(Failure::refused("")),
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection broke, or there is none.
    Broken(io::Error),
    /// There is no room for the value, or it is larger than any item may be.
    Full,
    /// memcached says that it cannot.
    Refused(String),
}

impl Failure {
    fn refused(line: &str) -> Self {
        let error = ["SERVER_ERROR", "CLIENT_ERROR", "ERROR"];
        // Of anything else nobody knows what it is: it might be a piece of a record (U19).
        if !error.iter().any(|word| line.starts_with(word)) {
            return Self::Refused("an answer that is not memcached's".to_owned());
        }
        let text = line.to_ascii_lowercase();
        match text.contains("out of memory") || text.contains("too large") {
            true => Self::Full,
            false => Self::Refused(line.to_owned()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(error) => write!(f, "no connection to memcached: {error}"),
            Self::Full => f.write_str("memcached has no room"),
            Self::Refused(line) => write!(f, "memcached refuses: {line}"),
        }
    }
}

impl Error for Failure {}
