//! Several adapters as one: `Σ wᵢ sᵢ Bᵢ Aᵢ` is the product of all factors side by side, whose rank is the
//! sum of theirs, or the nearest product of a lower rank (Eckart and Young 1936).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::{Array2, Axis};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::changes::check_tensors;
use super::config::{self, Config, NAME, Written};
use super::extract::ExtractTarget;
use super::factors::Named;
use super::part::{PREFIX, Part};
use crate::io::{self, OpenOptions, SourceFile};
use crate::low_rank::{LowRank, Truncation, residual_energy, truncated};
use crate::random::Draws;
use crate::recipe::Place;
use crate::{AdapterFault, Checkpoint, DType, Error, Progress, Result, TensorInfo, decode_f32};

/// The result of combining several adapters.
#[derive(Clone, Debug, Serialize)]
pub struct Combination {
    /// Modules with factors.
    pub n_modules: usize,
    /// Largest rank.
    pub rank: usize,
    /// Length of what a lower rank misses, beside that of the whole change (Frobenius).
    pub relative_error: f64,
    /// The files in place.
    pub files: Vec<PathBuf>,
}

/// An adapter, opened.
struct Adapter {
    folder: PathBuf,
    weight: f64,
    config: Config,
    tensors: Checkpoint,
    settings: SourceFile,
}

/// The factors of a module: `A` of `(rank, in)`, and `B` of `(out, rank)`, which holds the factor on the product.
struct Factors {
    a: Array2<f32>,
    b: Array2<f32>,
}

/// A module of the result.
struct Module {
    /// The names of its factors.
    names: (String, String),
    /// Sizes of `A` and `B` except for the rank.
    inner: Vec<usize>,
    outer: Vec<usize>,
    parts: Vec<Factors>,
}

/// Writes one adapter that does what `adapters`, with their weights, do together. With a `rank` factors are cut
/// to it.
///
/// # Errors
/// [`AdapterFault`] for adapters that are no plain products, or do not fit together; when a file cannot be read
/// or written.
pub fn combine(
    adapters: &[(PathBuf, f64)],
    rank: Option<usize>,
    target: &ExtractTarget,
    progress: &dyn Progress,
) -> Result<Combination> {
    target.check()?;
    let adapters = (adapters.iter())
        .map(|(folder, weight)| Adapter::open(folder, *weight))
        .collect::<Result<Vec<_>>>()?;
    let mut modules: BTreeMap<String, Module> = BTreeMap::new();
    for adapter in &adapters {
        adapter.add_to(&mut modules)?;
    }
    let mut tensors: Vec<(String, Array2<f32>, Vec<usize>)> = Vec::new();
    let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
    let (mut energy, mut missed) = (0.0, 0.0);
    progress.start("combining", modules.len() as u64);
    for (name, module) in &modules {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let (a, b, lost) = module.joined(name, rank)?;
        (energy, missed) = (energy + lost.0, missed + lost.1);
        ranks.insert(name.clone(), b.ncols());
        let mut a_shape = vec![b.ncols()];
        a_shape.extend(&module.inner);
        let mut b_shape = module.outer.clone();
        b_shape.insert(1, b.ncols());
        tensors.push((module.names.0.clone(), a, a_shape));
        tensors.push((module.names.1.clone(), b, b_shape));
        progress.advance(1);
    }
    progress.finish();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let settings = settings(&adapters, &modules, &ranks)?;
    let files = write(&adapters, tensors, &settings, target, progress)?;
    Ok(Combination {
        n_modules: modules.len(),
        rank: ranks.values().copied().max().unwrap_or(0),
        relative_error: if energy > 0.0 {
            f64::sqrt(missed / energy)
        } else {
            0.0
        },
        files,
    })
}

impl Adapter {
    fn open(folder: &Path, weight: f64) -> Result<Self> {
        let (config, settings) = Config::open(folder, Place::default())?;
        let tensors = io::open(&super::weights(folder), &OpenOptions::default())?;
        tensors.require_unique_names()?;
        check_tensors(&tensors, Place::default())?;
        Ok(Self {
            folder: folder.to_owned(),
            weight,
            config,
            tensors,
            settings,
        })
    }

    fn refused(&self, kind: &str) -> Error {
        AdapterFault::Kind {
            path: self.tensors.path().into(),
            kind: kind.to_owned(),
            place: Place::default(),
        }
        .into()
    }

    fn add_to(&self, modules: &mut BTreeMap<String, Module>) -> Result<()> {
        if !self.config.parameters.is_empty() {
            return Err(self.refused("target_parameters"));
        }
        for (key, info) in self.tensors.tensors() {
            match Part::of(key) {
                Part::First { module, second, .. } => {
                    let b = self.tensors.require(&second)?.clone();
                    let first: Named = (key.to_owned(), info.clone());
                    self.add(modules, module, first, (second, b))?;
                }
                Part::Second { first } => {
                    self.tensors.require(&first)?;
                }
                Part::Magnitude { .. } => return Err(self.refused("DoRA")),
                Part::Whole(_) => return Err(self.refused("modules kept whole")),
                _ => return Err(self.refused("other than plain products")),
            }
        }
        Ok(())
    }

