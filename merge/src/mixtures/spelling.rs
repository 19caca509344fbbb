//! The spellings of one kind of mixture: experts with a gate, a value and a way out, one by one or together.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::Mixture;
use super::ffn::ffns_of;
use super::keys::within;
use super::survey::{Mixtures, survey};
use super::view::{Arrangement, Origin, Piece, Rearranged, ViewedTensor};
use crate::{Checkpoint, ConversionFault, Result, TensorInfo};

/// The spelling of a model's mixtures of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MixtureSpelling {
    /// Experts one by one, `block_sparse_moe.experts.N.w1`, `w3` and `w2`: Mixtral, Phi-3.5-MoE.
    Mixtral,
    /// Experts one by one, `mlp.experts.N.gate_proj`, `up_proj` and `down_proj`: Qwen-MoE, DeepSeek-MoE, OLMoE, GLM.
    SingleExperts,
    /// All experts in one tensor, `mlp.experts.gate_up_proj: (experts, 2 · units, width)` and
    /// `mlp.experts.down_proj: (experts, width, units)`: transformers 5.
    FusedExperts,
    /// The same with `(experts, width, 2 · units)` and `(experts, units, width)`: earlier fused models.
    FusedTransposed,
    /// All experts in one tensor, `block_sparse_moe.input_linear` and `output_linear`: Granite-MoE.
    Granite,
}

/// A spelling of the names.
struct Row {
    spelling: MixtureSpelling,
    name: &'static str,
    /// The last part of the name of the mixture.
    host: &'static str,
    /// Gate, value and way out of an expert, or gate and value together and the way out of all.
    experts: Names,
    router: &'static str,
}

