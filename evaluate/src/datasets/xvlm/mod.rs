//! X-VLM's JSON files: lists of entries that name pictures in folders, as X-VLM and EVE keep their data.
//!
//! | file | an entry holds |
//! |---|---|
//! | captions to learn from | `image`, `caption` (one text), `image_id` |
//! | captions to measure on | `image`, `caption` (a list of texts) |
//! | questions | `question`, `question_id`, `image`, `answer` (a list, or one text of Visual Genome), `dataset` |
//! | statements | `images` (left and right), `sentence`, `label` (`True` or `False`) |
//!
//! `answer_list.json` is the list of answers that a classifier tells apart. The names of files by data set and
//! split, and the folders of pictures, are in the [table of data sets](super::DATASETS); all stand in one
//! folder, and may be links.

pub(crate) mod captions;
pub(crate) mod questions;
pub(crate) mod statements;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::Deserialize;

use super::pictures::{self, PictureFolder, is_inside};
use super::{DatasetSpec, Split};
use crate::build::plan::{Place, shown};
use crate::images::{self, Rgb};
use crate::{DataFault, Error, Result};

/// The list of answers.
pub const ANSWER_LIST: &str = "answer_list.json";

/// The JSON files of a split, and where the pictures are that they name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonFiles {
    /// The files, read one after the other.
    pub files: Vec<PathBuf>,
    /// Folders of pictures by what an entry calls its `dataset`; entries that do not say use the first.
    pub roots: Vec<(String, PathBuf)>,
    /// The list of answers, of questions with answers.
    pub answers: Option<PathBuf>,
}

impl JsonFiles {
    /// Files with all pictures in one folder.
    #[must_use]
    pub fn new(files: &[PathBuf], pictures: &Path) -> Self {
        Self {
            files: files.to_vec(),
            roots: vec![(String::new(), pictures.into())],
            answers: None,
        }
    }

    /// The files of a split in a folder; `None` where the split has none, or none of them is there.
    ///
    /// # Errors
    /// [`DataFault::MissingTable`] when some of them are there and others are not.
    pub fn find(folder: &Path, dataset: &DatasetSpec, split: &Split) -> Result<Option<Self>> {
        let find = |names: &&[&str]| {
            let mut paths = names.iter().map(|name| folder.join(name));
            paths.find(|path| path.exists())
        };
        let found: Vec<Option<PathBuf>> = split.json.iter().map(find).collect();
        if found.iter().all(Option::is_none) {
            return Ok(None);
        }
        let pairs = found.into_iter().zip(split.json);
        let files = pairs.map(|(path, names)| {
            path.ok_or_else(|| {
                Error::Data(DataFault::MissingTable {
                    folder: folder.into(),
                    names: names.join(" nor "),
                })
            })
        });
        let roots = dataset.roots.iter();
        let roots = roots.map(|(name, root)| ((*name).to_owned(), folder.join(root)));
        let answers = folder.join(ANSWER_LIST);
        Ok(Some(Self {
            files: files.collect::<Result<_>>()?,
            roots: roots.collect(),
            answers: answers.exists().then_some(answers),
        }))
    }

    /// All files that say something of the data.
    #[must_use]
    pub fn all(&self) -> Vec<PathBuf> {
        self.files.iter().chain(&self.answers).cloned().collect()
    }

    /// Pictures in these folders, none so far.
    pub(super) fn listed(&self) -> Listed {
        let roots = self.roots.iter();
        Listed {
            folders: roots.map(|(_, root)| PictureFolder::new(root)).collect(),
            pictures: Vec::new(),
        }
    }

    /// The folder of pictures that an entry names, by its number.
    fn root(&self, name: Option<&str>, place: &Place) -> Result<usize> {
        let Some(name) = name else {
            return Ok(0);
        };
        let found = self.roots.iter().position(|(root, _)| root == name);
        found.ok_or_else(|| {
            let known: Vec<&str> = self.roots.iter().map(|(name, _)| name.as_str()).collect();
            let (name, known) = (shown(name), known.join(", "));
            place.fault(format!(
                "`dataset` is {name}, and pictures are known of {known}"
            ))
        })
    }
}

