//! The zip archive of `torch.save`: its directory, and the records that matter.
//!
//! The directory is read here rather than by the `zip` crate, because a checkpoint's must be
//! strict where a general reader is lenient: entries have names that occur once, are stored as
//! they are, and lie where the directory says, and no memory is taken on the word of a count.

use std::collections::{BTreeMap, HashMap};

use super::fault::ZipFault;
use crate::io::read_at::ReadAt;

/// Largest directory that is read: far above what a million storages need.
const DIRECTORY_LIMIT_BYTES: u64 = 256 << 20;

/// Largest provenance record that is read.
const METADATA_LIMIT_BYTES: u64 = 16 << 20;

const END_BYTES: usize = 22;
const END64_BYTES: u64 = 56;
const LOCATOR64_BYTES: u64 = 20;
const CENTRAL_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;

/// A stored entry of an archive.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Its full name, e.g. `archive/data/0`.
    pub(crate) name: String,
    /// Position of its header in the file.
    header: u64,
    /// Its size.
    pub(crate) n_bytes: u64,
    /// The CRC-32 that the directory gives, unless the archive was written without.
    pub(crate) crc: Option<u32>,
    method: u16,
    is_encrypted: bool,
}

/// A fault of the archive as a whole or of the named entry.
#[derive(Debug)]
pub(crate) enum ArchiveError {
    Fault(Option<String>, ZipFault),
    Io(std::io::Error),
    Checksum {
        entry: String,
        stored: u32,
        computed: u32,
    },
}

impl From<std::io::Error> for ArchiveError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ZipFault> for ArchiveError {
    fn from(fault: ZipFault) -> Self {
        Self::Fault(None, fault)
    }
}

type Result<T> = std::result::Result<T, ArchiveError>;

/// An archive that `torch.save` wrote.
pub(crate) struct Archive<'a> {
    source: &'a dyn ReadAt,
    entries: HashMap<String, Entry>,
    /// The one folder that holds everything, with its slash.
    folder: String,
    /// Where the directory begins, and so the data end.
    data_end: u64,
}

impl<'a> Archive<'a> {
    /// Reads the directory and finds the folder with `data.pkl`.
    pub(crate) fn open(source: &'a dyn ReadAt) -> Result<Self> {
        let directory = Directory::find(source)?;
        let entries = directory.entries(source)?;
        let folder = folder(&entries)?;
        let archive = Self {
            source,
            entries,
            folder,
            data_end: directory.start,
        };
        archive.check_byte_order()?;
        Ok(archive)
    }

    /// Reads the directory of an archive of any records.
    pub(crate) fn open_any(source: &'a dyn ReadAt) -> Result<Self> {
        let directory = Directory::find(source)?;
        Ok(Self {
            source,
            entries: directory.entries(source)?,
            folder: String::new(),
            data_end: directory.start,
        })
    }

    /// All entries, by name.
    pub(crate) fn entries(&self) -> Vec<&Entry> {
        let mut entries: Vec<&Entry> = self.entries.values().collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries
    }

    /// Full name of a record such as `data.pkl` or `data/0`.
    pub(crate) fn name_of(&self, record: &str) -> String {
        format!("{}{record}", self.folder)
    }

    /// The entry of a record.
    pub(crate) fn get(&self, record: &str) -> Option<&Entry> {
        self.entries.get(&self.name_of(record))
    }

    /// Position of an entry's data. Its header must agree with the directory, and its data lie
    /// within the file.
    pub(crate) fn data_start(&self, entry: &Entry) -> Result<u64> {
        let fault = |fault| ArchiveError::Fault(Some(entry.name.clone()), fault);
        if entry.is_encrypted {
            return Err(fault(ZipFault::Encrypted));
        }
        if entry.method != 0 {
            return Err(fault(ZipFault::Compressed(entry.method)));
        }
        let name_end = (entry.header.checked_add(LOCAL_BYTES as u64))
            .and_then(|at| at.checked_add(entry.name.len() as u64))
            .filter(|&end| end <= self.data_end)
            .ok_or_else(|| fault(ZipFault::BadHeader(entry.header)))?;
        let mut header = vec![0; (name_end - entry.header) as usize];
        self.source.read_exact_at(&mut header, entry.header)?;
        let is_same = header.starts_with(b"PK\x03\x04")
            && u16_at(&header, 8) == entry.method
            && usize::from(u16_at(&header, 26)) == entry.name.len()
            && &header[LOCAL_BYTES..] == entry.name.as_bytes();
        if !is_same {
            return Err(fault(ZipFault::BadHeader(entry.header)));
        }
        let start = name_end + u64::from(u16_at(&header, 28));
        match start.checked_add(entry.n_bytes) {
            Some(end) if end <= self.data_end => Ok(start),
            end => Err(fault(ZipFault::OutOfFile {
                start,
                end: end.unwrap_or(u64::MAX),
                limit: self.data_end,
            })),
        }
    }

