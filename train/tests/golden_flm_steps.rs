//! Steps of FLM's optimizer against the published program: losses before each, and weights after the last.

use std::collections::BTreeMap;

use candle_core::DType;
use evaluate::models::flm::GROUPING;
use evaluate::nn::{Gradients, Tape};
use fixtures::{Case, list, number, text};
use merge::io::OpenOptions;
use train::collective::Alone;
use train::losses::LossOptions;
use train::objectives::{Shared, Step};
use train::optim::{Decay, OptimSettings, Warmup};
use train::run::Updater;

use crate::fixture::l2;
use crate::flm_model::{Opened, given, open};

fixtures::golden_tests! {
    package: "train", set: "flm",
    golden_flm_steps_end_where_those_of_the_published_program_end: "train_steps" => steps,
}

fn settings(case: &Case) -> OptimSettings {
    let of = |name: &str| case.number(name).expect("a setting");
    let betas = list(&case["params"]["betas"]);
    OptimSettings {
        lr: of("learning_rate"),
        end_lr: of("end_lr"),
        warmup: Warmup::Steps(of("warmup_steps") as u64),
        decay: Decay::Power(of("decay_power")),
        beta1: number(&betas[0]),
        beta2: number(&betas[1]),
        epsilon: of("eps"),
        weight_decay: of("weight_decay"),
        head_weight_decay: of("weight_decay"),
        lr_mult: of("lr_mult_head"),
        cross_modal_lr_mult: of("lr_mult_cross_modal"),
        ..OptimSettings::default()
    }
}

/// Every tensor of a checkpoint in f32, by its name.
fn tensors(case: &Case, name: &str) -> BTreeMap<String, Vec<f64>> {
    let opened = merge::io::open(&case.set().path(name), &OpenOptions::default());
    let file = opened.expect("the file opens");
    let read = |(name, info): (&str, &merge::TensorInfo)| {
        let bytes = file.read_all(name).expect("bytes");
        let mut values = vec![0.0; info.n_elements()];
        merge::decode_f32(name, info.dtype, &bytes, &mut values).expect("numbers");
        (name.to_owned(), values.into_iter().map(f64::from).collect())
    };
    let floats = file
        .tensors()
        .filter(|(_, info)| info.dtype == merge::DType::F32);
    floats.map(read).collect()
}

fn steps(case: &Case) {
    let Opened { model, weights } = open(case, true, DType::F32);
    let given = given(case, &model, BTreeMap::new(), DType::F32);
    let loss = train::losses::by_name("flm", case.param("task").expect("a task"));
    let loss = loss.expect("a loss");
    let batch = loss.batch(&given).expect("a batch");
    let objective = loss.objective(&LossOptions::default(), batch.n);
    let objective = objective.expect("an objective");
    let total = case.count("max_steps").expect("a count") as u64;
    let variables = weights.variables();
    let updater = Updater::new(&settings(case), total, &variables, &GROUPING, &Alone);
    let mut updater = updater.expect("an updater");
    let expected = list(&case["expected"]).iter().map(text);
    let (ended, told): (Vec<_>, Vec<_>) = expected.partition(|name| !name.ends_with(".json"));
    let told = case.set().json(told[0]);
    let losses = list(&told["losses"]);
    assert_eq!(Some(losses.len()), case.count("steps"));
    for (index, expected) in losses.iter().enumerate() {
        let tape = Tape::new();
        let step = Step {
            model: &model,
            batch: &batch,
            collective: &Alone,
            drops: None,
            whole: None,
            routing: None,
            side_losses: None,
            experts: None,
            randomness: None,
            tape: Some(&tape),
            shared: &Shared::default(),
        };
        let found = objective.loss(&step).expect("a loss");
        let expected = number(expected);
        let error = (found.reported - expected).abs() / expected;
        let within = case.tolerance("", "loss_rtol");
        assert!(
            error <= within,
            "step {index}: {} instead of {expected}",
            found.reported
        );
        let mut gradients = Gradients::of(variables.values());
        tape.backward(&found.value, &mut gradients)
            .expect("gradients");
        let norm = updater
            .norm(&variables, &gradients, 1.0, &Alone)
            .expect("a norm");
        let updated = updater.update(index as u64, &variables, &gradients, (1.0, norm), &Alone);
        updated.expect("updated");
    }
    let start = tensors(case, text(&case["input"][0]));
    let end = tensors(case, ended[0]);
    let is_among =
        |list_of: &str, name: &str| list(&told[list_of]).iter().any(|other| *other == *name);
    let within = case.tolerance("", "movement_relative_l2");
    let mut n_compared = 0;
    for (name, variable) in &variables {
        let flat = variable
            .flatten_all()
            .and_then(|flat| flat.to_vec1::<f32>());
        let found: Vec<f64> = flat.expect("values").into_iter().map(f64::from).collect();
        if is_among("skip", name) {
            continue;
        }
        let apart = |a: &[f64], b: &[f64]| l2(a.iter().zip(b).map(|(a, b)| a - b));
        let moved = apart(&end[name], &start[name]);
        if is_among("untouched", name) {
            assert_eq!(found, start[name], "{name}");
            continue;
        }
        let error = apart(&found, &end[name]);
        assert!(
            error <= within * moved,
            "{name} is off by {error} of {moved}"
        );
        n_compared += 1;
    }
    assert!(n_compared > 0, "a comparison");
}
