//! Objectives that guess words beside free language modeling, and matching with random images.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use evaluate::batch::{Images, Pair, Texts};
use evaluate::images::{ImageInput, Rgb};
use evaluate::models::flm::Flm;
use evaluate::models::{FreeLanguage, ModelInput, Reading, Stream};
use evaluate::nn::Pass;
use evaluate::text::{Padding, TextInput, TextKind, TextRule, Tokenizer};
use fixtures::{Case, Set};
use train::batch::Batch;
use train::collective::Alone;
use train::data::{Example, Examples, Loader, Place};
use train::losses::LossOptions;
use train::objectives::{LanguageSettings, Needs, Randomness, Shared, Step};
use train::recipe::{Augmentation, Masking, TrainRecipe};

use crate::fixture::path;
use crate::flm_model::{Opened, given, open};

/// Of losses and states, absolute: f32 sums of other lengths.
const TOLERANCE: f64 = 2e-5;

/// The set's model of the task `ar` with its batch.
struct Ready {
    model: Flm,
    texts: Texts,
    images: Images,
}

fn ready() -> Ready {
    let cases = Set::open("flm").cases("loss");
    let is_ar =
        |case: &Case| case.param("task") == Some("ar") && case.param("mode") == Some("one_stream");
    let case = cases.into_iter().find(is_ar).expect("a case");
    let Opened { model, .. } = open(&case, false, DType::F32);
    let given = given(&case, &model, BTreeMap::new(), DType::F32);
    Ready {
        texts: given.texts("text_ids", "text_masks").expect("texts"),
        images: given.images("image").expect("images"),
        model,
    }
}

impl Ready {
    fn ids(&self) -> Vec<Vec<u32>> {
        let ids = self.texts.ids.to_dtype(DType::U32).expect("ids");
        ids.to_vec2().expect("two axes")
    }

    fn lengths(&self) -> Vec<usize> {
        let kept: Vec<Vec<u8>> = self.texts.kept.to_vec2().expect("flags");
        let count = |row: Vec<u8>| row.into_iter().filter(|&kept| kept != 0).count();
        kept.into_iter().map(count).collect()
    }

    fn states(&self, texts: &Texts, images: &Images, prefixes: &[usize]) -> Tensor {
        let pair = Pair::new(texts, images);
        let reading = Reading::AfterPrefix(prefixes);
        let states = self.model.read(&pair, reading, &Pass::new());
        states.expect("it reads")
    }

    /// The loss of a batch by the objective, with this share of each text guessed, and of how many words.
    fn loss(&self, suffix: f64) -> (f64, f64) {
        let spec = train::losses::by_name("flm", "prefix_lm").expect("a loss");
        let options = LossOptions {
            language: Some(LanguageSettings {
                suffix,
                ..LanguageSettings::default()
            }),
            ..LossOptions::default()
        };
        let n = self.lengths().len();
        let batch = Batch {
            n,
            image: Some(self.images.clone()),
            text: Some(self.texts.clone()),
            ..Batch::default()
        };
        let objective = spec.objective(&options, n).expect("an objective");
        let step = Step {
            model: &self.model,
            batch: &batch,
            collective: &Alone,
            drops: None,
            whole: None,
            routing: None,
            side_losses: None,
            experts: None,
            randomness: None,
            tape: None,
            shared: &Shared::default(),
        };
        let loss = objective.loss(&step).expect("a loss");
        let words = loss
            .measures
            .iter()
            .find(|(name, ..)| *name == "prefix_lm_accuracy");
        (loss.reported, words.expect("an accuracy").2)
    }
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    let difference = (a - b).and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>());
    f64::from(difference.expect("a number"))
}

