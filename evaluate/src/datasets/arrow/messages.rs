//! The batches of a file and the buffers in them, by their offsets.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use arrow_ipc::{CompressionType, MessageHeader, root_as_footer, root_as_message};
use merge::platform;

use super::Field;
use crate::{DataFault, Error, Result};

/// The first and the last bytes of a file; a stream has no such mark.
const MAGIC: &[u8; 6] = b"ARROW1";

/// The longest header that is read.
const MAX_HEADER_BYTES: u64 = 256 << 20;

/// The mark before the length of a message since version 0.15.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// The header of a record batch or a dictionary.
pub(super) struct Batch {
    pub(super) n_rows: u64,
    /// Length and null count of every column and every list's items, in the order of the schema.
    pub(super) nodes: Vec<(u64, u64)>,
    /// The range of each buffer in the file.
    pub(super) buffers: Vec<Range<u64>>,
    pub(super) is_compressed: bool,
}

/// Everything about a file but its data.
pub(super) struct Messages {
    pub(super) fields: Vec<Field>,
    /// The writer's notes on the file.
    pub(super) notes: BTreeMap<String, String>,
    pub(super) batches: Vec<Batch>,
    /// The batches of each dictionary, one after the other.
    pub(super) dictionaries: HashMap<i64, Vec<Batch>>,
}

struct Reader<'a> {
    path: &'a Path,
    file: &'a File,
    n_bytes: u64,
}

impl Messages {
    pub(super) fn read(path: &Path, file: &File, n_bytes: u64) -> Result<Self> {
        let reader = Reader {
            path,
            file,
            n_bytes,
        };
        if n_bytes == 0 {
            return Err(reader.fault("it has no bytes"));
        }
        let head = reader.bytes(0, 8.min(n_bytes))?;
        if head.starts_with(b"PAR1") {
            return Err(reader.fault("it is Parquet; write it again as arrow (IPC)"));
        }
        if head.starts_with(MAGIC) {
            reader.file_format()
        } else {
            reader.stream_format()
        }
    }

    fn new() -> Self {
        Self {
            fields: Vec::new(),
            notes: BTreeMap::new(),
            batches: Vec::new(),
            dictionaries: HashMap::new(),
        }
    }
}

