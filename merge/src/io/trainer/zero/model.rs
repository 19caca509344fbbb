//! The model that all files of a tag are together.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::row::{Flat, Row, share};
use super::states::{Described, ModelStates, OptimizerStates};
use super::{Universal, over_ranks};
use crate::io::assembled::{Assembled, InPieces, Piece};
use crate::io::widened::Widened;
use crate::io::{Aliases, Container, OpenOptions, Root, SourceInfo, TensorEntry, TensorSource};
use crate::{DType, Error, Result, TensorInfo, ZeroFault};

/// The reason why ranks fill up their parts of a group: its elements are a multiple of twice the number of ranks.
const ALIGNMENT_PER_RANK: usize = 2;

/// The entry of the file that holds the tensors of the model.
const MODULE: &str = "module";

/// The entry with parameters that are not updated.
const FROZEN: &str = "frozen_param_fragments";

/// The prefix that Lightning puts before the names of a model.
const FORWARD_MODULE: &str = "_forward_module.";

/// A model that is being put together.
pub(super) struct Model {
    folder: PathBuf,
    states: ModelStates,
    /// Those of the ranks after the first, where they are needed.
    others: Vec<ModelStates>,
    /// The files of what the ranks update.
    updated: Vec<Box<dyn TensorSource>>,
    tensors: Vec<InPieces>,
    names: HashSet<String>,
    /// Whether parameters have their values elsewhere, and stand in the module without elements.
    is_split: bool,
}

impl Model {
    /// Sources are numbered: the model states of the first rank, of the others, then the files of what they update.
    pub(super) fn new(folder: &Path, states: ModelStates, others: Vec<ModelStates>) -> Self {
        Self {
            folder: folder.into(),
            states,
            others,
            updated: Vec::new(),
            tensors: Vec::new(),
            names: HashSet::new(),
            is_split: false,
        }
    }

    /// The number of the first file of what the ranks update, among the sources.
    fn first_updated(&self) -> usize {
        1 + self.others.len()
    }

    fn groups(&mut self) -> Result<Vec<Vec<Described>>> {
        (self.states.groups.take()).ok_or_else(|| {
            ZeroFault::BadEntry {
                path: self.states.path.clone(),
                entry: "param_shapes".into(),
                found: "missing",
                wanted: "a list of names and shapes",
            }
            .into()
        })
    }

    /// Adds what the ranks update in stages 1 and 2.
    pub(super) fn add_groups(&mut self, optimizers: Vec<OptimizerStates>) -> Result<()> {
        let groups = self.groups()?;
        let first_source = self.first_updated();
        for states in &optimizers {
            check_count(states, groups.len())?;
        }
        for (number, group) in groups.into_iter().enumerate() {
            let row = over_ranks(&optimizers, number, first_source);
            let wanted = (group.iter()).fold(0usize, |n, one| n.saturating_add(one.n_elements()));
            let alignment = ALIGNMENT_PER_RANK * optimizers.len();
            let found = row.n_elements();
            let is_filled =
                wanted <= found && found.div_ceil(alignment) == wanted.div_ceil(alignment);
            if !is_filled {
                return Err(ZeroFault::GroupSize {
                    folder: self.folder.clone(),
                    group: number,
                    n_tensors: group.len(),
                    found,
                    wanted,
                }
                .into());
            }
            let dtype = dtype_of(&optimizers[0], number);
            let mut first = 0;
            for parameter in group {
                let n = parameter.n_elements();
                let pieces = row.pieces(first, n, 0, n);
                first += n;
                self.add(parameter, dtype, pieces)?;
            }
        }
        self.updated = optimizers.into_iter().map(|states| states.source).collect();
        self.add_all_frozen()
    }

    /// Adds the parameters of a universal checkpoint, each of which has a file.
    pub(super) fn add_universal(
        &mut self,
        parameters: Vec<Universal>,
        is_split: bool,
    ) -> Result<()> {
        self.is_split = is_split;
        let first_source = self.first_updated();
        for (number, of) in parameters.into_iter().enumerate() {
            let info = of.source.tensors()[of.tensor].info.clone();
            if info.shape != of.parameter.shape {
                return Err(ZeroFault::OtherShape {
                    path: of.source.info().path.clone(),
                    key: of.parameter.name,
                    found: info.shape,
                    wanted: of.parameter.shape,
                }
                .into());
            }
            let piece = Piece {
                source: first_source + number,
                ..whole(of.tensor, &info.shape)
            };
            self.updated.push(of.source);
            self.add(of.parameter, info.dtype, vec![piece])?;
        }
        self.add_all_frozen()
    }

    /// Adds the parameters that are not updated: whole, or in shares.
    fn add_all_frozen(&mut self) -> Result<()> {
        let fragments = self.fragments();
        for parameter in std::mem::take(&mut self.states.frozen) {
            match self.is_split {
                true => self.add_frozen_in_shares(parameter, &fragments)?,
                false => self.add_frozen(parameter, &fragments[0])?,
            }
        }
        Ok(())
    }

