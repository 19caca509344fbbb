//! Forward passes against the published program, as recorded in the fixture.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use candle_core::{D, DType, Device, Result, Tensor};
use evaluate::models::{Multiway, Overrides, ShallowAttention};
use evaluate::nn::{Mask, Pass, Tap};
use merge::Checkpoint;
use merge::execute::{RunOptions, in_memory};
use merge::io::OpenOptions;
use merge::{MergePlan, MergeRecipe};

use crate::fixture::{json, list, path};

/// Of outputs, absolute and relative: the fixture's own f32 noise is below half of it.
const TOLERANCE: f64 = 1e-5;

/// Every architecture of the fixture, with its weights.
const ARCHITECTURES: [&str; 4] = ["ufo", "all_moe", "merged", "joint"];

fn tensors(name: &str) -> HashMap<String, Tensor> {
    let file = open(name);
    let read = |(key, info): (&str, &merge::TensorInfo)| {
        let bytes = file.read_all(key).expect("it reads");
        let dtype = match info.dtype {
            merge::DType::F32 => DType::F32,
            merge::DType::F64 => DType::F64,
            merge::DType::I64 => DType::I64,
            merge::DType::Bool => DType::U8,
            other => panic!("no fixture has {other}"),
        };
        let tensor = Tensor::from_raw_buffer(&bytes, dtype, &info.shape, &Device::Cpu);
        (key.to_owned(), tensor.expect("a tensor"))
    };
    file.tensors().map(read).collect()
}

fn open(name: &str) -> Arc<Checkpoint> {
    let opened = merge::io::open(&path(name), &OpenOptions::default());
    Arc::new(opened.expect("the checkpoint opens"))
}

/// What the tiny checkpoints do not tell: their bias tables are not of the published length.
fn overrides() -> Overrides {
    let len = json("config.json")["max_text_len_of_initckpt"].as_u64();
    Overrides {
        text_table_len: len.map(|len| len as usize),
        ..Overrides::default()
    }
}

/// The checkpoint of an architecture, and what its keys do not tell.
fn architecture(name: &str) -> (Arc<Checkpoint>, Overrides) {
    let mut overrides = overrides();
    let checkpoint = match name {
        "joint" => {
            overrides.shallow_attention = Some(ShallowAttention::Joint);
            open("ckpt/ufo.safetensors")
        }
        "merged" => merged(),
        other => open(&format!("ckpt/{other}.safetensors")),
    };
    (checkpoint, overrides)
}

/// The modality-specific model, interpolated at 0.5 in memory.
fn merged() -> Arc<Checkpoint> {
    let yaml = format!(
        "merge_method: interpolate\nmodels: [{{ model: \"{}\" }}]\nparameters: {{ ratio: 0.5 }}\n",
        path("ckpt/all_moe.safetensors").display()
    );
    let recipe = MergeRecipe::parse(&yaml, &path("recipe.yaml")).expect("a recipe");
    let (plan, _) = MergePlan::resolve(&recipe).expect("a plan");
    let run = RunOptions {
        hash: false,
        ..RunOptions::default()
    };
    Arc::new(in_memory(&plan, &run, &merge::progress::Silent).expect("merged"))
}

fn model(name: &str) -> Multiway {
    let (checkpoint, overrides) = architecture(name);
    let opened = Multiway::open(checkpoint, &overrides, &Device::Cpu, DType::F32);
    opened.expect("the model loads").0
}

/// The inputs of every pass.
struct Inputs(HashMap<String, Tensor>);

impl Inputs {
    pub fn read() -> Self {
        Self(tensors("forward/inputs.safetensors"))
    }

    pub fn get(&self, name: &str) -> &Tensor {
        &self.0[name]
    }

    pub fn ids(&self, name: &str) -> Tensor {
        self.get(name).to_dtype(DType::U32).expect("ids")
    }

    pub fn mask(&self, name: &str) -> Mask {
        Mask::new(self.get(name)).expect("a mask")
    }
}

/// Compares with a tensor of the fixture.
struct Expected {
    name: &'static str,
    tensors: HashMap<String, Tensor>,
    seen: Mutex<Vec<String>>,
}

