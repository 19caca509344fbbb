//! Attention of separate queries, keys and values, and what masks do.

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, Var};
use evaluate::batch::{Images, Texts};
use evaluate::models::{self, Branch, Head, Opened, Overrides, image_features, text_features};
use evaluate::nn::{Bias, Mask, Pass, SideLosses, attend, attend_packed, attention_shares, mix};
use merge::random::Draws;

use crate::golden::models::open as checkpoint;

fn draw(name: &str, shape: &[usize]) -> Tensor {
    let mut values = vec![0.0; shape.iter().product()];
    Draws::new(1, name).add_normal(1.0, 0, &mut values);
    Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor")
}

fn list(x: &Tensor) -> Vec<f32> {
    let x = x.to_dtype(DType::F32).and_then(|x| x.flatten_all());
    x.and_then(|x| x.to_vec1()).expect("numbers")
}

fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims());
    for (a, b) in list(found).iter().zip(list(expected)) {
        assert!((a - b).abs() <= tolerance, "{a} instead of {b}");
    }
}

#[test]
fn separate_projections_attend_as_packed_ones() -> Result<()> {
    let [q, k, v] = ["q", "k", "v"].map(|name| draw(name, &[2, 5, 12]));
    let (pairs, kept) = (
        draw("pairs", &[3, 5, 5]),
        Tensor::new(&[[1u8, 1, 1, 0, 0], [1; 5]], &Device::Cpu)?,
    );
    let mask = Mask::new(&kept)?;
    let bias = Bias {
        pairs: Some(&pairs),
        mask: Some(&mask),
    };
    let packed = Tensor::cat(&[&q, &k, &v], 2)?;
    let expected = attend_packed(&packed, 3, usize::MAX, bias)?;
    assert_close(&attend(&q, &k, &v, bias, 3)?, &expected, 1e-6);
    Ok(())
}

