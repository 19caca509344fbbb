//! The paths of a recipe: without folders, as they go into metadata, and in a folder again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::adapters::{adapters, spelled};
use super::models::{joined, split_adapter};
use super::reference::found;
use super::tokenizer::{TokenKind, TokenSource};
use super::{MergeRecipe, ModelRef, Parameter, Parameters, TokenizerSource};
use crate::provenance::short_names;

/// Parameters that are paths.
const FILES: [&str; 2] = ["grams", "fisher"];

impl MergeRecipe {
    /// The recipe with file names in place of paths, so that it is the same wherever the files lie;
    /// where two files have the same name, with as much of their folders as tells them apart.
    #[must_use]
    pub fn without_folders(&self) -> Self {
        let paths = self.paths();
        let documents = self.documents();
        // A file must not be taken for a document either.
        let all: Vec<&Path> = (paths.iter().chain(&documents))
            .map(PathBuf::as_path)
            .collect();
        let names: BTreeMap<PathBuf, PathBuf> = (all.iter().zip(short_names(&all)))
            .map(|(path, name)| (path.to_path_buf(), name.into()))
            .collect();
        self.with_paths(&mut |path| {
            if let Some(name) = names.get(path) {
                path.clone_from(name);
            }
        })
    }

    /// The recipe with its files looked for in folders: each in the first that has it. Addresses and absolute paths stay as
    /// they are.
    #[must_use]
    pub fn in_folders(&self, folders: &[PathBuf]) -> Self {
        self.with_paths(&mut |path| {
            if path.to_string_lossy().contains("://") {
                return;
            }
            let has = |folder: &&PathBuf| folder.join(&path).exists();
            let first = folders.iter().find(has).or_else(|| folders.first());
            if let Some(folder) = first {
                *path = folder.join(&path);
            }
        })
    }

    /// The recipe with names of models of the hub (`org/model@revision`) in place of paths where there is no
    /// such file or folder, as addresses.
    #[must_use]
    pub(crate) fn with_hub_names(&self) -> Self {
        self.changed(each_model, &mut |path| *path = found(path))
    }

    /// Every path, document by document.
    fn paths(&self) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        let _: Self = self.with_paths(&mut |path| paths.push(path.clone()));
        paths
    }

    /// The names of the documents.
    fn documents(&self) -> Vec<PathBuf> {
        let documents = self.earlier.iter().chain([self]);
        documents
            .filter_map(|document| document.name.as_ref().map(PathBuf::from))
            .collect()
    }

    /// The recipe with its paths changed.
    fn with_paths(&self, change: &mut dyn FnMut(&mut PathBuf)) -> Self {
        self.changed(each_path, change)
    }

    /// The recipe with the paths changed that `each` finds in a document; names of documents are no paths.
    fn changed(
        &self,
        each: impl Fn(&mut Self, &mut dyn FnMut(&mut PathBuf)),
        change: &mut dyn FnMut(&mut PathBuf),
    ) -> Self {
        let documents = self.documents();
        let mut change = |path: &mut PathBuf| {
            if !documents.contains(path) {
                change(path);
            }
        };
        let mut recipe = self.clone();
        each(&mut recipe, &mut change);
        for document in &mut recipe.earlier {
            each(document, &mut change);
        }
        recipe
    }
}

/// Every path of one document.
fn each_path(recipe: &mut MergeRecipe, change: &mut dyn FnMut(&mut PathBuf)) {
    each_model(recipe, change);
    let modules = recipe.modules.values_mut().map(|module| {
        in_parameters(&mut module.parameters, change);
        (&mut module.models, &mut module.slices)
    });
    let modules: Vec<_> = modules.collect();
    for (models, slices) in modules
        .into_iter()
        .chain([(&mut recipe.models, &mut recipe.slices)])
    {
        for model in models {
            in_parameters(&mut model.parameters, change);
            model.outputs.as_mut().into_iter().for_each(&mut *change);
            model.activations.iter_mut().for_each(&mut *change);
        }
        for slice in slices {
            for source in &mut slice.sources {
                in_parameters(&mut source.value.parameters, change);
            }
            in_parameters(&mut slice.parameters, change);
        }
    }
    if let Some(base) = &mut recipe.base_model {
        in_parameters(&mut base.parameters, change);
        base.outputs.as_mut().into_iter().for_each(&mut *change);
        base.activations.iter_mut().for_each(&mut *change);
    }
    in_parameters(&mut recipe.parameters, change);
}

