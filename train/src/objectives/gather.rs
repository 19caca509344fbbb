//! The features that ranks receive from one another.

use std::ops::Range;

use bytemuck::Pod;
use candle_core::{Tensor, WithDType};
use evaluate::crossing;

use crate::Result;
use crate::collective::Collective;

/// The numbers of `ranks`, in their order; all ranks have as many.
pub(super) fn numbers<T: Pod>(
    own: &[T],
    ranks: &Range<usize>,
    collective: &dyn Collective,
) -> Result<Vec<T>> {
    if collective.size() == 1 {
        return Ok(own.to_vec());
    }
    let all = collective.gather(bytemuck::cast_slice(own))?;
    let of_ranks = all[ranks.clone()].iter();
    let numbers = of_ranks.flat_map(|bytes| bytemuck::pod_collect_to_vec::<u8, T>(bytes));
    Ok(numbers.collect())
}

/// The rows of `ranks`, in their order, without a graph; they travel as numbers of type `T`.
pub(super) fn rows<T: Pod + WithDType>(
    own: &Tensor,
    ranks: &Range<usize>,
    collective: &dyn Collective,
) -> Result<Tensor> {
    if collective.size() == 1 {
        return Ok(own.clone());
    }
    let values: Vec<T> = crossing::to_memory(&own.to_dtype(T::DTYPE)?)?;
    let values = numbers(&values, ranks, collective)?;
    let mut shape = own.dims().to_vec();
    if let Some(n_rows) = shape.first_mut() {
        *n_rows *= ranks.len();
    }
    Ok(crossing::to_device(values, shape, own.device())?.to_dtype(own.dtype())?)
}
