//! EVE: what its model refuses, and what does not depend on the batch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use evaluate::batch::{Images, Pair, Texts};
use evaluate::capture::Capture;
use evaluate::models::{self, Branch, Opened, Overrides, RouterWay};
use evaluate::nn::{Mask, Omission, Pass, SideLosses, Tap};
use fixtures::Set;
use merge::Checkpoint;
use merge::execute::{RunOptions, in_memory};
use merge::gram::{GramRecord, GramStore};
use merge::io::{OpenOptions, WriteOptions};
use merge::layouts::{self, EveSizes, EveSpec, EveTask, GramNames, TowerSizes};
use merge::mixtures::{Routing, survey};
use merge::progress::Silent;
use merge::recipe::OutputDType;
use merge::synth::{Spread, Synthesis};

use crate::golden::models::values;
use crate::golden_eve::{Way, open};

pub fn spec(task: EveTask) -> EveSpec {
    EveSpec {
        task,
        sizes: EveSizes {
            blocks: TowerSizes {
                n_blocks: 3,
                width: 16,
                n_heads: 2,
                ffn_width: 24,
            },
            n_mixtures: 2,
            n_experts: 5,
            patch_size: 4,
            image_size: 12,
            text_positions: 9,
            pair_len: 6,
            vocabulary: 20,
            n_answers: 7,
        },
        with_buffers: true,
    }
}

fn model(task: EveTask, overrides: &Overrides) -> Opened {
    model_of(spec(task), overrides)
}

/// A drawn model.
pub fn model_of(spec: EveSpec, overrides: &Overrides) -> Opened {
    models::open(file(spec), overrides, &Device::Cpu, DType::F32).expect("a model")
}

fn file(spec: EveSpec) -> Arc<Checkpoint> {
    let synthesis = Synthesis {
        spec,
        seed: 5,
        spread: Spread {
            deviation: 0.3,
            layer_scale: 0.5,
        },
        is_fresh: false,
        dtype: OutputDType::Keep,
    };
    let plan = synthesis.plan().expect("a plan");
    let file = in_memory(&plan, &RunOptions::default(), &Silent);
    Arc::new(file.expect("made"))
}

fn texts(n: usize, len: usize) -> Texts {
    let ids = (0..n * len).map(|at| (at * 7 % 19 + 1) as u32).collect();
    let n_tokens: Vec<usize> = (0..n).map(|row| len - row % 3).collect();
    Texts::new(ids, &n_tokens, &Device::Cpu).expect("texts")
}

fn images(n: usize) -> Images {
    let values = (0..n * 3 * 144).map(|at| (at as f32 * 0.37).sin());
    Images::of_values(values.collect(), n, 12, &Device::Cpu, DType::F32).expect("images")
}

/// The output of each task's head for a batch.
fn answers(opened: &Opened, texts: &Texts, images: &Images) -> Vec<Tensor> {
    let (fusion, dual) = (opened.model.fusion().expect("fusion"), opened.model.dual());
    let (dual, pass) = (dual.expect("a dual encoder"), Pass::new());
    let fused = fusion
        .fuse(&Pair::new(texts, images), &pass)
        .expect("it fuses");
    vec![
        dual.image_features(images, &[Branch::Apart], &pass)
            .expect("features")
            .remove(0),
        dual.text_features(texts, &[Branch::Apart], &pass)
            .expect("features")
            .remove(0),
        fused.text,
        fused.image,
    ]
}

#[test]
fn outputs_do_not_depend_on_who_else_is_in_the_batch() {
    let n = 7;
    let (texts, images) = (texts(n, 6), images(n));
    let opened = model(EveTask::Retrieval, &Overrides::default());
    let whole = answers(&opened, &texts, &images);
    let rows = |of: &[u32]| Tensor::new(of, &Device::Cpu).expect("rows");
    for some in [vec![3u32], vec![6, 0], vec![1, 2, 4, 5]] {
        let at = rows(&some);
        let (texts, images) = (
            texts.select(&at).expect("texts"),
            images.select(&at).expect("images"),
        );
        for (whole, part) in whole.iter().zip(answers(&opened, &texts, &images)) {
            let whole = whole.contiguous().expect("rows");
            let whole = whole.index_select(&at, 0).expect("rows");
            let differs = fixtures::first_difference(&values(&part), &values(&whole), 1e-5, 1e-6);
            assert_eq!(differs, None, "{some:?}");
        }
    }
    // As published, tokens of others take the room.
    let published = Overrides {
        routing: Some(RouterWay::AsPublished),
        ..Overrides::default()
    };
    let opened = model(EveTask::Retrieval, &published);
    let whole = answers(&opened, &texts, &images);
    let at = rows(&[3]);
    let alone = answers(
        &opened,
        &texts.select(&at).expect("texts"),
        &images.select(&at).expect("images"),
    );
    let same = whole.iter().zip(&alone).all(|(whole, alone)| {
        let whole = whole.index_select(&at, 0).expect("rows");
        fixtures::first_difference(&values(alone), &values(&whole), 1e-4, 1e-4).is_none()
    });
    assert!(!same, "the published room depends on the batch");
}