/// Every model of one document.
fn each_model(recipe: &mut MergeRecipe, change: &mut dyn FnMut(&mut PathBuf)) {
    let modules = recipe.modules.values_mut();
    let parts = modules
        .map(|module| (&mut module.models, &mut module.slices))
        .chain([(&mut recipe.models, &mut recipe.slices)]);
    for (models, slices) in parts {
        for model in models {
            in_model(model, change);
        }
        for slice in slices {
            if let Some(base) = &mut slice.base_model {
                in_model(base, change);
            }
            for source in &mut slice.sources {
                change_joined(&mut source.value.model, change);
            }
        }
    }
    if let Some(base) = &mut recipe.base_model {
        in_model(base, change);
    }
    let sources = (recipe.tokenizer_source.iter_mut()).chain(
        recipe
            .tokenizer
            .iter_mut()
            .map(|tokenizer| &mut tokenizer.source),
    );
    for source in sources {
        if let TokenizerSource::Model(path) = source {
            change(path);
        }
    }
    let rules = recipe
        .tokenizer
        .iter_mut()
        .flat_map(|tokenizer| tokenizer.tokens.values_mut());
    for source in rules.filter_map(|rule| rule.source.as_mut()) {
        match source {
            TokenSource::Model(model) | TokenSource::Kind(TokenKind::ModelToken { model, .. }) => {
                change_joined(&mut model.path, change);
            }
            TokenSource::Kind(TokenKind::Zero {}) => {}
        }
    }
}

/// Changes the path of a model and those of its adapters.
fn in_model(model: &mut ModelRef, change: &mut dyn FnMut(&mut PathBuf)) {
    change(&mut model.model);
    in_adapters(&mut model.adapter, change);
}

/// Changes the parts of a model with an adapter.
fn change_joined(path: &mut PathBuf, change: &mut dyn FnMut(&mut PathBuf)) {
    let (mut model, mut adapter) = split_adapter(path.clone());
    change(&mut model);
    in_adapters(&mut adapter, change);
    *path = joined(&model, adapter.as_deref());
}

fn in_adapters(adapter: &mut Option<PathBuf>, change: &mut dyn FnMut(&mut PathBuf)) {
    if let Some(text) = adapter {
        let mut all = adapters(text);
        all.iter_mut().for_each(|(path, _)| change(path));
        *text = spelled(&all);
    }
}

fn in_parameters(parameters: &mut Parameters, change: &mut dyn FnMut(&mut PathBuf)) {
    for name in FILES {
        if let Some(located) = parameters.0.get_mut(name)
            && let Parameter::Text(text) = &mut located.value
        {
            let mut path = PathBuf::from(&*text);
            change(&mut path);
            *text = path.to_string_lossy().into_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_stay_only_where_names_alone_would_be_the_same() {
        let yaml = "name: first\nmerge_method: linear\nmodels: [/m/x/model.safetensors, /n/y/model.safetensors, \
                    /n/z.pt]\ntokenizer_source: /n/z.pt\n---\nmerge_method: fisher\nmodels: [first, {model: \
                    /deep/first, parameters: {fisher: /f/w.safetensors}}]";
        let recipe = MergeRecipe::parse(yaml, Path::new("test")).expect("valid");
        let short = recipe.without_folders();
        let names = |recipe: &MergeRecipe| -> Vec<String> {
            recipe.models.iter().map(ModelRef::name).collect()
        };
        assert_eq!(
            names(&short.earlier[0]),
            ["x/model.safetensors", "y/model.safetensors", "z.pt"]
        );
        assert_eq!(names(&short), ["first", "deep/first"]);
        assert_eq!(
            short.models[1].parameters.text("fisher").expect("text"),
            Some("w.safetensors")
        );
        let source = Some(TokenizerSource::Model("z.pt".into()));
        assert_eq!(short.earlier[0].tokenizer_source, source);
        let again = short.in_folders(&["/data".into()]);
        assert_eq!(names(&again), ["first", "/data/deep/first"]);
        assert_eq!(again.without_folders(), short);
    }
    #[test]
    fn a_file_is_taken_from_the_first_folder_that_has_it() {
        let [one, other] = [0, 1].map(|_| tempfile::tempdir().expect("a folder"));
        std::fs::write(other.path().join("b.pt"), "").expect("written");
        let recipe = MergeRecipe::parse(
            "merge_method: linear\nmodels: [a.pt, b.pt]",
            Path::new("test"),
        );
        let folders = [one.path().to_owned(), other.path().to_owned()];
        let found = recipe.expect("valid").in_folders(&folders);
        let paths: Vec<PathBuf> = found.paths();
        assert_eq!(paths, [one.path().join("a.pt"), other.path().join("b.pt")]);
    }
}
