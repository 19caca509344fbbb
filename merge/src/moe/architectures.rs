//! Architectures of mixtures, and what becomes of a dense model's keys and configuration.

use serde_json::{Map, Value, json};

use super::MoeRecipe;
use crate::Result;
use crate::beside::experts::Said;
use crate::error::MoeFault;

/// An architecture with mixtures.
#[derive(Debug)]
pub struct Architecture {
    /// Its name in recipes; the beginning is enough.
    pub name: &'static str,
    /// Its name in configurations.
    pub model_type: &'static str,
    /// Its class.
    class: &'static str,
    /// Dense architectures that it can be made of.
    dense: &'static [&'static str],
    /// Shared experts that it takes.
    n_shared: std::ops::RangeInclusive<usize>,
    /// Whether the shared expert has a gate.
    gates_shared: bool,
    /// The module that experts are in.
    experts: &'static str,
    /// The names of the three weights of an expert.
    parts: [&'static str; 3],
    /// The router.
    pub(super) router: &'static str,
    /// The name of a shared expert.
    pub(super) shared: Option<&'static str>,
    /// The gate of the shared expert.
    pub(super) shared_gate: Option<&'static str>,
    /// Whether the projections of queries, keys and values have biases.
    pub(super) has_bias: bool,
    /// Whether other biases of the attention have a place.
    has_every_bias: bool,
    /// The keys of the configuration with the number of experts and of shared ones.
    counts: (&'static str, Option<&'static str>),
    /// Keys that get a value of their own.
    settings: &'static [(&'static str, Setting)],
    /// Keys of a configuration that the dense architecture and this one do not take alike where they are not there.
    told: &'static [&'static str],
}

/// The value of a key of a configuration.
#[derive(Clone, Copy, Debug)]
enum Setting {
    True,
    False,
    Null,
    Number(u64),
    Text(&'static str),
    /// That of the hidden units of the dense network.
    Units,
}

/// The fate of a tensor of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It stays.
    Kept,
    /// It is of a network that experts take the place of.
    Network,
    /// The model computes it.
    Computed,
    /// The mixture has no place for it.
    None,
}

const PLAIN: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// Facts are those of transformers 5; names are those of models on the hub. The first one that takes the models is made,
/// Mixtral before all others.
pub const ARCHITECTURES: [Architecture; 4] = [
    Architecture {
        name: "Mixtral",
        model_type: "mixtral",
        class: "MixtralForCausalLM",
        dense: &["llama", "mistral"],
        n_shared: 0..=0,
        gates_shared: false,
        experts: "block_sparse_moe.experts",
        parts: ["w1", "w3", "w2"],
        router: "block_sparse_moe.gate.weight",
        shared: None,
        shared_gate: None,
        has_bias: false,
        has_every_bias: false,
        counts: ("num_local_experts", None),
        settings: &[("sliding_window", Setting::Null)],
        told: &[
            "num_key_value_heads",
            "max_position_embeddings",
            "rms_norm_eps",
            "rope_theta",
        ],
    },
    Architecture {
        name: "DeepSeek MoE",
        model_type: "deepseek",
        class: "DeepseekForCausalLM",
        dense: &["llama", "mistral"],
        n_shared: 0..=1,
        gates_shared: false,
        experts: "mlp.experts",
        parts: PLAIN,
        router: "mlp.gate.weight",
        shared: Some("mlp.shared_experts"),
        shared_gate: None,
        has_bias: false,
        has_every_bias: true,
        counts: ("n_routed_experts", Some("n_shared_experts")),
        settings: &[
            ("first_k_dense_replace", Setting::Number(0)),
            ("moe_layer_freq", Setting::Number(1)),
            ("scoring_func", Setting::Text("softmax")),
            ("norm_topk_prob", Setting::True),
            ("moe_intermediate_size", Setting::Units),
        ],
        told: &[
            "num_key_value_heads",
            "max_position_embeddings",
            "rms_norm_eps",
            "rope_theta",
        ],
    },
    Architecture {
        name: "Qwen MoE",
        model_type: "qwen2_moe",
        class: "Qwen2MoeForCausalLM",
        dense: &["llama", "mistral", "qwen2"],
        n_shared: 1..=1,
        gates_shared: true,
        experts: "mlp.experts",
        parts: PLAIN,
        router: "mlp.gate.weight",
        shared: Some("mlp.shared_expert"),
        shared_gate: Some("mlp.shared_expert_gate.weight"),
        has_bias: true,
        has_every_bias: false,
        counts: ("num_experts", None),
        settings: &[
            ("decoder_sparse_step", Setting::Number(1)),
            ("norm_topk_prob", Setting::True),
            ("sliding_window", Setting::Null),
            ("use_sliding_window", Setting::False),
            ("shared_expert_intermediate_size", Setting::Units),
            ("moe_intermediate_size", Setting::Units),
        ],
        told: &[
            "num_key_value_heads",
            "max_position_embeddings",
            "rms_norm_eps",
            "rope_theta",
        ],
    },
    Architecture {
        name: "Qwen3 MoE",
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        dense: &["qwen3"],
        n_shared: 0..=0,
        gates_shared: false,
        experts: "mlp.experts",
        parts: PLAIN,
        router: "mlp.gate.weight",
        shared: None,
        shared_gate: None,
        has_bias: false,
        has_every_bias: true,
        counts: ("num_experts", None),
        settings: &[
            ("decoder_sparse_step", Setting::Number(1)),
            ("norm_topk_prob", Setting::True),
            ("moe_intermediate_size", Setting::Units),
        ],
        told: &["num_key_value_heads", "head_dim", "rope_theta"],
    },
];

