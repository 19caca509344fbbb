//! Models brought into one order by what their layers read of the same tokens.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use fixtures::path;
use merge::gram::GramStore;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

use crate::aligning::{
    Orders, Tensors, assert_same, merged as merged_as, permuted_clip, permuted_multiway,
};
use crate::clip::{TOKENIZER, folders};
use crate::evaluating::{Data, run as run_on};
use crate::grams_between_checkpoints::{largest, open};
use crate::program::{Said, ok, run, vlmerge};

type Metadata = HashMap<String, String>;

/// A copy of a safetensors file with other tensors and metadata.
fn rewritten(from: &Path, to: &Path, change: impl FnOnce(&mut Tensors, &mut Metadata)) {
    let bytes = std::fs::read(from).expect("it reads");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("safetensors");
    let mut metadata = header.metadata().clone().unwrap_or_default();
    let mut tensors = fixtures::tensors(from);
    change(&mut tensors, &mut metadata);
    let views = tensors.iter().map(|(name, raw)| {
        let view = TensorView::new(raw.dtype, raw.shape.clone(), &raw.bytes).expect("valid");
        (name, view)
    });
    safetensors::serialize_to_file(views, Some(metadata), to).expect("written");
}

/// A tiny CLIP or SigLIP of two blocks and a permuted copy, `a` and `b`, and pictures of three classes.
fn clips(folder: &TempDir, family: &str) -> Tensors {
    folders(folder);
    let line = format!(
        "-q synth --family {family} --blocks 2 --width 16 --attention-heads 2 --text-blocks 2 --text-width 16 \
         --text-attention-heads 4 --image-size 32 --patch-size 8 --text-len 16 --deviation 0.2 --vocabulary 49408 \
         {} {{}}/a.safetensors",
        if family == "clip" {
            "--joint-width 8"
        } else {
            ""
        }
    );
    ok(run(&line, folder));
    let original = folder.path().join("a.safetensors");
    let copy = folder.path().join("b.safetensors");
    rewritten(&original, &copy, |tensors, _| {
        permuted_clip(tensors, [2, 4], &mut Orders::new(6));
    });
    fixtures::tensors(&original)
}

/// Samples of a CLIP's activations.
fn sampled(folder: &TempDir, model: &str, out: &str, more: &str) -> Said {
    let line = format!(
        "-q activations --checkpoint {{}}/{model}.safetensors --task zero_shot_classes --data {{}} --dataset toy \
         --split val --tokenizer {TOKENIZER} --json --out {{}}/{out}.safetensors --force {more}"
    );
    run(&line, folder)
}

/// A recipe that merges `a` and `b` half and half, with activation files of each, and more keys.
fn merged(folder: &TempDir, [a, b]: [&str; 2], rest: &str) -> Said {
    let model = |name: &str, files: &str| {
        let at = folder.path().display();
        let files: Vec<String> = files
            .split_whitespace()
            .map(|file| format!("{at}/{file}.safetensors"))
            .collect();
        match files.is_empty() {
            true => format!("{at}/{name}.safetensors"),
            false => format!(
                "{{ model: {at}/{name}.safetensors, activations: [{}] }}",
                files.join(", ")
            ),
        }
    };
    merged_as(folder, [&model("a", a), &model("b", b)], rest)
}

#[test]
fn a_permuted_clip_is_found_again_by_what_its_layers_read() {
    for family in ["clip", "siglip"] {
        let folder = TempDir::new().expect("a folder");
        let original = clips(&folder, family);
        for model in ["a", "b"] {
            let said = ok(sampled(&folder, model, &format!("{model}.act"), "")).json();
            assert_eq!(said["record"]["task"], "zero_shot_classes");
            // Three pictures of 16 patches and, in CLIP, a token of all; fc2 of the last block sees them all.
            let seen = &said["record"]["seen"]["vision_model.encoder.layers.1.mlp.fc2"];
            let expected = if family == "clip" { 51 } else { 48 };
            assert_eq!(*seen, expected, "{said}");
        }
        let said = ok(merged(&folder, ["a.act", "b.act"], "align: activations"));
        assert!(
            said.stdout.contains("residual stream of"),
            "{}",
            said.stdout
        );
        assert_same(&folder, &original);
        // Units alone come back too, and the stream stays as it is.
        ok(merged(
            &folder,
            ["a.act", "b.act"],
            "align: { by: activations, of: [units] }",
        ));
        let found = fixtures::tensors(&folder.path().join("merged.safetensors"));
        let bias = "text_model.encoder.layers.0.mlp.fc1.bias";
        assert_eq!(found[bias].values(), original[bias].values());
        let key = "text_model.encoder.layers.0.mlp.fc2.weight";
        assert_ne!(found[key].values(), original[key].values());
    }
}

