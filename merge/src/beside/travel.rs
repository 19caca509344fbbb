//! The files of a model's folder that go with its weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use regex::Regex;
use serde_json::Value;

use super::{bad, read_text};
use crate::Result;
use crate::io::folder::visible_files;

/// Files that loaders look for beside weights, in lower case, `*` standing for anything.
const NAMES: [&str; 32] = [
    "config.json",
    "configuration.json",
    "*_config.json",
    "config_*.json",
    "*processor.json",
    "modules.json",
    "*tokens*.json",
    "*tokenizer*.json",
    "*vocab*.json",
    "*vocab*.txt",
    "vocab.bpe",
    "bpe.codes",
    "dict*.txt",
    "merges.txt",
    "normalizer.json",
    "tekken.json",
    "*.model",
    "tokenizer.model.*",
    "*.spm",
    "*.tiktoken",
    "chat_template*",
    "*.jinja",
    "alphabet.json",
    "emoji.json",
    "artifact.metadata",
    "colbert_linear.pt",
    "sparse_linear.pt",
    "*license*",
    "*licence*",
    "notice*",
    "copying*",
    "*use_policy*",
];

/// Files among them that are about something else than the model, or say how its weights are quantized, which
/// merged weights are not.
const NOT_OF_THE_MODEL: [&str; 8] = [
    "adapter_config.json",
    "peft_config.json",
    "trainer_config.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "quantization_config.json",
    "compression_config.json",
];

/// Python files called so are the code of a model, as transformers names it.
const CODE_NAMES: [&str; 8] = [
    "configuration_*.py",
    "modeling_*.py",
    "modular_*.py",
    "tokenization_*.py",
    "processing_*.py",
    "image_processing_*.py",
    "video_processing_*.py",
    "feature_extraction_*.py",
];

/// Folders whose files loaders look for.
const FOLDERS: [&str; 3] = [
    "additional_chat_templates",
    "custom_generate",
    "language_model",
];

/// Most files that travel: models have some thirty.
const MAX_FILES: usize = 1000;

/// The files of a model: a folder here, or the names and addresses of those below a remote one.
pub(crate) enum Files {
    /// A folder of this machine.
    Here(PathBuf),
    /// By their names, with slashes.
    There(BTreeMap<String, PathBuf>),
}

impl Files {
    /// Names of the visible files right below a folder of the model, `""` for the model's own.
    fn below(&self, folder: &str) -> Result<Vec<String>> {
        let start = match folder {
            "" => String::new(),
            folder => format!("{folder}/"),
        };
        let Self::Here(root) = self else {
            return Ok((self.there())
                .filter(|name| {
                    let rest = name.strip_prefix(&start);
                    rest.is_some_and(|rest| !rest.contains('/') && !rest.starts_with('.'))
                })
                .cloned()
                .collect());
        };
        let path = root.join(folder);
        if !path.is_dir() {
            return Ok(Vec::new());
        }
        let names = visible_files(&path)?.into_iter();
        Ok(names.map(|name| format!("{start}{name}")).collect())
    }

    fn there(&self) -> impl Iterator<Item = &String> {
        let files = match self {
            Self::Here(_) => None,
            Self::There(files) => Some(files.keys()),
        };
        files.into_iter().flatten()
    }

    /// The folder, for messages.
    fn root(&self) -> PathBuf {
        match self {
            Self::Here(root) => root.clone(),
            Self::There(files) => {
                let first = files.values().next().and_then(|path| path.parent());
                first.unwrap_or(Path::new("")).to_owned()
            }
        }
    }

    /// The path of a file, if it is there.
    fn path(&self, name: &str) -> Option<PathBuf> {
        match self {
            Self::Here(root) => Some(root.join(name)).filter(|path| path.is_file()),
            Self::There(files) => files.get(name).cloned(),
        }
    }
}

/// Names and places of the files that travel along.
pub(crate) fn travelling(files: &Files) -> Result<BTreeMap<String, PathBuf>> {
    let top = files.below("")?;
    let mut names: BTreeSet<String> = (top.iter())
        .filter(|name| is_of_the_model(name))
        .cloned()
        .collect();
    for folder in FOLDERS {
        names.extend(files.below(folder)?);
    }
    for folder in modules(files)? {
        names.extend(files.below(&folder)?);
    }
    names.extend(code(files, &top)?);
    if names.len() > MAX_FILES {
        let reason = format!("{} files go with the model; {MAX_FILES} may", names.len());
        return Err(bad(&files.root(), reason).into());
    }
    Ok((names.into_iter())
        .filter_map(|name| Some((name.clone(), files.path(&name)?)))
        .collect())
}

/// Whether a file right in a model's folder is one that loaders look for.
fn is_of_the_model(name: &str) -> bool {
    let lower = name.to_lowercase();
    let is_known = NAMES.iter().any(|pattern| fits(pattern, &lower));
    is_known && !NOT_OF_THE_MODEL.contains(&lower.as_str()) && !lower.contains(".index.")
}

/// Folders of the modules of sentence-transformers, whose weights travel too.
fn modules(files: &Files) -> Result<Vec<String>> {
    let Some(path) = files.path("modules.json") else {
        return Ok(Vec::new());
    };
    let Ok(Value::Array(modules)) = serde_json::from_str(&read_text(&path)?) else {
        return Ok(Vec::new());
    };
    let folders = (modules.iter()).filter_map(|module| module.get("path")?.as_str());
    Ok(folders
        .filter(|folder| is_below(folder))
        .map(str::to_owned)
        .collect())
}

