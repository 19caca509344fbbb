//! The output of an extraction: factors wait in a temporary file until all ranks are known.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use ndarray::Array2;
use serde_json::{Map, Value, json};

use super::kind::{Form, module};
use super::{ExtractOptions, Extracted};
use crate::beside::license::hub_name;
use crate::execute::{RunOptions, execute_beside};
use crate::io::check_file_target;
use crate::io::folder::{NewFolders, folder_of};
use crate::io::{Container, Root, SourceFile, SourceInfo, TensorEntry, WriteOptions};
use crate::lora::config::{NAME, Written};
use crate::lora::factors::Named;
use crate::lora::part::PREFIX;
use crate::plan::PlanBuilder;
use crate::{Checkpoint, DType, Error, Progress, Result, TensorInfo, TensorSource};
use crate::{decode_f32, encode_f32, platform};

/// The target of an adapter.
#[derive(Clone, Debug)]
pub struct ExtractTarget {
    /// The folder, made if it is not there.
    pub folder: PathBuf,
    /// Replace files that are there.
    pub force: bool,
    /// The command, for the file's metadata.
    pub command: String,
    /// The base as it was named.
    pub base: PathBuf,
}

/// Fills bytes with the elements of the tensor of an index, from one on.
pub(in crate::lora) type ReadElements = dyn Fn(usize, usize, &mut [u8]) -> Result<()> + Send + Sync;

/// The tensors of an adapter, which are in no file of that form yet.
struct Made {
    info: SourceInfo,
    tensors: Vec<TensorEntry>,
    read: Box<ReadElements>,
}

impl TensorSource for Made {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        (self.read)(index, first, out)
    }
}

/// A tensor that is kept whole.
#[derive(Clone, Debug)]
pub(super) struct Whole {
    /// Its name in the models.
    pub(super) name: String,
    /// Its name in the adapter.
    key: String,
    /// Whether its module has factors.
    is_beside_factors: bool,
}

impl Whole {
    pub(super) fn of(name: &str) -> Self {
        Self {
            key: format!("{PREFIX}{name}"),
            name: name.to_owned(),
            is_beside_factors: false,
        }
    }

    /// The same tensor for the head that shares it.
    pub(super) fn of_head(name: &str, head: &str) -> Self {
        Self {
            key: format!("{PREFIX}{head}"),
            name: name.to_owned(),
            is_beside_factors: false,
        }
    }

    /// Its name in the adapter's model.
    fn place(&self) -> &str {
        self.key.strip_prefix(PREFIX).unwrap_or(&self.key)
    }

    /// The same tensor of a module that has factors, whose own tensors PEFT has under another name.
    pub(super) fn beside_factors(self) -> Self {
        let (start, leaf) = self.name.rsplit_once('.').unwrap_or(("", &self.name));
        Self {
            key: format!("{PREFIX}{start}.base_layer.{leaf}"),
            is_beside_factors: true,
            ..self
        }
    }
}

/// A factor in the temporary file.
struct Kept {
    key: String,
    info: TensorInfo,
    at: u64,
}

/// Factors on their way.
pub(super) struct Spool {
    file: File,
    path: PathBuf,
    kept: Vec<Kept>,
    end: u64,
}

impl Spool {
    /// The values that are left of a factor once it is stored.
    pub(super) fn rounded(
        &self,
        name: &str,
        factor: Array2<f32>,
        dtype: DType,
    ) -> Result<Array2<f32>> {
        if dtype == DType::F32 {
            return Ok(factor);
        }
        let bytes = encoded(name, &factor, dtype)?;
        let mut rounded = Array2::zeros(factor.dim());
        // Made row by row just now.
        let values = rounded.as_slice_mut().unwrap_or_default();
        decode_f32(name, dtype, &bytes, values)?;
        Ok(rounded)
    }

