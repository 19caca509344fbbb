//! The files of a tag's folder, by their names.

use std::collections::BTreeMap;

use crate::io::trainer::Listing;
use crate::{Result, ZeroFault};

/// The contents of a file.
#[derive(Debug, PartialEq, Eq)]
enum Holds {
    /// The model as all ranks have it, of a group of tensor-parallel ranks.
    Model { tensor_rank: usize },
    /// The model as one rank has it, where the weights are split as well.
    ModelOfRank { rank: usize, tensor_rank: usize },
    /// The weights in full precision that one rank updates.
    Optimizer { rank: usize, tensor_rank: usize },
    /// An expert of a mixture, or what updates experts.
    Expert,
    /// A layer of a model that is split into stages.
    Layer,
}

impl Holds {
    /// Of a file called `name`; `None` for a file of another kind.
    fn of(name: &str) -> Option<Self> {
        if let Some(stem) = name.strip_suffix("-model_states.pt") {
            return stem.starts_with("layer_").then_some(Self::Layer);
        }
        if let Some(stem) = name.strip_suffix("_optim_states.pt") {
            if stem.starts_with("expp_rank_") {
                return Some(Self::Expert);
            }
            let precisions = ["bf16_", "fp16_"];
            let stem = (precisions
                .iter()
                .find_map(|prefix| stem.strip_prefix(prefix)))
            .unwrap_or(stem);
            let (rank, tensor_rank) = ranks(stem)?;
            return Some(Self::Optimizer { rank, tensor_rank });
        }
        let stem = name.strip_suffix("_model_states.pt")?;
        if let Some(tensor_rank) = stem.strip_prefix("mp_rank_") {
            let tensor_rank = number(tensor_rank)?;
            return Some(Self::Model { tensor_rank });
        }
        if let Some((rank, tensor_rank)) = ranks(stem) {
            return Some(Self::ModelOfRank { rank, tensor_rank });
        }
        let is_expert = stem.contains("_expert_") || stem.starts_with("expert_");
        is_expert.then_some(Self::Expert)
    }
}

/// The numbers of `zero_pp_rank_K_mp_rank_TT`.
fn ranks(stem: &str) -> Option<(usize, usize)> {
    let (rank, tensor_rank) = stem
        .strip_prefix("zero_pp_rank_")?
        .split_once("_mp_rank_")?;
    Some((number(rank)?, number(tensor_rank)?))
}

/// Digits alone.
fn number(text: &str) -> Option<usize> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// Whether a folder is that of a tag.
pub(super) fn are_in(listing: &Listing) -> bool {
    listing.files.iter().any(|name| Holds::of(name).is_some())
}

/// Whether a file is not the model of a tag by itself. One that holds the model as all ranks have it is, in the
/// precision that the run computed in, unless a file `beside` it is of another tensor-parallel rank.
pub(super) fn is_part(name: &str, beside: &dyn Fn() -> Vec<String>) -> bool {
    match Holds::of(name) {
        None => false,
        Some(Holds::Model { tensor_rank: 0 }) => beside()
            .iter()
            .any(|other| matches!(Holds::of(other), Some(Holds::Model { tensor_rank: 1.. }))),
        Some(_) => true,
    }
}

/// The files of a tag.
#[derive(Debug)]
pub(super) struct Files {
    /// The model as all ranks have it.
    pub(super) model: Option<String>,
    /// The model as each rank has it, by rank.
    pub(super) models: BTreeMap<usize, String>,
    /// The weights that each rank updates, by rank.
    pub(super) optimizers: BTreeMap<usize, String>,
}

impl Files {
    /// Of a folder.
    ///
    /// # Errors
    /// [`ZeroFault::OtherParallelism`] for parts of experts, stages and tensors, [`ZeroFault::TwoFiles`].
    pub(super) fn of(listing: &Listing) -> Result<Self> {
        let mut found = Self {
            model: None,
            models: BTreeMap::new(),
            optimizers: BTreeMap::new(),
        };
        for name in &listing.files {
            let Some(holds) = Holds::of(name) else {
                continue;
            };
            let other = |part| {
                let path = listing.path(name);
                Err(ZeroFault::OtherParallelism { path, part }.into())
            };
            let before = match holds {
                Holds::Expert => return other("experts of a mixture"),
                Holds::Layer => return other("a layer of a pipeline-parallel model"),
                Holds::Model { tensor_rank: 1.. }
                | Holds::ModelOfRank {
                    tensor_rank: 1.., ..
                }
                | Holds::Optimizer {
                    tensor_rank: 1.., ..
                } => {
                    return other("a part of a tensor-parallel model");
                }
                Holds::Model { .. } => found.model.replace(name.clone()).map(|before| (0, before)),
                Holds::ModelOfRank { rank, .. } => {
                    (found.models.insert(rank, name.clone())).map(|before| (rank, before))
                }
                Holds::Optimizer { rank, .. } => {
                    (found.optimizers.insert(rank, name.clone())).map(|before| (rank, before))
                }
            };
            if let Some((rank, before)) = before {
                return Err(ZeroFault::TwoFiles {
                    folder: listing.folder.clone(),
                    rank,
                    files: [before, name.clone()],
                }
                .into());
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_names() {
        for (name, holds) in [
            (
                "mp_rank_00_model_states.pt",
                Some(Holds::Model { tensor_rank: 0 }),
            ),
            (
                "zero_pp_rank_12_mp_rank_00_model_states.pt",
                Some(Holds::ModelOfRank {
                    rank: 12,
                    tensor_rank: 0,
                }),
            ),
            (
                "bf16_zero_pp_rank_3_mp_rank_01_optim_states.pt",
                Some(Holds::Optimizer {
                    rank: 3,
                    tensor_rank: 1,
                }),
            ),
            (
                "zero_pp_rank_3_mp_rank_00_optim_states.pt",
                Some(Holds::Optimizer {
                    rank: 3,
                    tensor_rank: 0,
                }),
            ),
            (
                "expp_rank_0_mp_rank_00_optim_states.pt",
                Some(Holds::Expert),
            ),
            (
                "layer_1_expert_7_mp_rank_00_model_states.pt",
                Some(Holds::Expert),
            ),
            ("expert_7_mp_rank_00_model_states.pt", Some(Holds::Expert)),
            ("layer_01-model_00-model_states.pt", Some(Holds::Layer)),
            ("zero_pp_rank_x_mp_rank_00_optim_states.pt", None),
            ("zero_pp_rank_+1_mp_rank_00_optim_states.pt", None),
            (
                "zero_pp_rank_99999999999999999999_mp_rank_00_optim_states.pt",
                None,
            ),
            ("pytorch_model.bin", None),
            ("optimizer.pt", None),
        ] {
            assert_eq!(Holds::of(name), holds, "{name}");
        }
    }
}