impl Expected {
    fn read(name: &'static str) -> Self {
        Self {
            name,
            tensors: tensors(&format!("forward/{name}.safetensors")),
            seen: Mutex::default(),
        }
    }

    fn has(&self, key: &str) -> bool {
        self.tensors.contains_key(key)
    }

    fn check(&self, key: &str, found: &Tensor) {
        let expected = self
            .tensors
            .get(key)
            .unwrap_or_else(|| panic!("{key} is in the fixture"));
        assert_eq!(found.dims(), expected.dims(), "{} {key}", self.name);
        let [found, expected] = [found, expected].map(values);
        for (index, (a, b)) in found.iter().zip(&expected).enumerate() {
            let far = (a - b).abs() > TOLERANCE + TOLERANCE * b.abs();
            assert!(!far, "{} {key}[{index}]: {a}, expected {b}", self.name);
        }
        self.seen
            .lock()
            .expect("no panic before")
            .push(key.to_owned());
    }

    fn assert_all_seen(&self) {
        let seen = self.seen.lock().expect("no panic before");
        let mut missed: Vec<_> = self
            .tensors
            .keys()
            .filter(|key| !seen.contains(key))
            .collect();
        missed.sort();
        assert!(
            missed.is_empty(),
            "{}: never compared {missed:?}",
            self.name
        );
    }
}

pub fn values(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_dtype(DType::F64).and_then(|t| t.flatten_all());
    flat.and_then(|t| t.to_vec1()).expect("numbers")
}

/// Compares the output of each block, and the attention probabilities that follow from the input
/// of its attention.
struct Blocks<'a> {
    expected: &'a Expected,
    pass: &'static str,
    checkpoint: Arc<Checkpoint>,
    bias: Box<dyn Fn(usize) -> Tensor + Sync>,
    mask: Option<Tensor>,
    heads: usize,
}

impl Tap for Blocks<'_> {
    fn linear_input(&self, key: &str, input: &Tensor, _: Option<&Mask>) -> Result<()> {
        let rest = key
            .strip_prefix("transformer.blocks.")
            .expect("a block's layer");
        let (block, part) = rest.split_once('.').expect("a part");
        let name = format!("{}.attn{block}", self.pass);
        let is_attention = part == "attn"
            || part
                .split_once('.')
                .is_some_and(|(stem, expert)| stem == "attn" && ["v", "l", "vl"].contains(&expert));
        if !is_attention || !self.expected.has(&name) {
            return Ok(());
        }
        let n = self.expected.tensors[&name].dim(2)?;
        if input.dim(1)? != n {
            return Ok(()); // the text part: published code returns that of the image
        }
        let bias = (self.bias)(block.parse().expect("a number"));
        let read = |part: &str| {
            let name = format!("{key}.{part}");
            let info = self.checkpoint.require(&name).expect("the key is there");
            let bytes = self.checkpoint.read_all(&name).expect("it reads");
            Tensor::from_raw_buffer(&bytes, DType::F32, &info.shape, &Device::Cpu)
        };
        let (d, h) = (input.dim(2)?, self.heads);
        let qkv = input.broadcast_matmul(&read("qkv.weight")?.t()?)?;
        let heads = |x: Tensor| {
            x.reshape((x.dim(0)?, n, h, d / h))?
                .transpose(1, 2)?
                .contiguous()
        };
        let q = heads(
            qkv.narrow(D::Minus1, 0, d)?
                .broadcast_add(&read("q_bias")?)?,
        )?;
        let k = heads(qkv.narrow(D::Minus1, d, d)?)?;
        let scores = (q.matmul(&k.t()?.contiguous()?)? * ((d / h) as f64).powf(-0.5))?;
        let mut scores = scores.broadcast_add(&bias.unsqueeze(0)?)?;
        if let Some(mask) = self.mask.as_ref().filter(|mask| mask.dims()[1] == n) {
            scores = scores.broadcast_add(&mask.unsqueeze(1)?.unsqueeze(1)?)?;
        }
        let raised = scores
            .broadcast_sub(&scores.max_keepdim(D::Minus1)?)?
            .exp()?;
        let shares = raised.broadcast_div(&raised.sum_keepdim(D::Minus1)?)?;
        self.expected.check(&name, &shares);
        Ok(())
    }

    fn block_output(&self, block: &str, parts: &[Tensor]) -> Result<()> {
        let name = format!("{}.{block}", self.pass);
        if self.expected.has(&name) {
            self.expected.check(&name, &Tensor::cat(parts, 1)?);
        }
        Ok(())
    }
}

