//! Forward passes of the multiway transformer: text alone, images alone, both together.

use std::ops::Range;

use candle_core::Tensor;
use merge::Expert;

use super::{Multiway, Segment};
use crate::models::ShallowAttention;
use crate::models::towers::first;
use crate::nn::{Bias, Buffers, Mask, Pairs, Pass, RelativePosition};
use crate::{Error, Result};

/// Token type of text.
const TEXT: usize = 0;

/// Token types of the first and of the second image.
const IMAGES: [usize; 2] = [1, 2];

/// The states of text and image together.
#[derive(Clone, Debug)]
pub struct Joint {
    /// Text tokens after the last norm, `(b, t, d)`.
    pub text: Tensor,
    /// Image tokens after the last norm, class token first, `(b, n, d)`.
    pub image: Tensor,
}

/// A sequence that one expert serves.
#[derive(Clone)]
struct Alone<'a> {
    /// `(b, n, d)`.
    x: Tensor,
    expert: Expert,
    pairs: Option<Pairs>,
    mask: Option<&'a Mask>,
}

impl Joint {
    /// The first text token, `(b, d)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn first(&self) -> Result<Tensor> {
        Ok(first(&self.text)?)
    }
}

impl Multiway {
    /// Text tokens before the first block: `ids: (b, t) -> (b, t, d)`.
    ///
    /// # Errors
    /// For an id outside the vocabulary, or when the device fails.
    pub fn embed_text(&self, ids: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let x = self.text_embeddings.forward(ids, pass)?;
        let x = match pass.omission() {
            Some(omission) => omission.dropout(&x)?,
            None => x,
        };
        Ok(x.broadcast_add(&self.token_type_embeddings.row(TEXT)?)?)
    }

    /// Image tokens before the token type is added, class token first: `(b, 3, s, s) -> (b, n, d)`.
    /// Patches where `masked: (b, p)` is 1 are replaced by the mask token.
    ///
    /// # Errors
    /// When the image is of another size, there is no mask token, or the device fails.
    pub fn embed_patches(&self, image: &Tensor, masked: Option<&Tensor>) -> Result<Tensor> {
        let mut x = self.patch_embed.forward(image)?; // (b, p, d)
        let b = x.dim(0)?;
        if x.dim(1)? != self.config.n_patches() {
            return Err(Error::ImageSize {
                found: image.dims().to_vec(),
                expected: self.config.image_size,
            });
        }
        if let Some(masked) = masked {
            let token = self.mask_token.as_ref();
            let token = self
                .heads
                .need(token, "mask token", "transformer.mask_token")?;
            let masked = masked.to_dtype(x.dtype())?.unsqueeze(2)?; // (b, p, 1)
            x = (x.broadcast_mul(&(1.0 - &masked)?)? + masked.broadcast_mul(token)?)?;
        }
        let class = self.cls_token.expand((b, 1, self.config.width))?;
        let x = Tensor::cat(&[&class, &x], 1)?; // (b, n, d)
        Ok(match &self.pos_embed {
            Some(positions) => x.broadcast_add(positions)?,
            None => x,
        })
    }

    /// Image tokens before the first block, of the first image or the second.
    fn embed_image(&self, image: &Tensor, masked: Option<&Tensor>, index: usize) -> Result<Tensor> {
        let x = self.embed_patches(image, masked)?;
        let row = IMAGES[index.min(1)];
        let has_row = row < self.token_type_embeddings.rows();
        let types = has_row.then_some(&self.token_type_embeddings);
        let what = "token type of a second image";
        let types = self.heads.need(types, what, "token_type_embeddings")?;
        Ok(x.broadcast_add(&types.row(row)?)?)
    }

    fn pairs(
        &self,
        of: impl Fn(&RelativePosition) -> candle_core::Result<Pairs>,
    ) -> Result<Option<Pairs>> {
        Ok(self.relative_position.as_ref().map(of).transpose()?)
    }

    /// Text alone, before the first block.
    fn text_alone<'a>(&self, ids: &Tensor, mask: &'a Mask, pass: &Pass<'_>) -> Result<Alone<'a>> {
        Ok(Alone {
            x: self.embed_text(ids, pass)?,
            expert: Expert::Language,
            pairs: self.pairs(|table| table.text(ids.dim(1)?))?,
            mask: Some(mask),
        })
    }

