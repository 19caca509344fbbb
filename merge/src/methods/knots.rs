use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ndarray::{Array2, ArrayD, Axis};

use crate::linear_algebra::spectral::{Svd, product};
use crate::methods::matrices::{
    CONV, FACTOR, MATRIX, MatrixKernel, RANK_TOLERANCE_OF_SUMS, Tasks, VECTORS, matrix_of,
    merged_on_base, of_vector,
};
use crate::methods::parameters::{Fallback, Kind, ParameterSpec, SHARE};
use crate::methods::ranking::over_all::{Search, key_of, value_of};
use crate::methods::thinning::consensus::LAMBDA;
use crate::methods::{
    Base, GroupData, GroupShape, Groups, MergeMethod, Needs, Operation, Overview, Values,
    WholeKernel,
};
use crate::{Error, MergeFault, Result};

/// ## What it does
/// Brings the task vectors of a matrix into one space before it merges them (KnOTS), which helps adapters, whose task
/// vectors hardly align. Side by side they are `[D₁ … D_T] = U S [V₁ … V_T]`; `Xᵢ = Uᵀ Dᵢ` are aligned. Of each model
/// the share `density` of the elements of all `Xᵢ` of the model with the largest magnitudes stays; with `mask: ties`
/// those stay that have the sign of the sum over models, too. `X` is their mean over models with an element that is
/// not 0, or their sum, and `W = b + λ U X`. Tensors that are no matrices take the mean of the task vectors times λ.
///
/// Where no element is masked, the mean gives the plain mean of the task vectors, except for models without a change of
/// a matrix, which do not count there. Adapters are merged with their scale, in f64, before they are rounded.
/// ## Why
/// Task vectors of adapters hardly overlap, so methods by elements cannot compare them. One common basis lets them.
/// ## Cost
/// A singular value decomposition of all task vectors of a matrix side by side, in f64; inputs are read four times
/// or more, and aligned elements wait in a temporary file.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `density` | 0.2 | `[0, 1]` | share of the elements that stays, over all matrices of a model |
/// | `mask` | `ties` | `ties`, `magnitude` | whether signs are elected |
/// | `combine` | `mean` | `mean`, `sum` | how models are put together |
/// | `weight` | 1, per model | any number | factor on the model's elements |
/// | `lambda` | 1 | any number | factor on the merged task vector; the published recipe has 0.6 |
/// | `rank_tolerance` | 1e-6 | `[0, 1]` | singular values up to this share of the largest count as none; the published program has 1e-5 in all |
/// | `matrix`, `conv`, `vectors` | - | - | as for `tsv_m` |
///
/// `density`, `mask`, `combine` and `weight` have one value for all matrices.
/// ## References
/// Stoica et al. 2024, "Model merging with SVD to tie the KnOTS", <https://arxiv.org/abs/2410.19735>.
/// # Errors
/// [`MergeFault::VariesByTensor`]; [`MergeFault::NoDecomposition`]; when the elements of all matrices do not fit into
/// the folder of temporary files, where they wait to be ranked.
#[derive(Default)]
pub struct Knots(Mutex<Option<Arc<Shared>>>);

const MASK: Kind = Kind::Choice {
    names: &["ties", "magnitude"],
    yes: "",
    no: "",
};

const COMBINE: Kind = Kind::Choice {
    names: &["mean", "sum"],
    yes: "",
    no: "",
};

/// The parameters that have one value for all matrices.
const OF_ALL: [&str; 4] = ["weight", "density", "mask", "combine"];

