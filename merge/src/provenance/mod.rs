//! The record of its own making in a written checkpoint.

mod hash;
mod names;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use hash::{FileHash, HashKind, Hashes, hash_file, hexadecimal};
pub(crate) use names::short_names;

use crate::io::SourceFile;

/// The program that made a checkpoint, its recipe, and its inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// The resolved recipe, or the command, with file names instead of paths.
    pub recipe: String,
    /// The input files, in the order in which they were opened.
    pub inputs: Vec<InputFile>,
}

/// An input file. Only its name is kept, so that the same inputs give the same bytes anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Its name without folders, or with as much of them as tells it from the others; the address of
    /// a remote file.
    pub name: String,
    /// Its size.
    pub n_bytes: u64,
    /// BLAKE3 of its content in hexadecimal, if it was computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// SHA-256 of its content in hexadecimal, if it was computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The server's name for this version of a remote file, which is not read whole for a hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

impl InputFile {
    /// The hash of its content, if one was computed.
    #[must_use]
    pub fn hash(&self) -> Option<FileHash> {
        let of = |kind, hex: &Option<String>| {
            let hex = hex.clone()?;
            Some(FileHash { kind, hex })
        };
        of(HashKind::Blake3, &self.blake3).or_else(|| of(HashKind::Sha256, &self.sha256))
    }

    fn set_hash(&mut self, hash: FileHash) {
        match hash.kind {
            HashKind::Blake3 => self.blake3 = Some(hash.hex),
            HashKind::Sha256 => self.sha256 = Some(hash.hex),
        }
    }

    /// Whether the size, a hash or a version that both have says that the content is another.
    #[must_use]
    pub fn differs_from(&self, other: &Self) -> bool {
        let differ = |one: &Option<String>, other: &Option<String>| {
            let both = one.as_ref().zip(other.as_ref());
            both.is_some_and(|(one, other)| one != other)
        };
        self.n_bytes != other.n_bytes
            || differ(&self.blake3, &other.blake3)
            || differ(&self.sha256, &other.sha256)
            || differ(&self.etag, &other.etag)
    }

    /// Whether the content is the same, by a hash or a version; `None` if the two have neither in common and the sizes
    /// agree.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> Option<bool> {
        let agree = |one: &Option<String>, other: &Option<String>| one.is_some() && one == other;
        let is_known = agree(&self.blake3, &other.blake3)
            || agree(&self.sha256, &other.sha256)
            || agree(&self.etag, &other.etag);
        match self.differs_from(other) {
            true => Some(false),
            false => is_known.then_some(true),
        }
    }
}

impl Provenance {
    /// Of a result made by `recipe` from `files`, without hashes.
    #[must_use]
    pub fn new(recipe: String, files: &[SourceFile]) -> Self {
        let paths: Vec<&Path> = files.iter().map(|file| file.path.as_path()).collect();
        let inputs = files
            .iter()
            .zip(short_names(&paths))
            .map(|(file, name)| InputFile {
                name,
                n_bytes: file.n_bytes,
                blake3: None,
                sha256: None,
                etag: file.etag.clone(),
            });
        Self {
            recipe,
            inputs: inputs.collect(),
        }
    }

    /// With the hashes of the inputs, in their order; remote files have none.
    #[must_use]
    pub fn with_hashes(mut self, hashes: Vec<Option<FileHash>>) -> Self {
        for (input, hash) in self.inputs.iter_mut().zip(hashes) {
            if let Some(hash) = hash {
                input.set_hash(hash);
            }
        }
        self
    }

    /// With stand-ins as long as the hashes that are still being computed.
    #[must_use]
    pub fn with_placeholder_hashes(self, kind: Option<HashKind>) -> Self {
        let Some(kind) = kind else { return self };
        let of_input = |input: &InputFile| input.etag.is_none().then(|| kind.placeholder());
        let hashes = self.inputs.iter().map(of_input).collect();
        self.with_hashes(hashes)
    }

    /// As string metadata of a checkpoint file; keys in `docs/formats.md`.
    #[must_use]
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let inputs = serde_json::to_string(&self.inputs);
        BTreeMap::from([
            ("format".to_owned(), "pt".to_owned()),
            (
                "vlmerge.version".to_owned(),
                env!("CARGO_PKG_VERSION").to_owned(),
            ),
            ("vlmerge.recipe".to_owned(), self.recipe.clone()),
            // A list of strings and numbers always has a JSON form.
            ("vlmerge.inputs".to_owned(), inputs.unwrap_or_default()),
        ])
    }

    /// From the metadata of a file that this program wrote; `None` for any other.
    #[must_use]
    pub fn from_metadata(metadata: &BTreeMap<String, String>) -> Option<Self> {
        Some(Self {
            recipe: metadata.get("vlmerge.recipe")?.clone(),
            inputs: serde_json::from_str(metadata.get("vlmerge.inputs")?).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provenance_survives_its_metadata_and_placeholders_are_as_long_as_hashes() {
        for kind in [HashKind::Blake3, HashKind::Sha256] {
            let file = SourceFile::named("/some/folder/seed.ckpt", 12);
            let bare = Provenance::new("merge_method: interpolate\n".into(), &[file]);
            assert_eq!(bare.inputs[0].name, "seed.ckpt");
            let hex = "ab".repeat(32);
            let hashed = bare.clone().with_hashes(vec![Some(FileHash { kind, hex })]);
            let placeholder = bare.with_placeholder_hashes(Some(kind)).to_metadata();
            let lengths = |map: &BTreeMap<String, String>| -> Vec<usize> {
                map.values().map(String::len).collect()
            };
            assert_eq!(lengths(&placeholder), lengths(&hashed.to_metadata()));
            let read = Provenance::from_metadata(&hashed.to_metadata());
            assert_eq!(read.as_ref(), Some(&hashed));
            assert_eq!(hashed.inputs[0].hash().map(|hash| hash.kind), Some(kind));
        }
    }

    #[test]
    fn files_differ_by_what_both_say() {
        let file = |kind, digit: &str| {
            let bare = Provenance::new(String::new(), &[SourceFile::named("a", 3)]);
            let hex = digit.repeat(64);
            bare.with_hashes(vec![Some(FileHash { kind, hex })])
                .inputs
                .remove(0)
        };
        let (blake3, sha256) = (file(HashKind::Blake3, "a"), file(HashKind::Sha256, "b"));
        assert!(!blake3.differs_from(&blake3) && !blake3.differs_from(&sha256));
        assert!(blake3.differs_from(&file(HashKind::Blake3, "b")));
        assert!(sha256.differs_from(&file(HashKind::Sha256, "a")));
        let longer = InputFile {
            n_bytes: 4,
            ..blake3.clone()
        };
        assert!(longer.differs_from(&blake3));
        assert_eq!(blake3.is_same_as(&blake3), Some(true));
        assert_eq!(blake3.is_same_as(&longer), Some(false));
        assert_eq!(blake3.is_same_as(&sha256), None);
    }
}
