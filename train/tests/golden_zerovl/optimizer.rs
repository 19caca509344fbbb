//! Rates, groups of variables and update rules.

use candle_core::{Device, Tensor, Var};
use evaluate::models::two_towers;
use fixtures::{Case, first_difference, list, number, text};
use serde_json::Value;
use train::optim::{
    AdamW, Curve, Decay, Flavor, GroupRules, Lars, Milestones, OptimSettings, Override,
    ParamGroups, Schedule, Stairs, Step, Warmup, Wave,
};

fixtures::golden_tests! {
    package: "train", set: "zerovl",
    rates_are_those_of_the_published_schedules: "schedule" => schedule,
    groups_are_those_of_the_published_rules: "param_groups" => param_groups,
    updates_are_those_of_torch: "optimizer" => optimizer,
}

/// A schedule by its published name, and whether it is warmed up.
pub fn curve(name: &Value, params: &Value) -> (Decay, bool) {
    let param = |name: &str, default: f64| params[name].as_f64().unwrap_or(default);
    let wave = |floor: f64| {
        Decay::Wave(Wave {
            cycles: param("num_cycles", 0.5),
            floor,
        })
    };
    match text(name) {
        "cosine_schedule_with_warmup_min_lr_scale" => (wave(param("min_lr_scale", 0.01)), true),
        "cosine_schedule_with_warmup" => (wave(0.0), true),
        "linear_schedule_with_warmup" => (Decay::Power(1.0), true),
        "constant_schedule_with_warmup" => (Decay::Named(Curve::Constant), true),
        "constant_schedule" => (Decay::Named(Curve::Constant), false),
        "multi_step_schedule_with_warmup" => {
            let steps = list(&params["milestone_steps"]).iter();
            let steps: Vec<Warmup> = steps
                .map(|step| Warmup::Steps(step.as_u64().expect("a step")))
                .collect();
            let milestones = Milestones::try_from(steps.as_slice()).expect("a few");
            let factor = param("gamma", 0.1);
            (Decay::Stairs(Stairs { milestones, factor }), true)
        }
        other => panic!("no schedule {other}"),
    }
}

fn schedule(case: &Case) {
    for example in list(&case.json("expected")) {
        let (decay, is_warmed_up) = curve(&example["schedule"], &example["params"]);
        let warmup = example["warmup_steps"].as_u64().expect("steps");
        let schedule = Schedule {
            peak: number(&example["base_lr"]),
            end: 0.0,
            warmup_steps: if is_warmed_up { warmup } else { 0 },
            total_steps: example["total_steps"].as_u64().expect("steps"),
            decay,
        };
        for point in list(&example["points"]) {
            let step = point[0].as_u64().expect("a step");
            let (found, expected) = (schedule.rate(step), number(&point[1]));
            let (rtol, atol) = (case.tolerance("", "rtol"), case.tolerance("", "atol"));
            let differs = first_difference(&[found], &[expected], rtol, atol);
            assert_eq!(differs, None, "{} at {step}", example["schedule"]);
        }
    }
}

/// The published rules of groups, by whatever names.
pub fn overrides(rules: &Value) -> Vec<Override> {
    let rules = rules.as_object().into_iter().flatten();
    let overrides = rules.map(|(_, rule)| Override {
        pattern: text(&rule["regex"]).into(),
        lr: rule["param"]["lr"].as_f64(),
        weight_decay: rule["param"]["weight_decay"].as_f64(),
    });
    overrides.collect()
}

fn param_groups(case: &Case) {
    let all = case.json("expected");
    let mut examples = list(&all).iter();
    let example = examples.find(|example| example["id"] == case["key"]);
    let example = example.expect("the example");
    let settings = OptimSettings {
        lr: number(&example["base_lr"]),
        weight_decay: number(&example["base_weight_decay"]),
        rules: GroupRules::All,
        overrides: overrides(&example["rules"]),
        ..OptimSettings::default()
    };
    let tensors = case.tensors("input");
    let expected = list(&example["groups"]);
    let names = expected.iter().map(|group| text(&group[0]));
    let variables = names.map(|name| (name, tensors[name].shape.as_slice()));
    let groups =
        ParamGroups::of(variables, &two_towers::GROUPING, &settings.groups()).expect("groups");
    for of in expected {
        let name = text(&of[0]);
        let group = groups.group(name).expect("its group");
        let found = (group.lr.unwrap_or(settings.lr), group.decay);
        assert_eq!(found, (number(&of[1]), number(&of[2])), "{name}");
        let factor = number(&of[1]) / settings.lr;
        assert!((group.rate_factor - factor).abs() < 1e-12, "{name}");
    }
}

fn optimizer(case: &Case) {
    let tensors = case.tensors_of("input", case.text("key"));
    let values = |name: &str| -> Vec<f32> {
        tensors[name]
            .values()
            .into_iter()
            .map(|v| v as f32)
            .collect()
    };
    let n_variables = (0..).take_while(|i| tensors.contains_key(&format!("p{i}.start")));
    for index in n_variables {
        let start = format!("p{index}.start");
        let shape = tensors[&start].shape.clone();
        let start = Tensor::from_vec(values(&start), shape, &Device::Cpu).expect("a tensor");
        let variable = Var::from_tensor(&start).expect("a variable");
        let n = variable.elem_count();
        let (mut first, mut second) = (vec![0.0; n], vec![0.0; n]);
        let n_steps = (0..).take_while(|s| tensors.contains_key(&format!("g{index}.step{s}")));
        let mut n_made = 0;
        for step in n_steps {
            let gradient = values(&format!("g{index}.step{step}"));
            let made = step_of(case, index, step);
            match case.text("key") {
                "adamw" => adamw(case)
                    .update_in_place(made, &variable, &gradient, 0..n, &mut first, &mut second)
                    .expect("a step"),
                "lars" => lars(case)
                    .update_in_place(made, &variable, &gradient, 0..n, &mut first)
                    .expect("a step"),
                other => panic!("no rule {other}"),
            }
            let found: Vec<f32> = (variable.flatten_all())
                .and_then(|flat| flat.to_vec1())
                .expect("values");
            let found: Vec<f64> = found.into_iter().map(f64::from).collect();
            let expected = tensors[&format!("p{index}.step{step}")].values();
            let (rtol, atol) = (case.tolerance("", "rtol"), case.tolerance("", "atol"));
            let differs = first_difference(&found, &expected, rtol, atol);
            assert_eq!(differs, None, "variable {index}, step {step}");
            n_made += 1;
        }
        assert!(n_made > 0);
    }
}

fn step_of(case: &Case, variable: usize, step: usize) -> Step {
    let params = &case["params"];
    let decay = &params["weight_decay"];
    Step {
        index: step as u64,
        rate: match params["lr_per_step"].as_array() {
            Some(rates) => number(&rates[step]),
            None => number(&params["lr"]),
        },
        decay: match decay.as_array() {
            Some(decays) => number(&decays[variable]),
            None => number(decay),
        },
        gradient_scale: 1.0,
    }
}

fn adamw(case: &Case) -> AdamW {
    let betas = list(&case["params"]["betas"]);
    AdamW {
        beta1: number(&betas[0]),
        beta2: number(&betas[1]),
        epsilon: case.number("eps").expect("a number"),
        correct_bias: true,
        flavor: Flavor::Torch,
    }
}

fn lars(case: &Case) -> Lars {
    Lars {
        momentum: case.number("momentum").expect("a number"),
        trust: case.number("eta").expect("a number"),
        epsilon: case.number("eps").expect("a number"),
    }
}
