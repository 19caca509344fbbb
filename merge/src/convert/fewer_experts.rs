//! Mixtures with fewer experts: pruned or merged in groups, by how tokens go to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::draft::Draft;
use crate::gram::GramStore;
use crate::layouts::{self, ModelRecord};
use crate::mixtures::{
    Arrangement, ExpertName, Mixture, Origin, Piece, Rearranged, Routing, ViewedTensor, ffns_of,
    moved_piece, survey, units_of_group,
};
use crate::plan::grams::check_sizes;
use crate::recipe::OutputDType;
use crate::{Checkpoint, ConversionFault, MergePlan, Result, TensorInfo};

/// Which experts are worth keeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// Those whose weighted answers are the longest, in the mean over their tokens (REAP).
    Saliency,
    /// Those that most tokens go to.
    Frequency,
}

/// What becomes of the experts that are not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// They are left out (REAP).
    Prune,
    /// Each is merged into the kept expert whose scores are most like its own, weighted by frequency (M-SMoE).
    Group {
        /// Whether hidden units are matched with those of the kept expert first.
        align_units: bool,
    },
}

/// Fewer experts in each mixture. Experts that stay keep their order, and the router's rows go with them.
///
/// Lasby et al. 2025, "REAP the Experts", <https://arxiv.org/abs/2510.13999>; Li et al. 2024, "Merge, Then Compress",
/// <https://arxiv.org/abs/2310.01334>.
#[derive(Clone)]
pub struct FewerExperts {
    /// Experts that each mixture keeps.
    pub keep: usize,
    /// Which.
    pub worth: Worth,
    /// What becomes of the others.
    pub others: Others,
    /// A gram file over the model, which says how tokens go to experts.
    pub grams: Arc<GramStore>,
    /// Element type of the output.
    pub dtype: OutputDType,
}

/// What became of the experts of a mixture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpertsKept {
    /// The mixture, by what the names of its tensors begin with.
    pub mixture: String,
    /// For each expert of the output the experts that it is made of, the kept one first.
    pub groups: Vec<Vec<usize>>,
    /// The share of tokens' choices that went to each expert before.
    pub frequency: Vec<f64>,
    /// The mean of weight times length of the answer of each expert before.
    pub saliency: Vec<f64>,
}

impl FewerExperts {
    /// Says what happens to every key, and to every expert.
    ///
    /// # Errors
    /// [`ConversionFault::NoSuchConversion`] for a checkpoint without mixtures, [`ConversionFault::ExpertsLeft`] for
    /// more experts than there are or none, [`ConversionFault::ScoresUnknown`] for groups without the router's inputs,
    /// [`crate::MergeFault::ForeignGrams`] for a gram file over another model, and as [`Routing::read`] and [`survey`].
    pub fn plan(&self, source: Arc<Checkpoint>) -> Result<(MergePlan, Vec<ExpertsKept>)> {
        source.require_unique_names()?;
        check_sizes(&self.grams, &source)?;
        let layout = layouts::detect(&source)?;
        let mixtures = survey(&source)?;
        if mixtures.is_empty() {
            return Err(ConversionFault::NoSuchConversion {
                path: source.path().into(),
                layout: layout.name(),
                wanted: "given fewer experts: it has no mixture of them",
            }
            .into());
        }
        let mut made = Made::default();
        let mut kept = Vec::with_capacity(mixtures.len());
        for mixture in mixtures.values() {
            if self.keep == 0 || self.keep > mixture.n_experts {
                return Err(ConversionFault::ExpertsLeft {
                    mixture: mixture.host.clone(),
                    n_experts: mixture.n_experts,
                    keep: self.keep,
                }
                .into());
            }
            let routing = Routing::read(&self.grams, &source, mixture)?;
            let groups = self.groups(mixture, &routing)?;
            made.mixture(&source, mixture, &groups, &routing, self.others)?;
            let all: f64 = routing.counts.iter().sum();
            kept.push(ExpertsKept {
                mixture: mixture.host.clone(),
                frequency: routing
                    .counts
                    .iter()
                    .map(|count| count / all.max(1.0))
                    .collect(),
                saliency: routing.saliency,
                groups,
            });
        }
        let view = made.view(source);
        let draft = Draft::copy_of(view)?;
        let model = ModelRecord::default();
        let plan = draft.finish(layout.as_ref(), self.to_string(), self.dtype, model)?;
        Ok((plan, kept))
    }

