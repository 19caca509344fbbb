//! Texts without images: Wikipedia and BookCorpus, as VLMo's language stage reads them.

use std::path::Path;

use super::arrow::Table;
use super::splits::Tables;
use super::{DatasetSpec, Kind};
use crate::{Error, Result};

/// A split of texts. All are in memory.
#[derive(Debug)]
pub struct TextSet {
    texts: Vec<String>,
}

impl TextSet {
    /// Opens a split such as `train` of `wikibk` in a folder of arrow files: the lists in the column
    /// `caption`, one after the other.
    ///
    /// # Errors
    /// [`DataFault::UnknownDataset`](crate::DataFault::UnknownDataset) and
    /// [`DataFault::UnknownSplit`](crate::DataFault::UnknownSplit) for names,
    /// [`DataFault::MissingTable`](crate::DataFault::MissingTable) when a file is not there, [`Error::Empty`] when there is no text.
    pub fn open(folder: &Path, dataset: &str, split: &str) -> Result<Self> {
        let dataset = DatasetSpec::find(dataset, Kind::Texts)?;
        let files = dataset.split(split)?.files(folder)?;
        let tables: Result<_> = files.iter().map(|file| Table::open(file)).collect();
        let tables = Tables::new(tables?);
        tables.check_rows("texts")?;
        let mut texts = Vec::new();
        for table in tables.iter() {
            let of_table: Vec<Vec<String>> = table.column("caption")?;
            texts.extend(of_table.into_iter().flatten());
        }
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
