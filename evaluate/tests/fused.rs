//! Fused operations against the same composed of candle's own, and their gradients.

use candle_core::{DType, Device, Result, Tensor, Var};
use evaluate::nn::{Bias, Mask, attend_packed, attend_to, cross_entropy, gelu};
use merge::random::Draws;

/// Of values and gradients, relative to the largest: two orders of summation in f32 on hundreds
/// of terms.
const TOLERANCE: f64 = 2e-6;

fn draw(name: &str, shape: &[usize]) -> Tensor {
    let mut values = vec![0.0; shape.iter().product()];
    Draws::new(1, name).add_normal(1.0, 0, &mut values);
    Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor")
}

fn variable(name: &str, shape: &[usize], dtype: DType) -> Var {
    let drawn = draw(name, shape).to_dtype(dtype);
    Var::from_tensor(&drawn.expect("converted")).expect("a variable")
}

/// Runs `f` fused in f32 and composed in f64, and compares the result and all gradients.
fn compare(shapes: &[&[usize]], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let run = |dtype| -> Result<Vec<Tensor>> {
        let names = ["a", "b", "c", "d"];
        let variables: Vec<Var> = (shapes.iter().zip(names))
            .map(|(shape, name)| variable(name, shape, dtype))
            .collect();
        let inputs: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
        let out = f(&inputs)?;
        // A weighted sum, so that every element of the result has a gradient of its own.
        let weights = draw("weights", out.dims()).to_dtype(dtype)?;
        let gradients = (&out * weights)?.sum_all()?.backward()?;
        let mut results = vec![out];
        for variable in &variables {
            results.push(
                gradients
                    .get(variable.as_tensor())
                    .expect("a gradient")
                    .clone(),
            );
        }
        Ok(results)
    };
    let (fused, composed) = (
        run(DType::F32).expect("fused"),
        run(DType::F64).expect("composed"),
    );
    assert_eq!(fused.len(), composed.len());
    for (index, (a, b)) in fused.iter().zip(&composed).enumerate() {
        assert_eq!(a.dims(), b.dims());
        let flat = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
        let (a, b) = (flat(a).expect("numbers"), flat(b).expect("numbers"));
        let largest = b.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        for (a, b) in a.iter().zip(&b) {
            assert!(
                (a - b).abs() <= TOLERANCE * largest,
                "result {index}: {a}, expected {b}"
            );
        }
    }
}

#[test]
fn attention_and_its_gradients_are_those_of_the_plain_formula() {
    for (b, n, heads, width) in [(1, 1, 1, 4), (2, 5, 2, 8), (9, 37, 3, 24)] {
        compare(&[&[b, n, 3 * width], &[heads, n, n]], |inputs| {
            let attended = Bias {
                pairs: Some(&inputs[1]),
                mask: None,
            };
            attend_packed(&inputs[0], heads, usize::MAX, attended)
        });
    }
}

/// Which keys each query sees, drawn; every query sees its own place.
fn seen(b: usize, n: usize, m: usize) -> Tensor {
    let drawn = draw("seen", &[b, n, m])
        .flatten_all()
        .and_then(|x| x.to_vec1::<f32>());
    let seen = drawn
        .expect("numbers")
        .into_iter()
        .enumerate()
        .map(|(at, x)| {
            let (query, key) = (at / m % n, at % m);
            u8::from(x > 0.0 || key == query % m)
        });
    Tensor::from_vec(seen.collect::<Vec<u8>>(), (b, n, m), &Device::Cpu).expect("a tensor")
}

#[test]
fn attention_to_another_sequence_and_its_gradients_are_those_of_the_plain_formula() {
    let sizes = [
        (1, 1, 1, 1, 4),
        (2, 5, 3, 2, 8),
        (9, 7, 41, 3, 24),
        (3, 1, 6, 2, 8),
    ];
    for (b, n, m, heads, width) in sizes {
        let pairs = Mask::pairs(&seen(b, n, m), f32::NEG_INFINITY).expect("a mask");
        let padding = Mask::padding(&seen(b, 1, m).squeeze(1).expect("a row"), f32::NEG_INFINITY);
        let padding = padding.expect("a mask");
        for mask in [None, Some(&pairs), Some(&padding)] {
            compare(&[&[b, n, width], &[b, m, 2 * width]], |inputs| {
                let attended = Bias { pairs: None, mask };
                attend_to(&inputs[0], &inputs[1], attended, heads)
            });
        }
    }
}