    /// Adds what the ranks update in stage 3.
    pub(super) fn add_parameters(&mut self, optimizers: Vec<OptimizerStates>) -> Result<()> {
        self.is_split = true;
        let groups = self.groups()?;
        let first_source = self.first_updated();
        let world = optimizers.len();
        let wanted = (groups.iter().flatten()).fold(0usize, |n, one| {
            n.saturating_add(share(one.n_elements(), world))
        });
        let n_groups = optimizers[0].flats(0).len();
        let mut rows = Vec::with_capacity(world);
        for (rank, states) in optimizers.iter().enumerate() {
            check_count(states, n_groups)?;
            let row = Row::new(states.flats(first_source + rank).collect());
            if row.n_elements() != wanted {
                return Err(ZeroFault::Share {
                    path: states.path.clone(),
                    rank,
                    key: "all tensors".into(),
                    found: row.n_elements(),
                    wanted,
                }
                .into());
            }
            rows.push(row);
        }
        let dtype = dtype_of(&optimizers[0], 0);
        let mut first = 0;
        for parameter in groups.into_iter().flatten() {
            let whole = parameter.n_elements();
            let share = share(whole, world);
            let mut pieces = Vec::new();
            for (rank, row) in rows.iter().enumerate() {
                let at = (rank * share).min(whole);
                pieces.extend(row.pieces(first, share.min(whole - at), at, whole));
            }
            first += share;
            self.add(parameter, dtype, pieces)?;
        }
        self.updated = optimizers.into_iter().map(|states| states.source).collect();
        self.add_all_frozen()
    }

    /// Adds a parameter that is not updated, which the first rank has whole.
    fn add_frozen(
        &mut self,
        parameter: Described,
        fragments: &BTreeMap<String, usize>,
    ) -> Result<()> {
        let path = || self.states.path.clone();
        let Some(&held) = fragments.get(&parameter.name) else {
            return Err(ZeroFault::NoValues {
                path: path(),
                key: parameter.name,
            }
            .into());
        };
        let info = self.states.source.tensors()[held].info.clone();
        if info.shape != parameter.shape {
            return Err(ZeroFault::OtherShape {
                path: path(),
                key: parameter.name,
                found: info.shape,
                wanted: parameter.shape,
            }
            .into());
        }
        self.add(parameter, info.dtype, vec![whole(held, &info.shape)])
    }

    /// The shares of parameters that are not updated, by rank and name.
    fn fragments(&self) -> Vec<BTreeMap<String, usize>> {
        let states = std::iter::once(&self.states).chain(&self.others);
        states.map(|states| states.under(FROZEN)).collect()
    }

    /// Adds a parameter that is not updated, of which each rank has a share.
    fn add_frozen_in_shares(
        &mut self,
        parameter: Described,
        fragments: &[BTreeMap<String, usize>],
    ) -> Result<()> {
        let whole = parameter.n_elements();
        let wanted = share(whole, fragments.len());
        let (mut dtype, mut pieces) = (None, Vec::new());
        for (rank, fragments) in fragments.iter().enumerate() {
            let states = match rank {
                0 => &self.states,
                rank => &self.others[rank - 1],
            };
            let held = fragments.get(&parameter.name);
            let info = held.map(|&held| &states.source.tensors()[held].info);
            let found = info.map_or(0, TensorInfo::n_elements);
            if info.is_none() || found != wanted {
                return Err(ZeroFault::Share {
                    path: states.path.clone(),
                    rank,
                    key: parameter.name,
                    found,
                    wanted,
                }
                .into());
            }
            dtype = dtype.or(info.map(|info| info.dtype));
            let at = (rank * wanted).min(whole);
            let flats = held.map(|&tensor| Flat {
                source: rank,
                tensor,
                n_elements: found,
            });
            let row = Row::new(flats.into_iter().collect());
            pieces.extend(row.pieces(0, wanted.min(whole - at), at, whole));
        }
        self.add(parameter, dtype.unwrap_or(DType::F32), pieces)
    }

    fn add(&mut self, parameter: Described, dtype: DType, pieces: Vec<Piece>) -> Result<()> {
        if !self.names.insert(parameter.name.clone()) {
            return Err(Error::DuplicateKey {
                path: self.states.path.clone(),
                key: parameter.name,
            });
        }
        let info = TensorInfo {
            dtype,
            shape: parameter.shape,
        };
        self.tensors.push(InPieces {
            entry: TensorEntry::named(parameter.name, info),
            pieces,
        });
        Ok(())
    }

    /// Other names of tensors, as the file says, or as an old version left them: names of one place.
    fn ties(&mut self, module: &BTreeMap<String, usize>) -> Result<Aliases> {
        let mut aliases = Aliases::new();
        for (name, of) in std::mem::take(&mut self.states.ties) {
            // A tensor without values is in no file on purpose, as weights that are not updated may be.
            if !self.names.contains(&of) {
                continue;
            }
            if self.names.contains(&name) || aliases.insert(name.clone(), of).is_some() {
                return Err(Error::DuplicateKey {
                    path: self.states.path.clone(),
                    key: name,
                });
            }
        }
        if self.is_split {
            return Ok(aliases);
        }
        let mut families: HashMap<String, Vec<String>> = HashMap::new();
        for (name, of) in self.states.source.aliases() {
            families.entry(of).or_default().push(name);
        }
        for (of, mut names) in families {
            names.push(of);
            let holds = names
                .iter()
                .find(|name| self.names.contains(*name))
                .cloned();
            let Some(holds) = holds else { continue };
            for name in names {
                let is_known = self.names.contains(&name) || aliases.contains_key(&name);
                if !is_known && module.contains_key(&name) && !self.states.buffers.contains(&name) {
                    aliases.insert(name, holds.clone());
                }
            }
        }
        Ok(aliases)
    }

