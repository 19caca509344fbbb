//! Messages of each rank to all others, beside numbers.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Collective, Fault};
use crate::Result;

/// The message of every rank, in the order of the ranks; all call this together.
///
/// # Errors
/// As [`Collective::gather`]; [`Fault::Unreadable`].
pub(crate) fn said_by_all<T: Serialize + DeserializeOwned>(
    ranks: &dyn Collective,
    own: &T,
) -> Result<Vec<T>> {
    let unreadable = |rank: usize| {
        move |error: serde_json::Error| Fault::Unreadable {
            rank,
            reason: error.to_string(),
        }
    };
    let own = serde_json::to_vec(own).map_err(unreadable(ranks.rank()))?;
    let all = ranks.gather(&own)?;
    let read = |(rank, bytes): (usize, &Vec<u8>)| {
        Ok(serde_json::from_slice(bytes).map_err(unreadable(rank))?)
    };
    all.iter().enumerate().map(read).collect()
}