    /// All bytes of an entry of limited size, its checksum compared.
    pub(crate) fn read(&self, entry: &Entry, limit: u64) -> Result<Vec<u8>> {
        let start = self.data_start(entry)?;
        if entry.n_bytes > limit {
            return Err(ArchiveError::Fault(
                Some(entry.name.clone()),
                ZipFault::TooLarge {
                    n_bytes: entry.n_bytes,
                    limit,
                },
            ));
        }
        let mut bytes = vec![0; entry.n_bytes as usize];
        self.source.read_exact_at(&mut bytes, start)?;
        match (entry.crc, crc32fast::hash(&bytes)) {
            (Some(stored), computed) if stored != computed => Err(ArchiveError::Checksum {
                entry: entry.name.clone(),
                stored,
                computed,
            }),
            _ => Ok(bytes),
        }
    }

    /// The strings of the record `vlmerge.json`, which this program's own files have.
    pub(crate) fn metadata(&self) -> Result<BTreeMap<String, String>> {
        let Some(entry) = self.get("vlmerge.json") else {
            return Ok(BTreeMap::new());
        };
        let bytes = self.read(entry, METADATA_LIMIT_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let fault = ZipFault::BadMetadata(error.to_string());
            ArchiveError::Fault(Some(entry.name.clone()), fault)
        })
    }

    fn check_byte_order(&self) -> Result<()> {
        let Some(entry) = self.get("byteorder") else {
            return Ok(());
        };
        let order = self.read(entry, 64)?;
        if order == b"little" {
            return Ok(());
        }
        let order = String::from_utf8_lossy(&order).into_owned();
        Err(ArchiveError::Fault(
            Some(entry.name.clone()),
            ZipFault::ByteOrder(order),
        ))
    }
}

/// Where the directory lies.
struct Directory {
    start: u64,
    n_bytes: u64,
    n_entries: u64,
}

impl Directory {
    /// Follows the end record, which is the last thing in the file except for a comment.
    fn find(source: &dyn ReadAt) -> Result<Self> {
        let file_bytes = source.n_bytes();
        let n_tail = file_bytes.min(END_BYTES as u64 + u64::from(u16::MAX));
        let tail_start = file_bytes - n_tail;
        let mut tail = vec![0; n_tail as usize];
        source.read_exact_at(&mut tail, tail_start)?;
        // A comment could hold the signature, so the length of the comment must fit as well.
        let at = (0..(tail.len() + 1).saturating_sub(END_BYTES))
            .rev()
            .find(|&at| {
                tail[at..].starts_with(b"PK\x05\x06")
                    && at + END_BYTES + usize::from(u16_at(&tail, at + 20)) == tail.len()
            })
            .ok_or(ZipFault::NoEndRecord)?;
        let end = &tail[at..];
        let mut position = tail_start + at as u64;
        let mut directory = Self {
            start: u32_at(end, 16).into(),
            n_bytes: u32_at(end, 12).into(),
            n_entries: u16_at(end, 10).into(),
        };
        let mut parts = [u16_at(end, 4), u16_at(end, 6)].map(u32::from);
        if let Some((end64_at, end64)) = read_end64(source, position)? {
            position = end64_at;
            directory = Self {
                start: u64_at(&end64, 48),
                n_bytes: u64_at(&end64, 40),
                n_entries: u64_at(&end64, 32),
            };
            parts = [u32_at(&end64, 16), u32_at(&end64, 20)];
        }
        if parts != [0, 0] {
            return Err(ZipFault::MultiPart.into());
        }
        if directory.start.checked_add(directory.n_bytes) != Some(position) {
            return Err(ZipFault::DirectoryMisplaced.into());
        }
        if directory.n_bytes > DIRECTORY_LIMIT_BYTES {
            return Err(ZipFault::DirectoryTooLarge(directory.n_bytes).into());
        }
        Ok(directory)
    }

    fn entries(&self, source: &dyn ReadAt) -> Result<HashMap<String, Entry>> {
        // It lies within the file, as `find` has seen.
        let mut bytes = vec![0; self.n_bytes as usize];
        source.read_exact_at(&mut bytes, self.start)?;
        let mut entries = HashMap::new();
        let mut at = 0;
        for _ in 0..self.n_entries {
            let (entry, n_bytes) = central_entry(&bytes[at..], self.start + at as u64)?;
            at += n_bytes;
            let name = entry.name.clone();
            if entries.insert(name.clone(), entry).is_some() {
                return Err(ArchiveError::Fault(Some(name), ZipFault::DuplicateEntry));
            }
        }
        if at != bytes.len() {
            return Err(ZipFault::BadHeader(self.start + at as u64).into());
        }
        // `torch.serialization.set_crc32_options(False)` leaves zero in every field. Whoever can
        // set all of them can as well set the right ones, so this hides no damage by accident.
        let mut filled = entries.values().filter(|entry| entry.n_bytes > 0);
        if filled.all(|entry| entry.crc == Some(0)) {
            entries.values_mut().for_each(|entry| entry.crc = None);
        }
        Ok(entries)
    }
}

