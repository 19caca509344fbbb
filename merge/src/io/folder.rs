//! Which file of a folder is the model.

use std::path::{Component, Path, PathBuf};

use crate::{Error, Result, SplitFault};

/// The name of the index of a split model.
const INDEX_SUFFIX: &str = ".index.json";

/// Extensions of single model files, the better first.
const MODEL_EXTENSIONS: [&[&str]; 3] = [&["safetensors"], &["bin", "pt", "pth", "ckpt"], &["gguf"]];

/// The files that loaders ask for by name, in their order: transformers takes a single file before an
/// index, diffusers an index before a single file.
const LOOKED_FOR: [&str; 8] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin",
];

/// Where verl keeps the configuration and the tokenizer of a model in pieces.
const CONFIGURATION_BELOW: &str = "huggingface";

/// Names by which programs look for the model of a folder first.
const MODEL_STEMS: [&str; 5] = [
    "model",
    "pytorch_model",
    "diffusion_pytorch_model",
    "open_clip_model",
    "open_clip_pytorch_model",
];

/// Names of files that lie beside models and are none: the state of a trainer.
const OTHER_STEMS: [&str; 9] = [
    "training_args",
    "optimizer",
    "scheduler",
    "scaler",
    "rng_state",
    "random_states",
    "adapter_model",
    // Of llama.cpp: the image tower beside a language model, and statistics for quantization.
    "mmproj",
    "imatrix",
];

/// The model of a folder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its file, or its index.
    pub(crate) path: PathBuf,
    /// Other models of the folder.
    pub(crate) passed_over: Vec<String>,
}

impl Found {
    /// Says what else was there.
    pub(crate) fn note(&self) -> Option<String> {
        let others = self.passed_over.join(", ");
        (!others.is_empty()).then(|| {
            format!(
                "{}: taken as loaders take it; passed over in its folder: {others}",
                self.path.display()
            )
        })
    }
}

/// Whether one of the files, which are called `names`, has a name that loaders ask for.
pub(super) fn has_usual(names: &[String]) -> bool {
    names.iter().any(|name| LOOKED_FOR.contains(&name.as_str()))
}

/// Files of a folder that may be models, except for those that `is_known` says of, and for the state of a trainer.
pub(super) fn other_models(names: &[String], is_known: impl Fn(&str) -> bool) -> Vec<String> {
    let may_be = |name: &&String| is_index(name) || extension_rank(name).is_some();
    let others = names.iter().filter(may_be);
    others
        .filter(|name| !is_other(name) && !is_known(name))
        .cloned()
        .collect()
}

/// The file that loaders take for the model of a folder whose files are called `names`, sorted.
///
/// # Errors
/// When there is none, or several of the same rank.
pub(crate) fn model_among(folder: &Path, names: &[String]) -> Result<Found> {
    let chosen = choose(folder, names)?;
    let own_shards = chosen
        .strip_suffix(INDEX_SUFFIX)
        .and_then(|file| file.rsplit_once('.'));
    let is_own = |name: &str| {
        let is_part = is_shard(name) && is_shard(chosen) && same_family(chosen, name);
        is_part
            || own_shards.is_some_and(|(stem, extension)| {
                let start = name.strip_suffix(extension);
                is_shard(name) && start.is_some_and(|start| start.starts_with(&format!("{stem}-")))
            })
    };
    let mut passed_over: Vec<String> = Vec::new();
    for name in names {
        let is_chosen = name == chosen || is_own(name);
        if is_chosen || is_other(name) || !(is_index(name) || extension_rank(name).is_some()) {
            continue;
        }
        // The first part stands for all.
        let stem = |name: &str| name.rsplit_once("-of-").map(|(stem, _)| stem.len());
        let is_known = |known: &String| {
            is_shard(known) && stem(known) == stem(name) && same_family(known, name)
        };
        if !(is_shard(name) && passed_over.iter().any(is_known)) {
            passed_over.push(name.clone());
        }
    }
    Ok(Found {
        path: folder.join(chosen),
        passed_over,
    })
}

/// Whether both are parts of one split model.
fn same_family(a: &str, b: &str) -> bool {
    let family = |name: &str| {
        let (before, total) = name.rsplit_once("-of-")?;
        let (stem, _) = before.rsplit_once('-')?;
        Some((stem.to_owned(), total.to_owned()))
    };
    family(a) == family(b)
}

