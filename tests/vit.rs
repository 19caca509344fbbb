//! A classifier of timm from its folder to accuracy, gram matrices, merges and fine-tuning.

use std::sync::Arc;

use merge::gram::GramStore;
use tempfile::TempDir;

use crate::class_folders::one_picture_each;
use crate::grams_between_checkpoints::{SHRINK, largest, open, perturbed, times_shrunk, values};
use crate::program::{ok, run};

/// The form of the golden set that has a class token, with its configuration.
const MODEL: &str = "fixtures/vit/token";

/// The folder of the model, and a relative of it in another.
fn models(folder: &TempDir) {
    for name in ["one", "two"] {
        let target = folder.path().join(name);
        std::fs::create_dir(&target).expect("made");
        let config = format!("{MODEL}/config.json");
        std::fs::copy(config, target.join("config.json")).expect("copied");
        let weights = target.join("model.safetensors").display().to_string();
        let source = format!("{MODEL}/model.safetensors");
        match name {
            "one" => drop(std::fs::copy(source, weights).expect("copied")),
            _ => perturbed(&source, &weights, 5),
        }
    }
}

#[test]
fn a_classifier_is_measured_by_its_own_head_without_a_tokenizer() {
    let folder = TempDir::new().expect("a folder");
    one_picture_each(&folder, "vit", &["train", "val"]);
    models(&folder);
    let line = "-q evaluate {}/one --task image_classification --data {} --dataset toy --split val --json \
                --predictions {}/said";
    let said = ok(run(line, &folder)).json();
    let numbers = said["results"][0]["measurements"].as_array();
    let number = |name: &str| {
        let mut numbers = numbers.expect("numbers").iter();
        let found = numbers.find(|number| number["name"] == name);
        found.expect("the number")["value"]
            .as_f64()
            .expect("a value")
    };
    let files = std::fs::read_dir(folder.path().join("said")).expect("predictions");
    let file = files.last().expect("a file").expect("an entry").path();
    let csv = std::fs::read_to_string(file).expect("predictions");
    let rows: Vec<(String, usize)> = (csv.lines())
        .filter_map(|line| {
            let (name, class) = line.trim_matches('"').rsplit_once(',')?;
            Some((name.replace('"', ""), class.parse().ok()?))
        })
        .collect();
    assert_eq!(rows.len(), 7, "{csv}");
    let is_right = |(name, class): &&(String, usize)| name.starts_with(&format!("class{class}/"));
    let n_right = rows.iter().filter(is_right).count();
    assert!((number("top1") - n_right as f64 / 7.0).abs() < 1e-12);
    assert!(number("top5") >= number("top1"));
}

#[test]
fn a_classifier_is_merged_by_its_grams_and_the_result_runs_without_a_configuration() {
    let folder = TempDir::new().expect("a folder");
    one_picture_each(&folder, "vit", &["train", "val"]);
    models(&folder);
    for name in ["one", "two"] {
        let line = format!(
            "-q gram --checkpoint {{}}/{name} --shared --task linear_probe --data {{}} --dataset toy --split train \
             --out {{}}/{name}.gram.safetensors"
        );
        ok(run(&line, &folder));
    }
    let recipe = format!(
        "merge_method: regmean\nparameters: {{ shrink: {SHRINK} }}\nmodels:\n\
         - {{ model: {0}/one, parameters: {{ grams: {0}/one.gram.safetensors }} }}\n\
         - {{ model: {0}/two, parameters: {{ grams: {0}/two.gram.safetensors }} }}\n",
        folder.path().display()
    );
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("regmean.yaml"), recipe).expect("written");
    ok(run(
        "-q merge {}/regmean.yaml --out {}/merged.safetensors",
        &folder,
    ));
    let file = |name: &str| open(path(name).to_str().expect("UTF-8"));
    let stores = ["one", "two"].map(|name| {
        let store = GramStore::new(Arc::new(file(&format!("{name}.gram.safetensors"))));
        (store.expect("matrices"), file(name))
    });
    let merged = file("merged.safetensors");
    let names: Vec<String> = (stores[0].0.checkpoint().tensors())
        .map(|(name, _)| name.to_owned())
        .collect();
    // Four of each block, and the classifier.
    assert_eq!(names.len(), 9);
    for name in names {
        let key = format!("{name}.weight");
        let found = values(&merged, &key);
        let (mut left, mut right) = (vec![0.0; found.len()], vec![0.0; found.len()]);
        for (store, model) in &stores {
            let width = store.width(&name).expect("a matrix");
            let gram = store.read(&name).expect("it reads");
            let gram = gram.as_slice().expect("row by row");
            let own = values(model, &key);
            for (sum, weight) in [(&mut left, &found), (&mut right, &own)] {
                let terms = times_shrunk(weight, gram, width);
                sum.iter_mut()
                    .zip(terms)
                    .for_each(|(sum, term)| *sum += term);
            }
        }
        let error = largest(left.iter().zip(&right).map(|(a, b)| a - b));
        assert!(
            error <= 1e-5 * largest(right.iter().copied()),
            "{key}: {error}"
        );
    }
    let line = "-q evaluate {}/merged.safetensors --task linear_probe --data {} --dataset toy --split val --json";
    ok(run(line, &folder));
}

