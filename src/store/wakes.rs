//! Who in this process waits for which record: what a store tells when a server says that a claim
//! has ended.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::key::StoreKey;

/// What a message says of a key: eight bytes of its SHA-256, in hex the key's
/// [`log_id`](StoreKey::log_id). The same in every process. Where two keys share one, each is woken
/// for both, and looks in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct WakeId(u64);

impl WakeId {
    pub(crate) fn of(key: &StoreKey) -> Self {
        let digest = Sha256::digest(key.as_str());
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        Self(u64::from_be_bytes(first))
    }

    /// One of 256 groups of keys.
    #[cfg(feature = "postgres")]
    pub(crate) fn bucket(self) -> u8 {
        self.0 as u8
    }

    /// From the text of a message. Whatever else was sent there is nothing.
    #[cfg(any(feature = "redis", feature = "postgres", test))]
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = u64::from_str_radix(text, 16).ok()?;
        hex.then_some(Self(id))
    }
}

impl fmt::Display for WakeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The waiters. A clone is another handle to the same ones. There are no more entries than
/// listeners.
#[derive(Clone, Default)]
pub(crate) struct Wakes(Arc<Mutex<Listening>>);

type Listening = HashMap<WakeId, watch::Sender<()>>;

impl Wakes {
    /// Registers a waiter: each later wake is its own.
    pub(crate) fn listen(&self, id: WakeId) -> Listener {
        let woken = self.lock().entry(id).or_default().subscribe();
        Listener {
            wakes: self.clone(),
            id,
            woken: Some(woken),
        }
    }

    /// Wakes who waits for this record.
    pub(crate) fn wake(&self, id: WakeId) {
        if let Some(sender) = self.lock().get(&id) {
            sender.send_replace(());
        }
    }

    /// Wakes everyone: messages may have been missed, or a test moved the clock.
    #[cfg(any(feature = "redis", feature = "postgres", feature = "testing", test))]
    pub(crate) fn wake_all(&self) {
        for sender in self.lock().values() {
            sender.send_replace(());
        }
    }

    /// Whether nobody waits.
    #[cfg(any(feature = "redis", feature = "sqlite", test))]
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// No code of others runs under the lock, and what we do there does not stop half-way.
    fn lock(&self) -> MutexGuard<'_, Listening> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One waiter.
pub(crate) struct Listener {
    wakes: Wakes,
    id: WakeId,
    woken: Option<watch::Receiver<()>>,
}

impl Listener {
    /// Returns at the next wake, or at once if there was one since the last return, or since this
    /// was made. Several may have become one. Dropping the future loses none.
    pub(crate) async fn woken(&mut self) {
        if let Some(woken) = &mut self.woken {
            // The sender lives as long as a listener does.
            let _ = woken.changed().await;
        }
    }
}

/// The last one to go leaves nothing behind, also where its future is dropped.
impl Drop for Listener {
    fn drop(&mut self) {
        let mut listening = self.wakes.lock();
        self.woken = None;
        let sender = listening.get(&self.id);
        if sender.is_some_and(|sender| sender.receiver_count() == 0) {
            listening.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn key(name: &str) -> StoreKey {
        StoreKey::new("idem", "caller", "endpoint", name)
    }

    fn is_woken(listener: &mut Listener) -> bool {
        listener.woken().now_or_never().is_some()
    }

    /// U19: a message holds a hash of the key, the one that log lines have.
    #[test]
    fn u19_a_message_is_the_log_id() {
        let id = WakeId::of(&key("k"));
        assert_eq!(id.to_string(), key("k").log_id());
        assert_eq!(WakeId::parse(id.to_string().as_bytes()), Some(id));
        let low = WakeId(10);
        assert_eq!(WakeId::parse(low.to_string().as_bytes()), Some(low));
        for other in [
            "",
            "a",
            "000000000000000g",
            "+00000000000000a",
            "0x0000000000000a",
        ] {
            assert_eq!(WakeId::parse(other.as_bytes()), None, "{other}");
        }
        assert_eq!(WakeId::parse(&[0xff; 16]), None);
    }

    /// S03, U30: a wake reaches everyone who listens for that key, and nobody else; also one that
    /// falls between the registration and the wait.
    #[test]
    fn s03_u30_a_wake_reaches_who_listens_for_the_key() {
        let wakes = Wakes::default();
        let (this, other) = (WakeId::of(&key("this")), WakeId::of(&key("other")));
        let mut listeners = [wakes.listen(this), wakes.listen(this)];
        let mut elsewhere = wakes.listen(other);
        assert!(!is_woken(&mut listeners[0]));
        wakes.wake(this);
        wakes.wake(this);
        assert!(listeners.iter_mut().all(is_woken));
        assert!(!listeners.iter_mut().any(is_woken), "both wakes were one");
        assert!(!is_woken(&mut elsewhere));
        wakes.wake_all();
        assert!(listeners.iter_mut().all(is_woken));
        assert!(is_woken(&mut elsewhere));
        // What was before does not count.
        assert!(!is_woken(&mut wakes.listen(this)));
    }

    /// P9, U29: who leaves leaves nothing behind, and takes nothing from those who stay.
    #[test]
    fn p9_u29_the_last_listener_leaves_nothing_behind() {
        let wakes = Wakes::default();
        let id = WakeId::of(&key("k"));
        assert!(wakes.is_empty());
        let mut stays = wakes.listen(id);
        drop(wakes.listen(id));
        assert!(!wakes.is_empty());
        wakes.wake(id);
        assert!(is_woken(&mut stays));
        drop(stays);
        assert!(wakes.is_empty());
        wakes.wake(id);
        assert!(wakes.is_empty(), "a wake registers nobody");
    }
}
