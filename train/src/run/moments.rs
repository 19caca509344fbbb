//! The optimizer's moments of each variable, as a rank keeps them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor, Var};

use crate::{Error, Result};

/// A value for each element of a variable that this rank owns, where the variable is.
#[derive(Clone, Debug)]
pub(super) enum Moment {
    /// In memory, row-major; empty where the rank owns nothing.
    Host(Vec<f32>),
    /// On another device.
    Device(Tensor),
}

impl Moment {
    /// The values.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn values(&self) -> Result<Cow<'_, [f32]>> {
        Ok(match self {
            Self::Host(values) => Cow::Borrowed(values),
            Self::Device(tensor) => {
                let flat = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
                Cow::Owned(flat.flatten_all()?.to_vec1()?)
            }
        })
    }

    /// Values where the variable is.
    fn beside(values: Vec<f32>, variable: &Var) -> Result<Self> {
        if values.is_empty() || variable.device().is_cpu() {
            return Ok(Self::Host(values));
        }
        let tensor = Tensor::from_vec(values, variable.dims(), &Device::Cpu)?;
        Ok(Self::Device(tensor.to_device(variable.device())?))
    }
}

/// Both moments of one variable: the mean of the gradient, and that of its square.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) first: Moment,
    pub(super) second: Moment,
}

/// Moments by name of variable. All ranks know the same names; each keeps what it owns.
#[derive(Clone, Debug, Default)]
pub(super) struct Moments {
    pairs: BTreeMap<String, Pair>,
    /// Elements of the whole variables.
    lengths: BTreeMap<String, usize>,
}

impl Moments {
    /// Names with the lengths of the whole variables.
    pub(super) fn lengths(&self) -> impl Iterator<Item = (&String, usize)> {
        self.lengths.iter().map(|(name, n)| (name, *n))
    }

    /// Both moments of a variable, if it has any.
    pub(super) fn get(&self, name: &str) -> Option<&Pair> {
        self.pairs.get(name)
    }

    /// Both moments of the `own` part of a variable, which begin at zero.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn of(
        &mut self,
        name: &str,
        variable: &Var,
        own: &Range<usize>,
    ) -> Result<&mut Pair> {
        if !self.pairs.contains_key(name) {
            let zeros = [vec![0.0; own.len()], vec![0.0; own.len()]];
            self.put(name, variable, zeros)?;
        }
        let lost = || Error::OtherMoments { name: name.into() };
        self.pairs.get_mut(name).ok_or_else(lost)
    }

    /// Takes both moments of this rank's part of a variable.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn put(
        &mut self,
        name: &str,
        variable: &Var,
        [first, second]: [Vec<f32>; 2],
    ) -> Result<()> {
        let pair = Pair {
            first: Moment::beside(first, variable)?,
            second: Moment::beside(second, variable)?,
        };
        self.pairs.insert(name.to_owned(), pair);
        self.lengths.insert(name.to_owned(), variable.elem_count());
        Ok(())
    }
}