#[test]
fn texts_of_another_length_are_refused_together_with_images() {
    let opened = model(EveTask::Vqa, &Overrides::default());
    let fusion = opened.model.fusion().expect("fusion");
    let images = images(2);
    for len in [5, 7, 9] {
        let texts = texts(2, len);
        let fault = fusion.answer(&Pair::new(&texts, &images), &Pass::new());
        let fault = fault.expect_err("refused").to_string();
        assert!(fault.contains(&format!("{len} tokens")), "{fault}");
        assert!(fault.contains("exactly 6"), "{fault}");
    }
    let texts = texts(2, 6);
    let logits = fusion
        .answer(&Pair::new(&texts, &images), &Pass::new())
        .expect("answers");
    assert_eq!(logits.dims(), [2, 7]);
    // Alone, a text may be as long as there are positions.
    let dual = opened.model.dual().expect("a dual encoder");
    assert!(dual.text_states(&self::texts(2, 9), &Pass::new()).is_ok());
    let fault = dual.text_states(&self::texts(2, 10), &Pass::new());
    let fault = fault.expect_err("refused").to_string();
    assert!(fault.contains("9 positions"), "{fault}");
}

#[test]
fn networks_of_one_modality_do_not_see_the_other() {
    let set = Set::open("eve");
    let weights = set.tensors("ckpt/retrieval.safetensors");
    let inputs = set.tensors("forward/inputs.safetensors");
    let image = Images::new(inputs["image"].tensor());
    let texts = Texts::of_tensors(
        inputs["ids"].tensor().to_dtype(DType::U32).expect("ids"),
        inputs["atts"].tensor().to_dtype(DType::U8).expect("flags"),
    );
    let texts = texts.expect("texts");
    let states = |changed: &str| {
        let mut weights = weights.clone();
        for (key, raw) in &mut weights {
            if !changed.is_empty() && key.contains(changed) {
                raw.bytes.fill(0);
            }
        }
        let opened = open(&set, &weights, Way::default());
        let dual = opened.model.dual().expect("a dual encoder");
        let pass = Pass::new();
        [
            values(&dual.image_states(&image, None, &pass).expect("states")),
            values(&dual.text_states(&texts, &pass).expect("states")),
        ]
    };
    let [image, text] = states("");
    let [image_without_text, changed_text] = states("mlp_text");
    let [changed_image, text_without_image] = states("mlp_imag");
    assert_eq!(image, image_without_text);
    assert_eq!(text, text_without_image);
    assert_ne!(image, changed_image);
    assert_ne!(text, changed_text);
}

#[test]
fn a_training_pass_draws_by_example_and_collects_the_balance_of_each_router() {
    let opened = model(EveTask::Vqa, &Overrides::default());
    let fusion = opened.model.fusion().expect("fusion");
    let (texts, images) = (texts(4, 6), images(4));
    let omission = |first: usize, seed: u64| Omission {
        seed,
        name: "1/pass".to_owned(),
        first,
        ..Omission::default()
    };
    let run = |seed: u64| {
        let (omission, losses) = (omission(0, seed), SideLosses::new());
        let pass = Pass::new().omitting(&omission).collecting(&losses);
        let logits = fusion
            .answer(&Pair::new(&texts, &images), &pass)
            .expect("answers");
        (values(&logits), losses.take())
    };
    let (one, losses) = run(1);
    let names: Vec<&str> = losses.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["block1.balance", "block2.balance"]);
    for (_, loss) in &losses {
        let loss = values(loss)[0];
        assert!((1.0..5.0).contains(&loss), "{loss}");
    }
    assert_eq!(run(1).0, one);
    assert_ne!(run(2).0, one);
}