fn choose<'a>(folder: &Path, names: &'a [String]) -> Result<&'a str> {
    let looked_for = LOOKED_FOR.iter();
    let mut usual = looked_for.filter_map(|name| names.iter().find(|other| other == name));
    if let Some(name) = usual.next() {
        return Ok(name);
    }
    let is_main = |name: &&String| !is_variant(name) && !name.starts_with("consolidated");
    let indices: Vec<&String> = names.iter().filter(|name| is_index(name)).collect();
    let ranked = |rank: usize| -> Vec<&String> {
        let of_rank = names
            .iter()
            .filter(|name| extension_rank(name) == Some(rank));
        of_rank.filter(|name| !is_other(name)).collect()
    };
    let adapters: Vec<&String> = names
        .iter()
        .filter(|n| n.starts_with("adapter_model."))
        .collect();
    // The first part of a GGUF model names the others.
    let is_later = |name: &&String| is_shard(name) && !name.contains("-00001-of-");
    let mut gguf = ranked(2);
    gguf.retain(|name| !is_later(name));
    if let [name] = gguf.as_slice()
        && indices.is_empty()
        && ranked(0).is_empty()
        && ranked(1).is_empty()
    {
        return Ok(name);
    }
    for candidates in [indices, ranked(0), ranked(1), gguf, adapters] {
        let main: Vec<&String> = candidates.iter().copied().filter(is_main).collect();
        let candidates = match main.is_empty() {
            true => candidates,
            false => main,
        };
        match candidates.as_slice() {
            [] => {}
            // All of them parts: the first stands for the fault.
            [name, ..] if candidates.iter().all(|name| is_shard(name)) => {
                return Err(SplitFault::LoneShard {
                    folder: folder.into(),
                    shard: (*name).clone(),
                }
                .into());
            }
            [name] => return Ok(name),
            _ => {
                return Err(SplitFault::SeveralModels {
                    folder: folder.into(),
                    files: candidates.into_iter().cloned().collect(),
                }
                .into());
            }
        }
    }
    Err(SplitFault::NoModel {
        folder: folder.into(),
    }
    .into())
}

/// An index, of a variant too (`model.safetensors.index.fp16.json`).
fn is_index(name: &str) -> bool {
    let variant = name
        .strip_suffix(".json")
        .and_then(|name| name.rsplit_once('.'))
        .is_some_and(|(name, _)| name.ends_with(".index"));
    name.ends_with(INDEX_SUFFIX) || variant
}

/// A usual name with the name of a variant in it: `model.fp16.safetensors`.
fn is_variant(name: &str) -> bool {
    let name = name.strip_suffix(".json").unwrap_or(name);
    let n_parts = match is_index(&format!("{name}.json")) {
        true => 3,
        false => 2,
    };
    MODEL_STEMS.iter().any(|stem| {
        let rest = name.strip_prefix(stem);
        rest.is_some_and(|rest| rest.starts_with(['.', '-']))
    }) && name.split('.').count() > n_parts
}

/// Whether a file or folder beside a model is the state of a trainer, by its name.
pub(super) fn is_other(name: &str) -> bool {
    OTHER_STEMS.iter().any(|stem| name.starts_with(stem))
}

/// How good the extension of a single model file is, 0 the best; `None` for any other.
pub(crate) fn extension_rank(name: &str) -> Option<usize> {
    let (_, extension) = name.rsplit_once('.')?;
    let has = |extensions: &&[&str]| extensions.contains(&extension);
    MODEL_EXTENSIONS.iter().position(has)
}

/// The folder of the newest snapshot, if this is a model in the cache of the Hugging Face hub; else the
/// folder itself.
pub(super) fn snapshot(folder: &Path) -> Result<PathBuf> {
    let snapshots = folder.join("snapshots");
    if !snapshots.is_dir() || !folder.join("blobs").is_dir() {
        return Ok(folder.to_owned());
    }
    if let Ok(revision) = std::fs::read_to_string(folder.join("refs/main")) {
        let revision = Path::new(revision.trim());
        let is_name = matches!(
            revision.components().collect::<Vec<_>>().as_slice(),
            [Component::Normal(_)]
        );
        if is_name && snapshots.join(revision).is_dir() {
            return Ok(snapshots.join(revision));
        }
    }
    let failed = |source| Error::io("read", &snapshots, source);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&snapshots).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort_unstable();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Ok(folder.to_owned()),
        _ => Err(SplitFault::SeveralModels {
            folder: snapshots,
            files: (found.iter().filter_map(|path| path.file_name()))
                .map(|name| name.to_string_lossy().into_owned())
                .collect(),
        }
        .into()),
    }
}

/// The folder that a model stands for as a whole: the folder itself (its snapshot, in the cache of the
/// Hugging Face hub; the folder in it that verl keeps configuration and tokenizer in), or that of a file with a usual name, such as `model.safetensors` or its index.
pub(crate) fn model_folder(path: &Path) -> Option<PathBuf> {
    if path.is_dir() {
        let folder = snapshot(path).unwrap_or_else(|_| path.to_owned());
        return Some(configured(folder));
    }
    let folder = folder_of(path);
    (is_model_name(path) && folder.is_dir()).then(|| folder.to_owned())
}

/// Where the configuration of the model in a folder is: in it, or where trainers keep that of one in pieces, below it
/// (verl) or right above it (accelerate).
fn configured(folder: PathBuf) -> PathBuf {
    let has = |folder: &Path| folder.join("config.json").is_file();
    let below = folder.join(CONFIGURATION_BELOW);
    if has(&folder) {
        return folder;
    }
    if has(&below) {
        return below;
    }
    match folder.parent() {
        Some(above) if folder.join(".metadata").is_file() && has(above) => above.to_owned(),
        _ => folder,
    }
}

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Folders that this program makes where they are missing. Dropped, they are removed again if they are empty.
#[derive(Default)]
pub(crate) struct NewFolders(Vec<PathBuf>);

