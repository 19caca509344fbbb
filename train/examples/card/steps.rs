//! Steps of retrieval fine-tuning on fixed inputs: those that `tests/gpu/torch_steps.py` takes of the same checkpoint.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Var};
use evaluate::crossing;
use evaluate::models::{Activations, Branch, ModelInput, Overrides, dtype_of_graphs};
use evaluate::nn::{Buffers, Gradients, Tape};
use evaluate::ranks::ExpertShare;
use serde_json::{Value, json};
use train::collective::Alone;
use train::objectives::{self, Shared, Step};
use train::run::{Start, Updater, Wanted};

use crate::Result;
use crate::timed_step::{inputs, settings};

/// The steps to take.
pub struct Wish<'a> {
    pub device: Device,
    pub dtype: DType,
    pub checkpoint: &'a Path,
    pub batch: usize,
    pub n_steps: u64,
    pub recomputes: bool,
}

/// Floating-point operations of the products of a step: those of blocks, of attention and of patches, forward and twice backward.
fn flops(variables: &BTreeMap<String, Var>, input: &ModelInput, n: usize) -> f64 {
    let of_blocks = |name: &str| name.contains("blocks.");
    let weights = variables.iter().filter(|(name, _)| of_blocks(name));
    let weights = weights.filter(|(_, variable)| variable.rank() == 2);
    let per_token: usize = weights.map(|(_, variable)| variable.elem_count()).sum();
    let projections = variables
        .iter()
        .filter(|(name, _)| name.ends_with("attn.proj.weight"));
    let widths: Vec<usize> = projections
        .map(|(_, variable)| variable.dims()[0])
        .collect();
    let patches = variables
        .iter()
        .find(|(name, _)| name.ends_with("patch_embed.proj.weight"));
    let (of_patch, side) = patches.map_or((0, 1), |(_, weight)| {
        (weight.elem_count(), weight.dims()[3])
    });
    let n_patches = (input.image.side / side).pow(2);
    let lengths = [n_patches + 1, input.text.len];
    let tokens: usize = lengths.iter().sum();
    let attention: usize = lengths
        .iter()
        .map(|len| 2 * len * len * widths.iter().sum::<usize>())
        .sum();
    // A product of m x k with k x n takes 2 m k n; patches are no variables, so their gradient is not computed.
    let products = 3 * 2 * (tokens * per_token + attention) + 2 * 2 * n_patches * of_patch;
    (n * products) as f64
}

/// Peak of resident memory of this process so far.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().split(' ').next()?.parse::<u64>().ok()? * 1024)
}

/// Takes the steps; the first is not counted by whoever reads them.
pub fn steps(wish: &Wish<'_>) -> Result<Value> {
    let (device, dtype) = (&wish.device, wish.dtype);
    let objective = objectives::by_name("retrieval", None)?;
    let checkpoint = merge::io::open(wish.checkpoint, &merge::io::OpenOptions::default())?;
    let wanted = Wanted {
        overrides: Overrides::default(),
        settings: Vec::new(),
        objectives: vec![objective.spec()],
        classes: Vec::new(),
        seed: 1,
        experts: ExpertShare::ALL,
    };
    let mut start = Start::load(checkpoint.into(), &wanted, device, dtype)?;
    let before_batch = crossing::so_far();
    let batch = inputs(start.model.input(), wish.batch, device, dtype)?;
    let of_batch = crossing::so_far() - before_batch;
    let mut updater = Updater::new(
        &settings(),
        wish.n_steps,
        &start.variables,
        start.blueprint.grouping(),
        &Alone,
    )?;
    let mut gradients = Gradients::of(updater.trained(&start.variables).map(|(_, var)| var));
    let buffers = Buffers::default();
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    let mut of_step = crossing::so_far();
    for step in 0..wish.n_steps {
        device.synchronize()?;
        let (started, before) = (Instant::now(), crossing::so_far());
        gradients.clear();
        let tape = match wish.recomputes {
            true => Tape::checkpointing(),
            false => Tape::new(),
        }
        .reusing(&buffers);
        let shared = Shared::default();
        let loss = objective.loss(&Step {
            tape: Some(&tape),
            ..Step::plain(start.model.as_ref(), &batch, &Alone, &shared)
        })?;
        tape.backward(&loss.value, &mut gradients)?;
        // Nothing is clipped, so no norm is needed, as in the program beside.
        updater.update(step, &start.variables, &gradients, (1.0, 0.0), &Alone)?;
        start.recast()?;
        device.synchronize()?;
        seconds.push(started.elapsed().as_secs_f64());
        losses.push(loss.reported);
        of_step = crossing::so_far() - before;
    }
    let n_parameters: usize = start.variables.values().map(|var| var.elem_count()).sum();
    let activation_bytes = start.blueprint.activation_bytes(&Activations {
        n_examples: wish.batch,
        are_recomputed: wish.recomputes,
        branches: &[Branch::Apart],
        graphs: dtype_of_graphs(device, dtype),
    });
    let crossings = |of: crossing::Crossings| {
        json!({
            "to_device": of.to_device, "to_device_bytes": of.to_device_bytes,
            "to_memory": of.to_memory, "to_memory_bytes": of.to_memory_bytes,
        })
    };
    Ok(json!({
        "engine": "vlmerge", "dtype": format!("{dtype:?}"), "batch": wish.batch, "checkpointing": wish.recomputes,
        "seconds": seconds, "losses": losses, "parameters": n_parameters,
        "flops_of_a_step": flops(&start.variables, start.model.input(), wish.batch),
        "copies_of_a_batch": crossings(of_batch), "copies_of_a_step": crossings(of_step),
        "activation_bytes_by_estimate": activation_bytes, "peak_memory_of_the_process": peak_memory(),
    }))
}
