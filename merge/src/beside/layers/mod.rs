//! The configuration of a model whose layers slices have cut and ordered.
//!
//! Configurations say how many layers a stack has, and some say of each layer what it is: as a list with
//! a value a layer, as a list of the layers that are something, or as a period. All three follow the
//! layers here. A fact that no list can say is a note.

pub(super) mod parts;
mod view;

use serde_json::{Map, Value};

use parts::{count_keys, counts, part, part_mut, parts_of_stack, place};
use view::View;

use crate::plan::stacks::Stacks;

/// The layers of a stack that slices made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layers {
    /// The first part of its tensors' names.
    pub(crate) prefix: String,
    /// The number of layers in each model's stack.
    pub(crate) before: Vec<usize>,
    /// The configuration of each model that gives layers; the first is the one that is changed.
    pub(crate) configs: Vec<Value>,
    /// Each layer of the output: the model, and the layer within it.
    pub(crate) order: Vec<(usize, usize)>,
}

impl Layers {
    /// The number of layers in the stack whose configuration is changed.
    fn n_before(&self) -> usize {
        self.before.first().copied().unwrap_or(0)
    }
}

/// Changes what a configuration says of the layers. Returns the keys that were changed, and notes on what
/// it cannot say.
pub(super) fn set(config: &mut Value, layers: &Layers) -> (Vec<String>, Vec<String>) {
    let (mut changed, mut notes) = (Vec::new(), Vec::new());
    let before = layers.n_before();
    let mut chosen = parts_of_stack(config, &layers.prefix);
    chosen.retain(|path| {
        let part = part(config, path);
        part.is_some_and(|part| !counts(part, &layers.prefix, before).is_empty())
    });
    if chosen.is_empty() && before != layers.order.len() {
        notes.push(format!(
            "config.json names no number of layers for `{}`, which has {} now instead of {before}: set it by hand",
            layers.prefix,
            layers.order.len()
        ));
    }
    for path in chosen {
        let place = place(&path);
        let sources: Vec<Option<&Map<String, Value>>> = (layers.configs.iter())
            .map(|config| part(config, &path))
            .collect();
        let Some(own) = part_mut(config, &path) else {
            continue;
        };
        let original = own.clone();
        let sources: Vec<&Map<String, Value>> = (sources.into_iter())
            .map(|source| source.unwrap_or(&original))
            .collect();
        let view = View { layers, sources };
        let mut keys = Vec::new();
        view.spell_out(own, &mut keys);
        view.follow(own, &mut keys, &mut notes);
        view.count(own, &mut keys);
        view.check_periods(own, &mut notes);
        keys.sort_unstable();
        keys.dedup();
        changed.extend(keys.into_iter().map(|key| format!("{place}{key}")));
    }
    (changed, notes)
}

/// Whether a configuration says that a stack has this number of layers.
pub(crate) fn says(config: &Value, prefix: &str, n_layers: usize) -> bool {
    let parts = parts_of_stack(config, prefix).into_iter();
    let mut parts = parts.filter_map(|path| part(config, &path));
    parts.any(|part| !counts(part, prefix, n_layers).is_empty())
}

/// The contradictions between a configuration and a stack: another number of layers, or settings for more layers or
/// fewer.
pub(crate) fn contradictions(config: &Value, prefix: &str, n_layers: usize) -> Vec<String> {
    let mut findings = Vec::new();
    for path in parts_of_stack(config, prefix) {
        let Some(part) = part(config, &path) else {
            continue;
        };
        let keys = count_keys(part, prefix);
        let is_said = keys
            .iter()
            .any(|key| part.get(*key).is_some_and(Value::is_u64));
        if !is_said {
            continue;
        }
        let place = place(&path);
        if counts(part, prefix, n_layers).is_empty() {
            let said = keys
                .iter()
                .filter_map(|key| Some(format!("`{place}{key}` is {}", part.get(*key)?)));
            let said = said.collect::<Vec<_>>().join(", ");
            findings.push(format!("{said}; `{prefix}` has {n_layers} layers"));
        }
        let types = part.get("layer_types").and_then(Value::as_array);
        let said = keys
            .iter()
            .find_map(|key| Some((key, part.get(*key)?.as_u64()?)));
        if let (Some(types), Some((key, said))) = (types, said)
            && types.len() as u64 != said
        {
            let n = types.len();
            findings.push(format!(
                "`{place}layer_types` has {n} entries, `{place}{key}` is {said}"
            ));
        }
    }
    findings
}

