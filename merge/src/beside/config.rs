//! A configuration that must say what the merged weights are.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::bad;
use super::layers::{self, Layers};
use crate::{DType, Result};

/// The differences between the merged model and the one whose configuration it gets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// Element type of the weights.
    pub(crate) dtype: Option<DType>,
    /// Layers of each stack that was cut.
    pub(crate) layers: Vec<Layers>,
    /// Tokens before and after.
    pub(crate) vocabulary: Option<(usize, usize)>,
    /// Whether the model whose configuration it gets has a head of its own.
    pub(crate) had_head: bool,
    /// Whether the head shares its weights with the embeddings, where that is known.
    pub(crate) is_tied: Option<bool>,
}

/// A configuration with changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// The new text, unless it says so already.
    pub(crate) text: Option<String>,
    /// The changed keys.
    pub(crate) keys: Vec<String>,
    /// Notes on facts that it cannot state.
    pub(crate) notes: Vec<String>,
}

/// The configuration with the changes.
pub(crate) fn changed(text: &str, path: &Path, changes: &Changes) -> Result<Changed> {
    let mut config = parsed(text, path)?;
    let mut changed = Changed::default();
    if let Some(top) = config.as_object_mut() {
        set_sizes(top, changes, &mut changed.keys);
    }
    for layers in &changes.layers {
        let (keys, notes) = layers::set(&mut config, layers);
        changed.keys.extend(keys);
        changed.notes.extend(notes);
    }
    if !changed.keys.is_empty() {
        changed.text = Some(format!("{config:#}\n"));
    }
    Ok(changed)
}

/// A configuration, which is an object.
pub(crate) fn parsed(text: &str, path: &Path) -> Result<Value> {
    let config: Value = serde_json::from_str(text).map_err(|error| bad(path, error.to_string()))?;
    match config.is_object() {
        true => Ok(config),
        false => Err(bad(path, "not an object").into()),
    }
}

fn set_sizes(top: &mut Map<String, Value>, changes: &Changes, keys: &mut Vec<String>) {
    if let Some(dtype) = changes.dtype.and_then(torch_name) {
        set_everywhere(top, "", keys, &|key, value| {
            let is_type = key == "torch_dtype" || key == "dtype";
            (is_type && value.is_string() && value != dtype).then(|| json!(dtype))
        });
    }
    if let Some((before, after)) = changes.vocabulary {
        set_everywhere(top, "", keys, &|key, value| {
            let is_size = key == "vocab_size" && value == &json!(before);
            (is_size && before != after).then(|| json!(after))
        });
    }
    if let Some(is_tied) = changes.is_tied {
        set_tie(top, is_tied, keys);
    }
    remove_quantization(top, "", keys);
}

/// The name that torch, and so configurations, have for an element type of weights; `None` for others.
pub(crate) fn torch_name(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F64 => Some("float64"),
        DType::F32 => Some("float32"),
        DType::BF16 => Some("bfloat16"),
        DType::F16 => Some("float16"),
        _ => None,
    }
}

/// Changes values at the top and in configurations of parts, `text_config` and the like.
fn set_everywhere(
    object: &mut Map<String, Value>,
    place: &str,
    changed: &mut Vec<String>,
    new: &dyn Fn(&str, &Value) -> Option<Value>,
) {
    for (key, value) in object.iter_mut() {
        if let Some(new) = new(key, value) {
            *value = new;
            changed.push(format!("{place}{key}"));
        } else if place.is_empty()
            && is_part(key)
            && let Some(part) = value.as_object_mut()
        {
            // Parts have no parts, and a stranger's file could nest without end.
            set_everywhere(part, &format!("{key}."), changed, new);
        }
    }
}

/// States whether the head shares its weights. Without the statement loaders assume that it does.
fn set_tie(top: &mut Map<String, Value>, is_tied: bool, changed: &mut Vec<String>) {
    const TIE: &str = "tie_word_embeddings";
    let n_before = changed.len();
    set_everywhere(top, "", changed, &|key, value| {
        (key == TIE && value == &json!(!is_tied)).then(|| json!(is_tied))
    });
    let in_text = top
        .get("text_config")
        .is_some_and(|part| part.get(TIE).is_some());
    if changed.len() == n_before && !is_tied && !in_text && !top.contains_key(TIE) {
        top.insert(TIE.to_owned(), json!(false));
        changed.push(TIE.to_owned());
    }
}

