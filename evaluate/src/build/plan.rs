//! What a file is to hold.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::BuildOptions;
use crate::{DataFault, Error};

/// The type of a column beside the pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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
pub(super) enum Cell {
    Text(String),
    Texts(Vec<String>),
    TextLists(Vec<Vec<String>>),
    Integer(i64),
    Integers(Vec<i64>),
    IntegerLists(Vec<Vec<i64>>),
    FloatLists(Vec<Vec<f64>>),
}

/// A picture file.
#[derive(Clone, Debug)]
pub(super) struct Picture {
    pub(super) path: PathBuf,
}

/// Where an annotation stands.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) file: Arc<Path>,
    pub(super) row: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: row {}", self.file.display(), self.row)
    }
}

impl Place {
    /// An error here.
    pub(super) fn fault(&self, fault: impl Into<String>) -> Error {
        Error::Data(DataFault::Row {
            path: self.file.to_path_buf(),
            row: self.row,
            fault: fault.into(),
        })
    }

    /// Refuses names that lead out of their folder.
    pub(super) fn check_name(&self, name: &str) -> Result<(), Error> {
        let mut parts = Path::new(name).components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(_)), None) if !name.ends_with('/') => Ok(()),
            _ => Err(self.fault(format!("{name:?} is not the name of a file"))),
        }
    }
}

/// A row of a table.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) place: Place,
    /// One picture, or the two of a pair.
    pub(super) pictures: Vec<Picture>,
    /// In the order of the columns.
    pub(super) cells: Vec<Cell>,
}

/// A file that is to be written.
#[derive(Clone, Debug)]
pub(super) struct TablePlan {
    /// Its name without the ending.
    pub(super) name: String,
    /// The columns beside the pictures.
    pub(super) columns: Vec<(&'static str, Kind)>,
    /// Whether a row has two pictures: `image_0` and `image_1`.
    pub(super) is_pair: bool,
    pub(super) rows: Vec<Row>,
}

impl TablePlan {
    /// What is written into the file to know it again.
    pub(super) fn note(&self, dataset: &str, options: &BuildOptions) -> String {
        let n_pictures: usize = self.rows.iter().map(|row| row.pictures.len()).sum();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "dataset": dataset,
            "table": self.name,
            "planned_rows": self.rows.len(),
            "planned_pictures": n_pictures,
            "annotations": format!("{:016x}", self.fingerprint()),
            "seed": options.seed,
            "skip_bad": options.skip_bad,
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

/// Columns of images with captions.
pub(super) const CAPTIONS: [(&str, Kind); 3] = [
    ("caption", Kind::Texts),
    ("image_id", Kind::Text),
    ("split", Kind::Text),
];
