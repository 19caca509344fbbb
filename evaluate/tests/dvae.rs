//! Tokens of images against torch: fixtures/dvae, made by `tests/dvae_reference.py`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::models::Dvae;
use evaluate::{Error, Result, Weights};
use merge::io::OpenOptions;

use crate::fixture::path;

fn tensors(file: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(file, &Device::Cpu).expect("tensors")
}

fn weights(file: &Path) -> Weights {
    let checkpoint = merge::io::open(file, &OpenOptions::default()).expect("it opens");
    Dvae::weights(Arc::new(checkpoint), &Device::Cpu, DType::F32).expect("names")
}

fn model() -> HashMap<String, Tensor> {
    tensors(&path("dvae/model.safetensors"))
}

/// Loads tensors that are written to a file before.
fn load(tensors: &HashMap<String, Tensor>) -> Result<Dvae> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.safetensors");
    candle_core::safetensors::save(tensors, &file).expect("it is written");
    Dvae::load(&weights(&file))
}

/// The encoder's tensors under other names.
fn renamed(prefix: &str) -> HashMap<String, Tensor> {
    let model = model().into_iter();
    let of_encoder = model.filter_map(|(name, tensor)| {
        let name = name.strip_prefix("d_vae.encoder.")?;
        Some((format!("{prefix}{name}"), tensor))
    });
    of_encoder.collect()
}

#[test]
fn scores_and_tokens_are_those_of_torch() -> Result<()> {
    let expected = tensors(&path("dvae/expected.safetensors"));
    let model = Dvae::load(&weights(&path("dvae/model.safetensors")))?;
    assert_eq!((model.vocabulary(), model.stride()), (50, 8));
    let scores = model.logits(&expected["image"])?;
    assert_eq!(scores.dims(), [3, 50, 5, 5]);
    let off = (scores - &expected["scores"])?.abs()?.max_all()?;
    // Torch in f64; the scores reach 10, and the closest two tokens are 5e-3 apart.
    assert!(off.to_scalar::<f32>()? < 2e-5, "{off}");
    let tokens = model.encode(&expected["image"])?;
    assert_eq!(tokens.dtype(), DType::U32);
    assert_eq!(tokens.dims(), [3, 5, 5]);
    let tokens = tokens
        .to_dtype(DType::I64)?
        .flatten_all()?
        .to_vec1::<i64>()?;
    let expected = expected["tokens"].flatten_all()?.to_vec1::<i64>()?;
    assert_eq!(tokens, expected);
    Ok(())
}

#[test]
fn an_encoder_alone_and_one_in_an_autoencoder_load_too() -> Result<()> {
    let expected = tensors(&path("dvae/expected.safetensors"));
    let carried = Dvae::load(&weights(&path("dvae/model.safetensors")))?;
    let carried = carried.logits(&expected["image"])?.flatten_all()?;
    for prefix in ["", "encoder."] {
        let model = load(&renamed(prefix))?;
        let scores = model.logits(&expected["image"])?.flatten_all()?;
        assert_eq!(scores.to_vec1::<f32>()?, carried.to_vec1::<f32>()?);
    }
    Ok(())
}

#[test]
fn every_tensor_of_the_encoder_is_used_and_no_other() -> Result<()> {
    let weights = weights(&path("dvae/model.safetensors"));
    Dvae::load(&weights)?;
    let report = weights.report();
    // Input, output, eight blocks of four, and three where the width changes.
    assert_eq!(report.used.len(), 2 * (2 + 8 * 4 + 3));
    let unused = ["other d_vae.decoder.blocks.input.w", "other mim_score.bias"];
    assert_eq!(report.unused, unused);
    Ok(())
}

#[test]
fn a_side_that_tokens_do_not_divide_is_an_error() -> Result<()> {
    let model = load(&renamed(""))?;
    let image = Tensor::zeros((1, 3, 40, 36), DType::F32, &Device::Cpu)?;
    let error = model.encode(&image).expect_err("36 is no multiple of 8");
    assert!(matches!(error, Error::ImageStride { stride: 8, .. }));
    Ok(())
}

#[test]
fn a_weight_that_is_no_number_is_no_token() -> Result<()> {
    for name in ["blocks.input.w", "blocks.group_2.block_1.res_path.conv_2.w"] {
        let mut tensors = renamed("");
        let weight = &tensors[name];
        let mut values = weight.flatten_all()?.to_vec1::<f32>()?;
        values[0] = f32::NAN;
        let broken = Tensor::from_vec(values, weight.dims(), &Device::Cpu)?;
        tensors.insert(name.into(), broken);
        let image = Tensor::ones((1, 3, 40, 40), DType::F32, &Device::Cpu)?;
        let error = load(&tensors)?.encode(&image).expect_err("it has no token");
        assert!(
            matches!(error, Error::LogitNotANumber { example: 0 }),
            "{error}"
        );
    }
    Ok(())
}

#[test]
fn other_checkpoints_and_damaged_ones_are_refused_by_name() -> Result<()> {
    let error = Dvae::load(&weights(&path("towers/vit.safetensors")));
    let error = error.expect_err("it is no encoder").to_string();
    assert!(
        error.ends_with("does not tell the size of a convolution"),
        "{error}"
    );

    let mut tensors = renamed("");
    tensors.remove("blocks.group_2.block_2.res_path.conv_3.b");
    let error = load(&tensors).expect_err("a bias is missing").to_string();
    assert!(
        error.contains("group_2.block_2.res_path.conv_3.b"),
        "{error}"
    );

    // Without its last convolution a block gives the inner width.
    let mut tensors = renamed("");
    tensors.remove("blocks.group_1.block_1.res_path.conv_4.w");
    let error = load(&tensors)
        .expect_err("a block is cut short")
        .to_string();
    assert!(
        error.contains("group 1 block 1 adds 2 channels to 8"),
        "{error}"
    );

    let mut tensors = renamed("");
    let even = Tensor::zeros((50, 24, 2, 2), DType::F32, &Device::Cpu)?;
    tensors.insert("blocks.output.conv.w".into(), even);
    let error = load(&tensors).expect_err("2 is even").to_string();
    assert!(error.contains("which has no center"), "{error}");
    Ok(())
}