    fn add(
        &self,
        modules: &mut BTreeMap<String, Module>,
        module: &str,
        a: Named,
        b: Named,
    ) -> Result<()> {
        let misfit = |expected: &[usize]| {
            Error::from(AdapterFault::Shape {
                path: self.tensors.path().into(),
                key: a.0.clone(),
                found: format!("A {:?} and B {:?}", a.1.shape, b.1.shape),
                target: module.to_owned(),
                expected: expected.to_vec(),
                dtype: a.1.dtype,
                advice: "only adapters whose factors fit the same tensors, and the ranks of their settings, are combined"
                    .to_owned(),
                place: Place::default(),
            })
        };
        let ([rank, inner @ ..], [outer, b_rank, ones @ ..]) =
            (a.1.shape.as_slice(), b.1.shape.as_slice())
        else {
            return Err(misfit(&[]));
        };
        let known = self.config.rank(module, *rank);
        if rank != b_rank || known != *rank || ones.iter().any(|&size| size != 1) {
            return Err(misfit(&[known]));
        }
        let mut of_outer = vec![*outer];
        of_outer.extend(ones);
        let own = modules.entry(module.to_owned()).or_insert_with(|| Module {
            names: (a.0.clone(), b.0.clone()),
            inner: inner.to_vec(),
            outer: of_outer.clone(),
            parts: Vec::new(),
        });
        if own.inner != inner || own.outer != of_outer {
            return Err(misfit(&own.inner));
        }
        let scale = self.config.scale(module, *rank, None) * self.weight;
        let matrix = |(key, info): &Named, rows: usize| -> Result<Array2<f32>> {
            let mut matrix = Array2::zeros((rows, info.n_elements() / rows.max(1)));
            // Made row by row just now.
            let values = matrix.as_slice_mut().unwrap_or_default();
            decode_f32(key, info.dtype, &self.tensors.read_all(key)?, values)?;
            Ok(matrix)
        };
        own.parts.push(Factors {
            a: matrix(&a, *rank)?,
            b: matrix(&b, *outer)? * scale as f32,
        });
        Ok(())
    }
}

/// Both factors, and the squares of the whole and of the error.
type Joined = (Array2<f32>, Array2<f32>, (f64, f64));

impl Module {
    /// All factors side by side, cut to a rank, with the squares of the whole and of the error.
    fn joined(&self, name: &str, rank: Option<usize>) -> Result<Joined> {
        let a: Vec<_> = self.parts.iter().map(|part| part.a.view()).collect();
        let b: Vec<_> = self.parts.iter().map(|part| part.b.view()).collect();
        let joined = |axis, views: &[ndarray::ArrayView2<'_, f32>]| {
            // Their other sides were found to be alike.
            ndarray::concatenate(Axis(axis), views).unwrap_or_default()
        };
        let (a, b) = (joined(0, &a), joined(1, &b));
        let rows = a.nrows();
        let Some(rank) = rank.filter(|&rank| rank < rows) else {
            return Ok((a, b, (0.0, 0.0)));
        };
        let whole = b.dot(&a);
        let energy = whole.iter().map(|value| f64::from(*value).powi(2)).sum();
        let found = truncated(&whole, Truncation::Rank(rank), &Draws::new(0, name));
        let LowRank { left, right, .. } = found.map_err(|_| AdapterFault::NoConvergence {
            key: name.to_owned(),
        })?;
        let missed = residual_energy(&whole, &left, &right);
        Ok((right, left, (energy, missed)))
    }
}

/// The settings of the first adapter, with those of the result in their place.
fn settings(
    adapters: &[Adapter],
    modules: &BTreeMap<String, Module>,
    ranks: &BTreeMap<String, usize>,
) -> Result<Value> {
    let transposed: Vec<bool> = adapters
        .iter()
        .map(|one| one.config.fan_in_fan_out)
        .collect();
    if let Some(index) = transposed.iter().position(|one| *one != transposed[0]) {
        return Err(AdapterFault::Setting {
            path: adapters[index].folder.join(NAME),
            setting: format!("`fan_in_fan_out: {}` beside one without", transposed[index]),
            place: Place::default(),
        }
        .into());
    }
    let rank = ranks.values().copied().max().unwrap_or(1);
    let others = ranks.iter().filter(|(_, own)| **own != rank);
    let pattern = |module: &str| format!("^{}$", regex::escape(module));
    let ranks: Map<String, Value> = others
        .map(|(module, own)| (pattern(module), json!(own)))
        .collect();
    let written = Written {
        base: json!(config::base_name(&adapters[0].folder)?),
        rank,
        ranks,
        fan_in_fan_out: transposed.first().copied().unwrap_or_default(),
        bias: "none",
        target_modules: modules.keys().cloned().collect(),
        modules_to_save: Value::Null,
    };
    Ok(written.to_json())
}

fn write(
    adapters: &[Adapter],
    tensors: Vec<(String, Array2<f32>, Vec<usize>)>,
    settings: &Value,
    target: &ExtractTarget,
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>> {
    let inputs = adapters.iter().flat_map(|adapter| {
        let files = adapter.tensors.info().files.iter().cloned();
        files.chain([adapter.settings.clone()])
    });
    let inputs: Vec<SourceFile> = inputs.collect();
    let (names, factors): (Vec<Named>, Vec<Array2<f32>>) = (tensors.into_iter())
        .map(|(key, factor, shape)| {
            let name = key.strip_prefix(PREFIX).unwrap_or(&key);
            let info = TensorInfo {
                dtype: DType::F32,
                shape,
            };
            let in_rows = factor.as_standard_layout().into_owned();
            ((format!("{PREFIX}{name}"), info), in_rows)
        })
        .unzip();
    let read = move |index: usize, first: usize, out: &mut [u8]| {
        let bytes: &[u8] = bytemuck::cast_slice(factors[index].as_slice().unwrap_or_default());
        let start = DType::F32.bytes_of(first);
        out.copy_from_slice(&bytes[start..start + out.len()]);
        Ok(())
    };
    target.write(names, settings, &inputs, Box::new(read), progress)
}
