//! What these tests share: a codec for text, an error, and an operation with work that counts.

use std::{error::Error, fmt};

use tower_idempotency::{
    Done, Execution, Operation, RunError,
    function::{Call, Codec},
};

pub(crate) use crate::http_support::{Effects, Fault, Op, Scripted, yield_once};

/// Text as its bytes. Some texts it does not take, and it panics at others. It cannot be cloned, as
/// one that holds a secret might be.
#[derive(Debug)]
pub(crate) struct Text;

/// The codec does not take it.
#[derive(Debug)]
pub(crate) struct NotText;

impl fmt::Display for NotText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a text")
    }
}

impl Error for NotText {}

impl Codec<String> for Text {
    type Error = NotText;

    fn encode(&self, value: &String) -> Result<Vec<u8>, NotText> {
        match value.as_str() {
            "not to be written" => Err(NotText),
            "panic when written" => panic!("the codec panics, as the test wants it"),
            value => Ok(value.as_bytes().to_vec()),
        }
    }

    fn decode(&self, bytes: &[u8]) -> Result<String, NotText> {
        match bytes {
            b"not to be read" => Err(NotText),
            b"panic when read" => panic!("the codec panics, as the test wants it"),
            bytes => String::from_utf8(bytes.to_vec()).map_err(|_| NotText),
        }
    }
}

/// Another type of the same operation: what a later release may make of it.
impl Codec<u64> for Text {
    type Error = std::num::ParseIntError;

    fn encode(&self, value: &u64) -> Result<Vec<u8>, Self::Error> {
        Ok(value.to_string().into_bytes())
    }

    fn decode(&self, bytes: &[u8]) -> Result<u64, Self::Error> {
        String::from_utf8_lossy(bytes).parse()
    }
}

/// The errors of the work here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nothing was done.
    Declined,
    /// Nobody knows.
    Lost,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("as the test wants it")
    }
}

impl Error for Failure {}

pub(crate) type Ran<T = String> = Result<Done<T>, RunError<Failure>>;

/// An operation over a scripted store, and what its work did.
#[derive(Clone)]
pub(crate) struct Bench {
    pub(crate) store: Scripted,
    pub(crate) operation: Operation<Text>,
    pub(crate) effects: Effects,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::over(Scripted::new())
    }

    pub(crate) fn over(store: Scripted) -> Self {
        Self {
            operation: Operation::with_codec("pay", store.clone(), Text),
            store,
            effects: Effects::default(),
        }
    }

    pub(crate) fn with(self, set: impl FnOnce(Operation<Text>) -> Operation<Text>) -> Self {
        Self {
            operation: set(self.operation),
            ..self
        }
    }

    pub(crate) fn call(&self, key: &str, input: &str) -> Call<Text> {
        self.operation.call(key).input_bytes(input)
    }

    /// A call whose work counts, and gives the count.
    pub(crate) async fn send(&self, key: &str, input: &str) -> Ran {
        self.send_over(self.call(key, input)).await
    }

    pub(crate) async fn send_over(&self, call: Call<Text>) -> Ran {
        let effects = self.effects.clone();
        call.run(move |_| async move { Ok(format!("effect {}", effects.add())) })
            .await
    }

    /// A call whose work gives this.
    pub(crate) async fn give(&self, key: &str, value: Result<&str, Failure>) -> Ran {
        let (effects, value) = (self.effects.clone(), value.map(str::to_owned));
        let work = move |_| async move {
            effects.add();
            value
        };
        self.call(key, "b").run(work).await
    }
}

/// A call whose work never ends, polled once and then cut off, as if its process had died: its
/// operation detaches nothing.
pub(crate) async fn crash(bench: &Bench, key: &str) {
    let work = async |execution: Execution| {
        execution.save_checkpoint("step 1").await.unwrap();
        std::future::pending::<Result<String, Failure>>().await
    };
    let dying = bench.clone().with(|operation| operation.max_detached(0));
    let mut call = Box::pin(dying.call(key, "b").run(work));
    assert!(futures::poll!(call.as_mut()).is_pending());
}