#[test]
fn a_prefix_is_seen_by_all_and_behind_it_each_token_sees_those_before_it() {
    let ready = ready();
    let (ids, lengths) = (ready.ids(), ready.lengths());
    let prefixes: Vec<usize> = lengths.iter().map(|n| n / 2).collect();
    let states = ready.states(&ready.texts, &ready.images, &prefixes);
    for (text, (&n, &prefix)) in lengths.iter().zip(&prefixes).enumerate() {
        assert!(prefix > 1 && prefix + 1 < n, "{n} tokens, {prefix} before");
        let image = Images::new(ready.images.pixels.narrow(0, text, 1).expect("an image"));
        let row = |states: &Tensor, text: usize, at: usize| {
            states.narrow(0, text, 1).and_then(|s| s.narrow(1, at, 1))
        };
        // A text that ends right behind a place reads alike there: nothing after it was seen.
        for end in prefix..=n {
            let cut = Texts::new(ids[text][..end].to_vec(), &[end], &Device::Cpu).expect("a text");
            let alone = ready.states(&cut, &image, &[prefix]);
            for at in 0..end {
                let (found, whole) = (row(&alone, 0, at), row(&states, text, at));
                let error = difference(&found.expect("there"), &whole.expect("there"));
                assert!(
                    error < TOLERANCE,
                    "text {text}, {end} tokens, place {at}: {error}"
                );
            }
        }
        // Another token of the prefix changes every state; one behind it those from its place on.
        for changed in 1..n {
            let mut other = ids[text][..n].to_vec();
            other[changed] = if other[changed] == 7 { 8 } else { 7 };
            let texts = Texts::new(other, &[n], &Device::Cpu).expect("a text");
            let found = ready.states(&texts, &image, &[prefix]);
            for at in 0..n {
                let (found, whole) = (row(&found, 0, at), row(&states, text, at));
                let moved = difference(&found.expect("there"), &whole.expect("there"));
                let sees = changed < prefix || at >= changed;
                assert_eq!(
                    moved > TOLERANCE,
                    sees,
                    "text {text}: {changed} and {at}: {moved}"
                );
            }
        }
    }
}

#[test]
fn the_tokens_behind_a_prefix_are_guessed_and_no_others() {
    let ready = ready();
    let (ids, lengths) = (ready.ids(), ready.lengths());
    for suffix in [0.0, 0.25, 0.5, 0.8, 1.0] {
        // Rounded to the nearest, and at least the first token.
        let prefix = |n: usize| (((1.0 - suffix) * n as f64).round() as usize).max(1);
        let prefixes: Vec<usize> = lengths.iter().map(|&n| prefix(n)).collect();
        let n_words: usize = lengths.iter().zip(&prefixes).map(|(n, p)| n - p).sum();
        if n_words == 0 {
            continue;
        }
        let states = ready.states(&ready.texts, &ready.images, &prefixes);
        let logits = ready.model.words(Stream::Queries, &states);
        let logits = logits.expect("logits");
        let logits: Vec<Vec<Vec<f32>>> = logits.to_vec3().expect("three axes");
        let mut sum = 0.0;
        for (text, (&n, &prefix)) in lengths.iter().zip(&prefixes).enumerate() {
            for target in prefix..n {
                let scores = &logits[text][target - 1];
                let most = scores
                    .iter()
                    .fold(f64::MIN, |most, &x| most.max(f64::from(x)));
                let all = scores.iter().map(|&x| (f64::from(x) - most).exp());
                let own = f64::from(scores[ids[text][target] as usize]);
                sum += all.sum::<f64>().ln() + most - own;
            }
        }
        let (found, n) = ready.loss(suffix);
        assert_eq!(n, n_words as f64, "{suffix}");
        let expected = sum / n;
        assert!(
            (found - expected).abs() < TOLERANCE * expected,
            "{suffix}: {found}, {expected}"
        );
    }
    // All of a text but `<s>` is what left-to-right modeling guesses from a first token that sees itself alone.
    let (_, all) = ready.loss(1.0);
    assert_eq!(all as usize, lengths.iter().map(|n| n - 1).sum::<usize>());
}

