//! An overview of a folder of arrow files: counts, lengths, sizes, and a few rows to look at.

mod sheet;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merge::Progress;
use rayon::prelude::*;
use serde::Serialize;

use super::arrow::{Field, Kind, Table};
use super::left_out::{LeftOut, Omission};
use crate::build::NO_PICTURE;
use crate::text::Tokenizer;
use crate::{DataFault, Error, Result, images};

pub use sheet::sheet;

/// Columns that hold texts, lists of them per row.
const TEXTS: [&str; 2] = ["caption", "questions"];

/// Columns that hold pictures.
const PICTURES: [&str; 3] = ["image", "image_0", "image_1"];

/// The first bytes of a picture, in which its size mostly stands; if not, the whole is read.
const HEAD_BYTES: u64 = 1 << 16;

/// The most damaged pictures that are listed.
const MAX_LISTED: usize = 100;

/// Smallest, middle and largest of some numbers; the lower middle of an even number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// The smallest.
    pub min: u64,
    /// The middle one.
    pub median: u64,
    /// The largest.
    pub max: u64,
}

impl Range {
    fn of(mut values: Vec<u64>) -> Option<Self> {
        values.sort_unstable();
        Some(Self {
            min: *values.first()?,
            median: values[(values.len() - 1) / 2],
            max: *values.last()?,
        })
    }
}

/// The texts of a file.
#[derive(Clone, Debug, Serialize)]
pub struct TextOverview {
    /// Their column.
    pub column: &'static str,
    /// The number of texts.
    pub n: usize,
    /// The number of different ones.
    pub n_distinct: usize,
    /// Texts per row.
    pub per_row: Option<Range>,
    /// Words, as white space parts them.
    pub words: Option<Range>,
    /// Tokens with the special ones, where a tokenizer was given.
    pub tokens: Option<Range>,
}

/// The pictures of a file.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PictureOverview {
    /// The number of pictures.
    pub n: usize,
    /// The number of pictures of each format.
    pub formats: BTreeMap<&'static str, usize>,
    /// Pixels in a row.
    pub width: Option<Range>,
    /// Rows of pixels.
    pub height: Option<Range>,
    /// Bytes of a picture file.
    pub bytes: Option<Range>,
    /// The number of pictures without a readable head.
    pub n_damaged: usize,
    /// The first of them: row and fault.
    pub damaged: Vec<(usize, String)>,
}

/// A file of a data set.
#[derive(Clone, Debug, Serialize)]
pub struct FileOverview {
    /// The file.
    pub path: PathBuf,
    /// Its rows.
    pub rows: usize,
    /// Its record batches.
    pub batches: usize,
    /// Its columns with their types.
    pub columns: Vec<(String, String)>,
    /// Its texts, if it has a column of them.
    pub texts: Option<TextOverview>,
    /// Its pictures.
    pub pictures: PictureOverview,
    /// The omissions that it notes, though the annotations have them.
    pub left_out: Vec<Omission>,
}

/// The arrow files of a folder, by name; of a file, itself.
///
/// # Errors
/// [`DataFault::MissingTable`] when the folder holds none.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.into()]);
    }
    let failed = |source| Error::io("list", path, source);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let is_arrow = file
            .extension()
            .is_some_and(|extension| extension == "arrow");
        let is_hidden = (file.file_name()).is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        if is_arrow && !is_hidden && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Error::Data(DataFault::MissingTable {
            folder: path.into(),
            names: "arrow file".into(),
        }));
    }
    Ok(files)
}