/// The bias of a pass, straight from the fixture's table and the index of [`merge`].
fn bias(
    checkpoint: &Checkpoint,
    model: &Multiway,
    rows: Vec<i64>,
) -> Box<dyn Fn(usize) -> Tensor + Sync> {
    let name = "relative_position_bias_table";
    let info = checkpoint.require(name).expect("the table");
    let bytes = checkpoint.read_all(name).expect("it reads");
    let table = Tensor::from_raw_buffer(&bytes, DType::F32, &info.shape, &Device::Cpu);
    let table = table.expect("a tensor");
    let (heads, n) = (model.config().n_heads, rows.len().isqrt());
    Box::new(move |block| {
        let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let of_heads = || {
            let picked = table.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?;
            picked
                .narrow(1, block * heads, heads)?
                .t()?
                .reshape((heads, n, n))
        };
        of_heads().expect("a bias")
    })
}

#[test]
fn every_output_of_every_architecture_is_that_of_the_published_program() {
    for name in ARCHITECTURES {
        let expected = Expected::read(name);
        check_forward(name, &expected).expect("the passes run");
        expected.assert_all_seen();
    }
}

fn check_forward(name: &str, expected: &Expected) -> evaluate::Result<()> {
    let inputs = Inputs::read();
    let (checkpoint, _) = architecture(name);
    let model = model(name);
    let (plain, heads) = (Pass::new(), model.heads());
    let evaluate::models::multiway::Positions::Relative(window) = model.config().positions else {
        panic!("relative positions");
    };
    let first = |x: &Tensor| x.narrow(1, 0, 1)?.squeeze(1);
    let (ids, mask, image) = (
        inputs.ids("text_ids"),
        inputs.mask("text_masks"),
        inputs.get("image"),
    );
    let t = ids.dim(1)?;
    let blocks = |pass, rows, mask| Blocks {
        expected,
        pass,
        checkpoint: Arc::clone(&checkpoint),
        bias: bias(&checkpoint, &model, rows),
        mask,
        heads: model.config().n_heads,
    };

    expected.check("embed.text", &model.embed_text(&ids, &Pass::new())?);
    expected.check("embed.image_no_type", &model.embed_patches(image, None)?);

    let tap = blocks("text_ft", window.text(t), mask.added().cloned());
    let text = model.text(&ids, &mask, &Pass::tapped(&tap))?;
    expected.check("text_ft.raw_cls_feats", &first(&text)?);
    let normed = model.normed(&text)?;
    expected.check("text_ft.text_feats", &normed);
    expected.check(
        "text_ft.cls_feats",
        &heads.contrastive()?.text(&first(&normed)?)?,
    );
    expected.check(
        "text_ft.cls_feats",
        &model.text_features(&ids, &mask, &plain)?,
    );
    expected.check("text.cls_feats", &model.text_features(&ids, &mask, &plain)?);
    expected.check(
        "text.cls_vlffn_feats",
        &model.fused_text_features(&ids, &mask, &plain)?,
    );

    let tap = blocks("image_ft", window.image(), None);
    let images = model.image(image, None, &Pass::tapped(&tap))?;
    expected.check("image_ft.raw_cls_feats", &first(&images)?);
    let normed = model.normed(&images)?;
    expected.check("image_ft.image_feats", &normed);
    expected.check(
        "image_ft.cls_feats",
        &heads.contrastive()?.image(&first(&normed)?)?,
    );
    expected.check("image_ft.cls_feats", &model.image_features(image, &plain)?);
    expected.check("image.cls_feats", &model.image_features(image, &plain)?);
    expected.check(
        "image.cls_vlffn_feats",
        &model.fused_image_features(image, &plain)?,
    );

    let masked = inputs.get("bool_masked_pos");
    let mim = model.normed(&model.image(image, Some(masked), &plain)?)?;
    expected.check("image_mim.image_feats", &mim);
    expected.check(
        "image_mim.cls_feats",
        &heads.contrastive()?.image(&first(&mim)?)?,
    );

    let joint_mask = mask.followed_by_tokens(window.image_tokens())?;
    // Below the fusion start only the image's attention is recorded, so its bias is the image's.
    let (start, image_bias) = (
        model.config().fusion_start,
        bias(&checkpoint, &model, window.image()),
    );
    let mut tap = blocks("vl", window.joint(t), joint_mask.added().cloned());
    if model.config().shallow_attention == ShallowAttention::PerModality {
        let joint_bias = tap.bias;
        tap.bias = Box::new(move |block| match block < start {
            true => image_bias(block),
            false => joint_bias(block),
        });
    }
    let joint = model.joint(&ids, &mask, image, None, 0, &Pass::tapped(&tap))?;
    expected.check("vl.text_feats", &joint.text);
    expected.check("vl.image_feats", &joint.image);
    expected.check("vl.raw_cls_feats", &joint.first()?);
    let pooled = heads.pool(&joint.first()?)?;
    expected.check("vl.cls_feats", &pooled);
    expected.check("vqa.logits", &heads.vqa()?.forward(&pooled)?);
    expected.check("itm.logits_positive", &heads.matching()?.forward(&pooled)?);
    expected.check(
        "loss_run.vqa.vqa_logits",
        &model.answer(&ids, &mask, image, &plain)?,
    );
    if expected.has("pooler") {
        expected.check("pooler", &pooled);
    }

    let masked_ids = inputs.ids("text_ids_mlm");
    let mlm = model.joint(&masked_ids, &mask, image, None, 0, &plain)?;
    expected.check("vl_mlm.text_feats", &mlm.text);
    expected.check("vl_mlm.cls_feats", &heads.pool(&mlm.first()?)?);
    let logits = heads.masked_language()?.forward(&mlm.text)?;
    expected.check("mlm.logits", &logits);
    expected.check("loss_run.mlm.mlm_logits", &logits);
    let alone = model.normed(&model.text(&masked_ids, &mask, &plain)?)?;
    let logits = heads.masked_language()?.forward(&alone)?;
    expected.check("loss_run.text_only_mlm.text_only_mlm_logits", &logits);

    let mim = model.joint(&ids, &mask, image, Some(masked), 0, &plain)?;
    expected.check("vl_mim.image_feats", &mim.image);
    expected.check("vl_mim.cls_feats", &heads.pool(&mim.first()?)?);

    let second = inputs.get("image_1");
    expected.check(
        "nlvr2_pass1.cls_feats",
        &model.pooled(&ids, &mask, image, 0, &plain)?,
    );
    expected.check(
        "nlvr2_pass2.cls_feats",
        &model.pooled(&ids, &mask, second, 1, &plain)?,
    );
    let logits = model.judge(&ids, &mask, [image, second], &plain)?;
    expected.check("nlvr2.logits", &logits);
    expected.check("loss_run.nlvr2.nlvr2_logits", &logits);

    let logits = heads.image_classes()?.forward(&normed.mean(1)?)?;
    expected.check("img_cls.logits", &logits);
    expected.check("loss_run.img_cls.cls_logits", &logits);

    let (ids, mask) = (inputs.ids("irtr_text_ids"), inputs.mask("irtr_text_masks"));
    let (text, image) = (
        model.text_features(&ids, &mask, &plain)?,
        model.image_features(inputs.get("irtr_image"), &plain)?,
    );
    expected.check("irtr.text_cls_feats", &text);
    expected.check("irtr.image_cls_feats", &image);
    let similarity = image.matmul(&text.t()?)?;
    expected.check("irtr.similarity", &similarity);
    let logits = similarity.broadcast_mul(&heads.contrastive()?.scale()?)?;
    expected.check("loss_run.irtr.irtr_i2t_logits", &logits);
    expected.check("loss_run.irtr.irtr_t2i_logits", &logits.t()?);
    expected.check("loss_run.ifm.ifm_i2t_logits", &logits);
    expected.check("loss_run.ifm.ifm_t2i_logits", &logits.t()?);
    let logits = itm_logits(&model, &inputs)?;
    expected.check("loss_run.itm.itm_logits", &logits);
    Ok(())
}

