//! A user's work with an EVE: one model out of the networks of its modalities, more and fewer experts; and inputs
//! that are refused.

use std::collections::BTreeMap;

use fixtures::{Raw, first_difference};
use tempfile::TempDir;

use crate::program::{Said, ok, run};

const SIZES: &str = "--family eve --blocks 3 --width 32 --attention-heads 2 --mixtures 1 --experts 4 --patch-size 8 \
                     --image-size 32 --text-len 24 --pair-len 16 --vocabulary 101";
const DATA: &str = "--task retrieval --data fixtures/arrow --dataset coco --split test \
                    --tokenizer fixtures/real/vocab.txt";
const HOST: &str = "backbone.encoder.layers.2.mlp_moe.moe";

/// A small model for retrieval.
fn synth(name: &str, seed: usize, folder: &TempDir) {
    let line = format!("-q synth {{}}/{name}.safetensors {SIZES} --heads retrieval --seed {seed}");
    ok(run(&line, folder));
}

fn tensors(name: &str, folder: &TempDir) -> BTreeMap<String, Raw> {
    fixtures::tensors(&folder.path().join(format!("{name}.safetensors")))
}

/// The similarities that a model gives to images and texts.
fn similarities(name: &str, folder: &TempDir) -> Vec<f64> {
    let line = format!(
        "-q evaluate {{}}/{name}.safetensors {DATA} --out {{}}/{name}.json \
         --predictions {{}}/scores-{name} --force"
    );
    ok(run(&line, folder));
    let file = folder
        .path()
        .join(format!("scores-{name}/{name}.test.safetensors"));
    fixtures::tensors(&file)["scores"].values()
}

/// The gram matrices of the model, `grams.safetensors`.
fn grams(folder: &TempDir) {
    let line = "-q gram --checkpoint {}/eve.safetensors --shared --out {}/grams.safetensors";
    ok(run(&format!("{line} {DATA}"), folder));
}

fn differ(one: &[f64], other: &[f64]) -> bool {
    first_difference(one, other, 1e-5, 1e-6).is_some()
}

#[test]
fn modalities_of_an_eve_become_one_network_which_becomes_a_mixture_of_copies() {
    let folder = tempfile::tempdir().expect("a folder");
    synth("eve", 0, &folder);
    grams(&folder);
    let own = similarities("eve", &folder);
    for (name, line) in [
        ("even", "interpolate {}/eve.safetensors"),
        ("image", "interpolate {}/eve.safetensors --ratio 1"),
        (
            "added",
            "arithmetic {}/eve.safetensors --seed-checkpoint {}/even.safetensors --lambda 0.5",
        ),
        (
            "solved",
            "regmean {}/eve.safetensors --grams {}/grams.safetensors",
        ),
    ] {
        ok(run(
            &format!("-q {line} --out {{}}/{name}.safetensors"),
            &folder,
        ));
        let found = tensors(name, &folder);
        for block in 0..2 {
            let key =
                |network: &str| format!("backbone.encoder.layers.{block}.{network}.fc1.weight");
            assert!(found.contains_key(&key("mlp_imag")), "{name}");
            assert!(!found.contains_key(&key("mlp_text")), "{name}");
        }
        // Routers and their experts are not of a modality.
        let before = tensors("eve", &folder);
        for (key, raw) in before.iter().filter(|(key, _)| key.starts_with(HOST)) {
            assert!(found[key].bytes == raw.bytes, "{name}: {key}");
        }
        assert!(
            differ(&similarities(name, &folder), &own),
            "{name} is another model"
        );
    }
    let image = tensors("image", &folder);
    for (key, raw) in tensors("eve", &folder) {
        if key.contains(".0.mlp_imag.") {
            assert!(image[&key].bytes == raw.bytes, "{key}");
        }
    }
    // Each dense network as four copies behind a drawn router: the same function.
    ok(run(
        "-q expand {}/even.safetensors {}/copies.safetensors --to mixture --n-experts 4",
        &folder,
    ));
    let router = "backbone.encoder.layers.0.mlp_moe.moe.gate.wg.weight";
    assert_eq!(tensors("copies", &folder)[router].shape, [4, 32]);
    let [even, copies] = ["even", "copies"].map(|name| similarities(name, &folder));
    assert!(!differ(&copies, &even));
}

