//! Mixtures made of dense models: their feed-forward networks become experts, the rest is that of the base.
//!
//! [`MoeRecipe`] is a recipe of `mergekit-moe` as written, [`Mixing`] makes it a [`MergePlan`]. A row of [`ARCHITECTURES`] holds
//! the names that an architecture gives to its tensors, and the settings of experts in its configuration.
//!
//! Reference: mergekit 0.1.5, `mergekit-moe`; its experts come in the spelling that models of the hub have.

mod architectures;
mod gates;
mod recipe;
mod reshaped;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

pub use architectures::{ARCHITECTURES, Architecture};
pub use gates::PromptIds;
pub use recipe::{GateMode, MoeExpert, MoeRecipe};

use crate::beside::{Companions, Share};
use crate::error::MoeFault;
use crate::methods::StepRounding;
use crate::plan::{Action, Entry, PlanBuilder, TensorRef, opened};
use crate::provenance::short_names;
use crate::random::Draws;
use crate::recipe::{ModelRef, OutputDType, adapters};
use crate::{Checkpoint, ConversionFault, DType, MergePlan, PlanFault, Result, TensorInfo};
use gates::{Gate, cheap_embed};
use reshaped::Reshaped;

/// The weights of a dense network: what makes a gate, a value, and the output.
const NETWORK: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// Sizes that all models share, by their keys.
const SIZES: [&str; 3] = ["hidden_size", "intermediate_size", "num_hidden_layers"];

/// The embeddings of tokens.
const EMBEDDINGS: &str = "model.embed_tokens.weight";

/// A mixture that is to be made.
#[derive(Clone, Debug)]
pub struct Mixing<'a> {
    /// The recipe.
    pub recipe: &'a MoeRecipe,
    /// The tokens of the prompts of each of [`MoeRecipe::gated`], for `cheap_embed`.
    pub prompts: &'a [PromptIds],
    /// The seed of gates that are drawn, and of noise.
    pub seed: u64,
    /// Whether the output is a model folder.
    pub is_folder: bool,
}

/// A model, open, and what its configuration says.
struct Model {
    path: PathBuf,
    config: Map<String, Value>,
    checkpoint: Arc<Checkpoint>,
    /// Its place in the plan.
    source: usize,
}

impl Model {
    fn open(path: &Path, notes: &mut Vec<String>) -> Result<Self> {
        let (checkpoint, said) = opened(path)?;
        notes.extend(said);
        let (plain, _) = adapters_apart(path);
        let config = Companions::of_model(&plain)?.settings("config.json")?;
        let Some(Value::Object(config)) = config else {
            return Err(MoeFault::NoConfig { path: path.into() }.into());
        };
        Ok(Self {
            path: path.into(),
            config,
            checkpoint,
            source: 0,
        })
    }

    fn model_type(&self) -> &str {
        let own = self.config.get("model_type").and_then(Value::as_str);
        own.unwrap_or("model without model_type")
    }

    fn size(&self, key: &'static str) -> Result<usize> {
        let size = self.config.get(key).and_then(Value::as_u64);
        let size = size.and_then(|size| usize::try_from(size).ok());
        // As a layer has tensors, more layers than a file has bytes are a lie.
        let is_size = |size: &usize| (1..=1 << 24).contains(size);
        size.filter(is_size).ok_or_else(|| {
            let reason = format!("it does not say `{key}`, or says no size");
            self.bad_config(reason).into()
        })
    }

    fn bad_config(&self, reason: String) -> ConversionFault {
        ConversionFault::Config {
            path: self.path.join("config.json"),
            reason,
        }
    }
}

/// The path of a model, and the adapters on it.
fn adapters_apart(path: &Path) -> (PathBuf, Vec<PathBuf>) {
    let model = ModelRef::new(path);
    let own = model.adapter.iter().flat_map(|text| adapters(text));
    (model.model.clone(), own.map(|(path, _)| path).collect())
}

