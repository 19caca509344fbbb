//! Text files, with limits on their size and on their lines.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Take};
use std::path::Path;

use crate::{Error, Result};

/// The byte-order mark that some editors and libraries put before a text.
pub(crate) const MARK: &str = "\u{feff}";

/// Opens a file of at most `limit` bytes.
pub(crate) fn open(path: &Path, limit: u64) -> Result<BufReader<Take<File>>> {
    let failed = |source| Error::io("open", path, source);
    // Asked first, for opening a pipe would wait for its other end.
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(Error::NotAFile { path: path.into() });
    }
    if metadata.len() > limit {
        return Err(too_large(path, metadata.len(), limit));
    }
    let file = File::open(path).map_err(failed)?;
    // The file may grow while it is read.
    let mut file = BufReader::with_capacity(1 << 16, file.take(limit.saturating_add(1)));
    merge::io::require_fetched(path, file.fill_buf().map_err(failed)?)?;
    Ok(file)
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let n_read = open(path, limit)?.read_to_end(&mut bytes);
    let n_read = n_read.map_err(|source| Error::io("read", path, source))? as u64;
    match n_read > limit {
        true => Err(too_large(path, n_read, limit)),
        false => Ok(bytes),
    }
}

/// Reads a text of at most `limit` bytes.
pub(crate) fn text_at_most(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read_at_most(path, limit)?).map_err(|fault| {
        let fault = std::io::Error::new(std::io::ErrorKind::InvalidData, fault.utf8_error());
        Error::io("read", path, fault)
    })
}

fn too_large(path: &Path, n_bytes: u64, limit: u64) -> Error {
    Error::FileTooLarge {
        path: path.into(),
        n_bytes,
        limit,
    }
}

/// Calls `each` with every line, blank ones too, without its break, and its number, from 1. The first line loses a
/// byte-order mark. `bad` makes the error of a line that is no UTF-8 or has more than `limit` bytes.
pub(crate) fn each_line(
    path: &Path,
    mut file: impl BufRead,
    limit: u64,
    bad: impl Fn(usize, String) -> Error,
    mut each: impl FnMut(usize, &str) -> Result<()>,
) -> Result<()> {
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let n_read = file
            .by_ref()
            .take(limit.saturating_add(1))
            .read_until(b'\n', &mut bytes)
            .map_err(|source| Error::io("read", path, source))?;
        if n_read == 0 {
            break;
        }
        if n_read as u64 > limit {
            return Err(bad(line, format!("is longer than {limit} bytes")));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| bad(line, "is not UTF-8".into()))?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        each(
            line,
            match line {
                1 => text.strip_prefix(MARK).unwrap_or(text),
                _ => text,
            },
        )?;
    }
    Ok(())
}
