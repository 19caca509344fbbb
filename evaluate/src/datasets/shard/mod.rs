//! A shard of a webdataset: a tar archive whose members of one key, one after the other, are a sample.
//!
//! | member | holds |
//! |---|---|
//! | `KEY.jpg`, `.jpeg`, `.png`, `.webp`, `.gif`, `.bmp` | the picture |
//! | `KEY.cls` | the number of its class, from 0 |
//! | `KEY.txt` | its caption; a line for each where the set is one of retrieval |
//! | `KEY.json` | an object with `caption`, where there is no `KEY.txt` |
//!
//! A key is the path up to the first dot of the file's name. Members with other endings are passed over.

mod tar;

use std::collections::BTreeSet;
use std::path::Path;

use super::packed::PackedFile;
use crate::{DataFault, Error, Result};
use tar::{Member, member_fault, shard_fault};

/// Endings of pictures, in small letters.
const PICTURES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];

/// The largest picture, and the largest text of a sample.
const MAX_PICTURE_BYTES: u64 = 256 << 20;
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// The separation of several captions in one text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Captions {
    /// A text is a caption, as open_clip trains on it.
    Whole,
    /// Each line of a text is one, as clip_benchmark writes sets of retrieval.
    Lines,
}

/// A shard, whose texts are in memory.
#[derive(Debug)]
pub struct Shard {
    file: PackedFile,
    samples: Vec<Sample>,
    /// Members that are used, and those that are passed over.
    n_members: usize,
    n_others: usize,
}

/// A sample of a shard.
#[derive(Debug)]
struct Sample {
    key: String,
    picture: Option<Member>,
    class: Option<i64>,
    captions: Vec<String>,
}

impl Shard {
    /// Opens a shard by its path or address, finds its members and reads their texts. An archive has no table of its
    /// members, so that the headers of all of them are read.
    ///
    /// # Errors
    /// [`DataFault::Shard`] when it is damaged, truncated or compressed; [`DataFault::Member`] for a link, a name that
    /// leads out of a folder, two members of one name, a picture without class and caption or the other way round, a
    /// class that is no number, a text that is too large or no UTF-8.
    pub fn open(path: &Path, captions: Captions) -> Result<Self> {
        let file = PackedFile::open(path)?;
        let mut shard = Self {
            samples: Vec::new(),
            n_members: 0,
            n_others: 0,
            file,
        };
        let mut members: Vec<(String, Member)> = Vec::new();
        let mut last = String::new();
        for member in tar::members(&shard.file)? {
            let Some((key, ending)) = key_of(&member.name) else {
                shard.n_others += 1;
                continue;
            };
            if key != last && !members.is_empty() {
                shard.sample(&last, std::mem::take(&mut members), captions)?;
            }
            last = key;
            members.push((ending, member));
        }
        if !members.is_empty() {
            shard.sample(&last, members, captions)?;
        }
        let mut keys = BTreeSet::new();
        let twice = (shard.samples.iter()).find(|sample| !keys.insert(sample.key.as_str()));
        if let Some(sample) = twice {
            let fault = "its key comes again behind other samples".to_owned();
            return Err(member_fault(&shard.file, &sample.key, fault));
        }
        match shard.samples.is_empty() {
            true => Err(shard_fault(
                &shard.file,
                "it holds no sample with a picture",
            )),
            false => Ok(shard),
        }
    }

