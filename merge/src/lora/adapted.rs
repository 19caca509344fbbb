//! A checkpoint with an adapter merged into it, tensor by tensor while it is read.

use std::collections::VecDeque;
use std::ops::{Add, AddAssign, Mul, Sub};
use std::sync::{Arc, Mutex, PoisonError};

use super::changes::{Change, Changes, Magnitude};
use super::factors;
use super::updates::{Delta, Update};
use crate::execute::finite::{first_of, is_finite};
use crate::io::{self, Aliases, Blamed, SourceInfo, TensorEntry};
use crate::plan::PIECE_ELEMENTS;
use crate::{Checkpoint, DType, MergeFault, Result, TensorInfo, TensorSource};
use crate::{decode_f32, decode_f64};

/// The number of tensors whose factors are kept: as many as threads are likely to be at.
const N_KEPT: usize = 8;

/// The change of a tensor by an adapter, read.
#[derive(Default)]
struct Ready {
    update: Option<Update>,
    /// The factor of each row, or column.
    stretch: Vec<f32>,
}

/// Updates of some tensors, by their index, while they are likely to be used again.
type Kept = VecDeque<(usize, Arc<Ready>)>;

/// A tensor of the view.
struct Own {
    /// Its name in the base.
    key: String,
    /// The dtype in which it is stored.
    stored: DType,
    change: Option<Change>,
}

pub(super) struct Adapted {
    unmerged: Arc<Checkpoint>,
    base: Arc<Checkpoint>,
    adapter: Checkpoint,
    weight: f64,
    info: SourceInfo,
    tensors: Vec<TensorEntry>,
    own: Vec<Own>,
    kept: Mutex<Kept>,
}

impl Adapted {
    /// The view. Lengths of rows are taken from `unmerged`. Changed tensors are `f64` where `keeps_rank`, in which a
    /// product of factors keeps its rank on top of the base.
    pub(super) fn new(
        unmerged: Arc<Checkpoint>,
        base: Arc<Checkpoint>,
        adapter: Checkpoint,
        settings: Option<io::SourceFile>,
        mut changes: Changes,
        weight: f64,
        keeps_rank: bool,
    ) -> Result<Self> {
        let mut info = base.info().clone();
        info.files.extend(adapter.info().files.iter().cloned());
        info.files.extend(settings);
        let of_base = base
            .tensors()
            .map(|(key, _)| (key.to_owned(), key.to_owned()));
        let mut names: Vec<(String, String)> = of_base.chain(changes.heads).collect();
        names.sort();
        let (mut tensors, mut own) = (Vec::new(), Vec::new());
        for (name, key) in names {
            let stored = base.require(&key)?;
            let change = changes.by_target.remove(&name);
            let dtype = match (&change, stored.dtype) {
                (Some(_), dtype) if keeps_rank && dtype.is_float() => DType::F64,
                (Some(_), DType::F16 | DType::BF16) => DType::F32,
                (_, dtype) => dtype,
            };
            let whole = change.as_ref().and_then(|change| change.replaced.as_ref());
            let shape = whole
                .map_or(&stored.shape, |(_, whole)| &whole.shape)
                .clone();
            if weight != 1.0 && shape != stored.shape {
                return Err(MergeFault::Shapes {
                    key: name,
                    model: adapter.path().display().to_string(),
                    found: shape,
                    first: base.path().display().to_string(),
                    expected: stored.shape.clone(),
                    place: crate::recipe::Place::default(),
                }
                .into());
            }
            tensors.push(TensorEntry::named(name, TensorInfo { dtype, shape }));
            own.push(Own {
                stored: base.stored_dtype(&key).unwrap_or(stored.dtype),
                key,
                change,
            });
        }
        Ok(Self {
            unmerged,
            base,
            adapter,
            weight,
            info,
            tensors,
            own,
            kept: Mutex::default(),
        })
    }

