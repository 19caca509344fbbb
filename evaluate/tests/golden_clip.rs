//! CLIP and SigLIP: forward passes in every spelling, pooled rows, images of another size, and zero-shot classification,
//! case by case of `fixtures/clip/manifest.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use evaluate::batch::{Images, Texts};
use evaluate::metrics::retrieval::Ties;
use evaluate::metrics::zero_shot::{of_templates, sample};
use evaluate::models::clip::pooled_rows;
use evaluate::models::{self, Branch, Opened, Overrides, image_features, text_features};
use evaluate::nn::Pass;
use evaluate::tasks::Similarities;
use fixtures::{Case, Set, number};
use merge::convert::{Conversion, Resize};
use merge::execute::RunOptions;
use merge::layouts::{ClipActivation, ClipConfig};
use merge::progress::Silent;
use serde_json::{Value, json};

use crate::fixture::value;
use crate::golden::forward::{assert_close, outputs_of};
use crate::golden::models::open as checkpoint;

fixtures::golden_tests! {
    package: "evaluate", set: "clip",
    forward_passes_are_those_of_the_published_libraries: "forward" => forward,
    texts_are_pooled_at_the_published_row: "text_pooling" => text_pooling,
    images_of_another_size_give_what_transformers_gives: "forward_resized" => forward_resized,
    zero_shot_classification_is_that_of_open_clip: "zero_shot" => zero_shot,
}

/// The heads and the activation of an image tower of timm with an invented name: the set's sizes name them, the folder of
/// the model does not.
fn overrides(set: &Set, folder: &Path) -> Overrides {
    let config = folder.join("open_clip_config.json");
    let Ok(text) = std::fs::read_to_string(config) else {
        return Overrides::default();
    };
    let config: Value = serde_json::from_str(&text).expect("JSON");
    if config["model_cfg"]["vision_cfg"]["timm_model_name"].is_null() {
        return Overrides::default();
    }
    let sizes = set.config();
    let heads = sizes["siglip"]["heads"].as_u64();
    assert_eq!(sizes["siglip"]["activation"], "gelu tanh");
    Overrides {
        image_heads: heads.map(|heads| heads as usize),
        activation: Some(ClipActivation::GeluTanh),
        ..Overrides::default()
    }
}

fn opened(folder: &Path, overrides: &Overrides) -> Opened {
    let opened = models::open(checkpoint(folder), overrides, &Device::Cpu, DType::F32);
    opened.expect("a model")
}

fn run(opened: &Opened, inputs: &Path, pass: &str) -> BTreeMap<String, Tensor> {
    let inputs = checkpoint(inputs);
    outputs_of(opened.model.as_ref(), &inputs, &[pass.to_owned()])
}

/// The pass of a case by its parameters: which ids, and whether padding is hidden.
fn pass(case: &Case) -> String {
    let ids = case.param("input_ids");
    let padded = ids.and_then(|ids| ids.strip_prefix("input_ids_"));
    match (padded, case["params"]["attention_mask"].as_bool()) {
        (None, Some(true)) => "masked".to_owned(),
        (None, _) => "unmasked".to_owned(),
        (Some(padded), Some(true)) => format!("{padded}_masked"),
        (Some(padded), _) => padded.to_owned(),
    }
}

fn forward(case: &Case) {
    let folder = case.set().path(case.text("model"));
    let overrides = overrides(case.set(), &folder);
    let model = opened(&folder, &overrides);
    let inputs = case.file("input");
    let found = run(&model, &inputs, &pass(case));
    let expected = case.tensors("expected");
    let is_of_erf = |name: &str| name.ends_with("_erf");
    let of_end = "_pad_eot";
    for (name, expected) in &expected {
        match (is_of_erf(name), name.strip_suffix(of_end)) {
            (true, _) => {}
            (false, None) => {
                let found = found.get(name).unwrap_or_else(|| panic!("no {name}"));
                assert_close(case, "", name, found, expected);
            }
            (false, Some(plain)) => {
                let found = run(&model, &inputs, "pad_eot");
                assert_close(case, "", name, &found[plain], expected);
            }
        }
    }
    if expected.keys().any(|name| is_of_erf(name)) {
        let temporary = tempfile::tempdir().expect("a folder");
        let folder = with_erf(&folder, temporary.path());
        let overrides = Overrides {
            activation: Some(ClipActivation::Gelu),
            ..overrides
        };
        let found = run(&opened(&folder, &overrides), &inputs, &pass(case));
        for (name, expected) in &expected {
            if let Some(plain) = name.strip_suffix("_erf") {
                assert_close(case, "", name, &found[plain], expected);
            }
        }
    }
    let positions = &case["params"]["pooled_positions"];
    if let (Some(_), Some(ids)) = (positions.as_array(), case.param("input_ids")) {
        let ids = &case.tensors("input")[ids];
        let config = json_of(&folder.join("config.json"));
        let rule = ClipConfig::of_hugging_face(&config, None).facts.pooled;
        let numbers: Vec<u32> = ids.integers().into_iter().map(|id| id as u32).collect();
        let rows = pooled_rows(&numbers, ids.shape[1], rule.expect("a rule"));
        assert_eq!(rows, indices(positions));
    }
}

fn json_of(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("a file");
    serde_json::from_str(&text).expect("JSON")
}

fn indices(list: &Value) -> Vec<usize> {
    let numbers = fixtures::integers(list).into_iter();
    numbers.map(|number| number as usize).collect()
}

