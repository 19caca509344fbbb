//! Images with captions: COCO, Flickr30K, Conceptual Captions, SBU, Visual Genome.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::Kind;
use super::annotations::Annotations;
use super::left_out::Omission;
use super::packed::Packed;
use super::rows::Table;
use super::source::Source;
use super::splits::{self, Opened, Tables};
use super::xvlm::{self, JsonFiles};
use crate::images::Rgb;
use crate::metrics::zero_shot::rows_by_id;
use crate::{DataFault, Error, Result};

const IMAGE: [&str; 1] = ["image"];
const CAPTION: &str = "caption";
const IMAGE_ID: &str = "image_id";

/// A split of images, each with its captions. Captions and ids are in memory, pictures are read
/// on request. An arrow file holds a list of captions a row, or one caption as EVE's files do.
///
/// An image whose id occurs in several rows stays several images, as published code has it.
#[derive(Debug)]
pub struct CaptionSet {
    source: Arc<Pictures>,
    image_ids: Vec<String>,
    captions: Vec<Vec<String>>,
}

impl CaptionSet {
    /// Opens a split such as `test` of a data set such as `coco` in a folder of arrow files, or a CSV
    /// table `<dataset>/valid_anno.csv` there as split `valid` (see [`Annotations`]), or X-VLM's JSON files
    /// (see [`xvlm`]), or shards and parquet files in the folder `<dataset>`, whatever its name (see
    /// [`packed`](super::packed)).
    ///
    /// # Errors
    /// [`DataFault::UnknownDataset`] and
    /// [`DataFault::UnknownSplit`] for names,
    /// [`DataFault::MissingTable`] when a file is not there,
    /// [`Error::Empty`] when the split has no rows, and an error that names
    /// file and row when an image has no caption, or a JSON entry is not as it should be.
    pub fn open(folder: &Path, dataset: &str, split: &str) -> Result<Self> {
        if let Some(half) = super::table_half(folder, dataset, split) {
            return Self::of_annotations(Annotations::open(folder, dataset, half)?);
        }
        match splits::open(folder, dataset, Kind::Captions, split)? {
            Opened::Tables(tables) => Self::of_tables(tables),
            Opened::Json(files) => Self::of_json(&files),
        }
    }

    /// The images of X-VLM's JSON files with their captions. Entries with one caption and the same `image_id`
    /// are one image; an entry with a list of captions is an image of its own.
    ///
    /// # Errors
    /// An error that names file, entry and field of a wrong value: a caption without an
    /// `image_id`, an `image_id` of two pictures, an empty list, a picture out of its folder; [`Error::Empty`].
    pub fn of_json(files: &JsonFiles) -> Result<Self> {
        let images = xvlm::captions::read(files)?;
        Ok(Self {
            source: Arc::new(Pictures::Rows(Source::Listed(images.pictures))),
            image_ids: images.ids,
            captions: images.captions,
        })
    }

