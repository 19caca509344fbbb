//! An infinity or a NaN in an input is found whatever the method does with it.

use std::path::{Path, PathBuf};

use half::bf16;
use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::recipe::ModelRef;
use merge::{Error, MergePlan, MergeRecipe};
use safetensors::Dtype;

use fixtures as fixture;

/// The recipes of the fixtures over models as they are, by name.
fn recipes() -> Vec<(String, MergeRecipe)> {
    let folder = std::fs::read_dir(fixture::path("mergekit")).expect("fixtures are there");
    let mut recipes: Vec<(String, MergeRecipe)> = folder
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy();
            let recipe = MergeRecipe::open(&path).expect("a recipe of mergekit");
            (name.into_owned(), recipe)
        })
        // Rows of embeddings are moved there.
        .filter(|(name, recipe)| !name.starts_with("tokens") && recipe.slices.is_empty())
        .collect();
    recipes.sort_by(|a, b| a.0.cmp(&b.0));
    recipes
}

/// Copies a fixture with one element set; returns the file, and the tensor that it is in.
fn planted(model: &Path, folder: &Path, value: f32) -> (PathBuf, String) {
    let file = fixture::path("mergekit").join(model);
    let checkpoint = merge::io::open(&file, &Default::default()).expect("opens");
    let mut tensors = fixture::tensors(checkpoint.path());
    let is_matrix = |(_, raw): &(&String, &mut fixture::Raw)| raw.shape.len() == 2;
    let (key, raw) = tensors.iter_mut().rfind(is_matrix).expect("a matrix");
    let at = raw.shape[1] + 2;
    match raw.dtype {
        Dtype::F32 => raw.bytes[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes()),
        Dtype::BF16 => {
            let value = bf16::from_f32(value).to_le_bytes();
            raw.bytes[2 * at..2 * at + 2].copy_from_slice(&value);
        }
        other => panic!("{other:?} is no dtype of the fixtures"),
    }
    let key = key.clone();
    let path = folder.join("broken.safetensors");
    fixture::write(&path, &tensors);
    (path, key)
}

fn run(recipe: &MergeRecipe, target: &Path, allow_non_finite: bool) -> Result<(), Error> {
    let write = WriteOptions {
        sync: false,
        force: true,
        ..WriteOptions::new(target)
    };
    let run = RunOptions {
        allow_non_finite,
        ..RunOptions::default()
    };
    let (plan, _) = MergePlan::resolve(recipe)?;
    execute(&plan, &write, &run, &merge::progress::Silent).map(|_| ())
}

#[test]
fn every_method_refuses_a_nan_of_an_input_and_says_where_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let recipes = recipes();
    assert!(recipes.len() > 20, "{} recipes", recipes.len());
    for (name, recipe) in recipes {
        let n_models = recipe.models.len();
        for index in 0..n_models {
            {
                let value = [f32::NAN, f32::NEG_INFINITY][index % 2];
                let mut broken = recipe.clone();
                let in_fixtures = |model: &mut ModelRef| {
                    model.model = fixture::path("mergekit").join(&model.model);
                };
                let (path, key) = planted(&recipe.models[index].model, folder.path(), value);
                broken.models.iter_mut().for_each(in_fixtures);
                let is_base = recipe.base_model.as_ref().map(|base| &base.model)
                    == Some(&recipe.models[index].model);
                broken.base_model.iter_mut().for_each(in_fixtures);
                broken.models[index].model.clone_from(&path);
                if let (Some(base), true) = (&mut broken.base_model, is_base) {
                    base.model.clone_from(&path);
                }
                let target = folder.path().join("merged.safetensors");
                let fault = run(&broken, &target, false)
                    .expect_err("refused")
                    .to_string();
                let expected = format!("{}: `{key}` [1, 2] is {value}", path.display());
                assert_eq!(fault, expected, "{name}, model {index}");
                assert!(!target.exists());
                if index > 0 {
                    continue;
                }
                // Some methods find no direction then, which is another matter.
                if let Err(fault) = run(&broken, &target, true) {
                    assert!(!fault.to_string().contains(" is "), "{name}: {fault}");
                } else {
                    std::fs::remove_file(target).expect("was written");
                }
            }
        }
    }
}
