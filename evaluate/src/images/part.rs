//! A rectangle of a picture.

use serde::Serialize;

use super::Rgb;

/// A rectangle of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Its first column.
    pub left: usize,
    /// Its first row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Part {
    /// The part of it that lies in the picture.
    #[must_use]
    pub fn within(self, picture: &Rgb) -> Self {
        let left = self.left.min(picture.width);
        let top = self.top.min(picture.height);
        Self {
            left,
            top,
            width: self.width.min(picture.width - left),
            height: self.height.min(picture.height - top),
        }
    }
}