enum Names {
    Single([&'static str; 3]),
    Fused([&'static str; 2]),
}

/// All spellings.
const TABLE: [Row; 5] = [
    Row {
        spelling: MixtureSpelling::Mixtral,
        name: "mixtral",
        host: "block_sparse_moe",
        experts: Names::Single(["w1.weight", "w3.weight", "w2.weight"]),
        router: "gate.weight",
    },
    Row {
        spelling: MixtureSpelling::SingleExperts,
        name: "single-experts",
        host: "mlp",
        experts: Names::Single(["gate_proj.weight", "up_proj.weight", "down_proj.weight"]),
        router: "gate.weight",
    },
    Row {
        spelling: MixtureSpelling::FusedExperts,
        name: "fused-experts",
        host: "mlp",
        experts: Names::Fused(["gate_up_proj", "down_proj"]),
        router: "gate.weight",
    },
    Row {
        spelling: MixtureSpelling::FusedTransposed,
        name: "fused-transposed",
        host: "mlp",
        experts: Names::Fused(["gate_up_proj", "down_proj"]),
        router: "gate.weight",
    },
    Row {
        spelling: MixtureSpelling::Granite,
        name: "granite",
        host: "block_sparse_moe",
        experts: Names::Fused(["input_linear.weight", "output_linear.weight"]),
        router: "router.layer.weight",
    },
];

impl MixtureSpelling {
    fn row(self) -> &'static Row {
        // Every spelling has its row, which a test checks.
        let row = TABLE.iter().find(|row| row.spelling == self);
        row.unwrap_or(&TABLE[0])
    }

    /// The name of a router's weight behind that of its layer.
    pub(crate) fn router(self) -> String {
        let row = self.row();
        format!("{}.{}", row.host, row.router)
    }

    /// The spelling of a mixture; `None` if it is of another kind.
    #[must_use]
    pub fn of(mixture: &Mixture) -> Option<Self> {
        let last = mixture.host.rsplit('.').next().unwrap_or_default();
        let mut parts: Vec<&str> = mixture.tensors.iter().map(|tensor| tensor.part()).collect();
        parts.sort_unstable();
        let fits = |row: &&Row| {
            let mut own = match &row.experts {
                Names::Single(names) => names.to_vec(),
                Names::Fused(names) => names.to_vec(),
            };
            own.sort_unstable();
            row.host == last && own == parts
        };
        let row = TABLE.iter().find(fits)?;
        let mut dtypes = mixture.tensors.iter().map(|tensor| tensor.info.dtype);
        let first = dtypes.next()?;
        if dtypes.any(|dtype| dtype != first) {
            return None;
        }
        let network = ffns_of(mixture).into_iter().next()?;
        match (network.strands.first()?.along_columns, row.spelling) {
            (false, spelling) => Some(spelling),
            (true, Self::FusedExperts) => Some(Self::FusedTransposed),
            (true, _) => None,
        }
    }
}

impl fmt::Display for MixtureSpelling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}

/// The checkpoint with its mixtures spelled otherwise, value for value; the same if they are spelled so. Mixtures of
/// another kind stay as they are.
///
/// # Errors
/// [`ConversionFault::NoCounterpart`] for a tensor beside the experts that the other spelling has no name for,
/// [`ConversionFault::NameTaken`], and as [`survey`].
pub fn respelled(source: Arc<Checkpoint>, to: MixtureSpelling) -> Result<Arc<Checkpoint>> {
    let mixtures = survey(&source)?;
    let is_of = |spelling| {
        let mut all = mixtures.values();
        all.any(|mixture| MixtureSpelling::of(mixture) == Some(spelling))
    };
    let is_other = |mixture: &Mixture| MixtureSpelling::of(mixture).is_some_and(|of| of != to);
    if !mixtures.values().any(is_other) {
        return Ok(source);
    }
    let (source, mixtures) = match is_of(MixtureSpelling::FusedTransposed) {
        true => {
            let turned = turned(source, &mixtures, MixtureSpelling::FusedTransposed);
            let mixtures = survey(&turned)?;
            (turned, mixtures)
        }
        false => (source, mixtures),
    };
    if to != MixtureSpelling::FusedTransposed {
        return renamed(source, &mixtures, to);
    }
    let fused = renamed(source, &mixtures, MixtureSpelling::FusedExperts)?;
    let mixtures = survey(&fused)?;
    Ok(turned(fused, &mixtures, MixtureSpelling::FusedExperts))
}

/// The mixtures of one fused spelling with rows and columns of each expert exchanged.
fn turned(source: Arc<Checkpoint>, mixtures: &Mixtures, from: MixtureSpelling) -> Arc<Checkpoint> {
    let mut made: BTreeMap<String, Arc<Arrangement>> = BTreeMap::new();
    let mut infos: BTreeMap<String, TensorInfo> = BTreeMap::new();
    let of_spelling = |mixture: &&Mixture| MixtureSpelling::of(mixture) == Some(from);
    for mixture in mixtures.values().filter(of_spelling) {
        for tensor in &mixture.tensors {
            let &[rows, columns] = tensor.info.shape.as_slice() else {
                continue;
            };
            let pieces = (0..mixture.n_experts).map(|expert| {
                let (key, first) = tensor.place(expert);
                Piece {
                    is_transposed: true,
                    ..Piece::of(key, first, columns)
                }
            });
            let (key, _) = tensor.place(0);
            let info = TensorInfo {
                dtype: tensor.info.dtype,
                shape: vec![mixture.n_experts, columns, rows],
            };
            infos.insert(key.clone(), info);
            made.insert(
                key,
                Arc::new(Arrangement {
                    pieces: pieces.collect(),
                }),
            );
        }
    }
    let viewed = source.tensors().map(|(name, info)| ViewedTensor {
        name: name.to_owned(),
        info: infos.get(name).unwrap_or(info).clone(),
        origin: match infos.contains_key(name) {
            true => Origin::Made(name.to_owned()),
            false => Origin::Same(name.to_owned()),
        },
    });
    let viewed = viewed.collect();
    let aliases = source.aliases().clone();
    Rearranged::view(source, viewed, aliases, Box::new(made))
}

/// The mixtures under the names of another spelling, experts together or apart as it has them.
fn renamed(
    source: Arc<Checkpoint>,
    mixtures: &Mixtures,
    to: MixtureSpelling,
) -> Result<Arc<Checkpoint>> {
    let row = to.row();
    let mut made: BTreeMap<String, Arc<Arrangement>> = BTreeMap::new();
    let mut viewed: BTreeMap<String, ViewedTensor> = BTreeMap::new();
    let mut add = |tensor: ViewedTensor| {
        let name = tensor.name.clone();
        match viewed.insert(name.clone(), tensor) {
            None => Ok(()),
            Some(_) => Err(ConversionFault::NameTaken {
                path: source.path().into(),
                key: name,
            }),
        }
    };
    let names: Vec<&str> = source.tensors().map(|(key, _)| key).collect();
    let mut moved: BTreeMap<String, String> = BTreeMap::new();
    for mixture in mixtures.values() {
        let from = match MixtureSpelling::of(mixture) {
            Some(from) if from != to => from.row(),
            _ => continue,
        };
        let host = with_last(&mixture.host, from.host, row.host);
        for (name, info, pieces) in experts(mixture, from, row, &host) {
            let origin = pieces.first().map(|piece| piece.key.clone());
            add(ViewedTensor {
                name: name.clone(),
                info,
                origin: Origin::Made(origin.unwrap_or_default()),
            })?;
            made.insert(name, Arc::new(Arrangement { pieces }));
        }
        for key in mixture.keys() {
            moved.insert(key, String::new());
        }
        for tensor in &mixture.router {
            let rest = within(&mixture.host, &tensor.key).unwrap_or_default();
            let rest = match rest {
                rest if rest == from.router => row.router,
                rest if from.host == row.host && from.router == row.router => rest,
                _ => return Err(no_place(&source, &tensor.key, row).into()),
            };
            moved.insert(tensor.key.clone(), format!("{host}.{rest}"));
        }
        if from.host != row.host {
            let start = format!("{}.", mixture.host);
            let mut beside = starting_with(&names, &start);
            if let Some(key) = beside.find(|key| !moved.contains_key(*key)) {
                return Err(no_place(&source, key, row).into());
            }
        }
    }
    for (key, info) in source.tensors() {
        let name = match moved.get(key).map(String::as_str) {
            // It is part of the made name.
            Some("") => continue,
            Some(name) => name,
            None => key,
        };
        add(ViewedTensor {
            name: name.to_owned(),
            info: info.clone(),
            origin: Origin::Same(key.to_owned()),
        })?;
    }
    let viewed = viewed.into_values().collect();
    let aliases = source.aliases().clone();
    Ok(Rearranged::view(source, viewed, aliases, Box::new(made)))
}

/// Those of sorted names that begin so.
pub(crate) fn starting_with<'n>(
    names: &'n [&'n str],
    start: &'n str,
) -> impl Iterator<Item = &'n str> {
    let first = names.partition_point(|name| *name < start);
    let after = names.get(first..).unwrap_or_default().iter().copied();
    after.take_while(move |name| name.starts_with(start))
}

