//! Recipes of several documents: merges that are done first, for others to build on.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::companions::donor;
use super::opener::{Opener, merged};
use super::respelled::respelled;
use super::{MergePlan, checkpoints, experts};
use crate::beside::Companions;
use crate::io::{Aliases, Container, Root, SourceInfo, TensorEntry};
use crate::methods;
use crate::recipe::Place;
use crate::{Checkpoint, Error, MergeFault, MergeRecipe, Result};
use crate::{TensorSource, io};

/// A merge that must be done before the plan that it belongs to.
pub struct Stage {
    /// The name of its result in the recipe.
    pub name: String,
    /// The plan that makes it.
    pub plan: MergePlan,
    result: Arc<Deferred>,
}

impl Stage {
    /// Hands over the result, which sources of later plans read from.
    pub(crate) fn finish(&self, result: Checkpoint) {
        // A plan that is run twice makes the same bytes twice.
        let _ = self.result.inner.set(result);
    }
}

impl MergePlan {
    /// Checks a recipe against its files' headers and says what happens to every key. Returns the
    /// recipe as well, with everything that was left open filled in.
    ///
    /// # Errors
    /// When a file cannot be opened, or anything in the recipe, the keys, shapes or dtypes does
    /// not fit. Of the data it reads a few elements alone: to find a copy of the base, and an adapter that changes nothing.
    pub fn resolve(recipe: &MergeRecipe) -> Result<(Self, MergeRecipe)> {
        resolve(recipe)
    }
}

fn resolve(recipe: &MergeRecipe) -> Result<(MergePlan, MergeRecipe)> {
    let recipe = &recipe.with_hub_names();
    let mut opener = Opener::default();
    opener.note(&recipe.notes());
    if recipe.earlier.is_empty() {
        let (plan, resolved) = one(recipe, &opener)?;
        return Ok((spelled(plan, recipe, &opener)?, resolved));
    }
    let mut stages = Vec::new();
    let mut path = Vec::new();
    let mut done = BTreeMap::new();
    for (name, place) in used_documents(recipe, recipe) {
        make(
            (&name, place),
            recipe,
            &mut opener,
            &mut stages,
            &mut path,
            &mut done,
        )?;
    }
    let unused = (recipe.earlier.iter())
        .filter_map(|document| document.name.as_ref())
        .find(|name| !done.contains_key(*name));
    if let Some(name) = unused {
        return Err(MergeFault::UnusedDocument { name: name.clone() }.into());
    }
    let (mut plan, mut resolved) = one(recipe, &opener)?;
    resolved.earlier.clone_from(&recipe.earlier);
    plan.build_on(stages, resolved.without_folders().to_yaml()?);
    Ok((spelled(plan, recipe, &opener)?, resolved))
}

/// Plans the document `name` and, before it, all that it builds on.
fn make(
    (name, place): (&str, Place),
    all: &MergeRecipe,
    opener: &mut Opener,
    stages: &mut Vec<Stage>,
    path: &mut Vec<String>,
    done: &mut BTreeMap<String, ()>,
) -> Result<()> {
    if path.iter().any(|above| above == name) {
        let mut names = path.clone();
        names.push(name.to_owned());
        return Err(MergeFault::Cycle { names, place }.into());
    }
    if done.contains_key(name) {
        return Ok(());
    }
    let found = all.earlier.iter().chain([all]);
    let Some(document) = found
        .into_iter()
        .find(|document| document.name.as_deref() == Some(name))
    else {
        return Ok(());
    };
    path.push(name.to_owned());
    for (needed, place) in used_documents(document, all) {
        make((&needed, place), all, opener, stages, path, done)?;
    }
    path.pop();
    if std::ptr::eq(document, all) {
        return Ok(());
    }
    let (plan, _) = one(document, opener)?;
    let companions = Companions::of_plan(&plan.beside);
    let (stage, checkpoint) = stage(name, plan)?;
    opener.keep(name, checkpoint, companions);
    stages.push(stage);
    done.insert(name.to_owned(), ());
    Ok(())
}