impl Mixing<'_> {
    /// The architecture of the mixture that a recipe asks for.
    ///
    /// # Errors
    /// [`MoeFault::NoArchitecture`], and when a configuration cannot be read.
    pub fn architecture(&self) -> Result<&'static Architecture> {
        let mut notes = Vec::new();
        let models = self.recipe.models();
        let models = models.iter().map(|path| Model::open(path, &mut notes));
        let models = models.collect::<Result<Vec<_>>>()?;
        self.chosen(&models)
    }

    fn chosen(&self, models: &[Model]) -> Result<&'static Architecture> {
        let types: Vec<&str> = models.iter().map(Model::model_type).collect();
        architectures::choose(self.recipe, &types)
    }

    /// Says what happens to every key.
    ///
    /// # Errors
    /// [`MoeFault`], [`ConversionFault::Config`], [`crate::PlanFault`] for networks of other shapes than the base's, and when
    /// a model cannot be read.
    pub fn plan(&self) -> Result<MergePlan> {
        let recipe = self.recipe;
        let mut notes = Vec::new();
        let paths = recipe.models();
        let mut models = Vec::with_capacity(paths.len());
        for path in &paths {
            models.push(Model::open(path, &mut notes)?);
        }
        let architecture = self.chosen(&models)?;
        let [base, others @ ..] = &models[..] else {
            return Err(recipe.bad("names no model"));
        };
        for model in others {
            for key in SIZES {
                let (found, expected) = (model.size(key)?, base.size(key)?);
                if found != expected {
                    return Err(MoeFault::OtherSize {
                        path: model.path.clone(),
                        key,
                        found,
                        base: base.path.clone(),
                        expected,
                    }
                    .into());
                }
            }
        }
        if recipe.gate_mode.needs_forward() {
            return Err(MoeFault::NoForward {
                gate_mode: recipe.gate_mode.name(),
                model_type: base.model_type().to_owned(),
            }
            .into());
        }
        let gates = self.gates(base)?;
        let mut builder = PlanBuilder::new(self.resolved(&paths)?);
        let base_source = builder.source(Arc::clone(&base.checkpoint));
        for model in &mut models[1..] {
            model.source = builder.side_source(Arc::clone(&model.checkpoint));
        }
        let made = Made {
            dtype: self.dtype(&models[0])?,
            seed: self.seed,
            width: models[0].size("hidden_size")?,
            units: models[0].size("intermediate_size")?,
        };
        made.base(&mut builder, &models[0], architecture, recipe)?;
        let n_layers = models[0].size("num_hidden_layers")?;
        let width = made.width;
        for layer in 0..n_layers {
            let find = |expert: &MoeExpert| {
                let mut models = models.iter();
                models.find(|model| model.path == expert.source_model.path)
            };
            for (number, expert) in recipe.experts.iter().enumerate() {
                let Some(model) = find(expert) else {
                    return Err(recipe.bad("names an expert that is not open"));
                };
                for part in NETWORK {
                    let name = architecture.expert(layer, number, part);
                    made.network(&mut builder, (model, expert), (layer, part), name)?;
                }
            }
            for expert in &recipe.shared_experts {
                let (Some(model), Some(shared)) = (find(expert), architecture.shared) else {
                    return Err(recipe.bad("names a shared expert that has no place"));
                };
                for part in NETWORK {
                    let name = format!("model.layers.{layer}.{shared}.{part}.weight");
                    made.network(&mut builder, (model, expert), (layer, part), name)?;
                }
            }
            let router = format!("model.layers.{layer}.{}", architecture.router);
            let n_experts = recipe.experts.len();
            made.gate(
                &mut builder,
                (router, [n_experts, width]),
                gates.routed(layer),
            )?;
            if let Some(gate) = architecture.shared_gate {
                let name = format!("model.layers.{layer}.{gate}");
                made.gate(
                    &mut builder,
                    (name, [1, width]),
                    gates.shared(layer, n_experts),
                )?;
            }
        }
        debug_assert_eq!(base_source, models[0].source);
        let plan = builder.finish()?;
        let change = |config: &mut Value| architecture.configure(config, recipe);
        let plan = plan.with_files_of(&models[0].checkpoint, self.is_folder, Box::new(change))?;
        let shares = models.iter().enumerate().flat_map(|(index, model)| {
            let share = if index == 0 {
                Share::Base
            } else {
                Share::Expert
            };
            let (plain, adapters) = adapters_apart(&model.path);
            let adapters = adapters.into_iter().map(|path| (path, Share::Adapter));
            std::iter::once((plain, share)).chain(adapters)
        });
        plan.made_of(&shares.collect::<Vec<_>>(), notes)
    }

    /// The recipe with every setting and file names instead of paths, for provenance.
    fn resolved(&self, paths: &[PathBuf]) -> Result<String> {
        let all: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        let names: BTreeMap<&Path, String> = all.iter().copied().zip(short_names(&all)).collect();
        let mut recipe = self.recipe.clone();
        let named = recipe.experts.iter_mut().chain(&mut recipe.shared_experts);
        let named = named.map(|expert| &mut expert.source_model);
        for model in named.chain([&mut recipe.base_model]) {
            if let Some(name) = names.get(model.path.as_path()) {
                model.path = name.into();
            }
        }
        recipe.to_yaml(self.seed)
    }

    /// The element type of the output: that of the recipe, else that of the base's configuration, as mergekit takes it.
    fn dtype(&self, base: &Model) -> Result<OutputDType> {
        if self.recipe.dtype != OutputDType::Keep {
            return Ok(self.recipe.dtype);
        }
        let keys = ["dtype", "torch_dtype"];
        let said = keys.iter().find_map(|key| base.config.get(*key)?.as_str());
        let Some(said) = said else {
            return Ok(OutputDType::Keep);
        };
        Ok(match said.trim_start_matches("torch.") {
            "float64" => OutputDType::F64,
            "float32" => OutputDType::F32,
            "bfloat16" => OutputDType::Bf16,
            "float16" => OutputDType::F16,
            other => {
                let reason = format!(
                    "its element type `{other}` is not one of float32, bfloat16 and float16"
                );
                return Err(base.bad_config(reason).into());
            }
        })
    }

    /// The rows of all gates.
    fn gates(&self, base: &Model) -> Result<gates::Gates> {
        let recipe = self.recipe;
        Ok(match recipe.gate_mode {
            GateMode::Random => gates::Gates::Normal { seed: self.seed },
            GateMode::UniformRandom => gates::Gates::Uniform {
                seed: self.seed,
                bound: (1.0 / base.size("hidden_size")? as f64).sqrt() as f32,
            },
            _ => {
                let rows =
                    cheap_embed(&base.checkpoint, EMBEDDINGS, &recipe.gated(), self.prompts)?;
                gates::Gates::Given(rows)
            }
        })
    }
}