fn no_place(source: &Checkpoint, key: &str, row: &Row) -> ConversionFault {
    ConversionFault::NoCounterpart {
        path: source.path().into(),
        key: key.to_owned(),
        target: row.name,
        why: "that spelling has a router and experts alone",
    }
}

/// A name with another last part.
fn with_last(host: &str, from: &str, to: &str) -> String {
    let start = host.strip_suffix(from).unwrap_or(host);
    format!("{start}{to}")
}

/// The tensors of the experts in another spelling: name, shape, and what each is made of.
fn experts(
    mixture: &Mixture,
    from: &Row,
    to: &Row,
    host: &str,
) -> Vec<(String, TensorInfo, Vec<Piece>)> {
    let n = mixture.n_experts;
    let of = |part: &str| mixture.tensors.iter().find(|tensor| tensor.part() == part);
    // Where gate, value and way out of an expert are: tensor, first element, rows, columns.
    let place = |expert: usize, which: usize| -> Option<(String, usize, usize, usize)> {
        match &from.experts {
            Names::Single(names) => {
                let tensor = of(names[which])?;
                let &[rows, columns] = tensor.info.shape.as_slice() else {
                    return None;
                };
                let (key, first) = tensor.place(expert);
                Some((key, first, rows, columns))
            }
            Names::Fused(names) => {
                let tensor = of(names[which / 2])?;
                let &[rows, columns] = tensor.info.shape.as_slice() else {
                    return None;
                };
                let (key, first) = tensor.place(expert);
                Some(match which {
                    0 => (key, first, rows / 2, columns),
                    1 => (key, first + rows / 2 * columns, rows / 2, columns),
                    _ => (key, first, rows, columns),
                })
            }
        }
    };
    let dtype = |which: usize| {
        let tensor = match &from.experts {
            Names::Single(names) => of(names[which]),
            Names::Fused(names) => of(names[which / 2]),
        };
        tensor.map(|tensor| tensor.info.dtype)
    };
    let piece = |(key, first, rows, _): (String, usize, usize, usize)| Piece::of(key, first, rows);
    let mut made = Vec::new();
    match &to.experts {
        Names::Single(names) => {
            for expert in 0..n {
                for (which, name) in names.iter().enumerate() {
                    let (Some(found), Some(dtype)) = (place(expert, which), dtype(which)) else {
                        continue;
                    };
                    let info = TensorInfo {
                        dtype,
                        shape: vec![found.2, found.3],
                    };
                    let name = format!("{host}.experts.{expert}.{name}");
                    made.push((name, info, vec![piece(found)]));
                }
            }
        }
        Names::Fused([gate_up, down]) => {
            for (name, parts) in [(gate_up, &[0, 1][..]), (down, &[2])] {
                let places: Vec<_> = (0..n)
                    .flat_map(|expert| parts.iter().map(move |&which| (expert, which)))
                    .filter_map(|(expert, which)| place(expert, which))
                    .collect();
                let (Some(dtype), Some((_, _, rows, columns))) = (dtype(parts[0]), places.first())
                else {
                    continue;
                };
                let info = TensorInfo {
                    dtype,
                    shape: vec![n, parts.len() * rows, *columns],
                };
                let within = match to.spelling {
                    MixtureSpelling::Granite => "",
                    _ => "experts.",
                };
                let pieces = places.into_iter().map(piece).collect();
                made.push((format!("{host}.{within}{name}"), info, pieces));
            }
        }
    }
    made
}

/// The spelling of the first mixture of a checkpoint that has one.
pub(crate) fn spelling_of(mixtures: &Mixtures) -> Option<MixtureSpelling> {
    mixtures.values().find_map(MixtureSpelling::of)
}
