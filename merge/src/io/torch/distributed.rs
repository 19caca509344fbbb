//! Tensors of which a file holds a part, as FSDP and tensor parallelism leave them: which part it is.
//!
//! A `DTensor` says how it is placed on a mesh of devices and where on the mesh its file's process was. A
//! `ShardedTensor` says where its boxes begin. Nothing of torch's is run: both are read from their attributes.
//! Source: `torch/distributed/tensor/_utils.py` and `placement_types.py`, `_shard/sharded_tensor/` of torch 2.4 to 2.9.

use std::collections::HashMap;
use std::rc::Rc;

use super::fault::PickleFault;
use super::typed::View;
use super::value::{Arena, DistributedKind, Id};

/// Devices of meshes and boxes of tensors that are read of one file, each as often as it is referred to.
const LIMIT: usize = 1 << 22;

/// The part of a tensor that a file holds.
#[derive(Debug)]
pub(crate) struct Part {
    /// The shape of the whole.
    pub(crate) shape: Vec<usize>,
    /// The process that held it.
    pub(crate) rank: usize,
    /// The processes that hold the tensor together; `None` if the file does not say.
    pub(crate) ranks: Option<Rc<[usize]>>,
    /// How many processes there were, if the file says it.
    pub(crate) world: Option<usize>,
    /// Its boxes: index into [`Arena::tensors`], and where the box begins in the whole.
    pub(crate) boxes: Vec<(u32, Vec<usize>)>,
}

/// Why a part is not understood.
#[derive(Debug)]
pub(crate) enum PartFault {
    /// An attribute is missing, or not of its type.
    Value(PickleFault),
    /// The placement, as torch writes it, is none that can be undone.
    Placement(String),
    /// The process is at no place, or outside, of its mesh.
    Coordinates,
    /// The box has another size than its placement gives it.
    Size {
        found: Vec<usize>,
        wanted: Vec<usize>,
    },
}

impl From<PickleFault> for PartFault {
    fn from(fault: PickleFault) -> Self {
        Self::Value(fault)
    }
}

/// A mesh of devices as one process sees it.
struct Mesh {
    shape: Vec<usize>,
    /// The processes, row-major.
    ranks: Rc<[usize]>,
    coordinates: Vec<usize>,
    /// The own process.
    rank: usize,
}

/// Reads the parts of a file, whose meshes are shared by many tensors.
pub(crate) struct Parts {
    /// The process whose file it is, if that is known.
    rank: Option<usize>,
    /// Devices and boxes so far.
    n_read: usize,
    meshes: HashMap<usize, Rc<Mesh>>,
}

impl Parts {
    pub(crate) fn new(rank: Option<usize>) -> Self {
        Self {
            rank,
            n_read: 0,
            meshes: HashMap::new(),
        }
    }

    /// The part of the tensor `id`, a [`Value::Distributed`](super::value::Value::Distributed).
    pub(crate) fn part(&mut self, arena: &Arena, id: Id) -> Result<Part, PartFault> {
        let view = View::new(arena, id);
        match view.distributed()?.kind {
            DistributedKind::DTensor => self.of_dtensor(view),
            DistributedKind::ShardedTensor => self.of_sharded_tensor(view),
        }
    }

    /// Counts the bytes that are going to be read.
    fn count(&mut self, n: usize) -> Result<(), PartFault> {
        self.n_read = self.n_read.saturating_add(n);
        match self.n_read <= LIMIT {
            true => Ok(()),
            false => Err(PickleFault::TooManyObjects {
                limit: LIMIT as u64,
            }
            .into()),
        }
    }