/// An id as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "an id, which is a whole number or a text")]
pub(crate) enum Id {
    Number(i64),
    Name(String),
}

impl std::fmt::Display for Id {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(formatter),
            Self::Name(name) => name.fmt(formatter),
        }
    }
}

/// The places of a file's entries.
fn places(path: &Path) -> impl Iterator<Item = Place> + use<> {
    let file: Arc<Path> = path.into();
    (0..).map(move |row| Place {
        file: Arc::clone(&file),
        row,
    })
}

/// A picture that an entry names.
#[derive(Clone, Debug)]
pub(crate) struct ListedPicture {
    /// The number of its folder.
    pub(crate) root: usize,
    /// Its path in the folder.
    pub(crate) name: String,
    /// The entry.
    pub(crate) place: Place,
}

/// Pictures in folders, by number.
#[derive(Debug)]
pub(crate) struct Listed {
    folders: Vec<PictureFolder>,
    pictures: Vec<ListedPicture>,
}

impl Listed {
    /// Adds a picture; its number.
    ///
    /// # Errors
    /// [`DataFault::Row`] for a name that leads out of its folder.
    pub(super) fn add(&mut self, picture: ListedPicture) -> Result<usize> {
        if !is_inside(&picture.name) {
            let name = shown(&picture.name);
            return Err(picture.place.fault(format!(
                "`image` is {name}, which is no path within the folder of pictures"
            )));
        }
        self.pictures.push(picture);
        Ok(self.pictures.len() - 1)
    }

    /// The number of entries.
    pub(super) fn len(&self) -> usize {
        self.pictures.len()
    }

    /// The pictures, in their order.
    pub(crate) fn pictures(&self) -> &[ListedPicture] {
        &self.pictures
    }

    /// The path of a picture, which need not be there.
    pub(crate) fn path_of(&self, picture: &ListedPicture) -> PathBuf {
        let folder = self.folders.get(picture.root);
        folder.map_or_else(PathBuf::new, |folder| folder.path().join(&picture.name))
    }

    /// The bytes of a picture file.
    ///
    /// # Errors
    /// [`DataFault::NoSuchRow`]; with file, entry and picture when it cannot be read.
    pub(super) fn bytes(&self, number: usize) -> Result<Vec<u8>> {
        let (picture, path) = self.find(number)?;
        pictures::read(&path).map_err(|error| self.fault(picture, &error.to_string()))
    }

    /// A decoded picture.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes)'s, and when it is damaged.
    pub(super) fn picture(&self, number: usize) -> Result<Rgb> {
        let bytes = self.bytes(number)?;
        images::decode(&bytes).map_err(|error| match self.pictures.get(number) {
            Some(picture) => self.fault(picture, &error.to_string()),
            None => error,
        })
    }

    /// Looks whether the first `n` pictures are there, on all threads.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes)'s, for the first picture that is not there.
    pub(super) fn check(&self, n: usize) -> Result<()> {
        let numbers = 0..n.min(self.len());
        let fault = numbers
            .into_par_iter()
            .find_map_first(|number| self.find(number).err());
        fault.map_or(Ok(()), Err)
    }

    fn find(&self, number: usize) -> Result<(&ListedPicture, PathBuf)> {
        let picture = self.pictures.get(number);
        let folder = picture.and_then(|picture| self.folders.get(picture.root));
        let Some((picture, folder)) = picture.zip(folder) else {
            return Err(Error::Data(DataFault::NoSuchRow {
                row: number,
                n_rows: self.len(),
            }));
        };
        let path = folder.find(&picture.name, |fault| self.fault(picture, fault))?;
        Ok((picture, path))
    }

    fn fault(&self, picture: &ListedPicture, fault: &str) -> Error {
        let folder = self.folders.get(picture.root);
        let folder = folder.map(|folder| folder.path().display().to_string());
        let (name, folder) = (shown(&picture.name), folder.unwrap_or_default());
        let fault = format!("`image`: the picture {name} in {folder}: {fault}");
        picture.place.fault(fault)
    }
}