    /// Whether no tensor differs from the base: each update is 0, or the weight is. Reads factors until one is not 0.
    pub(super) fn is_idle(&self) -> Result<bool> {
        if self.weight == 0.0 {
            return Ok(true);
        }
        for change in self.own.iter().filter_map(|own| own.change.as_ref()) {
            let is_more =
                change.replaced.is_some() || change.magnitude.is_some() || change.rows.is_some();
            let added = change.added.as_ref();
            let is_zero = added.map_or(Ok(true), |delta| delta.is_zero(&self.adapter))?;
            if is_more || !is_zero {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the base has a finite number at an element of a changed tensor.
    fn is_base_finite(&self, own: &Own, element: usize) -> Result<bool> {
        let is_there = element < self.base.require(&own.key)?.n_elements();
        let is_replaced = (own.change.as_ref()).is_some_and(|change| change.replaced.is_some());
        if !is_there || is_replaced {
            return Ok(true);
        }
        let mut value = [0.0f64];
        read((&*self.base, &own.key), element, &mut value)?;
        Ok(value[0].is_finite())
    }

    /// The update of a tensor, read unless it was used a short while ago.
    fn ready(&self, index: usize, change: &Change) -> Result<Arc<Ready>> {
        if change.added.is_none() && change.magnitude.is_none() {
            return Ok(Arc::default());
        }
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = lock().iter().find(|(known, _)| *known == index) {
            return Ok(Arc::clone(known));
        }
        let added = change.added.as_ref();
        let mut ready = Ready {
            update: added.map(|delta| delta.read(&self.adapter)).transpose()?,
            stretch: Vec::new(),
        };
        if let Some(magnitude) = &change.magnitude {
            ready.stretch = self.stretch(index, magnitude, ready.update.as_ref())?;
        }
        let ready = Arc::new(ready);
        let mut kept = lock();
        if kept.len() >= N_KEPT {
            kept.pop_front();
        }
        kept.push_back((index, Arc::clone(&ready)));
        Ok(ready)
    }

    /// Lengths of the adapter over those of the sums: a pass over the tensor, in bounded memory.
    fn stretch(
        &self,
        index: usize,
        magnitude: &Magnitude,
        update: Option<&Update>,
    ) -> Result<Vec<f32>> {
        let key = &self.own[index].key;
        let info = self.unmerged.require(key)?;
        let width = width(info);
        let mut stretch = factors::values(&self.adapter, &magnitude.lengths)?;
        let mut squares = vec![0.0f64; stretch.len()];
        let n_elements = info.n_elements();
        for first in (0..n_elements).step_by(PIECE_ELEMENTS) {
            let n = PIECE_ELEMENTS.min(n_elements - first);
            let mut values = vec![0.0f32; n];
            read((&*self.unmerged, key), first, &mut values)?;
            let mut added = vec![0.0f32; n];
            if let Some(update) = update {
                update.fill(first, &mut added);
            }
            for (at, (value, added)) in values.iter().zip(&added).enumerate() {
                let sum = f64::from(value + added);
                squares[magnitude.index_of(first + at, width)] += sum * sum;
            }
        }
        for (stretch, squares) in stretch.iter_mut().zip(squares) {
            *stretch /= squares.sqrt() as f32;
        }
        Ok(stretch)
    }

    /// Elements `first..` of a changed tensor, as they are in memory.
    fn make_bytes<T: Number>(
        &self,
        index: usize,
        change: &Change,
        first: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let mut values = vec![T::default(); out.len() / size_of::<T>()];
        self.make(index, change, first, &mut values)?;
        out.copy_from_slice(bytemuck::cast_slice(&values));
        Ok(())
    }

    /// Elements `first..` of a changed tensor.
    fn make<T: Number>(
        &self,
        index: usize,
        change: &Change,
        first: usize,
        out: &mut [T],
    ) -> Result<()> {
        let own = &self.own[index];
        let start = match &change.replaced {
            Some((name, _)) => (&self.adapter, name),
            None => (&*self.base, &own.key),
        };
        read(start, first, out)?;
        let ready = self.ready(index, change)?;
        if let Some(update) = &ready.update {
            let mut added = vec![T::default(); out.len()];
            update.fill(first, &mut added);
            for (value, added) in out.iter_mut().zip(added) {
                *value += added;
            }
        }
        let width = width(&self.tensors[index].info);
        if let Some(magnitude) = &change.magnitude {
            for (at, value) in out.iter_mut().enumerate() {
                let stretch = ready.stretch[magnitude.index_of(first + at, width)];
                *value = T::from(stretch) * *value;
            }
        }
        if let Some((rows, tokens)) = &change.rows {
            let last = first + out.len();
            for (place, &token) in tokens.iter().enumerate() {
                let (start, end) = ((token * width).max(first), ((token + 1) * width).min(last));
                if start < end {
                    let at = place * width + start - token * width;
                    read(
                        (&self.adapter, &rows.0),
                        at,
                        &mut out[start - first..end - first],
                    )?;
                }
            }
        }
        if self.weight != 1.0 {
            let mut before = vec![T::default(); out.len()];
            read((&*self.base, &own.key), first, &mut before)?;
            let weight = T::of(self.weight);
            for (value, before) in out.iter_mut().zip(before) {
                *value = before + weight * (*value - before);
            }
        }
        Ok(())
    }
}

/// Elements of a row, further axes as columns.
fn width(info: &TensorInfo) -> usize {
    info.shape.iter().skip(1).product::<usize>().max(1)
}

/// The two types that are computed in.
pub(super) trait Number:
    bytemuck::Pod
    + Default
    + From<f32>
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
{
    fn of(value: f64) -> Self;
    fn decode(key: &str, dtype: DType, bytes: &[u8], out: &mut [Self]) -> Result<()>;
}

impl Number for f32 {
    fn of(value: f64) -> Self {
        value as Self
    }

    fn decode(key: &str, dtype: DType, bytes: &[u8], out: &mut [Self]) -> Result<()> {
        decode_f32(key, dtype, bytes, out)
    }
}

impl Number for f64 {
    fn of(value: f64) -> Self {
        value
    }

    fn decode(key: &str, dtype: DType, bytes: &[u8], out: &mut [Self]) -> Result<()> {
        decode_f64(key, dtype, bytes, out)
    }
}

/// Elements `first..` of a tensor as numbers.
fn read<T: Number>(
    (source, key): (&Checkpoint, &String),
    first: usize,
    out: &mut [T],
) -> Result<()> {
    let dtype = source.require(key)?.dtype;
    let mut bytes = vec![0; dtype.bytes_of(out.len())];
    source.read(key, first, &mut bytes)?;
    T::decode(key, dtype, &bytes, out)
}

impl TensorSource for Adapted {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// Those of the base, except for heads that the adapter gives weights of their own.
    fn aliases(&self) -> Aliases {
        let mut aliases = self.base.aliases().clone();
        for entry in &self.tensors {
            aliases.remove(entry.name.as_deref().unwrap_or_default());
        }
        aliases
    }

    fn stored_dtype(&self, index: usize) -> DType {
        self.own[index].stored
    }

    fn is_computed(&self, index: usize) -> bool {
        let own = &self.own[index];
        own.change.is_some() || self.base.is_computed(&own.key)
    }

    fn blamed(&self, index: usize, element: usize) -> Result<Option<Blamed>> {
        let own = &self.own[index];
        if own.change.is_none() || !self.is_base_finite(own, element)? {
            return self.base.blamed(&own.key, element);
        }
        for (key, info) in self.adapter.tensors() {
            let bytes = self.adapter.read_all(key)?;
            if !is_finite(info.dtype, &bytes) {
                let (at, _) = first_of(key, info.dtype, &bytes)?;
                return Ok(Some(Blamed {
                    path: self.adapter.path().into(),
                    key: key.to_owned(),
                    index: info.index_of(at),
                }));
            }
        }
        // Finite factors make a product that is too large.
        let tensor = &self.tensors[index];
        Ok(Some(Blamed {
            path: self.adapter.path().into(),
            key: tensor.name.clone().unwrap_or_default(),
            index: tensor.info.index_of(element),
        }))
    }

    fn held_bytes(&self) -> u64 {
        let deltas = (self.own.iter()).filter_map(|own| own.change.as_ref()?.added.as_ref());
        let mut sizes: Vec<u64> = deltas.map(Delta::n_bytes).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        self.base.source().held_bytes() + sizes.iter().take(N_KEPT).sum::<u64>()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let own = &self.own[index];
        let Some(change) = &own.change else {
            return self.base.read(&own.key, first, out);
        };
        let to = self.tensors[index].info.dtype;
        if let Some((name, whole)) = &change.replaced
            && change.added.is_none()
            && change.magnitude.is_none()
            && change.rows.is_none()
            && self.weight == 1.0
            && whole.dtype == to
        {
            return self.adapter.read(name, first, out);
        }
        match to {
            DType::F64 => self.make_bytes::<f64>(index, change, first, out),
            _ => self.make_bytes::<f32>(index, change, first, out),
        }
    }
}
