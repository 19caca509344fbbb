//! The pictures of a split, wherever they lie.

use super::left_out::Omission;
use super::splits::Tables;
use super::xvlm::Listed;
use crate::Result;
use crate::images::Rgb;

/// The pictures of the rows of a split.
#[derive(Debug)]
pub(super) enum Source {
    /// In columns of arrow files.
    Tables(Tables),
    /// In files that JSON entries name, those of a row one after the other.
    Listed(Listed),
}

impl Source {
    /// The number of rows with `per_row` pictures each.
    pub(super) fn n_rows(&self, per_row: usize) -> usize {
        match self {
            Self::Tables(tables) => tables.n_rows(),
            Self::Listed(listed) => listed.len() / per_row.max(1),
        }
    }

    /// The omissions that the files note, though the annotations have them.
    pub(super) fn left_out(&self) -> Result<Vec<Omission>> {
        match self {
            Self::Tables(tables) => tables.left_out(),
            Self::Listed(_) => Ok(Vec::new()),
        }
    }

    /// The bytes of a picture file: that of column `side` of `columns`, in a row.
    pub(super) fn bytes(&self, columns: &[&str], side: usize, row: usize) -> Result<Vec<u8>> {
        let (side, n) = (side.min(columns.len() - 1), columns.len());
        match self {
            Self::Tables(tables) => tables.bytes(columns[side], row),
            Self::Listed(listed) => listed.bytes(row.saturating_mul(n).saturating_add(side)),
        }
    }

    /// The decoded picture.
    pub(super) fn picture(&self, columns: &[&str], side: usize, row: usize) -> Result<Rgb> {
        let (side, n) = (side.min(columns.len() - 1), columns.len());
        match self {
            Self::Tables(tables) => tables.picture(columns[side], row),
            Self::Listed(listed) => listed.picture(row.saturating_mul(n).saturating_add(side)),
        }
    }

    /// Looks whether the first `n` pictures are there, as far as that takes no decoding: those of arrow files
    /// lie in them.
    pub(super) fn check(&self, n: usize) -> Result<()> {
        match self {
            Self::Tables(_) => Ok(()),
            Self::Listed(listed) => listed.check(n),
        }
    }
}
