//! The best permutations by activations: by the correlations of what layers read of the same tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{Array2, Axis};

use super::axes::{Network, Segment, Tensor};
use super::similarity::Similarity;
use crate::activations::ActivationStore;
use crate::{ActivationFault, Result};

/// A number whose deviation over the rows is not above this share of its size does not change: `f32` tells no more.
const LEAST_DEVIATION: f64 = f32::EPSILON as f64;

/// The statistics of the inputs of a model's layers, file by file.
pub(crate) struct Activations {
    stores: Vec<Arc<ActivationStore>>,
}

impl Activations {
    /// Of open files, in the order in which they go with those of other models.
    pub(crate) fn new(stores: Vec<Arc<ActivationStore>>) -> Self {
        Self { stores }
    }

    /// The files.
    pub(crate) fn stores(&self) -> &[Arc<ActivationStore>] {
        &self.stores
    }

    /// Checks that each group of a network runs along the inputs of a layer that some file has, in the width of that
    /// layer.
    ///
    /// # Errors
    /// [`ActivationFault::Missing`], [`ActivationFault::Width`].
    pub(crate) fn require(&self, network: &Network) -> Result<()> {
        for (index, group) in network.groups().iter().enumerate() {
            let inputs = network.inputs(index);
            let fault = |why: String| ActivationFault::Missing {
                group: group.name.clone(),
                why,
            };
            let Some(first) = inputs.keys().next() else {
                let why = "passes of this family record no layer that reads them".to_owned();
                return Err(fault(why).into());
            };
            let mut is_found = false;
            for (store, name, tensor) in self.pairs(&inputs) {
                let expected = tensor.shape.last().copied().unwrap_or_default();
                let found = store.width(name).unwrap_or_default();
                if found != expected {
                    return Err(ActivationFault::Width {
                        path: store.checkpoint().path().into(),
                        layer: name.to_owned(),
                        found,
                        expected,
                    }
                    .into());
                }
                is_found = true;
            }
            if !is_found {
                let paths = self.stores.iter().map(|store| store.checkpoint().path());
                let paths: Vec<String> = paths.map(|path| path.display().to_string()).collect();
                let why = format!("{} has no inputs of `{first}`", paths.join(", "));
                return Err(fault(why).into());
            }
        }
        Ok(())
    }

    /// The layers of `inputs` that a file has, file by file.
    fn pairs<'a>(
        &'a self,
        inputs: &'a BTreeMap<&'a str, &'a Tensor>,
    ) -> impl Iterator<Item = (&'a ActivationStore, &'a str, &'a Tensor)> {
        self.stores.iter().flat_map(move |store| {
            inputs.iter().filter_map(move |(name, tensor)| {
                store.width(name)?;
                Some((store.as_ref(), *name, *tensor))
            })
        })
    }
}

impl Network {
    /// The layers whose inputs hold the things of a group, each by the name of its inputs.
    fn inputs(&self, group: usize) -> BTreeMap<&str, &Tensor> {
        let reads = |tensor: &&Tensor| {
            let mut segments = tensor.axes.last().into_iter().flatten();
            segments.any(|segment| segment.group == group)
        };
        let layers = self.tensors.iter().filter(reads);
        layers
            .filter_map(|tensor| Some((tensor.input.as_deref()?, tensor)))
            .collect()
    }
}

/// For each group and each thing of one model the thing of the other that stands for it: the order with the largest sum of
/// correlations, over all layers that read the group and all files (Li et al. 2015, "Convergent Learning: Do different
/// neural networks learn the same representations?", <https://arxiv.org/abs/1511.07543>, section 3; Ainsworth et al. 2022,
/// "Git Re-Basin", <https://arxiv.org/abs/2209.04836>, section 3.1). A head counts by the sum over its numbers in their
/// order.
///
/// Holds the rows of one layer of both models in `f64`, and a matrix of the largest group by itself. Both models must have
/// passed [`Activations::require`], with the same rows.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn match_activations(
    network: &Network,
    own: &Activations,
    theirs: &Activations,
) -> Result<Vec<Vec<u32>>> {
    let groups = network.groups().iter().enumerate();
    let orders = groups.map(|(index, group)| {
        let mut found = Similarity::new(group);
        let inputs = network.inputs(index);
        for (own, theirs) in own.stores.iter().zip(&theirs.stores) {
            for (name, tensor) in inputs.iter().filter(|(name, _)| own.width(name).is_some()) {
                let rows = standardized(own.read(name)?);
                let others = standardized(theirs.read(name)?);
                let segments = tensor.axes.last().into_iter().flatten();
                let own_segments = segments.filter(|segment| segment.group == index);
                for segment in own_segments.collect::<Vec<&Segment>>() {
                    found.add(&rows, &others, segment);
                }
            }
        }
        Ok(found.best())
    });
    orders.collect()
}

/// The numbers of a layer's inputs in rows, each without its mean and of length 1, so that inner products are correlations;
/// zeros for one that does not change.
fn standardized(rows: Array2<f64>) -> Array2<f64> {
    let mut numbers = rows.t().as_standard_layout().into_owned();
    let n = numbers.ncols().max(1) as f64;
    for mut values in numbers.axis_iter_mut(Axis(0)) {
        let mean = values.sum() / n;
        let most = values
            .iter()
            .fold(0.0, |most: f64, value| most.max(value.abs()));
        values -= mean;
        let length = values.dot(&values).sqrt();
        match length > LEAST_DEVIATION * most * n.sqrt() {
            true => values /= length,
            false => values.fill(0.0),
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn inner_products_of_standardized_numbers_are_correlations() {
        let rows = array![
            [1.0, 10.0, 0.1, 3.0],
            [2.0, 30.0, 0.1, 1.0],
            [3.0, 20.0, 0.1, 2.0]
        ];
        let found = standardized(rows);
        let products = found.dot(&found.t());
        // By hand: covariances of (1, 2, 3), (10, 30, 20) and (3, 1, 2) by their lengths.
        let expected = array![
            [1.0, 0.5, 0.0, -0.5],
            [0.5, 1.0, 0.0, -1.0],
            [0.0, 0.0, 0.0, 0.0],
            [-0.5, -1.0, 0.0, 1.0],
        ];
        for (found, expected) in products.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-12, "{products}");
        }
    }
}