/// The directions that all matrices share.
struct Shared {
    settings: Settings,
    /// The parameters of the first matrix.
    values: Values,
    parts: Mutex<Vec<(String, Arc<Part>)>>,
    /// The least magnitude that each model keeps.
    cuts: OnceLock<Vec<f64>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Settings {
    density: f64,
    by_sign: bool,
    is_sum: bool,
    weights: Vec<f64>,
}

/// One matrix.
struct Part {
    slot: String,
    size: (usize, usize),
    lambda: f64,
    tolerance: f64,
    settings: Settings,
}

impl MergeMethod for Knots {
    fn name(&self) -> &'static str {
        "knots"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::Required, 1, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[
                FACTOR,
                ParameterSpec::shared("density", SHARE, Fallback::Number(0.2)),
                ParameterSpec::shared("mask", MASK, Fallback::Text("ties")),
                ParameterSpec::shared("combine", COMBINE, Fallback::Text("mean")),
                LAMBDA,
                RANK_TOLERANCE_OF_SUMS,
                MATRIX,
                CONV,
                VECTORS,
            ]
        }
    }

    fn refuses_foreign_parameters(&self) -> bool {
        true
    }

    fn needs_ranks(&self) -> bool {
        true
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        let values = group.values;
        let lambda = values.number("lambda");
        let weights = values.numbers("weight");
        let Some(size) = matrix_of(group) else {
            let share = lambda / weights.len() as f64;
            return of_vector(group, || Ok(weights.iter().map(|w| share * w).collect()));
        };
        let settings = Settings {
            density: values.number("density"),
            by_sign: values.text("mask") == Some("ties"),
            is_sum: values.text("combine") == Some("sum"),
            weights,
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = known.get_or_insert_with(|| {
            Arc::new(Shared {
                settings: settings.clone(),
                values: values.clone(),
                parts: Mutex::default(),
                cuts: OnceLock::new(),
            })
        });
        if shared.settings != settings {
            let (name, place) = values.unlike(&shared.values, OF_ALL);
            return Err(MergeFault::VariesByTensor {
                slot: group.slot.key.clone(),
                method: "knots",
                name,
                place,
            }
            .into());
        }
        let part = Arc::new(Part {
            slot: group.slot.key.clone(),
            size,
            lambda,
            tolerance: values.number("rank_tolerance"),
            settings,
        });
        let mut parts = shared.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.push((group.slot.key.clone(), Arc::clone(&part)));
        drop(parts);
        Ok(Operation::Whole(Arc::new(OnePart {
            part,
            shared: Arc::clone(shared),
        })))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let labels = group.labels().join(", ");
        match (matrix_of(group), group.values.text("vectors")) {
            (Some(_), _) => format!("base + knots of {labels}"),
            (None, Some("base")) => "base".to_owned(),
            (None, _) => format!("base + mean difference of {labels}"),
        }
    }
}

impl Part {
    /// `U`, and each `Xᵢ`.
    fn aligned(&self, tasks: &Tasks<'_>) -> Result<(Array2<f64>, Vec<Array2<f64>>)> {
        let all = tasks.each(|_, task| Ok(task))?;
        let views: Vec<_> = all.iter().map(|task| task.view()).collect();
        // All have as many rows.
        let beside = ndarray::concatenate(Axis(1), &views).unwrap_or_default();
        let (left, values) = tasks.converged(Svd::left_of(beside.view()))?;
        drop(beside);
        let least = self.tolerance * values.first().copied().unwrap_or(0.0);
        let rank = values.iter().take_while(|&&value| value > least).count();
        let left = left.view().split_at(Axis(1), rank).0.to_owned();
        let aligned = all.iter().map(|task| product(left.t(), task.view()));
        let aligned = aligned.collect();
        Ok((left, aligned))
    }
}

struct OnePart {
    part: Arc<Part>,
    shared: Arc<Shared>,
}

impl WholeKernel for OnePart {
    fn merge(&self, group: &dyn GroupData) -> Result<ArrayD<f64>> {
        let n = self.part.settings.weights.len();
        merged_on_base(group, (&self.part.slot, self.part.size, n), self)
    }

    fn overview(&self) -> Option<Arc<dyn Overview>> {
        Some(Arc::clone(&self.shared) as Arc<dyn Overview>)
    }

    fn peak_bytes(&self, _: &[usize], n_members: usize) -> u64 {
        let (rows, columns) = (self.part.size.0 as u64, self.part.size.1 as u64);
        let n = n_members as u64;
        let rank = rows.min(columns * n);
        8 * (2 * rows * columns + 3 * n * rows * columns + 2 * rank * (rows + n * columns))
    }
}

