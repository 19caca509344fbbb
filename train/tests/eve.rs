//! EVE's objectives: what learns from what, and by which rule.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::Weights;
use evaluate::batch::Pair;
use evaluate::models::{self, Blueprint, Head, Model, Overrides};
use evaluate::nn::{Buffers, Capacity, Gradient, Gradients, Pass, Routing, SideLosses, Tape};
use merge::execute::{RunOptions, in_memory};
use merge::layouts::{EveSizes, EveSpec, EveTask, TowerSizes};
use merge::progress::Silent;
use merge::random::Draws;
use merge::recipe::OutputDType;
use merge::synth::{Spread, Synthesis};
use train::batch::{Batch, Images, MaskedSignals, MaskedWords, Texts};
use train::collective::{Alone, Collective};
use train::objectives::{
    BALANCE_WEIGHT, Comparison, Features, HidingStyle, Negatives, Objective, Opening, PairSettings,
    Passes, Randomness, RoutingOf, Shared, SignalPasses, SignalSettings, Step, compare, in_order,
    spec,
};
use train::optim::{Decay, OptimSettings, Warmup};
use train::run::{Backward, Told, Updater};

use crate::fixture::{l2, values};
use crate::threads::Threads;

/// Patches a side of the images of these models, and pixels a side of a patch.
const GRID: [usize; 2] = [4, 4];

/// Tokens of a text.
const PAIR_LEN: usize = 6;

/// Tokens that are known: padding, the beginning, the end, the mask, words.
const VOCABULARY: usize = 30;

struct Opened {
    blueprint: Box<dyn Blueprint>,
    model: Box<dyn Model>,
    weights: Weights,
}

/// A small model for a task, whose missing heads are drawn.
fn open(task: EveTask, overrides: &Overrides, heads: &[Head]) -> Opened {
    let [side, patch_size] = GRID;
    let synthesis = Synthesis {
        spec: EveSpec {
            task,
            sizes: EveSizes {
                blocks: TowerSizes {
                    n_blocks: 3,
                    width: 24,
                    n_heads: 3,
                    ffn_width: 40,
                },
                n_mixtures: 2,
                n_experts: 4,
                patch_size,
                image_size: side * patch_size,
                text_positions: 9,
                pair_len: PAIR_LEN,
                vocabulary: VOCABULARY,
                n_answers: 5,
            },
            with_buffers: false,
        },
        seed: 3,
        spread: Spread {
            deviation: 0.2,
            layer_scale: 0.5,
        },
        is_fresh: false,
        dtype: OutputDType::Keep,
    };
    let plan = synthesis.plan().expect("a plan");
    let file = in_memory(&plan, &RunOptions::default(), &Silent).expect("made");
    let prepared = models::prepare(Arc::new(file), overrides, &Device::Cpu, DType::F32);
    let (blueprint, weights) = prepared.expect("a model");
    let fresh = heads.iter().flat_map(|&head| blueprint.prefixes(head));
    let fresh: Vec<&str> = fresh.copied().collect();
    let weights = weights.with_fresh(&fresh, 1).trainable();
    let model = blueprint.build(&weights).expect("it loads");
    Opened {
        blueprint,
        model,
        weights,
    }
}

fn images(n: usize, key: &str) -> Images {
    let [side, patch] = GRID;
    let pixels = side * patch;
    let mut numbers = vec![0.0; n * 3 * pixels * pixels];
    Draws::new(5, key).add_normal(0.5, 0, &mut numbers);
    Images::of_values(numbers, n, pixels, &Device::Cpu, DType::F32).expect("images")
}