#[test]
fn a_choice_for_each_pair_hides_on_slices_what_it_hides_in_the_plain_formula() {
    for (b, n, heads, width) in [(2, 5, 2, 8), (9, 11, 3, 24)] {
        let mask = Mask::pairs(&seen(b, n, n), f32::NEG_INFINITY).expect("a mask");
        let attended = Bias {
            pairs: None,
            mask: Some(&mask),
        };
        compare(&[&[b, n, 3 * width]], |inputs| {
            attend_packed(&inputs[0], heads, usize::MAX, attended)
        });
        let packed = draw("qkv", &[b, n, 3 * width]);
        let all = attend_packed(&packed, heads, usize::MAX, attended).expect("all");
        let first = attend_packed(&packed, heads, 2, attended).expect("the first");
        let of_all = all.narrow(1, 0, 2).expect("two");
        let difference = (first - of_all).and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>());
        assert!(difference.expect("a number") < 1e-6);
    }
}

#[test]
fn a_query_from_which_all_is_hidden_by_a_finite_number_shares_by_its_scores() -> Result<()> {
    let nothing = Tensor::zeros((2, 3, 5), DType::U8, &Device::Cpu)?;
    let hidden = Mask::pairs(&nothing, -10_000.0)?;
    let (q, kv) = (draw("q", &[2, 3, 8]), draw("kv", &[2, 5, 16]));
    let attend = |mask| attend_to(&q, &kv, Bias { pairs: None, mask }, 2);
    let difference = (attend(Some(&hidden))? - attend(None)?)?;
    let difference: f32 = difference.abs()?.max_all()?.to_scalar()?;
    // Scores of about 10,000 have steps of 0.001 in f32.
    assert!(difference > 0.0 && difference < 4e-3, "{difference}");
    Ok(())
}

#[test]
fn masks_and_sequences_that_do_not_fit_are_errors_on_slices() -> Result<()> {
    let (q, kv) = (draw("q", &[2, 3, 8]), draw("kv", &[2, 5, 16]));
    let mask = |b, n, m| Mask::pairs(&Tensor::ones((b, n, m), DType::U8, &Device::Cpu)?, -1.0);
    for mask in [mask(2, 3, 4)?, mask(2, 5, 3)?, mask(1, 3, 5)?] {
        let attended = Bias {
            pairs: None,
            mask: Some(&mask),
        };
        let error = attend_to(&q, &kv, attended, 2).expect_err("another mask");
        assert!(
            error
                .to_string()
                .contains("2 sequences of 3 queries and 5 keys")
        );
    }
    let plain = Bias::default();
    assert!(attend_to(&q, &draw("kv", &[1, 5, 16]), plain, 2).is_err());
    assert!(attend_to(&q, &draw("kv", &[2, 5, 12]), plain, 2).is_err());
    assert!(attend_to(&q, &kv, plain, 3).is_err());
    Ok(())
}

#[test]
fn padding_is_not_attended_to_and_gets_no_gradient_through_keys() {
    let kept = Tensor::new(&[[1u8, 1, 1, 0], [1, 0, 0, 0]], &Device::Cpu).expect("a mask");
    let mask = Mask::new(&kept).expect("a mask");
    compare(&[&[2, 4, 12]], |inputs| {
        let attended = Bias {
            pairs: None,
            mask: Some(&mask),
        };
        attend_packed(&inputs[0], 2, usize::MAX, attended)
    });
}

#[test]
fn a_few_queries_give_the_first_rows_of_all() {
    let qkv = draw("qkv", &[3, 7, 36]);
    let bias = draw("bias", &[2, 7, 7]);
    let attended = Bias {
        pairs: Some(&bias),
        mask: None,
    };
    let run = |queries| attend_packed(&qkv, 2, queries, attended).expect("it runs");
    let (all, first) = (run(usize::MAX), run(1));
    let expected = all
        .narrow(1, 0, 1)
        .expect("a row")
        .flatten_all()
        .expect("flat");
    let found = first.flatten_all().expect("flat");
    let [found, expected] = [found, expected].map(|t| t.to_vec1::<f32>().expect("numbers"));
    // One query of three sequences, two heads of six channels.
    assert_eq!((found.len(), expected.len()), (36, 36));
    for (a, b) in found.iter().zip(&expected) {
        assert!((a - b).abs() < 1e-6, "{a}, expected {b}");
    }
}

#[test]
fn cross_entropy_and_its_gradient_are_those_of_the_plain_formula() {
    for (rows, classes) in [(1, 1), (3, 7), (20, 1030)] {
        let targets: Vec<u32> = (0..rows).map(|row| (row * 37 % classes) as u32).collect();
        compare(&[&[rows, classes]], |inputs| {
            cross_entropy(&(&inputs[0] * 30.0)?, &targets)
        });
    }
}

#[test]
fn gelu_and_its_gradient_are_exact() {
    compare(&[&[3, 1000]], |inputs| gelu(&inputs[0]));
}
