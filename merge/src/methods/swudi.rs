use crate::Result;
use crate::methods::GroupShape;
use crate::methods::matrices::{
    CONV, Filter, Filtered, MATRIX, MatrixKernel, MatrixMethod, START, VECTORS, first,
};
use crate::methods::parameters::{Fallback, NOT_NEGATIVE, POSITIVE, ParameterSpec, SHARE};
use crate::methods::thinning::consensus::LAMBDA;

/// ## What it does
/// Solves the least squares of `wudi` along the largest eigenvalues alone, and stays at a starting point along the
/// others: with `C = V diag(e) Vᵀ` and `B` as for `wudi`, `T₀` the sum of the task vectors and `f = 1 − exp(−e t)`
/// for the first K eigenvalues and 0 for the rest, `W = b + λ (T₀ − T₀ V diag(f) Vᵀ + B V diag(f / e) Vᵀ)`. K is
/// `ratio` of the columns, rounded up. Tensors that are no matrices take the mean of the task vectors times λ.
/// ## Why
/// The small eigenvalues of `wudi` are noise, and their inverses are large.
/// ## Cost
/// An eigenvalue decomposition for each matrix, of its columns by its columns, in f64.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `time` | 300 | `≥ 0` | t; 0 leaves the factor out |
/// | `ratio` | 0.65 | `[0, 1]` | share of the eigenvalues that take part; the paper takes 0.85 for language models |
/// | `start` | `sum` | `sum`, `mean`, `zero` | T₀ |
/// | `min_eigenvalue` | 1e-8 | above 0 | eigenvalues below it are raised to it |
/// | `lambda` | 1 | any number | factor on the merged task vector |
/// | `matrix`, `conv`, `vectors` | - | - | as for `tsv_m` |
/// ## References
/// SWUDI, <https://arxiv.org/abs/2606.07289>.
/// # Errors
/// [`MergeFault::NoDecomposition`](crate::MergeFault::NoDecomposition).
#[derive(Clone, Copy, Debug)]
pub struct Swudi;

impl MatrixMethod for Swudi {
    const NAME: &'static str = "swudi";
    const PARAMETERS: &'static [ParameterSpec] = &[
        ParameterSpec::shared("time", NOT_NEGATIVE, Fallback::Number(300.0)),
        ParameterSpec::shared("ratio", SHARE, Fallback::Number(0.65)),
        START,
        ParameterSpec::shared("min_eigenvalue", POSITIVE, Fallback::Number(1e-8)),
        LAMBDA,
        MATRIX,
        CONV,
        VECTORS,
    ];

    fn kernel(group: &GroupShape<'_>, _: (usize, usize)) -> Result<Box<dyn MatrixKernel>> {
        let values = group.values;
        let (time, ratio) = (values.number("time"), values.number("ratio"));
        let filter: Filter = Box::new(move |eigenvalues, _| {
            let n = eigenvalues.len();
            // Nearly rounded up, as published.
            let rank = ((n as f64 * ratio + 0.999) as usize).max(1);
            let kept = first(rank, n).into_iter().zip(eigenvalues);
            kept.map(|(kept, value)| match time > 0.0 {
                true => kept * (1.0 - (-value * time).exp()),
                false => kept,
            })
            .collect()
        });
        Ok(Filtered::boxed(values, filter))
    }
}
