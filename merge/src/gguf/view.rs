//! A GGUF file under the names of Hugging Face.

use super::architectures::{Architecture, COMPUTED, LOGIT_SCALE, SHARED_EXPERT_GATE};
use super::names::{self, Parsed};
use super::turned::Turned;
use super::{count, value};
use crate::io::{SourceInfo, TensorEntry};
use crate::{Checkpoint, DType, GgufFault, Result, TensorInfo, TensorSource};

/// The most names in a note.
const N_NAMED: usize = 3;

/// The most tensors of a view: several times those of the largest mixtures.
const MAX_TENSORS: usize = 1 << 18;

/// The change of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    None,
    /// Rows come from other places.
    Turned(Turned),
    /// One is taken away from each.
    LessOne,
}

/// Where a tensor comes from.
struct Origin {
    /// The tensor of the file.
    index: usize,
    /// Its element that is the first here.
    first: usize,
    change: Change,
}

pub(super) struct View {
    inner: Box<dyn TensorSource>,
    entries: Vec<TensorEntry>,
    origins: Vec<Origin>,
}

/// Heads of queries, and of keys.
struct Heads {
    queries: usize,
    keys: usize,
}

impl Heads {
    fn of(info: &SourceInfo, architecture: &Architecture) -> Result<Self> {
        let key = |name| format!("{}.attention.{name}", architecture.name);
        let wanted = "the order of the rows of queries and keys";
        let queries = count(info, &key("head_count"), wanted)?;
        let of_keys = key("head_count_kv");
        let keys = match value(info, &of_keys) {
            None => queries,
            Some(_) => count(info, &of_keys, wanted)?,
        };
        Ok(Self { queries, keys })
    }
}

impl View {
    /// The tensors of a file of this architecture.
    ///
    /// # Errors
    /// [`GgufFault::Fact`] and [`GgufFault::Shape`].
    pub(super) fn open(
        source: Box<dyn TensorSource>,
        architecture: &Architecture,
    ) -> Result<Checkpoint> {
        let info = source.info();
        let heads = match architecture.is_turned {
            true => Some(Heads::of(info, architecture)?),
            false => None,
        };
        let is_exchanged = exchanges_halves(source.as_ref());
        let (mut entries, mut origins) = (Vec::new(), Vec::new());
        let (mut unknown, mut n_computed) = (Vec::new(), 0);
        for (index, entry) in source.tensors().iter().enumerate() {
            let own = entry.path.to_string();
            if COMPUTED.contains(&own.as_str()) {
                n_computed += 1;
                continue;
            }
            let Some(parsed) = names::of_gguf(architecture, &own) else {
                unknown.push(own);
                entries.push(entry.clone());
                origins.push(Origin {
                    index,
                    first: 0,
                    change: Change::None,
                });
                continue;
            };
            let change = change_of(info, architecture, heads.as_ref(), &parsed, &entry.info)?;
            let parts = parts_of(info, &parsed, &entry.info)?;
            if entries.len() + parts.len() > MAX_TENSORS {
                return Err(GgufFault::Count {
                    path: info.path.clone(),
                    what: "matrices of experts",
                    n: parts.len() as u64,
                    limit: (MAX_TENSORS - entries.len()) as u64,
                }
                .into());
            }
            let n_elements = parts.first().map_or(0, |part| part.n_elements());
            for (number, shape) in parts.into_iter().enumerate() {
                let mut name = parsed.hugging_face(number);
                if is_exchanged {
                    name = exchanged(name);
                }
                if architecture.model_type == "llava" && own.starts_with("v.") {
                    name.insert_str(0, "vision_tower.");
                }
                entries.push(TensorEntry::renamed(own.clone(), name, shape));
                origins.push(Origin {
                    index,
                    first: number * n_elements,
                    change,
                });
            }
        }
        let path = info.path.display();
        let mut notes = Vec::new();
        if n_computed > 0 {
            notes.push(format!(
                "{path}: left out {n_computed} tensors that loaders compute from the settings"
            ));
        }
        if let Some(first) = unknown
            .get(..unknown.len().min(N_NAMED))
            .filter(|first| !first.is_empty())
        {
            notes.push(format!(
                "{path}: {} tensors are no part of the architecture `{}` and keep their names: {}",
                unknown.len(),
                architecture.name,
                first.join(", ")
            ));
        }
        let view = Self {
            inner: source,
            entries,
            origins,
        };
        let checkpoint = Checkpoint::new(Box::new(view));
        Ok((notes.into_iter()).fold(checkpoint, |of, note| of.with_note(Some(note))))
    }
}