/// Positives, then each text with the other image, then each image with the other text.
fn itm_logits(model: &Multiway, inputs: &Inputs) -> evaluate::Result<Tensor> {
    let (ids, mask, image) = (
        inputs.ids("text_ids"),
        inputs.mask("text_masks"),
        inputs.get("image"),
    );
    let swap = Tensor::new(&[1u32, 0], &Device::Cpu)?;
    let (other_ids, other_image) = (ids.index_select(&swap, 0)?, image.index_select(&swap, 0)?);
    let other_mask = Mask::new(&inputs.get("text_masks").index_select(&swap, 0)?)?;
    let pass = Pass::new();
    let pooled = [
        model.pooled(&ids, &mask, image, 0, &pass)?,
        model.pooled(&ids, &mask, &other_image, 0, &pass)?,
        model.pooled(&other_ids, &other_mask, image, 0, &pass)?,
    ];
    Ok(model
        .heads()
        .matching()?
        .forward(&Tensor::cat(&pooled, 0)?)?)
}

#[test]
fn every_key_is_used_but_those_that_no_pass_reads() {
    for name in ["ufo", "all_moe"] {
        let (checkpoint, overrides) = architecture(name);
        let opened = Multiway::open(checkpoint, &overrides, &Device::Cpu, DType::F32);
        let (_, weights) = opened.expect("the model loads");
        let report = weights.report();
        assert!(report.fresh.is_empty());
        assert_eq!(
            report.unused,
            [
                "temporal_relative_position_bias_table",
                "text_embeddings.position_embeddings.weight"
            ],
            "{name}"
        );
    }
}