#[test]
fn experts_of_an_eve_are_pruned_grouped_and_made_dense_and_the_results_run() {
    let folder = tempfile::tempdir().expect("a folder");
    synth("eve", 0, &folder);
    grams(&folder);
    for (name, flags, n_experts) in [
        ("pruned", "--experts 2 --grams {}/grams.safetensors", 2),
        (
            "grouped",
            "--experts 2 --group --align-units --grams {}/grams.safetensors",
            2,
        ),
        (
            "overall",
            "--experts 3 --in-all --by frequency --grams {}/grams.safetensors",
            3,
        ),
        ("dense", "--experts dense", 0),
    ] {
        let line = format!("convert {{}}/eve.safetensors {{}}/{name}.safetensors {flags}");
        let said = ok(run(&line, &folder));
        let found = tensors(name, &folder);
        let experts = found
            .keys()
            .filter(|key| key.ends_with(".fc1.bias") && key.starts_with(HOST));
        assert_eq!(experts.count(), n_experts, "{name}");
        assert_eq!(said.stderr.contains(HOST), n_experts > 0, "{}", said.stderr);
        assert!(
            similarities(name, &folder)
                .iter()
                .all(|value| value.is_finite())
        );
    }
}

fn refused(said: &Said, words: &[&str]) {
    assert_ne!(said.code, Some(0), "{}", said.stdout);
    for word in words {
        assert!(said.stderr.contains(word), "no {word}: {}", said.stderr);
    }
}

#[test]
fn experts_that_do_not_fit_and_texts_of_another_length_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    synth("eve", 0, &folder);
    let model = tensors("eve", &folder);
    let write = |name: &str, tensors: &BTreeMap<String, Raw>| {
        fixtures::write(&folder.path().join(format!("{name}.safetensors")), tensors);
        let recipe = format!(
            "merge_method: linear\nmodels: [{0}/eve.safetensors, {0}/{name}.safetensors]\nparameters: {{ weight: 0.5 }}\n",
            folder.path().display()
        );
        std::fs::write(folder.path().join(format!("{name}.yaml")), recipe).expect("written");
    };
    let router = format!("{HOST}.gate.wg.weight");
    let without = |part: &str| {
        let mut fewer = model.clone();
        fewer.retain(|key, _| !key.contains(part));
        fewer
    };
    write("alone", &without("experts.experts."));
    write("misfit", &without("experts.experts.3."));
    let mut three = without("experts.experts.3.");
    let rows = three.get_mut(&router).expect("a router");
    rows.shape[0] = 3;
    rows.bytes.truncate(3 * 32 * 4);
    write("three", &three);
    for (name, words) in [
        (
            "alone",
            [router.as_str(), "without its experts", "alone.safetensors"],
        ),
        (
            "misfit",
            [
                "has 3 experts, and its router",
                "rows for 4",
                "misfit.safetensors",
            ],
        ),
        ("three", ["has 3 experts in", "and 4 in", HOST]),
    ] {
        for flags in ["", "--align-experts weights"] {
            let line = format!("merge {{}}/{name}.yaml --out {{}}/out.safetensors {flags}");
            refused(&run(&line, &folder), &words);
        }
    }
    // A model whose router does not fit is not run, one with three experts is.
    for (name, n_experts) in [("alone", "0 experts"), ("misfit", "3 experts")] {
        let line = format!("evaluate {{}}/{name}.safetensors {DATA} --heads 2 --out {{}}/out.json");
        refused(
            &run(&line, &folder),
            &[&router, "rows for 4 experts", n_experts],
        );
    }
    let line = format!(
        "-q evaluate {{}}/three.safetensors {DATA} --heads 2 --pair-len 16 --out {{}}/out.json"
    );
    ok(run(&line, &folder));
    let line = format!(
        "evaluate {{}}/three.safetensors {DATA} --heads 2 --pair-len 30 --out {{}}/other.json"
    );
    refused(&run(&line, &folder), &["30 tokens", "24 positions"]);
}

