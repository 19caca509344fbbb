//! Gram matrices of two modality-agnostic models, summed by the program, and their merge by RegMean.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use merge::gram::GramStore;
use merge::io::{OpenOptions, WriteOptions, Writer};
use merge::random::Draws;
use merge::{Checkpoint, DType, decode_f64};

use crate::evaluating::{Data, ok, run};
use crate::program::vlmerge;

const FIRST: &str = "fixtures/ckpt/ufo.safetensors";

/// Off-diagonals of the gram matrices are multiplied by it.
const SHRINK: f64 = 0.9;

/// The merged weights are rounded to f32 once: of the largest element of `W G`.
const TOLERANCE: f64 = 1e-5;

fn open(path: &str) -> Checkpoint {
    merge::io::open(Path::new(path), &OpenOptions::default()).expect("it opens")
}

fn values(checkpoint: &Checkpoint, key: &str) -> Vec<f64> {
    let info = checkpoint.require(key).expect("the tensor");
    let mut values = vec![0.0; info.n_elements()];
    let bytes = checkpoint.read_all(key).expect("it reads");
    decode_f64(key, info.dtype, &bytes, &mut values).expect("floats");
    values
}

/// A copy of a checkpoint with a little noise on every f32 tensor.
fn perturbed(of: &str, to: &str) {
    let source = open(of);
    let tensors: Vec<_> = (source.tensors())
        .map(|(key, info)| (key.to_owned(), info.clone()))
        .collect();
    let writer = Writer::create(&tensors, &BTreeMap::new(), &WriteOptions::new(to));
    let writer = writer.expect("it can be written");
    for (index, (key, info)) in tensors.iter().enumerate() {
        let mut bytes = source.read_all(key).expect("it reads");
        if info.dtype == DType::F32 {
            let mut noise = vec![0.0; info.n_elements()];
            Draws::new(7, key).add_normal(0.02, 0, &mut noise);
            for (bytes, noise) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(noise) {
                *bytes = (f32::from_le_bytes(*bytes) + noise).to_le_bytes();
            }
        }
        writer.write(index, 0, &bytes).expect("written");
    }
    writer.finish(&BTreeMap::new()).expect("in place");
}

/// `A B` for rows of `A` and a square, symmetric `B`, with its off-diagonal shrunk.
fn times_shrunk(a: &[f64], b: &[f64], width: usize) -> Vec<f64> {
    let shrunk = |row: usize, column: usize| match row == column {
        true => b[row * width + column],
        false => SHRINK * b[row * width + column],
    };
    let rows = a.chunks_exact(width);
    rows.flat_map(|row| {
        (0..width).map(move |column| (0..width).map(|k| row[k] * shrunk(k, column)).sum::<f64>())
    })
    .collect()
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |most, value| most.max(value.abs()))
}

#[test]
fn grams_of_two_agnostic_models_merge_every_matrix_by_the_closed_form() {
    let data = Data::build(&["coco"]);
    let second = data.path("second.safetensors");
    perturbed(FIRST, &second);
    let models = [FIRST, second.as_str()];
    let grams =
        [data.path("first.gram"), data.path("second.gram")].map(|name| name + ".safetensors");
    for ((model, grams), split) in models.iter().zip(&grams).zip(["val", "test"]) {
        let flags = data.flags("retrieval", split);
        let said = run(
            &["gram", "--checkpoint", model, "--shared", "--out", grams],
            &flags,
        );
        // 12 blocks, four layers.
        assert!(
            ok(&said).stdout.contains("48 gram matrices of"),
            "{}",
            said.stdout
        );
    }
    let recipe = |first: &str, second: &str| {
        let yaml = format!(
            "merge_method: regmean\nparameters: {{ shrink: {SHRINK} }}\nmodels:\n\
             - {{ model: {FIRST}, parameters: {{ grams: {first} }} }}\n\
             - {{ model: {}, parameters: {{ grams: {second} }} }}\n",
            models[1]
        );
        let path = data.path("recipe.yaml");
        std::fs::write(&path, yaml).expect("written");
        path
    };
    let merged = data.path("merged.safetensors");
    let path = recipe(&grams[0], &grams[1]);
    ok(&vlmerge(&["merge", &path, "--out", &merged]));

    let merged = open(&merged);
    let inputs = models.map(open);
    let stores = grams
        .each_ref()
        .map(|path| GramStore::new(Arc::new(open(path))).expect("gram matrices"));
    let names: Vec<String> = (stores[0].checkpoint().tensors())
        .map(|(name, _)| name.to_owned())
        .collect();
    for name in &names {
        let key = match name.ends_with(".attn") {
            true => format!("{name}.qkv.weight"),
            false => format!("{name}.weight"),
        };
        let width = stores[0].width(name).expect("a matrix");
        let found = values(&merged, &key);
        let mut left = vec![0.0; found.len()];
        let mut right = vec![0.0; found.len()];
        for (store, input) in stores.iter().zip(&inputs) {
            let gram = store.read(name).expect("it reads");
            let gram = gram.as_slice().expect("row by row");
            let sides = [
                (&mut left, found.clone()),
                (&mut right, values(input, &key)),
            ];
            for (sum, weight) in sides {
                for (sum, term) in sum.iter_mut().zip(times_shrunk(&weight, gram, width)) {
                    *sum += term;
                }
            }
        }
        let scale = largest(right.iter().copied());
        let error = largest(left.iter().zip(&right).map(|(a, b)| a - b));
        assert!(error <= TOLERANCE * scale, "{key}: {error} of {scale}");
        let (one, other) = (values(&inputs[0], &key), values(&inputs[1], &key));
        let means = one.iter().zip(&other).map(|(a, b)| (a + b) / 2.0);
        let moved = largest(means.zip(&found).map(|(mean, found)| mean - found));
        assert!(moved > 1e-3, "{key} is the plain mean: {moved}");
    }

    // Grams of the other model are refused, by name.
    let swapped = recipe(&grams[1], &grams[0]);
    let out = data.path("swapped.safetensors");
    let said = vlmerge(&["merge", &swapped, "--out", &out]);
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    for name in [
        "second.gram.safetensors",
        "second.safetensors",
        "ufo.safetensors",
    ] {
        assert!(said.stderr.contains(name), "{name}: {}", said.stderr);
    }
    assert!(!Path::new(&out).exists());
    let yaml = std::fs::read_to_string(&swapped).expect("there") + "foreign_grams: allow\n";
    std::fs::write(&swapped, yaml).expect("written");
    ok(&vlmerge(&["merge", &swapped, "--out", &out]));
}
