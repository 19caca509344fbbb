//! The files beside the output of a merge.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Entry;
use super::checkpoints::{Models, Modules, Scope};
use super::opener::{Opener, merged};
use super::stacks::Stacks;
use super::vocabularies::Alignment;
use crate::beside::chat;
use crate::beside::config::{self, Changes};
use crate::beside::differences;
use crate::beside::experts::Said;
use crate::beside::layers::{self, Layers};
use crate::beside::{Beside, Companion, Companions, Content, Ingredient, Share, license};
use crate::io::SourceFile;
use crate::provenance::short_names;
use crate::recipe::{ModelRef, OnMissing, TokenizerSource, adapters};
use crate::{
    Checkpoint, ConversionFault, DType, MergeFault, MergePlan, MergeRecipe, Result, lora, ties,
};

/// Everything that goes beside the output of a recipe: the files of the base or, without a base, of
/// the first model.
pub(super) fn beside(
    recipe: &MergeRecipe,
    opener: &Opener,
    entries: &[&Entry],
    changes: Changes,
    alignment: Option<&Alignment>,
) -> Result<Beside> {
    let ingredients = ingredients(recipe, opener)?;
    let Some(donor) = donor(recipe) else {
        return Ok(Beside {
            notes: opener.notes(),
            seen: opener.seen(),
            ..Beside::default()
        });
    };
    let mut companions = opener.companions(&donor)?;
    let of_donor = format!("that of {}", donor.name());
    let mut whys: BTreeMap<String, String> = BTreeMap::new();
    if let Some(alignment) = alignment {
        let why = match &recipe.token_source() {
            Some(TokenizerSource::Union) => "with the tokens of all models".to_owned(),
            Some(TokenizerSource::Model(path)) => format!("that of {}", path.display()),
            Some(TokenizerSource::Base) | None => of_donor.clone(),
        };
        for name in alignment.tokenizer.0.keys() {
            whys.insert(name.clone(), why.clone());
        }
        companions = companions.with_tokenizer_of(&alignment.tokenizer);
    }
    if let Some(asked) = &recipe.chat_template {
        let models = (referenced(recipe).iter())
            .map(|model| opener.companions(model))
            .collect::<Result<Vec<_>>>()?;
        if let Some(template) = chat::wanted(asked, &models)? {
            let name = chat::set(&mut companions, &template)?;
            whys.insert(
                name.to_owned(),
                "with the recipe's chat template".to_owned(),
            );
        }
    }
    let changes = Changes {
        dtype: main_dtype(entries),
        is_tied: is_tied(entries, changes.had_head),
        ..changes
    };
    let mut notes = opener.notes();
    if let Some((path, text)) = companions.text("config.json")? {
        let changed = config::changed(&text, &path, &changes)?;
        notes.extend(changed.notes);
        if let Some(text) = changed.text {
            let name = "config.json".to_owned();
            let why = format!("{of_donor}, with {} changed", changed.keys.join(", "));
            whys.insert(name.clone(), why);
            companions.0.insert(name, Content::Text(text));
        }
    }
    let files = companions.0.into_iter().map(|(name, content)| Companion {
        why: whys.remove(&name).unwrap_or_else(|| of_donor.clone()),
        name,
        content,
    });
    Ok(Beside {
        files: files.collect(),
        ingredients,
        notes,
        weights: None,
        seen: opener.seen(),
        gguf: None,
    })
}

/// The configuration of a conversion's output is that of its input, changed.
pub(crate) type ChangeConfig<'a> = dyn FnOnce(&mut serde_json::Value) -> Result<Said, String> + 'a;

