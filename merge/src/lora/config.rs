//! The settings in an adapter's `adapter_config.json`.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::io::{SourceFile, model_folder};
use crate::recipe::Place;
use crate::remote::address::is_address;
use crate::{AdapterFault, Error, Result};

/// The file's name.
pub(super) const NAME: &str = "adapter_config.json";

/// Settings are short; anything larger is none.
const MAX_BYTES: u64 = 1 << 20;

/// The settings of a plain adapter that this program writes. Its factors hold all scales, so α is the rank.
pub(super) struct Written {
    pub(super) base: Value,
    pub(super) rank: usize,
    /// Ranks of modules that have another one, by patterns of their names.
    pub(super) ranks: Map<String, Value>,
    pub(super) fan_in_fan_out: bool,
    pub(super) bias: &'static str,
    pub(super) target_modules: Vec<String>,
    pub(super) modules_to_save: Value,
}

impl Written {
    /// The text of `adapter_config.json`, as a value.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "peft_type": "LORA",
            "base_model_name_or_path": self.base,
            "task_type": null,
            "inference_mode": true,
            "r": self.rank,
            "lora_alpha": self.rank,
            "rank_pattern": self.ranks,
            "alpha_pattern": self.ranks,
            "use_rslora": false,
            "use_dora": false,
            "lora_dropout": 0.0,
            "fan_in_fan_out": self.fan_in_fan_out,
            "init_lora_weights": true,
            "bias": self.bias,
            "target_modules": self.target_modules,
            "modules_to_save": self.modules_to_save,
        })
    }
}

/// Settings under which weights are made otherwise than by `W + s B A`. They must be absent, null,
/// false or empty.
const REFUSED: [&str; 7] = [
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
];

/// Ways to begin training that leave the base as it is. Others subtract the adapter's first values
/// from the base, so that it fits no published one.
const STARTS: [&str; 4] = ["gaussian", "eva", "orthogonal", "true"];

