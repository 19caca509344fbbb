//! Sends data to the disk while more are being written, so that the final sync has little left.

use std::fs::File;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Pause between two rounds; long enough that small outputs never meet one.
const PAUSE: Duration = Duration::from_millis(60);

/// A thread that syncs files again and again until it is stopped.
pub(super) struct Flusher {
    /// Dropping it wakes and ends the thread.
    stop: mpsc::Sender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Flusher {
    /// Starts to sync `files`.
    pub(super) fn start(files: Vec<File>) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            while stopped.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
                for file in &files {
                    file.sync_data()?;
                }
            }
            Ok(())
        });
        Self { stop, thread }
    }

    /// Ends the thread. The system reports a failed write only once, so that an error seen here
    /// will not be seen by the final sync.
    pub(super) fn stop(self) -> io::Result<()> {
        drop(self.stop);
        // A panic of the thread is a bug and goes on as one.
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