/// A copy of a model of open_clip whose text tower has GELU by the error function.
fn with_erf(folder: &Path, to: &Path) -> PathBuf {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
    }
    let path = to.join("open_clip_config.json");
    let mut config = json_of(&path);
    config["model_cfg"]["text_cfg"]["act_kwargs"] = json!({});
    // The file was copied with its rights, which may not allow to write.
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(&path, config.to_string()).expect("written");
    to.to_owned()
}

fn text_pooling(case: &Case) {
    let listed = case.json("expected");
    for row in fixtures::list(&listed) {
        let config = json!({
            "model_type": "clip",
            "text_config": { "eos_token_id": row["eos_token_id"] },
            "vision_config": {},
        });
        let rule = ClipConfig::of_hugging_face(&config, None).facts.pooled;
        let ids = fixtures::integers(&row["input_ids"]);
        let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
        let found = pooled_rows(&ids, ids.len(), rule.expect("a rule"));
        assert_eq!(found, [number(&row["pooled_position"]) as usize], "{row}");
    }
}

/// As transformers resizes positions when it runs a model: bicubic, not smoothed.
fn forward_resized(case: &Case) {
    let folder = case.set().path(case.text("model"));
    let expected = case.tensors("expected");
    let of = |name: &str| &expected[case.param(name).expect("a name")];
    let conversion = Conversion {
        image_size: case.count("image_to"),
        resize: Some(Resize::Bicubic),
        ..Conversion::default()
    };
    let source = checkpoint(&folder);
    let resized = conversion.in_memory(source, &RunOptions::default(), &Silent);
    let resized = resized.expect("it is resized");
    let table = "vision_model.embeddings.position_embedding.weight";
    let info = resized.require(table).expect("the table");
    assert_eq!(info.shape, of("table").shape);
    let temporary = tempfile::tempdir().expect("a folder");
    let inputs = temporary.path().join("inputs.safetensors");
    fixtures::write(
        &inputs,
        &BTreeMap::from([("pixel_values".to_owned(), of("pixels").clone())]),
    );
    let opened = models::open(resized, &Overrides::default(), &Device::Cpu, DType::F32);
    let found = run(&opened.expect("a model"), &inputs, "vision");
    assert_close(case, "", "pooled", &found["vision.pooled"], of("pooled"));
}

/// Three numbers of the case.
fn colors(case: &Case, name: &str) -> [f32; 3] {
    let list = fixtures::list(&case["params"][name]);
    std::array::from_fn(|channel| number(&list[channel]) as f32)
}

fn zero_shot(case: &Case) {
    let tensors = case.tensors("input");
    let folder = case.set().path(case.text("model"));
    let opened = opened(&folder, &overrides(case.set(), &folder));
    let (mean, deviation) = (colors(case, "mean"), colors(case, "std"));
    let pictures = &tensors["image_u8"];
    let plane = pictures.shape[2] * pictures.shape[3];
    let pixels: Vec<f32> = (pictures.values().into_iter().enumerate())
        .map(|(at, value)| {
            let channel = at / plane % 3;
            (value as f32 / 255.0 - mean[channel]) / deviation[channel]
        })
        .collect();
    let pixels = Tensor::from_vec(pixels, pictures.shape.as_slice(), &Device::Cpu);
    let (model, pass) = (opened.model.as_ref(), Pass::new());
    let images = Images::new(pixels.expect("pixels"));
    let images = image_features(model, &images, Branch::Apart, &pass).expect("features");
    assert_close(
        case,
        "class_embeds",
        "image_embeds",
        &images,
        &tensors["image_embeds"],
    );
    let prompts = &tensors["prompt_ids"];
    let &[n_classes, n_templates, len] = prompts.shape.as_slice() else {
        panic!("prompts are {:?}", prompts.shape)
    };
    let ids: Vec<u32> = prompts.integers().into_iter().map(|id| id as u32).collect();
    let texts = Texts::new(ids, &vec![len; n_classes * n_templates], &Device::Cpu);
    let texts = text_features(model, &texts.expect("texts"), Branch::Apart, &pass);
    let texts = texts.expect("features");
    let width = texts.dim(1).expect("a width");
    let texts: Vec<f32> = texts
        .flatten_all()
        .and_then(|t| t.to_vec1())
        .expect("numbers");
    let classes = of_templates(&texts, n_templates, width);
    let found = Tensor::from_vec(classes.clone(), (n_classes, width), &Device::Cpu);
    let found = found.expect("classes");
    assert_close(
        case,
        "class_embeds",
        "class_embeds",
        &found,
        &tensors["class_embeds"],
    );
    let scale = case.number("scale").expect("a scale");
    let logits = images
        .matmul(&found.t().expect("transposed"))
        .expect("cosines");
    let logits = (logits * scale).expect("logits");
    assert_close(case, "logits", "logits", &logits, &tensors["logits"]);
    let nearest: Vec<u32> = logits.argmax(1).and_then(|t| t.to_vec1()).expect("classes");
    let nearest: Vec<i64> = nearest.into_iter().map(i64::from).collect();
    assert_eq!(nearest, tensors["top1"].integers());
    let labels = tensors["label"].integers();
    let images: Vec<f32> = images
        .flatten_all()
        .and_then(|t| t.to_vec1())
        .expect("numbers");
    let scores = Similarities::new(classes, images, width);
    let all: Vec<i64> = (0..n_classes as i64).collect();
    let measured = sample(&scores, &all, &labels, Ties::default()).expect("ranks");
    let expected = case.json("expected");
    for name in ["top1", "top5"] {
        let (found, expected) = (value(&measured, name), number(&expected[name]));
        assert!(
            (found - expected).abs() < 1e-6,
            "{name}: {found}, {expected}"
        );
    }
}
