//! Numbers of a transplantation.

use serde::Serialize;

use super::magikarp::quantile;
use super::table::TableKind;

/// Tokens that are listed by name.
pub(super) const LISTED: usize = 20;

/// The changes of a transplantation, and their quality.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TransplantReport {
    /// The way of making rows.
    pub method: String,
    /// Tokens of the donor.
    pub n_tokens: usize,
    /// Each table.
    pub tables: Vec<TableReport>,
}

/// Counts of the rows of a table, and measurements of those that are made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableReport {
    /// The tensor.
    pub name: String,
    /// Its use.
    pub kind: TableKind,
    /// Its rows.
    pub n_rows: usize,
    /// Rows that are those of the model, by how their tokens were found.
    pub copied: Copied,
    /// Rows that the method makes.
    pub n_made: usize,
    /// Rows that are the mean of all rows, because no token has them.
    pub n_padding: usize,
    /// Rows of zeros, for training saw their tokens in neither model.
    pub n_junk: usize,
    /// Rows that are the mean of all rows, for the method has nothing to make them of.
    pub n_without_basis: usize,
    /// Some tokens among these.
    pub without_basis: Vec<ListedToken>,
    /// The rest of the donor's rows that combinations leave, as a share of their lengths; `None` where the method
    /// combines none, or the run is yet to be.
    pub donor_error: Option<Spread>,
    /// The tokens with the largest such share.
    pub worst: Vec<ListedToken>,
    /// Shared tokens, approximated as if they were not shared.
    pub held_out: Option<HeldOut>,
    /// The reason why none were held out.
    pub not_held_out: Option<&'static str>,
}

/// Rows that are copied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// For tokens of the same bytes.
    pub same_bytes: usize,
    /// For special tokens of the same text or use.
    pub special: usize,
    /// For single bytes that are spelled otherwise.
    pub byte_match: usize,
    /// For tokens with the beginning of the text.
    pub prefix_match: usize,
}

impl Copied {
    /// All of them.
    #[must_use]
    pub fn sum(&self) -> usize {
        self.same_bytes + self.special + self.byte_match + self.prefix_match
    }
}

/// A token with its number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListedToken {
    /// Its id in the donor's vocabulary.
    pub id: usize,
    /// Its text.
    pub token: String,
    /// A cosine or an error, where one is known.
    pub value: Option<f64>,
}

/// The made rows of shared tokens beside their true ones.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeldOut {
    /// How many.
    pub n_tokens: usize,
    /// Cosines between made and true rows.
    pub cosine: Spread,
    /// Lengths of the differences, as a share of the true rows' lengths.
    pub relative_error: Spread,
    /// The same of the mean of all rows in place of the made ones.
    pub cosine_of_mean_row: Spread,
    /// The same of the mean of all rows in place of the made ones.
    pub relative_error_of_mean_row: Spread,
    /// The tokens with the smallest cosines.
    pub worst: Vec<ListedToken>,
}

/// Numbers in brief.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Their mean.
    pub mean: f64,
    /// One in twenty is smaller.
    pub p5: f64,
    /// Half are smaller.
    pub median: f64,
    /// One in twenty is larger.
    pub p95: f64,
}

impl Spread {
    /// Of some numbers; `None` of none.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        (n > 0).then(|| Self {
            mean: values.iter().sum::<f64>() / n as f64,
            p5: quantile(values, 0.05),
            median: quantile(values, 0.5),
            p95: quantile(values, 0.95),
        })
    }
}
