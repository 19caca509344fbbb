//! Image and text towers against torch: fixtures/towers, made by `tests/real_towers.py tiny`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::models::{Bert, Vit, VitForm, bert, vit};
use evaluate::nn::{Mask, Pass};
use evaluate::{Error, ModelFault, Result, Weights};
use merge::Checkpoint;
use merge::io::OpenOptions;

use crate::fixture::path;

/// Absolute and relative. Measured: torch in f32 and in f64 differ by less than a tenth of it.
const TOLERANCE: f64 = 1e-5;

/// The same for the real towers, whose largest token value is 10.3.
const REAL_TOLERANCE: f64 = 1e-4;

/// Heads of the tiny towers.
const HEADS: usize = 4;

fn open(path: &Path) -> Arc<Checkpoint> {
    let opened = merge::io::open(path, &OpenOptions::default());
    Arc::new(opened.expect("the file opens"))
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).expect("tensors")
}

fn vit_weights(folder: &Path) -> Weights {
    let file = open(&folder.join("vit.safetensors"));
    Vit::weights(file, &Device::Cpu, DType::F32).expect("names are known")
}

fn bert_weights(folder: &Path) -> Weights {
    let file = open(&folder.join("bert.safetensors"));
    Bert::weights(file, &Device::Cpu, DType::F32).expect("names are known")
}

fn vit(weights: &Weights, heads: Option<usize>) -> Vit {
    let config = vit::Config::read(weights, "", heads).expect("sizes are known");
    Vit::load(weights, "", config).expect("it loads")
}

fn bert(weights: &Weights, heads: Option<usize>) -> Bert {
    let prefix = Bert::prefix(weights);
    let config = bert::Config::read(weights, prefix, heads).expect("sizes are known");
    Bert::load(weights, prefix, config).expect("it loads")
}

/// Asserts |a − b| ≤ t + t |b| everywhere.
fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let list = |x: &Tensor| x.flatten_all().and_then(|x| x.to_vec1::<f32>());
    let (found, expected) = (list(found).expect("f32"), list(expected).expect("f32"));
    let off = |(&a, &b): (&f32, &f32)| {
        f64::from((a - b).abs()) / (tolerance + tolerance * f64::from(b.abs()))
    };
    let worst = found.iter().zip(&expected).map(off).fold(0.0, f64::max);
    assert!(worst <= 1.0, "{what}: {worst} times the tolerance");
}

/// Both towers of `folder` against the numbers of `expected`.
fn assert_parity(folder: &Path, expected: &str, heads: [Option<usize>; 2], tolerance: f64) {
    let expected = tensors(&folder.join(expected));
    let pass = Pass::new();
    let tower = vit(&vit_weights(folder), heads[0]);
    let tokens = tower.tokens(&expected["image"], &pass).expect("tokens");
    assert_close("image tokens", &tokens, &expected["vit.tokens"], tolerance);
    let first = expected["vit.tokens"].narrow(1, 0, 1);
    let first = first.and_then(|x| x.squeeze(1)).expect("the class token");
    let class = tower.class(&expected["image"], &pass).expect("class");
    assert_close("class token", &class, &first, tolerance);

    let tower = bert(&bert_weights(folder), heads[1]);
    let (ids, mask) = (&expected["text_ids"], &expected["text_masks"]);
    let mask = Mask::new(mask).expect("a mask");
    // The outputs of padding, which torch computes, too.
    let tokens = tower.tokens(ids, &mask, &pass.with_padding());
    let tokens = tokens.expect("tokens");
    assert_close("text tokens", &tokens, &expected["bert.tokens"], tolerance);
    let unit = tower.embedding(ids, &mask, &pass).expect("embedding");
    assert_close("embedding", &unit, &expected["bert.embedding"], tolerance);
}

#[test]
fn tiny_towers_compute_what_torch_computes() {
    let heads = [Some(HEADS), Some(HEADS)];
    assert_parity(&path("towers"), "expected.safetensors", heads, TOLERANCE);
}

#[test]
#[ignore = "needs a folder made by tests/real_towers.py, named in VLMERGE_TOWERS"]
fn real_towers_compute_what_torch_computes() {
    let folder = std::env::var_os("VLMERGE_TOWERS").expect("VLMERGE_TOWERS names a folder");
    // The image tower's heads are 64 wide, MiniLM's 32.
    let heads = [None, Some(12)];
    let folder = PathBuf::from(folder);
    assert_parity(&folder, "reference.safetensors", heads, REAL_TOLERANCE);
    // Drawings and their names, which the verb `ridge` of the script leaves there.
    assert_parity(&folder, "drawn.safetensors", heads, REAL_TOLERANCE);
}

#[test]
fn sizes_are_read_off_the_weights() {
    let config = vit::Config::read(&vit_weights(&path("towers")), "", Some(HEADS));
    let expected = vit::Config {
        form: VitForm::Timm,
        n_blocks: 2,
        width: 32,
        n_heads: 4,
        ffn_width: 64,
        patch_size: 14,
        image_size: 28,
        has_layer_scale: true,
        has_class: true,
        n_registers: 0,
        places_first: true,
        has_patch_bias: true,
        has_qkv_bias: true,
        has_pre_norm: false,
        has_norm: true,
        epsilon: 1e-6,
        activation: evaluate::nn::Activation::Gelu,
    };
    assert_eq!(config.expect("sizes"), expected);
    let config = bert::Config::read(&bert_weights(&path("towers")), "", Some(HEADS));
    let expected = bert::Config {
        form: bert::Form::Bert,
        n_blocks: 2,
        width: 32,
        n_heads: 4,
        ffn_width: 64,
        vocabulary: 40,
        text_len: 12,
        n_token_types: 2,
    };
    assert_eq!(config.expect("sizes"), expected);
}

