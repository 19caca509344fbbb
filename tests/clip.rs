//! CLIP from a checkpoint to accuracy: spellings, merges of both, zero-shot classification, a frozen zero-shot head, and
//! training.

use std::sync::Arc;

use merge::gram::GramStore;
use tempfile::TempDir;

use crate::class_folders::{class_folder, pictures};
use crate::grams_between_checkpoints::{SHRINK, largest, open, times_shrunk, values};
use crate::program::{Said, ok, run};

pub(crate) const TOKENIZER: &str = "fixtures/clip/tokenizer/bpe_simple_vocab_16e6.txt.gz";

/// Folders of classes with two pictures each, and two templates.
pub(crate) fn folders(folder: &TempDir) {
    let pictures = pictures();
    let mut pictures = pictures.iter();
    for class in ["cat", "dog", "red_fox"] {
        for split in ["train", "val"] {
            let of_class = class_folder(folder, split, class);
            let picture = pictures.next().expect("a picture");
            std::fs::copy(picture, of_class.join("1.jpg")).expect("copied");
        }
    }
    let templates = folder.path().join("toy/templates.txt");
    std::fs::write(templates, "a photo of a {}.\na drawing of the {}\n").expect("written");
}

/// A tiny CLIP with the vocabulary of the published ones.
pub(crate) fn synth(folder: &TempDir, name: &str, more: &str) {
    synth_of(folder, name, 1, more);
}

/// A tiny CLIP of as many blocks in either tower.
pub(crate) fn synth_of(folder: &TempDir, name: &str, blocks: usize, more: &str) {
    let line = format!(
        "-q synth --family clip --blocks {blocks} --width 16 --attention-heads 2 --text-blocks {blocks} --text-width 16 \
         --text-attention-heads 2 --joint-width 8 --image-size 32 --patch-size 8 --text-len 16 --deviation 0.2 \
         {more} {{}}/{name}"
    );
    ok(run(&line, folder));
}

fn evaluate(folder: &TempDir, checkpoint: &str, task: &str, more: &str) -> Said {
    let line = format!(
        "-q evaluate {{}}/{checkpoint} --task {task} --data {{}} --dataset toy --split val --tokenizer {TOKENIZER} \
         --json {more}"
    );
    run(&line, folder)
}

/// The numbers of the first result, by name.
fn number(said: &serde_json::Value, name: &str) -> f64 {
    let numbers = said["results"][0]["measurements"]
        .as_array()
        .expect("numbers");
    let found = numbers.iter().find(|number| number["name"] == name);
    let value = found.unwrap_or_else(|| panic!("no {name}"))["value"].as_f64();
    value.expect("a number")
}

#[test]
fn a_classifier_of_class_texts_says_what_zero_shot_classification_says() {
    let folder = TempDir::new().expect("a folder");
    folders(&folder);
    synth(&folder, "clip.safetensors", "");
    let said = evaluate(
        &folder,
        "clip.safetensors",
        "zero_shot_classes",
        "--predictions {}/zero",
    );
    let zero = ok(said).json();
    assert_eq!(zero["results"][0]["counts"]["templates"], 2);
    assert_eq!(zero["results"][0]["counts"]["classes"], 3);
    // The model knows five classes at most.
    assert_eq!(number(&zero, "top5"), 1.0);
    let calibration = number(&zero, "calibration_error");
    assert!((0.0..=1.0).contains(&calibration));
    let line = format!(
        "-q classifier {{}}/clip.safetensors {{}}/start.safetensors --data {{}} --dataset toy --split train \
         --tokenizer {TOKENIZER}"
    );
    ok(run(&line, &folder));
    let said = evaluate(
        &folder,
        "start.safetensors",
        "linear_probe",
        "--predictions {}/head",
    );
    let head = ok(said).json();
    assert_eq!(number(&head, "top1"), number(&zero, "top1"));
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("predictions");
    assert_eq!(read("zero/clip.val.csv"), read("head/start.val.csv"));
    // Fine-tuned, the head stays.
    std::fs::write(
        folder.path().join("recipe.yaml"),
        format!(
            "init: {{ checkpoint: {0}/start.safetensors }}\n\
             data: {{ format: folders, folder: {0}, train: [{{ dataset: toy, split: train }}] }}\n\
             augmentation: square\n\
             objectives: [{{ name: image_classification }}]\n\
             optim: {{ flavor: torch, lr: 1e-2, trainable: [vision_model, visual_projection] }}\n\
             length: {{ steps: 12 }}\nbatch_size: 3\n",
            folder.path().display()
        ),
    )
    .expect("written");
    ok(run("-q pretrain {}/recipe.yaml --out {}/run", &folder));
    let before = fixtures::tensors(&folder.path().join("start.safetensors"));
    let after = fixtures::tensors(&folder.path().join("run/model.safetensors"));
    for (key, tensor) in &before {
        let is_learned = key.starts_with("vision_model.") || key.starts_with("visual_projection");
        let is_same = after[key].values() == tensor.values();
        assert_eq!(is_same, !is_learned, "{key}");
    }
    assert_eq!(before.len(), after.len());
}

