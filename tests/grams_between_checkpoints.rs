//! Gram matrices of two models, summed by the program, and their merge by RegMean: modality-agnostic ones,
//! and two towers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use merge::gram::GramStore;
use merge::io::{OpenOptions, WriteOptions, Writer};
use merge::random::Draws;
use merge::{Checkpoint, DType, decode_f64};

use tempfile::TempDir;

use crate::csv_tables::table;
use crate::evaluating::{Data, ok, run};
use crate::program::vlmerge;

const FIRST: &str = "fixtures/ckpt/ufo.safetensors";

/// Off-diagonals of the gram matrices are multiplied by it.
pub(crate) const SHRINK: f64 = 0.9;

/// The merged weights are rounded to f32 once: of the largest element of `W G`.
const TOLERANCE: f64 = 1e-5;

pub(crate) fn open(path: &str) -> Checkpoint {
    merge::io::open(Path::new(path), &OpenOptions::default()).expect("it opens")
}

pub(crate) fn values(checkpoint: &Checkpoint, key: &str) -> Vec<f64> {
    let info = checkpoint.require(key).expect("the tensor");
    let mut values = vec![0.0; info.n_elements()];
    let bytes = checkpoint.read_all(key).expect("it reads");
    decode_f64(key, info.dtype, &bytes, &mut values).expect("floats");
    values
}

/// A copy of a checkpoint with a little noise, by `seed`, on every f32 tensor.
pub(crate) fn perturbed(of: &str, to: &str, seed: u64) {
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
            Draws::new(seed, key).add_normal(0.02, 0, &mut noise);
            for (bytes, noise) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(noise) {
                *bytes = (f32::from_le_bytes(*bytes) + noise).to_le_bytes();
            }
        }
        writer.write(index, 0, &bytes).expect("written");
    }
    writer.finish(&BTreeMap::new()).expect("in place");
}

/// `A B` for rows of `A` and a square, symmetric `B`, with its off-diagonal shrunk.
pub(crate) fn times_shrunk(a: &[f64], b: &[f64], width: usize) -> Vec<f64> {
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

pub(crate) fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |most, value| most.max(value.abs()))
}

/// Two models with their gram matrices.
struct Pair {
    models: [String; 2],
    grams: [String; 2],
}

impl Pair {
    fn recipe(&self, path: &str, grams: [&str; 2]) {
        let models = self.models.iter().zip(grams);
        let models = models.map(|(model, grams)| {
            format!("- {{ model: {model}, parameters: {{ grams: {grams} }} }}\n")
        });
        let yaml = format!(
            "merge_method: regmean\nparameters: {{ shrink: {SHRINK} }}\nmodels:\n{}",
            models.collect::<String>()
        );
        std::fs::write(path, yaml).expect("written");
    }

