//! The plan of a file: its columns and its rows.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::BuildOptions;
use crate::datasets::captions::CaptionSet;
use crate::datasets::left_out::{BadPicture, Omission};
use crate::{DataFault, Error};

/// The type of a column beside the pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Texts,
    TextLists,
    Integer,
    Integers,
    IntegerLists,
    FloatLists,
}

/// A value of such a column.
#[derive(Clone, Debug)]
pub(crate) enum Cell {
    Text(String),
    Texts(Vec<String>),
    TextLists(Vec<Vec<String>>),
    Integer(i64),
    Integers(Vec<i64>),
    IntegerLists(Vec<Vec<i64>>),
    FloatLists(Vec<Vec<f64>>),
}

/// A picture file, or a picture in a packed file.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    pub(crate) path: PathBuf,
    /// The set that has it, and its number there.
    pub(crate) packed: Option<(Arc<CaptionSet>, usize)>,
}

impl Picture {
    pub(crate) fn file(path: PathBuf) -> Self {
        Self { path, packed: None }
    }
}

/// The place of an annotation.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) file: Arc<Path>,
    pub(crate) row: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: row {}", self.file.display(), self.row)
    }
}

impl Place {
    /// An error here.
    pub(crate) fn fault(&self, fault: impl Into<String>) -> Error {
        Error::Data(DataFault::Row {
            path: self.file.to_path_buf(),
            row: self.row,
            fault: fault.into(),
        })
    }

    /// Refuses names that lead out of their folder, or that no disk has.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), Error> {
        let mut parts = Path::new(name).components();
        let is_odd = name.len() > MAX_NAME_BYTES || name.contains('\0');
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(_)), None) if !name.ends_with('/') && !is_odd => Ok(()),
            _ => Err(self.fault(format!("{} is not the name of a file", shown(name)))),
        }
    }
}

/// The longest name of a file on most disks.
const MAX_NAME_BYTES: usize = 255;

/// Characters of a text that a message shows.
const MAX_SHOWN_CHARS: usize = 80;

/// A text of a file as messages show it: in quotes, and no more than its beginning.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], text.len()),
        None => format!("{text:?}"),
    }
}

/// A row of a table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) place: Place,
    /// One picture, or the two of a pair.
    pub(crate) pictures: Vec<Picture>,
    /// In the order of the columns.
    pub(crate) cells: Vec<Cell>,
}

impl Row {
    /// A picture of this row, row `number` of the plan, that cannot be used.
    pub(crate) fn bad_picture(
        &self,
        picture: &Picture,
        fault: String,
        number: usize,
    ) -> BadPicture {
        BadPicture {
            path: picture.path.clone(),
            place: self.place.to_string(),
            fault,
            row: number,
        }
    }
}

/// A file that is to be written.
#[derive(Clone, Debug)]
pub(crate) struct TablePlan {
    /// Its name without the ending.
    pub(crate) name: String,
    /// The columns beside the pictures.
    pub(crate) columns: Vec<(&'static str, Kind)>,
    /// Whether a row has two pictures: `image_0` and `image_1`.
    pub(crate) is_pair: bool,
    pub(crate) rows: Vec<Row>,
    /// The omissions that a rule makes.
    pub(crate) left_out: Vec<Omission>,
    /// Further notes of the file, by key.
    pub(crate) notes: Vec<(&'static str, String)>,
}

impl TablePlan {
    /// The note in the file by which it is recognized.
    pub(crate) fn note(&self, dataset: &str, options: &BuildOptions) -> String {
        let n_pictures: usize = self.rows.iter().map(|row| row.pictures.len()).sum();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "dataset": dataset,
            "table": self.name,
            "planned_rows": self.rows.len(),
            "planned_pictures": n_pictures,
            "annotations": format!("{:016x}", self.fingerprint()),
            "seed": options.seed,
        })
        .to_string()
    }

    /// A hash of names and texts (FNV-1a), so that a file of other annotations is not taken for
    /// finished. The bytes of the pictures are not in it: reading them is what resuming saves.
    fn fingerprint(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut add = |text: &str| {
            for byte in text.bytes().chain([0xff]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        for row in &self.rows {
            for picture in &row.pictures {
                add(&picture
                    .path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy());
            }
            add(&format!("{:?}", row.cells));
        }
        hash
    }
}

/// Images without a text: an error, or left out and listed where bad examples are to be skipped.
pub(crate) struct Textless {
    texts: &'static str,
    is_skipped: bool,
    n_images: usize,
    ids: Vec<String>,
}

impl Textless {
    /// `texts` is what an image should have: `caption`, `region`.
    pub(crate) fn new(texts: &'static str, options: &BuildOptions) -> Self {
        Self {
            texts,
            is_skipped: options.skip_bad,
            n_images: 0,
            ids: Vec::new(),
        }
    }

    /// Counts an image; whether it has a text and so makes a row.
    ///
    /// # Errors
    /// [`DataFault::NoText`] when it has none and is not to be skipped.
    pub(crate) fn has_text(
        &mut self,
        place: &Place,
        id: &dyn std::fmt::Display,
        n_texts: usize,
    ) -> Result<bool, Error> {
        self.n_images += 1;
        if n_texts > 0 {
            return Ok(true);
        }
        if !self.is_skipped {
            return Err(Error::Data(DataFault::NoText {
                path: place.file.to_path_buf(),
                row: place.row,
                image: id.to_string(),
                texts: self.texts,
            }));
        }
        self.ids.push(id.to_string());
        Ok(false)
    }

    /// The omissions.
    pub(crate) fn left_out(self) -> Vec<Omission> {
        let why = format!("no {}", self.texts);
        let omission = Omission::of_ids("images", why, self.ids, self.n_images);
        omission.into_iter().collect()
    }
}

/// Columns of images with captions.
pub(crate) const CAPTIONS: [(&str, Kind); 3] = [
    ("caption", Kind::Texts),
    ("image_id", Kind::Text),
    ("split", Kind::Text),
];

/// Columns of files with one caption a row, as EVE keeps its pairs for pre-training.
pub(crate) const FLAT_CAPTIONS: [(&str, Kind); 2] =
    [("caption", Kind::Text), ("image_id", Kind::Text)];