/// The data that all tensors of an output share.
struct Made {
    dtype: OutputDType,
    seed: u64,
    /// The width of the residual stream.
    width: usize,
    /// The hidden units of a network.
    units: usize,
}

impl Made {
    /// Adds the tensors of the base, and drops its own networks.
    fn base(
        &self,
        builder: &mut PlanBuilder,
        base: &Model,
        architecture: &Architecture,
        recipe: &MoeRecipe,
    ) -> Result<()> {
        let mut all = recipe.experts.iter().chain(&recipe.shared_experts);
        let is_expert = all.any(|expert| expert.source_model.path == base.path);
        for (key, info) in base.checkpoint.tensors() {
            let tensor = TensorRef {
                source: base.source,
                key: key.to_owned(),
            };
            match architecture.place(key) {
                architectures::Place::Kept => {
                    let stored = base.checkpoint.stored_dtype(key).unwrap_or(info.dtype);
                    builder.add(Entry {
                        name: key.to_owned(),
                        info: TensorInfo {
                            dtype: self.dtype.apply(stored),
                            shape: info.shape.clone(),
                        },
                        action: Action::Copy(tensor),
                        why: "of the base".to_owned(),
                    })?;
                }
                architectures::Place::Network if is_expert => {}
                architectures::Place::Network => {
                    builder.drop_tensor(tensor, "experts take its place");
                }
                architectures::Place::Computed => {
                    builder.drop_tensor(tensor, "computed when the model is loaded");
                }
                architectures::Place::None => {
                    return Err(MoeFault::NoPlace {
                        path: base.path.clone(),
                        key: key.to_owned(),
                        model_type: architecture.model_type,
                    }
                    .into());
                }
            }
        }
        if architecture.has_bias {
            self.biases(builder, base)?;
        }
        Ok(())
    }

