//! Gradients of FLM: on slices, by segments, by one graph, by central differences.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use evaluate::Result;
use evaluate::batch::{Images, Pair, Texts};
use evaluate::models::flm::Flm;
use evaluate::models::{Completed, FreeLanguage, FusionEncoder, Queries, Stream};
use evaluate::nn::{Gradient, Gradients, Omission, Pass, Tape};

use super::{
    DIFFERENCE_TOLERANCE, FLOOR, Ready, TOLERANCE, largest_difference, ready, three_streams,
};

fn omission() -> Omission {
    Omission {
        drop_path: 0.5,
        dropout: 0.2,
        seed: 5,
        name: "3/a.pass".into(),
        ..Omission::default()
    }
}

/// A scalar in which every state of every stream has a part, its own in each place, that any loss may read:
/// those of tokens, and of the reverse stream one more.
fn loss(model: &Flm, ready: &Ready, pass: &Pass<'_>) -> Result<Tensor> {
    let pair = Pair::new(&ready.texts, &ready.images);
    let queries = Queries {
        ids: &ready.queries,
        spans: None,
    };
    let completed = model.complete(&pair, queries, pass)?;
    let both_ways = model.guessed_from(&pair, &pass.within("again"))?;
    let parts = [
        model.words(Stream::Queries, &completed.queries)?,
        model.words(Stream::Forward, &completed.forward)?,
        model.words(Stream::Reverse, &completed.reverse)?,
        both_ways,
    ];
    let lengths = ready.lengths();
    let mut sum: Option<Tensor> = None;
    for (stream, part) in parts.into_iter().enumerate() {
        let (_, t, width) = part.dims3()?;
        let more = usize::from(stream == 2);
        let is_read = |at: usize| at / width % t < lengths[at / width / t] + more;
        let weight = |at: usize| match is_read(at) {
            // Positive: a sum that cancels would show rounding.
            true => 1.5 + (at as f32 * 0.7).sin(),
            false => 0.0,
        };
        let places: Vec<f32> = (0..part.elem_count()).map(weight).collect();
        let places = Tensor::from_vec(places, part.shape(), &Device::Cpu)?;
        let part = (part.sqr()? * places.to_dtype(part.dtype())?)?.sum_all()?;
        sum = Some(match sum {
            Some(sum) => (sum + part)?,
            None => part,
        });
    }
    // Words that are guessed, beside all logits.
    let width = completed.queries.dim(2)?;
    let rows = completed.queries.narrow(1, 0, 2)?.reshape(((), width))?;
    let labels: Vec<u32> = (2..).take(rows.dim(0)?).collect();
    let guessed = model.guess(Stream::Queries, &rows, &labels, pass)?;
    Ok((sum.expect("parts") + (guessed.mean * 3.0)?)?)
}

type Found = BTreeMap<String, Vec<f64>>;

/// All gradients, through `tape`, or candle's graph of everything.
fn gradients(tape: Option<Tape>, is_random: bool) -> (f64, Found) {
    let ready = ready(&three_streams(), true, DType::F32);
    let omission = omission();
    let mut pass = Pass::new();
    if is_random {
        pass = pass.omitting(&omission);
    }
    if let Some(tape) = &tape {
        pass = pass.recorded(tape);
    }
    let loss = loss(&ready.model, &ready, &pass).expect("a loss");
    let value = loss.to_scalar::<f32>().expect("a number");
    let variables = ready.weights.variables();
    let mut sums = Gradients::of(variables.values());
    match tape {
        Some(tape) => tape.backward(&loss, &mut sums).expect("gradients"),
        None => {
            let found = loss.backward().expect("gradients");
            sums.absorb(&found).expect("gradients");
        }
    }
    let list = |(name, variable): (&String, &Var)| match sums.get(variable) {
        Some(Gradient::Host(values)) => {
            let values = values.iter().map(|&value| f64::from(value)).collect();
            Some((name.clone(), values))
        }
        Some(Gradient::Device(_)) => panic!("the processor's gradients are in memory"),
        None => None,
    };
    (
        f64::from(value),
        variables.iter().filter_map(list).collect(),
    )
}

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn largest(gradients: &Found) -> f64 {
    let norms = gradients
        .values()
        .map(|values| norm(values.iter().copied()));
    norms.fold(0.0, f64::max)
}

#[test]
fn flm_learns_on_slices_and_by_segments_what_it_learns_by_one_graph() {
    type Make = fn() -> Tape;
    let tapes: [(&str, Make); 4] = [
        ("slices", Tape::new),
        ("slices, computed again", Tape::checkpointing),
        ("graphs", || Tape::new().of_graphs()),
        ("graphs, computed again", || {
            Tape::checkpointing().of_graphs()
        }),
    ];
    for is_random in [false, true] {
        let (expected_loss, expected) = gradients(None, is_random);
        let floor = FLOOR * largest(&expected);
        for (how, tape) in tapes {
            let (loss, found) = gradients(Some(tape()), is_random);
            let error = (loss - expected_loss).abs();
            let bound = 1e-5 * expected_loss.abs();
            assert!(error <= bound, "{how}: {loss}, expected {expected_loss}");
            assert_eq!(found.len(), expected.len(), "{how}");
            for (name, expected) in &expected {
                let error = norm(found[name].iter().zip(expected).map(|(a, b)| a - b));
                let tolerance = TOLERANCE * norm(expected.iter().copied());
                assert!(
                    error <= tolerance.max(floor),
                    "{how}: {name} is off by {error}"
                );
            }
        }
    }
}

