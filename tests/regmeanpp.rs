//! RegMean++ of two tiny CLIPs: each block's inputs come through merged blocks below it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fixtures::Raw;
use merge::gram::GramStore;
use merge::io::OpenOptions;
use tempfile::TempDir;

use crate::clip::{TOKENIZER, folders, synth_of};
use crate::program::{ok, run};

const SHRINK: f64 = 0.9;

/// Of the largest element: weights are rounded to f32 once, and sums are taken in f64 of what f32 passes give.
const TOLERANCE: f64 = 1e-4;

type Tensors = BTreeMap<String, Raw>;

fn tensors(folder: &TempDir, name: &str) -> Tensors {
    fixtures::tensors(&folder.path().join(name))
}

fn models(folder: &TempDir) {
    folders(folder);
    for (name, seed) in [("one", 1), ("two", 2)] {
        synth_of(
            folder,
            &format!("{name}.safetensors"),
            2,
            &format!("--seed {seed}"),
        );
    }
    let data =
        "{ task: zero_shot_classes, data: DIR, dataset: toy, split: train, tokenizer: TOKENIZER }";
    let data = data
        .replace("DIR", &folder.path().display().to_string())
        .replace("TOKENIZER", TOKENIZER);
    let yaml = format!(
        "shrink: {SHRINK}\nridge: 0.01\nmodels:\n- {{ model: {0}/one.safetensors, data: {data} }}\n- {{ model: \
         {0}/two.safetensors, data: {data} }}\n",
        folder.path().display()
    );
    std::fs::write(folder.path().join("models.yaml"), yaml).expect("written");
}

/// Gram matrices by name, as rows of numbers.
fn grams(path: &Path) -> BTreeMap<String, Vec<f64>> {
    let file = merge::io::open(path, &OpenOptions::default()).expect("it opens");
    let names: Vec<String> = file.tensors().map(|(name, _)| name.to_owned()).collect();
    let store = GramStore::new(Arc::new(file)).expect("gram matrices");
    let read = |name: String| {
        let matrix = store.read(&name).expect("it reads");
        (name, matrix.iter().copied().collect())
    };
    names.into_iter().map(read).collect()
}

fn largest(values: &[f64]) -> f64 {
    values
        .iter()
        .fold(0.0, |most: f64, value| most.max(value.abs()))
}

