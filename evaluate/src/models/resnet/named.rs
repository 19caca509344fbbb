//! Passes over given tensors, by the names of the golden folder (`vlmerge forward`).

use super::{Resnet, pooled};
use crate::Result;
use crate::forward::{Given, Input, Kind, NamedPass, NamedPasses, PassSpec, Recorder, Size};
use crate::models::{Head, Model};
use crate::nn::Norming;

/// Every pass: the last map and the pooled vector of a picture of any size, and the logits of its classes.
const PASSES: &[PassSpec<Resnet>] = &[PassSpec {
    name: "image",
    inputs: &["pixel_values"],
    on_demand: false,
    run: image,
}];

impl NamedPasses for Resnet {
    fn inputs(&self) -> Vec<Input> {
        let pixels = || {
            vec![
                Size::Any("b"),
                Size::Exactly(3),
                Size::Any("h"),
                Size::Any("w"),
            ]
        };
        let input = |name, kind| Input {
            name,
            shape: pixels(),
            kind,
        };
        vec![
            input("pixel_values", Kind::Floats),
            input("image_u8", Kind::Bytes),
        ]
    }

    fn passes(&self) -> Vec<NamedPass<'_>> {
        PASSES.iter().map(|spec| spec.of(self)).collect()
    }
}

fn image(model: &Resnet, given: &Given, out: &Recorder) -> Result<()> {
    let images = given.images("pixel_values")?;
    let features = model.features(&images.pixels, Norming::Kept)?;
    out.add("features", &features)?;
    let pooled = pooled(&features)?;
    out.add("pooled", &pooled)?;
    match model.head.is_there() {
        true => Ok(out.add("logits", &model.score(Head::ImageClasses, &pooled)?)?),
        false => Ok(()),
    }
}
