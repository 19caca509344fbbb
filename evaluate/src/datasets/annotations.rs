//! Pairs of picture and caption in a CSV file beside a folder of pictures, as ZeroVL keeps them.
//!
//! | path | holds |
//! |---|---|
//! | `<folder>/<data set>/train_anno.csv`, `train/` | the training data |
//! | `<folder>/<data set>/valid_anno.csv`, `valid/` | the validation data |
//!
//! The first line names the columns: `image` and `caption`, and for `valid` also `image_id` and
//! `caption_id`. Their order is free and other columns are ignored. Captions are kept as they are:
//! `NA`, `null`, numbers and empty ones are texts like others.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use csv::{ByteRecord, ReaderBuilder};
use merge::platform;
use rayon::prelude::*;

use super::left_out::Omission;
use super::pictures::{self, PictureFolder, is_inside};
use crate::images::{self, Rgb};
use crate::{DataFault, Error, Result};

/// The longest row that is read: far more than any caption has.
const MAX_ROW_BYTES: u64 = 1 << 20;

/// One of the two files of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// `train_anno.csv`: ids are not read.
    Train,
    /// `valid_anno.csv`: ids tie captions to pictures.
    Valid,
}

impl Half {
    /// The half that a split's name stands for.
    #[must_use]
    pub fn of(split: &str) -> Option<Self> {
        match split {
            "train" => Some(Self::Train),
            "valid" => Some(Self::Valid),
            _ => None,
        }
    }

    /// The name of its folder of pictures.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
        }
    }

    /// The name of its CSV file.
    #[must_use]
    pub fn table(self) -> String {
        format!("{}_anno.csv", self.name())
    }
}

/// A pair of picture and caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// The picture's path within its folder.
    pub image: String,
    /// The number that ties captions to a picture; 0 in `train_anno.csv`.
    pub image_id: i64,
    /// The caption, as it is written.
    pub caption: String,
    /// The caption's number; 0 in `train_anno.csv`.
    pub caption_id: i64,
}

/// Places of the columns.
#[derive(Clone, Copy, Debug)]
struct Columns {
    image: usize,
    caption: usize,
    /// Of a picture and of a caption.
    ids: Option<[usize; 2]>,
    /// The number of all rows, others included.
    n: usize,
}

/// The place of a row in the file.
#[derive(Clone, Copy, Debug)]
struct Place {
    begin: u64,
    n_bytes: u32,
}

/// The pairs of one CSV file. Texts stay in the file: a row takes 20 bytes of memory, and 16 more where
/// ids are read.
#[derive(Debug)]
pub struct Annotations {
    path: PathBuf,
    pictures: PictureFolder,
    half: Half,
    columns: Columns,
    file: Mutex<File>,
    places: Vec<Place>,
    /// The number of each pair's picture.
    images: Vec<u32>,
    image_ids: Vec<i64>,
    caption_ids: Vec<i64>,
    n_ignored: usize,
}

impl Annotations {
    /// Opens one half of a data set in a folder, and reads the CSV file through once.
    ///
    /// Rows of `valid_anno.csv` whose `image_id` is below 0 are left out, as published:
    /// [`n_ignored`](Self::n_ignored) counts them.
    ///
    /// # Errors
    /// [`Error::Io`] when the file is not there; [`Error::BadLine`] with line and column when the first
    /// line lacks a column, a row has another number of fields or is no UTF-8, an id is no whole number,
    /// or a picture's name leads out of its folder; [`Error::Empty`] when no row is left.
    pub fn open(folder: &Path, dataset: &str, half: Half) -> Result<Self> {
        if !is_inside(dataset) {
            return Err(Error::Data(DataFault::DatasetName {
                name: dataset.into(),
            }));
        }
        let folder = folder.join(dataset);
        Self::of_file(&folder.join(half.table()), &folder.join(half.name()), half)
    }

