//! The device and the precision in which models run. The user chooses both once.

use std::str::FromStr;

use candle_core::{DType, Device};

use crate::{Error, Result};

/// A device by name: `cpu`, `cuda`, `cuda:1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA card by number.
    Cuda(usize),
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "one of cpu, cuda, cuda:N".to_owned();
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", index)) => Ok(Self::Cuda(index.parse().map_err(|_| wrong())?)),
            _ => Err(wrong()),
        }
    }
}

impl DeviceName {
    /// Opens the device and checks that it computes in `precision`.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when it is not there or this program was built without it,
    /// [`Error::Precision`] for bf16 and f16 on the processor.
    pub fn open(self, precision: Precision) -> Result<Device> {
        let device = match self {
            Self::Cpu => Device::Cpu,
            Self::Cuda(index) => Device::new_cuda(index).map_err(|source| Error::NoDevice {
                name: self.to_string(),
                source,
            })?,
        };
        match (self, precision) {
            (Self::Cpu, Precision::F16 | Precision::Bf16) => Err(Error::Precision {
                device: self.to_string(),
                precision,
            }),
            _ => Ok(device),
        }
    }
}

/// The precision that a model computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with 10 of mantissa.
    F16,
    /// 16 bits with the range of f32.
    Bf16,
}

impl Precision {
    /// candle's name for it.
    #[must_use]
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err("one of f32, f16, bf16".into()),
        }
    }
}
