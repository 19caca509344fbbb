//! The axes of a model's tensors, and the permutations that move them together.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::roles::{Axis, Row, SPELLINGS, Tower, fits};
use crate::mixtures::{Arrangement, Piece};
use crate::recipe::AlignPart as Parts;
use crate::{Checkpoint, Expert, Layout, MergeFault, Result, Role, model_config};

/// Things that are permuted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Its name in reports.
    pub name: String,
    /// Its kind.
    pub part: Parts,
    /// The number of things.
    pub n: usize,
    /// The number of them that stay together: heads of queries that share a head of keys; 1 otherwise.
    pub shared: usize,
}

impl Group {
    /// Heads of keys, or as many as there are things.
    pub(super) fn n_outer(&self) -> usize {
        self.n / self.shared
    }
}

/// A stretch of an axis that holds the things of a group, `len` numbers each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// The number of the group.
    pub group: usize,
    /// The first number.
    pub start: usize,
    /// Numbers of each.
    pub len: usize,
    /// Whether there is one for each head of keys alone.
    pub is_outer: bool,
}

/// A tensor with axes that move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    pub key: String,
    pub shape: Vec<usize>,
    /// The name under which passes record what runs along its last axis: the inputs of a linear layer.
    pub input: Option<String>,
    /// For each axis what of it moves.
    pub axes: Vec<Vec<Segment>>,
}

/// The permutations of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    pub(super) groups: Vec<Group>,
    pub(super) tensors: Vec<Tensor>,
}

/// Sizes that a tower's tensors do not tell by themselves.
struct Sizes {
    n_blocks: usize,
    n_heads: Option<usize>,
    n_key_heads: Option<usize>,
}