/// Classes of the code that a DeepSeek-MoE is run by, which transformers fetches if its user trusts it. Nothing of it runs
/// here.
const DEEPSEEK_CODE: [(&str, &str); 3] = [
    ("AutoConfig", "configuration_deepseek.DeepseekConfig"),
    ("AutoModel", "modeling_deepseek.DeepseekModel"),
    (
        "AutoModelForCausalLM",
        "modeling_deepseek.DeepseekForCausalLM",
    ),
];

/// The architecture that takes these models, of which `types` are the `model_type`s, the base first.
pub(super) fn choose(recipe: &MoeRecipe, types: &[&str]) -> Result<&'static Architecture> {
    let is_named = |architecture: &&Architecture| {
        let wanted = recipe.architecture.as_ref().map(|name| name.to_lowercase());
        wanted.is_none_or(|wanted| architecture.name.to_lowercase().starts_with(&wanted))
    };
    let named: Vec<&'static Architecture> = ARCHITECTURES.iter().filter(is_named).collect();
    if named.is_empty() {
        let known = ARCHITECTURES.iter().map(|architecture| architecture.name);
        return Err(MoeFault::NoArchitecture {
            reasons: format!(
                "there is no architecture `{}`; there are {}",
                recipe.architecture.as_deref().unwrap_or_default(),
                known.collect::<Vec<_>>().join(", ")
            ),
        }
        .into());
    }
    let mut reasons = Vec::new();
    for architecture in named {
        match architecture.takes(recipe, types) {
            Ok(()) => return Ok(architecture),
            Err(reason) => reasons.push(format!("{}: {reason}", architecture.name)),
        }
    }
    Err(MoeFault::NoArchitecture {
        reasons: reasons.join("; "),
    }
    .into())
}

impl Architecture {
    /// Whether it can be made of a recipe's models.
    fn takes(&self, recipe: &MoeRecipe, types: &[&str]) -> Result<(), String> {
        let n = recipe.shared_experts.len();
        if !self.n_shared.contains(&n) {
            let (least, most) = (self.n_shared.start(), self.n_shared.end());
            return Err(match most {
                0 => "has no shared experts".to_owned(),
                _ if least == most => format!("needs {least} shared expert, and there are {n}"),
                _ => format!("has at most {most} shared expert, and there are {n}"),
            });
        }
        let has_prompts = |expert: &super::MoeExpert| {
            !expert.positive_prompts.is_empty() || !expert.negative_prompts.is_empty()
        };
        let shared = &recipe.shared_experts;
        if !self.gates_shared && shared.iter().any(has_prompts) {
            return Err("has no gate for its shared expert, which has prompts".to_owned());
        }
        let lacks = |expert: &super::MoeExpert| expert.positive_prompts.is_empty();
        if self.gates_shared && !recipe.gate_mode.is_drawn() && shared.iter().any(lacks) {
            return Err(
                "has a gate for its shared expert, which has no positive_prompts".to_owned(),
            );
        }
        if let Some(other) = types.iter().find(|other| **other != types[0]) {
            return Err(format!(
                "takes models of one architecture, not {} and {other}",
                types[0]
            ));
        }
        match self.dense.contains(&types[0]) {
            true => Ok(()),
            false => Err(format!(
                "is made of {}, not of {}",
                self.dense.join(" or "),
                types[0]
            )),
        }
    }

