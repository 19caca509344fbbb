//! AdaMerging of two tiny CLIPs: the gradient, the fall of the entropy, and a recipe that merges by the learned coefficients.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use merge::progress::Silent;
use tempfile::TempDir;
use train::adamerging::{AdaJob, AdaMerging, AdaModel, Grain};
use train::recipe::TrainRecipe;

use crate::clip::{TOKENIZER, folders, synth};
use crate::program::{ok, run};

/// Half the distance of two points on which a slope is measured, and how far it may be off, of the largest slope.
const STEP: f64 = 1e-2;
const TOLERANCE: f64 = 2e-2;

/// A base, and two models that were fine-tuned from it on the same classes with other seeds.
fn models(folder: &TempDir) {
    folders(folder);
    synth(folder, "base.safetensors", "--seed 1");
    let line = format!(
        "-q classifier {{}}/base.safetensors {{}}/start.safetensors --data {{}} --dataset toy --split train --tokenizer \
         {TOKENIZER}"
    );
    ok(run(&line, folder));
    // Cosines of so few numbers lie far apart: times 100 their probabilities are 0 and 1.
    scaled(
        &folder.path().join("start.safetensors"),
        "classifier.weight",
        0.1,
    );
    for (name, seed, split) in [("one", 3, "train"), ("two", 4, "val")] {
        let yaml = format!(
            "init: {{ checkpoint: {0}/start.safetensors }}\n\
             data: {{ format: folders, folder: {0}, train: [{{ dataset: toy, split: {split} }}] }}\n\
             augmentation: square\nobjectives: [{{ name: image_classification }}]\n\
             optim: {{ flavor: torch, lr: 5e-3, trainable: [vision_model, visual_projection] }}\n\
             length: {{ steps: 8 }}\nbatch_size: 3\nseed: {seed}\n",
            folder.path().display()
        );
        std::fs::write(folder.path().join(format!("{name}.yaml")), yaml).expect("written");
        ok(run(
            &format!("-q pretrain {{}}/{name}.yaml --out {{}}/{name}"),
            folder,
        ));
    }
    let yaml = format!(
        "models:\n- {{ model: {0}/one/model.safetensors, data: {{ folder: {0}, dataset: toy, split: train }} }}\n\
         - {{ model: {0}/two/model.safetensors, data: {{ folder: {0}, dataset: toy, split: val }} }}\n",
        folder.path().display()
    );
    std::fs::write(folder.path().join("models.yaml"), yaml).expect("written");
}

/// Multiplies a tensor of a file, whose metadata stay.
fn scaled(path: &Path, key: &str, factor: f32) {
    let mut bytes = std::fs::read(path).expect("read");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let facts: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).expect("JSON");
    let offset = |index: usize| {
        facts[key]["data_offsets"][index]
            .as_u64()
            .expect("a number") as usize
    };
    for number in bytes[8 + header..][offset(0)..offset(1)].chunks_exact_mut(4) {
        let value = f32::from_le_bytes(number.try_into().expect("four bytes"));
        number.copy_from_slice(&(factor * value).to_le_bytes());
    }
    std::fs::write(path, bytes).expect("written");
}

fn learning<'a>(folder: &TempDir, grain: Grain) -> AdaMerging<'a> {
    let model = |name: &str, split: &str| {
        let path = folder.path().join(name).join("model.safetensors");
        let yaml = format!(
            "init: {{ checkpoint: {1} }}\n\
             data: {{ format: folders, folder: {0}, train: [{{ dataset: toy, split: {split} }}] }}\n\
             augmentation: square\nobjectives: [{{ name: entropy }}]\nlength: {{ steps: 1 }}\nbatch_size: 3\n",
            folder.path().display(),
            path.display()
        );
        let recipe = TrainRecipe::parse(&yaml, Path::new("test"), &[]).expect("a recipe");
        AdaModel { path, recipe }
    };
    AdaMerging::open(AdaJob {
        base: folder.path().join("base.safetensors"),
        models: vec![model("one", "train"), model("two", "val")],
        grain,
        start: 0.3,
        rate: 1e-2,
        n_steps: 5,
        device: Device::Cpu,
        progress: &Silent,
    })
    .expect("it opens")
}

