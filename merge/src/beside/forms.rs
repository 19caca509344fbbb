//! Architectures that are the same except for mixtures of experts in place of dense networks, and configurations that
//! change from one to the other.

use serde_json::{Map, Value, json};

use crate::mixtures::MixtureSpelling;

/// Two architectures, the first dense. Facts are those of transformers 5.
struct Pair {
    /// `model_type`, and what the names of classes begin with.
    dense: [&'static str; 2],
    mixture: [&'static str; 2],
    /// The spelling of the mixture's weights.
    spelling: MixtureSpelling,
    /// The key with the number of experts.
    count: &'static str,
    /// The key with the hidden units of an expert, where it is not that of dense networks.
    units: Option<&'static str>,
    /// The key that lists layers without a mixture, where there may be some.
    dense_layers: Option<&'static str>,
    /// The key that makes the weights of a token's choices add up to 1, where the family has one.
    sums_to_one: Option<&'static str>,
    /// Other keys of the mixture alone.
    of_mixture: &'static [&'static str],
    /// Keys that the two do not take alike where they are not there.
    told: &'static [&'static str],
    /// Keys that one of the two alone goes by, unless they are false or none.
    unshared: &'static [&'static str],
}

/// A pair whose mixtures are spelled as Mixtral's.
const LIKE_MIXTRAL: Pair = Pair {
    dense: ["mistral", "Mistral"],
    mixture: ["mixtral", "Mixtral"],
    spelling: MixtureSpelling::Mixtral,
    count: "num_local_experts",
    units: None,
    dense_layers: None,
    sums_to_one: None,
    of_mixture: &[
        "output_router_logits",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "router_aux_loss",
    ],
    told: &[
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
        "sliding_window",
    ],
    unshared: &[],
};

const PAIRS: [Pair; 4] = [
    LIKE_MIXTRAL,
    Pair {
        dense: ["llama", "Llama"],
        told: &[
            "num_key_value_heads",
            "max_position_embeddings",
            "rms_norm_eps",
            "rope_theta",
        ],
        unshared: &["attention_bias", "mlp_bias"],
        ..LIKE_MIXTRAL
    },
    Pair {
        dense: ["qwen3", "Qwen3"],
        mixture: ["qwen3_moe", "Qwen3Moe"],
        spelling: MixtureSpelling::SingleExperts,
        count: "num_experts",
        units: Some("moe_intermediate_size"),
        dense_layers: Some("mlp_only_layers"),
        sums_to_one: Some("norm_topk_prob"),
        of_mixture: &[
            "num_local_experts",
            "decoder_sparse_step",
            "output_router_logits",
            "router_aux_loss_coef",
        ],
        told: &["num_key_value_heads", "head_dim", "rope_theta"],
        unshared: &["use_sliding_window"],
    },
    Pair {
        dense: ["granite", "Granite"],
        mixture: ["granitemoe", "GraniteMoe"],
        spelling: MixtureSpelling::Granite,
        of_mixture: &["output_router_logits", "router_aux_loss_coef"],
        told: &[],
        unshared: &["mlp_bias"],
        ..LIKE_MIXTRAL
    },
];

const PER_TOKEN: &str = "num_experts_per_tok";
const UNITS: &str = "intermediate_size";

/// Experts that a token goes to in a mixture of copies.
const CHOICES: usize = 2;

/// The settings of a configuration, its `model_type` and its number of layers.
fn settings(config: &mut Value) -> Result<(&mut Map<String, Value>, String, u64), String> {
    let own = config.as_object_mut().ok_or("it is no object")?;
    let own_type = own.get("model_type").and_then(Value::as_str);
    let own_type = own_type.ok_or("it names no `model_type`")?.to_owned();
    if own.contains_key("auto_map") {
        return Err("it names classes of code of its own (`auto_map`)".into());
    }
    let layers = own.get("num_hidden_layers").and_then(Value::as_u64);
    let layers = layers.ok_or("it names no `num_hidden_layers`")?;
    Ok((own, own_type, layers))
}

/// The spelling of the mixtures that a dense model may get, by its configuration.
///
/// # Errors
/// A clause on why there is none.
pub(crate) fn mixtures_of(config: &mut Value) -> Result<MixtureSpelling, String> {
    let (_, own_type, _) = settings(config)?;
    Ok(to_mixture(&own_type)?.spelling)
}

