//! Benchmarks as users have them: folders of arrow files, CSV tables, JSON files, folders of classes, shards of
//! webdatasets, parquet files.
//!
//! [`DATASETS`] lists them: one row each. [`Dataset::open`] opens a split of any by its name, as a
//! [`captions::CaptionSet`], [`vqa::VqaSet`], [`nlvr2::Nlvr2Set`], [`texts::TextSet`] or
//! [`classes::ClassSet`]: texts and ids are read at once, pictures on request.
//! [`annotations::Annotations`] reads CSV files beside folders of pictures. [`prefetch()`] runs the decoding
//! ahead on other threads.

pub mod annotations;
pub mod arrow;
pub mod captions;
pub mod class_texts;
pub mod classes;
pub mod facts;
pub mod left_out;
pub mod nlvr2;
pub mod overview;
pub mod packed;
mod parquet;
mod pictures;
pub mod prefetch;
pub mod published_texts;
mod rows;
mod shard;
mod source;
mod splits;
mod table;
mod text_budget;
pub mod texts;
pub mod vqa;
pub mod xvlm;

pub use prefetch::{Prefetch, prefetch};
pub use table::{DATASETS, DatasetSpec, Kind, Split};

use std::path::Path;

use crate::{DataFault, Error, Result};

/// A split of any data set, opened.
#[derive(Debug)]
pub enum Dataset {
    /// Images with captions.
    Captions(captions::CaptionSet),
    /// Images with questions.
    Questions(vqa::VqaSet),
    /// Pairs of images with statements.
    Statements(nlvr2::Nlvr2Set),
    /// Texts.
    Texts(texts::TextSet),
    /// Images with classes.
    Classes(classes::ClassSet),
}

impl Dataset {
    /// Looks whether all pictures are there, as far as that takes no decoding.
    ///
    /// # Errors
    /// For the first picture that is not there, with the place that names it.
    pub fn check_pictures(&self) -> Result<()> {
        match self {
            Self::Captions(set) => set.check_pictures(),
            Self::Questions(set) => set.check_pictures(),
            Self::Statements(set) => set.check_pictures(),
            Self::Texts(_) | Self::Classes(_) => Ok(()),
        }
    }

    /// Opens a split of packed files of any name: captions if `wants_texts` and there are some, else classes.
    ///
    /// # Errors
    /// [`DataFault::MissingTable`] when no file is there,
    /// [`DataFault::MissingColumn`] when the files have neither, and what the set of
    /// the kind returns.
    pub fn open_packed(folder: &Path, name: &str, split: &str, wants_texts: bool) -> Result<Self> {
        let Some(packed) = packed::Packed::find(folder, name, split)? else {
            return Err(Error::Data(DataFault::MissingTable {
                folder: folder.join(name),
                names: format!("shards (.tar) nor parquet files of the split {split}"),
            }));
        };
        let tables = splits::Tables::of_packed(&packed)?;
        Ok(
            match (tables.all_have("caption"), tables.all_have("label")) {
                (true, is_labelled) if wants_texts || !is_labelled => {
                    Self::Captions(captions::CaptionSet::of_tables(tables)?)
                }
                // The error names the column that is missing.
                _ => Self::Classes(classes::ClassSet::of_packed(packed, tables)?),
            },
        )
    }

    /// Opens a split of a data set, by their names, in a folder of arrow files, or a CSV
    /// table in `<folder>/<name>` as split `train` or `valid`, or X-VLM's JSON files in the folder, or packed files in
    /// `<folder>/<name>`.
    ///
    /// # Errors
    /// [`DataFault::UnknownDataset`] and
    /// [`DataFault::UnknownSplit`] for names,
    /// [`DataFault::MissingTable`] when a file is not there, and what the
    /// set of its kind returns.
    pub fn open(folder: &Path, name: &str, split: &str) -> Result<Self> {
        let kind = match table_half(folder, name, split) {
            Some(_) => Kind::Captions,
            None => kind(name)?,
        };
        Ok(match kind {
            Kind::Captions => Self::Captions(captions::CaptionSet::open(folder, name, split)?),
            Kind::Questions => Self::Questions(vqa::VqaSet::open(folder, split)?),
            Kind::Statements => Self::Statements(nlvr2::Nlvr2Set::open(folder, split)?),
            Kind::Texts => Self::Texts(texts::TextSet::open(folder, name, split)?),
            Kind::Classes => Self::Classes(classes::ClassSet::open(folder, name, split)?),
        })
    }
}

/// The kind of rows in the data set of this name.
///
/// # Errors
/// [`DataFault::UnknownDataset`] when there is none.
pub fn kind(name: &str) -> Result<Kind> {
    let found = DatasetSpec::of(name).ok_or_else(|| DatasetSpec::unknown(name, DATASETS.iter()));
    Ok(found?.kind)
}

/// The half whose CSV table is opened for a name and a split; arrow files of the same names go first.
fn table_half(folder: &Path, name: &str, split: &str) -> Option<annotations::Half> {
    let half = annotations::Annotations::half(folder, name, split)?;
    let arrow = DatasetSpec::of(name).and_then(|set| set.split(split).ok());
    let is_arrow =
        arrow.is_some_and(|split| !split.tables.is_empty() && split.files(folder).is_ok());
    (!is_arrow).then_some(half)
}
