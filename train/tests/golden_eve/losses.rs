//! Losses and their gradients, through the same code as `vlmerge forward`.

use std::collections::BTreeMap;

use evaluate::models::{Branch, image_features, text_features};
use evaluate::nn::{Pass, SideLosses, Tape};
use fixtures::{Case, list, number, text};
use train::losses::{self, Computed, LossOptions};
use train::objectives::{NegativeRules, PairSettings, Passes, by_name};
use train::optim::OptimSettings;
use train::run::Updater;

use super::{Tensors, Trained, check_loss, check_norms, expected, given, open, tolerances};
use crate::fixture::{l2, values};

fixtures::golden_tests! {
    package: "train", set: "eve",
    golden_eve_losses_are_those_of_the_published_program: "loss" => loss,
    golden_eve_gradients_have_the_published_lengths: "gradient_norms" => norms,
    golden_eve_gradients_are_those_of_the_published_program: "gradient" => gradient,
    golden_eve_the_temperature_is_clamped_as_published: "temperature_clamp" => clamp,
    golden_eve_balance_is_averaged_over_the_passes_that_are_counted: "stale_counters" => stale,
}

/// A way to compute gradients, and what it is called.
type How = (&'static str, fn() -> Option<Tape>);

const HOWS: [How; 5] = [
    ("slices", || Some(Tape::new())),
    ("one graph", || None),
    ("slices, computed again", || Some(Tape::checkpointing())),
    ("graphs", || Some(Tape::new().of_graphs())),
    ("graphs, computed again", || {
        Some(Tape::checkpointing().of_graphs())
    }),
];

/// The name of a loss: its task, and the part unless that is what the published program learns from.
fn name_of(task: &str, part: &str) -> String {
    let task = task.split('_').next().unwrap_or(task);
    match part {
        "total" | "loss" => task.to_owned(),
        _ => format!("{task}.{part}"),
    }
}

/// Negatives and the noise of routers, as the model calls them.
fn extra(case: &Case) -> Tensors {
    let all = case.tensors("extra_inputs").into_iter();
    let noise = format!("legacy.{}.", case.param("task").unwrap_or("retrieval"));
    let is_fed = case.param("noise") == Some("fed");
    let named = all.filter_map(|(name, raw)| {
        let negatives = name.strip_prefix("neg.");
        let noise = name.strip_prefix(&noise).filter(|_| is_fed);
        Some((negatives.or(noise)?.to_owned(), raw))
    });
    named.collect()
}

fn computed(case: &Case, trained: &Trained, name: &str, how: fn() -> Option<Tape>) -> Computed {
    let given = given(case, trained, extra(case));
    let spec = losses::by_name("eve", name).expect("a loss");
    let (model, options) = (trained.model.as_ref(), LossOptions::default());
    let computed = spec.compute_by(model, &trained.weights, &given, &options, &how);
    computed.expect("a loss")
}

fn of_case(case: &Case, part: &str, how: fn() -> Option<Tape>) -> Computed {
    let name = name_of(case.param("task").expect("a task"), part);
    computed(case, &open(case, &case.tensors("weights")), &name, how)
}

/// The last key of a case: the part of the loss.
fn part(case: &Case) -> &str {
    list(&case["key"]).last().map(text).expect("a part")
}

fn loss(case: &Case) {
    let expected = number(&expected(case));
    for (said, how) in HOWS {
        let found = of_case(case, part(case), how).loss;
        check_loss(case, &format!("{}, {said}", case.id()), found, expected);
    }
}

fn norms(case: &Case) {
    let expected = expected(case);
    for (said, how) in HOWS {
        let found = of_case(case, part(case), how).gradients.into_iter();
        let found = found.map(|(name, gradient)| (name, l2(values(&gradient).into_iter())));
        let found: BTreeMap<String, f64> = found.collect();
        check_norms(case, &format!("{}, {said}", case.id()), &found, &expected);
        // An expert that nobody chose has a gradient of zeros, not none: it decays.
        let is_of_expert = |name: &&String| name.contains(".experts.experts.");
        let n_experts = expected.as_object().expect("norms").keys();
        let n_experts = n_experts.filter(is_of_expert).count();
        if part(case) != "aux" {
            assert_eq!(
                found.keys().filter(is_of_expert).count(),
                n_experts,
                "{said}"
            );
        }
    }
}

fn gradient(case: &Case) {
    let expected = case.tensors("expected");
    let [tolerance] = tolerances(case, "gradient", ["rel_l2_per_tensor"]);
    let largest = expected.values().map(|raw| l2(raw.values().into_iter()));
    let floor = 1e-6 * largest.fold(0.0, f64::max);
    assert!(floor > 0.0, "a comparison");
    for (said, how) in HOWS {
        let found = of_case(case, case.text("loss"), how).gradients;
        for (name, raw) in &expected {
            let exact = raw.values();
            let found = found
                .get(name)
                .map_or_else(|| vec![0.0; exact.len()], values);
            let error = l2(found.iter().zip(&exact).map(|(a, b)| a - b));
            let within = (tolerance * l2(exact.into_iter())).max(floor);
            assert!(
                error <= within,
                "{}, {said}: {name} is off by {error}",
                case.id()
            );
        }
    }
    negatives(case);
}

/// The weights that negatives are drawn by.
fn negatives(case: &Case) {
    if case.param("task") != Some("retrieval") {
        return;
    }
    let way = if case.param("noise") == Some("fed") {
        "legacy"
    } else {
        "plain"
    };
    let all = case.tensors("extra_inputs");
    // The temperature of the checkpoint.
    let scale = 1.0 / case.tensors("weights")["itc_temp"].values()[0];
    let same = case.tensors("inputs")["idx"].integers();
    let same: Vec<u32> = same.into_iter().map(|image| image as u32).collect();
    let rules = NegativeRules {
        scale,
        first: 0,
        floor: PairSettings::EVE.floor as f32,
        same: Some(&same),
    };
    let trained = open(case, &case.tensors("weights"));
    let given = given(case, &trained, extra(case));
    let named = trained.model.named_passes().expect("passes");
    let routing = [0, 1].map(|pass| {
        named
            .routing(&given, pass)
            .expect("routing")
            .expect("a way")
    });
    let passes = [0, 1].map(|nth: usize| Pass::new().routed(&routing[nth]));
    let (images, texts) = (given.images("image"), given.texts("ids", "atts"));
    let (model, branch) = (trained.model.as_ref(), Branch::Apart);
    let images = image_features(model, &images.expect("images"), branch, &passes[0]);
    let texts = text_features(model, &texts.expect("texts"), branch, &passes[1]);
    let (images, texts) = (images.expect("features"), texts.expect("features"));
    for (name, own, others) in [
        ("image_for_text", &texts, &images),
        ("text_for_image", &images, &texts),
    ] {
        let expected = &all[&format!("{way}.negative_weights.{name}")];
        let scores = own
            .matmul(&others.t().expect("columns"))
            .expect("similarities");
        let scores = (scores * scale).and_then(|scores| scores.to_vec2::<f32>());
        let mut found = Vec::new();
        for (row, mut weights) in scores.expect("rows").into_iter().enumerate() {
            rules.weigh(row, &mut weights);
            found.extend(weights.into_iter().map(f64::from));
        }
        let [rtol, atol] = tolerances(case, "forward", ["rtol", "atol"]);
        let differs = fixtures::first_difference(&found, &expected.values(), rtol, atol);
        assert_eq!(differs, None, "{way}: {name}");
    }
}

fn clamp(case: &Case) {
    for row in list(&expected(case)) {
        let mut weights = case.tensors("weights");
        let before = number(&row["itc_temp_before"]) as f32;
        weights.get_mut("itc_temp").expect("a temperature").bytes = before.to_le_bytes().to_vec();
        let trained = open(case, &weights);
        for part in ["itc", "itm"] {
            let how = || Some(Tape::new());
            let found = computed(case, &trained, &name_of("retrieval", part), how).loss;
            check_loss(case, part, found, number(&row[part]));
        }
        let variables = trained.weights.variables();
        let updater = Updater::new(
            &OptimSettings::default(),
            1,
            &variables,
            trained.blueprint.grouping(),
            &train::collective::Alone,
        );
        updater
            .and_then(|updater| updater.bound(&variables))
            .expect("it is bounded");
        let after = values(&variables["itc_temp"])[0];
        assert_eq!(after, number(&row["itc_temp_after"]));
    }
}

/// Numbers that evaluation leaves in the published program's counters enter its next step. Here the step alone counts
/// itself; whoever averages over the same passes comes to the same.
fn stale(case: &Case) {
    let stale = expected(case);
    let trained = open(case, &case.tensors("weights"));
    let given = given(case, &trained, extra(case));
    let spec = losses::by_name("eve", "retrieval").expect("a loss");
    let batch = spec.batch(&given).expect("a batch");
    let (dual, fusion) = (trained.model.dual(), trained.model.fusion());
    let (dual, fusion) = (dual.expect("features"), fusion.expect("fusion"));
    let (texts, images) = (batch.text.as_ref(), batch.image.as_ref());
    let (texts, images) = (texts.expect("texts"), images.expect("images"));
    let negatives = batch.negatives.as_ref().expect("negatives");
    let rows = |of: &[u32]| candle_core::Tensor::new(of, given.device()).expect("rows");
    let other_images = images.select(&rows(&negatives.images)).expect("images");
    let other_texts = texts.select(&rows(&negatives.texts)).expect("texts");
    let losses = SideLosses::new();
    let pass = Pass::new().collecting(&losses);
    for _ in 0..2 {
        dual.image_states(images, None, &pass).expect("a pass");
        dual.text_states(texts, &pass).expect("a pass");
    }
    for (texts, images) in [
        (texts, images),
        (texts, &other_images),
        (&other_texts, images),
    ] {
        let pair = evaluate::batch::Pair::new(texts, images);
        fusion.fuse(&pair, &pass).expect("a pass");
    }
    let losses = losses.take();
    let calls = stale["aux_per_call"].as_object().expect("blocks");
    let mut sum = 0.0;
    for (block, expected) in calls {
        let own = losses
            .iter()
            .filter(|(name, _)| *name == format!("{block}.balance"));
        let own: Vec<f64> = own.map(|(_, loss)| values(loss)[0]).collect();
        let expected = list(expected);
        assert_eq!(own.len(), expected.len(), "{block}");
        for (found, expected) in own.iter().zip(expected) {
            check_loss(case, block, *found, number(expected));
        }
        sum += own.iter().sum::<f64>() / own.len() as f64;
    }
    let weight = train::objectives::BALANCE_WEIGHT;
    let mean = weight * sum / calls.len() as f64;
    check_loss(
        case,
        "with the calls of evaluation",
        mean,
        number(&stale["aux"]),
    );
    // A step counts its own passes alone, and says so if it does not.
    let objective = by_name("vqa", None).expect("an objective");
    let passes = Passes::of([objective.as_ref()], &batch);
    assert!(passes.balance(objective.as_ref(), &batch, losses).is_err());
    let plain = computed(case, &trained, "retrieval.aux", || Some(Tape::new())).loss;
    let fresh = case.set().json(case.text("expected"));
    check_loss(
        case,
        "a step",
        plain,
        number(&fresh["losses"]["plain"]["retrieval"]["aux"]),
    );
}