    fn of_dtensor(&mut self, view: View<'_>) -> Result<Part, PartFault> {
        let local = view.attribute("_local_tensor")?;
        let spec = view.attribute("_spec")?;
        let mesh = spec
            .attribute("mesh")
            .or_else(|_| spec.attribute("device_mesh"))?;
        let mesh = match self.meshes.get(&mesh.identity()) {
            Some(known) => known.clone(),
            None => {
                for list in ["_flatten_mesh_list", "_flatten_rank_map"] {
                    let list = mesh.find(list).map(|list| list.elements()).transpose()?;
                    self.count(list.map_or(0, |list| list.len()))?;
                }
                let read = Rc::new(mesh_of(mesh, self.rank)?);
                self.meshes.insert(mesh.identity(), read.clone());
                read
            }
        };
        // A named tuple: shape, stride, dtype.
        let meta = spec.attribute("tensor_meta")?;
        let shape = (meta.argument(0))
            .or_else(|_| meta.attribute("shape"))?
            .sizes()?;
        let placements = spec.attribute("placements")?.elements()?;
        if placements.len() != mesh.shape.len() {
            return Err(PartFault::Coordinates);
        }
        let placements: Vec<Placement> = placements.map(placement).collect::<Result<_, _>>()?;
        let order = order_of(&placements, &mesh.shape, spec.find("shard_order"))?;
        let (start, size) = place(&shape, &mesh, &order)?;
        let found = local.tensor_sizes()?;
        if found != size {
            return Err(PartFault::Size {
                found: found.to_vec(),
                wanted: size,
            });
        }
        Ok(Part {
            shape,
            rank: mesh.rank,
            ranks: Some(mesh.ranks.clone()),
            world: None,
            boxes: vec![(local.tensor()?, start)],
        })
    }

    /// Boxes as each says it. The state is `(boxes, metadata, processes, specification, ...)`.
    fn of_sharded_tensor(&mut self, view: View<'_>) -> Result<Part, PartFault> {
        let state: Vec<View<'_>> = view.state_of_tensor()?.elements()?.take(3).collect();
        let &[local, metadata, processes] = &state[..] else {
            return Err(PickleFault::NoAttribute { name: "_metadata" }.into());
        };
        let shape = metadata.attribute("size")?.sizes()?;
        let mut boxes = Vec::new();
        self.count(local.elements()?.len())?;
        for part in local.elements()? {
            let place = part.attribute("metadata")?;
            let tensor = part.attribute("tensor")?;
            let (start, size) = (
                place.attribute("shard_offsets")?.sizes()?,
                place.attribute("shard_sizes")?.sizes()?,
            );
            let found = tensor.tensor_sizes()?;
            if found != size {
                return Err(PartFault::Size {
                    found: found.to_vec(),
                    wanted: size,
                });
            }
            boxes.push((tensor.tensor()?, start));
        }
        Ok(Part {
            shape,
            rank: processes.attribute("global_rank")?.count()? as usize,
            ranks: None,
            world: Some(processes.attribute("global_world_size")?.count()? as usize),
            boxes,
        })
    }
}