/// Rows are the inputs of layers without padding: their products are the gram matrices of the same passes.
#[test]
fn all_rows_multiply_to_the_gram_matrices_of_the_same_passes() {
    let folder = TempDir::new().expect("a folder");
    clips(&folder, "clip");
    ok(sampled(&folder, "a", "a.act", ""));
    let line = format!(
        "-q gram --checkpoint {{}}/a.safetensors --task zero_shot_classes --data {{}} --dataset toy --split val \
         --tokenizer {TOKENIZER} --shared --out {{}}/a.gram.safetensors"
    );
    ok(run(&line, &folder));
    let grams = open(
        &folder
            .path()
            .join("a.gram.safetensors")
            .display()
            .to_string(),
    );
    let grams = GramStore::new(Arc::new(grams)).expect("gram matrices");
    let rows = fixtures::tensors(&folder.path().join("a.act.safetensors"));
    assert_eq!(rows.len(), grams.checkpoint().tensors().count());
    for (layer, rows) in rows {
        let (width, values) = (rows.shape[1], rows.values());
        let gram = grams.read(&layer).expect("the same layers");
        let most = largest(gram.iter().copied());
        for ((row, column), expected) in gram.indexed_iter() {
            let products = values.chunks(width).map(|of| of[row] * of[column]);
            let found: f64 = products.sum();
            assert!(
                (found - expected).abs() <= 1e-6 * most,
                "{layer}: {found} {expected}"
            );
        }
    }
}

/// A sample is of the same rows whatever the model, and says how many went by.
#[test]
fn fewer_rows_than_go_by_are_the_same_in_both_models() {
    let folder = TempDir::new().expect("a folder");
    let original = clips(&folder, "clip");
    for model in ["a", "b"] {
        ok(sampled(
            &folder,
            model,
            &format!("{model}.act"),
            "--rows 30",
        ));
    }
    ok(merged(&folder, ["a.act", "b.act"], "align: activations"));
    assert_same(&folder, &original);
    let rows = fixtures::tensors(&folder.path().join("a.act.safetensors"));
    let layer = "vision_model.encoder.layers.0.mlp.fc1";
    assert_eq!(rows[layer].shape, [30, 16]);
}

#[test]
fn a_permuted_multiway_model_is_found_again_by_what_its_layers_read() {
    let config = fixtures::json("config.json");
    let number = |key: &str| config[key].as_u64().expect("a number") as usize;
    let (heads, blocks) = (number("num_heads"), number("num_layers"));
    let data = Data::build(&["coco", "vqa"]);
    for (name, tasks) in [
        ("ufo", &["retrieval"][..]),
        // Joint experts read questions, those of one modality captions.
        ("all_moe", &["retrieval", "vqa"]),
    ] {
        let folder = TempDir::new().expect("a folder");
        let original = fixtures::tensors(&path(&format!("ckpt/{name}.safetensors")));
        let mut moved = original.clone();
        moved.retain(|_, tensor| tensor.dtype == Dtype::F32);
        permuted_multiway(&mut moved, (heads, blocks), &mut Orders::new(7));
        let mut copy = original.clone();
        copy.extend(moved);
        for (model, tensors) in [("a", &original), ("b", &copy)] {
            let file = folder.path().join(format!("{model}.safetensors"));
            fixtures::write(&file, tensors);
            let file = file.display().to_string();
            for task in tasks {
                let out = folder.path().join(format!("{model}.{task}.safetensors"));
                let out = out.display().to_string();
                let arguments = ["activations", "--checkpoint", &file, "--out", &out];
                ok(run_on(&arguments, &data.flags(task, "val")));
            }
        }
        let files = |model: &str| {
            let files = tasks.iter().map(|task| format!("{model}.{task}"));
            files.collect::<Vec<_>>().join(" ")
        };
        let (a, b) = (files("a"), files("b"));
        ok(merged(&folder, [&a, &b], "align: activations"));
        assert_same(&folder, &original);
        if name == "all_moe" {
            let said = merged(
                &folder,
                ["a.retrieval", "b.retrieval"],
                "align: activations",
            );
            assert_ne!(said.code, Some(0));
            let fault = "units of block 10, vision_language";
            assert!(said.stderr.contains(fault), "{}", said.stderr);
            assert!(said.stderr.contains("may be a list"), "{}", said.stderr);
        }
    }
}

