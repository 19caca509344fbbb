//! A small EVE, and batches that its objectives read.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::Weights;
use evaluate::models::{self, Blueprint, Head, Model, Overrides};
use evaluate::nn::Routing;
use evaluate::ranks::ExpertShare;
use merge::execute::{RunOptions, in_memory};
use merge::layouts::{EveSizes, EveSpec, EveTask, TowerSizes};
use merge::progress::Silent;
use merge::random::Draws;
use merge::recipe::OutputDType;
use merge::synth::{Spread, Synthesis};
use train::batch::{Batch, Images, MaskedSignals, MaskedWords, Texts};
use train::objectives::{
    Negatives, Objective, Opening, PairSettings, SignalSettings, in_order, spec,
};

/// Patches a side of the images of these models, and pixels a side of a patch.
pub const GRID: [usize; 2] = [4, 4];

/// Tokens of a text.
pub const PAIR_LEN: usize = 6;

/// Tokens that are known: padding, the beginning, the end, the mask, words.
pub const VOCABULARY: usize = 30;

pub struct Opened {
    pub blueprint: Box<dyn Blueprint>,
    pub model: Box<dyn Model>,
    pub weights: Weights,
}

/// A small model for a task, whose missing heads are drawn.
pub fn open(task: EveTask, overrides: &Overrides, heads: &[Head]) -> Opened {
    open_share(task, overrides, heads, ExpertShare::ALL)
}

/// The same with the experts of a rank alone.
pub fn open_share(
    task: EveTask,
    overrides: &Overrides,
    heads: &[Head],
    share: ExpertShare,
) -> Opened {
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
    let weights = weights.with_fresh(&fresh, 1);
    let weights = weights.sharing_experts(share).trainable();
    let model = blueprint.build(&weights).expect("it loads");
    Opened {
        blueprint,
        model,
        weights,
    }
}

pub fn images(n: usize, key: &str) -> Images {
    let [side, patch] = GRID;
    let pixels = side * patch;
    let mut numbers = vec![0.0; n * 3 * pixels * pixels];
    Draws::new(5, key).add_normal(0.5, 0, &mut numbers);
    Images::of_values(numbers, n, pixels, &Device::Cpu, DType::F32).expect("images")
}

/// Pairs of images and texts with everything that objectives read. Two texts are of one image.
pub fn batch(n: usize) -> Batch {
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

pub fn objectives(names: &[&str], signal: SignalSettings) -> Vec<(Box<dyn Objective>, f64)> {
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
pub fn unlimited(_: &str) -> Option<Routing> {
    Some(Routing::default())
}
pub const DEEP: Overrides = Overrides {
    decoder_depth: Some(2),
    tied_words: Some(false),
    ..NOTHING
};

pub const NOTHING: Overrides = Overrides {
    activation: None,
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

pub const SIGNALS: [Head; 2] = [Head::MaskedImage, Head::MaskedLanguage];

/// Rows of a batch for one rank.
pub fn share(batch: &Batch, rank: usize, n_ranks: usize) -> Batch {
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
pub fn words_of(words: &MaskedWords, rows: std::ops::Range<usize>, at: &Tensor) -> MaskedWords {
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
