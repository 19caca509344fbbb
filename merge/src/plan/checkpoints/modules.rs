//! The module that a tensor belongs to, by mergekit's names of modules.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Models;
use crate::plan::opener::Opener;
use crate::recipe::{ModelRef, Part};
use crate::{MergeFault, MergeRecipe, Result};

/// Architectures whose modules have names of their own. Each module is known by how the names of its
/// tensors begin, without parts called `model`; the last takes all that the others leave.
struct Family {
    architectures: &'static [&'static str],
    modules: &'static [(&'static str, &'static [&'static str])],
}

/// As mergekit 0.1.5 has them in `_data/architectures`.
const ARCHITECTURES: [Family; 5] = [
    Family {
        architectures: &[
            "Gemma3ForConditionalGeneration",
            "Mistral3ForConditionalGeneration",
        ],
        modules: &[
            ("multi_modal_projector", &["multi_modal_projector"]),
            ("vision_tower", &["vision_tower"]),
            ("text_decoder", &[""]),
        ],
    },
    Family {
        architectures: &["Llama4ForConditionalGeneration"],
        modules: &[
            ("multi_modal_projector", &["multi_modal_projector"]),
            ("vision_model", &["vision_model"]),
            ("text_decoder", &[""]),
        ],
    },
    Family {
        architectures: &[
            "Qwen2VLForConditionalGeneration",
            "Qwen2_5_VLForConditionalGeneration",
            "Qwen3VLForConditionalGeneration",
            "Qwen3VLMoeForConditionalGeneration",
        ],
        modules: &[
            (
                "multi_modal_projector",
                &["visual.merger", "visual.deepstack_merger_list"],
            ),
            ("vision_tower", &["visual"]),
            ("text_decoder", &[""]),
        ],
    },
    Family {
        architectures: &["T5ForConditionalGeneration"],
        modules: &[
            ("decoder", &["decoder"]),
            ("encoder", &["encoder"]),
            ("shared", &[""]),
        ],
    },
    Family {
        architectures: &["WhisperForConditionalGeneration"],
        modules: &[("encoder", &["encoder"]), ("decoder", &[""])],
    },
];

/// mergekit's name for the only module of a model, and for tensors in no stack of layers.
const DEFAULT: &str = "default";

/// The modules of a model.
#[derive(Debug)]
pub(in crate::plan) struct Modules {
    /// The name of each, and how the names of its tensors begin; the first that fits takes a tensor.
    rows: Vec<(String, Vec<String>)>,
    /// Whether beginnings are compared without parts called `model`.
    is_family: bool,
    /// The module that each module of the recipe is, by its name there.
    named: BTreeMap<String, usize>,
}

impl Modules {
    /// The modules that a recipe speaks of; `None` if it speaks of none. Tensors of modules that it does not
    /// name are returned by [`Self::left_over`].
    pub(super) fn of(
        recipe: &MergeRecipe,
        models: &Models,
        opener: &Opener,
    ) -> Result<Option<Self>> {
        if recipe.modules.is_empty() {
            return Ok(None);
        }
        let parts = recipe.parts();
        let first = parts.iter().flat_map(|part| part.merged()).next();
        let Some(donor) = recipe.base_model.clone().or(first) else {
            return Err(MergeFault::ModelsOrSlices { module: None }.into());
        };
        let names = models.names();
        let architecture = architecture(&donor, opener)?;
        let (rows, is_family) = match family(architecture.as_deref(), recipe, &names) {
            Some(family) => (family.rows(), true),
            None => (by_stacks(&names), false),
        };
        let mut modules = Self {
            rows,
            is_family,
            named: BTreeMap::new(),
        };
        let counts = modules.counts(&names);
        for name in recipe.modules.keys() {
            let found = modules.find(name).filter(|row| counts[*row] > 0);
            let Some(row) = found else {
                let known = modules.rows.iter().zip(&counts);
                let known = known.filter(|(_, n_tensors)| **n_tensors > 0);
                return Err(MergeFault::UnknownModule {
                    module: name.clone(),
                    model: donor.name(),
                    known: known.map(|((name, _), n)| listed(name, *n)).collect(),
                }
                .into());
            };
            if modules.named.values().any(|known| *known == row) {
                return Err(MergeFault::ModuleTwice {
                    module: modules.rows[row].0.clone(),
                }
                .into());
            }
            modules.named.insert(name.clone(), row);
        }
        Ok(Some(modules))
    }

    /// Whether a tensor belongs to a part of the output.
    pub(in crate::plan) fn has(&self, part: Part<'_>, key: &str) -> bool {
        let row = part.module.and_then(|name| self.named.get(name));
        row.is_some_and(|row| *row == self.row(key))
    }

