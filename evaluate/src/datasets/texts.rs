//! Texts without images: Wikipedia and BookCorpus, as VLMo's language stage reads them.

use std::path::Path;

use super::splits::{self, Opened};
use super::{DatasetSpec, Kind};
use crate::{Error, Result};

/// A split of texts. All are in memory.
#[derive(Debug)]
pub struct TextSet {
    texts: Vec<String>,
}

impl TextSet {
    /// Opens a split such as `train` of `wikibk` in a folder of arrow files: the lists in the column
    /// `caption`, one after the other; or of parquet files in the folder of its name, where the column may be called
    /// `text`.
    ///
    /// # Errors
    /// [`DataFault::UnknownDataset`](crate::DataFault::UnknownDataset) and
    /// [`DataFault::UnknownSplit`](crate::DataFault::UnknownSplit) for names,
    /// [`DataFault::MissingTable`](crate::DataFault::MissingTable) when a file is not there, [`Error::Empty`] when there is no text.
    pub fn open(folder: &Path, dataset: &str, split: &str) -> Result<Self> {
        let tables = match splits::open(folder, dataset, Kind::Texts, split)? {
            Opened::Tables(tables) => tables,
            // The data sets of this kind have none.
            Opened::Json(_) => return Err(DatasetSpec::unknown(dataset, [].into_iter())),
        };
        tables.check_rows("texts")?;
        let mut lists = Vec::new();
        for table in tables.iter() {
            lists.extend(table.text_lists("caption")?);
        }
        let texts: Vec<String> = tables.that_count(lists).into_iter().flatten().collect();
        match (texts.is_empty(), tables.iter().next()) {
            (true, Some(table)) => Err(Error::Empty {
                path: table.path().into(),
                what: "texts",
            }),
            _ => Ok(Self { texts }),
        }
    }

    /// The texts.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        &self.texts
    }
}
