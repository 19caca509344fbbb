//! Rows of features on disk as they are computed, so that a stopped run goes on.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{EncodeFault, Error, Result};

/// The longest first line that is read.
const MAX_HEAD_BYTES: usize = 1 << 12;

/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 4 << 20;

/// The first line of the file.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Head {
    /// Stands for everything that the rows depend on.
    key: String,
    /// Numbers of a row.
    width: usize,
}

/// Rows of f32 in a file, appended batch by batch: a run that is killed loses the batch that it was
/// at. Dropping it keeps the file.
#[derive(Debug)]
pub struct Rows {
    path: PathBuf,
    key: String,
    file: Option<File>,
    /// The offset of the first row.
    start: u64,
    width: usize,
    n_rows: usize,
}

impl Rows {
    /// Continues a file that an earlier run began under the same `key`, after its last whole batch of
    /// `batch_size` rows. Starts a new file if there is none, or if its key differs.
    ///
    /// # Errors
    /// When the file cannot be read, or is a link or a folder.
    pub fn open(path: &Path, key: &str, batch_size: usize) -> Result<Self> {
        let mut rows = Self {
            path: path.into(),
            key: key.into(),
            file: None,
            start: 0,
            width: 0,
            n_rows: 0,
        };
        let metadata = match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(rows),
            other => other.map_err(|source| Error::io("open", path, source))?,
        };
        if !metadata.is_file() {
            return Err(Error::NotAFile { path: path.into() });
        }
        let file = OpenOptions::new().read(true).write(true).open(path);
        let mut file = file.map_err(|source| Error::io("open", path, source))?;
        let head = head(&mut file).map_err(|source| Error::io("read", path, source))?;
        let Some((Head { key: found, width }, start)) = head.filter(|(head, _)| head.width > 0)
        else {
            return Ok(rows);
        };
        if found != key {
            return Ok(rows);
        }
        let row_bytes = (width * size_of::<f32>()) as u64;
        let n_whole = (metadata.len().saturating_sub(start) / row_bytes) as usize;
        rows.n_rows = n_whole / batch_size.max(1) * batch_size.max(1);
        (rows.start, rows.width, rows.file) = (start, width, Some(file));
        Ok(rows)
    }

    /// Rows that are there.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Numbers of a row; 0 as long as there is none.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Adds `n` rows.
    ///
    /// # Errors
    /// [`EncodeFault::FeatureWidth`] when they are wider or narrower than those before, or when the disk
    /// is full or fails.
    pub fn append(&mut self, values: &[f32], n: usize) -> Result<()> {
        let width = values.len() / n.max(1);
        if self.width != 0 && self.width != width {
            return Err(Error::Encode(EncodeFault::FeatureWidth {
                found: width,
                expected: self.width,
            }));
        }
        let failed = |source| Error::io("write", &self.path, source);
        if self.file.is_none() {
            // Files of another run are not continued.
            match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed(error));
                }
                _ => {}
            }
            let new = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&self.path);
            let mut new = new.map_err(failed)?;
            let head = Head {
                key: self.key.clone(),
                width,
            };
            // Numbers and strings always have a JSON form.
            let line = serde_json::to_string(&head).unwrap_or_default() + "\n";
            new.write_all(line.as_bytes()).map_err(failed)?;
            (self.start, self.width) = (line.len() as u64, width);
            self.file = Some(new);
        }
        if let Some(file) = &mut self.file {
            let at = self.start + (self.n_rows * width * size_of::<f32>()) as u64;
            let written = file
                .seek(SeekFrom::Start(at))
                .and_then(|_| file.write_all(bytemuck::cast_slice(values)))
                .and_then(|()| file.set_len(at + size_of_val(values) as u64))
                .and_then(|()| file.flush());
            written.map_err(|source| Error::io("write", &self.path, source))?;
        }
        self.n_rows += n;
        Ok(())
    }

    /// Calls `each` with the bytes of all rows in order, little-endian, some MiB at a time.
    ///
    /// # Errors
    /// When the file cannot be read, and what `each` returns.
    pub fn read(&mut self, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let n_bytes = (self.n_rows * self.width * size_of::<f32>()) as u64;
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let failed = |source| Error::io("read", &self.path, source);
        file.seek(SeekFrom::Start(self.start)).map_err(failed)?;
        let mut chunk = vec![0; CHUNK_BYTES.min(n_bytes as usize)];
        let mut at = 0;
        while at < n_bytes {
            let n = (chunk.len() as u64).min(n_bytes - at) as usize;
            file.read_exact(&mut chunk[..n]).map_err(failed)?;
            each(at, &chunk[..n])?;
            at += n as u64;
        }
        Ok(())
    }

    /// Removes the file.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &self.path, error))
            }
            _ => Ok(()),
        }
    }
}

/// The first line, and where it ends.
fn head(file: &mut File) -> std::io::Result<Option<(Head, u64)>> {
    let mut bytes = Vec::new();
    Read::by_ref(file)
        .take(MAX_HEAD_BYTES as u64)
        .read_to_end(&mut bytes)?;
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
        return Ok(None);
    };
    let head = serde_json::from_slice(&bytes[..end]).ok();
    Ok(head.map(|head| (head, end as u64 + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(rows: &mut Rows) -> Vec<f32> {
        let mut values = Vec::new();
        let read = rows.read(|_, bytes| {
            values.extend(bytemuck::pod_collect_to_vec::<u8, f32>(bytes));
            Ok(())
        });
        read.expect("read");
        values
    }

    #[test]
    fn rows_go_on_after_the_last_whole_batch_and_only_under_their_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rows");
        let mut rows = Rows::open(&path, "a", 2).expect("opened");
        rows.append(&[1.0, 2.0, 3.0, 4.0], 2).expect("written");
        rows.append(&[5.0, 6.0], 1).expect("written");
        assert!(matches!(
            rows.append(&[7.0], 1),
            Err(Error::Encode(EncodeFault::FeatureWidth { .. }))
        ));
        drop(rows);
        // Half a row, as a kill leaves it.
        let mut file = OpenOptions::new().append(true).open(&path).expect("a file");
        file.write_all(&[0, 0]).expect("written");
        let mut rows = Rows::open(&path, "a", 2).expect("opened");
        assert_eq!((rows.n_rows(), rows.width()), (2, 2));
        rows.append(&[8.0, 9.0], 1).expect("written");
        assert_eq!(values(&mut rows), [1.0, 2.0, 3.0, 4.0, 8.0, 9.0]);
        let mut other = Rows::open(&path, "b", 2).expect("opened");
        assert_eq!(other.n_rows(), 0);
        other.append(&[1.5], 1).expect("written");
        assert_eq!(values(&mut other), [1.5]);
        other.remove().expect("removed");
        assert!(!path.exists());
    }
}
