//! Reads the sizes of one classifier off its keys and shapes.

use std::collections::BTreeSet;

use crate::layouts::{
    Description, Dimensions, ModelRecord, PositionTable, Stack, TableForm, split_block,
    without_module,
};
use crate::{Checkpoint, Result};

use super::NAME;
use super::facts::VitConfig;
use super::table::{BLOCKS, CLASS, PATCHES, POSITIONS, REGISTERS};

/// Describes a checkpoint whose keys begin with `wrapper`, and its table of positions.
pub(super) fn describe(
    checkpoint: &Checkpoint,
    wrapper: &str,
) -> Result<(Description, Option<PositionTable>)> {
    let record = ModelRecord::of(checkpoint)?;
    let config = VitConfig::beside(checkpoint)?;
    let shape = |key: &str| {
        let info = checkpoint.get(&format!("{wrapper}{key}"))?;
        Some(info.shape.as_slice())
    };
    let axis = |key: &str, axis: usize| shape(key).and_then(|shape| shape.get(axis).copied());
    let keys = checkpoint.tensors().map(|(key, _)| without_module(key));
    let blocks: BTreeSet<usize> = keys
        .filter_map(|key| key.strip_prefix(BLOCKS).and_then(split_block))
        .map(|(block, _)| block)
        .collect();
    let n_blocks = blocks.last().map_or(0, |last| last + 1);
    let width = axis(PATCHES, 0).unwrap_or(0);
    let mut evidence = vec![
        format!("keys of a classifier of timm, such as `{wrapper}{PATCHES}`"),
        format!("{n_blocks} blocks of width {width}"),
    ];
    if blocks.len() < n_blocks {
        evidence.push(format!("{} blocks are missing", n_blocks - blocks.len()));
    }
    let (n_heads, said) = match (record.heads, config.heads) {
        (Some(heads), _) => (Some(heads), format!("{heads} heads by the file's metadata")),
        (None, Some(heads)) => (
            Some(heads),
            format!("{heads} heads by the configuration beside it"),
        ),
        (None, None) => (None, "no configuration tells the heads".to_owned()),
    };
    evidence.push(said);
    let patch_size = axis(PATCHES, 3);
    let n_first = usize::from(shape(CLASS).is_some()) + axis(REGISTERS, 1).unwrap_or(0);
    let positions = axis(POSITIONS, 1);
    let told = config.image_size.zip(patch_size);
    let told = told.and_then(|(side, patch)| side.checked_div(patch));
    let found = positions.and_then(|rows| grid(rows, n_first, told));
    if let (Some(rows), None) = (positions, found) {
        evidence.push(format!(
            "image size unknown: {rows} positions are no square of patches, with or without {n_first} other tokens"
        ));
    }
    if let (Some((_, n_extra)), 1..) = (found, n_first) {
        evidence.push(match n_extra {
            0 => format!("{n_first} tokens before the patches have no positions"),
            _ => format!("{n_first} tokens before the patches have positions of their own"),
        });
    }
    let dimensions = Dimensions {
        patch_size,
        image_size: found.zip(patch_size).map(|((side, _), patch)| side * patch),
        ..Dimensions::of_one_stack(Stack {
            name: "blocks",
            n_blocks,
            width,
            n_heads: n_heads.filter(|heads| *heads > 0),
            ffn_width: axis("blocks.0.mlp.fc1.weight", 0),
        })
    };
    record.check_heads(checkpoint, &dimensions)?;
    let table = found.map(|(_, n_extra)| PositionTable {
        key: format!("{wrapper}{POSITIONS}"),
        form: match n_extra {
            0 => TableForm::Patches,
            1 => TableForm::Absolute,
            n => TableForm::Behind(n),
        },
    });
    let description = Description {
        name: NAME,
        evidence,
        dimensions,
    };
    Ok((description, table))
}

/// Side of the grid of patches in a table of `rows` rows, some of which may belong to the `n_first` tokens before the
/// patches; and the number of these rows. Where both fit, `told` decides.
fn grid(rows: usize, n_first: usize, told: Option<usize>) -> Option<(usize, usize)> {
    let mut readings = [n_first, 0].into_iter().filter_map(|n_extra| {
        let patches = rows.checked_sub(n_extra)?;
        let side = patches.isqrt();
        (side > 0 && side * side == patches).then_some((side, n_extra))
    });
    match (readings.next(), readings.next()) {
        (Some(first), Some(second)) if n_first > 0 => {
            let told = told?;
            [first, second].into_iter().find(|(side, _)| *side == told)
        }
        (first, _) => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_positions_are_patches_with_or_without_other_tokens() {
        assert_eq!(grid(10, 1, None), Some((3, 1)));
        assert_eq!(grid(9, 1, None), Some((3, 0)));
        assert_eq!(grid(9, 0, None), Some((3, 0)));
        // Nine rows are those of 3 x 3 patches, or of 2 x 2 and five other tokens.
        assert_eq!(grid(9, 5, None), None);
        assert_eq!(grid(9, 5, Some(2)), Some((2, 5)));
        assert_eq!(grid(9, 5, Some(3)), Some((3, 0)));
        assert_eq!(grid(11, 4, None), None);
    }
}