    /// The pairs of a CSV table as images with captions. Rows of one `image_id` are one image, with the
    /// picture of the last of them, as published; images come by rising id. Pairs of `train` have no
    /// ids: each is an image.
    ///
    /// # Errors
    /// When a row cannot be read.
    pub fn of_annotations(annotations: Annotations) -> Result<Self> {
        let groups = match annotations.image_ids() {
            [] => (0..annotations.len())
                .map(|row| (row as i64, vec![row]))
                .collect(),
            ids => rows_by_id(ids),
        };
        let (mut image_ids, mut captions, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for (id, of_image) in groups {
            let texts = of_image
                .iter()
                .map(|&row| Ok(annotations.annotation(row)?.caption));
            captions.push(texts.collect::<Result<_>>()?);
            image_ids.push(id.to_string());
            rows.push(of_image.last().copied().unwrap_or_default());
        }
        Ok(Self {
            source: Arc::new(Pictures::Pairs { annotations, rows }),
            image_ids,
            captions,
        })
    }

    /// Opens arrow files of any names as one split.
    ///
    /// # Errors
    /// As [`open`](Self::open)'s.
    pub fn of_files(files: &[PathBuf]) -> Result<Self> {
        let tables: Result<_> = files.iter().map(|file| Table::open(file)).collect();
        Self::of_tables(Tables::new(tables?))
    }

    /// Opens packed files.
    ///
    /// # Errors
    /// As [`open`](Self::open)'s.
    pub(crate) fn of_packed(packed: &Packed) -> Result<Self> {
        Self::of_tables(Tables::of_packed(packed)?)
    }

    pub(super) fn of_tables(tables: Tables) -> Result<Self> {
        tables.check_rows("images")?;
        let (mut image_ids, mut captions) = (Vec::new(), Vec::new());
        for table in tables.iter() {
            captions.extend(table.text_lists(CAPTION)?);
            image_ids.extend(ids_of(table)?);
        }
        let (captions, image_ids) = (tables.that_count(captions), tables.that_count(image_ids));
        if let Some(index) = captions.iter().position(Vec::is_empty) {
            return Err(tables.row_fault(index, "the image has no caption"));
        }
        Ok(Self {
            source: Arc::new(Pictures::Rows(Source::Tables(tables))),
            image_ids,
            captions,
        })
    }

    /// Without the captions that an image has already: the published program's habit for
    /// captions. The order is kept.
    #[must_use]
    pub fn without_repeats(mut self) -> Self {
        for captions in &mut self.captions {
            let mut seen = HashSet::new();
            captions.retain(|caption| seen.insert(caption.clone()));
        }
        self
    }

    /// Without the captions that read like one which the image has already, and the numbers of those that are
    /// kept, counted over all images.
    #[must_use]
    pub fn without_repeats_as(&self, read: impl Fn(&str) -> String) -> (Self, Vec<usize>) {
        let (mut captions, mut kept, mut n) = (Vec::new(), Vec::new(), 0);
        for of_image in &self.captions {
            let mut seen = HashSet::new();
            let mut own = Vec::new();
            for caption in of_image {
                if seen.insert(read(caption)) {
                    own.push(caption.clone());
                    kept.push(n);
                }
                n += 1;
            }
            captions.push(own);
        }
        let set = Self {
            source: Arc::clone(&self.source),
            image_ids: self.image_ids.clone(),
            captions,
        };
        (set, kept)
    }

    /// The first `n` images alone.
    #[must_use]
    pub fn first(mut self, n: usize) -> Self {
        self.captions.truncate(n);
        self.image_ids.truncate(n);
        self
    }

    /// The omissions that the files note, though the annotations have them.
    ///
    /// # Errors
    /// When a file's note of it is damaged.
    pub fn left_out(&self) -> Result<Vec<Omission>> {
        match &*self.source {
            Pictures::Rows(rows) => rows.left_out(),
            Pictures::Pairs { annotations, .. } => Ok(annotations.left_out()),
        }
    }

    /// Number of images.
    #[must_use]
    pub fn n_images(&self) -> usize {
        self.captions.len()
    }

    /// Number of captions.
    #[must_use]
    pub fn n_captions(&self) -> usize {
        self.captions.iter().map(Vec::len).sum()
    }

    /// The id of an image, its file name for most data sets.
    ///
    /// # Panics
    /// When `image` is not below [`n_images`](Self::n_images), as with a slice.
    #[must_use]
    pub fn image_id(&self, image: usize) -> &str {
        &self.image_ids[image]
    }

    /// The captions of an image, at least one.
    ///
    /// # Panics
    /// When `image` is not below [`n_images`](Self::n_images), as with a slice.
    #[must_use]
    pub fn captions(&self, image: usize) -> &[String] {
        &self.captions[image]
    }

    /// The file and the row of an image of arrow, parquet or tar files.
    pub(crate) fn place(&self, image: usize) -> Option<(&Path, usize)> {
        match &*self.source {
            Pictures::Rows(Source::Tables(tables)) => {
                let (table, row) = tables.place(image)?;
                Some((table.path(), row))
            }
            _ => None,
        }
    }

    /// The decoded picture.
    ///
    /// # Errors
    /// When the row does not exist, or the picture cannot be read or is damaged; file and row are named.
    pub fn picture(&self, image: usize) -> Result<Rgb> {
        match &*self.source {
            Pictures::Rows(rows) => rows.picture(&IMAGE, 0, image),
            Pictures::Pairs { annotations, rows } => {
                annotations.picture(rows.get(image).copied().unwrap_or(usize::MAX))
            }
        }
    }

    /// Looks whether the picture of every image is there, as far as that takes no decoding: those of arrow
    /// files lie in them.
    ///
    /// # Errors
    /// For the first picture of a CSV table or of a JSON file that is not there, with file and line or entry.
    pub fn check_pictures(&self) -> Result<()> {
        match &*self.source {
            Pictures::Rows(rows) => rows.check(self.n_images()),
            Pictures::Pairs { annotations, rows } => {
                let rows = &rows[..self.n_images().min(rows.len())];
                annotations.check_pictures_of(rows.par_iter().copied())
            }
        }
    }

    /// The bytes of the picture file, of a set in arrow or JSON files.
    ///
    /// # Errors
    /// When the row does not exist or cannot be read; file and row are named. A CSV table has no such
    /// bytes: [`DataFault::NoSuchRow`].
    pub fn image_bytes(&self, image: usize) -> Result<Vec<u8>> {
        match &*self.source {
            Pictures::Rows(rows) => rows.bytes(&IMAGE, 0, image),
            Pictures::Pairs { rows, .. } => Err(Error::Data(DataFault::NoSuchRow {
                row: image,
                n_rows: rows.len(),
            })),
        }
    }
}

/// The name of each row's image: by the file and the row where there are no ids, as in EVE's SBU.
fn ids_of(table: &Table) -> Result<Vec<String>> {
    if table.has(IMAGE_ID) {
        return table.ids(IMAGE_ID);
    }
    let stem = table.path().file_stem().unwrap_or_default();
    let stem = stem.to_string_lossy();
    let rows = 0..table.n_rows();
    Ok(rows.map(|row| format!("{stem} row {row}")).collect())
}

/// The source of pictures and captions.
#[derive(Debug)]
enum Pictures {
    /// Arrow or JSON files.
    Rows(Source),
    /// A CSV table, with the row of each image's picture.
    Pairs {
        annotations: Annotations,
        rows: Vec<usize>,
    },
}