    /// Adds biases of zero for the projections of an attention that has none, where the mixture wants some.
    fn biases(&self, builder: &mut PlanBuilder, base: &Model) -> Result<()> {
        for layer in 0..base.size("num_hidden_layers")? {
            for part in ["q_proj", "k_proj", "v_proj"] {
                let name = format!("model.layers.{layer}.self_attn.{part}.bias");
                if builder.has(&name) {
                    continue;
                }
                let weight = format!("model.layers.{layer}.self_attn.{part}.weight");
                let info = base.checkpoint.require(&weight)?;
                let stored = base.checkpoint.stored_dtype(&weight).unwrap_or(info.dtype);
                builder.add(Entry {
                    info: TensorInfo {
                        dtype: self.dtype.apply(stored),
                        shape: info.shape.iter().copied().take(1).collect(),
                    },
                    name,
                    action: Action::Generate(Arc::new(Gate::Zero)),
                    why: "zero: the base has no bias".to_owned(),
                })?;
            }
        }
        Ok(())
    }

    /// Adds a tensor of an expert.
    fn network(
        &self,
        builder: &mut PlanBuilder,
        (model, expert): (&Model, &MoeExpert),
        (layer, part): (usize, &str),
        name: String,
    ) -> Result<()> {
        let key = format!("model.layers.{layer}.mlp.{part}.weight");
        let info = model.checkpoint.require(&key)?;
        let stored = model.checkpoint.stored_dtype(&key).unwrap_or(info.dtype);
        let bias = format!("model.layers.{layer}.mlp.{part}.bias");
        if model.checkpoint.get(&bias).is_some() {
            return Err(MoeFault::NoPlace {
                path: model.path.clone(),
                key: bias,
                model_type: "mixture, whose experts have no biases",
            }
            .into());
        }
        // Gates are as wide as the configuration says, which must be true.
        let expected = match part {
            "down_proj" => [self.width, self.units],
            _ => [self.units, self.width],
        };
        if info.shape != expected {
            return Err(PlanFault::Shapes {
                name,
                expected: expected.to_vec(),
                key,
                found: info.shape.clone(),
            }
            .into());
        }
        let tensor = TensorRef {
            source: model.source,
            key,
        };
        let scale = expert.residual_scale.filter(|_| part == "down_proj");
        let label = model.path.file_name().unwrap_or(model.path.as_os_str());
        let label = label.to_string_lossy();
        let (action, why) = match (scale, expert.noise_scale) {
            (None, None) => (Action::Copy(tensor), format!("of {label}")),
            (scale, noise) => {
                let kernel = Reshaped {
                    scale: scale.unwrap_or(1.0),
                    noise: noise.map(|deviation| (Draws::new(self.seed, &name), deviation)),
                };
                let why = format!("of {label}, {kernel}");
                let action = Action::Elementwise {
                    members: vec![tensor],
                    base: None,
                    paired: Vec::new(),
                    kernel: Arc::new(kernel),
                    step: StepRounding::None,
                    is_double: false,
                };
                (action, why)
            }
        };
        builder.add(Entry {
            name,
            info: TensorInfo {
                dtype: self.dtype.apply(stored),
                shape: info.shape.clone(),
            },
            action,
            why,
        })
    }

    /// Adds a gate.
    fn gate(
        &self,
        builder: &mut PlanBuilder,
        (name, shape): (String, [usize; 2]),
        gate: Gate,
    ) -> Result<()> {
        let why = gate.to_string();
        builder.add(Entry {
            name,
            info: TensorInfo {
                dtype: self.dtype.apply(DType::F32),
                shape: shape.to_vec(),
            },
            action: Action::Generate(Arc::new(gate)),
            why,
        })
    }
}
