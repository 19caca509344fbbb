//! Fisher information as a user sums it, and merges by it.

use std::collections::BTreeMap;
use std::path::Path;

use tempfile::TempDir;

use crate::clip::{TOKENIZER, folders, synth};
use crate::program::{Said, ok, run};

const MOE: &str = "fixtures/ckpt/all_moe.safetensors";

/// Of the largest element of a tensor: merged weights are rounded to f32 once, and pictures go through a file.
const TOLERANCE: f64 = 1e-5;

fn values(path: &Path) -> BTreeMap<String, Vec<f64>> {
    let tensors = fixtures::tensors(path).into_iter();
    tensors.map(|(name, raw)| (name, raw.values())).collect()
}

fn fisher(folder: &TempDir, of: &str, more: &str) -> Said {
    let line = format!(
        "-q fisher --checkpoint {{}}/{of}.safetensors --objective image_classification --data {{}} --dataset toy \
         --format folders --json {more}"
    );
    run(&line, folder)
}

/// Two tiny CLIPs with classifiers, of one of which there is a copy in open_clip's spelling.
fn models(folder: &TempDir) {
    folders(folder);
    for (name, seed) in [("one", 1), ("two", 2)] {
        synth(
            folder,
            &format!("{name}.bare.safetensors"),
            &format!("--seed {seed}"),
        );
        let line = format!(
            "-q classifier {{}}/{name}.bare.safetensors {{}}/{name}.safetensors --data {{}} --dataset toy --split train \
             --tokenizer {TOKENIZER}"
        );
        ok(run(&line, folder));
    }
}

#[test]
fn information_of_a_clip_is_that_of_gradients_that_forward_writes_and_merges_it() {
    let folder = TempDir::new().expect("a folder");
    models(&folder);
    let said = ok(fisher(&folder, "one", "--out {}/one.fisher.safetensors")).json();
    assert_eq!(said["record"]["n_examples"], 3);
    ok(fisher(&folder, "two", "--out {}/two.fisher.safetensors"));
    let expected = "--labels expected --out {}/expected.fisher.safetensors";
    ok(fisher(&folder, "one", expected));
    let found = values(&folder.path().join("one.fisher.safetensors"));
    let found_expected = values(&folder.path().join("expected.fisher.safetensors"));

    // The same pictures, one by one, with each of the three classes.
    let (mut given, mut all) = (BTreeMap::new(), BTreeMap::new());
    for (number, batch) in pictures(&folder).into_iter().enumerate() {
        for class in 0..3_u32 {
            let inputs = folder.path().join("inputs.safetensors");
            let mut tensors = batch.clone();
            let label = candle_core::Tensor::new(&[i64::from(class)], &candle_core::Device::Cpu);
            tensors.insert("label".to_owned(), label.expect("a label"));
            let options = merge::io::WriteOptions {
                force: true,
                ..merge::io::WriteOptions::new(&inputs)
            };
            evaluate::forward::write(&tensors, &BTreeMap::new(), &options).expect("written");
            let said = ok(run(
                "-q forward {}/one.safetensors --inputs {}/inputs.safetensors --loss image_classification \
                 --gradients {}/gradients.safetensors --force --json",
                &folder,
            ));
            let loss = said.json()["loss"]["value"].as_f64().expect("a loss");
            let gradients = values(&folder.path().join("gradients.safetensors"));
            for (name, gradient) in gradients {
                let add = |sums: &mut BTreeMap<String, Vec<f64>>, factor: f64| {
                    let sums = sums.entry(name.clone());
                    let sums = sums.or_insert_with(|| vec![0.0; gradient.len()]);
                    for (sum, value) in sums.iter_mut().zip(&gradient) {
                        *sum += factor * value * value / 3.0;
                    }
                };
                add(&mut all, (-loss).exp());
                // A class, a picture: cat, dog, red_fox.
                if class as usize == number {
                    add(&mut given, 1.0);
                }
            }
        }
    }
    for (found, expected) in [(&found, &given), (&found_expected, &all)] {
        assert!(expected.len() > 10);
        for (name, expected) in expected {
            let most = expected
                .iter()
                .fold(0.0, |most: f64, value| most.max(*value));
            for (found, expected) in found[name].iter().zip(expected) {
                assert!(
                    (found - expected).abs() <= 10.0 * TOLERANCE * most,
                    "{name}: {found} {expected}"
                );
            }
        }
    }

    // The merge weighs each element by it, and what no model is sure of is the mean.
    let recipe = |first: &str, second: &str| {
        format!(
            "merge_method: fisher\nmodels:\n- {{ model: {0}/one.safetensors, parameters: {{ fisher: \
             {0}/{first}.fisher.safetensors }} }}\n- {{ model: {0}/two.safetensors, parameters: {{ fisher: \
             {0}/{second}.fisher.safetensors }} }}\n",
            folder.path().display()
        )
    };
    std::fs::write(folder.path().join("good.yaml"), recipe("one", "two")).expect("written");
    std::fs::write(folder.path().join("swapped.yaml"), recipe("two", "one")).expect("written");
    ok(run(
        "-q merge {}/good.yaml --out {}/merged.safetensors",
        &folder,
    ));
    let read = |name: &str| values(&folder.path().join(format!("{name}.safetensors")));
    let (merged, models) = (read("merged"), [read("one"), read("two")]);
    let information = [read("one.fisher"), read("two.fisher")];
    for (name, merged) in &merged {
        let most = merged
            .iter()
            .fold(0.0, |most: f64, value| most.max(value.abs()));
        for (index, merged) in merged.iter().enumerate() {
            let weight = |model: usize| information[model][name][index] + 1e-6;
            let sum: f64 = (0..2)
                .map(|model| weight(model) * models[model][name][index])
                .sum();
            let expected = sum / (weight(0) + weight(1));
            assert!(
                (merged - expected).abs() <= TOLERANCE * most,
                "{name}: {merged} {expected}"
            );
        }
    }
    assert!(
        information[0]["text_model.final_layer_norm.weight"]
            .iter()
            .all(|value| *value == 0.0)
    );
    let swapped = run("-q merge {}/swapped.yaml --out {}/no.safetensors", &folder);
    assert_eq!(swapped.code, Some(1));
    assert!(
        swapped.stderr.contains("was made of two.safetensors"),
        "{}",
        swapped.stderr
    );
    assert!(!folder.path().join("no.safetensors").exists());
}

