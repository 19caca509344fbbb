//! Residual networks that classify pictures, under torchvision's names.
//!
//! He et al. 2016, "Deep Residual Learning for Image Recognition", <https://arxiv.org/abs/1512.03385>; keys as in
//! <https://github.com/pytorch/vision>, which timm shares.

use std::collections::BTreeSet;

use crate::{Checkpoint, Error, Expert, ParamKind, Result, Role, Slot};

use super::vit::{self, VitConfig};
use super::{BlockId, Description, Dimensions, Layout, LayoutFamily, Part, Stack};
use super::{ModelRecord, PictureFacts, RecordFamily};
use super::{NO_TIES, WRAPPER, boxed, layer_of, split_block, without_module};

/// The row of this family in the table of layouts.
pub(super) const FAMILY: LayoutFamily = LayoutFamily {
    name: NAME,
    deciding: "no stem and first block of a residual network: `conv1.weight`, `bn1.running_var` and \
               `layer1.0.conv1.weight`",
    read: |checkpoint| Ok(boxed(Resnet::read(checkpoint))),
    ties: NO_TIES,
};

const NAME: &str = "resnet";

/// The keys that mark the family.
const TELLING: [&str; 3] = ["conv1.weight", "bn1.running_var", "layer1.0.conv1.weight"];

/// The names of the stages of blocks.
const STAGES: [&str; 4] = ["layer1", "layer2", "layer3", "layer4"];

/// Layers of a block.
const CONVOLUTIONS: [&str; 4] = ["conv1", "conv2", "conv3", "downsample.0"];
const NORMS: [&str; 4] = ["bn1", "bn2", "bn3", "downsample.1"];

/// A checkpoint of a residual network.
#[derive(Clone, Debug)]
pub struct Resnet {
    description: Description,
}

/// The kind of a batch norm's parameter.
fn of_norm(parameter: &str) -> Option<ParamKind> {
    match parameter {
        "weight" | "bias" => Some(ParamKind::Norm),
        "running_mean" | "running_var" | "num_batches_tracked" => Some(ParamKind::Other),
        _ => None,
    }
}

/// Stage and block of a key without `module.`, if it is of one, its layer, and what its parameter does.
fn place(key: &str) -> Option<(Option<BlockId>, &str, ParamKind)> {
    let of_stage = STAGES.iter().enumerate().find_map(|(stack, name)| {
        let rest = key.strip_prefix(name)?.strip_prefix('.')?;
        let (index, rest) = split_block(rest)?;
        let stack = stack as u8;
        Some((BlockId { stack, index }, rest))
    });
    let (block, rest) = match of_stage {
        Some((block, rest)) => (Some(block), rest),
        None => (None, key),
    };
    let (layer, parameter) = rest.rsplit_once('.')?;
    let kind = match block {
        Some(_) if CONVOLUTIONS.contains(&layer) && parameter == "weight" => ParamKind::Other,
        Some(_) if NORMS.contains(&layer) => of_norm(parameter)?,
        None if layer == "conv1" && parameter == "weight" => ParamKind::Other,
        None if layer == "bn1" => of_norm(parameter)?,
        None if layer == "fc" && parameter == "weight" => ParamKind::LinearWeight,
        None if layer == "fc" && parameter == "bias" => ParamKind::Bias,
        _ => return None,
    };
    Some((block, layer, kind))
}

/// The facts in timm's config.json beside a residual network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResnetConfig {
    /// Whether the architecture is one of torchvision's; timm has others under the same keys.
    pub is_plain: bool,
    /// The way in which pictures get their size.
    pub pictures: PictureFacts,
    /// The number subtracted from each channel of a picture.
    pub image_mean: Option<[f32; 3]>,
    /// The divisor of each channel after that.
    pub image_deviation: Option<[f32; 3]>,
    /// Side of the image in pixels.
    pub image_size: Option<usize>,
}