/// Pairs of images and texts with everything that objectives read. Two texts are of one image.
fn batch(n: usize) -> Batch {
    let (patches, t) = (GRID[0] * GRID[0], PAIR_LEN);
    let word =
        |row: usize, at: usize| (4 + (row * 7 + at * 3 + row * at) % (VOCABULARY - 4)) as u32;
    let lens: Vec<usize> = (0..n).map(|row| t - row % 2).collect();
    let id = |row: usize, at: usize| match at {
        0 => 1,
        at if at + 1 == lens[row] => 2,
        at if at >= lens[row] => 0,
        at => word(row, at),
    };
    let rows = (0..n).flat_map(|row| (0..t).map(move |at| (row, at)));
    let ids: Vec<u32> = rows.clone().map(|(row, at)| id(row, at)).collect();
    let is_masked = |row: usize, at: usize| at == 1 || at == 2 + row % 2;
    let masked_ids = rows
        .clone()
        .map(|(row, at)| if is_masked(row, at) { 3 } else { id(row, at) });
    let places = rows.clone().filter(|&(row, at)| is_masked(row, at));
    let places: Vec<u32> = places.map(|(row, at)| (row * t + at) as u32).collect();
    // Three quarters of the patches, others in each row.
    let hidden =
        (0..n).flat_map(|row| (0..patches).map(move |at| u8::from((at * 5 + row) % 4 != 0)));
    let device = &Device::Cpu;
    let answers = (0..n * 5)
        .map(|at| (at * 3 % 5) as f32 / 5.0)
        .collect::<Vec<f32>>();
    Batch {
        n,
        image: Some(images(n, "images")),
        second_image: Some(images(n, "second")),
        text: Some(Texts::new(ids.clone(), &lens, device).expect("texts")),
        masked_signals: Some(MaskedSignals {
            patches: Tensor::from_vec(hidden.collect::<Vec<u8>>(), (n, patches), device)
                .expect("flags"),
            words: MaskedWords {
                labels: places.iter().map(|&place| ids[place as usize]).collect(),
                ids: Tensor::from_vec(masked_ids.collect::<Vec<u32>>(), (n, t), device)
                    .expect("ids"),
                places,
            },
        }),
        answers: Some(Tensor::from_vec(answers, (n, 5), device).expect("scores")),
        classes: Some((0..n).map(|row| (row % 2) as u32).collect()),
        image_numbers: Some(
            (0..n)
                .map(|row| (row - usize::from(row == 1)) as u32)
                .collect(),
        ),
        ..Batch::default()
    }
}

fn objectives(names: &[&str], signal: SignalSettings) -> Vec<(Box<dyn Objective>, f64)> {
    let opening = Opening {
        pairs: Some(PairSettings::EVE),
        signal: Some(signal),
        ..Opening::default()
    };
    let open = |name: &&str| (spec(name)?.open)(&opening);
    let opened = names.iter().map(open).collect::<train::Result<Vec<_>>>();
    let opened = opened.expect("objectives").into_iter();
    let mut objectives: Vec<_> = opened.map(|objective| (objective, 1.0)).collect();
    in_order(&mut objectives);
    objectives
}

/// Every token goes where it scores best.
fn unlimited(_: &str) -> Option<Routing> {
    Some(Routing::default())
}

/// What a step says, and gradients by name, in the mean over the ranks.
fn learned(
    opened: &Opened,
    objectives: &[(Box<dyn Objective>, f64)],
    batch: &Batch,
    (collective, recomputes): (&dyn Collective, bool),
) -> (Told, BTreeMap<String, Vec<f64>>) {
    let buffers = Buffers::default();
    let backward = Backward {
        model: opened.model.as_ref(),
        objectives,
        collective,
        randomness: Randomness {
            seed: 0,
            step: 0,
            drop_path: 0.0,
            dropout: 0.0,
            mix: None,
        },
        drops: None,
        routing: Some(&unlimited),
        balance: BALANCE_WEIGHT,
        experts: None,
        recomputes,
        buffers: &buffers,
        scale: 1.0,
        n_parts: 1,
    };
    let variables = opened.weights.variables();
    let (mut told, mut gradients) = (Told::default(), Gradients::of(variables.values()));
    backward
        .learn(batch, None, &mut told, &mut gradients)
        .expect("gradients");
    let mut by_name = BTreeMap::new();
    for (name, variable) in &variables {
        let Some(Gradient::Host(gradient)) = gradients.get(variable) else {
            continue;
        };
        let mut gradient = gradient.to_vec();
        collective.sum(&mut gradient).expect("a sum");
        let mean = gradient
            .iter()
            .map(|&g| f64::from(g) / collective.size() as f64);
        by_name.insert(name.clone(), mean.collect());
    }
    (told, by_name)
}