#[test]
fn queries_attend_to_another_sequence() -> Result<()> {
    let (q, k, v) = (
        draw("q", &[2, 3, 8]),
        draw("k", &[2, 5, 8]),
        draw("v", &[2, 5, 8]),
    );
    let found = list(&attend(&q, &k, &v, Bias::default(), 2)?);
    let (q, k, v) = (list(&q), list(&k), list(&v));
    for (b, query, head) in (0..12).map(|at| (at / 6, at / 2 % 3, at % 2)) {
        let row = |x: &[f32], n: usize, at: usize| x[(b * n + at) * 8 + head * 4..][..4].to_vec();
        let asks = row(&q, 3, query);
        let scores = (0..5).map(|key| {
            let product: f32 = asks.iter().zip(row(&k, 5, key)).map(|(a, b)| a * b).sum();
            (product / 2.0).exp()
        });
        let scores: Vec<f32> = scores.collect();
        let sum: f32 = scores.iter().sum();
        for channel in 0..4 {
            let mixed = scores
                .iter()
                .enumerate()
                .map(|(key, s)| s / sum * row(&v, 5, key)[channel]);
            let expected: f32 = mixed.sum();
            let found = found[(b * 3 + query) * 8 + head * 4 + channel];
            assert!(
                (found - expected).abs() < 1e-5,
                "{found} instead of {expected}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_causal_mask_hides_what_comes_later() -> Result<()> {
    let packed = draw("qkv", &[2, 4, 24]);
    let causal = Bias {
        pairs: None,
        mask: Some(&Mask::Causal),
    };
    let found = attend_packed(&packed, 2, usize::MAX, causal)?;
    let seen = Tensor::new(
        &[[1u8, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]],
        &Device::Cpu,
    )?;
    let pairs = Mask::pairs(&seen.unsqueeze(0)?.repeat((2, 1, 1))?, f32::NEG_INFINITY)?;
    let bias = Bias {
        pairs: None,
        mask: Some(&pairs),
    };
    assert_close(&found, &attend_packed(&packed, 2, usize::MAX, bias)?, 1e-6);
    let first = attend_packed(
        &packed.narrow(1, 0, 2)?.contiguous()?,
        2,
        usize::MAX,
        causal,
    )?;
    assert_close(&found.narrow(1, 0, 2)?, &first, 1e-6);
    // The last queries of a sequence whose keys are kept from before.
    let part = |which: usize| packed.narrow(2, 8 * which, 8);
    let last = attend(&part(0)?.narrow(1, 3, 1)?, &part(1)?, &part(2)?, causal, 2)?;
    assert_close(&last, &found.narrow(1, 3, 1)?, 1e-6);
    Ok(())
}

#[test]
fn a_query_that_sees_nothing_gives_zeros_and_finite_gradients() -> Result<()> {
    let seen = Tensor::new(&[[[1u8, 0, 1], [0, 0, 0]]], &Device::Cpu)?;
    let mask = Mask::pairs(&seen, f32::NEG_INFINITY)?;
    let bias = Bias {
        pairs: None,
        mask: Some(&mask),
    };
    let (q, k, v) = (
        draw("q", &[1, 2, 4]),
        draw("k", &[1, 3, 4]),
        draw("v", &[1, 3, 4]),
    );
    let q = Var::from_tensor(&q)?;
    let out = attend(&q, &k, &v, bias, 1)?;
    assert_eq!(list(&out.narrow(1, 1, 1)?), [0.0; 4]);
    let gradient = out.sqr()?.sum_all()?.backward()?;
    let gradient = list(gradient.get(&q).expect("a gradient"));
    assert!(gradient.iter().all(|x| x.is_finite()), "{gradient:?}");

    // The same on slices: a sequence of padding alone.
    let mask = Mask::new(&Tensor::new(&[[1u8, 1], [0, 0]], &Device::Cpu)?)?;
    let bias = Bias {
        pairs: None,
        mask: Some(&mask),
    };
    let packed = Var::from_tensor(&draw("qkv", &[2, 2, 12]))?;
    let out = attend_packed(&packed, 2, usize::MAX, bias)?;
    assert_eq!(list(&out.narrow(0, 1, 1)?), [0.0; 8]);
    let gradient = out.sqr()?.sum_all()?.backward()?;
    let gradient = list(gradient.get(&packed).expect("a gradient"));
    assert!(gradient.iter().all(|x| x.is_finite()), "{gradient:?}");
    Ok(())
}

#[test]
fn a_finite_value_for_hidden_leaves_such_a_query_its_softmax() -> Result<()> {
    let nothing = Tensor::zeros((1, 2, 3), DType::U8, &Device::Cpu)?;
    let mask = Mask::pairs(&nothing, -10_000.0)?;
    let bias = Bias {
        pairs: None,
        mask: Some(&mask),
    };
    let (q, k) = (draw("q", &[1, 2, 4]), draw("k", &[1, 3, 4]));
    let found = attention_shares(&q, &k, bias, 1)?;
    // Scores of about 10,000 have steps of 0.001 in f32.
    assert_close(&found, &attention_shares(&q, &k, Bias::default(), 1)?, 2e-3);
    Ok(())
}

#[test]
fn side_losses_are_collected_under_the_name_of_their_stack() -> Result<()> {
    let losses = SideLosses::new();
    let pass = Pass::new().collecting(&losses).within("image");
    let loss = Tensor::new(0.5f32, &Device::Cpu)?;
    pass.add_loss("block3.balance", &loss);
    Pass::new().add_loss("unheard", &loss);
    let names: Vec<String> = losses.take().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["image.block3.balance"]);
    assert!(losses.take().is_empty());
    Ok(())
}

#[test]
fn a_score_that_is_no_number_makes_its_query_no_number_and_no_other() -> Result<()> {
    let (n, d) = (3, 8);
    // The first query of the first sequence has NaN in its first head.
    let mut values = list(&draw("qkv", &[2, n, 3 * d]));
    values[0] = f32::NAN;
    let packed = Var::from_vec(values, (2, n, 3 * d), &Device::Cpu)?;
    let mask = Mask::new(&Tensor::new(&[[1u8, 1, 1], [1, 1, 0]], &Device::Cpu)?)?;
    let causal = Mask::Causal;
    for mask in [None, Some(&mask), Some(&causal)] {
        let bias = Bias { pairs: None, mask };
        let part = |which: usize| packed.narrow(2, d * which, d);
        let apart = attend(&part(0)?, &part(1)?, &part(2)?, bias, 2)?;
        let shares = attention_shares(&part(0)?, &part(1)?, bias, 2)?;
        let outs = [
            attend_packed(&packed, 2, usize::MAX, bias)?,
            apart,
            mix(&shares, &part(2)?)?,
        ];
        for out in outs {
            for (at, x) in list(&out).into_iter().enumerate() {
                // The first query's first head.
                assert_eq!(x.is_nan(), at < d / 2, "{mask:?}: element {at} is {x}");
            }
            let gradients = out.sum_all()?.backward()?;
            let gradient = list(gradients.get(&packed).expect("a gradient"));
            assert!(gradient[0].is_nan(), "{mask:?}: by the query");
            assert!(gradient[2 * d].is_nan(), "{mask:?}: by the first value");
            let others = &gradient[n * 3 * d..];
            assert!(others.iter().all(|x| x.is_finite()), "{mask:?}");
        }
    }
    Ok(())
}

/// Opens a model whose file has NaN in one element of one tensor.
fn with_nan(model: &Path, key: &str, element: usize, overrides: &Overrides) -> Result<Opened> {
    let folder = tempfile::tempdir()?;
    let file = match model.is_dir() {
        true => {
            for name in ["config.json", "preprocessor_config.json"] {
                std::fs::copy(model.join(name), folder.path().join(name))?;
            }
            model.join("model.safetensors")
        }
        false => model.to_owned(),
    };
    let mut tensors = candle_core::safetensors::load(file, &Device::Cpu)?;
    let tensor = &tensors[key];
    let mut values = list(tensor);
    values[element] = f32::NAN;
    let broken = Tensor::from_vec(values, tensor.dims(), &Device::Cpu)?;
    tensors.insert(key.to_owned(), broken);
    let file = folder.path().join("model.safetensors");
    candle_core::safetensors::save(&tensors, &file)?;
    let opened = models::open(checkpoint(&file), overrides, &Device::Cpu, DType::F32);
    Ok(opened.expect("a model"))
}

fn pixels(side: usize) -> Images {
    Images::new(draw("pixels", &[2, 3, side, side]))
}

fn assert_no_numbers(of: &str, found: &Tensor) {
    let found = list(found);
    assert!(found.iter().all(|x| x.is_nan()), "{of}: {found:?}");
}

/// Features of images and texts of a model that is broken at one key after the other.
fn no_feature_is_a_number(
    model: &str,
    overrides: &Overrides,
    texts: &Texts,
    of_image: &[(String, usize)],
    of_text: &[(String, usize)],
) -> Result<()> {
    let model = fixtures::path(model);
    for (key, element) in of_image {
        let opened = with_nan(&model, key, *element, overrides)?;
        let found = image_features(
            opened.model.as_ref(),
            &pixels(32),
            Branch::Apart,
            &Pass::new(),
        );
        assert_no_numbers(key, &found.expect("features"));
    }
    for (key, element) in of_text {
        let opened = with_nan(&model, key, *element, overrides)?;
        let found = text_features(opened.model.as_ref(), texts, Branch::Apart, &Pass::new());
        assert_no_numbers(key, &found.expect("features"));
    }
    Ok(())
}

/// Two texts, one of them with padding.
fn texts() -> Result<Texts> {
    let ids = Tensor::new(&[[0u32, 7, 9, 2], [0, 5, 2, 1]], &Device::Cpu)?;
    let kept = Tensor::new(&[[1u8, 1, 1, 1], [1, 1, 1, 0]], &Device::Cpu)?;
    Ok(Texts::of_tensors(ids, kept).expect("texts"))
}

#[test]
fn one_nan_in_queries_keys_or_values_of_a_clip_is_in_all_its_features() -> Result<()> {
    let keys = |tower: &str| {
        let parts = ["q_proj", "k_proj", "v_proj"];
        let key = |part: &str| format!("{tower}_model.encoder.layers.0.self_attn.{part}.weight");
        parts.map(|part| (key(part), 5))
    };
    no_feature_is_a_number(
        "clip/hf_clip",
        &Overrides::default(),
        &texts()?,
        &keys("vision"),
        &keys("text"),
    )
}

#[test]
fn one_nan_in_queries_keys_or_values_of_two_towers_is_in_all_their_features() -> Result<()> {
    let config = fixtures::json("zerovl/config.json");
    let heads = |tower: &str| Some(fixtures::number(&config[tower]["heads"]) as usize);
    let overrides = Overrides {
        image_heads: heads("vision"),
        text_heads: heads("text"),
        ..Overrides::default()
    };
    let qkv = "image_encoder.model.model.blocks.0.attn.qkv.weight";
    let of_image = [0, 1, 2].map(|part| (qkv.to_owned(), part * 32 * 32 + 5));
    let of_text = ["query", "key", "value"].map(|part| {
        let layer = "text_encoder.model.model.encoder.layer.0";
        (format!("{layer}.attention.self.{part}.weight"), 5)
    });
    no_feature_is_a_number(
        "zerovl/ckpt/model.safetensors",
        &overrides,
        &texts()?,
        &of_image,
        &of_text,
    )
}

#[test]
fn one_nan_in_a_convolution_of_a_residual_network_is_in_all_its_scores() -> Result<()> {
    let model = fixtures::path("resnet/basic.safetensors");
    for key in ["conv1.weight", "layer1.0.conv1.weight"] {
        let opened = with_nan(&model, key, 0, &Overrides::default())?;
        let model = opened.model.as_ref();
        let states = model.pooled_image(&pixels(64), &Pass::new());
        let scores = model.score(Head::ImageClasses, &states.expect("states"));
        assert_no_numbers(key, &scores.expect("scores"));
    }
    Ok(())
}
