//! Redis: one server, a cluster, and a primary with a replica.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use redis::{Client, RedisResult, Value, aio::MultiplexedConnection, cmd};
use tempfile::TempDir;

use super::process::{Process, free_address, program, wait_until};

/// One server, with data of its own.
#[derive(Debug)]
pub struct RedisServer {
    process: Process,
    address: SocketAddr,
    options: Vec<String>,
    folder: PathBuf,
    /// Removes the folder; none where the value lives as long as this process.
    _folder: Option<TempDir>,
}

impl RedisServer {
    /// Without persistence, unless the options say otherwise: `["--appendonly", "yes"]`.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn start(options: &[&str]) -> Self {
        let folder = TempDir::with_prefix("redis-").expect("a folder");
        Self::start_in(options, folder.path().to_owned(), Some(folder))
    }

    /// One that is kept in a `static`: it and its folder go when this process ends.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn for_all(options: &[&str]) -> Self {
        let folder = TempDir::with_prefix("redis-").expect("a folder");
        Self::start_in(options, folder.keep(), None)
    }

    fn start_in(options: &[&str], folder: PathBuf, removed: Option<TempDir>) -> Self {
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        let forever = removed.is_none();
        // Somebody else may have taken the port meanwhile.
        for _ in 0..5 {
            let address = cluster_address();
            let process = spawn(address, &options, &folder, forever);
            let mut server = Self {
                process,
                address,
                options: options.clone(),
                folder: folder.clone(),
                _folder: None,
            };
            if server.answers() {
                server._folder = removed;
                return server;
            }
        }
        panic!("redis-server does not start: {}", log(&folder));
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub fn client(&self) -> Client {
        Client::open(self.url()).expect("a URL")
    }

    /// A connection with patience, over this server or what stands before it.
    pub async fn connection(&self) -> MultiplexedConnection {
        connection(&self.client()).await
    }

    /// Sends one command over a connection of its own, and waits for the answer.
    ///
    /// # Panics
    ///
    /// If the server refuses it.
    pub fn command(&self, words: &[&str]) -> Value {
        self.try_command(words).expect("the command is accepted")
    }

    pub fn try_command(&self, words: &[&str]) -> RedisResult<Value> {
        let mut connection = self.client().get_connection()?;
        cmd(words[0]).arg(&words[1..]).query(&mut connection)
    }

    /// The text that a command answers.
    pub fn text(&self, words: &[&str]) -> String {
        redis::from_redis_value(self.command(words)).expect("a text")
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Stops it as its administrator would.
    pub fn stop(&mut self) {
        self.process.signal("TERM");
        self.process.ended();
    }

    /// Starts it again, at the same address, with what it has on its disk.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = spawn(
            self.address,
            &self.options,
            &self.folder,
            self._folder.is_none(),
        );
        assert!(self.answers(), "it does not start: {}", log(&self.folder));
    }

    /// Whether it comes up and has loaded its data.
    fn answers(&mut self) -> bool {
        let mut answers = false;
        wait_until("redis-server answers or ends", || {
            answers = self.try_command(&["PING"]).is_ok();
            answers || !self.process.is_running()
        });
        answers
    }
}

/// A node of a cluster also listens on the port that is 10000 higher.
fn cluster_address() -> SocketAddr {
    let mut address = free_address();
    while address.port() > 55_000 {
        address = free_address();
    }
    address
}

fn spawn(address: SocketAddr, options: &[String], folder: &Path, forever: bool) -> Process {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"));
    let log = log.expect("a log");
    let mut command = Command::new(program(
        &["redis-server", "valkey-server"],
        "redis-server",
        &[],
    ));
    command
        .args(["--bind", "127.0.0.1", "--save", ""])
        .args(["--port", &address.port().to_string()])
        .arg("--dir")
        .arg(folder)
        .args(options)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a handle"))
        .stderr(log);
    Process::start_in(&mut command, forever.then_some(folder))
}

fn log(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("log")).unwrap_or_default()
}

/// One with patience: a busy machine is slow.
pub async fn connection(client: &Client) -> MultiplexedConnection {
    let patience = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(20)))
        .set_response_timeout(Some(Duration::from_secs(20)));
    client
        .get_multiplexed_async_connection_with_config(&patience)
        .await
        .expect("a connection")
}

/// Three nodes without replicas, each with a third of the slots.
#[derive(Debug)]
pub struct RedisCluster(Vec<RedisServer>);