    /// The experts that each expert of the output is made of.
    fn groups(&self, mixture: &Mixture, routing: &Routing) -> Result<Vec<Vec<usize>>> {
        let worth = match self.worth {
            Worth::Saliency => &routing.saliency,
            Worth::Frequency => &routing.counts,
        };
        let mut order: Vec<usize> = (0..mixture.n_experts).collect();
        // Of experts of the same worth the first ones stay.
        order.sort_by(|&a, &b| worth[b].total_cmp(&worth[a]));
        let kept: BTreeSet<usize> = order.into_iter().take(self.keep).collect();
        let mut groups: BTreeMap<usize, Vec<usize>> =
            kept.iter().map(|&expert| (expert, vec![expert])).collect();
        if matches!(self.others, Others::Group { .. }) {
            let alike = routing
                .alike
                .as_ref()
                .ok_or_else(|| ConversionFault::ScoresUnknown {
                    path: self.grams.checkpoint().path().into(),
                    mixture: mixture.host.clone(),
                })?;
            for expert in (0..mixture.n_experts).filter(|expert| !kept.contains(expert)) {
                let nearest = kept.iter().copied().reduce(|best, next| {
                    match alike[(expert, next)] > alike[(expert, best)] {
                        true => next,
                        false => best,
                    }
                });
                if let Some(group) = nearest.and_then(|nearest| groups.get_mut(&nearest)) {
                    group.push(expert);
                }
            }
        }
        Ok(groups.into_values().collect())
    }
}

impl fmt::Display for FewerExperts {
    /// The command, for provenance.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let worth = match self.worth {
            Worth::Saliency => "saliency",
            Worth::Frequency => "frequency",
        };
        let others = match self.others {
            Others::Prune => "prune",
            Others::Group { align_units: false } => "group",
            Others::Group { align_units: true } => "group, align_units: true",
        };
        write!(
            f,
            "convert: {{ experts: {}, by: {worth}, others: {others}, grams: {} }}",
            self.keep,
            name_of(&self.grams)
        )
    }
}

/// The name of a gram file, without its folder.
pub(super) fn name_of(grams: &GramStore) -> String {
    let name = grams.checkpoint().path().file_name();
    name.unwrap_or_default().to_string_lossy().into_owned()
}

/// Tensors of the output that are made of pieces, and tensors of the input that are gone or renamed.
#[derive(Default)]
pub(super) struct Made {
    arrangements: BTreeMap<String, Arc<Arrangement>>,
    infos: BTreeMap<String, TensorInfo>,
    gone: BTreeSet<String>,
}

impl Made {
    /// A tensor made of pieces.
    pub(super) fn add(&mut self, name: String, info: TensorInfo, pieces: Vec<Piece>) {
        self.infos.insert(name.clone(), info);
        self.arrangements
            .insert(name, Arc::new(Arrangement { pieces }));
    }

    /// A tensor of the input that the output has not, unless one of the same name is made.
    pub(super) fn leave_out(&mut self, name: String) {
        self.gone.insert(name);
    }

