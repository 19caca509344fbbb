//! The questions of `tests/gpu/day.sh` to a device, each answer a line of JSON:
//!
//! ```text
//! card about DEVICE                                                 whether the device opens, and how fast a product is
//! card parity DEVICE DTYPE FIXTURES                                 every family against the processor and the published programs
//! card steps DEVICE DTYPE CHECKPOINT BATCH STEPS [checkpointing]    steps of retrieval on fixed inputs
//! card compare FILE FILE                                            how far two files of tensors are apart
//! ```
//!
//! On the processor f64 takes the way of a card, through candle's own operations, and f16 stands in for bf16, which candle does not
//! multiply there.
#![allow(clippy::print_stdout, reason = "an example prints")]

mod about;
mod parity;
mod steps;
#[path = "../timed_step/mod.rs"]
mod timed_step;

use std::error::Error;
use std::path::Path;

use candle_core::{DType, Device};
use evaluate::device::DeviceName;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

fn dtype(name: &str) -> Result<DType> {
    Ok(match name {
        "f32" => DType::F32,
        "f64" => DType::F64,
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        _ => return Err(format!("`{name}` is none of f32, f64, f16 and bf16").into()),
    })
}

fn device(name: &str) -> Result<Device> {
    let name: DeviceName = name.parse()?;
    // f16 on the processor is asked for on purpose.
    Ok(name.open(evaluate::device::Precision::F32)?)
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = match &words[..] {
        ["about", on] => about::about(&device(on)?)?,
        ["parity", on, of, fixtures] => {
            parity::parity(&device(on)?, dtype(of)?, Path::new(fixtures))?
        }
        ["steps", on, of, checkpoint, batch, n_steps, rest @ ..] => steps::steps(&steps::Wish {
            device: device(on)?,
            dtype: dtype(of)?,
            checkpoint: Path::new(checkpoint),
            batch: batch.parse()?,
            n_steps: n_steps.parse()?,
            recomputes: rest.contains(&"checkpointing"),
        })?,
        ["compare", one, other] => parity::compare_files(Path::new(one), Path::new(other))?,
        _ => return Err("see the first lines of train/examples/card/main.rs".into()),
    };
    println!("{said}");
    Ok(())
}
