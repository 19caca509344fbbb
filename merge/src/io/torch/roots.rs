//! Finding the weights: which dictionary of a file is meant.

use std::collections::HashMap;

use crate::io::{ObjectPath, PathSegment, Root, TensorEntry};

/// Keys under which training programs keep weights, the most telling first.
const WEIGHT_KEYS: [&str; 10] = [
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
    "model_ema",
    "ema",
];

/// Beginnings of keys under which something else is kept.
const OTHER_KEYS: [&str; 8] = [
    "optim",
    "lr_sched",
    "sched",
    "scaler",
    "amp",
    "native_amp",
    "callbacks",
    "loops",
];

/// Levels below the root object down to which roots are listed; others can still be chosen.
const LISTED_DEPTH: usize = 3;

/// Roots that are listed.
const LISTED: usize = 256;

/// A container of tensors: how many and how large, and whether some are its direct children.
#[derive(Clone, Copy, Default)]
struct Holding {
    n_tensors: usize,
    n_bytes: u64,
    is_direct: bool,
    /// Position of its first tensor in the file.
    first: usize,
}

/// The roots of a file, the chosen one, and the names of its tensors.
pub(crate) struct Choice {
    /// The roots in their order: the chosen one first, then by size.
    pub(crate) roots: Vec<Root>,
    /// The name of the chosen root.
    pub(crate) root: String,
    /// For each tensor, its name within the chosen root.
    pub(crate) names: Vec<Option<String>>,
}

/// Chooses the root that `wanted` names, or by rule. `Err` holds the names of all listed roots
/// when there is none of the wanted name.
pub(crate) fn choose(tensors: &[TensorEntry], wanted: Option<&str>) -> Result<Choice, Vec<String>> {
    let holdings = holdings(tensors);
    let root: &[PathSegment] = match wanted {
        Some(wanted) => holdings
            .keys()
            .filter(|path| ObjectPath(path.to_vec()).to_string() == wanted)
            .min()
            .ok_or_else(|| {
                list(&holdings, &[])
                    .into_iter()
                    .map(|root| root.name)
                    .collect::<Vec<_>>()
            })?,
        None => by_rule(&holdings),
    };
    let names = (tensors.iter())
        .map(|entry| {
            let rest = entry.path.0.strip_prefix(root)?;
            Some(ObjectPath(rest.to_vec()).to_string())
        })
        .collect();
    Ok(Choice {
        roots: list(&holdings, root),
        root: ObjectPath(root.to_vec()).to_string(),
        names,
    })
}

fn holdings(tensors: &[TensorEntry]) -> HashMap<&[PathSegment], Holding> {
    let mut holdings: HashMap<&[PathSegment], Holding> = HashMap::new();
    for (position, entry) in tensors.iter().enumerate() {
        let parent = entry.path.0.len().saturating_sub(1);
        for depth in 0..=parent {
            let holding = holdings.entry(&entry.path.0[..depth]).or_insert(Holding {
                first: position,
                ..Holding::default()
            });
            holding.n_tensors += 1;
            holding.n_bytes = holding.n_bytes.saturating_add(entry.info.n_bytes());
            holding.is_direct |= depth == parent;
        }
    }
    holdings
}

/// The rule: a child of the root object with a telling key; else the root object if tensors are
/// its direct children; else the largest child that is not known to be something else. A child
/// without tensors of its own is searched for a telling key once more.
fn by_rule<'a>(holdings: &HashMap<&'a [PathSegment], Holding>) -> &'a [PathSegment] {
    let mut root: &[PathSegment] = &[];
    loop {
        let is_direct = holdings.get(root).is_none_or(|holding| holding.is_direct);
        let children = || {
            (holdings.iter())
                .filter(|(path, _)| path.len() == root.len() + 1 && path.starts_with(root))
        };
        let telling = WEIGHT_KEYS.iter().find_map(|&wanted| {
            children()
                .map(|(&path, _)| path)
                .find(|path| matches!(path.last(), Some(PathSegment::Key(key)) if key == wanted))
        });
        match telling {
            // Below the first level a direct tensor says that the weights are here.
            Some(child) if root.is_empty() || !is_direct => root = child,
            _ if is_direct || !root.is_empty() => return root,
            _ => {
                let largest = children()
                    .filter(|(path, _)| !is_other(path.last()))
                    .max_by_key(|(_, holding)| (holding.n_bytes, std::cmp::Reverse(holding.first)));
                match largest {
                    Some((&child, _)) => root = child,
                    None => return root,
                }
            }
        }
    }
}

fn is_other(key: Option<&PathSegment>) -> bool {
    match key {
        Some(PathSegment::Key(key)) => OTHER_KEYS.iter().any(|other| key.starts_with(other)),
        _ => false,
    }
}

fn list(holdings: &HashMap<&[PathSegment], Holding>, chosen: &[PathSegment]) -> Vec<Root> {
    let mut listed: Vec<(&&[PathSegment], &Holding)> = (holdings.iter())
        .filter(|(path, _)| path.len() <= LISTED_DEPTH || **path == chosen)
        .collect();
    listed.sort_by_key(|(path, holding)| {
        let size = std::cmp::Reverse(holding.n_bytes);
        (**path != chosen, size, path.len(), holding.first)
    });
    listed.truncate(LISTED);
    (listed.into_iter())
        .map(|(path, holding)| Root {
            name: ObjectPath(path.to_vec()).to_string(),
            n_tensors: holding.n_tensors,
            n_bytes: holding.n_bytes,
        })
        .collect()
}
