//! Batches in parts: learned weights do not depend on how a batch is cut.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use evaluate::Weights;
use evaluate::models::{Model, Overrides, prepare};
use evaluate::nn::{Buffers, Gradients};
use train::batch::{Batch, Images, Texts};
use train::collective::{Alone, Collective};
use train::objectives::{self, ContrastSettings, MixDraw, Objective, Opening, Others, Randomness};
use train::run::{Backward, Told};

use super::{FLOOR, TOLERANCE, averaged, l2, part, whole_batch};
use crate::fixture::{json, open, tensors, trainable};

/// Objectives that look beyond an example, with how pairs are mixed.
const BEYOND: [(&[&str], Option<MixDraw>); 6] = [
    (&["itc"], None),
    (&["retrieval"], None),
    (&["itm"], None),
    (&["itc", "itm"], None),
    (&["nce"], None),
    (
        &["mixup_nce"],
        Some(MixDraw {
            alpha: 0.3,
            mixes_images: true,
        }),
    ),
];

/// The same of two towers, which have no heads except for contrast.
const BEYOND_TOWERS: [(&[&str], Option<MixDraw>); 3] = [
    (&["nce"], None),
    (
        &["mixup_nce"],
        Some(MixDraw {
            alpha: 0.3,
            mixes_images: true,
        }),
    ),
    (
        &["mixup_nce"],
        Some(MixDraw {
            alpha: 0.6,
            mixes_images: false,
        }),
    ),
];

/// A model whose weights are variables.
type Trained = (Box<dyn Model>, Weights);

/// A model of a family, with a batch for it, and what it can learn beyond an example.
pub struct Beyond {
    name: &'static str,
    open: Box<dyn Fn() -> Trained + Sync>,
    whole: Batch,
    objectives: &'static [(&'static [&'static str], Option<MixDraw>)],
}

impl Beyond {
    /// An architecture of the multiway family.
    pub fn multiway(name: &'static str) -> Self {
        Self {
            name,
            open: Box::new(move || {
                let (model, weights) = trainable(name);
                (Box::new(model), weights)
            }),
            whole: whole_batch(false),
            objectives: &BEYOND,
        }
    }

    /// ZeroVL, which drops out shares and states of its text tower.
    pub fn zerovl() -> Self {
        let inputs = tensors("zerovl/forward/inputs.safetensors");
        let ids = inputs["input_ids"].to_dtype(DType::U32).expect("ids");
        let kept = inputs["attention_mask"]
            .to_dtype(DType::U8)
            .expect("a mask");
        let image = inputs["image"].clone();
        Self {
            name: "zerovl",
            open: Box::new(two_towers),
            whole: Batch {
                n: image.dim(0).expect("rows"),
                image: Some(Images::new(image)),
                text: Some(Texts::of_tensors(ids, kept).expect("words")),
                ..Batch::default()
            },
            objectives: &BEYOND_TOWERS,
        }
    }
}

fn two_towers() -> Trained {
    let config = json("zerovl/config.json");
    let heads = |tower: &str| config[tower]["heads"].as_u64().map(|n| n as usize);
    let overrides = Overrides {
        image_heads: heads("vision"),
        text_heads: heads("text"),
        ..Overrides::default()
    };
    let checkpoint = open("zerovl/ckpt/model.safetensors");
    let prepared = prepare(checkpoint, &overrides, &Device::Cpu, DType::F32);
    let (blueprint, weights) = prepared.expect("a model");
    let weights = weights.trainable();
    (blueprint.build(&weights).expect("built"), weights)
}

/// Examples of a batch in memory.
struct InMemory<'a>(&'a Batch);

impl Others for InMemory<'_> {
    fn images(&self, rows: &[u32]) -> train::Result<Images> {
        let rows = Tensor::new(rows, &Device::Cpu)?;
        Ok(self.0.image.as_ref().expect("images").select(&rows)?)
    }

    fn texts(&self, rows: &[u32]) -> train::Result<Texts> {
        let rows = Tensor::new(rows, &Device::Cpu)?;
        Ok(self.0.text.as_ref().expect("texts").select(&rows)?)
    }
}

