//! Mixtures with fewer experts: pruned or merged in groups, by how tokens go to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::draft::Draft;
use crate::beside::experts::{Choice, Counted, Groups, choice, set_counts};
use crate::gram::GramStore;
use crate::layouts::{self, ModelRecord};
use crate::mixtures::{
    Arrangement, ExpertName, Mixture, Origin, Piece, Rearranged, Routing, ViewedTensor, ffns_of,
    moved_piece, survey, units_of_group,
};
use crate::plan::grams::check_sizes;
use crate::recipe::OutputDType;
use crate::{Checkpoint, ConversionFault, MergePlan, Result, TensorInfo, model_config};

/// The number of experts that stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// As many in each mixture.
    Each(usize),
    /// As many in all mixtures together, so that mixtures keep different numbers: in each as many at least as a token
    /// goes to, and then those of most worth in all (M-SMoE).
    InAll(usize),
}

/// The measure of an expert's worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// Those whose weighted answers are the longest, on average over their tokens (REAP).
    Saliency,
    /// Those that most tokens go to.
    Frequency,
}

/// The treatment of the experts that do not stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// They are left out (REAP).
    Prune,
    /// Each is merged into the kept expert whose scores are most like its own, weighted by frequency (M-SMoE).
    Group {
        /// Whether hidden units are matched with those of the group's first expert by number before.
        align_units: bool,
    },
}

/// Fewer experts in each mixture. Experts that stay keep their order, and the router's rows go with them.
///
/// Lasby et al. 2025, "REAP the Experts", <https://arxiv.org/abs/2510.13999>; Li et al. 2024, "Merge, Then Compress",
/// <https://arxiv.org/abs/2310.01334>.
#[derive(Clone)]
pub struct FewerExperts {
    /// The number of experts that stay.
    pub keep: Keep,
    /// The measure that picks them.
    pub worth: Worth,
    /// The treatment of the others.
    pub others: Others,
    /// A gram file over the model, which says how tokens go to experts.
    pub grams: Arc<GramStore>,
    /// Whether the output is a model folder, with the files beside the input and a configuration that says how many
    /// experts there are.
    pub is_folder: bool,
    /// Element type of the output.
    pub dtype: OutputDType,
}

