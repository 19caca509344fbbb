//! FLM's losses and their gradients against the published program, through the same code as
//! `vlmerge forward`.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use evaluate::batch::{Images, Pair};
use evaluate::forward::Given;
use evaluate::models::flm::Flm;
use evaluate::models::{FreeLanguage, FusionEncoder, Head, Model, Queries, Reading, Stream};
use evaluate::nn::{Pass, Tape};
use fixtures::{Case, Raw, list, number, text};
use train::batch::Batch;
use train::collective::Alone;
use train::losses::{LossOptions, LossSpec};
use train::objectives::{LanguageSettings, Shared, Step};

use crate::fixture::{gradients_by_name, l2};
use crate::flm_model::{Opened, given, open};

fixtures::golden_tests! {
    package: "train", set: "flm",
    golden_flm_losses_and_gradients_are_those_of_the_published_program: "loss" => loss,
}

/// A way to compute gradients, and what it is called.
type How = (&'static str, fn() -> Option<Tape>);

const HOWS: [How; 5] = [
    ("one graph", || None),
    ("slices", || Some(Tape::new())),
    ("slices, computed again", || Some(Tape::checkpointing())),
    ("graphs", || Some(Tape::new().of_graphs())),
    ("graphs, computed again", || {
        Some(Tape::checkpointing().of_graphs())
    }),
];

/// The row of a case's loss. The published captioning with three streams reads the queries.
fn spec(case: &Case) -> &'static LossSpec {
    let name = match (case.param("task").expect("a task"), case.param("mode")) {
        ("ar", Some("three_stream")) => "caption_upstream_flm_backbone",
        ("ar", Some("one_stream")) => "caption_forward_stream",
        ("itm", _) => "itm_fixed",
        (task, _) => task,
    };
    train::losses::by_name("flm", name).expect("a loss")
}

/// How the case guesses words.
fn options(case: &Case) -> LossOptions {
    let params = &case["params"];
    let Some(with_others) = params["enable_flm_aux_lm_loss"].as_bool() else {
        return LossOptions::default();
    };
    let weight = |name: &str| match with_others {
        true => params[name].as_f64().expect("a weight"),
        false => 0.0,
    };
    LossOptions {
        language: Some(LanguageSettings {
            forward_weight: weight("l2r_weight"),
            reverse_weight: weight("r2l_weight"),
            ..LanguageSettings::default()
        }),
        ..LossOptions::default()
    }
}

/// Labels that do not stand among a case's inputs, but with what enters its loss.
fn labels(case: &Case) -> BTreeMap<String, Raw> {
    let (name, own) = match case.param("task") {
        Some("vqa") => ("vqa_targets", "targets"),
        Some("nlvr2") => ("nlvr2_labels", "labels"),
        Some("itm") => ("itm_labels", "labels"),
        _ => return BTreeMap::new(),
    };
    let outputs = outputs(case).expect("outputs");
    BTreeMap::from([(name.to_owned(), outputs[own].clone())])
}

/// The inputs of the loss, where the case tells.
fn outputs(case: &Case) -> Option<BTreeMap<String, Raw>> {
    let files = list(&case["expected"]).iter().map(text);
    let mut files = files.filter(|name| name.ends_with("_outputs.safetensors"));
    Some(case.set().tensors(files.next()?))
}

fn loss(case: &Case) {
    let spec = spec(case);
    let expected = case.set().json(text(&case["expected"][0]));
    for (how, tape) in HOWS {
        let Opened { model, weights } = open(case, true, DType::F32);
        let given = given(case, &model, labels(case), DType::F32);
        let batch = spec.batch(&given).expect("a batch");
        let objective = spec
            .objective(&options(case), batch.n)
            .expect("an objective");
        if tape().is_none() {
            check_outputs(case, &model, &given, &batch);
        }
        let tape = tape();
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
            tape: tape.as_ref(),
            shared: &Shared::default(),
        };
        let said = format!("{}, {how}", case.id());
        let loss = objective.loss(&step).expect("a loss");
        let exact = number(&expected["loss"]);
        let error = (loss.reported - exact).abs() / exact.abs();
        let (found, tolerance) = (loss.reported, case.tolerance("", "loss_rtol"));
        assert!(error <= tolerance, "{said}: {found} instead of {exact}");
        let found = gradients_by_name(&loss.value, tape, weights.variables());
        check_gradients(case, &said, &expected["grad_norms"], &found);
    }
}

