//! A model under the names of GGUF, in its order of rows, its tensors in the bytes that are written.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::turned::Turned;
use crate::io::gguf::blocks::{Q8_0_BYTES, Q8_0_ELEMENTS, to_q8_0};
use crate::io::{GgufHead, SourceInfo, TensorEntry};
use crate::{
    Checkpoint, DType, ExportFault, Result, TensorInfo, TensorSource, decode_f32, encode_f32,
};

/// The bytes in which a tensor is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain(DType),
    /// Blocks of `Q8_0`, which the view shows as bytes.
    Blocks,
}

/// A tensor of the model, and what becomes of it.
struct Origin {
    key: String,
    /// Tensors behind it that make one of it, as those of experts do.
    others: Vec<String>,
    /// Its place among the others.
    info: TensorInfo,
    form: Form,
    turned: Option<Turned>,
    plus_one: bool,
}

/// A tensor that the model has only in its settings.
pub(super) struct Made {
    pub(super) name: String,
    pub(super) values: Vec<f32>,
}

enum Own {
    Origin(Origin),
    Made(Vec<f32>),
}

/// The fate of a tensor of the model.
pub(super) struct Wanted {
    /// Its name in GGUF.
    pub(super) name: String,
    /// Its dtype, unless it is coded.
    pub(super) dtype: DType,
    /// Whether it is in blocks.
    pub(super) is_coded: bool,
    /// The order of its rows, if it is another one.
    pub(super) turned: Option<Turned>,
    /// Whether one is added to its elements.
    pub(super) plus_one: bool,
    /// Of experts, the tensors of the second and those behind it.
    pub(super) others: Option<Vec<String>>,
    /// Whether it is a matrix of one row that becomes the row.
    pub(super) is_row: bool,
}

/// A view under construction.
pub(super) struct Export {
    source: Arc<Checkpoint>,
    tensors: Vec<(TensorEntry, Own)>,
    coded: Vec<(String, Vec<usize>)>,
    left_out: Vec<String>,
}

impl Export {
    pub(super) fn new(source: Arc<Checkpoint>) -> Self {
        Self {
            source,
            tensors: Vec::new(),
            coded: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Whether blocks fill rows of this width.
    pub(super) const fn fills(&self, width: usize) -> bool {
        width > 0 && width.is_multiple_of(Q8_0_ELEMENTS)
    }

    /// Adds the tensor `key`.
    ///
    /// # Errors
    /// [`ExportFault::Experts`] where other experts have another shape or dtype.
    pub(super) fn add(&mut self, key: &str, wanted: Wanted) -> Result<()> {
        let Wanted {
            name,
            dtype,
            is_coded,
            turned,
            plus_one,
            others,
            is_row,
        } = wanted;
        let mut info = self.source.require(key)?.clone();
        for other in others.iter().flatten() {
            if *self.source.require(other)? != info {
                return Err(ExportFault::Experts {
                    path: self.source.path().into(),
                    key: key.to_owned(),
                    other: other.clone(),
                }
                .into());
            }
        }
        if let Some(others) = &others {
            info.shape.insert(0, 1 + others.len());
        }
        if is_row && info.shape.first() == Some(&1) {
            info.shape.remove(0);
        }
        let form = match is_coded {
            true => Form::Blocks,
            false => Form::Plain(dtype),
        };
        let shown = match (form, &info.shape[..]) {
            (Form::Blocks, [rows @ .., width]) => {
                self.coded.push((name.clone(), info.shape.clone()));
                let mut shape = rows.to_vec();
                shape.push(width / Q8_0_ELEMENTS * Q8_0_BYTES);
                TensorInfo {
                    dtype: DType::U8,
                    shape,
                }
            }
            _ => TensorInfo {
                dtype,
                shape: info.shape.clone(),
            },
        };
        let origin = Origin {
            key: key.to_owned(),
            others: others.unwrap_or_default(),
            info,
            form,
            turned,
            plus_one,
        };
        let entry = TensorEntry::named(name, shown);
        self.tensors.push((entry, Own::Origin(origin)));
        Ok(())
    }

    /// Adds a tensor of one axis that the model does not have.
    pub(super) fn add_made(&mut self, made: Made) {
        let info = TensorInfo {
            dtype: DType::F32,
            shape: vec![made.values.len()],
        };
        let entry = TensorEntry::named(made.name, info);
        self.tensors.push((entry, Own::Made(made.values)));
    }

    /// Notes that a tensor is not written.
    pub(super) fn leave_out(&mut self, key: &str) {
        self.left_out.push(key.to_owned());
    }

    pub(super) fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// The dtype of most elements of matrices that are no blocks.
    pub(super) fn most(&self) -> DType {
        let mut counts: BTreeMap<DType, usize> = BTreeMap::new();
        for (entry, _) in &self.tensors {
            if entry.info.shape.len() > 1 {
                *counts.entry(entry.info.dtype).or_default() += entry.info.n_elements();
            }
        }
        let most = counts.into_iter().max_by_key(|(_, n)| *n);
        most.map_or(DType::F32, |(dtype, _)| dtype)
    }

    /// The view; `head` gets to know the tensors in blocks.
    pub(super) fn finish(self, head: &mut GgufHead) -> Checkpoint {
        for (name, shape) in self.coded {
            head.set_coded(name, shape);
        }
        let (entries, own) = self.tensors.into_iter().unzip();
        Checkpoint::new(Box::new(View {
            source: self.source,
            entries,
            own,
        }))
    }
}

struct View {
    source: Arc<Checkpoint>,
    entries: Vec<TensorEntry>,
    own: Vec<Own>,
}

impl Origin {
    /// Reads elements `first..` in the order of rows of GGUF, as they are stored.
    fn stored(&self, source: &Checkpoint, first: usize, out: &mut [u8]) -> Result<()> {
        let Some(turned) = self.turned else {
            return self.of_experts(source, first, out);
        };
        let width: usize = self.info.shape[1..].iter().product();
        let size = self.info.dtype.size_bytes();
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let (row, column) = (at / width, at % width);
            let n = (width - column).min(rest.len() / size);
            let (part, after) = rest.split_at_mut(n * size);
            source.read(&self.key, turned.in_halves(row) * width + column, part)?;
            (at, rest) = (at + n, after);
        }
        Ok(())
    }

    /// Reads elements `first..` of the tensors one behind the other.
    fn of_experts(&self, source: &Checkpoint, first: usize, out: &mut [u8]) -> Result<()> {
        if self.others.is_empty() {
            return source.read(&self.key, first, out);
        }
        let n_elements = self.info.n_elements() / (1 + self.others.len());
        let size = self.info.dtype.size_bytes();
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let (expert, within) = (at / n_elements, at % n_elements);
            let n = (n_elements - within).min(rest.len() / size);
            let (part, after) = rest.split_at_mut(n * size);
            let key = match expert {
                0 => &self.key,
                _ => &self.others[expert - 1],
            };
            source.read(key, within, part)?;
            (at, rest) = (at + n, after);
        }
        Ok(())
    }

