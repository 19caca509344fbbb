//! Sizes of a classifier, read off a checkpoint, and what its configuration says.

use merge::layouts::{
    ModelRecord, PictureCrop, PictureFacts, PictureFilter, RecordFamily, VitFacts, VitPool,
};
use merge::{Checkpoint, Layout, layouts};

use super::POOLED_NORM;
use crate::images::{Filter, ImageInput, Passes, Resize};
use crate::models::settings::{agreed, normalize};
use crate::models::towers::{Shapes, sizes, vit};
use crate::models::{ModelInput, Overrides};
use crate::text::TextInput;
use crate::{Error, ModelFault, Result};

/// Sizes of a classifier, and what its weights do not tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The transformer.
    pub tower: vit::Config,
    /// The pooling of a picture's tokens.
    pub pool: VitPool,
    /// Whether pooled tokens go through a norm.
    pub has_pooled_norm: bool,
    /// Facts about the model for the file that its weights go to.
    pub record: ModelRecord,
    /// Pixels; no tokens.
    pub input: ModelInput,
}

impl Config {
    /// The sizes of a checkpoint. A fact that neither the file's record nor its configuration says must be given.
    ///
    /// # Errors
    /// [`ModelFault::UnknownSize`] for activation, heads, pooling, and mean and deviation of pictures that nothing tells,
    /// and [`ModelFault::BadSize`].
    pub fn read(
        checkpoint: &Checkpoint,
        layout: &dyn Layout,
        overrides: &Overrides,
    ) -> Result<Self> {
        let record = ModelRecord::of(checkpoint)?;
        let config = layouts::Vit::config(checkpoint)?;
        let facts = record.vit.unwrap_or(config.facts);
        let unknown = |what| unknown(checkpoint, what);
        let told = record.heads.or(config.heads);
        let heads = agreed(checkpoint, "heads", overrides.n_heads, told)?;
        let heads = heads.ok_or_else(|| {
            unknown("its attention heads: put timm's config.json beside it, or give --heads")
        })?;
        let activation = agreed(
            checkpoint,
            "activation",
            overrides.activation,
            facts.activation,
        )?;
        let activation = activation.ok_or_else(|| {
            unknown(
                "the activation of its FFNs: put timm's config.json beside it, or give --activation",
            )
        })?;
        let has = |name: &str| checkpoint.shape(&format!("{name}.weight")).is_some();
        let has_pooled_norm = has(POOLED_NORM);
        let side = layout.dimensions().image_size;
        let tower = vit::Config::read_timm(checkpoint, heads, side)?;
        let tower = vit::Config {
            epsilon: facts.epsilon.unwrap_or(tower.epsilon),
            activation: activation.into(),
            ..tower
        };
        if has_pooled_norm == tower.has_norm {
            let fault = match has_pooled_norm {
                true => "it has both `norm` and `fc_norm`, of which a classifier has one",
                false => "it has neither `norm` nor `fc_norm`: classifiers without are not run",
            };
            return Err(sizes::bad(checkpoint, fault));
        }
        let pool = match (
            facts == VitFacts::default(),
            has_pooled_norm,
            tower.has_class,
        ) {
            // No setting says it: the keys say what timm builds unless it is asked for another way.
            (true, true, _) => Some(VitPool::Mean),
            (true, false, true) => Some(VitPool::Token),
            _ => facts.pool,
        };
        let pool = pool.ok_or_else(|| {
            unknown(
                "what stands for a picture: timm's config.json must say `global_pool: token` or `avg`",
            )
        })?;
        if pool == VitPool::Token && !tower.has_class {
            let fault = "its class token stands for a picture, but there is none";
            return Err(sizes::bad(checkpoint, fault));
        }
        let recorded = ModelRecord {
            image_mean: record.image_mean.or(config.image_mean),
            image_deviation: record.image_deviation.or(config.image_deviation),
            ..record
        };
        let colors = [
            overrides.image_mean.or(recorded.image_mean),
            overrides.image_deviation.or(recorded.image_deviation),
        ];
        if colors.contains(&None) {
            return Err(unknown(
                "mean and deviation of pictures: put timm's config.json beside it, or give --image-mean and \
                 --image-deviation",
            ));
        }
        let pictures = record.pictures.unwrap_or(config.pictures);
        let mut image = image_input(checkpoint, tower.image_size, &pictures)?;
        normalize(&mut image, checkpoint, overrides, &recorded)?;
        let record = ModelRecord {
            family: Some(RecordFamily::Vit),
            heads: Some(tower.n_heads),
            image_mean: Some(image.mean),
            image_deviation: Some(image.deviation),
            pictures: Some(pictures),
            vit: Some(VitFacts {
                activation: Some(activation),
                epsilon: Some(tower.epsilon),
                pool: Some(pool),
            }),
            ..ModelRecord::default()
        };
        Ok(Self {
            tower,
            pool,
            has_pooled_norm,
            record,
            input: ModelInput {
                image,
                text: TextInput::NONE,
            },
        })
    }
}

fn unknown(checkpoint: &Checkpoint, what: &'static str) -> Error {
    Error::Model(ModelFault::UnknownSize {
        path: checkpoint.path().into(),
        what,
    })
}

/// timm's picture input: a side of `side / share` pixels, cut towards zero, then the center.
///
/// # Errors
/// [`ModelFault::UnknownSize`] where the configuration says a way that is not known, and [`ModelFault::BadSize`].
pub(in crate::models) fn image_input(
    checkpoint: &Checkpoint,
    side: usize,
    facts: &PictureFacts,
) -> Result<ImageInput> {
    let facts = match *facts == PictureFacts::default() {
        // As the library has it.
        true => PictureFacts {
            crop_share: Some(0.875),
            crop: Some(PictureCrop::Center),
            filter: Some(PictureFilter::Bicubic),
        },
        false => *facts,
    };
    let unknown = |what| unknown(checkpoint, what);
    let share = facts
        .crop_share
        .ok_or_else(|| unknown("the crop of pictures: `crop_pct` must be from 0.001 to 1"))?;
    let to = (side as f64 / share).floor() as usize;
    if !(1e-3..=1.0).contains(&share) || to < side {
        let fault =
            format!("pictures are cropped to {share} of their side, which must be from 0.001 to 1");
        return Err(sizes::bad(checkpoint, &fault));
    }
    let crop = facts
        .crop
        .ok_or_else(|| unknown("the crop of pictures: `crop_mode` must be center or squash"))?;
    let filter = facts.filter.ok_or_else(|| {
        unknown("the filter of pictures: `interpolation` must be bilinear, bicubic or lanczos")
    })?;
    Ok(ImageInput {
        resize: match crop {
            PictureCrop::Center => Resize::Shorter { to },
            PictureCrop::Squash => Resize::SquashTo { to },
        },
        filter: match filter {
            PictureFilter::Bilinear => Filter::Bilinear,
            PictureFilter::Bicubic => Filter::Bicubic,
            PictureFilter::Lanczos => Filter::Lanczos,
        },
        passes: Passes::LessFirst,
        ..ImageInput::square(side)
    })
}
