use std::sync::Arc;

use ndarray::{Array2, ArrayD};

use crate::layouts::Task;
use crate::linear_algebra::{LinearAlgebra, NotPositiveDefinite, default_algebra};
use crate::methods::linear_layers::{matrix, mean, shrink};
use crate::methods::parameters::{Fallback, Kind, NOT_NEGATIVE, ParameterSpec, SHARE};
use crate::methods::{
    Base, GroupData, GroupShape, Member, MergeMethod, Needs, Operation, WholeKernel,
};
use crate::recipe::Parameters;
use crate::{Error, Result, Slot};

/// ## What it does
/// Finds the linear layer whose outputs are closest, in least squares over the cached inputs, to
/// those of all experts: `W = (Σₑ Wₑ G̃ₑ) (Σₑ G̃ₑ)⁻¹`, where `Gₑ = XᵀX` is the gram matrix of the
/// layer's inputs and `G̃ = γ G + (1 − γ) diag(G)`. Computed in f64 by a Cholesky factorization,
/// never an inverse. Biases and norms take the plain mean of the same experts, and so do linear weights
/// whose inputs the family does not record (heads of the multiway models). Checkpoints are merged
/// likewise, in any family.
///
/// `grams: task_vectors` needs no data: with a base, each task vector `Dᵢ = Wᵢ − b` stands for the inputs that shaped it,
/// `Gᵢ = DᵢᵀDᵢ`, and `W = b + (Σ wᵢ Dᵢ Gᵢ) (Σ wᵢ Gᵢ)⁺`, the solution of least norm (ACTMat). Other tensors take the mean by
/// weights. It is `wudi` with each task vector counted by its squared size. For the experts of one checkpoint the recipe
/// says `experts`, `for` or `layout`.
/// ## Why
/// A mean of weights ignores which inputs a layer sees. The least squares keep the outputs on these inputs.
/// ## Cost
/// Gram matrices, which `vlmerge gram` sums over data; for each layer one factorization of a matrix of its inputs,
/// in f64, with whole matrices in memory. `grams: task_vectors` needs no file.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `grams` | required | file, or `task_vectors` | gram matrices: this program's file, or full matrices under the published names in safetensors or `.pth`; between checkpoints one file for each model |
/// | `shrink` | 1 | `[0, 1]` | γ, the factor on the off-diagonal |
/// | `ridge` | 0 | `≥ 0` | adds `ridge` times the mean diagonal to every expert's diagonal, which pulls towards the plain mean; with `task_vectors`, is added to the diagonal of `Σ wᵢ Gᵢ` as it is, as published |
/// | `weight` | 1, per model | `≥ 0` | with `task_vectors`: how much the model counts; only ratios matter |
/// | `matrix`, `conv`, `vectors` | - | - | with `task_vectors`: as for `tsv_m` |
/// ## As published
/// An expert without a gram matrix is left out of the matrices but still counted in the means of
/// biases and norms, and the matrices stay f64.
/// ## References
/// Jin et al. 2023, "Dataless Knowledge Fusion by Merging Weights of Language Models",
/// <https://arxiv.org/abs/2212.09849>, section 3; Sung et al. 2023,
/// <https://arxiv.org/abs/2304.14933>, for experts of one model; ACTMat, <https://arxiv.org/abs/2604.01329>, for
/// `task_vectors`.
/// # Errors
/// [`Error::MissingGram`] naming the weight, unless the recipe says `on_missing_gram: mean`;
/// [`crate::MergeFault::ForeignGrams`] for grams of another file, unless it says `foreign_grams: allow`;
/// [`Error::SingularGram`] when the summed gram is not
/// positive definite, as with fewer rows than inputs or with dead inputs.
#[derive(Clone)]
pub struct RegMean {
    /// γ, the factor on the off-diagonal.
    pub shrink: f64,
    /// Multiple of the mean diagonal added to each expert's diagonal.
    pub ridge: f64,
    /// Leave experts without a gram matrix out instead of refusing.
    pub skip_missing: bool,
    /// The algebra that multiplies and factors.
    pub algebra: Arc<dyn LinearAlgebra>,
}

impl RegMean {
    /// Reads `shrink` and `ridge`; `grams` is opened by the plan.
    ///
    /// # Errors
    /// When a parameter is unknown or out of range.
    pub fn from_parameters(parameters: &Parameters, as_published: bool) -> Result<Self> {
        parameters.allow_only("regmean", &["grams", "shrink", "ridge"])?;
        let is_share = |shrink| (0.0..=1.0).contains(&shrink);
        Ok(Self {
            shrink: parameters.number("shrink", 1.0, "a number from 0 to 1", is_share)?,
            ridge: parameters.number("ridge", 0.0, "a number ≥ 0", |ridge| ridge >= 0.0)?,
            skip_missing: as_published,
            algebra: default_algebra(),
        })
    }
}