impl MergePlan {
    /// The plan of a conversion of `source`. Where the output is a model folder, the files beside `source` go along, its
    /// configuration with what `change` does to it; where it is a file, a note says that the configuration does not.
    ///
    /// # Errors
    /// [`ConversionFault::Config`] for what a configuration cannot say, and when a file cannot be read.
    pub(crate) fn with_files_of(
        mut self,
        source: &Checkpoint,
        is_folder: bool,
        change: Box<ChangeConfig<'_>>,
    ) -> Result<Self> {
        let mut companions = Companions::of_model(source.path())?;
        if !is_folder {
            if companions.0.contains_key("config.json") {
                let note = "config.json still says what the model was; a folder as output gets one that fits";
                self.beside.notes.push(note.to_owned());
            }
            return Ok(self);
        }
        let files = companions.0.values();
        let seen = files.filter_map(|content| match content {
            Content::Copy(path) => SourceFile::seen(path),
            Content::Text(_) => None,
        });
        let (seen, mut notes, mut whys) = (seen.collect(), Vec::new(), BTreeMap::new());
        match companions.text("config.json")? {
            None => notes.push(format!(
                "{}: there is no config.json beside it, so none is written",
                source.path().display()
            )),
            Some((path, text)) => {
                let mut config = config::parsed(&text, &path)?;
                let said = change(&mut config).map_err(|reason| ConversionFault::Config {
                    path: path.clone(),
                    reason,
                })?;
                let entries: Vec<&Entry> = self.entries.iter().collect();
                let changes = Changes {
                    dtype: main_dtype(&entries),
                    ..Changes::default()
                };
                let text = format!("{config:#}\n");
                let dtypes = config::changed(&text, &path, &changes)?;
                notes.extend(said.notes);
                let keys = [said.keys, dtypes.keys].concat().join(", ");
                let name = "config.json".to_owned();
                whys.insert(
                    name.clone(),
                    format!("that of the input, with {keys} changed"),
                );
                let text = dtypes.text.unwrap_or(text);
                companions.0.insert(name, Content::Text(text));
            }
        }
        let files = companions.0.into_iter().map(|(name, content)| Companion {
            why: (whys.remove(&name)).unwrap_or_else(|| "that of the input".to_owned()),
            name,
            content,
        });
        self.beside = Beside {
            files: files.collect(),
            ingredients: vec![ingredient(source.path(), Share::Converted)?],
            notes,
            seen,
            weights: None,
            gguf: None,
        };
        Ok(self)
    }
}

impl MergePlan {
    /// The plan of a conversion whose output is a model folder with files that are made. `files` gets the element type
    /// of most bytes.
    ///
    /// # Errors
    /// The errors of `files`.
    pub(crate) fn with_made_files(
        mut self,
        source: &Checkpoint,
        notes: Vec<String>,
        files: impl FnOnce(Option<DType>) -> Result<Vec<Companion>>,
    ) -> Result<Self> {
        let entries: Vec<&Entry> = self.entries.iter().collect();
        let files = files(main_dtype(&entries))?;
        self.beside = Beside {
            files,
            ingredients: vec![ingredient(source.path(), Share::Converted)?],
            notes,
            ..Beside::default()
        };
        Ok(self)
    }

    /// The plan with the models that its output is made of, for its card, and notes on how they were found.
    ///
    /// # Errors
    /// When a card of a model cannot be read.
    pub(crate) fn made_of(
        mut self,
        models: &[(PathBuf, Share)],
        notes: Vec<String>,
    ) -> Result<Self> {
        if self.beside.ingredients.is_empty() {
            return Ok(self);
        }
        self.beside.ingredients.clear();
        let paths: Vec<&Path> = models.iter().map(|(path, _)| path.as_path()).collect();
        for ((path, share), name) in models.iter().zip(short_names(&paths)) {
            let own = Ingredient {
                name,
                ..ingredient(path, *share)?
            };
            let mut known = self.beside.ingredients.iter();
            if known.all(|known| known.name != own.name) {
                self.beside.ingredients.push(own);
            }
        }
        self.beside.notes.extend(notes);
        Ok(self)
    }
}

/// The models that a recipe names, each once, the base first.
fn referenced(recipe: &MergeRecipe) -> Vec<ModelRef> {
    let all = recipe.base_model.iter().cloned().chain(merged(recipe));
    let mut models: Vec<ModelRef> = Vec::new();
    for model in all {
        if models.iter().all(|known| !known.is_same_model(&model)) {
            models.push(model);
        }
    }
    models
}

