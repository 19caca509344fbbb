//! A multiway model behind the traits that all families share.

use candle_core::Tensor;

use super::Multiway;
use super::blueprint::NAME;
use crate::Result;
use crate::batch::{Images, Pair, Texts};
use crate::forward::NamedPasses;
use crate::models::towers::first;
use crate::models::{
    Branch, DualEncoder, Fused, FusionEncoder, Head, Model, ModelInput, Similarity,
};
use crate::nn::Pass;

impl Model for Multiway {
    fn family(&self) -> &'static str {
        NAME
    }

    fn input(&self) -> &ModelInput {
        &self.input
    }

    fn score(&self, head: Head, x: &Tensor) -> Result<Tensor> {
        self.heads().score(head, x)
    }

    fn n_classes(&self, head: Head) -> Result<usize> {
        self.heads().n_classes(head)
    }

    fn dual(&self) -> Result<&dyn DualEncoder> {
        Ok(self)
    }

    fn fusion(&self) -> Result<&dyn FusionEncoder> {
        Ok(self)
    }

    /// The mean of all tokens.
    fn pooled_image(&self, images: &Images, pass: &Pass<'_>) -> Result<Tensor> {
        Ok(self.image_states(images, None, pass)?.mean(1)?)
    }

    fn named_passes(&self) -> Result<&dyn NamedPasses> {
        Ok(self)
    }
}

impl DualEncoder for Multiway {
    fn branches(&self) -> &'static [Branch] {
        &[Branch::Apart, Branch::Fused]
    }

    fn image_features(
        &self,
        images: &Images,
        of: &[Branch],
        pass: &Pass<'_>,
    ) -> Result<Vec<Tensor>> {
        let pixels = &images.pixels;
        in_order(of, |branches| {
            Ok(match branches {
                Asked::Apart => vec![self.image_features(pixels, pass)?],
                Asked::Fused => vec![self.fused_image_features(pixels, pass)?],
                Asked::Both => self.both_image_features(pixels, pass)?.into(),
            })
        })
    }

    fn text_features(&self, texts: &Texts, of: &[Branch], pass: &Pass<'_>) -> Result<Vec<Tensor>> {
        let (ids, mask) = (&texts.ids, &texts.mask);
        in_order(of, |branches| {
            Ok(match branches {
                Asked::Apart => vec![self.text_features(ids, mask, pass)?],
                Asked::Fused => vec![self.fused_text_features(ids, mask, pass)?],
                Asked::Both => self.both_text_features(ids, mask, pass)?.into(),
            })
        })
    }

    fn similarity(&self, of: Branch) -> Result<Similarity> {
        let head = match of {
            Branch::Apart => self.heads().contrastive()?,
            Branch::Fused => self.heads().fused_contrastive()?,
        };
        Ok(Similarity {
            scale: head.scale()?,
            bias: None,
        })
    }

    fn image_states(
        &self,
        images: &Images,
        masked: Option<&Tensor>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        self.normed(&self.image(&images.pixels, masked, pass)?)
    }

    fn text_states(&self, texts: &Texts, pass: &Pass<'_>) -> Result<Tensor> {
        self.normed(&self.text(&texts.ids, &texts.mask, pass)?)
    }
}

/// The branches that a pass computes.
enum Asked {
    Apart,
    Fused,
    /// Apart, then fused.
    Both,
}

/// The features of the branches asked for, each computed once.
fn in_order(
    of: &[Branch],
    compute: impl FnOnce(Asked) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    let asked = match (of.contains(&Branch::Apart), of.contains(&Branch::Fused)) {
        (true, true) => Asked::Both,
        (true, false) => Asked::Apart,
        (false, true) => Asked::Fused,
        (false, false) => return Ok(Vec::new()),
    };
    let found = compute(asked)?;
    // One alone is what all of them ask for.
    let place = |branch: &Branch| usize::from(found.len() == 2 && *branch == Branch::Fused);
    let features = of.iter().map(|branch| found[place(branch)].clone());
    Ok(features.collect())
}

impl FusionEncoder for Multiway {
    fn fuse(&self, pair: &Pair<'_>, pass: &Pass<'_>) -> Result<Fused> {
        let (ids, mask) = (&pair.texts.ids, &pair.texts.mask);
        let pixels = &pair.images.pixels;
        let joint = self.joint(ids, mask, pixels, pair.masked, pair.nth_image, pass)?;
        Ok(Fused {
            text: joint.text,
            image: joint.image,
        })
    }

    fn pooled(&self, fused: &Fused) -> Result<Tensor> {
        self.heads().pool(&first(&fused.text)?)
    }
}
