//! The sizes of a checkpoint, as a fresh model of the same form has them.

use crate::layouts::{Stack, TowerSizes};
use crate::{Checkpoint, ConversionFault, Error, Layout, Result};

use super::{Eve, EveSizes, EveSpec, EveTask};

impl Eve {
    /// The task and the sizes of the checkpoint, with published values for whatever it does not hold.
    ///
    /// # Errors
    /// [`ConversionFault::NoSuchConversion`] for a form that is not released: mixtures of experts in other blocks than
    /// the last ones, of several sizes, or one network for all modalities; [`ConversionFault::NotSquare`] for a table
    /// of image positions that is no square of patches.
    pub fn spec(&self, checkpoint: &Checkpoint) -> Result<EveSpec> {
        let dimensions = self.dimensions();
        let n_blocks = dimensions.n_blocks();
        let first = self.routed.keys().next().copied().unwrap_or(n_blocks);
        let n_experts = self.routed.values().next().copied();
        let is_released = self.routed.values().all(|&n| Some(n) == n_experts)
            && (first..n_blocks).all(|block| self.routed.contains_key(&block))
            && (0..first).all(|block| self.networks.get(&block).map(|of| of.len()) == Some(2));
        if !is_released {
            return Err(ConversionFault::NoSuchConversion {
                path: checkpoint.path().into(),
                layout: self.name(),
                wanted: "started for a task, for its blocks are of no released form,",
            }
            .into());
        }
        self.check_square(checkpoint)?;
        let published = EveSizes::BASE;
        let Some(&Stack {
            width,
            n_heads,
            ffn_width,
            ..
        }) = dimensions.only_stack()
        else {
            return Err(Error::NothingToMerge {
                path: checkpoint.path().into(),
                layout: self.name().to_owned(),
            });
        };
        let task = self.name().strip_prefix("eve/").unwrap_or_default();
        let task = EveTask::ALL.iter().find(|(_, name)| *name == task);
        let answers = checkpoint
            .tensors()
            .find(|(key, _)| key.ends_with("output.3.bias"));
        let n_answers = answers.and_then(|(_, info)| info.shape.first().copied());
        let text_positions = dimensions.text_len.unwrap_or(published.text_positions);
        let pair_len = self.pair_len().unwrap_or(published.pair_len);
        Ok(EveSpec {
            task: task.map_or(EveTask::Backbone, |(task, _)| *task),
            sizes: EveSizes {
                blocks: TowerSizes {
                    n_blocks,
                    width,
                    n_heads: n_heads.unwrap_or(1),
                    ffn_width: ffn_width.unwrap_or(4 * width),
                },
                n_mixtures: self.routed.len(),
                n_experts: n_experts.map_or(published.n_experts, usize::from),
                patch_size: dimensions.patch_size.unwrap_or(published.patch_size),
                image_size: dimensions.image_size.unwrap_or(published.image_size),
                text_positions,
                pair_len: pair_len.min(text_positions),
                vocabulary: dimensions.vocabulary.unwrap_or(published.vocabulary),
                n_answers: n_answers.unwrap_or(published.n_answers),
            },
            with_buffers: checkpoint
                .tensors()
                .any(|(key, _)| key.ends_with("position_ids_text")),
        })
    }

    fn check_square(&self, checkpoint: &Checkpoint) -> Result<()> {
        for table in &self.positions {
            let rows = checkpoint.require(&table.key)?.shape.first().copied();
            let (rows, is_unknown) = (rows.unwrap_or(0), self.dimensions().image_size.is_none());
            let is_square = rows > 1 && (rows - 1).isqrt().pow(2) == rows - 1;
            if is_unknown && !is_square {
                let key = table.key.clone();
                return Err(ConversionFault::NotSquare { key, rows }.into());
            }
        }
        Ok(())
    }
}
