//! Steps of all methods that decompose task vectors of matrices: the rule that picks the matrices, the
//! differences from the base, and the result on top of it.

use std::sync::Arc;

use ndarray::{Array2, ArrayD, IxDyn};
use rayon::prelude::*;

use crate::low_rank::NoConvergence;
use crate::methods::parameters::{FINITE, Fallback, ParameterSpec, SHARE};
use crate::methods::{Base, GroupData, GroupShape, MergeMethod, Needs, Operation, WholeKernel};
use crate::{Error, MergeFault, Result};

mod filtered;
mod quadratic;
mod rule;

pub(in crate::methods) use filtered::{Filter, Filtered, START, first};
pub(in crate::methods) use quadratic::{Quadratic, squared_norm};
pub(crate) use rule::is_table;
pub(in crate::methods) use rule::{CONV, MATRIX, VECTORS, matrix_of, of_vector};

/// `weight` where every task vector counts alike unless the recipe says otherwise.
pub(in crate::methods) const FACTOR: ParameterSpec =
    ParameterSpec::per_member("weight", FINITE, Fallback::Number(1.0));

/// `rank_tolerance` as these methods take it.
pub(in crate::methods) const RANK_TOLERANCE: ParameterSpec =
    ParameterSpec::shared("rank_tolerance", SHARE, Fallback::Number(1e-10));

/// `rank_tolerance` of task vectors beside each other.
pub(in crate::methods) const RANK_TOLERANCE_OF_SUMS: ParameterSpec =
    ParameterSpec::shared("rank_tolerance", SHARE, Fallback::Number(1e-6));

/// A method that merges the task vectors of a matrix, and averages those of other tensors.
pub(in crate::methods) trait MatrixMethod: Send + Sync + 'static {
    /// The name in recipes.
    const NAME: &'static str;
    /// The parameters, `matrix`, `conv` and `vectors` among them.
    const PARAMETERS: &'static [ParameterSpec];

    /// The kernel that merges a matrix of `rows` by `columns`.
    ///
    /// # Errors
    /// When a parameter does not fit the matrix.
    fn kernel(group: &GroupShape<'_>, size: (usize, usize)) -> Result<Box<dyn MatrixKernel>>;

    /// Factors on the task vectors of a tensor that is no matrix: `lambda` and each `weight`, if there are any, over the
    /// number of models.
    ///
    /// # Errors
    /// When weights add up to nothing.
    fn vector_factors(group: &GroupShape<'_>) -> Result<Vec<f64>> {
        let n = group.members.len();
        let scale = group.values.number("lambda") / n as f64;
        let weights = match Self::PARAMETERS.iter().any(|spec| spec.name == "weight") {
            true => group.values.numbers("weight"),
            false => vec![1.0; n],
        };
        Ok(weights.iter().map(|weight| scale * weight).collect())
    }
}

/// Merges the task vectors of one matrix.
pub(in crate::methods) trait MatrixKernel: Send + Sync {
    /// The change of the base, `(rows, columns)`.
    ///
    /// # Errors
    /// When a checkpoint cannot be read, or a decomposition does not converge.
    fn change(&self, tasks: &Tasks<'_>) -> Result<Array2<f64>>;

    /// The most elements of `f64` that it holds at once beside the base, for `n_tasks` models.
    fn peak_elements(&self, rows: u64, columns: u64, n_tasks: u64) -> u64;
}

/// The method of checkpoints that a [`MatrixMethod`] is.
pub(in crate::methods) struct ByMatrix<M>(pub(in crate::methods) M);

impl<M: MatrixMethod> MergeMethod for ByMatrix<M> {
    fn name(&self) -> &'static str {
        M::NAME
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::Required, 1, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        M::PARAMETERS
    }

    fn refuses_foreign_parameters(&self) -> bool {
        true
    }

    fn needs_ranks(&self) -> bool {
        true
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        let Some(size) = matrix_of(group) else {
            return of_vector(group, || M::vector_factors(group));
        };
        Ok(Operation::Whole(Arc::new(OnBase {
            kernel: M::kernel(group, size)?,
            slot: group.slot.key.clone(),
            size,
            n_tasks: group.members.len(),
        })))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let labels = group.labels().join(", ");
        match (matrix_of(group), group.values.text("vectors")) {
            (Some(_), _) => format!("base + {} of {labels}", M::NAME),
            (None, Some("base")) => "base".to_owned(),
            (None, _) => format!("base + mean difference of {labels}"),
        }
    }
}

/// A kernel's change, added to the base.
struct OnBase {
    kernel: Box<dyn MatrixKernel>,
    slot: String,
    size: (usize, usize),
    n_tasks: usize,
}

impl WholeKernel for OnBase {
    fn merge(&self, group: &dyn GroupData) -> Result<ArrayD<f64>> {
        let of = (self.slot.as_str(), self.size, self.n_tasks);
        merged_on_base(group, of, self.kernel.as_ref())
    }