const DEEP: Overrides = Overrides {
    decoder_depth: Some(2),
    tied_words: Some(false),
    ..NOTHING
};

const NOTHING: Overrides = Overrides {
    n_heads: None,
    fusion_start: None,
    shallow_attention: None,
    text_table_len: None,
    image_heads: None,
    text_heads: None,
    temperature: None,
    image_mean: None,
    image_deviation: None,
    streams: None,
    pair_len: None,
    as_published: None,
    routing: None,
    decoder_depth: None,
    tied_words: None,
};

const SIGNALS: [Head; 2] = [Head::MaskedImage, Head::MaskedLanguage];

#[test]
fn every_variable_of_eve_gets_a_gradient_of_every_objective_that_reaches_it() {
    let joint = SignalSettings::default();
    let separate = SignalSettings {
        passes: SignalPasses::Separate,
        ..joint
    };
    let drop = |of: SignalSettings| SignalSettings {
        style: HidingStyle::Drop,
        ..of
    };
    let cases: [(EveTask, &[&str], Overrides, &[Head], SignalSettings); 8] = [
        (EveTask::Retrieval, &["itc", "itm"], NOTHING, &[], joint),
        (EveTask::Vqa, &["vqa"], NOTHING, &[], joint),
        (EveTask::Nlvr2, &["nlvr2"], NOTHING, &[], joint),
        (EveTask::Nlvr2Biattn, &["nlvr2"], NOTHING, &[], joint),
        (
            EveTask::Pretrain,
            &["masked_signal"],
            NOTHING,
            &SIGNALS,
            joint,
        ),
        (
            EveTask::Pretrain,
            &["masked_signal"],
            NOTHING,
            &SIGNALS,
            separate,
        ),
        (
            EveTask::Backbone,
            &["masked_signal"],
            DEEP,
            &SIGNALS,
            drop(joint),
        ),
        (
            EveTask::Backbone,
            &["masked_signal"],
            DEEP,
            &SIGNALS,
            drop(separate),
        ),
    ];
    for (task, names, overrides, heads, signal) in cases {
        let opened = open(task, &overrides, heads);
        let (batch, objectives) = (batch(6), objectives(names, signal));
        let (told, gradients) = learned(&opened, &objectives, &batch, (&Alone, false));
        assert_eq!(told.not_finite, None);
        let said = format!("{task:?} {names:?} {signal:?}");
        for name in opened.weights.variables().keys() {
            let gradient = gradients
                .get(name)
                .unwrap_or_else(|| panic!("{said}: {name}"));
            // An expert that nobody chose has zeros.
            if !name.contains(".experts.") {
                let size = l2(gradient.iter().copied());
                assert!(size > 0.0, "{said}: {name} learns nothing");
            }
        }
        // Blocks that compute their inside again learn the same.
        let (_, again) = learned(&opened, &objectives, &batch, (&Alone, true));
        for (name, gradient) in &gradients {
            let off = l2(gradient.iter().zip(&again[name]).map(|(a, b)| a - b));
            assert!(
                off <= 1e-5 * l2(gradient.iter().copied()).max(1e-3),
                "{said}: {name}: {off}"
            );
        }
    }
}

