//! The inputs of a model. The family and the weights decide them.

pub use crate::images::{Filter, ImageInput, Resize};
pub use crate::text::{Padding, TextInput};

/// Pixels and tokens that a model takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelInput {
    /// Pixels.
    pub image: ImageInput,
    /// Tokens.
    pub text: TextInput,
}
