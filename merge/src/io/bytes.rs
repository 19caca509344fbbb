//! Files of any kind, here or by their addresses, for readers outside this crate.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::open_bytes;
use super::read_at::ReadAt;
use crate::remote::address::is_address;
use crate::{Error, Result};

/// A file whose bytes are read by position, by many threads at once. A remote one is fetched in blocks as they are
/// asked for, and kept in the cache of [`crate::remote`].
pub struct FileBytes {
    path: PathBuf,
    file: Box<dyn ReadAt>,
}

impl std::fmt::Debug for FileBytes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (formatter.debug_struct("FileBytes"))
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl FileBytes {
    /// Opens a file by its path or address.
    ///
    /// # Errors
    /// When it is not there, or is no regular file.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.into(),
            file: open_bytes(path)?,
        })
    }

    /// Opens a file by its path or address; `None` where there is none.
    ///
    /// # Errors
    /// When it is no regular file, or a server does not answer.
    pub fn open_if_there(path: &Path) -> Result<Option<Self>> {
        let file = match is_address(path) {
            true => crate::remote::open_if_there(path)?,
            false if path.exists() => Some(open_bytes(path)?),
            false => None,
        };
        Ok(file.map(|file| Self {
            path: path.into(),
            file,
        }))
    }

    /// Its path or address.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size when it was opened.
    #[must_use]
    pub fn n_bytes(&self) -> u64 {
        self.file.n_bytes()
    }

    /// The bytes of a range. The caller bounds its length.
    ///
    /// # Errors
    /// [`Error::Io`] when the file ends before the range, or cannot be read.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let failed = |source| Error::io("read", &self.path, source);
        let ends = range.end > self.n_bytes() || range.start > range.end;
        if ends {
            return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let n_bytes = usize::try_from(range.end - range.start);
        let n_bytes = n_bytes.map_err(|_| failed(std::io::ErrorKind::OutOfMemory.into()))?;
        let mut bytes = vec![0; n_bytes];
        let read = self.file.read_part(&mut bytes, range.start, range);
        read.map_err(failed)?;
        Ok(bytes)
    }
}

/// Names and paths of the files right in a folder, here or by its address, by name; links to files count. Web servers
/// list no folders: of `https://` addresses there are none.
///
/// # Errors
/// When a folder cannot be listed, or the server that holds it does not answer.
pub fn files_in(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    if is_address(folder) {
        let names = crate::remote::neighbors(folder)?.into_iter();
        found.extend(names.filter(|(name, _)| !name.contains('/')));
    } else {
        let failed = |source| Error::io("list", folder, source);
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_file() && !name.starts_with('.') {
                found.push((name.into_owned(), path));
            }
        }
    }
    found.sort();
    Ok(found)
}