/// The model whose files are taken.
pub(super) fn donor(recipe: &MergeRecipe) -> Option<ModelRef> {
    (recipe.base_model.clone()).or_else(|| merged(recipe).next())
}

/// The differences between the output and the model whose configuration it gets.
pub(super) fn changes(
    recipe: &MergeRecipe,
    opener: &Opener,
    models: &Models,
    modules: Option<&Modules>,
    alignment: Option<&Alignment>,
) -> Result<Changes> {
    let donor_ref = donor(recipe);
    let donor = donor_ref.as_ref().and_then(|donor| models.find(donor));
    let mut layers = Vec::new();
    for part in recipe.parts() {
        let scope = Scope { part, modules };
        if let Some(donor) = donor {
            layers.extend(sliced_layers(scope, models, opener, donor)?);
        }
    }
    let vocabulary = alignment.and_then(|alignment| {
        let before = alignment.n_rows_before.get(donor?).copied().flatten()?;
        Some((before, alignment.n_rows))
    });
    // The notes of adapters come before those of an alignment.
    let added = donor_ref.map_or(Ok(None), |donor| opener.added_tokens(&donor))?;
    let vocabulary = match (added, vocabulary) {
        (Some((before, _)), Some((_, after))) => Some((before, after)),
        (added, vocabulary) => vocabulary.or(added),
    };
    let had_head = donor
        .and_then(|donor| models.sources.get(donor))
        .is_some_and(|source| source.tensors().any(|(name, _)| ties::is_head(name)));
    Ok(Changes {
        layers,
        vocabulary,
        had_head,
        ..Changes::default()
    })
}

/// The layers of stacks that `on_missing` makes longer or shorter than those of the model whose configuration the output
/// gets. Returns the contradictions between that model's own configuration and its own layers.
pub(super) fn kept_layers(
    recipe: &MergeRecipe,
    opener: &Opener,
    models: &Models,
    entries: &[&Entry],
    changes: &mut Changes,
) -> Result<Vec<String>> {
    let donor_ref = donor(recipe);
    let Some(donor) = donor_ref.as_ref().and_then(|donor| models.find(donor)) else {
        return Ok(Vec::new());
    };
    let config_of = |model: usize| -> Result<serde_json::Value> {
        let settings = opener
            .companions(&models.refs()[model])?
            .settings("config.json")?;
        Ok(settings.unwrap_or_default())
    };
    let names = || models.sources[donor].tensors().map(|(name, _)| name);
    let before = Stacks::of_one_or_more(names()).0;
    let after = Stacks::of_one_or_more(entries.iter().map(|entry| entry.name.as_str())).0;
    let is_set = |prefix: &str| changes.layers.iter().any(|layers| layers.prefix == prefix);
    let mut kept = Vec::new();
    for (prefix, n_after) in after {
        let Some(&n_before) = before.get(&prefix) else {
            continue;
        };
        if recipe.on_missing == OnMissing::Error || n_after == n_before || is_set(&prefix) {
            continue;
        }
        let mut layers = Layers {
            before: vec![n_before],
            configs: vec![config_of(donor)?],
            ..Layers::default()
        };
        let mut places = vec![donor];
        for layer in 0..n_after {
            let start = format!("{prefix}.{layer}.");
            let entry = entries.iter().find(|entry| entry.name.starts_with(&start));
            let tensor = entry.and_then(|entry| entry.action.tensors().next());
            let model = match tensor {
                Some(tensor) if layer >= n_before && tensor.source < models.refs().len() => {
                    tensor.source
                }
                _ => donor,
            };
            let place = match places.iter().position(|known| *known == model) {
                Some(place) => place,
                None => {
                    let names = models.sources[model].tensors().map(|(name, _)| name);
                    let stacks = Stacks::of_one_or_more(names).0;
                    layers
                        .before
                        .push(stacks.get(&prefix).copied().unwrap_or(0));
                    layers.configs.push(config_of(model)?);
                    places.push(model);
                    places.len() - 1
                }
            };
            layers.order.push((place, layer));
        }
        layers.prefix = prefix;
        kept.push(layers);
    }
    changes.layers.extend(kept);
    Ok(layers::of_stacks(&config_of(donor)?, names()))
}

