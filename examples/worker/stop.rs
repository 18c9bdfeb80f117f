//! A stop that loses nothing: what is in hand is finished, and nothing new begun.

use std::{io, process};

use tokio::sync::watch;

use crate::signals::Signals;

/// Whether to stop. The first signal (Ctrl-C, or what a supervisor sends) asks for it; the second
/// one ends the process where it stands, which is safe too: what was in hand is delivered again.
#[derive(Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    pub(crate) fn on_signal() -> io::Result<Self> {
        let mut signals = Signals::listen()?;
        let (asked, stop) = watch::channel(false);
        tokio::spawn(async move {
            signals.next().await;
            asked.send_replace(true);
            signals.next().await;
            eprintln!("stopped at once");
            process::exit(1);
        });
        Ok(Self(stop))
    }

    pub(crate) fn is_asked(&self) -> bool {
        *self.0.borrow()
    }

    pub(crate) async fn asked(&mut self) {
        // The sender lives as long as the process.
        let _ = self.0.wait_for(|asked| *asked).await;
    }
}
