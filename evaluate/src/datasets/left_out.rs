//! Omissions that the files of a data set declare.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::arrow::Table;
use super::rows;
use crate::Result;

/// The metadata key under which a file notes its omissions.
pub const NOTE: &str = "vlmerge.left_out";

/// The most ids that a report lists; the file itself lists all.
const MAX_IN_REPORTS: usize = 100;

/// The omissions of a file of a data set, though the annotations have them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Left out by a rule: questions without a known answer, images without texts.
    pub by_rule: Vec<Omission>,
    /// Pictures that could not be used; their rows are left out.
    pub skipped: Vec<BadPicture>,
    /// Rows that the annotations ask for, those of `skipped` included.
    pub planned_rows: usize,
}

/// Examples that are left out for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Omission {
    /// Their kind: `questions`, `images`, `pairs`.
    pub what: String,
    /// The reason, as a noun phrase.
    pub why: String,
    /// The number of omissions.
    pub n: usize,
    /// Of how many.
    pub of: usize,
    /// The ids of the annotations.
    pub ids: Vec<String>,
    /// The file of the data set; empty in the file itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
}

/// A picture that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadPicture {
    /// The picture file.
    pub path: PathBuf,
    /// The annotation that refers to it: file and row.
    pub place: String,
    /// The fault.
    pub fault: String,
    /// The row that is left out because of it, counted over all planned rows from 0.
    pub row: usize,
}

impl Omission {
    /// Examples that are left out of `of`, by their ids; `None` if there are no ids.
    #[must_use]
    pub fn of_ids(what: &str, why: String, ids: Vec<String>, of: usize) -> Option<Self> {
        let omission = Self {
            what: what.into(),
            why,
            n: ids.len(),
            of,
            ids,
            file: String::new(),
        };
        (omission.n > 0).then_some(omission)
    }
}

impl std::fmt::Display for Omission {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            what, why, n, of, ..
        } = self;
        write!(formatter, "{n} of {of} {what} left out: {why}")
    }
}

impl LeftOut {
    /// The omissions that a file notes; `None` if it has no such note.
    ///
    /// # Errors
    /// [`DataFault::Arrow`](crate::DataFault::Arrow) when the note is damaged.
    pub fn of(table: &Table) -> Result<Option<Self>> {
        table.note(NOTE)
    }

    /// Everything that is left out, pictures as one entry.
    #[must_use]
    pub fn omissions(&self) -> Vec<Omission> {
        let mut omissions = self.by_rule.clone();
        if !self.skipped.is_empty() {
            let rows: std::collections::BTreeSet<usize> =
                self.skipped.iter().map(|bad| bad.row).collect();
            let ids = self
                .skipped
                .iter()
                .map(|bad| bad.path.display().to_string());
            omissions.push(Omission {
                what: "rows".into(),
                why: "a picture is missing or broken".into(),
                n: rows.len(),
                of: self.planned_rows,
                ids: ids.collect(),
                file: String::new(),
            });
        }
        omissions
    }
}

/// The omissions of tables, for a report: each entry with its file, long lists of ids cut.
pub(super) fn of_tables<'a>(
    tables: impl Iterator<Item = &'a rows::Table>,
) -> Result<Vec<Omission>> {
    let mut all = Vec::new();
    for table in tables {
        let mut omissions = match table.note::<LeftOut>(NOTE)? {
            Some(left_out) => left_out.omissions(),
            None => Vec::new(),
        };
        omissions.extend(table.passed_over());
        let name = table.path().file_name().unwrap_or_default();
        all.extend(omissions.into_iter().map(|mut omission| {
            omission.ids.truncate(MAX_IN_REPORTS);
            omission.file = name.to_string_lossy().into_owned();
            omission
        }));
    }
    Ok(all)
}