fn to_mixture(own_type: &str) -> Result<&'static Pair, String> {
    let pair = PAIRS.iter().find(|pair| pair.dense[0] == own_type);
    pair.ok_or_else(|| {
        let known = PAIRS.map(|pair| pair.dense[0]).join(", ");
        format!("no architecture is known that is `{own_type}` with mixtures (there are some for {known})")
    })
}

/// Makes a dense model one with mixtures of `n_experts` experts in the given layers.
///
/// # Errors
/// A clause on the fact that the configuration cannot hold.
pub(crate) fn add_mixtures(
    config: &mut Value,
    layers: &[usize],
    n_experts: usize,
) -> Result<(), String> {
    let (own, own_type, n_layers) = settings(config)?;
    let pair = to_mixture(&own_type)?;
    require_told(own, pair)?;
    require_shared(own, pair, pair.mixture[0])?;
    let dense: Vec<u64> = (0..n_layers)
        .filter(|&layer| !layers.iter().any(|&own| own as u64 == layer))
        .collect();
    match pair.dense_layers {
        Some(key) => {
            own.insert(key.to_owned(), json!(dense));
        }
        None if dense.is_empty() => {}
        None => {
            return Err(format!(
                "`{}` has a mixture in every layer, and layers {dense:?} have none",
                pair.mixture[0]
            ));
        }
    }
    if let Some(key) = pair.units {
        let units = own.get(UNITS).cloned();
        let units = units.ok_or_else(|| format!("it does not say `{UNITS}`"))?;
        own.insert(key.to_owned(), units);
    }
    if let Some(key) = pair.sums_to_one {
        own.insert(key.to_owned(), json!(true));
    }
    if own_type == "llama" {
        // Llama does not read it, Mixtral does.
        own.insert("sliding_window".to_owned(), Value::Null);
    }
    own.insert(pair.count.to_owned(), json!(n_experts));
    own.insert(PER_TOKEN.to_owned(), json!(CHOICES));
    rename(own, pair.dense[1], pair.mixture);
    Ok(())
}

/// Makes a model whose mixtures are gone, in the given layers, a dense one.
///
/// # Errors
/// A clause on the fact that the configuration cannot hold.
pub(crate) fn remove_mixtures(config: &mut Value, layers: &[usize]) -> Result<(), String> {
    let (own, own_type, n_layers) = settings(config)?;
    let pair = PAIRS.iter().find(|pair| pair.mixture[0] == own_type);
    let pair = pair.ok_or_else(|| {
        let known = PAIRS.map(|pair| pair.mixture[0]);
        format!(
            "no architecture is known that is `{own_type}` without mixtures (there are some for {})",
            known[1..].join(", ")
        )
    })?;
    require_told(own, pair)?;
    require_shared(own, pair, pair.dense[0])?;
    if let Some(key) = pair.units {
        let units = own.remove(key);
        let units = units.ok_or_else(|| format!("it does not say `{key}`"))?;
        let is_mixed = layers.len() as u64 != n_layers;
        if is_mixed && own.get(UNITS) != Some(&units) {
            return Err(format!(
                "`{}` has networks of one size, and experts have {units} hidden units where dense layers have {}",
                pair.dense[0],
                own.get(UNITS).unwrap_or(&Value::Null)
            ));
        }
        own.insert(UNITS.to_owned(), units);
    }
    let gone = [
        Some(pair.count),
        Some(PER_TOKEN),
        pair.dense_layers,
        pair.sums_to_one,
    ];
    for key in gone.iter().flatten().chain(pair.of_mixture) {
        own.remove(*key);
    }
    rename(own, pair.mixture[1], pair.dense);
    Ok(())
}

/// Refuses a configuration that leaves to its architecture what the other one takes otherwise.
fn require_told(own: &Map<String, Value>, pair: &Pair) -> Result<(), String> {
    let is_told = |key: &str| {
        let of_rope = || own.get("rope_parameters")?.get(key);
        own.contains_key(key) || of_rope().is_some()
    };
    match pair.told.iter().find(|key| !is_told(key)) {
        None => Ok(()),
        Some(key) => Err(format!(
            "it does not say `{key}`, which `{}` and `{}` do not take alike: add it",
            pair.dense[0], pair.mixture[0]
        )),
    }
}

