//! Examples as tensors, for models.

use candle_core::{DType, Device, Tensor};

use crate::Result;
use crate::crossing;
use crate::nn::Mask;
use crate::text::Encoded;

/// Texts of one length, the shorter ones padded at the end.
#[derive(Clone, Debug)]
pub struct Texts {
    /// `(b, t)`.
    pub ids: Tensor,
    /// 1 for tokens, 0 for padding: `(b, t)`, u8.
    pub kept: Tensor,
    /// The same, for attention.
    pub mask: Mask,
}

impl Texts {
    /// From ids, `b` texts of the same length, and how many tokens of each are no padding.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(ids: Vec<u32>, n_tokens: &[usize], device: &Device) -> Result<Self> {
        let len = ids.len() / n_tokens.len().max(1);
        Self::of_len(ids, n_tokens, len, device)
    }

    /// From encoded texts, cut to `len` tokens.
    ///
    /// # Errors
    /// When a text has fewer ids than `len`, or the device fails.
    pub fn of_encoded(texts: &[&Encoded], len: usize, device: &Device) -> Result<Self> {
        let ids = (texts.iter()).flat_map(|text| text.ids.iter().take(len).copied());
        let n_tokens: Vec<usize> = texts.iter().map(|text| text.n_tokens).collect();
        Self::of_len(ids.collect(), &n_tokens, len, device)
    }

    /// From the ids of texts of `len` tokens each, padding included.
    fn of_len(ids: Vec<u32>, n_tokens: &[usize], len: usize, device: &Device) -> Result<Self> {
        let shape = (n_tokens.len(), len);
        let kept = (n_tokens.iter()).flat_map(|&n| (0..len).map(move |at| u8::from(at < n)));
        Self::of_tensors(
            crossing::to_device(ids, shape, device)?,
            crossing::to_device(kept.collect::<Vec<_>>(), shape, device)?,
        )
    }

    /// From tensors of ids and of kept tokens, `(b, t)` each.
    ///
    /// # Errors
    /// When the device fails.
    pub fn of_tensors(ids: Tensor, kept: Tensor) -> Result<Self> {
        let mask = Mask::new(&kept)?;
        Ok(Self {
            ids,
            kept: kept.to_dtype(DType::U8)?,
            mask,
        })
    }

    /// The same texts with other ids, such as those with words masked: `(b, t)`.
    #[must_use]
    pub fn with_ids(&self, ids: &Tensor) -> Self {
        Self {
            ids: ids.clone(),
            ..self.clone()
        }
    }

    /// The texts of these numbers.
    ///
    /// # Errors
    /// When the device fails.
    pub fn select(&self, indices: &Tensor) -> Result<Self> {
        Self::of_tensors(
            self.ids.index_select(indices, 0)?,
            self.kept.index_select(indices, 0)?,
        )
    }
}

/// Pictures of one size.
#[derive(Clone, Debug)]
pub struct Images {
    /// `(b, 3, s, s)`, in the dtype of the model.
    pub pixels: Tensor,
}

impl Images {
    /// From pixels, `(b, 3, s, s)`.
    #[must_use]
    pub fn new(pixels: Tensor) -> Self {
        Self { pixels }
    }

    /// From the values of `n` pictures of `side` by `side`, one after the other.
    ///
    /// # Errors
    /// When the values are not as many, or the device fails.
    pub fn of_values(
        values: Vec<f32>,
        n: usize,
        side: usize,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let pixels = crossing::to_device(values, (n, 3, side, side), device)?;
        Ok(Self::new(pixels.to_dtype(dtype)?))
    }

    /// The pictures of these numbers.
    ///
    /// # Errors
    /// When the device fails.
    pub fn select(&self, indices: &Tensor) -> Result<Self> {
        Ok(Self::new(self.pixels.index_select(indices, 0)?))
    }

    /// The pictures of `n` texts: one alone is that of all of them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn of_texts(&self, n: usize) -> Result<Self> {
        let (b, c, h, w) = self.pixels.dims4()?;
        Ok(match b {
            1 => Self::new(self.pixels.expand((n, c, h, w))?.contiguous()?),
            _ => self.clone(),
        })
    }

    /// Pictures `from..from + n`.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn narrow(&self, from: usize, n: usize) -> Result<Self> {
        Ok(Self::new(self.pixels.narrow(0, from, n)?))
    }
}

/// Texts with an image each, for a model that reads both together. Models that look at images from texts
/// (cross-attention) take one image for all texts, too.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// The texts.
    pub texts: &'a Texts,
    /// Their images.
    pub images: &'a Images,
    /// Patches that the model does not see: 1 for a masked one, `(b, p)`.
    pub masked: Option<&'a Tensor>,
    /// Whether masked patches are left out of the sequence, instead of standing in it as a token of their own. Then as
    /// many patches of each image are masked.
    pub leaves_out: bool,
    /// The number of the image among those of its text, from 0: statements of NLVR2 have two.
    pub nth_image: usize,
}

impl<'a> Pair<'a> {
    /// Texts and the one image of each, seen whole.
    #[must_use]
    pub fn new(texts: &'a Texts, images: &'a Images) -> Self {
        Self {
            texts,
            images,
            masked: None,
            leaves_out: false,
            nth_image: 0,
        }
    }

    /// With patches hidden.
    #[must_use]
    pub fn masked(self, masked: &'a Tensor) -> Self {
        Self {
            masked: Some(masked),
            ..self
        }
    }

    /// With masked patches left out of the sequence.
    #[must_use]
    pub fn leaving_out(self) -> Self {
        Self {
            leaves_out: true,
            ..self
        }
    }

    /// As the `nth_image`-th image of its text, from 0.
    #[must_use]
    pub fn nth(self, nth_image: usize) -> Self {
        Self { nth_image, ..self }
    }
}