impl Network {
    /// The groups of these kinds in a model, by the names of its tensors.
    ///
    /// # Errors
    /// [`MergeFault::NotPermutable`] for a model of no known spelling, for a tensor whose place in the residual stream
    /// nothing tells, for heads whose number nothing tells, and for sizes that do not fit.
    pub(crate) fn of(model: &Checkpoint, layout: &dyn Layout, wanted: &[Parts]) -> Result<Self> {
        let fault = |key: &str, why: String| MergeFault::NotPermutable {
            model: model.path().into(),
            key: key.to_owned(),
            why,
        };
        let slots = slots(model, layout)?;
        let names: Vec<&str> = slots.values().map(|slot| slot.name.as_str()).collect();
        let has = |sign: &str| names.iter().find_map(|name| begins(name, sign));
        let spelling = SPELLINGS.iter().find(|spelling| {
            spelling
                .towers
                .iter()
                .any(|tower| has(tower.sign).is_some())
        });
        let spelling = spelling.ok_or_else(|| {
            let why = "no spelling of transformers that `align` knows has such names";
            fault(names.first().copied().unwrap_or(""), why.to_owned())
        })?;
        let mut towers: Vec<(&Tower, String, Sizes)> = Vec::new();
        for tower in spelling.towers {
            if let Some(prefix) = has(tower.sign) {
                towers.push((tower, prefix, sizes(model, layout, tower.stack)?));
            }
        }
        let mut network = Self {
            groups: Vec::new(),
            tensors: Vec::new(),
        };
        let mut known: BTreeMap<Id, usize> = BTreeMap::new();
        for (key, slot) in &slots {
            let name = slot.name.as_str();
            let info = model.require(key)?;
            let found = towers.iter().find_map(|(tower, prefix, sizes)| {
                let rank = info.shape.len();
                let own = name.strip_prefix(prefix.as_str());
                let fitting = |rows: &'static [Row], name: &str| {
                    rows.iter()
                        .filter(|row| row.axes.len() == rank)
                        .find_map(|row| Some((row, fits(row.name, name)?)))
                };
                let row = own.and_then(|name| fitting(tower.rows, name));
                let (row, block) = row.or_else(|| fitting(tower.outer, name))?;
                Some((tower.stack, sizes, row, block))
            });
            let Some((stack, sizes, row, block)) = found else {
                if wanted.contains(&Parts::Width) {
                    let why = "nothing tells its place in the residual stream; `align: { of: [units, heads] }` leaves \
                               the stream in its order";
                    return Err(fault(key, why.to_owned()).into());
                }
                continue;
            };
            let place = Place {
                stack,
                block,
                expert: slot.expert,
            };
            let mut axes = Vec::with_capacity(row.axes.len());
            for (axis, &length) in row.axes.iter().zip(&info.shape) {
                if !axis.part().is_some_and(|part| wanted.contains(&part)) {
                    axes.push(Vec::new());
                    continue;
                }
                let segments =
                    segments(*axis, length, &place, sizes).map_err(|why| fault(key, why))?;
                let mut own = Vec::with_capacity(segments.len());
                for (id, part, n, shared, segment) in segments {
                    let index = match known.get(&id) {
                        Some(&index) => index,
                        None => {
                            network.groups.push(Group {
                                name: id.name(layout),
                                part,
                                n,
                                shared,
                            });
                            known.insert(id, network.groups.len() - 1);
                            network.groups.len() - 1
                        }
                    };
                    let group = &network.groups[index];
                    if (group.n, group.shared) != (n, shared) {
                        let why = format!("has {n} of what others have {} of", group.n);
                        return Err(fault(key, why).into());
                    }
                    own.push(Segment {
                        group: index,
                        ..segment
                    });
                }
                axes.push(own);
            }
            if axes.iter().any(|axis| !axis.is_empty()) {
                network.tensors.push(Tensor {
                    key: key.clone(),
                    shape: info.shape.clone(),
                    input: slot.input.clone(),
                    axes,
                });
            }
        }
        network.groups_in_order();
        match network.groups.is_empty() {
            true => {
                let why = "it has nothing of what `align` is to bring into order";
                Err(fault("", why.to_owned()).into())
            }
            false => Ok(network),
        }
    }

    /// Puts the residual streams first, then heads and units block by block: the first matches rest on the most numbers.
    fn groups_in_order(&mut self) {
        let mut order: Vec<usize> = (0..self.groups.len()).collect();
        order.sort_by_key(|&index| (self.groups[index].part != Parts::Width, index));
        let mut places = vec![0; order.len()];
        for (to, &from) in order.iter().enumerate() {
            places[from] = to;
        }
        self.groups = order
            .iter()
            .map(|&from| self.groups[from].clone())
            .collect();
        for segment in self
            .tensors
            .iter_mut()
            .flat_map(|of| of.axes.iter_mut().flatten())
        {
            segment.group = places[segment.group];
        }
    }

    /// The groups.
    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Every tensor that moves.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &String> {
        self.tensors.iter().map(|tensor| &tensor.key)
    }

    /// The sources of each tensor when the things of each group stand in these orders.
    pub(crate) fn arranged(&self, orders: &[Vec<u32>]) -> Vec<(String, Arc<Arrangement>)> {
        let of = |tensor: &Tensor| {
            let last = tensor.shape.len() - 1;
            let row_elements = tensor.shape[last].max(1);
            let n_rows = tensor.shape.iter().product::<usize>() / row_elements;
            let mut piece = Piece::of(tensor.key.clone(), 0, n_rows);
            if !tensor.axes[last].is_empty() {
                piece.columns = Some(self.order(tensor, last, orders).into());
            }
            // Other axes move as whole rows of the last.
            if tensor.axes[..last].iter().any(|axis| !axis.is_empty()) {
                let mut rows: Vec<u32> = vec![0];
                for axis in 0..last {
                    let n = tensor.shape[axis] as u32;
                    let order = self.order(tensor, axis, orders);
                    rows = rows
                        .iter()
                        .flat_map(|row| order.iter().map(move |at| row * n + at))
                        .collect();
                }
                piece.rows = Some(rows.into());
            }
            let pieces = vec![piece];
            (tensor.key.clone(), Arc::new(Arrangement { pieces }))
        };
        self.tensors.iter().map(of).collect()
    }

    /// The origin of each number of an axis when the things of each group stand in these orders.
    pub(super) fn order(&self, tensor: &Tensor, axis: usize, orders: &[Vec<u32>]) -> Vec<u32> {
        let mut order: Vec<u32> = (0..tensor.shape[axis] as u32).collect();
        for segment in &tensor.axes[axis] {
            let group = &self.groups[segment.group];
            let units = &orders[segment.group];
            let outer: Vec<u32>;
            let units = match segment.is_outer {
                true => {
                    let firsts = units.iter().step_by(group.shared);
                    outer = firsts.map(|unit| unit / group.shared as u32).collect();
                    &outer
                }
                false => units,
            };
            for (to, &from) in units.iter().enumerate() {
                for within in 0..segment.len {
                    let to = segment.start + to * segment.len + within;
                    let from = segment.start + from as usize * segment.len + within;
                    order[to] = from as u32;
                }
            }
        }
        order
    }
}

/// The keys of tables.
struct Slot {
    /// The name.
    name: String,
    expert: Option<Expert>,
    /// The name under which passes record the layer's inputs.
    input: Option<String>,
}

/// All tensors of floats that a loader does not rebuild.
fn slots(model: &Checkpoint, layout: &dyn Layout) -> Result<BTreeMap<String, Slot>> {
    let mut slots = BTreeMap::new();
    for (key, info) in model.tensors() {
        if !info.dtype.is_float() {
            continue;
        }
        let (slot, expert) = match layout.role(key)? {
            Role::Shared(slot) | Role::Routing(slot) => (slot, None),
            Role::Expert { expert, slot } => (slot, Some(expert)),
            Role::Alias { .. } | Role::Derived => continue,
        };
        let slot = Slot {
            input: layout.gram_key(&slot, expert),
            name: slot.key,
            expert,
        };
        slots.insert(key.to_owned(), slot);
    }
    Ok(slots)
}

