//! The variables whose optimizer state a rank keeps and which it updates.

use std::ops::Range;

use candle_core::{Storage, Var};

use crate::Result;
use crate::collective::{Collective, Parameters, Part, Shards};
use crate::optim::{change_in_place, range_of};

/// The owners of a model's variables. In memory they are laid end to end and cut into a stretch for each rank
/// ([`Shards`]); on another device each belongs, as a whole, to the rank in whose stretch it begins. Variables that one
/// rank alone holds are its own, and in no stretch.
pub(super) struct Ownership {
    shards: Shards,
    /// The variables that all ranks hold.
    shared: Vec<usize>,
    /// This rank's part of each variable.
    own: Vec<Range<usize>>,
}

impl Ownership {
    /// Of variables, with whether all ranks hold them: of those in an order that is the same on all ranks.
    pub(super) fn new(variables: &[(&Var, bool)], collective: &dyn Collective) -> Self {
        let shared = (0..variables.len()).filter(|&at| variables[at].1);
        let shared: Vec<usize> = shared.collect();
        let lengths = shared.iter().map(|&at| variables[at].0.elem_count());
        let shards = Shards::new(lengths, collective.size());
        let alone = variables
            .iter()
            .map(|(variable, is_shared)| match is_shared {
                true => 0..0,
                false => 0..variable.elem_count(),
            });
        let mut own: Vec<Range<usize>> = alone.collect();
        for part in shards.parts(collective.rank()) {
            let (at, range) = (shared[part.parameter], part.of_parameter);
            let variable = variables[at].0;
            own[at] = match (variable.device().is_cpu(), range.start) {
                (true, _) => range,
                (false, 0) => 0..variable.elem_count(),
                (false, _) => 0..0,
            };
        }
        Self {
            shards,
            shared,
            own,
        }
    }

    /// This rank's part of a variable.
    pub(super) fn own(&self, index: usize) -> Range<usize> {
        self.own[index].clone()
    }

    /// Numbers that this rank owns.
    pub(super) fn n_owned(&self) -> u64 {
        self.own.iter().map(|range| range.len() as u64).sum()
    }

    /// Gives all ranks what each has changed of the variables that all hold.
    ///
    /// # Errors
    /// When a rank is gone or the device fails.
    pub(super) fn share(&self, variables: &[&Var], collective: &dyn Collective) -> Result<()> {
        if collective.size() == 1 {
            return Ok(());
        }
        let shared: Vec<&Var> = self.shared.iter().map(|&at| variables[at]).collect();
        if shared.iter().all(|variable| variable.device().is_cpu()) {
            return self
                .shards
                .gather_ranges(collective, &mut InMemory(&shared));
        }
        for (variable, &at) in shared.into_iter().zip(&self.shared) {
            let own = &self.own[at];
            let tensor = variable.as_detached_tensor();
            // All but the owner add nothing.
            let given = match own.is_empty() {
                true => tensor.zeros_like()?,
                false => tensor,
            };
            variable.set(&collective.sum_tensor(&given)?)?;
        }
        Ok(())
    }
}

/// Variables in f32 in memory.
struct InMemory<'a>(&'a [&'a Var]);

impl Parameters for InMemory<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.0
            .iter()
            .map(|variable| variable.elem_count())
            .collect()
    }

    fn read(&self, part: &Part, out: &mut [f32]) -> Result<()> {
        let (storage, layout) = self.0[part.parameter].storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            let what = "the variable is not in memory".to_owned();
            return Err(candle_core::Error::Msg(what).into());
        };
        let values = storage.as_slice::<f32>()?;
        let own = range_of(layout, &part.of_parameter)?;
        out.copy_from_slice(&values[own]);
        Ok(())
    }

    fn write(&mut self, part: &Part, values: &[f32]) -> Result<()> {
        let variable = self.0[part.parameter];
        change_in_place(variable, part.of_parameter.clone(), |own| {
            own.copy_from_slice(values);
            Ok(())
        })
    }
}
