//! Recipes as they go into the metadata: the same wherever the files lie.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::MergeRecipe;
use crate::provenance::short_names;
use crate::recipe::{ModelRef, Parameter, Parameters, TokenizerSource};

/// Parameters that are paths.
const FILES: [&str; 2] = ["grams", "fisher"];

/// The recipe with file names in place of paths; where two files have the same name, with as much of
/// their folders as tells them apart.
pub(super) fn without_folders(recipe: &MergeRecipe) -> MergeRecipe {
    let mut paths = Vec::new();
    each_document(recipe, &mut |document| {
        let mut copy = document.clone();
        each_path(&mut copy, &mut |path| paths.push(path.clone()));
    });
    let documents: Vec<PathBuf> = (recipe.earlier.iter().chain([recipe]))
        .filter_map(|document| document.name.as_ref().map(PathBuf::from))
        .collect();
    paths.retain(|path| !documents.contains(path));
    // A file must not be taken for a document either.
    let all: Vec<&Path> = paths
        .iter()
        .chain(&documents)
        .map(PathBuf::as_path)
        .collect();
    let names: BTreeMap<PathBuf, PathBuf> = (all.iter().zip(short_names(&all)))
        .map(|(path, name)| (path.to_path_buf(), name.into()))
        .collect();
    let mut short = |path: &mut PathBuf| {
        if !documents.contains(path)
            && let Some(name) = names.get(path)
        {
            path.clone_from(name);
        }
    };
    let mut portable = recipe.clone();
    each_path(&mut portable, &mut short);
    for document in &mut portable.earlier {
        each_path(document, &mut short);
    }
    portable
}

fn each_document(recipe: &MergeRecipe, see: &mut dyn FnMut(&MergeRecipe)) {
    see(recipe);
    recipe.earlier.iter().for_each(see);
}

/// Every path of one document.
fn each_path(recipe: &mut MergeRecipe, change: &mut dyn FnMut(&mut PathBuf)) {
    for model in recipe.models.iter_mut().chain(&mut recipe.base_model) {
        let ModelRef {
            model, parameters, ..
        } = model;
        change(model);
        in_parameters(parameters, change);
    }
    for slice in &mut recipe.slices {
        for source in &mut slice.sources {
            change(&mut source.value.model);
            in_parameters(&mut source.value.parameters, change);
        }
        in_parameters(&mut slice.parameters, change);
    }
    in_parameters(&mut recipe.parameters, change);
    if let Some(TokenizerSource::Model(path)) = &mut recipe.tokenizer_source {
        change(path);
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
        let short = without_folders(&recipe);
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
    }
}
