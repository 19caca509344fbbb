//! The update rule against torch (`tests/optimizer_reference.py`).

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor, Var};
use serde::Deserialize;
use train::optim::{AdamW, Decay, Ema, Flavor, LossScale, LossScaleSettings};
use train::optim::{OptimSettings, Schedule, Step, Warmup, clip};

use crate::fixture;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The tolerance of the reference, per element.
const TOLERANCE: f32 = 1e-6;

/// Differences that only the order of roundings makes.
const ROUNDING: f32 = 3e-7;

#[derive(Deserialize)]
struct Numbers {
    decay: BTreeMap<String, f64>,
    rates: Vec<f64>,
    clip: BTreeMap<String, Clip>,
    schedules: Vec<Rates>,
    scaling: Scaling,
}

#[derive(Deserialize)]
struct Clip {
    norm: f64,
    factor: f64,
}

#[derive(Deserialize)]
struct Rates {
    peak: f64,
    end: f64,
    warmup: Warmup,
    total: u64,
    decay: Decay,
    every: u64,
    rates: Vec<f64>,
}

#[derive(Deserialize)]
struct Scaling {
    growth_steps: u64,
    finite: Vec<bool>,
    scales: Vec<f64>,
}

struct Reference {
    numbers: Numbers,
    tensors: HashMap<String, Tensor>,
}

