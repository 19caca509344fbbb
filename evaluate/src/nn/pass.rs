//! Settings, draws and taps of one forward pass, beside its data.

use std::fmt;
use std::rc::Rc;

use candle_core::{Result, Tensor};

use super::{Dropping, Mask, Omission, Routing, SideLosses, Tape};
use crate::ranks::Collective;

/// Sees the inputs of linear layers as they pass by.
pub trait Tap: Sync {
    /// `input: (b, n, in)` goes into the layer whose gram matrix is called `key`; rows that `mask`
    /// leaves out are padding.
    ///
    /// # Errors
    /// Whatever keeps the tap from taking them; it ends the pass.
    fn linear_input(&self, key: &str, input: &Tensor, mask: Option<&Mask>) -> Result<()>;

    /// The output of a block, `(b, n, d)` each: one sequence, or text and image apart. A block is called by its stack
    /// and number, `image.block3`, or `block3` where a model has one stack.
    ///
    /// # Errors
    /// As [`Tap::linear_input`].
    fn block_output(&self, block: &str, parts: &[Tensor]) -> Result<()> {
        let _ = (block, parts);
        Ok(())
    }

    /// Whether [`Tap::output`] wants the tensor of this name, which may have to be computed for it.
    fn wants(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Another tensor on the way that was wanted: `image.embed`, `text.attn0`, `image.norm`.
    ///
    /// # Errors
    /// As [`Tap::linear_input`].
    fn output(&self, name: &str, tensor: &Tensor) -> Result<()> {
        let _ = (name, tensor);
        Ok(())
    }
}

/// The settings of a forward pass. A graph for gradients is built wherever weights are variables.
#[derive(Clone, Copy, Default)]
pub struct Pass<'a> {
    tap: Option<&'a dyn Tap>,
    omission: Option<&'a Omission>,
    tape: Option<&'a Tape>,
    side_losses: Option<&'a SideLosses>,
    routing: Option<&'a Routing>,
    expert_ranks: Option<&'a Rc<dyn Collective>>,
    stack: &'a str,
    computes_padding: bool,
}

impl<'a> Pass<'a> {
    /// A plain pass.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A pass that shows the inputs of linear layers to `tap`.
    #[must_use]
    pub fn tapped(tap: &'a dyn Tap) -> Self {
        Self {
            tap: Some(tap),
            ..Self::default()
        }
    }

    /// The pass with parts left out at random, as training has it.
    #[must_use]
    pub fn omitting(self, omission: &'a Omission) -> Self {
        Self {
            omission: Some(omission),
            ..self
        }
    }

    /// The pass with its blocks recorded on a tape, which then computes their gradients.
    #[must_use]
    pub fn recorded(self, tape: &'a Tape) -> Self {
        Self {
            tape: Some(tape),
            ..self
        }
    }

    /// The pass with side losses collected.
    #[must_use]
    pub fn collecting(self, side_losses: &'a SideLosses) -> Self {
        Self {
            side_losses: Some(side_losses),
            ..self
        }
    }

    /// The pass with routers that choose in this way.
    #[must_use]
    pub fn routed(self, routing: &'a Routing) -> Self {
        Self {
            routing: Some(routing),
            ..self
        }
    }

    /// The pass with the experts of a mixture shared out among ranks, each of which holds its own alone. All ranks run the
    /// same passes in the same order. Where passes are recorded, each rank has tokens of its own; elsewhere all ranks
    /// have the same tokens.
    #[must_use]
    pub fn sharing_experts(self, ranks: &'a Rc<dyn Collective>) -> Self {
        Self {
            expert_ranks: Some(ranks),
            ..self
        }
    }

    /// The ranks that share experts out, if there are several.
    #[must_use]
    pub fn expert_ranks(&self) -> Option<&'a Rc<dyn Collective>> {
        self.expert_ranks.filter(|ranks| ranks.size() > 1)
    }

    /// The choice of routers, if it is not the model's own.
    #[must_use]
    pub fn routing(&self) -> Option<&'a Routing> {
        self.routing
    }

    /// The pass within a stack of blocks, in whose name taps see what it computes and dropout draws:
    /// two towers do not collide.
    #[must_use]
    pub fn within(self, stack: &'a str) -> Self {
        Self { stack, ..self }
    }

    /// The pass with the states of padding computed, too, which otherwise are left out where nothing but
    /// themselves depends on them, and are zeros then.
    #[must_use]
    pub fn with_padding(self) -> Self {
        Self {
            computes_padding: true,
            ..self
        }
    }

    /// `name` within the stack: `block3`, `image.block3`.
    #[must_use]
    pub fn name(&self, name: &str) -> String {
        match self.stack {
            "" => name.to_owned(),
            stack => format!("{stack}.{name}"),
        }
    }

    /// Dropout at `site`, to be applied later, or several times.
    #[must_use]
    pub fn dropping(&self, site: &str) -> Dropping {
        match self.omission {
            Some(omission) => Dropping::at(omission, self.name(site)),
            None => Dropping::none(),
        }
    }

    /// `x: (b, ...)` after dropout at `site`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn drop(&self, site: &str, x: &Tensor) -> Result<Tensor> {
        self.dropping(site).apply(x)
    }

    /// Adds a scalar to what the pass is trained for, if anybody collects side losses.
    pub fn add_loss(&self, name: &str, loss: &Tensor) {
        if let Some(side_losses) = self.side_losses {
            side_losses.add(self.name(name), loss);
        }
    }

    /// The random omissions.
    #[must_use]
    pub fn omission(&self) -> Option<&'a Omission> {
        self.omission
    }

    /// The tape that records blocks.
    #[must_use]
    pub fn tape(&self) -> Option<&'a Tape> {
        self.tape
    }

    /// Shows an input to the tap, if there is one; `key` is called only then.
    pub(crate) fn show(
        &self,
        key: impl FnOnce() -> String,
        input: &Tensor,
        mask: Option<&Mask>,
    ) -> Result<()> {
        match self.tap {
            Some(tap) => tap.linear_input(&key(), input, mask),
            None => Ok(()),
        }
    }

    /// Shows what block `index` of the stack puts out.
    pub(crate) fn show_block(&self, index: usize, parts: &[Tensor]) -> Result<()> {
        self.show_named_block(&format!("block{index}"), parts)
    }

    /// [`Pass::show_block`] for stacks whose blocks are called otherwise: `layer3`.
    pub(crate) fn show_named_block(&self, name: &str, parts: &[Tensor]) -> Result<()> {
        match self.tap {
            Some(tap) => tap.block_output(&self.name(name), parts),
            None => Ok(()),
        }
    }

    /// Shows another tensor by its name within the stack, which is computed only if it is wanted.
    pub(crate) fn show_output(
        &self,
        name: fmt::Arguments<'_>,
        tensor: impl FnOnce() -> Result<Tensor>,
    ) -> Result<()> {
        let Some(tap) = self.tap else { return Ok(()) };
        let name = self.name(&name.to_string());
        match tap.wants(&name) {
            true => tap.output(&name, &tensor()?),
            false => Ok(()),
        }
    }

    /// Whether rows of padding may be left out: nobody asks for them or looks on.
    pub(crate) fn may_pack(&self) -> bool {
        !self.computes_padding && self.tap.is_none()
    }

    /// Whether anybody looks on, so that nothing may be left out.
    #[must_use]
    pub fn is_tapped(&self) -> bool {
        self.tap.is_some()
    }
}