    /// Adds the sample of a key.
    fn sample(
        &mut self,
        key: &str,
        members: Vec<(String, Member)>,
        captions: Captions,
    ) -> Result<()> {
        let mut endings = BTreeSet::new();
        let (mut picture, mut class, mut text, mut json) = (None, None, None, None);
        for (ending, member) in members {
            if !endings.insert(ending.clone()) {
                let fault = "is there twice".to_owned();
                return Err(member_fault(&self.file, &member.name, fault));
            }
            let place = match ending.as_str() {
                "cls" => &mut class,
                "txt" => &mut text,
                "json" => &mut json,
                ending if PICTURES.contains(&ending) => &mut picture,
                _ => {
                    self.n_others += 1;
                    continue;
                }
            };
            self.n_members += 1;
            if let Some(other) = place.replace(member) {
                let fault = "is one of two pictures of a sample".to_owned();
                return Err(member_fault(&self.file, &other.name, fault));
            }
        }
        let found = match (&text, &json) {
            (Some(text), _) => self.texts(text, captions)?,
            (None, Some(json)) => self.texts_of_json(json)?,
            (None, None) => Vec::new(),
        };
        let class_number = class
            .as_ref()
            .map(|class| self.class_of(class))
            .transpose()?;
        let has_label = class.is_some() || text.is_some() || json.is_some();
        match (&picture, has_label) {
            (None, false) => {}
            (Some(picture), false) => {
                let fault = format!("has no {key}.cls, {key}.txt nor {key}.json beside it");
                return Err(member_fault(&self.file, &picture.name, fault));
            }
            (None, true) => {
                let member = class.or(text).or(json);
                let name = member.map(|member| member.name).unwrap_or_default();
                let fault = "has no picture beside it".to_owned();
                return Err(member_fault(&self.file, &name, fault));
            }
            (Some(_), true) => self.samples.push(Sample {
                key: key.to_owned(),
                picture,
                class: class_number,
                captions: found,
            }),
        }
        Ok(())
    }

    fn text(&self, member: &Member) -> Result<String> {
        let Member {
            name,
            start,
            n_bytes,
        } = member;
        if *n_bytes > MAX_TEXT_BYTES {
            let fault = format!("has {n_bytes} bytes; at most {MAX_TEXT_BYTES} of a text are read");
            return Err(member_fault(&self.file, name, fault));
        }
        let bytes = self.file.read(*start..start + n_bytes)?;
        String::from_utf8(bytes).map_err(|_| member_fault(&self.file, name, "is not UTF-8".into()))
    }

    fn texts(&self, member: &Member, captions: Captions) -> Result<Vec<String>> {
        let text = self.text(member)?;
        Ok(match captions {
            Captions::Whole => vec![text],
            Captions::Lines => lines(&text),
        })
    }

