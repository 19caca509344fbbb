//! A pass with parts left out, and steps of training.

use std::collections::BTreeMap;
use std::sync::Arc;

use evaluate::batch::Pair;
use evaluate::forward::Recorder;
use evaluate::nn::{Buffers, GivenDrops, Gradient, Gradients, Omission, Routing, SideLosses, Tape};
use fixtures::{Case, list, number, text};
use train::collective::Alone;
use train::losses;
use train::objectives::{BALANCE_WEIGHT, Passes, Randomness, Shared, Step, by_name};
use train::optim::{Decay, OptimSettings, Warmup};
use train::run::{Backward, Told, Updater};

use super::{Tensors, check_norms, given, open, tolerances};
use crate::fixture::{NOTHING_OMITTED, l2, plain, values};

fixtures::golden_tests! {
    package: "train", set: "eve",
    golden_eve_a_pass_of_training_leaves_out_as_published: "train_mode" => train_mode,
    golden_eve_steps_end_where_those_of_the_published_program_end: "train_steps" => steps,
}

/// Every token goes where it scores best, with room for all.
pub fn unlimited(_: &str) -> Option<Routing> {
    Some(Routing::default())
}

/// The draws of a case.
struct Drawn {
    tensors: Tensors,
    /// By block.
    rates: Vec<f32>,
}

impl GivenDrops for Drawn {
    fn kept(&self, site: &str, _: usize, shape: &[usize]) -> candle_core::Result<Option<Vec<u8>>> {
        if site.ends_with("text.embed") {
            let kept = &self.tensors["text_dropout_keep"];
            assert_eq!(kept.shape, shape);
            return Ok(Some(kept.bytes.clone()));
        }
        let (block, branch) = site.split_once('.').expect("a block and a branch");
        let branch = if branch == "attn" { "attn" } else { "ffn" };
        let uniform = &self.tensors[&format!("{block}.drop_path_uniform.{branch}")];
        let block: usize = block["block".len()..].parse().expect("a number");
        let keep = 1.0 - self.rates[block];
        let kept = uniform
            .values()
            .into_iter()
            .map(|u| (keep + u as f32).floor() as u8);
        Ok(Some(kept.collect()))
    }
}

fn train_mode(case: &Case) {
    let expected = case.tensors("expected");
    let set = case.set();
    let config = set.config();
    let rates = list(&case["params"]["drop_path_rates"]);
    let drops: Arc<dyn GivenDrops> = Arc::new(Drawn {
        tensors: expected.clone(),
        rates: rates.iter().map(|rate| number(rate) as f32).collect(),
    });
    let randomness = Randomness {
        seed: 0,
        step: 0,
        drop_path: number(&config["drop_path_rate"]),
        dropout: number(&config["text_dropout"]),
        mix: None,
    };
    let trained = open(case, &case.tensors("weights"));
    let given = given(case, &trained, Tensors::new());
    let spec = losses::by_name("eve", "vqa").expect("a loss");
    let batch = spec.batch(&given).expect("a batch");
    // States.
    let omission = Omission {
        drop_path: randomness.drop_path,
        dropout: randomness.dropout,
        given: Some(Arc::clone(&drops)),
        ..Omission::default()
    };
    let (out, routing) = (Recorder::new(true), Routing::default());
    let pass = out.pass("vl").omitting(&omission).routed(&routing);
    let pair = Pair::new(
        batch.text.as_ref().expect("texts"),
        batch.image.as_ref().expect("images"),
    );
    let fusion = trained.model.fusion().expect("fusion");
    let fused = fusion.fuse(&pair, &pass).expect("it fuses");
    let normed = candle_core::Tensor::cat(&[&fused.image, &fused.text], 1).expect("tokens");
    out.add("vl.norm", &normed).expect("added");
    let found = out.into_tensors();
    let [rtol, atol] = tolerances(case, "forward", ["rtol", "atol"]);
    let states = expected.iter().filter(|(name, _)| name.starts_with("vl."));
    let mut n_compared = 0;
    for (name, raw) in states {
        let found = values(&found[name]);
        let differs = fixtures::first_difference(&found, &raw.values(), rtol, atol);
        assert_eq!(differs, None, "{name}");
        n_compared += 1;
    }
    assert!(n_compared > 1, "states to compare");
    // The loss and its gradients, on slices and as graphs.
    for tape in [Tape::new(), Tape::new().of_graphs()] {
        let objective = by_name("vqa", None).expect("an objective");
        let (losses, shared) = (SideLosses::new(), Shared::default());
        let step = Step {
            randomness: Some(randomness),
            drops: Some(&drops),
            routing: Some(&unlimited),
            side_losses: Some(&losses),
            tape: Some(&tape),
            ..Step::plain(trained.model.as_ref(), &batch, &Alone, &shared)
        };
        let loss = objective.loss(&step).expect("a loss");
        let close = |found: f64, name: &str| {
            let exact = expected[name].values();
            let differs = fixtures::first_difference(&[found], &exact, rtol, atol);
            assert_eq!(differs, None, "{name}");
        };
        close(loss.reported, "loss");
        let passes = Passes::of([objective.as_ref()], &batch);
        let balance = passes.balance(objective.as_ref(), &batch, losses.take());
        let balance = balance.expect("balance").expect("routers");
        close(BALANCE_WEIGHT * values(&balance)[0], "aux");
        let variables = trained.weights.variables();
        let mut gradients = Gradients::of(variables.values());
        tape.backward(&loss.value, &mut gradients)
            .expect("gradients");
        let mut norms = BTreeMap::new();
        for (name, variable) in &variables {
            if let Some(Gradient::Host(gradient)) = gradients.get(variable) {
                norms.insert(name.clone(), l2(gradient.iter().map(|&g| f64::from(g))));
            }
        }
        check_norms(case, case.id(), &norms, &case.json("expected_norms"));
    }
}

