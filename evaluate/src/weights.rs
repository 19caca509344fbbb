//! Weights on their way from a checkpoint into a model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Tensor, Var};
use merge::io::Container;
use merge::random::Draws;
use merge::{Checkpoint, Layout, Role};

use crate::ranks::ExpertShare;
use crate::{Error, Result};

/// The first value of a parameter that the checkpoint lacks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// All the same.
    Constant(f32),
    /// Normal around zero, with this standard deviation.
    Normal(f32),
}

/// The parameters that a model took of a checkpoint, by the names it asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Taken from the checkpoint.
    pub used: Vec<String>,
    /// Not in the checkpoint, and drawn as the caller asked.
    pub fresh: Vec<String>,
    /// In the checkpoint, but no part of the model; buffers that a loader rebuilds aside.
    pub unused: Vec<String>,
}

/// Tensors of a checkpoint by name, for a model that asks for them one by one.
///
/// Every name must be there unless a fresh head was asked for, so a misspelled key cannot go
/// unnoticed; [`Weights::report`] lists the tensors that were used, drawn and left over.
pub struct Weights {
    checkpoint: Arc<Checkpoint>,
    /// The model's names, with those in the file.
    names: BTreeMap<String, String>,
    /// Names of buffers.
    derived: BTreeSet<String>,
    device: Device,
    dtype: DType,
    fresh: Vec<String>,
    seed: u64,
    /// Classes of heads that start fresh, by the beginning of their names.
    fresh_classes: BTreeMap<String, usize>,
    is_trainable: bool,
    /// The experts of mixtures that are loaded.
    expert_share: ExpertShare,
    /// Nothing is read: what does not fit is noted.
    is_survey: bool,
    taken: Mutex<Taken>,
}

/// A weight that a checkpoint lacks or has in another shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// It is not there.
    Missing {
        /// The model's name.
        name: String,
    },
    /// It has another shape.
    Shape {
        /// The key in the file.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the model needs.
        expected: Vec<usize>,
    },
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing { name } => write!(formatter, "`{name}` is missing"),
            Self::Shape {
                key,
                found,
                expected,
            } => write!(
                formatter,
                "`{key}` has shape {found:?}, expected {expected:?}"
            ),
        }
    }
}

#[derive(Default)]
struct Taken {
    tensors: BTreeMap<String, Tensor>,
    variables: BTreeMap<String, Var>,
    fresh: Vec<String>,
    misfits: Vec<Misfit>,
}

impl Weights {
    /// The tensors of `checkpoint` under the names that `rename` gives them, to be computed with
    /// on `device` in `dtype`.
    ///
    /// # Errors
    /// [`merge::Error::DuplicateKey`], and keys that the layout does not know.
    pub fn new(
        checkpoint: Arc<Checkpoint>,
        layout: &dyn Layout,
        rename: impl Fn(&str) -> String,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        checkpoint.require_unique_names()?;
        let mut names = BTreeMap::new();
        let mut derived = BTreeSet::new();
        for (key, _) in checkpoint.tensors() {
            let name = rename(key.strip_prefix("module.").unwrap_or(key));
            if layout.role(key)? == Role::Derived {
                derived.insert(name.clone());
            }
            names.insert(name, key.to_owned());
        }
        Ok(Self {
            checkpoint,
            names,
            derived,
            device: device.clone(),
            dtype,
            fresh: Vec::new(),
            seed: 0,
            fresh_classes: BTreeMap::new(),
            is_trainable: false,
            expert_share: ExpertShare::ALL,
            is_survey: false,
            taken: Mutex::default(),
        })
    }

