//! Passes over given tensors, by the names of the golden folders (`vlmerge forward`).

use candle_core::Tensor;

use super::Multiway;
use crate::Result;
use crate::batch::Texts;
use crate::forward::{Given, Input, Kind, NamedPass, NamedPasses, PassSpec, Recorder, Size};
use crate::models::towers::first;
use crate::models::{Head, Model};
use crate::nn::Pass;

/// Every pass of the family. Inference runs `text_ft`, `image_ft` and `vl`; the others are parts of
/// pre-training and fine-tuning.
const PASSES: &[PassSpec<Multiway>] = &[
    spec("text_ft", &["text_ids", "text_masks"], text_ft),
    spec("image_ft", &["image"], image_ft),
    spec("text", &["text_ids", "text_masks"], text),
    spec("image", &["image"], image),
    spec("image_mim", &["image", "bool_masked_pos"], image_mim),
    spec("vl", &["text_ids", "text_masks", "image"], vl),
    spec("vl_mlm", &["text_ids_mlm", "text_masks", "image"], vl_mlm),
    spec(
        "vl_mim",
        &["text_ids", "text_masks", "image", "bool_masked_pos"],
        vl_mim,
    ),
    spec("vqa", &["text_ids", "text_masks", "image"], vqa),
    spec(
        "nlvr2",
        &["text_ids", "text_masks", "image", "image_1"],
        nlvr2,
    ),
    spec("itm", &["text_ids", "text_masks", "image"], itm),
    spec("mlm", &["text_ids_mlm", "text_masks", "image"], mlm),
    spec(
        "text_only_mlm",
        &["text_ids_mlm", "text_masks"],
        text_only_mlm,
    ),
    spec("img_cls", &["image"], img_cls),
    spec(
        "irtr",
        &["irtr_text_ids", "irtr_text_masks", "irtr_image"],
        irtr,
    ),
];

const fn spec(
    name: &'static str,
    inputs: &'static [&'static str],
    run: fn(&Multiway, &Given, &Recorder) -> Result<()>,
) -> PassSpec<Multiway> {
    PassSpec {
        name,
        inputs,
        on_demand: false,
        run,
    }
}

impl NamedPasses for Multiway {
    fn inputs(&self) -> Vec<Input> {
        let config = self.config();
        let side = config.image_size;
        let pixels = |b| {
            vec![
                Size::Any(b),
                Size::Exactly(3),
                Size::Exactly(side),
                Size::Exactly(side),
            ]
        };
        let tokens = |b, t| vec![Size::Any(b), Size::UpTo(t, config.text_len)];
        let ids = Kind::Ids {
            below: config.vocabulary,
        };
        let labels = Kind::Labels {
            below: config.vocabulary,
        };
        let classes = |n: Option<usize>| n.map_or(Size::Any("classes"), Size::Exactly);
        let n_answers = self.n_classes(Head::Vqa).ok();
        let n_classes = self.n_classes(Head::ImageClasses).ok();
        let input = |name, shape, kind| Input { name, shape, kind };
        vec![
            input("text_ids", tokens("b", "t"), ids),
            input("text_masks", tokens("b", "t"), Kind::Flags),
            input("text_labels", tokens("b", "t"), labels),
            input("text_ids_mlm", tokens("b", "t"), ids),
            input("text_labels_mlm", tokens("b", "t"), labels),
            input("image", pixels("b"), Kind::Floats),
            input("image_1", pixels("b"), Kind::Floats),
            input(
                "bool_masked_pos",
                vec![Size::Any("b"), Size::Exactly(config.n_patches())],
                Kind::Flags,
            ),
            input(
                "target_image",
                vec![
                    Size::Any("b"),
                    Size::Exactly(3),
                    Size::Any("s"),
                    Size::Any("s"),
                ],
                Kind::Floats,
            ),
            input("irtr_text_ids", tokens("b", "t"), ids),
            input("irtr_text_masks", tokens("b", "t"), Kind::Flags),
            input("irtr_image", pixels("b"), Kind::Floats),
            input(
                "vqa_targets",
                vec![Size::Any("b"), classes(n_answers)],
                Kind::Floats,
            ),
            input("nlvr2_labels", vec![Size::Any("b")], Kind::Ids { below: 2 }),
            input(
                "cls_labels",
                vec![Size::Any("b")],
                Kind::Ids {
                    below: n_classes.unwrap_or(usize::MAX >> 1),
                },
            ),
        ]
    }

    fn passes(&self) -> Vec<NamedPass<'_>> {
        PASSES.iter().map(|spec| spec.of(self)).collect()
    }
}

fn texts(given: &Given) -> Result<Texts> {
    given.texts("text_ids", "text_masks")
}

