//! Event files of TensorBoard: TFRecord files of protocol buffers, written by hand.
//!
//! A record is its length (u64), the masked CRC-32C of the length, the bytes, their masked CRC-32C, all
//! little-endian. The bytes are an `Event`: 1 wall time (double), 2 step (varint), then one of 3 file
//! version (string), 5 summary, 7 session log. A summary's field 1 is a value: 1 tag (string), 2 number
//! (float). A session log's field 1 is its status, 1 for a start.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Record;
use super::crc32c::masked;
use crate::{Error, Result};

/// Wire types of protocol buffers.
const VARINT: u64 = 0;
const DOUBLE: u64 = 1;
const BYTES: u64 = 2;
const FLOAT: u64 = 5;

/// The event file of one run, or of one part of it: resuming adds another.
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new file in `folder`, with a name of its own. Where a run goes on from a step, the file makes
    /// TensorBoard forget what older files say of later ones.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(folder: &Path, resumed_at: Option<u64>) -> Result<Self> {
        let since = now();
        // Files are read in the order of their names; no two runs share time and process.
        let name = format!(
            "events.out.tfevents.{:010}.{:09}.{}",
            since.as_secs(),
            since.subsec_nanos(),
            std::process::id()
        );
        let path = folder.join(name);
        let file = File::create_new(&path).map_err(|e| Error::io("create", &path, e))?;
        let mut events = Self { path, file };
        events.event(0, 3, b"brain.Event:2")?;
        if let Some(step) = resumed_at {
            let mut start = Vec::new();
            field(&mut start, 1, VARINT);
            varint(&mut start, 1);
            events.event(step + 1, 7, &start)?;
        }
        Ok(events)
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes every number of a record as a scalar of its name, in f32.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let mut summary = Vec::new();
        for (name, number) in &record.values {
            let mut value = Vec::new();
            bytes_field(&mut value, 1, name.as_bytes());
            field(&mut value, 2, FLOAT);
            value.extend_from_slice(&(*number as f32).to_le_bytes());
            bytes_field(&mut summary, 1, &value);
        }
        self.event(record.step, 5, &summary)
    }

    /// Writes one event, whose content is field `number`.
    fn event(&mut self, step: u64, number: u64, content: &[u8]) -> Result<()> {
        let mut event = Vec::new();
        field(&mut event, 1, DOUBLE);
        event.extend_from_slice(&now().as_secs_f64().to_le_bytes());
        field(&mut event, 2, VARINT);
        varint(&mut event, step);
        bytes_field(&mut event, number, content);

        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend_from_slice(&masked(&length).to_le_bytes());
        record.extend_from_slice(&event);
        record.extend_from_slice(&masked(&event).to_le_bytes());
        self.file
            .write_all(&record)
            .map_err(|e| Error::io("write", &self.path, e))
    }
}

fn field(out: &mut Vec<u8>, number: u64, wire: u64) {
    varint(out, number << 3 | wire);
}

fn bytes_field(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    field(out, number, BYTES);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Seven bits a byte, lowest first; the high bit says that more come.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Time since 1970; zero on a machine whose clock is before that.
fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