#[test]
fn pixels_are_guessed_at_hidden_patches_alone_by_their_mean_squared_error() {
    let opened = open(EveTask::Pretrain, &NOTHING, &SIGNALS);
    let batch = batch(3);
    let signals = batch.masked_signals.as_ref().expect("signals");
    let (image, text) = (
        batch.image.as_ref().expect("images"),
        batch.text.as_ref().expect("texts"),
    );
    let text = text.with_ids(&signals.words.ids);
    let pair = Pair::new(&text, image).masked(&signals.patches);
    let routing = Routing::default();
    let pass = Pass::new().routed(&routing);
    let fusion = opened.model.fusion().expect("fusion");
    let states = fusion.reconstructed(&pair, &pass).expect("states").image;
    let found = opened
        .model
        .score(Head::MaskedImage, &states)
        .expect("pixels");
    let (found, pixels) = (values(&found), values(&image.pixels));
    let hidden: Vec<u8> = signals
        .patches
        .flatten_all()
        .and_then(|x| x.to_vec1())
        .expect("flags");
    let [side, q] = GRID;
    let (len, patches, whole) = (3 * q * q, side * side, side * q);
    for norm_target in [true, false] {
        let (mut sum, mut n) = (0.0, 0);
        for (at, _) in hidden
            .iter()
            .enumerate()
            .filter(|(_, hidden)| **hidden == 1)
        {
            let (row, patch) = (at / patches, at % patches);
            let (top, left) = (patch / side * q, patch % side * q);
            // Red, green and blue of each pixel in turn.
            let pixel = |k: usize| {
                let (y, x, color) = (top + k / 3 / q, left + k / 3 % q, k % 3);
                pixels[((row * 3 + color) * whole + y) * whole + x]
            };
            let target: Vec<f64> = (0..len).map(pixel).collect();
            let mean = target.iter().sum::<f64>() / len as f64;
            let variance = target.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / len as f64;
            let target = target.iter().map(|x| match norm_target {
                true => (x - mean) / (variance + 1e-6).sqrt(),
                false => *x,
            });
            let first = (row * (patches + 1) + 1 + patch) * len;
            let found = &found[first..first + len];
            sum += found
                .iter()
                .zip(target)
                .map(|(a, b)| (a - b).powi(2))
                .sum::<f64>()
                / len as f64;
            n += 1;
        }
        assert_eq!(n, 3 * 12);
        let settings = SignalSettings {
            norm_target,
            ..SignalSettings::default()
        };
        let objectives = objectives(&["masked_signal"], settings);
        let (told, _) = learned(&opened, &objectives, &batch, (&Alone, false));
        let (total, of) = told.values["masked_signal_pixel_loss"];
        let (total, exact) = (total / of, sum / f64::from(n));
        assert!(
            (total - exact).abs() <= 1e-5 * exact,
            "{total} instead of {exact}"
        );
        // The objective is the sum of both losses.
        let words = told.values["masked_signal_word_loss"];
        let loss = told.values["loss/masked_signal"].0;
        assert!((loss - total - words.0 / words.1).abs() <= 1e-5 * loss);
    }
}

#[test]
fn patches_that_are_left_out_and_patches_that_are_hidden_give_states_of_one_shape() {
    let opened = open(EveTask::Backbone, &DEEP, &SIGNALS);
    let batch = batch(3);
    let signals = batch.masked_signals.as_ref().expect("signals");
    let (image, text) = (
        batch.image.as_ref().expect("images"),
        batch.text.as_ref().expect("texts"),
    );
    let pair = Pair::new(text, image).masked(&signals.patches);
    let fusion = opened.model.fusion().expect("fusion");
    let states = |pair: &Pair<'_>| fusion.reconstructed(pair, &Pass::new()).expect("states");
    let (inplace, left_out) = (states(&pair), states(&pair.leaving_out()));
    assert_eq!(inplace.image.dims(), [3, 17, 24]);
    assert_eq!(left_out.image.dims(), inplace.image.dims());
    assert_eq!(left_out.text.dims(), inplace.text.dims());
    // What is left out is not seen: other pixels there change nothing.
    let other = images(3, "other");
    let flags = signals.patches.reshape((3, 1, 4, 1, 4, 1)).expect("flags");
    let flags = flags
        .broadcast_as((3, 3, 4, 4, 4, 4))
        .and_then(|x| x.contiguous())
        .expect("flags");
    let flags = flags.reshape((3, 3, 16, 16)).expect("flags");
    let mixed = flags
        .where_cond(&other.pixels, &image.pixels)
        .expect("pixels");
    let mixed = Images::new(mixed);
    for leaves_out in [false, true] {
        let of = |images| {
            let pair = Pair::new(text, images).masked(&signals.patches);
            let states = states(&if leaves_out { pair.leaving_out() } else { pair });
            [values(&states.image), values(&states.text)]
        };
        assert_eq!(of(image), of(&mixed));
        assert_ne!(of(image), of(&other));
    }
    // Without a decoder nothing could be guessed from the position alone.
    let plain = open(EveTask::Pretrain, &NOTHING, &SIGNALS);
    let fault = plain
        .model
        .fusion()
        .expect("fusion")
        .reconstructed(&pair.leaving_out(), &Pass::new());
    let fault = fault.err().expect("refused").to_string();
    assert!(fault.contains("model.decoder_depth"), "{fault}");
}

