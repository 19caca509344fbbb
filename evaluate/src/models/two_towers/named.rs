//! Passes over given tensors, by the names of the golden folder (`vlmerge forward`). The towers name
//! their outputs themselves.

use super::TwoTowers;
use super::config::PROBE;
use crate::Result;
use crate::forward::{Given, Input, Kind, NamedPass, NamedPasses, PassSpec, Recorder, Size};
use crate::models::apart::class_ids;
use crate::models::{Branch, DualEncoder, Head, Model};
use crate::nn::Pass;

/// Every pass of the family.
const PASSES: &[PassSpec<TwoTowers>] = &[
    PassSpec {
        name: "image",
        inputs: &["image"],
        on_demand: false,
        run: image,
    },
    PassSpec {
        name: "text",
        inputs: &["input_ids", "attention_mask"],
        on_demand: false,
        run: text,
    },
    PassSpec {
        name: "similarity",
        inputs: &["image", "input_ids", "attention_mask"],
        on_demand: false,
        run: similarity,
    },
    PassSpec {
        name: PROBE,
        inputs: &["image"],
        on_demand: false,
        run: linear_probe,
    },
];

impl NamedPasses for TwoTowers {
    fn inputs(&self) -> Vec<Input> {
        let side = Size::Exactly(self.input().image.side);
        let pixels = || vec![Size::Any("b"), Size::Exactly(3), side, side];
        let positions = self.text.config().text_len;
        let tokens = || vec![Size::Any("b"), Size::UpTo("t", positions)];
        let ids = Kind::Ids {
            below: self.input().text.vocabulary,
        };
        let input = |name, shape, kind| Input { name, shape, kind };
        vec![
            input("image", pixels(), Kind::Floats),
            input("image_u8", pixels(), Kind::Bytes),
            input("input_ids", tokens(), ids),
            input("attention_mask", tokens(), Kind::Flags),
            input("label", vec![Size::Any("b")], class_ids(self)),
        ]
    }

    fn passes(&self) -> Vec<NamedPass<'_>> {
        let is_probed = self.n_classes(Head::ImageClasses).is_ok();
        let passes = PASSES.iter().filter(|spec| is_probed || spec.name != PROBE);
        passes.map(|spec| spec.of(self)).collect()
    }
}

fn image(model: &TwoTowers, given: &Given, out: &Recorder) -> Result<()> {
    model.image_features(&given.images("image")?, &[Branch::Apart], &out.tapped())?;
    Ok(())
}

fn text(model: &TwoTowers, given: &Given, out: &Recorder) -> Result<()> {
    let texts = given.texts("input_ids", "attention_mask")?;
    model.text_features(&texts, &[Branch::Apart], &out.tapped())?;
    Ok(())
}

/// Logits of the classifier of images.
fn linear_probe(model: &TwoTowers, given: &Given, out: &Recorder) -> Result<()> {
    let states = model.pooled_image(&given.images("image")?, &Pass::new())?;
    let logits = model.score(Head::ImageClasses, &states)?;
    Ok(out.add("linear_probe.prediction", &logits)?)
}

/// Cosines of all images with all texts, and the same divided by the temperature.
fn similarity(model: &TwoTowers, given: &Given, out: &Recorder) -> Result<()> {
    let (pass, of) = (Pass::new(), [Branch::Apart]);
    let texts = given.texts("input_ids", "attention_mask")?;
    let images = model.image_features(&given.images("image")?, &of, &pass)?;
    let texts = model.text_features(&texts, &of, &pass)?;
    for (image, text) in images.iter().zip(&texts) {
        out.add("similarity", &image.matmul(&text.t()?)?)?;
        let logits = model.similarity(Branch::Apart)?.logits(image, text)?;
        out.add("logits", &logits)?;
    }
    Ok(())
}
