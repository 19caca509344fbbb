//! Parts of a block that are shared or have a copy per modality.

use candle_core::Result;
use merge::Expert;
use merge::layouts::vl_merging::segment;

use crate::Weights;

/// Experts of a multiway block, in the order in which published code walks them.
const EXPERTS: [Expert; 3] = [Expert::Vision, Expert::Language, Expert::VisionLanguage];

/// One part of a block: shared by all modalities, or a copy for each.
#[derive(Clone, Debug)]
pub enum Experts<T> {
    /// One for everybody.
    Shared(T),
    /// A copy for each expert that the block has; the name is that of the part, for errors.
    Each(Vec<(Expert, T)>, String),
}

impl<T> Experts<T> {
    /// Loads `{stem}.v`, `{stem}.l`, `{stem}.vl`, as far as they are there, or else `{stem}`.
    ///
    /// # Errors
    /// As `load`.
    pub fn load(
        weights: &Weights,
        stem: &str,
        load: impl Fn(&str) -> crate::Result<T>,
    ) -> crate::Result<Self> {
        let mut copies = Vec::new();
        for expert in EXPERTS {
            let name = format!("{stem}.{}", segment(expert).unwrap_or_default());
            if weights.has(&format!("{name}.")) {
                copies.push((expert, load(&name)?));
            }
        }
        Ok(match copies.is_empty() {
            true => Self::Shared(load(stem)?),
            false => Self::Each(copies, stem.to_owned()),
        })
    }

    /// The copy that serves `expert`.
    ///
    /// # Errors
    /// When the block has experts, but not this one.
    pub fn of(&self, expert: Expert) -> Result<&T> {
        match self {
            Self::Shared(part) => Ok(part),
            Self::Each(copies, stem) => match copies.iter().find(|(owner, _)| *owner == expert) {
                Some((_, part)) => Ok(part),
                None => candle_core::bail!("`{stem}` has no {expert} expert"),
            },
        }
    }
}