/// A mesh from its attributes: up to torch 2.9 the tensor of its processes, of which only the shape is needed, and
/// their list; later a layout of strides over the list of all processes.
fn mesh_of(mesh: View<'_>, rank: Option<usize>) -> Result<Mesh, PartFault> {
    let coordinates = mesh.attribute("_coordinate_on_dim")?.sizes()?;
    let layout = mesh.find("_layout");
    let shape = match (mesh.find("mesh"), layout) {
        (Some(tensor), _) => tensor.tensor_sizes()?.to_vec(),
        (None, Some(layout)) => int_or_ints(layout.attribute("shape")?)?,
        (None, None) => mesh.attribute("mesh")?.tensor_sizes()?.to_vec(),
    };
    let n = shape
        .iter()
        .try_fold(1usize, |n, size| n.checked_mul(*size));
    let is_inside = shape.len() == coordinates.len()
        && shape.iter().zip(&coordinates).all(|(size, at)| at < size);
    let n = match n.filter(|_| is_inside) {
        Some(n) => n,
        None => return Err(PartFault::Coordinates),
    };
    let place = |at: &[usize]| {
        shape
            .iter()
            .zip(at)
            .fold(0, |place, (size, at)| place * size + at)
    };
    if let Some(list) = mesh.find("_flatten_mesh_list") {
        let ranks = list.counts()?;
        if ranks.len() != n {
            return Err(PartFault::Coordinates);
        }
        return Ok(Mesh {
            rank: ranks[place(&coordinates)],
            ranks: ranks.into(),
            shape,
            coordinates,
        });
    }
    // The list of all processes, and the part of it that has this one at its coordinates.
    let all = mesh.attribute("_flatten_rank_map")?.counts()?;
    if n > all.len() {
        return Err(PartFault::Coordinates);
    }
    let strides = int_or_ints(mesh.attribute("_layout")?.attribute("stride")?)?;
    let sum = |at: &[usize]| -> Option<usize> {
        let mut axes = strides.iter().zip(at);
        axes.try_fold(0usize, |sum, (stride, at)| {
            sum.checked_add(stride.checked_mul(*at)?)
        })
    };
    let offsets: Option<Vec<usize>> = (0..n)
        .map(|number| {
            let mut rest = number;
            let mut at = vec![0; shape.len()];
            for (at, size) in at.iter_mut().zip(&shape).rev() {
                *at = rest % size;
                rest /= size;
            }
            sum(&at)
        })
        .collect();
    let (Some(offsets), true) = (offsets, strides.len() == shape.len()) else {
        return Err(PartFault::Coordinates);
    };
    // A part of all begins where the own process has its coordinates.
    let begin = match (all.len() == n, rank) {
        (true, _) => Some(0),
        (false, None) => None,
        (false, Some(rank)) => {
            let own = all.iter().position(|other| *other == rank);
            own.and_then(|own| own.checked_sub(offsets[place(&coordinates)]))
        }
    };
    let begin = begin.ok_or(PartFault::Coordinates)?;
    let ranks: Option<Vec<usize>> = (offsets.iter())
        .map(|at| all.get(begin.checked_add(*at)?).copied())
        .collect();
    let ranks = ranks.ok_or(PartFault::Coordinates)?;
    Ok(Mesh {
        rank: ranks[place(&coordinates)],
        ranks: ranks.into(),
        shape,
        coordinates,
    })
}

fn int_or_ints(view: View<'_>) -> Result<Vec<usize>, PickleFault> {
    match view.count() {
        Ok(one) => Ok(vec![one as usize]),
        Err(_) => view.sizes(),
    }
}

/// How a tensor lies along one axis of the mesh.
enum Placement {
    /// Every device has all of it.
    Replicate,
    /// Each device has a part along this axis of the tensor.
    Shard(usize),
    /// The same, after the axes of the mesh behind it have been given theirs: `split_factor` parts.
    Strided { axis: usize, split_factor: usize },
}

fn placement(view: View<'_>) -> Result<Placement, PartFault> {
    let class = view.class()?;
    let axis = || -> Result<usize, PickleFault> {
        let dim = view.attribute("dim").or_else(|_| view.argument(0))?;
        Ok(dim.count()? as usize)
    };
    match &*class.name {
        "Replicate" => Ok(Placement::Replicate),
        "Shard" => Ok(Placement::Shard(axis()?)),
        "_StridedShard" => {
            let factor = view
                .attribute("split_factor")
                .or_else(|_| view.argument(1))?;
            Ok(Placement::Strided {
                axis: axis()?,
                split_factor: factor.count()? as usize,
            })
        }
        other => Err(PartFault::Placement(other.to_owned())),
    }
}

/// Axes of the mesh that cut the tensor, each with the axis that it cuts, in the order in which they cut. A strided one
/// cuts after the next plain one of the same axis, which makes as many parts as its factor says.
fn order_of(
    placements: &[Placement],
    mesh: &[usize],
    shard_order: Option<View<'_>>,
) -> Result<Vec<(usize, usize)>, PartFault> {
    let strided = |axis, factor| {
        let said = format!("_StridedShard(dim={axis}, split_factor={factor})");
        PartFault::Placement(said)
    };
    let (mut order, mut waiting) = (Vec::new(), Vec::new());
    for (mesh_axis, placement) in placements.iter().enumerate() {
        match *placement {
            Placement::Replicate => {}
            Placement::Strided { axis, split_factor } => {
                waiting.push((mesh_axis, axis, split_factor));
            }
            Placement::Shard(axis) => {
                order.push((mesh_axis, axis));
                let mut n_parts = mesh[mesh_axis];
                for &(mesh_axis, _, factor) in
                    waiting.iter().rev().filter(|(_, its, _)| *its == axis)
                {
                    if factor != n_parts {
                        return Err(strided(axis, factor));
                    }
                    order.push((mesh_axis, axis));
                    n_parts = n_parts.saturating_mul(mesh[mesh_axis]);
                }
                waiting.retain(|(_, its, _)| *its != axis);
            }
        }
    }
    if let Some(&(_, axis, factor)) = waiting.first() {
        return Err(strided(axis, factor));
    }
    // Later versions may say an order of their own, per axis of the tensor: read if it is the usual one.
    if let Some(shard_order) = shard_order.filter(|order| !order.is_none()) {
        for entry in shard_order.elements()? {
            let axes = (entry.argument(1))
                .or_else(|_| entry.attribute("mesh_dims"))?
                .sizes()?;
            if !axes.is_sorted() {
                return Err(PartFault::Placement(format!(
                    "shards in the order {axes:?}"
                )));
            }
        }
    }
    Ok(order)
}