#[test]
fn a_model_brought_to_another_image_size_computes_as_the_published_program_does() {
    for case in list(&json("manifest.json")["cases"]) {
        if case["op"] != "forward_after_convert" {
            continue;
        }
        let size = case["image_size"].as_u64().expect("a size") as usize;
        let conversion = merge::convert::Conversion {
            image_size: Some(size),
            text_table_len: overrides().text_table_len,
            ..Default::default()
        };
        let source = open(case["input"].as_str().expect("a file"));
        let layout = merge::layouts::detect(&source).expect("a layout");
        let plan = conversion.plan(source, layout.as_ref()).expect("a plan");
        let run = RunOptions {
            hash: false,
            ..RunOptions::default()
        };
        let converted = in_memory(&plan, &run, &merge::progress::Silent).expect("converted");
        let opened = Multiway::open(Arc::new(converted), &overrides(), &Device::Cpu, DType::F32);
        let (model, _) = opened.expect("the model loads");
        let expected = Expected {
            name: "converted",
            tensors: tensors(case["expected"].as_str().expect("a file")),
            seen: Mutex::default(),
        };
        let inputs = Inputs::read();
        let image = &expected.tensors["image"];
        let check = || -> evaluate::Result<()> {
            let pass = Pass::new();
            let images = model.normed(&model.image(image, None, &pass)?)?;
            expected.check("image_ft.image_feats", &images);
            let (ids, mask) = (inputs.ids("text_ids"), inputs.mask("text_masks"));
            let joint = model.joint(&ids, &mask, image, None, 0, &pass)?;
            expected.check("vl.text_feats", &joint.text);
            expected.check("vl.image_feats", &joint.image);
            expected.check("vl.cls_feats", &model.heads().pool(&joint.first()?)?);
            expected.check("image", image);
            Ok(())
        };
        check().expect("the passes run");
        expected.assert_all_seen();
    }
}