    /// The name of a tensor's module.
    pub(super) fn of_tensor(&self, key: &str) -> &str {
        &self.rows[self.row(key)].0
    }

    /// Tensors of modules that the recipe does not name, and these modules in words.
    pub(super) fn left_over<'a>(
        &self,
        names: &BTreeSet<&'a str>,
    ) -> (BTreeSet<&'a str>, Vec<String>) {
        let is_named = |row: usize| self.named.values().any(|named| *named == row);
        let left: BTreeSet<&str> = (names.iter().copied())
            .filter(|name| !is_named(self.row(name)))
            .collect();
        let modules = self.rows.iter().zip(self.counts(&left));
        let modules = modules.filter(|(_, n_tensors)| *n_tensors > 0);
        let modules = modules.map(|((name, _), n)| listed(name, n)).collect();
        (left, modules)
    }

    /// The module that a tensor belongs to.
    fn row(&self, key: &str) -> usize {
        let key = match self.is_family {
            true => without(&[MODEL], key),
            false => key.to_owned(),
        };
        let begins = |start: &String| {
            start.is_empty()
                || (key.strip_prefix(start.as_str()))
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let found = (self.rows.iter()).position(|(_, starts)| starts.iter().any(begins));
        // The last module takes all.
        found.unwrap_or(self.rows.len() - 1)
    }

    /// The number of tensors in each module.
    fn counts(&self, names: &BTreeSet<&str>) -> Vec<usize> {
        let mut counts = vec![0; self.rows.len()];
        for name in names {
            counts[self.row(name)] += 1;
        }
        counts
    }

    /// The module that a recipe means. A stack may be called as transformers has it in memory, where wrappers
    /// within the name stand elsewhere than in files.
    fn find(&self, name: &str) -> Option<usize> {
        let exact = self.rows.iter().position(|(known, _)| known == name);
        exact
            .or_else(|| self.find_without(&[MODEL], name))
            .or_else(|| self.find_without(&[MODEL, "vision_model", "text_model"], name))
    }

    /// The only module of a name, where wrappers do not count.
    fn find_without(&self, wrappers: &[&str], name: &str) -> Option<usize> {
        let wanted = without(wrappers, name);
        let is_it = |row: &usize| without(wrappers, &self.rows[*row].0) == wanted;
        let mut fitting = (0..self.rows.len()).filter(is_it);
        fitting.next().filter(|_| fitting.next().is_none())
    }
}

impl Family {
    fn rows(&self) -> Vec<(String, Vec<String>)> {
        let rows = self.modules.iter().map(|(name, starts)| {
            let starts = starts.iter().map(|start| (*start).to_owned());
            ((*name).to_owned(), starts.collect())
        });
        rows.collect()
    }
}

/// The family of an architecture. Without a configuration it is the one that has all modules of the recipe,
/// and of each of whose modules there are tensors.
fn family(
    architecture: Option<&str>,
    recipe: &MergeRecipe,
    names: &BTreeSet<&str>,
) -> Option<&'static Family> {
    let is_it = |family: &&Family| match architecture {
        Some(architecture) => family.architectures.contains(&architecture),
        None => {
            let modules = Modules {
                rows: family.rows(),
                is_family: true,
                named: BTreeMap::new(),
            };
            let mut wanted = recipe.modules.keys();
            wanted.all(|name| modules.find(name).is_some())
                && modules.counts(names).iter().all(|n_tensors| *n_tensors > 0)
        }
    };
    ARCHITECTURES.iter().find(is_it)
}

/// The class of a model, as its configuration names it.
fn architecture(model: &ModelRef, opener: &Opener) -> Result<Option<String>> {
    let config = opener.companions(model)?.settings("config.json")?;
    let name = |config: &Value| {
        let first = config.get("architectures")?.get(0)?;
        first.as_str().map(str::to_owned)
    };
    Ok(config.as_ref().and_then(name))
}

/// Modules of an architecture that mergekit does not know: a module for each stack, called as the names of
/// its tensors begin, and one for all else. A model of one stack is one module.
fn by_stacks(names: &BTreeSet<&str>) -> Vec<(String, Vec<String>)> {
    let prefixes: BTreeSet<&str> = names
        .iter()
        .filter_map(|name| before_number(name))
        .collect();
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    if prefixes.len() > 1 {
        // A stack within a stack comes first, to take its own.
        let deepest_first = prefixes.into_iter().rev();
        rows.extend(deepest_first.map(|prefix| (prefix.to_owned(), vec![prefix.to_owned()])));
    }
    rows.push((DEFAULT.to_owned(), vec![String::new()]));
    rows
}

