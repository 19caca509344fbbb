//! Methods that keep, beside the merged model, which elements are of which task.

use crate::Result;
use crate::methods::Groups;

/// The elements of each task, and the factors of a task's elements.
pub trait Masks: Send + Sync {
    /// The tasks: the models, as the recipe names them.
    fn tasks(&self) -> &[String];

    /// Writes for each task whether an element with these differences from the base is of it.
    fn of_element(&self, deltas: &[f64], out: &mut [bool]);

    /// The rule of the factors, which must be the same for all tensors.
    fn rule(&self) -> &'static str {
        ""
    }

    /// Factors of the tasks, over all tensors.
    ///
    /// # Errors
    /// When the tensors cannot be read.
    fn factors(&self, groups: &dyn Groups) -> Result<Vec<f64>>;
}