    /// Checks every matrix of the merged model against `W Σ G̃ = Σ W G̃`; `key_of` names the weight of a gram
    /// matrix. The names of all gram matrices.
    fn check(&self, merged: &str, key_of: impl Fn(&str) -> String) -> Vec<String> {
        let merged = open(merged);
        let inputs = self.models.each_ref().map(|path| open(path));
        let stores = (self.grams.each_ref())
            .map(|path| GramStore::new(Arc::new(open(path))).expect("gram matrices"));
        let names: Vec<String> = (stores[0].checkpoint().tensors())
            .map(|(name, _)| name.to_owned())
            .collect();
        for name in &names {
            let key = key_of(name);
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
        names
    }
}

#[test]
fn grams_of_two_agnostic_models_merge_every_matrix_by_the_closed_form() {
    let data = Data::build(&["coco"]);
    let second = data.path("second.safetensors");
    perturbed(FIRST, &second, 7);
    let grams =
        [data.path("first.gram"), data.path("second.gram")].map(|name| name + ".safetensors");
    let pair = Pair {
        models: [FIRST.to_owned(), second],
        grams,
    };
    for ((model, grams), split) in pair.models.iter().zip(&pair.grams).zip(["val", "test"]) {
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
    let [first, second] = pair.grams.each_ref().map(String::as_str);
    let (path, merged) = (data.path("recipe.yaml"), data.path("merged.safetensors"));
    pair.recipe(&path, [first, second]);
    ok(&vlmerge(&["merge", &path, "--out", &merged]));
    pair.check(&merged, |name| match name.ends_with(".attn") {
        true => format!("{name}.qkv.weight"),
        false => format!("{name}.weight"),
    });

    // A hash of another kind than that of the gram files does not make them files of other models.
    let again = data.path("again.safetensors");
    ok(&vlmerge(&[
        "merge", &path, "--out", &again, "--hash", "sha256",
    ]));

    // Grams of the other model are refused, by name.
    pair.recipe(&path, [second, first]);
    let out = data.path("swapped.safetensors");
    for kind in ["blake3", "sha256"] {
        let said = vlmerge(&["merge", &path, "--out", &out, "--hash", kind]);
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        for name in [
            "second.gram.safetensors",
            "second.safetensors",
            "ufo.safetensors",
        ] {
            assert!(said.stderr.contains(name), "{name}: {}", said.stderr);
        }
        assert!(!Path::new(&out).exists());
    }
    let yaml = std::fs::read_to_string(&path).expect("there") + "foreign_grams: allow\n";
    std::fs::write(&path, yaml).expect("written");
    ok(&vlmerge(&["merge", &path, "--out", &out]));
}

#[test]
fn grams_of_two_zerovl_models_merge_every_matrix_of_both_towers_by_the_closed_form() {
    let folder = TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let base = "fixtures/zerovl/ckpt/model.safetensors";
    let pair = Pair {
        models: ["one", "two"].map(|name| path(&format!("{name}.safetensors"))),
        grams: ["one", "two"].map(|name| path(&format!("{name}.gram.safetensors"))),
    };
    let captions: Vec<String> = (0..12)
        .map(|n| format!("a dog and {n} trees, {}", n * n))
        .collect();
    for (at, name) in ["first", "second"].into_iter().enumerate() {
        perturbed(base, &pair.models[at], 7 + at as u64);
        let numbers = 8 * at..8 * at + 12;
        let rows = numbers.zip(&captions);
        let rows = rows.map(|(n, caption)| (n, n as i64, caption.as_str(), n as i64));
        table(&folder, name, &rows.collect::<Vec<_>>());
        let config = fixtures::json("zerovl/config.json");
        let heads = |tower: &str| config[tower]["heads"].to_string();
        let words = [
            &["gram", "--checkpoint", &pair.models[at], "--shared"][..],
            &["--out", &pair.grams[at], "--task", "retrieval"],
            &[
                "--image-heads",
                &heads("vision"),
                "--text-heads",
                &heads("text"),
            ],
            &["--data", &path(""), "--dataset", name, "--split", "valid"],
            &["--tokenizer", "fixtures/real/vocab.txt"],
        ];
        ok(&vlmerge(&words.concat()));
    }
    let (recipe, merged) = (path("recipe.yaml"), path("merged.safetensors"));
    pair.recipe(&recipe, pair.grams.each_ref().map(String::as_str));
    ok(&vlmerge(&["merge", &recipe, "--out", &merged]));
    let merged_names = pair.check(&merged, |name| format!("{name}.weight"));
    // Every linear weight of both towers and both projections was merged so.
    let model = open(base);
    let layout = merge::layouts::detect(&model).expect("a layout");
    let mut linear: Vec<String> = Vec::new();
    for (key, _) in model.tensors() {
        if let merge::Role::Shared(slot) = layout.role(key).expect("a known key")
            && slot.kind == merge::ParamKind::LinearWeight
        {
            linear.push(key.trim_end_matches(".weight").to_owned());
        }
    }
    linear.sort_unstable();
    assert_eq!(merged_names, linear);
    assert!(linear.iter().any(|name| name == "text_projection.linear"));
}

#[test]
fn grams_of_two_flms_merge_every_linear_layer_by_the_closed_form() {
    let folder = TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let base = "fixtures/flm/ckpt/flm_pretrain.safetensors";
    let pair = Pair {
        models: ["one", "two"].map(|name| path(&format!("{name}.safetensors"))),
        grams: ["one", "two"].map(|name| path(&format!("{name}.gram.safetensors"))),
    };
    let captions: Vec<String> = (0..12)
        .map(|n| format!("a man on {n} trees, {}", n * n))
        .collect();
    let config = fixtures::json("flm/config.json");
    let heads = |name: &str| config[name].to_string();
    for (at, name) in ["first", "second"].into_iter().enumerate() {
        perturbed(base, &pair.models[at], 7 + at as u64);
        let rows = (8 * at..8 * at + 12).zip(&captions);
        let rows = rows.map(|(n, caption)| (n, n as i64, caption.as_str(), n as i64));
        table(&folder, name, &rows.collect::<Vec<_>>());
        let words = [
            &["gram", "--checkpoint", &pair.models[at], "--shared"][..],
            &["--out", &pair.grams[at], "--task", "captions"],
            &["--heads", &heads("num_heads")],
            &["--image-heads", &heads("vit_heads")],
            &["--text-heads", &heads("text_num_heads")],
            &["--data", &path(""), "--dataset", name, "--split", "valid"],
            &["--tokenizer", "fixtures/flm/tok/toy"],
        ];
        ok(&vlmerge(&words.concat()));
    }
    let (recipe, merged) = (path("recipe.yaml"), path("merged.safetensors"));
    pair.recipe(&recipe, pair.grams.each_ref().map(String::as_str));
    ok(&vlmerge(&["merge", &recipe, "--out", &merged]));
    // The packed projections of the image tower are one layer.
    let names = pair.check(&merged, |name| match name.ends_with(".attn.in_proj") {
        true => format!("{name}_weight"),
        false => format!("{name}.weight"),
    });
    // Every linear layer of the encoders, the cross-modal layers and the reconstructor was merged so, and both
    // transforms; the other names of tied ones hold the same.
    let model = open(base);
    let layout = merge::layouts::detect(&model).expect("a layout");
    let mut linear = std::collections::BTreeSet::new();
    for (key, _) in model.tensors() {
        if let merge::Role::Shared(slot) = layout.role(key).expect("a known key")
            && slot.kind == merge::ParamKind::LinearWeight
        {
            linear.extend(layout.gram_key(&slot, None));
        }
    }
    assert_eq!(names, linear.into_iter().collect::<Vec<_>>());
    for part in [
        "vit_model.visual.transformer.resblocks.0.mlp.c_fc",
        "text_transformer.encoder.layer.0.attention.self.query",
        "cross_modal_text_layers.0.attention.output.dense",
        "cross_modal_text_layers.0.crossattention.self.key",
        "fusion_layers_bottom.0.crossattention.self.value",
        "fusion_layers_top.1.output.dense",
        "cross_modal_image_transform",
    ] {
        assert!(names.iter().any(|name| name == part), "{part}: {names:?}");
    }
    let merged = open(&merged);
    assert_eq!(merged.aliases(), model.aliases());
    assert!(!merged.aliases().is_empty());
}