    /// Images alone, before the first block.
    fn image_alone(&self, image: &Tensor, masked: Option<&Tensor>) -> Result<Alone<'static>> {
        Ok(Alone {
            x: self.embed_image(image, masked, 0)?,
            expert: Expert::Vision,
            pairs: self.pairs(RelativePosition::image)?,
            mask: None,
        })
    }

    /// Blocks `blocks` on one sequence that one expert serves.
    fn run<'a>(
        &self,
        mut of: Alone<'a>,
        blocks: Range<usize>,
        pass: &Pass<'_>,
    ) -> Result<Alone<'a>> {
        let segment = Segment {
            len: of.x.dim(1)?,
            expert: of.expert,
        };
        let buffers = Buffers::default();
        for index in blocks {
            let bias = of
                .pairs
                .as_ref()
                .map(|pairs| pairs.bias(index, pass))
                .transpose()?;
            let attended = Bias {
                pairs: bias.as_ref(),
                mask: of.mask,
            };
            of.x = self.blocks[index].forward(&of.x, &[segment], attended, pass, &buffers)?;
            pass.show_block(index, std::slice::from_ref(&of.x))?;
        }
        Ok(of)
    }

    /// Hidden states of text alone after the last block, not normed: `(b, t) -> (b, t, d)`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn text(&self, ids: &Tensor, mask: &Mask, pass: &Pass<'_>) -> Result<Tensor> {
        let all = 0..self.config.n_blocks;
        Ok(self.run(self.text_alone(ids, mask, pass)?, all, pass)?.x)
    }

    /// Hidden states of images alone after the last block, not normed: `(b, 3, s, s) -> (b, n, d)`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn image(
        &self,
        image: &Tensor,
        masked: Option<&Tensor>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let all = 0..self.config.n_blocks;
        Ok(self.run(self.image_alone(image, masked)?, all, pass)?.x)
    }

    /// The last norm.
    ///
    /// # Errors
    /// When the device fails.
    pub fn normed(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.norm.forward(x)?)
    }

    /// Features of texts for retrieval, of length one: `(b, t) -> (b, d)`.
    ///
    /// # Errors
    /// [`Error::NoHead`], or when shapes do not fit or the device fails.
    pub fn text_features(&self, ids: &Tensor, mask: &Mask, pass: &Pass<'_>) -> Result<Tensor> {
        let class = self.class(self.text_alone(ids, mask, pass)?, pass)?;
        Ok(self.heads.contrastive()?.text(&class)?)
    }

    /// Features of images for retrieval, of length one: `(b, 3, s, s) -> (b, d)`.
    ///
    /// # Errors
    /// [`Error::NoHead`], or when shapes do not fit or the device fails.
    pub fn image_features(&self, image: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let class = self.class(self.image_alone(image, None)?, pass)?;
        Ok(self.heads.contrastive()?.image(&class)?)
    }

    /// The first token after the last norm, `(b, d)`. Where nobody looks on, the last block computes that token alone;
    /// not in a graph of everything.
    fn class(&self, of: Alone<'_>, pass: &Pass<'_>) -> Result<Tensor> {
        self.last(of, 0, pass)
    }

    /// [`Multiway::class`] of states before block `from`.
    fn last(&self, of: Alone<'_>, from: usize, pass: &Pass<'_>) -> Result<Tensor> {
        let n = self.config.n_blocks;
        let is_graph = of.x.track_op() && pass.tape().is_none();
        if pass.is_tapped() || is_graph || from >= n {
            return self.normed(&first(&self.run(of, from..n, pass)?.x)?);
        }
        let Alone {
            x,
            expert,
            pairs,
            mask,
        } = self.run(of, from..n - 1, pass)?;
        let bias = pairs.map(|pairs| pairs.bias(n - 1, pass)).transpose()?;
        let attended = Bias {
            pairs: bias.as_ref(),
            mask,
        };
        let segment = Segment {
            len: x.dim(1)?,
            expert,
        };
        let block = &self.blocks[n - 1];
        let x = block.forward_first(&x, segment, attended, pass, &Buffers::default())?; // (b, 1, d)
        self.normed(&first(&x)?)
    }

    /// Features of texts after the vision-language experts of the fusion blocks, of length one:
    /// `(b, t) -> (b, d)`. Pre-training compares these too.
    ///
    /// # Errors
    /// As [`Multiway::text_features`].
    pub fn fused_text_features(
        &self,
        ids: &Tensor,
        mask: &Mask,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let class = self.fused_class(self.text_alone(ids, mask, pass)?, pass)?;
        Ok(self.heads.fused_contrastive()?.text(&class)?)
    }

    /// Features of images after the vision-language experts of the fusion blocks, of length one:
    /// `(b, 3, s, s) -> (b, d)`.
    ///
    /// # Errors
    /// As [`Multiway::image_features`].
    pub fn fused_image_features(&self, image: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let class = self.fused_class(self.image_alone(image, None)?, pass)?;
        Ok(self.heads.fused_contrastive()?.image(&class)?)
    }

    /// [`Multiway::text_features`] and [`Multiway::fused_text_features`], with the blocks before the
    /// fusion start computed once.
    ///
    /// # Errors
    /// As [`Multiway::text_features`].
    pub fn both_text_features(
        &self,
        ids: &Tensor,
        mask: &Mask,
        pass: &Pass<'_>,
    ) -> Result<[Tensor; 2]> {
        let [alone, fused] = self.both_classes(self.text_alone(ids, mask, pass)?, pass)?;
        Ok([
            self.heads.contrastive()?.text(&alone)?,
            self.heads.fused_contrastive()?.text(&fused)?,
        ])
    }

    /// [`Multiway::image_features`] and [`Multiway::fused_image_features`], likewise.
    ///
    /// # Errors
    /// As [`Multiway::image_features`].
    pub fn both_image_features(&self, image: &Tensor, pass: &Pass<'_>) -> Result<[Tensor; 2]> {
        let [alone, fused] = self.both_classes(self.image_alone(image, None)?, pass)?;
        Ok([
            self.heads.contrastive()?.image(&alone)?,
            self.heads.fused_contrastive()?.image(&fused)?,
        ])
    }

    fn both_classes(&self, of: Alone<'_>, pass: &Pass<'_>) -> Result<[Tensor; 2]> {
        let n = self.config.n_blocks;
        let start = self.config.fusion_start.min(n);
        let trunk = self.run(of, 0..start, pass)?;
        let mut fused = trunk.clone();
        fused.expert = Expert::VisionLanguage;
        Ok([
            self.last(trunk, start, pass)?,
            self.last(fused, start, pass)?,
        ])
    }

    fn fused_class(&self, of: Alone<'_>, pass: &Pass<'_>) -> Result<Tensor> {
        let n = self.config.n_blocks;
        let start = self.config.fusion_start.min(n);
        let mut of = self.run(of, 0..start, pass)?;
        of.expert = Expert::VisionLanguage;
        self.last(of, start, pass)
    }

    /// Text and image together: `ids: (b, t)`, `image: (b, 3, s, s)`; `index` is 1 for the second
    /// image of a pair. Text comes first in the sequence.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn joint(
        &self,
        ids: &Tensor,
        mask: &Mask,
        image: &Tensor,
        masked: Option<&Tensor>,
        index: usize,
        pass: &Pass<'_>,
    ) -> Result<Joint> {
        let (text, image) = (
            self.embed_text(ids, pass)?,
            self.embed_image(image, masked, index)?,
        );
        let (t, n) = (text.dim(1)?, image.dim(1)?);
        let start = self.config.fusion_start.min(self.config.n_blocks);
        let joint = self.pairs(|table| table.joint(t))?;
        let joint_mask = mask.followed_by_tokens(n)?;
        let x = match self.config.shallow_attention {
            ShallowAttention::PerModality => {
                let parts = self.apart(text, mask, image, start, pass)?;
                Tensor::cat(&parts, 1)?
            }
            ShallowAttention::Joint => {
                let segments = [
                    Segment {
                        len: t,
                        expert: Expert::Language,
                    },
                    Segment {
                        len: n,
                        expert: Expert::Vision,
                    },
                ];
                let mut x = Tensor::cat(&[text, image], 1)?; // (b, t + n, d)
                let buffers = Buffers::default();
                for (index, block) in self.blocks.iter().enumerate().take(start) {
                    let bias = joint
                        .as_ref()
                        .map(|pairs| pairs.bias(index, pass))
                        .transpose()?;
                    let attended = Bias {
                        pairs: bias.as_ref(),
                        mask: Some(&joint_mask),
                    };
                    x = block.forward(&x, &segments, attended, pass, &buffers)?;
                    pass.show_block(index, std::slice::from_ref(&x))?;
                }
                x
            }
        };
        let fused = Alone {
            x,
            expert: Expert::VisionLanguage,
            pairs: joint,
            mask: Some(&joint_mask),
        };
        let x = self.run(fused, start..self.config.n_blocks, pass)?.x;
        let x = self.normed(&x)?;
        Ok(Joint {
            text: x.narrow(1, 0, t)?,
            image: x.narrow(1, t, n)?,
        })
    }

    /// The blocks before the fusion start, text and image each for themselves.
    fn apart(
        &self,
        mut text: Tensor,
        mask: &Mask,
        mut image: Tensor,
        start: usize,
        pass: &Pass<'_>,
    ) -> Result<[Tensor; 2]> {
        let text_pairs = self.pairs(|table| table.text(text.dim(1)?))?;
        let image_pairs = self.pairs(RelativePosition::image)?;
        let (t, n) = (text.dim(1)?, image.dim(1)?);
        let buffers = Buffers::default();
        for (index, block) in self.blocks.iter().enumerate().take(start) {
            let bias =
                |pairs: &Option<Pairs>| pairs.as_ref().map(|p| p.bias(index, pass)).transpose();
            let (text_bias, image_bias) = (bias(&text_pairs)?, bias(&image_pairs)?);
            let attended = Bias {
                pairs: text_bias.as_ref(),
                mask: Some(mask),
            };
            let segment = Segment {
                len: t,
                expert: Expert::Language,
            };
            text = block.forward(&text, &[segment], attended, pass, &buffers)?;
            let attended = Bias {
                pairs: image_bias.as_ref(),
                mask: None,
            };
            let segment = Segment {
                len: n,
                expert: Expert::Vision,
            };
            image = block.forward(&image, &[segment], attended, pass, &buffers)?;
            pass.show_block(index, &[text.clone(), image.clone()])?;
        }
        Ok([text, image])
    }

    /// Text and image together, as one vector: `(b, d)`.
    ///
    /// # Errors
    /// [`Error::NoHead`], or when shapes do not fit or the device fails.
    pub fn pooled(
        &self,
        ids: &Tensor,
        mask: &Mask,
        image: &Tensor,
        index: usize,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let joint = self.joint(ids, mask, image, None, index, pass)?;
        self.heads.pool(&joint.first()?)
    }

    /// Logits of answers: `(b, answers)`.
    ///
    /// # Errors
    /// As [`Multiway::pooled`].
    pub fn answer(
        &self,
        ids: &Tensor,
        mask: &Mask,
        image: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let pooled = self.pooled(ids, mask, image, 0, pass)?;
        Ok(self.heads.vqa()?.forward(&pooled)?)
    }

    /// Logits of false and true for a sentence about two images: `(b, 2)`.
    ///
    /// # Errors
    /// As [`Multiway::pooled`].
    pub fn judge(
        &self,
        ids: &Tensor,
        mask: &Mask,
        images: [&Tensor; 2],
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        self.judge_with(ids, mask, images, [*pass, *pass])
    }

    /// As [`Multiway::judge`], each image in a pass of its own.
    ///
    /// # Errors
    /// As [`Multiway::pooled`].
    pub fn judge_with(
        &self,
        ids: &Tensor,
        mask: &Mask,
        images: [&Tensor; 2],
        passes: [Pass<'_>; 2],
    ) -> Result<Tensor> {
        let one = self.pooled(ids, mask, images[0], 0, &passes[0])?;
        let two = self.pooled(ids, mask, images[1], 1, &passes[1])?;
        Ok(self.heads.nlvr2()?.forward(&Tensor::cat(&[one, two], 1)?)?)
    }
}
