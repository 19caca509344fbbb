//! The memory that a run takes, before its first step.

use std::collections::BTreeSet;

use candle_core::DType;
use evaluate::models::{Activations, Branch, dtype_of_graphs};
use merge::io::Container;

use super::{Start, Updater};
use crate::collective::Collective;
use crate::data::Loader;
use crate::objectives::{ComparisonBytes, Objective};
use crate::recipe::TrainRecipe;

/// The memory that a run takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Numbers that are variables of this rank.
    pub n_parameters: u64,
    /// Bytes of the copy of the variables that the model computes with, where that is in another dtype than f32.
    pub computing_bytes: u64,
    /// Bytes of gradients.
    pub gradient_bytes: u64,
    /// Bytes of what the optimizer of this rank keeps: both moments of its share of the variables,
    /// and averages of all of them where they are asked for.
    pub optimizer_bytes: u64,
    /// Bytes of the weights that the run starts from, which are in memory while variables are made of them, where no
    /// file holds them: fresh ones, merges, resized tables. Every rank has all of them.
    pub start_bytes: u64,
    /// Bytes of those that no variable is made of, which stay.
    pub unused_bytes: u64,
    /// Bytes of the copy of the weights that is made when they are kept, with the largest of those that other ranks
    /// hand over.
    pub saving_bytes: u64,
    /// Bytes of what a part of the batch keeps for its backward pass, by estimate.
    pub activation_bytes: u64,
    /// Bytes of the features of this rank's share of the batch, and of what compares them: all that
    /// grows with the batch where a part stays as large as it is.
    pub comparison: ComparisonBytes,
    /// Bytes of the parts that are loaded ahead.
    pub ahead_bytes: u64,
}

/// A run, as far as its memory goes.
pub(super) struct Outline<'a> {
    pub recipe: &'a TrainRecipe,
    pub start: &'a Start,
    pub updater: &'a Updater,
    pub objectives: &'a [(Box<dyn Objective>, f64)],
    pub loader: &'a Loader,
    pub collective: &'a dyn Collective,
    /// Examples of a part.
    pub n_examples: usize,
    /// Parts of this rank's share of a batch.
    pub n_parts: usize,
}

impl Memory {
    /// All together, with the weights: at its peak, which is in a step, while it is kept or while it begins.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let lasting = 4 * self.n_parameters
            + self.computing_bytes
            + self.gradient_bytes
            + self.optimizer_bytes;
        let step = self.activation_bytes + self.comparison.features + self.comparison.similarities;
        let running = lasting + self.unused_bytes + self.ahead_bytes + step.max(self.saving_bytes);
        running.max(4 * self.n_parameters + self.start_bytes)
    }

    pub(super) fn of(run: &Outline<'_>) -> Self {
        let (start, recipe) = (run.start, run.recipe);
        let variables = start.variables.values();
        let n_parameters: u64 = variables.map(|variable| variable.elem_count() as u64).sum();
        let trained = run.updater.trained(&start.variables);
        let n_trained: u64 = trained.map(|(_, var)| var.elem_count() as u64).sum();
        let averaged = match recipe.optim.ema {
            Some(_) => n_parameters,
            None => 0,
        };
        let others = start.experts.others().values();
        let largest = others.map(|shape| shape.iter().product::<usize>());
        let largest = largest.max().unwrap_or(0);
        let branches = run.branches();
        let source = start.weights.checkpoint();
        let names = start.variables.keys().chain(start.experts.others().keys());
        let made = names.filter_map(|name| start.weights.key_of(name));
        let made: BTreeSet<&str> = made.collect();
        let in_memory = |is_meant: &dyn Fn(&str) -> bool| -> u64 {
            let tensors = match source.info().container {
                Container::Memory => Some(source.tensors()),
                _ => None,
            };
            let tensors = tensors.into_iter().flatten();
            let tensors = tensors.filter(|(key, _)| is_meant(key));
            tensors.map(|(_, info)| info.n_bytes()).sum()
        };
        let dtype = start.weights.dtype();
        Self {
            n_parameters,
            computing_bytes: match dtype {
                DType::F32 => 0,
                _ => dtype.size_in_bytes() as u64 * n_parameters,
            },
            gradient_bytes: 4 * n_trained,
            start_bytes: in_memory(&|_| true),
            unused_bytes: in_memory(&|key| !made.contains(key)),
            saving_bytes: match run.collective.is_first() {
                true => 4 * (n_parameters + largest as u64),
                false => 0,
            },
            optimizer_bytes: 2 * 4 * run.updater.n_owned() + 4 * averaged,
            activation_bytes: start.blueprint.activation_bytes(&Activations {
                n_examples: run.n_examples,
                are_recomputed: recipe.checkpoint_activations,
                branches: &branches,
                graphs: dtype_of_graphs(start.weights.device(), dtype),
            }),
            comparison: run.comparison(branches.len()),
            ahead_bytes: (run.loader).bytes_ahead(run.n_examples, rayon::current_num_threads()),
        }
    }
}

impl Outline<'_> {
    /// Branches that are contrasted.
    fn branches(&self) -> Vec<Branch> {
        let objectives = self
            .objectives
            .iter()
            .map(|(objective, _)| objective.spec());
        objectives.flat_map(|spec| spec.branches()).collect()
    }

    fn comparison(&self, n_branches: usize) -> ComparisonBytes {
        let mut objectives = self.objectives.iter();
        // Negatives are drawn by features, too.
        let draws = objectives.any(|(objective, _)| objective.negatives().is_some());
        let n_branches = n_branches.max(usize::from(draws));
        let width = self.start.blueprint.feature_width().unwrap_or(0);
        let (n_rows, n_ranks) = (self.n_examples * self.n_parts, self.collective.size());
        ComparisonBytes::of(n_branches, width, n_rows, n_ranks)
    }
}