#[test]
fn masked_signals_of_32_pairs_are_learned_by_heart() {
    for (overrides, style) in [(NOTHING, HidingStyle::Inplace), (DEEP, HidingStyle::Drop)] {
        let opened = open(EveTask::Backbone, &overrides, &SIGNALS);
        let signal = SignalSettings {
            style,
            ..SignalSettings::default()
        };
        let (batch, objectives) = (batch(32), objectives(&["masked_signal"], signal));
        let variables = opened.weights.variables();
        let settings = OptimSettings {
            lr: 5e-3,
            warmup: Warmup::Steps(10),
            decay: Decay::Power(1.0),
            max_norm: Some(1.0),
            weight_decay: 0.0,
            head_weight_decay: 0.0,
            ..OptimSettings::default()
        };
        let n_steps = 150;
        let grouping = opened.blueprint.grouping();
        let mut updater =
            Updater::new(&settings, n_steps, &variables, grouping, &Alone).expect("one");
        let mut losses = Vec::new();
        for step in 0..n_steps {
            let buffers = Buffers::default();
            let backward = Backward {
                model: opened.model.as_ref(),
                objectives: &objectives,
                collective: &Alone,
                randomness: Randomness {
                    seed: 0,
                    step,
                    drop_path: 0.0,
                    dropout: 0.0,
                    mix: None,
                },
                drops: None,
                routing: None,
                balance: BALANCE_WEIGHT,
                experts: None,
                recomputes: false,
                buffers: &buffers,
                scale: 1.0,
                n_parts: 1,
            };
            let (mut told, mut gradients) = (Told::default(), Gradients::of(variables.values()));
            backward
                .learn(&batch, None, &mut told, &mut gradients)
                .expect("gradients");
            losses.push(told.values["loss/masked_signal"].0);
            let norm = updater.norm(&variables, &gradients, 1.0).expect("a norm");
            let updated = updater.update(step, &variables, &gradients, (1.0, norm), &Alone);
            updated.expect("updated");
        }
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < 0.4 * first, "{style:?}: from {first} to {last}");
    }
}

