//! The scripts, and how one is run.

use std::sync::LazyLock;

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value, aio::ConnectionLike, cmd};

use crate::key::StoreKey;

macro_rules! scripts {
    ($($name:ident: $($file:literal)*,)*) => {$(
        pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!($(include_str!($file),)*))
        });
    )*};
}

scripts! {
    CLAIM: "read.lua" "replay.lua" "prelude.lua" "claim.lua",
    RENEW: "read.lua" "prelude.lua" "renew.lua",
    COMPLETE: "read.lua" "prelude.lua" "complete.lua",
    STOP: "read.lua" "prelude.lua" "stop.lua",
    GET: "read.lua" "prelude.lua" "get.lua",
    FORGET: "read.lua" "prelude.lua" "forget.lua",
}

/// A text that servers know by its hash once they have seen it.
pub(super) struct Script {
    text: &'static str,
    hash: String,
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self {
            text,
            hash: redis::Script::new(text).get_hash().to_owned(),
        }
    }

    /// Runs it on one record, in one round trip.
    ///
    /// A server that does not know it (new, restarted, flushed, another node of a cluster) is sent
    /// the whole text with the same arguments: that runs it and makes it known, on the server that
    /// has the key, and asks for no right to load scripts elsewhere.
    pub(super) async fn run(
        &self,
        connection: &mut impl ConnectionLike,
        key: &StoreKey,
        arguments: &[&[u8]],
    ) -> Result<Value, RedisError> {
        let on_record = |mut command: Cmd, script: &str| {
            command.arg(script).arg(1).arg(key.as_str()).arg(arguments);
            command
        };
        let known = on_record(cmd("EVALSHA"), &self.hash);
        match known.query_async(connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let whole = on_record(cmd("EVAL"), self.text);
                whole.query_async(connection).await
            }
            answer => answer,
        }
    }
}