#[test]
fn fine_tuning_moves_every_weight_of_a_classifier() {
    let folder = TempDir::new().expect("a folder");
    one_picture_each(&folder, "vit", &["train", "val"]);
    models(&folder);
    let recipe = format!(
        "init: {{ checkpoint: {0}/one }}\n\
         data: {{ format: folders, folder: {0}, train: [{{ dataset: toy, split: train }}] }}\n\
         augmentation: square\n\
         objectives: [{{ name: image_classification }}]\n\
         optim: {{ flavor: torch, lr: 1e-2 }}\n\
         length: {{ steps: 8 }}\nbatch_size: 7\n",
        folder.path().display()
    );
    std::fs::write(folder.path().join("recipe.yaml"), recipe).expect("written");
    ok(run("-q pretrain {}/recipe.yaml --out {}/run", &folder));
    let before = fixtures::tensors(&folder.path().join("one/model.safetensors"));
    let after = fixtures::tensors(&folder.path().join("run/model.safetensors"));
    assert_eq!(before.len(), after.len());
    for (key, tensor) in &before {
        assert_ne!(after[key].values(), tensor.values(), "{key}");
    }
    let log = std::fs::read_to_string(folder.path().join("run/metrics.jsonl")).expect("a log");
    let losses: Vec<f64> = (log.lines())
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|line| line["values"]["loss"].as_f64())
        .collect();
    assert!(losses.last() < losses.first(), "{losses:?}");
}

#[test]
fn parts_under_another_configuration_do_not_add_up() {
    let folder = TempDir::new().expect("a folder");
    one_picture_each(&folder, "vit", &["train", "val"]);
    models(&folder);
    let gram = |number: usize, name: &str| {
        let line = format!(
            "-q gram --checkpoint {{}}/one --shared --task linear_probe --data {{}} --dataset toy --split train --batch-size 2 \
             --shard {number}/2 --out {{}}/{name}.safetensors"
        );
        ok(run(&line, &folder));
    };
    gram(1, "first");
    gram(2, "second");
    let path = folder.path().join("one/config.json");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    let edited = text.replace("\"crop_pct\": 0.8", "\"crop_pct\": 0.9");
    assert_ne!(edited, text);
    std::fs::write(&path, edited).expect("written");
    gram(2, "edited");
    let add = |second: &str| {
        let line = format!(
            "gram add {{}}/first.safetensors {{}}/{second}.safetensors --out {{}}/sum.safetensors"
        );
        run(&line, &folder)
    };
    let said = add("edited");
    assert_eq!(said.code, Some(1), "{}", said.stdout);
    assert!(
        said.stderr.contains("reads its data in another way"),
        "{}",
        said.stderr
    );
    ok(add("second"));
}