#[test]
fn texts_of_one_image_share_the_target() {
    // Two texts of one image, one of another; similarities by hand.
    let unit = |x: f32, y: f32| {
        let length = x.hypot(y);
        [x / length, y / length]
    };
    let image_rows = [unit(1.0, 0.2), unit(0.9, 0.1), unit(-0.3, 1.0)];
    let text_rows = [unit(0.8, 0.5), unit(0.2, 0.9), unit(-0.5, 0.6)];
    let tensor = |rows: &[[f32; 2]; 3]| Tensor::new(rows, &Device::Cpu).expect("rows");
    let (images, texts) = (tensor(&image_rows), tensor(&text_rows));
    let (scale, same) = (5.0, [4u32, 4, 9]);
    let of = |same| {
        let features = Features {
            images: &images,
            texts: &texts,
            scale,
            ignored: None,
            mixed: None,
            same,
        };
        compare(&features, &Comparison::default(), &Alone).expect("compared")
    };
    let found = of(Some(&same[..]));
    let score = |i: usize, t: usize| {
        let dot = f64::from(image_rows[i][0]) * f64::from(text_rows[t][0])
            + f64::from(image_rows[i][1]) * f64::from(text_rows[t][1]);
        scale * dot
    };
    let loss = |score: &dyn Fn(usize, usize) -> f64| {
        let rows = (0..3).map(|row| {
            let sum: f64 = (0..3).map(|other| score(row, other).exp()).sum();
            let own: Vec<usize> = (0..3).filter(|&other| same[other] == same[row]).collect();
            let share = 1.0 / own.len() as f64;
            own.into_iter()
                .map(|other| share * (sum.ln() - score(row, other)))
                .sum::<f64>()
        });
        rows.sum::<f64>() / 3.0
    };
    let exact = [loss(&|i, t| score(i, t)), loss(&|t, i| score(i, t))];
    for (found, exact) in [found.image_loss, found.text_loss].into_iter().zip(exact) {
        assert!((found - exact).abs() < 1e-6, "{found} instead of {exact}");
    }
    assert!(
        (of(None).image_loss - exact[0]).abs() > 1e-3,
        "it makes a difference"
    );
    // The gradient by the first number of the first image, by a difference.
    let moved = |by: f32| {
        let mut rows = image_rows;
        rows[0][0] += by;
        let features = Features {
            images: &tensor(&rows),
            texts: &texts,
            scale,
            ignored: None,
            mixed: None,
            same: Some(&same),
        };
        compare(&features, &Comparison::default(), &Alone)
            .expect("compared")
            .loss()
    };
    let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
    let gradient = values(&found.images)[0];
    assert!(
        (gradient - slope).abs() < 1e-4,
        "{gradient} instead of {slope}"
    );
}

#[test]
fn negatives_are_never_of_the_same_image() {
    let opened = open(EveTask::Retrieval, &NOTHING, &[]);
    let objectives = objectives(&["itm"], SignalSettings::default());
    // All pairs of one image: nothing is left.
    let mut of_one = batch(4);
    of_one.image_numbers = Some(vec![7; 4]);
    let shared = train::objectives::Shared::default();
    let step = train::objectives::Step::plain(opened.model.as_ref(), &of_one, &Alone, &shared);
    let fault = objectives[0]
        .0
        .loss(&step)
        .err()
        .expect("refused")
        .to_string();
    assert!(fault.contains("more than one image"), "{fault}");
    // Without numbers the objective cannot know.
    of_one.image_numbers = None;
    let step = train::objectives::Step::plain(opened.model.as_ref(), &of_one, &Alone, &shared);
    let fault = objectives[0]
        .0
        .loss(&step)
        .err()
        .expect("refused")
        .to_string();
    assert!(fault.contains("numbers of images"), "{fault}");
}

/// Rows of a batch for one rank.
fn share(batch: &Batch, rank: usize, n_ranks: usize) -> Batch {
    let n = batch.n / n_ranks;
    let rows: Vec<u32> = (rank * n..(rank + 1) * n).map(|row| row as u32).collect();
    let at = Tensor::new(&rows[..], &Device::Cpu).expect("rows");
    let of = |all: &[u32]| {
        rows.iter()
            .map(|&row| all[row as usize])
            .collect::<Vec<u32>>()
    };
    let negatives = batch.negatives.as_ref().expect("negatives");
    Batch {
        first: rank * n,
        n,
        image: batch
            .image
            .as_ref()
            .map(|image| image.select(&at).expect("images")),
        text: batch
            .text
            .as_ref()
            .map(|text| text.select(&at).expect("texts")),
        second_image: batch
            .second_image
            .as_ref()
            .map(|image| image.select(&at).expect("images")),
        classes: batch.classes.as_deref().map(of),
        answers: batch
            .answers
            .as_ref()
            .map(|scores| scores.index_select(&at, 0).expect("scores")),
        masked_signals: batch.masked_signals.as_ref().map(|signals| MaskedSignals {
            patches: signals.patches.index_select(&at, 0).expect("flags"),
            words: words_of(&signals.words, rank * n..(rank + 1) * n, &at),
        }),
        image_numbers: batch.image_numbers.as_deref().map(of),
        negatives: Some(Negatives {
            images: of(&negatives.images),
            texts: of(&negatives.texts),
        }),
        ..Batch::default()
    }
}