#[test]
fn both_spellings_of_a_model_are_measured_alike_and_so_are_their_merges() {
    let folder = TempDir::new().expect("a folder");
    folders(&folder);
    synth(&folder, "one.safetensors", "--seed 1");
    synth(&folder, "two.safetensors", "--seed 2");
    ok(run(
        "-q convert {}/two.safetensors {}/open/ --to open-clip",
        &folder,
    ));
    assert!(folder.path().join("open/open_clip_config.json").is_file());
    let measured = |name: &str| {
        let said = ok(evaluate(&folder, name, "zero_shot_classes", "")).json();
        number(&said, "calibration_error")
    };
    let (plain, open) = (
        measured("two.safetensors"),
        measured("open/open_clip_model.safetensors"),
    );
    assert!((plain - open).abs() < 1e-6, "{plain} {open}");
    for (name, second) in [("hf", "two.safetensors"), ("mixed", "open")] {
        let recipe = format!(
            "merge_method: ties\nmodels:\n- {{ model: {0}/{second}, parameters: {{ weight: 1.0 }} }}\n\
             base_model: {0}/one.safetensors\nparameters: {{ density: 0.5 }}\n",
            folder.path().display()
        );
        std::fs::write(folder.path().join(format!("{name}.yaml")), recipe).expect("written");
        let line = format!("-q merge {{}}/{name}.yaml --out {{}}/{name}.safetensors");
        ok(run(&line, &folder));
    }
    let tensors = |name: &str| fixtures::tensors(&folder.path().join(name));
    let (hf, mixed) = (tensors("hf.safetensors"), tensors("mixed.safetensors"));
    assert_eq!(hf.len(), mixed.len());
    for (key, tensor) in &hf {
        assert_eq!(tensor.values(), mixed[key].values(), "{key}");
    }
    // A recipe is measured without being written, too, and its model says its own activation.
    let more = "--merge {}/mixed.yaml";
    let both = ok(evaluate(
        &folder,
        "hf.safetensors",
        "zero_shot_classes",
        more,
    ))
    .json();
    let results = both["results"].as_array().expect("results");
    assert_eq!(results.len(), 2);
    assert_eq!(results[0]["measurements"], results[1]["measurements"]);
}

#[test]
fn a_model_of_which_nothing_tells_the_activation_is_refused_with_the_way_on() {
    let folder = TempDir::new().expect("a folder");
    folders(&folder);
    let bare = folder.path().join("bare.safetensors");
    std::fs::copy("fixtures/clip/hf_clip/model.safetensors", bare).expect("copied");
    let said = evaluate(&folder, "bare.safetensors", "zero_shot_classes", "");
    assert_ne!(said.code, Some(0));
    assert!(said.stderr.contains("--image-heads"), "{}", said.stderr);
    let heads = "--image-heads 4 --text-heads 4";
    let said = evaluate(&folder, "bare.safetensors", "zero_shot_classes", heads);
    assert!(said.stderr.contains("--activation"), "{}", said.stderr);
    // Once all facts are given, the error names the other vocabulary alone.
    let all = format!("{heads} --activation quick-gelu");
    let said = evaluate(&folder, "bare.safetensors", "zero_shot_classes", &all);
    assert!(said.stderr.contains("49408"), "{}", said.stderr);
}

