//! Sizes of a pair of towers, read off a checkpoint.

use merge::layouts::ModelRecord;
use merge::{Checkpoint, Layout};

use crate::Result;
use crate::images::{Filter, ImageInput, Resize};
use crate::models::settings::{agreed, normalize};
use crate::models::towers::{Shapes, bert, sizes, vit};
use crate::models::{ModelInput, Overrides};
use crate::text::{Padding, TextInput, TextRule};

/// The first part of the image tower's keys. The doubled `model` is a wrapper's and the library's.
pub(super) const IMAGE: &str = "image_encoder.model.model.";

/// The first part of the text tower's keys.
pub(super) const TEXT: &str = "text_encoder.model.model.";

/// The projections into the joint space.
pub(super) const PROJECTIONS: [&str; 2] = ["image_projection.linear", "text_projection.linear"];

/// The temperature, where it is learned.
pub(super) const TEMPERATURE: &str = "loss.temperature";

/// The linear probe, where one was trained.
pub(super) const PROBE: &str = "linear_probe";

/// The temperature of models that do not learn it.
const CONSTANT_TEMPERATURE: f64 = 0.02;

/// The temperature is kept within these bounds wherever it is used.
pub(super) const BOUNDS: [f64; 2] = [0.001, 0.5];

/// Tokens of a text, the two special ones counted.
const TEXT_LEN: usize = 25;

/// The divisor of similarities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Temperature {
    /// A parameter of the checkpoint.
    Learned,
    /// The same for good; the checkpoint does not hold it.
    Constant(f64),
}

/// Sizes of both towers, and what brings them together.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The image tower.
    pub image: vit::Config,
    /// The text tower.
    pub text: bert::Config,
    /// Width of the joint space.
    pub joint_width: usize,
    /// The divisor of similarities.
    pub temperature: Temperature,
    /// Pixels and tokens.
    pub input: ModelInput,
}

impl Config {
    /// The sizes of a checkpoint.
    ///
    /// # Errors
    /// [`ModelFault::UnknownSize`](crate::ModelFault::UnknownSize) and
    /// [`ModelFault::BadSize`](crate::ModelFault::BadSize).
    pub fn read(
        checkpoint: &Checkpoint,
        layout: &dyn Layout,
        overrides: &Overrides,
    ) -> Result<Self> {
        let stacks = &layout.dimensions().stacks;
        let known = |name: &str| {
            let stack = stacks.iter().find(|stack| stack.name == name);
            stack.and_then(|stack| stack.n_heads)
        };
        let heads = |given: Option<usize>, name| given.or_else(|| known(name));
        let record = ModelRecord::of(checkpoint)?;
        let given = overrides.image_heads.or(overrides.n_heads);
        let image_heads = agreed(checkpoint, "image_heads", given, record.image_heads)?;
        let given = overrides.text_heads.or(overrides.n_heads);
        let text_heads = agreed(checkpoint, "text_heads", given, record.text_heads)?;
        let image_heads = heads(image_heads, "image");
        let text_heads = heads(text_heads, "text");
        let (given, recorded) = (overrides.temperature, record.temperature);
        let temperature = agreed(checkpoint, "temperature", given, recorded)?;
        let mut config = Self::of(checkpoint, image_heads, text_heads, temperature)?;
        normalize(&mut config.input.image, checkpoint, overrides, &record)?;
        Ok(config)
    }

    /// The sizes of a checkpoint whose towers have the given numbers of heads, 64 wide unless given, and whose
    /// constant temperature, if it learns none, is `temperature`, 0.02 unless given.
    ///
    /// # Errors
    /// [`ModelFault::UnknownSize`](crate::ModelFault::UnknownSize) and
    /// [`ModelFault::BadSize`](crate::ModelFault::BadSize).
    pub fn of(
        shapes: &dyn Shapes,
        image_heads: Option<usize>,
        text_heads: Option<usize>,
        temperature: Option<f64>,
    ) -> Result<Self> {
        let image = vit::Config::read(shapes, IMAGE, image_heads)?;
        let text = bert::Config::read(shapes, TEXT, text_heads)?;
        let mut widths = [0; 2];
        for ((name, input), width) in
            (PROJECTIONS.iter().zip([image.width, text.width])).zip(&mut widths)
        {
            let key = format!("{name}.weight");
            let shape = sizes::known(shapes, "the width of the joint space", shapes.shape(&key))?;
            match *shape {
                [outputs, inputs] if inputs == input => *width = outputs,
                _ => {
                    let fault = format!("`{key}` is {shape:?}, but the tower is {input} wide");
                    return Err(sizes::bad(shapes, &fault));
                }
            }
        }
        if widths[0] != widths[1] {
            let fault = format!("the projections end {} and {} wide", widths[0], widths[1]);
            return Err(sizes::bad(shapes, &fault));
        }
        let temperature = match (shapes.shape(TEMPERATURE), temperature) {
            (Some([]), None) => Temperature::Learned,
            (Some([]), Some(_)) => {
                let fault = format!("`{TEMPERATURE}` is learned, so no constant takes its place");
                return Err(sizes::bad(shapes, &fault));
            }
            (Some(shape), _) => {
                let fault = format!("`{TEMPERATURE}` is {shape:?}, not a single number");
                return Err(sizes::bad(shapes, &fault));
            }
            (None, Some(given)) if !(BOUNDS[0]..=BOUNDS[1]).contains(&given) => {
                let [low, high] = BOUNDS;
                let fault = format!(
                    "a temperature of {given} was asked for, but the family keeps it from {low} to {high}"
                );
                return Err(sizes::bad(shapes, &fault));
            }
            (None, given) => Temperature::Constant(given.unwrap_or(CONSTANT_TEMPERATURE)),
        };
        let input = ModelInput {
            image: image_input(image.image_size),
            text: TextInput {
                len: TEXT_LEN.min(text.text_len),
                padding: Padding::Full,
                vocabulary: text.vocabulary,
                rule: TextRule::Verbatim,
                padding_id: None,
                ends_at_largest: false,
            },
        };
        Ok(Self {
            joint_width: widths[0],
            image,
            text,
            temperature,
            input,
        })
    }
}

/// Resized to 8/7 of the side, aspect not kept, and the center cut out: 256 and 224 as published.
/// Mean and deviation are ImageNet's unless a record or the user says otherwise.
fn image_input(side: usize) -> ImageInput {
    ImageInput {
        resize: Resize::SquashTo {
            to: (8 * side).div_ceil(7),
        },
        filter: Filter::Bilinear,
        ..ImageInput::square(side).normalized_by(ImageInput::IMAGENET)
    }
}
