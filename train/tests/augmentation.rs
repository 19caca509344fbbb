//! Pictures after a recipe's augmentation.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use evaluate::images::{ImageInput, Rgb};
use evaluate::models::ModelInput;
use evaluate::text::{Padding, TextInput, TextRule};
use merge::random::Draws;
use train::augment::{FlipGuard, TrainTransform};
use train::data::{Example, Examples, Loader, Place};
use train::objectives::Needs;
use train::recipe::{Augmentation, Masking, TrainRecipe};

const SIDE: usize = 16;

/// A picture that is dark to the left and bright to the right, with a text.
struct Sided(&'static str, &'static [&'static str]);

impl Examples for Sided {
    fn len(&self) -> usize {
        64
    }

    fn example(&self, _: usize, _: bool) -> evaluate::Result<Example> {
        let row = (0..40_u8).flat_map(|x| [x * 6; 3]);
        let pixels = std::iter::repeat_n(row, 30).flatten().collect();
        Ok(Example {
            pictures: vec![Rgb {
                width: 40,
                height: 30,
                pixels,
                alpha: None,
            }],
            text: self.0.to_owned(),
            answer_words: self.1.iter().map(|&answer| answer.to_owned()).collect(),
            ..Example::default()
        })
    }
}

fn augmentation(yaml: &str) -> Augmentation {
    serde_json::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"))
}

/// The views of all examples, each by red, green and blue.
fn views(examples: Sided, augmentation: &Augmentation) -> Vec<Vec<f32>> {
    let input = ModelInput {
        image: ImageInput::square(SIDE),
        text: TextInput {
            len: 8,
            padding: Padding::Full,
            vocabulary: 101,
            rule: TextRule::Verbatim,
            padding_id: None,
            ends_at_largest: false,
        },
    };
    let needs = Needs {
        image: true,
        ..Needs::NOTHING
    };
    let indices: Vec<usize> = (0..examples.len()).collect();
    let loader = Loader::new(Arc::new(examples), None, input, needs, 5);
    let loader = loader.augmented(augmentation, Masking::default());
    let loaded = loader.and_then(|loader| Ok(loader.load(Place::default(), 0, &indices)?));
    let batch = loaded.and_then(|loaded| loaded.batch(&Device::Cpu, DType::F32));
    let images = batch.expect("a batch").image.expect("pictures");
    let values = images.pixels.flatten_from(1).and_then(|all| all.to_vec2());
    values.expect("values")
}

fn n_mirrored(views: &[Vec<f32>]) -> usize {
    let is_mirrored = |view: &&Vec<f32>| view[0] > view[SIDE - 1];
    views.iter().filter(is_mirrored).count()
}

#[test]
fn a_guard_keeps_pictures_of_texts_with_sides_from_being_mirrored() {
    let with = |guard: &str| {
        augmentation(&format!(
            r#"{{"random": {{"operations": 0, "flip_guard": "{guard}"}}}}"#
        ))
    };
    // Question, answers, and whether the published guard and the one of words let it be mirrored.
    let cases: [(&str, &[&str], [bool; 2]); 6] = [
        ("what is on the left ?", &["dog"], [false, false]),
        ("Is it bright?", &["yes"], [false, true]),
        ("Is it Right?", &["no"], [true, false]),
        ("where ?", &["b", "leftover"], [false, true]),
        ("where ?", &["right"], [false, false]),
        ("where ?", &["up"], [true, true]),
    ];
    for (text, answers, allowed) in cases {
        for (guard, is_allowed) in ["as_published", "words"].into_iter().zip(allowed) {
            let n = n_mirrored(&views(Sided(text, answers), &with(guard)));
            match is_allowed {
                // Five standard errors of 64 even draws.
                true => assert!((12..=52).contains(&n), "{guard} {text}: {n}"),
                false => assert_eq!(n, 0, "{guard} {text}"),
            }
        }
        let n = n_mirrored(&views(Sided(text, answers), &with("none")));
        assert!((12..=52).contains(&n), "{text}: {n}");
    }
}

#[test]
fn a_guard_changes_no_other_draw() {
    let free = augmentation(r#"{"random": {"flip": false}}"#);
    let guarded = augmentation(r#"{"random": {"flip_guard": "words"}}"#);
    let text = || Sided("to the left", &[]);
    assert_eq!(views(text(), &free), views(text(), &guarded));
}

#[test]
fn short_names_stand_for_the_published_options() {
    let long = [
        ("none", r#"{"random": {"operations": 0}}"#),
        ("color", r#"{"random": {"operations": 0, "color": 0.4}}"#),
        ("rand", r#"{"random": {}}"#),
    ];
    let mut seen = Vec::new();
    for (short, long) in long {
        let short = augmentation(&format!("{short:?}"));
        assert_eq!(short.in_full(), augmentation(long));
        let views = [&short, &augmentation(long)].map(|of| views(Sided("", &[]), of));
        assert_eq!(views[0], views[1]);
        assert!(!seen.contains(&views[0]));
        seen.push(views[0].clone());
    }
    // Published values: two operations at a magnitude of 7, half of the area, mirrored half of the times.
    let Augmentation::Random {
        operations,
        magnitude,
        flip,
        least_area,
        color,
        flip_guard,
        as_published,
    } = augmentation("\"rand\"").in_full()
    else {
        panic!("no random view");
    };
    assert_eq!((operations, magnitude, flip), (2, 7.0, true));
    assert_eq!((least_area, color), (0.5, 0.0));
    assert_eq!((flip_guard, as_published), (FlipGuard::None, false));
}

#[test]
fn a_resolved_recipe_says_every_number_of_a_short_name() {
    let yaml = "init: { synth: { family: zerovl, blocks: 1, width: 32 } }\n\
                data: { folder: arrow, train: [{ dataset: coco, split: train }] }\n\
                objectives: [{ name: retrieval }]\nlength: { steps: 1 }\nbatch_size: 2\n";
    let path = Path::new("recipe.yaml");
    let parsed = |settings: &[&str]| {
        let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        TrainRecipe::parse(yaml, path, &settings)
    };
    let resolved = parsed(&["augmentation=color"]).expect("a recipe");
    let written = resolved.to_yaml().expect("YAML");
    assert!(written.contains("color: 0.4") && written.contains("operations: 0"));
    let again = TrainRecipe::parse(&written, path, &[]).expect("read back");
    assert_eq!(again, resolved);
    for (setting, said) in [
        (
            "augmentation={random: {color: 1.5}}",
            "`augmentation.random.color`",
        ),
        (
            "augmentation={random: {flip: false, flip_guard: words}}",
            "`augmentation.random.flip_guard`: has no effect",
        ),
        ("augmentation=colour", "the nearest is `color`"),
    ] {
        let error = parsed(&[setting]).expect_err(setting).to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn colors_change_by_factors_of_the_asked_range() {
    // A gray picture keeps its gray: contrast and saturation leave it, brightness multiplies.
    let gray = Rgb {
        width: 20,
        height: 20,
        pixels: vec![100; 1200],
        alpha: None,
    };
    let mut transform = TrainTransform {
        color: 0.4,
        ..TrainTransform::new(8)
    };
    transform.augment.operations.clear();
    let mut factors: Vec<f64> = Vec::new();
    for example in 0..300 {
        let mut draws = Draws::new(1, &format!("example {example}")).sequence();
        let view = transform.view(&gray, &mut draws);
        assert!(view.pixels.iter().all(|value| *value == view.pixels[0]));
        factors.push(f64::from(view.pixels[0]) / 100.0);
    }
    assert!(factors.iter().all(|factor| (0.59..=1.4).contains(factor)));
    let below = factors.iter().filter(|factor| **factor < 1.0).count();
    assert!((100..200).contains(&below), "{below}");
    assert!(factors.iter().any(|factor| *factor < 0.65));
    assert!(factors.iter().any(|factor| *factor > 1.35));
}

#[test]
fn the_published_slip_makes_pictures_white() {
    let with = |slip: bool| {
        augmentation(&format!(
            r#"{{"random": {{"operations": 4, "as_published": {slip}}}}}"#
        ))
    };
    let n_white = |slip: bool| {
        let views = views(Sided("", &[]), &with(slip));
        let is_white = |view: &&Vec<f32>| view.iter().all(|value| *value == 1.0);
        views.iter().filter(is_white).count()
    };
    assert_eq!(n_white(false), 0);
    assert!(n_white(true) > 0);
}
