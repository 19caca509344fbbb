//! The kind of a file, by its first bytes.

use std::path::Path;

use super::read_at::ReadAt;
use crate::{Error, Result};

/// How many bytes are looked at; enough for the mark of a tar archive.
const N_SEEN_BYTES: usize = 512;

/// The kind of a file.
pub(super) enum Content {
    /// A length, then the opening brace of a header.
    Safetensors,
    /// The mark of GGUF.
    Gguf,
    /// The mark of a NumPy array, or a zip archive that begins with one.
    Numpy,
    /// A dictionary of msgpack.
    Flax,
    /// The version of an ONNX model, then another of its fields.
    Onnx,
    /// The mark of HDF5.
    Hdf5,
    /// A zip archive or a pickle.
    Torch,
    /// An object in JSON, such as the index of a sharded model.
    Json,
    /// Nothing that is read here: what it looks like, for the error message.
    Unknown(String),
}

impl Content {
    /// The looks of a file where another kind is wanted, as a clause.
    pub(super) fn looks_like(self) -> String {
        let known = match self {
            Self::Safetensors => "is safetensors",
            Self::Gguf => "is a GGUF file",
            Self::Numpy => "is a NumPy array",
            Self::Flax => "is msgpack of Flax",
            Self::Onnx => "is an ONNX model",
            Self::Hdf5 => "is an HDF5 file",
            Self::Torch => "is a torch file",
            Self::Json => "is JSON",
            Self::Unknown(looks_like) => return looks_like,
        };
        known.to_owned()
    }
}

/// Looks at the first bytes of a file.
pub(super) fn of(path: &Path, file: &dyn ReadAt) -> Result<Content> {
    let mut seen = [0; N_SEEN_BYTES];
    let seen = &mut seen[..file.n_bytes().min(N_SEEN_BYTES as u64) as usize];
    file.read_exact_at(seen, 0)
        .map_err(|source| Error::io("read", path, source))?;
    let claims_safetensors = path.extension().is_some_and(|name| name == "safetensors");
    Ok(classify(seen, claims_safetensors))
}

fn classify(seen: &[u8], claims_safetensors: bool) -> Content {
    let trimmed = seen.trim_ascii_start();
    match seen {
        // Before everything else: the length of a header may look like any other mark, but no
        // other kind of file goes on with four zero bytes of a length and a brace.
        [_, _, _, _, 0, 0, 0, 0, b'{', ..] => Content::Safetensors,
        _ if is_no_file(seen).is_some() => Content::Unknown(describe(seen)),
        [b'G', b'G', b'U', b'F', ..] => Content::Gguf,
        _ if super::hdf5::begins(seen) => Content::Hdf5,
        _ if super::numpy::begins(seen) => Content::Numpy,
        _ if super::torch::sniff(seen).is_some() => Content::Torch,
        _ if super::flax::begins(seen) => Content::Flax,
        _ if super::onnx::begins(seen) => Content::Onnx,
        _ if trimmed.starts_with(b"{") => Content::Json,
        // The name decides only which reader explains the fault.
        _ if claims_safetensors => Content::Safetensors,
        _ => Content::Unknown(describe(seen)),
    }
}

/// Checks that a file is not what stands in place of one that was not fetched: a git-lfs pointer, a web page,
/// the refusal of a server. `seen` are its first bytes, or all of them.
///
/// # Errors
/// [`Error::UnknownFormat`], which says what it is.
pub fn require_fetched(path: &Path, seen: &[u8]) -> Result<()> {
    match is_no_file(seen) {
        None => Ok(()),
        Some(looks_like) => Err(Error::UnknownFormat {
            path: path.into(),
            looks_like: looks_like.into(),
        }),
    }
}

/// The stand-in for a file that was not fetched, in words, whatever the file is called.
#[must_use]
pub fn is_no_file(seen: &[u8]) -> Option<&'static str> {
    let starts = |mark: &&[u8]| {
        let start = seen.trim_ascii_start().get(..mark.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(mark))
    };
    if seen.starts_with(b"version https://git-lfs") {
        return Some("is a git-lfs pointer; the file itself was not fetched");
    }
    let page = [&b"<!doctype"[..], b"<html", b"<?xml", b"<head"];
    let refusal = [
        &b"Entry not found"[..],
        b"Invalid username or password",
        b"Repository not found",
    ];
    if page.iter().any(starts) {
        return Some("is a web page, not the file");
    }
    (refusal.iter().any(starts)).then_some("is the refusal of a server, not the file")
}

fn describe(seen: &[u8]) -> String {
    if let Some(known) = is_no_file(seen) {
        return known.to_owned();
    }
    let known = match seen {
        [] => "is empty",
        [0x1f, 0x8b, ..] => "is compressed with gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "is compressed with zstd",
        [b'B', b'Z', b'h', ..] => "is compressed with bzip2",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "is compressed with xz",
        [b'7', b'z', 0xbc, 0xaf, ..] => "is a 7z archive",
        _ if seen.get(257..262) == Some(b"ustar") => "is a tar archive",
        _ => "",
    };
    if !known.is_empty() {
        return known.to_owned();
    }
    let start = &seen[..seen.len().min(16)];
    if start
        .iter()
        .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    {
        return format!("starts with the text \"{}\"", start.escape_ascii());
    }
    let bytes: Vec<_> = start.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("starts with the bytes {}", bytes.join(" "))
}