    /// Keeps the factors of a tensor, of the shape `(rows, rank)` and `(rank, columns)`.
    pub(super) fn keep(
        &mut self,
        name: &str,
        info: &TensorInfo,
        form: Form,
        (left, right): (&Array2<f32>, &Array2<f32>),
        dtype: DType,
    ) -> Result<()> {
        let rank = left.ncols();
        let module = format!("{PREFIX}{}", module(name));
        let turned = |factor: &Array2<f32>| factor.t().as_standard_layout().into_owned();
        let (a, b) = match form {
            Form::Linear => (right.clone(), left.clone()),
            Form::Transposed | Form::Embedding => (turned(left), turned(right)),
        };
        let (first, second) = match form {
            Form::Embedding => (".lora_embedding_A", ".lora_embedding_B"),
            Form::Linear | Form::Transposed => (".lora_A.weight", ".lora_B.weight"),
        };
        let (mut a_shape, mut b_shape) = (vec![rank, a.ncols()], vec![b.nrows(), rank]);
        if info.shape.len() > 2 {
            a_shape.splice(1.., info.shape[1..].iter().copied());
            b_shape.resize(info.shape.len(), 1);
        }
        for (end, shape, factor) in [(first, a_shape, a), (second, b_shape, b)] {
            let bytes = encoded(name, &factor, dtype)?;
            let written = platform::write_all_at(&self.file, &bytes, self.end);
            written.map_err(|source| Error::io("write", &self.path, source))?;
            self.kept.push(Kept {
                key: format!("{module}{end}"),
                info: TensorInfo { dtype, shape },
                at: self.end,
            });
            self.end += bytes.len() as u64;
        }
        Ok(())
    }
}

fn encoded(name: &str, factor: &Array2<f32>, dtype: DType) -> Result<Vec<u8>> {
    let mut bytes = vec![0; factor.len() * dtype.size_bytes()];
    let values = factor.as_standard_layout();
    encode_f32(
        name,
        dtype,
        values.as_slice().unwrap_or_default(),
        &mut bytes,
    )?;
    Ok(bytes)
}

impl ExtractTarget {
    /// The file of the tensors.
    fn weights(&self) -> PathBuf {
        self.folder.join(crate::lora::WEIGHTS[0])
    }

    /// Checks that nothing is in the way, before any work.
    pub(in crate::lora) fn check(&self) -> Result<()> {
        match self.folder.is_dir() {
            true => {
                check_file_target(&self.weights(), self.force)?;
                check_file_target(&self.folder.join(NAME), self.force)
            }
            // Is a file, or its own folder is not there.
            false => check_file_target(&self.folder, false),
        }
    }

    /// A file without a name on the disk that the adapter will be on.
    pub(super) fn spool(&self) -> Result<Spool> {
        let folder = match self.folder.is_dir() {
            true => self.folder.as_path(),
            false => folder_of(&self.folder),
        };
        let file = tempfile::tempfile_in(folder);
        Ok(Spool {
            file: file.map_err(|source| Error::io("create a file in", folder, source))?,
            path: folder.to_owned(),
            kept: Vec::new(),
            end: 0,
        })
    }

    /// Writes settings, factors and whole tensors; returns the files and the tensors' bytes.
    pub(super) fn write_extracted(
        &self,
        spool: Spool,
        whole: &[Whole],
        tuned: &Arc<Checkpoint>,
        settings: &Value,
        inputs: &[SourceFile],
        progress: &dyn Progress,
    ) -> Result<(Vec<PathBuf>, u64)> {
        let mut sources: Vec<(String, TensorInfo, Source)> = (spool.kept.iter())
            .map(|kept| (kept.key.clone(), kept.info.clone(), Source::Factor(kept.at)))
            .collect();
        for whole in whole {
            let info = tuned.require(&whole.name)?.clone();
            sources.push((whole.key.clone(), info, Source::Whole(whole.name.clone())));
        }
        let tensors: Vec<Named> = (sources.iter())
            .map(|(key, info, _)| (key.clone(), info.clone()))
            .collect();
        let n_bytes = tensors.iter().map(|(_, info)| info.n_bytes()).sum();
        let tuned = Arc::clone(tuned);
        let read = move |index: usize, first: usize, out: &mut [u8]| {
            let (_, info, source) = &sources[index];
            match source {
                Source::Whole(name) => tuned.read(name, first, out),
                Source::Factor(at) => {
                    let start = info.dtype.bytes_of(first) as u64;
                    let read = platform::read_exact_at(&spool.file, out, at + start);
                    read.map_err(|source| Error::io("read", &spool.path, source))
                }
            }
        };
        let files = self.write(tensors, settings, inputs, Box::new(read), progress)?;
        Ok((files, n_bytes))
    }