#[test]
fn settings_of_words_that_cannot_be_are_refused_by_their_field() {
    let refused = |objectives: &str| {
        let yaml = format!(
            "init: {{ checkpoint: a.safetensors }}\n\
             data: {{ folder: b, tokenizer: c, train: [{{ dataset: coco, split: train }}] }}\n\
             objectives: {objectives}\nlength: {{ steps: 1 }}\nbatch_size: 2\n"
        );
        let recipe = TrainRecipe::parse(&yaml, std::path::Path::new("recipe.yaml"), &[]);
        recipe.err().map(|error| error.to_string())
    };
    for (settings, field) in [
        ("forward_weight: -1", "forward_weight"),
        ("forward_weight: .inf", "forward_weight"),
        ("reverse_weight: .nan", "reverse_weight"),
        ("span_corruption: 1.5", "span_corruption"),
        ("span_corruption: -0.1", "span_corruption"),
        ("suffix: 2", "suffix"),
        ("suffix: .nan", "suffix"),
        ("prefix: 0.5", "prefix"),
        ("as_published: 3", "as_published"),
    ] {
        let said = refused(&format!("[{{ name: flm, language: {{ {settings} }} }}]"));
        let said = said.unwrap_or_else(|| panic!("{settings} is taken"));
        assert!(said.contains(field), "{settings}: {said}");
    }
    for (objectives, words) in [
        (
            "[{ name: mlm, language: { suffix: 0.5 } }]",
            ["language", "mlm"],
        ),
        (
            "[{ name: random_itm, language: {} }]",
            ["language", "random_itm"],
        ),
        ("[{ name: prefixlm }]", ["prefixlm", "prefix_lm"]),
        ("[{ name: flm, weight: -1 }]", ["weight", "-1"]),
        ("[]", ["objectives", ""]),
    ] {
        let said = refused(objectives).unwrap_or_else(|| panic!("{objectives} is taken"));
        for word in words {
            assert!(said.contains(word), "{objectives}: {said}");
        }
    }
    assert_eq!(
        refused("[{ name: prefix_lm, language: { suffix: 0.3 } }]"),
        None
    );
}

// ---- matching with random images --------------------------------------------------------------

/// Images of one color each, three captions an image.
struct Colors {
    n_images: usize,
}

impl Examples for Colors {
    fn len(&self) -> usize {
        3 * self.n_images
    }

    fn image(&self, index: usize) -> usize {
        index / 3
    }

    fn example(&self, index: usize, _: bool) -> evaluate::Result<Example> {
        let color = 20 * (index / 3) as u8;
        Ok(Example {
            pictures: vec![Rgb {
                width: 4,
                height: 4,
                pixels: vec![color; 48],
                alpha: None,
            }],
            text: "a dog".into(),
            kind: TextKind::Caption,
            ..Example::default()
        })
    }
}

fn loader(n_images: usize, seed: u64) -> Loader {
    let vocabulary = path("real/vocab.txt").display().to_string();
    let input = ModelInput {
        image: ImageInput::square(4),
        text: TextInput {
            len: 8,
            padding: Padding::Longest,
            rule: TextRule::Verbatim,
            padding_id: None,
            ends_at_largest: false,
            vocabulary: 101,
        },
    };
    let needs = Needs {
        image: true,
        text: true,
        other_image: true,
        ..Needs::NOTHING
    };
    let tokenizer = Tokenizer::open(&vocabulary).expect("a tokenizer");
    let examples = Arc::new(Colors { n_images });
    Loader::new(examples, Some(Arc::new(tokenizer)), input, needs, seed)
        .augmented(&Augmentation::Square, Masking::default())
        .expect("a loader")
}

/// The color of each picture of a batch.
fn colors(images: &Images) -> Vec<f32> {
    let first = images
        .pixels
        .flatten_from(1)
        .and_then(|x| x.narrow(D::Minus1, 0, 1));
    let values = first.and_then(|x| x.flatten_all()?.to_vec1());
    values.expect("numbers")
}