fn settings(told: &serde_json::Value, missing: Vec<String>) -> OptimSettings {
    OptimSettings {
        lr: number(&told["lr"]),
        lr_mult: number(&told["lr_mult"]),
        weight_decay: number(&told["weight_decay"]),
        head_weight_decay: number(&told["weight_decay"]),
        max_norm: Some(number(&told["clip"])),
        warmup: Warmup::Steps(number(&told["schedule"]["warmup"]) as u64),
        decay: Decay::Power(1.0),
        missing: Some(missing),
        ..OptimSettings::default()
    }
}

fn steps(case: &Case) {
    let told = case.json("expected");
    let trained = open(case, &case.tensors("weights"));
    let given = given(case, &trained, Tensors::new());
    let spec = losses::by_name("eve", "vqa").expect("a loss");
    let batch = spec.batch(&given).expect("a batch");
    let objectives = vec![(by_name("vqa", None).expect("an objective"), 1.0)];
    let variables = trained.weights.variables();
    // A pattern such as `output.*`.
    let new = text(&case["params"]["new_parameters"]).trim_end_matches('*');
    let missing = variables.keys().filter(|name| name.starts_with(new));
    let total = number(&told["schedule"]["total"]) as u64;
    let mut updater = Updater::new(
        &settings(&told, missing.cloned().collect()),
        total,
        &variables,
        trained.blueprint.grouping(),
        &Alone,
    )
    .expect("an updater");
    let within = |name: &str| case.tolerance("", name);
    let close = |what: &str, found: f64, expected: f64, within: f64| {
        let error = (found - expected).abs() / expected.abs();
        assert!(error <= within, "{what}: {found} instead of {expected}");
    };
    let rows = list(&told["steps"]);
    assert_eq!(Some(rows.len()), case.count("steps"));
    for (index, row) in rows.iter().enumerate() {
        let buffers = Buffers::default();
        let backward = Backward {
            routing: Some(&unlimited),
            // The published program leaves it out of question answering.
            balance: 0.0,
            randomness: Randomness {
                step: index as u64,
                ..NOTHING_OMITTED
            },
            ..plain(trained.model.as_ref(), &objectives, &buffers)
        };
        let (mut told, mut gradients) = (Told::default(), Gradients::of(variables.values()));
        let learned = backward.learn(&batch, None, &mut told, &mut gradients);
        learned.expect("gradients");
        let of = |name: &str| told.values[name].0;
        close("loss", of("loss"), number(&row["loss"]), within("loss_rel"));
        let aux = BALANCE_WEIGHT * of("loss/balance");
        close("aux", aux, number(&row["aux"]), within("loss_rel"));
        let norm = updater
            .norm(&variables, &gradients, 1.0, &Alone)
            .expect("a norm");
        close("norm", norm, number(&row["total_norm"]), within("norm_rel"));
        let updated = updater.update(index as u64, &variables, &gradients, (1.0, norm), &Alone);
        updated.expect("updated");
    }
    for (name, norm) in told["parameter_norms_after"].as_object().expect("norms") {
        let found = l2(values(&variables[name]).into_iter());
        close(name, found, number(norm), within("norm_rel"));
    }
}
