//! Passes over given tensors, by the names of the golden folder (`vlmerge forward`).

use super::VitClassifier;
use crate::Result;
use crate::forward::{Given, Input, Kind, NamedPass, NamedPasses, PassSpec, Recorder, Size};
use crate::models::apart::class_ids;
use crate::models::{Head, Model};

/// Every pass: a picture's tokens, its pooled vector, and the logits of its classes.
const PASSES: &[PassSpec<VitClassifier>] = &[PassSpec {
    name: "image",
    inputs: &["pixel_values"],
    on_demand: false,
    run: image,
}];

impl NamedPasses for VitClassifier {
    fn inputs(&self) -> Vec<Input> {
        let side = Size::Exactly(self.input().image.side);
        let pixels = || vec![Size::Any("b"), Size::Exactly(3), side, side];
        let input = |name, shape, kind| Input { name, shape, kind };
        vec![
            input("pixel_values", pixels(), Kind::Floats),
            input("image_u8", pixels(), Kind::Bytes),
            input("label", vec![Size::Any("b")], class_ids(self)),
        ]
    }

    fn passes(&self) -> Vec<NamedPass<'_>> {
        PASSES.iter().map(|spec| spec.of(self)).collect()
    }
}

fn image(model: &VitClassifier, given: &Given, out: &Recorder) -> Result<()> {
    let images = given.images("pixel_values")?;
    out.add(
        "tokens",
        &model.tower.tokens(&images.pixels, &out.tapped())?,
    )?;
    let pooled = model.pooled_image(&images, &crate::nn::Pass::new())?;
    out.add("pooled", &pooled)?;
    match model.head.is_there() {
        true => Ok(out.add("logits", &model.score(Head::ImageClasses, &pooled)?)?),
        false => Ok(()),
    }
}
