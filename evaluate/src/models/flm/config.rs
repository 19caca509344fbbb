//! Sizes of an FLM, read off a checkpoint.

use merge::layouts::{Flm as FlmLayout, ModelRecord};
use merge::{Checkpoint, Layout};

use crate::images::ImageInput;
use crate::models::settings::{agreed, normalize};
use crate::models::towers::{Shapes, VitForm, bert, sizes, vit};
use crate::models::{ModelInput, Overrides, Reading, Streams};
use crate::text::{Padding, TextInput, TextRule};
use crate::{Error, Result};

/// The first part of the image encoder's keys.
pub(super) const IMAGE: &str = "vit_model.visual.";

/// The first part of the text encoder's keys.
pub(super) const TEXT: &str = "text_transformer.";

/// Tokens of a text, the special ones counted.
const TEXT_LEN: usize = 50;

/// Sizes of an FLM.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The image encoder.
    pub image: vit::Config,
    /// The text encoder.
    pub text: bert::Config,
    /// Hidden size after the encoders.
    pub width: usize,
    /// Attention heads of each layer after the encoders.
    pub n_heads: usize,
    /// Inner size of the feed-forward networks after the encoders.
    pub ffn_width: usize,
    /// Layers in which a text looks at its image.
    pub n_cross: usize,
    /// Layers of the reconstructor beside the last text layers.
    pub n_fusion_bottom: usize,
    /// Layers of the reconstructor beside the last cross-modal layers.
    pub n_fusion_top: usize,
    /// Rows of the token type table: text, image and, for NLVR2, the second image.
    pub n_token_types: usize,
    /// The way of reading a text, unless a task has its own.
    pub streams: Streams,
    /// Pixels and tokens.
    pub input: ModelInput,
}