fn check_gradients(
    case: &Case,
    said: &str,
    norms: &serde_json::Value,
    found: &BTreeMap<String, Vec<f64>>,
) {
    let norms = norms.as_object().expect("norms by parameter");
    let largest = norms.values().filter_map(|norm| norm.as_f64());
    // As the manifest says in words.
    let floor = 1e-4 * largest.fold(0.0, f64::max);
    let tolerance = case.tolerance("grad", "relative_l2");
    assert!(floor > 0.0, "{said}: a comparison");
    for (name, norm) in norms {
        let size = found.get(name).map_or(0.0, |g| l2(g.iter().copied()));
        match norm.as_f64() {
            None => assert_eq!(size, 0.0, "{said}: {name} is not reached"),
            Some(norm) => {
                let error = (size - norm).abs() / norm.max(floor);
                assert!(
                    error <= tolerance,
                    "{said}: {name}: {size} instead of {norm}"
                );
            }
        }
    }
    let files = list(&case["expected"]).iter().map(text);
    for file in files.filter(|name| name.ends_with("_grads.safetensors")) {
        let whole = case.set().tensors(file);
        assert!(!whole.is_empty(), "{said}: a comparison");
        for (name, whole) in whole {
            let whole = whole.values();
            let found = &found[&name];
            let error = l2(found.iter().zip(&whole).map(|(a, b)| a - b));
            let error = error / l2(whole.iter().copied()).max(floor);
            assert!(error <= tolerance, "{said}: {name} is off by {error}");
        }
    }
}

/// The inputs of the loss are those of the published one.
fn check_outputs(case: &Case, model: &Flm, given: &Given, batch: &Batch) {
    let Some(expected) = outputs(case) else {
        return;
    };
    let found = entering(case, model, given, batch).expect("a pass");
    let name = if expected.contains_key("scores") {
        "scores"
    } else {
        "logits"
    };
    let expected = &expected[name];
    assert_eq!(found.dims(), expected.shape, "{}", case.id());
    let found: Vec<f32> = (found.flatten_all().and_then(|x| x.to_vec1())).expect("numbers");
    let found: Vec<f64> = found.into_iter().map(f64::from).collect();
    let tolerance = |name| case.tolerance("outputs", name);
    let difference = fixtures::first_difference(
        &found,
        &expected.values(),
        tolerance("rtol"),
        tolerance("atol"),
    );
    assert_eq!(difference, None, "{}", case.id());
}

fn entering(case: &Case, model: &Flm, given: &Given, batch: &Batch) -> evaluate::Result<Tensor> {
    // The outputs of padding, which the published program computes, too.
    let pass = Pass::new().with_padding();
    let texts = batch.text.as_ref().expect("texts");
    let images = batch.image.as_ref().expect("images");
    let pair = Pair::new(texts, images);
    let queries = || -> evaluate::Result<Tensor> {
        let queries = Queries {
            ids: given.tensor("text_all_masks_ids")?,
            spans: None,
        };
        let states = model.complete(&pair, queries, &pass)?.queries;
        model.words(Stream::Queries, &states)
    };
    // Without the first token, or the last one as well.
    let inner = |logits: Tensor, less: usize| logits.narrow(1, 1, logits.dim(1)? - less);
    Ok(
        match (case.param("task").unwrap_or_default(), case.param("mode")) {
            ("flm", _) => inner(queries()?, 1)?,
            ("ar", Some("three_stream")) => inner(queries()?, 2)?,
            ("ar", _) => {
                let states = model.read(&pair, Reading::Causal, &pass)?;
                inner(model.words(Stream::Queries, &states)?, 2)?
            }
            ("mlm", _) => {
                let words = batch.masked_words.as_ref().expect("masked words");
                let texts = texts.with_ids(&words.ids);
                let states = model.guessed_from(&Pair::new(&texts, images), &pass)?;
                model.score(Head::MaskedLanguage, &states)?
            }
            ("itm", _) => {
                let other = batch.other_image.as_ref().expect("other images");
                let labels = batch.classes.clone().expect("labels");
                let labels = Tensor::new(labels, &Device::Cpu)?.reshape(((), 1, 1, 1))?;
                let labels = labels.broadcast_as(images.pixels.shape())?;
                let images = Images::new(labels.where_cond(&images.pixels, &other.pixels)?);
                model.score(
                    Head::Matching,
                    &model.matched(&Pair::new(texts, &images), &pass)?,
                )?
            }
            ("irtr", _) => {
                let texts: Vec<_> = std::iter::once(texts).chain(&batch.other_texts).collect();
                let passes: Vec<_> = texts.iter().map(|_| Pass::new()).collect();
                model.rank(&texts, images, &passes)?
            }
            ("vqa", _) => model.answer(&pair, &pass)?,
            ("nlvr2", _) => {
                let second = batch.second_image.as_ref().expect("second images");
                model.judge(texts, [images, second], [Pass::new(), Pass::new()])?
            }
            (task, _) => panic!("{}: no task {task}", case.id()),
        },
    )
}
