//! What a configuration says of layers, after slices have cut and ordered them anew.
//!
//! Configurations say how many layers a stack has, and some say of each layer what it is: as a list with
//! a value a layer, as a list of the layers that are something, or as a period. All three follow the
//! layers here. What no list can say is a note.

use serde_json::{Map, Value, json};

/// The layers of a stack that slices made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layers {
    /// What the names of its tensors begin with.
    pub(crate) prefix: String,
    /// How many layers the stack of each model has.
    pub(crate) before: Vec<usize>,
    /// The configuration of each model that gives layers; the first is the one that is changed.
    pub(crate) configs: Vec<Value>,
    /// Each layer of the output: the model, and the layer within it.
    pub(crate) order: Vec<(usize, usize)>,
}

/// Keys of configurations that have a number of layers, whatever the stack.
const GENERIC_KEYS: [&str; 8] = [
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "depth",
    "layers",
    "num_transformer_layers",
    "num_blocks",
];

/// Those of an encoder.
const ENCODER_KEYS: [&str; 5] = [
    "encoder_layers",
    "num_encoder_layers",
    "n_encoder_layers",
    "encoder_num_hidden_layers",
    "encoder_num_layers",
];

/// Those of a decoder.
const DECODER_KEYS: [&str; 5] = [
    "decoder_layers",
    "num_decoder_layers",
    "n_decoder_layers",
    "decoder_num_hidden_layers",
    "decoder_num_layers",
];

/// Words of names that tell the parts of a model apart.
const KINDS: [(&str, &[&str]); 8] = [
    ("vision", &["vision", "visual", "vit", "image", "img"]),
    ("audio", &["audio", "speech"]),
    ("qformer", &["qformer"]),
    ("perceiver", &["perceiver", "resampler"]),
    ("talker", &["talker"]),
    ("thinker", &["thinker"]),
    ("code2wav", &["code2wav"]),
    ("multimodal", &["multimodal"]),
];

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