impl RedisCluster {
    const OPTIONS: [&str; 4] = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];

    /// # Panics
    ///
    /// If it does not come together.
    pub fn start() -> Self {
        Self::of(RedisServer::start)
    }

    /// See [`RedisServer::for_all`].
    pub fn for_all() -> Self {
        Self::of(RedisServer::for_all)
    }

    fn of(start: impl Fn(&[&str]) -> RedisServer) -> Self {
        let nodes: Vec<_> = (0..3).map(|_| start(&Self::OPTIONS)).collect();
        let (ip, port) = (
            nodes[0].address().ip().to_string(),
            nodes[0].address().port().to_string(),
        );
        for (at, node) in nodes.iter().enumerate() {
            let epoch = (at + 1).to_string();
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]);
            let slots = (16_384 * at / 3)..(16_384 * (at + 1) / 3);
            let slots: Vec<_> = slots.map(|slot| slot.to_string()).collect();
            let mut words = vec!["CLUSTER", "ADDSLOTS"];
            words.extend(slots.iter().map(String::as_str));
            node.command(&words);
            if at > 0 {
                node.command(&["CLUSTER", "MEET", &ip, &port]);
            }
        }
        wait_until("the cluster is whole", || {
            nodes.iter().all(|node| {
                let info = node.text(&["CLUSTER", "INFO"]);
                let whole = ["cluster_state:ok", "cluster_known_nodes:3"];
                whole.iter().all(|line| info.contains(line))
            })
        });
        Self(nodes)
    }

    /// One more node, which has what the first one has, and takes its slots when it dies.
    ///
    /// # Panics
    ///
    /// If it does not get in step.
    pub fn add_replica(&mut self) {
        let replica = RedisServer::start(&Self::OPTIONS);
        let address = self.0[0].address();
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let first = self.0[0].text(&["CLUSTER", "MYID"]);
        replica.command(&["CLUSTER", "MEET", &ip, &port]);
        wait_until("the replica knows the node", || {
            replica
                .try_command(&["CLUSTER", "REPLICATE", &first])
                .is_ok()
        });
        self.0.push(replica);
        wait_until("all know the replica, and it is in step", || {
            let known = |node: &RedisServer| {
                let known = node.text(&["CLUSTER", "NODES"]);
                known.lines().count() == self.0.len() && known.contains("slave ")
            };
            let info = self.0[3].text(&["INFO", "replication"]);
            self.0.iter().all(known) && info.contains("master_link_status:up")
        });
    }

    pub fn nodes(&mut self) -> &mut [RedisServer] {
        &mut self.0
    }

    pub fn urls(&self) -> Vec<String> {
        self.0.iter().map(RedisServer::url).collect()
    }

    /// Of one node.
    pub fn client(&self) -> Client {
        self.0[1].client()
    }
}

/// One Sentinel, which watches a primary by the name `main`.
#[derive(Debug)]
pub struct RedisSentinel {
    _process: Process,
    /// See [`RedisServer`].
    _folder: Option<TempDir>,
    address: SocketAddr,
}

impl RedisSentinel {
    /// It gives a primary up that is away for `patience`.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn before(pair: &RedisPair, patience: Duration) -> Self {
        let folder = TempDir::with_prefix("redis-").expect("a folder");
        Self::start_in(pair, patience, folder.path().to_owned(), Some(folder))
    }

    /// See [`RedisServer::for_all`].
    pub fn for_all(pair: &RedisPair, patience: Duration) -> Self {
        let folder = TempDir::with_prefix("redis-").expect("a folder");
        Self::start_in(pair, patience, folder.keep(), None)
    }

    fn start_in(
        pair: &RedisPair,
        patience: Duration,
        folder: PathBuf,
        removed: Option<TempDir>,
    ) -> Self {
        let address = free_address();
        let (ip, port) = (pair.primary.address().ip(), pair.primary.address().port());
        let settings = folder.join("settings");
        let text = format!(
            "bind {ip}\n\
             sentinel monitor main {ip} {port} 1\n\
             sentinel down-after-milliseconds main {}\n\
             sentinel failover-timeout main 10000\n",
            patience.as_millis(),
        );
        std::fs::write(&settings, text).expect("settings");
        let mut command = Command::new(program(
            &["redis-server", "valkey-server"],
            "redis-server",
            &[],
        ));
        command
            .arg(settings)
            .args(["--sentinel", "--port", &address.port().to_string()])
            .arg("--dir")
            .arg(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let forever = removed.is_none();
        let sentinel = Self {
            _process: Process::start_in(&mut command, forever.then_some(&folder)),
            _folder: removed,
            address,
        };
        wait_until("the sentinel knows the replica", || {
            let info = sentinel.command(&["INFO", "sentinel"]);
            info.is_ok_and(|info| info.contains("slaves=1"))
        });
        sentinel
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub fn command(&self, words: &[&str]) -> RedisResult<String> {
        let mut connection = Client::open(self.url())?.get_connection()?;
        cmd(words[0]).arg(&words[1..]).query(&mut connection)
    }
}

/// A primary, and a replica of it that is in step.
#[derive(Debug)]
pub struct RedisPair {
    pub primary: RedisServer,
    pub replica: RedisServer,
}

impl RedisPair {
    /// # Panics
    ///
    /// If they do not start.
    pub fn start() -> Self {
        Self::of(RedisServer::start)
    }

    /// See [`RedisServer::for_all`].
    pub fn for_all() -> Self {
        Self::of(RedisServer::for_all)
    }

    fn of(start: impl Fn(&[&str]) -> RedisServer) -> Self {
        let primary = start(&["--repl-diskless-sync-delay", "0"]);
        let port = primary.address().port().to_string();
        let replica = start(&["--replicaof", "127.0.0.1", &port]);
        wait_until("the replica is in step", || {
            let info = replica.text(&["INFO", "replication"]);
            info.contains("master_link_status:up")
        });
        Self { primary, replica }
    }

    /// Waits until all that the primary has written has reached the replica.
    pub fn in_step(&self) {
        in_step(&self.primary, &self.replica);
    }

    /// Makes a primary of the replica.
    pub fn promote(&self) {
        self.replica.command(&["REPLICAOF", "NO", "ONE"]);
    }
}

/// Waits until all that a primary has written has reached its replica.
pub fn in_step(primary: &RedisServer, replica: &RedisServer) {
    let offset = |server: &RedisServer, name: &str| {
        let info = server.text(&["INFO", "replication"]);
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::to_owned)
    };
    wait_until("the replica has it all", || {
        let written = offset(primary, "master_repl_offset:");
        written.is_some() && written == offset(replica, "slave_repl_offset:")
    });
}