#[test]
fn grams_of_every_layer_are_summed_and_merged_by() {
    let folder = TempDir::new().expect("a folder");
    folders(&folder);
    synth(&folder, "one.safetensors", "--seed 1");
    synth(&folder, "two.safetensors", "--seed 2");
    ok(run(
        "-q convert {}/two.safetensors {}/open.safetensors --to open-clip",
        &folder,
    ));
    for name in ["one", "two", "open"] {
        let line = format!(
            "-q gram --checkpoint {{}}/{name}.safetensors --shared --task zero_shot_classes --data {{}} --dataset toy --split train \
             --tokenizer {TOKENIZER} --out {{}}/{name}.gram.safetensors"
        );
        ok(run(&line, &folder));
    }
    let tensors = |name: &str| fixtures::tensors(&folder.path().join(name));
    let (two, open) = (
        tensors("two.gram.safetensors"),
        tensors("open.gram.safetensors"),
    );
    // Queries, keys and values share one: four of a block, and the projections.
    assert_eq!(two.len(), 10);
    assert_eq!(
        two.keys().collect::<Vec<_>>(),
        open.keys().collect::<Vec<_>>()
    );
    for second in ["two", "open"] {
        let recipe = format!(
            "merge_method: regmean\nparameters: {{ shrink: 0.9 }}\nmodels:\n\
             - {{ model: {0}/one.safetensors, parameters: {{ grams: {0}/one.gram.safetensors }} }}\n\
             - {{ model: {0}/{second}.safetensors, parameters: {{ grams: {0}/{second}.gram.safetensors }} }}\n",
            folder.path().display()
        );
        std::fs::write(folder.path().join(format!("{second}.yaml")), recipe).expect("written");
        let line = format!("-q merge {{}}/{second}.yaml --out {{}}/merged-{second}.safetensors");
        ok(run(&line, &folder));
    }
    let (two, open) = (
        tensors("merged-two.safetensors"),
        tensors("merged-open.safetensors"),
    );
    for (key, tensor) in &two {
        let difference =
            fixtures::first_difference(&tensor.values(), &open[key].values(), 1e-4, 1e-5);
        assert_eq!(difference, None, "{key}");
    }
}

