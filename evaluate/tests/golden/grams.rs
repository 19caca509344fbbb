//! Gram matrices against those that the published program caches.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use evaluate::capture::Capture;
use evaluate::models::Multiway;
use evaluate::nn::{Mask, Pass};
use fixtures::{Case, Raw, Set};
use merge::convert::Conversion;
use merge::execute::RunOptions;
use merge::gram::GramStore;
use merge::layouts::{GramNames, detect};
use merge::progress::Silent;

use super::models::{open, overrides};

fixtures::golden_tests! {
    package: "evaluate", set: "vl_merging",
    gram_matrices_are_those_that_the_published_program_caches: "gram" => grams,
}

/// The model of a case, with the token type of NLVR2's second image.
fn model(case: &Case) -> (Multiway, GramNames) {
    let conversion = Conversion {
        third_token_type: true,
        ..Conversion::default()
    };
    let source = open(&case.file("input"));
    let converted = conversion.in_memory(source, &RunOptions::default(), &Silent);
    let converted = converted.expect("converted");
    let layout = detect(&converted).expect("a layout");
    let names = GramNames::of(&converted, layout.as_ref());
    let (overrides, device) = (overrides(&case.set().config()), Device::Cpu);
    let opened = Multiway::open(converted, &overrides, &device, DType::F32);
    (opened.expect("the model loads").0, names)
}

/// Samples of two images and a padded text each, batch by batch.
struct Samples {
    tensors: BTreeMap<String, Raw>,
    batch: usize,
}

impl Samples {
    fn of(case: &Case) -> Self {
        Self {
            tensors: case.tensors("data"),
            batch: case.count("batch_size").expect("a batch size"),
        }
    }

    fn n(&self) -> usize {
        self.tensors["text_ids"].shape[0]
    }

    /// The first sample of each batch, and how many it has.
    fn batches(&self) -> impl Iterator<Item = (usize, usize)> {
        let (n, batch) = (self.n(), self.batch);
        (0..n)
            .step_by(batch)
            .map(move |first| (first, batch.min(n - first)))
    }

    fn rows(&self, name: &str, (first, size): (usize, usize)) -> Tensor {
        let rows = self.tensors[name].tensor().narrow(0, first, size);
        rows.and_then(|rows| rows.contiguous()).expect("rows")
    }

    /// Pixels, value / 128 − 1.
    fn image(&self, name: &str, batch: (usize, usize)) -> Tensor {
        let pixels = self.rows(name, batch).to_dtype(DType::F32);
        pixels
            .and_then(|pixels| (pixels / 128.0)? - 1.0)
            .expect("pixels")
    }

    fn text(&self, batch: (usize, usize)) -> (Tensor, Mask) {
        let ids = self.rows("text_ids", batch).to_dtype(DType::U32);
        let mask = Mask::new(&self.rows("text_masks", batch));
        (ids.expect("ids"), mask.expect("a mask"))
    }
}

fn capture(task: &str, model: &Multiway, samples: &Samples, capture: &Capture) {
    let tap = capture.times(1);
    let pass = Pass::tapped(&tap);
    for batch in samples.batches() {
        let ((ids, mask), image) = (samples.text(batch), samples.image("image0_u8", batch));
        let run = || -> evaluate::Result<()> {
            match task {
                "irtr" => {
                    model.text(&ids, &mask, &pass)?;
                    model.image(&image, None, &pass)?;
                }
                "vqa" | "nlvr2" => {
                    model.joint(&ids, &mask, &image, None, 0, &pass)?;
                }
                other => panic!("a task that this test does not know: {other}"),
            }
            if task == "nlvr2" {
                let second = samples.image("image1_u8", batch);
                model.joint(&ids, &mask, &second, None, 1, &pass)?;
            }
            Ok(())
        };
        run().expect("the passes run");
    }
}

fn grams(case: &Case) {
    let task = case.param("task").expect("a task");
    let (model, names) = model(case);
    let sums = Capture::new(names).counting_padding(true);
    capture(task, &model, &Samples::of(case), &sums);
    let grams = sums.into_grams();
    let expected = GramStore::new(open(&case.file("expected"))).expect("gram matrices");
    let keys: Vec<&str> = expected
        .checkpoint()
        .tensors()
        .map(|(key, _)| key)
        .collect();
    let found: Vec<&str> = grams.keys().map(String::as_str).collect();
    assert_eq!(found, keys);
    for (key, gram) in &grams {
        let (found, expected) = (gram.full(), expected.read(key).expect("it reads"));
        let norm = |m: &ndarray::Array2<f64>| m.iter().map(|v| v * v).sum::<f64>().sqrt();
        let error = norm(&(&found - &expected)) / norm(&expected);
        assert!(
            error <= case.tolerance("", "rel_frobenius"),
            "{key}: {error}"
        );
    }
}

#[test]
fn padding_is_left_out_unless_it_is_asked_for() {
    let cases = Set::open("vl_merging").cases("gram");
    let of_texts = cases.iter().find(|case| case.param("task") == Some("irtr"));
    let Some(case) = of_texts else {
        return;
    };
    let ((model, names), samples) = (model(case), Samples::of(case));
    let count = |with_padding| {
        let sums = Capture::new(names.clone()).counting_padding(with_padding);
        capture("irtr", &model, &samples, &sums);
        sums.into_grams()["transformer.blocks.0.attn.l"].rows()
    };
    let masks = samples.tensors["text_masks"].integers();
    let kept = masks.iter().filter(|&&kept| kept != 0).count();
    assert_eq!(count(false), kept as u64);
    assert_eq!(count(true), masks.len() as u64);
}
