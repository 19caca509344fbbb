//! Models that are split into several GGUF files, `stem-00001-of-00003.gguf`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use super::{GgufFile, open_one};
use crate::io::read_at::ReadAt;
use crate::io::source::{OpenOptions, SourceInfo, TensorEntry, TensorSource};
use crate::remote::address;
use crate::{DType, Error, GgufFault, Result};

/// Entries of a part: its number from 0, the parts, the tensors of all of them.
pub(crate) const NUMBER: &str = "split.no";
pub(crate) const COUNT: &str = "split.count";
pub(crate) const TENSORS: &str = "split.tensors.count";

/// The most parts of a model.
pub(crate) const MAX_PARTS: u64 = 1 << 10;

/// Opens a file, and the other parts of the model if it is one of several; `open_part` opens these.
pub(crate) fn open(
    path: &Path,
    file: Box<dyn ReadAt>,
    options: &OpenOptions,
    open_part: &dyn Fn(&Path) -> Result<Box<dyn ReadAt>>,
) -> Result<Box<dyn TensorSource>> {
    let (opened, metadata) = open_one(path, file, options)?;
    let n_parts = match metadata.integer(COUNT) {
        None | Some(0 | 1) => return Ok(Box::new(opened)),
        Some(n_parts) => n_parts,
    };
    if n_parts > MAX_PARTS {
        return Err(GgufFault::Count {
            path: path.into(),
            what: "parts",
            n: n_parts,
            limit: MAX_PARTS,
        }
        .into());
    }
    let (stem, own) = name_of(path, n_parts).ok_or_else(|| GgufFault::PartName {
        path: path.into(),
        n_parts,
    })?;
    check_record(path, &metadata, NUMBER, own)?;
    let mut opened = Some(opened);
    // A part of another model has another number here.
    let of_model = metadata.integer(TENSORS);
    let mut parts = Vec::new();
    for number in 0..n_parts {
        if number == own {
            parts.extend(opened.take());
            continue;
        }
        let part = part_path(path, &stem, number, n_parts);
        if !address::is_address(&part) && !part.exists() {
            return Err(GgufFault::PartMissing {
                path: part,
                part: number + 1,
                n_parts,
            }
            .into());
        }
        let (file, metadata) = open_one(&part, open_part(&part)?, options)?;
        check_record(&part, &metadata, COUNT, n_parts)?;
        check_record(&part, &metadata, NUMBER, number)?;
        if let Some(n_tensors) = of_model {
            check_record(&part, &metadata, TENSORS, n_tensors)?;
        }
        parts.push(file);
    }
    let n_tensors = parts.iter().map(|part| part.tensors.len() as u64).sum();
    check_record(path, &metadata, TENSORS, n_tensors)?;
    Ok(Box::new(Split::new(path, parts)?))
}

fn check_record(path: &Path, metadata: &Metadata, key: &'static str, expected: u64) -> Result<()> {
    match metadata.integer(key) {
        Some(found) if found == expected => Ok(()),
        found => Err(GgufFault::PartRecord {
            path: path.into(),
            key,
            found: found.map_or_else(|| "no number".into(), |found| found.to_string()),
            expected,
        }
        .into()),
    }
}

/// The common beginning of the names of all parts, and the number of this one from 0.
fn name_of(path: &Path, n_parts: u64) -> Option<(String, u64)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let name = name.strip_suffix(&format!("-of-{n_parts:05}"))?;
    let (stem, number) = name.rsplit_once('-')?;
    let number: u64 = number.parse().ok()?;
    let is_own = name == format!("{stem}-{number:05}") && (1..=n_parts).contains(&number);
    is_own.then(|| (stem.to_owned(), number - 1))
}

fn part_path(path: &Path, stem: &str, number: u64, n_parts: u64) -> PathBuf {
    path.with_file_name(format!("{stem}-{:05}-of-{n_parts:05}.gguf", number + 1))
}

/// The tensors of all parts in a row.
struct Split {
    info: SourceInfo,
    entries: Vec<TensorEntry>,
    /// Part, and index within it, of each tensor.
    places: Vec<(usize, usize)>,
    parts: Vec<GgufFile>,
}

impl Split {
    fn new(path: &Path, parts: Vec<GgufFile>) -> Result<Self> {
        let (mut entries, mut places) = (Vec::new(), Vec::new());
        let mut seen = BTreeMap::new();
        for (number, part) in parts.iter().enumerate() {
            for (index, tensor) in part.tensors.iter().enumerate() {
                if seen.insert(tensor.name.clone(), number).is_some() {
                    return Err(Error::DuplicateKey {
                        path: part.info.path.clone(),
                        key: tensor.name.clone(),
                    });
                }
                places.push((number, index));
            }
            entries.extend_from_slice(&part.entries);
        }
        // The first part has the metadata of the model.
        let mut info = parts[0].info.clone();
        info.path = path.into();
        info.files = (parts.iter())
            .flat_map(|part| part.info.files.clone())
            .collect();
        if let Some(root) = info.roots.first_mut() {
            root.n_tensors = entries.len();
            root.n_bytes = (parts.iter())
                .flat_map(|part| &part.tensors)
                .map(|tensor| tensor.n_bytes)
                .sum();
        }
        Ok(Self {
            info,
            entries,
            places,
            parts,
        })
    }

    fn of(&self, index: usize) -> (&GgufFile, usize) {
        let (part, within) = self.places[index];
        (&self.parts[part], within)
    }
}

impl TensorSource for Split {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn stored_dtype(&self, index: usize) -> DType {
        let (part, index) = self.of(index);
        part.stored_dtype(index)
    }

    fn stored_as(&self, index: usize) -> Option<&str> {
        let (part, index) = self.of(index);
        part.stored_as(index)
    }

    fn is_computed(&self, index: usize) -> bool {
        let (part, index) = self.of(index);
        part.is_computed(index)
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let (part, index) = self.of(index);
        part.read(index, first, out)
    }
}

#[cfg(test)]
mod tests {
    use super::name_of;
    use std::path::Path;

    #[test]
    fn the_name_of_a_part_gives_its_number() {
        let of = |name: &str, n| name_of(Path::new(name), n);
        let part = ("a/m-00002-of-00003.gguf", 3);
        assert_eq!(of(part.0, part.1), Some(("m".to_owned(), 1)));
        for (name, n) in [
            ("m-00004-of-00003.gguf", 3),
            ("m-00000-of-00003.gguf", 3),
            ("m-2-of-00003.gguf", 3),
            ("m-00002-of-00003.gguf", 4),
            ("m.gguf", 3),
        ] {
            assert_eq!(of(name, n), None, "{name}");
        }
    }
}
