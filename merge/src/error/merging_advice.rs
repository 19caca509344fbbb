//! Hints for merges of several checkpoints that fail, and the failures that wrong arguments cause.

use super::MergeFault;

impl MergeFault {
    /// Whether the fault lies in the recipe rather than in a checkpoint.
    pub(super) const fn is_usage(&self) -> bool {
        !matches!(
            self,
            Self::OnlyInSome { .. }
                | Self::OtherSpelling { .. }
                | Self::NothingCombined { .. }
                | Self::Shapes { .. }
                | Self::DTypes { .. }
                | Self::UnequalIntegers { .. }
                | Self::NonFiniteInput { .. }
                | Self::Vocabularies { .. }
                | Self::NoTokenizer { .. }
                | Self::NoEmbeddings { .. }
                | Self::Companion { .. }
                | Self::NoDirection { .. }
                | Self::ForeignGrams { .. }
                | Self::BrokenMixture { .. }
                | Self::ExpertCounts { .. }
                | Self::RouterAlone { .. }
                | Self::NoRouter { .. }
                | Self::NoOutputs { .. }
                | Self::NoRouting { .. }
                | Self::ShuffledExperts { .. }
                | Self::NoDecomposition { .. }
                | Self::AddedMethod { .. }
                | Self::ResultShape { .. }
                | Self::ConfigLayers { .. }
                | Self::Heads { .. }
        )
    }

    /// A hint for the user.
    pub(super) fn hint(&self) -> Option<&str> {
        match self {
            Self::OtherSpelling { advice, .. } => Some(advice),
            Self::NothingCombined { .. } => {
                Some("are these models of one architecture? `rename` brings names together")
            }
            Self::OnlyInSome { .. } => Some(
                "`on_missing: copy` takes such tensors from the base or the first model that has them, \
                 `on_missing: skip` leaves them out",
            ),
            Self::ForeignGrams { .. } => Some(
                "give each model the file that was made of it; `foreign_grams: allow` in the recipe \
                 takes it if that file held the same weights",
            ),
            Self::NonFiniteInput { .. } => {
                Some("--allow-non-finite merges files that are broken like this one")
            }
            Self::Shapes { key, .. }
                if crate::ties::may_be_shared(key) || crate::ties::is_head(key) =>
            {
                Some(
                    "such tables have a row for each token, and rows that fill them up: with the tokenizer.json of one of \
                 the models beside it their tokens are merged, and `tokenizer_source: union` takes those of all",
                )
            }
            Self::ShuffledExperts { .. } => Some(
                "`align_experts: weights` in the recipe finds which expert is which and moves them, router rows included; \
                 `align_experts: none` merges them by number all the same",
            ),
            Self::OutputsNotGiven { .. } | Self::NoOutputs { .. } => Some(
                "`vlmerge gram --checkpoint MODEL` writes one, over the same data for each model",
            ),
            Self::NoRouting { .. } => Some(
                "`vlmerge gram` records it of EVE; of models that this program does not run another program writes it, in \
                 the form of docs/formats.md, \"Gram files\"",
            ),
            Self::NoMixtures { .. } => {
                Some("`align_units` aligns the hidden units of dense networks")
            }
            Self::Misplaced { .. } => Some(
                "`t` and its like belong to the `parameters` of the recipe, a module or a slice",
            ),
            Self::ConfigLayers { .. } => Some(
                "`on_missing: error` names the tensors that only some models have; `slices` say which layers the output \
                 has",
            ),
            Self::Heads { .. } => Some(
                "the same weights mean another model with other heads: merge models of one configuration, or mend the \
                 config.json that is wrong",
            ),
            Self::UnnamedModules { .. } => Some(
                "name each with the models that give its weights, as `vision_tower: { models: [MODEL] }`; \
                 `on_missing: copy` copies the tensors from the base or the first model, `on_missing: skip` leaves \
                 them out, as mergekit does",
            ),
            Self::Vocabularies { .. } => Some(
                "`tokenizer_source: base` keeps the base's tokens, `tokenizer_source: union` those of \
                 all models; either moves the rows of embeddings and heads",
            ),
            Self::ExpertsOnly { method } => match method.as_bytes() {
                b"arithmetic" => Some("between checkpoints it is called task_arithmetic"),
                _ => Some("between checkpoints it is called linear"),
            },
            Self::WeightsSumToZero { .. } => {
                Some("`normalize: false` takes the weights as they are")
            }
            _ => None,
        }
    }
}
