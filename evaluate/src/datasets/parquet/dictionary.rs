//! Values that the pages of a chunk refer to.

use super::footer::Leaf;
use super::hybrid;
use super::kept::KEPT_BYTES;
use super::pages::{Body, Page};
use super::values::{self, DICTIONARY, PLAIN, Values};

/// A page of values, which other pages name by number.
#[derive(Debug)]
pub(super) struct Dictionary {
    bytes: Vec<u8>,
    pub(super) values: Values,
}

impl Dictionary {
    /// Reads the values of a page. Writers end a dictionary at one mebibyte, or with the value that passes it.
    pub(super) fn read(leaf: &Leaf, page: &Page, body: Body) -> Result<Self, String> {
        if !DICTIONARY.contains(&page.encoding) && page.encoding != PLAIN {
            return Err("its dictionary is of an unknown encoding".into());
        }
        let n_bytes = body.bytes.len();
        if n_bytes > KEPT_BYTES {
            return Err(format!(
                "its dictionary has {n_bytes} bytes; at most {KEPT_BYTES} are read"
            ));
        }
        let values = values::read(leaf.physical, PLAIN, &body.bytes, 0, page.n_values)?;
        Ok(Self {
            bytes: body.bytes,
            values,
        })
    }

    /// Memory that it takes, in bytes.
    pub(super) fn n_bytes(&self) -> usize {
        self.bytes.len() + self.values.n_bytes()
    }

    /// The bytes of a value; `None` where there is no such value, or none of bytes.
    pub(super) fn bytes_of(&self, index: u32) -> Option<&[u8]> {
        match &self.values {
            Values::Bytes(ranges) => self.bytes.get(ranges.get(index as usize)?.clone()),
            _ => None,
        }
    }
}

/// The numbers by which a page names the values that are not null.
pub(super) fn indices(body: &Body) -> Result<Vec<u32>, String> {
    let short = || "the numbers of a page are damaged".to_owned();
    if body.n_present == 0 {
        return Ok(Vec::new());
    }
    let bytes = body.bytes.get(body.values.clone()).ok_or_else(short)?;
    let (width, packed) = bytes.split_first().ok_or_else(short)?;
    hybrid::read(packed, *width, body.n_present).ok_or_else(short)
}