    /// The name of a weight of an expert.
    pub(super) fn expert(&self, layer: usize, number: usize, part: &str) -> String {
        let index = PLAIN.iter().position(|plain| *plain == part);
        let part = index.map_or(part, |index| self.parts[index]);
        format!(
            "model.layers.{layer}.{}.{number}.{part}.weight",
            self.experts
        )
    }

    /// The fate of a tensor of the base.
    pub(super) fn place(&self, key: &str) -> Place {
        if [
            "model.embed_tokens.weight",
            "model.norm.weight",
            "lm_head.weight",
        ]
        .contains(&key)
        {
            return Place::Kept;
        }
        let of_layer = key
            .strip_prefix("model.layers.")
            .and_then(|rest| rest.split_once('.'));
        let Some((layer, rest)) = of_layer else {
            return match key.ends_with("rotary_emb.inv_freq") {
                true => Place::Computed,
                false => Place::None,
            };
        };
        if layer.parse::<usize>().is_err() {
            return Place::None;
        }
        match rest {
            "input_layernorm.weight" | "post_attention_layernorm.weight" => Place::Kept,
            "self_attn.rotary_emb.inv_freq" => Place::Computed,
            "mlp.gate_proj.weight" | "mlp.up_proj.weight" | "mlp.down_proj.weight" => {
                Place::Network
            }
            _ => match rest
                .strip_prefix("self_attn.")
                .and_then(|rest| rest.split_once('.'))
            {
                Some(("q_proj" | "k_proj" | "v_proj" | "o_proj", "weight")) => Place::Kept,
                Some(("q_norm" | "k_norm", "weight")) if self.dense.contains(&"qwen3") => {
                    Place::Kept
                }
                Some(("q_proj" | "k_proj" | "v_proj", "bias"))
                    if self.has_bias || self.has_every_bias =>
                {
                    Place::Kept
                }
                Some(("o_proj", "bias")) if self.has_every_bias => Place::Kept,
                _ => Place::None,
            },
        }
    }

    /// Makes the configuration of the base that of the mixture, as mergekit does.
    ///
    /// # Errors
    /// A clause on the fact that the configuration cannot hold.
    pub(super) fn configure(&self, config: &mut Value, recipe: &MoeRecipe) -> Result<Said, String> {
        let own = config.as_object_mut().ok_or("it is no object")?;
        if own.contains_key("auto_map") {
            return Err("it names classes of code of its own (`auto_map`)".into());
        }
        self.require_told(own)?;
        let units = own.get("intermediate_size").cloned();
        let units = units.ok_or("it does not say `intermediate_size`")?;
        let mut said = Said::default();
        let window = own.get("sliding_window").and_then(Value::as_u64);
        let mut set = |key: &str, value: Value| {
            if own.get(key) != Some(&value) {
                said.keys.push(key.to_owned());
            }
            own.insert(key.to_owned(), value);
        };
        set("architectures", json!([self.class]));
        set("model_type", json!(self.model_type));
        set(self.counts.0, json!(recipe.experts.len()));
        if let Some(key) = self.counts.1 {
            let n = recipe.shared_experts.len();
            set(key, if n == 0 { Value::Null } else { json!(n) });
        }
        set("num_experts_per_tok", json!(recipe.experts_per_token));
        for (key, setting) in self.settings {
            set(
                key,
                match setting {
                    Setting::True => json!(true),
                    Setting::False => json!(false),
                    Setting::Null => Value::Null,
                    Setting::Number(number) => json!(number),
                    Setting::Text(text) => json!(text),
                    Setting::Units => units.clone(),
                },
            );
        }
        if self.model_type == "deepseek" {
            let class = |(key, class): (&str, &str)| {
                let of = format!("deepseek-ai/deepseek-moe-16b-base--{class}");
                (key.to_owned(), json!(of))
            };
            let map: Map<String, Value> = DEEPSEEK_CODE.into_iter().map(class).collect();
            set("auto_map", Value::Object(map));
        }
        let has_window = self
            .settings
            .iter()
            .any(|(key, _)| *key == "sliding_window");
        if has_window && let Some(window) = window {
            // Layers that are named as such would look for it.
            if let Some(Value::Array(layers)) = own.get_mut("layer_types") {
                layers.fill(json!("full_attention"));
            }
            said.notes.push(format!(
                "config.json: `sliding_window` was {window}; the mixture has none, as mergekit writes it"
            ));
        }
        let n = recipe.experts.len();
        if !n.is_power_of_two() {
            said.notes.push(format!(
                "{n} experts are no power of two: llama.cpp does not run such a mixture"
            ));
        }
        Ok(said)
    }