    /// Opens a CSV file of any name with a folder of pictures.
    ///
    /// # Errors
    /// As [`open`](Self::open)'s.
    pub fn of_file(path: &Path, pictures: &Path, half: Half) -> Result<Self> {
        let opened = || File::open(path).map_err(|source| Error::io("open", path, source));
        let mut file = opened()?;
        let metadata = file.metadata();
        let metadata = metadata.map_err(|source| Error::io("open", path, source))?;
        if !metadata.is_file() {
            return Err(Error::NotAFile { path: path.into() });
        }
        let mut start = [0; 64];
        let n_seen = platform::read_at(&file, &mut start, 0)
            .and_then(|n_seen| file.rewind().map(|()| n_seen))
            .map_err(|source| Error::io("read", path, source))?;
        merge::io::require_fetched(path, &start[..n_seen])?;
        let n_read = Rc::new(Cell::new(0));
        let mut rows = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .from_reader(Bounded {
                inner: file,
                n_read: Rc::clone(&n_read),
            });
        let mut row = ByteRecord::new();
        let mut next = |row: &mut ByteRecord, begin: u64| {
            n_read.set(0);
            rows.read_byte_record(row)
                .map_err(|error| bad_line(path, line_at(path, begin), error.to_string()))
                .map(|is_row| (is_row, rows.position().byte()))
        };
        let (is_row, mut begin) = next(&mut row, 0)?;
        if !is_row {
            return Err(bad_line(path, 1, "names no columns".into()));
        }
        let mut found = Self {
            path: path.into(),
            pictures: PictureFolder::new(pictures),
            half,
            columns: columns(&row, half, path)?,
            file: Mutex::new(opened()?),
            places: Vec::new(),
            images: Vec::new(),
            image_ids: Vec::new(),
            caption_ids: Vec::new(),
            n_ignored: 0,
        };
        // Pictures by a hash of their paths, so that memory does not grow with the paths.
        let mut images = HashMap::new();
        loop {
            let (is_row, end) = next(&mut row, begin)?;
            if !is_row {
                break;
            }
            let annotation = found.parsed(&row, begin)?;
            if annotation.image_id < 0 {
                found.n_ignored += 1;
            } else {
                found.places.push(Place {
                    begin,
                    // Rows are bounded.
                    n_bytes: (end - begin) as u32,
                });
                let n_images = images.len() as u32;
                let mut hasher = DefaultHasher::new();
                annotation.image.hash(&mut hasher);
                (found.images).push(*images.entry(hasher.finish()).or_insert(n_images));
                if half == Half::Valid {
                    found.image_ids.push(annotation.image_id);
                    found.caption_ids.push(annotation.caption_id);
                }
            }
            begin = end;
        }
        match (found.places.is_empty(), found.n_ignored) {
            (false, _) => Ok(found),
            (true, 0) => Err(Error::Empty {
                path: path.into(),
                what: "pairs",
            }),
            (true, n) => Err(bad_line(
                path,
                2,
                format!(
                    "`image_id` is below 0, as in all {n} rows: such rows are left out, and no other is there"
                ),
            )),
        }
    }

    /// Number of pairs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none, which [`open`](Self::open) refuses.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Rows that were left out because their `image_id` is below 0.
    #[must_use]
    pub fn n_ignored(&self) -> usize {
        self.n_ignored
    }

    /// The omissions from the table: rows whose `image_id` is below 0.
    #[must_use]
    pub fn left_out(&self) -> Vec<Omission> {
        let omission = Omission {
            what: "rows".into(),
            why: "`image_id` is below 0".into(),
            n: self.n_ignored,
            of: self.n_ignored + self.len(),
            ids: Vec::new(),
            file: self
                .path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        };
        match self.n_ignored {
            0 => Vec::new(),
            _ => vec![omission],
        }
    }

    /// The half that a split's name stands for, if its CSV table is in the folder.
    #[must_use]
    pub fn half(folder: &Path, dataset: &str, split: &str) -> Option<Half> {
        let half = Half::of(split).filter(|_| is_inside(dataset))?;
        let table = folder.join(dataset).join(half.table());
        table.exists().then_some(half)
    }