fn text_ft(model: &Multiway, given: &Given, out: &Recorder) -> Result<()> {
    let texts = texts(given)?;
    let pass = out.pass("text_ft");
    out.add("embed.text", &model.embed_text(&texts.ids, &Pass::new())?)?;
    let states = model.text(&texts.ids, &texts.mask, &pass)?;
    out.add("text_ft.raw_cls_feats", &first(&states)?)?;
    let normed = model.normed(&states)?;
    out.add("text_ft.text_feats", &normed)?;
    let features = model.heads().contrastive()?.text(&first(&normed)?)?;
    Ok(out.add("text_ft.cls_feats", &features)?)
}

fn image_ft(model: &Multiway, given: &Given, out: &Recorder) -> Result<()> {
    let pixels = given.images("image")?.pixels;
    out.add("embed.image_no_type", &model.embed_patches(&pixels, None)?)?;
    let states = model.image(&pixels, None, &out.pass("image_ft"))?;
    out.add("image_ft.raw_cls_feats", &first(&states)?)?;
    let normed = model.normed(&states)?;
    out.add("image_ft.image_feats", &normed)?;
    let features = model.heads().contrastive()?.image(&first(&normed)?)?;
    Ok(out.add("image_ft.cls_feats", &features)?)
}

fn text(model: &Multiway, given: &Given, out: &Recorder) -> Result<()> {
    let Texts { ids, mask, .. } = &texts(given)?;
    let pass = Pass::new();
    out.add("text.cls_feats", &model.text_features(ids, mask, &pass)?)?;
    let fused = model.fused_text_features(ids, mask, &pass)?;
    Ok(out.add("text.cls_vlffn_feats", &fused)?)
}

fn image(model: &Multiway, given: &Given, out: &Recorder) -> Result<()> {
    let (pixels, pass) = (given.images("image")?.pixels, Pass::new());
    out.add("image.cls_feats", &model.image_features(&pixels, &pass)?)?;
    let fused = model.fused_image_features(&pixels, &pass)?;
    Ok(out.add("image.cls_vlffn_feats", &fused)?)
}

fn image_mim(model: &Multiway, given: &Given, out: &Recorder) -> Result<()> {
    let (pixels, masked) = (
        given.images("image")?.pixels,
        given.tensor("bool_masked_pos")?,
    );
    let states = model.image(&pixels, Some(masked), &Pass::new())?;
    let normed = model.normed(&states)?;
    out.add("image_mim.image_feats", &normed)?;
    let features = model.heads().contrastive()?.image(&first(&normed)?)?;
    Ok(out.add("image_mim.cls_feats", &features)?)
}

fn vl(model: &Multiway, given: &Given, out: &Recorder) -> Result<()> {
    let (texts, pixels) = (texts(given)?, given.images("image")?.pixels);
    let pass = out.pass("vl");
    let joint = model.joint(&texts.ids, &texts.mask, &pixels, None, 0, &pass)?;
    out.add("vl.text_feats", &joint.text)?;
    out.add("vl.image_feats", &joint.image)?;
    out.add("vl.raw_cls_feats", &joint.first()?)?;
    let pooled = model.heads().pool(&joint.first()?)?;
    out.add("vl.cls_feats", &pooled)?;
    Ok(out.add("pooler", &pooled)?)
}

fn vl_mlm(model: &Multiway, given: &Given, out: &Recorder) -> Result<()> {
    let texts = given.texts("text_ids_mlm", "text_masks")?;
    let pixels = given.images("image")?.pixels;
    let joint = model.joint(&texts.ids, &texts.mask, &pixels, None, 0, &Pass::new())?;
    out.add("vl_mlm.text_feats", &joint.text)?;
    Ok(out.add("vl_mlm.cls_feats", &model.heads().pool(&joint.first()?)?)?)
}

fn vl_mim(model: &Multiway, given: &Given, out: &Recorder) -> Result<()> {
    let (texts, pixels) = (texts(given)?, given.images("image")?.pixels);
    let masked = Some(given.tensor("bool_masked_pos")?);
    let joint = model.joint(&texts.ids, &texts.mask, &pixels, masked, 0, &Pass::new())?;
    out.add("vl_mim.image_feats", &joint.image)?;
    Ok(out.add("vl_mim.cls_feats", &model.heads().pool(&joint.first()?)?)?)
}

fn vqa(model: &Multiway, given: &Given, out: &Recorder) -> Result<()> {
    let (texts, pixels) = (texts(given)?, given.images("image")?.pixels);
    let pooled = model.pooled(&texts.ids, &texts.mask, &pixels, 0, &Pass::new())?;
    let logits = model.heads().vqa()?.forward(&pooled)?;
    out.add("vqa.logits", &logits)?;
    Ok(out.add("loss_run.vqa.vqa_logits", &logits)?)
}