impl MergeMethod for RegMean {
    fn name(&self) -> &'static str {
        "regmean"
    }

    fn needs(&self) -> Needs {
        Needs {
            grams: true,
            ..Needs::inputs(Base::None, 1, usize::MAX)
        }
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[
                ParameterSpec::per_member("grams", Kind::File, Fallback::Required),
                ParameterSpec::shared("shrink", SHARE, Fallback::Number(1.0)),
                ParameterSpec::shared("ridge", NOT_NEGATIVE, Fallback::Number(0.0)),
            ]
        }
    }

    fn takes_unused_experts(&self, task: Task) -> bool {
        self.skip_missing && task == Task::Nlvr2
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        // The plan has asked for the matrices of every weight that should have some.
        if group.grams.is_empty() {
            return Ok(mean(group.members.len()));
        }
        let solved: Vec<usize> = (0..group.members.len())
            .filter(|&member| group.grams[member].is_some())
            .collect();
        let is_complete = solved.len() == group.members.len();
        if solved.is_empty() || (!is_complete && !self.skip_missing) {
            return Err(NO_GRAM);
        }
        if group.members.len() == 1 && !self.skip_missing {
            return Ok(Operation::Take(0));
        }
        Ok(Operation::Whole(Arc::new(Solve {
            method: self.clone(),
            slot: group.slot.clone(),
            members: group.members.to_vec(),
            solved,
        })))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let names = group.labels();
        match group.grams.is_empty() {
            _ if names.len() == 1 => names.concat(),
            false => format!("least squares of {}", names.join(", ")),
            true => format!("mean of {}", names.join(", ")),
        }
    }
}

/// The error of a plan without gram matrices, which the plan's checks exclude.
const NO_GRAM: Error = Error::MethodNeeds {
    method: "regmean",
    what: "a gram matrix for each member of a linear weight",
};

/// The solution for one linear weight.
struct Solve {
    method: RegMean,
    slot: Slot,
    members: Vec<Member>,
    /// Members that have a gram matrix.
    solved: Vec<usize>,
}

impl WholeKernel for Solve {
    /// `Σ Wₑ G̃ₑ = W_last Σ G̃ₑ + Σ (Wₑ − W_last) G̃ₑ`, so the solution is the last member plus that of
    /// the differences: one product less, and members that agree are returned to the last bit.
    fn merge(&self, group: &dyn GroupData) -> Result<ArrayD<f64>> {
        // `operation` never builds this without a solved member; there is no answer to none.
        let Some((&last, others)) = self.solved.split_last() else {
            return Err(NO_GRAM);
        };
        let (last_weight, mut denominator) = self.terms(group, last)?;
        if others.is_empty() {
            return Ok(last_weight.into_dyn());
        }
        let mut product = Array2::zeros(last_weight.dim());
        let mut sum = Array2::zeros(last_weight.dim());
        for &member in others {
            let (mut difference, gram) = self.terms(group, member)?;
            difference -= &last_weight;
            product += &self.method.algebra.multiply(&difference, &gram);
            denominator += &gram;
            if self.method.ridge > 0.0 {
                sum += &difference;
            }
        }
        if self.method.ridge > 0.0 {
            let n_members = self.solved.len() as f64;
            let width = denominator.nrows() as f64;
            let pull = self.method.ridge * denominator.diag().sum() / (width * n_members);
            product.scaled_add(pull, &sum);
            denominator
                .diag_mut()
                .mapv_inplace(|d| d + n_members * pull);
        }
        drop(sum);
        let solved = self.method.algebra.solve_right(product, denominator);
        let mut merged = solved.map_err(|NotPositiveDefinite { pivot }| Error::SingularGram {
            slot: self.slot.key.clone(),
            members: self.members.clone(),
            pivot,
        })?;
        merged += &last_weight;
        Ok(merged.into_dyn())
    }

    fn peak_bytes(&self, shape: &[usize], n_members: usize) -> u64 {
        let (out, width) = match *shape {
            [out, width] => (out as u64, width as u64),
            _ => (0, 0),
        };
        let extra = u64::from(n_members > 1);
        // Last weight, product, sum of differences, a difference and its product; two grams, and a
        // third while a packed one is spread out.
        (out * width * (1 + 4 * extra) + width * width * (2 + extra)) * 8
    }
}

impl Solve {
    /// `W` and `G̃` of one member.
    fn terms(&self, group: &dyn GroupData, member: usize) -> Result<(Array2<f64>, Array2<f64>)> {
        let mut gram = group.gram(member)?;
        shrink(&mut gram, self.method.shrink);
        let whose = (&self.slot, &self.members[member]);
        Ok((matrix(group.member(member)?, whose, &gram)?, gram))
    }
}
