//! Named passes over given tensors: what `vlmerge forward` runs, and what golden tests compare.
//!
//! A family lists its passes and the tensors that they read in its own folder
//! ([`NamedPasses`]); names are those of the golden folders, so that a port or another program can be
//! compared tensor by tensor.
//!
//! 1. [`Given::open`] reads tensors from a file and checks each against the family's [`Input`]s.
//! 2. [`run`] runs the passes whose inputs are there, and returns every output by its name.

mod given;
mod input;
mod recorder;
mod write;

use std::collections::BTreeMap;

use candle_core::Tensor;

pub use given::Given;
pub use input::{Input, Kind, Size};
pub use recorder::Recorder;
pub use write::write;

use crate::models::Model;
use crate::nn::Routing;
use crate::{Error, GivenFault, Result};

/// A pass of a family, as its table has it.
pub struct PassSpec<M> {
    /// Its name, with which most of its outputs begin.
    pub name: &'static str,
    /// The inputs that it reads.
    pub inputs: &'static [&'static str],
    /// Whether it runs only where it is named: its outputs have the names of another's.
    pub on_demand: bool,
    /// Runs it, and adds its outputs.
    pub run: fn(&M, &Given, &Recorder) -> Result<()>,
}

impl<M: Sync> PassSpec<M> {
    /// The pass of one model.
    pub fn of<'m>(&self, model: &'m M) -> NamedPass<'m> {
        let run = self.run;
        NamedPass {
            name: self.name,
            inputs: self.inputs,
            on_demand: self.on_demand,
            run: Box::new(move |given, out| run(model, given, out)),
        }
    }
}

type Run<'m> = dyn Fn(&Given, &Recorder) -> Result<()> + 'm;

/// A pass of a model.
pub struct NamedPass<'m> {
    /// Its name.
    pub name: &'static str,
    /// The inputs that it reads.
    pub inputs: &'static [&'static str],
    /// Whether it runs only where it is named: its outputs have the names of another's.
    pub on_demand: bool,
    run: Box<Run<'m>>,
}

/// A model with passes over given tensors.
pub trait NamedPasses: Model {
    /// Every tensor that a file of inputs may have: those that passes read, those that losses read,
    /// and those that stand beside them in the golden files.
    fn inputs(&self) -> Vec<Input>;

    /// Every pass.
    fn passes(&self) -> Vec<NamedPass<'_>>;

    /// The choice of routers in pass `number` of a task or a loss, counted from 0, if tensors give it.
    ///
    /// # Errors
    /// When the device fails.
    fn routing(&self, given: &Given, number: usize) -> Result<Option<Routing>> {
        let _ = (given, number);
        Ok(None)
    }
}

/// The outputs of passes.
#[derive(Debug)]
pub struct Outcome {
    /// Outputs by name, in f32 or as computed where that is wider.
    pub tensors: BTreeMap<String, Tensor>,
    /// The passes that were run.
    pub passes: Vec<&'static str>,
    /// The omissions and their reasons, as sentences.
    pub notes: Vec<String>,
}

/// Runs the passes that `names` lists, or all that need not be named and whose inputs are given; with `hidden`, outputs include
/// the hidden state after each block and its attention probabilities.
///
/// # Errors
/// [`ModelFault::Incapable`](crate::ModelFault::Incapable) for a family without named passes,
/// [`GivenFault::UnknownPass`], [`GivenFault::MissingInput`] for a named pass, [`GivenFault::BadInput`]
/// where sizes of two inputs disagree, and what the passes themselves fail with.
pub fn run(model: &dyn Model, given: &Given, names: &[String], hidden: bool) -> Result<Outcome> {
    let passes = model.named_passes()?.passes();
    for name in names {
        if !passes.iter().any(|pass| pass.name == name) {
            let known: Vec<&str> = passes.iter().map(|pass| pass.name).collect();
            return Err(Error::Given(GivenFault::UnknownPass {
                name: name.clone(),
                known: known.join(", "),
            }));
        }
    }
    let (mut run, mut notes) = (Vec::new(), Vec::new());
    let out = Recorder::new(hidden);
    for pass in &passes {
        let is_named = names.iter().any(|name| name == pass.name);
        if !is_named && (pass.on_demand || !names.is_empty()) {
            continue;
        }
        match given.check(pass.name, pass.inputs) {
            Err(Error::Given(GivenFault::MissingInput { name, .. })) if !is_named => {
                notes.push(format!(
                    "pass {}: skipped, for `{name}` is not given",
                    pass.name
                ));
                continue;
            }
            checked => checked?,
        }
        match (pass.run)(given, &out) {
            Err(fault @ Error::NoHead { .. }) if !is_named => {
                notes.push(format!("pass {}: incomplete: {fault}", pass.name));
            }
            outcome => outcome?,
        }
        run.push(pass.name);
    }
    Ok(Outcome {
        tensors: out.into_tensors(),
        passes: run,
        notes,
    })
}