#[test]
fn each_tower_uses_every_key_but_bert_s_pooler() {
    let weights = vit_weights(&path("towers"));
    vit(&weights, Some(HEADS));
    assert_eq!(weights.report().unused, [""; 0]);
    let weights = bert_weights(&path("towers"));
    bert(&weights, Some(HEADS));
    let pooler = ["pooler.dense.bias", "pooler.dense.weight"];
    assert_eq!(weights.report().unused, pooler);
}

#[test]
fn padding_changes_no_real_token() -> Result<()> {
    let expected = tensors(&path("towers/expected.safetensors"));
    let tower = bert(&bert_weights(&path("towers")), Some(HEADS));
    // The first text has five tokens and three of padding.
    let ids = expected["text_ids"].narrow(0, 0, 1)?;
    let mask = expected["text_masks"].narrow(0, 0, 1)?;
    let long = tower.tokens(&ids, &Mask::new(&mask)?, &Pass::new())?;
    let (ids, mask) = (ids.narrow(1, 0, 5)?, mask.narrow(1, 0, 5)?);
    let short = tower.tokens(&ids.contiguous()?, &Mask::new(&mask)?, &Pass::new())?;
    assert_close("tokens", &long.narrow(1, 0, 5)?, &short, TOLERANCE);
    Ok(())
}

#[test]
fn each_variable_of_a_tower_gets_a_gradient() -> Result<()> {
    let expected = tensors(&path("towers/expected.safetensors"));
    let pass = Pass::new();
    let weights = vit_weights(&path("towers")).trainable();
    let tokens = vit(&weights, Some(HEADS)).tokens(&expected["image"], &pass)?;
    assert_gradients(&weights, &tokens)?;
    let weights = bert_weights(&path("towers")).trainable();
    let mask = Mask::new(&expected["text_masks"])?;
    let tokens = bert(&weights, Some(HEADS)).tokens(&expected["text_ids"], &mask, &pass)?;
    assert_gradients(&weights, &tokens)
}

fn assert_gradients(weights: &Weights, tokens: &Tensor) -> Result<()> {
    // Cubes: the sum of normed values would not depend on the normed vectors.
    let gradients = (tokens.sqr()? * tokens)?.sum_all()?.backward()?;
    for (name, variable) in weights.variables() {
        let gradient = gradients.get(&variable);
        let gradient = gradient.unwrap_or_else(|| panic!("{name} gets no gradient"));
        let size = gradient.sqr()?.sum_all()?.to_scalar::<f32>()?;
        // A bias of all keys moves all scores of a query alike, and softmax does not see it.
        let is_seen = !name.ends_with("self.key.bias");
        assert!(size.is_finite(), "{name}: {size}");
        assert!(!is_seen || size > 0.0, "{name} gets a gradient of zero");
    }
    Ok(())
}

#[test]
fn an_image_of_another_size_is_an_error() -> Result<()> {
    let tower = vit(&vit_weights(&path("towers")), Some(HEADS));
    let image = Tensor::zeros((1, 3, 42, 42), DType::F32, &Device::Cpu)?;
    let error = tower
        .tokens(&image, &Pass::new())
        .expect_err("42 is not 28");
    assert!(matches!(error, Error::ImageSize { expected: 28, .. }));
    Ok(())
}

#[test]
fn a_text_longer_than_the_positions_is_an_error() -> Result<()> {
    let tower = bert(&bert_weights(&path("towers")), Some(HEADS));
    let ids = Tensor::ones((1, 13), DType::I64, &Device::Cpu)?;
    let error = tower.tokens(&ids, &Mask::new(&ids)?, &Pass::new());
    let error = error.expect_err("there are 12 positions").to_string();
    assert!(error.contains("13 tokens"), "{error}");
    Ok(())
}

#[test]
fn heads_that_do_not_divide_the_width_are_an_error() {
    let error = vit::Config::read(&vit_weights(&path("towers")), "", Some(5));
    let error = error.expect_err("5 does not divide 32").to_string();
    assert!(
        error.ends_with("5 heads do not divide a width of 32"),
        "{error}"
    );
    // 64 wide is the default, and wider than the tower.
    let error = bert::Config::read(&bert_weights(&path("towers")), "", None);
    assert!(matches!(
        error,
        Err(Error::Model(ModelFault::BadSize { .. }))
    ));
}

#[test]
fn a_checkpoint_of_another_kind_is_an_error() {
    let file = open(&path("towers/bert.safetensors"));
    let weights = Vit::weights(file, &Device::Cpu, DType::F32).expect("names");
    let error = vit::Config::read(&weights, "", Some(HEADS)).expect_err("it is no image tower");
    assert!(
        error.to_string().ends_with("does not tell the patch size"),
        "{error}"
    );
}