impl Config {
    /// The way in which classifiers read a text in one stream, if they do.
    pub(super) fn one_stream(&self) -> Option<Reading<'static>> {
        match self.streams {
            Streams::Three => None,
            Streams::Causal => Some(Reading::Causal),
            Streams::Bidirectional => Some(Reading::Bidirectional),
        }
    }

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
        let record = ModelRecord::of(checkpoint)?;
        let heads = |what, given, recorded, name| {
            let said = agreed(checkpoint, what, given, recorded)?;
            Ok::<_, Error>(said.or_else(|| known(name)))
        };
        // `--heads` also counts for the text encoder, unless a flag or the record gives its own number.
        let text_heads = match record.text_heads {
            Some(_) => overrides.text_heads,
            None => overrides.text_heads.or(overrides.n_heads),
        };
        let recorded = record.streams.map(Streams::from);
        let [given, of_record] = [overrides.streams, recorded].map(|how| how.map(Streams::name));
        agreed(checkpoint, "streams", given, of_record)?;
        let streams = overrides.streams.or(recorded);
        let of_settings = || {
            Some(
                FlmLayout::read(checkpoint)
                    .ok()??
                    .reading(checkpoint)?
                    .into(),
            )
        };
        let mut config = Self::of(
            checkpoint,
            heads(
                "image_heads",
                overrides.image_heads,
                record.image_heads,
                "image",
            )?,
            heads("text_heads", text_heads, record.text_heads, "text")?,
            heads("heads", overrides.n_heads, record.heads, "cross_modal")?,
            streams.or_else(of_settings),
        )?;
        normalize(&mut config.input.image, checkpoint, overrides, &record)?;
        Ok(config)
    }

    /// The sizes of a checkpoint whose image encoder, text encoder and further layers have the given numbers of
    /// heads, 64 wide unless given. Texts are read as `streams` says, or else as the weights were trained.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn of(
        shapes: &dyn Shapes,
        image_heads: Option<usize>,
        text_heads: Option<usize>,
        n_heads: Option<usize>,
        streams: Option<Streams>,
    ) -> Result<Self> {
        let image = vit::Config::read_form(shapes, IMAGE, image_heads, VitForm::Clip)?;
        let text = bert::Config::read_form(shapes, TEXT, text_heads, bert::Form::Roberta)?;
        let width = transform(shapes, "cross_modal_text_transform", text.width)?;
        let of_images = transform(shapes, "cross_modal_image_transform", image.width)?;
        if width != of_images {
            let fault = format!("texts end {width} wide, images {of_images}");
            return Err(sizes::bad(shapes, &fault));
        }
        let count = |stack: &str| {
            let last = |layer| format!("{stack}.{layer}.output.LayerNorm.weight");
            sizes::count(shapes, last)
        };
        let inner = "cross_modal_text_layers.0.intermediate.dense.bias";
        let types = shapes.shape("token_type_embeddings.weight");
        let types = sizes::known(shapes, "the number of token types", types)?;
        let n_token_types = match *types {
            [rows, _] if rows >= 2 => rows,
            _ => {
                let fault = format!("token types are {types:?}, not one of texts, one of images");
                return Err(sizes::bad(shapes, &fault));
            }
        };
        let config = Self {
            width,
            n_heads: sizes::heads(shapes, width, n_heads)?,
            ffn_width: sizes::length(shapes, "the width of the FFN", inner)?,
            n_cross: count("cross_modal_text_layers"),
            n_fusion_bottom: count("fusion_layers_bottom"),
            n_fusion_top: count("fusion_layers_top"),
            n_token_types,
            streams: streams.unwrap_or_else(|| trained(shapes)),
            input: ModelInput {
                image: ImageInput::flm(image.image_size),
                text: TextInput {
                    len: TEXT_LEN.min(text.text_len),
                    padding: Padding::OneBeyond,
                    vocabulary: text.vocabulary,
                    rule: TextRule::Ended,
                    padding_id: None,
                    ends_at_largest: false,
                },
            },
            image,
            text,
        };
        config.check(shapes)?;
        Ok(config)
    }

    /// Whether the checkpoint has a reconstructor.
    #[must_use]
    pub fn has_reconstructor(&self) -> bool {
        self.n_fusion_top + self.n_fusion_bottom > 0
    }

    fn check(&self, shapes: &dyn Shapes) -> Result<()> {
        let stacks = [
            ("text", self.n_fusion_bottom, self.text.n_blocks),
            ("cross-modal", self.n_fusion_top, self.n_cross),
        ];
        for (name, n_fusion, n_layers) in stacks {
            if n_fusion > n_layers {
                let fault = format!(
                    "{n_fusion} layers of the reconstructor stand beside {n_layers} {name} layers"
                );
                return Err(sizes::bad(shapes, &fault));
            }
        }
        if self.has_reconstructor() && self.text.width != self.width {
            let (text, width) = (self.text.width, self.width);
            let fault = format!("the reconstructor is {width} wide, the text encoder {text}");
            return Err(sizes::bad(shapes, &fault));
        }
        if self.streams == Streams::Three && !self.has_reconstructor() {
            let fault = "no reconstructor, `fusion_layers_top` or `fusion_layers_bottom`, to read \
                         texts in three streams";
            return Err(sizes::bad(shapes, fault));
        }
        Ok(())
    }
}

/// The streams in which the weights were trained, as far as they tell: without a reconstructor, only a head of masked
/// words says that each token saw all others.
fn trained(shapes: &dyn Shapes) -> Streams {
    let has = |name: &str| shapes.shape(name).is_some();
    let fusion = "output.LayerNorm.weight";
    let is_three = ["top", "bottom"]
        .iter()
        .any(|half| has(&format!("fusion_layers_{half}.0.{fusion}")));
    match (is_three, has("lm_score.bias")) {
        (true, _) => Streams::Three,
        (false, true) => Streams::Causal,
        (false, false) => Streams::Bidirectional,
    }
}

/// The outputs of a layer whose inputs are those of an encoder.
fn transform(shapes: &dyn Shapes, name: &str, inputs: usize) -> Result<usize> {
    let key = format!("{name}.weight");
    let shape = sizes::known(shapes, "the hidden size", shapes.shape(&key))?;
    match *shape {
        [outputs, found] if found == inputs => Ok(outputs),
        _ => {
            let fault = format!("`{key}` is {shape:?}, but the encoder is {inputs} wide");
            Err(sizes::bad(shapes, &fault))
        }
    }
}