impl Reader<'_> {
    fn fault(&self, fault: impl Into<String>) -> Error {
        Error::Data(DataFault::Arrow {
            path: self.path.into(),
            fault: fault.into(),
        })
    }

    fn bytes(&self, position: u64, n_bytes: u64) -> Result<Vec<u8>> {
        let end = position.checked_add(n_bytes);
        if end.is_none_or(|end| end > self.n_bytes) {
            return Err(self.fault("it is truncated"));
        }
        if n_bytes > MAX_HEADER_BYTES {
            return Err(self.fault(format!("a header claims {n_bytes} bytes")));
        }
        let mut bytes = vec![0; n_bytes as usize];
        let read = platform::read_exact_at(self.file, &mut bytes, position);
        read.map_err(|source| Error::io("read", self.path, source))?;
        Ok(bytes)
    }

    fn file_format(&self) -> Result<Messages> {
        const TAIL: u64 = 4 + MAGIC.len() as u64;
        let cut = || self.fault("it does not end as it should: truncated, or still being written");
        if self.n_bytes < 8 + TAIL {
            return Err(cut());
        }
        let tail = self.bytes(self.n_bytes - TAIL, TAIL)?;
        let (length, magic) = tail.split_at(4);
        if magic != MAGIC {
            return Err(cut());
        }
        let length = unsigned(length).filter(|length| *length <= self.n_bytes - TAIL - 8);
        let length = length.ok_or_else(|| self.fault("its footer has an impossible length"))?;
        let footer = self.bytes(self.n_bytes - TAIL - length, length)?;
        let footer = root_as_footer(&footer)
            .map_err(|error| self.fault(format!("its footer is damaged: {error}")))?;
        let schema = footer
            .schema()
            .ok_or_else(|| self.fault("it has no schema"))?;
        let mut messages = Messages::new();
        self.schema(schema, &mut messages)?;
        // The footer is written last, so it holds facts that were not known when the file was begun.
        for note in footer.custom_metadata().into_iter().flatten() {
            if let (Some(key), Some(value)) = (note.key(), note.value()) {
                messages.notes.insert(key.to_owned(), value.to_owned());
            }
        }
        let dictionaries = footer.dictionaries().into_iter().flatten();
        let batches = footer.recordBatches().into_iter().flatten();
        // By position: a file whose footer names a batch twice would make much of little.
        let mut blocks: Vec<(u64, usize)> = Vec::new();
        for block in dictionaries.chain(batches) {
            let position = u64::try_from(block.offset());
            let position = position.map_err(|_| self.fault("a batch lies before the file"))?;
            blocks.push((position, blocks.len()));
        }
        let mut sorted = blocks.clone();
        sorted.sort_unstable();
        let mut limits: Vec<u64> = vec![self.n_bytes; blocks.len()];
        for pair in sorted.windows(2) {
            limits[pair[0].1] = pair[1].0;
        }
        for (position, number) in blocks {
            let Some(end) = self.message(position, &mut messages)? else {
                return Err(self.fault("the footer names a batch where there is none"));
            };
            if end > limits[number] {
                return Err(self.fault("its footer puts two batches into one place"));
            }
        }
        Ok(messages)
    }

    fn stream_format(&self) -> Result<Messages> {
        let mut messages = Messages::new();
        let mut position = 0;
        while position < self.n_bytes {
            match self.message(position, &mut messages)? {
                Some(end) => position = end,
                None => break,
            }
        }
        if messages.fields.is_empty() {
            return Err(self.fault("it begins like neither a file nor a stream of arrow"));
        }
        Ok(messages)
    }

    /// Reads the message at `position`, returns where it ends; nothing at the end of a stream.
    fn message(&self, position: u64, messages: &mut Messages) -> Result<Option<u64>> {
        let mut length = self.bytes(position, 4)?;
        let mut start = position + 4;
        if length == CONTINUATION {
            length = self.bytes(start, 4)?;
            start += 4;
        }
        let length = unsigned(&length)
            .ok_or_else(|| self.fault("it is no arrow file, or a header is damaged"))?;
        if length == 0 {
            return Ok(None);
        }
        let header = self.bytes(start, length)?;
        let message = root_as_message(&header)
            .map_err(|error| self.fault(format!("it is no arrow file, or damaged: {error}")))?;
        let body = start + length;
        let end = u64::try_from(message.bodyLength()).ok();
        let end = end.and_then(|length| body.checked_add(length));
        let end = (end.filter(|end| *end <= self.n_bytes))
            .ok_or_else(|| self.fault("it is truncated: a batch reaches beyond its end"))?;
        match message.header_type() {
            MessageHeader::Schema => {
                let schema = message.header_as_schema();
                let schema = schema.ok_or_else(|| self.fault("its schema is damaged"))?;
                if !messages.fields.is_empty() {
                    return Err(self.fault("it has two schemas"));
                }
                self.schema(schema, messages)?;
            }
            MessageHeader::RecordBatch => {
                let batch = message.header_as_record_batch();
                messages.batches.push(self.batch(batch, body..end)?);
            }
            MessageHeader::DictionaryBatch => {
                let damaged = || self.fault("a dictionary is damaged");
                let dictionary = message.header_as_dictionary_batch().ok_or_else(damaged)?;
                let batch = self.batch(dictionary.data(), body..end)?;
                let batches = messages.dictionaries.entry(dictionary.id()).or_default();
                if !batches.is_empty() && !dictionary.isDelta() {
                    return Err(self.fault("a dictionary is replaced halfway, which is not read"));
                }
                batches.push(batch);
            }
            _ => return Err(self.fault("it holds something other than tables")),
        }
        Ok(Some(end))
    }

    fn schema(&self, schema: arrow_ipc::Schema<'_>, messages: &mut Messages) -> Result<()> {
        messages.fields = Field::of_schema(schema).map_err(|fault| self.fault(fault))?;
        for note in schema.custom_metadata().into_iter().flatten() {
            if let (Some(key), Some(value)) = (note.key(), note.value()) {
                messages.notes.insert(key.to_owned(), value.to_owned());
            }
        }
        Ok(())
    }

    fn batch(&self, batch: Option<arrow_ipc::RecordBatch<'_>>, body: Range<u64>) -> Result<Batch> {
        let damaged = || self.fault("the header of a batch is damaged");
        let batch = batch.ok_or_else(damaged)?;
        let count = |number: i64| u64::try_from(number).map_err(|_| damaged());
        let is_compressed = match batch.compression().map(|compression| compression.codec()) {
            None => false,
            Some(CompressionType::LZ4_FRAME) => true,
            Some(_) => return Err(self.fault("it is compressed with zstd; LZ4 is read")),
        };
        let nodes = batch.nodes().into_iter().flatten();
        let nodes = nodes.map(|node| Ok((count(node.length())?, count(node.null_count())?)));
        let buffers = batch.buffers().into_iter().flatten().map(|buffer| {
            let start = body.start.checked_add(count(buffer.offset())?);
            let end = start.zip(Some(count(buffer.length())?));
            let end = end.and_then(|(start, length)| Some((start, start.checked_add(length)?)));
            match end {
                Some((start, end)) if end <= body.end => Ok(start..end),
                _ => Err(self.fault("a buffer reaches beyond its batch")),
            }
        });
        Ok(Batch {
            n_rows: count(batch.length())?,
            nodes: nodes.collect::<Result<_>>()?,
            buffers: buffers.collect::<Result<_>>()?,
            is_compressed,
        })
    }
}

/// A length in four bytes.
fn unsigned(bytes: &[u8]) -> Option<u64> {
    let bytes = bytes.first_chunk::<4>()?;
    u64::try_from(i32::from_le_bytes(*bytes)).ok()
}
