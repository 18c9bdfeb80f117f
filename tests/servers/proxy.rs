//! A proxy between a client and a server: counts the round trips, and cuts the connection.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
};

/// Forwards every connection to a server, until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::AbortHandle,
}

#[derive(Debug)]
struct Shared {
    server: Mutex<SocketAddr>,
    cut: Notify,
    refusing: AtomicBool,
    connections: AtomicU64,
    round_trips: AtomicU64,
    to_server: AtomicU64,
    to_client: AtomicU64,
    trap: Mutex<Option<(&'static [u8], Cut)>>,
}

/// At which moment a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The server never gets the words.
    Before,
    /// The server has answered the words, and the client never gets the answer.
    After,
}

impl Proxy {
    pub async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            server: Mutex::new(server),
            cut: Notify::new(),
            refusing: AtomicBool::default(),
            connections: AtomicU64::default(),
            round_trips: AtomicU64::default(),
            to_server: AtomicU64::default(),
            to_client: AtomicU64::default(),
            trap: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Self {
            address,
            shared,
            accepting,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes every connection there is. New ones are accepted.
    pub fn cut(&self) {
        self.shared.cut.notify_waiters();
    }

    /// Cuts the connection over which a client next sends these words, all in one piece. Once.
    pub fn cut_at(&self, words: &'static [u8], cut: Cut) {
        *self.shared.trap.lock().expect("a trap") = Some((words, cut));
    }

    /// Leads new connections to another server, as an address does that follows a failover.
    pub fn lead_to(&self, server: SocketAddr) {
        *self.shared.server.lock().expect("no panic") = server;
    }

    /// Whether new connections are closed at once.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refusing.store(refuse, SeqCst);
    }

    /// How many connections there were so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(SeqCst)
    }

    /// How often the server spoke after the client had spoken, over all connections so far.
    pub fn round_trips(&self) -> u64 {
        self.shared.round_trips.load(SeqCst)
    }

    /// Bytes so far: to the server, and to the client.
    pub fn bytes(&self) -> (u64, u64) {
        let shared = &self.shared;
        (shared.to_server.load(SeqCst), shared.to_client.load(SeqCst))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        if shared.refusing.load(SeqCst) {
            continue;
        }
        shared.connections.fetch_add(1, SeqCst);
        let server = *shared.server.lock().expect("no panic");
        tokio::spawn(forward(client, server, Arc::clone(&shared)));
    }
}

async fn forward(client: TcpStream, server: SocketAddr, shared: Arc<Shared>) {
    // Registered before the first byte, so that no cut is missed.
    let mut cut = std::pin::pin!(shared.cut.notified());
    cut.as_mut().enable();
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (asked, deaf) = (AtomicBool::new(false), AtomicBool::new(false));
    let there = copy(from_client, to_server, |bytes| {
        match shared.trapped(bytes) {
            Some(Cut::Before) => return Err(Trapped),
            Some(Cut::After) => deaf.store(true, SeqCst),
            None => {}
        }
        asked.store(true, SeqCst);
        shared.to_server.fetch_add(bytes.len() as u64, SeqCst);
        Ok(())
    });
    let back = copy(from_server, to_client, |bytes| {
        if deaf.load(SeqCst) {
            return Err(Trapped);
        }
        if asked.swap(false, SeqCst) {
            shared.round_trips.fetch_add(1, SeqCst);
        }
        shared.to_client.fetch_add(bytes.len() as u64, SeqCst);
        Ok(())
    });
    tokio::select! {
        () = cut => {}
        _ = futures::future::try_join(there, back) => {}
    }
}

impl Shared {
    fn trapped(&self, bytes: &[u8]) -> Option<Cut> {
        let mut trap = self.trap.lock().expect("a trap");
        let (words, cut) = (*trap)?;
        bytes.windows(words.len()).find(|it| *it == words)?;
        *trap = None;
        Some(cut)
    }
}

/// The connection is to be cut.
struct Trapped;

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut seen: impl FnMut(&[u8]) -> Result<(), Trapped>,
) -> Result<(), Trapped> {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        seen(&buffer[..read])?;
        if to.write_all(&buffer[..read]).await.is_err() {
            return Ok(());
        }
    }
    let _ = to.shutdown().await;
    Ok(())
}