/// Checks that the configuration beside the output says how many layers it has, where `on_missing` chooses them and the
/// configuration had no contradictions, `known`, before.
pub(super) fn check_layers(
    recipe: &MergeRecipe,
    beside: &Beside,
    entries: &[&Entry],
    known: &[String],
) -> Result<()> {
    // Modules of other models have stacks that the configuration may have no words for.
    let is_plain = recipe.modules.is_empty() && known.is_empty();
    if recipe.on_missing == OnMissing::Error || !is_plain {
        return Ok(());
    }
    let mut files = beside.files.iter();
    let Some(file) = files.find(|file| file.name == "config.json") else {
        return Ok(());
    };
    let text = match &file.content {
        Content::Text(text) => text.clone(),
        content => String::from_utf8_lossy(&content.bytes()?).into_owned(),
    };
    let config = config::parsed(&text, Path::new("config.json"))?;
    let names = entries.iter().map(|entry| entry.name.as_str());
    let mut found = layers::of_stacks(&config, names).into_iter();
    match found.next() {
        Some(reason) => Err(MergeFault::ConfigLayers { reason }.into()),
        None => Ok(()),
    }
}

/// Compares the configurations of the models with the one that the output gets: models that differ in a setting that no
/// shape shows are noted, and refused if they have other numbers of heads.
pub(super) fn check_configs(recipe: &MergeRecipe, opener: &Opener) -> Result<()> {
    let Some(donor) = donor(recipe) else {
        return Ok(());
    };
    let config_of = |model: &ModelRef| opener.companions(model)?.settings("config.json");
    let others: Vec<ModelRef> = (referenced(recipe).into_iter())
        .filter(|model| !model.is_same_model(&donor))
        .collect();
    let Some(first) = config_of(&donor)? else {
        for other in &others {
            if config_of(other)?.is_some() {
                opener.note(&[format!(
                    "{} has no config.json, so a folder as output gets none; {} has one: name it first, or as `base_model`",
                    donor.name(),
                    other.name()
                )]);
                break;
            }
        }
        return Ok(());
    };
    for other in &others {
        let Some(config) = config_of(other)? else {
            continue;
        };
        let found = differences::between(&first, &config);
        // Models of which the recipe takes other modules may well have other heads.
        if let Some(heads) = found.iter().find(|found| found.is_of_heads)
            && recipe.modules.is_empty()
        {
            return Err(MergeFault::Heads {
                model: other.name(),
                key: heads.key.clone(),
                found: heads.other.clone(),
                first: donor.name(),
                expected: heads.first.clone(),
                place: other.place,
            }
            .into());
        }
        let said: Vec<String> = (found.iter())
            .map(|found| format!("`{}` {} and {}", found.key, found.first, found.other))
            .collect();
        if !said.is_empty() {
            opener.note(&[format!(
                "config.json of {} and of {} differ: {}; the output gets that of {}",
                donor.name(),
                other.name(),
                said.join(", "),
                donor.name()
            )]);
        }
    }
    Ok(())
}

/// The layers that the slices of a part made, each as its first source has it.
fn sliced_layers(
    scope: Scope<'_, '_>,
    models: &Models,
    opener: &Opener,
    donor: usize,
) -> Result<Option<Layers>> {
    if scope.part.slices.is_empty() {
        return Ok(None);
    }
    let mut layers = Layers::default();
    let mut places: Vec<usize> = Vec::new();
    let firsts = (scope.part.slices.iter()).filter_map(|slice| slice.sources.first());
    let firsts: Vec<(usize, [usize; 2])> = firsts
        .filter_map(|source| Some((models.find(&source.model_ref())?, source.value.layer_range)))
        .collect();
    for model in std::iter::once(donor).chain(firsts.iter().map(|(model, _)| *model)) {
        if places.contains(&model) {
            continue;
        }
        let Some((prefix, before)) = models.stack(scope, &models.refs()[model])? else {
            return Ok(None);
        };
        if places.is_empty() {
            layers.prefix = prefix;
        }
        let companions = opener.companions(&models.refs()[model])?;
        let config = match companions.text("config.json")? {
            Some((path, text)) => config::parsed(&text, &path)?,
            None => serde_json::Value::Null,
        };
        places.push(model);
        layers.before.push(before);
        layers.configs.push(config);
    }
    for (model, [first, end]) in firsts {
        let place = places.iter().position(|known| *known == model).unwrap_or(0);
        layers
            .order
            .extend((first..end).map(|layer| (place, layer)));
    }
    Ok(Some(layers))
}