#[test]
fn the_other_image_of_a_pair_is_drawn_from_all_and_is_never_its_own() {
    let mut drawn = [0_u32; 10];
    for epoch in 0..40 {
        let loader = loader(10, 3 + epoch);
        let indices: Vec<usize> = (0..30).collect();
        let loaded = loader.load(Place::default(), 0, &indices).expect("loaded");
        let batch = loaded.batch(&Device::Cpu, DType::F32).expect("a batch");
        let own = colors(batch.image.as_ref().expect("images"));
        let others = colors(batch.other_image.as_ref().expect("others"));
        for (index, (own_color, other)) in own.iter().zip(&others).enumerate() {
            assert_ne!(own_color, other, "example {index}");
            let image = own
                .iter()
                .position(|color| color == other)
                .expect("one of them")
                / 3;
            drawn[image] += 1;
        }
    }
    // 1,200 draws from ten images: 120 each, with a deviation of about 11.
    assert!(drawn.iter().all(|n| (70..=170).contains(n)), "{drawn:?}");
    // One image alone has no other.
    let error = loader(1, 3)
        .load(Place::default(), 0, &[0, 1])
        .expect_err("refused");
    assert!(
        error
            .to_string()
            .contains("all 3 examples are of one image"),
        "{error}"
    );
}

#[test]
fn half_of_the_pairs_keep_their_image_in_an_order_that_is_drawn() {
    let cases = Set::open("flm").cases("loss");
    let is_itm = |case: &Case| case.param("task") == Some("itm");
    let case = cases.into_iter().find(is_itm).expect("a case");
    let Opened { model, .. } = open(&case, false, DType::F32);
    let spec = train::losses::by_name("flm", "itm_fixed").expect("a loss");
    // With the matching head at zero except for its bias, the loss says how many pairs count as matching.
    let n = 7;
    let side = model.config().input.image.side;
    let pixels = |at: f32| {
        let pixels = Tensor::full(at, (n, 3, side, side), &Device::Cpu);
        Images::new(pixels.expect("pixels"))
    };
    let ids: Vec<u32> = (0..n).flat_map(|_| [0, 5, 6, 2]).collect();
    let batch = Batch {
        n,
        image: Some(pixels(0.1)),
        other_image: Some(pixels(-0.7)),
        text: Some(Texts::new(ids, &[4; 7], &Device::Cpu).expect("texts")),
        ..Batch::default()
    };
    let objective = spec
        .objective(&LossOptions::default(), n)
        .expect("an objective");
    let score = |own: bool| {
        let images = if own { pixels(0.1) } else { pixels(-0.7) };
        let pair = Pair::new(batch.text.as_ref().expect("texts"), &images);
        let matched = evaluate::models::FusionEncoder::matched(&model, &pair, &Pass::new());
        let logits = evaluate::models::Model::score(
            &model,
            evaluate::models::Head::Matching,
            &matched.expect("matched"),
        );
        let row: Vec<f32> = logits
            .expect("logits")
            .get(0)
            .and_then(|row| row.to_vec1())
            .expect("two");
        let (mismatch, matching) = (f64::from(row[0]), f64::from(row[1]));
        let all = (mismatch.exp() + matching.exp()).ln();
        if own { all - matching } else { all - mismatch }
    };
    // All pairs have one text and one of two images, so only the number of labels decides: three of seven.
    let expected = (3.0 * score(true) + 4.0 * score(false)) / 7.0;
    for seed in 0..4 {
        let step = Step {
            model: &model,
            batch: &batch,
            collective: &Alone,
            drops: None,
            whole: None,
            routing: None,
            side_losses: None,
            experts: None,
            randomness: Some(Randomness {
                seed,
                step: 1,
                drop_path: 0.0,
                dropout: 0.0,
                mix: None,
            }),
            tape: None,
            shared: &Shared::default(),
        };
        let loss = objective.loss(&step).expect("a loss");
        assert!(
            (loss.reported - expected).abs() < 1e-5,
            "{seed}: {} {expected}",
            loss.reported
        );
    }
}
