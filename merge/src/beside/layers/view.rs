//! Makes one part of a configuration follow the layers.

use serde_json::{Map, Value, json};

use super::Layers;
use super::parts::counts;

/// Lists of layers whose features go elsewhere: their length is part of the model.
const TAPS: [&str; 4] = ["deepstack", "intermediate_layers", "out_ind", "feature"];

/// Periods: the key, the key of the offset, and what a layer at a multiple of it is.
const PERIODS: [(&str, Option<&str>, &str); 7] = [
    ("decoder_sparse_step", None, "a mixture of experts"),
    ("encoder_sparse_step", None, "a mixture of experts"),
    ("moe_layer_freq", None, "a mixture of experts"),
    ("moe_layer_interval", None, "a mixture of experts"),
    (
        "attn_layer_period",
        Some("attn_layer_offset"),
        "of attention",
    ),
    (
        "expert_layer_period",
        Some("expert_layer_offset"),
        "a mixture of experts",
    ),
    ("global_attn_every_n_layers", None, "of global attention"),
];

/// One part of the configuration, and the same part of each model's.
pub(super) struct View<'a> {
    pub(super) layers: &'a Layers,
    pub(super) sources: Vec<&'a Map<String, Value>>,
}

impl View<'_> {
    fn before(&self) -> usize {
        self.layers.n_before()
    }

    fn is_identity(&self) -> bool {
        self.layers.order.len() == self.before()
            && (self.layers.order.iter().enumerate()).all(|(at, &(_, layer))| at == layer)
    }

    /// Sets the numbers of layers.
    pub(super) fn count(&self, own: &mut Map<String, Value>, changed: &mut Vec<String>) {
        let after = self.layers.order.len();
        for (key, extra) in counts(own, &self.layers.prefix, self.before()) {
            // Layers that predict further tokens stand at the end and are counted elsewhere.
            let first_extra = self.before() - extra;
            let n_extra = (self.layers.order.iter().rev())
                .take_while(|(_, layer)| *layer >= first_extra && extra > 0)
                .count();
            replace(own, &key, json!(after - n_extra), changed);
            if extra > 0 {
                replace(own, "num_nextn_predict_layers", json!(n_extra), changed);
            }
        }
        if let Some(dense) = own.get("first_k_dense_replace").and_then(Value::as_u64) {
            let n_dense = (self.layers.order.iter())
                .take_while(|(_, layer)| (*layer as u64) < dense)
                .count();
            replace(own, "first_k_dense_replace", json!(n_dense), changed);
        }
    }

    /// Writes lists out that a period stands for, where loaders take a list as well.
    pub(super) fn spell_out(&self, own: &mut Map<String, Value>, changed: &mut Vec<String>) {
        if self.is_identity() {
            return;
        }
        if !own.get("layer_types").is_some_and(Value::is_array) {
            let kinds: Option<Vec<Value>> = (self.layers.order.iter())
                .map(|&(model, layer)| Some(json!(kind_of(self.sources.get(model)?, layer)?)))
                .collect();
            if let Some(kinds) = kinds {
                replace(own, "layer_types", Value::Array(kinds), changed);
            }
        }
        // GPT-Neo: `[[["global", "local"], 6]]` stands for twelve layers.
        let expanded: Option<Vec<Value>> = (self.layers.order.iter())
            .map(|&(model, layer)| attention_of(self.sources.get(model)?, layer))
            .collect();
        if let Some(kinds) = expanded.filter(|kinds| !kinds.is_empty()) {
            replace(own, "attention_types", json!([[kinds, 1]]), changed);
        }
    }

    /// Brings lists into the order of the layers.
    pub(super) fn follow(
        &self,
        own: &mut Map<String, Value>,
        changed: &mut Vec<String>,
        notes: &mut Vec<String>,
    ) {
        if self.is_identity() {
            return;
        }
        let mut keys: Vec<String> = own.keys().cloned().collect();
        keys.retain(|key| !changed.contains(key));
        for key in &keys {
            match own.get(key) {
                // A letter for each layer, as in Nemotron-H.
                Some(Value::String(pattern))
                    if key.contains("pattern") && pattern.chars().count() == self.before() =>
                {
                    let letters = self.layers.order.iter().filter_map(|&(model, layer)| {
                        self.sources
                            .get(model)?
                            .get(key)?
                            .as_str()?
                            .chars()
                            .nth(layer)
                    });
                    let letters: String = letters.collect();
                    replace(own, key, json!(letters), changed);
                }
                Some(Value::Array(list)) if is_layer_list(key, list, self.before()) => {
                    let ordered: Vec<Value> = (self.layers.order.iter())
                        .filter_map(|&(model, layer)| {
                            let theirs = self.sources.get(model)?.get(key)?;
                            theirs
                                .as_array()?
                                .get(layer)
                                .or_else(|| list.get(layer))
                                .cloned()
                        })
                        .collect();
                    if ordered.len() == self.layers.order.len() {
                        replace(own, key, Value::Array(ordered), changed);
                    }
                }
                Some(Value::Array(list)) if is_index_list(key, list, self.before()) => {
                    if TAPS.iter().any(|tap| key.contains(tap)) {
                        notes.push(format!(
                            "config.json: `{key}` names layers whose features the model takes; it stays {}",
                            Value::Array(list.clone())
                        ));
                        continue;
                    }
                    let holds = |model: usize, layer: usize| {
                        let theirs = self.sources.get(model).and_then(|source| source.get(key));
                        let theirs = theirs.and_then(Value::as_array).unwrap_or(list);
                        theirs.contains(&json!(layer))
                    };
                    let mapped: Vec<usize> = (self.layers.order.iter().enumerate())
                        .filter(|(_, (model, layer))| holds(*model, *layer))
                        .map(|(at, _)| at)
                        .collect();
                    replace(own, key, json!(mapped), changed);
                }
                _ => {}
            }
        }
    }

    /// Notes periods that layers no longer follow.
    pub(super) fn check_periods(&self, own: &Map<String, Value>, notes: &mut Vec<String>) {
        let has_list = |what: &str| {
            let list = match what {
                "of global attention" => "layer_types",
                _ => "layers_block_type",
            };
            own.get(list).is_some_and(Value::is_array)
        };
        for (key, offset, what) in PERIODS {
            let Some(period) = own
                .get(key)
                .and_then(Value::as_u64)
                .filter(|period| *period > 1)
            else {
                continue;
            };
            let offset = match offset {
                Some(offset) => own.get(offset).and_then(Value::as_u64).unwrap_or(0),
                None if key == "global_attn_every_n_layers" => 0,
                None => period - 1,
            };
            let is = |layer: usize| layer as u64 % period == offset;
            let moved = (self.layers.order.iter().enumerate())
                .find(|(at, (_, layer))| is(*at) != is(*layer));
            if let Some((at, (_, layer))) = moved
                && !has_list(what)
            {
                notes.push(format!(
                    "config.json: by `{key}: {period}` layer {at} is {}{what}, but it was layer {layer}; cut slices \
                     at multiples of {period}, or the model will not load as it was",
                    if is(at) { "" } else { "not " }
                ));
            }
        }
        // As many as there are at the start; no setting stands for dense layers behind a mixture of experts.
        if let Some(dense) = (self.sources.first())
            .and_then(|source| source.get("first_k_dense_replace"))
            .and_then(Value::as_u64)
        {
            let is_dense = |&&(_, layer): &&(usize, usize)| (layer as u64) < dense;
            let n_first = self.layers.order.iter().take_while(is_dense).count();
            let late = self
                .layers
                .order
                .iter()
                .skip(n_first)
                .position(|layer| is_dense(&layer));
            if let Some(at) = late {
                notes.push(format!(
                    "config.json: `first_k_dense_replace` counts the dense layers at the start, and layer {} is one, \
                     too, behind mixtures of experts: the model will not load; cut slices so that dense layers come first",
                    n_first + at
                ));
            }
        }
        let shared = own.get("num_kv_shared_layers").and_then(Value::as_u64);
        if shared.is_some_and(|shared| shared > 0) && !self.is_identity() {
            notes.push(
                "config.json: `num_kv_shared_layers` counts the last layers, which share the keys of layers before \
                 them; the slices may have moved them apart"
                    .to_owned(),
            );
        }
    }
}

