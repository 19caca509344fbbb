//! Attention of separate queries, keys and values, and what masks do.

use candle_core::{DType, Device, Result, Tensor, Var};
use evaluate::nn::{Bias, Mask, Pass, SideLosses, attend, attend_packed, attention_shares};
use merge::random::Draws;

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