/// Names of documents whose results a document merges, and where it names them.
fn used_documents(document: &MergeRecipe, all: &MergeRecipe) -> Vec<(String, Place)> {
    let bases = document.base_model.iter().chain(document.slice_bases());
    let models = merged(document)
        .chain(bases.cloned())
        .map(|model| (model.document(), model.place));
    let names: Vec<&String> = all
        .earlier
        .iter()
        .chain([all])
        .flat_map(|d| &d.name)
        .collect();
    models.filter(|(model, _)| names.contains(&model)).collect()
}

/// A plan for one document.
fn one(recipe: &MergeRecipe, opener: &Opener) -> Result<(MergePlan, MergeRecipe)> {
    let method = methods::by_name(
        &recipe.merge_method,
        &recipe.parameters,
        recipe.as_published,
    )?;
    opener.keep_ranks(method.needs_ranks());
    match recipe.merges_experts() {
        true => experts::resolve(recipe, method.as_ref(), opener),
        false => checkpoints::resolve(recipe, method.as_ref(), opener),
    }
}

/// A plan whose output has the spelling that its first model has, where merges read that in another way.
fn spelled(plan: MergePlan, recipe: &MergeRecipe, opener: &Opener) -> Result<MergePlan> {
    let spelling = donor(recipe).and_then(|donor| opener.spelling(&donor));
    match spelling {
        Some(to) => respelled(plan, to),
        None => Ok(plan),
    }
}

/// A stage whose result is read as that of `plan`, and the checkpoint that it will be.
pub(super) fn stage(name: &str, plan: MergePlan) -> Result<(Stage, Arc<Checkpoint>)> {
    let result = Arc::new(Deferred::of(name, &plan)?);
    let checkpoint = Checkpoint::new(Box::new(Handle(Arc::clone(&result))));
    let stage = Stage {
        name: name.to_owned(),
        plan,
        result,
    };
    Ok((stage, Arc::new(checkpoint)))
}

/// A checkpoint whose names and shapes are known before its data are.
struct Deferred {
    info: SourceInfo,
    tensors: Vec<TensorEntry>,
    aliases: Aliases,
    inner: OnceLock<Checkpoint>,
}

impl Deferred {
    fn of(name: &str, plan: &MergePlan) -> Result<Self> {
        let mut metadata = BTreeMap::new();
        plan.add_facts(&mut metadata)?;
        let tensors: Vec<TensorEntry> = (plan.entries.iter())
            .map(|entry| TensorEntry::named(entry.name.clone(), entry.info.clone()))
            .collect();
        Ok(Self {
            info: SourceInfo {
                path: name.into(),
                container: Container::Memory,
                files: Vec::new(),
                metadata,
                roots: vec![Root {
                    name: String::new(),
                    n_tensors: tensors.len(),
                    n_bytes: plan.output_bytes(),
                }],
                root: String::new(),
                values: Vec::new(),
                opaque: Vec::new(),
            },
            tensors,
            aliases: plan.aliases.clone(),
            inner: OnceLock::new(),
        })
    }
}

struct Handle(Arc<Deferred>);

impl TensorSource for Handle {
    fn info(&self) -> &SourceInfo {
        &self.0.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.0.tensors
    }

    fn aliases(&self) -> Aliases {
        self.0.aliases.clone()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let name = self.0.tensors[index].name.as_deref().unwrap_or_default();
        match self.0.inner.get() {
            Some(made) => made.read(name, first, out),
            // The executor runs stages first; any other reader gets this error.
            None => Err(Error::io(
                "read",
                &self.0.info.path,
                std::io::Error::other("the merge that makes it has not been done"),
            )),
        }
    }
}

/// Opens a finished stage's file.
pub(crate) fn open_result(path: &std::path::Path) -> Result<Checkpoint> {
    io::open(path, &io::OpenOptions::default())
}
