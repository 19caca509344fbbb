//! Settings of two configurations by which models of the same shapes compute different things.

use serde_json::{Map, Value};

/// Numbers of heads. The same weights cut into other heads are another model.
const HEADS: [&str; 8] = [
    "num_attention_heads",
    "num_key_value_heads",
    "num_heads",
    "num_kv_heads",
    "n_head",
    "n_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
];

/// Other settings that change the computation, and that no shape shows.
const OTHERS: [&str; 30] = [
    "model_type",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_eps",
    "norm_epsilon",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "rope_local_base_freq",
    "rotary_pct",
    "partial_rotary_factor",
    "position_embedding_type",
    "sliding_window",
    "use_sliding_window",
    "attention_multiplier",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "logit_scale",
    "num_experts_per_tok",
    "norm_topk_prob",
    "routed_scaling_factor",
    "projection_dim",
];

/// A setting with two values.
#[derive(Debug, PartialEq)]
pub(crate) struct Difference {
    /// The key, behind that of the part that has it.
    pub(crate) key: String,
    /// The value in the first configuration.
    pub(crate) first: String,
    /// The value in the other.
    pub(crate) other: String,
    /// Whether it is a number of heads.
    pub(crate) is_of_heads: bool,
}

/// The settings that both configurations have, with other values, at the top and in the configurations of parts.
pub(crate) fn between(first: &Value, other: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    let (Some(first), Some(other)) = (first.as_object(), other.as_object()) else {
        return found;
    };
    compare("", (first, other), &mut found);
    for (key, part) in first.iter().filter(|(key, _)| key.ends_with("_config")) {
        let its = other.get(key).and_then(Value::as_object);
        if let (Some(part), Some(its)) = (part.as_object(), its) {
            compare(&format!("{key}."), (part, its), &mut found);
        }
    }
    found
}

fn compare(
    place: &str,
    (first, other): (&Map<String, Value>, &Map<String, Value>),
    found: &mut Vec<Difference>,
) {
    let keys = HEADS.iter().map(|key| (*key, true));
    let all = keys.chain(OTHERS.iter().map(|key| (*key, false)));
    for (key, is_of_heads) in all {
        if let (Some(one), Some(two)) = (first.get(key), other.get(key))
            && !is_same(one, two)
        {
            found.push(Difference {
                key: format!("{place}{key}"),
                first: one.to_string(),
                other: two.to_string(),
                is_of_heads: is_of_heads && one.is_number() && two.is_number(),
            });
        }
    }
}

/// Whether two values mean the same: 10000 is 10000.0.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_that_change_the_computation_are_compared_part_by_part() {
        let first = json!({"num_attention_heads": 2, "rope_theta": 10000, "bos_token_id": 1,
            "vision_config": {"hidden_act": "gelu", "num_heads": 4}, "sliding_window": null});
        let other = json!({"num_attention_heads": 3, "rope_theta": 10000.0, "bos_token_id": 2,
            "vision_config": {"hidden_act": "quick_gelu", "num_heads": 4}, "sliding_window": 4096,
            "rms_norm_eps": 1e-6});
        let found = between(&first, &other);
        let said: Vec<(&str, &str, &str, bool)> = (found.iter())
            .map(|of| {
                let (first, other) = (of.first.as_str(), of.other.as_str());
                (of.key.as_str(), first, other, of.is_of_heads)
            })
            .collect();
        assert_eq!(
            said,
            [
                ("num_attention_heads", "2", "3", true),
                ("sliding_window", "null", "4096", false),
                (
                    "vision_config.hidden_act",
                    "\"gelu\"",
                    "\"quick_gelu\"",
                    false
                ),
            ]
        );
    }
}
