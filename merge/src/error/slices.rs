//! Faults of slices: layers that cannot be cut as a recipe says.

use crate::recipe::Place;

/// A reason why a slice of a recipe has no layers, with its line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SliceFault {
    /// Slices were asked for of a checkpoint without layers.
    #[error("{model}: no tensor name says which layer it belongs to{place}")]
    NoLayers {
        /// The checkpoint.
        model: String,
        /// The slice.
        place: Place,
    },
    /// A checkpoint has several stacks of layers.
    #[error("{model}: which layers do the slices cut: {}?{place}", stacks.join(", "))]
    SeveralStacks {
        /// The checkpoint.
        model: String,
        /// The stacks and their number of layers.
        stacks: Vec<String>,
        /// The slice.
        place: Place,
    },
    /// A slice takes layers that are not there.
    #[error("{}{place}", match () {
        () if end < first => format!("`layer_range: [{first}, {end}]` of {model} begins after its end"),
        () if end == first => format!("`layer_range: [{first}, {end}]` of {model} has no layer: its end is one past the last"),
        () => format!("`layer_range: [{first}, {end}]` ends beyond the {n_layers} layers of {model}"),
    })]
    LayerRange {
        /// The checkpoint.
        model: String,
        /// The first layer.
        first: usize,
        /// One past the last.
        end: usize,
        /// The number of layers.
        n_layers: usize,
        /// The slice.
        place: Place,
    },
    /// A base that no source of a slice names, and that lacks layers of the slice.
    #[error(
        "the base {model} has no layer {}: it has {n_layers} layers, and the slice measures from its layers {first} to \
         {}{place}", (*first).max(*n_layers), end - 1
    )]
    ShortBase {
        /// The base.
        model: String,
        /// The first layer.
        first: usize,
        /// One past the last.
        end: usize,
        /// The number of layers.
        n_layers: usize,
        /// The slice.
        place: Place,
    },
    /// A base that no source of a slice names, where the sources take different layers.
    #[error(
        "the sources of a slice take the layers from {first} and from {other}, and nothing says which layers the base \
         {model} gives{place}"
    )]
    BaseLayers {
        /// The base.
        model: String,
        /// The first layer of the first source.
        first: usize,
        /// That of another.
        other: usize,
        /// The other source.
        place: Place,
    },
    /// A base that a slice names more than once.
    #[error("the slice names the base {model} twice, and a base gives one set of layers{place}")]
    BaseTwice {
        /// The base.
        model: String,
        /// The second source.
        place: Place,
    },
    /// Sources of a slice differ in their number of layers.
    #[error("the sources of a slice have {first} and {other} layers{place}")]
    Lengths {
        /// Layers of the first source.
        first: usize,
        /// Layers of another.
        other: usize,
        /// The other source.
        place: Place,
    },
}

impl SliceFault {
    /// A hint for the user.
    pub(super) const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::SeveralStacks { .. } => Some("name one of them as `layers:`"),
            Self::BaseLayers { .. } => {
                Some("name the base as a source of the slice, with its own `layer_range`")
            }
            Self::ShortBase { .. } => Some(
                "name the base as a source of the slice, with layers that it has, or give the slice another `base_model`",
            ),
            Self::NoLayers { .. }
            | Self::LayerRange { .. }
            | Self::BaseTwice { .. }
            | Self::Lengths { .. } => None,
        }
    }
}
