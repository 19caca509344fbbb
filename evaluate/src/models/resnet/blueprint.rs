//! A residual network that is not loaded yet.

use merge::layouts::{ModelRecord, PictureCrop, PictureFacts, PictureFilter, RecordFamily};
use merge::{Checkpoint, Layout, layouts};

use super::{HEAD, Resnet};
use crate::models::settings::normalize;
use crate::models::towers::{Shapes, sizes};
use crate::models::vit_classifier::image_input;
use crate::models::{
    Activations, Blueprint, Family, Grouping, Head, ImageInput, Model, ModelInput, Overrides,
    Setting, TextInput,
};
use crate::{Error, ModelFault, Result, Weights};

/// The name of the family, and of the layout of its checkpoints.
pub(super) const NAME: &str = "resnet";

/// Checkpoints of residual networks under torchvision's names.
pub const FAMILY: Family = Family {
    name: NAME,
    runs: "residual networks under torchvision's names",
    reads: |layout| layout.name() == NAME,
    blueprint,
};

/// Nothing of it learns.
pub const GROUPING: Grouping = Grouping {
    heads: &["fc."],
    ..Grouping::NONE
};

/// The pictures of torchvision's first weights: the shorter side to 256, bilinear, and the center of 224.
const PICTURES: PictureFacts = PictureFacts {
    crop_share: Some(0.875),
    crop: Some(PictureCrop::Center),
    filter: Some(PictureFilter::Bilinear),
};

/// Side of torchvision's pictures.
const SIDE: usize = 224;

/// Sizes of a residual network, and pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Blocks of each stage.
    pub n_blocks: [usize; 4],
    /// Channels of the last map.
    pub width: usize,
    /// Facts about the model for the file that its weights go to.
    pub record: ModelRecord,
    /// Pixels; no tokens.
    pub input: ModelInput,
}

impl Config {
    /// The sizes of a checkpoint; pictures as timm's configuration beside it says, else as torchvision's first weights take
    /// them.
    ///
    /// # Errors
    /// [`ModelFault::UnknownSize`] for another stem or an architecture of other blocks, and [`ModelFault::BadSize`].
    pub fn read(
        checkpoint: &Checkpoint,
        layout: &dyn Layout,
        overrides: &Overrides,
    ) -> Result<Self> {
        let stem = checkpoint.shape("conv1.weight");
        if !matches!(stem, Some(&[_, 3, 7, 7])) {
            let fault = format!("`conv1.weight` is {stem:?}: only a stem of 7 x 7 pixels is run");
            return Err(sizes::bad(checkpoint, &fault));
        }
        let record = ModelRecord::of(checkpoint)?;
        let config = layouts::Resnet::config(checkpoint)?;
        if config.is_some_and(|config| !config.is_plain) {
            return Err(Error::Model(ModelFault::UnknownSize {
                path: checkpoint.path().into(),
                what: "what its blocks are: the architecture of its config.json is none of torchvision's",
            }));
        }
        let told = record.pictures.or(config.map(|config| config.pictures));
        let pictures = told.unwrap_or(PICTURES);
        let side = config.and_then(|config| config.image_size).unwrap_or(SIDE);
        let image = image_input(checkpoint, side, &pictures)?;
        let mut image = image.normalized_by(ImageInput::IMAGENET);
        let recorded = ModelRecord {
            image_mean: record
                .image_mean
                .or(config.and_then(|config| config.image_mean)),
            image_deviation: (record.image_deviation)
                .or(config.and_then(|config| config.image_deviation)),
            ..record
        };
        normalize(&mut image, checkpoint, overrides, &recorded)?;
        let stacks = &layout.dimensions().stacks;
        let mut n_blocks = [0; 4];
        for (n, stack) in n_blocks.iter_mut().zip(stacks) {
            *n = stack.n_blocks;
        }
        if n_blocks.contains(&0) {
            let fault = format!("a stage has no block: {n_blocks:?}");
            return Err(sizes::bad(checkpoint, &fault));
        }
        Ok(Self {
            n_blocks,
            width: stacks.last().map_or(0, |stack| stack.width),
            record: ModelRecord {
                family: Some(RecordFamily::Resnet),
                image_mean: Some(image.mean),
                image_deviation: Some(image.deviation),
                pictures: Some(pictures),
                ..ModelRecord::default()
            },
            input: ModelInput {
                image,
                text: TextInput::NONE,
            },
        })
    }
}

fn blueprint(
    checkpoint: &Checkpoint,
    layout: &dyn Layout,
    overrides: &Overrides,
) -> Result<Box<dyn Blueprint>> {
    let config = Config::read(checkpoint, layout, overrides)?;
    Ok(Box::new(ResnetBlueprint { config }))
}

/// A residual network that is not loaded yet.
#[derive(Clone, Debug)]
struct ResnetBlueprint {
    config: Config,
}

impl Blueprint for ResnetBlueprint {
    fn family(&self) -> &'static str {
        NAME
    }

    fn input(&self) -> &ModelInput {
        &self.config.input
    }

    fn takes(&self, setting: Setting) -> bool {
        matches!(setting, Setting::ImageMean | Setting::ImageDeviation)
    }

    fn prefixes(&self, head: Head) -> &'static [&'static str] {
        match head {
            Head::ImageClasses => &[HEAD],
            _ => &[],
        }
    }

    fn grouping(&self) -> &'static Grouping {
        &GROUPING
    }

    /// Leaves out the number of batches behind the statistics.
    fn leaves_out(&self, name: &str) -> bool {
        name.ends_with(".num_batches_tracked")
    }

    fn record(&self) -> ModelRecord {
        self.config.record
    }

    fn build(&self, weights: &Weights) -> Result<Box<dyn Model>> {
        if weights.is_trainable() {
            return Err(Error::Model(ModelFault::Incapable {
                family: NAME,
                what: "learn: its batch norms would take the statistics of batches",
            }));
        }
        Ok(Box::new(Resnet::load(weights, self.config.clone())?))
    }

    fn activation_bytes(&self, _: &Activations<'_>) -> u64 {
        0
    }
}