#[test]
fn every_variable_of_three_streams_gets_a_gradient_and_padding_rows_none() {
    let (_, found) = gradients(Some(Tape::new()), false);
    let ready = ready(&three_streams(), true, DType::F32);
    // Poolers are no part of this loss; a bias of all keys is not seen by softmax.
    let is_out = |name: &str| name.contains("_pooler");
    for name in ready.weights.variables().keys() {
        assert_eq!(found.contains_key(name), !is_out(name), "{name}");
    }
    for (name, gradient) in &found {
        let size = norm(gradient.iter().copied());
        assert!(
            size.is_finite() && (size > 0.0 || name.ends_with("key.bias")),
            "{name}"
        );
    }
    for table in ["word_embeddings", "position_embeddings"] {
        let gradient = &found[&format!("text_transformer.embeddings.{table}.weight")];
        let width = ready.model.config().text.width;
        assert!(
            gradient[width..2 * width].iter().all(|&g| g == 0.0),
            "{table}"
        );
    }
}

#[test]
fn gradients_of_flm_on_slices_are_those_of_central_differences() {
    let (_, found) = gradients(Some(Tape::new()), true);
    let floor = 1e-4 * largest(&found);
    let exact = ready(&three_streams(), true, DType::F64);
    let config = exact.model.config().clone();
    let omission = omission();
    let pass = Pass::new().omitting(&omission);
    let value = || -> f64 {
        exact.weights.recast();
        let model = Flm::load(&exact.weights, config.clone()).expect("the model");
        let loss = loss(&model, &exact, &pass).expect("a loss");
        loss.to_scalar().expect("a number")
    };
    value(); // the variables are there
    for (name, variable) in exact.weights.variables() {
        let Some(gradient) = found.get(&name) else {
            continue;
        };
        let size = norm(gradient.iter().copied());
        if size <= floor {
            continue; // nothing but rounding: the bias of keys
        }
        // Along the gradient, a step that f32 variables can take.
        let values: Vec<f32> = (variable.flatten_all().and_then(|x| x.to_vec1())).expect("f32");
        let step = 1e-4 * norm(values.iter().map(|&x| f64::from(x))).max(0.03);
        let at = |sign: f64| -> (f64, Vec<f64>) {
            let moved: Vec<f32> = (values.iter().zip(gradient))
                .map(|(&x, g)| (f64::from(x) + sign * step * g / size) as f32)
                .collect();
            let exactly = moved.iter().map(|&x| f64::from(x)).collect();
            let moved = Tensor::from_vec(moved, variable.shape(), &Device::Cpu);
            variable.set(&moved.expect("a tensor")).expect("it is set");
            (value(), exactly)
        };
        let ((above, high), (below, low)) = (at(1.0), at(-1.0));
        let back = Tensor::from_vec(values, variable.shape(), &Device::Cpu);
        variable.set(&back.expect("a tensor")).expect("it is set");
        // The change that the steps in f32 should make.
        let path = high.iter().zip(&low).zip(gradient);
        let expected: f64 = path.map(|((high, low), g)| (high - low) * g).sum();
        let error = (above - below - expected).abs();
        assert!(
            error <= DIFFERENCE_TOLERANCE * expected.abs(),
            "{name}: {} instead of {expected}",
            above - below
        );
    }
}

#[test]
fn a_part_of_a_batch_drops_what_the_whole_batch_drops() -> Result<()> {
    let ready = ready(&three_streams(), false, DType::F32);
    let read = |texts: &Texts, images: &Images, queries: &Tensor, first| -> Result<Completed> {
        let omission = Omission {
            first,
            ..omission()
        };
        let queries = Queries {
            ids: queries,
            spans: None,
        };
        let pass = Pass::new().omitting(&omission);
        ready
            .model
            .complete(&Pair::new(texts, images), queries, &pass)
    };
    let whole = read(&ready.texts, &ready.images, &ready.queries, 0)?;
    for example in 0..ready.texts.ids.dim(0)? {
        let row = Tensor::new(&[example as u32], &Device::Cpu)?;
        let part = read(
            &ready.texts.select(&row)?,
            &ready.images.select(&row)?,
            &ready.queries.index_select(&row, 0)?,
            example,
        )?;
        for (part, whole) in [
            (part.forward, &whole.forward),
            (part.reverse, &whole.reverse),
            (part.queries, &whole.queries),
        ] {
            assert!(largest_difference(&part, &whole.narrow(0, example, 1)?) < 1e-5);
        }
    }
    Ok(())
}
