//! Gram matrices against those that the published program caches.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::capture::Capture;
use evaluate::models::{Multiway, Overrides};
use evaluate::nn::{Mask, Pass};
use merge::gram::{Gram, GramRecord, GramStore};
use merge::io::{OpenOptions, WriteOptions};
use merge::layouts::GramNames;
use merge::progress::Silent;

use crate::fixture::{json, list, path};

/// Relative Frobenius, as the fixture states for a forward pass of one's own.
const TOLERANCE: f64 = 1e-4;

/// Examples of a batch, as the published program was run.
const BATCH: usize = 4;

fn open(name: &str) -> Arc<merge::Checkpoint> {
    let opened = merge::io::open(&path(name), &OpenOptions::default());
    Arc::new(opened.expect("the fixture opens"))
}

fn model() -> (Multiway, GramNames) {
    let overrides = Overrides {
        text_table_len: Some(16),
        ..Overrides::default()
    };
    let checkpoint = open("ckpt/all_moe_pretrain.ckpt");
    // The NLVR2 pass needs a third token type, which is a copy of the second.
    let layout = merge::layouts::detect(&checkpoint).expect("a layout");
    let conversion = merge::convert::Conversion {
        third_token_type: true,
        ..Default::default()
    };
    let plan = conversion
        .plan(checkpoint, layout.as_ref())
        .expect("a plan");
    let run = merge::execute::RunOptions {
        hash: false,
        ..Default::default()
    };
    let converted = merge::execute::in_memory(&plan, &run, &Silent).expect("converted");
    let converted = Arc::new(converted);
    let layout = merge::layouts::detect(&converted).expect("a layout");
    let names = GramNames::of(&converted, layout.as_ref());
    let opened = Multiway::open(converted, &overrides, &Device::Cpu, DType::F32);
    (opened.expect("the model loads").0, names)
}

/// 24 samples: two images and a padded text each.
struct Samples(Arc<merge::Checkpoint>);

impl Samples {
    fn bytes(&self, name: &str, first: usize, size: usize) -> (Vec<u8>, Vec<usize>) {
        let info = self.0.require(name).expect("the tensor");
        let one = info.n_bytes() as usize / info.shape[0];
        let bytes = self.0.read_all(name).expect("it reads");
        let mut shape = info.shape.clone();
        shape[0] = size;
        (bytes[first * one..(first + size) * one].to_vec(), shape)
    }

    fn image(&self, name: &str, first: usize) -> Tensor {
        let (bytes, shape) = self.bytes(name, first, BATCH);
        let values: Vec<f32> = bytes.iter().map(|&v| f32::from(v) / 128.0 - 1.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).expect("an image")
    }

    fn text(&self, first: usize) -> (Tensor, Mask) {
        let read = |name| {
            let (bytes, shape) = self.bytes(name, first, BATCH);
            Tensor::from_raw_buffer(&bytes, DType::I64, &shape, &Device::Cpu).expect("a text")
        };
        let ids = read("text_ids").to_dtype(DType::U32).expect("ids");
        (ids, Mask::new(&read("text_masks")).expect("a mask"))
    }
}

fn capture(task: &str, model: &Multiway, capture: &Capture) {
    let samples = Samples(open("merge/gram_inputs.safetensors"));
    let tap = capture.times(1);
    let pass = Pass::tapped(&tap);
    for first in (0..24).step_by(BATCH) {
        let ((ids, mask), image) = (samples.text(first), samples.image("image0_u8", first));
        let run = || -> evaluate::Result<()> {
            if task == "irtr" {
                model.text(&ids, &mask, &pass)?;
                model.image(&image, None, &pass)?;
                return Ok(());
            }
            model.joint(&ids, &mask, &image, None, 0, &pass)?;
            if task == "nlvr2" {
                let second = samples.image("image1_u8", first);
                model.joint(&ids, &mask, &second, None, 1, &pass)?;
            }
            Ok(())
        };
        run().expect("the passes run");
    }
}

#[test]
fn grams_are_those_that_the_published_program_caches() {
    let (model, names) = model();
    let manifest = json("manifest.json");
    let cases = list(&manifest["cases"])
        .iter()
        .filter(|case| case["op"] == "gram");
    let mut n_cases = 0;
    for case in cases {
        let task = case["params"]["task"].as_str().expect("a task");
        let sums = Capture::new(names.clone()).counting_padding(true);
        capture(task, &model, &sums);
        let grams = sums.into_grams();
        let expected = GramStore::new(open(case["expected"].as_str().expect("a file")));
        let expected = expected.expect("gram matrices");
        let keys: Vec<&str> = expected
            .checkpoint()
            .tensors()
            .map(|(key, _)| key)
            .collect();
        let found: Vec<&str> = grams.keys().map(String::as_str).collect();
        assert_eq!(found, keys, "{task}");
        for (key, gram) in &grams {
            let (found, expected) = (gram.full(), expected.read(key).expect("it reads"));
            let norm = |m: &ndarray::Array2<f64>| m.iter().map(|v| v * v).sum::<f64>().sqrt();
            let error = norm(&(&found - &expected)) / norm(&expected);
            assert!(error <= TOLERANCE, "{task} {key}: {error}");
        }
        n_cases += 1;
    }
    assert_eq!(n_cases, 3);
}

#[test]
fn padding_is_left_out_unless_it_is_asked_for() {
    let (model, names) = model();
    let count = |capture_padding| {
        let sums = Capture::new(names.clone()).counting_padding(capture_padding);
        capture("irtr", &model, &sums);
        sums.into_grams()["transformer.blocks.0.attn.l"].rows()
    };
    let (bytes, _) = Samples(open("merge/gram_inputs.safetensors")).bytes("text_masks", 0, 24);
    let kept = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .filter(|v| i64::from_le_bytes(**v) != 0);
    assert_eq!(count(false), kept.count() as u64);
    assert_eq!(count(true), 24 * 12);
}

#[test]
fn gram_files_say_what_they_are_of_and_add_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let gram = |value: f32, rows: usize| {
        let mut gram = Gram::new(2);
        gram.add_rows(&vec![value; 2 * rows], 1, &mut Vec::new());
        gram
    };
    let write = |name: &str, gram: Gram, data: &str| {
        let record = GramRecord {
            data: vec![data.to_owned()],
            task: "retrieval".into(),
            n_examples: 1,
            rows: BTreeMap::from([("a".to_owned(), gram.rows())]),
            ..GramRecord::default()
        };
        let path = folder.path().join(name);
        let grams = BTreeMap::from([("a".to_owned(), gram)]);
        let written =
            merge::gram::write(&grams, &record, false, &WriteOptions::new(&path), &Silent);
        written.expect("written");
        let opened = merge::io::open(&path, &OpenOptions::default()).expect("opens");
        GramStore::new(Arc::new(opened)).expect("gram matrices")
    };
    let stores = [
        write("one.safetensors", gram(1.0, 2), "coco part 0"),
        write("two.safetensors", gram(2.0, 3), "coco part 1"),
    ];
    let (sum, record) = merge::gram::add(&stores).expect("they belong together");
    assert_eq!(sum["a"].packed(), [14.0, 14.0, 14.0]);
    assert_eq!(record.rows["a"], 5);
    assert_eq!(record.n_examples, 2);
    assert_eq!(record.data, ["coco part 0", "coco part 1"]);
}