/// A name that stays within the folder.
pub(crate) fn is_below(name: &str) -> bool {
    let mut components = Path::new(name).components();
    !name.is_empty() && components.all(|part| matches!(part, Component::Normal(_)))
}

/// Python files that loaders run: all of the folder if any is called like the code of a model, and those
/// of folders that they import by relative names.
fn code(files: &Files, top: &[String]) -> Result<BTreeSet<String>> {
    let is_code = |name: &&String| CODE_NAMES.iter().any(|pattern| fits(pattern, name));
    if !top.iter().any(|name| is_code(&name)) && !has_auto_map(files)? {
        return Ok(BTreeSet::new());
    }
    let mut open: Vec<String> = (top.iter())
        .filter(|name| name.ends_with(".py"))
        .cloned()
        .collect();
    let mut found = BTreeSet::new();
    while let Some(name) = open.pop() {
        if found.len() > MAX_FILES || !found.insert(name.clone()) {
            continue;
        }
        if let Some(path) = files.path(&name) {
            // Code that is no text imports nothing.
            let text = read_text(&path).unwrap_or_default();
            let imported = relative_imports(&text).into_iter();
            let inner = imported.flat_map(|module| candidates(&name, &module));
            open.extend(inner.filter(|name| files.path(name).is_some()));
        }
    }
    Ok(found)
}

/// Whether the configuration names classes of code beside it.
fn has_auto_map(files: &Files) -> Result<bool> {
    let Some(path) = files.path("config.json") else {
        return Ok(false);
    };
    let config: Value = serde_json::from_str(&read_text(&path)?).unwrap_or_default();
    Ok(config.get("auto_map").is_some())
}

/// The modules that a Python file imports by relative names: dots, then the module.
fn relative_imports(text: &str) -> Vec<String> {
    let Ok(pattern) =
        Regex::new(r"(?m)^[ \t]*from[ \t]+(\.+[\w.]*)[ \t]+import[ \t]+\(?([\w, \t]*)")
    else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for capture in pattern.captures_iter(text) {
        let module = &capture[1];
        found.push(module.to_owned());
        // `from . import helper` names a file, `from .module import name` may.
        let separator = if module.ends_with('.') { "" } else { "." };
        let names = capture[2]
            .split(',')
            .filter_map(|name| name.split_whitespace().next());
        found.extend(names.map(|name| format!("{module}{separator}{name}")));
    }
    found
}

/// Files that a relative import within `file` may mean.
fn candidates(file: &str, module: &str) -> Vec<String> {
    let n_dots = module.len() - module.trim_start_matches('.').len();
    let mut folder: Vec<&str> = file.split('/').collect();
    for _ in 0..n_dots {
        if folder.pop().is_none() {
            return Vec::new();
        }
    }
    let rest = &module[n_dots..];
    folder.extend(rest.split('.').filter(|part| !part.is_empty()));
    let path = folder.join("/");
    let package = match path.as_str() {
        "" => "__init__.py".to_owned(),
        path => format!("{path}/__init__.py"),
    };
    vec![format!("{path}.py"), package]
}

/// Whether a name fits a pattern with `*` at its ends or once in the middle.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    let inner = pattern
        .strip_prefix('*')
        .and_then(|rest| rest.strip_suffix('*'));
    if let Some(inner) = inner {
        return name.contains(inner);
    }
    let mut rest = name;
    let parts: Vec<&str> = pattern.split('*').collect();
    let last = parts.len() - 1;
    for (index, part) in parts.iter().enumerate() {
        let found = match index {
            0 if index == last => (rest == *part).then_some(rest.len()),
            0 => rest.starts_with(part).then_some(part.len()),
            _ if index == last => rest.ends_with(part).then_some(rest.len()),
            _ => rest.find(part).map(|at| at + part.len()),
        };
        match found {
            Some(end) => rest = &rest[end..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn companions_are_known_by_their_names() {
        for name in [
            "tokenizer.json",
            "qwen.tiktoken",
            "sentence_bert_config.json",
            "config_sentence_transformers.json",
            "modules.json",
            "source.spm",
            "video_preprocessor_config.json",
            "sentencepiece.bpe.model",
            "LICENSE.txt",
            "USE_POLICY.md",
            "special_tokens_map.json",
            "vocab-src.json",
            "tokenizer.model.v3",
            "MODEL_LICENSE",
            "alphabet.json",
        ] {
            assert!(is_of_the_model(name), "{name}");
        }
        for name in [
            "train.py",
            "model.safetensors",
            "model.safetensors.index.json",
            "adapter_config.json",
            "README.md",
            "trainer_state.json",
            "quantize_config.json",
            "hf_quant_config.json",
        ] {
            assert!(!is_of_the_model(name), "{name}");
        }
    }

    #[test]
    fn relative_imports_name_files_of_the_folder_and_below() {
        let text =
            "import torch\nfrom .a import X\n  from .b.c import (Y, Z)\nfrom . import d, e as f\n";
        let found = relative_imports(text);
        for module in [".a", ".b.c", ".d", ".e"] {
            assert!(
                found.iter().any(|name| name == module),
                "{module} in {found:?}"
            );
        }
        assert_eq!(candidates("modeling_x.py", ".b.c")[0], "b/c.py");
        assert_eq!(candidates("b/c.py", "..a")[0], "a.py");
        assert_eq!(candidates("b/c.py", "...a"), Vec::<String>::new());
    }
}