/// Which rows of places in a batch of texts are of these rows, counted from the first of them.
fn words_of(words: &MaskedWords, rows: std::ops::Range<usize>, at: &Tensor) -> MaskedWords {
    let t = PAIR_LEN as u32;
    let all = words.places.iter().zip(&words.labels);
    let own = all.filter(|(place, _)| rows.contains(&((**place / t) as usize)));
    let (places, labels) = own
        .map(|(place, label)| (place - t * rows.start as u32, *label))
        .unzip();
    MaskedWords {
        ids: words.ids.index_select(at, 0).expect("ids"),
        places,
        labels,
    }
}

/// The mean loss, the mean balance and the mean gradients of ranks, of which each computes its own experts if `experts`
/// says so.
fn shared(
    opened: &Opened,
    (objectives, routing): (&[(Box<dyn Objective>, f64)], &RoutingOf<'_>),
    batch: &Batch,
    (collective, experts): (&dyn Collective, Option<&Rc<dyn Collective>>),
    tape: fn() -> Tape,
) -> (f64, BTreeMap<String, Vec<f64>>) {
    let variables = opened.weights.variables();
    let mut gradients = Gradients::of(variables.values());
    let passes = Passes::of(objectives.iter().map(|(objective, _)| &**objective), batch);
    let (shared, mut total) = (Shared::default(), 0.0);
    for (objective, _) in objectives {
        let (tape, losses) = (tape(), SideLosses::new());
        let step = Step {
            routing: Some(routing),
            side_losses: Some(&losses),
            experts,
            tape: Some(&tape),
            ..Step::plain(opened.model.as_ref(), batch, collective, &shared)
        };
        let loss = objective.loss(&step).expect("a loss");
        let balance = passes.balance(objective.as_ref(), batch, losses.take());
        let balance =
            (balance.expect("balance").expect("routers") * BALANCE_WEIGHT).expect("a loss");
        total += loss.reported + values(&balance)[0];
        let value = (loss.value + balance).expect("a sum");
        tape.backward(&value, &mut gradients).expect("gradients");
    }
    let size = collective.size() as f64;
    let mut sum = [total];
    collective.sum_f64(&mut sum).expect("a sum");
    let mut by_name = BTreeMap::new();
    for (name, variable) in &variables {
        let reached = gradients.get(variable).is_some();
        let gradient = gradients.host(variable).expect("in memory");
        collective.sum(gradient).expect("a sum");
        let mean: Vec<f64> = gradient.iter().map(|&g| f64::from(g) / size).collect();
        assert!(
            reached || experts.is_some() || mean.iter().all(|g| *g == 0.0),
            "{name}"
        );
        by_name.insert(name.clone(), mean);
    }
    (sum[0] / size, by_name)
}

#[test]
fn ranks_that_share_experts_learn_what_one_process_learns() {
    let roomy: &RoutingOf<'_> = &unlimited;
    // So little room that tokens are dropped, on whatever rank they stand.
    let narrow: &RoutingOf<'_> = &|_| {
        Some(Routing {
            capacity: Capacity::Even {
                factor: 0.5,
                least: 1,
            },
            ..Routing::default()
        })
    };
    let mut whole = batch(6);
    whole.image_numbers = Some(vec![0, 1, 2, 2, 0, 3]);
    whole.negatives = Some(Negatives {
        images: vec![1, 2, 4, 5, 3, 0],
        texts: vec![5, 3, 1, 0, 2, 4],
    });
    let cases: [(EveTask, &[&str], &[Head]); 4] = [
        (EveTask::Retrieval, &["itc", "itm"], &[]),
        (EveTask::Vqa, &["vqa"], &[]),
        (EveTask::Nlvr2Biattn, &["nlvr2"], &[]),
        (EveTask::Pretrain, &["masked_signal"], &SIGNALS),
    ];
    let tapes: [fn() -> Tape; 3] = [Tape::new, Tape::checkpointing, || Tape::new().of_graphs()];
    for (task, names, heads) in cases {
        let alone = open(task, &NOTHING, heads);
        let objectives_of = || objectives(names, SignalSettings::default());
        for (routing, is_roomy) in [(roomy, true), (narrow, false)] {
            let of_one = (&objectives_of()[..], routing);
            let (loss, expected) = shared(&alone, of_one, &whole, (&Alone, None), Tape::new);
            let largest = expected
                .values()
                .map(|g| l2(g.iter().copied()))
                .fold(0.0, f64::max);
            for (n_ranks, tape) in [(2, tapes[0]), (2, tapes[1]), (2, tapes[2]), (3, tapes[0])] {
                let of_ranks = Threads::run_owned(n_ranks, |rank| {
                    let rank: Rc<dyn Collective> = Rc::new(rank);
                    let opened = open(task, &NOTHING, heads);
                    let own = share(&whole, rank.rank(), n_ranks);
                    let routing: &RoutingOf<'_> = match is_roomy {
                        true => &unlimited,
                        false => &|_| {
                            Some(Routing {
                                capacity: Capacity::Even {
                                    factor: 0.5,
                                    least: 1,
                                },
                                ..Routing::default()
                            })
                        },
                    };
                    let of = objectives_of();
                    shared(
                        &opened,
                        (&of, routing),
                        &own,
                        (rank.as_ref(), Some(&rank)),
                        tape,
                    )
                });
                let said = format!("{task:?}, {n_ranks} ranks, room: {is_roomy}");
                for (found, gradients) in of_ranks {
                    let error = (found - loss).abs() / loss;
                    assert!(error <= 1e-5, "{said}: {found} instead of {loss}");
                    for (name, expected) in &expected {
                        let found = &gradients[name];
                        let off = l2(found.iter().zip(expected).map(|(a, b)| a - b));
                        let within = 1e-5 * l2(expected.iter().copied()) + 1e-7 * largest;
                        assert!(off <= 3.0 * within, "{said}: {name}: {off} of {within}");
                    }
                }
            }
        }
    }
}

