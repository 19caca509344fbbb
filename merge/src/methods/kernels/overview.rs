//! Methods that look at all tensors of a merge together before any is made.

use std::sync::Arc;

use crate::Result;
use crate::methods::{GroupData, Passes};

/// Facts over all tensors that share an overview.
pub trait Overview: Send + Sync {
    /// Looks at the groups, unless it has done so.
    ///
    /// # Errors
    /// When the data cannot be read or admit no result.
    fn look(&self, groups: &dyn Groups) -> Result<()>;
}

/// The groups that share an [`Overview`], in the order of their names.
pub trait Groups: Sync {
    /// The name and the number of elements of each tensor.
    fn sizes(&self) -> Vec<(String, u64)>;

    /// Elements of all tensors.
    fn n_elements(&self) -> u64 {
        self.sizes().iter().map(|(_, n)| n).sum()
    }

    /// Shows one group after the other, with its name, chunk by chunk.
    ///
    /// # Errors
    /// Those of `see`.
    fn each(&self, see: &mut dyn FnMut(&str, &dyn Passes) -> Result<()>) -> Result<()>;

    /// Likewise as whole arrays, with the number of members.
    ///
    /// # Errors
    /// Those of `see`.
    fn each_whole(
        &self,
        see: &mut dyn FnMut(&str, usize, &dyn GroupData) -> Result<()>,
    ) -> Result<()>;
}

/// The same object, if two operations have one in common.
pub(crate) fn is_same(one: &Arc<dyn Overview>, other: &Arc<dyn Overview>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other))
}