    fn texts_of_json(&self, member: &Member) -> Result<Vec<String>> {
        let text = self.text(member)?;
        let fault = |fault: String| member_fault(&self.file, &member.name, fault);
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| fault(format!("is no JSON: {error}")))?;
        let caption = value.get("caption").or_else(|| value.get("captions"));
        match caption {
            Some(serde_json::Value::String(text)) => Ok(vec![text.clone()]),
            Some(serde_json::Value::Array(texts)) => {
                let texts = texts.iter().map(|text| text.as_str().map(str::to_owned));
                let texts: Option<_> = texts.collect();
                texts.ok_or_else(|| fault("`caption` holds something other than texts".into()))
            }
            Some(_) => Err(fault(
                "`caption` is neither a text nor a list of texts".into(),
            )),
            None => Ok(Vec::new()),
        }
    }

    fn class_of(&self, member: &Member) -> Result<i64> {
        let text = self.text(member)?;
        text.trim().parse().map_err(|_| {
            let shown: String = text.chars().take(40).collect();
            let fault = format!("is {shown:?}, which is no number of a class");
            member_fault(&self.file, &member.name, fault)
        })
    }

    /// Closes the file until a picture is read.
    pub(super) fn close(&mut self) {
        self.file.close();
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Number of samples.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.samples.len()
    }

    /// Members that are pictures, classes or texts.
    #[must_use]
    pub fn n_members(&self) -> usize {
        self.n_members
    }

    /// Members that are passed over.
    #[must_use]
    pub fn n_others(&self) -> usize {
        self.n_others
    }

    /// The keys of the samples.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.samples.iter().map(|sample| sample.key.as_str())
    }

    /// Whether the first sample has a class; a caption.
    pub(super) fn has(&self, column: &str) -> bool {
        let first = self.samples.first();
        match column {
            "image" | "image_id" => true,
            "label" => first.is_some_and(|sample| sample.class.is_some()),
            "caption" => first.is_some_and(|sample| !sample.captions.is_empty()),
            _ => false,
        }
    }

    /// The class of each sample.
    ///
    /// # Errors
    /// [`DataFault::Member`] for a sample without one.
    pub fn classes(&self) -> Result<Vec<i64>> {
        let classes = self.samples.iter().map(|sample| {
            let class = sample.class;
            class.ok_or_else(|| self.sample_fault(sample, "the sample has no .cls"))
        });
        classes.collect()
    }

    /// The captions of each sample, perhaps none.
    #[must_use]
    pub fn captions(&self) -> Vec<Vec<String>> {
        (self.samples.iter())
            .map(|sample| sample.captions.clone())
            .collect()
    }

    /// The bytes of a picture.
    ///
    /// # Errors
    /// When there is no such sample, or its picture cannot be read or is too large.
    pub fn bytes(&self, row: usize) -> Result<Vec<u8>> {
        let sample = self.samples.get(row);
        let picture = sample.and_then(|sample| sample.picture.as_ref());
        let Some(Member {
            name,
            start,
            n_bytes,
        }) = picture
        else {
            return Err(Error::Data(DataFault::NoSuchRow {
                row,
                n_rows: self.n_rows(),
            }));
        };
        if *n_bytes > MAX_PICTURE_BYTES {
            let fault =
                format!("has {n_bytes} bytes; at most {MAX_PICTURE_BYTES} of a picture are read");
            return Err(member_fault(&self.file, name, fault));
        }
        self.file.read(*start..start + n_bytes)
    }

    /// An error of a sample.
    pub fn row_fault(&self, row: usize, fault: &str) -> Error {
        match self.samples.get(row) {
            Some(sample) => self.sample_fault(sample, fault),
            None => shard_fault(&self.file, fault),
        }
    }

    fn sample_fault(&self, sample: &Sample, fault: &str) -> Error {
        member_fault(&self.file, &sample.key, fault.to_owned())
    }
}

/// The key of a member and its ending in small letters; `None` for names without, and for `__names__` that programs
/// keep for themselves.
fn key_of(name: &str) -> Option<(String, String)> {
    let file = name.rsplit('/').next().unwrap_or(name);
    let is_own = name.starts_with("__") && name.ends_with("__");
    let (stem, ending) = file.split_once('.')?;
    if is_own || stem.is_empty() {
        return None;
    }
    let key = &name[..name.len() - ending.len() - 1];
    Some((key.to_owned(), ending.to_lowercase()))
}

/// The lines of a text, as Python's `splitlines` parts them.
fn lines(text: &str) -> Vec<String> {
    let text = text.replace("\r\n", "\n");
    let ends = [
        '\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}',
        '\u{2029}',
    ];
    let mut lines: Vec<String> = text.split(ends).map(str::to_owned).collect();
    if lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_at_the_first_dot_of_the_file() {
        let key = |name| key_of(name).map(|(key, ending)| format!("{key} {ending}"));
        assert_eq!(key("a.b/s01.seg.PNG").as_deref(), Some("a.b/s01 seg.png"));
        assert_eq!(key("s01.JPG").as_deref(), Some("s01 jpg"));
        for name in ["s01", "__index__", "a/.jpg", ".jpg"] {
            assert_eq!(key(name), None, "{name}");
        }
    }

    #[test]
    fn lines_are_those_of_python() {
        assert_eq!(lines("a\nb\r\nc\u{2028}d\n"), ["a", "b", "c", "d"]);
        assert_eq!(lines("a\n\nb"), ["a", "", "b"]);
        assert!(lines("").is_empty());
    }
}
