//! Mixtures of experts as dense networks.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::draft::Draft;
use super::fewer_experts::{Made, name_of, shares};
use crate::beside::experts::{Said, layer_of};
use crate::beside::forms::remove_mixtures;
use crate::gram::GramStore;
use crate::layouts::{self, ModelRecord};
use crate::mixtures::spelling::starting_with;
use crate::mixtures::{MixtureSpelling, Piece, Routing, respelled, survey};
use crate::plan::grams::check_sizes;
use crate::recipe::OutputDType;
use crate::{Checkpoint, ConversionFault, MergePlan, Result};

/// The parameters of a norm.
const NORM: [&str; 2] = ["weight", "bias"];

/// Each mixture becomes one dense network: the mean of its experts, or the mean weighted by the tokens that go to
/// them. The router is left out.
#[derive(Clone)]
pub struct DenseOfExperts {
    /// A gram file over the model, which says how tokens go to experts, to weigh them by that.
    pub grams: Option<Arc<GramStore>>,
    /// Whether the output is a model folder, with the files beside the input and the configuration of a dense model.
    pub is_folder: bool,
    /// Element type of the output.
    pub dtype: OutputDType,
}

impl DenseOfExperts {
    /// Says what happens to every key.
    ///
    /// # Errors
    /// [`ConversionFault::NoSuchConversion`] for a checkpoint without mixtures, [`ConversionFault::OtherMixture`] for
    /// experts of a kind that has no dense spelling, [`ConversionFault::SharedExpert`] for a mixture with an expert
    /// that all tokens go to, [`ConversionFault::Config`] for a folder of an architecture without a dense form,
    /// [`crate::MergeFault::ForeignGrams`] and [`crate::StatisticsFault::GramParts`] as in [`FewerExperts::plan`](super::FewerExperts::plan),
    /// and as [`Routing::read`] and [`survey`].
    pub fn plan(&self, source: Arc<Checkpoint>) -> Result<MergePlan> {
        source.require_unique_names()?;
        if let Some(grams) = &self.grams {
            grams.require_whole()?;
            check_sizes(grams, &source)?;
        }
        let layout = layouts::detect(&source)?;
        let is_eve = layout.name().starts_with("eve/");
        let (source, spelled) = match is_eve {
            true => (Arc::clone(&source), source),
            false => (
                Arc::clone(&source),
                respelled(source, MixtureSpelling::SingleExperts)?,
            ),
        };
        let (before, mixtures) = (survey(&source)?, survey(&spelled)?);
        if mixtures.is_empty() {
            return Err(ConversionFault::NoSuchConversion {
                path: source.path().into(),
                layout: layout.name(),
                wanted: "made dense: it has no mixture of experts",
            }
            .into());
        }
        let names: Vec<&str> = spelled.tensors().map(|(key, _)| key).collect();
        let mut made = Made::default();
        for (mixture, original) in mixtures.values().zip(before.values()) {
            let is_known = MixtureSpelling::of(mixture) == Some(MixtureSpelling::SingleExperts);
            if !is_known && !is_eve {
                return Err(ConversionFault::OtherMixture {
                    path: source.path().into(),
                    mixture: mixture.host.clone(),
                }
                .into());
            }
            let counts = match &self.grams {
                Some(grams) => Routing::read(grams, &source, original)?.counts,
                None => vec![0.0; mixture.n_experts],
            };
            let all: Vec<usize> = (0..mixture.n_experts).collect();
            let weights = shares(&all, &counts);
            mixture.keys().for_each(|key| made.leave_out(key));
            let block = mixture.host.strip_suffix(".mlp_moe.moe");
            for tensor in &mixture.tensors {
                let width = tensor.info.shape.last().copied().unwrap_or(1).max(1);
                let n_rows = tensor.info.n_elements() / width;
                let parts = all.iter().zip(&weights).map(|(&expert, &weight)| {
                    let (key, first) = tensor.place(expert);
                    (weight, Piece::of(key, first, n_rows))
                });
                let piece = Piece::sum_of(n_rows, parts.collect());
                let name = match block {
                    Some(block) if is_eve => format!("{block}.mlp_imag.{}", tensor.part()),
                    _ => format!("{}.{}", mixture.host, tensor.part()),
                };
                made.add(name, tensor.info.clone(), vec![piece]);
            }
            let start = format!("{}.", mixture.host);
            let own: BTreeSet<String> = mixture.keys().collect();
            for key in starting_with(&names, &start).filter(|key| !own.contains(*key)) {
                // The tag of the modality is for the router.
                let is_tag = matches!(&key[start.len()..], "vision_embed" | "text_embed");
                if !(is_eve && is_tag) {
                    return Err(ConversionFault::SharedExpert {
                        path: source.path().into(),
                        key: key.to_owned(),
                    }
                    .into());
                }
                made.leave_out(key.to_owned());
            }
            for (block, part) in block
                .iter()
                .flat_map(|block| NORM.map(|part| (block, part)))
            {
                let (from, to) = (
                    format!("{block}.norm2_vl.{part}"),
                    format!("{block}.norm2_imag.{part}"),
                );
                if let (true, Some(info)) = (is_eve, spelled.get(&from)) {
                    made.add(to, info.clone(), vec![Piece::of(from.clone(), 0, 1)]);
                    made.leave_out(from);
                }
            }
        }
        let draft = Draft::copy_of(made.view(spelled))?;
        let model = ModelRecord::default();
        let mut plan = draft.finish(layout.as_ref(), self.to_string(), self.dtype, model)?;
        if let Some(grams) = &self.grams {
            plan = plan.decided_by(grams);
        }
        if is_eve {
            return Ok(plan);
        }
        let layers: Vec<usize> = before.keys().map(|host| layer_of(host).1).collect();
        let change = |config: &mut Value| {
            remove_mixtures(config, &layers)?;
            Ok(Said::of(&["model_type"]))
        };
        plan.with_files_of(&source, self.is_folder, Box::new(change))
    }
}

impl fmt::Display for DenseOfExperts {
    /// The command, for provenance.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weighted = match &self.grams {
            Some(grams) => format!(", by: frequency, grams: {}", name_of(grams)),
            None => String::new(),
        };
        write!(f, "convert: {{ experts: dense{weighted} }}")
    }
}
