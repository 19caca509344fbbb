//! Guessing tokens of images: against the published passes, as recorded in the fixture, and from
//! pictures to weights.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use evaluate::nn::{Gradient, Gradients, Tape};
use merge::progress::Silent;
use train::batch::{Batch, Images, MaskedPatches, Texts};
use train::collective::Alone;
use train::log::{LINES_FILE, read};
use train::objectives::{self, Shared, Step};
use train::recipe::{CheckedRecipe, TrainRecipe};
use train::run::{Trainer, Where};
use train::{Error, batch};

use crate::fixture::{image_tokenizer, path, recipe, target_images, tensors, trainable, values};

/// Relative, of a loss and of gradients by L2.
const LOSS_TOLERANCE: f64 = 1e-5;
const GRADIENT_TOLERANCE: f64 = 1e-3;

fn batch() -> Batch {
    let inputs = tensors("forward/inputs.safetensors");
    let ids = inputs["text_ids"].to_dtype(DType::U32).expect("ids");
    let text = Texts::of_tensors(ids, inputs["text_masks"].clone()).expect("words");
    Batch {
        first: 0,
        n: 2,
        image: Some(Images::new(inputs["image"].clone())),
        text: Some(text),
        masked_patches: Some(MaskedPatches {
            masked: inputs["bool_masked_pos"]
                .to_dtype(DType::U8)
                .expect("a mask"),
            target_image: target_images(2),
        }),
        ..batch::Batch::default()
    }
}

/// Numbers of each variable.
type ByName = BTreeMap<String, Vec<f64>>;

/// The loss, its gradients, and the variables.
fn gradients(name: &str, architecture: &str, tape: Option<Tape>) -> (f64, ByName, ByName) {
    let (model, weights) = trainable(architecture);
    let batch = batch();
    let step = Step {
        model: &model,
        batch: &batch,
        collective: &Alone,
        randomness: None,
        tape: tape.as_ref(),
        shared: &Shared::default(),
        drops: None,
        whole: None,
        routing: None,
        side_losses: None,
        experts: None,
    };
    let objective = objectives::by_name(name, Some(&image_tokenizer())).expect("known");
    let loss = objective.loss(&step).expect("a loss");
    let variables = weights.variables();
    let mut found = Gradients::of(variables.values());
    match tape {
        Some(tape) => tape.backward(&loss.value, &mut found).expect("backward"),
        None => {
            let graph = loss.value.backward().expect("backward");
            found.absorb(&graph).expect("absorbed");
        }
    }
    let (mut by_name, mut of_variables) = (BTreeMap::new(), BTreeMap::new());
    for (name, variable) in variables {
        of_variables.insert(name.clone(), values(variable.as_tensor()));
        match found.get(&variable) {
            Some(Gradient::Host(values)) => {
                by_name.insert(name, values.iter().map(|&g| f64::from(g)).collect());
            }
            Some(Gradient::Device(tensor)) => {
                by_name.insert(name, values(tensor));
            }
            None => {}
        }
    }
    (loss.reported, by_name, of_variables)
}