#[test]
fn activations_that_do_not_belong_together_are_refused_by_name() {
    let folder = TempDir::new().expect("a folder");
    clips(&folder, "clip");
    for model in ["a", "b"] {
        ok(sampled(&folder, model, &format!("{model}.act"), ""));
    }
    ok(sampled(&folder, "b", "fewer.act", "--limit 2"));
    ok(sampled(&folder, "b", "rows.act", "--rows 8"));
    ok(sampled(&folder, "b", "batches.act", "--batch-size 2"));
    let at = |name: &str| folder.path().join(format!("{name}.safetensors"));
    rewritten(&at("b.act"), &at("images.act"), |tensors, _| {
        tensors.retain(|key, _| key.starts_with("vision_model."));
    });
    rewritten(&at("b.act"), &at("narrow.act"), |tensors, _| {
        let layer = "text_model.encoder.layers.0.mlp.fc2";
        let rows = tensors.get_mut(layer).expect("a layer");
        rows.shape[1] /= 2;
        rows.bytes.truncate(rows.bytes.len() / 2);
    });
    rewritten(&at("b.act"), &at("short.act"), |tensors, _| {
        let layer = "text_model.encoder.layers.0.mlp.fc2";
        let rows = tensors.get_mut(layer).expect("a layer");
        rows.shape[0] -= 1;
        let width = 4 * rows.shape[1];
        rows.bytes.truncate(rows.bytes.len() - width);
    });
    rewritten(&at("b.act"), &at("broken.act"), |tensors, _| {
        let layer = "text_model.encoder.layers.0.mlp.fc2";
        let rows = tensors.get_mut(layer).expect("a layer");
        rows.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let by = "align: activations";
    for (files, rest, fault) in [
        (["a.act", "fewer.act"], by, "examples: "),
        (["a.act", "rows.act"], by, "rows: 8, there 2048"),
        (["a.act", "batches.act"], by, "batch size: 2, there 16"),
        (["a.act", "images.act"], by, "residual stream of text: "),
        (
            ["a.act", "narrow.act"],
            by,
            "have 32 numbers, and the layer reads 64",
        ),
        (["a.act", "short.act"], by, "rows of floats"),
        (["a.act", "broken.act"], by, "is NaN at [0, 0]"),
        (["a.act", "a"], by, "no file of `vlmerge activations`"),
        (["a.act", "gone.act"], by, "gone.act.safetensors"),
        (["a.act", "b.act b.act"], by, "has 2 activation files"),
        (["a.act", ""], by, "needs `activations`"),
        (["b.act", "a.act"], by, "must be of the very weights"),
        (
            ["a.act", "b.act"],
            "align: weights",
            "for `align: activations` alone",
        ),
        (["a.act", "b.act"], "", "for `align: activations` alone"),
    ] {
        let said = merged(&folder, files, rest);
        assert!(
            matches!(said.code, Some(1 | 2)),
            "{files:?}: {}",
            said.stderr
        );
        assert!(said.stderr.contains(fault), "{files:?}: {}", said.stderr);
    }
    let swapped = format!("{by}\nforeign_grams: allow");
    ok(merged(&folder, ["b.act", "a.act"], &swapped));
    // Experts of one model have no use for them.
    let recipe = folder.path().join("experts.yaml");
    let text = "merge_method: interpolate\nmodels: [{ model: fixtures/ckpt/all_moe.safetensors, activations: a }]\n";
    std::fs::write(&recipe, text).expect("written");
    let recipe = recipe.display().to_string();
    let out = at("experts").display().to_string();
    let said = vlmerge(&["merge", &recipe, "--out", &out, "--dry-run"]);
    let fault = "for `align: activations` alone";
    assert!(said.stderr.contains(fault), "{}", said.stderr);
}

/// Two models that share nothing but the data are brought nearer to each other.
#[test]
fn correlations_of_units_of_different_models_grow_when_they_are_in_order() {
    let folder = TempDir::new().expect("a folder");
    clips(&folder, "clip");
    let noisy = |tensors: &mut Tensors, _: &mut Metadata| {
        for (key, tensor) in tensors.iter_mut().filter(|(_, of)| of.dtype == Dtype::F32) {
            let mut values: Vec<f32> = tensor.values().iter().map(|value| *value as f32).collect();
            merge::random::Draws::new(3, key).add_normal(0.02, 0, &mut values);
            tensor.bytes = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
        }
    };
    let at = |name: &str| folder.path().join(name);
    rewritten(&at("b.safetensors"), &at("c.safetensors"), noisy);
    std::fs::rename(at("c.safetensors"), at("b.safetensors")).expect("moved");
    for model in ["a", "b"] {
        ok(sampled(&folder, model, &format!("{model}.act"), ""));
    }
    let far = |rest: &str, files: [&str; 2]| {
        ok(merged(&folder, files, rest));
        let [found, original] = ["merged.safetensors", "a.safetensors"]
            .map(|name| fixtures::tensors(&folder.path().join(name)));
        let squares = |key: &String| {
            let pairs = found[key].values().into_iter().zip(original[key].values());
            pairs
                .map(|(found, value)| (found - value).powi(2))
                .sum::<f64>()
        };
        let all: BTreeMap<&String, f64> = original
            .keys()
            .filter(|key| found.contains_key(*key))
            .map(|key| (key, squares(key)))
            .collect();
        all.values().sum::<f64>()
    };
    let (apart, together) = (
        far("", ["", ""]),
        far("align: activations", ["a.act", "b.act"]),
    );
    // Half of the noise is left, which is a tenth of the weights.
    assert!(together < 0.05 * apart, "{together} {apart}");
}
