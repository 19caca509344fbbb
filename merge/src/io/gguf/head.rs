//! The facts beside the tensors of a GGUF file that is written.

use std::collections::BTreeMap;

/// The numbers of types in files.
const U16: u32 = 2;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = super::metadata::ARRAY;

/// Entries of metadata as they stand in the file, and the tensors that are written as blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GgufHead {
    entries: Vec<u8>,
    n_entries: u64,
    /// Shapes, as torch counts axes, of tensors whose bytes are blocks of `Q8_0`.
    coded: BTreeMap<String, Vec<usize>>,
}

impl GgufHead {
    /// The entries' bytes and their number.
    pub(crate) fn entries(&self) -> (&[u8], u64) {
        (&self.entries, self.n_entries)
    }

    /// The shape of a tensor whose bytes are blocks of `Q8_0`.
    pub(crate) fn coded(&self, name: &str) -> Option<&[usize]> {
        self.coded.get(name).map(Vec::as_slice)
    }

    /// Notes that a tensor is written as blocks.
    pub(crate) fn set_coded(&mut self, name: String, shape: Vec<usize>) {
        self.coded.insert(name, shape);
    }

    fn begin(&mut self, key: &str, kind: u32) {
        self.n_entries += 1;
        put_text(&mut self.entries, key.as_bytes());
        self.entries.extend(kind.to_le_bytes());
    }

    pub(crate) fn u16(&mut self, key: &str, value: u16) {
        self.begin(key, U16);
        self.entries.extend(value.to_le_bytes());
    }

    pub(crate) fn i32(&mut self, key: &str, value: i32) {
        self.begin(key, I32);
        self.entries.extend(value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, key: &str, value: u32) {
        self.begin(key, U32);
        self.entries.extend(value.to_le_bytes());
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) {
        self.begin(key, F32);
        self.entries.extend(value.to_le_bytes());
    }

    pub(crate) fn bool(&mut self, key: &str, value: bool) {
        self.begin(key, BOOL);
        self.entries.push(value.into());
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) {
        self.begin(key, TEXT);
        put_text(&mut self.entries, value.as_bytes());
    }

    pub(crate) fn texts<T: AsRef<[u8]>>(&mut self, key: &str, values: &[T]) {
        self.array(key, TEXT, values.len());
        for value in values {
            put_text(&mut self.entries, value.as_ref());
        }
    }

    pub(crate) fn i32s(&mut self, key: &str, values: &[i32]) {
        self.array(key, I32, values.len());
        self.entries
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    pub(crate) fn f32s(&mut self, key: &str, values: &[f32]) {
        self.array(key, F32, values.len());
        self.entries
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    fn array(&mut self, key: &str, kind: u32, n: usize) {
        self.begin(key, ARRAY);
        self.entries.extend(kind.to_le_bytes());
        self.entries.extend((n as u64).to_le_bytes());
    }
}

/// A string with its length.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

/// An entry with a string, of which the last byte is that of the string.
pub(crate) fn text_entry(key: &str, text: &str) -> Vec<u8> {
    let mut head = GgufHead::default();
    head.text(key, text);
    head.entries
}
