//! Dense networks as mixtures of experts.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::draft::Draft;
use super::fewer_experts::Made;
use crate::beside::experts::{Said, layer_of};
use crate::beside::forms::{add_mixtures, mixtures_of};
use crate::layouts::{self, ModelRecord};
use crate::mixtures::{MAX_EXPERTS, Piece, respelled};
use crate::plan::{Action, Entry, Generator};
use crate::random::Draws;
use crate::recipe::OutputDType;
use crate::{Checkpoint, ConversionFault, DType, MergePlan, Result, TensorInfo, model_config};

/// Each dense network becomes a mixture of copies of it, behind a router that is drawn (sparse upcycling, Komatsuzaki
/// et al. 2023, <https://arxiv.org/abs/2212.05055>). Where the weights of a token's choices add up to 1, as those of
/// Mixtral and EVE do, the model computes what it did.
#[derive(Clone, Debug)]
pub struct Upcycling {
    /// Experts of each mixture.
    pub n_experts: usize,
    /// The blocks that get one; all that have a dense network unless given.
    pub blocks: Option<Range<usize>>,
    /// The seed of the routers' draws.
    pub seed: u64,
    /// Whether the output is a model folder, with the files beside the input, the configuration of a model with
    /// mixtures and its spelling.
    pub is_folder: bool,
    /// Element type of the output.
    pub dtype: OutputDType,
}

/// A dense network that can be an expert, and what its tensors are called before and after.
struct Form {
    /// The end of the network's name.
    network: &'static str,
    /// Its tensors; the first has the width of the inputs as its last axis.
    parts: &'static [&'static str],
    /// The names in the network's place, before the number of the expert.
    experts: &'static str,
    router: &'static str,
    /// Norms that serve the mixture in place of the network.
    norms: &'static [(&'static str, &'static str)],
    /// Names that must not stand beside it: another network of the same place, or a part that experts would lack.
    unless: &'static [&'static str],
}

const FORMS: [Form; 2] = [
    Form {
        network: "mlp",
        parts: &["gate_proj.weight", "up_proj.weight", "down_proj.weight"],
        experts: "mlp.experts",
        router: "mlp.gate.weight",
        norms: &[],
        unless: &["mlp.down_proj.bias"],
    },
    // A block of EVE with one network for all tokens.
    Form {
        network: "mlp_imag",
        parts: &["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"],
        experts: "mlp_moe.moe.experts.experts",
        router: "mlp_moe.moe.gate.wg.weight",
        norms: &[
            ("norm2_imag.weight", "norm2_vl.weight"),
            ("norm2_imag.bias", "norm2_vl.bias"),
        ],
        unless: &["mlp_text.fc1.weight", "mlp_vl.fc1.weight"],
    },
];

/// A network that becomes a mixture.
struct Network {
    /// The block, with a dot at its end.
    block: String,
    form: &'static Form,
    width: usize,
    dtype: DType,
}