    /// Checks everything that `build` asks for, before anything is read: names and shapes of all
    /// weights, in one error. Experts that other ranks hold are checked, too. Returns the shapes by name.
    ///
    /// # Errors
    /// [`Error::MissingWeight`] or [`Error::WeightShape`] where one weight does not fit,
    /// [`Error::OtherWeights`] with all of them where several do not, and what `build` returns.
    pub fn check<T>(
        &self,
        build: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<BTreeMap<String, Vec<usize>>> {
        let survey = Self {
            device: Device::Cpu,
            is_survey: true,
            expert_share: ExpertShare::ALL,
            taken: Mutex::default(),
            ..self.clone_unread()
        };
        drop(build(&survey)?);
        let misfits = std::mem::take(&mut survey.taken().misfits);
        match <[Misfit; 1]>::try_from(misfits) {
            Ok([misfit]) => Err(self.error(misfit)),
            Err(misfits) if misfits.is_empty() => {
                let taken = survey.taken();
                let shapes = taken.tensors.iter();
                Ok(shapes
                    .map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()))
                    .collect())
            }
            Err(misfits) => Err(Error::OtherWeights {
                path: self.checkpoint.path().into(),
                misfits,
                unused: survey.report().unused,
            }),
        }
    }

    /// The key behind a name whose tensor has this shape, or why there is none.
    fn find(&self, name: &str, shape: &[usize]) -> Result<Result<&str, Misfit>> {
        let Some(key) = self.names.get(name) else {
            return Ok(Err(Misfit::Missing { name: name.into() }));
        };
        let found = &self.checkpoint.require(key)?.shape;
        if found == shape {
            return Ok(Ok(key));
        }
        Ok(Err(Misfit::Shape {
            key: key.clone(),
            found: found.clone(),
            expected: shape.to_vec(),
        }))
    }

    /// The error for a single weight that does not fit.
    fn error(&self, misfit: Misfit) -> Error {
        let path = self.checkpoint.path().into();
        match misfit {
            Misfit::Missing { name } => Error::MissingWeight {
                path,
                nearest: self.nearest(&name),
                name,
            },
            Misfit::Shape {
                key,
                found,
                expected,
            } => Error::WeightShape {
                path,
                key,
                found,
                expected,
            },
        }
    }

    /// Stands in for a tensor in a survey: zeros that take no memory.
    fn survey(&self, name: &str, shape: &[usize], is_fresh: bool) -> Result<Tensor> {
        let misfit = match is_fresh {
            true => None,
            false => self.find(name, shape)?.err(),
        };
        let tensor = Tensor::zeros((), self.dtype, &Device::Cpu)?.broadcast_as(shape)?;
        let mut taken = self.taken();
        taken.misfits.extend(misfit);
        taken.tensors.insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }

    /// The same weights, of which nothing is read yet.
    fn clone_unread(&self) -> Self {
        Self {
            checkpoint: Arc::clone(&self.checkpoint),
            names: self.names.clone(),
            derived: self.derived.clone(),
            device: self.device.clone(),
            dtype: self.dtype,
            fresh: self.fresh.clone(),
            seed: self.seed,
            fresh_classes: self.fresh_classes.clone(),
            is_trainable: false,
            expert_share: self.expert_share,
            is_survey: false,
            taken: Mutex::default(),
        }
    }

    /// Parameters whose names begin with one of `prefixes` may be missing: they are then drawn
    /// under `seed`.
    #[must_use]
    pub fn with_fresh(mut self, prefixes: &[&str], seed: u64) -> Self {
        self.fresh = prefixes.iter().map(|&prefix| prefix.to_owned()).collect();
        self.seed = seed;
        self
    }

    /// A head whose names begin with `prefix` has `n` classes if it starts fresh.
    #[must_use]
    pub fn with_fresh_classes(mut self, prefix: &str, n: usize) -> Self {
        self.fresh_classes.insert(prefix.to_owned(), n);
        self
    }

    /// The classes of a head that starts fresh, where the caller gives them.
    pub(crate) fn fresh_classes(&self, prefix: &str) -> Option<usize> {
        self.fresh_classes.get(prefix).copied()
    }

    /// Every parameter becomes a variable in f32, so that passes build a graph for gradients; a
    /// model gets it in the dtype that it computes in.
    #[must_use]
    pub fn trainable(mut self) -> Self {
        self.is_trainable = true;
        self
    }

    /// Of the experts of every mixture those of `share` alone are loaded.
    #[must_use]
    pub fn sharing_experts(mut self, share: ExpertShare) -> Self {
        self.expert_share = share;
        self
    }

    /// The experts of mixtures that are loaded.
    #[must_use]
    pub fn expert_share(&self) -> ExpertShare {
        self.expert_share
    }

    /// Whether every parameter is a variable.
    pub(crate) fn is_trainable(&self) -> bool {
        self.is_trainable
    }

    /// The device of the tensors.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dtype they are converted to.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The file behind it.
    #[must_use]
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// Whether a name beginning with `prefix` is in the checkpoint, or may start fresh.
    #[must_use]
    pub fn has(&self, prefix: &str) -> bool {
        let mut from = self.names.range(prefix.to_owned()..);
        from.next()
            .is_some_and(|(name, _)| name.starts_with(prefix))
            || self.fresh.iter().any(|fresh| prefix.starts_with(fresh))
    }

    /// The shape of a tensor in the checkpoint.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let key = self.names.get(name)?;
        Some(&self.checkpoint.get(key)?.shape)
    }

    /// A tensor, on the device. Asking again gives the same one.
    ///
    /// # Errors
    /// [`Error::MissingWeight`] with the nearest name, [`Error::WeightShape`], and when the file
    /// cannot be read.
    pub fn get(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        if let Some(tensor) = self.taken().tensors.get(name) {
            return Ok(tensor.clone());
        }
        let variable = self.taken().variables.get(name).cloned();
        if let Some(variable) = variable {
            let tensor = variable.as_tensor().to_dtype(self.dtype)?;
            self.taken().tensors.insert(name.to_owned(), tensor.clone());
            return Ok(tensor);
        }
        let is_fresh = !self.names.contains_key(name)
            && self.fresh.iter().any(|prefix| name.starts_with(prefix));
        if self.is_survey {
            return self.survey(name, shape, is_fresh);
        }
        let values = match is_fresh {
            true => self.draw(name, shape, init),
            false => self.read(name, shape)?,
        };
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
        let tensor = tensor.to_device(&self.device)?;
        let mut taken = self.taken();
        let tensor = match self.is_trainable {
            true => {
                let variable = Var::from_tensor(&tensor)?;
                taken.variables.insert(name.to_owned(), variable.clone());
                variable.as_tensor().to_dtype(self.dtype)?
            }
            false => tensor.to_dtype(self.dtype)?,
        };
        taken.tensors.insert(name.to_owned(), tensor.clone());
        if is_fresh {
            taken.fresh.push(name.to_owned());
        }
        Ok(tensor)
    }

    /// An empty tensor, for a bias that is not there.
    pub(crate) fn nothing(&self) -> Result<Tensor> {
        Ok(Tensor::zeros(0, self.dtype, &self.device)?)
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let found = self.find(name, shape)?;
        let key = found.map_err(|misfit| self.error(misfit))?;
        let info = self.checkpoint.require(key)?;
        let mut values = vec![0.0; info.n_elements()];
        if info.dtype == merge::DType::F32 {
            self.checkpoint
                .read(key, 0, bytemuck::cast_slice_mut(&mut values))?;
        } else {
            let bytes = self.checkpoint.read_all(key)?;
            merge::decode_f32(key, info.dtype, &bytes, &mut values)?;
        }
        Ok(values)
    }

    fn draw(&self, name: &str, shape: &[usize], init: Init) -> Vec<f32> {
        let n = shape.iter().product();
        let draws = Draws::new(self.seed, name);
        match init {
            Init::Zeros => vec![0.0; n],
            Init::Ones => vec![1.0; n],
            Init::Constant(value) => vec![value; n],
            Init::Normal(deviation) => {
                let mut values = vec![0.0; n];
                draws.add_normal(deviation, 0, &mut values);
                values
            }
        }
    }

    fn nearest(&self, name: &str) -> Option<String> {
        let likeness = |other: &String| strsim::jaro(other, name);
        let names = self.names.keys();
        names
            .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
            .cloned()
    }

    /// Frees the values of the checkpoint's tensors that are `gone`, by the model's names, where the checkpoint is in
    /// memory. None of them may be read again.
    ///
    /// # Errors
    /// When a tensor that stays cannot be read.
    pub fn release(&mut self, is_gone: impl Fn(&str) -> bool) -> Result<()> {
        if self.checkpoint.info().container != Container::Memory {
            return Ok(());
        }
        let names = self.names.iter().filter(|(name, _)| is_gone(name));
        let gone: BTreeSet<&str> = names.map(|(_, key)| key.as_str()).collect();
        let left = merge::io::without_values(&self.checkpoint, |key| gone.contains(key))?;
        self.checkpoint = Arc::new(left);
        Ok(())
    }

    /// All variables by name, in order; empty unless trainable.
    #[must_use]
    pub fn variables(&self) -> BTreeMap<String, Var> {
        self.taken().variables.clone()
    }

    /// Forgets the casts of variables to the dtype that is computed in: after an update the
    /// caller builds the model again, of new casts.
    pub fn recast(&self) {
        self.taken().tensors.clear();
    }

    /// The same weights for inference: what variables hold goes on changing with them where the
    /// dtype is f32.
    ///
    /// # Errors
    /// When the device fails.
    pub fn detached(&self) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, variable) in self.variables() {
            let tensor = variable.as_detached_tensor().to_dtype(self.dtype)?;
            tensors.insert(name, tensor);
        }
        Ok(Self {
            taken: Mutex::new(Taken {
                tensors,
                ..Taken::default()
            }),
            ..self.clone_unread()
        })
    }

    /// The key in the file behind a name; `None` for one that started fresh.
    #[must_use]
    pub fn key_of(&self, name: &str) -> Option<&str> {
        self.names.get(name).map(String::as_str)
    }

    /// The tensors used so far.
    #[must_use]
    pub fn report(&self) -> LoadReport {
        let taken = self.taken();
        let is_used = |name: &&String| {
            taken.tensors.contains_key(*name) || taken.variables.contains_key(*name)
        };
        let unused = self
            .names
            .keys()
            .filter(|name| !is_used(name) && !self.derived.contains(*name));
        LoadReport {
            used: self.names.keys().filter(is_used).cloned().collect(),
            fresh: taken.fresh.clone(),
            unused: unused.cloned().collect(),
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Nothing panics while it is held.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