/// Refuses a configuration that is set to something that the architecture `to` has no place for.
fn require_shared(own: &Map<String, Value>, pair: &Pair, to: &str) -> Result<(), String> {
    let is_set = |key: &&&str| {
        let value = own.get(**key);
        value.is_some_and(|value| !value.is_null() && value != &json!(false))
    };
    match pair.unshared.iter().find(is_set) {
        None => Ok(()),
        Some(key) => Err(format!("`{key}` is set, which `{to}` has no place for")),
    }
}

/// Gives the model the name of another architecture, and its classes.
fn rename(own: &mut Map<String, Value>, from: &str, [model_type, to]: [&str; 2]) {
    own.insert("model_type".to_owned(), json!(model_type));
    let classes = own.get_mut("architectures").and_then(Value::as_array_mut);
    for class in classes.into_iter().flatten() {
        if let Some(rest) = class.as_str().and_then(|class| class.strip_prefix(from)) {
            *class = json!(format!("{to}{rest}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> Value {
        json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "num_key_value_heads": 2,
            "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4,
            "attention_bias": false,
        })
    }

    #[test]
    fn a_dense_configuration_becomes_that_of_a_mixture() {
        let mut config = llama();
        assert_eq!(mixtures_of(&mut config), Ok(MixtureSpelling::Mixtral));
        add_mixtures(&mut config, &[0, 1], 4).expect("said");
        for (key, value) in [
            ("model_type", json!("mixtral")),
            ("architectures", json!(["MixtralForCausalLM"])),
            ("num_local_experts", json!(4)),
            ("num_experts_per_tok", json!(2)),
        ] {
            assert_eq!(config[key], value, "{key}");
        }
        assert_eq!(config["sliding_window"], Value::Null);
        let mut qwen = json!({
            "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 3, "intermediate_size": 24,
            "num_key_value_heads": 1, "head_dim": 8, "rope_parameters": {"rope_theta": 1e4}, "use_sliding_window": false,
        });
        let before = qwen.clone();
        add_mixtures(&mut qwen, &[1], 4).expect("said");
        assert_eq!(qwen["architectures"], json!(["Qwen3MoeForCausalLM"]));
        assert_eq!(qwen["mlp_only_layers"], json!([0, 2]));
        assert_eq!(qwen["moe_intermediate_size"], 24);
        assert_eq!(qwen["norm_topk_prob"], true);
        remove_mixtures(&mut qwen, &[1]).expect("said");
        assert_eq!(qwen, before);
    }

    #[test]
    fn what_the_other_architecture_cannot_say_is_refused() {
        let fault = |change: &dyn Fn(&mut Map<String, Value>), layers: &[usize]| {
            let mut config = llama();
            change(config.as_object_mut().expect("an object"));
            add_mixtures(&mut config, layers, 4).expect_err("refused")
        };
        let set = |key: &'static str, value: Value| {
            move |own: &mut Map<String, Value>| {
                own.insert(key.to_owned(), value.clone());
            }
        };
        assert!(
            fault(&set("attention_bias", json!(true)), &[0, 1]).contains("`attention_bias` is set")
        );
        assert!(fault(&set("auto_map", json!({})), &[0, 1]).contains("auto_map"));
        assert!(
            fault(&set("model_type", json!("gemma")), &[0, 1]).contains("`gemma` with mixtures")
        );
        assert!(
            fault(&|own| drop(own.remove("rope_theta")), &[0, 1])
                .contains("does not say `rope_theta`")
        );
        assert!(fault(&|_| {}, &[1]).contains("layers [0] have none"));
        let mut olmoe = json!({"model_type": "olmoe", "num_hidden_layers": 2});
        let why = remove_mixtures(&mut olmoe, &[0, 1]).expect_err("refused");
        assert!(why.contains("`olmoe` without mixtures"), "{why}");
        let mut qwen = json!({
            "model_type": "qwen3_moe", "num_hidden_layers": 2, "intermediate_size": 24, "moe_intermediate_size": 8,
            "num_key_value_heads": 1, "head_dim": 8, "rope_theta": 1e4,
        });
        let why = remove_mixtures(&mut qwen, &[1]).expect_err("refused");
        assert!(
            why.contains("8 hidden units where dense layers have 24"),
            "{why}"
        );
    }
}
