//! What is encoded: pictures of a folder, lines of a file.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::images::{self, Rgb};
use crate::{EncodeFault, Error, Result};

/// Endings of picture files, in small letters.
const ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "gif", "webp", "bmp"];

/// Folders within folders are followed so far.
const MAX_DEPTH: usize = 32;

/// The largest picture file that is read.
const MAX_PICTURE_BYTES: u64 = 256 << 20;

/// The longest line that is read.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// The picture files in a folder and the folders within it, by their paths from it, sorted, and how many
/// other files there are. A file is itself. Links to folders are not followed.
///
/// # Errors
/// When a folder cannot be listed, or [`Error::Empty`] when it holds no picture.
pub fn pictures(path: &Path) -> Result<(Vec<(String, PathBuf)>, usize)> {
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
pub fn picture(path: &Path) -> Result<Rgb> {
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
    images::decode(&bytes).map_err(|error| bad(error.to_string()))
}

/// The lines of a UTF-8 file, blank ones too, without their breaks and a byte-order mark.
///
/// # Errors
/// When the file cannot be read, [`Error::BadLine`] when a line is no UTF-8 or too long, and
/// [`Error::Empty`] when there is none.
pub fn lines(path: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::io("open", path, source);
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Error::NotAFile { path: path.into() });
    }
    let mut file = BufReader::new(std::fs::File::open(path).map_err(failed)?);
    let mut lines: Vec<String> = Vec::new();
    loop {
        let bad = |fault: String| Error::BadLine {
            path: path.into(),
            line: lines.len() + 1,
            fault,
        };
        let mut bytes = Vec::new();
        let mut limited = Read::by_ref(&mut file).take(MAX_LINE_BYTES + 1);
        let n = limited.read_until(b'\n', &mut bytes);
        if n.map_err(|source| Error::io("read", path, source))? == 0 {
            break;
        }
        if bytes.len() as u64 > MAX_LINE_BYTES {
            return Err(bad(format!("is longer than {MAX_LINE_BYTES} bytes")));
        }
        let text = String::from_utf8(bytes).map_err(|_| bad("is not UTF-8".into()))?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        let text = match lines.is_empty() {
            true => text.strip_prefix('\u{feff}').unwrap_or(text),
            false => text,
        };
        lines.push(text.to_owned());
    }
    match lines.is_empty() {
        true => Err(Error::Empty {
            path: path.into(),
            what: "lines",
        }),
        false => Ok(lines),
    }
}
