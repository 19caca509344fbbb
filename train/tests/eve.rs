//! EVE's objectives: what learns from what, and by which rule.

use std::collections::BTreeMap;
use std::rc::Rc;

use candle_core::{Device, Tensor};
use evaluate::batch::Pair;
use evaluate::models::{Head, Overrides};
use evaluate::nn::{Buffers, Gradient, Gradients, Pass, Routing};
use merge::layouts::EveTask;
use train::batch::{Batch, Images};
use train::collective::{Alone, Collective};
use train::objectives::{
    BALANCE_WEIGHT, Comparison, Features, HidingStyle, Negatives, Objective, Randomness, Shared,
    SignalPasses, SignalSettings, Step, compare,
};
use train::optim::{Decay, OptimSettings, Warmup};
use train::run::{Backward, Told, Updater};

use crate::eve_model::{
    DEEP, GRID, NOTHING, Opened, SIGNALS, batch, images, objectives, open, share, unlimited,
};
use crate::fixture::{NOTHING_OMITTED, l2, plain, values};
use crate::threads::Threads;
use crate::{shared_experts, shared_runs};

/// The numbers of a step, and gradients by name, on average over the ranks.
fn learned(
    opened: &Opened,
    objectives: &[(Box<dyn Objective>, f64)],
    batch: &Batch,
    (collective, recomputes): (&dyn Collective, bool),
) -> (Told, BTreeMap<String, Vec<f64>>) {
    let buffers = Buffers::default();
    let backward = Backward {
        collective,
        routing: Some(&unlimited),
        balance: BALANCE_WEIGHT,
        recomputes,
        ..plain(opened.model.as_ref(), objectives, &buffers)
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
    type Learned<'a> = (
        EveTask,
        &'a [&'a str],
        Overrides,
        &'a [Head],
        SignalSettings,
    );
    let cases: [Learned<'_>; 8] = [
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
    // Patches that are left out are not seen: other pixels there change nothing.
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
    let fusion = plain.model.fusion().expect("fusion");
    let Err(fault) = fusion.reconstructed(&pair.leaving_out(), &Pass::new()) else {
        panic!("not refused");
    };
    let fault = fault.to_string();
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
                balance: BALANCE_WEIGHT,
                randomness: Randomness {
                    step,
                    ..NOTHING_OMITTED
                },
                ..plain(opened.model.as_ref(), &objectives, &buffers)
            };
            let (mut told, mut gradients) = (Told::default(), Gradients::of(variables.values()));
            backward
                .learn(&batch, None, &mut told, &mut gradients)
                .expect("gradients");
            losses.push(told.values["loss/masked_signal"].0);
            let norm = updater
                .norm(&variables, &gradients, 1.0, &Alone)
                .expect("a norm");
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
            bias: 0.0,
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
            bias: 0.0,
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
    let shared = Shared::default();
    let step = Step::plain(opened.model.as_ref(), &of_one, &Alone, &shared);
    let refused = |step: &Step<'_>| match objectives[0].0.loss(step) {
        Err(fault) => fault.to_string(),
        Ok(_) => panic!("not refused"),
    };
    let fault = refused(&step);
    assert!(fault.contains("more than one image"), "{fault}");
    // Without numbers the objective cannot know.
    of_one.image_numbers = None;
    let step = Step::plain(opened.model.as_ref(), &of_one, &Alone, &shared);
    let fault = refused(&step);
    assert!(fault.contains("numbers of images"), "{fault}");
}

#[test]
fn ranks_that_share_experts_learn_what_one_process_learns() {
    for n_ranks in [2, 3] {
        Threads::run_owned(n_ranks, |rank| {
            let rank: Rc<dyn Collective> = Rc::new(rank);
            shared_experts::ranks_that_share_experts_learn_what_one_process_learns(&rank)
        });
    }
}

#[test]
fn a_run_whose_ranks_share_experts_ends_where_that_of_one_process_ends() {
    for n_ranks in [2, 3] {
        let folder = tempfile::tempdir().expect("a folder");
        Threads::run_owned(n_ranks, |rank| {
            let rank: Rc<dyn Collective> = Rc::new(rank);
            let folder = folder.path();
            shared_runs::a_run_that_shares_experts_ends_where_that_of_one_process_ends(
                &rank, folder,
            )
        });
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