    /// Elements `first..` as numbers.
    fn numbers(&self, source: &Checkpoint, first: usize, n: usize) -> Result<Vec<f32>> {
        let dtype = self.info.dtype;
        let mut bytes = vec![0; dtype.bytes_of(n)];
        self.stored(source, first, &mut bytes)?;
        let mut values = vec![0.0; n];
        decode_f32(&self.key, dtype, &bytes, &mut values)?;
        if self.plus_one {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        Ok(values)
    }

    /// Whether its bytes are those of the model.
    fn is_stored(&self) -> bool {
        self.form == Form::Plain(self.info.dtype) && !self.plus_one
    }

    fn read(&self, source: &Checkpoint, first: usize, out: &mut [u8]) -> Result<()> {
        match self.form {
            Form::Plain(_) if self.is_stored() => self.stored(source, first, out),
            Form::Plain(dtype) => {
                let values = self.numbers(source, first, out.len() / dtype.size_bytes())?;
                encode_f32(&self.key, dtype, &values, out)?;
                if dtype == DType::F16 {
                    self.require_held(source, first, &values, out)?;
                }
                Ok(())
            }
            Form::Blocks => {
                let (from, end) = (first / Q8_0_BYTES, (first + out.len()).div_ceil(Q8_0_BYTES));
                let n = (end - from) * Q8_0_ELEMENTS;
                let values = self.numbers(source, from * Q8_0_ELEMENTS, n)?;
                let mut blocks = vec![0; (end - from) * Q8_0_BYTES];
                let pairs = blocks
                    .chunks_exact_mut(Q8_0_BYTES)
                    .zip(values.as_chunks().0);
                for (number, (block, values)) in pairs.enumerate() {
                    let values: &[f32; Q8_0_ELEMENTS] = values;
                    let first = (from + number) * Q8_0_ELEMENTS;
                    to_q8_0(values, block).ok_or_else(|| self.too_large(source, first, "Q8_0"))?;
                }
                let skipped = first - from * Q8_0_BYTES;
                out.copy_from_slice(&blocks[skipped..skipped + out.len()]);
                Ok(())
            }
        }
    }

    /// Checks that no finite number became an infinity.
    fn require_held(
        &self,
        source: &Checkpoint,
        first: usize,
        values: &[f32],
        halves: &[u8],
    ) -> Result<()> {
        let is_lost = |(value, half): (&f32, &[u8; 2])| {
            value.is_finite() && !half::f16::from_le_bytes(*half).is_finite()
        };
        match values.iter().zip(halves.as_chunks().0).position(is_lost) {
            None => Ok(()),
            Some(at) => Err(self.too_large(source, first + at, "F16").into()),
        }
    }

    fn too_large(&self, source: &Checkpoint, element: usize, kind: &'static str) -> ExportFault {
        ExportFault::TooLarge {
            path: source.path().into(),
            key: self.key.clone(),
            element,
            kind,
        }
    }
}

impl TensorSource for View {
    fn info(&self) -> &SourceInfo {
        self.source.info()
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn is_computed(&self, index: usize) -> bool {
        match &self.own[index] {
            Own::Made(_) => true,
            Own::Origin(of) => {
                let is_one = of.turned.is_none() && of.others.is_empty();
                !of.is_stored() || !is_one || self.source.is_computed(&of.key)
            }
        }
    }

    fn held_bytes(&self) -> u64 {
        self.source.source().held_bytes()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        match &self.own[index] {
            Own::Origin(origin) => origin.read(&self.source, first, out),
            Own::Made(values) => {
                let values = &values[first..first + out.len() / size_of::<f32>()];
                encode_f32("", DType::F32, values, out)
            }
        }
    }
}