/// The last part of a stack's name, if its layers are those of the model.
const STACKS: [&str; 6] = [
    "layers",
    "layer",
    "h",
    "block",
    "blocks",
    "transformer_blocks",
];

/// The contradictions between a configuration and the layers of tensors with these names: [`contradictions`] of each
/// stack, and layers without tensors.
pub(crate) fn of_stacks<'a>(config: &Value, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut findings = Vec::new();
    let mut stacks = Stacks::seen(names);
    stacks.retain(|prefix, _| STACKS.contains(&prefix.rsplit('.').next().unwrap_or(prefix)));
    let has_several = stacks.values().any(|seen| seen.len() > 1);
    for (prefix, seen) in &stacks {
        let n_layers = seen.last().map_or(0, |last| last + 1);
        if seen.len() < n_layers {
            // Some parts have numbers without weights; a stack has as many layers as the configuration says.
            let missing: Vec<usize> = (0..n_layers)
                .filter(|layer| !seen.contains(layer))
                .collect();
            if says(config, prefix, n_layers) {
                findings.push(format!(
                    "`{prefix}` has no tensor of the layers {missing:?}"
                ));
            }
        } else if n_layers > 1 || !has_several {
            // One layer beside a stack is that of a part without a number of its own.
            findings.extend(contradictions(config, prefix, n_layers));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn after(
        mut config: Value,
        prefix: &str,
        before: usize,
        order: &[usize],
    ) -> (Value, Vec<String>) {
        let layers = Layers {
            prefix: prefix.to_owned(),
            before: vec![before],
            configs: vec![config.clone()],
            order: order.iter().map(|&layer| (0, layer)).collect(),
        };
        let (_, notes) = set(&mut config, &layers);
        (config, notes)
    }

    #[test]
    fn encoders_and_decoders_have_their_own_numbers() {
        let t5 = json!({"num_layers": 2, "num_decoder_layers": 2});
        let cut = |prefix: &str| after(t5.clone(), prefix, 2, &[0, 1, 1]).0;
        assert_eq!(
            cut("decoder.block"),
            json!({"num_layers": 2, "num_decoder_layers": 3})
        );
        assert_eq!(
            cut("encoder.block"),
            json!({"num_layers": 3, "num_decoder_layers": 2})
        );
        let bart = json!({"encoder_layers": 2, "decoder_layers": 2, "num_hidden_layers": 2});
        let cut = |prefix: &str| after(bart.clone(), prefix, 2, &[0]).0;
        let decoder = json!({"encoder_layers": 2, "decoder_layers": 1, "num_hidden_layers": 2});
        assert_eq!(cut("model.decoder.layers"), decoder);
        let encoder = json!({"encoder_layers": 1, "decoder_layers": 2, "num_hidden_layers": 1});
        assert_eq!(cut("model.encoder.layers"), encoder);
        // OPT is a decoder alone, BERT an encoder alone.
        let opt = json!({"num_hidden_layers": 2});
        assert_eq!(
            after(opt.clone(), "model.decoder.layers", 2, &[0]).0["num_hidden_layers"],
            1
        );
        assert_eq!(
            after(opt, "bert.encoder.layer", 2, &[0]).0["num_hidden_layers"],
            1
        );
        let nested =
            json!({"encoder": {"num_hidden_layers": 2}, "decoder": {"num_hidden_layers": 2}});
        let (cut, _) = after(nested, "decoder.bert.encoder.layer", 2, &[1]);
        assert_eq!(cut["decoder"]["num_hidden_layers"], 1);
        assert_eq!(cut["encoder"]["num_hidden_layers"], 2);
        let seamless = json!({"speech_encoder_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
            "t2u_decoder_layers": 2});
        let (cut, _) = after(seamless.clone(), "speech_encoder.encoder.layers", 2, &[1]);
        assert_eq!(
            (&cut["speech_encoder_layers"], &cut["encoder_layers"]),
            (&json!(1), &json!(2))
        );
        let (cut, _) = after(seamless, "t2u_model.model.decoder.layers", 2, &[1]);
        assert_eq!(
            (&cut["t2u_decoder_layers"], &cut["decoder_layers"]),
            (&json!(1), &json!(2))
        );
    }

    #[test]
    fn parts_of_a_model_are_told_apart_by_their_names() {
        let model = json!({
            "text_config": {"num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"]},
            "vision_config": {"depth": 4, "fullatt_block_indexes": [1, 3]},
        });
        let (cut, _) = after(model.clone(), "model.language_model.layers", 4, &[0, 3, 3]);
        assert_eq!(
            cut["text_config"],
            json!({"num_hidden_layers": 3, "layer_types": ["a", "d", "d"]})
        );
        assert_eq!(cut["vision_config"], model["vision_config"]);
        let (cut, _) = after(model.clone(), "visual.blocks", 4, &[1, 2, 3]);
        assert_eq!(
            cut["vision_config"],
            json!({"depth": 3, "fullatt_block_indexes": [0, 2]})
        );
        assert_eq!(cut["text_config"], model["text_config"]);
        // A vision model alone has no part of its own.
        let vit = json!({"num_hidden_layers": 4});
        assert_eq!(
            after(vit, "vit.encoder.layer", 4, &[0]).0["num_hidden_layers"],
            1
        );
    }

    #[test]
    fn lists_follow_the_layers_in_each_of_their_forms() {
        let llama4 = json!({"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "moe_layers": [1, 3],
            "eos_token_id": [1, 2, 3, 4]});
        let (cut, _) = after(llama4, "model.layers", 4, &[3, 0, 1]);
        let expected = json!({"num_hidden_layers": 3, "no_rope_layers": [0, 1, 1], "moe_layers": [0, 2],
            "eos_token_id": [1, 2, 3, 4]});
        assert_eq!(cut, expected);
        // Sizes of the axes of a rotary embedding are as many as layers here by chance.
        let flux = json!({"num_layers": 3, "num_single_layers": 3, "axes_dims_rope": [2, 2, 4]});
        let (cut, _) = after(flux.clone(), "transformer_blocks", 3, &[0, 1, 1, 2]);
        assert_eq!(cut["num_layers"], 4);
        assert_eq!(cut["num_single_layers"], 3);
        assert_eq!(cut["axes_dims_rope"], flux["axes_dims_rope"]);
        let nemotron = json!({"num_hidden_layers": 4, "hybrid_override_pattern": "M-*M"});
        let (cut, _) = after(nemotron, "backbone.layers", 4, &[0, 2, 2]);
        assert_eq!(cut["hybrid_override_pattern"], "M**");
        let neo = json!({"num_layers": 4, "attention_types": [[["global", "local"], 2]],
            "attention_layers": ["global", "local", "global", "local"]});
        let (cut, _) = after(neo, "transformer.h", 4, &[1, 1, 2]);
        assert_eq!(
            cut["attention_types"],
            json!([[["local", "local", "global"], 1]])
        );
        assert_eq!(cut["attention_layers"], json!(["local", "local", "global"]));
        let gemma = json!({"num_hidden_layers": 4, "sliding_window_pattern": 2});
        let (cut, _) = after(gemma, "model.layers", 4, &[1, 2]);
        assert_eq!(
            cut["layer_types"],
            json!(["full_attention", "sliding_attention"])
        );
        let deepseek = json!({"num_hidden_layers": 4, "num_nextn_predict_layers": 1, "first_k_dense_replace": 1});
        let (cut, _) = after(deepseek, "model.layers", 5, &[0, 0, 1, 2, 3]);
        let expected = json!({"num_hidden_layers": 5, "num_nextn_predict_layers": 0, "first_k_dense_replace": 2});
        assert_eq!(cut, expected);
    }

    #[test]
    fn what_cannot_be_said_is_a_note() {
        let moe = json!({"num_hidden_layers": 4, "decoder_sparse_step": 2});
        let (_, notes) = after(moe.clone(), "model.layers", 4, &[0, 1, 0, 1]);
        assert_eq!(notes, Vec::<String>::new());
        let (_, notes) = after(moe, "model.layers", 4, &[0, 1, 1, 2]);
        assert!(
            notes[0].contains("`decoder_sparse_step: 2` layer 2 is not a mixture"),
            "{notes:?}"
        );
        let dense = json!({"num_hidden_layers": 4, "first_k_dense_replace": 2});
        let (_, notes) = after(dense.clone(), "model.layers", 4, &[0, 1, 1, 2]);
        assert_eq!(notes, Vec::<String>::new());
        let (_, notes) = after(dense, "model.layers", 4, &[0, 2, 1, 3]);
        assert!(notes[0].contains("layer 2 is one"), "{notes:?}");
        let (_, notes) = after(json!({}), "model.layers", 4, &[0]);
        assert!(notes[0].contains("no number of layers"), "{notes:?}");
    }
}