    /// The CSV file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of each pair's picture: pairs with one path have one picture.
    #[must_use]
    pub fn images(&self) -> &[u32] {
        &self.images
    }

    /// The numbers that tie captions to pictures, one for each pair; none of `train_anno.csv`.
    #[must_use]
    pub fn image_ids(&self) -> &[i64] {
        &self.image_ids
    }

    /// The captions' numbers, one for each pair; none of `train_anno.csv`.
    #[must_use]
    pub fn caption_ids(&self) -> &[i64] {
        &self.caption_ids
    }

    /// The first `n` pairs alone.
    #[must_use]
    pub fn first(mut self, n: usize) -> Self {
        self.places.truncate(n);
        self.images.truncate(n);
        self.image_ids.truncate(n);
        self.caption_ids.truncate(n);
        self
    }

    /// A pair.
    ///
    /// # Errors
    /// When there is no such row, or the file has changed since it was opened.
    pub fn annotation(&self, row: usize) -> Result<Annotation> {
        let Some(&place) = self.places.get(row) else {
            return Err(Error::Data(DataFault::NoSuchRow {
                row,
                n_rows: self.len(),
            }));
        };
        let mut bytes = vec![0; place.n_bytes as usize];
        {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            (file.seek(SeekFrom::Start(place.begin)))
                .and_then(|_| file.read_exact(&mut bytes))
                .map_err(|source| Error::io("read", &self.path, source))?;
        }
        let mut rows = ReaderBuilder::new()
            .has_headers(false)
            .from_reader(bytes.as_slice());
        let mut record = ByteRecord::new();
        match rows.read_byte_record(&mut record) {
            Ok(true) => self.parsed(&record, place.begin),
            _ => Err(bad_line(
                &self.path,
                line_at(&self.path, place.begin),
                "is not what it was when the file was opened".into(),
            )),
        }
    }

    /// The decoded picture of a pair.
    ///
    /// # Errors
    /// As [`annotation`](Self::annotation)'s; when the picture is not there, lies behind a link that
    /// leads out of the folder, is too large or damaged. The error names
    /// file, line and picture.
    pub fn picture(&self, row: usize) -> Result<Rgb> {
        let annotation = self.annotation(row)?;
        let path = self.picture_path(row, &annotation.image)?;
        let bytes = pictures::read(&path).and_then(|bytes| images::decode(&bytes));
        bytes.map_err(|error| self.picture_fault(row, &annotation.image, &error.to_string()))
    }

    /// Looks whether the picture of every pair is there, on all threads.
    ///
    /// # Errors
    /// As [`picture`](Self::picture)'s, for the first picture that is not there.
    pub fn check_pictures(&self) -> Result<()> {
        self.check_pictures_of((0..self.len()).into_par_iter())
    }

    /// The same for some rows.
    ///
    /// # Errors
    /// As [`check_pictures`](Self::check_pictures)'s.
    pub fn check_pictures_of(
        &self,
        rows: impl IndexedParallelIterator<Item = usize>,
    ) -> Result<()> {
        let fault = rows.into_par_iter().find_map_first(|row| {
            let annotation = self.annotation(row);
            annotation
                .and_then(|annotation| self.picture_path(row, &annotation.image))
                .err()
        });
        fault.map_or(Ok(()), Err)
    }

    /// The picture's place, with links resolved, within the folder of pictures.
    fn picture_path(&self, row: usize, name: &str) -> Result<PathBuf> {
        let fault = |fault: &str| self.picture_fault(row, name, fault);
        self.pictures.find(name, fault)
    }

    fn picture_fault(&self, row: usize, name: &str, fault: &str) -> Error {
        let begin = self.places.get(row).map_or(0, |place| place.begin);
        let half = self.half.name();
        bad_line(
            &self.path,
            line_at(&self.path, begin),
            format!("`image`: the picture {half}/{name}: {fault}"),
        )
    }