    /// The tensors of a mixture with an expert for each group.
    fn mixture(
        &mut self,
        source: &Checkpoint,
        mixture: &Mixture,
        groups: &[Vec<usize>],
        routing: &Routing,
        others: Others,
    ) -> Result<()> {
        self.gone.extend(mixture.keys());
        let is_aligned = matches!(others, Others::Group { align_units: true });
        let networks = match is_aligned {
            true => ffns_of(mixture),
            false => Vec::new(),
        };
        let mut units = BTreeMap::new();
        for group in groups.iter().filter(|group| is_aligned && group.len() > 1) {
            units.extend(units_of_group(source, &networks, group)?);
        }
        for tensor in &mixture.tensors {
            let width = tensor.info.shape.last().copied().unwrap_or(1).max(1);
            let n_rows = tensor.info.n_elements() / width;
            let pieces: Vec<Piece> = (groups.iter())
                .map(|group| {
                    let weights = shares(group, &routing.counts);
                    let parts = group.iter().zip(weights).map(|(&expert, weight)| {
                        let (network, units) = (networks.get(expert), units.get(&expert));
                        let piece = moved_piece(tensor, expert, network, units);
                        (weight, piece)
                    });
                    Piece::sum_of(n_rows, parts.collect())
                })
                .collect();
            match &tensor.name {
                ExpertName::Single { .. } => {
                    for (to, piece) in pieces.into_iter().enumerate() {
                        self.add(tensor.place(to).0, tensor.info.clone(), vec![piece]);
                    }
                }
                ExpertName::Fused(key) => {
                    let info = TensorInfo {
                        dtype: tensor.info.dtype,
                        shape: [&[groups.len()], tensor.info.shape.as_slice()].concat(),
                    };
                    self.add(key.clone(), info, pieces);
                }
            }
        }
        for tensor in &mixture.router {
            let info = source.require(&tensor.key)?;
            let mut shape = info.shape.clone();
            let per_expert: usize = shape.iter().skip(tensor.axis + 1).product();
            if let Some(axis) = shape.get_mut(tensor.axis) {
                *axis = groups.len();
            }
            let width = shape.last().copied().unwrap_or(1).max(1);
            let kept = groups.iter().filter_map(|group| group.first().copied());
            // Elements of the kept experts, as rows where they are any.
            let pieces = match tensor.axis + 1 == shape.len() {
                true => {
                    // A single row: each of its elements is an expert's.
                    let columns = kept.map(|expert| expert as u32).collect();
                    vec![Piece {
                        columns: Some(columns),
                        row_elements: Some(mixture.n_experts),
                        ..Piece::of(tensor.key.clone(), 0, 1)
                    }]
                }
                false => kept
                    .map(|expert| {
                        let first = expert * per_expert;
                        Piece::of(tensor.key.clone(), first, per_expert / width)
                    })
                    .collect(),
            };
            let info = TensorInfo {
                dtype: info.dtype,
                shape,
            };
            self.add(tensor.key.clone(), info, pieces);
        }
        Ok(())
    }

    /// The checkpoint as it becomes.
    pub(super) fn view(self, source: Arc<Checkpoint>) -> Arc<Checkpoint> {
        let mut viewed: BTreeMap<String, ViewedTensor> = BTreeMap::new();
        for (name, info) in source.tensors() {
            if !self.gone.contains(name) {
                let tensor = ViewedTensor {
                    name: name.to_owned(),
                    info: info.clone(),
                    origin: Origin::Same(name.to_owned()),
                };
                viewed.insert(name.to_owned(), tensor);
            }
        }
        for (name, info) in self.infos {
            let of = self.arrangements.get(&name);
            let origin = of
                .and_then(|of| of.pieces.first())
                .map(|piece| piece.key.clone());
            let tensor = ViewedTensor {
                name: name.clone(),
                info,
                origin: Origin::Made(origin.unwrap_or_default()),
            };
            viewed.insert(name, tensor);
        }
        let aliases = source.aliases().clone();
        let viewed = viewed.into_values().collect();
        Rearranged::view(source, viewed, aliases, Box::new(self.arrangements))
    }
}

/// The share of each expert of a group by the tokens that went to it; equal ones where none did.
pub(super) fn shares(group: &[usize], counts: &[f64]) -> Vec<f64> {
    let total: f64 = group.iter().map(|&expert| counts[expert]).sum();
    let share = |&expert: &usize| match total > 0.0 {
        true => counts[expert] / total,
        false => 1.0 / group.len() as f64,
    };
    group.iter().map(share).collect()
}
