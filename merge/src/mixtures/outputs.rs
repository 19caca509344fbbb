//! The likeness of the experts of two checkpoints, by their outputs on data.

use std::sync::Arc;

use ndarray::Array2;

use super::Mixture;
use super::ffn::ffns_of;
use super::similarity::cosines_of;
use super::units::read_matrix;
use crate::gram::GramStore;
use crate::layouts::{self, Layout};
use crate::{Checkpoint, MergeFault, Result, Role};

/// The gram matrices of the inputs of a model's layers.
pub(crate) struct Observed {
    store: Arc<GramStore>,
    layout: Box<dyn Layout>,
}

impl Observed {
    /// Reads the family of the model whose layers' inputs are in `store`.
    ///
    /// # Errors
    /// As [`layouts::detect`].
    pub(crate) fn new(store: Arc<GramStore>, model: &Checkpoint) -> Result<Self> {
        let layout = layouts::detect(model)?;
        Ok(Self { store, layout })
    }

    /// The name of the matrix of the inputs of a linear layer.
    fn name(&self, weight: &str) -> Option<String> {
        match self.layout.role(weight) {
            Ok(Role::Expert { expert, slot }) => self.layout.gram_key(&slot, Some(expert)),
            Ok(Role::Shared(slot)) => self.layout.gram_key(&slot, None),
            _ => None,
        }
    }

    /// Second moments of what each expert gives, `W G Wᵀ` of its last layer `W` and the gram matrix `G` of that one's
    /// inputs, without its bias: `(experts, width²)`. Zeros for an expert that no token went to.
    fn moments(&self, source: &Checkpoint, mixture: &Mixture) -> Result<Array2<f32>> {
        let mut rows: Vec<Option<Vec<f32>>> = Vec::with_capacity(mixture.n_experts);
        for network in ffns_of(mixture) {
            let Some(last) = network.strands.last() else {
                continue;
            };
            let name = self.name(&last.key);
            let width = name.as_ref().and_then(|name| self.store.width(name));
            if width != Some(network.n_units) {
                rows.push(None);
                continue;
            }
            // (units, width)
            let weight = read_matrix(source, last)?;
            let gram = self
                .store
                .read(&name.unwrap_or_default())?
                .mapv(|value| value as f32);
            let moments = weight.t().dot(&gram.dot(&weight));
            rows.push(Some(moments.into_iter().collect()));
        }
        let width = rows.iter().flatten().map(Vec::len).max();
        let (Some(width), true) = (width, rows.len() == mixture.n_experts) else {
            return Err(MergeFault::NoOutputs {
                path: self.store.checkpoint().path().into(),
                mixture: mixture.host.clone(),
            }
            .into());
        };
        let mut all = Array2::zeros((mixture.n_experts, width));
        for (mut to, row) in all.rows_mut().into_iter().zip(rows) {
            for (to, value) in to.iter_mut().zip(row.into_iter().flatten()) {
                *to = value;
            }
        }
        Ok(all)
    }
}

/// Cosines between the second moments of what experts give, `(experts of one, experts of the other)`: the order of
/// the data and of hidden units does not matter.
///
/// # Errors
/// [`MergeFault::NoOutputs`] for a file that says nothing of a mixture, and when a tensor cannot be read.
pub(super) fn outputs_similarity(
    (one, mixture, observed): (&Checkpoint, &Mixture, &Observed),
    (other, theirs, of_other): (&Checkpoint, &Mixture, &Observed),
) -> Result<Array2<f64>> {
    let own = observed.moments(one, mixture)?;
    let others = of_other.moments(other, theirs)?;
    Ok(cosines_of(&own, &others))
}