#[test]
fn flags_and_recipes_that_contradict_what_an_eve_says_of_itself_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    synth("eve", 0, &folder);
    let evaluate = format!("-q evaluate {{}}/eve.safetensors {DATA} --out {{}}/out.json --force");
    let fresh = "{synth:~{family:~eve,~blocks:~2,~width:~32,~attention_heads:~2,~mixtures:~1,~experts:~4,\
                 ~patch_size:~8,~image_size:~32,~text_len:~24,~pair_len:~16,~vocabulary:~101}}";
    let pretrain = "-q pretrain docs/recipes/train/eve_pretrain_base.yaml --out {}/run \
                    --set data.folder=fixtures/arrow --set data.tokenizer=fixtures/real/vocab.txt \
                    --set data.train=[{dataset:~coco,~split:~train}] --set batch_size=4 --set length={steps:~1}";
    for (flag, key, what, recorded, given) in [
        ("--heads", "heads", "`heads`", 2, 4),
        ("--pair-len", "pair_len", "`pair_len`", 16, 9),
    ] {
        let given_then = format!("is {recorded} by the file's own record, but {given} was asked");
        let words = [what, &given_then];
        refused(&run(&format!("{evaluate} {flag} {given}"), &folder), &words);
        for init in ["{checkpoint:~{}/eve.safetensors}", fresh] {
            let line = format!("{pretrain} --set init={init} --set model={{{key}:~{given}}}");
            refused(&run(&line, &folder), &words);
        }
        // The same number again is no contradiction.
        ok(run(&format!("{evaluate} {flag} {recorded}"), &folder));
    }
}

#[test]
fn an_order_of_experts_asked_for_dense_models_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    synth("eve", 0, &folder);
    ok(run(
        "-q convert {}/eve.safetensors {}/dense.safetensors --experts dense",
        &folder,
    ));
    let recipe = format!(
        "merge_method: linear\nmodels: [{0}/dense.safetensors, {0}/dense.safetensors]\nparameters: {{ weight: 0.5 }}\n",
        folder.path().display()
    );
    std::fs::write(folder.path().join("recipe.yaml"), recipe).expect("written");
    let line = "merge {}/recipe.yaml --out {}/out.safetensors --align-experts weights";
    refused(
        &run(line, &folder),
        &[
            "`align_experts`",
            "dense.safetensors has no mixture of experts",
            "align_units",
        ],
    );
    assert!(!folder.path().join("out.safetensors").exists());
}

#[test]
fn an_eve_begins_as_a_beit() {
    let folder = tempfile::tempdir().expect("a folder");
    ok(run(
        "-q synth {}/beit.safetensors --family beit --size tiny --image-size 32 --patch-size 8 --original-spelling",
        &folder,
    ));
    let said = ok(run(
        "expand {}/beit.safetensors {}/eve.safetensors --to eve-retrieval --n-experts 3 --vocabulary 101 --seed 1",
        &folder,
    ));
    for words in [
        "not in the input, so drawn",
        "no part of the model, so left out",
    ] {
        assert!(said.stderr.contains(words), "{words}: {}", said.stderr);
    }
    let [beit, eve] = ["beit", "eve"].map(|name| tensors(name, &folder));
    for expert in 0..3 {
        let key =
            format!("backbone.encoder.layers.11.mlp_moe.moe.experts.experts.{expert}.fc1.weight");
        assert!(eve[&key].bytes == beit["blocks.11.mlp.fc1.weight"].bytes);
    }
    assert!(
        similarities("eve", &folder)
            .iter()
            .all(|value| value.is_finite())
    );
    // Sizes that the file has cannot be given.
    refused(
        &run(
            "expand {}/eve.safetensors {}/out.safetensors --to eve-vqa --n-experts 4",
            &folder,
        ),
        &["a BEiT can"],
    );
}
