//! The table of layouts, and finding the one of a checkpoint.

use crate::{Checkpoint, Error, Result};

use super::multiway::{beit, vl_merging, vlmo};
use super::ties::ReadTies;
use super::{Layout, clip, eve, flm, generic, resnet, vit, zerovl};

/// Reads names and shapes; `None` if the checkpoint is none of the family.
pub type ReadLayout = fn(&Checkpoint) -> Result<Option<Box<dyn Layout>>>;

/// A family of checkpoints.
pub struct LayoutFamily {
    /// Its name in recipes; its layouts are called this, or this with a form behind a `/`.
    pub name: &'static str,
    /// The keys that a checkpoint of another family lacks, in words.
    pub deciding: &'static str,
    /// Reads names and shapes; `None` if the checkpoint is none of the family.
    pub read: ReadLayout,
    /// Reads which names are of one tensor; `None` if the checkpoint is none of the family, or the file
    /// itself says all of its ties.
    pub ties: ReadTies,
}

/// All families, in the order in which [`detect`] asks them. The last one takes every checkpoint.
pub const LAYOUTS: &[LayoutFamily] = &[
    vlmo::FAMILY,
    beit::FAMILY,
    vl_merging::FAMILY,
    zerovl::FAMILY,
    flm::FAMILY,
    eve::FAMILY,
    clip::FAMILY,
    vit::FAMILY,
    resnet::FAMILY,
    generic::FAMILY,
];

/// Names that [`by_name`] takes.
pub const NAMES: [&str; LAYOUTS.len()] = {
    let mut names = [""; LAYOUTS.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = LAYOUTS[index].name;
        index += 1;
    }
    names
};

/// Finds the family of a checkpoint by its keys and shapes; the generic layout if none fits.
///
/// # Errors
/// [`Error::BrokenLayout`] when the keys are a family's but two of them claim one place.
pub fn detect(checkpoint: &Checkpoint) -> Result<Box<dyn Layout>> {
    for family in LAYOUTS {
        if let Some(layout) = (family.read)(checkpoint)? {
            return Ok(layout);
        }
    }
    Ok(Box::new(generic::Generic::read(checkpoint)))
}

/// Names of forms in files of older versions, each with the name of today.
const FORMER_NAMES: &[(&str, &str)] = &[("flm/irtr", "flm/retrieval")];

/// The layout of the family called `name` for a checkpoint: one of [`NAMES`], or with its form, as
/// [`Layout::name`] gives it.
///
/// # Errors
/// [`Error::UnknownLayout`], [`Error::LayoutMismatch`] when the checkpoint holds none of the
/// family's deciding keys or is of another form, and [`Error::BrokenLayout`].
pub fn by_name(name: &str, checkpoint: &Checkpoint) -> Result<Box<dyn Layout>> {
    let former = FORMER_NAMES.iter().find(|(former, _)| *former == name);
    let name = former.map_or(name, |(_, today)| today);
    let wanted = name.split('/').next().unwrap_or(name);
    let family = LAYOUTS.iter().find(|family| family.name == wanted);
    let family = family.ok_or_else(|| Error::UnknownLayout {
        name: name.to_owned(),
        nearest: super::nearest(NAMES.iter().map(|&name| name.to_owned()), name),
    })?;
    let mismatch = |reason| Error::LayoutMismatch {
        path: checkpoint.path().into(),
        layout: name.to_owned(),
        reason,
    };
    let found = (family.read)(checkpoint)?;
    let layout = found.ok_or_else(|| mismatch(family.deciding.to_owned()))?;
    if name != family.name && name != layout.name() {
        return Err(mismatch(format!("it is {}", layout.name())));
    }
    Ok(layout)
}

/// A family's layout behind the trait.
pub(super) fn boxed<L: Layout + 'static>(layout: Option<L>) -> Option<Box<dyn Layout>> {
    layout.map(|layout| Box::new(layout) as Box<dyn Layout>)
}
