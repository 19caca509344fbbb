//! Gradients of towers: on slices against graphs of candle's operations, both against differences.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use evaluate::models::{Bert, Vit, bert, vit};
use evaluate::nn::{Gradient, Gradients, Mask, Omission, Pass, Tape};
use evaluate::{Result, Weights};
use merge::Checkpoint;
use merge::io::OpenOptions;

use crate::fixture::path;

/// Heads of the tiny towers.
const HEADS: usize = 4;

/// Of gradients, relative L2 per tensor: sums in another order.
const TOLERANCE: f64 = 1e-4;

/// Of differences, relative: the third derivative times the step squared, and f32.
const DIFFERENCE_TOLERANCE: f64 = 2e-3;

/// Gradients below this share of the largest are compared absolutely.
const FLOOR: f64 = 1e-6;

#[derive(Clone, Copy, PartialEq)]
enum Tower {
    Image,
    /// The image tower, of which the class token alone is read.
    Class,
    Text,
}

impl Tower {
    const ALL: [Self; 3] = [Self::Image, Self::Class, Self::Text];
}

fn checkpoint(tower: Tower) -> Arc<Checkpoint> {
    let file = match tower {
        Tower::Image | Tower::Class => "towers/vit.safetensors",
        Tower::Text => "towers/bert.safetensors",
    };
    let opened = merge::io::open(&path(file), &OpenOptions::default());
    Arc::new(opened.expect("the file opens"))
}

fn weights(tower: Tower, dtype: DType) -> Weights {
    let weights = match tower {
        Tower::Image | Tower::Class => Vit::weights(checkpoint(tower), &Device::Cpu, dtype),
        Tower::Text => Bert::weights(checkpoint(tower), &Device::Cpu, dtype),
    };
    weights.expect("names are known").trainable()
}

fn omission(n_examples_before: usize) -> Omission {
    Omission {
        drop_path: 0.5,
        dropout: 0.2,
        seed: 5,
        name: "3/a.pass".into(),
        first: n_examples_before,
        ..Omission::default()
    }
}

/// The inputs of both towers.
fn inputs() -> BTreeMap<String, Tensor> {
    let file = path("towers/expected.safetensors");
    let loaded = candle_core::safetensors::load(file, &Device::Cpu).expect("tensors");
    loaded.into_iter().collect()
}

/// A scalar that every real token has a part in, its own in each place.
fn loss(tower: Tower, weights: &Weights, pass: &Pass<'_>) -> Result<Tensor> {
    let inputs = inputs();
    let tokens = match tower {
        Tower::Image | Tower::Class => {
            let config = vit::Config::read(weights, "", Some(HEADS))?;
            let image = inputs["image"].to_dtype(weights.dtype())?;
            let model = Vit::load(weights, "", config)?;
            match tower {
                Tower::Class => model.class(&image, pass)?,
                _ => model.tokens(&image, pass)?,
            }
        }
        Tower::Text => {
            let config = bert::Config::read(weights, "", Some(HEADS))?;
            let mask = Mask::new(&inputs["text_masks"])?;
            Bert::load(weights, "", config)?.tokens(&inputs["text_ids"], &mask, pass)?
        }
    };
    let n = tokens.elem_count();
    let places: Vec<f32> = (0..n).map(|at| (at as f32 * 0.7).sin()).collect();
    let places = Tensor::from_vec(places, tokens.shape(), &Device::Cpu)?;
    let places = match tower {
        Tower::Image | Tower::Class => places,
        Tower::Text => {
            let kept = inputs["text_masks"].to_dtype(DType::F32)?;
            places.broadcast_mul(&kept.unsqueeze(2)?)?
        }
    };
    Ok((tokens.sqr()? * places.to_dtype(tokens.dtype())?)?.sum_all()?)
}

type Found = BTreeMap<String, Vec<f64>>;