    /// Writes settings and tensors, of which `read` gives elements from one on; returns the files.
    pub(in crate::lora) fn write(
        &self,
        tensors: Vec<Named>,
        settings: &Value,
        inputs: &[SourceFile],
        read: Box<ReadElements>,
        progress: &dyn Progress,
    ) -> Result<Vec<PathBuf>> {
        let n_bytes = tensors.iter().map(|(_, info)| info.n_bytes()).sum();
        let tensors: Vec<TensorEntry> = (tensors.into_iter())
            .map(|(name, info)| TensorEntry::named(name, info))
            .collect();
        let root = Root {
            name: String::new(),
            n_tensors: tensors.len(),
            n_bytes,
        };
        let info = SourceInfo {
            path: self.weights(),
            container: Container::Memory,
            files: inputs.to_vec(),
            metadata: std::collections::BTreeMap::new(),
            roots: vec![root],
            root: String::new(),
            values: Vec::new(),
            opaque: Vec::new(),
        };
        let made = Checkpoint::new(Box::new(Made {
            info,
            tensors,
            read,
        }));
        let made = Arc::new(made);
        let mut plan = PlanBuilder::new(self.command.clone());
        let source = plan.source(Arc::clone(&made));
        for (name, _) in made.tensors() {
            plan.copy(source, name, "of the adapter")?;
        }
        let plan = plan.finish()?;
        let mut folder = NewFolders::default();
        folder.make(&self.folder)?;
        let write = WriteOptions {
            force: self.force,
            ..WriteOptions::new(self.weights())
        };
        let beside = (self.folder.join(NAME), format!("{settings:#}\n"));
        let run = RunOptions::default();
        Ok(execute_beside(&plan, &write, &run, &[beside], progress)?.files)
    }
}

/// The source of a tensor's bytes.
enum Source {
    /// In the temporary file, from here on.
    Factor(u64),
    /// In the fine-tuned model.
    Whole(String),
}

/// The adapter's settings as PEFT reads them.
pub(super) fn settings(
    base: &Checkpoint,
    tensors: &[Extracted],
    whole: &[Whole],
    options: &ExtractOptions,
    target: &ExtractTarget,
) -> Value {
    let rank = tensors.iter().map(|tensor| tensor.rank).max().unwrap_or(1);
    // Fits nothing but the name from its beginning.
    let pattern = |tensor: &Extracted| format!("^{}", regex::escape(module(&tensor.name)));
    let others = tensors.iter().filter(|tensor| tensor.rank != rank);
    let ranks: Map<String, Value> = others
        .map(|tensor| (pattern(tensor), json!(tensor.rank)))
        .collect();
    let modules = (whole.iter()).filter(|whole| !whole.is_beside_factors);
    let mut modules: Vec<&str> = modules.map(|whole| module(whole.place())).collect();
    modules.sort_unstable();
    modules.dedup();
    let has_biases = whole.iter().any(|whole| whole.is_beside_factors);
    let base_name = hub_name(&target.base).unwrap_or_else(|| target.base.display().to_string());
    Written {
        base: json!(base_name),
        rank,
        ranks,
        fan_in_fan_out: options.fan_in_fan_out,
        bias: if has_biases { "lora_only" } else { "none" },
        target_modules: target_modules(base, tensors),
        modules_to_save: match modules.is_empty() {
            true => Value::Null,
            false => json!(modules),
        },
    }
    .to_json()
}

/// Names of the modules with factors: by their last part where all modules of the base that end so have
/// factors, else in full.
fn target_modules(base: &Checkpoint, tensors: &[Extracted]) -> Vec<String> {
    let own: std::collections::BTreeSet<&str> =
        tensors.iter().map(|tensor| module(&tensor.name)).collect();
    let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
    let strangers: std::collections::BTreeSet<String> = (base.tensors())
        .map(|(name, _)| module(name))
        .filter(|module| !own.contains(module))
        .map(last)
        .collect();
    let names = own.into_iter().map(|module| match last(module) {
        last if strangers.contains(&last) => module.to_owned(),
        last => last,
    });
    let names: std::collections::BTreeSet<String> = names.collect();
    names.into_iter().collect()
}
