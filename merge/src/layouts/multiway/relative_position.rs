//! Index buffers of relative positions: which row of the bias table serves a query and a key.
//!
//! The table holds the pairs of patches of a window of `g × g`, then the class token's three rows,
//! two rows for text against image, the pairs of text positions, and three rows for text position 0.
//! Indices are row-major `(query, key)`, text before image.

use crate::{DType, TensorInfo};

/// The sizes that a bias table and its indices depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Side of the image window in patches, `g`.
    pub side: usize,
    /// Text positions of the model, at most [`Window::text_table_len`].
    pub text_len: usize,
    /// Text positions of vision-language pre-training where they are set apart (`max_vl_text_len`),
    /// at most [`Window::text_len`].
    pub fused_text_len: Option<usize>,
    /// Text positions that the table has room for, at least 2.
    pub text_table_len: usize,
}

/// A buffer that a loader rebuilds, with its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Shape, and the dtype that published checkpoints store.
    pub info: TensorInfo,
    /// Values, row-major. Below 2²⁴, so exact as `f32` too.
    pub values: Vec<i64>,
}

impl Buffer {
    /// The values as little-endian bytes of the buffer's dtype, `I64` or `F32`.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self.info.dtype {
            DType::F32 => self
                .values
                .iter()
                .flat_map(|value| (*value as f32).to_le_bytes())
                .collect(),
            _ => self
                .values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        }
    }
}

impl Window {
    /// Image tokens: all patches and the class token.
    #[must_use]
    pub fn image_tokens(&self) -> usize {
        self.side * self.side + 1
    }

    /// Rows of the bias table for the image, `(2g − 1)² + 3`.
    #[must_use]
    pub fn image_rows(&self) -> usize {
        (2 * self.side - 1).pow(2) + 3
    }

    /// All rows of the bias table.
    #[must_use]
    pub fn table_rows(&self) -> usize {
        self.image_rows() + 2 * self.text_table_len + 2
    }

    /// Rows for pairs of image tokens, class token first: shape `(n, n)`.
    #[must_use]
    pub fn image(&self) -> Vec<i64> {
        let (g, rows) = (self.side as i64, self.image_rows() as i64);
        let patch = |token: i64| ((token - 1) / g, (token - 1) % g);
        square(self.image_tokens(), |query, key| match (query, key) {
            (0, 0) => rows - 1,
            (0, _) => rows - 3,
            (_, 0) => rows - 2,
            _ => {
                let ((qy, qx), (ky, kx)) = (patch(query), patch(key));
                (qy - ky + g - 1) * (2 * g - 1) + (qx - kx + g - 1)
            }
        })
    }

    /// Rows for pairs of the first `len` text positions: shape `(len, len)`.
    #[must_use]
    pub fn text(&self, len: usize) -> Vec<i64> {
        let (image, rows) = (self.image_rows() as i64, self.table_rows() as i64);
        let room = self.text_table_len as i64;
        square(len, |query, key| match (query, key) {
            (0, 0) => rows - 1,
            (0, _) => rows - 3,
            (_, 0) => rows - 2,
            _ => image + room + (key - query),
        })
    }

    /// Rows for pairs of tokens of `len` text positions and the image: shape `(len + n, len + n)`.
    #[must_use]
    pub fn joint(&self, len: usize) -> Vec<i64> {
        let (text, image) = (self.text(len), self.image());
        let (n_image, rows) = (self.image_tokens(), self.image_rows() as i64);
        let mut joint = Vec::with_capacity((len + n_image).pow(2));
        for query in 0..len {
            joint.extend_from_slice(&text[query * len..(query + 1) * len]);
            joint.extend(std::iter::repeat_n(rows, n_image));
        }
        for query in 0..n_image {
            joint.extend(std::iter::repeat_n(rows + 1, len));
            joint.extend_from_slice(&image[query * n_image..(query + 1) * n_image]);
        }
        joint
    }

    /// Rows for pairs of tokens of the image and of `len` text positions behind it: shape `(n + len, n + len)`.
    #[must_use]
    pub fn image_first(&self, len: usize) -> Vec<i64> {
        let n_image = self.image_tokens();
        let text_first = self.joint(len);
        let place = |token: i64| match token as usize {
            token if token < n_image => len + token,
            token => token - n_image,
        };
        square(n_image + len, |query, key| {
            text_first[place(query) * (n_image + len) + place(key)]
        })
    }

    /// Shape and published dtype of the buffer of a name (without `module.`) in a model of single
    /// images; `None` for other names, and for those of vision-language pre-training where no
    /// length is set for it.
    #[must_use]
    pub fn buffer_info(&self, name: &str) -> Option<TensorInfo> {
        let (n, text) = (self.image_tokens(), self.text_len);
        let (dtype, shape) = match Rows::of(name)? {
            Rows::Count => (DType::I64, vec![1, text]),
            Rows::Image | Rows::Zeros => (DType::I64, vec![n, n]),
            Rows::Text => (DType::I64, vec![text, text]),
            Rows::Joint => (DType::F32, vec![text + n; 2]),
            Rows::FusedJoint => (DType::F32, vec![self.fused_text_len? + n; 2]),
            Rows::Ones => (DType::F32, vec![1, n, n]),
        };
        Some(TensorInfo { dtype, shape })
    }

    /// The buffer of a name with its values; `None` as in [`Window::buffer_info`].
    #[must_use]
    pub fn buffer(&self, name: &str) -> Option<Buffer> {
        let info = self.buffer_info(name)?;
        let values = match Rows::of(name)? {
            Rows::Count => (0..self.text_len as i64).collect(),
            Rows::Image => self.image(),
            Rows::Text => self.text(self.text_len),
            Rows::Joint => self.joint(self.text_len),
            Rows::FusedJoint => self.joint(self.fused_text_len?),
            Rows::Zeros => vec![0; info.n_elements()],
            Rows::Ones => vec![1; info.n_elements()],
        };
        Some(Buffer { info, values })
    }
}

/// The rows of a buffer, by its name.
#[derive(Clone, Copy)]
enum Rows {
    Count,
    Image,
    Text,
    Joint,
    FusedJoint,
    Zeros,
    Ones,
}

impl Rows {
    fn of(name: &str) -> Option<Self> {
        Some(match name.rsplit('.').next().unwrap_or(name) {
            "position_ids" => Self::Count,
            // With one frame a video is an image, at no distance in time.
            "relative_position_index" | "video_relative_position_index" => Self::Image,
            "text_relative_position_index" => Self::Text,
            "text_imag_relative_position_index" | "text_video_relative_position_index" => {
                Self::Joint
            }
            "vl_text_imag_relative_position_index" | "vl_text_video_relative_position_index" => {
                Self::FusedJoint
            }
            "temporal_relative_position_index" => Self::Zeros,
            "mask_for_combining_temporal" => Self::Ones,
            _ => return None,
        })
    }
}

fn square(len: usize, row: impl Fn(i64, i64) -> i64) -> Vec<i64> {
    let len = len as i64;
    (0..len)
        .flat_map(|query| (0..len).map(move |key| (query, key)))
        .map(|(query, key)| row(query, key))
        .collect()
}