impl MatrixKernel for OnePart {
    fn change(&self, tasks: &Tasks<'_>) -> Result<Array2<f64>> {
        let Some(cuts) = self.shared.cuts.get() else {
            return Err(Error::MethodNeeds {
                method: "knots",
                what: "a look at all matrices",
            });
        };
        let settings = &self.part.settings;
        let (left, aligned) = self.part.aligned(tasks)?;
        let mut merged = Array2::zeros((left.ncols(), tasks.size().1));
        for (place, out) in merged.indexed_iter_mut() {
            let kept = |index: usize| {
                let value = aligned[index][place];
                if value.abs() >= cuts[index] {
                    value
                } else {
                    0.0
                }
            };
            let total: f64 = (0..cuts.len()).map(kept).sum();
            let (mut sum, mut n) = (0.0, 0.0);
            for (index, weight) in settings.weights.iter().enumerate() {
                let value = kept(index);
                let agrees = !settings.by_sign
                    || (total >= 0.0 && value > 0.0)
                    || (total < 0.0 && value < 0.0);
                if agrees && value != 0.0 {
                    sum += weight * value;
                    n += 1.0;
                }
            }
            *out = if settings.is_sum {
                sum
            } else {
                sum / f64::max(n, 1.0)
            };
        }
        Ok(product(left.view(), merged.view()) * self.part.lambda)
    }

    fn peak_elements(&self, _: u64, _: u64, _: u64) -> u64 {
        0
    }
}

impl Overview for Shared {
    fn look(&self, groups: &dyn Groups) -> Result<()> {
        if self.cuts.get().is_some() {
            return Ok(());
        }
        let n_models = self.settings.weights.len();
        let cuts = match self.settings.density {
            1.0.. => vec![0.0; n_models],
            0.0 => vec![f64::INFINITY; n_models],
            density => self.ranked(groups, density)?,
        };
        self.cuts.get_or_init(|| cuts);
        Ok(())
    }
}

impl Shared {
    /// The least magnitude that each model keeps, by a file of all magnitudes.
    fn ranked(&self, groups: &dyn Groups, density: f64) -> Result<Vec<f64>> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = parts.clone();
        let failed = |source| Error::io("write", &std::env::temp_dir(), source);
        let file = tempfile::tempfile().map_err(failed)?;
        let mut file = BufWriter::new(file);
        let n_models = self.settings.weights.len();
        // Values of a model that follow each other, for each model of each matrix in turn.
        let mut lengths = Vec::new();
        groups.each_whole(&mut |name, n, data| {
            let Some((_, part)) = parts.iter().find(|(known, _)| known == name) else {
                return Ok(());
            };
            let tasks = Tasks::new(data, (&part.slot, part.size, n))?;
            let (_, aligned) = part.aligned(&tasks)?;
            for matrix in &aligned {
                lengths.push(matrix.len());
                for value in matrix {
                    let bytes = value.abs().to_le_bytes();
                    file.write_all(&bytes).map_err(failed)?;
                }
            }
            Ok(())
        })?;
        let mut file = file
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        let of_one = lengths.iter().step_by(n_models.max(1));
        let n = of_one.map(|&length| length as u64).sum::<u64>();
        let kept = ((n as f64 * density) as u64).min(n);
        let place = (n - kept).saturating_sub(1);
        let mut searches: Vec<Search> = (0..n_models).map(|row| Search::at(row, place)).collect();
        for shift in Search::shifts() {
            let mut counts = vec![Search::no_counts(); n_models];
            count(&mut file, &lengths, &searches, shift, &mut counts).map_err(failed)?;
            for (search, counts) in searches.iter_mut().zip(&counts) {
                search.narrow(counts);
            }
        }
        Ok(searches
            .iter()
            .map(|search| value_of(search.prefix()))
            .collect())
    }
}

/// Counts the next bits of the values that begin as those that are searched.
fn count(
    file: &mut File,
    lengths: &[usize],
    searches: &[Search],
    shift: u32,
    counts: &mut [Vec<u64>],
) -> std::io::Result<()> {
    file.rewind()?;
    let mut file = BufReader::new(file);
    let mut bytes = [0; 8];
    for (index, &length) in lengths.iter().enumerate() {
        let row = index % searches.len();
        for _ in 0..length {
            file.read_exact(&mut bytes)?;
            let key = key_of(f64::from_le_bytes(bytes));
            if let Some(bin) = searches[row].bin(key, shift) {
                counts[row][bin] += 1;
            }
        }
    }
    Ok(())
}
