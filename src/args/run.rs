//! The folder and the device of a training run.

use std::path::PathBuf;

use clap::Args;
use evaluate::device::DeviceName;

/// The folder, the recipe's changes and the device of a run; the same in every verb that trains.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Run")]
pub struct RunArgs {
    /// Folder of the run: recipe, log, states, weights
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Change a setting of the recipe, e.g. optim.lr=3e-5; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Continue the run in the folder
    #[arg(long)]
    pub resume: bool,
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "NAME", default_value_t)]
    pub device: DeviceName,
    /// Check everything, print sizes and memory, train nothing
    #[arg(long)]
    pub dry_run: bool,
}
