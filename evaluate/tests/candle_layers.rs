//! Layers that `nn` takes of candle-nn have right gradients; those that it does not take have none.

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{Activation, Conv2d, Conv2dConfig, Embedding, LayerNorm};
use merge::random::Draws;

/// Half the distance of two values.
const STEP: f64 = 1e-5;

/// Of a gradient, relative to the largest of its tensor: the third derivative times the step squared,
/// rounding over the step, and candle's error function, which is good to 2e-7.
const TOLERANCE: f64 = 1e-6;

fn variable(name: &str, shape: &[usize]) -> Var {
    let mut values = vec![0.0; shape.iter().product()];
    Draws::new(1, name).add_normal(1.0, 0, &mut values);
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).and_then(|x| x.to_dtype(DType::F64));
    Var::from_tensor(&tensor.expect("a tensor")).expect("a variable")
}

/// Checks every gradient of a weighted sum of what `f` makes of variables of these shapes.
fn check(what: &str, shapes: &[&[usize]], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let names = ["a", "b", "c"];
    let variables: Vec<Var> = (shapes.iter().zip(names))
        .map(|(s, n)| variable(n, s))
        .collect();
    let inputs: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let value = || -> Result<Tensor> {
        let out = f(&inputs)?;
        let places = (0..out.elem_count()).map(|at| (at as f64 * 0.7).cos());
        let places = Tensor::from_vec(places.collect::<Vec<_>>(), out.shape(), &Device::Cpu)?;
        (out * places)?.sum_all()
    };
    let found = value()
        .and_then(|value| value.backward())
        .expect("gradients");
    for variable in &variables {
        let gradient = found
            .get(variable)
            .unwrap_or_else(|| panic!("{what} has a gradient"));
        let list = |x: &Tensor| {
            x.flatten_all()
                .and_then(|x| x.to_vec1::<f64>())
                .expect("f64")
        };
        let (gradient, values) = (list(gradient), list(variable));
        let largest = gradient.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
        for at in 0..values.len() {
            let moved = |by: f64| {
                let mut moved = values.clone();
                moved[at] += by;
                let moved = Tensor::from_vec(moved, variable.shape(), &Device::Cpu);
                variable.set(&moved.expect("a tensor")).expect("set");
                value()
                    .and_then(|value| value.to_scalar::<f64>())
                    .expect("a number")
            };
            let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            moved(0.0);
            let error = (gradient[at] - expected).abs();
            assert!(
                error <= TOLERANCE * largest.max(1.0),
                "{what} {at}: {} {expected}",
                gradient[at]
            );
        }
    }
}

#[test]
fn embeddings_convolutions_activations_and_losses_have_the_gradients_of_differences() {
    check("embedding", &[&[5, 3]], |inputs| {
        let ids = Tensor::new(&[[1u32, 4, 1], [0, 0, 2]], &Device::Cpu)?;
        Embedding::new(inputs[0].clone(), 3).forward(&ids)
    });
    check("patches", &[&[2, 3, 6, 4], &[5, 3, 2, 2], &[5]], |inputs| {
        let config = Conv2dConfig {
            stride: 2,
            ..Conv2dConfig::default()
        };
        Conv2d::new(inputs[1].clone(), Some(inputs[2].clone()), config).forward(&inputs[0])
    });
    check(
        "convolution",
        &[&[2, 2, 5, 4], &[3, 2, 3, 3], &[3]],
        |inputs| {
            let config = Conv2dConfig {
                padding: 1,
                ..Conv2dConfig::default()
            };
            Conv2d::new(inputs[1].clone(), Some(inputs[2].clone()), config).forward(&inputs[0])
        },
    );
    check("gelu", &[&[20]], |inputs| {
        Activation::Gelu.forward(&inputs[0])
    });
    check("sigmoid", &[&[20]], |inputs| {
        candle_nn::ops::sigmoid(&inputs[0])
    });
    check("softmax", &[&[4, 5]], |inputs| {
        candle_nn::ops::softmax(&inputs[0], 1)
    });
    check("cross entropy", &[&[4, 5]], |inputs| {
        let targets = Tensor::new(&[0u32, 4, 1, 1], &Device::Cpu)?;
        candle_nn::loss::cross_entropy(&inputs[0], &targets)
    });
    check("squared error", &[&[4, 5], &[4, 5]], |inputs| {
        candle_nn::loss::mse(&inputs[0], &inputs[1])
    });
}

#[test]
fn the_layer_norm_and_the_softmax_of_candle_that_we_do_not_use_pass_no_gradient() {
    // The day they do, `nn` may use them: docs/design.md says why it does not.
    let x = variable("x", &[4, 5])
        .to_dtype(DType::F32)
        .and_then(|x| Var::from_tensor(&x));
    let x = x.expect("a variable");
    let weight = Tensor::ones(5, DType::F32, &Device::Cpu).expect("ones");
    let norm = LayerNorm::new(weight.clone(), weight, 1e-6);
    let cut = [norm.forward(&x), candle_nn::ops::softmax_last_dim(&x)];
    for result in cut {
        let found = result.and_then(|y| y.sqr()?.sum_all()?.backward());
        assert!(found.expect("no error").get(&x).is_none());
    }
}