/// Computes a rank's share of a batch in `n_parts` parts: gradients averaged over parts and ranks, and losses.
fn in_parts(
    of: &Beyond,
    (names, mix): (&[&str], Option<MixDraw>),
    n_parts: usize,
    ranks: &dyn Collective,
) -> (BTreeMap<String, Vec<f32>>, BTreeMap<String, f64>) {
    let (model, weights) = (of.open)();
    let whole = &of.whole;
    let opening = Opening {
        contrast: mix.map(|_| ContrastSettings {
            block: Some(1 + usize::from(whole.n / ranks.size() / n_parts > 1)),
            ..ContrastSettings::default()
        }),
        part: whole.n / ranks.size() / n_parts,
        ..Opening::default()
    };
    let objectives: Vec<(Box<dyn Objective>, f64)> = names
        .iter()
        .map(|name| {
            let spec = objectives::spec(name).expect("known");
            ((spec.open)(&opening).expect("opened"), 1.0)
        })
        .collect();
    let buffers = Buffers::default();
    let backward = Backward {
        model: model.as_ref(),
        objectives: &objectives,
        collective: ranks,
        randomness: Randomness {
            seed: 5,
            step: 7,
            drop_path: 0.4,
            dropout: 0.1,
            mix,
        },
        drops: None,
        routing: None,
        balance: 0.0,
        experts: None,
        recomputes: n_parts == 2,
        buffers: &buffers,
        scale: 1.0,
        n_parts,
    };
    let own = part(whole, ranks.rank(), ranks.size());
    let parts: Vec<Batch> = (0..n_parts).map(|at| part(&own, at, n_parts)).collect();
    let variables = weights.variables();
    let mut gradients = Gradients::of(variables.values());
    let mut told = Told::default();
    assert_eq!(backward.is_twice(), n_parts > 1);
    let found = backward.is_twice().then(|| {
        let mut parts = parts.iter().map(|part| Ok(part.clone()));
        backward.look(&mut parts, &mut told).expect("looked")
    });
    let others = InMemory(whole);
    for part in &parts {
        let found = found.as_ref().map(|found| (found, &others as &dyn Others));
        let learned = backward.learn(part, found, &mut told, &mut gradients);
        learned.expect("learned");
    }
    assert_eq!(told.not_finite, None);
    let by_name = averaged(variables, &gradients, n_parts, ranks);
    let mut losses = BTreeMap::new();
    for (name, (sum, n)) in told.values {
        let mut pair = [sum, n];
        ranks.sum_f64(&mut pair).expect("a sum");
        losses.insert(name, pair[0] / pair[1]);
    }
    (by_name, losses)
}

/// A batch in parts learns what it learns at once, with the same random omissions: losses and gradients
/// depend neither on the parts nor on the ranks.
pub fn parts_learn_what_the_whole_learns(ranks: &dyn Collective, of: &Beyond) {
    let share = of.whole.n / ranks.size();
    for &(names, mix) in of.objectives {
        for n_parts in [1, 2, 4].into_iter().filter(|n| share.is_multiple_of(*n)) {
            // Partners are those of a part: the same blocks on one rank.
            let block = 1 + usize::from(share / n_parts > 1);
            if mix.is_some() && block == 1 {
                // A row that is mixed with itself is of another batch.
                continue;
            }
            let expected = in_parts(of, (names, mix), 1, &Alone);
            let found = in_parts(of, (names, mix), n_parts, ranks);
            let shown = format!("{} {names:?} in {n_parts} parts", of.name);
            assert!(found.1.keys().eq(expected.1.keys()), "{shown}");
            for (name, expected) in &expected.1 {
                let error = (found.1[name] - expected).abs();
                assert!(
                    error <= TOLERANCE * expected.abs().max(1.0),
                    "{shown} {name}: {error}"
                );
            }
            let norms = expected.0.values().map(|g| l2(g.iter().copied()));
            let largest = norms.fold(0.0, f64::max);
            assert!(largest > 0.0, "{shown} learns something");
            for (name, expected) in &expected.0 {
                let norm = l2(expected.iter().copied()).max(FLOOR * largest);
                let differences = found.0[name].iter().zip(expected).map(|(a, b)| a - b);
                let error = l2(differences) / norm;
                assert!(error <= TOLERANCE, "{shown} {name}: {error}");
            }
        }
    }
}
