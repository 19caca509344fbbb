//! Logs a run as JSON lines and as event files of TensorBoard.

mod crc32c;
mod json_lines;
mod tensorboard;

use std::collections::BTreeMap;
use std::path::Path;

pub use json_lines::{JsonLines, read};
pub use tensorboard::EventFile;

use crate::Result;

/// The file of JSON lines in a run's folder.
pub const LINES_FILE: &str = "metrics.jsonl";

/// Numbers of one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// Steps of the optimizer made so far.
    pub step: u64,
    /// Training examples seen so far.
    pub examples: u64,
    /// Numbers by name; those with a common beginning up to a `/` are shown together.
    pub values: BTreeMap<String, f64>,
}

/// Writes records to every kind of log of a run.
pub struct Log {
    lines: JsonLines,
    events: EventFile,
}

impl Log {
    /// The logs in the folder of a run. `resumed_at`: the step whose state the run goes on from; entries that were
    /// logged after it are dropped from the lines and hidden by TensorBoard. `None` empties the lines.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::LogLine`] when a log to go on with is damaged.
    pub fn open(folder: &Path, resumed_at: Option<u64>) -> Result<Self> {
        Ok(Self {
            lines: JsonLines::open(&folder.join(LINES_FILE), resumed_at)?,
            events: EventFile::create(folder, resumed_at)?,
        })
    }

    /// Writes a record. It is with the operating system when this returns.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn write(&mut self, record: &Record) -> Result<()> {
        self.lines.write(record)?;
        self.events.write(record)
    }
}