    /// The fields of a row that begins at a byte of the file.
    fn parsed(&self, row: &ByteRecord, begin: u64) -> Result<Annotation> {
        let Columns {
            image,
            caption,
            ids,
            n,
        } = self.columns;
        let fault = |fault: String| bad_line(&self.path, line_at(&self.path, begin), fault);
        if row.len() != n {
            let found = row.len();
            return Err(fault(format!(
                "has {found} fields, but the first line names {n} columns; a text with a comma, a quote or a line break must stand in double quotes"
            )));
        }
        let text = |column: usize, name: &str| {
            let bytes = row.get(column).unwrap_or_default();
            std::str::from_utf8(bytes).map_err(|_| fault(format!("`{name}` is not UTF-8")))
        };
        let id = |column: usize, name: &str| {
            let text = text(column, name)?;
            let number = text.trim().parse::<i64>();
            number.map_err(|_| {
                fault(format!(
                    "`{name}` is {text:?}, which is no whole number of 64 bits"
                ))
            })
        };
        let image = text(image, "image")?;
        if !is_inside(image) {
            return Err(fault(format!(
                "`image` is {image:?}, which is no path within the folder of pictures"
            )));
        }
        let [image_id, caption_id] = match ids {
            None => [0, 0],
            Some([image, caption]) => [id(image, "image_id")?, id(caption, "caption_id")?],
        };
        Ok(Annotation {
            image: image.into(),
            image_id,
            caption: text(caption, "caption")?.into(),
            caption_id,
        })
    }
}

/// Finds the columns by the first line.
fn columns(row: &ByteRecord, half: Half, path: &Path) -> Result<Columns> {
    let find = |name: &str| {
        let mut places = (0..row.len()).filter(|&column| row.get(column) == Some(name.as_bytes()));
        match (places.next(), places.next()) {
            (Some(place), None) => Ok(place),
            (Some(_), Some(_)) => Err(bad_line(
                path,
                1,
                format!("names the column `{name}` twice"),
            )),
            (None, _) => {
                let known = row.iter().map(String::from_utf8_lossy);
                let known: Vec<_> = known.collect();
                let known = known.join(", ");
                Err(bad_line(
                    path,
                    1,
                    format!("names no column `{name}`; it names: {known}"),
                ))
            }
        }
    };
    Ok(Columns {
        image: find("image")?,
        caption: find("caption")?,
        ids: match half {
            Half::Train => None,
            Half::Valid => Some([find("image_id")?, find("caption_id")?]),
        },
        n: row.len(),
    })
}

/// The line on which the row that begins at a byte of a file stands, counted from 1. The line break
/// behind the row before and empty lines count as what they are, whether lines end in LF or CR LF. A
/// file that cannot be read any more gives the lines that could be.
fn line_at(path: &Path, begin: u64) -> u64 {
    let Ok(file) = File::open(path) else {
        return 1;
    };
    let mut line = 1;
    for (at, byte) in (0..).zip(BufReader::new(file).bytes()) {
        match byte {
            Ok(b'\n') => line += 1,
            Ok(b'\r') => {}
            Ok(_) if at < begin => {}
            _ => break,
        }
    }
    line
}

fn bad_line(path: &Path, line: u64, fault: String) -> Error {
    Error::BadLine {
        path: path.into(),
        line: usize::try_from(line).unwrap_or(usize::MAX),
        fault,
    }
}

/// A reader that gives up when a row has no end, as behind a quote that nothing closes.
struct Bounded<R> {
    inner: R,
    /// Bytes that were read since the row began.
    n_read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.n_read.get() > MAX_ROW_BYTES {
            return Err(std::io::Error::other(format!(
                "has more than {MAX_ROW_BYTES} bytes; is a quote not closed?"
            )));
        }
        let n = self.inner.read(buffer)?;
        self.n_read.set(self.n_read.get() + n as u64);
        Ok(n)
    }
}
