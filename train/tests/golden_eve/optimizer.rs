//! The optimizer: rates, groups and steps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Device, Var};
use evaluate::models::eve::GROUPING;
use evaluate::models::{self, Overrides};
use evaluate::nn::Gradients;
use fixtures::{Case, Set, list, number, text};
use merge::convert::EveStart;
use merge::execute::{RunOptions, in_memory};
use merge::io::OpenOptions;
use merge::layouts::EveTask;
use merge::progress::Silent;
use train::collective::Alone;
use train::optim::{Decay, GroupKind, OptimSettings, ParamGroups, Warmup, Wave};
use train::run::Updater;

use super::{Tensors, size};
use crate::fixture::values;

fixtures::golden_tests! {
    package: "train", set: "eve",
    golden_eve_rates_are_those_of_the_published_schedules: "lr_schedule" => schedule,
    golden_eve_the_optimizer_steps_as_published: "adamw" => adamw,
}

fn schedule(case: &Case) {
    let row = case.json("expected");
    let row = &row[case["key"].as_u64().expect("an index") as usize];
    let warmup = &row["num_warmup_steps_config"];
    let settings = OptimSettings {
        lr: number(&row["lr"]),
        warmup: match warmup.as_u64() {
            Some(steps) => Warmup::Steps(steps),
            None => Warmup::Share(number(warmup)),
        },
        decay: match text(&row["sched"]) {
            "linear" => Decay::Power(1.0),
            // It rises again past the end.
            "cos" => Decay::Wave(Wave {
                cycles: 0.5,
                floor: 0.0,
            }),
            other => panic!("no schedule {other}"),
        },
        ..OptimSettings::default()
    };
    let total = row["total_steps"].as_u64().expect("steps");
    let schedule = settings.schedule(total);
    assert_eq!(Some(schedule.warmup_steps), row["warmup_steps"].as_u64());
    let rates = list(&row["lr_used_at_step"]);
    assert!(!rates.is_empty(), "a comparison");
    for (step, rate) in rates.iter().enumerate() {
        let (found, expected) = (schedule.rate(step as u64), number(rate));
        let within = case.tolerance("", "rel") * expected.abs() + case.tolerance("", "abs");
        assert!(
            (found - expected).abs() <= within,
            "step {step}: {found} instead of {expected}"
        );
    }
}

/// Variables of what begins with `start.`.
fn variables(tensors: &Tensors) -> BTreeMap<String, Var> {
    let started = tensors.iter().filter_map(|(name, raw)| {
        let variable = Var::from_tensor(&raw.tensor()).expect("a variable");
        Some((name.strip_prefix("start.")?.to_owned(), variable))
    });
    started.collect()
}

fn adamw(case: &Case) {
    let (info, tensors) = (case.json("info"), case.tensors("expected"));
    let groups = list(&info["groups"]);
    let names = |group: &serde_json::Value| -> Vec<String> {
        let names = list(&group["names"]).iter().map(text);
        names.map(str::to_owned).collect()
    };
    let [body, _, head, head_without] = [0, 1, 2, 3].map(|at: usize| &groups[at]);
    let lr = number(&body["lr"]);
    let steps = list(&info["steps"]);
    // Rates rise to the highest, and fall by as much in each step.
    let rates: Vec<f64> = steps.iter().map(|step| number(&step["lr"][0])).collect();
    let warmup = rates.iter().position(|rate| *rate == lr).expect("the peak");
    let falls = lr - rates[warmup + 1];
    let total = warmup as u64 + (lr / falls).round() as u64;
    let betas = list(&info["betas"]);
    let settings = OptimSettings {
        lr,
        lr_mult: number(&head["lr"]) / lr,
        weight_decay: number(&body["weight_decay"]),
        head_weight_decay: number(&head["weight_decay"]),
        warmup: Warmup::Steps(warmup as u64),
        decay: Decay::Power(1.0),
        beta1: number(&betas[0]),
        beta2: number(&betas[1]),
        epsilon: number(&info["eps"]),
        max_norm: Some(number(&info["clip"])),
        missing: Some([names(head), names(head_without)].concat()),
        ..OptimSettings::default()
    };
    let variables = variables(&tensors);
    let grouped: usize = groups.iter().map(|group| names(group).len()).sum();
    assert_eq!(grouped, variables.len());
    let mut updater = Updater::new(&settings, total, &variables, &GROUPING, &Alone).expect("one");
    let [rtol, atol] = ["rtol", "atol"].map(|name| case.tolerance("", name));
    let mut n_skipped = 0;
    for (index, step) in steps.iter().enumerate() {
        let mut gradients = Gradients::of(variables.values());
        for (name, variable) in &variables {
            match tensors.get(&format!("step{index}.grad.{name}")) {
                Some(raw) => gradients.add(variable, &raw.tensor()).expect("added"),
                None => n_skipped += 1,
            }
        }
        let norm = updater
            .norm(&variables, &gradients, 1.0, &Alone)
            .expect("a norm");
        let expected = number(&step["total_norm_before_clip"]);
        assert!(
            (norm - expected).abs() <= 1e-5 * expected,
            "{norm} instead of {expected}"
        );
        let updated = updater.update(index as u64, &variables, &gradients, (1.0, norm), &Alone);
        let rate = updated.expect("updated").rate;
        assert!(
            (rate - rates[index]).abs() <= 1e-12,
            "{rate} instead of {}",
            rates[index]
        );
        for (name, variable) in &variables {
            let expected = tensors[&format!("step{index}.after.{name}")].values();
            let differs = fixtures::first_difference(&values(variable), &expected, rtol, atol);
            assert_eq!(differs, None, "step {index}: {name}");
        }
    }
    assert!(n_skipped > steps.len(), "variables without a gradient");
    for (kept, ours) in [("exp_avg", "first"), ("exp_avg_sq", "second")] {
        let prefix = format!("final.{kept}.");
        for (name, raw) in &tensors {
            let Some(name) = name.strip_prefix(&prefix) else {
                continue;
            };
            let found = updater
                .whole(&format!("{ours}/{name}"), &Alone)
                .expect("moments");
            let found: Vec<f64> = found.iter().map(|&value| f64::from(value)).collect();
            let differs = fixtures::first_difference(&found, &raw.values(), rtol, atol);
            assert_eq!(differs, None, "{kept} of {name}");
        }
    }
}

