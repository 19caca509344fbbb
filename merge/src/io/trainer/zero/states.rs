//! The model in the files of DeepSpeed: its states, and those of its optimizer.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::row::Flat;
use crate::io::torch::{Pickle, View};
use crate::io::trainer::open_torch;
use crate::io::trainer::pool::Pool;
use crate::io::{ObjectPath, PathSegment, TensorEntry, TensorSource};
use crate::{Result, ZeroFault};

/// Memory for what a file describes. It may repeat a name or a shape at no cost.
const LIMIT_BYTES: usize = 64 << 20;

/// The memory of a parameter beside its name and shape.
const PARAMETER_BYTES: usize = 64;

/// A parameter as a file describes it.
#[derive(Clone, Debug)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
}

impl Described {
    /// Its elements.
    pub(super) fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The model as one rank wrote it: names, shapes, buffers, and weights that are not updated.
pub(super) struct ModelStates {
    pub(super) path: PathBuf,
    pub(super) source: Box<dyn TensorSource>,
    /// Parameters of each group of the optimizer, in the order of its flat weights. `None` of a run without ZeRO.
    pub(super) groups: Option<Vec<Vec<Described>>>,
    pub(super) buffers: HashSet<String>,
    /// Parameters that are not updated, if the file describes them.
    pub(super) frozen: Vec<Described>,
    /// Names, each with another of the same parameter, which holds the values.
    pub(super) ties: Vec<(String, String)>,
}

impl ModelStates {
    pub(super) fn open(path: &Path, files: &Arc<Pool>) -> Result<Self> {
        let (source, objects) = open_torch(path, files)?;
        let mut file = Entries::of(path, &objects);
        if objects.view().get("ds_autoep_layers").is_some()
            || objects.view().get("autoep_layers").is_some()
        {
            return Err(experts(path));
        }
        if file.optional("module").is_none() {
            return Err(file.bad("module", None, "the tensors of the model"));
        }
        let groups = match file.optional("param_shapes") {
            None => None,
            Some(groups) => Some(file.groups(groups)?),
        };
        let frozen = match file.optional("frozen_param_shapes") {
            None => Vec::new(),
            Some(frozen) => file.described(frozen, "frozen_param_shapes")?,
        };
        Ok(Self {
            path: path.into(),
            groups,
            buffers: file.buffers()?,
            frozen,
            ties: file.ties()?,
            source,
        })
    }

    /// The tensors under an entry of the file, by their names within it.
    pub(super) fn under(&self, entry: &str) -> BTreeMap<String, usize> {
        under(self.source.tensors(), entry)
    }
}

/// Which of the stages' files these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Split {
    /// Stages 1 and 2: each group of weights is flat, and the ranks have equal parts of it.
    Groups,
    /// Stage 3: each parameter is flat, and the ranks have equal parts of it.
    Parameters,
}

/// The weights in full precision that a rank updates.
pub(super) struct OptimizerStates {
    pub(super) path: PathBuf,
    pub(super) source: Box<dyn TensorSource>,
    pub(super) split: Split,
    /// How many ranks there were, as this one says.
    pub(super) world: usize,
    /// The tensor of each group in the file, and its elements.
    groups: Vec<(usize, usize)>,
}

/// The dictionary of the states in the file of a rank.
const STATES: &str = "optimizer_state_dict";

impl OptimizerStates {
    pub(super) fn open(path: &Path, files: &Arc<Pool>) -> Result<Self> {
        let (source, objects) = open_torch(path, files)?;
        let file = Entries::of(path, &objects);
        let states =
            (objects.view().get(STATES)).ok_or_else(|| file.bad(STATES, None, "a dictionary"))?;
        if states.get("ds_zero_partition_groups").is_some() {
            return Err(experts(path));
        }
        let world = file.world(states)?;
        let splits = [
            ("fp32_flat_groups", Split::Parameters),
            ("single_partition_of_fp32_groups", Split::Groups),
        ];
        let found = splits
            .iter()
            .find_map(|(key, split)| Some((*key, *split, states.get(key)?)));
        let Some((key, split, listed)) = found else {
            let key = format!("{STATES}.{}", splits[1].0);
            return Err(file.bad(&key, None, "a list of flat weights"));
        };
        let wanted = || format!("{STATES}.{key}");
        let n_groups = (listed.elements())
            .map_err(|_| file.bad(&wanted(), Some(listed), "a list of flat weights"))?
            .len();
        let mut groups = Vec::with_capacity(n_groups);
        for (index, entry) in source.tensors().iter().enumerate() {
            if let [
                PathSegment::Key(states),
                PathSegment::Key(within),
                PathSegment::Index(group),
            ] = &entry.path.0[..]
                && states == STATES
                && within == key
                && usize::try_from(*group) == Ok(groups.len())
            {
                groups.push((index, entry.info.n_elements()));
            }
        }
        if groups.len() != n_groups {
            return Err(file.bad(&wanted(), None, "a list of one flat tensor per group"));
        }
        Ok(Self {
            path: path.into(),
            source,
            split,
            world,
            groups,
        })
    }

    /// Its groups, where the file is number `source`.
    pub(super) fn flats(&self, source: usize) -> impl ExactSizeIterator<Item = Flat> {
        self.groups.iter().map(move |&(tensor, n_elements)| Flat {
            source,
            tensor,
            n_elements,
        })
    }
}

/// The tensors under an entry of a file, by their names within it.
fn under(tensors: &[TensorEntry], entry: &str) -> BTreeMap<String, usize> {
    let within = |(index, tensor): (usize, &TensorEntry)| {
        let (root, rest) = tensor.path.0.split_first()?;
        let is_meant = matches!(root, PathSegment::Key(key) if key == entry) && !rest.is_empty();
        is_meant.then(|| (ObjectPath(rest.to_vec()).to_string(), index))
    };
    tensors.iter().enumerate().filter_map(within).collect()
}

