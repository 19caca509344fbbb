//! The ranks that the program was started as: one, unless `mpirun` or `WORLD_SIZE` says otherwise.

use std::process::ExitCode;
use std::rc::Rc;

use anyhow::Result;
use candle_core::Device;
use train::collective::{self, Collective};

use crate::output::{self, Output};

/// Does work as one of the ranks, of which the first alone shows what it does. `device` is where a
/// rank computes.
pub fn among(
    device: &Device,
    output: &Output,
    work: impl FnOnce(&Rc<dyn Collective>, &Output) -> Result<ExitCode>,
) -> Result<ExitCode> {
    let ranks: Rc<dyn Collective> = collective::start(device)?.into();
    let silent = Output::silent();
    let output = match ranks.is_first() {
        true => output,
        false => &silent,
    };
    match work(&ranks, output) {
        Ok(code) => {
            ranks.finish()?;
            Ok(code)
        }
        // A rank that has failed ends all when it is dropped: the message must come before.
        Err(error) if ranks.size() > 1 => Ok(output::report(&error)),
        Err(error) => Err(error),
    }
}