/// The text before a sign at the end of a name.
fn begins(name: &str, sign: &str) -> Option<String> {
    let prefix = name.strip_suffix(sign)?;
    (prefix.is_empty() || prefix.ends_with('.')).then(|| prefix.to_owned())
}

/// The place of a tensor.
struct Place {
    stack: u8,
    block: Option<usize>,
    expert: Option<Expert>,
}

/// The mark of a group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Id {
    Width(u8),
    Heads(u8, usize),
    Units(u8, usize, Option<Expert>),
}

impl Id {
    fn name(self, layout: &dyn Layout) -> String {
        let stacks = &layout.dimensions().stacks;
        let stack = |stack: u8| match stacks.get(usize::from(stack)) {
            Some(found) if stacks.len() > 1 => format!(" of {}", found.name),
            _ => String::new(),
        };
        match self {
            Self::Width(of) => format!("residual stream{}", stack(of)),
            Self::Heads(of, block) => format!("heads of block {block}{}", stack(of)),
            Self::Units(of, block, None) => format!("units of block {block}{}", stack(of)),
            Self::Units(of, block, Some(expert)) => {
                format!("units of block {block}{}, {expert}", stack(of))
            }
        }
    }
}

fn sizes(model: &Checkpoint, layout: &dyn Layout, stack: u8) -> Result<Sizes> {
    let stacks = &layout.dimensions().stacks;
    let own = stacks.get(usize::from(stack)).or(stacks.first());
    let config = model_config::of(model)?;
    let setting = |key: &str| {
        let found = model_config::setting(config.as_ref()?, key)?.as_u64()?;
        usize::try_from(found).ok()
    };
    let said = own.and_then(|own| own.n_heads);
    let n_heads = said.or_else(|| setting("num_attention_heads"));
    Ok(Sizes {
        n_blocks: own.map_or(0, |own| own.n_blocks),
        n_heads,
        n_key_heads: match said {
            Some(heads) => Some(heads),
            None => setting("num_key_value_heads").or(n_heads),
        },
    })
}

type Found = (Id, Parts, usize, usize, Segment);

/// The stretches of an axis that move; the fault where sizes do not fit.
fn segments(
    axis: Axis,
    length: usize,
    place: &Place,
    sizes: &Sizes,
) -> std::result::Result<Vec<Found>, String> {
    let segment = |start, len, is_outer| Segment {
        group: 0,
        start,
        len,
        is_outer,
    };
    let block = place.block.unwrap_or(0);
    let heads = || {
        match (sizes.n_heads, sizes.n_key_heads) {
        (Some(heads), Some(keys)) if keys > 0 && heads.is_multiple_of(keys) => Ok((heads, keys)),
        (Some(heads), Some(keys)) => Err(format!("{heads} heads cannot share {keys} heads of keys")),
        _ => Err(
            "nothing tells the number of its heads: `num_attention_heads` of a config.json beside the model would"
                .to_owned(),
        ),
    }
    };
    let divided = |n: usize| match n > 0 && length.is_multiple_of(n) {
        true => Ok(length / n),
        false => Err(format!(
            "has {length} numbers, which {n} heads cannot share"
        )),
    };
    let of_block = |block: usize, n: usize, keys: usize, segment: Segment| {
        let id = Id::Heads(place.stack, block);
        (id, Parts::Heads, n, n / keys, segment)
    };
    Ok(match axis {
        Axis::Fixed => Vec::new(),
        Axis::Width => {
            let id = Id::Width(place.stack);
            vec![(id, Parts::Width, length, 1, segment(0, 1, false))]
        }
        Axis::Units => {
            let id = Id::Units(place.stack, block, place.expert);
            vec![(id, Parts::Units, length, 1, segment(0, 1, false))]
        }
        Axis::Halves => {
            let id = Id::Units(place.stack, block, place.expert);
            let n = length / 2;
            let half = |start| (id, Parts::Units, n, 1, segment(start, 1, false));
            vec![half(0), half(n)]
        }
        Axis::Heads => {
            let (heads, keys) = heads()?;
            vec![of_block(
                block,
                heads,
                keys,
                segment(0, divided(heads)?, false),
            )]
        }
        Axis::KeyHeads => {
            let (heads, keys) = heads()?;
            vec![of_block(
                block,
                heads,
                keys,
                segment(0, divided(keys)?, true),
            )]
        }
        Axis::Packed => {
            let (heads, _) = heads()?;
            let len = divided(3 * heads)?;
            let part = |part| {
                let segment = segment(part * heads * len, len, false);
                of_block(block, heads, heads, segment)
            };
            (0..3).map(part).collect()
        }
        Axis::HeadsOfBlocks => {
            let (heads, _) = heads()?;
            if length != heads * sizes.n_blocks {
                let n = sizes.n_blocks;
                return Err(format!(
                    "has {length} numbers, not one for each of {heads} heads of {n} blocks"
                ));
            }
            let of = |block| of_block(block, heads, heads, segment(block * heads, 1, false));
            (0..sizes.n_blocks).map(of).collect()
        }
    })
}