/// Whether the head of the output shares its weights with the embeddings, where the tensors tell: a head
/// that is written is one of its own, and one that the donor had and the output has not is gone.
fn is_tied(entries: &[&Entry], had_head: bool) -> Option<bool> {
    let has = |is_it: &dyn Fn(&str) -> bool| entries.iter().any(|entry| is_it(&entry.name));
    // T5 and its kin scale what a tied head sees, so that the setting means more than where weights are.
    if has(&|name| name.ends_with("shared.weight")) {
        return None;
    }
    match (has(&ties::is_embedding), has(&ties::is_head)) {
        (true, true) => Some(false),
        (true, false) if had_head => Some(true),
        _ => None,
    }
}

/// The element type of most bytes.
pub(crate) fn main_dtype(entries: &[&Entry]) -> Option<DType> {
    let mut n_bytes: Vec<(DType, u64)> = Vec::new();
    for entry in entries.iter().filter(|entry| entry.info.dtype.is_float()) {
        let dtype = entry.info.dtype;
        match n_bytes.iter_mut().find(|(known, _)| *known == dtype) {
            Some((_, sum)) => *sum += entry.info.n_bytes(),
            None => n_bytes.push((dtype, entry.info.n_bytes())),
        }
    }
    let most = n_bytes.into_iter().max_by_key(|(_, n_bytes)| *n_bytes)?;
    Some(most.0)
}

/// All models and adapters that a recipe and its documents merge, each once.
fn ingredients(recipe: &MergeRecipe, opener: &Opener) -> Result<Vec<Ingredient>> {
    let mut found: Vec<Ingredient> = Vec::new();
    for document in recipe.earlier.iter().chain([recipe]) {
        let members = merged(document).map(|model| (model, Share::Merged));
        let bases = document.base_model.iter().chain(document.slice_bases());
        let base = bases.map(|base| (base.clone(), Share::Base));
        for (model, share) in members.chain(base) {
            if !opener.is_document(&model) {
                let own = ingredient(&model.model, share)?;
                match found.iter_mut().find(|known| known.name == own.name) {
                    Some(known) => known.share = known.share.min(share),
                    None => found.push(own),
                }
            }
            for (adapter, _) in model.adapter.iter().flat_map(|text| adapters(text)) {
                let own = Ingredient {
                    note: adapter_note(opener, &model, &adapter)?,
                    ..ingredient(&adapter, Share::Adapter)?
                };
                if found.iter().all(|known| known.name != own.name) {
                    found.push(own);
                }
            }
        }
    }
    Ok(found)
}

pub(crate) fn ingredient(path: &Path, share: Share) -> Result<Ingredient> {
    Ok(Ingredient {
        name: path.display().to_string(),
        share,
        hub: license::hub_name(path),
        license: license::of_model(path)?,
        note: None,
    })
}

/// A note on an oddity of an adapter that may be meant.
fn adapter_note(opener: &Opener, model: &ModelRef, adapter: &Path) -> Result<Option<String>> {
    let others = opener.other_parts(model, adapter)?;
    if let Some(first) = others.first() {
        return Ok(Some(format!(
            "{}: {} tensors are for other parts of the pipeline, and left out: `{first}` …",
            adapter.display(),
            others.len()
        )));
    }
    let named = lora::named_base(adapter, &model.model, model.place)?;
    Ok(named.map(|named| {
        format!(
            "{}: made for `{named}`, merged into `{}`",
            adapter.display(),
            model.model.display()
        )
    }))
}