fn nlvr2(model: &Multiway, given: &Given, out: &Recorder) -> Result<()> {
    let Texts { ids, mask, .. } = &texts(given)?;
    let mut pooled = Vec::new();
    for (index, name) in ["image", "image_1"].into_iter().enumerate() {
        let pixels = given.images(name)?.pixels;
        let one = model.pooled(ids, mask, &pixels, index, &Pass::new())?;
        out.add(format!("nlvr2_pass{}.cls_feats", index + 1), &one)?;
        pooled.push(one);
    }
    let head = model.heads().nlvr2()?;
    let logits = head.forward(&Tensor::cat(&pooled, 1)?)?;
    out.add("nlvr2.logits", &logits)?;
    Ok(out.add("loss_run.nlvr2.nlvr2_logits", &logits)?)
}

/// Positives; then each text with the next image of the batch, and each image with the next text. In
/// a batch of two that is the only other one, as in the loss.
fn itm(model: &Multiway, given: &Given, out: &Recorder) -> Result<()> {
    let (texts, images) = (texts(given)?, given.images("image")?);
    let pooled = |texts: &Texts, pixels: &Tensor| {
        model.pooled(&texts.ids, &texts.mask, pixels, 0, &Pass::new())
    };
    let head = model.heads().matching()?;
    let positive = pooled(&texts, &images.pixels)?;
    out.add("itm.logits_positive", &head.forward(&positive)?)?;
    let b = images.pixels.dim(0)? as u32;
    if b < 2 {
        return Ok(());
    }
    let next: Vec<u32> = (0..b).map(|row| (row + 1) % b).collect();
    let next = Tensor::new(next, given.device())?;
    let all = [
        positive,
        pooled(&texts, &images.select(&next)?.pixels)?,
        pooled(&texts.select(&next)?, &images.pixels)?,
    ];
    let logits = head.forward(&Tensor::cat(&all, 0)?)?;
    Ok(out.add("loss_run.itm.itm_logits", &logits)?)
}

fn mlm(model: &Multiway, given: &Given, out: &Recorder) -> Result<()> {
    let texts = given.texts("text_ids_mlm", "text_masks")?;
    let pixels = given.images("image")?.pixels;
    let joint = model.joint(&texts.ids, &texts.mask, &pixels, None, 0, &Pass::new())?;
    let logits = model.heads().masked_language()?.forward(&joint.text)?;
    out.add("mlm.logits", &logits)?;
    Ok(out.add("loss_run.mlm.mlm_logits", &logits)?)
}

fn text_only_mlm(model: &Multiway, given: &Given, out: &Recorder) -> Result<()> {
    let texts = given.texts("text_ids_mlm", "text_masks")?;
    let states = model.normed(&model.text(&texts.ids, &texts.mask, &Pass::new())?)?;
    let logits = model.heads().masked_language()?.forward(&states)?;
    Ok(out.add("loss_run.text_only_mlm.text_only_mlm_logits", &logits)?)
}

fn img_cls(model: &Multiway, given: &Given, out: &Recorder) -> Result<()> {
    let states = model.image(&given.images("image")?.pixels, None, &Pass::new())?;
    let normed = model.normed(&states)?;
    let logits = model.heads().image_classes()?.forward(&normed.mean(1)?)?;
    out.add("img_cls.logits", &logits)?;
    Ok(out.add("loss_run.img_cls.cls_logits", &logits)?)
}

/// Features of retrieval, and the logits of both contrastive losses that read the same pairs.
fn irtr(model: &Multiway, given: &Given, out: &Recorder) -> Result<()> {
    let texts = given.texts("irtr_text_ids", "irtr_text_masks")?;
    let pixels = given.images("irtr_image")?.pixels;
    let text = model.text_features(&texts.ids, &texts.mask, &Pass::new())?;
    let image = model.image_features(&pixels, &Pass::new())?;
    out.add("irtr.text_cls_feats", &text)?;
    out.add("irtr.image_cls_feats", &image)?;
    let similarity = image.matmul(&text.t()?)?;
    out.add("irtr.similarity", &similarity)?;
    let scale = model.heads().contrastive()?.scale()?;
    let logits = similarity.broadcast_mul(&scale.to_dtype(similarity.dtype())?)?;
    let turned = logits.t()?.contiguous()?;
    for loss in ["irtr", "ifm"] {
        out.add(format!("loss_run.{loss}.{loss}_i2t_logits"), &logits)?;
        out.add(format!("loss_run.{loss}.{loss}_t2i_logits"), &turned)?;
    }
    Ok(())
}