/// Whether an architecture of timm is one of torchvision's.
fn is_plain(name: &str) -> bool {
    let name = name.split('.').next().unwrap_or(name);
    let name = name.strip_prefix("tv_").unwrap_or(name);
    let sizes = ["resnet", "wide_resnet", "resnext"];
    let rest = sizes.iter().find_map(|start| name.strip_prefix(start));
    let is_size = |part: &str| {
        let digits = part.trim_end_matches('d').split('x');
        digits
            .clone()
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    // `resnet50d` has another stem; `resnext50_32x4d` is a size.
    rest.is_some_and(|rest| {
        let mut parts = rest.split('_');
        let depth = parts.next().unwrap_or_default();
        !depth.is_empty() && depth.bytes().all(|byte| byte.is_ascii_digit()) && parts.all(is_size)
    })
}

/// The configuration beside a residual network, as a record; `None` for other families.
pub(super) fn record(checkpoint: &Checkpoint) -> Result<Option<ModelRecord>> {
    if Resnet::read(checkpoint).is_none() {
        return Ok(None);
    }
    Ok(Resnet::config(checkpoint)?.map(|config| ModelRecord {
        family: Some(RecordFamily::Resnet),
        image_mean: config.image_mean,
        image_deviation: config.image_deviation,
        pictures: Some(config.pictures),
        ..ModelRecord::default()
    }))
}

impl Resnet {
    /// The facts in timm's config.json beside a checkpoint; `None` where there is none.
    ///
    /// # Errors
    /// When the file cannot be read or is no JSON.
    pub fn config(checkpoint: &Checkpoint) -> Result<Option<ResnetConfig>> {
        let config = vit::of_timm_beside(checkpoint)?;
        Ok(config.map(|config| {
            let pictures = VitConfig::of_timm(&config);
            ResnetConfig {
                is_plain: config["architecture"].as_str().is_some_and(is_plain),
                pictures: pictures.pictures,
                image_mean: pictures.image_mean,
                image_deviation: pictures.image_deviation,
                image_size: pictures.image_size,
            }
        }))
    }

    /// Reads names and shapes; `None` if the checkpoint is none of this family.
    #[must_use]
    pub fn read(checkpoint: &Checkpoint) -> Option<Self> {
        let wrapper = ["", WRAPPER].into_iter().find(|wrapper| {
            let has = |key: &&str| checkpoint.get(&format!("{wrapper}{key}")).is_some();
            TELLING.iter().all(has)
        })?;
        let mut blocks: [BTreeSet<usize>; 4] = Default::default();
        for (key, _) in checkpoint.tensors() {
            if let Some((Some(block), ..)) = place(without_module(key)) {
                blocks[usize::from(block.stack)].insert(block.index);
            }
        }
        let width = |stage: &str, block: usize| {
            let of = ["conv3", "conv2"].into_iter().find_map(|layer| {
                checkpoint.get(&format!("{wrapper}{stage}.{block}.{layer}.weight"))
            });
            of.and_then(|info| info.shape.first().copied()).unwrap_or(0)
        };
        let stacks: Vec<Stack> = (STAGES.into_iter().zip(&blocks))
            .map(|(name, blocks)| Stack {
                name,
                n_blocks: blocks.last().map_or(0, |last| last + 1),
                width: width(name, 0),
                n_heads: None,
                ffn_width: None,
            })
            .collect();
        let evidence = vec![
            format!("keys of a residual network, such as `{wrapper}layer1.0.conv1.weight`"),
            format!(
                "stages of {} blocks",
                (stacks.iter().map(|stack| stack.n_blocks.to_string()))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        ];
        Some(Self {
            description: Description {
                name: NAME,
                evidence,
                dimensions: Dimensions {
                    stacks,
                    ..Dimensions::default()
                },
            },
        })
    }
}

impl Layout for Resnet {
    fn description(&self) -> &Description {
        &self.description
    }

    fn role(&self, key: &str) -> Result<Role> {
        let name = without_module(key);
        let (block, layer, kind) = place(name).ok_or_else(|| {
            let stages = STAGES.iter().flat_map(|stage| {
                let layers = CONVOLUTIONS.iter().chain(&NORMS);
                layers.map(move |layer| format!("{stage}.0.{layer}.weight"))
            });
            let outer = ["conv1.weight", "bn1.weight", "fc.weight"].map(str::to_owned);
            Error::UnknownKey {
                layout: NAME,
                key: key.to_owned(),
                nearest: super::nearest(stages.chain(outer), name),
            }
        })?;
        Ok(Role::Shared(Slot {
            key: name.to_owned(),
            block,
            module: layer.to_owned(),
            kind,
        }))
    }

    /// The classifier's own name; inputs of convolutions are not recorded.
    fn gram_key(&self, slot: &Slot, _: Option<Expert>) -> Option<String> {
        layer_of(slot)
    }

    fn part(&self, slot: &Slot) -> Part {
        match slot.block {
            Some(_) => Part::Blocks,
            None if slot.module == "fc" => Part::Heads,
            None => Part::Embeddings,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_of_torchvision_are_told_from_others_of_timm() {
        for name in [
            "resnet18.a1_in1k",
            "tv_resnet50",
            "wide_resnet50_2",
            "resnext50_32x4d",
        ] {
            assert!(is_plain(name), "{name}");
        }
        for name in [
            "resnet50d",
            "resnetblur50",
            "seresnet50",
            "resnet50_gn",
            "vit_base",
            "resnetaa50",
        ] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