/// Sets a value, and notes the key if it was another.
fn replace(own: &mut Map<String, Value>, key: &str, value: Value, changed: &mut Vec<String>) {
    if own.get(key) != Some(&value) {
        own.insert(key.to_owned(), value);
        changed.push(key.to_owned());
    }
}

/// The kind of a layer, if a configuration without `layer_types` gives it by a rule of its family.
fn kind_of(config: &Map<String, Value>, layer: usize) -> Option<&'static str> {
    let number = |key: &str| config.get(key).and_then(Value::as_u64).filter(|n| *n > 0);
    let nth = layer as u64 + 1;
    let sliding = |is_full: bool| match is_full {
        true => "full_attention",
        false => "sliding_attention",
    };
    if let Some(period) = number("full_attention_interval") {
        return Some(match nth.is_multiple_of(period) {
            true => "full_attention",
            false => "linear_attention",
        });
    }
    if let Some(period) = number("sliding_window_pattern") {
        return Some(sliding(nth.is_multiple_of(period)));
    }
    match config.get("model_type").and_then(Value::as_str)? {
        "gemma2" | "gpt_oss" => Some(sliding(nth.is_multiple_of(2))),
        "qwen2" | "qwen2_moe" | "qwen3" | "qwen3_moe" => {
            let is_on = config.get("use_sliding_window") == Some(&Value::Bool(true));
            let first = config.get("max_window_layers").and_then(Value::as_u64)?;
            is_on.then(|| sliding((layer as u64) < first))
        }
        _ => None,
    }
}