/// Takes out what says that weights are codes: merged weights are numbers.
fn remove_quantization(top: &mut Map<String, Value>, place: &str, changed: &mut Vec<String>) {
    for key in [
        "quantization_config",
        "compression_config",
        "sparsity_config",
    ] {
        if top.remove(key).is_some() {
            changed.push(format!("{place}{key}"));
        }
    }
    if place.is_empty() {
        for (key, part) in top.iter_mut().filter(|(key, _)| is_part(key)) {
            if let Some(part) = part.as_object_mut() {
                remove_quantization(part, &format!("{key}."), changed);
            }
        }
    }
}

/// The configuration of a part of the model.
fn is_part(key: &str) -> bool {
    key.ends_with("_config")
}

#[cfg(test)]
mod tests {
    use super::*;

    const VISION_LANGUAGE: &str = r#"{
        "torch_dtype": "bfloat16",
        "text_config": {"num_hidden_layers": 4, "vocab_size": 10, "dtype": "bfloat16"},
        "vision_config": {"num_hidden_layers": 4, "vocab_size": 3}
    }"#;

    /// Four layers become `after`, one after the other.
    fn layers(prefix: &str, after: usize) -> Layers {
        let config = serde_json::from_str(VISION_LANGUAGE).expect("JSON");
        Layers {
            prefix: prefix.to_owned(),
            before: vec![4],
            configs: vec![config],
            order: (0..after).map(|layer| (0, layer % 4)).collect(),
        }
    }

    fn after(text: &str, changes: &Changes) -> (Value, Vec<String>) {
        let changed = changed(text, Path::new("config.json"), changes).expect("an object");
        let text = changed.text.expect("something changes");
        (serde_json::from_str(&text).expect("JSON"), changed.keys)
    }

    #[test]
    fn types_layers_and_tokens_are_changed_where_they_belong() {
        let changes = Changes {
            dtype: Some(DType::F32),
            layers: vec![layers("model.language_model.layers", 6)],
            vocabulary: Some((10, 12)),
            ..Changes::default()
        };
        let (config, keys) = after(VISION_LANGUAGE, &changes);
        assert_eq!(config["torch_dtype"], "float32");
        assert_eq!(config["text_config"]["dtype"], "float32");
        assert_eq!(config["text_config"]["num_hidden_layers"], 6);
        assert_eq!(config["text_config"]["vocab_size"], 12);
        assert_eq!(config["vision_config"]["num_hidden_layers"], 4);
        assert_eq!(config["vision_config"]["vocab_size"], 3);
        assert_eq!(keys.len(), 4);
    }

    #[test]
    fn the_vision_towers_layers_are_in_its_own_part() {
        let changes = Changes {
            layers: vec![layers("model.visual.blocks", 2)],
            ..Changes::default()
        };
        let (config, keys) = after(VISION_LANGUAGE, &changes);
        assert_eq!(config["text_config"]["num_hidden_layers"], 4);
        assert_eq!(keys, ["vision_config.num_hidden_layers"]);
    }

    #[test]
    fn a_configuration_that_is_right_already_is_left_as_it_is() {
        let changes = Changes {
            dtype: Some(DType::BF16),
            ..Changes::default()
        };
        let path = Path::new("config.json");
        let changed = changed(VISION_LANGUAGE, path, &changes).expect("an object");
        assert_eq!(changed, Changed::default());
        let error = super::changed("[1]", path, &changes).expect_err("no object");
        assert_eq!(error.to_string(), "config.json: not an object");
    }

    #[test]
    fn a_head_that_is_written_is_not_tied_and_numbers_are_not_quantized() {
        let changes = Changes {
            is_tied: Some(false),
            ..Changes::default()
        };
        let (config, keys) = after(
            r#"{"tie_word_embeddings": true, "quantization_config": {"quant_method": "fp8"},
                "text_config": {"tie_word_embeddings": true, "quantization_config": {}}}"#,
            &changes,
        );
        let expected =
            json!({"tie_word_embeddings": false, "text_config": {"tie_word_embeddings": false}});
        assert_eq!(config, expected);
        assert_eq!(keys.len(), 4);
        let (config, _) = after("{}", &changes);
        assert_eq!(config, json!({"tie_word_embeddings": false}));
        let changes = Changes {
            is_tied: Some(true),
            ..Changes::default()
        };
        let (config, _) = after(r#"{"tie_word_embeddings": false}"#, &changes);
        assert_eq!(config, json!({"tie_word_embeddings": true}));
    }
}
