//! One file per verb: flags, calls into the library, printing.

pub mod arithmetic;
pub mod convert;
pub mod data;
pub mod diff;
pub mod distance;
pub mod encode;
pub mod evaluate;
pub mod expand;
pub mod extract_lora;
pub mod finetune;
pub mod forward;
pub mod gram;
pub mod inspect;
pub mod interpolate;
pub mod merge;
pub mod pretrain;
pub mod recipe;
pub mod regmean;
pub mod report;
pub mod score;
pub mod search;
pub mod soup;
pub mod study;
pub mod sweep;
pub mod synth;
pub mod verify;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::Command;
use crate::output::Output;

/// Runs the verb.
pub fn run(command: Command, output: &Output) -> Result<ExitCode> {
    match command {
        Command::Inspect(args) => inspect::run(args, output),
        Command::Diff(args) => diff::run(args, output),
        Command::Convert(args) => convert::run(args, output),
        Command::Expand(args) => expand::run(args, output),
        Command::Synth(args) => synth::run(args, output),
        Command::Distance(args) => distance::run(args, output),
        Command::Interpolate(args) => interpolate::run(args, output),
        Command::Arithmetic(args) => arithmetic::run(args, output),
        Command::Regmean(args) => regmean::run(args, output),
        Command::Recipe(args) => recipe::run(&args, output),
        Command::Merge(args) => merge::run(args, output),
        Command::ExtractLora(args) => extract_lora::run(&args, output),
        Command::Data(args) => data::run(args, output),
        Command::Forward(args) => forward::run(args, output),
        Command::Gram(args) => gram::run(args, output),
        Command::Evaluate(args) => evaluate::run(args, output),
        Command::Encode(args) => encode::run(&args, output),
        Command::Soup(args) => soup::run(args, output),
        Command::Sweep(args) => sweep::run(args, output),
        Command::Pretrain(args) => pretrain::run(args, output),
        Command::Finetune(args) => finetune::run(args, output),
        Command::Search(args) => search::run(args, output),
        Command::Study(args) => study::run(args, output),
        Command::Score(args) => score::run(args, output),
        Command::Report(args) => report::run(args, output),
        Command::Verify(args) => verify::run(&args, output),
    }
}