fn experts(path: &Path) -> crate::Error {
    let part = "experts of a mixture";
    ZeroFault::OtherParallelism {
        path: path.into(),
        part,
    }
    .into()
}

/// The entries of a file, each of the kind that is expected.
struct Entries<'a> {
    path: &'a Path,
    root: View<'a>,
    /// Memory of the part that was read.
    n_bytes: usize,
}

impl<'a> Entries<'a> {
    fn of(path: &'a Path, objects: &'a Pickle) -> Self {
        Self {
            path,
            root: objects.view(),
            n_bytes: 0,
        }
    }

    /// Counts memory before it is taken.
    fn charge(&mut self, n_bytes: usize) -> Result<()> {
        self.n_bytes = self.n_bytes.saturating_add(n_bytes);
        match self.n_bytes <= LIMIT_BYTES {
            true => Ok(()),
            false => Err(ZeroFault::TooMuchMemory {
                path: self.path.into(),
                limit: LIMIT_BYTES,
            }
            .into()),
        }
    }

    fn bad(&self, entry: &str, found: Option<View<'_>>, wanted: &'static str) -> crate::Error {
        ZeroFault::BadEntry {
            path: self.path.into(),
            entry: entry.into(),
            found: found.map_or("missing", View::kind),
            wanted,
        }
        .into()
    }

    /// An entry of the file; `None` for Python's `None`, too.
    fn optional(&self, entry: &str) -> Option<View<'a>> {
        self.root.get(entry)
    }

    /// The parameters of each group: a list of dictionaries, or one dictionary as old versions wrote it.
    fn groups(&mut self, groups: View<'_>) -> Result<Vec<Vec<Described>>> {
        match groups.elements() {
            Err(_) => Ok(vec![self.described(groups, "param_shapes")?]),
            Ok(groups) => {
                let mut names = HashSet::new();
                self.charge(groups.len() * size_of::<Vec<Described>>())?;
                let mut described = Vec::with_capacity(groups.len());
                for group in groups {
                    let group = self.described(group, "param_shapes")?;
                    for parameter in &group {
                        if !names.insert(parameter.name.clone()) {
                            return Err(crate::Error::DuplicateKey {
                                path: self.path.into(),
                                key: parameter.name.clone(),
                            });
                        }
                    }
                    described.push(group);
                }
                Ok(described)
            }
        }
    }

    /// Names and shapes in a dictionary.
    fn described(&mut self, shapes: View<'_>, entry: &str) -> Result<Vec<Described>> {
        let wanted = "a dictionary of names and shapes";
        let shapes = (shapes.items()).map_err(|_| self.bad(entry, Some(shapes), wanted))?;
        let mut described = Vec::new();
        for (name, shape) in shapes {
            let name = (name.text()).map_err(|_| self.bad(entry, Some(shape), wanted))?;
            let sizes = (shape.shape())
                .map_err(|_| self.bad(&format!("{entry}.{name}"), Some(shape), "a shape"))?;
            self.charge(PARAMETER_BYTES + name.len() + size_of_val(&sizes[..]))?;
            described.push(Described {
                name: name.to_owned(),
                shape: sizes,
            });
        }
        Ok(described)
    }

    fn buffers(&mut self) -> Result<HashSet<String>> {
        let Some(names) = self.optional("buffer_names") else {
            return Ok(HashSet::new());
        };
        let wanted = "a list of names";
        let mut known = HashSet::new();
        let listed = names.elements();
        for name in listed.map_err(|_| self.bad("buffer_names", Some(names), wanted))? {
            let text = name.text();
            let text = text.map_err(|_| self.bad("buffer_names", Some(name), wanted))?;
            self.charge(PARAMETER_BYTES + text.len())?;
            known.insert(text.to_owned());
        }
        Ok(known)
    }

    fn ties(&mut self) -> Result<Vec<(String, String)>> {
        let Some(shared) = self.optional("shared_params") else {
            return Ok(Vec::new());
        };
        let (entry, wanted) = ("shared_params", "a dictionary of names");
        let mut ties = Vec::new();
        let listed = shared.items();
        for (name, of) in listed.map_err(|_| self.bad(entry, Some(shared), wanted))? {
            let pair = name.text().and_then(|name| Ok((name, of.text()?)));
            let (name, of) = pair.map_err(|_| self.bad(entry, Some(of), wanted))?;
            self.charge(PARAMETER_BYTES + name.len() + of.len())?;
            ties.push((name.to_owned(), of.to_owned()));
        }
        Ok(ties)
    }

    /// How many ranks there were: a number, or one for each group, which differ where there are experts.
    fn world(&self, states: View<'_>) -> Result<usize> {
        let entry = format!("{STATES}.partition_count");
        let wanted = "a number of ranks";
        let count =
            (states.get("partition_count")).ok_or_else(|| self.bad(&entry, None, wanted))?;
        let number = |count: View<'_>| {
            let number = count
                .count()
                .ok()
                .and_then(|number| usize::try_from(number).ok());
            number
                .filter(|number| *number > 0)
                .ok_or_else(|| self.bad(&entry, Some(count), wanted))
        };
        let Ok(counts) = count.elements() else {
            return number(count);
        };
        let mut first = None;
        for count in counts {
            let number = number(count)?;
            if *first.get_or_insert(number) != number {
                return Err(experts(self.path));
            }
        }
        first.ok_or_else(|| self.bad(&entry, Some(count), wanted))
    }
}