/// The text before the first part of a name that is a number.
fn before_number(name: &str) -> Option<&str> {
    let mut end = 0;
    for part in name.split('.') {
        let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if is_number && end > 0 && end + part.len() < name.len() {
            return Some(&name[..end - 1]);
        }
        end += part.len() + 1;
    }
    None
}

/// A part of names that files and classes have in different places.
const MODEL: &str = "model";

/// A name without some of its parts.
fn without(wrappers: &[&str], name: &str) -> String {
    let parts = name.split('.').filter(|part| !wrappers.contains(part));
    parts.collect::<Vec<_>>().join(".")
}

fn listed(name: &str, n_tensors: usize) -> String {
    match n_tensors {
        1 => format!("{name} (1 tensor)"),
        n => format!("{name} ({n} tensors)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(architecture: &str, names: &[&str]) -> Modules {
        let names: BTreeSet<&str> = names.iter().copied().collect();
        let family = family(Some(architecture), &MergeRecipe::default(), &names);
        Modules {
            rows: family.map_or_else(|| by_stacks(&names), Family::rows),
            is_family: family.is_some(),
            named: BTreeMap::new(),
        }
    }

    fn module<'a>(modules: &'a Modules, key: &str) -> &'a str {
        modules.of_tensor(key)
    }

    #[test]
    fn modules_are_known_in_files_of_older_and_newer_transformers() {
        let qwen = modules("Qwen2_5_VLForConditionalGeneration", &[]);
        for start in ["", "model."] {
            let of = |key: &str| module(&qwen, &format!("{start}{key}"));
            assert_eq!(of("visual.blocks.0.norm1.weight"), "vision_tower");
            assert_eq!(of("visual.merger.mlp.0.weight"), "multi_modal_projector");
        }
        assert_eq!(
            module(&qwen, "model.layers.0.mlp.up_proj.weight"),
            "text_decoder"
        );
        assert_eq!(module(&qwen, "lm_head.weight"), "text_decoder");
        let gemma = modules("Gemma3ForConditionalGeneration", &[]);
        for (key, expected) in [
            (
                "language_model.model.layers.0.mlp.up_proj.weight",
                "text_decoder",
            ),
            (
                "model.language_model.layers.0.mlp.up_proj.weight",
                "text_decoder",
            ),
            (
                "vision_tower.vision_model.embeddings.patch_embedding.bias",
                "vision_tower",
            ),
            (
                "model.vision_tower.vision_model.post_layernorm.bias",
                "vision_tower",
            ),
            (
                "multi_modal_projector.mm_soft_emb_norm.weight",
                "multi_modal_projector",
            ),
        ] {
            assert_eq!(module(&gemma, key), expected, "{key}");
        }
        let t5 = modules("T5ForConditionalGeneration", &[]);
        assert_eq!(module(&t5, "shared.weight"), "shared");
        assert_eq!(module(&t5, "decoder.embed_tokens.weight"), "decoder");
        let whisper = modules("WhisperForConditionalGeneration", &[]);
        assert_eq!(module(&whisper, "model.encoder.conv1.bias"), "encoder");
        assert_eq!(module(&whisper, "model.decoder.layer_norm.bias"), "decoder");
    }

    #[test]
    fn other_models_have_a_module_for_each_stack() {
        let names = [
            "language_model.model.layers.0.mlp.up_proj.weight",
            "language_model.lm_head.weight",
            "vision_tower.vision_model.encoder.layers.0.fc1.weight",
            "multi_modal_projector.linear_1.weight",
        ];
        let llava = modules("LlavaForConditionalGeneration", &names);
        assert_eq!(module(&llava, names[0]), "language_model.model.layers");
        assert_eq!(module(&llava, names[1]), "default");
        assert_eq!(
            module(&llava, names[2]),
            "vision_tower.vision_model.encoder.layers"
        );
        // As classes have them in memory.
        for (name, expected) in [
            ("model.language_model.layers", "language_model.model.layers"),
            (
                "model.vision_tower.encoder.layers",
                "vision_tower.vision_model.encoder.layers",
            ),
        ] {
            let found = llava.find(name).expect("a module");
            assert_eq!(llava.rows[found].0, expected);
        }
        let llama = modules(
            "LlamaForCausalLM",
            &["model.layers.0.a.weight", "lm_head.weight"],
        );
        assert_eq!(module(&llama, "model.layers.0.a.weight"), "default");
        assert_eq!(llama.rows.len(), 1);
    }
}
