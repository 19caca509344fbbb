//! Tensors that a user gives to a model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use merge::{Checkpoint, TensorInfo};

use super::{Input, Kind};
use crate::batch::{Images, Texts};
use crate::{Error, GivenFault, Result};

/// The label of places without anything to learn.
const IGNORED: i64 = -100;

/// Tensors of a file, each checked against what the family takes.
#[derive(Clone, Debug)]
pub struct Given {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    inputs: Vec<Input>,
    device: Device,
    dtype: DType,
}

impl Given {
    /// Reads every tensor of a file, for a model that computes on `device` in `dtype`.
    ///
    /// # Errors
    /// [`GivenFault::UnknownInput`] for a tensor of another name, [`GivenFault::BadInput`] for one of
    /// another shape, dtype or range, and when the file cannot be read.
    pub fn open(
        file: &Checkpoint,
        inputs: Vec<Input>,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        Self::open_batch(file, None, inputs, device, dtype)
    }

    /// The same for a file of several batches: of each name that begins with `batch` and a dot it takes what
    /// follows, and it leaves out the others.
    ///
    /// # Errors
    /// As [`Given::open`]; [`GivenFault::NoBatch`] where no name begins so.
    pub fn open_batch(
        file: &Checkpoint,
        batch: Option<&str>,
        inputs: Vec<Input>,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        file.require_unique_names()?;
        let path = file.path().to_owned();
        let mut tensors = BTreeMap::new();
        for (key, info) in file.tensors() {
            let name = match batch {
                None => Some(key),
                Some(batch) => (key.strip_prefix(batch)).and_then(|rest| rest.strip_prefix('.')),
            };
            let Some(name) = name else { continue };
            let input = inputs.iter().find(|input| input.is_called(name));
            let input = input.ok_or_else(|| unknown(&path, name, &inputs))?;
            let bytes = file.read_all(key)?;
            let tensor = read(&path, name, input, info, &bytes, device)?;
            tensors.insert(name.to_owned(), tensor);
        }
        if let (Some(batch), true) = (batch, tensors.is_empty()) {
            let batch = batch.to_owned();
            return Err(Error::Given(GivenFault::NoBatch { path, batch }));
        }
        Ok(Self {
            path,
            tensors,
            inputs,
            device: device.clone(),
            dtype,
        })
    }

    /// Checks that every input of a pass or a loss is there, and that they agree on their sizes.
    ///
    /// # Errors
    /// [`GivenFault::MissingInput`], [`GivenFault::BadInput`].
    pub fn check(&self, pass: &str, names: &[&str]) -> Result<()> {
        let mut sizes: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
        for &name in names {
            let input = self.inputs.iter().find(|input| input.name == name);
            let found = self.numbered(name);
            let (Some(input), false) = (input, found.is_empty()) else {
                return Err(Error::Given(GivenFault::MissingInput {
                    path: self.path.clone(),
                    pass: pass.to_owned(),
                    name: name.to_owned(),
                    expected: input.map_or_else(|| name.to_owned(), Input::to_string),
                }));
            };
            let shapes = found.into_iter().map(Tensor::dims);
            let axes = shapes.flat_map(|dims| input.shape.iter().zip(dims));
            for (size, &found) in axes {
                let Some(letter) = size.letter() else {
                    continue;
                };
                let &mut (other, expected) = sizes.entry(letter).or_insert((name, found));
                if expected != found {
                    let fault = format!("has {letter} = {found}, but `{other}` has {expected}");
                    return Err(self.bad(name, fault));
                }
            }
        }
        Ok(())
    }

    fn bad(&self, name: &str, fault: String) -> Error {
        Error::Given(GivenFault::BadInput {
            path: self.path.clone(),
            name: name.to_owned(),
            fault,
        })
    }

    /// The tensors of a name with a number in it, `{i}`, from 0 up to the first that is missing; of a plain
    /// name, the one that has it.
    #[must_use]
    pub fn numbered(&self, name: &str) -> Vec<&Tensor> {
        match name.contains("{i}") {
            false => self.tensors.get(name).into_iter().collect(),
            true => (0..)
                .map_while(|i: usize| self.tensors.get(&name.replace("{i}", &i.to_string())))
                .collect(),
        }
    }

