//! Picture files: those of a folder, and one of them.

use std::path::{Path, PathBuf};

use super::{Rgb, decode};
use crate::{EncodeFault, Error, Result};

/// Endings of picture files, in small letters.
const ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "gif", "webp", "bmp"];

/// Folders within folders are followed so far.
const MAX_DEPTH: usize = 32;

/// The largest picture file that is read.
const MAX_PICTURE_BYTES: u64 = 256 << 20;

/// The picture files in a folder and the folders within it, by their paths from it, sorted, and how many
/// other files there are. A file is itself. Links to folders are not followed.
///
/// # Errors
/// When a folder cannot be listed, or [`Error::Empty`] when it holds no picture.
pub fn list(path: &Path) -> Result<(Vec<(String, PathBuf)>, usize)> {
    let metadata = std::fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
    if metadata.is_file() {
        let name = path.file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        return Ok((vec![(name, path.into())], 0));
    }
    let (mut found, mut n_others) = (Vec::new(), 0);
    let mut folders = vec![(path.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let failed = |source| Error::io("list", &folder, source);
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (inner, kind) = (entry.path(), entry.file_type().map_err(failed)?);
            if kind.is_dir() && depth < MAX_DEPTH {
                folders.push((inner, depth + 1));
                continue;
            }
            let ending = inner.extension().unwrap_or_default().to_string_lossy();
            if ENDINGS.contains(&ending.to_lowercase().as_str()) && inner.is_file() {
                let name = inner.strip_prefix(path).unwrap_or(&inner);
                found.push((name.to_string_lossy().into_owned(), inner));
            } else {
                n_others += 1;
            }
        }
    }
    found.sort();
    match found.is_empty() {
        true => Err(Error::Empty {
            path: path.into(),
            what: "pictures (.jpg, .jpeg, .png, .gif, .webp, .bmp)",
        }),
        false => Ok((found, n_others)),
    }
}

/// Decodes a picture file.
///
/// # Errors
/// [`EncodeFault::BadPicture`] with the file when it cannot be read, is too large or damaged.
pub fn open(path: &Path) -> Result<Rgb> {
    let bad = |fault: String| {
        Error::Encode(EncodeFault::BadPicture {
            path: path.into(),
            fault,
        })
    };
    let metadata = std::fs::metadata(path).map_err(|error| bad(error.to_string()))?;
    if metadata.len() > MAX_PICTURE_BYTES {
        return Err(bad(format!("it has {} bytes", metadata.len())));
    }
    let bytes = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
    decode(&bytes).map_err(|error| bad(error.to_string()))
}