#[derive(Deserialize)]
struct Raw {
    peft_type: Option<String>,
    r: Option<usize>,
    lora_alpha: Option<f64>,
    /// The name of `lora_alpha` in LoHa and LoKr.
    alpha: Option<f64>,
    #[serde(default)]
    ensure_weight_tying: bool,
    #[serde(default)]
    target_parameters: Option<Vec<String>>,
    #[serde(default)]
    trainable_token_indices: Value,
    #[serde(default)]
    use_rslora: bool,
    use_dora: Option<bool>,
    #[serde(default)]
    fan_in_fan_out: bool,
    /// In the order of the file, of which the first that fits decides.
    rank_pattern: Option<Map<String, Value>>,
    alpha_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    init_lora_weights: Value,
    base_model_name_or_path: Option<String>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// An adapter's settings, of which every one that changes numbers is known.
#[derive(Debug)]
pub(super) struct Config {
    /// None where no file says it: the factors do.
    rank: Option<usize>,
    /// None where the adapter's tensors say it.
    alpha: Option<f64>,
    by_root: bool,
    /// Whether every weight comes with the lengths that its rows are brought to (DoRA).
    pub(super) has_magnitudes: bool,
    /// Whether embeddings and a head that shares them stay one.
    pub(super) keeps_ties: bool,
    /// Parameters, by the ends of their names, that are changed without their modules.
    pub(super) parameters: Vec<String>,
    /// Rows of embeddings, by the end of their module's name; of every one under an empty name.
    tokens: Vec<(String, Vec<usize>)>,
    /// Whether weights are stored as `(in, out)`.
    pub(super) fan_in_fan_out: bool,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl Config {
    /// Reads the settings of the adapter in `folder`; returns their file, too.
    pub(super) fn open(folder: &Path, place: Place) -> Result<(Self, SourceFile)> {
        let path = folder.join(NAME);
        let (raw, file) = read(&path, place)?;
        let refused = |setting: String| {
            Error::from(AdapterFault::Setting {
                path: path.clone(),
                setting,
                place,
            })
        };
        let kind = |kind: String| {
            Error::from(AdapterFault::Kind {
                path: path.clone(),
                kind,
                place,
            })
        };
        match raw.peft_type.as_deref() {
            Some("LORA" | "LOHA" | "LOKR") => {}
            other => return Err(kind(other.unwrap_or("that `peft_type` should name").into())),
        }
        for name in REFUSED {
            if raw.others.get(name).is_some_and(is_set) {
                return Err(refused(format!("`{name}`")));
            }
        }
        if let Value::String(start) = &raw.init_lora_weights
            && !STARTS.contains(&start.as_str())
        {
            return Err(refused(format!("`init_lora_weights: {start}`")));
        }
        let (Some(rank @ 1..), Some(alpha)) = (raw.r, raw.lora_alpha.or(raw.alpha)) else {
            return Err(refused("no `r` above 0, or no `lora_alpha`,".into()));
        };
        let bad = |reason: String| {
            Error::from(AdapterFault::Settings {
                path: path.clone(),
                reason,
                place,
            })
        };
        let ranks = patterns(raw.rank_pattern, |value| {
            let rank = value.as_u64().filter(|&rank| rank > 0)?;
            usize::try_from(rank).ok()
        });
        let alphas = patterns(raw.alpha_pattern, Value::as_f64);
        let tokens = tokens(&raw.trainable_token_indices)
            .ok_or_else(|| bad("trainable_token_indices: no lists of tokens".into()))?;
        let config = Self {
            rank: Some(rank),
            alpha: Some(alpha),
            by_root: raw.use_rslora,
            has_magnitudes: raw.use_dora == Some(true),
            keeps_ties: raw.ensure_weight_tying,
            parameters: raw.target_parameters.unwrap_or_default(),
            tokens,
            fan_in_fan_out: raw.fan_in_fan_out,
            ranks: ranks.map_err(|reason| bad(format!("rank_pattern: {reason}")))?,
            alphas: alphas.map_err(|reason| bad(format!("alpha_pattern: {reason}")))?,
        };
        Ok((config, file))
    }

    /// Those of an adapter without settings: ranks are those of its factors, and each factor α is beside
    /// them or the rank itself.
    pub(super) fn without_settings() -> Self {
        Self {
            rank: None,
            alpha: None,
            by_root: false,
            has_magnitudes: false,
            keeps_ties: false,
            parameters: Vec::new(),
            tokens: Vec::new(),
            fan_in_fan_out: false,
            ranks: Vec::new(),
            alphas: Vec::new(),
        }
    }

    /// Whether no file says anything.
    pub(super) const fn is_without_settings(&self) -> bool {
        self.rank.is_none()
    }

    /// The rank of a module's update, of which the factors have `found`.
    pub(super) fn rank(&self, module: &str, found: usize) -> usize {
        let known = self.ranks.iter().find(|(name, _)| name.is_match(module));
        known.map_or(self.rank.unwrap_or(found), |&(_, rank)| rank)
    }

    /// The factor on a module's update: α/r, or α/√r. `beside` is an α that is stored beside the factors.
    pub(super) fn scale(&self, module: &str, found: usize, beside: Option<f64>) -> f64 {
        let rank = self.rank(module, found);
        let known = self.alphas.iter().find(|(name, _)| name.is_match(module));
        let alpha = known.map(|&(_, alpha)| alpha).or(self.alpha).or(beside);
        let alpha = alpha.unwrap_or(rank as f64);
        match self.by_root {
            true => alpha / (rank as f64).sqrt(),
            false => alpha / rank as f64,
        }
    }

    /// The rows of a module's embeddings that were trained.
    pub(super) fn tokens(&self, module: &str) -> Option<&[usize]> {
        let fits = |name: &str| {
            let start = module.strip_suffix(name);
            name.is_empty() || start.is_some_and(|start| start.is_empty() || start.ends_with('.'))
        };
        let found = self.tokens.iter().find(|(name, _)| fits(name));
        found.map(|(_, tokens)| tokens.as_slice())
    }
}

/// Lists of tokens: one, or one for each of several modules.
fn tokens(value: &Value) -> Option<Vec<(String, Vec<usize>)>> {
    let list = |value: &Value| -> Option<Vec<usize>> {
        let items = value.as_array()?.iter();
        items
            .map(|item| usize::try_from(item.as_u64()?).ok())
            .collect()
    };
    match value {
        Value::Null => Some(Vec::new()),
        Value::Object(modules) => (modules.iter())
            .map(|(name, value)| Some((name.clone(), list(value)?)))
            .collect(),
        value => Some(vec![(String::new(), list(value)?)]),
    }
}

/// The base that an adapter names.
pub(super) fn base_name(folder: &Path) -> Result<Option<String>> {
    let (raw, _) = read(&folder.join(NAME), Place::default())?;
    Ok(raw.base_model_name_or_path)
}

/// The base that an adapter names, if that is not what `base` is called.
pub(crate) fn named_base(folder: &Path, base: &Path, place: Place) -> Result<Option<String>> {
    if !has_settings(folder) {
        return Ok(None);
    }
    let (raw, _) = read(&folder.join(NAME), place)?;
    let named = raw.base_model_name_or_path.filter(|name| !name.is_empty());
    let folder = model_folder(base).unwrap_or_else(|| base.to_owned());
    let called = last_part(&folder);
    Ok(named.filter(|name| !last_part(Path::new(name)).eq_ignore_ascii_case(&called)))
}

/// Whether an adapter has a file of settings: kohya's and diffusers' have none.
pub(super) fn has_settings(adapter: &Path) -> bool {
    match is_address(adapter) {
        true => adapter
            .extension()
            .is_none_or(|extension| extension != "safetensors"),
        false => adapter.join(NAME).is_file() || !adapter.exists(),
    }
}

/// A path's name of a model: its last part without a revision or a file's extension.
fn last_part(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.split('@').next().unwrap_or_default();
    let name = name.strip_suffix(".safetensors").unwrap_or(name);
    name.strip_suffix(".bin").unwrap_or(name).to_owned()
}

fn read(path: &Path, place: Place) -> Result<(Raw, SourceFile)> {
    let (text, file) = super::read_settings(path, MAX_BYTES)?;
    let raw = serde_json::from_str(&text).map_err(|error| AdapterFault::Settings {
        path: path.into(),
        reason: error.to_string(),
        place,
    })?;
    Ok((raw, file))
}

/// Whether a setting is neither absent nor off.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
        _ => true,
    }
}