/// Whether a file of pictures calls the layers of its MLPs the other way round, as the first programs that wrote such files
/// did. Sizes tell: the first layer widens.
fn exchanges_halves(source: &dyn TensorSource) -> bool {
    let shape_of = |wanted: &str| {
        let mut entries = source.tensors().iter();
        let entry = entries.find(|entry| entry.name.as_deref() == Some(wanted))?;
        Some(entry.info.shape.clone())
    };
    ["v", "t"].iter().any(|tower| {
        let up = shape_of(&format!("{tower}.blk.0.ffn_up.weight"));
        up.is_some_and(|shape| matches!(shape[..], [rows, columns] if rows < columns))
    })
}

/// The name of the other layer of an MLP.
fn exchanged(name: String) -> String {
    match name.contains(".mlp.fc1.") {
        true => name.replace(".mlp.fc1.", ".mlp.fc2."),
        false => name.replace(".mlp.fc2.", ".mlp.fc1."),
    }
}

/// Shapes of the tensors that a tensor of GGUF is in Hugging Face.
fn parts_of(
    info: &SourceInfo,
    parsed: &Parsed<'_>,
    tensor: &TensorInfo,
) -> Result<Vec<TensorInfo>> {
    let with = |shape: &[usize]| TensorInfo {
        dtype: tensor.dtype,
        shape: shape.to_vec(),
    };
    match &tensor.shape[..] {
        [width] if parsed.row.1 == SHARED_EXPERT_GATE => Ok(vec![with(&[1, *width])]),
        [1] if parsed.row.1 == LOGIT_SCALE => Ok(vec![with(&[])]),
        shape if !parsed.is_of_experts() => Ok(vec![with(shape)]),
        [n_experts, rest @ ..] if rest.len() == 2 && *n_experts <= MAX_TENSORS => {
            Ok(vec![with(rest); *n_experts])
        }
        shape => Err(GgufFault::Shape {
            path: info.path.clone(),
            key: parsed.gguf(),
            shape: shape.to_vec(),
            wanted: "matrices of experts".into(),
        }
        .into()),
    }
}

/// The change of a tensor.
fn change_of(
    info: &SourceInfo,
    architecture: &Architecture,
    heads: Option<&Heads>,
    parsed: &Parsed<'_>,
    tensor: &TensorInfo,
) -> Result<Change> {
    let module = parsed.row.1;
    if architecture.has_norms_plus_one && module.ends_with("norm") && parsed.ending == ".weight" {
        return match tensor.dtype {
            DType::F32 => Ok(Change::LessOne),
            dtype => Err(GgufFault::Shape {
                path: info.path.clone(),
                key: parsed.gguf(),
                shape: tensor.shape.clone(),
                wanted: format!("a norm of this architecture: it is {dtype}, not F32"),
            }
            .into()),
        };
    }
    let Some(heads) = heads else {
        return Ok(Change::None);
    };
    let n_heads = match module {
        _ if module.ends_with(".q_proj") => heads.queries,
        _ if module.ends_with(".k_proj") => heads.keys,
        _ => return Ok(Change::None),
    };
    let rows = tensor.shape.first().copied().unwrap_or(0);
    match Turned::new(rows, n_heads) {
        Some(turned) => Ok(Change::Turned(turned)),
        None => Err(GgufFault::Shape {
            path: info.path.clone(),
            key: parsed.gguf(),
            shape: tensor.shape.clone(),
            wanted: format!("{n_heads} heads of pairs"),
        }
        .into()),
    }
}

impl TensorSource for View {
    fn info(&self) -> &SourceInfo {
        self.inner.info()
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn stored_dtype(&self, index: usize) -> DType {
        self.inner.stored_dtype(self.origins[index].index)
    }

    fn stored_as(&self, index: usize) -> Option<&str> {
        self.inner.stored_as(self.origins[index].index)
    }

    fn is_computed(&self, index: usize) -> bool {
        let origin = &self.origins[index];
        origin.change != Change::None || self.inner.is_computed(origin.index)
    }

    fn held_bytes(&self) -> u64 {
        self.inner.held_bytes()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let origin = &self.origins[index];
        let TensorInfo { dtype, shape } = &self.entries[index].info;
        match origin.change {
            Change::None => self.inner.read(origin.index, origin.first + first, out),
            Change::LessOne => {
                self.inner.read(origin.index, origin.first + first, out)?;
                for bytes in out.as_chunks_mut().0 {
                    *bytes = (f32::from_le_bytes(*bytes) - 1.0).to_le_bytes();
                }
                Ok(())
            }
            Change::Turned(turned) => {
                let width: usize = shape[1..].iter().product();
                let size = dtype.size_bytes();
                let (mut at, mut rest) = (first, out);
                while !rest.is_empty() {
                    let (row, column) = (at / width, at % width);
                    let n = (width - column).min(rest.len() / size);
                    let (part, after) = rest.split_at_mut(n * size);
                    let from = origin.first + turned.in_pairs(row) * width + column;
                    self.inner.read(origin.index, from, part)?;
                    (at, rest) = (at + n, after);
                }
                Ok(())
            }
        }
    }
}