impl NewFolders {
    /// Makes a folder if it is not there.
    pub(crate) fn make(&mut self, folder: &Path) -> Result<()> {
        if !folder.is_dir() {
            std::fs::create_dir(folder).map_err(|source| Error::io("create", folder, source))?;
            self.0.push(folder.to_owned());
        }
        Ok(())
    }
}

impl Drop for NewFolders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            // Refused by the system if anything is in it.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Whether a file has a name by which programs look for the model of a folder, or for its index.
pub(crate) fn is_model_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let stem = name.and_then(|name| name.split_once('.'));
    stem.is_some_and(|(stem, _)| MODEL_STEMS.contains(&stem))
}

/// Whether a file of a folder holds weights, or is the index of such files, under a name that loaders
/// of models look for.
pub(crate) fn is_weights_name(name: &str) -> bool {
    let of_model = MODEL_STEMS.iter().chain(&["consolidated"]).any(|stem| {
        let rest = name.strip_prefix(stem);
        rest.is_some_and(|rest| rest.starts_with(['.', '-']))
    });
    let elsewhere = ["tf_model.h5", "flax_model.msgpack"];
    of_model && (is_index(name) || extension_rank(name).is_some()) || elsewhere.contains(&name)
}

/// Names of the folder's visible files, sorted.
pub(crate) fn visible_files(folder: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::io("read", folder, source);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
            && entry.path().is_file()
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether a file is called like a part of a split model, `stem-00001-of-00003.extension`.
fn is_shard(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name.rsplit_once("-of-").is_some_and(|(before, rest)| {
        let number = before.rsplit_once('-').map_or("", |(_, number)| number);
        // A variant's name may follow: `model-00001-of-00002.fp16.safetensors`.
        let total = rest.split_once('.').map_or(rest, |(total, _)| total);
        is_number(number) && is_number(total)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_known_by_their_names() {
        assert!(is_shard("model-00001-of-00003.safetensors"));
        assert!(is_shard("model-00001-of-00003.fp16.safetensors"));
        assert!(!is_shard("model.safetensors"));
        assert!(!is_shard("best-of-3.pt"));
    }

    fn found(names: &[&str]) -> (String, Vec<String>) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let found = model_among(Path::new(""), &names).expect("a model");
        (found.path.display().to_string(), found.passed_over)
    }

    #[test]
    fn a_folder_stands_for_the_file_that_loaders_take() {
        for (names, taken, others) in [
            // transformers: the file without a variant, the single file before the index.
            (
                &["model.fp16.safetensors", "model.safetensors"][..],
                "model.safetensors",
                &["model.fp16.safetensors"][..],
            ),
            (
                &[
                    "model-00001-of-00002.safetensors",
                    "model-00002-of-00002.safetensors",
                    "model.safetensors",
                    "model.safetensors.index.json",
                ],
                "model.safetensors",
                &[
                    "model-00001-of-00002.safetensors",
                    "model.safetensors.index.json",
                ],
            ),
            // diffusers: the index before the single file.
            (
                &[
                    "diffusion_pytorch_model.safetensors",
                    "diffusion_pytorch_model.safetensors.index.json",
                ],
                "diffusion_pytorch_model.safetensors.index.json",
                &["diffusion_pytorch_model.safetensors"],
            ),
            (
                &[
                    "consolidated.safetensors",
                    "model-00001-of-00001.safetensors",
                    "model.safetensors.index.json",
                ],
                "model.safetensors.index.json",
                &["consolidated.safetensors"],
            ),
            (
                &[
                    "model.safetensors",
                    "model.safetensors.index.fp32.json",
                    "optimizer.pt",
                    "training_args.bin",
                ],
                "model.safetensors",
                &["model.safetensors.index.fp32.json"],
            ),
            (&["model.fp16.safetensors"], "model.fp16.safetensors", &[]),
            (
                &["consolidated.safetensors", "mine.safetensors"],
                "mine.safetensors",
                &["consolidated.safetensors"],
            ),
            (
                &["pytorch_model.bin", "training_args.bin"],
                "pytorch_model.bin",
                &[],
            ),
            (
                &[
                    "m-00001-of-00002.gguf",
                    "m-00002-of-00002.gguf",
                    "mmproj-m.gguf",
                ],
                "m-00001-of-00002.gguf",
                &[],
            ),
        ] {
            let others: Vec<String> = others.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(found(names), (taken.to_owned(), others), "{names:?}");
        }
        let several = ["a.fp16.safetensors".to_owned(), "b.safetensors".to_owned()];
        assert!(model_among(Path::new(""), &several).is_err());
        let variants = [
            "model.bf16.safetensors".to_owned(),
            "model.fp16.safetensors".to_owned(),
        ];
        assert!(model_among(Path::new(""), &variants).is_err());
    }
}
