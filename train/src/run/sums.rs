//! Checksums of what a run keeps, in the form that `sha256sum -c` reads.

use std::fs;
use std::path::Path;

use merge::io::SourceFile;
use merge::progress::Silent;
use merge::provenance::{HashKind, Hashes};

use crate::{Error, Result};

/// The name of the list.
const NAME: &str = "SHA256SUMS";

/// Writes the SHA-256 of files of a folder, a line each.
///
/// # Errors
/// When a file cannot be read, or the list cannot be written.
pub(super) fn write(folder: &Path, names: &[&str]) -> Result<()> {
    let mut text = String::new();
    for name in names {
        text += &format!("{}  {name}\n", hash(&folder.join(name))?);
    }
    merge::io::write_file(&folder.join(NAME), text.as_bytes(), true)?;
    Ok(())
}

/// Compares files of a folder with its list. Folders of older versions have none.
///
/// # Errors
/// [`Error::BadState`] for the first file that differs from the written one.
pub(super) fn check(folder: &Path) -> Result<()> {
    let path = folder.join(NAME);
    if !path.exists() {
        return Ok(());
    }
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    for line in text.lines() {
        let fault = |path: &Path, reason: &str| Error::BadState {
            path: path.into(),
            reason: reason.into(),
        };
        let (expected, name) = line
            .split_once("  ")
            .filter(|(_, name)| !name.contains('/'))
            .ok_or_else(|| fault(&path, "no list of checksums"))?;
        let file = folder.join(name);
        if !file.exists() {
            return Err(fault(&file, "is missing"));
        }
        if hash(&file)? != expected {
            return Err(fault(
                &file,
                "its checksum is not the one it was written with; it is damaged",
            ));
        }
    }
    Ok(())
}

/// Removes the list, if there is one.
///
/// # Errors
/// When the system does not let it.
pub(super) fn remove(folder: &Path) -> Result<()> {
    let path = folder.join(NAME);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", &path, error))
        }
        _ => Ok(()),
    }
}

fn hash(path: &Path) -> Result<String> {
    let metadata = fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
    let file = SourceFile::named(path, metadata.len());
    let hashes = Hashes::default().of(&[file], HashKind::Sha256, &Silent)?;
    // A file of this machine has a hash.
    let hash = hashes.into_iter().flatten().next();
    Ok(hash.map(|hash| hash.hex).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a");
        fs::write(&path, [1, 2, 3]).expect("written");
        assert!(check(folder.path()).is_ok(), "nothing to compare with");
        write(folder.path(), &["a"]).expect("written");
        check(folder.path()).expect("as it was");
        fs::write(&path, [1, 2, 7]).expect("written");
        let said = check(folder.path()).expect_err("damaged").to_string();
        assert!(said.contains("/a: its checksum"), "{said}");
    }
}