#[test]
fn the_pooling_head_of_a_siglip_is_merged_by_the_closed_form_and_a_missing_matrix_is_named() {
    const KV: &str = "vision_model.head.attention.kv";
    const PACKED: &str = "vision_model.head.attention.in_proj_weight";
    let folder = TempDir::new().expect("a folder");
    folders(&folder);
    for (name, seed) in [("one", 1), ("two", 2)] {
        ok(run(
            &format!(
                "-q synth --family siglip --blocks 1 --width 16 --attention-heads 2 --text-blocks 1 --text-width 16 \
                 --text-attention-heads 2 --image-size 32 --patch-size 8 --text-len 16 --vocabulary 49408 \
                 --deviation 0.2 --seed {seed} {{}}/{name}.safetensors"
            ),
            &folder,
        ));
        ok(run(
            &format!(
                "-q gram --checkpoint {{}}/{name}.safetensors --shared --task zero_shot_classes --data {{}} \
                 --dataset toy --split train --tokenizer {TOKENIZER} --out {{}}/{name}.gram.safetensors"
            ),
            &folder,
        ));
    }
    let path = |name: &str| folder.path().join(name);
    let recipe = format!(
        "merge_method: regmean\nparameters: {{ shrink: {SHRINK} }}\nmodels:\n\
         - {{ model: {0}/one.safetensors, parameters: {{ grams: {0}/one.gram.safetensors }} }}\n\
         - {{ model: {0}/two.safetensors, parameters: {{ grams: {0}/two.gram.safetensors }} }}\n",
        folder.path().display()
    );
    std::fs::write(path("regmean.yaml"), recipe).expect("written");
    ok(run(
        "-q merge {}/regmean.yaml --out {}/merged.safetensors",
        &folder,
    ));
    let file = |name: &str| open(path(name).to_str().expect("UTF-8"));
    let merged = values(&file("merged.safetensors"), PACKED);
    let (width, mut left, mut right) = (16, vec![0.0; merged.len()], vec![0.0; merged.len()]);
    let mut mean = vec![0.0; merged.len()];
    for name in ["one", "two"] {
        let store = GramStore::new(Arc::new(file(&format!("{name}.gram.safetensors"))));
        let gram = store.expect("matrices").read(KV).expect("it reads");
        let gram = gram.as_slice().expect("row by row");
        let own = values(&file(&format!("{name}.safetensors")), PACKED);
        for (sum, weight) in [(&mut left, &merged), (&mut right, &own)] {
            let terms = times_shrunk(weight, gram, width);
            sum.iter_mut()
                .zip(terms)
                .for_each(|(sum, term)| *sum += term);
        }
        mean.iter_mut()
            .zip(&own)
            .for_each(|(mean, own)| *mean += own / 2.0);
    }
    // Queries, the first rows, take the mean; keys and values solve `W Σ G̃ = Σ W G̃`.
    let (queries, rest) = (0..width * width, width * width..merged.len());
    let off = |one: &[f64], other: &[f64]| largest(one.iter().zip(other).map(|(a, b)| a - b));
    assert!(off(&merged[queries.clone()], &mean[queries]) < 1e-6);
    let scale = largest(right[rest.clone()].iter().copied());
    let error = off(&left[rest.clone()], &right[rest.clone()]);
    assert!(error <= 1e-5 * scale, "{error} of {scale}");
    assert!(off(&merged[rest.clone()], &mean[rest]) > 1e-3);

    let mut grams = fixtures::tensors(&path("one.gram.safetensors"));
    assert!(grams.remove(KV).is_some());
    fixtures::write(&path("one.gram.safetensors"), &grams);
    let said = run(
        "-q merge {}/regmean.yaml --out {}/again.safetensors",
        &folder,
    );
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains(KV), "{}", said.stderr);
}

#[test]
fn a_task_whose_published_recipe_is_of_another_family_names_a_recipe_of_this_one() {
    let folder = TempDir::new().expect("a folder");
    synth(&folder, "clip.safetensors", "");
    let line = format!(
        "finetune --task retrieval --init {{}}/clip.safetensors --data fixtures/arrow --tokenizer {TOKENIZER} --out {{}}/run \
         --set model.image_size=32"
    );
    let said = run(&line, &folder);
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    for words in [
        "`drop_path` means nothing to models of the family clip",
        "the published recipe that --task retrieval stands for sets it",
        "--recipe, such as docs/recipes/train/clip_itc.yaml",
    ] {
        assert!(said.stderr.contains(words), "no {words}: {}", said.stderr);
    }
    // A setting that the user gives is the user's.
    let said = run(&format!("{line} --set drop_path=0.2"), &folder);
    assert!(said.stderr.contains("leave it out"), "{}", said.stderr);
}

#[test]
fn a_gram_file_of_another_ending_comes_with_a_hint_that_the_verb_can_follow() {
    let folder = TempDir::new().expect("a folder");
    synth(&folder, "clip.safetensors", "");
    let line = format!(
        "gram --checkpoint {{}}/clip.safetensors --task retrieval --data fixtures/arrow --dataset coco --split test \
         --tokenizer {TOKENIZER} --out {{}}/x.st"
    );
    let said = run(&line, &folder);
    assert_ne!(said.code, Some(0));
    assert!(
        said.stderr.contains("end it in .safetensors"),
        "{}",
        said.stderr
    );
    assert!(
        !said.stderr.contains("name the container"),
        "{}",
        said.stderr
    );
}