/// A file that the manifest describes, with tensors of one set in the container of another.
fn source(case: &Case, folder: &std::path::Path) -> merge::Checkpoint {
    let open = |path: &std::path::Path| merge::io::open(path, &OpenOptions::default());
    let Some((file, how)) = case.text("input").split_once(' ') else {
        return open(&case.file("input")).expect("it opens");
    };
    let mut tensors = fixtures::tensors(&case.set().path(file));
    if how.starts_with("without the itc_vl_* keys") {
        tensors.retain(|key, _| !key.starts_with("itc_vl_"));
    }
    let path = folder.join("model.safetensors");
    fixtures::write(&path, &tensors);
    open(&path).expect("it opens")
}

#[test]
fn golden_eve_variables_are_grouped_as_published() {
    let set = Set::open("eve");
    let mut n_compared = 0;
    for case in set.cases("load") {
        let rules = case.json("expected");
        let rules = &rules[case["key"].as_u64().expect("an index") as usize];
        if rules["groups"].is_null() {
            continue;
        }
        n_compared += 1;
        let folder = tempfile::tempdir().expect("a folder");
        let task = case.param("task").expect("a task");
        let task = EveTask::ALL.iter().find(|(_, name)| *name == task);
        let start = EveStart {
            image_size: Some(size(&set, "image_size")),
            n_answers: Some(size(&set, "vqa_answers")),
            with_fresh_heads: case["params"]["load_head"] != true,
            ..EveStart::of(task.expect("a known task").0)
        };
        let source = Arc::new(source(&case, folder.path()));
        let (plan, report) = start.plan(source).expect("a plan");
        let model = in_memory(&plan, &RunOptions::default(), &Silent).expect("made");
        let overrides = Overrides {
            n_heads: Some(size(&set, "num_heads")),
            pair_len: Some(size(&set, "pairs_max_tokens")),
            ..Overrides::default()
        };
        let prepared = models::prepare(Arc::new(model), &overrides, &Device::Cpu, DType::F32);
        let (blueprint, weights) = prepared.expect("a model");
        let weights = weights.trainable();
        drop(blueprint.build(&weights).expect("it loads"));
        let told = list(&rules["group_settings"]);
        let settings = OptimSettings {
            lr: number(&told[0]["lr"]),
            lr_mult: number(&told[2]["lr_multiplier"]),
            weight_decay: number(&told[0]["weight_decay"]),
            head_weight_decay: number(&told[2]["weight_decay"]),
            missing: Some(report.missing),
            ..OptimSettings::default()
        };
        let variables = weights.variables();
        let shapes = variables
            .iter()
            .map(|(name, var)| (name.as_str(), var.dims()));
        let groups = ParamGroups::of(shapes, blueprint.grouping(), &settings.groups());
        let groups = groups.expect("groups");
        let kinds = [
            GroupKind::BodyDecay,
            GroupKind::BodyNoDecay,
            GroupKind::HeadDecay,
            GroupKind::HeadNoDecay,
        ];
        for (at, kind) in kinds.into_iter().enumerate() {
            let group = groups.groups().iter().find(|group| group.kind == kind);
            let found = group.map(|group| group.names.iter().map(String::as_str).collect());
            let found: BTreeSet<&str> = found.unwrap_or_default();
            let expected = rules["groups"][at.to_string()].as_array();
            let expected = expected.into_iter().flatten().map(text).collect();
            assert_eq!(found, expected, "{}: group {at}", case.id());
            if let Some(group) = group {
                let rate = group.rate_factor * settings.lr;
                assert!((rate - number(&told[at]["lr"])).abs() <= 1e-12);
                assert_eq!(group.decay, number(&told[at]["weight_decay"]));
            }
        }
    }
    assert!(n_compared > 0, "groups to compare");
}
