//! NLVR2: statements about pairs of images, true or false.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Kind;
use super::left_out::Omission;
use super::rows::Table;
use super::source::Source;
use super::splits::{self, Opened, Tables};
use super::xvlm::{self, JsonFiles};
use crate::Result;
use crate::images::Rgb;

const IMAGES: [&str; 2] = ["image_0", "image_1"];

/// The metadata key under which a file notes the official numbers of sentences.
pub(crate) const SENTENCES: &str = "vlmerge.sentences";

/// The official numbers of the sentences of pairs, for those pairs whose sentences are not simply
/// 0, 1, 2 and so on: a pair may lack a sentence, or the annotations may have another order.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(transparent)]
pub(crate) struct SentenceNumbers(BTreeMap<String, Vec<String>>);

impl SentenceNumbers {
    /// The note of a file, from the identifier of each pair and the numbers of its sentences.
    pub(crate) fn note<'a>(pairs: impl Iterator<Item = (&'a str, &'a [String])>) -> String {
        let is_plain =
            |numbers: &[String]| (0..).zip(numbers).all(|(n, s)| *s == i32::to_string(&n));
        let others = pairs.filter(|(_, numbers)| !is_plain(numbers));
        let others = others.map(|(pair, numbers)| (pair.to_owned(), numbers.to_vec()));
        // Strings always have a JSON form.
        serde_json::to_string(&Self(others.collect())).unwrap_or_default()
    }

    /// The number of the sentence at a place of a pair.
    fn of(&self, pair: &str, place: usize) -> Option<String> {
        match self.0.get(pair) {
            Some(numbers) => numbers.get(place).cloned(),
            None => Some(place.to_string()),
        }
    }
}

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
    /// Its official identifier: `dev-850-0-1`; `None` where the file does not tell the number.
    pub official: Option<String>,
}

/// A split of statements. Sentences are in memory, pictures are read on request.
#[derive(Debug)]
pub struct Nlvr2Set {
    source: Source,
    statements: Vec<Statement>,
}

impl Nlvr2Set {
    /// Opens a split such as `dev` or `test1` in a folder of arrow files, or of X-VLM's JSON files (see
    /// [`xvlm`]).
    ///
    /// # Errors
    /// [`DataFault::UnknownSplit`](crate::DataFault::UnknownSplit) for its name,
    /// [`DataFault::MissingTable`](crate::DataFault::MissingTable) when a file is not there,
    /// [`Error::Empty`](crate::Error::Empty) when it has no rows, and an error that names file
    /// and row when a pair has no statement or a label is neither true nor false, or a JSON entry is not as it
    /// should be.
    pub fn open(folder: &Path, split: &str) -> Result<Self> {
        match splits::open(folder, "nlvr2", Kind::Statements, split)? {
            Opened::Tables(tables) => Self::of_tables(tables),
            Opened::Json(files) => Self::of_json(&files),
        }
    }

    /// The statements of X-VLM's JSON files. They do not tell the official number of a sentence.
    ///
    /// # Errors
    /// An error that names file, entry and field of a wrong value; [`Error::Empty`](crate::Error::Empty).
    pub fn of_json(files: &JsonFiles) -> Result<Self> {
        let read = xvlm::statements::read(files)?;
        Ok(Self {
            source: Source::Listed(read.pictures),
            statements: read.statements,
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

    fn of_tables(tables: Tables) -> Result<Self> {
        tables.check_rows("pairs of images")?;
        let mut pairs = Vec::new();
        for table in tables.iter() {
            let sentences: Vec<Vec<String>> = table.column("questions")?;
            let labels: Vec<Vec<String>> = table.column("answers")?;
            let identifiers: Vec<String> = table.column("identifier")?;
            let numbers: Option<SentenceNumbers> = table.note(SENTENCES)?;
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
                let mut statements = Vec::with_capacity(sentences.len());
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
                        pair: 0,
                        place,
                        official: (numbers.as_ref())
                            .and_then(|numbers| numbers.of(&identifier, place))
                            .map(|number| format!("{identifier}-{number}")),
                    });
                }
                pairs.push(statements);
            }
        }
        let pairs = tables.that_count(pairs).into_iter().enumerate();
        let statements = pairs.flat_map(|(pair, statements)| {
            let statements = statements.into_iter();
            statements.map(move |statement| Statement { pair, ..statement })
        });
        let statements = statements.collect();
        Ok(Self {
            source: Source::Tables(tables),
            statements,
        })
    }

    /// The first `n` statements alone.
    #[must_use]
    pub fn first(mut self, n: usize) -> Self {
        self.statements.truncate(n);
        self
    }

    /// The omissions that the files note, though the annotations have them.
    ///
    /// # Errors
    /// When a file's note of it is damaged.
    pub fn left_out(&self) -> Result<Vec<Omission>> {
        self.source.left_out()
    }

    /// Number of pairs of images.
    #[must_use]
    pub fn n_pairs(&self) -> usize {
        self.source.n_rows(IMAGES.len())
    }

    /// The statements: pair by pair in arrow files, in the order of JSON files.
    #[must_use]
    pub fn statements(&self) -> &[Statement] {
        &self.statements
    }

    /// The bytes of a picture file: the left (0) or the right (1) one of a pair.
    ///
    /// # Errors
    /// When the row does not exist or cannot be read; file and row are named.
    pub fn image_bytes(&self, pair: usize, side: usize) -> Result<Vec<u8>> {
        self.source.bytes(&IMAGES, side, pair)
    }

    /// A decoded picture: the left (0) or the right (1) one of a pair.
    ///
    /// # Errors
    /// As [`image_bytes`](Self::image_bytes)'s, and when it is damaged.
    pub fn picture(&self, pair: usize, side: usize) -> Result<Rgb> {
        self.source.picture(&IMAGES, side, pair)
    }

    /// Looks whether the pictures of all statements are there, as far as that takes no decoding.
    ///
    /// # Errors
    /// For the first picture of a JSON file that is not there, with file and entry.
    pub fn check_pictures(&self) -> Result<()> {
        let last = self.statements.iter().map(|statement| statement.pair).max();
        self.source
            .check(last.map_or(0, |last| IMAGES.len() * (last + 1)))
    }
}