/// The pictures of the training split as the model sees them, each alone.
fn pictures(folder: &TempDir) -> Vec<BTreeMap<String, candle_core::Tensor>> {
    let yaml = format!(
        "init: {{ checkpoint: {0}/one.safetensors }}\n\
         data: {{ format: folders, folder: {0}, train: [{{ dataset: toy, split: train }}] }}\n\
         augmentation: square\nobjectives: [{{ name: image_classification }}]\nlength: {{ steps: 1 }}\nbatch_size: 1\n",
        folder.path().display()
    );
    let recipe =
        train::recipe::TrainRecipe::parse(&yaml, Path::new("test"), &[]).expect("a recipe");
    let place = train::run::Where {
        folder: folder.path(),
        device: candle_core::Device::Cpu,
        collective: &train::collective::Alone,
        experts: None,
        progress: &merge::progress::Silent,
    };
    let prepared = train::run::TrainPlan::fresh(recipe, &place)
        .expect("a plan")
        .prepared();
    let n = prepared.loader.examples.len();
    let load = |index: usize| {
        let loaded = prepared
            .loader
            .load(train::data::Place::default(), index, &[index]);
        let batch = loaded
            .expect("a picture")
            .batch(&candle_core::Device::Cpu, prepared.dtype);
        let image = batch.expect("a batch").image.expect("a picture");
        BTreeMap::from([("pixel_values".to_owned(), image.pixels)])
    };
    (0..n).map(load).collect()
}

#[test]
fn experts_of_one_checkpoint_are_merged_by_the_information_of_each() {
    let folder = TempDir::new().expect("a folder");
    let line = format!(
        "-q fisher --checkpoint {MOE} --objective vqa --data fixtures/arrow --dataset vqa --tokenizer \
         fixtures/real/vocab.txt --set model.text_table_len=16 --limit 3 --out {{}}/moe.fisher.safetensors"
    );
    let said = ok(run(&line, &folder));
    assert!(
        said.stdout.contains("of 3 examples of vqa train by vqa"),
        "{}",
        said.stdout
    );
    let recipe = |experts: &str| {
        format!(
            "merge_method: fisher\nmodels: [{{ model: {MOE} }}]\nfor: vqa\n\
             parameters: {{ fisher: {}/moe.fisher.safetensors }}\n{experts}",
            folder.path().display()
        )
    };
    std::fs::write(folder.path().join("m.yaml"), recipe("")).expect("written");
    ok(run(
        "-q merge {}/m.yaml --out {}/merged.safetensors",
        &folder,
    ));
    let merged = values(&folder.path().join("merged.safetensors"));
    let model = values(Path::new(MOE));
    let information = values(&folder.path().join("moe.fisher.safetensors"));
    let mut n_compared = 0;
    for (name, merged) in &merged {
        let Some((host, rest)) = name.split_once(".mlp.") else {
            continue;
        };
        // Where it has an expert of pairs, questions go through that one alone, and it is kept.
        if model.contains_key(&format!("{host}.mlp.vl.{rest}")) {
            continue;
        }
        let experts = ["v", "l"].map(|expert| format!("{host}.mlp.{expert}.{rest}"));
        let experts: Vec<&String> = (experts.iter())
            .filter(|expert| model.contains_key(*expert))
            .collect();
        if experts.is_empty() {
            continue;
        }
        let most = merged
            .iter()
            .fold(0.0, |most: f64, value| most.max(value.abs()));
        for (index, merged) in merged.iter().enumerate() {
            let (mut sum, mut total) = (0.0, 0.0);
            for &expert in &experts {
                let weight = information[expert][index] + 1e-6;
                sum += weight * model[expert][index];
                total += weight;
            }
            let expected = sum / total;
            assert!(
                (merged - expected).abs() <= TOLERANCE * most,
                "{name}: {merged} {expected}"
            );
            n_compared += 1;
        }
    }
    assert!(n_compared > 100, "{n_compared}");
}

#[test]
fn flags_that_do_not_go_together_are_refused() {
    let folder = TempDir::new().expect("a folder");
    let said = run("fisher --checkpoint x --out {}/y", &folder);
    assert_eq!(said.code, Some(2));
    assert!(said.stderr.contains("--objective"), "{}", said.stderr);
    let line = format!(
        "fisher --checkpoint {MOE} --out {{}}/y --objective vqaa --data fixtures/arrow --dataset vqa"
    );
    let said = run(&line, &folder);
    assert_eq!(said.code, Some(2));
    assert!(
        said.stderr.contains("there is no objective `vqaa`"),
        "{}",
        said.stderr
    );
}