/// All gradients, through `tape`, or candle's graph of everything.
fn gradients(tower: Tower, tape: Option<Tape>, is_random: bool) -> (f64, Found) {
    let weights = weights(tower, DType::F32);
    let omission = omission(0);
    let mut pass = Pass::new().within("tower");
    if is_random {
        pass = pass.omitting(&omission);
    }
    if let Some(tape) = &tape {
        pass = pass.recorded(tape);
    }
    let loss = loss(tower, &weights, &pass).expect("a loss");
    let value = loss.to_scalar::<f32>().expect("a number");
    let variables = weights.variables();
    let mut sums = Gradients::of(variables.values());
    match tape {
        Some(tape) => tape.backward(&loss, &mut sums).expect("gradients"),
        None => {
            let found = loss.backward().expect("gradients");
            sums.absorb(&found).expect("gradients");
        }
    }
    let list = |variable: &Var| match sums.get(variable) {
        Some(Gradient::Host(values)) => values.iter().map(|&value| f64::from(value)).collect(),
        Some(Gradient::Device(_)) => panic!("the processor's gradients are in memory"),
        None => panic!("a variable without a gradient"),
    };
    let found = variables
        .iter()
        .map(|(name, var)| (name.clone(), list(var)));
    (f64::from(value), found.collect())
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
fn towers_learn_on_slices_and_by_segments_what_they_learn_by_one_graph() {
    type Make = fn() -> Tape;
    let tapes: [(&str, Make); 4] = [
        ("slices", Tape::new),
        ("slices, computed again", Tape::checkpointing),
        ("graphs", || Tape::new().of_graphs()),
        ("graphs, computed again", || {
            Tape::checkpointing().of_graphs()
        }),
    ];
    for tower in Tower::ALL {
        for is_random in [false, true] {
            let (expected_loss, expected) = gradients(tower, None, is_random);
            let floor = FLOOR * largest(&expected);
            for (how, tape) in tapes {
                let (loss, found) = gradients(tower, Some(tape()), is_random);
                assert!(
                    (loss - expected_loss).abs() <= 1e-5 * expected_loss.abs(),
                    "{how}"
                );
                assert_eq!(found.len(), expected.len());
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
}

#[test]
fn gradients_on_slices_are_those_of_central_differences() {
    for tower in Tower::ALL {
        let (_, found) = gradients(tower, Some(Tape::new()), true);
        let floor = 1e-4 * largest(&found);
        let exact = weights(tower, DType::F64);
        let omission = omission(0);
        let pass = Pass::new().within("tower").omitting(&omission);
        let value = || -> f64 {
            exact.recast();
            let loss = loss(tower, &exact, &pass).expect("a loss");
            loss.to_scalar().expect("a number")
        };
        value(); // the variables are there
        for (name, variable) in exact.variables() {
            let gradient = &found[&name];
            let size = norm(gradient.iter().copied());
            if size <= floor {
                continue; // nothing but rounding: the bias of keys
            }
            // Along the gradient, a step that f32 variables can take.
            let values: Vec<f32> = (variable.flatten_all().and_then(|x| x.to_vec1())).expect("f32");
            let step = 1e-3 * norm(values.iter().map(|&x| f64::from(x))).max(0.1);
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
}

#[test]
fn a_part_of_a_batch_drops_what_the_whole_batch_drops() -> Result<()> {
    let inputs = inputs();
    let weights = weights(Tower::Text, DType::F32);
    let config = bert::Config::read(&weights, "", Some(HEADS))?;
    let tower = Bert::load(&weights, "", config)?;
    let (ids, kept) = (&inputs["text_ids"], &inputs["text_masks"]);
    let b = ids.dim(0)?;
    let whole = omission(0);
    let whole = Pass::new().omitting(&whole);
    let whole = tower.tokens(ids, &Mask::new(kept)?, &whole)?;
    for example in 0..b {
        let part = omission(example);
        let part = Pass::new().omitting(&part);
        let (ids, kept) = (ids.narrow(0, example, 1)?, kept.narrow(0, example, 1)?);
        let tokens = tower.tokens(&ids.contiguous()?, &Mask::new(&kept)?, &part)?;
        let error = (tokens - whole.narrow(0, example, 1)?)?.abs()?;
        let kept = kept.to_dtype(DType::F32)?.unsqueeze(2)?;
        let error = error.broadcast_mul(&kept)?.max_all()?;
        assert!(error.to_scalar::<f32>()? < 1e-5);
    }
    Ok(())
}

#[test]
fn dropout_of_bert_has_the_published_sites() -> Result<()> {
    /// Notes sites and shapes, and keeps everything.
    #[derive(Default)]
    struct Sites(std::sync::Mutex<Vec<(String, Vec<usize>)>>);
    impl evaluate::nn::GivenDrops for Sites {
        fn kept(
            &self,
            site: &str,
            _: usize,
            shape: &[usize],
        ) -> candle_core::Result<Option<Vec<u8>>> {
            let mut sites = self.0.lock().expect("not poisoned");
            sites.push((site.to_owned(), shape.to_vec()));
            Ok(Some(vec![1; shape.iter().product()]))
        }
    }
    let inputs = inputs();
    let weights = weights(Tower::Text, DType::F32);
    let config = bert::Config::read(&weights, "", Some(HEADS))?;
    let tower = Bert::load(&weights, "", config.clone())?;
    let sites = Arc::new(Sites::default());
    let omission = Omission {
        given: Some(Arc::clone(&sites) as Arc<dyn evaluate::nn::GivenDrops>),
        ..omission(0)
    };
    let pass = Pass::new().omitting(&omission).within("text");
    tower.tokens(
        &inputs["text_ids"],
        &Mask::new(&inputs["text_masks"])?,
        &pass,
    )?;
    let (b, t) = inputs["text_ids"].dims2()?;
    let mut expected = vec![("text.embeddings".to_owned(), vec![b, t, config.width])];
    for layer in 0..config.n_blocks {
        let site =
            |part: &str, shape: &[usize]| (format!("text.layer{layer}.{part}"), shape.to_vec());
        expected.push(site("attention_probs", &[b, HEADS, t, t]));
        expected.push(site("attention_output", &[b, t, config.width]));
        expected.push(site("ffn_output", &[b, t, config.width]));
    }
    let found = sites.0.lock().expect("not poisoned");
    assert_eq!(*found, expected);
    Ok(())
}
