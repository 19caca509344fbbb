//! An EVE behind the traits that all families share.

use candle_core::Tensor;

use super::blueprint::NAME;
use super::heads::Judge;
use super::{Embedded, Eve};
use crate::Result;
use crate::batch::{Images, Pair, Texts};
use crate::forward::NamedPasses;
use crate::models::towers::first;
use crate::models::{
    Branch, DualEncoder, Fused, FusionEncoder, Head, Model, ModelInput, RouterWay, Similarity,
};
use crate::nn::Pass;

impl Model for Eve {
    fn family(&self) -> &'static str {
        NAME
    }

    fn input(&self) -> &ModelInput {
        &self.config.input
    }

    fn score(&self, head: Head, x: &Tensor) -> Result<Tensor> {
        self.heads.score(head, x)
    }

    fn n_classes(&self, head: Head) -> Result<usize> {
        self.heads.n_classes(head)
    }

    /// Routers have room for as many tokens as come where choices are even: tokens of a batch push each other out.
    fn is_swayed_by_batch(&self) -> bool {
        self.config.routing != RouterWay::Unlimited
    }

    fn dual(&self) -> Result<&dyn DualEncoder> {
        Ok(self)
    }

    fn fusion(&self) -> Result<&dyn FusionEncoder> {
        Ok(self)
    }

    fn named_passes(&self) -> Result<&dyn NamedPasses> {
        Ok(self)
    }
}

impl Eve {
    /// The state of the first token for features: `(b, d)`. The published program leaves the last norm out where it
    /// evaluates, though it trains with it.
    pub(super) fn class(&self, of: &Embedded, is_normed: bool, pass: &Pass<'_>) -> Result<Tensor> {
        Ok(first(&self.run(of, is_normed, pass)?)?)
    }

    /// Whether features are made of normed states in this pass.
    fn norms_features(&self, pass: &Pass<'_>) -> bool {
        !self.config.as_published || pass.omission().is_some()
    }

    /// Image and text tokens after the last norm: `(b, n + t, d)`, and padding.
    pub(super) fn fused(&self, pair: &Pair<'_>, pass: &Pass<'_>) -> Result<(Tensor, Embedded)> {
        let of = self.together(pair.texts, pair.images, pair.masked, pass)?;
        Ok((self.run(&of, true, pass)?, of))
    }
}

impl DualEncoder for Eve {
    fn image_features(
        &self,
        images: &Images,
        of: &[Branch],
        pass: &Pass<'_>,
    ) -> Result<Vec<Tensor>> {
        let contrast = self.heads.contrast()?;
        let feature = |branch: &Branch| match branch {
            Branch::Apart => {
                let embedded = self.image_alone(images, None)?;
                contrast.image(&self.class(&embedded, self.norms_features(pass), pass)?)
            }
            Branch::Fused => Err(self.cannot("contrast images and texts after joint experts")),
        };
        of.iter().map(feature).collect()
    }

    fn text_features(&self, texts: &Texts, of: &[Branch], pass: &Pass<'_>) -> Result<Vec<Tensor>> {
        let contrast = self.heads.contrast()?;
        let feature = |branch: &Branch| match branch {
            Branch::Apart => {
                let embedded = self.text_alone(texts, pass)?;
                contrast.text(&self.class(&embedded, self.norms_features(pass), pass)?)
            }
            Branch::Fused => Err(self.cannot("contrast images and texts after joint experts")),
        };
        of.iter().map(feature).collect()
    }

    fn similarity(&self, of: Branch) -> Result<Similarity> {
        match of {
            Branch::Apart => self.heads.contrast()?.similarity(),
            Branch::Fused => Err(self.cannot("contrast images and texts after joint experts")),
        }
    }

    fn image_states(
        &self,
        images: &Images,
        masked: Option<&Tensor>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        self.run(&self.image_alone(images, masked)?, true, pass)
    }

    fn text_states(&self, texts: &Texts, pass: &Pass<'_>) -> Result<Tensor> {
        self.run(&self.text_alone(texts, pass)?, true, pass)
    }
}

impl FusionEncoder for Eve {
    fn fuse(&self, pair: &Pair<'_>, pass: &Pass<'_>) -> Result<Fused> {
        let n_image = self.config.n_patches() + 1;
        let (states, _) = self.fused(pair, pass)?;
        let t = states.dim(1)? - n_image;
        Ok(Fused {
            text: states.narrow(1, n_image, t)?,
            image: states.narrow(1, 0, n_image)?,
        })
    }

    fn reconstructed(&self, pair: &Pair<'_>, pass: &Pass<'_>) -> Result<Fused> {
        self.signals(pair, pass)
    }

    /// The state of the first text token.
    fn pooled(&self, fused: &Fused) -> Result<Tensor> {
        Ok(first(&fused.text)?)
    }

    fn judge(&self, texts: &Texts, images: [&Images; 2], passes: [Pass<'_>; 2]) -> Result<Tensor> {
        let read = |nth: usize| self.fused(&Pair::new(texts, images[nth]).nth(nth), &passes[nth]);
        let [(left, of), (right, _)] = [read(0)?, read(1)?];
        let n_image = self.config.n_patches() + 1;
        match self.heads.judge()? {
            Judge::States(classifier) => {
                let state = |states: &Tensor| states.narrow(1, n_image, 1)?.squeeze(1);
                let both = Tensor::cat(&[&state(&left)?, &state(&right)?], 1)?;
                Ok(classifier.forward(&both)?)
            }
            Judge::Tokens(head) => {
                let Some(mask) = &of.mask else {
                    return Err(self.cannot("judge two images without padding of the text"));
                };
                head.forward([&left, &right], mask, &passes[0])
            }
        }
    }
}
