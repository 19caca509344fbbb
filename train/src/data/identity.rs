//! Facts about the data of a run. A run goes on only with data of the same facts.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use evaluate::datasets::DatasetSpec;
use evaluate::datasets::packed::Packed;
use evaluate::text::Tokenizer;
use merge::remote::address::is_address;

use super::Examples;
use crate::recipe::{DataFormat, DataSettings};
use crate::{Error, Result};

/// Bytes at the beginning and at the end of a file that the hash reads whole.
const END_BYTES: u64 = 1 << 20;

/// Pieces that the hash reads between them, and the bytes of each.
const N_PIECES: u64 = 256;
const PIECE_BYTES: u64 = 4096;

/// The most examples whose texts the hash reads: all of most data sets, every tenth of ten million captions.
/// The texts are in memory, so a start takes about a second for them at the most.
const MAX_EXAMPLES: usize = 1 << 20;

/// The key of the examples' texts.
const TEXTS: &str = "texts and labels";

/// The first word of the keys of a tokenizer's files, and the first words of those of a tokenizer of images.
const TOKENIZERS: [&str; 2] = ["tokenizer ", "image tokenizer "];

/// Facts about the data of a run: of each file its size and a hash of parts of it, and a hash of the texts and labels
/// of the examples in their order. A file of pictures is not read whole.
///
/// # Errors
/// When a file or an example cannot be read.
pub fn identity(data: &DataSettings, examples: &dyn Examples) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for split in &data.train {
        // Sets in CSV tables, in folders of classes and on other machines are known by their texts alone.
        let files = DatasetSpec::of(&split.dataset).and_then(|set| {
            let split = set.split(&split.split).ok()?;
            Some(split.any_files(&data.folder, set))
        });
        for path in files.into_iter().flatten() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            found.insert(name.into_owned(), of_file(&path)?);
        }
        if data.format == DataFormat::Packed
            && !is_address(&data.folder)
            && let Some(packed) = Packed::find(&data.folder, &split.dataset, &split.split)?
        {
            for path in packed.files() {
                let name = path.strip_prefix(&data.folder).unwrap_or(path);
                found.insert(name.display().to_string(), of_file(path)?);
            }
        }
    }
    let n = examples.len();
    let every = n.div_ceil(MAX_EXAMPLES).max(1);
    let mut hash = Hash::default();
    for index in (0..n).step_by(every) {
        let example = examples.example(index, false)?;
        hash.add(example.text.as_bytes());
        for (answer, score) in &example.answers {
            hash.add(&answer.to_le_bytes());
            hash.add(&score.to_le_bytes());
        }
        hash.add(&example.class.unwrap_or(u32::MAX).to_le_bytes());
    }
    found.insert(TEXTS.into(), format!("{n} examples, {:016x}", hash.0));
    Ok(found)
}

/// Facts about the tokenizers of a run: of each file its size and a hash. A tokenizer of texts is hashed whole, for two of
/// one size may differ in the order of their ids alone; of `images`, the files of a tokenizer of images, parts are.
///
/// # Errors
/// When a file cannot be read.
pub fn tokenizers(
    texts: Option<&Tokenizer>,
    images: &[PathBuf],
) -> Result<BTreeMap<String, String>> {
    let [of_texts, of_images] = TOKENIZERS;
    let mut found = BTreeMap::new();
    let key = |what: &str, path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        format!("{what}{name}")
    };
    for path in texts.map(Tokenizer::files).unwrap_or_default() {
        let bytes = std::fs::read(&path).map_err(|source| Error::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let mut hash = Hash::default();
        hash.add(&bytes);
        let said = format!("{} bytes, {:016x}", bytes.len(), hash.0);
        found.insert(key(of_texts, &path), said);
    }
    // A remote file has no place here; its address is in the recipe.
    for path in images.iter().filter(|path| path.is_file()) {
        found.insert(key(of_images, path), of_file(path)?);
    }
    Ok(found)
}

/// Whether the facts of a state lack tokenizers that a run has: versions before kept none.
#[must_use]
pub fn lacks_tokenizers(then: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> bool {
    let has = |facts: &BTreeMap<String, String>| facts.keys().any(|key| is_of_tokenizer(key));
    has(now) && !has(then)
}

fn is_of_tokenizer(key: &str) -> bool {
    TOKENIZERS.iter().any(|what| key.starts_with(what))
}

/// The difference between the data and tokenizers of a state and those at hand, in words; `None` where they are the same.
/// Tokenizers count where the state has any.
#[must_use]
pub fn difference(
    then: &BTreeMap<String, String>,
    now: &BTreeMap<String, String>,
) -> Option<String> {
    let names: std::collections::BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    let is_old = lacks_tokenizers(then, now);
    let changed = names
        .into_iter()
        .filter(|name| then.get(*name) != now.get(*name))
        .filter(|name| !(is_old && is_of_tokenizer(name)));
    let said = |value: Option<&String>| match value {
        Some(value) => value.clone(),
        None => "none".to_owned(),
    };
    let changed = changed.map(|name| {
        let (then, now) = (said(then.get(name)), said(now.get(name)));
        format!("{name}: {then} then, {now} now")
    });
    let changed: Vec<String> = changed.collect();
    (!changed.is_empty()).then(|| changed.join("; "))
}

fn of_file(path: &Path) -> Result<String> {
    let failed = |source| Error::Io {
        action: "read",
        path: path.into(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let n_bytes = file.metadata().map_err(failed)?.len();
    let mut hash = Hash::default();
    let mut add = |from: u64, n: u64| {
        let mut bytes = vec![0; n.min(n_bytes.saturating_sub(from)) as usize];
        merge::platform::read_exact_at(&file, &mut bytes, from).map_err(failed)?;
        hash.add(&bytes);
        Ok::<(), Error>(())
    };
    add(0, END_BYTES)?;
    for piece in 0..N_PIECES {
        add(n_bytes / N_PIECES * piece, PIECE_BYTES)?;
    }
    add(n_bytes.saturating_sub(END_BYTES), END_BYTES)?;
    Ok(format!("{n_bytes} bytes, {:016x}", hash.0))
}

/// FNV-1a of parts.
struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    fn add(&mut self, bytes: &[u8]) {
        // A part that ends elsewhere is another part.
        for &byte in bytes.iter().chain(&(bytes.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        of.iter().map(owned).collect()
    }

    #[test]
    fn a_state_without_facts_about_tokenizers_goes_on_and_one_with_others_does_not() {
        let old = facts(&[("coco.arrow", "9 bytes")]);
        let first = facts(&[("coco.arrow", "9 bytes"), ("tokenizer vocab.json", "1")]);
        let other = facts(&[("coco.arrow", "9 bytes"), ("tokenizer vocab.json", "2")]);
        assert!(lacks_tokenizers(&old, &first) && !lacks_tokenizers(&first, &other));
        assert_eq!(difference(&old, &first), None);
        let said = difference(&first, &other).expect("another tokenizer");
        assert_eq!(said, "tokenizer vocab.json: 1 then, 2 now");
        let data = facts(&[("coco.arrow", "8 bytes"), ("tokenizer vocab.json", "1")]);
        assert!(difference(&old, &data).is_some());
    }
}
