//! How Megatron splits a tensor over the ranks of a stage, by its name.

/// How a tensor is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Each rank has rows of it.
    Rows,
    /// Each rank has rows of each half: those of the gate, then those that are gated; or keys, then values.
    HalvesOfRows,
    /// Each rank has rows of each third, as files of version 0 have queries, keys and values.
    ThirdsOfRows,
    /// Each rank has columns of it.
    Columns,
    /// Each rank has all of it.
    Same,
}

/// The kind of a tensor, where that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A table with a row for each token.
    Vocabulary,
    /// Queries, keys and values in one.
    QueriesKeysValues,
    /// Keys and values in one.
    KeysValues,
    /// The first layer of a feed-forward network, which may be gated.
    FirstOfNetwork,
    /// Another layer of which each rank has some outputs.
    Outputs,
    /// A layer of which each rank has some inputs.
    Inputs,
    /// The part of each rank.
    Whole,
}

/// The kind of a tensor by its name; `None` for a name that is not known.
pub(super) fn part(name: &str) -> Option<Part> {
    let mut segments = name.rsplit('.');
    let (parameter, module) = (segments.next()?, segments.next()?);
    let outer = segments.next().unwrap_or_default();
    let is_linear = matches!(parameter, "weight" | "bias");
    Some(match (module, parameter) {
        _ if matches!(parameter, "layer_norm_weight" | "layer_norm_bias") => Part::Whole,
        ("word_embeddings" | "word_embeddings_for_head", "weight")
        | ("output_layer", _)
        | ("lm_head", "bias")
            if is_linear =>
        {
            Part::Vocabulary
        }
        ("query_key_value" | "linear_qkv", _) if is_linear => Part::QueriesKeysValues,
        ("key_value", _) if is_linear => Part::KeysValues,
        ("dense_h_to_4h" | "linear_fc1", _) if is_linear => Part::FirstOfNetwork,
        (
            "query" | "linear_q" | "linear_kv" | "linear_q_proj" | "linear_q_up_proj"
            | "linear_kv_up_proj",
            _,
        ) if is_linear => Part::Outputs,
        ("dense_4h_to_h" | "linear_fc2" | "linear_proj", "weight") => Part::Inputs,
        ("dense", "weight") if outer.ends_with("attention") => Part::Inputs,
        ("dense_4h_to_h" | "linear_fc2" | "linear_proj" | "dense", _) if is_linear => Part::Whole,
        ("position_embeddings" | "tokentype_embeddings", "weight") => Part::Whole,
        ("linear_q_down_proj" | "linear_kv_down_proj" | "binary_head", _) if is_linear => {
            Part::Whole
        }
        _ if is_linear && is_norm(module) => Part::Whole,
        _ => return None,
    })
}

/// Whether a module is a normalization, such as `input_layernorm`, `layer_norm` and `q_layernorm`.
fn is_norm(module: &str) -> bool {
    ["layernorm", "layer_norm", "rmsnorm", "norm"]
        .iter()
        .any(|end| module.ends_with(end))
}

/// Whether a name is of experts of a mixture, or of what chooses among them.
pub(super) fn is_of_experts(name: &str) -> bool {
    name.split('.').any(|segment| {
        matches!(
            segment,
            "experts" | "local_experts" | "router" | "shared_experts"
        )
    })
}

/// Whether a name is of what a library keeps beside the weights: scales of 8-bit floats, which differ between ranks.
pub(super) fn is_extra_state(name: &str) -> bool {
    name == "_extra_state" || name.ends_with("._extra_state")
}

/// The list of layers that a name is within, and the number of the layer: `decoder.layers` and 3 of
/// `decoder.layers.3.mlp.linear_fc1.weight`.
pub(super) fn layer(name: &str) -> Option<(&str, usize)> {
    const LIST: &str = "layers.";
    let begins = |at: &usize| *at == 0 || name.as_bytes()[at - 1] == b'.';
    let at = name.match_indices(LIST).map(|(at, _)| at).find(begins)?;
    let number = name[at + LIST.len()..].split('.').next()?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let number = is_number.then(|| number.parse().ok()).flatten()?;
    Some((&name[..at + LIST.len() - 1], number))
}

/// The name with the number of its layer changed.
pub(super) fn renumbered(name: &str, list: &str, from: usize, to: usize) -> String {
    let rest = name
        .get(list.len() + 1 + from.to_string().len()..)
        .unwrap_or_default();
    format!("{list}.{to}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_layer_is_cut_at_its_number() {
        let name = "decoder.layers.3.mlp.linear_fc1.weight";
        assert_eq!(layer(name), Some(("decoder.layers", 3)));
        assert_eq!(
            renumbered(name, "decoder.layers", 3, 12),
            "decoder.layers.12.mlp.linear_fc1.weight"
        );
        assert_eq!(layer("layers.10.norm.weight"), Some(("layers", 10)));
        assert_eq!(layer("players.1.weight"), None);
        assert_eq!(layer("decoder.layers.+1.weight"), None);
        assert_eq!(layer("decoder.final_layernorm.weight"), None);
    }

    #[test]
    fn names_of_both_libraries_are_known() {
        for (name, wanted) in [
            ("embedding.word_embeddings.weight", Some(Part::Vocabulary)),
            ("language_model.output_layer.weight", Some(Part::Vocabulary)),
            ("lm_head.bias", Some(Part::Vocabulary)),
            ("lm_head.dense.weight", Some(Part::Whole)),
            ("pooler.dense.weight", Some(Part::Whole)),
            (
                "decoder.layers.0.self_attention.linear_qkv.bias",
                Some(Part::QueriesKeysValues),
            ),
            (
                "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight",
                Some(Part::Whole),
            ),
            (
                "decoder.layers.0.self_attention.linear_proj.weight",
                Some(Part::Inputs),
            ),
            (
                "decoder.layers.0.self_attention.linear_proj.bias",
                Some(Part::Whole),
            ),
            (
                "language_model.encoder.layers.0.self_attention.dense.weight",
                Some(Part::Inputs),
            ),
            (
                "language_model.encoder.layers.0.self_attention.dense.bias",
                Some(Part::Whole),
            ),
            (
                "language_model.encoder.layers.0.mlp.dense_h_to_4h.weight",
                Some(Part::FirstOfNetwork),
            ),
            (
                "language_model.encoder.layers.0.mlp.dense_4h_to_h.weight",
                Some(Part::Inputs),
            ),
            (
                "decoder.layers.0.cross_attention.linear_kv.weight",
                Some(Part::Outputs),
            ),
            (
                "decoder.layers.0.self_attention.q_layernorm.weight",
                Some(Part::Whole),
            ),
            ("decoder.final_layernorm.weight", Some(Part::Whole)),
            ("decoder.layers.0.mixer.in_proj.weight", None),
            ("weight", None),
        ] {
            assert_eq!(part(name), wanted, "{name}");
        }
        assert!(is_of_experts(
            "decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight"
        ));
        assert!(is_of_experts("decoder.layers.0.mlp.router.weight"));
        assert!(!is_of_experts("decoder.layers.0.mlp.linear_fc1.weight"));
    }
}
