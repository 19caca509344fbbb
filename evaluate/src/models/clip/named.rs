//! Passes over given tensors, by the names of the golden folder (`vlmerge forward`).

use super::Clip;
use crate::Result;
use crate::batch::Texts;
use crate::forward::{Given, Input, Kind, NamedPass, NamedPasses, PassSpec, Recorder, Size};
use crate::models::apart::class_ids;
use crate::models::{Branch, DualEncoder, Model};

/// The names that ids of texts may have: filled up as the model's library does, with zeros, with the end token.
const IDS: [&str; 3] = ["input_ids", "input_ids_pad0", "input_ids_pad_eot"];

/// Every pass: images and texts, and all their similarities. Outputs of all are called alike, so those that need not be
/// named are of inputs that files have one of.
const PASSES: &[PassSpec<Clip>] = &[
    spec(
        "unmasked",
        &["pixel_values", IDS[0]],
        false,
        |model, given, out| both(model, given, IDS[0], false, out),
    ),
    spec(
        "masked",
        &["pixel_values", IDS[0], "attention_mask"],
        true,
        |model, given, out| both(model, given, IDS[0], true, out),
    ),
    spec(
        "pad0",
        &["pixel_values", IDS[1]],
        false,
        |model, given, out| both(model, given, IDS[1], false, out),
    ),
    spec(
        "pad0_masked",
        &["pixel_values", IDS[1], "attention_mask"],
        true,
        |model, given, out| both(model, given, IDS[1], true, out),
    ),
    spec(
        "pad_eot",
        &["pixel_values", IDS[2]],
        true,
        |model, given, out| both(model, given, IDS[2], false, out),
    ),
    spec(
        "pad_eot_masked",
        &["pixel_values", IDS[2], "attention_mask"],
        true,
        |model, given, out| both(model, given, IDS[2], true, out),
    ),
    spec("vision", &["pixel_values"], true, vision),
];

const fn spec(
    name: &'static str,
    inputs: &'static [&'static str],
    on_demand: bool,
    run: fn(&Clip, &Given, &Recorder) -> Result<()>,
) -> PassSpec<Clip> {
    PassSpec {
        name,
        inputs,
        on_demand,
        run,
    }
}

impl NamedPasses for Clip {
    fn inputs(&self) -> Vec<Input> {
        let side = Size::Exactly(self.input().image.side);
        let pixels = || vec![Size::Any("b"), Size::Exactly(3), side, side];
        let tokens = || vec![Size::Any("b"), Size::UpTo("t", self.config.text_len)];
        let ids = Kind::Ids {
            below: self.input().text.vocabulary,
        };
        let input = |name, shape, kind| Input { name, shape, kind };
        let mut inputs = vec![
            input("pixel_values", pixels(), Kind::Floats),
            input("image_u8", pixels(), Kind::Bytes),
            input("attention_mask", tokens(), Kind::Flags),
            input("label", vec![Size::Any("b")], class_ids(self)),
        ];
        inputs.extend(IDS.map(|name| input(name, tokens(), ids)));
        inputs
    }

    fn passes(&self) -> Vec<NamedPass<'_>> {
        PASSES.iter().map(|spec| spec.of(self)).collect()
    }
}

/// Texts of these ids. Those without a mask are read as published models read them, padding and all.
pub(super) fn texts(given: &Given, ids: &str, is_masked: bool) -> Result<Texts> {
    match is_masked {
        true => given.texts(ids, "attention_mask"),
        false => {
            let ids = given.tensor(ids)?.clone();
            let kept = ids.ones_like()?;
            Texts::of_tensors(ids, kept)
        }
    }
}

/// Features of images.
fn vision(model: &Clip, given: &Given, out: &Recorder) -> Result<()> {
    let features = model.image_projections(&given.images("pixel_values")?, &out.tapped())?;
    out.add("image_features", &features)?;
    Ok(out.add("image_embeds", &model.unit(&features)?)?)
}

/// Features of both, and their logits.
fn both(model: &Clip, given: &Given, ids: &str, is_masked: bool, out: &Recorder) -> Result<()> {
    let images = model.image_projections(&given.images("pixel_values")?, &out.tapped())?;
    let texts = texts(given, ids, is_masked)?;
    let texts = model.projected_texts(&texts, is_masked, &out.tapped())?;
    out.add("image_features", &images)?;
    out.add("text_features", &texts)?;
    let (images, texts) = (model.unit(&images)?, model.unit(&texts)?);
    out.add("image_embeds", &images)?;
    out.add("text_embeds", &texts)?;
    let logits = model.similarity(Branch::Apart)?.logits(&images, &texts)?;
    out.add("logits_per_image", &logits)?;
    Ok(out.add("logits_per_text", &logits.t()?.contiguous()?)?)
}
