//! What was really done: one line for each executed effect.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

/// How many effects are kept where there is no file.
const KEPT: usize = 100_000;

/// The effects, in a file that several servers may share, or in memory.
pub(crate) enum Ledger {
    Memory(Mutex<VecDeque<Value>>),
    File { path: PathBuf, file: Arc<File> },
}

impl Ledger {
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else {
            return Ok(Self::Memory(Mutex::default()));
        };
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self::File {
            path: path.to_owned(),
            file: Arc::new(file.map_err(|error| {
                format!("the ledger {} cannot be opened: {error}", path.display())
            })?),
        })
    }

    /// Adds an effect, with the time in milliseconds, taken before it happens, and the number of
    /// this process. It is on disk when this returns.
    pub(crate) async fn append(&self, mut entry: Value) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        entry["at"] = (now.unwrap_or_default().as_millis() as u64).into();
        entry["process"] = std::process::id().into();
        match self {
            Self::Memory(entries) => {
                let mut entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
                if entries.len() == KEPT {
                    entries.pop_front();
                }
                entries.push_back(entry);
                Ok(())
            }
            Self::File { file, .. } => {
                let file = Arc::clone(file);
                blocking(move || {
                    // One write: in append mode, lines of several processes do not mix then.
                    let line = format!("{entry}\n");
                    let written = (&*file).write(line.as_bytes())?;
                    if written < line.len() {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    file.sync_data()
                })
                .await
            }
        }
    }

    /// All effects, oldest first. A line that is no JSON is given as it stands.
    pub(crate) async fn entries(&self) -> io::Result<Vec<Value>> {
        match self {
            Self::Memory(entries) => {
                let entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(entries.iter().cloned().collect())
            }
            Self::File { path, .. } => {
                let path = path.clone();
                blocking(move || {
                    let text = std::fs::read_to_string(path)?;
                    let entry = |line| serde_json::from_str(line).unwrap_or(Value::from(line));
                    Ok(text.lines().map(entry).collect())
                })
                .await
            }
        }
    }
}

/// Disks block, so their work does not belong on the threads that serve connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await?
}