/// The box of a process: where it begins and its size. Each cut gives parts of the rounded-up size as long as there are
/// rows, so that the last ones may be smaller or empty.
fn place(
    shape: &[usize],
    mesh: &Mesh,
    order: &[(usize, usize)],
) -> Result<(Vec<usize>, Vec<usize>), PartFault> {
    let (mut start, mut size) = (vec![0; shape.len()], shape.to_vec());
    for &(mesh_axis, axis) in order {
        let Some(whole) = size.get(axis).copied() else {
            let said = format!("Shard({axis}) of the shape {shape:?}");
            return Err(PartFault::Placement(said));
        };
        let part = whole.div_ceil(mesh.shape[mesh_axis]);
        let begin = whole.min(part.saturating_mul(mesh.coordinates[mesh_axis]));
        start[axis] += begin;
        size[axis] = part.min(whole - begin);
    }
    Ok((start, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The box of the process at `at` on a mesh.
    fn placed(
        shape: &[usize],
        mesh: &[usize],
        placements: &[Placement],
        at: &[usize],
    ) -> (Vec<usize>, Vec<usize>) {
        let order = order_of(placements, mesh, None).expect("an order");
        let mesh = Mesh {
            shape: mesh.to_vec(),
            ranks: Rc::from([0; 0]),
            coordinates: at.to_vec(),
            rank: 0,
        };
        place(shape, &mesh, &order).expect("a box")
    }

    #[test]
    fn the_last_parts_are_smaller_or_empty() {
        // torch.chunk gives 2, 2, 1 and no rows of 5 to 4 ranks.
        let rows = |at| placed(&[5, 3], &[4], &[Placement::Shard(0)], &[at]);
        assert_eq!(rows(0), (vec![0, 0], vec![2, 3]));
        assert_eq!(rows(2), (vec![4, 0], vec![1, 3]));
        assert_eq!(rows(3), (vec![5, 0], vec![0, 3]));
    }

    #[test]
    fn two_axes_of_the_mesh_cut_one_after_the_other() {
        use Placement::{Replicate, Shard, Strided};
        let both = [Shard(0), Shard(0)];
        assert_eq!(placed(&[10], &[2, 2], &both, &[1, 0]), (vec![5], vec![3]));
        // FSDP over tensor parallelism: the second axis cuts first.
        let strided = Strided {
            axis: 0,
            split_factor: 2,
        };
        let turned = [strided, Shard(0)];
        assert_eq!(placed(&[10], &[2, 2], &turned, &[1, 0]), (vec![3], vec![2]));
        assert_eq!(placed(&[10], &[2, 2], &turned, &[0, 1]), (vec![5], vec![3]));
        let other = [Replicate, Shard(1)];
        assert_eq!(
            placed(&[4, 6], &[2, 3], &other, &[1, 2]),
            (vec![0, 4], vec![4, 2])
        );
    }

    #[test]
    fn a_strided_part_without_what_it_is_strided_over_is_refused() {
        let strided = |split_factor| Placement::Strided {
            axis: 0,
            split_factor,
        };
        for placements in [
            [strided(2), Placement::Replicate],
            [strided(3), Placement::Shard(0)],
            [Placement::Shard(0), strided(2)],
        ] {
            assert!(order_of(&placements, &[2, 2], None).is_err());
        }
    }
}