    /// Whether a tensor is there.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The device on which models compute.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A tensor as it was read: ids as u32, labels as i64, flags as u8, numbers as f32.
    ///
    /// # Errors
    /// [`GivenFault::MissingInput`].
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| {
            Error::Given(GivenFault::MissingInput {
                path: self.path.clone(),
                pass: name.to_owned(),
                name: name.to_owned(),
                expected: name.to_owned(),
            })
        })
    }

    /// Numbers in the dtype of the model.
    ///
    /// # Errors
    /// [`GivenFault::MissingInput`], or when the device fails.
    pub fn floats(&self, name: &str) -> Result<Tensor> {
        Ok(self.tensor(name)?.to_dtype(self.dtype)?)
    }

    /// Pictures, `(b, 3, s, s)`.
    ///
    /// # Errors
    /// As [`Given::floats`].
    pub fn images(&self, name: &str) -> Result<Images> {
        Ok(Images::new(self.floats(name)?))
    }

    /// Texts of ids and kept tokens, `(b, t)` each.
    ///
    /// # Errors
    /// As [`Given::floats`].
    pub fn texts(&self, ids: &str, kept: &str) -> Result<Texts> {
        Texts::of_tensors(self.tensor(ids)?.clone(), self.tensor(kept)?.clone())
    }

    /// Classes, row after row.
    ///
    /// # Errors
    /// As [`Given::floats`].
    pub fn classes(&self, name: &str) -> Result<Vec<u32>> {
        let classes = self.integers(name)?.into_iter();
        Ok(classes.map(|class| class as u32).collect())
    }

    /// Whole numbers, row after row.
    ///
    /// # Errors
    /// As [`Given::floats`].
    pub fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let flat = self.tensor(name)?.to_dtype(DType::I64)?.flatten_all()?;
        Ok(flat.to_vec1()?)
    }
}

fn unknown(path: &Path, name: &str, inputs: &[Input]) -> Error {
    let known: Vec<String> = inputs.iter().map(Input::to_string).collect();
    Error::Given(GivenFault::UnknownInput {
        path: path.to_owned(),
        name: name.to_owned(),
        known: known.join("; "),
    })
}

/// A tensor whose shape, dtype and values are checked.
fn read(
    path: &Path,
    name: &str,
    input: &Input,
    info: &TensorInfo,
    bytes: &[u8],
    device: &Device,
) -> Result<Tensor> {
    let bad = |fault: String| {
        Error::Given(GivenFault::BadInput {
            path: path.to_owned(),
            name: name.to_owned(),
            fault: format!("{fault}; expected {input}"),
        })
    };
    let fits = info.shape.len() == input.shape.len()
        && (input.shape.iter().zip(&info.shape)).all(|(size, &found)| size.allows(found));
    if !fits {
        return Err(bad(format!("has shape {:?}", info.shape)));
    }
    use merge::DType as Stored;
    let is_float = matches!(
        info.dtype,
        Stored::F16 | Stored::BF16 | Stored::F32 | Stored::F64
    );
    let is_integer = matches!(
        info.dtype,
        Stored::I64 | Stored::I32 | Stored::I16 | Stored::I8 | Stored::U8
    );
    let is_right = match input.kind {
        Kind::Floats => is_float,
        Kind::Bytes => info.dtype == Stored::U8,
        Kind::Flags => is_integer || info.dtype == Stored::Bool,
        Kind::Ids { .. } | Kind::Labels { .. } => is_integer,
    };
    if !is_right {
        return Err(bad(format!("holds {}", info.dtype)));
    }
    let shape = info.shape.as_slice();
    if input.kind == Kind::Floats {
        let mut values = vec![0.0; info.n_elements()];
        merge::decode_f32(name, info.dtype, bytes, &mut values)?;
        return Ok(Tensor::from_vec(values, shape, device)?);
    }
    let values = integers(info.dtype, bytes);
    let allowed = |value: &i64| match input.kind {
        Kind::Flags => matches!(value, 0 | 1),
        Kind::Ids { below } => *value >= 0 && *value < below as i64,
        Kind::Labels { below } => *value == IGNORED || (*value >= 0 && *value < below as i64),
        Kind::Floats | Kind::Bytes => true,
    };
    if let Some((at, value)) = values.iter().enumerate().find(|(_, value)| !allowed(value)) {
        return Err(bad(format!("element {at} is {value}")));
    }
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
    let tensor = tensor.to_dtype(match input.kind {
        Kind::Ids { .. } => DType::U32,
        Kind::Flags | Kind::Bytes => DType::U8,
        Kind::Labels { .. } | Kind::Floats => DType::I64,
    })?;
    Ok(tensor.to_device(device)?)
}

/// Stored whole numbers; other dtypes give nothing.
fn integers(dtype: merge::DType, bytes: &[u8]) -> Vec<i64> {
    use merge::DType as Stored;
    match dtype {
        Stored::I64 => of(bytes, i64::from_le_bytes),
        Stored::I32 => of(bytes, |b| i32::from_le_bytes(b).into()),
        Stored::I16 => of(bytes, |b| i16::from_le_bytes(b).into()),
        Stored::I8 => of(bytes, |b| i8::from_le_bytes(b).into()),
        Stored::U8 | Stored::Bool => of(bytes, |[b]: [u8; 1]| b.into()),
        _ => Vec::new(),
    }
}

fn of<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> i64) -> Vec<i64> {
    bytes.as_chunks::<N>().0.iter().map(|b| read(*b)).collect()
}