#[test]
fn two_ranks_learn_from_texts_of_one_image_what_one_process_learns() {
    let mut whole = batch(6);
    // Texts of one image are on both ranks.
    whole.image_numbers = Some(vec![0, 1, 2, 2, 0, 3]);
    whole.negatives = Some(Negatives {
        images: vec![1, 2, 4, 5, 3, 0],
        texts: vec![5, 3, 1, 0, 2, 4],
    });
    let names = ["itc", "itm"];
    let alone = open(EveTask::Retrieval, &NOTHING, &[]);
    let objectives_of = || objectives(&names, SignalSettings::default());
    let (told, expected) = learned(&alone, &objectives_of(), &whole, (&Alone, false));
    let of_ranks = Threads::run(2, |rank| {
        let opened = open(EveTask::Retrieval, &NOTHING, &[]);
        let own = share(&whole, rank.rank(), rank.size());
        // Balance is one of a rank's tokens: leave it to other tests.
        learned(&opened, &objectives_of(), &own, (rank, false))
    });
    let mean: f64 = of_ranks
        .iter()
        .map(|(told, _)| told.values["loss/itc"].0 / 2.0)
        .sum();
    let exact = told.values["loss/itc"].0;
    assert!(
        (mean - exact).abs() <= 1e-5 * exact,
        "{mean} instead of {exact}"
    );
    let largest = expected
        .values()
        .map(|g| l2(g.iter().copied()))
        .fold(0.0, f64::max);
    for (name, expected) in &expected {
        let found = &of_ranks[0].1[name];
        let off = l2(found.iter().zip(expected).map(|(a, b)| a - b));
        // Half of the balance's gradient is another one.
        let within = 2e-3 * l2(expected.iter().copied()) + 1e-4 * largest;
        assert!(off <= within, "{name}: {off}");
    }
}
