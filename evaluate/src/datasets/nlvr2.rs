//! NLVR2: statements about pairs of images, true or false.

use std::path::{Path, PathBuf};

use super::arrow::Table;
use super::splits::{Dataset, Kind, Tables};
use crate::Result;
use crate::images::Rgb;

const IMAGES: [&str; 2] = ["image_0", "image_1"];

/// A statement about a pair of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The sentence.
    pub sentence: String,
    /// Whether it is true, where that is known.
    pub label: Option<bool>,
    /// The identifier of its row, the official one without its last part: `dev-850-0`.
    pub identifier: String,
    /// The pair it is about, from 0.
    pub pair: usize,
    /// Its place among the statements of the pair, from 0.
    pub place: usize,
}

/// A split of statements. Sentences are in memory, pictures are read on request.
#[derive(Debug)]
pub struct Nlvr2Set {
    tables: Tables,
    statements: Vec<Statement>,
}

impl Nlvr2Set {
    /// Opens a split such as `dev` or `test1` in a folder of arrow files.
    ///
    /// # Errors
    /// [`DataFault::UnknownSplit`](crate::DataFault::UnknownSplit) for its name,
    /// [`DataFault::MissingTable`](crate::DataFault::MissingTable) when a file is not there,
    /// [`Error::Empty`](crate::Error::Empty) when it has no rows, and an error that names file
    /// and row when a pair has no statement or a label is neither true nor false.
    pub fn open(folder: &Path, split: &str) -> Result<Self> {
        let split = Dataset::find("nlvr2", Kind::Statements)?.split(split)?;
        Self::of_tables(split.open(folder)?)
    }

    /// Opens arrow files of any names as one split.
    ///
    /// # Errors
    /// As [`open`](Self::open)'s.
    pub fn of_files(files: &[PathBuf]) -> Result<Self> {
        let tables: Result<_> = files.iter().map(|file| Table::open(file)).collect();
        Self::of_tables(tables?)
    }

    fn of_tables(tables: Vec<Table>) -> Result<Self> {
        let tables = Tables::new(tables);
        tables.check_rows("pairs of images")?;
        let mut statements = Vec::new();
        let mut pair = 0;
        for table in tables.iter() {
            let sentences: Vec<Vec<String>> = table.column("questions")?;
            let labels: Vec<Vec<String>> = table.column("answers")?;
            let identifiers: Vec<String> = table.column("identifier")?;
            let rows = sentences.into_iter().zip(labels).zip(identifiers);
            for (row, ((sentences, labels), identifier)) in rows.enumerate() {
                if sentences.is_empty() {
                    return Err(table.row_fault(row, "the pair of images has no statement"));
                }
                if !labels.is_empty() && labels.len() != sentences.len() {
                    let (n, n_labels) = (sentences.len(), labels.len());
                    let fault = format!("{n} `questions`, {n_labels} `answers`");
                    return Err(table.row_fault(row, fault));
                }
                for (place, sentence) in sentences.into_iter().enumerate() {
                    let label = match labels.get(place).map(String::as_str) {
                        None => None,
                        Some("True" | "true") => Some(true),
                        Some("False" | "false") => Some(false),
                        Some(other) => {
                            let fault = format!("the answer {other:?} is not True or False");
                            return Err(table.row_fault(row, fault));
                        }
                    };
                    statements.push(Statement {
                        sentence,
                        label,
                        identifier: identifier.clone(),
                        pair,
                        place,
                    });
                }
                pair += 1;
            }
        }
        Ok(Self { tables, statements })
    }

    /// The first `n` statements alone.
    #[must_use]
    pub fn first(mut self, n: usize) -> Self {
        self.statements.truncate(n);
        self
    }

    /// Number of pairs of images.
    #[must_use]
    pub fn n_pairs(&self) -> usize {
        self.tables.n_rows()
    }

    /// The statements, pair by pair.
    #[must_use]
    pub fn statements(&self) -> &[Statement] {
        &self.statements
    }

    /// The bytes of a picture file: the left (0) or the right (1) one of a pair.
    ///
    /// # Errors
    /// When the row does not exist or cannot be read; file and row are named.
    pub fn image_bytes(&self, pair: usize, side: usize) -> Result<Vec<u8>> {
        self.tables.bytes(IMAGES[side.min(1)], pair)
    }

    /// A decoded picture: the left (0) or the right (1) one of a pair.
    ///
    /// # Errors
    /// As [`image_bytes`](Self::image_bytes)'s, and when it is damaged.
    pub fn picture(&self, pair: usize, side: usize) -> Result<Rgb> {
        self.tables.picture(IMAGES[side.min(1)], pair)
    }
}
