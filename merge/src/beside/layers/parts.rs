//! The part of a configuration that describes a stack, and the keys in it that count layers.

use serde_json::{Map, Value};

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

/// Keys of a part that count the layers of the stack, and how many layers of the file each leaves out.
pub(super) fn counts(
    part: &Map<String, Value>,
    prefix: &str,
    before: usize,
) -> Vec<(String, usize)> {
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
pub(super) fn count_keys<'a>(part: &'a Map<String, Value>, prefix: &str) -> Vec<&'a str> {
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

/// Paths of the parts of the configuration that are about the stack, by the words of both names.
pub(in crate::beside) fn parts_of_stack(config: &Value, prefix: &str) -> Vec<Vec<String>> {
    let keys = [&GENERIC_KEYS[..], &ENCODER_KEYS, &DECODER_KEYS].concat();
    let is_counting = |path: &&Vec<String>| {
        part(config, path).is_some_and(|part| !keys_of(part, &keys).is_empty())
    };
    let kinds_of = |path: &Vec<String>| kinds(path.iter().map(String::as_str));
    let mut all = parts(config);
    let known: Vec<&str> = all.iter().filter(is_counting).flat_map(kinds_of).collect();
    let mut wanted = kinds(prefix.split('.'));
    wanted.retain(|kind| known.contains(kind));
    all.retain(|path| kinds_of(path) == wanted);
    all
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

/// The part of a configuration at a path.
pub(in crate::beside) fn part<'a>(
    config: &'a Value,
    path: &[String],
) -> Option<&'a Map<String, Value>> {
    let inner = path.iter().try_fold(config, |at, key| at.get(key))?;
    inner.as_object()
}

/// The same, to be changed.
pub(in crate::beside) fn part_mut<'a>(
    config: &'a mut Value,
    path: &[String],
) -> Option<&'a mut Map<String, Value>> {
    let inner = path.iter().try_fold(config, |at, key| at.get_mut(key))?;
    inner.as_object_mut()
}

/// The prefix of a part's keys in messages.
pub(in crate::beside) fn place(path: &[String]) -> String {
    path.iter().map(|key| format!("{key}.")).collect()
}
