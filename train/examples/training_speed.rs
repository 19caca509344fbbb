//! Times steps of retrieval fine-tuning on fixed inputs and prints a JSON line, for
//! `benches/training_step.py`: the same weights, inputs, batch and threads as PyTorch there.
//!
//! `RAYON_NUM_THREADS=2 training_speed CHECKPOINT BATCH STEPS [checkpointing]`
#![allow(clippy::print_stdout, reason = "an example prints")]

mod timed_step;

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device};
use evaluate::models::Overrides;
use evaluate::nn::{Buffers, Gradients, Tape};
use evaluate::ranks::ExpertShare;
use train::collective::Alone;
use train::objectives::{self, Shared, Step};
use train::run::{Start, Updater, Wanted};

use timed_step::{inputs, settings};

/// Processor time of this process so far.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // After the name: the state is field 3, user and system time in hundredths are 14 and 15.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let hundredths = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((hundredths(11)? + hundredths(12)?) / 100.0)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, batch, n_steps, rest @ ..] = &arguments[..] else {
        return Err("training_speed CHECKPOINT BATCH STEPS [checkpointing]".into());
    };
    let n_steps: u64 = n_steps.parse()?;
    let objective = objectives::by_name("retrieval", None)?;
    let checkpoint = merge::io::open(Path::new(checkpoint), &merge::io::OpenOptions::default())?;
    let wanted = Wanted {
        overrides: Overrides::default(),
        settings: Vec::new(),
        objectives: vec![objective.spec()],
        classes: Vec::new(),
        seed: 1,
        experts: ExpertShare::ALL,
    };
    let start = Start::load(checkpoint.into(), &wanted, &Device::Cpu, DType::F32)?;
    let batch = inputs(
        start.model.input(),
        batch.parse()?,
        &Device::Cpu,
        DType::F32,
    )?;
    let mut updater = Updater::new(
        &settings(),
        n_steps,
        &start.variables,
        start.blueprint.grouping(),
        &Alone,
    )?;
    let mut gradients = Gradients::of(updater.trained(&start.variables).map(|(_, var)| var));
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    let mut parts = [0.0; 3];
    let buffers = Buffers::default();
    let mut cpu_before = 0.0;
    for step in 0..n_steps {
        if step == 1 {
            cpu_before = cpu_seconds().unwrap_or(0.0);
        }
        let started = Instant::now();
        let mut last = started;
        let mut lap = |part: usize| {
            parts[part] += last.elapsed().as_secs_f64();
            last = Instant::now();
        };
        gradients.clear();
        let tape = match rest.first().is_some_and(|word| word == "checkpointing") {
            true => Tape::checkpointing(),
            false => Tape::new(),
        }
        .reusing(&buffers);
        let loss = objective.loss(&Step {
            model: start.model.as_ref(),
            batch: &batch,
            collective: &Alone,
            randomness: None,
            tape: Some(&tape),
            shared: &Shared::default(),
            drops: None,
            whole: None,
            routing: None,
            side_losses: None,
            experts: None,
        })?;
        lap(0);
        tape.backward(&loss.value, &mut gradients)?;
        lap(1);
        // Nothing is clipped, so no norm is needed, as in the program beside.
        updater.update(step, &start.variables, &gradients, (1.0, 0.0), &Alone)?;
        lap(2);
        seconds.push(started.elapsed().as_secs_f64());
        losses.push(loss.reported);
    }
    let cpu = cpu_seconds().unwrap_or(0.0) - cpu_before;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|text| text.trim().split(' ').next()?.parse::<u64>().ok());
    let [forward, backward, update] = parts.map(|sum| sum / n_steps as f64);
    println!(
        "{{\"engine\": \"vlmerge\", \"threads\": {}, \"seconds\": {seconds:?}, \"losses\": {losses:?}, \
         \"mean_cpu_seconds\": {:.3}, \
         \"mean_forward_seconds\": {forward:.4}, \"mean_backward_seconds\": {backward:.4}, \
         \"mean_update_seconds\": {update:.4}, \"peak_rss_bytes\": {}}}",
        rayon::current_num_threads(),
        cpu / (n_steps.max(2) - 1) as f64,
        peak.unwrap_or(0) * 1024,
    );
    Ok(())
}
