//! Fused operations against the same composed of candle's own, and their gradients.

use candle_core::{DType, Device, Result, Tensor, Var};
use evaluate::nn::{Bias, Mask, attend_packed, gelu};
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
fn gelu_and_its_gradient_are_exact() {
    compare(&[&[3, 1000]], |inputs| gelu(&inputs[0]));
}