fn l2(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// The loss, and its gradients by the head's weight and bias, in f64 from the published features.
fn expected(features: &Tensor, head: &[f64], bias: &[f64]) -> (f64, Vec<f64>, Vec<f64>) {
    let (_, n_tokens, width) = features.dims3().expect("tokens");
    let features = values(features);
    let batch = batch();
    let patches = batch.masked_patches.expect("patches");
    let tokens = image_tokenizer()
        .encode(&patches.target_image)
        .expect("tokens");
    let (tokens, masked) = (values(&tokens), values(&patches.masked));
    let n_classes = bias.len();
    let n_masked = masked.iter().filter(|masked| **masked > 0.0).count() as f64;
    let (mut loss, mut by_head, mut by_bias) = (0.0, vec![0.0; head.len()], vec![0.0; n_classes]);
    for at in (0..masked.len()).filter(|&at| masked[at] > 0.0) {
        let n_patches = n_tokens - 1;
        // The class token stands before the patches of an image.
        let row = at / n_patches * n_tokens + at % n_patches + 1;
        let x = &features[row * width..][..width];
        let score = |class: usize| {
            let weights = head[class * width..][..width].iter();
            bias[class] + weights.zip(x).map(|(w, x)| w * x).sum::<f64>()
        };
        let exponents: Vec<f64> = (0..n_classes).map(|class| score(class).exp()).collect();
        let sum: f64 = exponents.iter().sum();
        let token = tokens[at] as usize;
        loss -= (exponents[token] / sum).ln() / n_masked;
        for class in 0..n_classes {
            let slope = exponents[class] / sum - f64::from(u8::from(class == token));
            by_bias[class] += slope / n_masked;
            for (by_head, x) in by_head[class * width..][..width].iter_mut().zip(x) {
                *by_head += slope * x / n_masked;
            }
        }
    }
    (loss, by_head, by_bias)
}

#[test]
fn losses_and_gradients_follow_from_the_published_features() {
    for architecture in ["ufo", "all_moe"] {
        let published = tensors(&format!("forward/{architecture}.safetensors"));
        for (name, pass) in [("mim", "vl_mim"), ("image_mim", "image_mim")] {
            let (loss, whole, variables) = gradients(name, architecture, None);
            let features = &published[&format!("{pass}.image_feats")];
            let (head, bias) = (&variables["mim_score.weight"], &variables["mim_score.bias"]);
            let (wanted, by_head, by_bias) = expected(features, head, bias);
            let error = (loss - wanted).abs() / wanted;
            assert!(
                error < LOSS_TOLERANCE,
                "{architecture} {name}: {loss}, not {wanted}"
            );
            for (key, wanted) in [("mim_score.weight", by_head), ("mim_score.bias", by_bias)] {
                let off = l2(whole[key].iter().zip(&wanted).map(|(a, b)| a - b));
                let norm = l2(wanted.iter().copied());
                assert!(
                    off < GRADIENT_TOLERANCE * norm,
                    "{name} {key}: {off} of {norm}"
                );
            }
            // Behind the head one graph, tape and checkpoints tell the same of every weight.
            assert!(l2(whole["transformer.mask_token"].iter().copied()) > 0.0);
            for tape in [Tape::new(), Tape::checkpointing()] {
                let (_, by_tape, _) = gradients(name, architecture, Some(tape));
                assert!(by_tape.keys().eq(whole.keys()));
                let largest = whole
                    .values()
                    .map(|g| l2(g.iter().copied()))
                    .fold(0.0, f64::max);
                for (key, wanted) in &whole {
                    let off = l2(by_tape[key].iter().zip(wanted).map(|(a, b)| a - b));
                    assert!(off < 1e-5 * largest, "{name} {key}: {off} of {largest}");
                }
            }
        }
    }
}

/// A short run on pictures alone.
fn pictures(settings: &[&str]) -> CheckedRecipe {
    let masking = format!(
        "image_masking={{tokenizer: \"{}\"}}",
        path("dvae/model.safetensors").display()
    );
    let settings = [&[masking.as_str()], settings].concat();
    recipe("ckpt/ufo_pretrain.ckpt", "[{ name: image_mim }]", &settings)
}

fn run(recipe: &CheckedRecipe, folder: &Path) -> train::Result<Vec<f64>> {
    let place = Where {
        folder,
        device: Device::Cpu,
        collective: &Alone,
        experts: None,
        progress: &Silent,
    };
    Trainer::open(recipe.clone(), place)?.run()?;
    let records = read(&folder.join(LINES_FILE)).expect("the log reads");
    Ok(records.iter().map(|record| record.values["loss"]).collect())
}

#[test]
fn a_model_learns_tokens_of_pictures_it_sees_twice_the_same_way() {
    let random = "augmentation={random: {}}";
    let folders = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    let learn = ["length={steps: 30}", "optim.lr=3e-3", "batch_size=1000"];
    let losses = run(&pictures(&learn), folders[0].path()).expect("it runs");
    assert!(losses[29] < 0.9 * losses[0], "{losses:?}");
    let again = folders[1..]
        .iter()
        .map(|folder| run(&pictures(&[random]), folder.path()));
    let again: Vec<Vec<f64>> = again.map(|losses| losses.expect("it runs")).collect();
    assert_eq!(again[0], again[1]);
}

#[test]
fn what_guessing_tokens_needs_is_asked_for() {
    let parse = |settings: &[&str]| {
        let yaml = recipe("ckpt/ufo_pretrain.ckpt", "[{ name: mlm }]", &[]).to_yaml();
        let settings: Vec<String> = settings.iter().map(|&s| s.to_owned()).collect();
        TrainRecipe::parse(&yaml.expect("YAML"), Path::new("recipe.yaml"), &settings)
    };
    let error = parse(&["objectives=[{name: image_mim}]"]).expect_err("no tokenizer");
    assert!(matches!(error, Error::NoImageTokenizer { .. }), "{error}");
    let error = parse(&["image_masking={tokenizer: x, share: 1.5}"]).expect_err("too many");
    assert!(error.to_string().contains("image_masking.share"), "{error}");
}
