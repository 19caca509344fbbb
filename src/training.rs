//! Running a training recipe.

use std::process::ExitCode;
use std::rc::Rc;

use anyhow::Result;
use candle_core::Device;
use evaluate::device::Precision;
use train::collective::Collective;
use train::recipe::CheckedRecipe;
use train::run::{Ended, Pace, RunFolder, TrainPlan, Trainer, Where};

use crate::args::run::RunArgs;
use crate::output::{Output, UsageError};
use crate::ranks;

/// Runs a recipe to its end, or until the user stops it.
pub fn carry_out(recipe: CheckedRecipe, args: &RunArgs, output: &Output) -> Result<ExitCode> {
    let is_begun = RunFolder::is_begun(&args.out);
    if is_begun && !args.resume && !args.dry_run {
        let what = format!(
            "{} holds a run; give --resume to go on with it, or another --out",
            args.out.display()
        );
        return Err(UsageError(what).into());
    }
    let precision: Precision = recipe.precision.parse().map_err(UsageError)?;
    let device = args.device.open(precision)?;
    ranks::among(&device.clone(), output, |ranks, output| {
        train(ranks, recipe, device, args, output)
    })
}

/// Runs a recipe as one of `ranks`.
fn train(
    ranks: &Rc<dyn Collective>,
    recipe: CheckedRecipe,
    device: Device,
    args: &RunArgs,
    output: &Output,
) -> Result<ExitCode> {
    let place = Where {
        folder: &args.out,
        device,
        collective: ranks.as_ref(),
        experts: Some(Rc::clone(ranks)),
        progress: output,
    };
    let plan = match args.dry_run && !args.resume {
        true => TrainPlan::fresh(recipe, &place)?,
        false => TrainPlan::of(recipe, &place)?,
    };
    if let (Some([from, to]), true) = (plan.resized_images(), ranks.is_first()) {
        output.note(format!(
            "images of {to} x {to} px, where the checkpoint was trained on {from} x {from} px; \
             --set model.image_size={from} keeps its size"
        ));
    }
    if ranks.is_first() {
        output.say_notes(plan.notes_of_weights());
    }
    if args.dry_run {
        dry_run(&plan, output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut trainer = Trainer::begin(plan, place)?;
    let from = trainer.state().step;
    if ranks.is_first() {
        let n = trainer.n_steps();
        output.note(match from {
            0 => format!("{n} steps"),
            _ => format!("going on after step {from} of {n}"),
        });
    }
    let ended = trainer.run()?;
    if !ranks.is_first() {
        return Ok(ExitCode::SUCCESS);
    }
    tell_pace(trainer.pace(), output);
    match ended {
        Ended::Done => {
            if let Some(best) = trainer.state().best {
                let path = args.out.join("best.safetensors");
                output.line(format!(
                    "{}: best on validation data, {:.4} after step {}",
                    path.display(),
                    best.value,
                    best.step
                ))?;
            }
            output.line(args.out.join("model.safetensors").display().to_string())?;
            Ok(ExitCode::SUCCESS)
        }
        Ended::Stopped => {
            let step = trainer.state().step;
            output.note(format!("stopped after step {step}; --resume goes on"));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn dry_run(plan: &TrainPlan, output: &Output) -> Result<()> {
    let memory = plan.memory();
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    output.line(format!("{} steps", plan.n_steps()))?;
    output.line(format!(
        "{} parameters, {}",
        memory.n_parameters,
        megabytes(4 * memory.n_parameters)
    ))?;
    if memory.computing_bytes > 0 {
        let copy = megabytes(memory.computing_bytes);
        output.line(format!("their copy that the model computes with: {copy}"))?;
    }
    output.line(format!("gradients: {}", megabytes(memory.gradient_bytes)))?;
    output.line(format!(
        "optimizer of this rank: {}",
        megabytes(memory.optimizer_bytes)
    ))?;
    output.line(format!(
        "weights it starts from, where no file holds them: {} while it begins, {} then; a copy while weights are kept: {}",
        megabytes(memory.start_bytes),
        megabytes(memory.unused_bytes),
        megabytes(memory.saving_bytes)
    ))?;
    output.line(format!(
        "activations of a part of the batch, by estimate: {}",
        megabytes(memory.activation_bytes)
    ))?;
    output.line(format!(
        "features of the batch with their gradients: {}; similarities of the rows compared at once: {}",
        megabytes(memory.comparison.features),
        megabytes(memory.comparison.similarities)
    ))?;
    output.line(format!(
        "parts that are loaded ahead: {}",
        megabytes(memory.ahead_bytes)
    ))?;
    let total = megabytes(memory.total_bytes());
    output.line(format!("at the peak, all together: {total}"))
}

/// Says how fast data came, and whether the device had to wait for them.
fn tell_pace(pace: Pace, output: &Output) {
    if pace.seconds <= 0.0 {
        return;
    }
    let learned = pace.examples as f64 / pace.seconds;
    output.note(format!(
        "{learned:.1} examples/s learned from, {:.1} examples/s could be loaded on each rank; waited \
         for data {:.1} of {:.1} s ({:.1}%)",
        pace.input_examples_per_second,
        pace.waited_seconds,
        pace.seconds,
        100.0 * pace.waited_seconds / pace.seconds
    ));
}