#[test]
fn inputs_of_a_block_come_through_the_merged_blocks_below_it() {
    let folder = TempDir::new().expect("a folder");
    models(&folder);
    let said = ok(run(
        "-q regmeanpp {}/models.yaml --out {}/grams --json",
        &folder,
    ))
    .json();
    // Two towers of two blocks: one for queries, keys and values, one for what attention gives, two of the FFN.
    assert_eq!(said["matrices"], 2 * 2 * 4);
    ok(run(
        "-q merge {}/grams/recipe.yaml --out {}/merged.safetensors",
        &folder,
    ));
    let merged = tensors(&folder, "merged.safetensors");
    let own = ["one", "two"].map(|name| tensors(&folder, &format!("{name}.safetensors")));

    // The sums of `gram` over a model whose embeddings are the mean, and whose blocks below are the merged ones.
    for (index, name) in ["one", "two"].into_iter().enumerate() {
        let found = grams(
            &folder
                .path()
                .join(format!("grams/model{index}.gram.safetensors")),
        );
        for block in 0..2 {
            let mut hybrid = own[index].clone();
            for (key, tensor) in &mut hybrid {
                let of_block = key
                    .split_once("layers.")
                    .map(|(_, rest)| rest.split('.').next().expect("a block"));
                let is_below =
                    of_block.is_none_or(|of| of.parse::<usize>().expect("a number") < block);
                if is_below {
                    tensor.bytes.clone_from(&merged[key].bytes);
                }
            }
            let file = folder.path().join("hybrid.safetensors");
            copy_metadata(&folder, name, &hybrid, &file);
            let line = format!(
                "-q gram --checkpoint {{}}/hybrid.safetensors --shared --task zero_shot_classes --data {{}} --dataset toy \
                 --split train --tokenizer {TOKENIZER} --out {{}}/hybrid.gram.safetensors --force"
            );
            ok(run(&line, &folder));
            let expected = grams(&folder.path().join("hybrid.gram.safetensors"));
            let mut n_compared = 0;
            for (name, found) in &found {
                if !name.contains(&format!("layers.{block}.")) {
                    continue;
                }
                n_compared += 1;
                let expected = &expected[name];
                for (found, expected) in found.iter().zip(expected) {
                    assert!(
                        (found - expected).abs() <= TOLERANCE * largest(&[*expected]).max(1e-3),
                        "{name}: {found} {expected}"
                    );
                }
            }
            assert_eq!(n_compared, 2 * 4);
        }
    }

    // The merged layers solve `W Σ G̃ = Σ W G̃`, with the ridge on each diagonal.
    let both = [0, 1].map(|index| {
        grams(
            &folder
                .path()
                .join(format!("grams/model{index}.gram.safetensors")),
        )
    });
    let solved = both[0]
        .keys()
        .flat_map(|name| match name.strip_suffix(".qkv") {
            Some(of) => (["q_proj", "k_proj", "v_proj"])
                .map(|part| (name, format!("{of}.{part}.weight")))
                .to_vec(),
            None => vec![(name, format!("{name}.weight"))],
        });
    for (name, key) in solved {
        let found = merged[&key].values();
        let width = merged[&key].shape[1];
        let total: f64 = (0..2)
            .map(|index| {
                (0..width)
                    .map(|at| both[index][name][at * width + at])
                    .sum::<f64>()
            })
            .sum();
        let pull = 0.01 * total / (width as f64 * 2.0);
        let (mut left, mut right) = (vec![0.0; found.len()], vec![0.0; found.len()]);
        for index in 0..2 {
            let gram = |row: usize, column: usize| match row == column {
                true => both[index][name][row * width + column] + pull,
                false => SHRINK * both[index][name][row * width + column],
            };
            let weight = own[index][&key].values();
            for at in 0..found.len() {
                let (row, column) = (at / width, at % width);
                left[at] += (0..width)
                    .map(|k| found[row * width + k] * gram(k, column))
                    .sum::<f64>();
                right[at] += (0..width)
                    .map(|k| weight[row * width + k] * gram(k, column))
                    .sum::<f64>();
            }
        }
        let most = largest(&right);
        for (left, right) in left.iter().zip(&right) {
            assert!(
                (left - right).abs() <= 1e-5 * most,
                "{name}: {left} {right}"
            );
        }
    }

    // Plain RegMean sums over each model's own blocks: another model.
    let plain = format!(
        "-q gram --checkpoint {{}}/one.safetensors --shared --task zero_shot_classes --data {{}} --dataset toy --split \
         train --tokenizer {TOKENIZER} --out {{}}/plain.gram.safetensors"
    );
    ok(run(&plain, &folder));
    let plain = grams(&folder.path().join("plain.gram.safetensors"));
    let name = "vision_model.encoder.layers.1.mlp.fc1";
    assert_ne!(plain[name], both[0][name]);
}

/// The hybrid with what the model's file says of itself.
fn copy_metadata(folder: &TempDir, name: &str, hybrid: &Tensors, to: &Path) {
    let file = merge::io::open(
        &folder.path().join(format!("{name}.safetensors")),
        &OpenOptions::default(),
    );
    let file = file.expect("it opens");
    let listed: Vec<_> = (file.tensors())
        .map(|(key, info)| (key.to_owned(), info.clone()))
        .collect();
    let metadata = file.info().metadata.clone();
    let options = merge::io::WriteOptions {
        force: true,
        ..merge::io::WriteOptions::new(to)
    };
    let writer =
        merge::io::Writer::create(&listed, &metadata, &options).expect("it can be written");
    for (index, (key, _)) in listed.iter().enumerate() {
        writer.write(index, 0, &hybrid[key].bytes).expect("written");
    }
    writer.finish(&metadata).expect("in place");
}

#[test]
fn data_that_are_not_said_and_one_model_alone_are_refused() {
    let folder = TempDir::new().expect("a folder");
    models(&folder);
    let write = |text: &str| std::fs::write(folder.path().join("bad.yaml"), text).expect("written");
    write("models: [{ model: a.safetensors, data: {} }]");
    let said = run("regmeanpp {}/bad.yaml --out {}/out", &folder);
    assert_eq!(said.code, Some(2));
    assert!(
        said.stderr.contains("fewer than two models"),
        "{}",
        said.stderr
    );
    write("models: [{ model: a.safetensors, data: {} }, { model: b.safetensors, data: {} }]");
    let said = run("regmeanpp {}/bad.yaml --out {}/out", &folder);
    assert_eq!(said.code, Some(2));
    assert!(
        said.stderr.contains("`data` of a.safetensors"),
        "{}",
        said.stderr
    );
    assert!(!folder.path().join("out").exists());
}