/// The record of a router's choices.
#[derive(Default)]
struct Shown(Mutex<BTreeMap<String, Vec<f64>>>);

impl Tap for Shown {
    fn linear_input(&self, _: &str, _: &Tensor, _: Option<&Mask>) -> candle_core::Result<()> {
        Ok(())
    }

    fn wants(&self, name: &str) -> bool {
        name.contains(".moe.")
    }

    fn output(&self, name: &str, tensor: &Tensor) -> candle_core::Result<()> {
        let values = values(&tensor.to_dtype(DType::F64)?);
        self.0
            .lock()
            .expect("one thread")
            .insert(name.to_owned(), values);
        Ok(())
    }
}

/// `W x + b`, with one row of `W` an output.
fn linear(file: &Checkpoint, layer: &str, x: &[f64]) -> Vec<f64> {
    let tensor = |part: &str| -> Vec<f64> {
        let bytes = file.read_all(&format!("{layer}.{part}")).expect("there");
        let floats = bytes.as_chunks::<4>().0.iter();
        floats
            .map(|&bytes| f64::from(f32::from_le_bytes(bytes)))
            .collect()
    };
    let (weight, bias) = (tensor("weight"), tensor("bias"));
    let rows = weight.chunks_exact(x.len()).zip(bias);
    rows.map(|(row, bias)| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + bias)
        .collect()
}

#[test]
fn grams_say_how_tokens_that_are_no_padding_go_to_experts() {
    let file = file(spec(EveTask::Retrieval));
    let opened = models::open(
        Arc::clone(&file),
        &Overrides::default(),
        &Device::Cpu,
        DType::F32,
    );
    let opened = opened.expect("a model");
    let dual = opened.model.dual().expect("a dual encoder");
    let (n, len, texts) = (7, 6, texts(7, 6));
    let shown = Shown::default();
    dual.text_states(&texts, &Pass::tapped(&shown))
        .expect("states");
    let shown = shown.0.into_inner().expect("one thread");
    let layout = layouts::detect(&file).expect("a layout");
    let capture = Capture::new(GramNames::of(&file, layout.as_ref())).with_shared(true);
    let tap = capture.times(1);
    dual.text_states(&texts, &Pass::tapped(&tap))
        .expect("states");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("grams.safetensors");
    let record = GramRecord::default();
    merge::gram::write(
        &capture.into_grams(),
        &record,
        false,
        &WriteOptions::new(&path),
        &Silent,
    )
    .expect("written");
    let grams = merge::io::open(&path, &OpenOptions::default()).expect("it opens");
    let grams = GramStore::new(Arc::new(grams)).expect("grams");
    let mixtures = survey(&file).expect("mixtures");
    assert_eq!(mixtures.len(), 2);
    for (block, mixture) in (1..).zip(mixtures.values()) {
        let routing = Routing::read(&grams, &file, mixture).expect("routing");
        let of = |name: &str| &shown[&format!("block{block}.moe.{name}")];
        let (mut counts, mut sums, mut n_tokens) = ([0.0; 5], [0.0; 5], 0.0);
        for row in (0..n * len).filter(|row| row % len < len - row / len % 3) {
            n_tokens += 1.0;
            let tagged = &of("tagged")[16 * row..16 * row + 16];
            for (choice, weight) in [("first", "w1"), ("second", "w2")] {
                let expert = of(choice)[row] as usize;
                let name = format!("{}.experts.experts.{expert}", mixture.host);
                let hidden = linear(&file, &format!("{name}.fc1"), tagged);
                let hidden: Vec<f64> = hidden
                    .iter()
                    .map(|x| x / (1.0 + (-1.702 * x).exp()))
                    .collect();
                let answer = linear(&file, &format!("{name}.fc2"), &hidden);
                counts[expert] += 1.0;
                sums[expert] += of(weight)[row] * answer.iter().map(|x| x * x).sum::<f64>().sqrt();
            }
        }
        assert_eq!(routing.n_tokens, n_tokens);
        assert_eq!(routing.counts, counts);
        let expected: Vec<f64> = (sums.iter().zip(counts))
            .map(|(sum, count)| if count > 0.0 { sum / count } else { 0.0 })
            .collect();
        let differs = fixtures::first_difference(&routing.saliency, &expected, 1e-4, 1e-6);
        assert_eq!(differs, None);
        assert!(routing.alike.is_some());
    }
}