    fn peak_bytes(&self, _: &[usize], n_members: usize) -> u64 {
        let (rows, columns) = (self.size.0 as u64, self.size.1 as u64);
        let own = self.kernel.peak_elements(rows, columns, n_members as u64);
        8 * (2 * rows * columns + own)
    }

    fn is_on_one_thread(&self) -> bool {
        true
    }
}

/// The base with a kernel's change of a matrix of this name and size, from these task vectors.
///
/// # Errors
/// Those of the kernel.
pub(in crate::methods) fn merged_on_base(
    group: &dyn GroupData,
    of: (&str, (usize, usize), usize),
    kernel: &dyn MatrixKernel,
) -> Result<ArrayD<f64>> {
    let mut base = group.base()?;
    let change = kernel.change(&Tasks::new(group, of)?)?;
    let change = change.as_standard_layout().into_owned();
    // The change has the elements of the base, in rows and columns.
    if let Ok(change) = change.into_shape_with_order(IxDyn(base.shape())) {
        base += &change;
    }
    Ok(base)
}

/// An array as a matrix of `size`, of as many elements.
fn matrix(array: ArrayD<f64>, size: (usize, usize)) -> Array2<f64> {
    let array = array.as_standard_layout().into_owned();
    array.into_shape_with_order(size).unwrap_or_default()
}

/// The task vectors of one matrix, read on request.
pub(in crate::methods) struct Tasks<'a> {
    data: &'a dyn GroupData,
    base: Array2<f64>,
    slot: &'a str,
    n: usize,
}

impl<'a> Tasks<'a> {
    /// The given number of task vectors of a matrix of this name and size.
    ///
    /// # Errors
    /// When the base cannot be read.
    pub(in crate::methods) fn new(
        data: &'a dyn GroupData,
        (slot, size, n): (&'a str, (usize, usize), usize),
    ) -> Result<Self> {
        let base = matrix(data.base()?, size);
        Ok(Self {
            data,
            base,
            slot,
            n,
        })
    }

    /// The number of task vectors.
    pub(in crate::methods) const fn len(&self) -> usize {
        self.n
    }

    /// Rows and columns.
    pub(in crate::methods) fn size(&self) -> (usize, usize) {
        self.base.dim()
    }

    /// The shorter side.
    pub(in crate::methods) fn full_rank(&self) -> usize {
        self.base.nrows().min(self.base.ncols())
    }

    /// Task vector `index`.
    pub(in crate::methods) fn of(&self, index: usize) -> Result<Array2<f64>> {
        let member = self.data.member(index)?;
        Ok(matrix(member, self.base.dim()) - &self.base)
    }

    /// `Σ factors · task vectors`, added up in their order.
    pub(in crate::methods) fn sum(&self, factors: &[f64]) -> Result<Array2<f64>> {
        let mut sum = Array2::zeros(self.base.dim());
        for (index, &factor) in factors.iter().enumerate() {
            sum.scaled_add(factor, &self.of(index)?);
        }
        Ok(sum)
    }

    /// Their plain mean.
    pub(in crate::methods) fn mean(&self) -> Result<Array2<f64>> {
        Ok(self.sum(&vec![1.0; self.n])? / self.n as f64)
    }

    /// The results of `of` for each, several at a time, in their order.
    pub(in crate::methods) fn each<T: Send>(
        &self,
        of: impl Fn(usize, Array2<f64>) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let all = (0..self.n).into_par_iter();
        all.map(|index| of(index, self.of(index)?)).collect()
    }

    /// The fault of a decomposition, with the tensor's name.
    pub(in crate::methods) fn converged<T>(
        &self,
        found: std::result::Result<T, NoConvergence>,
    ) -> Result<T> {
        found.map_err(|NoConvergence| {
            MergeFault::NoDecomposition {
                slot: self.slot.to_owned(),
            }
            .into()
        })
    }
}

/// A number of singular values that a matrix of this size has.
///
/// # Errors
/// [`MergeFault::BadValue`].
pub(in crate::methods) fn rank_at_most(
    group: &GroupShape<'_>,
    name: &'static str,
    size: (usize, usize),
) -> Result<usize> {
    let rank = group.values.number(name);
    match rank <= size.0.min(size.1) as f64 {
        true => Ok(rank as usize),
        false => Err(too_large(group, name, size)),
    }
}

/// The fault of a rank that a matrix of this size cannot have.
pub(in crate::methods) fn too_large(
    group: &GroupShape<'_>,
    name: &'static str,
    (rows, columns): (usize, usize),
) -> Error {
    MergeFault::BadValue {
        slot: group.slot.key.clone(),
        name,
        wanted: format!(
            "at most {}, the rank of a matrix of {rows} x {columns}; give it by names of tensors, or say `matrix: false` \
             for this one",
            rows.min(columns)
        ),
        place: group.values.place(name, 0),
    }
    .into()
}