impl Reference {
    fn read() -> Result<Self, Box<dyn std::error::Error>> {
        let text = std::fs::read_to_string(fixture::path("optim/numbers.json"))?;
        let path = fixture::path("optim/adamw.safetensors");
        Ok(Self {
            numbers: serde_json::from_str(&text)?,
            tensors: candle_core::safetensors::load(path, &Device::Cpu)?,
        })
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, String> {
        self.tensors.get(name).ok_or(format!("no {name}"))
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
        Ok(self.tensor(name)?.flatten_all()?.to_vec1()?)
    }

    fn step(&self, index: usize, name: &str) -> Step {
        Step {
            index: index as u64,
            rate: self.numbers.rates[index],
            decay: self.numbers.decay[name],
            gradient_scale: 1.0,
        }
    }
}

fn rule(flavor: Flavor) -> AdamW {
    let settings = OptimSettings {
        flavor,
        ..OptimSettings::default()
    };
    settings.adamw()
}

fn assert_close(found: &[f32], wanted: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (index, (a, b)) in found.iter().zip(wanted).enumerate() {
        assert!((a - b).abs() <= tolerance, "{what}[{index}]: {a} for {b}");
    }
}

#[test]
fn every_step_of_both_flavors_is_that_of_torch() -> Outcome {
    let reference = Reference::read()?;
    for (flavor, prefix) in [(Flavor::Published, "published"), (Flavor::Torch, "torch")] {
        for name in reference.numbers.decay.keys() {
            let mut p = reference.values(&format!("start.{name}"))?;
            let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
            for index in 0..reference.numbers.rates.len() {
                let g = reference.values(&format!("gradient.{index}.{name}"))?;
                rule(flavor).update(reference.step(index, name), &mut p, &g, &mut m, &mut v)?;
                let key = format!("{prefix}.{index}.{name}");
                assert_close(&p, &reference.values(&key)?, TOLERANCE, &key);
            }
            let first = reference.values(&format!("first_moment.{name}"))?;
            assert_close(&m, &first, TOLERANCE, "first moment");
            for (a, b) in v
                .iter()
                .zip(reference.values(&format!("second_moment.{name}"))?)
            {
                assert!((a - b).abs() <= 1e-6 * b.abs().max(f32::MIN_POSITIVE));
            }
        }
    }
    Ok(())
}

#[test]
fn the_flavors_differ_where_gradients_are_as_small_as_epsilon() -> Outcome {
    let step = Step {
        index: 0,
        rate: 1.0,
        decay: 0.0,
        gradient_scale: 1.0,
    };
    let mut moved = [0.0f32; 2];
    for (p, flavor) in moved.iter_mut().zip([Flavor::Published, Flavor::Torch]) {
        rule(flavor).update(
            step,
            std::slice::from_mut(p),
            &[1e-8],
            &mut [0.0],
            &mut [0.0],
        )?;
    }
    // First step: m = 0.1 g, v = 0.02 g², g = ε. Published: √0.02 · ε / (√0.02 ε + ε); torch: ε / (ε + ε).
    let root = 0.02f32.sqrt();
    assert_close(
        &moved,
        &[-root / (root + 1.0), -0.5],
        ROUNDING,
        "first step",
    );
    Ok(())
}

#[test]
fn neither_cuts_nor_threads_change_a_bit() -> Outcome {
    let n = 100_003;
    let g: Vec<f32> = (0..n)
        .map(|i| ((i * 37 % 1009) as f32 - 500.0) / 300.0)
        .collect();
    let start: Vec<f32> = (0..n).map(|i| (i % 91) as f32 / 45.0 - 1.0).collect();
    let step = |index| Step {
        index,
        rate: 1e-3,
        decay: 0.01,
        gradient_scale: 0.7,
    };
    let rule = rule(Flavor::Published);
    let run = |cuts: &[usize]| -> train::Result<Vec<f32>> {
        let (mut p, mut m, mut v) = (start.clone(), vec![0.0; n], vec![0.0; n]);
        for index in 0..3 {
            for ends in cuts.windows(2) {
                let range = ends[0]..ends[1];
                rule.update(
                    step(index),
                    &mut p[range.clone()],
                    &g[range.clone()],
                    &mut m[range.clone()],
                    &mut v[range],
                )?;
            }
        }
        Ok(p)
    };
    let whole = run(&[0, n])?;
    assert!(whole != start);
    assert_eq!(whole, run(&[0, 1, 17, 50_001, n])?);
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    assert_eq!(whole, one_thread.install(|| run(&[0, n]))?);
    Ok(())
}

#[test]
fn variables_are_updated_in_place_and_by_operations_alike() -> Outcome {
    let reference = Reference::read()?;
    for flavor in [Flavor::Published, Flavor::Torch] {
        let start = reference.tensor("start.wide")?;
        let n = start.elem_count();
        let in_place = Var::from_tensor(&start.copy()?)?;
        let shared = in_place.as_detached_tensor();
        let twin = Var::from_tensor(&start.copy()?)?;
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        let (mut first, mut second) = (twin.zeros_like()?, twin.zeros_like()?);
        for index in 0..4 {
            let step = Step {
                gradient_scale: 0.5,
                ..reference.step(index, "wide")
            };
            let g = reference.tensor(&format!("gradient.{index}.wide"))?;
            let (left, right) = (m.split_at_mut(10), v.split_at_mut(10));
            let rule = rule(flavor);
            let values: Vec<f32> = g.flatten_all()?.to_vec1()?;
            rule.update_in_place(step, &in_place, &values, 0..10, left.0, right.0)?;
            rule.update_in_place(step, &in_place, &values, 10..n, left.1, right.1)?;
            (first, second) = rule.update_by_operations(step, &twin, g, &first, &second)?;
        }
        let found: Vec<f32> = in_place.flatten_all()?.to_vec1()?;
        assert_close(&found, &twin.flatten_all()?.to_vec1()?, ROUNDING, "twin");
        assert_close(
            &m,
            &first.flatten_all()?.to_vec1()?,
            ROUNDING,
            "first moment",
        );
        let [a, b] = [start, &shared].map(|t| t.flatten_all()?.to_vec1::<f32>());
        assert!(a? != found, "nothing moved");
        assert_eq!(b?, found, "the variable has left its memory");
    }
    Ok(())
}

#[test]
fn slices_of_different_lengths_and_other_dtypes_are_refused() -> Outcome {
    let step = Step {
        index: 0,
        rate: 1.0,
        decay: 0.0,
        gradient_scale: 1.0,
    };
    let rule = rule(Flavor::Published);
    let mut p = [1.0; 3];
    let outcome = rule.update(step, &mut p, &[1.0; 2], &mut [0.0; 3], &mut [0.0; 3]);
    assert!(matches!(
        outcome,
        Err(train::Error::SliceLengths { gradient: 2, .. })
    ));
    assert_eq!(p, [1.0; 3]);
    let half = Var::zeros(3, DType::BF16, &Device::Cpu)?;
    let g = [1.0; 3];
    let (mut m, mut v) = ([0.0; 3], [0.0; 3]);
    assert!(
        rule.update_in_place(step, &half, &g, 0..3, &mut m, &mut v)
            .is_err()
    );
    let whole = Var::zeros(3, DType::F32, &Device::Cpu)?;
    assert!(
        rule.update_in_place(step, &whole, &g, 1..4, &mut m, &mut v)
            .is_err()
    );
    Ok(())
}

#[test]
fn norm_and_factor_are_those_of_torch() -> Outcome {
    let parts = [70_001, 5, 300]
        .map(|n| -> Vec<f32> { (0..n).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect() });
    for (bound, wanted) in Reference::read()?.numbers.clip {
        let squares = parts.iter().map(|part| clip::square_sum(part));
        let norm = squares.sum::<f64>().sqrt();
        assert!(
            (norm / wanted.norm - 1.0).abs() < 1e-6,
            "{norm} for {}",
            wanted.norm
        );
        let factor = clip::clip_factor(norm, bound.parse()?);
        assert!((factor / wanted.factor - 1.0).abs() < 1e-6, "{factor}");
    }
    assert!(clip::clip_factor(f64::NAN, 1.0).is_nan());
    assert_eq!(clip::square_sum(&[3.0, 4.0, 12.0]), 169.0);
    Ok(())
}

#[test]
fn rates_are_those_of_the_published_formula() -> Outcome {
    for case in Reference::read()?.numbers.schedules {
        let schedule = Schedule {
            peak: case.peak,
            end: case.end,
            warmup_steps: case.warmup.steps(case.total),
            total_steps: case.total,
            decay: case.decay,
        };
        for (index, wanted) in case.rates.iter().enumerate() {
            let rate = schedule.rate(index as u64 * case.every);
            assert!(
                (rate - wanted).abs() <= 1e-12,
                "{schedule:?} {index}: {rate} for {wanted}"
            );
        }
    }
    Ok(())
}

#[test]
fn the_loss_scale_moves_like_that_of_torch() -> Outcome {
    let case = Reference::read()?.numbers.scaling;
    let mut scale = LossScale::new(LossScaleSettings {
        growth_steps: case.growth_steps,
        ..LossScaleSettings::default()
    });
    assert!(!case.scales.is_empty());
    assert_eq!(case.finite.len(), case.scales.len());
    for (finite, wanted) in case.finite.iter().zip(&case.scales) {
        scale.note(*finite);
        assert_eq!(scale.scale(), *wanted);
        let kept: LossScale = serde_json::from_str(&serde_json::to_string(&scale)?)?;
        assert_eq!(kept, scale);
    }
    Ok(())
}

#[test]
fn an_average_follows_its_formula_and_changes_places_with_the_weights() -> Outcome {
    let variable = Var::new(&[1.0f32, 2.0], &Device::Cpu)?;
    let variables = BTreeMap::from([("w".to_owned(), variable.clone())]);
    let mut ema = Ema::new(0.75, &variables)?;
    variable.set(&Tensor::new(&[5.0f32, -2.0], &Device::Cpu)?)?;
    ema.update(&variables)?;
    ema.swap(&variables)?;
    // 0.75 · (1, 2) + 0.25 · (5, −2)
    assert_eq!(variable.to_vec1::<f32>()?, [2.0, 1.0]);
    ema.swap(&variables)?;
    assert_eq!(variable.to_vec1::<f32>()?, [5.0, -2.0]);
    let other = BTreeMap::from([("other".to_owned(), variable)]);
    assert!(matches!(
        ema.update(&other),
        Err(train::Error::NotAveraged { .. })
    ));
    Ok(())
}

#[test]
fn settings_are_read_as_recipes_spell_them() -> Outcome {
    let read = serde_saphyr::from_str::<OptimSettings>;
    let settings = read("lr: 3e-5\nwarmup: 0.1\ndecay: cosine\nflavor: torch\n")?;
    assert_eq!(settings.warmup, Warmup::Share(0.1));
    assert_eq!(settings.schedule(200).warmup_steps, 20);
    assert_eq!(settings.schedule(200).rate(20), 3e-5);
    assert_eq!(read("warmup: 2500\ndecay: 1\n")?, OptimSettings::default());
    assert!(read("learning_rate: 1\n").is_err());
    let text = serde_json::to_string(&settings)?;
    assert_eq!(serde_json::from_str::<OptimSettings>(&text)?, settings);
    Ok(())
}

#[test]
fn the_steps_of_a_run_are_counted_as_published() -> Outcome {
    use train::optim::{accumulation, total_steps};
    assert_eq!(accumulation(1056, 22, 48)?, 1);
    assert_eq!(accumulation(512, 8, 4)?, 16);
    assert!(accumulation(1024, 22, 48).is_err());
    assert!(accumulation(100, 8, 4).is_err());
    // ⌊7 · 3 / 4⌋
    assert_eq!(total_steps(7, 3, 4), 5);
    Ok(())
}

#[test]
fn a_number_out_of_its_range_is_named() -> Outcome {
    OptimSettings::default().check()?;
    for text in [
        "lr: -1",
        "end_lr: .nan",
        "warmup: 2500.0",
        "decay: -2",
        "beta1: 1",
        "beta2: 1.5",
        "epsilon: 0",
        "weight_decay: -0.1",
        "head_weight_decay: .inf",
        "lr_mult: -3",
        "max_norm: 0",
        "ema: 1",
    ] {
        let settings: OptimSettings = serde_saphyr::from_str(text)?;
        let name = text.split(':').next().unwrap_or_default();
        let said = settings.check().err().map(|e| e.to_string());
        assert!(
            said.is_some_and(|said| said.contains(&format!("`optim.{name}`"))),
            "{text}"
        );
    }
    Ok(())
}