/// The result for the experts of a mixture.
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
    /// more experts than there are or none, [`ConversionFault::ExpertGroups`] and [`ConversionFault::UnevenGroups`] for
    /// numbers that groups of experts do not allow, [`ConversionFault::ScoresUnknown`] for groups without the router's
    /// inputs, [`ConversionFault::Config`] for what the configuration of a folder cannot say,
    /// [`crate::MergeFault::ForeignGrams`] for a gram file over another model, as far as sizes tell before the plan runs,
    /// [`crate::StatisticsFault::GramParts`] for one of a part of its data, and as [`Routing::read`] and [`survey`].
    pub fn plan(&self, source: Arc<Checkpoint>) -> Result<(MergePlan, Vec<ExpertsKept>)> {
        source.require_unique_names()?;
        self.grams.require_whole()?;
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
        let config = model_config::of(&source)?;
        let is_eve = layout.name().starts_with("eve/");
        let mut mixtures: Vec<&Mixture> = mixtures.values().collect();
        mixtures.sort_by_key(|mixture| numbers_in(&mixture.host));
        let observed = mixtures.into_iter().map(|mixture| {
            let choice = match (&config, is_eve) {
                (_, true) => Choice {
                    per_token: Some(EVE_CHOICES),
                    ..Choice::default()
                },
                (Some(config), false) => choice(config, &mixture.host),
                (None, false) => Choice::default(),
            };
            Ok(Observed {
                mixture,
                choice,
                routing: Routing::read(&self.grams, &source, mixture)?,
            })
        });
        let observed = observed.collect::<Result<Vec<_>>>()?;
        let stay = self.stay(&observed)?;
        let mut made = Made::default();
        let mut kept = Vec::with_capacity(observed.len());
        let mut counted = Vec::with_capacity(observed.len());
        for (of, stay) in observed.into_iter().zip(stay) {
            let groups = self.groups(&of, &stay)?;
            made.mixture(&source, of.mixture, &groups, &of.routing, self.others)?;
            counted.push(Counted {
                host: of.mixture.host.clone(),
                before: of.mixture.n_experts,
                after: groups.len(),
            });
            kept.push(ExpertsKept {
                mixture: of.mixture.host.clone(),
                frequency: of.frequency(),
                saliency: of.routing.saliency,
                groups,
            });
        }
        let view = made.view(Arc::clone(&source));
        let draft = Draft::copy_of(view)?;
        let model = ModelRecord::default();
        let plan = draft.finish(layout.as_ref(), self.to_string(), self.dtype, model)?;
        let plan = plan.decided_by(&self.grams);
        if is_eve {
            return Ok((plan, kept));
        }
        let change = |config: &mut Value| set_counts(config, &counted);
        let plan = plan.with_files_of(&source, self.is_folder, Box::new(change))?;
        Ok((plan, kept))
    }

    /// The experts of each mixture that stay.
    fn stay(&self, mixtures: &[Observed<'_>]) -> Result<Vec<BTreeSet<usize>>> {
        let keep = match self.keep {
            Keep::Each(keep) => keep,
            Keep::InAll(total) => return self.best_of_all(mixtures, total),
        };
        for of in mixtures {
            let n_experts = of.mixture.n_experts;
            if keep == 0 || keep > n_experts {
                return Err(left(of.mixture.host.clone(), n_experts, keep));
            }
        }
        let of = |of: &Observed<'_>| of.best(keep, &of.worth(self.worth));
        mixtures.iter().map(of).collect()
    }

    /// The experts of most worth of the whole model: of each mixture as many at least as a token goes to, `total` of
    /// all together.
    fn best_of_all(&self, mixtures: &[Observed<'_>], total: usize) -> Result<Vec<BTreeSet<usize>>> {
        let (mut n_experts, mut least) = (0, 0);
        for of in mixtures {
            if of.choice.groups.is_some() {
                let mixture = of.mixture.host.clone();
                return Err(ConversionFault::UnevenGroups { mixture }.into());
            }
            n_experts += of.mixture.n_experts;
            least += of.least();
        }
        if total < least || total > n_experts {
            let all = format!("all {} mixtures", mixtures.len());
            return Err(left(all, n_experts, total));
        }
        let mut stay = Vec::with_capacity(mixtures.len());
        let mut others: Vec<(f64, usize, usize)> = Vec::new();
        for (index, of) in mixtures.iter().enumerate() {
            let worth = of.worth(self.worth);
            let best = of.best(of.least(), &worth)?;
            let rest = worth.into_iter().enumerate();
            let rest = rest.filter(|(expert, _)| !best.contains(expert));
            others.extend(rest.map(|(expert, worth)| (worth, index, expert)));
            stay.push(best);
        }
        // Of experts of the same worth the first ones stay.
        others.sort_by(|one, other| other.0.total_cmp(&one.0));
        for (_, index, expert) in others.into_iter().take(total - least) {
            stay[index].insert(expert);
        }
        Ok(stay)
    }

    /// The experts that each expert of the output is made of.
    fn groups(&self, of: &Observed<'_>, stay: &BTreeSet<usize>) -> Result<Vec<Vec<usize>>> {
        let mut groups: BTreeMap<usize, Vec<usize>> =
            stay.iter().map(|&expert| (expert, vec![expert])).collect();
        if matches!(self.others, Others::Group { .. }) {
            let alike =
                (of.routing.alike.as_ref()).ok_or_else(|| ConversionFault::ScoresUnknown {
                    path: self.grams.checkpoint().path().into(),
                    mixture: of.mixture.host.clone(),
                })?;
            for expert in (0..of.mixture.n_experts).filter(|expert| !stay.contains(expert)) {
                let nearest = stay.iter().copied().reduce(|best, next| {
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

/// Experts that a token of EVE goes to.
const EVE_CHOICES: usize = 2;

/// That as many experts cannot be left.
fn left(mixture: String, n_experts: usize, keep: usize) -> crate::Error {
    let fault = ConversionFault::ExpertsLeft {
        mixture,
        n_experts,
        keep,
    };
    fault.into()
}

/// A mixture, and how tokens go to its experts.
struct Observed<'a> {
    mixture: &'a Mixture,
    choice: Choice,
    routing: Routing,
}

impl Observed<'_> {
    /// The share of tokens' choices that went to each expert.
    fn frequency(&self) -> Vec<f64> {
        let counts = &self.routing.counts;
        let all: f64 = counts.iter().sum();
        counts.iter().map(|count| count / all.max(1.0)).collect()
    }

    /// The worth of each expert.
    fn worth(&self, worth: Worth) -> Vec<f64> {
        match worth {
            Worth::Saliency => self.routing.saliency.clone(),
            Worth::Frequency => {
                // The share of tokens, for mixtures may see different numbers of them.
                let n_tokens = self.routing.n_tokens.max(f64::MIN_POSITIVE);
                let counts = self.routing.counts.iter();
                counts.map(|count| count / n_tokens).collect()
            }
        }
    }

    /// Experts that a token goes to, as far as it is known: the fewest that may stay.
    fn least(&self) -> usize {
        let per_token = self.choice.per_token.unwrap_or(1);
        per_token.clamp(1, self.mixture.n_experts.max(1))
    }

    /// The `keep` experts of the largest worth. Where the router picks among groups, as many of each group.
    fn best(&self, keep: usize, worth: &[f64]) -> Result<BTreeSet<usize>> {
        let n_experts = worth.len();
        let n_groups = match self.choice.groups {
            None => 1,
            Some(groups) => {
                self.require_groups(keep, groups)?;
                groups.n
            }
        };
        let size = n_experts / n_groups;
        let mut best = BTreeSet::new();
        for group in 0..n_groups {
            let mut order: Vec<usize> = (group * size..(group + 1) * size).collect();
            // Of experts of the same worth the first ones stay.
            order.sort_by(|&a, &b| worth[b].total_cmp(&worth[a]));
            best.extend(order.into_iter().take(keep / n_groups));
        }
        Ok(best)
    }

    /// Refuses a number of experts that groups cannot have, or that a token has not enough of in the groups that it
    /// picks.
    fn require_groups(&self, keep: usize, groups: Groups) -> Result<()> {
        let of_token = self
            .choice
            .per_token
            .unwrap_or(1)
            .div_ceil(groups.chosen.max(1));
        let least = groups.n.saturating_mul(of_token.max(groups.least));
        let n_experts = self.mixture.n_experts;
        if keep.is_multiple_of(groups.n) && keep >= least && n_experts.is_multiple_of(groups.n) {
            return Ok(());
        }
        Err(ConversionFault::ExpertGroups {
            mixture: self.mixture.host.clone(),
            n_experts,
            n_groups: groups.n,
            least,
            keep,
        }
        .into())
    }
}

impl fmt::Display for FewerExperts {
    /// The command, for provenance.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keep = match self.keep {
            Keep::Each(keep) => keep.to_string(),
            Keep::InAll(keep) => format!("{keep}, in_all: true"),
        };
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
            "convert: {{ experts: {keep}, by: {worth}, others: {others}, grams: {} }}",
            name_of(&self.grams)
        )
    }
}

/// The numbers in a name, and then the name: what sorts layers.
fn numbers_in(name: &str) -> (Vec<u64>, String) {
    let segments = name.split('.').filter_map(|segment| segment.parse().ok());
    (segments.collect(), name.to_owned())
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
            let mut group = group.clone();
            group.sort_unstable();
            units.extend(units_of_group(source, &networks, &group)?);
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