/// Looks through a file: all its texts, and the head of every picture.
///
/// # Errors
/// When the file is damaged or a text column is of another type. Damaged pictures are no error:
/// they are listed.
pub fn overview(
    path: &Path,
    tokenizer: Option<&Tokenizer>,
    progress: &dyn Progress,
) -> Result<FileOverview> {
    let table = Table::open(path)?;
    for field in table.fields() {
        let is_binary = matches!(field.kind, Kind::Bytes { text: false, .. });
        if PICTURES.contains(&field.name.as_str()) && !is_binary && !has_none(&table, field)? {
            return Err(Error::Data(DataFault::ColumnType {
                path: path.into(),
                column: field.name.clone(),
                found: field.describe(),
                expected: "binary, the bytes of a picture file",
            }));
        }
    }
    let texts = match TEXTS.into_iter().find(|column| table.has(column)) {
        Some(column) => Some(text_overview(&table, column, tokenizer)?),
        None => None,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let pictures = picture_overview(&table, &name, progress)?;
    Ok(FileOverview {
        path: path.into(),
        rows: table.n_rows(),
        batches: table.n_batches(),
        columns: (table.fields().iter())
            .map(|field| (field.name.clone(), field.describe()))
            .collect(),
        texts,
        pictures,
        left_out: LeftOut::of(&table)?
            .map(|left_out| left_out.omissions())
            .unwrap_or_default(),
    })
}

/// Whether a column says of each row that there is no picture, as files of texts alone do.
fn has_none(table: &Table, field: &Field) -> Result<bool> {
    Ok(matches!(field.kind, Kind::Bytes { text: true, .. })
        && (table.ids(&field.name)?.iter()).all(|said| said == NO_PICTURE))
}

fn text_overview(
    table: &Table,
    column: &'static str,
    tokenizer: Option<&Tokenizer>,
) -> Result<TextOverview> {
    let rows = table.text_lists(column)?;
    let texts: Vec<&str> = rows.iter().flatten().map(String::as_str).collect();
    let words = texts
        .iter()
        .map(|text| text.split_whitespace().count() as u64);
    let tokens = match tokenizer {
        None => None,
        Some(tokenizer) => {
            let counts = texts
                .par_iter()
                .map(|text| Ok(tokenizer.count(text)? as u64));
            Range::of(counts.collect::<Result<_>>()?)
        }
    };
    Ok(TextOverview {
        column,
        n: texts.len(),
        n_distinct: texts.iter().collect::<std::collections::HashSet<_>>().len(),
        per_row: Range::of(rows.iter().map(|texts| texts.len() as u64).collect()),
        words: Range::of(words.collect()),
        tokens,
    })
}

/// Columns of pictures.
fn picture_columns(table: &Table) -> impl Iterator<Item = &str> {
    let is_binary = |kind: &Kind| matches!(kind, Kind::Bytes { text: false, .. });
    let columns = table
        .fields()
        .iter()
        .filter(move |field| is_binary(&field.kind));
    columns.map(|field| field.name.as_str())
}

fn picture_overview(table: &Table, name: &str, progress: &dyn Progress) -> Result<PictureOverview> {
    let columns: Vec<&str> = picture_columns(table).collect();
    let n = table.n_rows() * columns.len();
    let head_bytes = (n as u64).saturating_mul(HEAD_BYTES);
    progress.start(name, head_bytes);
    let seen = (0..n).into_par_iter().map(|index| {
        if progress.is_cancelled() {
            return Err(merge::Error::Cancelled.into());
        }
        let (row, column) = (index / columns.len(), columns[index % columns.len()]);
        let head = table.head(column, row, HEAD_BYTES)?;
        progress.advance(HEAD_BYTES);
        // A head too short for its size looks truncated.
        let size = images::size(&head).or_else(|_| images::size(&table.bytes(column, row)?));
        Ok((row, size.map_err(|error| error.to_string())))
    });
    let seen: Vec<(usize, Result<_, String>)> = seen.collect::<Result<_>>()?;
    progress.finish();
    let mut overview = PictureOverview {
        n,
        ..PictureOverview::default()
    };
    let (mut widths, mut heights) = (Vec::new(), Vec::new());
    for (row, size) in seen {
        match size {
            Ok((format, width, height)) => {
                *overview.formats.entry(format.name()).or_default() += 1;
                widths.push(width as u64);
                heights.push(height as u64);
            }
            Err(fault) => {
                overview.n_damaged += 1;
                if overview.damaged.len() < MAX_LISTED {
                    overview.damaged.push((row, fault));
                }
            }
        }
    }
    let mut lengths = Vec::with_capacity(n);
    for column in columns {
        lengths.extend(table.lengths(column)?);
    }
    overview.width = Range::of(widths);
    overview.height = Range::of(heights);
    overview.bytes = Range::of(lengths);
    Ok(overview)
}
