//! Models of SentencePiece, which are recognised to be refused by name.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Endings of their names.
const ENDINGS: [&str; 2] = ["model", "spm"];

/// Whether a file is one: a message of protocol buffers that begins with its first piece, a message with a text first.
pub fn is_one(bytes: &[u8]) -> bool {
    // A piece is short, so its length is one byte; its text is there, and its score behind it is four bytes.
    let &[0x0a, length, 0x0a, n_text, ..] = bytes else {
        return false;
    };
    let (length, n_text) = (usize::from(length), usize::from(n_text));
    let mark = bytes.get(4 + n_text);
    length < 0x80 && n_text + 2 < length && mark == Some(&0x15)
}

/// One in a folder, by its name and its content.
///
/// # Errors
/// When the folder cannot be read.
pub fn in_folder(folder: &Path) -> Result<Option<PathBuf>> {
    let failed = |source| Error::io("read", folder, source);
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if ending.is_some_and(|ending| ENDINGS.contains(&ending)) && path.is_file() {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found
        .into_iter()
        .find(|path| super::read(path).is_ok_and(|bytes| is_one(&bytes))))
}

#[cfg(test)]
mod tests {
    use super::is_one;

    #[test]
    fn a_first_piece_tells_a_model() {
        // `<unk>` with the score 0 and the kind 2, as every such model begins.
        let model = b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02\x0a";
        assert!(is_one(model));
        for other in [
            &model[..4],
            b"[PAD]\n[unused0]\n",
            b"\n\n\n\n\n\n",
            b"{\n}",
            b"",
        ] {
            assert!(!is_one(other));
        }
    }
}