impl Upcycling {
    /// Says what happens to every key.
    ///
    /// # Errors
    /// [`ConversionFault::NoSuchConversion`] for a checkpoint without dense networks that can be experts,
    /// [`ConversionFault::ExpertsLeft`] for fewer than two experts, or more than any model has, and
    /// [`ConversionFault::Config`] for a folder of an architecture that has no form with mixtures, or none in some layers
    /// alone.
    pub fn plan(&self, source: Arc<Checkpoint>) -> Result<MergePlan> {
        source.require_unique_names()?;
        let layout = layouts::detect(&source)?;
        let networks = self.networks(&source);
        let Some(first) = networks.first() else {
            return Err(ConversionFault::NoSuchConversion {
                path: source.path().into(),
                layout: layout.name(),
                wanted: "given mixtures: no block asked for has one `mlp` of gate_proj, up_proj and down_proj without \
                         biases, or one network `mlp_imag` for all tokens",
            }
            .into());
        };
        if !(2..=MAX_EXPERTS).contains(&self.n_experts) {
            return Err(ConversionFault::ExpertsLeft {
                mixture: format!("{}{}", first.block, first.form.network),
                n_experts: 1,
                keep: self.n_experts,
            }
            .into());
        }
        let mut made = Made::default();
        for Network { block, form, .. } in &networks {
            let copied = |key: &str| -> Result<(TensorInfo, Vec<Piece>)> {
                let info = source.require(key)?.clone();
                let width = info.shape.last().copied().unwrap_or(1).max(1);
                let piece = Piece::of(key.to_owned(), 0, info.n_elements() / width);
                Ok((info, vec![piece]))
            };
            for part in form.parts {
                let key = format!("{block}{}.{part}", form.network);
                let (info, pieces) = copied(&key)?;
                made.leave_out(key);
                for expert in 0..self.n_experts {
                    let name = format!("{block}{}.{expert}.{part}", form.experts);
                    made.add(name, info.clone(), pieces.clone());
                }
            }
            for (from, to) in form.norms {
                let key = format!("{block}{from}");
                let (info, pieces) = copied(&key)?;
                made.leave_out(key);
                made.add(format!("{block}{to}"), info, pieces);
            }
        }
        let mut config = model_config::of(&source)?.filter(|_| self.is_folder);
        // Without one the configuration is refused below.
        let spelling = config.as_mut().and_then(|config| mixtures_of(config).ok());
        let view = made.view(Arc::clone(&source));
        let mut draft = Draft::copy_of(match spelling {
            Some(spelling) => respelled(view, spelling)?,
            None => view,
        })?;
        let mut layers = Vec::with_capacity(networks.len());
        for Network {
            block,
            form,
            width,
            dtype,
        } in networks
        {
            let own = format!("{block}{}", form.router);
            let draws = Draws::new(self.seed, &own);
            let name = match spelling {
                Some(spelling) => format!("{block}{}", spelling.router()),
                None => own,
            };
            layers.push(layer_of(&block).1);
            draft.put(Entry {
                info: TensorInfo {
                    dtype,
                    shape: vec![self.n_experts, width],
                },
                action: Action::Generate(Arc::new(Drawn(draws))),
                why: format!("normal ± {DEVIATION}"),
                name,
            })?;
        }
        let model = ModelRecord::default();
        let plan = draft.finish(layout.as_ref(), self.to_string(), self.dtype, model)?;
        if layout.name().starts_with("eve/") {
            return Ok(plan);
        }
        let change = |config: &mut Value| {
            add_mixtures(config, &layers, self.n_experts)?;
            Ok(Said::of(&["model_type"]))
        };
        plan.with_files_of(&source, self.is_folder, Box::new(change))
    }

    /// The networks that become mixtures, by name.
    fn networks(&self, source: &Checkpoint) -> Vec<Network> {
        let of = |(key, info): (&str, &TensorInfo)| {
            let (block, form) = FORMS.iter().find_map(|form| {
                let first = format!("{}.{}", form.network, form.parts.first()?);
                let block = key.strip_suffix(&first)?;
                (block.is_empty() || block.ends_with('.')).then_some((block, form))
            })?;
            let has = |name: &str| source.get(&format!("{block}{name}")).is_some();
            let has_part = |part: &&str| has(&format!("{}.{part}", form.network));
            let is_whole = form.parts.iter().all(has_part)
                && form.norms.iter().all(|(norm, _)| has(norm))
                && !form.unless.iter().any(|name| has(name));
            (is_whole && self.takes(block)).then(|| Network {
                block: block.to_owned(),
                form,
                width: info.shape.last().copied().unwrap_or(0),
                dtype: info.dtype,
            })
        };
        source.tensors().filter_map(of).collect()
    }

    /// Whether a block gets a mixture, by the last number in its name.
    fn takes(&self, block: &str) -> bool {
        let mut parts = block.rsplit('.');
        let number = parts.find_map(|part| part.parse::<usize>().ok());
        match (&self.blocks, number) {
            (None, _) => true,
            (Some(blocks), number) => number.is_some_and(|number| blocks.contains(&number)),
        }
    }
}

/// The standard deviation of a fresh router's weights, as that of other linear layers.
const DEVIATION: f32 = 0.02;

/// A fresh router.
struct Drawn(Draws);

impl Generator for Drawn {
    fn fill(&self, first: usize, out: &mut [f32]) {
        out.fill(0.0);
        self.0.add_normal(DEVIATION, first, out);
    }
}

impl fmt::Display for Upcycling {
    /// The command, for provenance.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            n_experts, seed, ..
        } = self;
        write!(
            f,
            "expand: {{ to: mixture, n_experts: {n_experts}, seed: {seed}"
        )?;
        if let Some(Range { start, end }) = &self.blocks {
            write!(f, ", blocks: {start}..{end}")?;
        }
        f.write_str(" }")
    }
}