/// The 64-bit end record, if a locator stands before the end record at `end_at`.
fn read_end64(source: &dyn ReadAt, end_at: u64) -> Result<Option<(u64, Vec<u8>)>> {
    let Some(locator_at) = end_at.checked_sub(LOCATOR64_BYTES) else {
        return Ok(None);
    };
    let mut locator = [0; LOCATOR64_BYTES as usize];
    source.read_exact_at(&mut locator, locator_at)?;
    if !locator.starts_with(b"PK\x06\x07") {
        return Ok(None);
    }
    let at = u64_at(&locator, 8);
    if at
        .checked_add(END64_BYTES)
        .is_none_or(|end| end > locator_at)
    {
        return Err(ZipFault::BadHeader(locator_at).into());
    }
    let mut end64 = vec![0; END64_BYTES as usize];
    source.read_exact_at(&mut end64, at)?;
    if !end64.starts_with(b"PK\x06\x06") {
        return Err(ZipFault::BadHeader(at).into());
    }
    Ok(Some((at, end64)))
}

/// Reads the directory entry at the start of `bytes`, which is at `position` in the file; gives
/// its length as well.
fn central_entry(bytes: &[u8], position: u64) -> Result<(Entry, usize)> {
    let damaged = || ZipFault::BadHeader(position);
    if bytes.len() < CENTRAL_BYTES || !bytes.starts_with(b"PK\x01\x02") {
        return Err(damaged().into());
    }
    let [n_name, n_extra, n_comment] = [28, 30, 32].map(|at| usize::from(u16_at(bytes, at)));
    let n_bytes = CENTRAL_BYTES + n_name + n_extra + n_comment;
    if bytes.len() < n_bytes {
        return Err(damaged().into());
    }
    let name_end = CENTRAL_BYTES + n_name;
    let name = str::from_utf8(&bytes[CENTRAL_BYTES..name_end])
        .map_err(|_| ZipFault::NameNotUtf8)?
        .to_owned();
    let mut size = u64::from(u32_at(bytes, 24));
    let mut packed = u64::from(u32_at(bytes, 20));
    let mut header = u64::from(u32_at(bytes, 42));
    // The 64-bit extra field holds those of the three that do not fit 32 bits, in this order.
    let mut wide = extra_field(&bytes[name_end..name_end + n_extra], 1).chunks_exact(8);
    for field in [&mut size, &mut packed, &mut header] {
        if *field == u64::from(u32::MAX) {
            *field = u64_at(wide.next().ok_or_else(damaged)?, 0);
        }
    }
    let method = u16_at(bytes, 10);
    if method == 0 && size != packed {
        return Err(ArchiveError::Fault(Some(name), damaged()));
    }
    let entry = Entry {
        name,
        header,
        n_bytes: size,
        crc: Some(u32_at(bytes, 16)),
        method,
        is_encrypted: u16_at(bytes, 8) & 1 != 0,
    };
    Ok((entry, n_bytes))
}

/// The content of the extra field with this tag; empty if there is none.
fn extra_field(mut extra: &[u8], tag: u16) -> &[u8] {
    while extra.len() >= 4 {
        let end = 4 + usize::from(u16_at(extra, 2));
        let Some(content) = extra.get(4..end) else {
            break;
        };
        if u16_at(extra, 0) == tag {
            return content;
        }
        extra = &extra[end..];
    }
    &[]
}

/// The folder that holds `data.pkl`: one, named by a single plain component.
fn folder(entries: &HashMap<String, Entry>) -> Result<String> {
    let mut folders = Vec::new();
    for name in entries.keys() {
        let Some(folder) = name.strip_suffix("data.pkl") else {
            continue;
        };
        let Some(component) = folder.strip_suffix('/') else {
            continue;
        };
        let is_climbing = component.split('/').any(|part| part == "..");
        if component.starts_with('/') || component.is_empty() || is_climbing {
            return Err(ArchiveError::Fault(
                Some(name.clone()),
                ZipFault::UnsafeName,
            ));
        }
        // Deeper ones belong to packages within the archive.
        if !component.contains('/') {
            folders.push(folder.to_owned());
        }
    }
    match folders.len() {
        0 if is_old_script(entries) => Err(ZipFault::OldScript.into()),
        0 => Err(ZipFault::NoPickle.into()),
        1 => Ok(folders.remove(0)),
        _ => Err(ZipFault::TwoPickles.into()),
    }
}

/// Whether the archive is of TorchScript's first form.
fn is_old_script(entries: &HashMap<String, Entry>) -> bool {
    let mut names = entries.keys().filter_map(|name| name.split_once('/'));
    names.any(|(_, record)| record == "model.json")
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