/// Patterns of module names, which fit a name's end after a dot, with their values.
fn patterns<T>(
    written: Option<Map<String, Value>>,
    value: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(Regex, T)>, String> {
    let written = written.unwrap_or_default();
    (written.iter())
        .map(|(pattern, given)| {
            let compiled = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
            let compiled = compiled.map_err(|error| error.to_string())?;
            let value = value(given).ok_or_else(|| format!("`{pattern}` is {given}"))?;
            Ok((compiled, value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join(NAME), text).expect("written");
        Config::open(folder.path(), Place::default()).map(|(config, _)| config)
    }

    #[test]
    fn the_first_pattern_in_the_order_of_the_file_decides() {
        let config = config(
            r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16,
                "rank_pattern": {"z.*proj": 2, "a.q_proj": 4, "^layers.0.k": 16},
                "alpha_pattern": {"q_proj": 1.5}}"#,
        )
        .expect("valid");
        assert_eq!(config.rank("layers.1.a.q_proj", 1), 4);
        assert_eq!(config.rank("layers.1.z.q_proj", 1), 2);
        assert_eq!(config.rank("layers.1.za.q_proj", 1), 2);
        assert_eq!(config.rank("layers.0.k", 1), 16);
        // A pattern begins after a dot.
        assert_eq!(config.rank("layers.1.ba.q_proj", 1), 8);
        assert_eq!(config.scale("layers.1.a.q_proj", 1, None), 1.5 / 4.0);
        assert_eq!(config.scale("layers.1.v_proj", 1, Some(9.0)), 2.0);
        // Without settings the factors say all.
        let bare = Config::without_settings();
        assert_eq!(bare.scale("x", 4, Some(1.0)), 0.25);
        assert_eq!(bare.scale("x", 4, None), 1.0);
    }

    #[test]
    fn with_rslora_the_factor_is_alpha_by_the_root_of_the_rank() {
        let text = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 16, "use_rslora": true}"#;
        assert_eq!(config(text).expect("valid").scale("x", 1, None), 8.0);
    }

    #[test]
    fn what_is_no_plain_lora_is_named() {
        let with = |more: &str| {
            let text = format!(r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 16, {more}}}"#);
            config(&text).expect_err("refused").to_string()
        };
        assert!(with(r#""layer_replication": [[0, 2]]"#).contains("`layer_replication`"));
        assert!(with(r#""init_lora_weights": "pissa"}"#).contains("column"));
        assert!(with(r#""init_lora_weights": "pissa""#).contains("`init_lora_weights: pissa`"));
        assert!(with(r#""rank_pattern": {"q": 0}"#).contains("rank_pattern: `q` is 0"));
        assert!(with(r#""rank_pattern": {"(": 1}"#).contains("rank_pattern: "));
        assert!(
            config(r#"{"peft_type": "IA3"}"#)
                .expect_err("refused")
                .to_string()
                .contains("IA3")
        );
        assert!(config(r#"{"peft_type": "LORA", "r": 0, "lora_alpha": 1}"#).is_err());
        let plain = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 16, "use_dora": false,
            "trainable_token_indices": null, "init_lora_weights": true, "lora_bias": false}"#;
        assert!(config(plain).is_ok());
    }

    #[test]
    fn a_base_is_told_by_the_last_part_of_its_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let text = r#"{"base_model_name_or_path": "org/Tiny-1.5"}"#;
        std::fs::write(folder.path().join(NAME), text).expect("written");
        let named = |base: &str| {
            named_base(folder.path(), Path::new(base), Place::default()).expect("readable")
        };
        assert_eq!(named("models/tiny-1.5"), None);
        assert_eq!(named("hf://org/Tiny-1.5@main"), None);
        assert_eq!(named("models/tiny-1.5.safetensors"), None);
        assert_eq!(named("models/tiny-1.6"), Some("org/Tiny-1.5".into()));
    }
}