    /// Refuses a configuration that leaves to its architecture what the mixture takes otherwise.
    fn require_told(&self, own: &Map<String, Value>) -> Result<(), String> {
        let is_told = |key: &str| {
            let of_rope = || own.get("rope_parameters")?.get(key);
            own.contains_key(key) || of_rope().is_some()
        };
        match self.told.iter().find(|key| !is_told(key)) {
            None => Ok(()),
            Some(key) => Err(format!(
                "it does not say `{key}`, which `{}` and the dense architecture do not take alike: add it",
                self.model_type
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(more: &str) -> MoeRecipe {
        let text = format!(
            "base_model: a\ngate_mode: random\n{more}experts: [{{ source_model: a }}, {{ source_model: b }}]\n"
        );
        MoeRecipe::parse(&text, "moe.yaml".as_ref()).expect("a recipe")
    }

    #[test]
    fn the_architecture_follows_from_the_models_and_shared_experts() {
        let name = |more: &str, types: &[&str]| {
            let chosen = choose(&recipe(more), types).map_err(|error| error.to_string());
            chosen.map(|architecture| architecture.name)
        };
        let shared = "shared_experts: [{ source_model: c }]\n";
        assert_eq!(name("", &["llama", "llama"]), Ok("Mixtral"));
        assert_eq!(name("", &["qwen3", "qwen3"]), Ok("Qwen3 MoE"));
        assert_eq!(name(shared, &["mistral", "mistral"]), Ok("DeepSeek MoE"));
        assert_eq!(name(shared, &["qwen2", "qwen2"]), Ok("Qwen MoE"));
        assert_eq!(
            name("architecture: deepseek\n", &["llama", "llama"]),
            Ok("DeepSeek MoE")
        );
        let why = name("", &["qwen2", "qwen2"]).expect_err("refused");
        assert!(why.contains("Qwen MoE: needs 1 shared expert"), "{why}");
        let why = name("", &["llama", "mistral"]).expect_err("refused");
        assert!(why.contains("not llama and mistral"), "{why}");
        let why = name("architecture: gpt\n", &["llama"]).expect_err("refused");
        assert!(why.contains("there is no architecture `gpt`"), "{why}");
    }

    #[test]
    fn a_tensor_without_a_place_is_known() {
        let [mixtral, deepseek, qwen, qwen3] = &ARCHITECTURES;
        let bias = "model.layers.0.self_attn.q_proj.bias";
        assert_eq!(mixtral.place(bias), Place::None);
        assert_eq!(deepseek.place(bias), Place::Kept);
        assert_eq!(qwen.place(bias), Place::Kept);
        assert_eq!(
            qwen.place("model.layers.0.self_attn.o_proj.bias"),
            Place::None
        );
        assert_eq!(
            qwen3.place("model.layers.1.self_attn.k_norm.weight"),
            Place::Kept
        );
        assert_eq!(
            mixtral.place("model.layers.1.self_attn.k_norm.weight"),
            Place::None
        );
        assert_eq!(
            mixtral.place("model.layers.0.mlp.up_proj.weight"),
            Place::Network
        );
        assert_eq!(
            mixtral.place("model.layers.0.self_attn.rotary_emb.inv_freq"),
            Place::Computed
        );
        assert_eq!(mixtral.place("score.weight"), Place::None);
    }

    #[test]
    fn a_configuration_says_experts_and_keeps_the_rest() {
        let mut config = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "num_key_value_heads": 2,
            "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "intermediate_size": 24, "x": 1,
        });
        let said = ARCHITECTURES[0]
            .configure(&mut config, &recipe(""))
            .expect("said");
        assert_eq!(config["num_local_experts"], 2);
        assert_eq!(config["sliding_window"], Value::Null);
        assert_eq!(config["architectures"], json!(["MixtralForCausalLM"]));
        assert_eq!(config["x"], 1);
        assert!(said.notes.is_empty());
        let mut config = json!({ "model_type": "llama", "intermediate_size": 24 });
        let why = ARCHITECTURES[0]
            .configure(&mut config, &recipe(""))
            .expect_err("refused");
        assert!(why.contains("does not say `num_key_value_heads`"), "{why}");
    }
}