    /// Adds what the module holds beside the parameters: buffers, and in stages 1 and 2 whatever is not updated.
    fn add_module(&mut self, module: &BTreeMap<String, usize>, aliases: &Aliases) -> Result<()> {
        for (name, &held) in module {
            if self.names.contains(name) || aliases.contains_key(name) {
                continue;
            }
            let mut info = self.states.source.tensors()[held].info.clone();
            if self.states.buffers.contains(name) {
                info.dtype = widened(info.dtype);
            } else if self.is_split && info.n_elements() == 0 {
                return Err(ZeroFault::NoValues {
                    path: self.states.path.clone(),
                    key: name.clone(),
                }
                .into());
            }
            let described = Described {
                name: name.clone(),
                shape: info.shape.clone(),
            };
            self.add(described, info.dtype, vec![whole(held, &info.shape)])?;
        }
        Ok(())
    }

    /// The model as a source. `shown` is the folder that users know it by.
    pub(super) fn finish(
        mut self,
        shown: &Path,
        container: Container,
        options: &OpenOptions,
    ) -> Result<Box<dyn TensorSource>> {
        let module = self.states.under(MODULE);
        let mut aliases = self.ties(&module)?;
        self.add_module(&module, &aliases)?;
        self.strip(&mut aliases);
        if let Some(root) = options.root.as_ref().filter(|root| !root.is_empty()) {
            return Err(Error::UnknownRoot {
                path: shown.into(),
                root: root.clone(),
                roots: vec![String::new()],
            });
        }
        let values = self.states.source.info().values.iter();
        let at_top = values
            .filter(|(path, _)| path.0.len() == 1)
            .cloned()
            .collect();
        let buffers: HashSet<usize> = (module.into_iter())
            .filter(|(name, _)| self.states.buffers.contains(name))
            .map(|(_, index)| index)
            .collect();
        let first = Widened::new(self.states.source, |index, _| buffers.contains(&index));
        let others = self.others.into_iter().map(|states| states.source);
        let mut sources: Vec<Box<dyn TensorSource>> = vec![Box::new(first)];
        sources.extend(others.chain(self.updated));
        let infos = || self.tensors.iter().map(|tensor| &tensor.entry.info);
        let info = SourceInfo {
            path: shown.into(),
            container,
            files: (sources.iter())
                .flat_map(|source| source.info().files.clone())
                .collect(),
            metadata: BTreeMap::new(),
            roots: vec![Root {
                name: String::new(),
                n_tensors: infos().count(),
                n_bytes: infos()
                    .map(TensorInfo::n_bytes)
                    .fold(0, u64::saturating_add),
            }],
            root: String::new(),
            values: at_top,
            opaque: Vec::new(),
        };
        Ok(Box::new(Assembled::new(
            info,
            self.tensors.into_iter().map(Ok),
            sources,
            aliases,
        )?))
    }

    /// Takes away what Lightning puts before all names.
    fn strip(&mut self, aliases: &mut Aliases) {
        let entries = || self.tensors.iter().map(|tensor| &tensor.entry);
        let names = entries().filter_map(|entry| entry.name.as_ref());
        let mut all = names.chain(aliases.keys());
        if !all.all(|name| name.starts_with(FORWARD_MODULE)) {
            return;
        }
        let stripped = |name: &str| name.strip_prefix(FORWARD_MODULE).unwrap_or(name).to_owned();
        for tensor in &mut self.tensors {
            let name = tensor.entry.name.as_deref().unwrap_or_default();
            tensor.entry = TensorEntry::named(stripped(name), tensor.entry.info.clone());
        }
        *aliases = (aliases.iter())
            .map(|(name, of)| (stripped(name), stripped(of)))
            .collect();
    }
}

/// All of a tensor of the first source.
fn whole(tensor: usize, shape: &[usize]) -> Piece {
    Piece::whole(0, tensor, shape, shape, &vec![0; shape.len()])
}

/// The type as which buffers are read: full precision, as `zero_to_fp32.py` gives them. Whole numbers keep their type.
fn widened(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    }
}

fn dtype_of(states: &OptimizerStates, group: usize) -> DType {
    let flat = states.flats(0).nth(group);
    flat.map_or(DType::F32, |flat| {
        states.source.tensors()[flat.tensor].info.dtype
    })
}

fn check_count(states: &OptimizerStates, wanted: usize) -> Result<()> {
    let found = states.flats(0).len();
    match found == wanted {
        true => Ok(()),
        false => Err(ZeroFault::GroupCount {
            path: states.path.clone(),
            found,
            wanted,
        }
        .into()),
    }
}
