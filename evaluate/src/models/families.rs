//! The families that can be run, and opening a checkpoint of any of them.

use std::sync::Arc;

use candle_core::{DType, Device};
use merge::layouts::ClipSpelling;
use merge::{Checkpoint, Layout, layouts};

use super::{
    Blueprint, Model, Overrides, Setting, clip, eve, flm, multiway, resnet, two_towers,
    vit_classifier,
};
use crate::{Error, ModelFault, Result, Weights};

/// Describes the model that a checkpoint holds, without loading it.
pub type Describe = fn(&Checkpoint, &dyn Layout, &Overrides) -> Result<Box<dyn Blueprint>>;

/// A family of models that can be run.
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// The origin of the checkpoints that it runs, for messages.
    pub runs: &'static str,
    /// Whether it runs checkpoints of a layout.
    pub reads: fn(&dyn Layout) -> bool,
    /// The model that such a checkpoint holds.
    pub blueprint: Describe,
}

/// All families.
pub const FAMILIES: &[Family] = &[
    multiway::FAMILY,
    two_towers::FAMILY,
    flm::FAMILY,
    eve::FAMILY,
    clip::FAMILY,
    vit_classifier::FAMILY,
    resnet::FAMILY,
];

/// A model with where it comes from.
pub struct Opened {
    /// The blueprint of the model, from before its weights were loaded.
    pub blueprint: Box<dyn Blueprint>,
    /// The model.
    pub model: Box<dyn Model>,
    /// Its weights, which list the tensors that were used.
    pub weights: Weights,
}

impl Opened {
    /// Builds a model of weights, which are all checked before one is read.
    ///
    /// # Errors
    /// As [`Weights::check`] and [`Blueprint::build`].
    pub fn build(blueprint: Box<dyn Blueprint>, weights: Weights) -> Result<Self> {
        weights.check(|weights| blueprint.build(weights))?;
        Ok(Self {
            model: blueprint.build(&weights)?,
            blueprint,
            weights,
        })
    }
}

/// The model that a checkpoint holds, of whatever family. Nothing is loaded.
///
/// # Errors
/// [`ModelFault::NotRunnable`] where no family reads the layout, [`ModelFault::IgnoredSetting`] for a
/// setting that the family does not know, and what the family finds wrong.
pub fn blueprint(
    checkpoint: &Checkpoint,
    layout: &dyn Layout,
    overrides: &Overrides,
) -> Result<Box<dyn Blueprint>> {
    let family = FAMILIES.iter().find(|family| (family.reads)(layout));
    let family = family.ok_or_else(|| {
        Error::Model(ModelFault::NotRunnable {
            path: checkpoint.path().into(),
            layout: layout.name().to_owned(),
        })
    })?;
    let blueprint = (family.blueprint)(checkpoint, layout, overrides)?;
    check_settings(blueprint.as_ref(), overrides.given())?;
    Ok(blueprint)
}

/// Checks that a family knows settings.
///
/// # Errors
/// [`ModelFault::IgnoredSetting`] with the first that it does not.
pub fn check_settings(
    blueprint: &dyn Blueprint,
    given: impl IntoIterator<Item = Setting>,
) -> Result<()> {
    match given.into_iter().find(|&setting| !blueprint.takes(setting)) {
        None => Ok(()),
        Some(setting) => Err(Error::Model(ModelFault::IgnoredSetting {
            setting: setting.key(),
            family: blueprint.family(),
        })),
    }
}

/// The tensors of a checkpoint under the names of its model.
///
/// # Errors
/// As [`blueprint`] and [`Weights::new`].
pub fn prepare(
    checkpoint: Arc<Checkpoint>,
    overrides: &Overrides,
    device: &Device,
    dtype: DType,
) -> Result<(Box<dyn Blueprint>, Weights)> {
    // The family's own names are Hugging Face's.
    let checkpoint = layouts::clip::respelled(checkpoint, ClipSpelling::HUGGING_FACE)?;
    let layout = layouts::detect(&checkpoint)?;
    let blueprint = blueprint(&checkpoint, layout.as_ref(), overrides)?;
    let name_of = |key: &str| blueprint.name_of(key);
    let weights = Weights::new(checkpoint, layout.as_ref(), name_of, device, dtype)?;
    Ok((blueprint, weights))
}

/// Loads a checkpoint of any family for inference: every tensor of the model must be there; heads
/// are those that are there.
///
/// # Example
/// ```no_run
/// use std::path::Path;
/// use std::sync::Arc;
///
/// use candle_core::{DType, Device};
/// use evaluate::models::{self, Overrides};
///
/// # fn main() -> evaluate::Result<()> {
/// let file = merge::io::open(Path::new("model.safetensors"), &Default::default())?;
/// let opened = models::open(Arc::new(file), &Overrides::default(), &Device::Cpu, DType::F32)?;
/// let input = opened.model.input();
/// println!("{} x {} px, {} tokens", input.image.side, input.image.side, input.text.len);
/// let retrieves = opened.model.dual().is_ok();
/// # let _ = retrieves;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`prepare`] and [`Opened::build`].
pub fn open(
    checkpoint: Arc<Checkpoint>,
    overrides: &Overrides,
    device: &Device,
    dtype: DType,
) -> Result<Opened> {
    let (blueprint, weights) = prepare(checkpoint, overrides, device, dtype)?;
    Opened::build(blueprint, weights)
}

#[cfg(test)]
mod tests {
    use merge::layouts::ModelRecord;

    use super::*;
    use crate::models::{Activations, Grouping, Head, ModelInput};

    /// A family that takes attention heads and nothing else.
    struct Towers(ModelInput);

    impl Blueprint for Towers {
        fn family(&self) -> &'static str {
            "towers"
        }

        fn input(&self) -> &ModelInput {
            &self.0
        }

        fn takes(&self, setting: Setting) -> bool {
            setting == Setting::Heads
        }

        fn prefixes(&self, _: Head) -> &'static [&'static str] {
            &[]
        }

        fn grouping(&self) -> &'static Grouping {
            &Grouping::NONE
        }

        fn record(&self) -> ModelRecord {
            ModelRecord::default()
        }

        fn build(&self, _: &Weights) -> Result<Box<dyn Model>> {
            Err(Error::Model(ModelFault::Incapable {
                family: "towers",
                what: "be built",
            }))
        }

        fn activation_bytes(&self, _: &Activations<'_>) -> u64 {
            0
        }
    }

    #[test]
    fn a_setting_that_a_family_ignores_is_an_error_that_names_both() {
        let towers = Towers(ModelInput {
            image: crate::images::ImageInput::square(8),
            text: crate::text::TextInput {
                len: 4,
                padding: crate::text::Padding::Full,
                vocabulary: 10,
                rule: crate::text::TextRule::Verbatim,
                padding_id: None,
                ends_at_largest: false,
            },
        });
        assert!(check_settings(&towers, [Setting::Heads]).is_ok());
        let error = check_settings(&towers, [Setting::Heads, Setting::DropPath]);
        assert_eq!(
            error.err().map(|error| error.to_string()).as_deref(),
            Some("`drop_path` means nothing to models of the family towers; leave it out")
        );
    }
}