/// The attention of a layer of GPT-Neo.
fn attention_of(config: &Map<String, Value>, layer: usize) -> Option<Value> {
    let mut at = 0;
    for group in config.get("attention_types")?.as_array()? {
        let kinds = group.get(0)?.as_array().filter(|kinds| !kinds.is_empty())?;
        let n = kinds
            .len()
            .checked_mul(usize::try_from(group.get(1)?.as_u64()?).ok()?)?;
        if layer < at + n {
            return Some(kinds[(layer - at) % kinds.len()].clone());
        }
        at += n;
    }
    None
}

/// Whether a list has a value for each layer, by its length and its name.
fn is_layer_list(key: &str, list: &[Value], before: usize) -> bool {
    const WORDS: [&str; 13] = [
        "layer",
        "block",
        "attn",
        "attention",
        "window",
        "no_rope",
        "sparsity",
        "intermediate_size",
        "ffn",
        "mlp",
        "head",
        "types",
        "expert",
    ];
    let others = [
        "token",
        "architectures",
        "out_features",
        "stage",
        "id2label",
    ];
    list.len() == before
        && WORDS.iter().any(|word| key.contains(word))
        && !others.iter().any(|word| key.contains(word))
        && (!is_index_list(key, list, before) || key.starts_with("no_"))
}

/// Whether a list names layers by their numbers.
fn is_index_list(key: &str, list: &[Value], before: usize) -> bool {
    let words = ["layer", "block", "idx", "index", "indices", "ids"];
    let numbers: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
    let is_named = words.iter().any(|word| key.contains(word)) && !key.contains("token");
    is_named
        && numbers.is_some_and(|numbers| {
            numbers.iter().all(|number| (*number as usize) < before)
                && numbers.windows(2).all(|pair| pair[0] < pair[1])
        })
}
