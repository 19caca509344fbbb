//! Reads the sizes of one CLIP off its keys and shapes.

use std::collections::{BTreeMap, BTreeSet};

use crate::layouts::dimensions::counted_blocks;
use crate::layouts::{Description, Dimensions, ModelRecord, Stack};
use crate::{Checkpoint, Error, Result, TensorInfo};

use super::facts::ClipConfig;
use super::spelling::{ClipNames, ClipSpelling};
use super::table::{CLASS, IMAGE_POSITIONS, PATCHES, PROJECTIONS, STACKS, TEXT_POSITIONS, TOKENS};

/// The facts about a checkpoint.
pub(super) struct Surveyed {
    pub description: Description,
    /// Names that merges have, with the key that holds each.
    pub names: BTreeMap<String, String>,
    pub is_siglip: bool,
}

/// Describes a checkpoint, of which `example` is a key that tells its spelling.
pub(super) fn describe(
    checkpoint: &Checkpoint,
    spelling: ClipSpelling,
    example: &str,
    name: [&'static str; 2],
) -> Result<Surveyed> {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut shapes: BTreeMap<String, &TensorInfo> = BTreeMap::new();
    let mut blocks = [BTreeSet::new(), BTreeSet::new()];
    for (key, info) in checkpoint.tensors() {
        for place in spelling.places(key) {
            if let Some(first) = names.insert(place.name(), key.to_owned()) {
                return Err(Error::BrokenLayout {
                    path: checkpoint.path().into(),
                    slot: place.name(),
                    first,
                    second: key.to_owned(),
                });
            }
            if let Some(block) = place.block {
                blocks[usize::from(place.group.tower.stack())].insert(block);
            }
            shapes.insert(place.name(), info);
        }
    }
    let is_siglip =
        names.contains_key("vision_model.head.probe") || spelling.names == ClipNames::OpenClipTimm;
    let record = ModelRecord::of(checkpoint)?;
    let config = ClipConfig::of(checkpoint, spelling)?;
    let is_archive = ClipConfig::of_archive(checkpoint, spelling).is_some();
    let mut evidence = vec![
        format!("keys of two towers, such as `{example}`"),
        format!("spelled as {spelling}"),
    ];
    if is_archive {
        let sentence = "buffers of OpenAI's archives, such as `input_resolution`: QuickGELU";
        evidence.push(sentence.to_owned());
    }
    let axis = |name: &str, from_end: usize| -> Option<usize> {
        let shape = &shapes.get(name)?.shape;
        shape.get(shape.len().checked_sub(from_end)?).copied()
    };
    let widths = [axis(PATCHES, 4), axis(TOKENS, 1)];
    let prefixes = ["vision_model.encoder.layers.", "text_model.encoder.layers."];
    let mut stacks = Vec::new();
    for (index, name) in STACKS.into_iter().enumerate() {
        let (n_blocks, sentence) = counted_blocks(name, &blocks[index], widths[index]);
        evidence.push(sentence);
        let configured = [config.image_heads, config.text_heads][index];
        let (n_heads, said) = match (record.heads_of(name), configured) {
            (Some(heads), _) => (Some(heads), format!("{heads} heads by the file's metadata")),
            (None, Some(heads)) if is_archive => {
                (Some(heads), format!("{heads} heads of width 64"))
            }
            (None, Some(heads)) => (
                Some(heads),
                format!("{heads} heads by the configuration beside it"),
            ),
            (None, None) => (None, "no configuration tells the heads".to_owned()),
        };
        evidence.push(format!("{name}: {said}"));
        let mut fc1 = blocks[index].iter().map(|block| {
            let name = format!("{}{block}.mlp.fc1.weight", prefixes[index]);
            axis(&name, 2)
        });
        stacks.push(Stack {
            name,
            n_blocks,
            width: widths[index].unwrap_or(0),
            n_heads: n_heads.filter(|heads| *heads > 0),
            ffn_width: fc1.find_map(|width| width),
        });
    }
    let n_extra = usize::from(names.contains_key(CLASS));
    let patches = axis(IMAGE_POSITIONS, 2).and_then(|rows| rows.checked_sub(n_extra));
    let side = patches.and_then(|patches| {
        let side = patches.isqrt();
        (side > 0 && side * side == patches).then_some(side)
    });
    if let (Some(patches), None) = (patches, side) {
        evidence.push(format!(
            "image size unknown: {patches} patches are no square"
        ));
    }
    let patch_size = axis(PATCHES, 1);
    // A projection that the file has transposed ends with the joint width.
    let joint = PROJECTIONS.into_iter().find_map(|projection| {
        let is_turned =
            (spelling.names == ClipNames::OpenClip) && !names.get(projection)?.ends_with(".weight");
        axis(projection, if is_turned { 1 } else { 2 })
    });
    let description = Description {
        name: name[usize::from(is_siglip)],
        evidence,
        dimensions: Dimensions {
            stacks,
            patch_size,
            image_size: side.zip(patch_size).map(|(side, patch)| side * patch),
            text_len: axis(TEXT_POSITIONS, 2),
            vocabulary: axis(TOKENS, 2),
            joint_width: joint,
            ..Dimensions::default()
        },
    };
    record.check_heads(checkpoint, &description.dimensions)?;
    Ok(Surveyed {
        description,
        names,
        is_siglip,
    })
}
