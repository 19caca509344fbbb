//! Names of files that hold the part of one rank.

use std::collections::BTreeMap;
use std::fmt;

use crate::io::folder::{extension_rank, is_other};

/// Beginnings of the names of files that hold something else of a rank.
const OTHER_PARTS: [&str; 3] = ["optim", "extra_state", "dataloader"];

/// The files of one model: what their names have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Family {
    before: String,
    after: String,
    /// How many ranks there are, if the names say it.
    pub(super) world: Option<usize>,
}

impl fmt::Display for Family {
    /// A name with `*` for the rank.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}*{}", self.before, self.after)
    }
}

/// A name that says a rank.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RankName {
    before: String,
    after: String,
    pub(super) rank: usize,
    pub(super) world: Option<usize>,
}

impl RankName {
    /// Reads `model_world_size_4_rank_0.pt`, `ep1-rank0.pt`, `pytorch_model_fsdp_rank3.bin`: the word `rank`, a number,
    /// and the extension of a torch file.
    pub(super) fn of(name: &str) -> Option<Self> {
        let is_of_torch = extension_rank(name) == Some(1);
        if !is_of_torch || is_other(name) || OTHER_PARTS.iter().any(|part| name.starts_with(part)) {
            return None;
        }
        let (stem, _) = name.rsplit_once('.')?;
        let start = stem.rfind("rank")?;
        if start > 0 && !stem[..start].ends_with(['_', '-', '.']) {
            return None;
        }
        let digits_at = start + "rank".len();
        let digits = &stem[digits_at..];
        let digits = digits.strip_prefix(['_', '-']).unwrap_or(digits);
        let before = &name[..stem.len() - digits.len()];
        let world = stem[..start].find("world_size_").and_then(|at| {
            let rest = &stem[at + "world_size_".len()..];
            let n_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            rest[..n_digits].parse().ok()
        });
        Some(Self {
            before: before.to_owned(),
            after: name[stem.len()..].to_owned(),
            rank: number(digits)?,
            world,
        })
    }
}

/// A number as programs write it: without signs, and small enough to count files.
fn number(digits: &str) -> Option<usize> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: usize = is_number.then(|| digits.parse().ok())??;
    (number < u32::MAX as usize).then_some(number)
}

/// The models that lie in files of ranks, each with its files by rank. Names that do not say how many ranks there are
/// count if there are several and nothing else of the folder may be the model.
pub(super) fn families(names: &[String]) -> BTreeMap<Family, BTreeMap<usize, &str>> {
    let mut families: BTreeMap<Family, BTreeMap<usize, &str>> = BTreeMap::new();
    for name in names {
        if let Some(RankName {
            before,
            after,
            rank,
            world,
        }) = RankName::of(name)
        {
            let family = Family {
                before,
                after,
                world,
            };
            families.entry(family).or_default().insert(rank, name);
        }
    }
    let has_better = names.iter().any(|name| extension_rank(name) == Some(0));
    families.retain(|family, files| {
        family.world.is_some() || (files.len() > 1 && files.contains_key(&0) && !has_better)
    });
    families
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_rank_and_world() {
        let said = |name: &str| RankName::of(name).map(|name| (name.rank, name.world));
        assert_eq!(said("model_world_size_4_rank_0.pt"), Some((0, Some(4))));
        assert_eq!(said("model_world_size_16_rank_11.pt"), Some((11, Some(16))));
        assert_eq!(said("ep1-ba20-rank3.pt"), Some((3, None)));
        assert_eq!(said("pytorch_model_fsdp_rank1.bin"), Some((1, None)));
        for other in [
            "optim_world_size_4_rank_0.pt",
            "extra_state_world_size_4_rank_0.pt",
            "model.pt",
            "frank0.pt",
            "model_rank.pt",
            "model_rank_-1.pt",
            "model_rank_0.safetensors",
        ] {
            assert_eq!(said(other), None, "{other}");
        }
    }

    #[test]
    fn ranks_of_adapters_are_no_ranks_of_processes() {
        let found = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            families(&names).len()
        };
        assert_eq!(found(&["lora_rank8.pt", "lora_rank16.pt"]), 0);
        assert_eq!(found(&["model_rank0.pt"]), 0);
        assert_eq!(found(&["model_rank0.pt", "model_rank1.pt"]), 1);
        assert_eq!(
            found(&["a.safetensors", "model_rank0.pt", "model_rank1.pt"]),
            0
        );
        assert_eq!(found(&["model_world_size_1_rank_0.pt"]), 1);
        let worlds = [
            "model_world_size_1_rank_0.pt",
            "model_world_size_2_rank_0.pt",
        ];
        assert_eq!(found(&worlds), 2);
    }
}