#[test]
fn the_gradient_is_that_of_finite_differences_and_the_entropy_falls() {
    let folder = TempDir::new().expect("a folder");
    models(&folder);
    let mut of = learning(&folder, Grain::Tensor);
    let at = of.coefficients().to_vec();
    let slope = of.slope(0, &at).expect("a slope");
    let all: Vec<f64> = slope.gradient.concat();
    let most = all
        .iter()
        .fold(0.0, |most: f64, value| most.max(value.abs()));
    assert!(most > 1e-4, "{most}");
    // The steepest, some others, and all of a model together.
    let mut places: Vec<usize> = (0..all.len()).collect();
    places.sort_by(|&a, &b| all[b].abs().total_cmp(&all[a].abs()));
    let n = of.names().len();
    let entropy = |of: &mut AdaMerging<'_>, change: &dyn Fn(&mut Vec<Vec<f64>>)| {
        let mut moved = at.clone();
        change(&mut moved);
        of.slope(0, &moved).expect("a slope").entropy
    };
    for &place in places
        .iter()
        .take(4)
        .chain(places.iter().skip(9).step_by(11))
    {
        let (model, tensor) = (place / n, place % n);
        let [above, below] =
            [STEP, -STEP].map(|step| entropy(&mut of, &|moved| moved[model][tensor] += step));
        let found = (above - below) / (2.0 * STEP);
        assert!(
            (found - all[place]).abs() <= TOLERANCE * most,
            "{}: {found} {}",
            of.names()[tensor],
            all[place]
        );
    }
    let small = 2e-3;
    for model in 0..2 {
        let shift = |step: f64| {
            move |moved: &mut Vec<Vec<f64>>| moved[model].iter_mut().for_each(|own| *own += step)
        };
        let [above, below] = [small, -small].map(|step| entropy(&mut of, &shift(step)));
        let found = (above - below) / (2.0 * small);
        let expected: f64 = slope.gradient[model].iter().sum();
        assert!(
            (found - expected).abs() <= 0.05 * expected.abs().max(most),
            "{found} {expected}"
        );
    }
    // No gradient reaches the texts, so their coefficients stay.
    let entropies = of.learn().expect("learned");
    assert_eq!(entropies.len(), 5);
    assert!(entropies[4] < entropies[0], "{entropies:?}");
    for (name, coefficient) in of.names().iter().zip(&of.coefficients()[0]) {
        assert_eq!(
            *coefficient == 0.3,
            name.starts_with("text") || name == "logit_scale",
            "{name}"
        );
    }
    let mut of = learning(&folder, Grain::Model);
    of.learn().expect("learned");
    for own in of.coefficients() {
        assert!(own.iter().all(|value| *value == own[0]) && own[0] != 0.3);
    }
}

#[test]
fn a_recipe_merges_with_the_coefficients_that_were_learned() {
    let folder = TempDir::new().expect("a folder");
    models(&folder);
    for per in ["tensor", "model"] {
        let line = format!(
            "-q adamerging {{}}/models.yaml --base {{}}/base.safetensors --out {{}}/{per} --per {per} --steps 6 --rate 0.01 \
             --batch-size 3 --json"
        );
        let said = ok(run(&line, &folder)).json();
        let entropy = |key: &str| said[key].as_f64().expect("a number");
        assert!(entropy("last_entropy") < entropy("first_entropy"));
        ok(run(
            &format!("-q merge {{}}/{per}/recipe.yaml --out {{}}/{per}.safetensors"),
            &folder,
        ));
    }
    // The same coefficients from the library, and the sum by hand.
    let mut of = learning(&folder, Grain::Tensor);
    let mut at = of.coefficients().to_vec();
    assert_eq!(at[0][0], 0.3);
    of.learn().expect("learned");
    at.clone_from_slice(of.coefficients());
    let yaml = of.recipe().to_yaml().expect("YAML");
    std::fs::write(folder.path().join("own.yaml"), yaml).expect("written");
    ok(run(
        "-q merge {}/own.yaml --out {}/own.safetensors",
        &folder,
    ));
    let read = |name: &str| -> BTreeMap<String, Vec<f64>> {
        let tensors = fixtures::tensors(&folder.path().join(name)).into_iter();
        tensors.map(|(name, raw)| (name, raw.values())).collect()
    };
    let (merged, base) = (read("own.safetensors"), read("base.safetensors"));
    let models = ["one/model.safetensors", "two/model.safetensors"].map(read);
    assert!(!merged.contains_key("classifier.weight"));
    let mut n_moved = 0;
    for (index, name) in of.names().iter().enumerate() {
        for (element, found) in merged[name].iter().enumerate() {
            let base = base[name][element];
            let expected = base
                + at[0][index] * (models[0][name][element] - base)
                + at[1][index] * (models[1][name][element] - base);
            assert!(
                (found - expected).abs() <= 1e-6 * expected.abs().max(1e-3),
                "{name}: {found} {expected}"
            );
            n_moved += usize::from(*found != base);
        }
    }
    assert!(n_moved > 100, "{n_moved}");
    let again = run(
        "-q adamerging {}/models.yaml --base {}/base.safetensors --out {}/model",
        &folder,
    );
    assert_eq!(again.code, Some(2));
    assert!(again.stderr.contains("--force"), "{}", again.stderr);
    let yaml = format!(
        "models:\n- {{ model: {0}/base.safetensors, data: {{ folder: {0}, dataset: toy, split: train }} }}\n\
         - {{ model: {0}/base.safetensors, data: {{ folder: {0}, dataset: toy, split: val }} }}\n",
        folder.path().display()
    );
    std::fs::write(folder.path().join("bare.yaml"), yaml).expect("written");
    let bare = run(
        "-q adamerging {}/bare.yaml --base {}/base.safetensors --out {}/bare",
        &folder,
    );
    assert!(
        bare.stderr
            .contains("`classifier.weight` is not in the checkpoint"),
        "{}",
        bare.stderr
    );
}
