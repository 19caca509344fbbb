//! `vlmerge forward` from the command line against every tensor and gradient that the published programs
//! recorded, case by case of the manifests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fixtures::{Case, Raw, Set, first_difference, number, tensors};
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{Said, ok, vlmerge};

/// A case with its weights, and the words that say what these do not tell.
struct Model {
    case: Case,
    weights: PathBuf,
    words: Vec<String>,
    folder: TempDir,
}

/// The outcome of a run.
struct Ran {
    outputs: BTreeMap<String, Raw>,
    gradients: BTreeMap<String, Raw>,
    said: Value,
}

impl Model {
    fn new(case: Case, weights: impl FnOnce(&Case, &Path) -> PathBuf, words: Vec<String>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let weights = weights(&case, folder.path());
        Self {
            case,
            weights,
            words,
            folder,
        }
    }

    /// Runs every pass with all that is hidden, and a loss with its gradients, on inputs of the case.
    fn run(&self, inputs: &Path, loss: Option<&[String]>) -> Ran {
        let place = |name: &str| self.folder.path().join(name).display().to_string();
        let (out, gradients) = (place("out.safetensors"), place("gradients.safetensors"));
        let mut words = vec!["forward".to_owned(), self.weights.display().to_string()];
        words.extend(self.words.iter().cloned());
        words.extend(["--inputs".to_owned(), inputs.display().to_string()]);
        words.extend(["--out", &out, "--hidden", "--force", "--json"].map(str::to_owned));
        if let Some(loss) = loss {
            words.extend([
                "--gradients".to_owned(),
                gradients.clone(),
                "--loss".to_owned(),
            ]);
            words.extend(loss.iter().cloned());
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let said: Said = ok(vlmerge(&words));
        Ran {
            outputs: tensors(Path::new(&out)),
            gradients: match loss {
                Some(_) => tensors(Path::new(&gradients)),
                None => BTreeMap::new(),
            },
            said: said.json(),
        }
    }

    fn check_outputs(&self, found: &BTreeMap<String, Raw>) {
        self.check_all(found, &self.case.tensors("expected"));
    }

    fn check_all(&self, found: &BTreeMap<String, Raw>, expected: &BTreeMap<String, Raw>) {
        let (rtol, atol) = (
            self.case.tolerance("", "rtol"),
            self.case.tolerance("", "atol"),
        );
        assert!(!expected.is_empty(), "a comparison");
        for (name, expected) in expected {
            let found = found.get(name).unwrap_or_else(|| panic!("no {name}"));
            assert_eq!(found.shape, expected.shape, "{name}");
            let differs = first_difference(&found.values(), &expected.values(), rtol, atol);
            assert_eq!(differs, None, "{name} of {}", self.case.id());
        }
    }

    /// Compares gradients tensor by tensor by L2; those far below the largest, absolutely.
    fn check_gradients(&self, found: &BTreeMap<String, Raw>, rel_l2: f64, floor: f64) {
        let expected = self
            .case
            .tensors(match self.case.file_if_any("expected_grads") {
                Some(_) => "expected_grads",
                None => "expected",
            });
        let largest = expected.values().map(|raw| l2(raw.values()));
        let least = floor * largest.fold(0.0, f64::max);
        assert!(least > 0.0, "a comparison");
        for (name, expected) in &expected {
            let found = found.get(name);
            let found = found
                .unwrap_or_else(|| panic!("no gradient of {name}"))
                .values();
            let expected = expected.values();
            assert_eq!(found.len(), expected.len(), "{name}");
            let off = l2(found.iter().zip(&expected).map(|(a, b)| a - b).collect());
            let within = (rel_l2 * l2(expected)).max(least);
            assert!(off <= within, "{name} of {}: {off}", self.case.id());
        }
    }
}

fn l2(values: Vec<f64>) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn words(pairs: &[(&str, Option<String>)]) -> Vec<String> {
    let given = pairs
        .iter()
        .filter_map(|(flag, value)| Some((*flag, value.clone()?)));
    given
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
}

/// Facts that the tensors of a model of vl-merging do not tell.
fn multiway(case: &Case) -> Vec<String> {
    let config = case.set().config();
    let size = |name: &str| config[name].as_u64().map(|size| size.to_string());
    let mut words = words(&[
        ("--heads", size("num_heads")),
        ("--fusion-start", size("vlffn_start_layer_index")),
        ("--text-table-len", size("max_text_len_of_initckpt")),
    ]);
    if case["arch"] == "plain" {
        words.extend(["--shallow-attention", "joint"].map(str::to_owned));
    }
    words
}

/// The weights of a case: a file, or `A + B tensors from C`, where A is what a merge of C gives: then a
/// recipe of that merge.
fn weights(case: &Case, folder: &Path) -> PathBuf {
    let Some((merged, _)) = case.text("weights").split_once(" + ") else {
        return case.file("weights");
    };
    let merges = case.set().all_cases();
    let merge = merges.iter().find(|case| case["expected"] == merged);
    let merge = merge.unwrap_or_else(|| panic!("no case gives {merged}"));
    let yaml = format!(
        "merge_method: {}\nmodels: [{{ model: {:?} }}]\nparameters: {{ ratio: {} }}\n",
        merge.text("op"),
        merge.file("input"),
        merge.number("ratio").expect("a ratio"),
    );
    let path = folder.join("merge.yaml");
    std::fs::write(&path, yaml).expect("written");
    path
}

#[test]
fn golden_outputs_of_vl_merging_come_out_of_the_program() {
    for case in Set::open("vl_merging").cases("forward") {
        let model = Model::new(case.clone(), weights, multiway(&case));
        let ran = model.run(&case.file("inputs"), None);
        model.check_outputs(&ran.outputs);
        assert_eq!(ran.said["notes"], serde_json::json!([]), "{}", case.id());
    }
}

#[test]
fn golden_gradients_of_vl_merging_come_out_of_the_program() {
    for case in Set::open("vl_merging").cases("gradient") {
        let model = Model::new(case.clone(), weights, multiway(&case));
        let ran = model.run(&case.file("inputs"), Some(&[case.text("loss").to_owned()]));
        // The floor stands in the manifest in words.
        let rel_l2 = case.tolerance("", "rel_l2_per_tensor");
        model.check_gradients(&ran.gradients, rel_l2, 1e-6);
    }
}

/// Facts that the tensors of a ZeroVL do not tell.
fn zerovl(case: &Case) -> Vec<String> {
    let config = case.set().config();
    let heads = |tower: &str| config[tower]["heads"].as_u64().map(|n| n.to_string());
    let is_constant = case["params"]["learned"] == false;
    let temperature = case.number("temperature").filter(|_| is_constant);
    words(&[
        ("--image-heads", heads("vision")),
        ("--text-heads", heads("text")),
        ("--temperature", temperature.map(|value| value.to_string())),
    ])
}

/// The model of a case: one with a constant temperature lacks the parameter.
fn zerovl_weights(case: &Case, folder: &Path) -> PathBuf {
    let mut tensors = case.tensors("model");
    if case["params"]["learned"] == false {
        tensors.remove("loss.temperature").expect("a temperature");
    }
    let path = folder.join("model.safetensors");
    fixtures::write(&path, &tensors);
    path
}

/// The loss of a case in words. On several ranks a pair's partner is one of the same rank, and in parts
/// one of the same part; the gradients, averaged, are those of the batch at once.
fn loss(case: &Case) -> Vec<String> {
    let mut settings = Vec::new();
    let ranks = case.count("ranks").expect("ranks");
    let n = case.tensors("input")["image"].shape[0];
    let mut loss = match case.number("alpha") {
        None => vec!["nce".to_owned()],
        Some(alpha) => {
            let block = case.count("micro_batch").unwrap_or(n / ranks);
            settings.push(format!("block: {block}"));
            let side = case.param("mixed").expect("a side");
            let mix = format!("{side}:{alpha}");
            vec!["mixup".to_owned(), "--mix".to_owned(), mix]
        }
    };
    if let Some(gathers) = case["params"]["gather_backward"].as_bool() {
        settings.push(format!("gather_backward: {gathers}"));
    }
    if !settings.is_empty() {
        let settings = format!("{{{}}}", settings.join(", "));
        loss.extend(["--contrast".to_owned(), settings]);
    }
    loss
}

#[test]
fn golden_outputs_of_zerovl_come_out_of_the_program() {
    for case in Set::open("zerovl").cases("forward") {
        let model = Model::new(case.clone(), zerovl_weights, zerovl(&case));
        let ran = model.run(&case.file("input"), None);
        model.check_outputs(&ran.outputs);
    }
}

#[test]
fn golden_gradients_of_zerovl_come_out_of_the_program() {
    let set = Set::open("zerovl");
    let mut n_compared = 0;
    for case in [set.cases("loss_grad"), set.cases("dga")].concat() {
        if case["params"]["dropout"].is_number() {
            // Masks are no input of the program.
            continue;
        }
        let model = Model::new(case.clone(), zerovl_weights, zerovl(&case));
        let ran = model.run(&case.file("input"), Some(&loss(&case)));
        let expected = &case.json("expected")[case.text("key")];
        let is_whole = case.count("ranks") == Some(1) && case["op"] == "loss_grad";
        if is_whole {
            let (found, expected) = (&ran.said["loss"]["value"], number(&expected["loss"]));
            let within =
                case.tolerance("loss", "atol") + case.tolerance("loss", "rtol") * expected.abs();
            assert!((number(found) - expected).abs() <= within, "{}", case.id());
        }
        let (rel_l2, floor) = (
            case.tolerance("grad", "rel_l2"),
            case.tolerance("grad", "atol_norm"),
        );
        if case.file_if_any("expected_grads").is_some() {
            model.check_gradients(&ran.gradients, rel_l2, floor);
            n_compared += 1;
            continue;
        }
        // Norms alone; frozen variables of the case have none.
        let norms = expected["grad_norms"].as_object().expect("norms");
        let norms = norms
            .iter()
            .filter_map(|(name, norm)| Some((name, norm.as_f64()?)));
        let norms: Vec<(&String, f64)> = norms.collect();
        let least = floor * norms.iter().map(|(_, norm)| *norm).fold(0.0, f64::max);
        for (name, norm) in norms {
            let off = (l2(ran.gradients[name].values()) - norm).abs();
            assert!(
                off <= (rel_l2 * norm).max(least),
                "{name} of {}: {off}",
                case.id()
            );
        }
    }
    assert!(n_compared > 0, "a comparison of whole gradients");
}

#[test]
fn a_loss_refuses_options_that_it_does_not_read_and_names_those_that_it_needs() {
    let mut cases = Set::open("zerovl").cases("forward");
    let case = cases.remove(0);
    let model = Model::new(case.clone(), zerovl_weights, zerovl(&case));
    let refused = |loss: &[&str]| {
        let weights = model.weights.display().to_string();
        let inputs = case.file("input").display().to_string();
        let mut words = vec!["forward", &weights, "--inputs", &inputs, "--loss"];
        words.extend(loss);
        words.extend(model.words.iter().map(String::as_str));
        let said = vlmerge(&words);
        assert_ne!(said.code, Some(0), "{}", said.stdout);
        said.stderr
    };
    let said = refused(&["mixup"]);
    assert!(said.contains("`mixup` needs a share and a side"), "{said}");
    let said = refused(&["nce", "--mix", "image:0.3"]);
    assert!(said.contains("`nce` mixes nothing"), "{said}");
    let said = refused(&["nce", "--mix", "image:1.5"]);
    assert!(said.contains("no share from 0 to 1"), "{said}");
    let said = refused(&["mixup", "--mix", "text:0.5", "--contrast", "{block: 3}"]);
    assert!(said.contains("no multiple of 3"), "{said}");
    let said = refused(&["nce", "--contrast", "{blok: 4}"]);
    assert!(said.contains("blok"), "{said}");
    let said = refused(&["linear_probe"]);
    assert!(said.contains("`label`"), "{said}");
}

/// Facts that the configuration of a CLIP or SigLIP does not tell, of an image tower of timm with a made-up name; and the pass
/// of the case.
fn clip(case: &Case, pass: Option<&str>) -> Vec<String> {
    let config = case
        .set()
        .path(case.text("model"))
        .join("open_clip_config.json");
    let is_of_timm =
        std::fs::read_to_string(config).is_ok_and(|text| text.contains("timm_model_name"));
    let heads = case.set().config()["siglip"]["heads"]
        .as_u64()
        .filter(|_| is_of_timm);
    words(&[
        ("--pass", pass.map(str::to_owned)),
        ("--image-heads", heads.map(|heads| heads.to_string())),
        ("--activation", is_of_timm.then(|| "gelu-tanh".to_owned())),
    ])
}

fn clip_pass(case: &Case) -> String {
    let ids = case.param("input_ids");
    let ids = ids.and_then(|ids| ids.strip_prefix("input_ids_"));
    let is_masked = case["params"]["attention_mask"] == true;
    match (ids, is_masked) {
        (None, false) => "unmasked".to_owned(),
        (None, true) => "masked".to_owned(),
        (Some(ids), false) => ids.to_owned(),
        (Some(ids), true) => format!("{ids}_masked"),
    }
}

#[test]
fn golden_outputs_of_clip_come_out_of_the_program() {
    for case in Set::open("clip").cases("forward") {
        // Of a model with another activation, which `evaluate` tests; and of texts that are filled up otherwise.
        let expected = case.tensors("expected").into_iter();
        let expected = expected.filter(|(name, _)| !name.ends_with("_erf"));
        let (others, own): (BTreeMap<_, _>, BTreeMap<_, _>) =
            expected.partition(|(name, _)| name.ends_with("_pad_eot"));
        let folder = |case: &Case, _: &Path| case.set().path(case.text("model"));
        let model = Model::new(case.clone(), folder, clip(&case, Some(&clip_pass(&case))));
        model.check_all(&model.run(&case.file("input"), None).outputs, &own);
        if !others.is_empty() {
            let plain = |name: String| name.trim_end_matches("_pad_eot").to_owned();
            let others = others.into_iter().map(|(name, raw)| (plain(name), raw));
            let model = Model::new(case.clone(), folder, clip(&case, Some("pad_eot")));
            model.check_all(
                &model.run(&case.file("input"), None).outputs,
                &others.collect(),
            );
        }
    }
}

#[test]
fn golden_gradients_of_clip_come_out_of_the_program() {
    for case in Set::open("clip").cases("loss_grad") {
        let folder = |case: &Case, _: &Path| case.set().path(case.text("model"));
        let model = Model::new(case.clone(), folder, clip(&case, None));
        let loss = case.param("loss").expect("a loss").to_owned();
        let ran = model.run(&case.file("input"), Some(&[loss]));
        let expected = &case.json("expected")[case.text("key")];
        let (found, expected) = (
            number(&ran.said["loss"]["value"]),
            number(&expected["loss"]),
        );
        let within =
            case.tolerance("loss", "atol") + case.tolerance("loss", "rtol") * expected.abs();
        assert!((found - expected).abs() <= within, "{}: {found}", case.id());
        let (rel_l2, floor) = (
            case.tolerance("grad", "rel_l2"),
            case.tolerance("grad", "atol_norm"),
        );
        model.check_gradients(&ran.gradients, rel_l2, floor);
    }
}

/// Facts that the tensors of an EVE do not tell.
fn eve(case: &Case) -> Vec<String> {
    let config = case.set().config();
    let size = |name: &str| config[name].as_u64().map(|size| size.to_string());
    let routing = case.param("capacity").filter(|room| *room == "upstream");
    words(&[
        ("--heads", size("num_heads")),
        ("--pair-len", size("pairs_max_tokens")),
        ("--routing", routing.map(|_| "as-published".to_owned())),
    ])
}

/// The tensors of a loss: those of the case, its negatives, and the noise of its routers if it has any.
fn eve_inputs(case: &Case, folder: &Path) -> PathBuf {
    let mut tensors = case.tensors("inputs");
    let task = case.param("task").expect("a task");
    let noise = format!("legacy.{task}.noise.");
    for (name, raw) in case.tensors("extra_inputs") {
        if let Some(name) = name.strip_prefix("neg.") {
            tensors.insert(name.to_owned(), raw);
        } else if let (Some(name), Some("fed")) = (name.strip_prefix(&noise), case.param("noise")) {
            tensors.insert(format!("noise.{name}"), raw);
        }
    }
    let path = folder.join("inputs.safetensors");
    fixtures::write(&path, &tensors);
    path
}

#[test]
fn golden_losses_and_gradients_of_eve_come_out_of_the_program() {
    for case in Set::open("eve").cases("gradient") {
        let model = Model::new(case.clone(), |case, _| case.file("weights"), eve(&case));
        let place = |name: &str| model.folder.path().join(name).display().to_string();
        let gradients = place("gradients.safetensors");
        let task = case.param("task").expect("a task");
        let weights = model.weights.display().to_string();
        let inputs = eve_inputs(&case, model.folder.path()).display().to_string();
        let mut words = vec!["forward", &weights, "--inputs", &inputs, "--loss", task];
        words.extend(["--gradients", &gradients, "--json"]);
        words.extend(model.words.iter().map(String::as_str));
        let said = ok(vlmerge(&words)).json();
        let manifest = case.set().json("manifest.json");
        let of = |kind: &str, name: &str| number(&manifest["tolerances"][kind][name]);
        let way = if case.param("noise") == Some("fed") {
            "legacy"
        } else {
            "plain"
        };
        let losses = case.set().json("grad/losses.json");
        let exact = number(&losses["losses"][way][task][case.text("loss")]);
        let found = number(&said["loss"]["value"]);
        let within = of("loss", "rel") * exact.abs() + of("loss", "abs");
        assert!((found - exact).abs() <= within, "{}: {found}", case.id());
        // The floor stands in the manifest in words.
        let rel_l2 = of("gradient", "rel_l2_per_tensor");
        model.check_gradients(&tensors(Path::new(&gradients)), rel_l2, 1e-6);
    }
}

/// The weights of a case with a head that guesses tokens of the fixtures' tokenizer of images.
fn with_image_tokens(case: &Case, folder: &Path) -> PathBuf {
    let mut weights = fixtures::tensors(&case.file("weights"));
    let mask = weights["transformer.mask_token"].clone();
    let tokenizer = fixtures::tensors(&fixtures::path("dvae/model.safetensors"));
    let n = tokenizer["d_vae.encoder.blocks.output.conv.b"].shape[0];
    let d = mask.bytes.len() / 4;
    for (key, shape) in [
        ("mim_score.weight", vec![n, d]),
        ("mim_score.bias", vec![n]),
    ] {
        let values = (0..shape.iter().product()).map(|at: usize| (at as f32 * 0.73).sin() * 0.1);
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        let head = Raw {
            shape,
            bytes,
            ..mask.clone()
        };
        weights.insert(key.into(), head);
    }
    let path = folder.join("guessing.safetensors");
    fixtures::write(&path, &weights);
    path
}

#[test]
fn tokens_of_masked_patches_are_guessed_on_given_tensors() {
    let mut cases = Set::of_repository("vl_merging").cases("forward");
    let case = cases.remove(0);
    let model = Model::new(case.clone(), with_image_tokens, multiway(&case));
    let mut inputs = case.tensors("inputs");
    // The tokenizer of the fixtures gives a token for 8 x 8 pixels.
    let patches = inputs["bool_masked_pos"].shape[1].isqrt();
    let n = inputs["image"].shape[0];
    let side = 8 * patches;
    let values: Vec<f32> = (0..n * 3 * side * side)
        .map(|at| ((at as f32) * 0.37).sin() * 0.3)
        .collect();
    let bytes = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let target = Raw {
        shape: vec![n, 3, side, side],
        bytes,
        ..inputs["image"].clone()
    };
    inputs.insert("target_image".into(), target);
    let path = model.folder.path().join("inputs.safetensors");
    fixtures::write(&path, &inputs);
    let tokenizer = fixtures::path("dvae/model.safetensors")
        .display()
        .to_string();
    let last = format!("transformer.blocks.{}.", 0);
    for name in ["mim", "image_mim"] {
        let loss = [name, "--image-tokenizer", &tokenizer].map(str::to_owned);
        let ran = model.run(&path, Some(&loss));
        let value = number(&ran.said["loss"]["value"]);
        assert!(value.is_finite() && value > 0.0, "{name}: {value}");
        for key in ["mim_score.weight", "transformer.mask_token"] {
            assert!(l2(ran.gradients[key].values()) > 0.0, "{name}: {key}");
        }
        // Without the text in sight nothing reaches its embedding.
        let reaches_text = ran
            .gradients
            .keys()
            .any(|key| key.starts_with("text_embeddings"));
        assert_eq!(reaches_text, name == "mim");
        assert!(
            ran.gradients.keys().any(|key| key.starts_with(&last)),
            "{name}"
        );
    }
}
