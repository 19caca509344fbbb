//! Numbers that FLM's published program printed, case by case of `fixtures/flm/manifest.json`.

use fixtures::{Case, integers, list, number, text};
use train::augment::{Replacement, TokenKinds, WordMasking, fill, replace};
use train::optim::{Decay, Schedule, Warmup, Wave};

fixtures::golden_tests! {
    package: "train", set: "flm",
    words_are_masked_as_published: "mlm_collator" => mlm_collator,
    rates_are_those_of_the_published_schedules: "schedule" => schedule,
}

/// The label of a token that is not to be guessed.
const IGNORED: i64 = -100;

fn ids(value: &serde_json::Value) -> Vec<u32> {
    let ids = integers(value).into_iter();
    ids.map(|id| u32::try_from(id).expect("an id")).collect()
}

fn mlm_collator(case: &Case) {
    let file = case.set().json(text(&case["expected"][0]));
    let config = case.set().config();
    let id = |name: &str| config[name].as_u64().expect("an id") as u32;
    let masking = WordMasking {
        probability: fixtures::number(&file["mlm_prob"]),
        every_place: file["whole_word_masking"] == true,
        ..WordMasking::default()
    };
    let mask = file["mask_id"].as_u64().expect("an id") as u32;
    let [padding, first, last] = ["pad_token_id", "bos_token_id", "eos_token_id"].map(id);
    let kinds = TokenKinds {
        words: None,
        n_ids: id("vocab_size") as usize,
        mask,
        padding,
        borders: [first, last],
        special: vec![padding, first, last, mask, id("unk_token_id")],
    };
    for recorded in list(&file["cases"]) {
        for (nth, own) in list(&file["ids"]).iter().enumerate() {
            let own = ids(own);
            let [order, to_mask, to_random, random] = [
                "shuffled_positions",
                "replace_draw",
                "random_draw",
                "random_ids",
            ]
            .map(|name| integers(&recorded[name][nth]));
            let (words, budget) = masking.words(&kinds, &own);
            let words = order.iter().map(|&place| words[place as usize].clone());
            let masked = replace(&kinds, &own, fill(words.collect(), budget), |place| match (
                to_mask[place],
                to_random[place],
            ) {
                (1, _) => Replacement::Mask,
                (_, 1) => Replacement::Token(random[place] as u32),
                _ => Replacement::None,
            });
            assert_eq!(masked.ids, ids(&recorded["input_ids"][nth]), "text {nth}");
            let mut labels = vec![IGNORED; own.len()];
            for (&place, &label) in masked.places.iter().zip(&masked.labels) {
                labels[place as usize] = i64::from(label);
            }
            assert_eq!(labels, integers(&recorded["labels"][nth]), "text {nth}");
        }
    }
}

/// Steps of the optimizer: a number of them, or those of a number of times through the batches.
fn n_steps(trainer: &serde_json::Value) -> u64 {
    trainer["max_steps"].as_u64().unwrap_or_else(|| {
        let of = |name: &str| trainer[name].as_u64().expect("a number");
        of("train_batches") * of("max_epochs") / of("accumulate_grad_batches")
    })
}

fn schedule(case: &Case) {
    let file = case.set().json(text(&case["expected"][0]));
    let mut examples = list(&file).iter();
    let example = examples.find(|example| example["id"] == case["params"]["id"]);
    let example = example.expect("the example");
    let config = &example["config"];
    let total_steps = n_steps(&example["trainer"]);
    let warmup = &config["warmup_steps"];
    let warmup = match warmup.as_u64() {
        Some(steps) => Warmup::Steps(steps),
        None => Warmup::Share(number(warmup)),
    };
    let peak = number(&config["learning_rate"]);
    let schedule = Schedule {
        peak,
        end: number(&config["end_lr"]),
        warmup_steps: warmup.steps(total_steps),
        total_steps,
        // The published cosine goes up again behind its end.
        decay: match config["decay_power"].as_f64() {
            Some(power) => Decay::Power(power),
            None => Decay::Wave(Wave {
                cycles: 0.5,
                floor: 0.0,
            }),
        },
    };
    let rtol = case.tolerance("", "rtol");
    for point in list(&example["points"]) {
        let step = point["step"].as_u64().expect("a step");
        // Rest, heads and cross-modal layers, those that decay and those that do not.
        for (group, initial) in list(&example["initial_lr"]).iter().enumerate() {
            let found = schedule.rate(step) * (number(initial) / peak);
            let expected = number(&point["lr"][group]);
            let is_close = (found - expected).abs() <= rtol * expected.abs().max(peak * 1e-9);
            assert!(
                is_close,
                "step {step}, group {group}: {found} for {expected}"
            );
        }
    }
}
