//! Single values of a column of bytes, such as pictures, each read with its page.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use super::ParquetTable;
use super::dictionary::{Dictionary, indices};
use super::footer::{Group, Leaf};
use super::pages::{self, Form, Page, Trouble};
use super::values::{self, DICTIONARY, Values};
use crate::{DataFault, Error, Result};

/// A row group and a leaf.
pub(super) type ChunkKey = (usize, usize);

/// A chunk and the number of its page.
pub(super) type PageKey = (ChunkKey, usize);

/// Pages with the row that each begins with.
pub(super) type Pages = Vec<(usize, Page)>;

/// A page of bytes, decoded.
#[derive(Debug)]
pub(super) struct Decoded {
    bytes: Vec<u8>,
    dictionary: Option<Arc<Dictionary>>,
    /// Each value of the page; `None` of a null.
    values: Vec<Option<Found>>,
}

/// Where the bytes of a value are.
#[derive(Clone, Debug)]
enum Found {
    Here(Range<usize>),
    InDictionary(u32),
}

impl Decoded {
    /// Memory that it takes without its dictionary, in bytes.
    fn n_bytes(&self) -> usize {
        self.bytes.len() + self.values.len() * size_of::<Option<Found>>()
    }

    fn bytes_of(&self, found: &Found) -> Option<&[u8]> {
        match found {
            Found::Here(range) => self.bytes.get(range.clone()),
            Found::InDictionary(index) => self.dictionary.as_ref()?.bytes_of(*index),
        }
    }
}

impl ParquetTable {
    /// One value of a column of bytes, or of the field `bytes` of a struct, with the page that it is in.
    ///
    /// # Errors
    /// [`DataFault::Row`] when the row does not exist or the value is null, and as [`column`](Self::column)'s.
    pub fn bytes(&self, column: &str, row: usize) -> Result<Vec<u8>> {
        let name = self.name_of(column).ok_or_else(|| self.missing(column))?;
        let index = self.bytes_leaf(name);
        let index = index
            .ok_or_else(|| self.other_type(name, "bytes, or a struct with the field `bytes`"))?;
        let number = self.ends.partition_point(|&end| end <= row);
        let row_fault = |fault: String| {
            Error::Data(DataFault::Row {
                path: self.path().into(),
                row,
                fault,
            })
        };
        let Some(group) = self.footer.groups.get(number) else {
            return Err(row_fault(format!("there are {} rows", self.n_rows())));
        };
        let within = row + group.n_rows - self.ends[number];
        let trouble = |trouble: Trouble| match trouble {
            Trouble::Error(error) => error,
            Trouble::Fault(fault) => row_fault(format!("column `{name}`: {fault}")),
        };
        let pages = self.pages_of((number, index)).map_err(trouble)?;
        let at = pages.partition_point(|(first, page)| {
            page.form == Form::Dictionary || first + page.n_values <= within
        });
        let Some((first, _)) = pages.get(at) else {
            return Err(row_fault(format!("column `{name}` has no page with it")));
        };
        let decoded = self.decoded(((number, index), at), &pages);
        let decoded = decoded.map_err(trouble)?;
        let found = decoded.values.get(within - first).cloned().flatten();
        let found = found.ok_or_else(|| row_fault(format!("column `{name}` is null")))?;
        let bytes = decoded.bytes_of(&found);
        bytes.map(<[u8]>::to_vec).ok_or_else(|| {
            row_fault(format!(
                "column `{name}`: a page refers to nothing of its dictionary"
            ))
        })
    }

    /// The pages of a chunk with the row that each begins with; a dictionary comes before all.
    fn pages_of(&self, chunk: ChunkKey) -> Result<Arc<Pages>, Trouble> {
        let lock = || self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pages) = lock().get(&chunk) {
            return Ok(Arc::clone(pages));
        }
        let group: &Group = &self.footer.groups[chunk.0];
        let mut first = 0;
        let mut pages = Vec::new();
        for page in pages::scan(&self.file, &group.chunks[chunk.1])? {
            if page.form == Form::Dictionary && !pages.is_empty() {
                return Err("a dictionary stands behind other pages".into());
            }
            pages.push((first, page));
            if page.form != Form::Dictionary {
                first += page.n_values;
            }
        }
        let pages = Arc::new(pages);
        lock().insert(chunk, Arc::clone(&pages));
        Ok(pages)
    }

    /// A page, decoded now or before.
    fn decoded(&self, key: PageKey, pages: &[(usize, Page)]) -> Result<Arc<Decoded>, Trouble> {
        if let Some(decoded) = self.kept_pages.get(&key) {
            return Ok(decoded);
        }
        let (chunk_key, at) = key;
        let (chunk, leaf) = self.chunk(chunk_key);
        let page = &pages[at].1;
        let refers = DICTIONARY.contains(&page.encoding);
        let dictionary = match pages.first() {
            Some((_, first)) if refers && first.form == Form::Dictionary => {
                Some(self.dictionary(chunk_key, first)?)
            }
            _ => None,
        };
        let body = pages::body(&self.file, chunk, leaf, page)?;
        let present: Vec<Found> = if refers {
            let indices = indices(&body)?.into_iter();
            indices.map(Found::InDictionary).collect()
        } else {
            let (start, n) = (body.values.start, body.n_present);
            match values::read(leaf.physical, page.encoding, &body.bytes, start, n)? {
                Values::Bytes(ranges) => ranges.into_iter().map(Found::Here).collect(),
                _ => return Err("it holds no bytes".into()),
            }
        };
        let mut present = present.into_iter();
        let values = match body.definitions.is_empty() {
            true => present.map(Some).collect(),
            false => {
                let levels = body.definitions.iter();
                let found = levels.map(|level| match *level == leaf.definition {
                    true => present.next(),
                    false => None,
                });
                found.collect()
            }
        };
        let decoded = Decoded {
            // Numbers of a dictionary are in `values`.
            bytes: if refers { Vec::new() } else { body.bytes },
            dictionary,
            values,
        };
        Ok(self.kept_pages.keep(key, decoded.n_bytes(), decoded))
    }

    /// The dictionary of a chunk, decoded now or before.
    fn dictionary(&self, key: ChunkKey, page: &Page) -> Result<Arc<Dictionary>, Trouble> {
        if let Some(dictionary) = self.kept_dictionaries.get(&key) {
            return Ok(dictionary);
        }
        let (chunk, leaf) = self.chunk(key);
        let body = pages::body(&self.file, chunk, leaf, page)?;
        let dictionary = Dictionary::read(leaf, page, body)?;
        let n_bytes = dictionary.n_bytes();
        Ok(self.kept_dictionaries.keep(key, n_bytes, dictionary))
    }

    fn chunk(&self, (group, leaf): ChunkKey) -> (&super::footer::Chunk, &Leaf) {
        (
            &self.footer.groups[group].chunks[leaf],
            &self.footer.leaves[leaf],
        )
    }
}