/// Changes what a configuration says of the layers. Returns the keys that were changed, and notes on what
/// it cannot say.
pub(super) fn set(config: &mut Value, layers: &Layers) -> (Vec<String>, Vec<String>) {
    let (mut changed, mut notes) = (Vec::new(), Vec::new());
    let all = parts(config);
    let before = layers.before.first().copied().unwrap_or(0);
    let chosen: Vec<Vec<String>> = (all.iter())
        .filter(|path| is_of_stack(path, &all, config, &layers.prefix))
        .filter(|path| {
            let part = part(config, path);
            part.is_some_and(|part| !counts(part, &layers.prefix, before).is_empty())
        })
        .cloned()
        .collect();
    if chosen.is_empty() && before != layers.order.len() {
        notes.push(format!(
            "config.json names no number of layers for `{}`, which has {} now instead of {before}: set it by hand",
            layers.prefix,
            layers.order.len()
        ));
    }
    for path in chosen {
        let place = path.iter().map(|key| format!("{key}.")).collect::<String>();
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

/// Where a configuration says another number of layers than the stack has.
pub(crate) fn contradictions(config: &Value, prefix: &str, n_layers: usize) -> Vec<String> {
    let all = parts(config);
    let own = all
        .iter()
        .filter(|path| is_of_stack(path, &all, config, prefix));
    let mut findings = Vec::new();
    for path in own {
        let Some(part) = part(config, path) else {
            continue;
        };
        let keys = count_keys(part, prefix);
        let is_said = keys
            .iter()
            .any(|key| part.get(*key).is_some_and(Value::is_u64));
        if !is_said {
            continue;
        }
        let place = path.iter().map(|key| format!("{key}.")).collect::<String>();
        if counts(part, prefix, n_layers).is_empty() {
            let said = keys
                .iter()
                .filter_map(|key| Some(format!("`{place}{key}` is {}", part.get(*key)?)));
            let said = said.collect::<Vec<_>>().join(", ");
            findings.push(format!("{said}; `{prefix}` has {n_layers} layers"));
        }
        let types = part.get("layer_types").and_then(Value::as_array);
        if let Some(types) = types.filter(|types| types.len() < n_layers) {
            let n = types.len();
            findings.push(format!(
                "`{place}layer_types` has {n} entries, `{prefix}` has {n_layers} layers"
            ));
        }
    }
    findings
}

/// One part of the configuration, and the same part of each model's.
struct View<'a> {
    layers: &'a Layers,
    sources: Vec<&'a Map<String, Value>>,
}

impl View<'_> {
    fn before(&self) -> usize {
        self.layers.before.first().copied().unwrap_or(0)
    }

    fn is_identity(&self) -> bool {
        self.layers.order.len() == self.before()
            && (self.layers.order.iter().enumerate()).all(|(at, &(_, layer))| at == layer)
    }

    /// Sets the numbers of layers.
    fn count(&self, own: &mut Map<String, Value>, changed: &mut Vec<String>) {
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
    fn spell_out(&self, own: &mut Map<String, Value>, changed: &mut Vec<String>) {
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
    fn follow(
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
    fn check_periods(&self, own: &Map<String, Value>, notes: &mut Vec<String>) {
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

/// What a layer is, where a configuration without `layer_types` says it by a rule of its family.
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
        "rope",
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

/// Keys of a part that count the layers of the stack, and how many layers of the file each leaves out.
fn counts(part: &Map<String, Value>, prefix: &str, before: usize) -> Vec<(String, usize)> {
    let extra = part.get("num_nextn_predict_layers").and_then(Value::as_u64);
    let extra = extra
        .and_then(|extra| usize::try_from(extra).ok())
        .unwrap_or(0);
    let left_out = |key: &str| match part.get(key)?.as_u64() {
        Some(n) if n == before as u64 => Some(0),
        Some(n) if extra > 0 && n + extra as u64 == before as u64 => Some(extra),
        _ => None,
    };
    (count_keys(part, prefix).into_iter())
        .filter_map(|key| Some((key.to_owned(), left_out(key)?)))
        .collect()
}

/// Keys of a part that may count the layers of the stack.
fn count_keys<'a>(part: &'a Map<String, Value>, prefix: &str) -> Vec<&'a str> {
    let components: Vec<&str> = prefix.split('.').collect();
    let has = |key: &str| part.get(key).is_some_and(Value::is_u64);
    if components.last() == Some(&"single_transformer_blocks") {
        return keys_of(part, &["num_single_layers"]);
    }
    // SeamlessM4T: `speech_encoder_layers`, `t2u_decoder_layers`.
    let is_unit = components
        .iter()
        .any(|component| component.starts_with("t2u"));
    let side = |ending: &str| {
        let is_side =
            |component: &&str| *component == ending || component.ends_with(&format!("_{ending}"));
        components.iter().rposition(is_side)
    };
    let (encoder, decoder) = (side("encoder"), side("decoder"));
    let is_decoder = decoder.is_some() && decoder > encoder;
    let named: Vec<&str> = (part.keys().map(String::as_str))
        .filter(|key| {
            let stem = key.strip_suffix("_layers").unwrap_or("");
            let own = match is_unit {
                true => {
                    stem == if is_decoder {
                        "t2u_decoder"
                    } else {
                        "t2u_encoder"
                    }
                }
                false => stem.contains('_') && components.contains(&stem),
            };
            own && has(key)
        })
        .collect();
    if !named.is_empty() {
        return named;
    }
    let has_decoder = DECODER_KEYS.iter().any(|key| has(key));
    if is_decoder && has_decoder {
        return keys_of(part, &DECODER_KEYS);
    }
    let mut keys = keys_of(part, &GENERIC_KEYS);
    if encoder.is_some() || !has_decoder {
        keys.extend(keys_of(part, &ENCODER_KEYS));
    }
    keys
}

fn keys_of<'a>(part: &'a Map<String, Value>, wanted: &[&str]) -> Vec<&'a str> {
    let keys = part.keys().map(String::as_str);
    keys.filter(|key| wanted.contains(key)).collect()
}

/// Whether a part of the configuration is about the stack, by the words of both names.
fn is_of_stack(path: &[String], all: &[Vec<String>], config: &Value, prefix: &str) -> bool {
    let counting = |path: &&Vec<String>| {
        let part = part(config, path);
        part.is_some_and(|part| {
            let keys = [&GENERIC_KEYS[..], &ENCODER_KEYS, &DECODER_KEYS].concat();
            !keys_of(part, &keys).is_empty()
        })
    };
    let known: Vec<Vec<&str>> = (all.iter().filter(counting))
        .map(|path| kinds(path.iter().map(String::as_str)))
        .collect();
    let is_known = |kind: &&str| known.iter().any(|kinds| kinds.contains(kind));
    let wanted: Vec<&str> = kinds(prefix.split('.'))
        .into_iter()
        .filter(is_known)
        .collect();
    kinds(path.iter().map(String::as_str)) == wanted
}

/// The parts of a model that components of a name speak of.
fn kinds<'a>(components: impl Iterator<Item = &'a str> + Clone) -> Vec<&'static str> {
    let mut found: Vec<&str> = (KINDS.iter())
        .filter(|(_, words)| {
            let mut words_of = components
                .clone()
                .flat_map(|component| component.split('_'));
            words_of.any(|word| words.contains(&word))
        })
        .map(|(kind, _)| *kind)
        .collect();
    // The outermost side: a decoder may have a stack called `encoder`.
    let side = components.clone().find_map(|component| match component {
        "encoder" => Some("encoder"),
        "decoder" => Some("decoder"),
        _ => None,
    });
    found.extend(side);
    found
}

/// Deeper parts are not looked for: a stranger's file could nest without end.
const MAX_DEPTH: usize = 3;

/// Paths of the configuration itself and of the configurations of parts within it.
fn parts(config: &Value) -> Vec<Vec<String>> {
    let mut found = vec![Vec::new()];
    let mut at = 0;
    while at < found.len() {
        let path: Vec<String> = found[at].clone();
        at += 1;
        let Some(object) = part(config, &path).filter(|_| path.len() < MAX_DEPTH) else {
            continue;
        };
        for (key, value) in object {
            let is_side = matches!(
                key.as_str(),
                "encoder" | "decoder" | "text_encoder" | "audio_encoder"
            );
            let is_part = key.ends_with("_config") || key.ends_with("_cfg") || is_side;
            if is_part && key != "quantization_config" && value.is_object() {
                found.push([path.as_slice(), std::slice::from_ref(key)].concat());
            }
        }
    }
    found
}

fn part<'a>(config: &'a Value, path: &[String]) -> Option<&'a Map<String, Value>> {
    let inner = path.iter().try_fold(config, |at, key| at.get(key))?;
    inner.as_object()
}

fn part_mut<'a>(config: &'a mut Value, path: &[String]) -> Option<&'a mut Map<String, Value>> {
    let inner = path.iter().try_fold(config, |at, key| at.get_mut(key))?;
    inner.as_object_mut()
}

#[cfg(test)]
mod tests {
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
        let (_, notes) = after(json!({}), "model.layers", 4, &[0]);
        assert!(notes[0].contains("no number of layers"), "{notes:?}");
    }
}
